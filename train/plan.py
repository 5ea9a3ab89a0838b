"""What would a config cost? Its parameters by part, its bytes, and its operations per token, without building it.

Everything is counted on shapes alone (`jax.eval_shape`), so the largest model costs as little to ask about as the
smallest.
"""

import dataclasses
import functools
import math
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from rich.console import Console

import model
from model import cache, errors, presets, tokenizer
from model.config import RECURRENT, ModelConfig, Runtime
from train import chips, flops, layout, per_device, recipe, tables
from train.losses import LossConfig
from train.optimizer import OptimizerConfig

# What a parameter belongs to, by its path below the stack: first match wins. The table has them in this order.
PARTS = (
    (r"^(embedding|types)/", "embedding"),
    (r"^(position|relative)/", "positions"),
    (r"/attention/(query|key|value|out)/", "attention"),
    (r"/cross/(query|key|value|out)/", "cross attention"),
    (r"/feed_forward/", "feed-forward"),
    (r"/(input|recurrent)/", "cells"),
    (r"^(output|head)/", "head"),
    (r"(^|/|_)norm/", "norms"),
)
EXPERTS = r"/feed_forward/(up|gate|down)/"  # of which a token meets only the chosen
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
WIDTH = 160  # of tables that are written to a file
STEPS = 1_000_000
LARGE: dict[str, Any] = {"dtype": "bfloat16", "remat": "full"}
STATE = 4 * BYTES["float32"]  # of a trained parameter: itself, its gradient, Adam's two moments


@dataclasses.dataclass(frozen=True)
class Part:
    """Some parameters of a model: `total` of them, of which a token meets `active`.

    `stack` is empty where a model has only one, and for what its stacks share.
    """

    stack: str
    name: str
    total: int
    active: int


@dataclasses.dataclass(frozen=True)
class Rows:
    """The one key of a config's data group that a plan of a mere model reads: tokens of a row."""

    length: int | None = None


def run(config: Mapping[str, Any], mesh: str | None = None, chip: str | None = None) -> int:
    """Prints what a config would cost: a whole recipe, or a model group and at most `data.length`.

    With a `mesh` such as `data:8,fsdp:64`, what a step of training costs each of its devices, for which a mere model
    needs `train.batch_size` besides; with a `chip`, how fast that can be.
    """
    if mesh is None and chip is not None:
        raise errors.BadInput(f"--chip={chip} needs devices; add --mesh=data:8, or another")
    sizes = None if mesh is None else layout.parse(mesh)
    named = None if chip is None else chips.named(chip)
    whole = asked_step(config) if sizes else None
    made, length = (whole.model, whole.length) if whole else asked(config)
    changed = ", changed" if len(config["model"]) > 1 else ""
    preset = config["model"].get("preset")
    name = f"{preset}{changed}" if preset else "model"
    if whole is None or sizes is None:
        table(made, length, name=name)
    else:
        console = Console(width=None if sys.stdout.isatty() else WIDTH)
        console.print(f"{name}: {describe(made)}", markup=False, highlight=False, soft_wrap=True)
        per_device.table(per_device.budget(whole, sizes), console, named)
    return 0


