"""How far are our logits and gradients from those of transformers and torch?

    python benchmarks/parity.py
    python benchmarks/parity.py --only=llama-yarn --only=t5

Prints one line for each architecture: the largest difference in float32, in units of its largest logit, for rows of one
token, of some, and of the whole window, each alone / padded on the left / padded on the right; then in bfloat16, ours
and theirs from their float32; then of the gradients, in units of the largest of each tensor. Ends with 1 where a bound
of tests/agreement.py is broken.
"""

import pathlib
import sys
import warnings
from typing import Any

# decode.py lies beside this file, and would be imported in place of the package of that name.
sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

import jax  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from absl import app, flags  # noqa: E402

from model.config import ModelConfig, Runtime  # noqa: E402
from tests import agreement, oracles, references  # noqa: E402
from tests.references import Reference  # noqa: E402

FLAGS = flags.FLAGS
flags.DEFINE_multi_enum("only", [], list(references.REFERENCES), "references; all by default")
flags.DEFINE_integer("seed", 0, "of weights and rows")

HEADER = (
    "| model | family | position | head | lengths | one token | some | the window "
    "| bfloat16 | theirs in bfloat16 | gradients |"
)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module="torch")
    print(
        f"transformers {transformers.__version__}, torch {torch.__version__}, jax {jax.__version__} "
        f"on {jax.default_backend()}, weights and rows of seed {FLAGS.seed}\n"
    )
    print(HEADER)
    print("|---" * HEADER.count(" | ") + "|---|")
    broken = [
        name
        for name in FLAGS.only or references.REFERENCES
        if not line(name, references.REFERENCES[name])
    ]
    if broken:
        print(f"\nBeyond its bound: {', '.join(broken)}")
        sys.exit(1)


def line(name: str, reference: Reference) -> bool:
    """Measures one reference and prints it; false where a bound is broken."""
    seed = str(FLAGS.seed or "")
    tensors = references.weights(reference, oracles.shapes(reference), seed)
    rows = references.rows(reference, FLAGS.seed)
    theirs = oracles.build(reference, tensors)
    said = [oracles.logits(theirs, row) for row in rows]
    labels = list(references.labels(reference, rows))
    oracles.losses(said, labels).backward()
    expected = [one.detach().numpy().copy() for one in said]
    scale = max(np.abs(one).max() for one in expected)
    config, params = agreement.load(reference, tensors)

    def errors(padding: str, runtime: Runtime = agreement.FLOAT32) -> list[float]:
        ours = agreement.logits(config, params, rows, padding, runtime)
        return [np.abs(a - b).max() / scale for a, b in zip(ours, expected, strict=True)]

    exact = np.array([errors(padding) for padding in agreement.PADDINGS]).T
    rough = np.max(errors("left", Runtime(dtype="bfloat16")))
    slope = agreement.gradient_error(
        reference,
        config,
        agreement.gradients(config, params, rows, labels),
        oracles.gradients(theirs),
    )
    cells = [" / ".join(f"{error:.0e}" for error in errors_of_length) for errors_of_length in exact]
    print(
        f"| {name} | {config.family} | {position(config)} | {head(config)} "
        f"| {', '.join(map(str, reference.lengths))} | {' | '.join(cells)} "
        f"| {rough:.3f} | {their_bfloat16(reference, tensors, rows, expected):.3f} | {slope:.0e} |",
        flush=True,
    )
    return exact.max() < agreement.EXACT and rough < agreement.ROUGH and slope < agreement.SLOPE


def position(config: ModelConfig) -> str:
    """In words."""
    words = [config.position]
    if config.position == "rope":
        words += [config.rope.scaling] * (config.rope.scaling != "none")
        words += [f"of {config.rotary_size}/{config.head_size}"] * (config.rope.fraction < 1)
    if config.windows:
        words.append(f"windows {', '.join(map(str, config.windows))}")
    return " ".join(words)


def head(config: ModelConfig) -> str:
    """In words."""
    if config.head.kind != "lm":
        return config.head.kind
    return "tied" if config.tied else "untied"


def their_bfloat16(reference: Reference, tensors: Any, rows: Any, expected: Any) -> float:
    """How far their own bfloat16 is from their float32."""
    theirs = oracles.build(reference, tensors).bfloat16()
    with torch.no_grad():
        said = [oracles.logits(theirs, row).float().numpy() for row in rows]
    return agreement.error(said, expected)


if __name__ == "__main__":
    app.run(main)
