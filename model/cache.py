"""What does a decoder remember between steps? One slot per position, or a recurrent model's last few states.

Row b keeps the token at position p in slot p, whatever its neighbours' lengths and paddings are, so a row's arithmetic
never depends on its company. Slots at or beyond `lengths_B` hold leftovers that no query attends to. For `decode/` the
cache is an opaque pytree with four verbs: init, append, reorder, roll back. Every family offers the loop two methods:
`read(tokens_BT, mask, cache) -> cache` takes in a prompt, `extend(tokens_BT, mask, cache) -> (logits, cache)` goes on.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from model.config import RECURRENT, ModelConfig

STATES = 8  # of a recurrent model: so many tokens, less one, can be rolled back


class Cache(struct.PyTreeNode):
    """The decode-time state of a batch.

    Attributes:
        keys, values: per layer, [B, K, S, H], so that no step has to transpose them; a recurrent model's states and
            (of an LSTM) cells, [B, S, 1, D], with position p in slot `p % STATES`.
        lengths_B: int32, tokens held by each row.
        source: of an encoder–decoder, per layer keys and values [B, K, S, H] of the source, and its mask [B, S].
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    lengths_B: jax.Array
    source: Any = None

    @property
    def slots(self) -> int:
        """How many tokens each row has room for."""
        return self.keys[0].shape[2]

    def layer(self, i: int) -> tuple[tuple, tuple | None]:
        """What attention of layer i takes as its past, and what cross-attention does."""
        values = self.values[i] if self.values else None
        kept = self.source and (self.source[0][i], self.source[1][i])
        return (self.keys[i], values, self.lengths_B), kept

    def after(self, aux: dict, length: int, mask_BT: jax.Array | None) -> dict:
        """What a stack returned beside hidden states, and `cache`: this one and `length` more tokens, if real."""
        count_B = length if mask_BT is None else mask_BT.sum(axis=1, dtype=jnp.int32)
        new = self.replace(
            keys=tuple(aux["keys"]),
            values=tuple(aux["values"]) if self.values else (),
            lengths_B=self.lengths_B + count_B,
        )
        return {**aux, "cache": new}


def init(
    config: ModelConfig, batch: int, length: int, dtype: str = "float32", source: int = 0
) -> Cache:
    """An empty cache with `length` slots per row, and of an encoder–decoder `source` slots for the source."""

    def blank(slots: int) -> tuple[jax.Array, ...]:
        shape = (batch, config.kv_heads, slots, config.head_size)
        if config.family in RECURRENT:
            shape = (batch, STATES, config.kv_heads, config.head_size)
        return tuple(jnp.zeros(shape, dtype) for _ in range(config.layers))

    kept = (blank(source), blank(source), jnp.zeros((batch, source), bool))
    return Cache(
        keys=blank(length),
        values=() if config.family == "gru" else blank(length),
        lengths_B=jnp.zeros(batch, jnp.int32),
        source=kept if config.family == "encoder_decoder" else None,
    )


def for_prompt(config: ModelConfig, length: int, dtype: str) -> Cache:
    """An empty cache of one row, with room for a prompt of `length` tokens: the source of an encoder-decoder."""
    if config.family == "encoder_decoder":
        return init(config, 1, 1, dtype, source=length)
    return init(config, 1, length, dtype)


def append(slots_BKSH: jax.Array, new_BTKH: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """Writes each row's T new entries behind its `lengths_B` old ones; what has no slot is dropped.

    Said as a scatter with an index per row, head and entry: XLA does it in place, and copied the whole cache in
    every step for a slice update of one row, which took 2 of 17 ms (GPT-2, 128 slots).

    Example: lengths `[2, 0]`, T = 1, S = 3 turn slots `[[a, b, -], [-, -, -]]` into `[[a, b, x], [y, -, -]]`.
    """
    batch, heads = slots_BKSH.shape[:2]
    new_BKTH = new_BTKH.swapaxes(1, 2).astype(slots_BKSH.dtype)
    slot_BT = lengths_B[:, None] + jnp.arange(new_BKTH.shape[2], dtype=jnp.int32)[None]
    place = (
        jnp.arange(batch, dtype=jnp.int32)[:, None, None],
        jnp.arange(heads, dtype=jnp.int32)[None, :, None],
        slot_BT[:, None, :],
    )
    return slots_BKSH.at[place].set(new_BKTH, mode="drop", unique_indices=True)


def append_ring(
    slots_BSKH: jax.Array, new_BTKH: jax.Array, lengths_B: jax.Array, counts_B: jax.Array
) -> jax.Array:
    """Writes the entries of each row's `counts_B` new tokens, of which the last S stay: position p in slot `p % S`.

    Example: lengths `[2]`, counts `[2]`, S = 3 turn slots `[[a, b, -]]` and new `[[x, y, z]]` into `[[y, b, x]]`.
    """
    slots = slots_BSKH.shape[1]
    last_B = lengths_B + counts_B - 1
    slot_S = jnp.arange(slots, dtype=jnp.int32)
    newest_BS = last_B[:, None] - (last_B[:, None] - slot_S[None]) % slots
    place_BS = newest_BS - lengths_B[:, None]
    taken = jnp.take_along_axis(
        new_BTKH, jnp.clip(place_BS, 0, new_BTKH.shape[1] - 1)[:, :, None, None], axis=1
    )
    fresh_BS = (place_BS >= 0) & (counts_B[:, None] > 0)
    return jnp.where(fresh_BS[:, :, None, None], taken.astype(slots_BSKH.dtype), slots_BSKH)


def reorder(cache: Cache, rows_B: jax.Array) -> Cache:
    """Row b of the result is row `rows_B[b]` of the cache, as beam search asks."""
    return jax.tree.map(lambda leaf: jnp.take(leaf, rows_B, axis=0), cache)


def roll_back(cache: Cache, lengths_B: jax.Array) -> Cache:
    """Forgets every token at or beyond `lengths_B`, as speculative decoding asks."""
    return cache.replace(lengths_B=jnp.minimum(cache.lengths_B, lengths_B))
