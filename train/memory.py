"""How much memory does a program hold at most, how much does it move, and what does it compute? Read off its jaxpr.

A model of what XLA does: matrix products, gathers and loops write their results to memory; everything else is computed
inside what reads it, unless a matrix product reads it, or two readers would compute it twice. A buffer lives from its
writing to its last reading.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from jax.extend import core

Size = Callable[[tuple[int, ...], int], float]

CALLS = (
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "checkpoint",
    "remat",
    "remat2",
)
ALIASES = (
    "reshape",
    "squeeze",
    "expand_dims",
    "stop_gradient",
    "copy",
    "copy_p",
    "sharding_constraint",
    "optimization_barrier",
)
WRITTEN = (
    "dot_general",
    "ragged_dot",
    "conv_general_dilated",
    "scan",
    "while",
    "cond",
    "gather",
    "sort",
    "top_k",
    "concatenate",
    "dynamic_update_slice",
    "cumsum",
    "cummax",
    "cumlogsumexp",
    "custom_call",
)
REDUCES = ("reduce_", "argm")  # written, and what they read is computed inside them
CHEAP = ("broadcast_in_dim", "iota", "convert_element_type", "dynamic_slice", "slice")


class Cost(NamedTuple):
    """Bytes held at once beside the inputs, bytes moved to and from memory, floating-point operations of products."""

    peak: float
    traffic: float
    flops: float


@dataclasses.dataclass
class Op:
    """One operation between numbered values; -1 among the operands of a loop is a number that is written into it."""

    name: str
    ins: list[int]
    outs: list[int]
    params: dict[str, Any]


@dataclasses.dataclass
class Program:
    """Operations in order; `shapes` has of every value its shape and the bytes of an entry."""

    ops: list[Op]
    inputs: list[int]
    outputs: list[int]
    shapes: list[tuple[tuple[int, ...], int]]


def cost(closed: Any, size: Size) -> Cost:
    """Of a closed jaxpr whose results stay; `size(shape, itemsize)` are the bytes of an array on one device."""
    program = _program(closed.jaxpr)
    return _cost(program, size, kept=True)


def _program(jaxpr: Any, sliced: int | None = None) -> Program:
    """The calls of a jaxpr opened up; inputs from `sliced` on are cut from a larger array when they are first read."""
    shapes: list[tuple[tuple[int, ...], int]] = []
    ops: list[Op] = []

    def new(var: Any) -> int:
        shapes.append(_shape(var))
        return len(shapes) - 1

    def open_(jaxpr: Any, inputs: list[int | None]) -> list[int | None]:
        ids: dict[Any, int | None] = dict(zip(jaxpr.invars, inputs, strict=True))

        def read(atoms: Iterable[Any]) -> list[int | None]:
            return [None if isinstance(a, core.Literal) else ids.get(a) for a in atoms]

        for eqn in jaxpr.eqns:
            inner = _inner(eqn) if eqn.primitive.name in CALLS else None
            if inner is not None:
                count = len(inner.invars)
                outs = open_(inner, read(eqn.invars)[-count:] if count else [])
            else:
                made = [new(var) for var in eqn.outvars]
                ins = [-1 if i is None else i for i in read(eqn.invars)]
                loop = eqn.primitive.name == "scan"
                if not loop:
                    ins = [i for i in ins if i >= 0]
                params = {"loop": _loop(eqn)} if loop else eqn.params
                ops.append(Op(eqn.primitive.name, ins, made, params))
                outs = list(made)
            ids.update(zip(eqn.outvars, outs, strict=True))
        return read(jaxpr.outvars)

    inputs = [new(var) for var in jaxpr.invars]
    outputs = open_(jaxpr, list(inputs))
    program = Program(ops, inputs, [o for o in outputs if o is not None], shapes)
    _drop_unused(program)
    if sliced is not None:
        _slice_late(program, inputs[sliced:])
    return program


def _shape(var: Any) -> tuple[tuple[int, ...], int]:
    """The shape of a variable, and the bytes of an entry; a key for random numbers is two words."""
    itemsize = getattr(getattr(var.aval, "dtype", None), "itemsize", 8)
    return tuple(getattr(var.aval, "shape", ())), itemsize


class Loop(NamedTuple):
    """A scan: its body, its turns, and how many of its operands are constants and how many are carried.

    The primitive's own parameters say so differently from one jax to the next; the ranks of arrays say it always.
    """

    body: Any
    turns: int
    constants: int
    carried: int


def _loop(eqn: Any) -> Loop:
    body = getattr(eqn.params["jaxpr"], "jaxpr", eqn.params["jaxpr"])

    def alike(outer: Any, inner: Any) -> int:
        pairs = zip(outer, inner, strict=True)
        return sum(len(a.aval.shape) == len(b.aval.shape) for a, b in pairs)

    carried = alike(eqn.outvars, body.outvars)
    return Loop(body, eqn.params["length"], alike(eqn.invars, body.invars) - carried, carried)


def _inner(eqn: Any) -> Any:
    found = next(
        (eqn.params[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in eqn.params), None
    )
    return getattr(found, "jaxpr", found)


def _drop_unused(program: Program) -> None:
    used, ops = set(program.outputs), []
    for op in reversed(program.ops):
        if used & set(op.outs):
            used |= set(op.ins)
            ops.append(op)
    program.ops = ops[::-1]


def _slice_late(program: Program, inputs: list[int]) -> None:
    waiting, ops = set(inputs), []
    for op in program.ops:
        first = sorted(waiting & set(op.ins))
        ops += [Op("dynamic_slice", [], [i], {}) for i in first]
        waiting -= set(first)
        ops.append(op)
    program.ops = ops


def _written(name: str) -> bool:
    return name in WRITTEN or name.startswith(("scatter", *REDUCES, "random_", "threefry"))


def _buffers(program: Program, kept: bool) -> tuple[set[int], dict[int, int], dict[int, int]]:
    """Which values have a buffer, where each value is last read, and how many times it is read."""
    end = len(program.ops)
    hard = set(program.outputs) if kept else set()
    last = dict.fromkeys(program.outputs, end)
    readers: dict[int, int] = {}
    buffers: set[int] = set()
    for i in reversed(range(end)):
        op = program.ops[i]
        written = _written(op.name)
        fused = not written and op.name not in ALIASES
        for out in op.outs:
            dear = op.name not in CHEAP and readers.get(out, 0) > 1
            if written or (fused and (out in hard or dear)):
                buffers.add(out)
        where = max((last.get(out, i) for out in op.outs if out not in buffers), default=i)
        inside = op.name.startswith(REDUCES)
        for read in op.ins:
            last[read] = max(last.get(read, -1), where)
            readers[read] = readers.get(read, 0) + 1
            needs = written and not inside
            if needs or (op.name in ALIASES and hard & set(op.outs)):
                hard.add(read)
    return buffers, last, readers


def _cost(program: Program, size: Size, kept: bool) -> Cost:
    buffers, last, readers = _buffers(program, kept)
    bytes_of = {i: size(*program.shapes[i]) for i in buffers}
    ends: dict[int, list[int]] = {}
    for i in buffers:
        ends.setdefault(last.get(i, -1), []).append(i)
    held = peak = traffic = flops = 0.0
    dead: set[int] = set()

    def free(values: Iterable[int], i: int) -> float:
        freed = [v for v in set(values) & begun - dead if last.get(v) == i]
        dead.update(freed)
        return sum(bytes_of[v] for v in freed)

    begun: set[int] = set()
    for i, op in enumerate(program.ops):
        inner = _nested(op, program, size)
        held -= free(_replaced(op), i)  # the result takes the place of what it was computed from
        made = [out for out in op.outs if out in buffers]
        begun.update(made)
        held += sum(bytes_of[out] for out in made)
        peak = max(peak, held + inner.peak)
        held -= free(ends.get(i, []), i) + sum(bytes_of[out] for out in made if out not in last)
        traffic += inner.traffic + sum(bytes_of[out] * (1 + readers.get(out, 0)) for out in made)
        flops += inner.flops + _products(op, program, size)
    traffic += sum(size(*program.shapes[i]) * readers.get(i, 0) for i in program.inputs if kept)
    return Cost(peak, traffic, flops)


def _replaced(op: Op) -> list[int]:
    """The operands whose place the results may take: of a loop what it carries, of a product none."""
    if op.name == "scan":
        first = op.params["loop"].constants
        return op.ins[first : first + op.params["loop"].carried]
    in_place = not _written(op.name) or op.name in ("scatter-add", "dynamic_update_slice")
    return op.ins if in_place else []


def _copied(op: Op, program: Program, size: Size) -> float:
    """Bytes of a product's operands that must be laid out anew for it, as grouped heads are.

    A product reads matrices: the dimensions that count them first, and those it sums over together at either end.
    """
    copies = 0.0
    if op.name == "dot_general" and len(op.ins) == 2:
        for operand, summed, counting in zip(op.ins, *op.params["dimension_numbers"], strict=True):
            shape, _ = program.shapes[operand]
            real = [i for i, dimension in enumerate(shape) if dimension > 1]
            first = [i for i in counting if shape[i] > 1]
            rest = [i for i in real if i not in first]
            own = sorted(i for i in summed if shape[i] > 1)
            plain = real[: len(first)] == first and own in (rest[: len(own)], rest[-len(own) :])
            copies += 0 if plain or not own else size(*program.shapes[operand])
    return copies


def _nested(op: Op, program: Program, size: Size) -> Cost:
    """What an operation costs beside its results: a loop, a choice, or a product whose operands are not in order."""
    if op.name == "dot_general":
        copied = _copied(op, program, size)
        return Cost(copied, 2 * copied, 0)
    if op.name == "scan":
        loop = op.params["loop"]
        body = _cost(_program(loop.body, loop.constants + loop.carried), size, kept=False)
        return Cost(body.peak, body.traffic * loop.turns, body.flops * loop.turns)
    bodies = op.params.get("branches", ()) if op.name == "cond" else ()
    if op.name == "while":
        bodies = (op.params["body_jaxpr"],)
    costs = [_cost(_program(getattr(body, "jaxpr", body)), size, kept=False) for body in bodies]
    return Cost(*(max(values) for values in zip(*costs, strict=True))) if costs else Cost(0, 0, 0)


def _products(op: Op, program: Program, size: Size) -> float:
    """Operations of a matrix product; a device's share of them is its share of the larger of operand and result."""
    if op.name != "dot_general" or not op.ins:
        return 0.0
    (contracted, _), _ = op.params["dimension_numbers"]
    left, _ = program.shapes[op.ins[0]]
    made, _ = program.shapes[op.outs[0]]
    return 2.0 * math.prod(made) * math.prod(left[i] for i in contracted)


def saved(closed: Any, size: Size, length: int, params: Iterable[tuple[int, ...]]) -> float:
    """The most bytes that a loop of `length` turns collects, what has a parameter's shape left out."""
    known = set(params)

    def of(jaxpr: Any) -> float:
        most = 0.0
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "scan":
                loop = _loop(eqn)
                most = max(most, of(loop.body))
                if loop.turns == length:
                    collected = (_shape(var) for var in eqn.outvars[loop.carried :])
                    most = max(most, sum(size(*each) for each in collected if each[0] not in known))
            elif (inner := _inner(eqn)) is not None:
                most = max(most, of(inner))
        return most

    return of(closed.jaxpr)
