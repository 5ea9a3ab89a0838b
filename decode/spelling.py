"""Which bytes does each id of a vocabulary stand for? Tables, made once per tokenizer."""

import dataclasses
import functools

from model.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A tokenizer and the number of ids that a model has for it; equal where digest and size are.

    Attributes:
        digest: of the tokenizer.
        size: of the model's vocabulary; ids that the tokenizer does not have stand for nothing.
        words: the tokenizer.
    """

    digest: str
    size: int
    words: Tokenizer = dataclasses.field(compare=False, repr=False)


def of(words: Tokenizer, size: int) -> Vocabulary:
    """The vocabulary of a model with `size` ids."""
    return Vocabulary(words.digest, size, words)


@functools.lru_cache(maxsize=4)
def table(vocabulary: Vocabulary, first: bool = False) -> tuple[bytes, ...]:
    """The bytes that each id adds to a text, or begins one with."""
    words = vocabulary.words
    known = min(vocabulary.size, words.vocab_size)
    return (
        *(words.raw(id, first=first) for id in range(known)),
        *[b""] * (vocabulary.size - known),
    )
