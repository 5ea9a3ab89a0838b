"""What has been said so far? Which tokens occur, how often, and where the end of a text has stood before."""

import jax
import jax.numpy as jnp

State = tuple[jax.Array, jax.Array, jax.Array]


def members(ids_BN: jax.Array, vocabulary: int) -> jax.Array:
    """True at the tokens [B, V] that are among each row's ids; an id below 0 or beyond V is none."""
    return counts(ids_BN, vocabulary) > 0


def counts(ids_BN: jax.Array, vocabulary: int) -> jax.Array:
    """How often each token [B, V] is among its row's ids; an id below 0 or beyond V is none."""
    rows_B1 = jnp.arange(len(ids_BN))[:, None]
    ids_BN = jnp.where(ids_BN < 0, vocabulary, ids_BN)
    return jnp.zeros((len(ids_BN), vocabulary), jnp.int32).at[rows_B1, ids_BN].add(1, mode="drop")


def within(ids_BS: jax.Array, from_B: jax.Array, to_B: jax.Array) -> jax.Array:
    """The ids from one position up to, not including, another; -1 elsewhere."""
    at_S = jnp.arange(ids_BS.shape[1])[None]
    return jnp.where((at_S >= from_B[:, None]) & (at_S < to_B[:, None]), ids_BS, -1)


def tail(tokens_BS: jax.Array, lengths_B: jax.Array, count: int, from_B: jax.Array) -> jax.Array:
    """Each row's last tokens [B, count]; -1 where that would be before the position `from_B`."""
    at_BN = lengths_B[:, None] - count + jnp.arange(count)[None]
    found_BN = jnp.take_along_axis(tokens_BS, jnp.maximum(at_BN, 0), axis=1)
    return jnp.where(at_BN >= jnp.maximum(from_B, 0)[:, None], found_BN, -1)


def runs(
    past: tuple[jax.Array, jax.Array, jax.Array],
    tokens_BS: jax.Array,
    lengths_B: jax.Array,
    most: jax.Array,
) -> jax.Array:
    """How many tokens before each place [B, R] of the past equal the last ones of the text; counts to `most`.

    `past` are tokens [B, R], which of them are real, and how many stand before each in its own text, [1, R].
    Example: of the text `a b c a b` against itself they are `[0, 0, 2, 0, 0]`: `a b` also stands before `c`.
    """
    past_BR, real_BR, before_1R = past

    def step(state: State) -> State:
        i, same_BR, run_BR = state
        last_B1 = jnp.take_along_axis(tokens_BS, jnp.maximum(lengths_B - i, 0)[:, None], axis=1)
        inside_BR = (before_1R >= i) & (lengths_B >= i)[:, None]
        same_BR &= inside_BR & (jnp.roll(past_BR, i, axis=1) == last_B1)
        return i + 1, same_BR, run_BR + same_BR.astype(jnp.int32)

    state = (jnp.int32(1), real_BR, jnp.zeros(past_BR.shape, jnp.int32))
    return jax.lax.while_loop(lambda s: s[1].any() & (s[0] <= most), step, state)[2]
