"""Are tokens masked as BERT and RoBERTa mask them: how many, which, into what, and whole words where asked?"""

import re

import hypothesis
import numpy as np
from hypothesis import strategies

from tests import tiny
from train import corruption, objectives

SPECIAL, VOCABULARY, MASK = 5, 53, 4  # ids 0 to 4 are special
PIECES = corruption.Pieces(
    special=np.arange(VOCABULARY) < SPECIAL,
    begins=np.arange(VOCABULARY) % 3 == 0,
    ends=np.arange(VOCABULARY) % 11 == 0,
    stops=np.arange(VOCABULARY) == 7,
)
unhurried = hypothesis.settings(deadline=None, derandomize=True)
IDS = strategies.lists(strategies.integers(0, VOCABULARY - 1), max_size=67)
SEEDS = strategies.integers(0, 2**32)


class Bytes:
    """A tokenizer whose pieces are given."""

    bos_id, eos_id, pad_id, unk_id, mask_id = 0, None, None, 1, 2

    def __init__(self, raw):
        self._raw, self.vocab_size = raw, len(raw)

    def raw(self, id, *, first=False):
        return self._raw[id]


def rng(*place):
    return objectives.generator(11, *place) if place else objectives.generator(11, 0, 0)


def masks(rows, length=997, **more):
    """Many rows of ordinary ids, and what masking makes of each."""
    for number in range(rows):
        tokens = np.random.RandomState(number).randint(SPECIAL, VOCABULARY, length)
        yield tokens, corruption.masked(tokens, rng(number, 0), pieces=PIECES, mask_id=MASK, **more)


