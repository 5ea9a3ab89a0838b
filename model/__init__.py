"""A model is a thing you can load and call: `model.load(directory)`, `model.build(config)`."""

import dataclasses
import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from model import blocks, checkpoint, errors, tokenizer
from model.config import ModelConfig, Runtime
from model.decoder_only import DecoderOnly
from model.encoder_decoder import EncoderDecoder
from model.encoder_only import EncoderOnly
from model.rnn import Recurrent
from model.tokenizer import Tokenizer

FAMILIES = {
    "decoder_only": DecoderOnly,
    "encoder_only": EncoderOnly,
    "encoder_decoder": EncoderDecoder,
    "lstm": Recurrent,
    "gru": Recurrent,
}


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
    tokens_BT = jnp.zeros((1, 1), jnp.int32)
    sides = 2 if net.config.family == "encoder_decoder" else 1
    return net.init(key, *[tokens_BT] * sides)["params"]


def init(net: nn.Module, *, key: jax.Array) -> Any:
    """Fresh parameters as a plain tree of float32 arrays."""
    return nn.meta.unbox(init_boxed(net, key=key))


def load(directory: str | pathlib.Path) -> LM:
    """The model of a run directory, as of its newest complete checkpoint.

    Raises:
        BadInput: when there is no run, no checkpoint yet, or the tokenizer or configuration beside the checkpoint is
            not the one its weights were trained with.
    """
    directory = pathlib.Path(directory)
    config = _read_config(directory)
    step = checkpoint.latest(directory / "checkpoints")
    if step is None:
        raise errors.BadInput(
            f"{directory} has no complete checkpoint yet; train it until one is saved"
        )
    meta = checkpoint.read_meta(directory / "checkpoints", step)
    words = tokenizer.load(directory / "tokenizer")
    if words.digest != meta["tokenizer"]:
        raise errors.BadInput(
            f"{directory / 'tokenizer'} has digest {words.digest[:12]}, and the checkpoint of step {step} was trained "
            f"with {meta['tokenizer'][:12]}; restore the tokenizer that belongs to this run"
        )
    trained = errors.build(ModelConfig, meta["model"], "model")
    for field in dataclasses.fields(ModelConfig):
        here, there = getattr(config, field.name), getattr(trained, field.name)
        if here != there:
            raise errors.BadInput(
                f"{directory / 'config.json'} has model.{field.name}={here!r}, and the checkpoint of step {step} was "
                f"trained with {there!r}; restore the file"
            )
    abstract = jax.eval_shape(
        functools.partial(init, build(config, Runtime(scan=True))), key=jax.random.key(0)
    )
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), abstract
    )
    stacked = checkpoint.params_only(directory / "checkpoints", step, abstract)
    params = blocks.unstack_layers(stacked)
    return LM(config, params, words, build(config), checkpoint.tree_digest(params), directory)


def _read_config(directory: pathlib.Path) -> ModelConfig:
    """The group `model` of a run's config.json."""
    path = directory / "config.json"
    if not directory.is_dir():
        raise errors.BadInput(f"there is no directory {directory}; give one that train has written")
    if not path.is_file():
        raise errors.BadInput(
            f"{directory} holds no run: {path.name} is missing; give a directory that train has written"
        )
    try:
        return errors.build(ModelConfig, json.loads(path.read_text())["model"], f"{path}: model")
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise errors.BadInput(
            f"{path} is not the config.json that train writes ({error}); restore it"
        ) from error
