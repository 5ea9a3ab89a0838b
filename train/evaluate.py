"""How well does a model predict held-out text? Loss, perplexity and bits per byte."""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from model import errors, sharding
from train import losses
from train.step import Batch

EvalStep = Callable[[Any, Batch], tuple[jax.Array, jax.Array]]


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


def _eval_step(net: nn.Module, params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
    logits_BTV, _ = net.apply({"params": params}, batch["tokens"], segments=batch["segments"])
    nats_BT = losses.cross_entropy(logits_BTV, batch["targets"]) * batch["weights"]
    return nats_BT.sum(axis=1), batch["weights"].sum(axis=1)
