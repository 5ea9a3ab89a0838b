"""How does a small tree of parameters change a model whose own stay as they are? LoRA, DoRA and soft prompts.

An adapter is a tree beside the base's: where that has `query/weight`, it has `query/lora_a/weight` and
`query/lora_b/weight` (and `query/magnitude/scale`). `merge` makes of both the parameters that the network is called
with, so no network knows of adapters.
"""

import dataclasses
import difflib
import math
import re
import string
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from model import errors, matrices
from model.config import Head
from model.matrices import Axes

KINDS = ("lora", "dora", "prompt")
PROMPT = "embedding/prompt/weight"
NEAREST = 3  # paths that a refused rule is told of


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """What is trained in place of a model's own parameters.

    Attributes:
        kind: `lora` adds a product of two thin matrices to each target (Hu et al. 2021); `dora` also trains the length
            of each output's weights apart from their direction (Liu et al. 2024); `prompt` trains vectors that stand
            before every text (Lester et al. 2021).
        rank: R, columns of the first matrix and rows of the second.
        alpha: the product is multiplied by `alpha / rank`.
        rank_stabilized: or by `alpha / sqrt(rank)` (Kalajdzievski 2023).
        targets: regexes of paths; the matrices in which one is found are adapted.
        whole: regexes of paths; these parameters are trained themselves, as the adapter's own copy.
        virtual_tokens: vectors of a `prompt`.
    """

    kind: str = "lora"
    rank: int = 8
    alpha: float = 16.0
    rank_stabilized: bool = False
    targets: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    virtual_tokens: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise errors.BadInput(
                f"adapt.kind is {self.kind!r}{errors.nearest(self.kind, KINDS)}; known: {', '.join(KINDS)}"
            )
        if self.rank < 1:
            raise errors.BadInput(f"adapt.rank is {self.rank}; it must be at least 1")
        if not 0 < self.alpha < math.inf:
            raise errors.BadInput(f"adapt.alpha is {self.alpha}; it must be above 0 and finite")
        prompt = self.kind == "prompt"
        if prompt != (self.virtual_tokens > 0) or prompt == bool(self.targets):
            raise errors.BadInput(
                f"adapt has kind={self.kind!r}, {len(self.targets)} targets and virtual_tokens={self.virtual_tokens}; "
                "a prompt needs virtual_tokens and no targets, and any other kind targets and no virtual_tokens"
            )

    def scale(self, rank: int) -> float:
        """What a product of that rank is multiplied by."""
        return self.alpha / (math.sqrt(rank) if self.rank_stabilized else rank)


def init(params: Any, config: AdapterConfig, *, key: jax.Array) -> dict[str, Any]:
    """A fresh adapter of `params`, stacked or not: merged, it changes no bit of them.

    The first matrices are uniform within `1 / sqrt(fan_in)`, as PEFT draws them, and the second zero; a `prompt` begins
    as rows of the embedding, drawn without replacement while they last.

    Raises:
        BadInput: when a rule is found in no matrix; it names the nearest.
    """
    leaves = _flat(params)
    made: dict[str, Any] = {}
    for path, axes in _targets(leaves, config).items():
        weight = leaves[path]
        module = path.removesuffix("weight")
        a_shape, b_shape = _shapes(weight.shape, axes, config.rank)
        bound = math.prod(weight.shape[i] for i in axes.summed) ** -0.5
        draw = jax.random.fold_in(key, zlib.crc32(path.encode()))
        made[f"{module}lora_a/weight"] = jax.random.uniform(
            draw, a_shape, jnp.float32, -bound, bound
        )
        made[f"{module}lora_b/weight"] = jnp.zeros(b_shape, jnp.float32)
        if config.kind == "dora":
            made[f"{module}magnitude/scale"] = _lengths(weight.astype(jnp.float32), axes)
    if config.kind == "prompt":
        table_VD = leaves["embedding/weight"].astype(jnp.float32)
        count, rows = config.virtual_tokens, len(table_VD)
        ids = jax.random.choice(key, rows, (count,), replace=count > rows)
        made[PROMPT] = table_VD[ids]
    made |= {path: jnp.array(leaves[path], jnp.float32) for path in _whole(leaves, config)}
    return _nested(made)


