"""What does a step of training cost each device of a mesh: memory, operations, what is sent, and how fast can it be?

The parameters, the optimiser's state and the operations are those of the step itself, traced on the shapes that one
device has; `memory` says which of its values need memory, and `collectives` what the mesh adds.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from rich.console import Console

import model
from model.config import ModelConfig, Runtime
from train import collectives, flops, layout, losses, memory, optimizer, step, tables
from train.chips import Chip
from train.collectives import Collective
from train.layout import Leaf
from train.losses import LossConfig
from train.memory import Cost
from train.optimizer import OptimizerConfig
from train.recipe import Train

BATCH = {"tokens": "int32", "targets": "int32", "segments": "int32", "weights": "float32"}


@dataclasses.dataclass(frozen=True)
class Asked:
    """A step of training: the model, tokens of a row, and the groups of a recipe."""

    model: ModelConfig
    length: int
    train: Train
    optimizer: OptimizerConfig
    loss: LossConfig
    runtime: Runtime


@dataclasses.dataclass(frozen=True)
class Budget:
    """What one device holds, computes and sends in one step.

    Attributes:
        sizes: devices of every mesh axis.
        params, state: the arrays of the training state; `state` are the optimiser's.
        batch, gradients, saved, logits: bytes of the batch, of the gradients, of what the forward pass keeps for the
            backward pass, and of the logits of one chunk.
        cost: of the gradient's computation: its peak holds gradients, what is saved, and what is being worked on.
        useful: operations by the convention of `flops`; `cost.flops` are those really done.
        traffic: bytes to and from memory, the optimiser's among them.
        sent: the collectives.
        refused: what training would refuse.
    """

    asked: Asked
    sizes: Mapping[str, int]
    params: list[Leaf]
    state: list[Leaf]
    batch: int
    gradients: int
    saved: float
    logits: int
    cost: Cost
    useful: float
    traffic: float
    sent: list[Collective]
    refused: list[str]

    @property
    def arguments(self) -> int:
        """Bytes of parameters, optimiser's state and batch."""
        return sum(leaf.bytes for leaf in (*self.params, *self.state)) + self.batch

    @property
    def peak(self) -> float:
        """Bytes held at once: the state is updated where it lies."""
        return self.arguments + self.cost.peak


