"""What does more context buy a model? Its loss on the same targets, by how many tokens before them it may see.

Each target is predicted from exactly its last c tokens, in a row of its own that begins with the first of them: a
transformer cannot look further back, and a recurrent network begins with an empty state.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from matplotlib import ticker
from matplotlib.figure import Figure

from model import checkpoint, errors
from model.config import RECURRENT
from train import bootstrap, data, evaluate, figures, losses, metrics
from train.streams import Tokens

FAMILIES = ("decoder_only", *RECURRENT)
ROW_TOKENS = 8192  # tokens of all windows that run at once
# Of Okabe & Ito (2008), as those of train/figures.py.
COLORS = (figures.BLUE, figures.VERMILION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Targets: their places in a stream of tokens, and of which document each is."""

    places_N: np.ndarray
    documents_N: np.ndarray


def contexts(most: int) -> list[int]:
    """1, 2, 4, ... and `most` itself."""
    return [2**i for i in range(most.bit_length()) if 2**i < most] + [most]


def choose(tokens: Tokens, most: int, count: int, seed: int) -> Chosen:
    """At most `count` targets that have at least `most` tokens of their own document before them."""
    places = [
        np.arange(begin + most, end)
        for begin, end in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)
    ]
    owners_N = np.repeat(np.arange(len(places)), [len(each) for each in places])
    places_N = np.concatenate([np.zeros(0, int), *places])
    if not len(places_N):
        raise errors.BadInput(
            f"no held-out document has more than {most} tokens, which a target behind {most} others needs; "
            "give shorter --contexts"
        )
    chosen = np.random.default_rng(seed).permutation(len(places_N))[:count]
    chosen.sort()
    return Chosen(places_N[chosen], owners_N[chosen])


