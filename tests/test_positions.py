"""Do positions say what their papers say? Each against a closed form, or rows worked by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import positions
from model.config import Rope

PLAIN = Rope(theta=500.0)


def test_worked_rows_of_the_docstrings():
    assert positions.from_mask(jnp.array([[0, 0, 1, 1, 1]], bool)).tolist() == [[0, 0, 0, 1, 2]]
    segments_BT = jnp.array([[1, 1, 2, 2, 2, 0]])
    assert positions.from_segments(segments_BT).tolist() == [[0, 1, 0, 1, 2, 0]]
    mask_BT = jnp.array([[0, 1, 0, 1, 1, 1]], bool)
    assert positions.from_segments(segments_BT, mask_BT).tolist() == [[0, 0, 0, 0, 1, 0]]
    assert positions.slopes(3).tolist() == [1 / 16, 1 / 256, 1 / 4]


@pytest.mark.parametrize("halves", [False, True])
def test_sinusoidal_table_is_that_of_the_paper(halves):
    table = positions.sinusoidal(jnp.array([[0, 1, 7]]), 6, halves)[0]
    for row, position in enumerate([0, 1, 7]):
        for pair in range(3):
            angle = position / 10_000 ** (2 * pair / 6)
            sine, cosine = (pair, 3 + pair) if halves else (2 * pair, 2 * pair + 1)
            np.testing.assert_allclose(table[row, sine], np.sin(angle), atol=1e-6)
            np.testing.assert_allclose(table[row, cosine], np.cos(angle), atol=1e-6)


@pytest.mark.parametrize("rope", [PLAIN, Rope(theta=500.0, fraction=0.5)])
def test_rotary_scores_depend_on_distance_alone(rope):
    key_q, key_k = jax.random.split(jax.random.key(0))
    q, k = jax.random.normal(key_q, (1, 1, 1, 12)), jax.random.normal(key_k, (1, 1, 1, 12))

    def score(at_q, at_k):
        turned_q = positions.rotate(q, jnp.array([[at_q]]), rope)
        return float(jnp.sum(turned_q * positions.rotate(k, jnp.array([[at_k]]), rope)))

    np.testing.assert_allclose(score(9, 4), score(25, 20), rtol=1e-4)
    assert abs(score(9, 4) - score(9, 5)) > 1e-3


def test_a_partial_rotation_leaves_the_rest_of_a_head():
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, 12))
    line = jnp.arange(5)[None]
    turned = positions.rotate(x, line, Rope(fraction=0.5))
    assert (turned[..., 6:] == x[..., 6:]).all()
    np.testing.assert_allclose(turned[..., :6], positions.rotate(x[..., :6], line, Rope()))


def test_linear_scaling_divides_positions():
    expected = np.asarray(positions.frequencies(PLAIN, 12)) / 4
    scaled = positions.frequencies(Rope(theta=500.0, scaling="linear", factor=4.0), 12)
    np.testing.assert_allclose(scaled, expected, rtol=1e-6)


def test_ntk_scaling_keeps_the_fastest_pair_and_slows_the_slowest_by_the_factor():
    plain = positions.frequencies(PLAIN, 12)
    scaled = positions.frequencies(Rope(theta=500.0, scaling="ntk", factor=4.0), 12)
    np.testing.assert_allclose(scaled[0], plain[0], rtol=1e-6)
    np.testing.assert_allclose(scaled[-1], plain[-1] / 4, rtol=1e-5)


@pytest.mark.parametrize("scaling", ["llama3", "yarn"])
def test_fast_pairs_stay_slow_ones_are_divided_and_between_them_it_goes_down(scaling):
    rope = Rope(theta=5e5, scaling=scaling, factor=8.0, original_length=512, low=1.0, high=4.0)
    size = 64
    ratio = np.asarray(
        positions.frequencies(rope, size) / positions.frequencies(Rope(theta=5e5), size)
    )
    turns = 512 * np.asarray(positions.frequencies(Rope(theta=5e5), size)) / (2 * math.pi)
    assert (np.diff(ratio) <= 1e-6).all()
    np.testing.assert_allclose(ratio[turns > 4.0 * 1.6], 1, rtol=1e-5)
    np.testing.assert_allclose(ratio[turns < 1.0 / 1.6], 1 / 8, rtol=1e-5)
    between = (turns > 1.2) & (turns < 3.5)
    assert between.any() and (ratio[between] > 1 / 8).all() and (ratio[between] < 1).all()
    if scaling == "llama3":
        kept = (turns[between] - 1) / 3
        np.testing.assert_allclose(ratio[between], kept + (1 - kept) / 8, rtol=1e-4)


def test_yarn_magnifies_what_is_turned_by_its_formula_or_by_what_the_config_says():
    x = jnp.ones((1, 1, 1, 8))
    for magnitude, expected in ((0.0, 0.1 * math.log(8.0) + 1), (1.7, 1.7)):
        rope = Rope(scaling="yarn", factor=8.0, original_length=64, high=32.0, magnitude=magnitude)
        turned = positions.rotate(x, jnp.array([[0]]), rope)
        np.testing.assert_allclose(turned, expected * np.ones_like(turned), rtol=1e-6)


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        (8, [2.0**-i for i in range(1, 9)]),
        (12, [2.0**-i for i in range(1, 9)] + [2.0 ** -(i / 2) for i in (1, 3, 5, 7)]),
    ],
)
def test_alibi_slopes_are_those_of_the_paper(heads, expected):
    np.testing.assert_allclose(positions.slopes(heads), expected, rtol=1e-6)


@pytest.mark.parametrize("heads", [1, 7, 100, 112])
def test_every_alibi_head_has_a_slope_of_its_own(heads):
    slopes = positions.slopes(heads)
    assert len(set(slopes.tolist())) == heads
    assert (slopes > 0).all() and (slopes < 1).all()


def test_alibi_falls_with_distance_by_the_slope_of_the_head():
    line = jnp.arange(5)[None]
    both = np.asarray(positions.alibi(2, line, line, causal=False))
    one = np.asarray(positions.alibi(2, line, line, causal=True))
    distance = np.abs(np.arange(5)[:, None] - np.arange(5)[None])
    for head, slope in enumerate([1 / 16, 1 / 256]):
        np.testing.assert_allclose(both[0, head], -slope * distance, rtol=1e-6)
        for query in range(5):
            seen = one[0, head, 0, : query + 1]
            np.testing.assert_allclose(seen - seen[-1], -slope * distance[query, : query + 1])


@pytest.mark.parametrize("causal", [True, False])
def test_t5_buckets_follow_the_papers_rule_at_every_distance(causal):
    """By exact integer arithmetic: distance d >= e is in bucket e + k while d^n < e^n (128/e)^(k+1), n = count - e."""
    table = positions.buckets(causal)
    count = 32 if causal else 16
    exact = count // 2
    for distance in range(-200, 201):
        clipped = max(-128, min(128, distance))
        size = max(-distance, 0) if causal else abs(distance)
        if size < exact:
            bucket = size
        else:
            n = count - exact
            k = 0
            while k < n - 1 and size**n * exact ** (k + 1) >= exact**n * 128 ** (k + 1):
                k += 1
            bucket = exact + k
        if not causal and distance > 0:
            bucket += 16
        assert table[clipped + 128] == bucket, distance
