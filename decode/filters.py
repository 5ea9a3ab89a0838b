"""Which tokens may be drawn, and with what weight? Temperature, and every way to cut the tail.

Pure functions from logits [B, V] to logits [B, V], with a setting per row; a token that is not kept gets -inf. Top-p
and typical give a ranking instead: finding the nucleus is costly, and compiled once for both. p is the softmax of the
logits that come in, H its entropy in nats. A row whose largest logit is infinite stays as it is.
"""

import jax
import jax.numpy as jnp
import numpy as np

from decode import penalties, selection

ZERO, ONE = np.float32(0), np.float32(1)
BIT = np.float32(np.log(2))
TOP_H_TOKENS = 100  # so many of the largest logits top-h looks at, as Hugging Face does


def keep(logits_BV: jax.Array, kept_BV: jax.Array) -> jax.Array:
    """-inf where a token is not kept; a row whose largest logit is infinite stays as it is."""
    whole_B1 = ~jnp.isfinite(logits_BV.max(axis=1, keepdims=True))
    return jnp.where(kept_BV | whole_B1, logits_BV, -jnp.inf)


def levels(logits_BV: jax.Array) -> jax.Array:
    """Logits less the largest."""
    return logits_BV - logits_BV.max(axis=1, keepdims=True)


def log_softmax(logits_BV: jax.Array) -> jax.Array:
    """log p."""
    level_BV = levels(logits_BV)
    return level_BV - jnp.log(jnp.exp(level_BV).sum(axis=1, keepdims=True))


def entropy(logp_BV: jax.Array) -> jax.Array:
    """H = -sum p log p, [B, 1]."""
    terms_BV = jnp.where(logp_BV > -jnp.inf, jnp.exp(logp_BV) * logp_BV, ZERO)
    return -terms_BV.sum(axis=1, keepdims=True)


def temperature(logits_BV: jax.Array, temperature_B: jax.Array) -> jax.Array:
    """Divides the logits: below 1 sharpens, above 1 flattens, 1 and 0 (greedy) change nothing."""
    divisor_B1 = jnp.where(temperature_B > 0, temperature_B, ONE)[:, None]
    return penalties.divided(logits_BV, divisor_B1)


def dynamic_temperature(
    logits_BV: jax.Array, temperature_B: jax.Array, range_B: jax.Array, exponent_B: jax.Array
) -> jax.Array:
    """A temperature from T - range to T + range, by (H / log(number of tokens))^exponent; never below 0.

    One token alone, or a range of 0, leaves it at T. At a temperature of 0 the first of the largest logits is kept.
    llama.cpp's `temp-ext`.
    """
    entropy_B = entropy(log_softmax(logits_BV))[:, 0]
    number_B = (logits_BV > -jnp.inf).sum(axis=1, dtype=jnp.int32).astype(jnp.float32)
    share_B = jnp.where(number_B > 1, entropy_B / jnp.log(number_B), ZERO)
    least_B = jnp.maximum(temperature_B - range_B, ZERO)
    between_B = (temperature_B + range_B - least_B) * share_B**exponent_B
    alone_B = (number_B <= 1) | (range_B == 0) | (temperature_B == 0)
    moved_B = jnp.where(alone_B, temperature_B, least_B + between_B)
    greedy_B = (moved_B < np.float32(1e-30)) & ~alone_B
    first_BV = keep(logits_BV, selection.first(levels(logits_BV) == 0))
    return jnp.where(greedy_B[:, None], first_BV, temperature(logits_BV, moved_B))


def top_k(logits_BV: jax.Array, top_k_B: jax.Array) -> jax.Array:
    """Keeps the k largest logits and all that equal the k-th (Fan et al. 2018).

    Example: `[3, 1, 2, 2, 0]` with k = 2 keeps `[3, -, 2, 2, -]`.
    """
    codes_BV = selection.codes(logits_BV)
    return jnp.where(codes_BV >= selection.kth_code(codes_BV, top_k_B), logits_BV, -jnp.inf)


def exactly_top_k(logits_BV: jax.Array, top_k_B: jax.Array) -> jax.Array:
    """Keeps the k largest logits, of equal ones the lowest ids.

    Example: `[3, 1, 2, 2, 0]` with k = 2 keeps `[3, -, 2, -, -]`.
    """
    codes_BV = selection.codes(logits_BV)
    kth_B1 = selection.kth_code(codes_BV, top_k_B)
    above_BV = codes_BV > kth_B1
    left_B1 = top_k_B[:, None] - above_BV.sum(axis=1, keepdims=True, dtype=jnp.int32)
    kept_BV = above_BV | selection.first_of(codes_BV == kth_B1, left_B1)
    return jnp.where(kept_BV, logits_BV, -jnp.inf)


def top_p(
    logits_BV: jax.Array, p_B: jax.Array, rest_B: jax.Array, rule: float = selection.REACHES
) -> selection.Ranking:
    """Keeps the smallest set of most likely tokens whose mass reaches p + rest (Holtzman et al. 2020).

    At least the likeliest is kept, and of equal ones the lowest ids; sums are exact, see `selection.nucleus`.
    With `WITHIN` as the rule it is the largest set whose mass does not exceed p.

    Example: probabilities `[.1, .4, .2, .2, .1]` with p = 0.5 keep `[-, .4, .2, -, -]`, within it `[-, .4, -, -, -]`.
    """
    mass_BV = jnp.exp(levels(logits_BV))
    return selection.Ranking(selection.codes(logits_BV), mass_BV, p_B, rest_B, rule)


