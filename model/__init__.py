"""A model is a thing you can load and call: `model.load(directory)`, `model.build(config)`."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from model.config import ModelConfig, Runtime
from model.decoder_only import DecoderOnly
from model.tokenizer import Tokenizer

FAMILIES = {"decoder_only": DecoderOnly}


@dataclasses.dataclass(frozen=True)
class LM:
    """A model with its weights and its tokenizer.

    Attributes:
        config: describes the weights.
        params: plain tree of arrays, one entry per layer.
        tokenizer: the one the weights were trained with.
        net: the Flax module; `net.apply({"params": params}, tokens) -> (logits, aux)`.
        digest: SHA-256 of the weights, as `checkpoint.tree_digest` takes it.
        directory: where it was loaded from, if it was.
    """

    config: ModelConfig
    params: Any
    tokenizer: Tokenizer
    net: nn.Module
    digest: str
    directory: pathlib.Path | None = None


def build(config: ModelConfig, runtime: Runtime = Runtime()) -> nn.Module:
    """The Flax module of a configuration: `net.apply({"params": params}, tokens) -> (logits, aux)`."""
    return FAMILIES[config.family](config, runtime)


def init_boxed(net: nn.Module, *, key: jax.Array) -> Any:
    """Fresh parameters, each boxed with its logical axis names: what `sharding.of_tree` reads."""
    return net.init(key, jnp.zeros((1, 1), jnp.int32))["params"]


def init(net: nn.Module, *, key: jax.Array) -> Any:
    """Fresh parameters as a plain tree of float32 arrays."""
    return nn.meta.unbox(init_boxed(net, key=key))
