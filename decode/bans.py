"""Which tokens may not come, and which must? Biases of tokens and sequences, bans, forced tokens, minimum length.

A ban is -inf, whatever the logit was: it holds against +inf too. Nothing here depends on other rows.
"""

import jax
import jax.numpy as jnp
import numpy as np

from decode import occurrences

ZERO = np.float32(0)


def biased(logits_BV: jax.Array, bias_BV: jax.Array) -> jax.Array:
    """Logits plus bias; a bias of -inf bans, and of 0 leaves every bit."""
    sum_BV = jnp.where(bias_BV == 0, logits_BV, logits_BV + bias_BV)
    return jnp.where(bias_BV == -jnp.inf, bias_BV, sum_BV)


def sequences(
    logits_BV: jax.Array,
    sequences_BNL: jax.Array,
    bias_BN: jax.Array,
    tokens_BS: jax.Array,
    lengths_B: jax.Array,
    from_B: jax.Array,
) -> jax.Array:
    """Adds each sequence's bias to its last token where its others are the last ones of the text from `from_B`.

    Sequences are right-aligned behind -1. Biases of one token add up.
    Example: behind `a b` the sequence `b c` biases `c`, and `a c` nothing.
    """
    before_BNL, last_BN = sequences_BNL[:, :, :-1], sequences_BNL[:, :, -1]
    tail_BL = occurrences.tail(tokens_BS, lengths_B, before_BNL.shape[2], from_B)
    fits_BN = ((before_BNL == -1) | (before_BNL == tail_BL[:, None])).all(axis=2)
    ids_BN = jnp.where(fits_BN & (last_BN >= 0), last_BN, logits_BV.shape[1])
    rows_B1 = jnp.arange(len(logits_BV))[:, None]
    bias_BV = jnp.zeros_like(logits_BV).at[rows_B1, ids_BN].add(bias_BN, mode="drop")
    return biased(logits_BV, bias_BV)


def without(logits_BV: jax.Array, ids_BN: jax.Array) -> jax.Array:
    """Bans each row's ids; -1 is none."""
    return jnp.where(occurrences.members(ids_BN, logits_BV.shape[1]), -jnp.inf, logits_BV)


def forced(logits_BV: jax.Array, token_B: jax.Array) -> jax.Array:
    """A logit of 0 for the one token and -inf for all others; -1 forces none."""
    ids_V = jnp.arange(logits_BV.shape[1])[None]
    only_BV = jnp.where(ids_V == token_B[:, None], ZERO, -jnp.inf)
    return jnp.where(token_B[:, None] >= 0, only_BV, logits_BV)


def forced_now(
    forced_BN: jax.Array,
    end_B: jax.Array,
    lengths_B: jax.Array,
    prompt_B: jax.Array,
    limits_B: jax.Array,
) -> jax.Array:
    """The token [B] that has to come next, or -1: the forced one of that number, or the end at the last place."""
    number_B = lengths_B - prompt_B
    place_B1 = jnp.clip(number_B, 0, forced_BN.shape[1] - 1)[:, None]
    listed_B = jnp.take_along_axis(forced_BN, place_B1, axis=1)[:, 0]
    listed_B = jnp.where((number_B >= 0) & (number_B < forced_BN.shape[1]), listed_B, -1)
    return jnp.where((lengths_B == limits_B - 1) & (end_B >= 0), end_B, listed_B)


def free_from(forced_BN: jax.Array) -> jax.Array:
    """How many first tokens [B] are forced without a gap."""
    return jnp.cumprod(forced_BN >= 0, axis=1, dtype=jnp.int32).sum(axis=1)
