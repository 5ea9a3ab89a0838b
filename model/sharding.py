"""Which device holds which part of an array? The only file that knows meshes and rules.

Models name logical axes; the rules say on which mesh axes those are laid. One device is a mesh of ones.
"""

import math
from collections.abc import Mapping
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
    ("layers", None),
)


def make_mesh(sizes: Mapping[str, int] | None = None) -> Mesh:
    """A mesh over all devices; axes left out have size 1, and without sizes all devices are on `data`.

    Axes are `Auto`: linen's logical constraints fail on the `Explicit` axes that `jax.make_mesh` makes by default.
    """
    sizes = dict(sizes or {"data": jax.device_count()})
    for name, size in sizes.items():
        if name not in AXES:
            raise errors.BadInput(f"mesh has no axis {name!r}{errors.nearest(name, AXES)}; known: {', '.join(AXES)}")
        if size < 1:
            raise errors.BadInput(f"mesh axis {name} is {size}; it must be at least 1")
    wanted = math.prod(sizes.values())
    if wanted != jax.device_count():
        raise errors.BadInput(
            f"mesh {sizes} needs {wanted} devices and {jax.device_count()} are here; change runtime.mesh"
        )
    return jax.make_mesh(tuple(sizes.get(name, 1) for name in AXES), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def of_tree(boxed: Any, mesh: Mesh) -> Any:
    """The `NamedSharding` of every leaf of a tree of (abstract) arrays; leaves without axis names are replicated.

    Raises:
        BadInput: when a mesh axis does not divide the dimension it would split.
    """
    specs = nn.get_partition_spec(boxed)
    shardings = nn.logical_to_mesh_sharding(specs, mesh, RULES)
    jax.tree_util.tree_map_with_path(_check_divides, nn.meta.unbox(boxed), shardings)
    return shardings


def batch(mesh: Mesh) -> NamedSharding:
    """How a batch [B, T] lies: rows over `data` and `fsdp`, tokens over `sequence`."""
    return NamedSharding(mesh, nn.logical_to_mesh_axes(("batch", "sequence"), RULES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def _check_divides(path: Any, leaf: Any, sharding: NamedSharding) -> None:
    for size, names in zip(leaf.shape, sharding.spec, strict=False):
        names = (names,) if isinstance(names, str) else names or ()
        parts = math.prod(sharding.mesh.shape[name] for name in names)
        if size % parts:
            raise errors.BadInput(
                f"{jax.tree_util.keystr(path)} has a dimension of {size}, which mesh axes {'×'.join(names)} "
                f"of {parts} devices do not divide; change the mesh or the model"
            )
