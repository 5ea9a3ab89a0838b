"""How do we train a tokenizer that loses no character of a text?

SentencePiece trained on the run's own text, with identity normalisation and byte fallback, so that
`decode(encode(text))` is `text` for every Unicode string. U+2581, which SentencePiece uses for the
space, goes through its bytes.
"""

import collections
import dataclasses
import functools
import hashlib
import heapq
import io
import operator
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import sentencepiece

from model import errors, files, segmentation

FILE = "tokenizer.model"
KINDS = ("bpe", "unigram")

_SPACE = "\u2581"
_SPACE_BYTES = tuple(_SPACE.encode())
_REPLACEMENT = "\ufffd".encode()
# SentencePiece skips a training sentence with U+2585 in it, and takes U+2581 for a space.
_RESERVED = re.compile("[\u2581\u2585]")
_SENTENCE = re.compile(r"[\r\n]*[^\r\n]+")
_BREAK = re.compile(r"(?:\r?\n)+[ \t]*")
_LINE_END = re.compile(r"(?<![\r\n])\r?\n")
_BLOCK_CHARACTERS = 1 << 16
_SENTENCE_CHARACTERS = 2000
_ENCODE_CHARACTERS = 1 << 20


@dataclasses.dataclass(frozen=True)
class Trained:
    """A tokenizer of our own: text to ids and back, special ids, and the digest that names it."""

    model: bytes = dataclasses.field(repr=False)

    @functools.cached_property
    def _processor(self) -> sentencepiece.SentencePieceProcessor:
        return sentencepiece.SentencePieceProcessor(model_proto=self.model)

    @functools.cached_property
    def _bytes(self) -> tuple[bytes, ...]:
        """The UTF-8 bytes each id stands for: none for control ids, U+FFFD for unknown."""
        return tuple(_piece_bytes(self._processor, id) for id in range(self.vocab_size))

    @functools.cached_property
    def _space_ids(self) -> list[int]:
        return [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE_BYTES]

    @functools.cached_property
    def _controls(self) -> dict[str, int]:
        ids = filter(self._processor.is_control, range(self.vocab_size))
        return {self._processor.id_to_piece(id): id for id in ids}

    @functools.cached_property
    def vocab_size(self) -> int:
        """The number of ids, special ids and bytes included."""
        return self._processor.vocab_size()

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the model file, in hexadecimal."""
        return hashlib.sha256(self.model).hexdigest()

    @property
    def pad_id(self) -> int | None:
        return _or_none(self._processor.pad_id())

    @property
    def unk_id(self) -> int | None:
        return _or_none(self._processor.unk_id())

    @property
    def bos_id(self) -> int | None:
        return _or_none(self._processor.bos_id())

    @property
    def eos_id(self) -> int | None:
        return _or_none(self._processor.eos_id())

    @property
    def mask_id(self) -> int | None:
        return None

    @property
    def start_id(self) -> int | None:
        return None

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Every id that ends a text."""
        return () if self.eos_id is None else (self.eos_id,)

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        """What stands before a prompt: the begin-of-text id."""
        return () if self.bos_id is None else (self.bos_id,)

    @property
    def suffix_ids(self) -> tuple[int, ...]:
        return ()

    @property
    def files(self) -> dict[str, bytes]:
        """What `save` writes, by name."""
        return {FILE: self.model}

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """The ids of `text`, without special ids; text that looks like a special token stays text unless `special`."""
        return self.encode_batch([text], special=special)[0]

    def encode_batch(self, texts: Iterable[str], *, special: bool = False) -> list[list[int]]:
        """The ids of each text; the same as `encode` one by one, on all cores."""
        parts_by_text = [list(self._parts(text, special)) for text in texts]
        plain = [part for parts in parts_by_text for part in parts if isinstance(part, str)]
        encoded = iter(self._processor.encode(plain))
        return [
            [id for part in parts for id in (next(encoded) if isinstance(part, str) else part)]
            for parts in parts_by_text
        ]

    def chat(
        self, messages: Iterable[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> str:
        """Refuses: a tokenizer trained here has no chat template."""
        raise errors.BadInput(
            "this tokenizer was trained without a chat template; give the prompt as text, or use a chat model's"
        )

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special ids vanish, and bytes that are not UTF-8 become U+FFFD."""
        return self._join(ids).decode("utf-8", "replace")

    def reader(self) -> segmentation.Reader:
        """Decodes ids one at a time; see `tokenizer.Tokenizer`."""
        return segmentation.Bytes(lambda id: self._join([id]))

    def piece(self, id: int) -> str:
        """A printable label for figures: space as ▁, newline as ⏎, special ids as in `<s>`, lone bytes as `<0xC3>`."""
        raw = self._join([id])
        if self._processor.is_control(id) or self._processor.is_unknown(id):
            return self._processor.id_to_piece(id)
        return segmentation.label(raw)

    def raw(self, id: int, *, first: bool = False) -> bytes:
        """The bytes that an id adds to a text; the same ones where it begins it."""
        return self._join([id])

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes `tokenizer.model` into `directory`: the whole file, or nothing."""
        write_files(directory, self.files)

    def _parts(self, text: str, special: bool) -> Iterator[str | list[int]]:
        """What SentencePiece is to encode, and the ids of what it would write otherwise."""
        segmentation.check_unicode(text)
        for stretch, id in segmentation.split_at(text, self._controls if special else {}):
            for part in _parts(stretch):
                yield self._space_ids if part == _SPACE else part
            if id is not None:
                yield [id]

    def _join(self, ids: Iterable[int]) -> bytes:
        ids = np.asarray(ids if hasattr(ids, "__array__") else list(ids), dtype=np.int64).tolist()
        for id in ids:
            if not 0 <= id < self.vocab_size:
                raise errors.BadInput(
                    f"token id {id} is not in the vocabulary; ids run from 0 to {self.vocab_size - 1}"
                )
        return b"".join(map(self._bytes.__getitem__, ids))


def train(
    texts: Iterable[str],
    *,
    vocab_size: int,
    kind: str = "bpe",
    max_bytes: int = 8_000_000,
    character_coverage: float = 0.9995,
) -> Trained:
    """Trains a tokenizer on `texts`: the same texts, in any order, give the same bytes.

    `kind` is `bpe` or `unigram`. Of more than `max_bytes` of text, blocks with the smallest SHA-256 are used.
    Characters beyond `character_coverage` get no piece of their own and are written as bytes. The commonest line
    breaks with their indentation become pieces: on Python source that saves 6 % of the tokens.
    """
    if kind not in KINDS:
        raise errors.BadInput(
            f"tokenizer kind is {kind!r}{errors.nearest(kind, KINDS)}; it must be one of: {', '.join(KINDS)}"
        )
    if not 0 < character_coverage <= 1:
        raise errors.BadInput(
            f"tokenizer character_coverage is {character_coverage}; it must be above 0 and at most 1"
        )
    blocks = _sample(texts, max_bytes)
    breaks = _breaks(blocks)
    try:
        try:
            return _train(blocks, kind, vocab_size, character_coverage, breaks)
        except RuntimeError as error:
            if "smaller than required_chars" not in str(error):
                raise
            return _train(blocks, kind, vocab_size, character_coverage, breaks[:1])
    except RuntimeError as error:
        raise errors.BadInput(_complaint(str(error), vocab_size)) from error


def claims(model: bytes) -> bool:
    """Whether a SentencePiece model has the special ids and the bytes that `train` gives one, and so may be ours."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    ids = (processor.pad_id(), processor.unk_id(), processor.bos_id(), processor.eos_id())
    return ids == (0, 1, 2, 3) and processor.is_byte(processor.piece_to_id("<0x00>"))


def lossless(model: bytes) -> bool:
    """Whether spaces and line breaks survive: what sets ours apart from all published models."""
    probe = " \n\t  a " + _SPACE
    trained = Trained(model)
    return trained.decode(trained.encode(probe)) == probe


def write_files(directory: str | os.PathLike[str], contents: Mapping[str, bytes]) -> None:
    """Writes files by name into `directory`: each is complete, or as it was."""
    for name, content in contents.items():
        path = pathlib.Path(directory) / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_whole(path, operator.methodcaller("write_bytes", content))
        except OSError as error:
            raise errors.BadInput(
                f"cannot write {path}: {error.strerror or error}; free space or choose another directory"
            ) from error


def _train(
    blocks: list[str], kind: str, vocab_size: int, character_coverage: float, breaks: list[str]
) -> Trained:
    """One run of the trainer; `breaks` become pieces whatever their gain."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(sentence for block in blocks for sentence in _sentences(block)),
        model_writer=model,
        model_type=kind,
        # No text has more pieces than characters; the trainer allocates what it is asked for.
        vocab_size=min(max(vocab_size, 16), 1000 + sum(map(len, blocks))),
        character_coverage=character_coverage,
        user_defined_symbols=breaks,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        allow_whitespace_only_pieces=True,
        byte_fallback=True,
        max_sentence_length=8 * _SENTENCE_CHARACTERS,
        pad_id=0,
        unk_id=1,
        bos_id=2,
        eos_id=3,
        num_threads=1,  # 1, 2 and 4 threads give different unigram pieces
        minloglevel=2,
    )
    return Trained(model.getvalue())


def _piece_bytes(processor: sentencepiece.SentencePieceProcessor, id: int) -> bytes:
    """The UTF-8 bytes that `id` stands for."""
    if processor.is_unknown(id):
        return _REPLACEMENT
    if processor.is_control(id):
        return b""
    piece = processor.id_to_piece(id)
    if processor.is_byte(id):
        return bytes([int(piece[3:5], 16)])
    return piece.replace(_SPACE, " ").encode()


def _or_none(id: int) -> int | None:
    """SentencePiece says -1 for a special id that a model lacks."""
    return id if id >= 0 else None


def _parts(text: str) -> list[str]:
    """Cuts `text` into U+2581 alone and what lies between; long stretches also before line breaks, to bound memory."""
    parts = []
    for stretch in re.split(f"({_SPACE})", text):
        start = 0
        while len(stretch) - start > _ENCODE_CHARACTERS:
            cut = _LINE_END.search(stretch, start + _ENCODE_CHARACTERS)
            if cut is None:
                break
            parts.append(stretch[start : cut.start()])
            start = cut.start()
        parts.append(stretch[start:])
    return [part for part in parts if part]


def _sample(texts: Iterable[str], max_bytes: int) -> list[str]:
    """Blocks of the texts in the order of their SHA-256, cut off once they hold `max_bytes`."""
    heap: list[tuple[int, str, int]] = []
    total = 0
    for block in _blocks(texts):
        raw = block.encode()
        heapq.heappush(heap, (-int.from_bytes(hashlib.sha256(raw).digest()), block, len(raw)))
        total += len(raw)
        while len(heap) > 1 and total - heap[0][2] >= max_bytes:
            total -= heapq.heappop(heap)[2]
    return [block for _, block, _ in sorted(heap, reverse=True)]


def _blocks(texts: Iterable[str]) -> Iterator[str]:
    """Cuts texts into blocks of about 64 Ki characters, at line breaks where there are any."""
    for text in texts:
        start = 0
        while start < len(text):
            end = start + _BLOCK_CHARACTERS
            newline = text.rfind("\n", start + 1, end)
            if end < len(text) and newline > 0:
                end = newline
            yield text[start:end]
            start = end


def _sentences(block: str) -> Iterator[str]:
    """The lines of a block, each with the line breaks before it, free of what SentencePiece would skip."""
    for line in _SENTENCE.findall(block):
        for sentence in _RESERVED.split(line):
            for start in range(0, len(sentence), _SENTENCE_CHARACTERS):
                yield sentence[start : start + _SENTENCE_CHARACTERS]


def _breaks(blocks: Iterable[str]) -> list[str]:
    """The plain line break, then the 32 commonest line breaks with the indentation that follows."""
    counts = collections.Counter(found for block in blocks for found in _BREAK.findall(block))
    del counts["\n"]
    common = sorted(
        (found for found in counts if counts[found] >= 16),
        key=lambda found: (-counts[found], found),
    )
    return ["\n"] + [found.replace(" ", _SPACE) for found in common[:32]]


def _complaint(message: str, vocab_size: int) -> str:
    """The trainer's error in our words."""
    if found := re.search(r"size too high \(\d+\)\. Please set it to a value <= (\d+)", message):
        return (
            f"tokenizer vocab_size is {vocab_size}, but this text allows at most {found[1]}; "
            f"set vocab_size to {found[1]} or less, or give more text"
        )
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return (
            f"tokenizer vocab_size is {vocab_size}, but the bytes, special tokens and characters of this text "
            f"need at least {found[1]}; set vocab_size to {found[1]} or more"
        )
    if "sentences_.empty()" in message or "all_chars_count" in message:
        return "there is no text to train a tokenizer on; give documents that are not empty"
    reason = " ".join(message.split())
    return (
        f"SentencePiece cannot train a tokenizer of vocab_size {vocab_size} on this text: {reason}"
    )
