"""What mixes tokens: who may see whom, and multi-head attention over those who may.

Masks are boolean, true where a query may look, and broadcast to [B, 1, T, S]; combine them with `&`.
"""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from model import cache, layers, positions, sharding, splash
from model.config import ModelConfig, Runtime, Scores

BLOCK = 128


class Sight(struct.PyTreeNode):
    """Where the tokens of a stack stand and what they may see; a batch of 1 serves all rows.

    Attributes:
        positions_BT, keys_BS: int32, where each query and each key stands.
        sees: bool [B, 1, T, S].
        bias: float32 [B, N, T, S] added to the scores, or None.
        real_BT: true at real tokens, or None: all are.
        source: what cross-attention may see of the source, bool [B, 1, T, S], or None.
        prefix_B: int32, how many first tokens see each other both ways, or None: none do.
        causal: whether it is known that no token sees one that stands behind it in its row.
        plain: whether it is known that this and `segments_BT` are all that limits the look.
        segments_BT: int32, of packed rows, or None.
    """

    positions_BT: jax.Array
    keys_BS: jax.Array
    sees: jax.Array
    bias: jax.Array | None = None
    real_BT: jax.Array | None = None
    source: jax.Array | None = None
    prefix_B: jax.Array | None = None
    causal: bool = struct.field(pytree_node=False, default=False)
    plain: bool = struct.field(pytree_node=False, default=False)
    segments_BT: jax.Array | None = None


def look(
    length: int,
    *,
    causal: bool,
    mask_BT: jax.Array | None = None,
    segments_BT: jax.Array | None = None,
    prefix_B: jax.Array | None = None,
) -> Sight:
    """What the tokens of whole rows see: a causal or a bidirectional look at real tokens of their own segment.

    Args:
        length: of the rows.
        causal: whether a token sees none behind it.
        mask_BT: true at real tokens.
        segments_BT: of packed rows; positions start again in each.
        prefix_B: so many first real tokens of each row see each other both ways (Raffel et al. 2020, section 3.2.1).
    """
    positions_BT = jnp.arange(length, dtype=jnp.int32)[None]
    if mask_BT is not None:
        positions_BT = positions.from_mask(mask_BT)
    if segments_BT is not None:
        positions_BT = positions.from_segments(segments_BT, mask_BT)
    if causal:
        sees = before(positions_BT, positions_BT, prefix_B)
    else:
        sees = jnp.ones((1, 1, length, length), bool)
    if mask_BT is not None:
        sees = sees & real(mask_BT)
    if segments_BT is not None:
        sees = sees & same_segment(segments_BT, segments_BT)
    ahead = not causal or prefix_B is not None
    return Sight(
        positions_BT,
        positions_BT,
        sees,
        real_BT=mask_BT,
        prefix_B=prefix_B,
        causal=not ahead,
        plain=not ahead and mask_BT is None,
        segments_BT=segments_BT,
    )


def look_back(
    lengths_B: jax.Array,
    length: int,
    slots: int,
    mask_BT: jax.Array | None = None,
    prefix_B: jax.Array | None = None,
) -> Sight:
    """What `length` new tokens see of a cache that held `lengths_B`: slot p holds the token at position p.

    Of a prefix, only what has come so far: it must be appended at once.
    """
    positions_BT = lengths_B[:, None] + jnp.arange(length, dtype=jnp.int32)[None]
    keys_BS = jnp.arange(slots, dtype=jnp.int32)[None]
    sees = before(positions_BT, keys_BS, prefix_B)
    return Sight(positions_BT, keys_BS, sees, real_BT=mask_BT, prefix_B=prefix_B)


def before(
    queries_BT: jax.Array, keys_BS: jax.Array, prefix_B: jax.Array | None = None
) -> jax.Array:
    """A query sees the keys at or before its own position, and those of the first `prefix_B` positions.

    Example: queries and keys `[[0, 1, 2]]` give `[[1, 0, 0], [1, 1, 0], [1, 1, 1]]`, and with a prefix of 2
    `[[1, 1, 0], [1, 1, 0], [1, 1, 1]]`.
    """
    sees_BTS = keys_BS[:, None, :] <= queries_BT[:, :, None]
    if prefix_B is not None:
        sees_BTS = sees_BTS | (keys_BS[:, None, :] < prefix_B[:, None, None])
    return sees_BTS[:, None]


def within(sight: Sight, window: int | jax.Array) -> Sight:
    """The same look, but less than `window` tokens back.

    Example: with window 2 the last of three tokens sees `[0, 1, 1]`.
    """
    near = sight.positions_BT[:, :, None] - sight.keys_BS[:, None, :] < window
    return sight.replace(sees=sight.sees & near[:, None], plain=False)


