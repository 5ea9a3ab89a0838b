"""How sure is a value, and is one run better than another? Resampling of examples, from their counts.

The interval is the percentile bootstrap's (Efron 1979): the value of as many examples drawn with replacement, many
times. Two runs of the same examples are resampled together (Koehn 2004), and their difference is tested by swapping
examples between them (approximate randomisation; Noreen 1989; Riezler and Maxwell 2005). Nothing is scored again:
a draw sums the counts of its examples. K is the parts of a count (correct, all, ...), C the classes that it is of.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from decode import quality
from model import errors

DRAWS = 10_000  # an end of a 95 % interval then lies within 0.3 points of its percentile, 19 times in 20
BLOCK = 1 << 20  # weights that are held at once
SHOWN = 60  # letters of an example that a message repeats


@dataclasses.dataclass(frozen=True)
class Scores:
    """A measure of a list of examples.

    Attributes:
        references: what each example was compared with; two runs compare only where these are equal.
        counts_NKC: per example; their sum over some examples are the counts of these together.
        classes: names of the last axis; one without a name where the counts are of no classes.
        of: counts [..., K, C] to values [...]. A class that counts nothing must not change the value.
        details: what else a reader wants: the library's signature, a table per entity type.
    """

    references: tuple[Any, ...]
    counts_NKC: np.ndarray
    classes: tuple[str, ...]
    of: Callable[[np.ndarray], np.ndarray]
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def value(self) -> float:
        """Of all examples together."""
        return float(self.of(self.counts_NKC.sum(0)))

    @property
    def values_N(self) -> np.ndarray:
        """Of each example alone; not a number where it says nothing, such as a sentence without entities."""
        return self.of(self.counts_NKC)


@dataclasses.dataclass(frozen=True)
class Interval:
    """A value and the ends of its interval; None where the examples do not say."""

    value: float
    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What one run has more than another, and how often chance alone would give as much, either way."""

    difference: Interval
    p_value: float


def interval(
    scores: Scores, *, seed: int, draws: int = DRAWS, level: float = quality.LEVEL
) -> Interval:
    """The value of a measure, and between what it lies in `level` of the samples of as many examples.

    An example is what was drawn independently: give one count per document, not per token. Draws without a value
    (a sample without entities) are left out. Where all examples are alike the interval has no width, whatever the
    truth: for a share of 0 or 100 % it says nothing.
    """
    of, size = functools.partial(_values, scores), len(scores.references)
    return resampled(of, scores.value, size, seed=seed, draws=draws, level=level)


def resampled(
    of: Callable[[np.ndarray], np.ndarray],
    value: float,
    size: int,
    *,
    seed: int,
    draws: int = DRAWS,
    level: float = quality.LEVEL,
) -> Interval:
    """As `interval`, of a measure of `size` examples that no sum of counts gives, such as a correlation of ranks.

    `of` turns how often each example is in each draw, [B, N], into the value of each draw, [B].
    """
    _check(draws, level)
    values = np.concatenate([of(weights_BN) for weights_BN in _resamples(size, seed, draws)])
    return _between(value, values, size, level)


def compare(
    ours: Scores, theirs: Scores, *, seed: int, draws: int = DRAWS, level: float = quality.LEVEL
) -> Comparison:
    """What `ours` has more than `theirs` on the same examples; refuses runs whose examples differ.

    The p-value is (1 + swaps that give at least as large a difference) / (1 + draws): 1 / (1 + draws) is the least.
    """
    _check(draws, level)
    _same(ours, theirs)
    ours, theirs = _in_the_same_classes(ours, theirs)
    observed, size = ours.value - theirs.value, len(ours.references)
    drawn = [
        _values(ours, weights_BN) - _values(theirs, weights_BN)
        for weights_BN in _resamples(size, seed, draws)
    ]
    numbers = np.random.default_rng([seed, 1])
    smaller = 0
    for block in _blocks(draws, size):
        kept_BN = numbers.integers(0, 2, (block, size)).astype(float)
        one_BKC = _sums(ours, kept_BN) + _sums(theirs, 1 - kept_BN)
        other_BKC = _sums(theirs, kept_BN) + _sums(ours, 1 - kept_BN)
        # A difference that is equal but for rounding counts as large, and so does one that is not a number.
        found = np.abs(ours.of(one_BKC) - ours.of(other_BKC))
        smaller += int((found < abs(observed) * (1 - 1e-9)).sum())
    return Comparison(
        _between(observed, np.concatenate(drawn), size, level),
        (1 + draws - smaller) / (1 + draws),
    )


def _check(draws: int, level: float) -> None:
    if draws < 1 or not 0 < level < 1:
        raise errors.BadInput(
            f"there are {draws} draws for an interval of {level:g}; give at least one, and a level between 0 and 1"
        )


def _same(ours: Scores, theirs: Scores) -> None:
    if len(ours.references) != len(theirs.references):
        raise errors.BadInput(
            f"one run has {len(ours.references)} examples and the other {len(theirs.references)}; "
            "compare runs of the same examples"
        )
    for i, (one, other) in enumerate(zip(ours.references, theirs.references, strict=True)):
        if one != other:
            raise errors.BadInput(
                f"example {i} of one run is {repr(one)[:SHOWN]} and of the other {repr(other)[:SHOWN]}; "
                "compare runs of the same examples"
            )


def _in_the_same_classes(ours: Scores, theirs: Scores) -> tuple[Scores, Scores]:
    """Both with the classes of either, so that their counts add."""
    classes = tuple(dict.fromkeys((*ours.classes, *theirs.classes)))
    both = []
    for scores in (ours, theirs):
        counts_NKC = np.zeros((*scores.counts_NKC.shape[:2], len(classes)))
        counts_NKC[..., [classes.index(name) for name in scores.classes]] = scores.counts_NKC
        both.append(dataclasses.replace(scores, counts_NKC=counts_NKC, classes=classes))
    return both[0], both[1]


def _resamples(size: int, seed: int, draws: int) -> Iterator[np.ndarray]:
    """How often each of the N examples is in each draw, a block of draws at a time."""
    numbers = np.random.default_rng(seed)
    for block in _blocks(draws, size):
        places = numbers.integers(0, size, (block, size)) + size * np.arange(block)[:, None]
        yield np.bincount(places.ravel(), minlength=block * size).reshape(block, size).astype(float)


def _blocks(draws: int, size: int) -> Iterator[int]:
    most = max(1, BLOCK // size)
    for start in range(0, draws, most):
        yield min(most, draws - start)


def _sums(scores: Scores, weights_BN: np.ndarray) -> np.ndarray:
    """The counts of each draw."""
    flat = scores.counts_NKC.reshape(len(scores.references), math.prod(scores.counts_NKC.shape[1:]))
    return (weights_BN @ flat).reshape(len(weights_BN), *scores.counts_NKC.shape[1:])


def _values(scores: Scores, weights_BN: np.ndarray) -> np.ndarray:
    return scores.of(_sums(scores, weights_BN))


def _between(value: float, drawn: np.ndarray, size: int, level: float) -> Interval:
    drawn = drawn[np.isfinite(drawn)]
    if size < 2 or not np.isfinite(value) or not len(drawn):
        return Interval(value, None, None)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))