def budget(asked: Asked, sizes: Mapping[str, int]) -> Budget:
    """Of the device that has most, on a mesh of `sizes`."""
    mesh = layout.mesh_of(sizes)
    sizes = dict(mesh.shape)
    runtime = dataclasses.replace(asked.runtime, scan=True)
    if sizes["sequence"] > 1 and runtime.attention == "auto":
        runtime = dataclasses.replace(runtime, attention="xla")  # as it is on such a mesh
    net = model.build(asked.model, runtime)
    boxed = step.boxed_state(net, optimizer.build(asked.optimizer, asked.train.steps))
    params, rest = layout.leaves(boxed.params, mesh), layout.leaves(boxed.opt_state, mesh)
    split = sizes["data"] * sizes["fsdp"]
    rows = -(-asked.train.batch_size // split)
    micro = -(-rows // asked.train.accumulate)
    parts = losses.chunks(micro, asked.length // sizes["sequence"], asked.loss.chunk)
    here = layout.local(asked.model, mesh)
    sizer = _sizer(here, runtime, sizes)
    traced = _trace(here, runtime, asked, micro, parts)
    cost = memory.cost(traced, sizer)
    gradients = sum(leaf.bytes for leaf in params)
    share = asked.length // sizes["sequence"]
    what = collectives.Step(
        micro,
        share,
        jnp.dtype(runtime.dtype).itemsize,
        asked.train.accumulate,
        parts,
        runtime.remat,
    )
    tokens = asked.train.batch_size * asked.length
    state_bytes = sum(leaf.bytes for leaf in (*params, *rest))
    return Budget(
        asked=asked,
        sizes=sizes,
        params=params,
        state=rest,
        batch=rows * share * sum(jnp.dtype(dtype).itemsize for dtype in BATCH.values()),
        gradients=gradients,
        saved=memory.saved(traced, sizer, asked.model.layers, _shapes(here, runtime)),
        logits=micro * share * here.vocab_size * 4 // parts,
        cost=cost,
        useful=flops.training(asked.model, asked.length) * tokens / math.prod(sizes.values()),
        traffic=cost.traffic + 2 * state_bytes + gradients,
        sent=collectives.of_step(asked.model, params, sizes, what),
        refused=_refused(asked, sizes),
    )


def _refused(asked: Asked, sizes: Mapping[str, int]) -> list[str]:
    split, rows = sizes["data"] * sizes["fsdp"], asked.train.batch_size
    found = []
    if rows % (split * asked.train.accumulate):
        found.append(
            f"config.train.batch_size={rows} in config.train.accumulate={asked.train.accumulate} parts is not divided "
            f"by the {split} devices of data×fsdp"
        )
    if asked.length % sizes["sequence"]:
        found.append(
            f"config.data.length={asked.length} is not divided by the {sizes['sequence']} devices of sequence"
        )
    return found


def _trace(config: ModelConfig, runtime: Runtime, asked: Asked, rows: int, chunks: int) -> Any:
    """The jaxpr of a step's gradient with one device's shapes; weights that `fsdp` splits are whole in it."""
    net = model.build(config, runtime)
    tokens = rows * asked.train.accumulate, asked.length
    chunk = rows * asked.length // chunks if chunks > 1 else 0
    params = jax.eval_shape(functools.partial(model.init, net), key=jax.random.key(0))
    batch = {name: jax.ShapeDtypeStruct(tokens, dtype) for name, dtype in BATCH.items()}
    loss = functools.partial(step.batch_loss, net, dataclasses.replace(asked.loss, chunk=chunk))
    gradient = functools.partial(step.loss_and_gradient, loss, accumulate=asked.train.accumulate)
    return jax.make_jaxpr(gradient)(params, batch, jax.eval_shape(lambda: jax.random.key(0)))


def _shapes(config: ModelConfig, runtime: Runtime) -> dict[tuple[int, ...], Leaf]:
    """The shapes of the parameters of one device, also with neighbouring dimensions joined, as products see them."""
    found: dict[tuple[int, ...], Leaf] = {}
    for leaf in layout.leaves(layout.boxed_params(config, runtime), layout.mesh_of({})):
        first = int("layers" in leaf.path.split("/"))
        for i in range(first, len(leaf.shape)):
            for j in range(i + 1, len(leaf.shape) + 1):
                joined = (*leaf.shape[:i], math.prod(leaf.shape[i:j]), *leaf.shape[j:])
                if len(joined) > 1:
                    found[joined] = leaf
    return found


def _sizer(config: ModelConfig, runtime: Runtime, sizes: Mapping[str, int]) -> memory.Size:
    """Bytes of an array in that trace: `fsdp` splits what has a parameter's shape, `sequence` what has another."""
    mesh = layout.mesh_of({"fsdp": sizes["fsdp"]})
    laid = {
        leaf.path: leaf.parts()
        for leaf in layout.leaves(layout.boxed_params(config, runtime), mesh)
    }
    parts = {shape: laid[leaf.path] for shape, leaf in _shapes(config, runtime).items()}

    def size(shape: tuple[int, ...], itemsize: int) -> float:
        whole = math.prod(shape) * itemsize
        return whole / (parts[shape] if shape in parts else sizes["sequence"])

    return size


def table(found: Budget, console: Console, chip: Chip | None = None) -> None:
    """Prints the budget, and with a chip the ceiling of its speed."""
    devices = math.prod(found.sizes.values())
    mesh = " × ".join(f"{axis} {size}" for axis, size in found.sizes.items() if size > 1) or "1"
    train, run = found.asked.train, found.asked.runtime
    console.print(
        f"{devices:,} devices: {mesh}; {train.batch_size:,} rows of {found.asked.length:,} tokens, "
        f"accumulate {train.accumulate}, {run.dtype}, remat {run.remat}, {found.asked.optimizer.name}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    for line in found.refused:
        console.print(f"refused by train: {line}", markup=False, highlight=False, soft_wrap=True)
    for line in layout.problems(found.params):
        console.print(f"not split: {line}", markup=False, highlight=False, soft_wrap=True)
    tables.grid(console, ("each device", "bytes"), memory_rows(found))
    work = [
        ("operations, useful", tables.si(found.useful, "FLOP")),
        ("operations, done", tables.si(found.cost.flops, "FLOP")),
        ("to and from memory", tables.si(found.traffic, "B")),
        ("sent", tables.si(sum(each.wire for each in found.sent), "B")),
    ]
    tables.grid(console, ("each device, each step", ""), work)
    sent = [
        (
            each.what,
            each.kind,
            "×".join(each.axes),
            f"{each.count:,}",
            tables.si(each.bytes, "B"),
            tables.si(each.wire, "B"),
        )
        for each in found.sent
    ]
    if sent:
        tables.grid(
            console, ("collectives of a step", "", "over", "count", "bytes", "sent"), sent, words=3
        )
    rows = [
        (leaf.path, "×".join(map(str, leaf.shape)), _spec(leaf.spec), tables.si(leaf.bytes, "B"))
        for leaf in found.params
    ]
    tables.grid(console, ("parameter", "shape", "over", "each device"), rows, words=3)
    if chip is not None:
        tables.grid(console, ("ceiling", ""), ceiling_rows(found, chip))


def memory_rows(found: Budget) -> list[tuple[str, str]]:
    """What a device holds at the peak, by what it is."""
    working = found.cost.peak - found.gradients - found.saved
    sizes = {
        "parameters": sum(leaf.bytes for leaf in found.params),
        "optimiser's state": sum(leaf.bytes for leaf in found.state),
        "batch": found.batch,
        "gradients": found.gradients,
        "activations kept for the backward pass": found.saved,
        f"at work at the peak (a chunk's logits are {tables.si(found.logits, 'B')})": max(
            working, 0
        ),
        "peak": found.peak,
    }
    return [(name, tables.si(size, "B")) for name, size in sizes.items()]


def ceiling(found: Budget, chip: Chip) -> dict[str, float]:
    """Seconds of a step if nothing but operations, memory, or what is sent took time.

    Operations at the rate of bfloat16; memory as XLA goes to it, which writes attention's scores down.
    """
    return {
        "operations": found.cost.flops / chip.flops,
        "memory": found.traffic / chip.bandwidth,
        "collectives": sum(each.wire for each in found.sent) / chip.links,
    }


def ceiling_rows(found: Budget, chip: Chip) -> list[tuple[str, str]]:
    """The times, which of them bounds the step, and the utilisation and the memory that are left."""
    times = ceiling(found, chip)
    bound = max(times, key=lambda name: times[name])
    tokens = found.asked.train.batch_size * found.asked.length / times[bound]
    fits = "fits into" if found.peak <= chip.memory else "does not fit into"
    devices = math.prod(found.sizes.values())
    near = [(f"links reach {chip.reach} of {devices:,} devices", "slower beyond")]
    return [
        *((f"a step's {name}, alone", f"{seconds:.3g} s") for name, seconds in times.items()),
        *(near if 0 < chip.reach < devices else []),
        ("bound by", bound),
        ("tokens per second, at most", f"{tokens:,.0f}"),
        ("utilisation, at most", f"{found.useful / chip.flops / times[bound]:.1%}"),
        (f"{fits} {tables.si(chip.memory, 'B')} of memory", f"{found.peak / chip.memory:.0%}"),
    ]


def _spec(spec: PartitionSpec) -> str:
    """Mesh axes by dimension, `-` where it is whole."""
    return " ".join("×".join(layout.names(entry)) or "-" for entry in spec) or "-"
