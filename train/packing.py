"""Which examples share a row, and what is in it? First fit of their lengths, and rows with segments."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from model import errors

TOO_LONG = ("refuse", "drop", "truncate")
OPEN = 1024  # rows that may still take an example; 1e5 examples take a second


@dataclasses.dataclass(frozen=True)
class Bins:
    """Which examples each row has; `bins[row]` are their numbers, ascending.

    Attributes:
        order: numbers of examples, row after row; `offsets` says where each row begins, and last where all end.
        capacity: tokens that a row holds, of each side.
        tokens: tokens of all that was placed, each example cut to the capacity.
        dropped, truncated: how many examples were too long, and what became of them.
    """

    order: np.ndarray
    offsets: np.ndarray
    capacity: tuple[int, ...]
    tokens: int
    dropped: int = 0
    truncated: int = 0

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return self.order[self.offsets[row] : self.offsets[row + 1]]

    @property
    def efficiency(self) -> float:
        """The share of all places in all rows, of every side, that hold a token."""
        return self.tokens / (len(self) * sum(self.capacity)) if len(self) else 0.0


def first_fit(
    lengths: np.ndarray, capacity: Sequence[int], *, too_long: str = "refuse", open_rows: int = OPEN
) -> Bins:
    """Lays each example, in order, into the first row with room for it on every side.

    A row closes when no example of all would fit. Else the oldest closes when a new one is needed and `open_rows` are
    open: up to there it is first fit exactly, and the work is bounded by examples times open rows.

    Args:
        lengths: [N] or [N, sides], tokens of each example: of a text, or of (source, text).
        capacity: what a row holds of each side.
        too_long: what becomes of an example longer than a row: it is refused, dropped, or truncated to fit.
    """
    needs, kept, dropped, truncated = _fitting(lengths, capacity, too_long)
    if open_rows < 1:
        raise errors.BadInput(f"open_rows is {open_rows}; it must be at least 1")
    rooms = np.zeros((needs.shape[1], open_rows), np.int64)
    least = needs.min(axis=0, initial=np.iinfo(np.int64).max)
    rows_of, count = [0] * open_rows, 0
    row_of = np.zeros(len(needs), np.int64)
    total = 0
    for example, need in enumerate(needs):
        fits = functools.reduce(
            np.logical_and, (room[:count] >= n for room, n in zip(rooms, need, strict=True))
        )
        slot = int(fits.argmax()) if count else 0
        if not count or not fits[slot]:
            if count == open_rows:
                count = _close(rooms, rows_of, 0, count)
            slot, count = count, count + 1
            rooms[:, slot] = capacity
            rows_of[slot] = total
            total += 1
        row_of[example] = rows_of[slot]
        rooms[:, slot] -= need
        if (rooms[:, slot] < least).any():
            count = _close(rooms, rows_of, slot, count)
    order = np.argsort(row_of, kind="stable")
    offsets = np.searchsorted(row_of[order], np.arange(total + 1))
    return Bins(kept[order], offsets, tuple(capacity), int(needs.sum()), dropped, truncated)


def assemble(
    examples: Iterable[Mapping[str, np.ndarray]], length: int, source_length: int = 0
) -> dict[str, np.ndarray]:
    """One row of its examples one behind the other, each cut to what a row holds, and padding of 0.

    Arrays named `source` or `source_...` have `source_length` places, all others `length`. `segments`, and
    `source_segments` where there is a source, count the examples from 1; positions begin again in each. For texts of
    two and three tokens and length 7, segments are `1 1 2 2 2 0 0`. Floats stay float32, all else becomes int32.
    """
    parts: dict[str, list[np.ndarray]] = {}
    for number, example in enumerate(examples, start=1):
        numbered = dict(example)
        for name, like in (("segments", "tokens"), ("source_segments", "source")):
            if like in example:
                numbered[name] = np.full(len(example[like]), number)
        for name, array in numbered.items():
            parts.setdefault(name, []).append(array[: _room(name, length, source_length)])
    row = {}
    for name, arrays in parts.items():
        joined = np.concatenate(arrays)
        room = _room(name, length, source_length)
        if len(joined) > room:
            raise ValueError(f"{len(joined)} tokens of {name!r} are more than the row's {room}")
        dtype = np.float32 if joined.dtype.kind == "f" else np.int32
        row[name] = np.zeros(room, dtype)
        row[name][: len(joined)] = joined
    return row


def _room(name: str, length: int, source_length: int) -> int:
    """Places in a row for the array of that name."""
    return source_length if name.startswith("source") else length


def _fitting(
    lengths: np.ndarray, capacity: Sequence[int], too_long: str
) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Lengths [N, sides] that fit, the numbers of those examples, and how many were dropped and truncated."""
    if too_long not in TOO_LONG:
        raise errors.BadInput(
            f"too_long is {too_long!r}{errors.nearest(too_long, TOO_LONG)}; known: {', '.join(TOO_LONG)}"
        )
    if min(capacity) < 1:
        raise errors.BadInput(f"row length is {min(capacity)}; it must be at least 1")
    needs = np.asarray(lengths, np.int64).reshape(len(lengths), len(capacity))
    over = needs > np.asarray(capacity)
    longer = over.any(axis=1)
    numbers, many = np.arange(len(needs)), int(longer.sum())
    if too_long == "truncate":
        return np.minimum(needs, capacity), numbers, 0, many
    if too_long == "drop":
        return needs[~longer], numbers[~longer], many, 0
    if many:
        first = int(longer.argmax())
        side = int(over[first].argmax())
        what, key = "tokens", "length"
        if len(capacity) > 1 and side == 0:
            what, key = "source tokens", "source_length"
        raise errors.BadInput(
            f"example {first} (counted from 0) has {needs[first, side]} {what}, and a row holds {capacity[side]}; "
            f"raise config.data.{key}, or set config.task.too_long to 'drop' or 'truncate'"
        )
    return needs, numbers, 0, 0


def _close(rooms: np.ndarray, rows_of: list[int], slot: int, count: int) -> int:
    """Takes a row from among the open ones, which stay in order; returns how many are left."""
    rooms[:, slot : count - 1] = rooms[:, slot + 1 : count].copy()
    del rows_of[slot]
    rows_of.append(0)
    return count - 1