def typical(
    logits_BV: jax.Array, p_B: jax.Array, rule: float = selection.REACHES
) -> selection.Ranking:
    """Keeps the smallest set of tokens of the most typical surprise whose mass reaches p (Meister et al. 2023).

    The smaller |-log p - H|, the more typical; tokens that tie with the last are kept. With `EXCEEDS` as the rule the
    mass has to exceed p, and of ties the lowest ids are kept, as llama.cpp has it.

    Example: probabilities `[.4, .2, .2, .2]` with p = 0.5 keep the last three: H = 1.33, their surprise is 1.61.
    """
    logp_BV = log_softmax(logits_BV)
    codes_BV = selection.codes(-jnp.abs(-logp_BV - entropy(logp_BV)))
    ties = rule == selection.REACHES
    mass_BV = jnp.exp(levels(logits_BV))
    return selection.Ranking(codes_BV, mass_BV, p_B, jnp.zeros_like(p_B), rule, ties)


def min_p(logits_BV: jax.Array, min_p_B: jax.Array) -> jax.Array:
    """Keeps tokens with p >= min_p * max p (Nguyen et al. 2024)."""
    return keep(logits_BV, jnp.exp(levels(logits_BV)) >= min_p_B[:, None])


def epsilon(logits_BV: jax.Array, cutoff_B: jax.Array) -> jax.Array:
    """Keeps tokens with p >= cutoff, and the likeliest (Hewitt et al. 2022)."""
    mass_BV = jnp.exp(levels(logits_BV))
    p_BV = mass_BV / mass_BV.sum(axis=1, keepdims=True)
    return keep(logits_BV, (p_BV >= cutoff_B[:, None]) | (levels(logits_BV) == 0))


def eta(logits_BV: jax.Array, cutoff_B: jax.Array) -> jax.Array:
    """Keeps tokens with p >= min(cutoff, sqrt(cutoff) exp(-H)), and the likeliest (Hewitt et al. 2022)."""
    entropy_B = entropy(log_softmax(logits_BV))[:, 0]
    return epsilon(logits_BV, jnp.minimum(cutoff_B, jnp.sqrt(cutoff_B) * jnp.exp(-entropy_B)))


def top_n_sigma(logits_BV: jax.Array, n_B: jax.Array) -> jax.Array:
    """Keeps logits of at least the largest less n standard deviations of the finite ones (Tang et al. 2024)."""
    finite_BV = logits_BV > -jnp.inf
    number_B1 = finite_BV.sum(axis=1, keepdims=True, dtype=jnp.int32).astype(jnp.float32)
    level_BV = jnp.where(finite_BV, levels(logits_BV), ZERO)
    mean_B1 = level_BV.sum(axis=1, keepdims=True) / number_B1
    square_BV = jnp.where(finite_BV, (level_BV - mean_B1) ** 2, ZERO)
    sigma_B1 = jnp.sqrt(square_BV.sum(axis=1, keepdims=True) / number_B1)
    return keep(logits_BV, levels(logits_BV) >= -n_B[:, None] * sigma_B1)


def top_h(logits_BV: jax.Array, top_h_B: jax.Array) -> jax.Array:
    """Keeps the largest set of most likely tokens whose terms -p log p add up to at most top_h * H (Potraghloo 2025).

    p and H are those of the 100 largest logits alone, and at least the likeliest is kept. A sum that is too large by
    2^-16 of its last term is not.
    """
    count = min(TOP_H_TOKENS, logits_BV.shape[1])
    top_BN, ids_BN = jax.lax.top_k(logits_BV, count)
    logp_BN = log_softmax(top_BN)
    p_BN = jnp.exp(logp_BN)
    terms_BN = jnp.where(p_BN > 0, -p_BN * logp_BN, jnp.inf)
    goal_BN = top_h_B[:, None] * entropy(logp_BN) + selection.ROUNDING * terms_BN
    within_BN = jnp.cumsum(terms_BN, axis=1) <= jnp.where(p_BN > 0, goal_BN, ZERO)
    within_BN |= jnp.arange(count)[None] == 0
    rows_B1 = jnp.arange(len(logits_BV))[:, None]
    kept_BV = jnp.zeros(logits_BV.shape, bool).at[rows_B1, ids_BN].set(within_BN)
    return keep(logits_BV, kept_BV)


def xtc(logits_BV: jax.Array, threshold_B: jax.Array, coin_B: jax.Array) -> jax.Array:
    """Leaves out all but the least likely of the tokens with p >= threshold, where the coin is true (p-e-w 2024).

    Of equally least likely ones the highest id is kept. Example: `[.4, .3, .2, .1]` at 0.15 keep `[-, -, .2, .1]`.
    """
    mass_BV = jnp.exp(levels(logits_BV))
    p_BV = mass_BV / mass_BV.sum(axis=1, keepdims=True)
    high_BV = p_BV >= threshold_B[:, None]
    least_B1 = jnp.where(high_BV, logits_BV, jnp.inf).min(axis=1, keepdims=True)
    ids_V = jnp.arange(logits_BV.shape[1])[None]
    last_B1 = jnp.where(high_BV & (logits_BV == least_B1), ids_V, -1).max(axis=1, keepdims=True)
    kept_BV = ~high_BV | (ids_V == last_B1) | ~coin_B[:, None]
    return keep(logits_BV, kept_BV)


def mirostat(logits_BV: jax.Array, surprise_B: jax.Array) -> jax.Array:
    """Keeps tokens of at most so many bits of surprise, -log2 p, and at least the first of the likeliest.

    Mirostat 2 (Basu et al. 2021), by llama.cpp's rules.
    """
    bits_BV = -log_softmax(logits_BV) / BIT
    first_BV = selection.first(levels(logits_BV) == 0)
    return keep(logits_BV, (bits_BV <= surprise_B[:, None]) | first_BV)
