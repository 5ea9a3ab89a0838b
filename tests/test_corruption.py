"""Is what is hidden hidden as the papers say: how much, where, as what, and can the text be put together again?"""

import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from model import errors
from train import corruption, objectives

SPECIAL, VOCABULARY, MASK, EOS = 5, 53, 4, 3  # ids 0 to 4 are special
SENTINELS = tuple(range(100, 200))
PIECES = corruption.Pieces(
    special=np.arange(VOCABULARY) < SPECIAL,
    begins=np.arange(VOCABULARY) % 3 == 0,
    ends=np.arange(VOCABULARY) % 11 == 0,
    stops=np.arange(VOCABULARY) == 7,
)
unhurried = hypothesis.settings(deadline=None, derandomize=True)
SEEDS = strategies.integers(0, 2**32)


def rng(*place):
    return objectives.generator(11, *place) if place else objectives.generator(11, 0, 0)


def test_the_figure_of_the_paper_of_t5():
    words = "Thank you for inviting me to your party last week".split()
    X, Y, Z = 100, 101, 102
    gone = np.array([word in ("for", "inviting", "last") for word in words])
    ids = np.arange(10, 20)
    assert corruption.with_sentinels(ids, gone, SENTINELS).tolist() == [
        *(10, 11, X, 14, 15, 16, 17, Y, 19)
    ]
    assert corruption.with_sentinels(ids, ~gone, SENTINELS).tolist() == [X, 12, 13, Y, 18, Z]


def test_the_lengths_of_t5():
    """512 tokens of source are 568 of text, with 114 of target: the figures in T5's own configurations."""
    assert corruption.span_lengths(512) == (568, 114)
    assert corruption.span_counts(568) == (85, 28)


@unhurried
@hypothesis.given(
    source=strategies.integers(3, 211),
    density=strategies.floats(0.05, 0.7),
    mean=strategies.floats(1, 11),
)
def test_the_longest_text_whose_source_fits_is_taken(source, density, mean):
    length, expected = corruption.span_lengths(source, density, mean)
    more = dict(sentinels=range(1000, 2000), eos_id=EOS, density=density, mean_span=mean)
    made = [
        corruption.span_corruption(np.arange(10, 10 + n), rng(), **more)
        for n in (length, length + 1)
    ]
    assert len(made[0][0]) <= source < len(made[1][0]) and len(made[0][1]) == expected


def restored(source, target):
    """The text, from what stands behind each sentinel in the target."""
    assert source[-1] == target[-1] == EOS
    hidden, at = {}, None
    for id in target[:-1].tolist():
        if id in SENTINELS:
            at = id
            hidden[at] = []
        else:
            hidden[at].append(id)
    text = [hidden.pop(id, None) if id in SENTINELS else [id] for id in source[:-1].tolist()]
    assert not hidden
    return [id for part in text for id in part]


@unhurried
@hypothesis.given(
    ids=strategies.lists(strategies.integers(SPECIAL, VOCABULARY - 1), max_size=131),
    density=strategies.floats(0.01, 0.95),
    mean=strategies.floats(1.5, 11),
    seed=SEEDS,
)
def test_a_text_can_be_put_together_from_its_source_and_target(ids, density, mean, seed):
    source, target = corruption.span_corruption(
        np.array(ids, int),
        np.random.default_rng(seed),
        sentinels=SENTINELS,
        eos_id=EOS,
        density=density,
        mean_span=mean,
    )
    assert restored(source, target) == ids
    spans = [id for id in source.tolist() if id in SENTINELS]
    assert spans == [id for id in target.tolist() if id in SENTINELS]
    assert spans == list(SENTINELS[: len(spans)])
    noise = len(target) - 1 - len(spans)
    if len(ids) > 1:
        assert noise == min(max(1, round(len(ids) * density)), len(ids) - 1)
        assert len(spans) == min(max(1, round(noise / mean)), len(ids) - noise)
        assert source[0] == ids[0] and target[-2] == ids[-1]


