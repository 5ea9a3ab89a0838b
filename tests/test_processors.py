"""Are exactly the right tokens kept, at every boundary, and does no row look at another?

The references: exact fractions on ties and boundaries, float64 on random logits, literal examples,
and, marked `oracle`, the processors of Hugging Face transformers.
"""

import fractions
import math

import chains
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from decode import pairs, processors, selection
from decode.settings import Settings

INF = float("inf")
STEPS = (processors.TEMPERATURE, processors.TOP_K, processors.TOP_P)
logs = chains.logs


def kept(logits_BV, settings):
    return chains.kept(STEPS, logits_BV, settings)


def HF(logits_BV, settings):
    return chains.apply(STEPS, logits_BV, settings)


def test_temperature_top_k_and_top_p_stand_in_this_order_in_the_preset_hf():
    chain = processors.CHAINS["hf"]
    assert tuple(step for step in chain if step in STEPS) == STEPS


def brute_force(logits, settings):
    """Kept ids by float64 sums over a stable sort: lowest id first among equals."""
    scaled = np.asarray(logits, np.float64) / settings.temperature
    order = np.argsort(-scaled, kind="stable")
    if 0 < settings.top_k < len(order):
        order = order[scaled[order] >= scaled[order[settings.top_k - 1]]]
    if settings.top_p == 1:
        return set(order.tolist())
    mass = np.exp(scaled[order] - scaled[order[0]])
    before = np.concatenate([[0.0], np.cumsum(mass)[:-1]])
    return set(order[before < settings.top_p * mass.sum()].tolist()) | {int(order[0])}


# The teaching example: cake 0.20, donut 0.10, banana 0.02, apple 0.01, the rest spread thin.
CAKE, DONUT, BANANA, APPLE = 5, 2, 11, 7


def dessert(rest):
    probabilities = np.full(rest + 4, 0.67 / rest)
    probabilities[[CAKE, DONUT, BANANA, APPLE]] = 0.20, 0.10, 0.02, 0.01
    return np.log(probabilities)[None].astype(np.float32)


@pytest.mark.parametrize("rest", [101, 674, 6_700, 50_253])
def test_the_teaching_example_holds_however_thin_the_rest_is_spread(rest):
    logits_BV = dessert(rest)
    assert int(np.argmax(logits_BV)) == CAKE
    assert kept(logits_BV, Settings(top_k=3)) == [{CAKE, DONUT, BANANA}]
    assert kept(logits_BV, Settings(top_p=0.3)) == [{CAKE, DONUT}]
    assert kept(logits_BV, Settings()) == [set(range(rest + 4))]
    odds = {t: _odds(logits_BV, t) for t in (0.5, 1.0, 2.0)}
    np.testing.assert_allclose(odds[0.5], 4.0, rtol=1e-5)
    np.testing.assert_allclose(odds[1.0], 2.0, rtol=1e-5)
    np.testing.assert_allclose(odds[2.0], 2.0**0.5, rtol=1e-5)


def _odds(logits_BV, temperature):
    """Of cake against donut."""
    out_BV = HF(logits_BV, [Settings(temperature=temperature)])
    return np.exp(float(out_BV[0, CAKE] - out_BV[0, DONUT]))


@pytest.mark.parametrize(
    "probabilities, p, expected",
    [
        ([0.5, 0.25, 0.125, 0.125], 0.75, {0, 1}),
        ([0.5, 0.25, 0.125, 0.125], 0.8, {0, 1, 2}),
        ([0.5, 0.25, 0.125, 0.125], 0.5, {0}),
        ([0.125, 0.5, 0.125, 0.25], 0.875, {0, 1, 3}),
        ([0.25, 0.25, 0.25, 0.25], 0.5, {0, 1}),
        ([0.25, 0.25, 0.25, 0.25], 0.51, {0, 1, 2}),
        ([0.3, 0.1, 0.1, 0.5], 0.8, {0, 3}),
        ([0.15, 0.3, 0.3, 0.25], 0.8, {1, 2, 3}),
        ([0.1, 0.4, 0.2, 0.2, 0.1], 0.5, {1, 2}),
        ([0.1, 0.4, 0.5], 1e-9, {2}),
        ([0.0, 0.5, 0.5, 0.0], 0.999, {1, 2}),
        ([0.0, 0.5, 0.5, 0.0], 1.0, {0, 1, 2, 3}),
    ],
)
def test_top_p_keeps_the_smallest_set_whose_mass_reaches_p_lowest_ids_first(
    probabilities, p, expected
):
    finite = {i for i, value in enumerate(probabilities) if value > 0}
    assert kept(logs(*probabilities), Settings(top_p=p)) == [expected & finite]


