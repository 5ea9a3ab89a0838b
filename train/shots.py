"""Which solved examples stand before a question? The first ones, drawn ones, or those most like it.

All three are ranks over a pool of texts, so that the prompt with k shots holds those of every smaller k. A question
never is its own shot: texts that equal it are passed over.
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence

import numpy as np

from model import errors

KINDS = ("first", "random", "nearest")
UNITS = ("word", "character")
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclasses.dataclass(frozen=True)
class Pool:
    """Texts to choose shots from.

    Attributes:
        texts: what is read of each example, as its question would have it.
        kind: `first` takes them as they stand; `random` draws them for each question anew, from (seed, number of the
            question) and nothing else; `nearest` by tf-idf, as below.
        seed: of `random`.
        unit, ngram: of `nearest`, what is compared: words, or characters, so many in a row.
    """

    texts: Sequence[str]
    kind: str = "random"
    seed: int = 0
    unit: str = "word"
    ngram: int = 1

    def choose(self, number: int, question: str, count: int) -> list[int]:
        """The places of `count` shots in the order of the prompt, whose last stands right before the question.

        That is the nearest one, or the first drawn, so that dropping the far end leaves what fewer shots would be;
        shots of kind `first` stay in their own order.

        Args:
            number: of the question, from 0.
            question: its text; a text of the pool that equals it is no shot.
        """
        if not count:
            return []
        rank = (place for place in self._rank(number, question) if self.texts[place] != question)
        chosen = [place for place, _ in zip(rank, range(count), strict=False)]
        if len(chosen) < count:
            raise errors.BadInput(
                f"question {number} has {len(chosen)} other examples to choose from, and {count} shots are asked; ask "
                "for fewer, or give a larger config.data.train"
            )
        return chosen if self.kind == "first" else chosen[::-1]

    def _rank(self, number: int, question: str) -> Iterator[int]:
        size = len(self.texts)
        if self.kind == "first":
            return iter(range(size))
        if self.kind == "random":
            order_N = np.random.default_rng([self.seed, number]).permutation(size)
        else:
            order_N = np.argsort(-self.similarities(question), kind="stable")
        return map(int, order_N)

    def similarities(self, question: str) -> np.ndarray:
        """The cosine of the tf-idf vectors of each text and the question, times the length of the question's: [N].

        Entries are count log(N / number of texts that have it) (Spärck Jones 1972; Salton and Buckley 1988): what all
        texts have, such as the words of the template, says nothing. Equal ones rank by their place.
        """
        found_N = np.zeros(len(self.texts))
        postings, weights = self._index
        for gram, count in collections.Counter(grams(question, self.unit, self.ngram)).items():
            if gram in postings:
                places, shares = postings[gram]
                found_N[places] += count * weights[gram] * shares
        return found_N

    @functools.cached_property
    def _index(self) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], dict[str, float]]:
        """Where each n-gram occurs, with its entry of the text's unit vector; and its weight."""
        counts: dict[str, dict[int, int]] = {}
        for place, text in enumerate(self.texts):
            for gram, count in collections.Counter(grams(text, self.unit, self.ngram)).items():
                counts.setdefault(gram, {})[place] = count
        weights = {gram: float(np.log(len(self.texts) / len(at))) for gram, at in counts.items()}
        squares_N = np.zeros(len(self.texts))
        postings = {}
        for gram, at in counts.items():
            places = np.fromiter(at.keys(), np.int64, len(at))
            entries = np.fromiter(at.values(), np.float64, len(at)) * weights[gram]
            squares_N[places] += entries**2
            postings[gram] = places, entries
        lengths_N = np.sqrt(np.where(squares_N > 0, squares_N, 1))
        scaled = {gram: (at, entries / lengths_N[at]) for gram, (at, entries) in postings.items()}
        return scaled, weights


def grams(text: str, unit: str, count: int) -> Iterator[str]:
    """The n-grams of a text in lower case: `count` words or characters in a row, or all of a text that has fewer."""
    text = text.lower()
    pieces: Sequence[str] = _WORD.findall(text) if unit == "word" else text
    between = " " if unit == "word" else ""
    for start in range(max(1, len(pieces) - count + 1) if pieces else 0):
        yield between.join(pieces[start : start + count])