def test_every_way_to_lay_the_spans_is_as_likely():
    """9 tokens, 3 noise in 2 spans: 2 cuts of it times 5 of the kept. Chi-square above 47 has odds of 4 in 1e7."""
    counts = {}
    for number in range(3000):
        source, target = corruption.span_corruption(
            np.arange(10, 19),
            rng(number, 0),
            sentinels=SENTINELS,
            eos_id=EOS,
            density=1 / 3,
            mean_span=1.5,
        )
        counts[tuple(source)] = counts.get(tuple(source), 0) + 1
    expected = {
        (*range(10, 10 + kept), 100, *range(10 + kept + lost, 16 + lost), 101, EOS)
        for kept, lost in itertools.product(range(1, 6), (1, 2))
    }
    assert set(counts) == expected
    assert sum((count - 300) ** 2 / 300 for count in counts.values()) < 47


def masks_expected(noise, mean):
    """How many Poisson lengths it takes, on average, until they add up to `noise`."""
    chances = [np.exp(-mean)]
    for k in range(1, noise + 1):
        chances.append(chances[-1] * mean / k)
    takes = [0.0]
    for rest in range(1, noise + 1):
        later = sum(chances[k] * takes[rest - k] for k in range(1, rest))
        takes.append((1 + later) / (1 - chances[0]))
    return takes[noise]


def test_infilling_hides_three_tenths_in_spans_of_poisson_lengths():
    """The mean number of masks of 500 texts, against the recursion: 5 standard errors have odds of 6 in 1e7."""
    tokens, counts = np.arange(10, 111), []
    for number in range(500):
        source = corruption.denoising(tokens, rng(number, 0), mask_id=MASK)
        kept = source[source != MASK]
        assert len(kept) == 101 - 30 and (np.diff(kept) > 0).all()
        counts.append(len(source) - len(kept))
    error = np.std(counts) / len(counts) ** 0.5
    assert abs(np.mean(counts) - masks_expected(30, 3.0)) < 5 * error


def test_a_mask_may_stand_where_nothing_was_taken():
    between = 0
    for number in range(200):
        source = corruption.denoising(np.arange(10, 30), rng(number, 0), mask_id=MASK).tolist()
        between += any(
            b == MASK and c == a + 1
            for a, b, c in zip(source, source[1:], source[2:], strict=False)
        )
    assert between > 5


@unhurried
@hypothesis.given(
    length=strategies.integers(0, 67),
    rate=strategies.floats(0, 0.99),
    mean=strategies.floats(0.1, 7),
    seed=SEEDS,
    more=strategies.sampled_from([{}, {"deleted": 0.3}, {"rotated": True}]),
)
def test_noise_never_makes_a_text_longer_nor_adds_anything_but_masks(
    length, rate, mean, seed, more
):
    tokens = np.arange(10, 10 + length)
    source = corruption.denoising(
        tokens, np.random.default_rng(seed), mask_id=MASK, rate=rate, mean_span=mean, **more
    )
    kept = source[source != MASK]
    assert len(source) <= length and set(kept) <= set(tokens) and len(set(kept)) == len(kept)
    turns = (np.diff(kept) < 0).sum()
    assert turns <= ("rotated" in more)


def test_a_single_mask_may_stand_for_any_token():
    """Of 800 texts of 4 tokens that lose one, each place has 200: 5 deviations of 12 have odds of 6 in 1e7."""
    counts = np.zeros(4)
    for number in range(800):
        source = corruption.denoising(np.arange(10, 14), rng(number, 0), mask_id=MASK, rate=0.25)
        expected = np.arange(10, 14)
        expected[source == MASK] = MASK
        assert source.tolist() == expected.tolist()
        counts += source == MASK
    assert counts.sum() == 800 and np.abs(counts - 200).max() < 62