def asked_step(config: Mapping[str, Any]) -> per_device.Asked:
    """The step of training that a config describes: a whole recipe, or a model with `train.batch_size`.

    What a mere model leaves out is as large runs have it: bfloat16, and layers computed again in the backward pass.
    """
    if config.get("adapt") is not None:
        raise errors.BadInput(
            "config.adapt is given, and what a step costs a device is only known where all of a model is trained; "
            "leave out --mesh"
        )
    if "tokenizer" in config or "model" not in config or not isinstance(config["model"], Mapping):
        made, length = asked(config)
        whole = recipe.from_config(config)
        train, runtime, groups = whole.train, whole.runtime, (whole.optimizer, whole.loss)
    else:
        made, length = asked({k: v for k, v in config.items() if k in ("model", "data")})
        known = ("model", "data", "train", "optimizer", "loss", "runtime")
        for name in set(config) - set(known):
            raise errors.BadInput(
                f"config has no key {name!r}{errors.nearest(name, known)}, of a plan; known: {', '.join(known)}"
            )
        for name in known[2:]:
            if not isinstance(config.get(name, {}), Mapping) and name != "train":
                raise errors.BadInput(
                    f"config.{name} is {config[name]!r}; it must be a group of keys"
                )
        rows = config.get("train", {})
        if not isinstance(rows, Mapping) or "batch_size" not in rows:
            raise errors.BadInput(
                "--mesh needs to know how many rows a step has; add --config.train.batch_size=N"
            )
        train = errors.build(recipe.Train, {"steps": STEPS, **rows}, "config.train")
        runtime = errors.build(
            recipe.Devices, LARGE | dict(config.get("runtime", {})), "config.runtime"
        )
        groups = (
            errors.build(OptimizerConfig, config.get("optimizer", {}), "config.optimizer"),
            errors.build(LossConfig, config.get("loss", {}), "config.loss"),
        )
    if made.family not in ("decoder_only", *RECURRENT):
        raise errors.BadInput(
            f"config.model.family is {made.family!r}, and what a step costs a device is only known of models that read "
            "left to right; leave out --mesh"
        )
    return per_device.Asked(made, length, train, *groups, runtime.runtime)


def asked(config: Mapping[str, Any]) -> tuple[ModelConfig, int]:
    """The model of a config, and the length of its rows: the whole context if none is given.

    Raises:
        BadInput: for what `recipe.from_config` refuses, and for a config without a model.
    """
    if "model" not in config:
        raise errors.BadInput(
            "config has no group 'model', so there is nothing to plan; add one, or give --config=configs/preset.py:NAME"
        )
    if set(config) - {"model", "data"}:
        whole = recipe.from_config(config)
        return whole.model_config(_pieces(whole)), whole.data.length
    if not isinstance(config["model"], Mapping):
        raise errors.BadInput(f"config.model is {config['model']!r}; it must be a group of keys")
    made = errors.build(ModelConfig, presets.resolve(config["model"]), "config.model")
    rows = errors.build(Rows, config["data"] if "data" in config else {}, "config.data")
    length = made.context_length if rows.length is None else rows.length
    if not 1 <= length <= made.context_length:
        raise errors.BadInput(
            f"config.data.length is {length}; it must be from 1 to config.model.context_length={made.context_length}"
        )
    return made, length


def parameters(config: ModelConfig) -> list[Part]:
    """The parameters of the model that `config` describes, counted on its tree."""
    net = model.build(config, Runtime(scan=True))
    tree = jax.eval_shape(functools.partial(model.init, net), key=jax.random.key(0))
    parts: dict[tuple[str, str], Part] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        names = [step.key for step in path]
        stack = names[0] if names[0] in ("encoder", "decoder") else ""
        inside = "/".join(names[1:] if stack or names[0] == "stack" else names)
        key = stack, _part(inside)
        total = active = math.prod(leaf.shape)
        if config.experts.count and re.search(EXPERTS, inside):
            active = total * config.experts.chosen // config.experts.count
        before = parts.get(key, Part(*key, 0, 0))
        parts[key] = Part(*key, before.total + total, before.active + active)
    order = [name for _, name in PARTS]
    ends = {"embedding": -1, "head": 1}  # before and behind the stacks
    return sorted(
        parts.values(),
        key=lambda part: (ends.get(part.name, 0), part.stack == "decoder", order.index(part.name)),
    )


def cache_bytes(config: ModelConfig, dtype: str = "bfloat16") -> dict[str, int]:
    """What decoding remembers, in bytes: per token, per token of a source, or per row where that does not grow."""
    if config.family == "encoder_only":
        return {}

    def size(length: int, source: int) -> int:
        empty = functools.partial(cache.init, config, 1, length, dtype, source)
        return sum(
            leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(empty))
        )

    least = size(1, 1)
    if config.family in RECURRENT:
        return {"row": least}
    per = {"token": size(2, 1) - least, "source token": size(1, 2) - least}
    return {each: growth for each, growth in per.items() if growth}


