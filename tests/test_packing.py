"""Is packing first fit, does every example get into exactly one row whole, and is a row what it was made of?"""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from model import errors
from train import packing

CAPACITY = (13, 7)
unhurried = hypothesis.settings(deadline=None, derandomize=True)
LENGTHS = strategies.lists(
    strategies.tuples(strategies.integers(0, 13), strategies.integers(1, 7)), max_size=61
)


def by_hand(lengths, capacity, open_rows):
    """First fit one row at a time; of more than `open_rows` rows with room for any example, the oldest is shut."""
    least = [min(each) for each in zip(*lengths, strict=True)]
    rows, room, shut = [], [], set()
    for example, need in enumerate(lengths):
        fitting = [
            row
            for row in range(len(rows))
            if row not in shut and all(n <= r for n, r in zip(need, room[row], strict=True))
        ]
        if not fitting:
            alive = [
                row
                for row in range(len(rows))
                if row not in shut and all(m <= r for m, r in zip(least, room[row], strict=True))
            ]
            if len(alive) == open_rows:
                shut.add(alive[0])
            fitting = [len(rows)]
            rows.append([])
            room.append(list(capacity))
        rows[fitting[0]].append(example)
        room[fitting[0]] = [r - n for r, n in zip(room[fitting[0]], need, strict=True)]
    return rows


def rows_of(bins):
    return [bins[row].tolist() for row in range(len(bins))]


@unhurried
@hypothesis.given(lengths=LENGTHS, sides=strategies.sampled_from([1, 2]))
def test_rows_are_those_of_first_fit_one_example_at_a_time(lengths, sides):
    lengths = [each[-sides:] for each in lengths]
    for open_rows in (1, 3, packing.OPEN):
        bins = packing.first_fit(
            np.array(lengths).reshape(-1, sides), CAPACITY[-sides:], open_rows=open_rows
        )
        assert rows_of(bins) == by_hand(lengths, CAPACITY[-sides:], open_rows)


@unhurried
@hypothesis.given(lengths=LENGTHS)
def test_each_example_is_in_one_row_and_no_row_holds_too_much(lengths):
    bins = packing.first_fit(np.array(lengths).reshape(-1, 2), CAPACITY)
    rows = rows_of(bins)
    assert sorted(example for row in rows for example in row) == list(range(len(lengths)))
    for row in rows:
        assert row == sorted(row)
        assert all(sum(lengths[i][side] for i in row) <= CAPACITY[side] for side in (0, 1))
    places = len(rows) * sum(CAPACITY)
    assert bins.efficiency == (sum(map(sum, lengths)) / places if rows else 0)


def test_a_later_small_example_fills_the_first_row_that_has_room():
    bins = packing.first_fit(np.array([5, 5, 3, 2, 1]), [7])
    assert rows_of(bins) == [[0, 3], [1, 4], [2]]
    assert bins.efficiency == 16 / 21
    with pytest.raises(IndexError):
        bins[3]


def test_what_is_too_long_is_dropped_or_cut_and_counted():
    lengths = np.array([[3, 2], [14, 1], [13, 9], [1, 7]])
    bins = packing.first_fit(lengths, CAPACITY, too_long="drop")
    assert sorted(bins.order) == [0, 3] and (bins.dropped, bins.truncated) == (2, 0)
    assert bins.tokens == 13
    bins = packing.first_fit(lengths, CAPACITY, too_long="truncate")
    assert sorted(bins.order) == [0, 1, 2, 3] and (bins.dropped, bins.truncated) == (0, 2)
    assert bins.tokens == 5 + 14 + 20 + 8


@pytest.mark.parametrize(
    ("lengths", "capacity", "more", "message"),
    [
        (
            [[3, 2], [14, 9]],
            CAPACITY,
            {},
            r"^example 1 .* has 14 source tokens, and a row holds 13; raise config.data.source_length, or set .*'trunc",
        ),
        (
            [[3, 8]],
            CAPACITY,
            {},
            r"^example 0 .* has 8 tokens, and a row holds 7; raise config.data.length,",
        ),
        (
            [3, 6],
            [5],
            {},
            r"^example 1 .* has 6 tokens, and a row holds 5; raise config.data.length,",
        ),
        (
            [3],
            [5],
            {"too_long": "cut"},
            r"^too_long is 'cut'.*; known: refuse, drop, truncate$",
        ),
        ([3], [0], {}, r"^row length is 0; it must be at least 1$"),
        ([3], [5], {"open_rows": 0}, r"^open_rows is 0; it must be at least 1$"),
    ],
)
def test_what_cannot_be_packed_is_told_in_one_line(lengths, capacity, more, message):
    with pytest.raises(errors.BadInput, match=message):
        packing.first_fit(np.array(lengths), capacity, **more)


def test_a_row_is_its_examples_in_order_and_then_padding():
    examples = [
        {"tokens": np.array([7, 8]), "weights": np.array([0.0, 1.0])},
        {"tokens": np.array([9, 7, 5]), "weights": np.array([1.0, 1.0, 1.0])},
    ]
    row = packing.assemble(examples, 7)
    assert {name: array.tolist() for name, array in row.items()} == {
        "tokens": [7, 8, 9, 7, 5, 0, 0],
        "weights": [0, 1, 1, 1, 1, 0, 0],
        "segments": [1, 1, 2, 2, 2, 0, 0],
    }
    assert {name: str(array.dtype) for name, array in row.items()} == {
        "tokens": "int32",
        "weights": "float32",
        "segments": "int32",
    }


def test_a_row_of_pairs_numbers_both_sides_alike():
    examples = [
        {"source": np.array([5]), "tokens": np.array([7, 8])},
        {"source": np.array([6, 4, 3]), "tokens": np.array([9])},
    ]
    row = packing.assemble(examples, 5, 7)
    assert row["source"].tolist() == [5, 6, 4, 3, 0, 0, 0]
    assert row["source_segments"].tolist() == [1, 2, 2, 2, 0, 0, 0]
    assert row["tokens"].tolist() == [7, 8, 9, 0, 0]
    assert row["segments"].tolist() == [1, 1, 2, 0, 0]


def test_an_example_that_was_to_be_truncated_is_cut_at_its_end_and_two_never_overlap():
    long = {"tokens": np.arange(1, 12), "weights": np.ones(11)}
    row = packing.assemble([long], 7)
    assert row["tokens"].tolist() == list(range(1, 8)) and row["segments"].tolist() == [1] * 7
    with pytest.raises(ValueError, match="14 tokens of 'tokens' are more than the row's 7"):
        packing.assemble([long, long], 7)
