"""How do published vocabularies cut text into ids, and how do ids become text one at a time?

Two segmenters: `Fast` runs what the `tokenizers` library runs (BPE, WordPiece, unigram), `Pieces` a SentencePiece
model with the tokens that were added to it. Each decodes in one go and through a reader that takes one id at a time.
"""

import codecs
import functools
import json
import re
from collections.abc import Callable, Iterator
from typing import Protocol

import sentencepiece
import tokenizers

from model import errors

SPACE = "\u2581"

_LABELS = {" ": SPACE, "\n": "⏎", "\r": "␍", "\t": "⇥"}
_BYTE = re.compile("<0x[0-9A-F]{2}>")
# A second normalizer_spec, which protobuf merges into the first: add_dummy_prefix = false.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


def _each_byte(error: UnicodeError) -> tuple[str, int]:
    """U+FFFD once for each byte that is no UTF-8, as SentencePiece writes it; Python has one per broken character."""
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error("ganymede-each-byte", _each_byte)


class Reader(Protocol):
    """Takes ids one at a time; the texts joined are the text of all ids, and no character comes in halves."""

    def push(self, id: int) -> str: ...

    def flush(self) -> str: ...


class Segmenter(Protocol):
    """Text to ids and back, for ids inside the vocabulary; `special` holds the ids that have no text."""

    vocab_size: int
    special: frozenset[int]

    def encode_batch(self, texts: list[str], special: bool) -> list[list[int]]: ...

    def decode(self, ids: list[int]) -> str: ...

    def reader(self) -> Reader: ...

    def piece(self, id: int) -> str: ...

    def raw(self, id: int, first: bool) -> bytes: ...

    def content(self, id: int) -> str | None: ...

    def id_of(self, content: str) -> int | None: ...

    def framing(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None: ...


def check_unicode(text: str) -> None:
    """Refuses what no tokenizer can take."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise errors.BadInput(
            f"text holds the lone surrogate U+{code:04X} at character {error.start}, "
            "which is not Unicode text; remove it"
        ) from error


def split_at(text: str, ids: dict[str, int]) -> Iterator[tuple[str, int | None]]:
    """Cuts `text` at the tokens of `ids`, the longest first: each stretch, with the id that follows it or None.

    >>> list(split_at("a<s>b", {"<s>": 1}))
    [('a', 1), ('b', None)]
    """
    stretches = [text]
    if ids:
        longest_first = sorted(ids, key=len, reverse=True)
        stretches = re.split(f"({'|'.join(map(re.escape, longest_first))})", text)
    for number in range(0, len(stretches), 2):
        behind = stretches[number + 1 : number + 2]
        yield stretches[number], ids[behind[0]] if behind else None


def label(raw: bytes) -> str:
    """Bytes as they can be drawn: space as ▁, newline as ⏎, what is no whole character as `<0xC3>`."""
    return "".join(map(_visible, raw.decode("utf-8", "surrogateescape")))


def _visible(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"<0x{ord(character) - 0xDC00:02X}>"
    visible = character if character.isprintable() else character.encode("unicode_escape").decode()
    return _LABELS.get(character, visible)


class Bytes:
    """A reader for tokenizers in which every id stands for some bytes, whatever its neighbours."""

    def __init__(self, bytes_of: Callable[[int], bytes]):
        self._bytes_of = bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        return self._decoder.decode(self._bytes_of(id))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class Fast:
    """What the `tokenizers` library does with a `tokenizer.json`; its special tokens in a text stay text by default.

    WordPiece is the exception: a literal `[MASK]` in a text is the mask, as in the original BERT.
    """

    def __init__(self, definition: tokenizers.Tokenizer):
        definition.no_truncation()
        definition.no_padding()
        written = definition.to_str()
        layout = json.loads(written)
        self._parsing = definition
        self._plain = tokenizers.Tokenizer.from_str(written)
        self._plain.encode_special_tokens = layout["model"].get("type") != "WordPiece"
        decoder = json.dumps(layout["decoder"])
        self.has_byte_pieces = "ByteFallback" in decoder
        self._is_byte_level = (layout["decoder"] or {}).get("type") == "ByteLevel"
        added = definition.get_added_tokens_decoder()
        self._added = {id: token.content for id, token in added.items()}
        self._pieces = {id: piece for piece, id in definition.get_vocab(True).items()}
        self.vocab_size = max(self._pieces, default=-1) + 1
        self.special = frozenset(id for id, token in added.items() if token.special)

    def encode_batch(self, texts: list[str], special: bool) -> list[list[int]]:
        chosen = self._parsing if special else self._plain
        return [found.ids for found in chosen.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: list[int]) -> str:
        return self._plain.decode(ids, skip_special_tokens=True)

    def reader(self) -> Reader:
        if not self._is_byte_level:
            return Window(self)
        return Bytes(lambda id: self._bytes_of.get(id, b""))

    @functools.cached_property
    def _bytes_of(self) -> dict[int, bytes]:
        """The bytes of each id that has text, where the decoder is of the byte level."""
        return {
            id: _alphabet_bytes(piece)
            for id, piece in self._pieces.items()
            if id not in self.special
        }

    def piece(self, id: int) -> str:
        content = self.content(id)
        if content is None:
            return f"<unused {id}>"
        if self._is_byte_level and id not in self._added:
            return label(self._bytes_of.get(id, b"")) or content
        return label(content.encode())

    def raw(self, id: int, first: bool) -> bytes:
        """What the decoder makes of an id alone, or behind a letter."""
        content = self.content(id)
        if content is None or id in self.special:
            return b""
        if self._is_byte_level:
            return self._bytes_of.get(id, b"")
        if self.has_byte_pieces and _BYTE.fullmatch(content):
            return _piece_bytes(content)[0]
        before = [] if first else self._letter
        return self.decode([*before, id])[len(self.decode(before)) :].encode()

    @functools.cached_property
    def _letter(self) -> list[int]:
        """An id whose text is letters whatever stands beside it."""
        plain = (id for id in self._pieces if id not in self.special and id not in self._added)
        return [next(id for id in plain if self.decode([id]).isalpha())]

    def content(self, id: int) -> str | None:
        """The entry of the vocabulary, as it is written there."""
        return self._pieces.get(id)

    def id_of(self, content: str) -> int | None:
        return self._plain.token_to_id(content)

    def framing(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """What the post-processor puts before and behind a text, or None where there is no post-processor."""
        if self._parsing.post_processor is None:
            return None
        framed = self._parsing.encode("a")
        inner = [
            place for place, sequence in enumerate(framed.sequence_ids) if sequence is not None
        ]
        first, last = (inner[0], inner[-1] + 1) if inner else (len(framed.ids),) * 2
        return tuple(framed.ids[:first]), tuple(framed.ids[last:])


class Window:
    """A reader for any decoder of the `tokenizers` library: what a longer text adds to a shorter one.

    The last ids shown stay as context, because decoders treat a first id in their own way. Ids wait while the text
    could still change: behind half a character, and behind a byte piece, since one broken byte changes its whole run.
    """

    def __init__(self, segmenter: Fast):
        self._segmenter = segmenter
        self._context: list[int] = []
        self._waiting: list[int] = []

    def push(self, id: int) -> str:
        if id in self._segmenter.special:
            return ""
        self._waiting.append(id)
        if self._segmenter.has_byte_pieces and _BYTE.fullmatch(self._segmenter.content(id) or ""):
            return ""
        return self._show(final=False)

    def flush(self) -> str:
        return self._show(final=True)

    def _show(self, final: bool) -> str:
        before = self._segmenter.decode(self._context)
        after = self._segmenter.decode(self._context + self._waiting)
        if len(after) <= len(before) or (after.endswith("\ufffd") and not final):
            return ""
        # Spaces alone are no context: a decoder may drop them at the start.
        has_text = bool(self._segmenter.decode(self._waiting).strip())
        self._context = self._waiting if has_text else self._context + self._waiting
        self._waiting = []
        return after[len(before) :]


class Pieces:
    """A SentencePiece model with the tokens added to it.

    `vocabulary` gives the ids of pieces where they are not SentencePiece's own (Marian); `target` is the model that
    decodes where it is another. `added` holds further tokens; those in `special` have no text, and are found in a
    text only when asked for. `prefix_each` repeats the space before a text behind each of them.
    """

    def __init__(
        self,
        source: sentencepiece.SentencePieceProcessor,
        target: sentencepiece.SentencePieceProcessor,
        vocabulary: dict[str, int] | None,
        added: dict[str, int],
        special: frozenset[int],
        prefix_each: bool,
    ):
        self._source = source
        self._target = target
        self._vocabulary = vocabulary
        self._added = added
        self.special = special
        self._prefix_each = prefix_each
        known = vocabulary
        if known is None:
            known = {source.id_to_piece(id): id for id in range(source.vocab_size())}
        self._pieces = {id: piece for piece, id in (known | dict(added)).items()}
        self._ids = {piece: id for id, piece in self._pieces.items()}
        self.vocab_size = max(self._pieces, default=-1) + 1

    @functools.cached_property
    def _inner(self) -> sentencepiece.SentencePieceProcessor:
        """Encodes what stands behind a special token."""
        if self._prefix_each:
            return self._source
        model = self._source.serialized_model_proto() + _NO_DUMMY_PREFIX
        return sentencepiece.SentencePieceProcessor(model_proto=model)

    @functools.cached_property
    def _specials(self) -> dict[str, int]:
        return {self._pieces[id]: id for id in self.special if id in self._pieces}

    @functools.cached_property
    def _always(self) -> dict[str, int]:
        return {content: id for content, id in self._added.items() if id not in self.special}

    @functools.cached_property
    def text_of(self) -> dict[int, tuple[bytes, bool]]:
        """The bytes of each id that has text, and whether it is a lone byte."""
        added = set(self._added.values())
        return {
            id: (piece.encode(), False) if id in added else _piece_bytes(piece)
            for id, piece in self._pieces.items()
            if id not in self.special
        }

    @functools.cached_property
    def strips(self) -> tuple[bool, bool]:
        """Whether the decoder drops a space at the start of a text, and whether it goes on dropping."""
        dummy_prefix = self._target.normalize("a").startswith(SPACE)
        no_extra = not self._target.normalize("a ").endswith(SPACE)
        return dummy_prefix or no_extra, no_extra

    def encode_batch(self, texts: list[str], special: bool) -> list[list[int]]:
        cut = self._always | (self._specials if special else {})
        return [self._encode(text, cut) for text in texts]

    def _encode(self, text: str, cut: dict[str, int]) -> list[int]:
        ids: list[int] = []
        for stretch, behind in split_at(text, cut):
            ids += self._encode_stretch(self._inner if ids else self._source, stretch)
            ids += [] if behind is None else [behind]
        return ids

    def _encode_stretch(
        self, processor: sentencepiece.SentencePieceProcessor, text: str
    ) -> list[int]:
        if self._vocabulary is None:
            return processor.encode(text)
        unknown = self._vocabulary["<unk>"]
        code = re.match(">>.*?<<", text)
        head = [code[0]] if code and code[0] in self._vocabulary else []
        pieces = processor.encode(text.removeprefix("".join(head)), out_type=str)
        return [self._vocabulary.get(piece, unknown) for piece in head + pieces]

    def decode(self, ids: list[int]) -> str:
        reader = self.reader()
        return "".join(map(reader.push, ids)) + reader.flush()

    def reader(self) -> Reader:
        return PieceReader(self)

    def piece(self, id: int) -> str:
        content = self.content(id)
        if content is None:
            return f"<unused {id}>"
        return label(content.encode())

    def raw(self, id: int, first: bool) -> bytes:
        """The bytes of a piece; without its space where it begins a text and SentencePiece drops that."""
        raw, is_byte = self.text_of.get(id, (b"", True))
        dropped = first and self.strips[0] and not is_byte and raw.startswith(b" ")
        return raw[1:] if dropped else raw

    def content(self, id: int) -> str | None:
        """The entry of the vocabulary, as it is written there."""
        return self._pieces.get(id)

    def id_of(self, content: str) -> int | None:
        return self._ids.get(content)

    def framing(self) -> None:
        """Nothing: a SentencePiece model does not say what stands around a text."""


class PieceReader:
    """A reader of SentencePiece ids: drops the space at the start of a text as SentencePiece does."""

    def __init__(self, pieces: Pieces):
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("ganymede-each-byte")
        self._strip, self._again = pieces.strips

    def push(self, id: int) -> str:
        raw, is_byte = self._pieces.text_of.get(id, (b"", True))
        if self._strip and not is_byte and raw.startswith(b" "):
            raw = raw[1:]
            self._strip = self._again
        self._strip = self._strip and not raw
        return self._decoder.decode(raw)

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


def _piece_bytes(piece: str) -> tuple[bytes, bool]:
    """The bytes of a SentencePiece piece, and whether it is a lone byte."""
    if _BYTE.fullmatch(piece):
        return bytes([int(piece[3:5], 16)]), True
    return piece.replace(SPACE, " ").encode(), False


@functools.cache
def _alphabet() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for (GPT-2's `bytes_to_unicode`)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(b): b for b in shown} | {chr(256 + n): b for n, b in enumerate(hidden)}


def _alphabet_bytes(piece: str) -> bytes:
    """The bytes of a byte-level piece; an added token that is not written in that alphabet stands for itself."""
    alphabet = _alphabet()
    if all(character in alphabet for character in piece):
        return bytes(alphabet[character] for character in piece)
    return piece.encode()
