"""Are rows cut from a stream its tokens, each a target once, with documents apart?"""

import collections

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from train import rows, streams

SIZES = strategies.lists(strategies.integers(0, 23), min_size=1, max_size=13)

# No deadline: other tests run beside these.
unhurried = hypothesis.settings(deadline=None, derandomize=True)


def tokens_of(sizes, first=4):
    """Documents of the given numbers of ids, all ids different, between bos 2 and eos 3."""
    ids, offsets = [], [0]
    for size in sizes:
        ids += [2, *range(first, first + size), 3]
        first += size
        offsets.append(len(ids))
    return streams.Tokens(np.array(ids, np.uint32), np.array(offsets))


def by_hand(tokens, length):
    """Rows one token at a time."""
    ids = tokens.ids.tolist()
    made = []
    for start in range(0, max(1, len(ids) - 1), length):
        row = {"tokens": [], "targets": [], "segments": [], "weights": []}
        segment = 1
        for at in range(start, start + length):
            real = at + 1 < len(ids)
            if real and at > start and at in tokens.offsets:
                segment += 1
            row["tokens"].append(ids[at] if real else 0)
            row["targets"].append(ids[at + 1] if real else 0)
            row["segments"].append(segment if real else 0)
            row["weights"].append(1.0 if real and at + 1 not in tokens.offsets else 0.0)
        made.append(row)
    return made


@unhurried
@hypothesis.given(sizes=SIZES, length=strategies.integers(1, 29))
def test_rows_are_those_made_one_token_at_a_time(sizes, length):
    tokens = tokens_of(sizes)
    packed = rows.Packed(tokens, length)
    expected = by_hand(tokens, length)
    assert len(packed) == len(expected)
    for index, row in enumerate(expected):
        assert {name: array.tolist() for name, array in packed[index].items()} == row
    dtypes = {name: array.dtype for name, array in packed[0].items()}
    assert dtypes == {
        "tokens": "int32",
        "targets": "int32",
        "segments": "int32",
        "weights": "float32",
    }


@unhurried
@hypothesis.given(
    sizes=SIZES,
    shape=strategies.integers(1, 29).flatmap(
        lambda t: strategies.tuples(strategies.just(t), strategies.integers(0, t - 1))
    ),
)
def test_every_token_but_bos_is_a_target_of_exactly_one_row_whatever_the_overlap(sizes, shape):
    tokens = tokens_of(sizes)
    packed = rows.Packed(tokens, *shape)
    counted = collections.Counter()
    for index in range(len(packed)):
        row = packed[index]
        counted.update(row["targets"][row["weights"] > 0].tolist())
        assert not row["weights"][row["segments"] == 0].any()
    assert counted == collections.Counter(id for id in tokens.ids.tolist() if id != 2)


def test_the_example_of_the_docstring():
    packed = rows.Packed(
        streams.Tokens(np.array([2, 7, 3, 2, 8, 3], np.uint16), np.array([0, 3, 6])), 4
    )
    assert [
        {name: array.tolist() for name, array in packed[index].items()}
        for index in range(len(packed))
    ] == [
        {
            "tokens": [2, 7, 3, 2],
            "targets": [7, 3, 2, 8],
            "segments": [1, 1, 1, 2],
            "weights": [1, 1, 0, 1],
        },
        {
            "tokens": [8, 0, 0, 0],
            "targets": [3, 0, 0, 0],
            "segments": [1, 0, 0, 0],
            "weights": [1, 0, 0, 0],
        },
    ]


def test_a_row_outside_the_stream_is_an_index_error():
    packed = rows.Packed(tokens_of([11, 13]), 7)
    for index in (-1, len(packed)):
        with pytest.raises(IndexError):
            packed[index]
