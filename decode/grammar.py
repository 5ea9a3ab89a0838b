"""Which tokens may come next, if the completion is to match a regular expression, a JSON schema or a grammar?

The rules are followed by llguidance, byte by byte along a trie of the vocabulary. Nothing is forced: every way to
cut a matching text into tokens stays open, so what is left of the model's distribution is its own.
"""

import dataclasses
import functools
import importlib
import json
import re
from typing import Any

import numpy as np

from decode import checks, spelling
from decode.settings import Settings
from decode.spelling import Vocabulary
from model import errors
from model.tokenizer import Tokenizer

# Otherwise llguidance lets through one way only to cut bytes that must come.
_NOTHING_FORCED = '%llguidance {"no_forcing": true}'
# A model that has found its way into blanks may stay there for ever.
_BLANKS = "[ \\n\\r\\t]{1,20}"
_END = b"\xff<end>"  # \xff marks a special token
_SHOWN = 60


@dataclasses.dataclass(frozen=True)
class Constraint:
    """A rule that completions over a vocabulary follow; `start` begins one.

    Attributes:
        name: the setting that asks for it.
        prototype: an llguidance matcher that has seen nothing.
        size: of the vocabulary.
        firsts: the ids that begin a text with other bytes than they continue one with; behind the vocabulary,
            in the same order, the trie has them once more, and then the end.
        ends: the ids that end a completion.
    """

    name: str
    prototype: Any = dataclasses.field(repr=False)
    size: int
    firsts: tuple[int, ...] = dataclasses.field(repr=False)
    ends: tuple[int, ...]

    def start(self) -> "Matcher":
        """A matcher for one completion."""
        return Matcher(self)


class Matcher:
    """Where one completion stands: `mask` says what may come, `advance` takes what came."""

    def __init__(self, constraint: Constraint):
        self._constraint = constraint
        self._at = constraint.prototype.deep_copy()
        self._first = True
        self._allowed: np.ndarray | None = None
        self._done = False

    def mask(self) -> np.ndarray:
        """Which tokens may come next, bool [V]: the ends where the text may stop, nothing where it cannot go on."""
        if self._allowed is None:
            self._allowed = self._look()
        return self._allowed

    @property
    def done(self) -> bool:
        """Whether the text is complete, and nothing but an end may follow."""
        self.mask()
        return self._done

    def advance(self, token: int) -> None:
        """Takes the next token, which may be an end."""
        if not self.mask()[token]:
            raise errors.BadInput(
                f"token {token} came where {self._constraint.name} does not allow it; "
                "leave out settings that force tokens"
            )
        if token not in self._constraint.ends:
            firsts = self._constraint.firsts if self._first else ()
            place = self._constraint.size + firsts.index(token) if token in firsts else token
            self._at.consume_token(place)
            self._first, self._allowed = False, None
            return
        self._allowed = np.zeros_like(self._allowed)
        self._allowed[list(self._constraint.ends)] = True
        self._done = True

    def _look(self) -> np.ndarray:
        size, firsts = self._constraint.size, list(self._constraint.firsts)
        packed = np.frombuffer(self._at.compute_bitmask(), np.uint8)
        if self._at.is_error():  # of a grammar that grew too large to follow
            return np.zeros(size, bool)
        bits = np.unpackbits(packed, bitorder="little").astype(bool)
        allowed = bits[:size].copy()
        if self._first:
            allowed[firsts] = bits[size : size + len(firsts)]
        may_end, ends = bits[size + len(firsts)], list(self._constraint.ends)
        allowed[ends] = False
        self._done = bool(may_end and not allowed.any())
        allowed[ends] = may_end
        return allowed


def compile(words: Tokenizer, size: int, ends: tuple[int, ...], settings: Settings) -> Constraint:
    """The constraint of settings that have one.

    Args:
        words: the tokenizer.
        size: of the model's vocabulary.
        ends: the ids that end a completion; they are allowed where the text may stop, and nowhere else.
        settings: with `regex`, `json_schema` or `grammar`.

    Raises:
        BadInput: when it does not parse, or no token of the vocabulary begins a text that matches.
    """
    name = next(name for name in checks.CONSTRAINTS if getattr(settings, name) is not None)
    text = getattr(settings, name)
    prototype, firsts = _compiled(spelling.of(words, size), name, text)
    constraint = Constraint(name, prototype, size, firsts, ends)
    start = constraint.start()
    if not start.mask().any() and not start.done:
        raise errors.BadInput(
            f"{name} {_short(text)} matches no text that this tokenizer can begin; correct it"
        )
    return constraint