def boxed(params: Any, config: AdapterConfig) -> dict[str, Any]:
    """Shapes of an adapter, each boxed with its logical axes: what `sharding.of_tree` reads.

    `params` are the base's, boxed, abstract or not. Each matrix keeps the names of the base's axes; the rank has none.
    """

    boxes = _flat(params)
    plain = nn.meta.unbox(boxes)
    made = {path: _box(plain[path].shape, boxes[path].names) for path in _whole(plain, config)}
    for path, axes in _targets(plain, config).items():
        names, shape = boxes[path].names, plain[path].shape
        module = path.removesuffix("weight")
        a_names, b_names = _shapes(names, axes, None)
        a_shape, b_shape = _shapes(shape, axes, config.rank)
        made[f"{module}lora_a/weight"] = _box(a_shape, a_names)
        made[f"{module}lora_b/weight"] = _box(b_shape, b_names)
        if config.kind == "dora":
            kept = [i for i in range(-len(shape), 0) if i not in axes.summed]
            made[f"{module}magnitude/scale"] = _box(
                tuple(shape[i] for i in kept), tuple(names[i] for i in kept)
            )
    if config.kind == "prompt":
        width, name = plain["embedding/weight"].shape[1], boxes["embedding/weight"].names[1]
        made[PROMPT] = _box((config.virtual_tokens, width), (None, name))
    return _nested(made)


def merge(params: Any, adapter: Any, config: AdapterConfig) -> dict[str, Any]:
    """The effective parameters: `W + scale A B` of each target (`m (W + scale A B) / |W + scale A B|` in DoRA).

    A pure function, differentiable in `adapter`; the length that DoRA divides by counts as a constant (Liu et al. 2024,
    section 4.3). Results have the types of `params`, and are computed in float32.

    Raises:
        BadInput: when the adapter is of another model.
    """
    leaves, added = _flat(params), _flat(adapter)
    merged = dict(leaves)
    for path, value in added.items():
        if path.endswith("lora_a/weight"):
            module = path.removesuffix("lora_a/weight")
            target = f"{module}weight"
            _check_there(path, target, leaves)
            b, length = (added.get(module + name) for name in ("lora_b/weight", "magnitude/scale"))
            merged[target] = _adapted(target, leaves[target], value, b, length, config)
        elif path == PROMPT:
            merged[path] = value
        elif not path.endswith(("lora_b/weight", "magnitude/scale")):
            _check_there(path, path, leaves)
            if value.shape != leaves[path].shape:
                raise _misfit(path, value.shape, leaves[path].shape)
            merged[path] = value.astype(leaves[path].dtype)
    return _nested(merged)


def absent(
    held: Mapping[str, Any], wanted: Mapping[str, Any], heads: tuple[Head, Head]
) -> list[str]:
    """Which parameters of a model another lacks or has in another shape; both by path, stacked or not.

    Where the two `heads` are for different things, nothing of `head/` is the same, whatever its shape.
    """
    one, two = ((head.kind, head.labels) for head in heads)
    return [
        path
        for path, leaf in wanted.items()
        if path not in held
        or tuple(held[path].shape) != tuple(leaf.shape)
        or (one != two and path.startswith("head/"))
    ]


def extended(config: AdapterConfig, fresh: Sequence[str]) -> AdapterConfig:
    """The same, with parameters trained whole that the base does not have."""
    rules = (f"^{re.escape(path)}$" for path in fresh)
    return dataclasses.replace(config, whole=(*config.whole, *rules))


def virtual_tokens(params: Any) -> int:
    """How many vectors stand before every text: the rows of a soft prompt that was merged into `params`."""
    prompt = params.get("embedding", {}).get("prompt")
    return 0 if prompt is None else len(prompt["weight"])


