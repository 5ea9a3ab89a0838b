"""A model is a thing you can load and call: `model.load(directory)`, `model.build(config)`."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh

from model import (
    adapters,
    blocks,
    checkpoint,
    errors,
    hf,
    peft,
    sharding,
    sources,
    tokenizer,
    weights,
)
from model.adapters import AdapterConfig
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
        tokenizer: the one the weights were trained with; None where a directory of published weights has none.
        net: the Flax module; `net.apply({"params": params}, tokens) -> (logits, aux)`.
        directory: where it was loaded from, if it was.
        prefix: whether it has learnt to see all of a prompt from any place of it, as a prefix LM does.
    """

    config: ModelConfig
    params: Any
    tokenizer: Any
    net: nn.Module
    directory: pathlib.Path | None = None
    prefix: bool = False

    @property
    def words(self) -> Tokenizer:
        """The tokenizer, which whatever deals in text demands."""
        if self.tokenizer is None:
            raise errors.BadInput(
                f"{self.directory or 'this model'} has no tokenizer; put its files beside the published weights "
                "(and import these again, if this is a bundle)"
            )
        return self.tokenizer

    @property
    def virtual_tokens(self) -> int:
        """How many vectors of a soft prompt stand before every text, under the ids behind the vocabulary."""
        return adapters.virtual_tokens(self.params)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the weights, as `checkpoint.tree_digest` takes it."""
        return checkpoint.tree_digest(self.params)


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


def abstract(config: ModelConfig) -> Any:
    """Shape and logical axes of every parameter, one entry per layer, in the time that a model of one layer takes."""
    sides: dict[str, Any] = {"encoder_layers": 1} if config.family == "encoder_decoder" else {}
    small = dataclasses.replace(config, layers=1, windows=config.windows[:1], **sides)
    tree = jax.eval_shape(functools.partial(init_boxed, build(small)), key=jax.random.key(0))
    for name, count in (
        ("stack", config.layers),
        ("encoder", config.encoder_layers),
        ("decoder", config.layers),
    ):
        if name in tree:
            layers = {f"layers_{i}": tree[name]["layers_0"] for i in range(count)}
            tree = {**tree, name: {**tree[name], **layers}}
    return tree


def load(directory: str | pathlib.Path, mesh: Mesh | None = None) -> LM:
    """The model of a run (as of its newest complete checkpoint), of a bundle, or of a Hugging Face directory.

    An adapter's directory, of PEFT, is the model that its `base_model_name_or_path` names, with the adapter merged.
    On a `mesh` every device reads its own part of each parameter and no more.

    Raises:
        BadInput: when there is none, a checkpoint was not trained with the tokenizer or configuration beside it, or
            weights are damaged, not those of their config, or of an architecture that we do not have.
    """
    directory = pathlib.Path(directory)
    kind, groups = sources.read(directory)
    if kind == "adapter":
        base = load(groups["base_model_name_or_path"], mesh)
        described, adapter = peft.read(directory, base.config)
        params = adapters.merge(base.params, adapter, described)
        return dataclasses.replace(base, params=params, directory=directory)
    if kind == "run":
        return _load_run(directory, groups, mesh)
    if kind == "bundle":
        opened = sources.open_bundle(directory, groups)
    else:
        opened = sources.open_theirs(directory, groups)
    boxed = abstract(opened.config)
    sources.check_shapes(opened, boxed)
    where = hf.flatten(sharding.of_tree(boxed, mesh)) if mesh else {}
    words = sources.words(directory / "tokenizer" if kind == "bundle" else directory, opened.config)
    leaves = {
        path: weights.place(opened.names[path], view, opened.weights, where.get(path))
        for path, view in opened.leaves.items()
    }
    return LM(opened.config, hf.nest(leaves), words, build(opened.config), directory)


@dataclasses.dataclass(frozen=True)
class Adapted:
    """A run's adapter, apart from the model it changes.

    Attributes:
        base: that model, in the run's form: what it lacks, or has in another shape, the adapter holds whole.
        config: how the adapter is meant.
        tree: its parameters, one entry per layer.
    """

    base: LM
    config: AdapterConfig
    tree: Any


def _load_run(directory: pathlib.Path, groups: dict[str, Any], mesh: Mesh | None) -> LM:
    config, words, meta = _checked(directory, groups)
    if groups.get("adapt") is not None:
        found = load_adapter(directory, mesh)
        params = adapters.merge(found.base.params, found.tree, found.config)
    else:
        params = _restored(directory, meta, _boxed(config), mesh)
    prefix = groups.get("task", {}).get("kind") == "prefix"
    return LM(config, params, words, build(config), directory, prefix)


def load_adapter(directory: str | pathlib.Path, mesh: Mesh | None = None) -> Adapted:
    """What a run has trained beside the model that it started from, and that model.

    Raises:
        BadInput: when it is no such run, or its base is no longer what it was trained on.
    """
    directory = pathlib.Path(directory)
    kind, groups = sources.read(directory)
    if kind != "run" or groups.get("adapt") is None:
        raise errors.BadInput(
            f"{directory} holds no adapter; give a run of a config with group adapt"
        )
    config, words, meta = _checked(directory, groups)
    described = errors.build(AdapterConfig, groups["adapt"], f"{directory / 'config.json'}: adapt")
    base = load(groups["start"]["path"], mesh)
    if base.digest != meta["base"]:
        raise errors.BadInput(
            f"{directory} was trained on the weights {meta['base'][:12]} of {groups['start']['path']}, and there are "
            f"{base.digest[:12]} now; restore them"
        )
    boxed = _boxed(config)
    stacked = jax.eval_shape(blocks.stack_layers, base.params)
    both = base.config.head, config.head
    fresh = adapters.absent(hf.flatten(stacked), hf.flatten(nn.meta.unbox(boxed)), both)
    described = adapters.extended(described, fresh)
    tree = _restored(directory, meta, adapters.boxed(boxed, described), mesh)
    wanted = hf.flatten(nn.meta.unbox(abstract(config)))
    held, own = hf.flatten(base.params), hf.flatten(tree)
    absent = adapters.absent(held, wanted, both)
    params = hf.nest({path: (own if path in absent else held)[path] for path in wanted})
    return Adapted(LM(config, params, words, build(config), base.directory), described, tree)


def _checked(
    directory: pathlib.Path, groups: dict[str, Any]
) -> tuple[ModelConfig, Tokenizer, dict[str, Any]]:
    """Config, tokenizer and the newest checkpoint's meta (and `step`) of a run, which belong together."""
    config = errors.build(ModelConfig, groups["model"], f"{directory / 'config.json'}: model")
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
    return config, words, {**meta, "step": step}


def _boxed(config: ModelConfig) -> Any:
    """Shapes of a run's parameters, with their logical axes, as its checkpoints stack them."""
    net = build(config, Runtime(scan=True))
    return jax.eval_shape(functools.partial(init_boxed, net), key=jax.random.key(0))


def _restored(directory: pathlib.Path, meta: dict[str, Any], boxed: Any, mesh: Mesh | None) -> Any:
    """The parameters of a checkpoint, one entry per layer."""
    single = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    plain = nn.meta.unbox(boxed)
    where = sharding.of_tree(boxed, mesh) if mesh else jax.tree.map(lambda leaf: single, plain)
    laid = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        plain,
        where,
    )
    stacked = checkpoint.params_only(directory / "checkpoints", meta["step"], laid)
    return blocks.unstack_layers(stacked)
