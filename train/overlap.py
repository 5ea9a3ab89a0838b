"""Does a document repeat a part of one we must not have seen?

Documents are compared by their sequences of five words, letter case aside: exactly, without sampling, so the
answer does not depend on a seed or on the order of documents.
"""

import functools
import hashlib
import re
from collections.abc import Sequence

import numpy as np

WORDS = 5
SHARE = 0.25
VERSION = f"{WORDS} words, share {SHARE}"

# A word is a run of letters and digits; where a script puts no spaces between words, one character.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\ua4cf\uf900-\ufaff"
_WORD = re.compile(rf"[^\W{_UNSPACED}]+|[{_UNSPACED}]")
_ODD = np.uint64(0x9E3779B97F4A7C15)


class Index:
    """The five-word sequences of a set of documents, and which document each is from."""

    def __init__(self, documents: Sequence[str]):
        sequences = [_sequences(text) for text in documents]
        self._sizes = np.array([max(1, found.size) for found in sequences], np.int64)
        keys = np.concatenate([np.empty(0, np.uint64), *sequences])
        owners = np.repeat(np.arange(len(sequences)), [found.size for found in sequences])
        order = np.lexsort((owners, keys))
        self._keys, self._owners = keys[order], owners[order]

    def resembles(self, text: str, before: int | None = None) -> bool:
        """Whether SHARE of the sequences of `text` are here, or `text` holds SHARE of those of one document.

        `before` looks only at the documents that precede this number.
        """
        sequences = _sequences(text)
        first = np.searchsorted(self._keys, sequences, "left")
        counts = np.searchsorted(self._keys, sequences, "right") - first
        if not counts.any():
            return False
        asked = np.repeat(np.arange(sequences.size), counts)
        within = np.arange(asked.size) - np.repeat(np.cumsum(counts) - counts, counts)
        owners = self._owners[first[asked] + within]
        if before is not None:
            asked, owners = asked[owners < before], owners[owners < before]
        ours = np.unique(asked).size / sequences.size
        theirs = np.bincount(owners, minlength=self._sizes.size) / self._sizes
        return bool(ours >= SHARE or (theirs >= SHARE).any())


def _sequences(text: str) -> np.ndarray:
    """The distinct five-word sequences of a text as 64-bit numbers; a shorter text is one sequence."""
    words = _WORD.findall(text.lower())
    numbers = np.fromiter(map(_number, words), np.uint64, len(words))
    span = min(WORDS, len(words))
    if not span:
        return numbers
    mixed = np.zeros(len(words) - span + 1, np.uint64)
    for offset in range(span):
        mixed = mixed * _ODD + numbers[offset : offset + mixed.size]
    return np.unique(mixed)


@functools.lru_cache(maxsize=1 << 18)
def _number(word: str) -> int:
    """64 bits that name a word, the same in every process."""
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest())
