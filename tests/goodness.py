"""Are draws samples of the distribution that settings define? Exact enumeration in float64, chi-square, stated odds.

`exact` is written from the definitions in docs/decoding.md, apart from the code it judges. `benchmarks/goodness.py`
prints the report, and `test_goodness.py` holds a part of it.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from decode import context, keys, sampling
from decode.settings import Settings

ALPHA = 1e-6  # the odds at which a fit is refused
POWER = 0.99
LOGITS = np.array([2.0, 0.5, 1.5, -1.0, 0.5, 3.0, -2.5, 1.0, 0.0, 1.5, -2.7], np.float32)
CASES = {
    "the model": {},
    "temperature 0.7": dict(temperature=0.7),
    "temperature 1.8": dict(temperature=1.8),
    "dynamic temperature": dict(dynatemp_range=0.6, dynatemp_exponent=1.3),
    "top-k": dict(top_k=4),
    "top-p": dict(top_p=0.85),
    "min-p": dict(min_p=0.12),
    "typical": dict(typical_p=0.7),
    "epsilon": dict(epsilon_cutoff=0.05),
    "eta": dict(eta_cutoff=0.1),
    "top-n-sigma": dict(top_n_sigma=1.1),
    "top-h": dict(top_h=0.6),
    "XTC": dict(xtc_probability=0.6, xtc_threshold=0.08),
    "mirostat 2": dict(mirostat=2, mirostat_tau=2.0),
    "temperature, top-k, top-p": dict(temperature=1.4, top_k=6, top_p=0.9),
    "temperature, top-k, min-p": dict(temperature=1.6, top_k=8, min_p=0.05),
    "top-p, typical": dict(top_p=0.95, typical_p=0.8),
    "temperature, min-p, XTC": dict(temperature=1.3, min_p=0.04, xtc_probability=0.5),
    "epsilon, eta, top-n-sigma": dict(epsilon_cutoff=0.02, eta_cutoff=0.2, top_n_sigma=1.5),
    "all that cut": dict(
        temperature=1.5, top_k=9, top_p=0.97, min_p=0.02, typical_p=0.97, epsilon_cutoff=0.01
    ),
}


def exact(settings: Settings, logits_V: np.ndarray = LOGITS) -> np.ndarray:
    """The distribution [V] that settings ask for under the preset hf, by definition, in float64."""
    s, x = settings, logits_V.astype(np.float64)
    if s.dynatemp_range:
        low, high = max(0.0, s.temperature - s.dynatemp_range), s.temperature + s.dynatemp_range
        p = _softmax(x)
        share = -(p * np.log(p)).sum() / np.log(len(p))
        x = x / (low + (high - low) * share**s.dynatemp_exponent)
    else:
        x = x / s.temperature
    if s.mirostat:
        surprise = -np.log2(_softmax(x))
        return _softmax(_only(x, (surprise <= 2 * s.mirostat_tau) | (surprise == surprise.min())))
    if s.top_n_sigma:
        x = _only(x, x >= x.max() - s.top_n_sigma * x.std())
    if s.top_h:
        x = _only(x, _top_h(_softmax(x), s.top_h))
    if s.top_k:
        x = _only(x, x >= np.sort(x)[::-1][s.top_k - 1])
    if s.top_p < 1:
        x = _only(x, _smallest(_softmax(x), -_softmax(x), s.top_p))
    if s.min_p:
        x = _only(x, _softmax(x) >= s.min_p * _softmax(x).max())
    if s.typical_p < 1:
        p = _softmax(x)
        x = _only(x, _smallest(p, np.abs(-_log(p) - _entropy(p)), s.typical_p))
    if s.epsilon_cutoff:
        p = _softmax(x)
        x = _only(x, (p >= s.epsilon_cutoff) | (p == p.max()))
    if s.eta_cutoff:
        p = _softmax(x)
        eta = min(s.eta_cutoff, np.sqrt(s.eta_cutoff) * np.exp(-_entropy(p)))
        x = _only(x, (p >= eta) | (p == p.max()))
    if not s.xtc_probability:
        return _softmax(x)
    p = _softmax(x)
    above = p >= s.xtc_threshold
    least = np.flatnonzero(above & (p == p[above].min()))[-1] if above.any() else -1
    struck = above & (np.arange(len(p)) != least)
    without = _softmax(_only(x, ~struck))
    return (1 - s.xtc_probability) * p + s.xtc_probability * without


def _only(x: np.ndarray, keep: np.ndarray) -> np.ndarray:
    return np.where(keep, x, -np.inf)


def _softmax(x: np.ndarray) -> np.ndarray:
    mass = np.exp(x - x.max())
    return mass / mass.sum()


def _log(p: np.ndarray) -> np.ndarray:
    return np.log(np.where(p > 0, p, 1e-300))


def _entropy(p: np.ndarray) -> float:
    return float(-(p * _log(p)).sum())


def _smallest(p: np.ndarray, rank: np.ndarray, mass: float) -> np.ndarray:
    """The first tokens by rank whose mass reaches `mass`."""
    order = np.argsort(np.where(p > 0, rank, np.inf), kind="stable")
    before = np.cumsum(p[order]) - p[order]
    keep = np.zeros(len(p), bool)
    keep[order[before < mass - 1e-12]] = True
    return keep & (p > 0)


def _top_h(p: np.ndarray, h: float) -> np.ndarray:
    """The likeliest tokens while their terms of the entropy add up to at most h times the whole of it."""
    order = np.argsort(-p, kind="stable")
    terms = (-p * _log(p))[order]
    within = np.cumsum(terms) <= h * terms.sum()
    within[0] = True
    keep = np.zeros(len(p), bool)
    keep[order[within]] = True
    return keep


@functools.partial(jax.jit, static_argnames=("count",))
def _draws(logits_V: jax.Array, alone: context.Context, key: jax.Array, count: int) -> jax.Array:
    logits_BV = jnp.broadcast_to(logits_V[None], (count, len(logits_V)))
    rows = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape[1:])), alone)
    rows = rows.replace(keys_B=jnp.broadcast_to(key, (count,)), lengths_B=jnp.arange(count))
    return sampling.draw(logits_BV, rows, "hf")[0]


def observed(settings: Settings, draws: int, logits_V: np.ndarray = LOGITS) -> np.ndarray:
    """How often each token is drawn at so many positions of one row."""
    alone = context.bare([settings], len(logits_V))
    tokens = _draws(logits_V, alone, keys.row_key(0, "fit", 0), draws)
    return np.bincount(np.asarray(tokens), minlength=len(logits_V))


def fit(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """The odds that draws from `probabilities` fit them as badly; 0 if an impossible token was drawn."""
    possible = probabilities > 0
    if counts[~possible].any():
        return 0.0
    expected = probabilities[possible] * counts.sum()
    assert expected.min() > 5
    if len(expected) == 1:
        return 1.0
    return float(scipy.stats.chisquare(counts[possible], expected).pvalue)


def resolution(probabilities: np.ndarray, draws: int) -> float:
    """The smallest relative change of one token's probability, the likeliest's, refused with `POWER` at `ALPHA`."""
    p = probabilities[probabilities > 0]
    if len(p) == 1:
        return 0.0
    limit = scipy.stats.chi2.isf(ALPHA, len(p) - 1)
    low, high = 0.0, 1e6
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        enough = scipy.stats.ncx2.sf(limit, len(p) - 1, middle) >= POWER
        low, high = (low, middle) if enough else (middle, high)
    top = p.max()  # moving top by d, and the others with it in proportion, is a chi-square of N d^2 (1/top + 1/(1-top))
    return float(np.sqrt(high / draws / (1 / top + 1 / (1 - top))) / top)


class Tail(NamedTuple):
    """A peak and a tail of equal tokens so many nats below: how often should a draw come from the tail, did it?"""

    gap: float
    vocabulary: int
    draws: int

    @property
    def expected(self) -> float:
        mass = (self.vocabulary - 1) * np.exp(-float(np.float32(self.gap)))
        return self.draws * mass / (1 + mass)

    def hits(self, sample: object = None) -> int:
        """Draws from the tail, by ours or by a `sample(key, logits_BV)` of keys that are split."""
        logits_V = np.full(self.vocabulary, -self.gap, np.float32)
        logits_V[self.vocabulary // 3] = 0
        rows, found = 64, 0
        for start in range(0, self.draws, rows):
            found += int(_hits(logits_V, np.int32(start), rows, sample))
        return found

    def odds(self, hits: int) -> float:
        """Two-sided, of a Poisson number."""
        low = scipy.stats.poisson.cdf(hits, self.expected)
        high = scipy.stats.poisson.sf(hits - 1, self.expected)
        return float(min(1.0, 2 * min(low, high)))


@functools.partial(jax.jit, static_argnames=("rows", "sample"))
def _hits(logits_V: jax.Array, start: jax.Array, rows: int, sample: object) -> jax.Array:
    logits_BV = jnp.broadcast_to(logits_V[None], (rows, len(logits_V)))
    if sample is not None:
        token_B = sample(jax.random.fold_in(jax.random.key(0), start), logits_BV)  # type: ignore[operator]
    else:
        keys_B = jnp.broadcast_to(keys.row_key(0, "tail", 0), (rows,))
        folded_B = keys.fold(keys_B, start + jnp.arange(rows))
        token_B, _ = sampling.best(logits_BV + keys.gumbel(folded_B, len(logits_V)))
    return (logits_V[token_B] < 0).sum()


TAILS = (Tail(18.0, 130_000, 8_192), Tail(19.0, 130_000, 22_016), Tail(20.0, 130_000, 60_032))


def cases() -> dict[str, Settings]:
    """The settings of each case by name."""
    return {name: Settings(**values) for name, values in CASES.items()}


def wrong(settings: Settings) -> Settings:
    """Settings a little off, which a fit must refuse."""
    return dataclasses.replace(settings, temperature=settings.temperature * 1.06)