@pytest.mark.parametrize(
    "logits, k, expected",
    [
        ([3, 1, 2, 2, 0], 2, {0, 2, 3}),
        ([3, 1, 2, 2, 0], 1, {0}),
        ([3, 1, 2, 2, 0], 0, {0, 1, 2, 3, 4}),
        ([3, 1, 2, 2, 0], 5, {0, 1, 2, 3, 4}),
        ([3, 1, 2, 2, 0], 2**31 - 1, {0, 1, 2, 3, 4}),
        ([0.0, -0.0, -1, -2], 1, {0, 1}),
        ([-INF, -INF, 1, -INF], 2, {2}),
        ([INF, 5, INF, 4], 3, {0, 1, 2}),
        ([-3e38, 3e38, 1e-30, -1e-30], 2, {1, 2}),
    ],
)
def test_top_k_keeps_the_k_largest_and_those_that_tie_with_the_last(logits, k, expected):
    assert kept([logits], Settings(top_k=k)) == [expected]


def test_top_p_looks_at_what_top_k_has_left_and_at_tempered_logits():
    logits_BV = logs(0.4, 0.3, 0.2, 0.1)
    assert kept(logits_BV, Settings(top_p=0.6)) == [{0, 1}]
    assert kept(logits_BV, Settings(top_p=0.55, top_k=2)) == [{0}]
    assert kept(logits_BV, Settings(top_p=0.6, temperature=0.1)) == [{0}]
    assert kept(logits_BV, Settings(top_p=0.6, temperature=10.0)) == [{0, 1, 2}]


def test_a_row_whose_largest_logit_is_infinite_is_left_as_it_is_by_top_p():
    for row in ([INF, 1.0, INF, 0.0], [-INF] * 4):
        out_BV = HF([row, [3.0, 2.0, 1.0, 0.0]], Settings(top_p=0.5))
        assert out_BV.tolist() == [row, [3.0, -INF, -INF, -INF]]


def test_values_that_are_kept_are_only_divided_by_the_temperature():
    logits_BV = np.random.RandomState(0).randn(3, 101).astype(np.float32)
    settings = [
        Settings(temperature=0.7, top_k=7),
        Settings(temperature=1.3, top_p=0.6),
        Settings(temperature=0.0, top_k=3, top_p=0.1),
    ]
    out_BV = np.asarray(HF(logits_BV, settings))
    divided_BV = logits_BV / np.array([0.7, 1.3, 1.0], np.float32)[:, None]
    assert (out_BV == np.where(out_BV > -INF, divided_BV, -INF)).all()
    assert [int((row > -INF).sum()) for row in out_BV][0::2] == [7, 101]


@pytest.mark.parametrize("vocabulary, scale", [(53, 2.0), (1009, 1.0), (1009, 4.0), (20_011, 1.0)])
def test_kept_sets_equal_float64_sums_on_random_logits(vocabulary, scale):
    rng = np.random.RandomState(vocabulary)
    rows = 20_000 // vocabulary + 20
    for settings in [
        *(Settings(top_p=p) for p in (0.02, 0.3, 0.9, 0.99, 0.999999)),
        Settings(top_p=0.95, temperature=0.6),
        Settings(top_p=0.8, top_k=17),
        Settings(top_k=40, temperature=1.7),
    ]:
        logits_BV = (scale * rng.randn(rows, vocabulary)).astype(np.float32)
        scaled_BV = logits_BV / np.float32(settings.temperature)
        plain = Settings(top_k=settings.top_k, top_p=settings.top_p)
        expected = [brute_force(row, plain) for row in scaled_BV]
        assert kept(logits_BV, settings) == expected


@hypothesis.settings(deadline=None, max_examples=150, derandomize=True)
@hypothesis.given(
    weights=st.lists(st.integers(0, 9), min_size=7, max_size=7),
    k=st.integers(0, 8),
    eighths=st.integers(1, 64),
)
def test_kept_sets_equal_exact_fractions_on_ties_and_dyadic_boundaries(weights, k, eighths):
    """Weights are powers of two, so every sum and product is exact, and equality happens often."""
    logits_BV = logs(*(2.0**-w for w in weights))
    mass = [fractions.Fraction(1, 2**w) for w in weights]
    order = sorted(range(7), key=lambda i: (-mass[i], i))
    if 0 < k < 7:
        order = [i for i in order if mass[i] >= mass[order[k - 1]]]
    goal, total, expected = fractions.Fraction(eighths, 64) * sum(mass[i] for i in order), 0, set()
    for i in order:
        if total < goal:
            expected.add(i)
        total += mass[i]
    assert kept(logits_BV, Settings(top_k=k, top_p=eighths / 64)) == [expected]


def test_a_row_keeps_the_same_bits_whatever_its_neighbours_ask_for():
    rng = np.random.RandomState(3)
    mine, others = rng.randn(1, 307).astype(np.float32), rng.randn(5, 307).astype(np.float32)
    wishes = [Settings(), Settings(top_k=5), Settings(top_p=0.3), Settings(temperature=0.0)]
    for wish in [*wishes, Settings(temperature=0.7, top_k=50, top_p=0.9)]:
        alone = HF(np.repeat(mine, 2, axis=0), [wish] * 2)[0]
        together = HF(
            np.concatenate([others[:3], mine, others[3:]]),
            [*wishes[:3], wish, wishes[3], wishes[1]],
        )[3]
        assert (np.asarray(alone).view(np.uint32) == np.asarray(together).view(np.uint32)).all()


