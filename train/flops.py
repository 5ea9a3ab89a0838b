"""How many floating-point operations does a token cost, and how many could this machine do?

The convention, everywhere: 6 per matrix parameter and trained token (2 forward, 4 backward), the output head among them
and the lookup of embeddings not; of experts only those that were chosen; plus attention counted once, the causal one
halved, a window's bounded by it. What the backward pass computes again does not count.
"""

import functools
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

from model.config import RECURRENT, ModelConfig

# Dense bfloat16 operations per second of one device, by its `device_kind`. TPU: per chip, from the
# system-architecture pages of Google Cloud's documentation. GPU: NVIDIA's data sheets, half of what
# they print "with sparsity".
PUBLISHED = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


class Peak(NamedTuple):
    """Operations per second of all devices together, and their `source`: published or measured."""

    flops_per_second: float
    source: str


def forward(config: ModelConfig, length: int) -> int:
    """Per token of a forward pass over rows of `length` tokens.

    In an encoder–decoder: per token of the target, with its share of a source as long.
    """
    return sum(sum(parts.values()) for parts in by_part(config, length).values())


def by_part(config: ModelConfig, length: int) -> dict[str, dict[str, int]]:
    """Per token of a forward pass over rows of `length` tokens, by side and part.

    The sides are `source` (read in both directions: an encoder's) and `target` (written from left to right). Where a
    target looks at a source, keys and values are made once per token of the source, and all the rest per token of the
    target.

    Example: a LLaMA has `{"target": {"attention": ..., "scores": ..., "feed-forward": ..., "head": ...}}`.
    """
    c, head = config, {"head": 2 * _head(config, length)}
    if c.family in RECURRENT:
        gates = RECURRENT[c.family]
        from_input_and_state = 2 * c.width * gates * c.width
        return {"target": {"cells": 2 * c.layers * from_input_and_state} | head}
    both_ways = 4 * length * c.heads * c.head_size  # of a layer that sees the whole row
    if c.family == "encoder_only":
        return {"source": _stack(c, c.layers, c.layers * both_ways) | head}
    target = _stack(c, c.layers, _causal(c, length))
    if c.family == "decoder_only":
        return {"target": target | head}
    source = _stack(c, c.encoder_layers, c.encoder_layers * both_ways)
    source["cross attention"] = 2 * c.layers * _keys_and_values(c)
    target["cross attention"] = 2 * c.layers * _queries_and_out(c)
    target["cross scores"] = c.layers * both_ways
    return {"source": source, "target": target | head}


def training(config: ModelConfig, length: int) -> int:
    """Per token of a training step: the backward pass is twice the forward pass."""
    return 3 * forward(config, length)


def utilisation(tokens_per_second: float, config: ModelConfig, length: int, peak: Peak) -> float:
    """Model FLOP utilisation of training: the fraction of `peak` that useful operations reach."""
    return tokens_per_second * training(config, length) / peak.flops_per_second


@functools.cache
def peak() -> Peak:
    """Of all devices: published bfloat16 figures where known, else a float32 matrix product here.

    Measuring takes about 0.3 s. Simulated devices share one processor, so they count once.
    """
    devices = jax.devices()
    published = PUBLISHED.get(devices[0].device_kind)
    if published is not None:
        return Peak(published * len(devices), "published")
    machines = 1 if devices[0].platform == "cpu" else len(devices)
    return Peak(measure() * machines, "measured")


def measure(size: int = 1024, seconds: float = 0.3) -> float:
    """The best rate, in operations per second, of a square float32 matrix product on one device."""
    a_DD = jnp.ones((size, size), jnp.float32)
    product = jax.jit(lambda a_DD: a_DD @ a_DD)
    product(a_DD).block_until_ready()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        product(a_DD).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _stack(config: ModelConfig, layers: int, scores: int) -> dict[str, int]:
    """What these layers cost a token, cross attention apart."""
    experts = config.experts
    feed_forward = (3 if config.gated else 2) * config.width * config.hidden
    if experts.count:
        feed_forward = experts.chosen * feed_forward + config.width * experts.count
    attention = _queries_and_out(config) + _keys_and_values(config)
    return {
        "attention": 2 * layers * attention,
        "scores": scores,
        "feed-forward": 2 * layers * feed_forward,
    }


def _queries_and_out(config: ModelConfig) -> int:
    return 2 * config.width * config.heads * config.head_size


def _keys_and_values(config: ModelConfig) -> int:
    return 2 * config.width * config.kv_heads * config.head_size


def _causal(config: ModelConfig, length: int) -> int:
    """Scores and their products with the values, `4 N H` for each key that a token sees.

    Of `length` keys it sees half on average, as the convention has it; with a window `w`, `w - w^2 / 2 length`.
    """
    operations = 0
    for layer in range(config.layers):
        window = min(config.window(layer) or length, length)
        keys_twice = 2 * window * length - window * window
        operations += 2 * config.heads * config.head_size * keys_twice // length
    return operations


def _head(config: ModelConfig, length: int) -> int:
    """Parameters of the head that a token meets; what a row meets once is shared out among its tokens."""
    kind, labels = config.head.kind, len(config.head.labels)
    if kind == "none":
        return 0
    if kind == "token":
        return config.width * labels
    if kind == "sequence":
        return config.width * (config.width + labels) // length
    dense = config.width**2 if config.family == "encoder_only" else 0
    return dense + config.vocab_size * config.width
