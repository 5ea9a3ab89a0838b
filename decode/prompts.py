"""How do prompts arrive from files and pipes? One JSON object per line, each a request."""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from decode.requests import Request
from decode.settings import Settings
from model import errors
from model.tokenizer import Tokenizer

FIELDS = ("prompt", "messages", "fields", "id", "settings", "reference")
WAYS = ("prompt", "messages", "fields")
Frame = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Line:
    """What a line says.

    Attributes:
        where: file and line, for messages.
        prompt: text or token ids; those of a conversation where the line has messages, and what a template makes of
            fields where it has these.
        id: if it has one.
        settings: those that the line gives.
        references: texts that a good completion would resemble.
    """

    where: str
    prompt: Any
    id: str | int | None
    settings: Mapping[str, Any]
    references: tuple[str, ...]


def asked(
    texts: Sequence[str] | None,
    path: str | None,
    given: Mapping[str, Any],
    words: Tokenizer | None = None,
    frame: Frame | None = None,
) -> list[tuple[str, Request]]:
    """The requests of a command line, each with the name of its settings, which is empty: they have none.

    Args:
        texts: prompts; `-` is all of standard input.
        path: of JSON lines; `-` is standard input.
        given: settings, for prompts that bring none of their own.
        words: the tokenizer, whose chat template lines with messages need.
        frame: what a model's task makes of a text, or of named fields: the prompt as it was trained to read one.
    """
    if texts and path:
        raise errors.BadInput("--prompt and --prompts are both given; give one of them")
    if path:
        return [("", request(line, given)) for line in read_lines(path, words, frame)]
    settings = errors.build(Settings, given, "settings")
    prompts = [sys.stdin.read() if text == "-" else text for text in texts or ()]
    framed = [frame(prompt) if frame else prompt for prompt in prompts]
    return [("", Request(prompt, settings, place)) for place, prompt in enumerate(framed)]


def read(path: str, defaults: Mapping[str, Any], words: Tokenizer | None = None) -> list[Request]:
    """The requests in a file of JSON lines, or in standard input for `-`."""
    return [request(line, defaults) for line in read_lines(path, words)]


def read_lines(path: str, words: Tokenizer | None = None, frame: Frame | None = None) -> list[Line]:
    """What the lines of a file say, or of standard input for `-`."""
    with _opened(path) as texts:
        return lines(texts, "standard input" if path == "-" else path, words, frame)


def parse(
    texts: Iterable[str], where: str, defaults: Mapping[str, Any], words: Tokenizer | None = None
) -> list[Request]:
    """The requests of JSON lines such as `{"prompt": "Once", "id": "a", "settings": {"top_k": 5}}`.

    `prompt` is text or a list of token ids, and `messages` instead of it a conversation, such as
    `[{"role": "user", "content": "Hi"}]`. `id`, `settings` and `reference` may be left out. Settings that a line
    does not give are those of `defaults`. Empty lines are passed over.

    Raises:
        BadInput: naming the file and the line.
    """
    return [request(line, defaults) for line in lines(texts, where, words)]


def lines(
    texts: Iterable[str],
    where: str,
    words: Tokenizer | None = None,
    frame: Frame | None = None,
) -> list[Line]:
    """What the lines say, before it becomes requests; a `reference` is a text or a list of texts."""
    found: list[Line] = []
    places: dict[str, int] = {}
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            continue
        line = _line(text, f"{where} line {number}", words, frame)
        if line.id is not None and (first := places.setdefault(str(line.id), number)) != number:
            raise errors.BadInput(
                f"{line.where} has id {line.id!r}, as line {first} has; give each request its own"
            )
        found.append(line)
    if not found:
        raise errors.BadInput(f'{where} has no prompts; give lines such as {{"prompt": "Once"}}')
    return found


def request(line: Line, defaults: Mapping[str, Any]) -> Request:
    """The request of a line, whose other settings are those of `defaults`."""
    name = f"{line.where}, settings"
    try:
        settings = errors.build(Settings, {**defaults, **line.settings}, name)
        return Request(line.prompt, settings, line.id)
    except errors.BadInput as error:
        if str(error).startswith(name):
            raise
        raise errors.BadInput(f"{line.where}: {error}") from error


def _line(text: str, where: str, words: Tokenizer | None, frame: Frame | None) -> Line:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise errors.BadInput(f"{where} is not JSON ({error}); correct or remove it") from error
    if not isinstance(values, dict) or not values.keys() & WAYS:
        raise errors.BadInput(
            f'{where} is {text.strip()[:60]!r}; it must be an object with a "prompt"'
        )
    for key in values:
        if key not in FIELDS:
            raise errors.BadInput(
                f"{where} has no field {key!r}{errors.nearest(key, FIELDS)}; known: {', '.join(FIELDS)}"
            )
    ways = [way for way in WAYS if way in values]
    if len(ways) > 1:
        a = {"prompt": "a prompt"}
        told = " and ".join(a.get(way, way) for way in ways)
        raise errors.BadInput(f"{where} has {told}; give one of them")
    settings = values.get("settings", {})
    if not isinstance(settings, dict):
        raise errors.BadInput(
            f"{where} has settings {settings!r}; they must be an object of names and values"
        )
    if "messages" in values:
        prompt = _said(values["messages"], where, words)
    else:
        prompt = _framed(values[ways[0]], where, frame)
    return Line(where, prompt, values.get("id"), settings, _references(values, where))


def _framed(prompt: Any, where: str, frame: Frame | None) -> Any:
    """A text or fields as the model reads them; token ids are taken as they are."""
    if isinstance(prompt, dict) and frame is None:
        raise errors.BadInput(
            f"{where} has fields, and this model has no task whose template they could fill; give a prompt"
        )
    if frame is None or not isinstance(prompt, str | dict):
        return prompt
    try:
        return frame(prompt)
    except errors.BadInput as error:
        raise errors.BadInput(f"{where}: {error}") from error


def _said(messages: Any, where: str, words: Tokenizer | None) -> list[int]:
    """The token ids of a conversation, up to where the model is to answer."""
    fits = isinstance(messages, list) and all(
        isinstance(message, dict) and {"role", "content"} <= message.keys() for message in messages
    )
    if not messages or not fits:
        raise errors.BadInput(
            f'{where} has messages {messages!r}; they must be a list of objects with "role" and "content"'
        )
    if words is None:
        raise errors.BadInput(
            f"{where} has messages, which need a tokenizer with a chat template; give token ids as its prompt"
        )
    try:
        return words.encode(words.chat(messages), special=True)
    except errors.BadInput as error:
        raise errors.BadInput(f"{where}: {error}") from error


def _references(values: Mapping[str, Any], where: str) -> tuple[str, ...]:
    reference = values.get("reference", [])
    texts = [reference] if isinstance(reference, str) else reference
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise errors.BadInput(
            f"{where} has reference {reference!r}; it must be a text or a list of texts"
        )
    return tuple(texts)


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
