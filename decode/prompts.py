"""How do prompts arrive from files and pipes? One JSON object per line, each a request."""

import contextlib
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from decode.requests import Request
from decode.settings import Settings
from model import errors

FIELDS = ("prompt", "id", "settings")


def asked(
    texts: Sequence[str] | None, path: str | None, given: Mapping[str, Any]
) -> list[tuple[str, Request]]:
    """The requests of a command line, each with the name of its settings, which is empty: they have none.

    Args:
        texts: prompts; `-` is all of standard input.
        path: of JSON lines; `-` is standard input.
        given: settings, for prompts that bring none of their own.
    """
    if texts and path:
        raise errors.BadInput("--prompt and --prompts are both given; give one of them")
    if path:
        return [("", request) for request in read(path, given)]
    settings = errors.build(Settings, given, "settings")
    prompts = [sys.stdin.read() if text == "-" else text for text in texts or ()]
    return [("", Request(prompt, settings, place)) for place, prompt in enumerate(prompts)]


def read(path: str, defaults: Mapping[str, Any]) -> list[Request]:
    """The requests in a file of JSON lines, or in standard input for `-`."""
    with _opened(path) as lines:
        return parse(lines, "standard input" if path == "-" else path, defaults)


def numbers(texts: Mapping[str, str]) -> dict[str, int | float]:
    """Settings as they stand on a command line, as numbers.

    Example: `{"top_k": "5", "temperature": "0.7"}` is `{"top_k": 5, "temperature": 0.7}`.
    """
    values: dict[str, int | float] = {}
    for name, text in texts.items():
        try:
            values[name] = int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
        except ValueError as error:
            raise errors.BadInput(
                f"--{name} is {text!r}; it must be a number, such as --{name}=1"
            ) from error
    return values


def parse(lines: Iterable[str], where: str, defaults: Mapping[str, Any]) -> list[Request]:
    """The requests of JSON lines such as `{"prompt": "Once", "id": "a", "settings": {"top_k": 5}}`.

    `prompt` is text or a list of token ids; `id` and `settings` may be left out. Settings that a line
    does not give are those of `defaults`. Empty lines are passed over.

    Raises:
        BadInput: naming the file and the line.
    """
    requests = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            requests.append(_request(line, f"{where} line {number}", defaults))
    if not requests:
        raise errors.BadInput(f'{where} has no prompts; give lines such as {{"prompt": "Once"}}')
    return requests


def _request(line: str, where: str, defaults: Mapping[str, Any]) -> Request:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise errors.BadInput(f"{where} is not JSON ({error}); correct or remove it") from error
    if not isinstance(values, dict) or "prompt" not in values:
        raise errors.BadInput(
            f'{where} is {line.strip()[:60]!r}; it must be an object with a "prompt"'
        )
    for key in values:
        if key not in FIELDS:
            raise errors.BadInput(
                f"{where} has no field {key!r}{errors.nearest(key, FIELDS)}; known: {', '.join(FIELDS)}"
            )
    given = values.get("settings", {})
    if not isinstance(given, dict):
        raise errors.BadInput(
            f"{where} has settings {given!r}; they must be an object of names and values"
        )
    settings = errors.build(Settings, {**defaults, **given}, f"{where}, settings")
    try:
        return Request(values["prompt"], settings, values.get("id"))
    except errors.BadInput as error:
        raise errors.BadInput(f"{where}: {error}") from error


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Iterable[str]]:
    try:
        if path == "-":
            yield sys.stdin
        else:
            with open(path, encoding="utf-8") as file:
                yield file
    except UnicodeDecodeError as error:
        raise errors.BadInput(
            f"{path} is not UTF-8 (byte {error.start}: {error.reason}); convert it"
        ) from error
    except OSError as error:
        raise errors.BadInput(
            f"{path} cannot be read ({error.strerror}); name a file of JSON lines"
        ) from error