def real(mask_BS: jax.Array) -> jax.Array:
    """Nobody sees padding: true at real keys."""
    return mask_BS[:, None, None, :]


def same_segment(queries_BT: jax.Array, keys_BS: jax.Array) -> jax.Array:
    """Packed documents never see each other.

    Example: segments `[1, 1, 2]` give `[[1, 1, 0], [1, 1, 0], [0, 0, 1]]`.
    """
    return (queries_BT[:, :, None] == keys_BS[:, None, :])[:, None]


def probabilities(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    sees: jax.Array,
    bias: jax.Array | None,
    scale: float,
    cap: float,
) -> jax.Array:
    """The attention map [B, N, T, S] in float32; a row with nothing to see is zero."""
    batch, length, heads, size = q_BTNH.shape
    q_BTKGH = q_BTNH.reshape(batch, length, k_BSKH.shape[2], -1, size)
    k_BSKH = k_BSKH.astype(q_BTNH.dtype)
    scores_BKGTS = jnp.einsum(
        "BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32
    )
    scores_BNTS = soft_cap(scores_BKGTS.reshape(batch, heads, length, -1) * scale, cap)
    if bias is not None:
        scores_BNTS = scores_BNTS + bias
    return jax.nn.softmax(scores_BNTS, axis=-1, where=sees)


def soft_cap(scores: jax.Array, cap: float) -> jax.Array:
    """`cap tanh(scores / cap)`: between -cap and cap, and nearly unchanged near 0 (Gemma 2); 0 changes nothing."""
    return cap * jnp.tanh(scores / cap) if cap else scores


def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    sight: Sight,
    scale: float,
    cap: float,
    kind: str = "xla",
) -> jax.Array:
    """Values averaged by the attention map, [B, T, N, H].

    Args:
        kind: of `config.CHOICES["attention"]`, the way it is computed.
    """
    length = q_BTNH.shape[1]
    if kind == "auto":
        # Blocks of rows whose tokens lie on several devices would have to be sent around.
        whole = sharding.devices_of("sequence") == 1
        kind = "blocks" if sight.causal and length > 2 * BLOCK and whole else "xla"
    if kind == "splash":
        if sight.plain and sight.bias is None and splash.applies(q_BTNH, k_BSKH):
            return splash.attend(q_BTNH, k_BSKH, v_BSKH, sight.segments_BT, scale, cap)
        kind = "xla"
    if kind != "blocks":
        return _attend(kind, scale, cap, q_BTNH, k_BSKH, v_BSKH, sight.sees, sight.bias)
    part = jax.checkpoint(functools.partial(_attend, "xla", scale, cap))
    parts = []
    for start in range(0, length, BLOCK):
        rows = slice(start, start + BLOCK)
        seen = slice(start + BLOCK if sight.causal else None)
        sees, bias = (_cut(x, rows, seen) for x in (sight.sees, sight.bias))
        parts.append(part(q_BTNH[:, rows], k_BSKH[:, seen], v_BSKH[:, seen], sees, bias))
    return jnp.concatenate(parts, axis=1)


def _cut(x_BNTS: jax.Array | None, rows: slice, seen: slice) -> jax.Array | None:
    """Some queries and some keys of a mask or a bias, of which either may be one for all."""
    if x_BNTS is None:
        return None
    every, (length, slots) = slice(None), x_BNTS.shape[2:]
    return x_BNTS[:, :, rows if length > 1 else every, seen if slots > 1 else every]


def _attend(
    kind: str,
    scale: float,
    cap: float,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    sees: jax.Array,
    bias: jax.Array | None,
) -> jax.Array:
    """`attend` at once."""
    if not cap:
        return jax.nn.dot_product_attention(
            q_BTNH,
            k_BSKH,
            v_BSKH,
            bias=bias,
            mask=sees,
            scale=scale,
            implementation=cast(Any, kind),
        )
    map_BNTS = probabilities(q_BTNH, k_BSKH, sees, bias, scale, cap).astype(v_BSKH.dtype)
    batch, _, length, slots = map_BNTS.shape
    map_BKGTS = map_BNTS.reshape(batch, v_BSKH.shape[2], -1, length, slots)
    y_BTKGH = jnp.einsum("BKGTS,BSKH->BTKGH", map_BKGTS, v_BSKH)
    return y_BTKGH.reshape(q_BTNH.shape)


