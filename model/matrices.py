"""Which axes of a weight are summed over and which are made? By its path, as the einsums of `layers.Dense` use it."""

import re
from typing import NamedTuple


class Axes(NamedTuple):
    """Which axes of a weight are summed over and which are made, counted from the end; the others count matrices."""

    summed: tuple[int, ...]
    made: tuple[int, ...]


# The matrices of a stack. Layers, experts and gates each have their own.
STACK = (
    (r"/(query|key|value)/weight$", Axes((-3,), (-2, -1))),
    (r"/(attention|cross)/out/weight$", Axes((-3, -2), (-1,))),
    (r"/(input|recurrent)/weight$", Axes((-3,), (-1,))),
    (r"/feed_forward/\w+/weight$", Axes((-2,), (-1,))),
)
TABLES = ((r"(^|/)weight$", Axes((-2,), (-1,))),)  # every other weight
# Those behind it; the vocabulary's has a row for each piece.
HEADS = (
    (r"^output/weight$", Axes((-1,), (-2,))),
    (r"^head/(dense|out)/weight$", Axes((-2,), (-1,))),
)


def dense(path: str) -> Axes | None:
    """The axes of a matrix that activations meet; None for a table that is looked up, a bias or a norm."""
    return next((axes for rule, axes in (*STACK, *HEADS) if re.search(rule, path)), None)
