"""What would be predicted without a model? The commonest label, remembered names, or what a template says."""

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from train import metrics

Names = Mapping[tuple[str, ...], str]


def commonest(labels: Iterable[str]) -> str:
    """The label that occurs most often; of several, the first in the alphabet."""
    counts = collections.Counter(labels)
    return min(counts, key=lambda label: (-counts[label], label))


def memorise(
    sentences: Iterable[tuple[Sequence[str], Sequence[str]]],
) -> dict[tuple[str, ...], str]:
    """The names that occur in tagged sentences, with the type that each has most often."""
    found: dict[tuple[str, ...], collections.Counter] = collections.defaultdict(collections.Counter)
    for tokens, tags in sentences:
        for kind, first, last in metrics.entities(tags):
            found[tuple(tokens[first : last + 1])][kind] += 1
    return {name: commonest(kinds.elements()) for name, kinds in found.items()}


def remember(names: Names, tokens: Sequence[str]) -> list[str]:
    """Tags of a sentence: from left to right the longest name that is known, spelled alike.

    With the names `New York` (place) and `York` (person), `in New York` is `O B-place I-place`.
    """
    longest = max(map(len, names), default=0)
    tags = ["O"] * len(tokens)
    start = 0
    while start < len(tokens):
        ends = range(min(start + longest, len(tokens)), start, -1)
        end = next((end for end in ends if tuple(tokens[start:end]) in names), 0)
        if end:
            kind: Any = names[tuple(tokens[start:end])]
            tags[start:end] = [f"B-{kind}", *[f"I-{kind}"] * (end - start - 1)]
        start = end or start + 1
    return tags