def test_sums_of_pairs_equal_exact_sums_to_43_bits_where_float32_has_30():
    x_BV = np.exp(4 * np.random.RandomState(0).randn(3, 20_011)).astype(np.float32)
    exact_B = [math.fsum(row.tolist()) for row in x_BV]
    for high_B1, low_B1 in (
        jax.jit(pairs.total)(x_BV),
        jax.jit(pairs.columns)(selection.fold(jnp.asarray(x_BV), 0)),
    ):
        ours_B = np.asarray(high_B1, np.float64)[:, 0] + np.asarray(low_B1, np.float64)[:, 0]
        np.testing.assert_allclose(ours_B, exact_B, rtol=2.0**-43)
    plain_B = np.asarray(jnp.asarray(x_BV).sum(axis=1), np.float64)
    assert (np.abs(plain_B / exact_B - 1) > 2.0**-30).any()


def test_differences_and_products_of_pairs_equal_float64():
    rng = np.random.RandomState(1)
    x, y = rng.rand(2, 997, 1) * 1000

    def pair(x):
        high = x.astype(np.float32)
        return jnp.asarray(high), jnp.asarray((x - high).astype(np.float32))

    for ours, exact in [
        (pairs.minus(pair(x), pair(y)), x - y),
        (pairs.times(pair(x), pair(y)), x * y),
    ]:
        both = np.asarray(ours[0], np.float64) + np.asarray(ours[1], np.float64)
        np.testing.assert_allclose(both, exact, rtol=2.0**-44, atol=1000 * 2.0**-44)


def theirs(logits_BV, settings):
    """What the processors of transformers keep, in their order."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    processes = [transformers.TemperatureLogitsWarper(settings.temperature)]
    if settings.top_k:
        processes.append(transformers.TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        processes.append(transformers.TopPLogitsWarper(settings.top_p))
    scores = torch.tensor(logits_BV)
    for process in processes:
        scores = process(None, scores)
    return scores.numpy()


GRID = [
    *(Settings(top_p=p) for p in (0.05, 0.5, 0.75, 0.875, 0.9, 0.95, 0.99)),
    *(Settings(top_k=k) for k in (1, 2, 7, 50)),
    *(Settings(temperature=t, top_k=11, top_p=0.8) for t in (0.1, 0.7, 1.0, 2.5)),
]


@pytest.mark.oracle
@pytest.mark.parametrize("settings", GRID, ids=str)
@pytest.mark.parametrize("vocabulary, rows", [(13, 300), (211, 300), (20_011, 15)])
def test_kept_sets_and_values_equal_those_of_transformers_on_random_logits(
    settings, vocabulary, rows
):
    rng = np.random.RandomState(vocabulary)
    logits_BV = (rng.choice([0.5, 2, 5], (rows, 1)) * rng.randn(rows, vocabulary)).astype(
        np.float32
    )
    logits_BV[::3, 1::5] = -INF
    expected_BV = theirs(logits_BV, settings)
    ours_BV = np.asarray(HF(logits_BV, [settings] * rows))
    assert (ours_BV == expected_BV).all()


@pytest.mark.oracle
@pytest.mark.parametrize("p", [0.25, 0.5, 0.75, 0.875])
def test_the_number_and_values_kept_equal_those_of_transformers_on_dyadic_ties(p):
    """Which of several equal logits goes is left to an unstable sort there; how many is not."""
    rng = np.random.RandomState(7)
    weights_BV = 2.0 ** -rng.randint(0, 5, (200, 8)).astype(np.float64)
    logits_BV = np.log(weights_BV).astype(np.float32)
    for settings in (Settings(top_p=p), Settings(top_k=3), Settings(top_k=3, top_p=p)):
        expected_BV = theirs(logits_BV, settings)
        ours_BV = np.asarray(HF(logits_BV, [settings] * 200))
        assert (np.sort(ours_BV) == np.sort(expected_BV)).all()


@pytest.mark.oracle
@pytest.mark.parametrize("settings", [Settings(top_k=2), Settings(top_p=0.6)], ids=str)
def test_infinite_logits_are_kept_as_transformers_keeps_them(settings):
    logits_BV = np.array([[1, INF, 3, 0], [-INF, -INF, 2, 1], [INF, INF, 1, 0], [-INF] * 4])
    logits_BV = logits_BV.astype(np.float32)
    ours_BV = np.asarray(HF(logits_BV, [settings] * 4))
    assert ((ours_BV > -INF) == (theirs(logits_BV, settings) > -INF)).all()
