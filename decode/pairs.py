"""How are many float32 numbers added as if in double precision? By carrying what each addition rounds away.

A pair (high, low) stands for the number high + low, about 48 bits. Accelerators have no fast float64, and JAX has none
at all unless a process asks for it.
"""

import jax
import jax.numpy as jnp
import numpy as np

Pair = tuple[jax.Array, jax.Array]


def add(x: Pair, y: Pair) -> Pair:
    """x + y (Dekker 1971): the exact error of adding the high parts joins the low parts."""
    total = x[0] + y[0]
    part = total - x[0]
    error = (x[0] - (total - part)) + (y[0] - part) + (x[1] + y[1])
    high = total + error
    return high, error - (high - total)


def total(x_BV: jax.Array) -> Pair:
    """The sum of each row, as a pair of [B, 1]."""
    zero = np.float32(0)
    high_B, low_B = jax.lax.reduce((x_BV, jnp.zeros_like(x_BV)), (zero, zero), add, (1,))
    return high_B[:, None], low_B[:, None]


def columns(x_BNL: jax.Array) -> Pair:
    """The sum of each row of lines, as a pair of [B, 1]: line by line, then over the lanes."""
    nothing_BL = jnp.zeros_like(x_BNL[:, 0])

    def line(i: jax.Array, sums: Pair) -> Pair:
        return add(sums, (x_BNL[:, i], nothing_BL))

    lanes = jax.lax.fori_loop(0, x_BNL.shape[1], line, (nothing_BL, nothing_BL))
    zero = np.float32(0)
    high_B, low_B = jax.lax.reduce(lanes, (zero, zero), add, (1,))
    return high_B[:, None], low_B[:, None]


def minus(x: Pair, y: Pair) -> Pair:
    """x - y."""
    return add(x, (-y[0], -y[1]))


def times(x: Pair, y: Pair) -> Pair:
    """x * y, each [B, 1]: the high parts in halves of 12 bits, whose products are exact."""
    rest = x[0] * y[1] + x[1] * y[0]
    products = [a * b for a in _halves(x[0]) for b in _halves(y[0])]
    return total(jnp.concatenate([*products, rest], axis=1))


def _halves(x: jax.Array) -> Pair:
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) & np.uint32(0xFFFFF000)
    high = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return high, x - high
