"""What do settings look like on a command line? Their values as text, and the help on them."""

import dataclasses
import inspect
import json
import pathlib
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from decode import checks
from decode.settings import Settings
from model import errors

NAMES = tuple(field.name for field in dataclasses.fields(Settings))
HEADINGS = {  # of the settings from here on
    "max_new_tokens": "length",
    "temperature": "how a token is drawn",
    "repetition_penalty": "against repetition",
    "logit_bias": "which tokens",
    "stop": "ends, and several completions",
    "num_beams": "searches",
    "dola_layers": "second opinions",
    "num_assistant_tokens": "drafts",
    "regex": "form",
    "preset": "order of processors, and the record",
}
FORMS = (
    "lists and mappings are JSON, a flag may be repeated for a list, and @FILE is what a file holds"
)

_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Settings)}
_HINTS = typing.get_type_hints(Settings)
_TEXTS = ("stop", "bad_words", "dry_sequence_breakers")  # lists of them
_TEXT_OR_LIST = ("dola_layers", "negative_prompt")
_BOOLEANS = {"true": True, "false": False}
_COLUMN = 34


def values(given: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Settings by name from their texts; a flag may be repeated, so that each has a list of these.

    Numbers are written as such, switches as true or false, lists and mappings as JSON, what is text as it stands.
    The items of a list may also come one by one, from the flag repeated. `@FILE` is what the file holds.

    Example: `{"top_k": ["5"], "stop": ["a", "b"]}` is `{"top_k": 5, "stop": ["a", "b"]}`.

    Raises:
        BadInput: naming the flag.
    """
    return {name: _value(name, [_content(name, text) for text in given[name]]) for name in given}


def listing() -> str:
    """The settings in groups, those that belong together with one description."""
    lines = []
    for names, text in described():
        if names[0] in HEADINGS:
            lines += ["", f"{HEADINGS[names[0]]}:"]
        named = " ".join(f"--{name}" for name in names)
        lines += (
            [f"  {named:<{_COLUMN}} {text}"]
            if len(named) <= _COLUMN
            else [f"  {named}", f"{'':<{_COLUMN + 3}}{text}"]
        )
    return "\n".join(lines)


def described() -> list[tuple[tuple[str, ...], str]]:
    """Names that belong together and what they do, as the docstring of `Settings` has it."""
    section = inspect.getdoc(Settings).partition("Attributes:\n")[2]  # type: ignore[union-attr]
    entries = re.findall(r"^ {4}(\w[\w, ]*): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return [(tuple(names.split(", ")), " ".join(text.split())) for names, text in entries]


def _value(name: str, texts: Sequence[str]) -> Any:
    if name in _TEXTS:
        return [item for text in texts for item in _listed(name, text)]
    if _HINTS[name] == checks.Ids:
        return [item for text in texts for item in _ids(name, text)]
    if len(texts) > 1:
        raise errors.BadInput(f"--{name} is given {len(texts)} times; give it once")
    text, kind = texts[0], type(_DEFAULTS[name])
    if _HINTS[name] in (str, str | None):
        return text
    if kind in (int, float) or _HINTS[name] == int | None:
        return _number(name, text)
    if name == "early_stopping":
        return _BOOLEANS.get(text, text)
    if _HINTS[name] in (bool, bool | None):
        if text not in _BOOLEANS:
            raise errors.BadInput(f"--{name} is {text!r}; it must be true or false")
        return _BOOLEANS[text]
    if name in _TEXT_OR_LIST and not text.startswith("["):
        return text
    return _json(name, text)


def _number(name: str, text: str) -> int | float:
    try:
        return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
    except ValueError as error:
        raise errors.BadInput(
            f"--{name} is {text!r}; it must be a number, such as --{name}=1"
        ) from error


def _ids(name: str, text: str) -> list[Any]:
    found = _json(name, text)
    return found if isinstance(found, list) else [found]


def _listed(name: str, text: str) -> list[Any]:
    """A JSON list, or a text as it stands; one that begins with a bracket can be given in such a list."""
    return _ids(name, text) if text.startswith("[") else [text]


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise errors.BadInput(f"--{name} is {text!r}, which is not JSON ({error})") from error


def _content(name: str, text: str) -> str:
    """The text, or that of the file it names, without the line break at its end."""
    if not text.startswith("@"):
        return text
    try:
        return pathlib.Path(text[1:]).read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise errors.BadInput(
            f"--{name}={text} cannot be read ({reason}); @ is followed by the name of a file"
        ) from error