@functools.lru_cache(maxsize=64)
def _compiled(vocabulary: Vocabulary, name: str, text: str) -> tuple[Any, tuple[int, ...]]:
    """A matcher at its start, and the ids that begin a text in their own way."""
    library = _library(name)
    rule = library.LLMatcher.grammar_from_lark(_lark(library, name, text))
    if complaint := library.LLMatcher.validate_grammar(rule):
        raise errors.BadInput(
            f"{name} {_short(text)} cannot be used: {_reason(complaint, name)}; correct it"
        )
    trie, firsts = _trie(vocabulary, library)
    prototype = library.LLMatcher(trie, rule, log_level=0)
    if prototype.is_error():
        raise errors.BadInput(
            f"{name} {_short(text)} cannot be used: {_reason(prototype.get_error(), name)}; correct it"
        )
    return prototype, firsts


def _lark(library: Any, name: str, text: str) -> str:
    """The rule in llguidance's dialect of Lark."""
    if name == "grammar":
        return f"{text}\n{_NOTHING_FORCED}"
    if name == "regex":
        if (len(text) - len(text.rstrip("\\"))) % 2:
            raise errors.BadInput(
                f"regex {_short(text)} cannot be used: it ends in a backslash that escapes nothing; correct it"
            )
        rule = f"/{library.regex_to_lark(text, '')}/"
    else:
        rule = f"%json {json.dumps(_schema(text))}"
    return f"{_NOTHING_FORCED}\nstart: {rule}"


def _schema(text: str) -> Any:
    """The schema, with blanks between its tokens bounded unless it says otherwise."""
    try:
        schema = json.loads(text)
    except json.JSONDecodeError as error:
        raise errors.BadInput(
            f"json_schema {_short(text)} is not JSON ({error}); correct it"
        ) from error
    blanks = {"x-guidance": {"whitespace_pattern": _BLANKS}}
    if schema is True:
        return blanks
    return {**blanks, **schema} if isinstance(schema, dict) else schema


@functools.lru_cache(maxsize=4)
def _trie(vocabulary: Vocabulary, library: Any) -> tuple[Any, tuple[int, ...]]:
    """The vocabulary as llguidance walks it, and the ids that stand in it twice."""
    inside, first = (spelling.table(vocabulary, first) for first in (False, True))
    firsts = tuple(id for id, raw in enumerate(first) if raw != inside[id])
    tokens = [*inside, *(first[id] for id in firsts), _END]
    wrapper = library.TokenizerWrapper(_Tokens(tokens))
    return library.LLTokenizer(wrapper), firsts


class _Tokens:
    """What llguidance asks of a tokenizer; nothing is forced, so it never has a text cut into tokens."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes]):
        self.tokens = tokens
        self.eos_token_id = len(tokens) - 1
        self.special_token_ids = [self.eos_token_id]

    def __call__(self, text: bytes) -> list[int]:
        return []


def _library(name: str) -> Any:
    try:
        return importlib.import_module("llguidance")
    except ImportError as error:
        raise errors.BadInput(
            f"{name} needs llguidance, which is not installed; pip install 'ganymede[grammar]'"
        ) from error


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…")


def _reason(complaint: str, name: str) -> str:
    """The library's complaint in one line, with the place where the person wrote a grammar."""
    first = complaint.strip().split("\n")[0]
    place = re.match(r"(?:at )?(\d+)\((\d+)\): ", first)
    reason = first[place.end() :] if place else first
    if deeper := re.findall(r"^error: (.+)$", complaint, re.MULTILINE):
        reason = deeper[-1]
    reason = re.sub(r"^failed to compile JSON schema: ", "", reason)
    where = f"line {place[1]}, column {place[2]}: " if place and name == "grammar" else ""
    return where + reason
