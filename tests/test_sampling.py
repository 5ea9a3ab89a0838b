"""Is a draw a sample of the distribution it says, in every combination of filters and for every row?

Goodness of fit is a chi-square test against exact enumeration; each asserts odds of more than 1e-6,
and its controls show that the same test refuses a sampler that is wrong by a little. Seeds are fixed,
so a test that passed will pass.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import tiny

import decode
from decode import context, keys, sampling
from decode.settings import Settings

ALPHA = 1e-6
DRAWS = 40_000
LOGITS = np.array([2.0, 0.5, 1.5, -1.0, 0.5, 3.0, -2.5, 1.0, 0.0, 1.5, -2.7], np.float32)


class Drawn(NamedTuple):
    token_B: jax.Array
    logprob_B: jax.Array
    sampled_logprob_B: jax.Array
    margin_B: jax.Array


def draw(logits_BV, rows):
    token_B, record = sampling.draw(logits_BV, rows, "hf")
    return Drawn(token_B, *(record[name] for name in ("logprobs", "sampled_logprobs", "margins")))


@functools.partial(jax.jit, static_argnames=("count", "draw"))
def many(logits_V, alone, key, count, draw=draw):
    """`count` draws from the same logits: one row, at as many positions."""
    logits_BV = jnp.broadcast_to(logits_V[None], (count, len(logits_V)))
    rows = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape[1:])), alone)
    rows = rows.replace(keys_B=jnp.broadcast_to(key, (count,)), lengths_B=jnp.arange(count))
    return draw(logits_BV, rows)


def some(settings, count, logits_V=LOGITS, **kwargs):
    """The first `count` of `DRAWS` draws, which all are one compiled shape."""
    alone = context.bare([settings], len(logits_V))
    drawn = many(logits_V, alone, keys.row_key(0, "fit", 0), DRAWS, **kwargs)
    return jax.tree.map(lambda leaf_B: np.asarray(leaf_B)[:count], drawn)


def counts(settings, **kwargs):
    return np.bincount(some(settings, DRAWS, **kwargs).token_B, minlength=len(LOGITS))


def exact(settings):
    """The distribution that settings ask for, by definition, in float64."""
    scaled = LOGITS.astype(np.float64) / settings.temperature
    keep = np.ones(len(scaled), bool)
    if settings.top_k:
        keep = scaled >= np.sort(scaled)[::-1][settings.top_k - 1]
    order = np.argsort(-np.where(keep, scaled, -np.inf), kind="stable")
    mass = np.where(keep, np.exp(scaled), 0.0)[order]
    before = (np.cumsum(mass) - mass) / mass.sum()
    keep[order] &= before < settings.top_p - 1e-12
    probabilities = np.where(keep, np.exp(scaled), 0.0)
    return probabilities / probabilities.sum()


def fit(observed, probabilities):
    """The odds that draws from `probabilities` fit them as badly; 0 if an impossible token was drawn."""
    possible = probabilities > 0
    if observed[~possible].any():
        return 0.0
    expected = probabilities[possible] * observed.sum()
    assert expected.min() > 5
    return scipy.stats.chisquare(observed[possible], expected).pvalue


COMPOSITIONS = [
    Settings(),
    Settings(temperature=0.7),
    Settings(temperature=1.8),
    Settings(top_k=4),
    Settings(top_k=3),
    Settings(top_p=0.85),
    Settings(temperature=1.4, top_k=6, top_p=0.9),
    Settings(temperature=0.6, top_p=0.95),
]


@pytest.mark.parametrize("settings", COMPOSITIONS, ids=str)
def test_draws_fit_the_enumerated_distribution(settings):
    assert fit(counts(settings), exact(settings)) > ALPHA


def test_the_test_has_the_power_to_refuse_a_temperature_that_is_off_by_a_twentieth():
    assert fit(counts(Settings(temperature=1.05)), exact(Settings())) < ALPHA


def test_the_test_refuses_a_filter_that_keeps_one_token_more():
    assert fit(counts(Settings(top_k=5)), exact(Settings(top_k=4))) == 0.0
    assert fit(counts(Settings(top_k=4)), exact(Settings(top_k=5))) < ALPHA


def test_greedy_takes_the_first_of_the_largest_logits_whatever_the_filters():
    logits_V = np.array([1.0, 7.0, 3.0, 7.0], np.float32)
    logits_V = np.concatenate([logits_V, LOGITS[4:]])
    drawn = some(Settings(temperature=0, top_k=2), 5, logits_V)
    assert drawn.token_B.tolist() == [1] * 5
    assert drawn.sampled_logprob_B.tolist() == [0.0] * 5
    assert drawn.margin_B.tolist() == [0.0] * 5


def test_one_token_left_to_draw_from_is_the_greedy_token():
    drawn = some(Settings(top_k=1), 97)
    assert set(drawn.token_B.tolist()) == {5}
    assert set(drawn.margin_B.tolist()) == {float("inf")}
    assert set(drawn.sampled_logprob_B.tolist()) == {0.0}


@pytest.mark.parametrize(
    "settings", [Settings(), COMPOSITIONS[6], Settings(temperature=0)], ids=str
)
def test_both_log_probabilities_are_those_of_float64(settings):
    drawn = some(settings, 53)
    token_B = np.asarray(drawn.token_B)
    np.testing.assert_allclose(drawn.logprob_B, np.log(exact(Settings())[token_B]), atol=1e-6)
    if settings.temperature:
        sampled_B = np.log(exact(settings)[token_B])
    else:
        sampled_B = np.zeros(53)
    np.testing.assert_allclose(drawn.sampled_logprob_B, sampled_B, atol=1e-6)


def test_the_margin_is_what_the_runner_up_lacks_with_noise_where_there_is_noise():
    settings = COMPOSITIONS[6]
    drawn = some(settings, 31)
    folded = keys.fold(jnp.broadcast_to(keys.row_key(0, "fit", 0), (31,)), jnp.arange(31))
    noise_BV = np.asarray(keys.gumbel(folded, 11), np.float64)
    with np.errstate(divide="ignore"):
        scores_BV = np.sort(np.log(exact(settings))[None] + noise_BV, axis=1)
    np.testing.assert_allclose(drawn.margin_B, scores_BV[:, -1] - scores_BV[:, -2], atol=2e-6)
    greedy = some(Settings(temperature=0), 3)
    assert greedy.margin_B.tolist() == [1.0] * 3


def shared_noise(logits_BV, rows):
    """The bug of a batch-wide key closed over by `vmap`: every row gets the noise of the first."""
    return draw(logits_BV, rows.replace(lengths_B=0 * rows.lengths_B))


def test_identical_rows_with_different_keys_draw_different_tokens():
    flat = np.zeros(1009, np.float32)
    alone = context.bare([Settings(temperature=0.9)], 1009)
    tokens = many(flat, alone, keys.row_key(0, "rows", 0), 7).token_B.tolist()
    assert len(set(tokens)) == 7
    assert (
        len(set(many(flat, alone, keys.row_key(0, "rows", 0), 7, shared_noise).token_B.tolist()))
        == 1
    )


def test_a_sampler_that_shares_noise_between_rows_would_not_fit():
    assert fit(counts(Settings(), draw=shared_noise), exact(Settings())) < ALPHA


def test_pairs_of_rows_are_independent():
    """Tokens of neighbouring positions, and of two requests, as contingency tables: odds above 1e-6."""
    small = LOGITS[:5]
    alone = context.bare([Settings(temperature=2.0)], 5)
    one, other = (
        np.asarray(many(small, alone, keys.row_key(0, name, 0), DRAWS).token_B) for name in "ab"
    )
    for x, y in [(one, other), (one[:-1], one[1:])]:
        table = np.zeros((5, 5))
        np.add.at(table, (x, y), 1)
        assert scipy.stats.chi2_contingency(table).pvalue > ALPHA


TABLE = np.array([[0.5, 1.0, -1.0, 0.0], [1.5, 0.0, 0.5, -0.5], [0.0, 0.0, 1.0, -1.0], [0.0] * 4])


def test_whole_completions_fit_the_enumerated_paths_of_a_bigram_model():
    """Three tokens from a table of logits, the last of whose four letters ends a text: 1,024 samples."""
    lm = tiny.scripted(by_token=TABLE, eos_id=3)
    settings = Settings(max_new_tokens=3, temperature=0.8, n=1024)
    drawn = [c.tokens for c in decode.generate(lm, [[0]], settings, seed=0, batch_size=64)]
    after = np.exp(TABLE / 0.8) / np.exp(TABLE / 0.8).sum(axis=1, keepdims=True)
    paths = {}
    for path in itertools.product(range(4), repeat=3):
        tokens = path[: path.index(3) + 1] if 3 in path else path
        odds = np.prod([after[a, b] for a, b in zip((0, *tokens), tokens, strict=False)])
        paths[tokens] = odds
    rare = [tokens for tokens, odds in paths.items() if odds * 1024 < 6]
    names = [tokens for tokens in paths if tokens not in rare]
    observed = [sum(d == name for d in drawn) for name in names] + [sum(d in rare for d in drawn)]
    odds = np.array([*(paths[name] for name in names), sum(paths[name] for name in rare)])
    np.testing.assert_allclose(odds.sum(), 1.0)
    assert fit(np.array(observed), odds) > ALPHA


def test_noise_of_few_kept_tokens_draws_what_noise_of_all_does(monkeypatch):
    logits_V = np.random.RandomState(0).normal(size=1009).astype(np.float32) * 3
    settings = Settings(temperature=1.2, top_k=41)
    alone = context.bare([settings], 1009)
    row = keys.row_key(0, "fit", 0)
    few = many(logits_V, alone, row, 997)
    monkeypatch.setattr(sampling, "FEW", 40)
    many.clear_cache()
    for a, b in zip(few, many(logits_V, alone, row, 997), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)
    many.clear_cache()
