"""How well does a model predict held-out text? Loss, perplexity and bits per byte."""

import dataclasses
import functools
import json
import lzma
import math
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, cast

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

import model
from model import checkpoint, errors, heads, sharding
from model.config import ModelConfig, Runtime
from model.tokenizer import Tokenizer
from train import data, losses, recipe, rows, step
from train.corpus import Corpus
from train.step import Batch

EvalStep = Callable[[Any, Batch], tuple[jax.Array, jax.Array, jax.Array]]


ROWS = 8  # evaluated at once


def of_run(directory: str | pathlib.Path) -> dict[str, float]:
    """Measures a run's newest checkpoint on its held-out text, and writes `<directory>/evaluation.json`.

    It computes in the run's own dtype.

    Returns:
        What `evaluate` does, `bytes` of the text, and `xz_bytes` that `xz -9e` makes of the same text.

    Raises:
        BadInput: when the text is no longer what the run was trained and measured on, besides what `model.load` raises.
    """
    directory = pathlib.Path(directory)
    lm = model.load(directory)
    asked = recipe.of_run(directory)
    corpus = asked.corpus()
    _check_text(directory, corpus)
    tasks: dict[str, Any] = dict(train=asked.tasks, valid=asked.task)
    prepared = data.prepare(corpus, lm.tokenizer, directory / "data", **tasks)
    source = held_out(asked, prepared, lm.tokenizer, lm.config)
    mesh = sharding.make_mesh()
    placed = (step.put_batch(batch, mesh) for batch in data.eval_batches(source, ROWS * mesh.size))
    net = model.build(lm.config, Runtime(dtype=asked.runtime.dtype))
    params = jax.device_put(lm.params, sharding.replicated(mesh))
    valid = prepared.valid
    step_ = make_eval_step(net, mesh, asked.loss)
    metrics = evaluate(step_, params, placed, valid.bytes, valid.words)
    if asked.task.kind == "causal":
        text = "".join(corpus.held_out_documents).encode()
        compressed = lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)
        metrics |= {"bytes": len(text), "xz_bytes": len(compressed)}
    checkpoint.write_file(directory / "evaluation.json", json.dumps(metrics, indent=2) + "\n")
    return metrics


def held_out(
    asked: recipe.Recipe, prepared: data.Prepared, words: Tokenizer, config: ModelConfig
) -> rows.Rows:
    """The rows that a run is measured on; what is random about them is the same for every run and epoch."""
    return rows.build(
        asked.task,
        prepared.valid,
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


def _check_text(directory: pathlib.Path, corpus: Corpus) -> None:
    """Refuses text that was not kept out of a run's training: a number measured on it would mean nothing."""
    checkpoints = directory / "checkpoints"
    last = cast(int, checkpoint.latest(checkpoints))  # there is one: it has been loaded
    trained = checkpoint.read_meta(checkpoints, last)["corpus"]
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
        loss = dataclasses.replace(loss, chunk=0)
    targets_BT, weights_BT = batch["targets"], batch["weights"]
    read = heads.params(net.config, params)
    nats_B, right_B = losses.by_row(
        step.head(net, key=None), read, x_BTD, targets_BT, weights_BT, loss
    )
    return nats_B, right_B, weights_BT.sum(axis=1)
