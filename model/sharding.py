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
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from model import errors

AXES = ("data", "fsdp", "sequence", "tensor", "expert")

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
    ("expert", "expert"),
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

    Leaves without axis names are replicated. So is a dimension that its mesh axes do not divide, such as GPT-2's 50257
    pieces over two devices or the one key head of multi-query attention: `notes` says which.
    """
    shardings = nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, RULES)
    return jax.tree.map(
        lambda leaf, where: NamedSharding(mesh, _even(leaf.shape, where)),
        nn.meta.unbox(boxed),
        shardings,
    )


def notes(boxed: Any, mesh: Mesh) -> list[str]:
    """One line for each kind of dimension that `of_tree` leaves whole because its mesh axes do not divide it.

    Example: `vocab of 50257 is whole on every device of mesh axis tensor, whose 2 do not divide it`.
    """
    found: dict[str, None] = {}
    specs = nn.get_partition_spec(boxed)
    shardings = nn.logical_to_mesh_sharding(specs, mesh, RULES)

    def add(leaf: Any, names: PartitionSpec, where: NamedSharding) -> None:
        even = _even(leaf.shape, where)
        for size, name, axes, kept in zip(leaf.shape, names, where.spec, even, strict=False):
            if axes != kept:
                found[
                    f"{name} of {size} is whole on every device of mesh axis {'×'.join(_names(axes))}, "
                    f"whose {_parts(mesh, axes)} do not divide it"
                ] = None

    jax.tree.map(add, nn.meta.unbox(boxed), specs, shardings)
    return list(found)


def rows_here(mesh: Mesh, rows: int, devices: Sequence[jax.Device] | None = None) -> list[int]:
    """Which of a batch's rows lie, whole or in part, on `devices`, by default those of this process."""
    parts = batch(mesh).devices_indices_map((rows, mesh.shape["sequence"]))
    here = mesh.local_devices if devices is None else devices
    return sorted({row for device in here for row in range(rows)[parts[device][0]]})


def to_host(leaf: Any) -> Any:
    """An array's value in the memory of this process, whichever processes hold it; all of them must ask.

    What each process already holds in full is not sent.
    """
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        return jax.device_get(leaf)
    return multihost_utils.process_allgather(leaf, tiled=True)


def batch(mesh: Mesh) -> NamedSharding:
    """How a batch [B, T] lies: rows over `data` and `fsdp`, tokens over `sequence`."""
    return NamedSharding(mesh, nn.logical_to_mesh_axes(("batch", "sequence"), RULES))


def devices_of(axis: str) -> int:
    """Over how many devices the mesh in force lays that axis; 1 where there is none."""
    return jax.sharding.get_abstract_mesh().shape.get(axis, 1)


def share(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and tokens of a batch [B, T] that each device of the mesh in force holds."""
    rows, length = shape
    split = devices_of("data") * devices_of("fsdp")
    return max(1, rows // split), max(1, length // devices_of("sequence"))


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
        parts = _parts(sharding.mesh, axes)
        if size % parts:
            raise errors.BadInput(
                f"{name} has a dimension of {size}, which mesh axes {'×'.join(_names(axes))} of {parts} "
                "devices do not divide; change the mesh or the size"
            )


def _names(axes: Any) -> tuple[str, ...]:
    """The mesh axes of one entry of a PartitionSpec."""
    return (axes,) if isinstance(axes, str) else tuple(axes or ())


def _parts(mesh: Any, axes: Any) -> int:
    """Into how many parts they split a dimension."""
    return math.prod(mesh.shape[axis] for axis in _names(axes))


def _even(shape: Sequence[int], where: NamedSharding) -> PartitionSpec:
    """The spec without the axes that do not divide their dimension."""
    return PartitionSpec(
        *(
            axes if size % _parts(where.mesh, axes) == 0 else None
            for size, axes in zip(shape, where.spec, strict=False)
        )
    )
