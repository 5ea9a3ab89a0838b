"""How many floating-point operations does a token cost, and how many could this machine do?

The convention, everywhere: 6 per matrix parameter and trained token (2 forward, 4 backward), the
output head among them and the lookup of embeddings not, plus causal attention counted once and
halved; what the backward pass computes again does not count.
"""

import functools
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

from model.config import ModelConfig

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


def matrix_parameters(config: ModelConfig) -> int:
    """Parameters that every token meets in a matrix product: no lookup, no norm, no bias."""
    c = config
    attention = 2 * c.width * c.head_size * (c.heads + c.kv_heads)
    feed_forward = (3 if c.gated else 2) * c.width * c.hidden
    return c.layers * (attention + feed_forward) + c.vocab_size * c.width


def forward(config: ModelConfig, length: int) -> int:
    """Per token of a forward pass over rows of `length` tokens.

    Scores and their products with the values take `4 T N H` in each layer, of which a causal token
    needs half.
    """
    return (
        2 * matrix_parameters(config) + 2 * length * config.layers * config.heads * config.head_size
    )


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
