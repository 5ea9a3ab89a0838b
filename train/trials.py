"""Which arms does a training sweep have? The keys of a config with several values, combined in one of four ways.

An arm is a whole recipe, named by the digest of what it computes. What is wrong with one is told before any is trained.
"""

import collections
import copy
import dataclasses
import itertools
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from decode import grid
from model import errors
from train import overrides, recipe
from train.recipe import Recipe

WAYS = ("product", "zip", "chain", "random")
SEED = "seed"  # the key whose values are averaged over
RANGE = re.compile(r"(log|uniform):([^:,]+):([^:,]+)")
ENOUGH = 100  # draws in a row that are there already, after which all are taken to be


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high` that a random sweep draws from, evenly or (`log`) evenly in their logarithm."""

    kind: str
    low: float
    high: float

    def at(self, share: float) -> float:
        """The number at a share, 0 to 1, of the way; of four digits, so that its text is the number."""
        if self.kind == "log":
            return float(f"{self.low * (self.high / self.low) ** share:.4g}")
        return float(f"{self.low + (self.high - self.low) * share:.4g}")


@dataclasses.dataclass(frozen=True)
class Arm:
    """One training run of a sweep.

    Attributes:
        name: what it sets of that in which the arms differ, such as `optimizer.learning_rate=0.001, seed=2`.
        setting: the value of each axis, its config's where it sets none; arms that differ in their seed share it.
        groups: its config.
        recipe: the same, checked.
        digest: names its directory.
    """

    name: str
    setting: tuple[Any, ...]
    groups: Mapping[str, Any]
    recipe: Recipe
    digest: str

    @property
    def tokens(self) -> int:
        """Positions that it trains on."""
        train = self.recipe.train
        return train.steps * train.batch_size * self.recipe.data.length


@dataclasses.dataclass(frozen=True)
class Trials:
    """The arms in order, and `axes`: in which keys they differ (the seed apart), with the values of each in order."""

    arms: tuple[Arm, ...]
    axes: Mapping[str, tuple[Any, ...]]

    @property
    def settings(self) -> dict[tuple[Any, ...], list[Arm]]:
        """The arms of each setting, one per seed."""
        groups: dict[tuple[Any, ...], list[Arm]] = collections.defaultdict(list)
        for arm in self.arms:
            groups[_known(arm.setting)].append(arm)
        return dict(groups)


def arms(
    groups: Mapping[str, Any],
    flags: Sequence[str],
    *,
    way: str = "product",
    draws: int = 0,
    sweep_seed: int = 0,
    seeds: str | None = None,
    unequal: bool = False,
) -> Trials:
    """The arms of a config and the flags that change it; a key with one value has it in every arm.

    Args:
        groups: of the config file.
        flags: such as `--config.train.steps=5,7`; values end at commas outside of brackets and quotes.
        way: `product`: every combination, the last key moving fastest. `zip`: all keys move together. `chain`: one key
            after the other, the rest as the config has it. `random`: `draws` combinations, whose values are functions
            of `sweep_seed`, the key and the number of the draw; a key may then have a range, `log:1e-4:1e-2` or
            `uniform:0:0.2`.
        seeds: how many, from the config's own on, or a list of them. One seed of every arm comes first.
        unequal: whether arms may train on different numbers of tokens.

    Raises:
        BadInput: of an arm by its number and name.
    """
    axes = {path: _values(path, text) for path, text in map(overrides.split, flags)}
    varied = {
        path: several
        for path, several in axes.items()
        if len(several) > 1 or isinstance(several[0], Range)
    }
    fixed = {path: several[0] for path, several in axes.items() if path not in varied}
    _check_ranges(varied, way)
    base = copy.deepcopy(dict(groups))
    for path, one in fixed.items():
        overrides.put(base, path, one)
    if seeds is not None and SEED in axes:
        raise errors.BadInput(
            f"--config.seed={grid.shown(axes[SEED])} stands beside --seeds={seeds}; leave one of them out"
        )
    rows = _rows(varied, way, draws, sweep_seed)
    if seeds is not None:
        rows = [{**row, SEED: seed} for seed in _seeds(seeds, base) for row in rows]
    if len(rows) < 2:
        raise errors.BadInput(
            f"the sweep has {len(rows)} arms, and needs 2; give a key several values, such as "
            "--config.optimizer.learning_rate=1e-3,3e-3, or add --seeds=3"
        )
    trials = _made(base, rows, once=way == "chain")
    if not unequal:
        _check_budgets(trials)
    return trials


def way(**given: bool) -> str:
    """The one way of `WAYS` that is asked for; a product, if none is."""
    asked = [name for name in WAYS if given.get(name)]
    if len(asked) > 1:
        raise errors.BadInput(f"--{asked[0]} and --{asked[1]} contradict each other; leave one out")
    return asked[0] if asked else WAYS[0]


def shard(trials: Trials, text: str) -> tuple[Arm, ...]:
    """The arms of shard `i/n`: every n-th, from the i-th on; shards count from 0, as the tasks of job arrays do."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or int(found[1]) >= int(found[2]):
        raise errors.BadInput(
            f"--shard={text} is not i/n with i from 0 to n - 1; write --shard=0/4 for the first of four"
        )
    return trials.arms[int(found[1]) :: int(found[2])]


def _values(path: str, text: str) -> list[Any]:
    found = RANGE.fullmatch(text)
    if found:
        return [_range(path, text, found)]
    parts = [part.strip() for part in grid.split(text, "\"'")]
    if not all(parts):
        raise errors.BadInput(
            f"--config.{path}={text} has an empty value; write values with commas between them, such as 0.5,1"
        )
    return [overrides.value(part) for part in parts]


def _range(path: str, text: str, found: re.Match[str]) -> Range:
    low, high = (overrides.value(bound) for bound in found.groups()[1:])
    known = all(isinstance(bound, int | float) and math.isfinite(bound) for bound in (low, high))
    if not known or not low < high or found[1] == "log" and low <= 0:
        above = "above 0 and " if found[1] == "log" else ""
        raise errors.BadInput(
            f"--config.{path}={text}: a {found[1]} range goes from a number {above}below the other one; "
            "write log:1e-4:1e-2 or uniform:0:0.2"
        )
    return Range(found[1], float(low), float(high))


def _check_ranges(varied: Mapping[str, Sequence[Any]], way: str) -> None:
    ranges = [path for path, several in varied.items() if isinstance(several[0], Range)]
    if ranges and way != "random":
        raise errors.BadInput(
            f"--config.{ranges[0]} is a range, which only a random sweep draws from; add --random=N, or list values"
        )


def _rows(
    varied: Mapping[str, Sequence[Any]], way: str, draws: int, sweep_seed: int
) -> list[dict[str, Any]]:
    """What each arm sets, by path."""
    if way == "random":
        return list(_drawn(varied, draws, sweep_seed))
    if way == "zip":
        counts = {path: len(several) for path, several in varied.items()}
        if len(set(counts.values())) > 1:
            told = ", ".join(f"config.{path} {count}" for path, count in counts.items())
            raise errors.BadInput(
                f"--zip moves all keys together, and they have different numbers of values: {told}"
            )
        return [dict(zip(varied, row, strict=True)) for row in zip(*varied.values(), strict=True)]
    if way == "chain":
        return [{path: one} for path, several in varied.items() for one in several] or [{}]
    return grid.product(varied)


def _drawn(
    varied: Mapping[str, Sequence[Any]], draws: int, sweep_seed: int
) -> Iterator[dict[str, Any]]:
    """So many different combinations; more of them begin with the same ones."""
    if draws < 1:
        raise errors.BadInput(f"--random={draws}; it must be at least 1")
    seen: list[dict[str, Any]] = []
    repeats = 0
    for i in itertools.count():
        if len(seen) == draws:
            return
        row = {}
        for path, several in varied.items():
            share = random.Random(f"{sweep_seed} {path} {i}").random()
            first = several[0]
            row[path] = (
                first.at(share) if isinstance(first, Range) else several[int(share * len(several))]
            )
        repeats = repeats + 1 if row in seen else 0
        if repeats > ENOUGH * draws:
            raise errors.BadInput(
                f"--random={draws} asks for more than the {len(seen)} combinations that there are; lower it"
            )
        if not repeats:
            seen.append(row)
            yield row


def _seeds(text: str, base: Mapping[str, Any]) -> list[int]:
    several = [overrides.value(part.strip()) for part in grid.split(text.strip("[]"))]
    if not all(type(seed) is int and seed >= 0 for seed in several) or text == "0":
        raise errors.BadInput(
            f"--seeds={text} is neither a number of seeds nor a list of them; write --seeds=3 or --seeds=5,7,11"
        )
    if len(several) > 1 or text.startswith("["):
        return several
    first = base.get(SEED, 0)
    return list(range(first, first + several[0]))


def _made(base: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], once: bool) -> Trials:
    """The arms of rows; with `once`, one that is there already is left out, else it is refused."""
    paths = list(dict.fromkeys(path for row in rows for path in row))
    keys = [path for path in paths if path != SEED]
    found: dict[str, Arm] = {}
    for number, row in enumerate(rows, start=1):
        name = ", ".join(f"{path}={grid.shown(row[path])}" for path in paths if path in row)
        groups = copy.deepcopy(dict(base))
        for path, one in row.items():
            overrides.put(groups, path, one)
        try:
            asked = recipe.from_config(groups)
        except errors.BadInput as error:
            raise errors.BadInput(f"arm {number} ({name}): {error}") from error
        whole, digest = recipe.resolved(asked), recipe.digest(asked)
        if digest in found and not once:
            raise errors.BadInput(
                f"arm {number} ({name}) computes the same as {found[digest].name}; remove one of them"
            )
        setting = tuple(row[path] if path in row else whole.get(path) for path in keys)
        found.setdefault(digest, Arm(name, setting, groups, asked, digest))
    made = tuple(found.values())
    axes = {
        path: tuple({_known(arm.setting[i]): arm.setting[i] for arm in made}.values())
        for i, path in enumerate(keys)
    }
    return Trials(made, axes)


def _check_budgets(trials: Trials) -> None:
    """Refuses arms that train on different numbers of tokens: the longer one would win for being longer."""
    least, most = (by(trials.arms, key=lambda arm: arm.tokens) for by in (min, max))
    if least.tokens != most.tokens:
        raise errors.BadInput(
            f"arms train on different numbers of tokens, from {least.tokens:,} ({least.name}) to {most.tokens:,} "
            f"({most.name}); give train.steps values too and add --zip, or add --allow_unequal_tokens"
        )


def _known(value: Any) -> Any:
    """A value that may be a list or a group as one that can be a key."""
    if isinstance(value, Mapping):
        return tuple((key, _known(one)) for key, one in value.items())
    return tuple(map(_known, value)) if isinstance(value, list | tuple) else value