def attend_slots(
    q_BTNH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, sight: Sight, scale: float, cap: float
) -> jax.Array:
    """`attend`, to keys and values as a cache holds them: one product per row and head, and nothing to transpose."""
    batch, length, heads, size = q_BTNH.shape
    count, slots = k_BKSH.shape[1:3]
    q_BKGTH = q_BTNH.reshape(batch, length, count, -1, size).transpose(0, 2, 3, 1, 4)
    q_BKMH = q_BKGTH.reshape(batch, count, -1, size)
    scores_BKMS = jnp.einsum("BKMH,BKSH->BKMS", q_BKMH, k_BKSH, preferred_element_type=jnp.float32)
    scores_BNTS = soft_cap(scores_BKMS.reshape(batch, heads, length, slots) * scale, cap)
    if sight.bias is not None:
        scores_BNTS = scores_BNTS + sight.bias
    lowest = jnp.finfo(jnp.float32).min
    map_BNTS = jax.nn.softmax(jnp.where(sight.sees, scores_BNTS, lowest), axis=-1)
    map_BKMS = map_BNTS.astype(v_BKSH.dtype).reshape(batch, count, -1, slots)
    y_BKMH = jnp.einsum("BKMS,BKSH->BKMH", map_BKMS, v_BKSH)
    y_BKGTH = y_BKMH.reshape(batch, count, -1, length, size)
    return y_BKGTH.transpose(0, 3, 1, 2, 4).reshape(q_BTNH.shape)


def score_scale(scores: Scores, head_size: int) -> float:
    """What scores are multiplied by."""
    return scores.scale or head_size**-0.5


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017) with grouped key/value heads (Ainslie et al. 2023)."""

    config: ModelConfig
    runtime: Runtime

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, sight: Sight, source_BSD: jax.Array | None = None, past: Any = None
    ) -> tuple[jax.Array, dict]:
        """Returns [B, T, D] and `aux`: the attention map, and the keys and values seen, with a past as it lays them.

        Args:
            x_BTD: what asks.
            sight: who sees whom.
            source_BSD: what is asked in cross-attention, where positions play no part; itself otherwise.
            past: (keys [B, K, S, H], values [B, K, S, H], lengths [B]), to which new tokens are appended; in
                cross-attention (keys, values) of a source that was read before, taken as they are.
        """
        c, cross = self.config, sight.source is not None
        dense = dict(bias=c.bias != "none", dtype=self.runtime.dtype)
        query = dict(shape=(c.width, c.heads, c.head_size), axes=("embed", "heads", "head"))
        kv = dict(shape=(c.width, c.kv_heads, c.head_size), axes=("embed", "kv_heads", "head"))
        scale = score_scale(c.scores, c.head_size)
        # Scores begin with a deviation of 1 whatever multiplies them, as T5's do, whose multiplier is 1.
        plain = c.head_size**-0.5 / scale
        q_BTNH = layers.Dense("BTD,DNH->BTNH", name="query", scale=plain, **query, **dense)(x_BTD)
        if c.scores.norm:
            q_BTNH = layers.Norm(c, self.runtime.dtype, name="query_norm")(q_BTNH)
        if c.position == "rope" and not cross:
            q_BTNH = positions.rotate(q_BTNH, sight.positions_BT, c.rope)
        if sight.source is not None:
            sight = sight.replace(sees=sight.source, bias=None, causal=False, plain=False)
        if cross and past is not None:
            k, v = past
        else:
            asked_BSD = x_BTD if source_BSD is None else source_BSD
            k_BSKH = layers.Dense("BSD,DKH->BSKH", name="key", **kv, **dense)(asked_BSD)
            v_BSKH = layers.Dense("BSD,DKH->BSKH", name="value", **kv, **dense)(asked_BSD)
            if c.scores.norm:
                k_BSKH = layers.Norm(c, self.runtime.dtype, name="key_norm")(k_BSKH)
            if c.position == "rope" and not cross:
                k_BSKH = positions.rotate(k_BSKH, sight.positions_BT, c.rope)
            k, v = k_BSKH, v_BSKH
            if past is not None:
                keys_BKSH, values_BKSH, lengths_B = past
                k = cache.append(keys_BKSH, k_BSKH, lengths_B)
                v = cache.append(values_BKSH, v_BSKH, lengths_B)
        whole = functools.partial(attend, kind=self.runtime.attention)
        y_BTNH = (whole if past is None else attend_slots)(
            q_BTNH, k.astype(q_BTNH.dtype), v.astype(q_BTNH.dtype), sight, scale, c.scores.cap
        )
        y_BTD = layers.Dense(
            "BTNH,NHD->BTD",
            (c.heads, c.head_size, c.width),
            ("heads", "head", "embed"),
            scale=(2 * c.layers) ** -0.5,
            name="out",
            **{**dense, "bias": c.bias not in ("none", "qkv")},
        )(y_BTNH)
        k_BSKH = k if past is None else k.swapaxes(1, 2)
        seen = probabilities(q_BTNH, k_BSKH, sight.sees, sight.bias, scale, c.scores.cap)
        return y_BTD, {"attention": seen, "keys": k, "values": v}
