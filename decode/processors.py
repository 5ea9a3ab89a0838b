"""Which tokens may be drawn, and with what weight? Pure functions from logits [B, V] to logits [B, V].

Each takes its setting as an array with a value per row, so rows may differ and no value recompiles.
A token that is not kept gets -inf. The kept sets are those of Hugging Face's processors. Nothing is
sorted: thresholds are found by bisection over the bits of a float, 50 times faster than a sort of
50,000 logits on a CPU.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from decode import pairs
from decode.settings import Settings

ROUNDING = np.float32(2**-16)  # see `top_p`
ZERO = np.float32(0)


class Knobs(struct.PyTreeNode):
    """The settings of a batch as arrays, one value per row.

    Attributes:
        temperature_B: float32; 0 is greedy.
        top_k_B: int32; 0 keeps all.
        top_p_B: float32; 1 keeps all.
        top_p_rest_B: float32, what p has beyond its float32 rounding.
    """

    temperature_B: jax.Array
    top_k_B: jax.Array
    top_p_B: jax.Array
    top_p_rest_B: jax.Array


def knobs(settings: Sequence[Settings]) -> Knobs:
    """The arrays of some rows' settings. A greedy row filters nothing: its choice could not change."""
    drawn = [s.temperature > 0 for s in settings]
    p = np.array([s.top_p if d else 1.0 for s, d in zip(settings, drawn, strict=True)], np.float64)
    return Knobs(
        temperature_B=np.array([s.temperature for s in settings], np.float32),
        top_k_B=np.array([s.top_k * d for s, d in zip(settings, drawn, strict=True)], np.int32),
        top_p_B=p.astype(np.float32),
        top_p_rest_B=(p - p.astype(np.float32)).astype(np.float32),
    )


def hf(logits_BV: jax.Array, knobs: Knobs) -> jax.Array:
    """The preset `hf`: temperature, then top-k, then top-p of what top-k has left."""
    logits_BV = temperature(logits_BV, knobs.temperature_B)
    logits_BV = top_k(logits_BV, knobs.top_k_B)
    return top_p(logits_BV, knobs.top_p_B, knobs.top_p_rest_B)


def temperature(logits_BV: jax.Array, temperature_B: jax.Array) -> jax.Array:
    """Divides the logits: below 1 sharpens, above 1 flattens, 1 and 0 (greedy) change nothing.

    The barrier keeps XLA from multiplying by the reciprocal, whose rounding differs for two logits in three.
    """
    divisor_B1 = jnp.where(temperature_B > 0, temperature_B, np.float32(1))[:, None]
    divisor_BV = jnp.broadcast_to(divisor_B1, logits_BV.shape)
    return logits_BV / jax.lax.optimization_barrier(divisor_BV)


def top_k(logits_BV: jax.Array, top_k_B: jax.Array) -> jax.Array:
    """Keeps the k largest logits and all that equal the k-th; k = 0, or beyond V, keeps all.

    Example: `[3, 1, 2, 2, 0]` with k = 2 keeps `[3, -, 2, 2, -]`.
    """

    def filtered() -> jax.Array:
        order_BV = _order(logits_BV)
        wanted_B1 = top_k_B[:, None].astype(jnp.float32)

        def reaches(code_B1: jax.Array) -> jax.Array:
            return _sum(order_BV >= code_B1, jnp.ones_like(logits_BV)) >= wanted_B1

        kth_B1 = _largest_code(reaches, len(logits_BV))
        return jnp.where((order_BV >= kth_B1) | (wanted_B1 == 0), logits_BV, -jnp.inf)

    active_B = (top_k_B > 0) & (top_k_B < logits_BV.shape[1])
    return jax.lax.cond(active_B.any(), filtered, lambda: logits_BV)


def top_p(
    logits_BV: jax.Array, top_p_B: jax.Array, top_p_rest_B: jax.Array | None = None
) -> jax.Array:
    """Keeps the smallest set of most likely tokens whose mass reaches p (Holtzman et al. 2020).

    At least the likeliest is kept, and of equal ones the lowest ids. p = 1 keeps all; a row whose
    largest logit is infinite stays as it is.

    Sums are exact to 48 bits, so the cut is where real numbers put it, with one allowance: a set
    reaches p when it lacks less than 2^-16 of the next token's own mass. So 0.2 + 0.1 reaches 0.3
    whatever the last bits of three logarithms are, while 1 cut in 65,536 lies elsewhere than without.

    Example: probabilities `[.1, .4, .2, .2, .1]` with p = 0.5 keep `[-, .4, .2, -, -]`.
    """
    if top_p_rest_B is None:
        top_p_rest_B = jnp.zeros_like(top_p_B)
    active_B1 = (top_p_B[:, None] < 1) | (top_p_rest_B[:, None] < 0)

    def filtered() -> jax.Array:
        best_B1 = logits_BV.max(axis=1, keepdims=True)
        p = jnp.where(active_B1, top_p_B[:, None], np.float32(1)), top_p_rest_B[:, None]
        kept_BV = _nucleus(_order(logits_BV), jnp.exp(logits_BV - best_B1), p)
        return jnp.where(kept_BV | ~active_B1 | ~jnp.isfinite(best_B1), logits_BV, -jnp.inf)

    return jax.lax.cond(active_B1.any(), filtered, lambda: logits_BV)


