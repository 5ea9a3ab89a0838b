"""What of a model lies on each device of a mesh that nobody here has? Shapes and rules alone; no device is asked."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

import model
from model import errors, sharding
from model.config import ModelConfig, Runtime


@dataclasses.dataclass(frozen=True)
class Leaf:
    """An array of the training state, and how the mesh splits it.

    Attributes:
        path: such as `stack/layers/attention/query/weight`.
        shape: of the whole.
        itemsize: bytes of an entry.
        spec: mesh axes of each dimension.
        whole: the dimensions that stay whole because their axes do not divide them, with those axes.
    """

    path: str
    shape: tuple[int, ...]
    itemsize: int
    spec: PartitionSpec
    sizes: Mapping[str, int]
    whole: tuple[tuple[int, tuple[str, ...]], ...] = ()

    def parts(self, *axes: str) -> int:
        """Into how many parts it is split, over all axes or those named."""
        found = (axis for entry in self.spec for axis in names(entry))
        return math.prod(self.sizes[axis] for axis in found if not axes or axis in axes)

    @property
    def bytes(self) -> int:
        """On one device."""
        return math.prod(self.shape) * self.itemsize // self.parts()


def parse(text: str) -> dict[str, int]:
    """Devices per axis of `data:8,fsdp:64`.

    Raises:
        BadInput: when it is malformed, an axis is unknown or named twice, or a size is not a positive whole number.
    """
    sizes: dict[str, int] = {}
    for word in text.split(","):
        axis, colon, number = (part.strip() for part in word.partition(":"))
        if not (axis and colon and number):
            raise errors.BadInput(
                f"--mesh has {word!r}; write axes and devices, such as data:8,fsdp:64"
            )
        if axis not in sharding.AXES:
            known = ", ".join(sharding.AXES)
            raise errors.BadInput(
                f"--mesh has no axis {axis!r}{errors.nearest(axis, sharding.AXES)}; known: {known}"
            )
        if axis in sizes:
            raise errors.BadInput(f"--mesh names axis {axis} twice; give it once")
        if not number.isdecimal() or int(number) < 1:
            raise errors.BadInput(
                f"--mesh has {axis}:{number}; the number of devices must be a whole number from 1"
            )
        sizes[axis] = int(number)
    return sizes


def mesh_of(sizes: Mapping[str, int]) -> AbstractMesh:
    """The mesh that `sharding.make_mesh` would make if the devices were here."""
    shape = tuple(sizes.get(axis, 1) for axis in sharding.AXES)
    return AbstractMesh(shape, sharding.AXES, axis_types=(AxisType.Auto,) * len(shape))


def leaves(boxed: Any, mesh: AbstractMesh) -> list[Leaf]:
    """Every array of a tree boxed with its logical axes; a dimension that its mesh axes do not divide stays whole."""
    specs = nn.get_partition_spec(boxed)
    where = nn.logical_to_mesh_sharding(specs, mesh, sharding.RULES)
    plain = jax.tree_util.tree_leaves_with_path(nn.meta.unbox(boxed))
    return [
        _leaf(path, leaf, laid.spec, dict(mesh.shape))
        for (path, leaf), laid in zip(plain, jax.tree.leaves(where), strict=True)
    ]


def problems(found: list[Leaf]) -> list[str]:
    """One line for each size that stays whole because its mesh axes do not divide it."""
    paths: dict[tuple[int, tuple[str, ...]], list[str]] = {}
    for leaf in found:
        for size, axes in leaf.whole:
            paths.setdefault((size, axes), []).append(leaf.path)
    sizes = found[0].sizes
    return [
        f"{size} is not divided by the {math.prod(sizes[axis] for axis in axes)} devices of {'×'.join(axes)}, so each "
        f"has all of it: {where[0]}{f' and {len(where) - 1} more' * (len(where) > 1)}"
        for (size, axes), where in paths.items()
    ]


def local(config: ModelConfig, mesh: AbstractMesh) -> ModelConfig:
    """The model that one device computes: its share of heads, of hidden units and of the vocabulary, in full width.

    What the mesh does not divide stays whole.
    """
    parts = mesh.shape["tensor"]

    def share(size: int) -> int:
        return size // parts if size % parts == 0 else size

    heads = share(config.heads)
    keys = math.gcd(heads, share(config.kv_heads))
    return dataclasses.replace(
        config,
        heads=heads,
        kv_heads=keys,
        head_size=config.head_size,
        hidden=share(config.hidden),
        vocab_size=share(config.vocab_size),
    )


def names(entry: Any) -> tuple[str, ...]:
    """The mesh axes of one dimension's entry in a spec."""
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


def boxed_params(config: ModelConfig, runtime: Runtime) -> Any:
    """The abstract parameters with their logical axes."""
    net = model.build(config, dataclasses.replace(runtime, scan=True))
    return jax.eval_shape(lambda: model.init_boxed(net, key=jax.random.key(0)))


def _leaf(path: Any, leaf: Any, spec: PartitionSpec, sizes: Mapping[str, int]) -> Leaf:
    entries, whole = [], []
    for size, entry in zip(leaf.shape, spec, strict=False):
        parts = math.prod(sizes[axis] for axis in names(entry))
        entries.append(entry if size % parts == 0 else None)
        if size % parts:
            whole.append((size, names(entry)))
    name = "/".join(
        str(getattr(step, "key", getattr(step, "name", getattr(step, "idx", step))))
        for step in path
    )
    return Leaf(name, leaf.shape, leaf.dtype.itemsize, PartitionSpec(*entries), sizes, tuple(whole))
