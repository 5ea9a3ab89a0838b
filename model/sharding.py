"""Which device holds which part of an array? The only file that knows meshes and rules.

Models name logical axes; the rules say on which mesh axes those are laid. One device is a mesh of
ones.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from model import errors

AXES = ("data", "fsdp", "sequence", "tensor")

RULES = (
    ("batch", ("data", "fsdp")),
    ("sequence", "sequence"),
    ("activation", None),
    ("vocab", "tensor"),
    ("embed", "fsdp"),
    ("mlp", "tensor"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("head", None),
    ("norm", None),
    ("position", None),
    ("expert", None),
    ("gate", None),
    ("class", None),
    ("layers", None),
)


def make_mesh(
    sizes: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh over `devices`, or all of them.

    Axes left out have size 1; without sizes all devices are on `data`. The axes are `Auto`: linen's
    logical constraints fail on the `Explicit` ones that `jax.make_mesh` makes by default.
    """
    devices = jax.devices() if devices is None else devices
    sizes = dict(sizes or {"data": len(devices)})
    for name, size in sizes.items():
        if name not in AXES:
            raise errors.BadInput(
                f"mesh has no axis {name!r}{errors.nearest(name, AXES)}; known: {', '.join(AXES)}"
            )
        if size < 1:
            raise errors.BadInput(f"mesh axis {name} is {size}; it must be at least 1")
    wanted = math.prod(sizes.values())
    if wanted != len(devices):
        raise errors.BadInput(
            f"mesh {sizes} needs {wanted} devices and {len(devices)} are here; change runtime.mesh"
        )
    shape = tuple(sizes.get(name, 1) for name in AXES)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def of_tree(boxed: Any, mesh: Mesh) -> Any:
    """The `NamedSharding` of every leaf of a tree of (abstract) arrays.

    Leaves without axis names are replicated.

    Raises:
        BadInput: when a mesh axis does not divide the dimension it would split.
    """
    specs = nn.get_partition_spec(boxed)
    shardings = nn.logical_to_mesh_sharding(specs, mesh, RULES)
    jax.tree_util.tree_map_with_path(
        lambda path, leaf, where: check_divides(jax.tree_util.keystr(path), leaf.shape, where),
        nn.meta.unbox(boxed),
        shardings,
    )
    return shardings


def batch(mesh: Mesh) -> NamedSharding:
    """How a batch [B, T] lies: rows over `data` and `fsdp`, tokens over `sequence`."""
    return NamedSharding(mesh, nn.logical_to_mesh_axes(("batch", "sequence"), RULES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def on_mesh(function: Callable, mesh: Mesh) -> Callable:
    """`function` with the mesh and the rules in force whenever it is called, and so when traced.

    Without them the logical constraints inside a network would silently do nothing.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
            return function(*args, **kwargs)

    return call


def check_divides(name: str, shape: Sequence[int], sharding: NamedSharding) -> None:
    """Refuses an array whose dimensions the mesh cannot split evenly."""
    for size, axes in zip(shape, sharding.spec, strict=False):
        axes = (axes,) if isinstance(axes, str) else axes or ()
        parts = math.prod(sharding.mesh.shape[axis] for axis in axes)
        if size % parts:
            raise errors.BadInput(
                f"{name} has a dimension of {size}, which mesh axes {'×'.join(axes)} of {parts} "
                "devices do not divide; change the mesh or the size"
            )
