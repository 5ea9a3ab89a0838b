"""Are shots a function of what they should be, never the question itself, and nearest by an independent tf-idf?"""

import collections
import math

import numpy as np
import pytest

from model import errors
from train import shots

TEXTS = [
    "Where is the moon of Jupiter ?",
    "Who wrote the book of the moon ?",
    "Where is Paris ?",
    "How many moons has Jupiter , and where is the largest ?",
    "Who was Galileo ?",
    "Where is the moon of Jupiter ?",
    "How tall is the tower of Paris ?",
]


def cosines(texts, question, pieces):
    """tf-idf by its definition, one dense vector per text."""
    bags = [collections.Counter(pieces(text.lower())) for text in texts]
    known = sorted(set().union(*bags))
    weights = [math.log(len(texts) / sum(w in bag for bag in bags)) for w in known]
    vectors = np.array([[bag[w] * x for w, x in zip(known, weights, strict=True)] for bag in bags])
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    bag = collections.Counter(pieces(question.lower()))
    asked = np.array([bag[w] * x for w, x in zip(known, weights, strict=True)])
    return (vectors / np.where(lengths > 0, lengths, 1)) @ asked


@pytest.mark.parametrize(
    "unit, ngram, pieces",
    [
        ("word", 1, lambda text: text.split()),
        ("word", 2, lambda text: list(zip(text.split(), text.split()[1:], strict=False))),
        ("character", 3, lambda text: [text[i : i + 3] for i in range(len(text) - 2)]),
    ],
)
def test_nearest_is_the_cosine_of_tf_idf(unit, ngram, pieces):
    pool = shots.Pool(TEXTS, "nearest", unit=unit, ngram=ngram)
    question = "Where is the largest tower , and where the moon ?"
    expected = cosines(TEXTS, question, pieces)
    np.testing.assert_allclose(pool.similarities(question), expected, rtol=1e-12, atol=1e-12)
    best = max(range(len(TEXTS)), key=lambda i: (expected[i], -i))
    assert pool.choose(0, question, 2)[-1] == best, "the nearest stands right before the question"


def test_words_that_all_texts_share_say_nothing():
    pool = shots.Pool([f"Review: {x}" for x in ("good", "bad", "good film")], "nearest")
    assert pool.similarities("Review: awful").tolist() == [0, 0, 0]
    assert pool.choose(0, "Review: awful", 3) == [2, 1, 0], (
        "ties rank by place, from the question back"
    )


@pytest.mark.parametrize("kind", shots.KINDS)
def test_a_question_is_never_its_own_shot_nor_is_its_double(kind):
    pool = shots.Pool(TEXTS, kind)
    for number in range(31):
        chosen = pool.choose(number, TEXTS[0], 5)
        assert len(set(chosen)) == 5 and not {0, 5} & set(chosen)


def test_random_shots_depend_on_seed_and_question_number_alone():
    pool = shots.Pool(TEXTS, "random", seed=11)
    chosen = [pool.choose(number, "new", 3) for number in range(17)]
    again = [
        shots.Pool(TEXTS, "random", seed=11).choose(i, "other", 3) for i in reversed(range(17))
    ]
    assert chosen == again[::-1]
    assert len({tuple(each) for each in chosen}) > 8
    assert chosen != [shots.Pool(TEXTS, "random", seed=13).choose(i, "new", 3) for i in range(17)]


@pytest.mark.parametrize("kind", ["random", "nearest"])
def test_dropping_the_far_end_leaves_what_fewer_shots_are(kind):
    pool = shots.Pool(TEXTS, kind, seed=3)
    for number in range(7):
        assert pool.choose(number, "Where is it ?", 5)[-2:] == pool.choose(
            number, "Where is it ?", 2
        )


def test_the_first_stand_in_their_own_order():
    assert shots.Pool(TEXTS, "first").choose(7, "new", 3) == [0, 1, 2]
    assert shots.Pool(TEXTS, "first").choose(7, TEXTS[1], 3) == [0, 2, 3]
    assert shots.Pool([], "first").choose(7, "new", 0) == []


def test_a_pool_that_is_too_small_is_told():
    with pytest.raises(
        errors.BadInput,
        match=r"^question 4 has 5 other examples to choose from, and 6 shots are asked; ask for fewer, or give a "
        r"larger config.data.train$",
    ):
        shots.Pool(TEXTS, "random").choose(4, TEXTS[0], 6)


def test_grams_of_a_short_text_are_the_text():
    assert list(shots.grams("Ab", "character", 5)) == ["ab"]
    assert list(shots.grams("one, two", "word", 2)) == ["one ,", ", two"]
    assert list(shots.grams("", "word", 2)) == []