def nats(
    net: nn.Module, params: Any, ids: np.ndarray, places_N: np.ndarray, context: int
) -> np.ndarray:
    """Of each target, `-log p` given the `context` tokens before it and nothing else, float32 [N]; one program."""
    predict = jax.jit(functools.partial(_nats, net))
    rows = min(max(1, ROW_TOKENS // context), len(places_N))
    found = []
    for start in range(0, len(places_N), rows):
        part = places_N[start : start + rows]
        padded = np.pad(part, (0, rows - len(part)), mode="edge")
        windows_BT = ids[padded[:, None] + np.arange(-context, 0)].astype(np.int32)
        nats_B = predict(params, windows_BT, ids[padded].astype(np.int32))
        found.append(np.asarray(nats_B)[: len(part)])
    return np.concatenate(found)


def measure(
    runs: Mapping[str, evaluate.Run],
    asked: Sequence[int] = (),
    count: int = 2048,
    seed: int = 0,
) -> dict[str, Any]:
    """The numbers of `lines`: of each run, loss by context, with 95 % bootstrap intervals over documents.

    Without contexts `asked`, the powers of 2 up to the longest that all runs were trained with.

    Raises:
        BadInput: of runs that no common targets can be asked of, and of contexts beyond a run's window.
    """
    tokens = _same_tokens(runs)
    trained = min(min(r.lm.config.context_length, r.asked.data.length) for r in runs.values())
    sizes = sorted(set(asked)) or contexts(trained)
    for name, run in runs.items():
        window = run.lm.config.context_length
        if sizes[0] < 1 or sizes[-1] > window:
            wrong = sizes[0] if sizes[0] < 1 else sizes[-1]
            raise errors.BadInput(
                f"a context is {wrong} tokens, and {name} takes 1 to {window}; give others by --contexts"
            )
    chosen = choose(tokens, sizes[-1], count, seed)
    return {
        "figure": "context",
        "targets": len(chosen.places_N),
        "documents": len(set(chosen.documents_N.tolist())),
        "contexts": sizes,
        "lines": [_line(name, run, tokens.ids, chosen, sizes) for name, run in runs.items()],
    }


def table(numbers: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """A header, and a row per run: parameters, tokens of training, nats per token by context."""
    header = ["run", "parameters", "tokens", *(f"{size:,}" for size in numbers["contexts"])]
    rows = [
        [
            line["name"],
            f"{line['parameters']:,}",
            f"{line['tokens']:,}",
            *(f"{loss:.3f}" for loss in line["loss"]),
        ]
        for line in numbers["lines"]
    ]
    return header, rows


def draw(numbers: Mapping[str, Any], directory: pathlib.Path) -> pathlib.Path:
    """Writes `figures/context.png` and its numbers beside it; returns the picture."""
    return figures.write(lines, numbers, directory / "figures" / "context")


def lines(numbers: Mapping[str, Any]) -> Figure:
    """Loss against context, a line per run, whose name and last value stand at its end."""
    figure = Figure(figsize=(7.6, 4.4))
    axes = figure.add_axes((0.085, 0.125, 0.695, 0.72))
    sizes, ends = numbers["contexts"], []
    for i, line in enumerate(numbers["lines"]):
        color = COLORS[i % len(COLORS)]
        look: Any = dict(linewidth=1.6, marker="o", markersize=4, clip_on=False, zorder=3)
        axes.plot(sizes, line["loss"], color=color, **look)
        text = f"{figures.label(line['name'])} {line['loss'][-1]:.3f}\n{line['parameters']:,} parameters"
        ends.append((line["loss"][-1], text, color))
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.grid(axis="y", color=figures.FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel("tokens of context that the model may see")
    axes.set_ylabel("loss (nats per token)")
    figures.end_labels(axes, 4.4 * 0.72, ends)
    note = f"The same {numbers['targets']:,} targets of {numbers['documents']:,} held-out documents at every length."
    figures.heading(figure, 0.085, "What more context buys", note)
    return figure


def _nats(net: nn.Module, params: Any, tokens_BT: jax.Array, targets_B: jax.Array) -> jax.Array:
    x_BTD, _ = net.apply({"params": params}, tokens_BT, method="features")
    logits_BTV = net.apply({"params": params}, x_BTD[:, -1:], method="head")
    return losses.cross_entropy(logits_BTV, targets_B[:, None])[:, 0]


def _line(
    name: str, run: evaluate.Run, ids: np.ndarray, chosen: Chosen, sizes: Sequence[int]
) -> dict[str, Any]:
    found = []
    for size in sizes:
        nats_N = nats(run.net, run.lm.params, ids, chosen.places_N, size)
        found.append(bootstrap.interval(_by_document(nats_N, chosen.documents_N), seed=0))
    return {
        "name": name,
        "family": run.lm.config.family,
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(run.lm.params)),
        "tokens": checkpoint.read_meta(run.directory / "checkpoints", run.step)["tokens"],
        "loss": [each.value for each in found],
        "low": [each.low for each in found],
        "high": [each.high for each in found],
    }


def _by_document(nats_N: np.ndarray, documents_N: np.ndarray) -> bootstrap.Scores:
    """The loss of all targets, whose documents were drawn independently."""
    _, owners_N = np.unique(documents_N, return_inverse=True)
    return metrics.loss(np.bincount(owners_N, nats_N).tolist(), np.bincount(owners_N).tolist())


def _same_tokens(runs: Mapping[str, evaluate.Run]) -> Tokens:
    """The held-out tokens of all runs; refuses runs that do not predict the same ones."""
    (first, one), *others = runs.items()
    for name, run in runs.items():
        if run.lm.config.family not in FAMILIES or run.asked.task.kind != "causal":
            raise errors.BadInput(
                f"{name} is {run.lm.config.family} with task {run.asked.task.kind!r}; loss by context is of models "
                "that predict the next token of a text"
            )
    for name, run in others:
        for what, a, b in (
            ("text", one.corpus.digest, run.corpus.digest),
            ("tokenizer", one.lm.words.digest, run.lm.words.digest),
        ):
            if a != b:
                raise errors.BadInput(
                    f"{name} and {first} have not the same {what} ({b[:12]} and {a[:12]}); "
                    "give runs of the same text and tokenizer"
                )
    prepared = data.prepare(
        one.corpus,
        one.lm.words,
        one.directory / "data",
        train=one.asked.tasks,
        valid=one.asked.task,
    )
    return prepared.valid.streams["text"]