def _adapted(
    path: str, weight: Any, a: Any, b: Any, magnitude: Any, config: AdapterConfig
) -> jax.Array:
    """One target's effective weight."""
    axes = matrices.dense(path)
    assert axes is not None
    rank = a.shape[-1]
    wanted = _shapes(weight.shape, axes, rank)
    if b is None or (a.shape, b.shape) != wanted:
        raise _misfit(path, (a.shape, None if b is None else b.shape), wanted)
    letters = string.ascii_lowercase[: weight.ndim]
    a_letters, b_letters = ("".join(names) for names in _shapes(letters, axes, "r"))
    delta = jnp.einsum(f"{a_letters},{b_letters}->{letters}", a, b)
    sum_ = weight.astype(jnp.float32) + config.scale(rank) * delta
    if magnitude is not None:
        length = jax.lax.stop_gradient(_lengths(sum_, axes))
        ratio = magnitude / jnp.where(length > 0, length, 1.0)
        sum_ = sum_ * jnp.expand_dims(ratio, axes.summed)
    return sum_.astype(weight.dtype)


def _lengths(weight: jax.Array, axes: Axes) -> jax.Array:
    """The norm of what makes each output."""
    return jnp.sqrt(jnp.square(weight).sum(axis=axes.summed))


def _shapes(shape: Any, axes: Axes, rank: Any) -> tuple[tuple, tuple]:
    """Of the first and the second matrix, of a weight's shape, names or letters."""
    counted = tuple(shape[i] for i in range(-len(shape), 0) if i not in (*axes.summed, *axes.made))
    summed, made = (tuple(shape[i] for i in which) for which in axes)
    return (*counted, *summed, rank), (*counted, rank, *made)


def _targets(leaves: dict[str, Any], config: AdapterConfig) -> dict[str, Axes]:
    """The matrices in which a rule is found."""
    known = {path: axes for path in leaves if (axes := matrices.dense(path))}
    found: dict[str, Axes] = {}
    for rule in config.targets:
        hits = {path: axes for path, axes in known.items() if _search(rule, path, "targets")}
        if not hits:
            others = [path for path in leaves if re.search(rule, path)]
            where = f"only in {others[0]}, which is no matrix" if others else "in no parameter"
            raise errors.BadInput(
                f"adapt.targets: rule {rule!r} is found {where}; the nearest matrices are {_near(rule, known)}"
            )
        found |= hits
    return found


def _whole(leaves: dict[str, Any], config: AdapterConfig) -> list[str]:
    """The parameters that are trained themselves."""
    for rule in config.whole:
        if not any(_search(rule, path, "whole") for path in leaves):
            raise errors.BadInput(
                f"adapt.whole: rule {rule!r} is found in no parameter; the nearest are {_near(rule, leaves)}"
            )
    found = [path for path in leaves if any(re.search(rule, path) for rule in config.whole)]
    both = next((path for path in _targets(leaves, config) if path in found), None)
    if both is not None:
        raise errors.BadInput(
            f"{both} is found by adapt.targets and by adapt.whole; leave it to one of them"
        )
    return found


def _search(rule: str, path: str, field: str) -> bool:
    try:
        return bool(re.search(rule, path))
    except re.error as error:
        raise errors.BadInput(
            f"adapt.{field}: rule {rule!r} is no regular expression ({error}); correct it"
        ) from error


def _near(rule: str, known: Any) -> str:
    near = difflib.get_close_matches(rule, known, n=NEAREST, cutoff=0.0)
    return ", ".join(near)


def _check_there(path: str, target: str, leaves: dict[str, Any]) -> None:
    if target not in leaves:
        raise errors.BadInput(
            f"the adapter has {path}, and the model no {target}{errors.nearest(target, leaves)}; "
            "give the base model that it was trained on"
        )


def _misfit(path: str, has: Any, wanted: Any) -> errors.BadInput:
    return errors.BadInput(
        f"the adapter's part for {path} has shape {has}, and the model asks for {wanted}; "
        "give the base model that it was trained on"
    )


def _box(shape: tuple[int, ...], names: tuple) -> nn.LogicallyPartitioned:
    return nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, np.float32), names)


def _flat(tree: Any) -> dict[str, Any]:
    return traverse_util.flatten_dict(tree, sep="/")


def _nested(leaves: dict[str, Any]) -> dict[str, Any]:
    return traverse_util.unflatten_dict(leaves, sep="/")
