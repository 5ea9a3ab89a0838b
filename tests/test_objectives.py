"""Does an example teach what its objective says, and are its random numbers a function of seed, example and epoch?"""

import hashlib

import numpy as np
import pytest

from model import errors
from train import objectives, rows, streams

TEXT = np.array([2, 7, 11, 5, 13, 3])


def lists(example):
    return {name: array.tolist() for name, array in example.items()}


def philox(key, blocks):
    """Words of Philox-4x64-10 (Salmon et al. 2011, section 4.3), counters from 1 on as numpy has them."""
    mask, words = 2**64 - 1, []
    for counter in range(1, blocks + 1):
        x, (k0, k1) = [counter, 0, 0, 0], key
        for _ in range(10):
            one, two = 0xD2E7470EE14C6C93 * x[0], 0xCA5A826395121157 * x[2]
            x = [(two >> 64) ^ x[1] ^ k0, two & mask, (one >> 64) ^ x[3] ^ k1, one & mask]
            k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
        words += x
    return words


@pytest.mark.parametrize("place", [(0, 5, 1, "masked"), (2**40, 10**9, 0, "")])
def test_the_words_of_an_example_are_philox_under_the_hash_of_where_it_stands(place):
    digest = hashlib.sha256(" ".join(map(str, place)).encode()).digest()
    key = [int.from_bytes(digest[start : start + 8], "big") for start in (0, 8)]
    words = objectives.generator(*place).bit_generator.random_raw(12).tolist()
    assert words == philox(key, 3)


def test_the_published_vector_is_what_comes_out():
    words = objectives.generator(0, 5, 1, "masked").bit_generator.random_raw(2).tolist()
    assert words == [17492305602704688988, 11643794793694687319]
    assert str(words) in objectives.generator.__doc__


def test_seed_example_epoch_and_name_each_give_other_numbers():
    near = [(1, 2, 3, ""), (2, 2, 3, ""), (1, 3, 3, ""), (1, 2, 4, ""), (1, 2, 3, "a"), (12, 3, 3)]
    assert len({objectives.generator(*place).random() for place in near}) == len(near)


def test_a_causal_example_is_the_row_that_a_stream_of_it_alone_gives():
    stream = streams.Tokens(TEXT.astype(np.uint16), np.array([0, len(TEXT)]))
    row = rows.Packed(stream, len(TEXT) - 1)[0]
    example = objectives.causal(TEXT)
    for name, array in example.items():
        assert array.tolist() == row[name].tolist() and array.dtype == row[name].dtype


def test_a_prefix_is_seen_and_not_learnt_and_every_place_is_as_likely():
    """Of 1,000 splits of 5 tokens each of 5 places comes about 200 times; 5 deviations of 13 have odds of 3 in 1e6."""
    counts = dict.fromkeys(range(1, 6), 0)
    for number in range(1000):
        rng = objectives.generator(7, number, 0)
        found = lists(objectives.prefix(np.ones(5, np.int32), np.ones(5), rng))
        seen = sum(found["prefix"])
        assert found == {
            "prefix": [1] * seen + [0] * (5 - seen),
            "weights": [0] * (seen - 1) + [1] * (6 - seen),
        }
        counts[seen] += 1
    assert max(abs(count - 200) for count in counts.values()) < 65


def test_the_documented_prefix_of_two_documents_is_one_of_those_that_come():
    segments, weights = np.array([1, 1, 1, 1, 2, 2]), np.array([1, 1, 1, 0, 1, 1])
    found = [
        lists(objectives.prefix(segments, weights, objectives.generator(1, n, 0)))
        for n in range(100)
    ]
    assert {"prefix": [1, 1, 0, 0, 0, 0], "weights": [0, 1, 1, 0, 0, 1]} in found
    assert max(sum(each["prefix"]) for each in found) == 4


def test_only_the_answer_and_its_end_are_learnt():
    assert lists(objectives.continuation(np.array([2, 7, 8]), np.array([9, 3]))) == {
        "tokens": [2, 7, 8, 9],
        "targets": [7, 8, 9, 3],
        "weights": [0, 0, 1, 1],
    }


def test_of_a_dialogue_what_the_model_says_is_learnt_with_the_end_of_each_turn():
    turns = [([2, 40, 7], False), ([41], False), ([8, 9, 42], True)]
    turns += [([40, 5], False), ([41], False), ([6, 42], True)]
    assert lists(objectives.dialogue(turns)) == {
        "tokens": [2, 40, 7, 41, 8, 9, 42, 40, 5, 41, 6],
        "targets": [40, 7, 41, 8, 9, 42, 40, 5, 41, 6, 42],
        "weights": [0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1],
    }


def test_a_decoder_predicts_the_target_from_its_start_on():
    assert lists(objectives.pair(np.array([7, 8, 3]), np.array([9, 5, 3]), start_id=1)) == {
        "source": [7, 8, 3],
        "tokens": [1, 9, 5],
        "targets": [9, 5, 3],
        "weights": [1, 1, 1],
    }


