"""Which arms does a sweep have? The product of the values on a command line, or a list in a file.

An arm is a whole `Settings`. What contradicts itself is refused here, by the arm's name, before anything runs.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import pathlib
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from decode.settings import Settings
from model import errors

LONGEST = 24  # letters of a value in a name
_DEFAULTS = dataclasses.asdict(Settings())
_TEXTS = {
    name for name, hint in typing.get_type_hints(Settings).items() if hint in (str, str | None)
}
_OPENING, _CLOSING = "([{", ")]}"


@dataclasses.dataclass(frozen=True)
class Arm:
    """One cell of a sweep.

    Attributes:
        name: what it sets of that in which the arms differ, such as `temperature=0.5, top_k=50`.
        settings: all of them.
        values: those that were given, as `Settings` has them.
    """

    name: str
    settings: Settings
    values: Mapping[str, Any] = dataclasses.field(compare=False)

    @property
    def digest(self) -> str:
        """Names the arm's directory: of the settings that are not at their defaults, whatever order they came in."""
        return digest({k: v for k, v in settings_of(self).items() if v != _DEFAULTS[k]})


@dataclasses.dataclass(frozen=True)
class Grid:
    """The arms in order, and `axes`: in which settings they differ, with the values of each in order."""

    arms: tuple[Arm, ...]
    axes: Mapping[str, tuple[Any, ...]]

    @property
    def whole(self) -> bool:
        """Whether the arms are every combination of values."""
        return len(self.arms) == math.prod(map(len, self.axes.values()))


def arms(given: Mapping[str, str | Sequence[str]], path: str | None = None) -> Grid:
    """The arms of a command line: settings with several values span a grid, and one with one value is every arm's.

    Each arm records the likelihood of its tokens, unless it says otherwise.

    Args:
        given: texts of the settings, such as `{"temperature": "0.5,1", "top_k": "50"}`; those of a flag that is
            repeated in a list.
        path: a JSON file with a list of settings objects, which are then the arms.
    """
    axes = {
        name: [value for each in _flags(texts) for value in values(name, each)]
        for name, texts in given.items()
    }
    if path is None:
        rows = product(axes)
    else:
        for name, several in axes.items():
            if len(several) > 1:
                raise errors.BadInput(
                    f"--{name} has {len(several)} values beside --arms; put them into {path}, or leave --arms out"
                )
        fixed = {name: one for name, (one,) in axes.items()}
        rows = [{**fixed, **row} for row in _listed(pathlib.Path(path))]
    if len(rows) < 2:
        raise errors.BadInput(
            f"the sweep has {len(rows)} arms, and needs 2; give a setting several values, such as --temperature=0.5,1"
        )
    return of(rows)


def of(rows: Sequence[Mapping[str, Any]]) -> Grid:
    """The arms of settings objects."""
    made = [_settings(row, f"arm {i}") for i, row in enumerate(rows, start=1)]
    named = [name for name in _DEFAULTS if any(name in row for row in rows)]
    axes = {name: _unique(getattr(settings, name) for settings in made) for name in named}
    axes = {name: several for name, several in axes.items() if len(several) > 1}
    arms: dict[Settings, Arm] = {}
    for i, (row, settings) in enumerate(zip(rows, made, strict=True), start=1):
        name = ", ".join(f"{axis}={shown(getattr(settings, axis))}" for axis in axes if axis in row)
        if settings in arms:
            first = list(arms).index(settings) + 1
            raise errors.BadInput(f"arms {first} and {i} have the same settings; remove one")
        arms[settings] = Arm(
            name or "defaults", settings, {key: getattr(settings, key) for key in row}
        )
    return Grid(tuple(arms.values()), axes)


def values(name: str, text: str) -> list[Any]:
    """The values of a setting on a command line, at the commas that stand in no bracket and no quotes.

    Numbers, lists and what else is JSON are read as such.

    >>> values("top_k", "0,50"), values("allowed_token_ids", "[5, 7],[5]"), values("preset", "hf,vllm")
    ([0, 50], [[5, 7], [5]], ['hf', 'vllm'])
    """
    return [_value(name, part.strip()) for part in split(text)]


def split(text: str, quotes: str = '"') -> list[str]:
    """At the commas outside of brackets and quotes; a text whose brackets do not match is one value."""
    parts, depth, quote, escaped = [""], 0, "", False
    for letter in text:
        if letter == "," and not depth and not quote:
            parts.append("")
            continue
        parts[-1] += letter
        if letter in (quote or quotes) and not escaped:
            quote = "" if quote else letter
        escaped = letter == "\\" and not escaped
        if not quote:
            depth += (letter in _OPENING) - (letter in _CLOSING)
    return [text] if depth or quote else parts


def product(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of one value per axis; the last axis moves fastest."""
    return [dict(zip(axes, row, strict=True)) for row in itertools.product(*axes.values())]


def settings_of(arm: Arm) -> dict[str, Any]:
    """All settings of an arm by name."""
    return dataclasses.asdict(arm.settings)


def digest(values: Mapping[str, Any]) -> str:
    """12 letters for a set of names and values, the same whatever their order."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def shown(value: Any) -> str:
    """A value as a person would write it, shortened: `0.5`, `50`, `hf`, `[5, 7]`."""
    if isinstance(value, float):
        return f"{value:g}"
    text = value if isinstance(value, str) else json.dumps(value)
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def find(grid: Grid, wanted: str) -> Arm:
    """The arm with this name or this digest, or the beginning of it."""
    plain = wanted.replace(" ", "")
    for arm in grid.arms:
        if arm.name.replace(" ", "") == plain or len(plain) > 3 and arm.digest.startswith(plain):
            return arm
    names = [arm.name for arm in grid.arms]
    raise errors.BadInput(
        f"no arm is called {wanted!r}{errors.nearest(wanted, names)}; the first is {names[0]!r}"
    )


def _settings(row: Mapping[str, Any], where: str) -> Settings:
    for name in row:
        if name not in _DEFAULTS:
            hint = errors.nearest(name, _DEFAULTS)
            raise errors.BadInput(
                f"{where} has no setting {name!r}{hint}; docs/decoding.md lists them"
            )
    try:
        return Settings(**{"likelihood": True, **row})
    except errors.BadInput as error:
        told = ", ".join(f"{name}={shown(value)}" for name, value in row.items())
        raise errors.BadInput(f"{where} ({told}): {error}") from error


def _listed(path: pathlib.Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise errors.BadInput(
            f"--arms={path} cannot be read ({error.strerror}); name a file with a JSON list of settings"
        ) from error
    except ValueError as error:
        raise errors.BadInput(f"--arms={path} is not JSON ({error}); correct it") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise errors.BadInput(
            f'--arms={path} must hold a list of settings objects, such as [{{"top_k": 5}}, {{"top_p": 0.9}}]'
        )
    return rows


def _flags(texts: str | Sequence[str]) -> Sequence[str]:
    return (texts,) if isinstance(texts, str) else texts


def _value(name: str, text: str) -> Any:
    if not text:
        raise errors.BadInput(
            f"--{name} has an empty value; write values with commas between them, such as 0.5,1"
        )
    if name in _TEXTS:
        return json.loads(text) if _is_quoted(text) else text
    for read in (json.loads, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text


def _is_quoted(text: str) -> bool:
    try:
        return isinstance(json.loads(text), str)
    except ValueError:
        return False


def _unique(several: Iterable[Any]) -> tuple[Any, ...]:
    """Each value once, in the order of their first coming; true is not 1."""
    return tuple({(type(value), value): value for value in several}.values())
