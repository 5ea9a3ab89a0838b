"""What do the devices of a mesh send each other in a step? From the rules and the shapes; scalars are left out.

Weights that `fsdp` splits are gathered where they are used, forward and backward, layer by layer; their gradients are
summed and scattered back. What `tensor` splits is summed over it wherever a product contracts it. Every gradient is
summed over the axes that split the batch.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from model.config import RECURRENT, ModelConfig
from train.layout import Leaf

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all")


@dataclasses.dataclass(frozen=True)
class Collective:
    """Attributes:
    what: is sent.
    kind: one of KINDS.
    axes: of the mesh, over which.
    devices: that take part in one.
    count: of them in a step.
    bytes: of the whole arrays, in all of them: what each device has before a reduction, or after a gathering.
    """

    what: str
    kind: str
    axes: tuple[str, ...]
    devices: int
    count: int
    bytes: float

    @property
    def wire(self) -> float:
        """What each device sends, on a ring; an all-reduce scatters and gathers."""
        return (
            self.bytes * (self.devices - 1) / self.devices * (2 if self.kind == "all-reduce" else 1)
        )


@dataclasses.dataclass(frozen=True)
class Step:
    """What of a step decides about collectives.

    Attributes:
        rows, length: of one micro-batch, on one device; `length` counts tokens of its share of a row.
        itemsize: bytes of an activation's entry.
        accumulate: micro-batches.
        chunks: of the head's loss, in each micro-batch.
        remat: the policy.
    """

    rows: int
    length: int
    itemsize: int
    accumulate: int
    chunks: int
    remat: str


def of_step(
    config: ModelConfig, params: Sequence[Leaf], sizes: Mapping[str, int], step: Step
) -> list[Collective]:
    """All of them, those without partners left out."""
    found = [
        *_weights(config, params, sizes, step),
        *_gradients(config, params, sizes, step),
        *_activations(config, params, sizes, step),
    ]
    return [each for each in found if each.devices > 1 and each.count and each.bytes]


def _devices(sizes: Mapping[str, int], axes: Sequence[str]) -> int:
    return math.prod(sizes[axis] for axis in axes)


def _whole(leaf: Leaf, *gathered: str) -> float:
    """Bytes of a leaf on one device once these axes are gathered."""
    return leaf.bytes * leaf.parts(*gathered)


def _layers(config: ModelConfig, leaf: Leaf) -> int:
    return config.layers if "layers" in leaf.path.split("/") else 1


def _head(config: ModelConfig, leaf: Leaf) -> bool:
    """Whether the head reads it, chunk by chunk."""
    return leaf.path.startswith("embedding/" if config.tied else "output/")


def _weights(
    config: ModelConfig, params: Sequence[Leaf], sizes: Mapping[str, int], step: Step
) -> list[Collective]:
    """Matrices of a layer forward and backward, its biases forward; tables once, and twice if `tensor` splits them."""
    found: dict[str, list[float]] = {}
    for leaf in params:
        if leaf.parts("fsdp") == 1 or (leaf.path.startswith("embedding/") and not config.tied):
            continue
        layers = _layers(config, leaf)
        if "layers" in leaf.path.split("/"):
            what = "weights of the layers"
            times = step.accumulate * (1 if leaf.path.endswith("/bias") else 2)
        else:
            what, times = "weights of tables", 2 if leaf.parts("tensor") > 1 else 1
        count, size = found.get(what, [0, 0.0])
        found[what] = [count + times * layers, size + times * _whole(leaf, "fsdp")]
    return [
        Collective(what, "all-gather", ("fsdp",), sizes["fsdp"], int(count), size)
        for what, (count, size) in found.items()
    ]


def _gradients(
    config: ModelConfig, params: Sequence[Leaf], sizes: Mapping[str, int], step: Step
) -> list[Collective]:
    found: dict[tuple[str, str, tuple[str, ...]], list[float]] = {}

    def add(what: str, kind: str, axes: tuple[str, ...], count: int, size: float) -> None:
        before = found.get((what, kind, axes), [0, 0.0])
        found[what, kind, axes] = [before[0] + count, before[1] + size]

    def reduce(what: str, leaf: Leaf, times: int, size: float) -> None:
        rows = ("data",) if leaf.parts("fsdp") > 1 else ("data", "fsdp")
        for axes in (rows, ("sequence",)):
            add(what, "all-reduce", axes, times, times * size)

    for leaf in params:
        times, what = step.accumulate * _layers(config, leaf), "gradients"
        if leaf.path.startswith("embedding/"):
            # The rows of `fsdp` are sent to where they belong with the embedded tokens' gradients: see `_lookup`.
            whole = leaf.parts("fsdp") > 1
            reduce(what, leaf, times, _whole(leaf, "tensor") if whole else leaf.bytes)
            if not config.tied:
                continue
        if _head(config, leaf):
            times, what = step.accumulate * step.chunks, "gradient of the head, by chunk"
        layer = leaf.bytes / _layers(config, leaf)
        if leaf.parts("fsdp") > 1:
            add(what, "reduce-scatter", ("fsdp",), times, times * layer * leaf.parts("fsdp"))
        reduce(what, leaf, times, layer)
    return [
        Collective(
            what,
            kind,
            tuple(a for a in axes if sizes[a] > 1),
            _devices(sizes, axes),
            int(count),
            size,
        )
        for (what, kind, axes), (count, size) in found.items()
    ]


def _activations(
    config: ModelConfig, params: Sequence[Leaf], sizes: Mapping[str, int], step: Step
) -> list[Collective]:
    tensor, stream = sizes["tensor"], step.rows * step.length * config.width * step.itemsize
    names = {leaf.path.rsplit("/", 2)[-2] for leaf in params if leaf.parts("tensor") > 1}
    forward = len(names & {"out", "down"})
    backward = len(names & {"query", "key", "value", "up", "gate"})
    # What only the residual stream reads is not computed again.
    needed = {"pre": names & {"out"}, "parallel": set()}.get(config.block, names & {"out", "down"})
    again = len(needed) if step.remat == "full" else 0
    many = config.layers * step.accumulate
    found = []
    if config.family not in RECURRENT:
        for what, times in (
            ("products forward", forward),
            ("products forward, again", again),
            ("products backward", backward),
        ):
            count = many * times
            found.append(Collective(what, "all-reduce", ("tensor",), tensor, count, count * stream))
        keys = config.kv_heads // (tensor if "key" in names else 1) * config.head_size
        seen = step.rows * step.length * sizes["sequence"] * keys * step.itemsize
        count = 4 * many  # forward and backward
        found.append(
            Collective(
                "keys and values",
                "all-gather",
                ("sequence",),
                sizes["sequence"],
                count,
                count * seen,
            )
        )
        found.append(
            Collective(
                "their gradients",
                "reduce-scatter",
                ("sequence",),
                sizes["sequence"],
                2 * many,
                2 * many * seen,
            )
        )
    if any(leaf.parts("tensor") > 1 for leaf in params if _head(config, leaf)):
        count = step.accumulate * step.chunks
        found.append(
            Collective(
                "the head's gradient of its input",
                "all-reduce",
                ("tensor",),
                tensor,
                count,
                step.accumulate * stream,
            )
        )
    return found + _lookup(params, sizes, step, stream)


def _lookup(
    params: Sequence[Leaf], sizes: Mapping[str, int], step: Step, stream: int
) -> list[Collective]:
    """Of the table of tokens: each device looks up all rows in its columns, or its rows if it has all columns."""
    table = next((leaf for leaf in params if leaf.path.startswith("embedding/")), None)
    if table is None:
        return []
    rows, columns = table.parts("tensor"), table.parts("fsdp")
    count = step.accumulate
    total = count * stream
    if rows > 1 and columns == 1:
        return [Collective("embedded tokens", "all-reduce", ("tensor",), rows, count, total)]
    if rows == 1:
        return [
            Collective("embedded tokens", "all-to-all", ("fsdp",), columns, 2 * count, 2 * total)
        ]
    table_bytes = count * _whole(table, "tensor")
    return [
        Collective("table of the lookup", "all-gather", ("tensor",), rows, count, table_bytes),
        Collective("embedded tokens", "all-gather", ("fsdp",), columns, count, total),
    ]
