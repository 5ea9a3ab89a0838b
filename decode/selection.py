"""Which tokens make up so many, or so much of the mass? Found by bisection over the bits of a float.

Nothing is sorted: that is 50 times faster than a sort of 50,000 logits on a CPU. Codes are uint32 that compare as the
floats do, so a threshold is found to the bit, and what ties with it is told apart by id, the lowest first.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decode import pairs

LANES = 1024
ROUNDING = 2.0**-16  # see `nucleus`
REACHES = ROUNDING
EXCEEDS = -ROUNDING
WITHIN = 1 - ROUNDING
GUESS_BITS = 24  # a code's first ones tell 50,000 tokens apart but for one or two, and the walk looks at those
ZERO = np.float32(0)


def codes(x_BV: jax.Array) -> jax.Array:
    """Codes, uint32, that compare as the floats do; 0 and -0 are equal."""
    bits_BV = jax.lax.bitcast_convert_type(jnp.where(x_BV == 0, ZERO, x_BV), jnp.uint32)
    negative_BV = bits_BV >> 31 == 1
    return bits_BV ^ jnp.where(negative_BV, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))


def fold(x_BV: jax.Array, filler: float) -> jax.Array:
    """The row as lines of `LANES`, the last one filled up: sums over lines run four times as fast on a CPU."""
    lanes = min(LANES, x_BV.shape[1])
    filled_BV = jnp.pad(
        x_BV, ((0, 0), (0, -x_BV.shape[1] % lanes)), constant_values=x_BV.dtype.type(filler)
    )
    return filled_BV.reshape(len(x_BV), -1, lanes)


def kth_code(codes_BV: jax.Array, k_B: jax.Array) -> jax.Array:
    """The k-th largest code [B, 1] of each row."""
    codes_BNL = fold(codes_BV, 0)

    def reaches(code_B1: jax.Array) -> jax.Array:
        return _sum((codes_BNL >= code_B1[:, None]).astype(jnp.int32)) >= k_B[:, None]

    return largest_code(reaches, len(codes_BV))


def first(best_BV: jax.Array) -> jax.Array:
    """True at the first true one of each row."""
    return jnp.arange(best_BV.shape[1])[None] == jnp.argmax(best_BV, axis=1)[:, None]


def first_of(tied_BV: jax.Array, count_B1: jax.Array) -> jax.Array:
    """True at the first `count` true ones of each row, the lowest ids; where none is left out, that costs nothing."""

    def cut() -> jax.Array:
        return tied_BV & (jnp.cumsum(tied_BV, axis=1, dtype=jnp.int32) <= count_B1)

    more_B1 = tied_BV.sum(axis=1, keepdims=True, dtype=jnp.int32) > count_B1
    return jax.lax.cond(more_B1.any(), cut, lambda: tied_BV)


def largest_code(holds: Callable[[jax.Array], jax.Array], rows: int, bits: int = 32) -> jax.Array:
    """The largest code [B, 1] for which `holds`, given that it holds for all smaller ones; 0 if for none.

    With fewer `bits` the others of the code are 0, and it is the largest of such codes.
    """

    def bit(i: jax.Array, code_B1: jax.Array) -> jax.Array:
        tried_B1 = code_B1 | (np.uint32(1 << 31) >> i.astype(jnp.uint32))
        return jnp.where(holds(tried_B1), tried_B1, code_B1)

    return jax.lax.fori_loop(0, bits, bit, jnp.zeros((rows, 1), jnp.uint32))


class Ranking(NamedTuple):
    """What a nucleus is chosen by: see `nucleus`."""

    codes_BV: jax.Array  # uint32: the higher, the sooner a token is kept
    mass_BV: jax.Array  # float32, at least 0
    p_B: jax.Array  # the fraction of the mass
    rest_B: jax.Array  # what it has beyond float32
    rule: float | jax.Array  # `REACHES`, `EXCEEDS` or `WITHIN`
    ties: bool | jax.Array = False  # whether all that tie with the last are kept


class _Walk(NamedTuple):
    """The search for the lowest code that is needed."""

    at_B1: jax.Array  # the code to look at
    needed_B1: jax.Array  # the lowest that is known to be needed
    lack_B1: jax.Array  # what the mass above `needed` lacks of the goal
    spare_B1: jax.Array  # the highest that is known not to be needed; 0 before one is found
    moving: jax.Array


def nucleus(ranking: Ranking) -> jax.Array:
    """True at the tokens of the highest codes that make up the fraction p of the mass, and at least one.

    A token belongs to them when the mass of those before it lacks more than `rule` times its own mass of the goal:
    `REACHES` is the smallest set whose mass reaches p, `EXCEEDS` the smallest whose mass exceeds it, and `WITHIN` the
    largest whose mass does not exceed it. Of equal codes the lowest ids belong, or all if `ties`.

    Sums are exact to 48 bits, so the cut is where real numbers put it, with one allowance: 2^-16 of the token's own
    mass. So 0.2 + 0.1 reaches 0.3 whatever the last bits of three logarithms are, while 1 cut in 65,536 lies elsewhere
    than without.

    Bisection on what may be left out lands on the last needed value or near it: what is left out is at most V times
    the last needed mass, so the rounding of its sum is less than that mass. A walk with exact sums ends there, from
    wherever it begins.
    """
    codes_BNL, mass_BNL = fold(ranking.codes_BV, 0), fold(ranking.mass_BV, 0)
    whole = pairs.columns(mass_BNL)
    goal = pairs.times(whole, (ranking.p_B[:, None], ranking.rest_B[:, None]))
    spare_B1 = pairs.minus(whole, goal)[0]
    guess_B1 = largest_code(
        lambda code_B1: _sum(jnp.where(codes_BNL < code_B1[:, None], mass_BNL, ZERO)) <= spare_B1,
        len(codes_BNL),
        GUESS_BITS,
    )
    end = _walk(codes_BNL, mass_BNL, goal, guess_B1, ranking.rule)
    above_BV = ranking.codes_BV > end.needed_B1
    tied_BV = ranking.codes_BV == end.needed_B1
    mass_B1 = _highest(jnp.where(codes_BNL == end.needed_B1[:, None], mass_BNL, ZERO))
    count_B1 = jnp.maximum(jnp.ceil(end.lack_B1 / mass_B1 - ranking.rule).astype(jnp.int32), 1)
    count_B1 = jnp.where(ranking.ties, np.int32(tied_BV.shape[1]), count_B1)
    return above_BV | first_of(tied_BV, count_B1)


def _walk(
    codes_BNL: jax.Array,
    mass_BNL: jax.Array,
    goal: pairs.Pair,
    guess_B1: jax.Array,
    rule: float | jax.Array,
) -> _Walk:
    """From a guess, which need not be a token's code, token by token to the lowest code that is needed."""
    top_B1 = _highest(codes_BNL)

    def below(code_B1: jax.Array) -> jax.Array:
        return _highest(jnp.where(codes_BNL < code_B1[:, None], codes_BNL, np.uint32(0)))

    def step(walk: _Walk) -> _Walk:
        at_B1 = walk.at_B1
        above_BNL = codes_BNL > at_B1[:, None]
        lack_B1 = pairs.minus(goal, pairs.columns(jnp.where(above_BNL, mass_BNL, ZERO)))[0]
        mass_B1 = _highest(jnp.where(codes_BNL == at_B1[:, None], mass_BNL, ZERO))
        needed_B1 = (lack_B1 > rule * mass_B1) | (at_B1 == top_B1)
        higher_B1 = ~_highest(jnp.where(above_BNL, ~codes_BNL, ~top_B1[:, None]))
        next_B1 = jnp.where(needed_B1, below(at_B1), higher_B1)
        found = _Walk(
            at_B1=next_B1,
            needed_B1=jnp.where(needed_B1, at_B1, walk.needed_B1),
            lack_B1=jnp.where(needed_B1, lack_B1, walk.lack_B1),
            spare_B1=jnp.where(needed_B1, walk.spare_B1, at_B1),
            moving=walk.moving,
        )
        settled_B1 = (next_B1 == 0) | (next_B1 == found.spare_B1) | (next_B1 == found.needed_B1)
        return found._replace(
            at_B1=jnp.where(settled_B1, found.needed_B1, next_B1), moving=~settled_B1.all()
        )

    at_B1 = below(jnp.minimum(guess_B1, top_B1) + np.uint32(1))
    start = _Walk(
        at_B1=jnp.where(jnp.isfinite(goal[0]) & (at_B1 > 0), at_B1, top_B1),
        needed_B1=top_B1,
        lack_B1=goal[0],
        spare_B1=jnp.zeros_like(top_B1),
        moving=jnp.array(True),
    )
    return jax.lax.while_loop(lambda walk: walk.moving, step, start)


def _sum(x_BNL: jax.Array) -> jax.Array:
    lines_BL = jax.lax.optimization_barrier(x_BNL.sum(axis=1, dtype=x_BNL.dtype))
    return lines_BL.sum(axis=1, keepdims=True, dtype=x_BNL.dtype)


def _highest(x_BNL: jax.Array) -> jax.Array:
    return jax.lax.optimization_barrier(x_BNL.max(axis=1)).max(axis=1, keepdims=True)
