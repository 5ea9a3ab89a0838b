"""How do we tell a person that something they gave us is wrong?

One exception, one line: what was wrong, its value, and what to change. `launch.py` prints the line and exits with 2.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

MANY = 30  # keys that nobody wants to read when one of them is meant
WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    tuple: "a list",
    dict: "a group of keys",
    type(None): "nothing",
}


class BadInput(ValueError):
    """Something a person gave us is wrong; the message is the one line they will read."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint naming the known word closest to `word`, or the empty string: ` (did you mean 'top_k'?)`."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def typed(where: str, value: Any, hint: Any) -> Any:
    """`value` as the annotated type `hint`; refuses another with the name, the value and the type wanted."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        origin = typing.get_origin(option) or option
        if option is Any:
            return value
        if option is type(None) and value is None:
            return None
        if origin is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, Mapping) and dataclasses.is_dataclass(origin):
            return build(typing.cast(type, origin), value, where)
        if origin is tuple and isinstance(value, list | tuple):
            return _elements(where, value, option)
        if origin is dict and isinstance(value, Mapping):
            return _entries(where, value, option)
        if origin is int and isinstance(value, bool):
            continue
        if isinstance(origin, type) and isinstance(value, origin):
            return value
    wanted = " or ".join(_words(option) for option in options)
    raise BadInput(f"{where} is {value!r} ({type(value).__name__}); it must be {wanted}")


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Makes the dataclass `cls` from a mapping, refusing what is none, unknown keys and wrongly typed values.

    `where` is how the person addresses these values, such as `config.model`; it opens every message. Whole numbers
    are accepted for floats and lists for tuples, because JSON and command lines cannot tell them apart.
    """
    if not isinstance(values, Mapping):
        raise BadInput(f"{where} is {values!r}; it must be a group of keys")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            hint = nearest(str(key), fields)
            known = "" if hint and len(fields) > MANY else f"; known keys: {', '.join(fields)}"
            raise BadInput(f"{where} has no key {key!r}{hint}{known}")
    missing = [
        name
        for name, field in fields.items()
        if name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise BadInput(f"{where} lacks {', '.join(missing)}; add it to the config")
    return cls(**{key: typed(f"{where}.{key}", value, hints[key]) for key, value in values.items()})


def _elements(where: str, values: Sequence[Any], hint: Any) -> tuple[Any, ...]:
    """A list as `tuple[X, ...]`, each element checked."""
    kind = (*typing.get_args(hint), Any)[0]
    return tuple(typed(f"{where}[{i}]", value, kind) for i, value in enumerate(values))


def _entries(where: str, values: Mapping[Any, Any], hint: Any) -> dict[Any, Any]:
    """A mapping as `dict[str, X]`, each key and value checked."""
    kind = (*typing.get_args(hint), Any, Any)[1]
    for key in values:
        if not isinstance(key, str):
            raise BadInput(f"{where} has key {key!r} ({type(key).__name__}); a key must be text")
    return {key: typed(f"{where}.{key}", value, kind) for key, value in values.items()}


def _words(kind: Any) -> str:
    """An annotated type, as a person would say it."""
    origin = typing.get_origin(kind) or kind
    if dataclasses.is_dataclass(origin):
        return "a group of keys"
    return str(WORDS.get(origin, getattr(origin, "__name__", origin)))