def test_a_class_is_the_target_of_the_first_token_and_tags_of_those_that_have_one():
    assert lists(objectives.classification(np.array([2, 7, 3]), 4)) == {
        "tokens": [2, 7, 3],
        "targets": [4, 0, 0],
        "weights": [1, 0, 0],
    }
    assert lists(objectives.tagging(np.array([2, 7, 8, 3]), np.array([-1, 5, -1, 0]))) == {
        "tokens": [2, 7, 8, 3],
        "targets": [0, 5, 0, 0],
        "weights": [0, 1, 0, 1],
    }


# Five documents of sentences of 1 to 6 tokens; an id is 1000 times its document plus its place in it.
SIZES = ([3, 5, 1, 4, 6, 2, 3], [6], [2, 2, 2, 5], [4, 1], [1, 6, 3, 3, 2, 5, 4, 1, 2, 6])
DOCUMENTS = [
    np.split(1000 * number + np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    for number, sizes in enumerate(SIZES, start=1)
]
MARKS = dict(length=17, cls_id=2, sep_id=3)


def pairs(count, **more):
    """Pairs from all places, over and over, with where they begin."""
    starts = objectives.places(DOCUMENTS, MARKS["length"])
    for number in range(count):
        place = starts[number % len(starts)]
        rng = objectives.generator(3, number % len(starts), number // len(starts))
        yield place, objectives.next_sentence(DOCUMENTS, place, rng, **(MARKS | more))


def test_a_pair_is_two_stretches_of_documents_between_marks():
    cut = 0
    for (number, _), example in pairs(700):
        tokens = example["tokens"]
        (first,) = np.flatnonzero(tokens == 3)[:1]
        assert tokens[0] == 2 and tokens[-1] == 3 and (tokens == 3).sum() == 2
        assert len(tokens) <= 17
        a, b = tokens[1:first], tokens[first + 1 : -1]
        assert len(a) and len(b) and (np.diff(a) == 1).all() and (np.diff(b) == 1).all()
        assert example["types"].tolist() == [0] * (first + 1) + [1] * (len(b) + 1)
        assert example["pair_weights"].tolist() == [1] + [0] * (len(tokens) - 1)
        assert not example["pair_targets"][1:].any()
        assert a[0] // 1000 == number + 1
        if example["pair_targets"][0]:
            assert b[0] // 1000 != number + 1
        else:
            assert b[0] // 1000 == number + 1 and b[0] > a[-1]
            cut += b[0] != a[-1] + 1
    assert cut, "some are cut where they meet"


def test_half_of_the_pairs_follow_and_the_others_are_from_any_other_document():
    """Of 2,000 pairs 1,000 follow: 5 deviations of 22 have odds of 6 in 1e7. Of those that do not, each of the four
    other documents has a quarter: 5 deviations again, four times.
    """
    follows, strangers = [], []
    for number in range(2000):
        rng = objectives.generator(3, number, 0)
        place = (4, 5 * (number % 2))
        example = objectives.next_sentence(DOCUMENTS, place, rng, **MARKS, short=0.0)
        follows.append(not example["pair_targets"][0])
        strangers += [example["tokens"][-2] // 1000] * (not follows[-1])
    assert abs(sum(follows) - 1000) < 112
    counts, expected = np.bincount(strangers, minlength=6), len(strangers) / 4
    assert counts[5] == 0 and np.abs(counts[1:5] - expected).max() < 5 * (expected * 0.75) ** 0.5


def test_every_sentence_is_in_exactly_one_rows_worth():
    found = objectives.places(DOCUMENTS, 17)
    for number, sentences in enumerate(DOCUMENTS):
        starts = [first for document, first in found if document == number] + [len(sentences)]
        assert starts[0] == 0
        for start, end in zip(starts, starts[1:], strict=False):
            sizes = SIZES[number][start:end]
            assert sum(sizes[:-1]) < 14 and (sum(sizes) >= 14 or end == len(sentences))


def test_a_share_of_the_pairs_is_made_short():
    whole, short = (
        np.mean([len(example["tokens"]) for _, example in pairs(300, short=share)])
        for share in (0.0, 1.0)
    )
    assert short < whole - 2


def test_another_epoch_makes_another_example_and_the_same_one_the_same():
    make = {
        "prefix": lambda rng: objectives.prefix(np.ones(97, np.int32), np.ones(97), rng),
        "pair": lambda rng: objectives.next_sentence(DOCUMENTS, (4, 0), rng, **MARKS),
    }
    for name, one in make.items():
        again = [lists(one(objectives.generator(1, 2, epoch, name))) for epoch in (3, 3, 4)]
        assert again[0] == again[1] != again[2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda rng: objectives.dialogue([([7, 8], False), ([], True)]),
            r"^an example has no token to be learnt: its answer is empty; leave it out$",
        ),
        (
            lambda rng: objectives.tagging(np.array([7, 8]), np.array([1])),
            r"^a text of 2 tokens has 1 labels; each token needs one$",
        ),
        (
            lambda rng: objectives.next_sentence(DOCUMENTS[:1], (0, 0), rng, **MARKS),
            r"^next-sentence pairs need a second document to draw from, and there are 1$",
        ),
        (
            lambda rng: objectives.places(DOCUMENTS, 4),
            r"^a pair of 4 tokens has no room for two texts and three marks; give at least 5$",
        ),
    ],
)
def test_what_cannot_be_an_example_is_told_in_one_line(make, message):
    with pytest.raises(errors.BadInput, match=message):
        make(np.random.default_rng(0))