@unhurried
@hypothesis.given(ids=IDS, seed=SEEDS, whole=strategies.booleans())
def test_neither_special_tokens_nor_padding_are_masked_and_the_rest_is_kept(ids, seed, whole):
    tokens = np.array(ids, int)
    segments = (1 + np.arange(len(ids)) // 7) * (np.arange(len(ids)) < 0.7 * len(ids))
    made = corruption.masked(
        tokens,
        np.random.default_rng(seed),
        pieces=PIECES,
        mask_id=MASK,
        segments=segments,
        whole_words=whole,
    )
    chosen, open_ = made["weights"] == 1, (tokens >= SPECIAL) & (segments > 0)
    assert made["targets"].tolist() == ids and set(made["weights"]) <= {0, 1}
    assert not (chosen & ~open_).any() and chosen.any() == open_.any()
    assert (made["tokens"][~chosen] == tokens[~chosen]).all()
    changed = made["tokens"][chosen]
    assert ((changed == MASK) | (changed >= SPECIAL)).all()
    if not whole:
        share = 0.15 * open_.sum()
        assert chosen.sum() in {max(1, int(share)), max(1, int(share) + 1)} or not open_.any()


def test_of_fifteen_percent_four_fifths_are_masks_and_a_tenth_anything():
    """Of 9,000 chosen tokens; each bound is 5 standard deviations, whose odds are 6 in 1e7, and chi-square's 1e-6."""
    found = list(masks(61))
    chosen = [made["weights"] == 1 for _, made in found]
    many = sum(map(np.sum, chosen))
    assert abs(many - 0.15 * 61 * 997) < 61  # each row is rounded to one of two numbers
    before = np.concatenate([tokens[c] for (tokens, _), c in zip(found, chosen, strict=True)])
    after = np.concatenate([made["tokens"][c] for (_, made), c in zip(found, chosen, strict=True)])
    masked, other = after == MASK, (after != MASK) & (after != before)
    stays = 1 / (VOCABULARY - SPECIAL)  # of what is drawn at random is what it was
    for share, expected in ((masked.mean(), 0.8), (other.mean(), 0.1 * (1 - stays))):
        assert abs(share - expected) < 5 * (expected * (1 - expected) / many) ** 0.5
    drawn = np.bincount(after[other], minlength=VOCABULARY)[SPECIAL:]
    expected = drawn.sum() / len(drawn)
    assert ((drawn - expected) ** 2 / expected).sum() < 118  # 47 degrees of freedom, 3 in 1e8


def test_every_place_is_as_likely_to_be_chosen():
    """Of 2,000 rows of 13 tokens each place has 300: 5 deviations of 16 have odds of 6 in 1e7, thirteen times."""
    counts = sum(made["weights"] for _, made in masks(2000, 13))
    assert np.abs(counts - 0.15 * 2000).max() < 80


def test_what_becomes_of_chosen_tokens_can_be_left_to_no_luck():
    for share, expected in ((0.0, None), (1.0, MASK)):
        for tokens, made in masks(3, 29, rate=0.999, mask=share, random=0.0):
            chosen = made["weights"] == 1
            assert chosen.sum() >= 28
            assert (made["tokens"][chosen] == (expected or tokens[chosen])).all()


def words_by_hand(tokens, segments):
    """Lists of places, one for each word."""
    words = []
    for place, id in enumerate(tokens):
        before = tokens[place - 1] if place else None
        alone = before is None or segments[place] != segments[place - 1]
        alone = alone or PIECES.special[id] or PIECES.special[before]
        if alone or PIECES.begins[id] or PIECES.ends[before]:
            words.append([])
        words[-1].append(place)
    return words


@unhurried
@hypothesis.given(ids=IDS, seed=SEEDS)
def test_whole_words_are_masked_or_not_at_all(ids, seed):
    tokens, segments = np.array(ids, int), 1 + np.arange(len(ids)) // 5
    words = words_by_hand(ids, segments)
    numbers = [number for number, word in enumerate(words) for _ in word]
    assert PIECES.words(tokens, segments).tolist() == numbers
    made = corruption.masked(
        tokens,
        np.random.default_rng(seed),
        pieces=PIECES,
        mask_id=MASK,
        segments=segments,
        rate=0.4,
        whole_words=True,
    )
    chosen = [set(made["weights"][word]) for word in words]
    ordinary = [not PIECES.special[ids[word[0]]] for word in words]
    assert all(len(each) == 1 for each in chosen)
    count, share = sum(each == {1} for each in chosen), 0.4 * sum(ordinary)
    assert count in {max(1, int(share)), max(1, int(share) + 1)} or not any(ordinary)


def test_words_and_sentences_are_told_by_the_bytes_of_pieces():
    raw = [
        b"",
        b"?",
        b"",
        b" go",
        b"ing",
        b".",
        b"\n  ",
        "é".encode(),
        b'!" ',
        b" U.S",
        b"_x",
        b" ",
    ]
    pieces = corruption.pieces(Bytes(raw))
    assert np.flatnonzero(pieces.special).tolist() == [0, 1, 2]
    assert np.flatnonzero(pieces.begins).tolist() == [1, 3, 5, 6, 8, 9, 11]
    assert np.flatnonzero(pieces.ends).tolist() == [1, 5, 6, 8]
    assert np.flatnonzero(pieces.stops).tolist() == [1, 5, 8]
    text = np.array([0, 3, 4, 7, 5, 6, 4, 10, 8, 8, 3, 11, 4])
    assert pieces.words(text).tolist() == [0, 1, 1, 1, 2, 3, 4, 4, 5, 6, 7, 8, 8]
    assert [part.tolist() for part in pieces.sentences(text)] == [
        [0, 3, 4, 7, 5],
        [6, 4, 10, 8, 8],
        [3, 11, 4],
    ]


def test_words_of_a_real_tokenizer_are_those_of_its_text():
    words = tiny.words()
    text = "The moon, it said: doesn't go around 7 planets (in 1610)."
    ids = np.array(words.encode(text))
    pieces = corruption.pieces(words)
    assert {words.bos_id, words.eos_id, words.pad_id} <= set(np.flatnonzero(pieces.special))
    found = {}
    for word, id in zip(pieces.words(ids), ids.tolist(), strict=True):
        found[word] = found.get(word, b"") + words.raw(id)
    said = b"".join(found.values()).decode()
    assert said.split() == text.split()
    for word in found.values():
        assert re.fullmatch(r"\s*(\w+|[^\w]*)\s*", word.decode()), word
    assert [word.decode().strip() for word in found.values() if word.strip().isalnum()] == (
        re.findall(r"\w+", text)
    )
