"""What does XLA itself say of a training step that it has compiled for the devices here? Memory, and collectives.

The reference that a plan is compared with, in tests and in `benchmarks/plan.py`.
"""

import collections
import dataclasses
import math
import re

import jax

import model
from model import sharding
from train import optimizer, per_device, step

# The CPU compiler orders operations for concurrency unless told; those of accelerators order them for memory.
OPTIONS = {"xla_cpu_enable_concurrency_optimized_scheduler": False}
KINDS = r"(all-reduce|all-gather|reduce-scatter|all-to-all)"
BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4}


def compile_step(asked: per_device.Asked, sizes: dict[str, int]):
    """The step that training would run, compiled for a mesh of the devices here."""
    mesh = sharding.make_mesh(sizes)
    net = model.build(asked.model, dataclasses.replace(asked.runtime, scan=True))
    transform = optimizer.build(asked.optimizer, asked.train.steps)
    state = step.abstract_state(net, transform, mesh)
    train_step = step.make_train_step(
        net, transform, mesh, step.shardings(state), asked.train.accumulate, (), asked.loss
    )
    batch = {
        name: jax.ShapeDtypeStruct((asked.train.batch_size, asked.length), dtype)
        for name, dtype in per_device.BATCH.items()
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    lower = sharding.on_mesh(train_step.__wrapped__.lower, mesh)
    return lower(state, batch, key).compile(compiler_options=OPTIONS)


def collectives(text: str) -> dict[str, tuple[int, int]]:
    """Arrays and bytes by kind of collective in a compiled module's text, with all turns of loops, no scalars."""
    inside: dict[str, collections.Counter] = {}
    loops: dict[str, list[tuple[str, int]]] = {}
    entry = name = ""
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
            name = head[2]
            entry = name if head[1] else entry
            inside[name], loops[name] = collections.Counter(), []
        if found := re.search(rf"= (.*?) {KINDS}(-start)?\(", line):
            _count(inside[name], found[2], found[1])
        if loop := re.search(r"while\(.*body=%?([\w.\-]+)", line):
            turns = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            loops[name].append((loop[1], int(turns[1]) if turns else 1))
    totals: collections.Counter = collections.Counter()
    _add(totals, entry, 1, inside, loops)
    kinds = {kind for kind, _ in totals}
    return {kind: (totals[kind, "count"], totals[kind, "bytes"]) for kind in kinds}


def _count(counter: collections.Counter, kind: str, result: str) -> None:
    arrays = re.findall(r"(\w+)\[([\d,]+)\]", result)
    sizes = [math.prod(map(int, shape.split(","))) * BYTES[dtype] for dtype, shape in arrays]
    counter[kind, "count"] += 1 if kind == "all-to-all" else len(sizes)
    counter[kind, "bytes"] += sum(sizes)


def _add(totals, name, times, inside, loops) -> None:
    for key, value in inside[name].items():
        totals[key] += times * value
    for body, turns in loops[name]:
        _add(totals, body, times * turns, inside, loops)
