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

ROUNDING = np.float32(2**-16)  # see `lacking`
REACHES = ROUNDING
EXCEEDS = -ROUNDING
WITHIN = 1 - ROUNDING
ZERO = np.float32(0)


def codes(x_BV: jax.Array) -> jax.Array:
    """Codes, uint32, that compare as the floats do; 0 and -0 are equal."""
    bits_BV = jax.lax.bitcast_convert_type(jnp.where(x_BV == 0, ZERO, x_BV), jnp.uint32)
    negative_BV = bits_BV >> 31 == 1
    return bits_BV ^ jnp.where(negative_BV, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))


def kth_code(codes_BV: jax.Array, k_B: jax.Array) -> jax.Array:
    """The k-th largest code [B, 1] of each row."""

    def reaches(code_B1: jax.Array) -> jax.Array:
        return (codes_BV >= code_B1).sum(axis=1, keepdims=True, dtype=jnp.int32) >= k_B[:, None]

    return largest_code(reaches, len(codes_BV))


def first_of(tied_BV: jax.Array, count_B1: jax.Array) -> jax.Array:
    """True at the first `count` true ones of each row, the lowest ids."""
    rank_BV = jnp.cumsum(tied_BV, axis=1, dtype=jnp.int32)
    return tied_BV & (rank_BV <= count_B1)


def largest_code(holds: Callable[[jax.Array], jax.Array], rows: int) -> jax.Array:
    """The largest code [B, 1] for which `holds`, given that it holds for all smaller ones; 0 if for none."""

    def bit(i: jax.Array, code_B1: jax.Array) -> jax.Array:
        tried_B1 = code_B1 | (np.uint32(1 << 31) >> i.astype(jnp.uint32))
        return jnp.where(holds(tried_B1), tried_B1, code_B1)

    return jax.lax.fori_loop(0, 32, bit, jnp.zeros((rows, 1), jnp.uint32))


class _Walk(NamedTuple):
    """The search for the lowest code that is needed."""

    at_B1: jax.Array  # the code to look at
    needed_B1: jax.Array  # the lowest that is known to be needed
    lack_B1: jax.Array  # what the mass above `needed` lacks of the goal
    spare_B1: jax.Array  # the highest that is known not to be needed; 0 before one is found
    moving: jax.Array


def lacking(
    codes_BV: jax.Array, mass_BV: jax.Array, p: pairs.Pair, rule: np.float32, ties: bool = False
) -> jax.Array:
    """True at the tokens of the highest codes that make up the fraction p of the mass, and at least one.

    A token belongs to them when the mass of those before it lacks more than `rule` times its own mass of the goal:
    `REACHES` is the smallest set whose mass reaches p, `EXCEEDS` the smallest whose mass exceeds it, and `WITHIN` the
    largest whose mass does not exceed it. Of equal codes the lowest ids belong, or all if `ties`.

    Sums are exact to 48 bits, so the cut is where real numbers put it, with one allowance: 2^-16 of the token's own
    mass. So 0.2 + 0.1 reaches 0.3 whatever the last bits of three logarithms are, while 1 cut in 65,536 lies elsewhere
    than without.

    Bisection on what may be left out lands on the last needed value or next to it: what is left out is at most V times
    the last needed mass, so the rounding of its sum is less than that mass. A walk with exact sums ends there.
    """
    whole = pairs.total(mass_BV)
    goal = pairs.times(whole, p)
    spare_B1 = pairs.minus(whole, goal)[0]
    top_B1 = codes_BV.max(axis=1, keepdims=True)
    guess_B1 = largest_code(
        lambda code_B1: _sum(codes_BV < code_B1, mass_BV) <= spare_B1, len(codes_BV)
    )
    guess_B1 = jnp.where(codes_BV <= guess_B1, codes_BV, np.uint32(0)).max(axis=1, keepdims=True)

    def step(walk: _Walk) -> _Walk:
        at_B1 = walk.at_B1
        above = pairs.total(jnp.where(codes_BV > at_B1, mass_BV, ZERO))
        lack_B1 = pairs.minus(goal, above)[0]
        needed_B1 = (lack_B1 > rule * _mass_at(at_B1, codes_BV, mass_BV)) | (at_B1 == top_B1)
        lower_B1 = jnp.where(codes_BV < at_B1, codes_BV, np.uint32(0)).max(axis=1, keepdims=True)
        higher_B1 = jnp.where(codes_BV > at_B1, codes_BV, top_B1).min(axis=1, keepdims=True)
        next_B1 = jnp.where(needed_B1, lower_B1, higher_B1)
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

    start = _Walk(
        jnp.where(jnp.isfinite(goal[0]) & (guess_B1 > 0), guess_B1, top_B1),
        top_B1,
        goal[0],
        jnp.zeros_like(top_B1),
        jnp.array(True),
    )
    end = jax.lax.while_loop(lambda walk: walk.moving, step, start)
    if ties:
        return codes_BV >= end.needed_B1
    count_B1 = jnp.ceil(end.lack_B1 / _mass_at(end.needed_B1, codes_BV, mass_BV) - rule)
    tied_BV = codes_BV == end.needed_B1
    count_B1 = jnp.maximum(count_B1.astype(jnp.int32), 1)
    return (codes_BV > end.needed_B1) | first_of(tied_BV, count_B1)


def _mass_at(code_B1: jax.Array, codes_BV: jax.Array, mass_BV: jax.Array) -> jax.Array:
    return jnp.where(codes_BV == code_B1, mass_BV, ZERO).max(axis=1, keepdims=True)


def _sum(where_BV: jax.Array, x_BV: jax.Array) -> jax.Array:
    return jnp.where(where_BV, x_BV, ZERO).sum(axis=1, keepdims=True)
