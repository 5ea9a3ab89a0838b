"""How do we tell a person that something they gave us is wrong?

One exception, one line: what was wrong, its value, and what to change. `launch.py` prints the line and exits with 2.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class BadInput(ValueError):
    """Something a person gave us is wrong; the message is the one line they will read."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint naming the known word closest to `word`, or the empty string: ` (did you mean 'top_k'?)`."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Makes the dataclass `cls` from a mapping, refusing unknown keys and wrongly typed values.

    `where` is how the person addresses these values, such as `config.model`; it opens every message. Whole numbers
    are accepted for floats and lists for tuples, because JSON and command lines cannot tell them apart.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise BadInput(
                f"{where} has no key {key!r}{nearest(key, fields)}; known keys: {', '.join(fields)}"
            )
    missing = [
        name
        for name, field in fields.items()
        if name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise BadInput(f"{where} lacks {', '.join(missing)}; add it to the config")
    return cls(
        **{key: _typed(f"{where}.{key}", value, hints[key]) for key, value in values.items()}
    )


def _typed(where: str, value: Any, hint: Any) -> Any:
    """Returns `value` as the annotated type, or raises with the name, the value and the type wanted."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        origin = typing.get_origin(option) or option
        if option is Any:
            return value
        if option is type(None) and value is None:
            return None
        if origin is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if origin is tuple and isinstance(value, list | tuple):
            return tuple(value)
        if origin is int and isinstance(value, bool):
            continue
        if isinstance(origin, type) and isinstance(value, origin):
            return value
    wanted = " or ".join(
        "nothing" if o is type(None) else getattr(o, "__name__", str(o)) for o in options
    )
    raise BadInput(f"{where} is {value!r} ({type(value).__name__}); it must be {wanted}")
