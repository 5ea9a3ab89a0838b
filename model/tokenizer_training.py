"""How is a tokenizer of our own trained?

By SentencePiece, on the run's own text, with identity normalisation and byte fallback: what comes out loses no
character (`model/trained_tokenizer.py`).
"""

import collections
import hashlib
import heapq
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import sentencepiece

from model import errors, trained_tokenizer
from model.trained_tokenizer import Trained

KINDS = ("bpe", "unigram", "char")

# SentencePiece skips a training sentence with U+2585 in it, and takes U+2581 for a space.
_RESERVED = re.compile("[\u2581\u2585]")
_SENTENCE = re.compile(r"[\r\n]*[^\r\n]+")
_BREAK = re.compile(r"(?:\r?\n)+[ \t]*")
_BLOCK_CHARACTERS = 1 << 16
_SENTENCE_CHARACTERS = 2000


def train(
    texts: Iterable[str],
    *,
    vocab_size: int | None,
    kind: str = "bpe",
    special: Sequence[str] = (),
    max_bytes: int = 8_000_000,
    character_coverage: float = 0.9995,
) -> Trained:
    """Trains a tokenizer on `texts`: the same texts, in any order, give the same bytes.

    `kind` is `bpe`, `unigram` or `char`. `special` are further special tokens, such as `<mask>`, which stand behind the
    first four. Of more than `max_bytes` of text, blocks with the smallest SHA-256 are used. Characters beyond
    `character_coverage` get no piece of their own and are written as bytes. The commonest line breaks with their
    indentation become pieces: on Python source that saves 6 % of the tokens.

    With `char` every character is a piece: all of them without a `vocab_size`, else the commonest.
    """
    if kind not in KINDS:
        raise errors.BadInput(
            f"tokenizer kind is {kind!r}{errors.nearest(kind, KINDS)}; it must be one of: {', '.join(KINDS)}"
        )
    if not 0 < character_coverage <= 1:
        raise errors.BadInput(
            f"tokenizer character_coverage is {character_coverage}; it must be above 0 and at most 1"
        )
    check_special(special)
    blocks = _sample(texts, max_bytes)
    if kind == "char":
        return _train_characters(blocks, vocab_size, special)
    if not vocab_size:
        raise errors.BadInput(
            f"tokenizer vocab_size is {vocab_size}; kind {kind!r} needs one, such as 8192"
        )
    breaks = _breaks(blocks)
    try:
        try:
            return _train(blocks, kind, vocab_size, character_coverage, breaks, special)
        except RuntimeError as error:
            if "smaller than required_chars" not in str(error):
                raise
            return _train(blocks, kind, vocab_size, character_coverage, breaks[:1], special)
    except RuntimeError as error:
        raise errors.BadInput(_complaint(str(error), vocab_size)) from error


def check_special(special: Sequence[str]) -> None:
    """Refuses special tokens that could not be told from others."""
    for token in special:
        if not token or token.split() != [token] or trained_tokenizer.SPACE in token:
            raise errors.BadInput(
                f"special token {token!r} is empty or holds white space; give one without"
            )
        if token in trained_tokenizer.FIXED or list(special).count(token) > 1:
            raise errors.BadInput(f"special token {token} is there already; leave it out")


def _train_characters(blocks: list[str], vocab_size: int | None, special: Sequence[str]) -> Trained:
    """All characters of the text and the line break as pieces, or as many of the commonest as there is room for."""
    fewest = len(trained_tokenizer.FIXED) + 256 + len(special) + 2
    most = fewest + len(set().union(*blocks))
    if vocab_size and vocab_size < fewest:
        raise errors.BadInput(_too_few(vocab_size, fewest))
    try:
        made = _train(blocks, "char", min(vocab_size or most, most), 1.0, ["\n"], special)
    except RuntimeError as error:
        raise errors.BadInput(_complaint(str(error), vocab_size)) from error
    if vocab_size and made.vocab_size < vocab_size:
        raise errors.BadInput(_too_many(vocab_size, made.vocab_size))
    return made


def _train(
    blocks: list[str],
    kind: str,
    vocab_size: int,
    character_coverage: float,
    breaks: list[str],
    special: Sequence[str],
) -> Trained:
    """One run of the trainer; `breaks` become pieces whatever their gain."""
    model = io.BytesIO()
    # Left out where there are none: the model keeps what it was trained with, and its digest with that.
    options: dict[str, Any] = {"control_symbols": list(special)} if special else {}
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
        **options,
    )
    return Trained(model.getvalue())


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
    return ["\n"] + [found.replace(" ", trained_tokenizer.SPACE) for found in common[:32]]


def _complaint(message: str, vocab_size: int | None) -> str:
    """The trainer's error in our words."""
    if found := re.search(r"size too high \(\d+\)\. Please set it to a value <= (\d+)", message):
        return _too_many(vocab_size, int(found[1]))
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return _too_few(vocab_size, int(found[1]))
    if "sentences_.empty()" in message or "all_chars_count" in message:
        return "there is no text to train a tokenizer on; give documents that are not empty"
    reason = " ".join(message.split())
    return (
        f"SentencePiece cannot train a tokenizer of vocab_size {vocab_size} on this text: {reason}"
    )


def _too_many(vocab_size: int | None, most: int) -> str:
    return (
        f"tokenizer vocab_size is {vocab_size}, but this text allows at most {most}; "
        f"set vocab_size to {most} or less, or give more text"
    )


def _too_few(vocab_size: int | None, fewest: int) -> str:
    return (
        f"tokenizer vocab_size is {vocab_size}, but the bytes, special tokens and characters of this text "
        f"need at least {fewest}; set vocab_size to {fewest} or more"
    )
