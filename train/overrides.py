"""What do `--config.group.key=value` flags change in a config?"""

import ast
import copy
from collections.abc import Iterable, Mapping
from typing import Any

from model import errors

PREFIX = "--config."


def apply(groups: Mapping[str, Any], flags: Iterable[str]) -> dict[str, Any]:
    """The groups of a config with the values of flags put in; which keys there are is for the recipe to check."""
    changed = copy.deepcopy(dict(groups))
    for flag in flags:
        path, text = split(flag)
        put(changed, path, value(text))
    return changed


def split(flag: str) -> tuple[str, str]:
    """`--config.train.steps=7` as `("train.steps", "7")`."""
    path, equals, text = flag.removeprefix(PREFIX).partition("=")
    if not equals:
        raise errors.BadInput(f"{flag} has no value; write {flag}=VALUE")
    return path, text


def put(groups: dict[str, Any], path: str, wanted: Any) -> None:
    """Sets the key at a dotted path, in place; groups that are not there are made."""
    *parents, key = path.split(".")
    group = groups
    for name in parents:
        group = group.setdefault(name, {})
        if not isinstance(group, dict):
            raise errors.BadInput(f"{PREFIX}{path}: config.{name} is {group!r}, which has no keys")
    group[key] = wanted


def value(text: str) -> Any:
    """`1e-3` as a number, `[5, 7]` as a list, `true` as True, `unigram` as text."""
    words = {"true": True, "false": False, "null": None}
    try:
        return words[text] if text in words else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