def test_sentences_are_shuffled_whole_into_any_order():
    """6 orders of 3 sentences, 200 times each in 1,200: 5 deviations of 13 have odds of 6 in 1e7, six times."""
    text = np.array([8, 9, 7, 10, 7, 11, 12, 13])
    parts = PIECES.sentences(text)
    assert [part.tolist() for part in parts] == [[8, 9, 7], [10, 7], [11, 12, 13]]
    counts = {}
    for number in range(1200):
        source = corruption.denoising(text, rng(number, 0), mask_id=MASK, sentences=parts, rate=0.0)
        counts[tuple(source)] = counts.get(tuple(source), 0) + 1
    expected = {tuple(np.concatenate(order)) for order in itertools.permutations(parts)}
    assert set(counts) == expected
    assert max(abs(count - 200) for count in counts.values()) < 65


def test_rotation_begins_anywhere_and_deletion_leaves_no_mark():
    tokens = np.arange(10, 17)
    starts = set()
    for number in range(100):
        source = corruption.denoising(tokens, rng(number, 0), mask_id=MASK, rate=0, rotated=True)
        starts.add(int(source[0]))
        assert source.tolist() == np.roll(tokens, 10 - source[0]).tolist()
    assert starts == set(tokens.tolist())
    left = [
        len(corruption.denoising(np.arange(10, 111), rng(n, 0), mask_id=MASK, rate=0, deleted=0.2))
        for n in range(100)
    ]
    assert abs(np.mean(left) - 101 * 0.8) < 5 * (101 * 0.8 * 0.2 / 100) ** 0.5  # 6 in 1e7


def test_another_epoch_hides_other_tokens_and_the_same_one_the_same():
    tokens = np.arange(SPECIAL, VOCABULARY)
    spans = dict(sentinels=SENTINELS, eos_id=EOS)
    make = {
        "masked": lambda g: corruption.masked(tokens, g, pieces=PIECES, mask_id=MASK)["tokens"],
        "span": lambda g: np.concatenate(corruption.span_corruption(tokens, g, **spans)),
        "denoising": lambda g: corruption.denoising(tokens, g, mask_id=MASK),
    }
    for name, one in make.items():
        again = [one(objectives.generator(1, 2, epoch, name)).tolist() for epoch in (3, 3, 4)]
        assert again[0] == again[1] != again[2], name


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("masked", dict(rate=0), r"^rate is 0; it must be above 0 and below 1$"),
        (
            "masked",
            dict(mask=0.8, random=0.3),
            r"^masking has mask=0.8 and random=0.3; each must be at least 0, and their sum at most 1$",
        ),
        ("span", dict(density=1.0), r"^density is 1.0; it must be above 0 and below 1$"),
        ("span", dict(mean_span=0.5), r"^mean_span is 0.5; it must be at least 1$"),
        (
            "span",
            dict(density=0.4, mean_span=1.0, sentinels=(100, 101)),
            r"^48 tokens have 19 noise spans, and the tokenizer has 2 sentinels; use shorter rows, longer spans or .*$",
        ),
        ("denoising", dict(rate=1.0), r"^rate is 1.0; it must be at least 0 and below 1$"),
        ("denoising", dict(deleted=-0.1), r"^deleted is -0.1; it must be at least 0 and below 1$"),
        ("denoising", dict(mean_span=0.0), r"^mean_span is 0.0; it must be above 0$"),
    ],
)
def test_what_cannot_be_hidden_so_is_told_in_one_line(name, arguments, message):
    make = {
        "masked": (corruption.masked, dict(pieces=PIECES, mask_id=MASK)),
        "span": (corruption.span_corruption, dict(sentinels=SENTINELS, eos_id=EOS)),
        "denoising": (corruption.denoising, dict(mask_id=MASK)),
    }
    function, usual = make[name]
    with pytest.raises(errors.BadInput, match=message):
        function(np.arange(SPECIAL, VOCABULARY), rng(), **(usual | arguments))


def test_a_source_needs_room_for_a_span():
    with pytest.raises(
        errors.BadInput, match="^a source of 2 tokens holds no span; it must have at least 3$"
    ):
        corruption.span_lengths(2)