class _Walk(NamedTuple):
    """The search for the least likely code that a nucleus needs."""

    at_B1: jax.Array  # the code to look at
    needed_B1: jax.Array  # the lowest that is known to be needed
    lack_B1: jax.Array  # what the mass above `needed` lacks of the goal
    spare_B1: jax.Array  # the highest that is known not to be needed; 0 before one is found
    moving: jax.Array


def _nucleus(order_BV: jax.Array, mass_BV: jax.Array, p: pairs.Pair) -> jax.Array:
    """True at the smallest set whose mass reaches the fraction p of the whole.

    Bisection on what may be left out lands on the last needed value or next to it: what is left out
    is at most V times the last needed mass, so the rounding of its sum is less than that mass. A walk
    with exact sums ends there.
    """
    whole = pairs.total(mass_BV)
    goal = pairs.times(whole, p)
    spare_B1 = pairs.minus(whole, goal)[0]
    top_B1 = order_BV.max(axis=1, keepdims=True)
    guess_B1 = _largest_code(
        lambda code_B1: _sum(order_BV < code_B1, mass_BV) <= spare_B1, len(order_BV)
    )
    guess_B1 = jnp.where(order_BV <= guess_B1, order_BV, np.uint32(0)).max(axis=1, keepdims=True)

    def step(walk: _Walk) -> _Walk:
        at_B1 = walk.at_B1
        above = pairs.total(jnp.where(order_BV > at_B1, mass_BV, ZERO))
        lack_B1 = pairs.minus(goal, above)[0]
        needed_B1 = (lack_B1 > ROUNDING * _mass_at(at_B1, order_BV, mass_BV)) | (at_B1 == top_B1)
        lower_B1 = jnp.where(order_BV < at_B1, order_BV, np.uint32(0)).max(axis=1, keepdims=True)
        higher_B1 = jnp.where(order_BV > at_B1, order_BV, top_B1).min(axis=1, keepdims=True)
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
    ties_B1 = jnp.ceil(end.lack_B1 / _mass_at(end.needed_B1, order_BV, mass_BV) - ROUNDING)
    tied_BV = order_BV == end.needed_B1
    rank_BV = jnp.cumsum(tied_BV, axis=1, dtype=jnp.int32)
    return (order_BV > end.needed_B1) | (
        tied_BV & (rank_BV <= jnp.maximum(ties_B1.astype(jnp.int32), 1))
    )


def _mass_at(code_B1: jax.Array, order_BV: jax.Array, mass_BV: jax.Array) -> jax.Array:
    return jnp.where(order_BV == code_B1, mass_BV, ZERO).max(axis=1, keepdims=True)


def _sum(where_BV: jax.Array, x_BV: jax.Array) -> jax.Array:
    return jnp.where(where_BV, x_BV, ZERO).sum(axis=1, keepdims=True)


def _order(x_BV: jax.Array) -> jax.Array:
    """Codes, uint32, that compare as the floats do."""
    bits_BV = jax.lax.bitcast_convert_type(jnp.where(x_BV == 0, ZERO, x_BV), jnp.uint32)
    negative_BV = bits_BV >> 31 == 1
    return bits_BV ^ jnp.where(negative_BV, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))


def _largest_code(holds: Callable[[jax.Array], jax.Array], rows: int) -> jax.Array:
    """The largest code [B, 1] for which `holds`, given that it holds for all smaller ones; 0 if for none."""

    def bit(i: jax.Array, code_B1: jax.Array) -> jax.Array:
        tried_B1 = code_B1 | (np.uint32(1 << 31) >> i.astype(jnp.uint32))
        return jnp.where(holds(tried_B1), tried_B1, code_B1)

    return jax.lax.fori_loop(0, 32, bit, jnp.zeros((rows, 1), jnp.uint32))
