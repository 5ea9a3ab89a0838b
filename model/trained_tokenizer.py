"""How does a tokenizer of our own lose no character of a text?

A SentencePiece model with identity normalisation and byte fallback (`model/tokenizer_training.py`), so that
`decode(encode(text))` is `text` for every Unicode string. U+2581, which SentencePiece uses for the
space, goes through its bytes.
"""

import dataclasses
import functools
import hashlib
import operator
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import sentencepiece

from model import chat, errors, files, segmentation

FILE = "tokenizer.model"
FIXED = ("<pad>", "<unk>", "<s>", "</s>")  # ids 0 to 3
MASK = "<mask>"

SPACE = "\u2581"
_SPACE_BYTES = tuple(SPACE.encode())
_REPLACEMENT = "\ufffd".encode()
_LINE_END = re.compile(r"(?<![\r\n])\r?\n")
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
    def _hiding(self) -> set[int]:
        """The ids that stand for hidden pieces: where pieces begin with a space, they have hidden it too."""
        spaced = any(len(raw) > 1 and raw.startswith(b" ") for raw in self._bytes)
        said = {*FIXED, *chat.SPECIAL}
        return {id for piece, id in self._controls.items() if spaced and piece not in said}

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
        """The id of `<mask>`, where it was trained in."""
        return self._controls.get(MASK)

    @property
    def start_id(self) -> int | None:
        return None

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Every id that ends a text; the end of a turn is one, where turns were trained in."""
        ends = (self.eos_id, self._controls.get(chat.END))
        return tuple(id for id in ends if id is not None)

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
        """`messages` between the special tokens of their roles, as `chat.OWN` writes them, where it has those."""
        if not self._controls.keys() >= set(chat.SPECIAL):
            raise errors.BadInput(
                f"this tokenizer was trained without the special tokens of a chat ({' '.join(chat.SPECIAL)}); give the "
                "prompt as text, or use a chat model's"
            )
        return chat.render(
            chat.OWN, messages, add_generation_prompt=add_generation_prompt, tokens=chat.TOKENS
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
            if id in self._hiding:
                stretch = stretch.removesuffix(" ")
            for part in _parts(stretch):
                yield self._space_ids if part == SPACE else part
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


def claims(model: bytes) -> bool:
    """Whether a SentencePiece model has the special ids and the bytes that `train` gives one, and so may be ours."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    ids = (processor.pad_id(), processor.unk_id(), processor.bos_id(), processor.eos_id())
    return ids == (0, 1, 2, 3) and processor.is_byte(processor.piece_to_id("<0x00>"))


def lossless(model: bytes) -> bool:
    """Whether spaces and line breaks survive: what sets ours apart from all published models."""
    probe = " \n\t  a " + SPACE
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


def _piece_bytes(processor: sentencepiece.SentencePieceProcessor, id: int) -> bytes:
    """The UTF-8 bytes that `id` stands for."""
    if processor.is_unknown(id):
        return _REPLACEMENT
    if processor.is_control(id):
        return b""
    piece = processor.id_to_piece(id)
    if processor.is_byte(id):
        return bytes([int(piece[3:5], 16)])
    return piece.replace(SPACE, " ").encode()


def _or_none(id: int) -> int | None:
    """SentencePiece says -1 for a special id that a model lacks."""
    return id if id >= 0 else None


def _parts(text: str) -> list[str]:
    """Cuts `text` into U+2581 alone and what lies between; long stretches also before line breaks, to bound memory."""
    parts = []
    for stretch in re.split(f"({SPACE})", text):
        start = 0
        while len(stretch) - start > _ENCODE_CHARACTERS:
            cut = _LINE_END.search(stretch, start + _ENCODE_CHARACTERS)
            if cut is None:
                break
            parts.append(stretch[start : cut.start()])
            start = cut.start()
        parts.append(stretch[start:])
    return [part for part in parts if part]
