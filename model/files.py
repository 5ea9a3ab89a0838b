"""How is a file written so that it is never half there, and how is a config.json read?"""

import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

from model import errors


def write_whole(path: pathlib.Path, fill: Callable[[pathlib.Path], Any]) -> None:
    """Lets `fill` write a neighbour of `path` and moves it there: complete or as it was, whenever we are killed."""
    partial = path.with_name(f".{path.name}-partial")
    try:
        fill(partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
    """A whole file of text, in UTF-8 and with the line ends it has."""
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8", newline="\n"))


def read_json(path: pathlib.Path, remedy: str) -> dict[str, Any]:
    """The group of keys in a JSON file; `remedy` is what a person may do when there is no such file."""
    try:
        groups = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise errors.BadInput(f"{path} cannot be read ({error.strerror}); {remedy}") from error
    except ValueError as error:
        raise errors.BadInput(
            f"{path} is not JSON ({error}); restore it, or give another directory"
        ) from error
    if not isinstance(groups, dict):
        raise errors.BadInput(
            f"{path} holds no group of keys; restore it, or give another directory"
        )
    return groups
