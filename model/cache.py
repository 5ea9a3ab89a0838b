"""What does a decoder remember between steps? Keys and values, one slot per position.

Row b keeps the token at position p in slot p, whatever its neighbours' lengths and paddings are, so a row's arithmetic
never depends on its company. Slots at or beyond `lengths_B` hold leftovers that no query attends to. For `decode/` the
cache is an opaque pytree with four verbs: init, append, reorder, roll back.
"""

import jax
import jax.numpy as jnp
from flax import struct

from model.config import ModelConfig


class Cache(struct.PyTreeNode):
    """The decode-time state of a batch.

    Attributes:
        keys, values: per layer, [B, S, K, H].
        lengths_B: int32, tokens held by each row.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    lengths_B: jax.Array


def init(config: ModelConfig, batch: int, length: int, dtype: str = "float32") -> Cache:
    """An empty cache with `length` slots per row."""
    shape = (batch, length, config.kv_heads, config.head_size)
    return Cache(
        keys=tuple(jnp.zeros(shape, dtype) for _ in range(config.layers)),
        values=tuple(jnp.zeros(shape, dtype) for _ in range(config.layers)),
        lengths_B=jnp.zeros(batch, jnp.int32),
    )


def append(slots_BSKH: jax.Array, new_BTKH: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """Writes each row's T new entries behind its `lengths_B` old ones.

    Example: lengths `[2, 0]`, T = 1, S = 3 turn slots `[[a, b, -], [-, -, -]]` into `[[a, b, x], [y, -, -]]`.
    """
    write = jax.vmap(
        lambda slots, new, start: jax.lax.dynamic_update_slice_in_dim(slots, new, start, 0)
    )
    return write(slots_BSKH, new_BTKH.astype(slots_BSKH.dtype), lengths_B)


def reorder(cache: Cache, rows_B: jax.Array) -> Cache:
    """Row b of the result is row `rows_B[b]` of the cache, as beam search asks."""
    return jax.tree.map(lambda leaf: jnp.take(leaf, rows_B, axis=0), cache)


def roll_back(cache: Cache, lengths_B: jax.Array) -> Cache:
    """Forgets every token at or beyond `lengths_B`, as speculative decoding asks."""
    return cache.replace(lengths_B=jnp.minimum(cache.lengths_B, lengths_B))
