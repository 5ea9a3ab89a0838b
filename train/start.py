"""What do the first parameters of a run come from? Nothing but its seed, or a model that is there, whole or as a base.

A base is loaded, never trained and never saved: what is trained beside it is an adapter, and a checkpoint holds that
and the base's digest.
"""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

import model
from model import adapters, blocks, errors, hf, sharding, sources
from model.adapters import AdapterConfig
from model.config import ModelConfig

# What a fine-tuned model may have otherwise than the one it starts from.
FREE = ("head", "vocab_size", "context_length", "token_types")


@dataclasses.dataclass(frozen=True)
class Start:
    """Attributes:
    path: a run, a bundle or a Hugging Face directory whose weights training begins with, and whose tokenizer and
        model are those of the run unless their groups say otherwise; by default none.
    """

    path: str | None = None

    @property
    def words(self) -> str | None:
        """Where its tokenizer lies."""
        if self.path is None:
            return None
        kind, groups = sources.read(pathlib.Path(self.path))
        if kind == "adapter":
            return Start(groups["base_model_name_or_path"]).words
        home = pathlib.Path(self.path)
        return str(home if kind == "theirs" else home / "tokenizer")

    def fill(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """A recipe's group `model`, with what it leaves out as this model has it."""
        known = {field.name for field in dataclasses.fields(ModelConfig)}
        if self.path is None or group.keys() >= known:
            return dict(group)
        return {**dataclasses.asdict(sources.config_of(pathlib.Path(self.path))), **group}


@dataclasses.dataclass(frozen=True)
class Begun:
    """What there is before the first step.

    Attributes:
        params: to train, laid on the mesh; None where they are fresh, or a checkpoint has them.
        base: what an adapter changes, laid on the mesh; None without one.
        adapt: how it does.
        digest: of the base.
        notes: what a person should know.
    """

    params: Any = None
    base: Any = None
    adapt: AdapterConfig | None = None
    digest: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def identity(self) -> dict[str, str]:
        """What a checkpoint says of it."""
        return {} if self.digest is None else {"base": self.digest}

    def whole(self, params: Any) -> Any:
        """The parameters that the network is called with."""
        if self.adapt is None:
            return params
        merge = jax.jit(functools.partial(adapters.merge, config=self.adapt))
        return merge(self.base, params)


def check(start: Start, adapt: AdapterConfig | None, frozen: Sequence[str]) -> None:
    """Refuses an adapter of nothing, and two ways to freeze a base."""
    if adapt is None:
        return
    if start.path is None:
        raise errors.BadInput(
            "config.adapt says how a model is adapted, and config.start.path does not say which; "
            "give a run, a bundle or a Hugging Face directory"
        )
    if frozen:
        raise errors.BadInput(
            f"config.optimizer.frozen is {list(frozen)}, and config.adapt trains nothing of the base but its own "
            "`whole`; leave out one of them"
        )


def begin(
    path: str | None,
    adapt: AdapterConfig | None,
    net: nn.Module,
    mesh: Mesh,
    before: Mapping[str, Any] | None,
    *,
    key: jax.Array,
) -> Begun:
    """What a run starts from; `before` is the meta of the checkpoint that it goes on from, if it does.

    Raises:
        BadInput: when it is a model of another kind, or not the one that the checkpoint belongs to.
    """
    if path is None or (before and adapt is None):
        return Begun()
    lm = model.load(path)
    _check_kind(path, lm.config, net.config)
    if before and before["base"] != lm.digest:
        raise errors.BadInput(
            f"the weights of config.start.path={path!r} are not those that the checkpoint of this run was trained on "
            f"(were {before['base'][:12]}, are {lm.digest[:12]}); restore them or choose another --workdir"
        )
    boxed = jax.eval_shape(functools.partial(model.init_boxed, net), key=key)
    held = hf.flatten(blocks.stack_layers(jax.tree.map(np.asarray, lm.params)))
    fresh = adapters.absent(
        held, hf.flatten(nn.meta.unbox(boxed)), (lm.config.head, net.config.head)
    )
    _check_stack(path, fresh)
    where = sharding.of_tree(boxed, mesh)
    leaves = _laid({name: leaf for name, leaf in held.items() if name not in fresh}, where)
    if fresh:
        new = jax.jit(functools.partial(model.init, net), out_shardings=where)(key=key)
        leaves |= {name: leaf for name, leaf in hf.flatten(new).items() if name in fresh}
    params = hf.nest({name: leaves[name] for name in hf.flatten(where)})
    notes = (f"{hf.listing(fresh)} has no like in {path}, and starts fresh",) if fresh else ()
    if adapt is None:
        return Begun(params, notes=notes)
    adapt = adapters.extended(adapt, fresh)
    laid = sharding.of_tree(adapters.boxed(boxed, adapt), mesh)
    make = functools.partial(adapters.init, config=adapt)
    added = None if before else jax.jit(make, out_shardings=laid)(params, key=key)
    return Begun(added, params, adapt, lm.digest, notes)


def _laid(leaves: Mapping[str, np.ndarray], where: Any) -> dict[str, jax.Array]:
    """Arrays of the host as float32 on the devices of a mesh, each with its part."""
    places = hf.flatten(where)

    def lay(name: str, leaf: np.ndarray) -> jax.Array:
        leaf = leaf.astype(np.float32)
        return jax.make_array_from_callback(leaf.shape, places[name], lambda at: leaf[at])

    return {name: lay(name, leaf) for name, leaf in leaves.items() if name in places}


def _check_kind(path: str, there: ModelConfig, here: ModelConfig) -> None:
    for field in dataclasses.fields(ModelConfig):
        one, two = getattr(there, field.name), getattr(here, field.name)
        if field.name not in FREE and one != two:
            raise errors.BadInput(
                f"config.model.{field.name} is {two!r}, and the model of config.start.path={path!r} has {one!r}; "
                "leave it out of group model"
            )


def _check_stack(path: str, fresh: list[str]) -> None:
    """Refuses a start from which no layer could be taken."""
    layer = next((name for name in fresh if re.search(r"(^|/)layers/", name)), None)
    if layer is not None:
        raise errors.BadInput(
            f"config.start.path={path!r} has no {layer} of the shape that config.model asks for; "
            "leave group model out"
        )
