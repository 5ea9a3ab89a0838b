"""How much less likely is what has been said? Penalties of repetition, bans of n-grams, a growing wish to end.

`tokens` are a row's text so far, `lengths` its length; what stands behind it is ignored.
"""

import jax
import jax.numpy as jnp
import numpy as np

from decode import occurrences

LARGEST = np.finfo(np.float32).max
LARGEST_EXPONENT = np.float32(88.7228391)  # its logarithm
ONE = np.float32(1)


def divided(x_BV: jax.Array, divisor_B1: jax.Array) -> jax.Array:
    """x / divisor, each quotient rounded once.

    The barrier keeps XLA from multiplying by the reciprocal, whose rounding differs for two logits in three.
    """
    return x_BV / jax.lax.optimization_barrier(jnp.broadcast_to(divisor_B1, x_BV.shape))


def repetition(logits_BV: jax.Array, penalty_B: jax.Array, ids_BN: jax.Array) -> jax.Array:
    """Divides the logits of the given tokens by the penalty, multiplies those below 0 (Keskar et al. 2019)."""
    said_BV = occurrences.members(ids_BN, logits_BV.shape[1])
    penalty_B1 = penalty_B[:, None]
    less_BV = jnp.where(logits_BV < 0, logits_BV * penalty_B1, divided(logits_BV, penalty_B1))
    return jnp.where(said_BV, less_BV, logits_BV)


def presence(
    logits_BV: jax.Array, presence_B: jax.Array, frequency_B: jax.Array, ids_BN: jax.Array
) -> jax.Array:
    """Subtracts, of each of the given tokens, frequency times its count, and presence."""
    count_BV = occurrences.counts(ids_BN, logits_BV.shape[1])
    less_BV = logits_BV - frequency_B[:, None] * count_BV.astype(jnp.float32) - presence_B[:, None]
    return jnp.where(count_BV > 0, less_BV, logits_BV)


def dry(
    logits_BV: jax.Array,
    multiplier_B: jax.Array,
    base_B: jax.Array,
    allowed_B: jax.Array,
    last_n_B: jax.Array,
    breakers_BV: jax.Array,
    tokens_BS: jax.Array,
    lengths_B: jax.Array,
) -> jax.Array:
    """Subtracts multiplier * base^(n - allowed) of a token that would go on repeating n >= allowed tokens.

    n is how many last tokens also stand before an earlier occurrence of the token, the longest such run; it does not
    reach beyond the last breaker, nor beyond the last `last_n` tokens (-1 is all). A breaker itself is not penalised.
    "Don't repeat yourself", p-e-w 2024, by llama.cpp's rules.

    Example: after `a b c a b`, with allowed = 2, `c` loses the multiplier.
    """
    first_B = jnp.where(last_n_B < 0, 0, jnp.maximum(lengths_B - last_n_B, 0))
    size_B = lengths_B - first_B
    at_S = jnp.arange(tokens_BS.shape[1])[None]
    inside_BS = (at_S >= first_B[:, None]) & (at_S < lengths_B[:, None])
    ids_BS = jnp.clip(tokens_BS, 0, logits_BV.shape[1] - 1)
    breaks_BS = jnp.take_along_axis(breakers_BV, ids_BS, axis=1) & inside_BS
    limit_B = lengths_B - 1 - jnp.where(breaks_BS, at_S, first_B[:, None] - 1).max(axis=1)
    active_B = size_B > allowed_B
    most = jnp.where(active_B & (multiplier_B > 0), limit_B, 0).max()
    run_BS = occurrences.runs((tokens_BS, inside_BS, at_S), tokens_BS, lengths_B, most)
    run_BS = jnp.minimum(run_BS, jnp.minimum(limit_B[:, None], at_S - first_B[:, None]))
    repeats_BS = active_B[:, None] & inside_BS & (run_BS >= allowed_B[:, None])
    return _dry_penalised(
        logits_BV,
        jnp.where(repeats_BS, tokens_BS, logits_BV.shape[1]),
        run_BS - allowed_B[:, None],
        (multiplier_B, base_B),
        breakers_BV,
    )


def _dry_penalised(
    logits_BV: jax.Array,
    ids_BS: jax.Array,
    exponents_BS: jax.Array,
    scale: tuple[jax.Array, jax.Array],
    breakers_BV: jax.Array,
) -> jax.Array:
    """Subtracts by the largest exponent of each of the ids; an id of V is none."""
    multiplier_B, base_B = scale
    rows_B1 = jnp.arange(len(ids_BS))[:, None]
    nothing_BV = jnp.full(logits_BV.shape, -1, jnp.int32)
    exponent_BV = nothing_BV.at[rows_B1, ids_BS].max(exponents_BS, mode="drop")
    most_B = jnp.where(base_B > 1.000001, LARGEST_EXPONENT / jnp.log(base_B), np.float32(2**30))
    power_BV = jnp.minimum(exponent_BV.astype(jnp.float32), jnp.floor(most_B)[:, None])
    less_BV = logits_BV - multiplier_B[:, None] * base_B[:, None] ** power_BV
    return jnp.where((exponent_BV >= 0) & ~breakers_BV, less_BV, logits_BV)


def no_repeated_ngrams(
    logits_BV: jax.Array,
    sizes: tuple[jax.Array, jax.Array],
    source: tuple[jax.Array, jax.Array],
    tokens_BS: jax.Array,
    lengths_B: jax.Array,
) -> jax.Array:
    """Bans what would end an n-gram of the text again (Paulus et al. 2017), or one of the source.

    `sizes` are n [B] for the text and for the source, 0 is none; `source` are tokens [B, R] and how many are real.
    Example: after `a b c a`, with n = 2, `b` is banned.
    """
    past_BR = jnp.concatenate([tokens_BS, source[0]], axis=1)
    at_R = jnp.concatenate([jnp.arange(tokens_BS.shape[1]), jnp.arange(source[0].shape[1])])[None]
    own_R = jnp.arange(past_BR.shape[1])[None] < tokens_BS.shape[1]
    size_BR = jnp.where(own_R, sizes[0][:, None], sizes[1][:, None])
    real_BR = at_R < jnp.where(own_R, lengths_B[:, None], source[1][:, None])
    most = jnp.maximum(sizes[0], sizes[1]).max() - 1
    run_BR = occurrences.runs((past_BR, real_BR, at_R), tokens_BS, lengths_B, most)
    again_BR = real_BR & (run_BR >= size_BR - 1) & (size_BR > 0)
    banned_BV = occurrences.members(jnp.where(again_BR, past_BR, -1), logits_BV.shape[1])
    return jnp.where(banned_BV, -jnp.inf, logits_BV)


def exponential_decay(
    logits_BV: jax.Array,
    start_B: jax.Array,
    factor_B: jax.Array,
    made_B: jax.Array,
    ends_BE: jax.Array,
) -> jax.Array:
    """Raises the end tokens' logits s by |s| (factor^n - 1), n tokens after `start`; `made` have been generated.

    A logit that would grow to infinity stops at the largest number.
    """
    n_B = jnp.maximum(made_B - start_B, 0).astype(jnp.float32)
    growth_B1 = jnp.minimum(factor_B**n_B - ONE, LARGEST)[:, None]
    grown_BV = jnp.clip(logits_BV + jnp.abs(logits_BV) * growth_B1, -LARGEST, LARGEST)
    end_BV = occurrences.members(ends_BE, logits_BV.shape[1])
    return jnp.where(end_BV & jnp.isfinite(logits_BV), grown_BV, logits_BV)
