"""How well does a model predict held-out text? Loss, perplexity and bits per byte."""

import dataclasses
import functools
import json
import lzma
import math
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

import model
from model import checkpoint, errors, heads, sharding
from model.config import ModelConfig, Runtime
from model.tokenizer import Tokenizer
from train import data, losses, overrides, recipe, rows, step, streams
from train.corpus import Corpus
from train.step import Batch

EvalStep = Callable[[Any, Batch], tuple[jax.Array, jax.Array, jax.Array]]


ROWS = 8  # evaluated at once
CHANGED = r"(evaluate|data\.test)(\.|$)"  # keys of a run's recipe that are for evaluation only


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as it is evaluated: its newest checkpoint, and the corpus that it learnt from."""

    directory: pathlib.Path
    lm: model.LM
    asked: recipe.Recipe
    corpus: Corpus
    step: int

    @functools.cached_property
    def mesh(self) -> Mesh:
        """All devices; parameters are on each."""
        return sharding.make_mesh()

    @functools.cached_property
    def net(self) -> nn.Module:
        """Its network, in the dtype of training."""
        return model.build(self.lm.config, Runtime(dtype=self.asked.runtime.dtype))

    @functools.cached_property
    def params(self) -> Any:
        """Its weights."""
        return jax.device_put(self.lm.params, sharding.replicated(self.mesh))

    def batches(self, source: rows.Rows) -> Iterator[Batch]:
        """Rows as the devices take them."""
        size = ROWS * self.mesh.size
        return (step.put_batch(batch, self.mesh) for batch in data.eval_batches(source, size))


def opened(directory: str | pathlib.Path, changed: Sequence[str] = ()) -> Run:
    """A run; `changed` are flags that change what is evaluated.

    Raises:
        BadInput: when the text is no longer what the run was trained and measured on, besides what `model.load` raises.
    """
    for flag in changed:
        path, _ = overrides.split(flag)
        if not re.match(CHANGED, path):
            raise errors.BadInput(
                f"{flag}: eval changes only config.evaluate and config.data.test of a run; leave it out"
            )
    directory = pathlib.Path(directory)
    lm = model.load(directory)
    asked = recipe.of_run(directory, changed)
    corpus = asked.corpus()
    last = cast(int, checkpoint.latest(directory / "checkpoints"))  # there is one: it was loaded
    _check_text(directory, corpus, last)
    return Run(directory, lm, asked, corpus, last)


def of_run(directory: str | pathlib.Path) -> dict[str, float]:
    """As `of` of the run in that directory."""
    return of(opened(directory))


def of(run: Run) -> dict[str, float]:
    """Measures a run's newest checkpoint on its held-out text, and writes `<directory>/evaluation.json`.

    It computes in the run's own dtype.

    Returns:
        What `evaluate` does, `bytes` of the text, and `xz_bytes` that `xz -9e` makes of the same text.
    """
    asked, words = run.asked, run.lm.tokenizer
    tasks: dict[str, Any] = dict(train=asked.tasks, valid=asked.task)
    prepared = data.prepare(run.corpus, words, run.directory / "data", **tasks)
    source = held_out(asked, prepared, words, run.lm.config)
    metrics = measure(run, source, prepared.valid)
    if asked.task.kind == "causal":
        text = "".join(run.corpus.held_out_documents).encode()
        compressed = lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)
        metrics |= {"bytes": len(text), "xz_bytes": len(compressed)}
    checkpoint.write_file(run.directory / "evaluation.json", json.dumps(metrics, indent=2) + "\n")
    return metrics


def measure(run: Run, source: rows.Rows, examples: streams.Examples) -> dict[str, float]:
    """What `evaluate` says of a run's model on the rows that were made of these examples."""
    step_ = make_eval_step(run.net, run.mesh, run.asked.loss)
    return evaluate(step_, run.params, run.batches(source), examples.bytes, examples.words)


