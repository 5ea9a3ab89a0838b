"""How does text become token ids and back?

`load` gives the tokenizer of a directory, `train` makes a new one. Ours (`model/trained_tokenizer.py`, whole words
`model/word_tokenizer.py`) and those of published models (`model/pretrained_tokenizer.py`) stand behind one protocol.
"""

import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from model import (
    errors,
    pretrained_tokenizer,
    segmentation,
    tokenizer_files,
    tokenizer_training,
    trained_tokenizer,
    vocabulary,
    word_tokenizer,
)

FILE = trained_tokenizer.FILE
KINDS = (*tokenizer_training.KINDS, "word")
UNSIZED = ("char", "word")  # need no vocab_size


class Tokenizer(Protocol):
    """Text to ids and back, special ids, and the digest that names it.

    Attributes:
        vocab_size: the highest id the tokenizer can produce, plus one.
        prefix_ids: what stands before a prompt; `suffix_ids` what stands behind it.
        eos_ids: every id that ends a text, `eos_id` first.
        start_id: what the decoder of an encoder-decoder model begins with, where the model says it.
        digest: SHA-256 of all that makes the tokenizer, in hexadecimal.
        files: what a Hugging Face directory holds of it, by name.
    """

    @property
    def vocab_size(self) -> int: ...
    @property
    def bos_id(self) -> int | None: ...
    @property
    def eos_id(self) -> int | None: ...
    @property
    def pad_id(self) -> int | None: ...
    @property
    def unk_id(self) -> int | None: ...
    @property
    def mask_id(self) -> int | None: ...
    @property
    def start_id(self) -> int | None: ...
    @property
    def eos_ids(self) -> tuple[int, ...]: ...
    @property
    def prefix_ids(self) -> tuple[int, ...]: ...
    @property
    def suffix_ids(self) -> tuple[int, ...]: ...
    @property
    def digest(self) -> str: ...
    @property
    def files(self) -> Mapping[str, bytes]: ...

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """The ids of `text` without framing; special tokens written in it count as such only if `special`."""

    def encode_batch(self, texts: Iterable[str], *, special: bool = False) -> list[list[int]]:
        """The ids of each text; the same as `encode` one by one."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special ids vanish."""

    def piece(self, id: int) -> str:
        """A printable label for figures."""

    def raw(self, id: int, *, first: bool = False) -> bytes:
        """The bytes that an id adds to a text, or begins one with; none where it adds nothing."""

    def reader(self) -> segmentation.Reader:
        """Decodes ids one at a time; the texts joined are `decode` of all, and no character comes in halves."""

    def chat(
        self, messages: Iterable[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> str:
        """A conversation in the words of the chat template; encode it with `special=True` and without framing."""

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes what `load` needs to give the same tokenizer back."""


def prompt_ids(words: Tokenizer, text: str) -> list[int]:
    """A prompt as a model reads it: between the ids that its tokenizer puts around a text."""
    return [*words.prefix_ids, *words.encode(text), *words.suffix_ids]


def frame(words: Tokenizer) -> tuple[list[int], list[int]]:
    """What stands before and behind a text that is whole: what prompts have, else its begin and its end."""
    begin = list(words.prefix_ids) or [id for id in (words.bos_id,) if id is not None]
    return begin, list(words.suffix_ids) or [end_id(words)]


def end_id(words: Tokenizer) -> int:
    """What ends a text; refuses a tokenizer without."""
    if words.eos_id is None:
        raise errors.BadInput(
            f"tokenizer {words.digest[:16]} has no id for the end of a text; use or train another"
        )
    return words.eos_id


def decoder_start(words: Tokenizer) -> int | None:
    """What the decoder of an encoder-decoder begins with: what the model says, else the begin of a text."""
    return words.bos_id if words.start_id is None else words.start_id


def token_texts(tokens: Sequence[str]) -> list[str]:
    """Words as they stand in a text: each but the first behind a space."""
    return [token if i == 0 else f" {token}" for i, token in enumerate(tokens)]


def train(
    texts: Iterable[str],
    *,
    vocab_size: int | None = None,
    kind: str = "bpe",
    special: Sequence[str] = (),
    min_count: int = 1,
) -> Tokenizer:
    """A new tokenizer of one of `KINDS`, with `special` tokens beside the four that every one has.

    Kinds `char` and `word` take all characters or words where there is no `vocab_size`; `min_count` is of words only.
    """
    if kind == "word":
        return word_tokenizer.train(
            texts, vocab_size=vocab_size, min_count=min_count, special=special
        )
    if kind not in KINDS:
        raise errors.BadInput(
            f"tokenizer kind is {kind!r}{errors.nearest(kind, KINDS)}; it must be one of: {', '.join(KINDS)}"
        )
    if min_count != 1:
        raise errors.BadInput(
            f"tokenizer min_count is {min_count}, and kind {kind!r} counts no words; leave it out"
        )
    return tokenizer_training.train(texts, vocab_size=vocab_size, kind=kind, special=special)


def load(directory: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer in `directory`: one saved by us, or that of a Hugging Face directory, or a list of words in a file.

    A SentencePiece model is ours if it has our special ids and loses no space. One that has the ids, loses spaces and
    stands alone is refused: it claims to be ours.
    """
    directory = pathlib.Path(directory)
    if directory.is_file():
        return word_tokenizer.read(directory)
    path = directory / FILE
    if (directory / pretrained_tokenizer.FILE).is_file() or not path.is_file():
        return pretrained_tokenizer.load(directory)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise errors.BadInput(
            f"cannot read the tokenizer {path}: {error.strerror or error}; restore the file"
        ) from error
    vocabulary.load_sentencepiece(str(path), content)
    if not trained_tokenizer.claims(content):
        return pretrained_tokenizer.load(directory)
    if trained_tokenizer.lossless(content):
        return trained_tokenizer.Trained(content)
    if any(
        (directory / name).is_file()
        for name in (*tokenizer_files.KNOWN, "config.json")
        if name != FILE
    ):
        return pretrained_tokenizer.load(directory)
    raise errors.BadInput(
        f"{path} changes spaces or line breaks of a text; train a tokenizer with this package instead"
    )