def describe(config: ModelConfig) -> str:
    """A model in one line."""
    c = config
    layers = f"{c.encoder_layers} + {c.layers}" if c.family == "encoder_decoder" else f"{c.layers}"
    parts = [c.family.replace("_", "-"), f"{layers} layers of width {c.width}"]
    if c.family not in RECURRENT:
        grouped = f" ({c.kv_heads} of keys and values)" if c.kv_heads != c.heads else ""
        experts = f"{c.experts.chosen} of {c.experts.count} times " if c.experts.count else ""
        parts += [
            f"{c.heads} heads of {c.head_size}{grouped}",
            f"positions {c.position}",
            f"feed-forward {experts}{c.hidden} {c.activation}",
            f"{c.norm} norm {c.block}",
        ]
    if c.windows:
        parts.append(f"windows {c.windows}".replace(",)", ")"))
    return ", ".join([*parts, f"vocabulary {c.vocab_size}", f"context {c.context_length}"])


def table(
    config: ModelConfig, length: int, *, name: str = "model", console: Console | None = None
) -> None:
    """Prints what a model costs whose rows have `length` tokens; `console` is standard output if not given."""
    console = console or Console()
    console.print(f"{name}: {describe(config)}", markup=False, highlight=False, soft_wrap=True)
    parts = parameters(config)
    total = sum(part.total for part in parts)
    tables.grid(console, *_parameter_rows(parts, total))
    sizes = [(f"weights in {dtype}", tables.si(total * size, "B")) for dtype, size in BYTES.items()]
    sizes.append(("weights, gradient and Adam's moments in float32", tables.si(total * STATE, "B")))
    for each, size in cache_bytes(config).items():
        sizes.append((f"cache in bfloat16, per {each}", tables.si(size, "B")))
    tables.grid(console, ("", "bytes"), sizes)
    sides = flops.by_part(config, length)
    work = [
        (f"{side} {part}" if len(sides) > 1 else part, tables.si(operations, "FLOP"))
        for side, parts_of_side in sides.items()
        for part, operations in parts_of_side.items()
    ]
    work.append(("forward", tables.si(flops.forward(config, length), "FLOP")))
    work.append(("training", tables.si(flops.training(config, length), "FLOP")))
    rows = f"per token, in rows of {length:,}{' on each side' if len(sides) > 1 else ''}"
    tables.grid(console, (rows, "operations"), work)


def _parameter_rows(
    parts: Sequence[Part], total: int
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows; those that a token meets have a column where they are fewer."""
    active = sum(part.active for part in parts)
    rows = [
        (f"{part.stack} {part.name}".strip(), part.total, part.active)
        for part in parts
        if part.total
    ]
    header: tuple[str, ...] = ("", "parameters", "share", "met by a token")
    cells: list[tuple[str, ...]] = [
        (label, f"{count:,}", f"{count / total:.1%}", f"{met:,}")
        for label, count, met in [*rows, ("total", total, active)]
    ]
    columns = 3 if active == total else 4
    return header[:columns], [row[:columns] for row in cells]


def _part(path: str) -> str:
    for rule, name in PARTS:
        if re.search(rule, path):
            return name
    raise AssertionError(f"no part holds the parameter {path}")


def _pieces(whole: recipe.Recipe) -> int:
    """Pieces of the tokenizer that a recipe names, as far as the model depends on it."""
    words = whole.tokenizer
    if words.path is not None and whole.model.get("vocab_size") is None:
        return tokenizer.load(words.path).vocab_size
    if words.path is None and words.vocab_size is None and whole.model.get("vocab_size") is None:
        raise errors.BadInput(
            f"config.tokenizer.vocab_size is None, and how many pieces kind {words.kind!r} has depends on the text; "
            "give config.model.vocab_size to plan with"
        )
    return words.vocab_size or 1
