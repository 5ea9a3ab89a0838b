"""How well does a model predict held-out text? Loss, perplexity and bits per byte."""

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
from model import checkpoint, errors, sharding
from model.config import Runtime
from train import data, losses, recipe, step
from train.corpus import Corpus
from train.step import Batch

EvalStep = Callable[[Any, Batch], tuple[jax.Array, jax.Array]]


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
    corpus = asked.data.corpus()
    _check_text(directory, corpus)
    prepared = data.prepare(corpus, lm.tokenizer, directory / "data")
    rows = data.Packed(prepared.valid, asked.data.length, asked.data.overlap)
    mesh = sharding.make_mesh()
    placed = (step.put_batch(batch, mesh) for batch in data.eval_batches(rows, ROWS * mesh.size))
    net = model.build(lm.config, Runtime(dtype=asked.runtime.dtype))
    params = jax.device_put(lm.params, sharding.replicated(mesh))
    metrics = evaluate(make_eval_step(net, mesh), params, placed, prepared.valid.bytes)
    text = "".join(corpus.held_out_documents).encode()
    compressed = lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)
    metrics |= {"bytes": len(text), "xz_bytes": len(compressed)}
    checkpoint.write_file(directory / "evaluation.json", json.dumps(metrics, indent=2) + "\n")
    return metrics


def make_eval_step(net: nn.Module, mesh: Mesh) -> EvalStep:
    """`eval_step(params, batch) -> (nats_B, weights_B)`, compiled once: sums over each row."""
    jitted = jax.jit(
        functools.partial(_eval_step, net),
        in_shardings=(None, sharding.batch(mesh)),
        out_shardings=sharding.replicated(mesh),
    )
    return sharding.on_mesh(jitted, mesh)


def evaluate(
    eval_step: EvalStep, params: Any, batches: Iterable[Batch], text_bytes: int
) -> dict[str, float]:
    """Loss over all batches, each row's sum added in float64.

    Args:
        eval_step: of `make_eval_step`.
        params: of its network.
        batches: as `step.put_batch` places them; padding and repeated rows carry weight 0.
        text_bytes: UTF-8 length of the text whose tokens are the weighted targets.

    Returns:
        `loss` (nats per target), `perplexity = exp(loss)`, `tokens` (the summed weights) and
        `bits_per_byte = nats / ln 2 / text_bytes`, which compares models with different tokenizers,
        and with compressors.
    """
    sums = jax.device_get([eval_step(params, batch) for batch in batches])
    nats = sum(float(np.sum(nats_B, dtype=np.float64)) for nats_B, _ in sums)
    tokens = sum(float(np.sum(weights_B, dtype=np.float64)) for _, weights_B in sums)
    if tokens <= 0 or text_bytes <= 0:
        raise errors.BadInput(
            f"the held-out text has {tokens:.0f} targets and {text_bytes} bytes; "
            "evaluation needs more text"
        )
    loss = nats / tokens
    return {
        "loss": loss,
        "perplexity": math.exp(loss) if loss < 700 else math.inf,
        "bits_per_byte": nats / math.log(2) / text_bytes,
        "tokens": tokens,
    }


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


def _eval_step(net: nn.Module, params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
    logits_BTV, _ = net.apply({"params": params}, batch["tokens"], segments=batch["segments"])
    nats_BT = losses.cross_entropy(logits_BTV, batch["targets"]) * batch["weights"]
    return nats_BT.sum(axis=1), batch["weights"].sum(axis=1)