def held_out(
    asked: recipe.Recipe, prepared: data.Prepared, words: Tokenizer, config: ModelConfig
) -> rows.Rows:
    """The rows that a run is measured on; what is random about them is the same for every run and epoch."""
    return rows_of(asked, prepared.valid, words, config)


def rows_of(
    asked: recipe.Recipe, examples: streams.Examples, words: Tokenizer, config: ModelConfig
) -> rows.Rows:
    """The rows that examples are measured in."""
    return rows.build(
        asked.task,
        examples,
        words,
        config,
        length=asked.data.length,
        source_length=asked.data.source_length,
        overlap=asked.data.overlap,
        name="held out",
        virtual=asked.virtual_tokens,
    )


def make_eval_step(
    net: nn.Module,
    mesh: Mesh,
    loss: losses.LossConfig = losses.LossConfig(),  # noqa: B008  frozen
) -> EvalStep:
    """`eval_step(params, batch) -> (nats_B, right_B, weights_B)`, compiled once: sums over each row."""
    jitted = jax.jit(
        functools.partial(_eval_step, net, loss),
        in_shardings=(None, sharding.batch(mesh)),
        out_shardings=sharding.replicated(mesh),
    )
    return sharding.on_mesh(jitted, mesh)


def evaluate(
    eval_step: EvalStep,
    params: Any,
    batches: Iterable[Batch],
    text_bytes: int = 0,
    text_words: int = 0,
) -> dict[str, float]:
    """Loss over all batches, each row's sum added in float64.

    Args:
        eval_step: of `make_eval_step`.
        params: of its network.
        batches: as `step.put_batch` places them; padding and repeated rows carry weight 0.
        text_bytes: UTF-8 length of the text whose tokens are the weighted targets; 0 where they are not all its tokens.
        text_words: its words, likewise.

    Returns:
        `loss` (nats per target), `perplexity = exp(loss)`, `accuracy` (the share of targets that have the largest
        logit), `tokens` (the summed weights); and of a text `bits_per_byte = nats / ln 2 / text_bytes`, which compares
        models with different tokenizers, and with compressors, and `word_perplexity = exp(nats / text_words)`.
    """
    sums = jax.device_get([eval_step(params, batch) for batch in batches])
    nats, right, tokens = (
        sum(float(np.sum(each_B, dtype=np.float64)) for each_B in column)
        for column in zip(*sums, strict=True)
    )
    if tokens <= 0:
        raise errors.BadInput("the held-out text has no target; evaluation needs more text")
    loss = nats / tokens
    found = {"loss": loss, "perplexity": _exp(loss), "accuracy": right / tokens}
    if text_bytes and text_words:
        found["bits_per_byte"] = nats / math.log(2) / text_bytes
        found["word_perplexity"] = _exp(nats / text_words)
    return {**found, "tokens": tokens}


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _check_text(directory: pathlib.Path, corpus: Corpus, last: int) -> None:
    """Refuses text that was not kept out of a run's training: a number measured on it would mean nothing."""
    trained = checkpoint.read_meta(directory / "checkpoints", last)["corpus"]
    if corpus.digest != trained:
        raise errors.BadInput(
            f"the held-out text is not the one kept out of the training of {directory} (the text of group data was "
            f"{trained[:12]}, is {corpus.digest[:12]}): its files, or the Python version, changed; restore them or "
            "train again in another --workdir"
        )


def _eval_step(
    net: nn.Module, loss: losses.LossConfig, params: Any, batch: Batch
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x_BTD, _ = step.features(net, params, batch, key=None)
    if net.config.head.kind != "lm":
        loss = dataclasses.replace(loss, chunk=0, skip=False)
    targets_BT, weights_BT = batch["targets"], batch["weights"]
    read = heads.params(net.config, params)
    nats_B, right_B = losses.by_row(
        step.head(net, key=None), read, x_BTD, targets_BT, weights_BT, loss
    )
    return nats_B, right_B, weights_BT.sum(axis=1)
