"""What mixes tokens: who may see whom, and multi-head attention over those who may.

Masks are boolean, true where a query may look, and broadcast to [B, 1, T, S]; combine them with `&`.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from model import cache, layers, positions
from model.config import ModelConfig, Runtime


def causal(queries_BT: jax.Array, keys_S: jax.Array) -> jax.Array:
    """A query sees the slots at or before its own.

    Example: queries `[[0, 1, 2]]` and keys `[0, 1, 2]` give `[[1, 0, 0], [1, 1, 0], [1, 1, 1]]`.
    """
    return (keys_S[None, None, :] <= queries_BT[:, :, None])[:, None]


def real(mask_BS: jax.Array) -> jax.Array:
    """Nobody sees padding: true at real keys."""
    return mask_BS[:, None, None, :]


def same_segment(segments_BT: jax.Array) -> jax.Array:
    """Packed documents never see each other.

    Example: segments `[1, 1, 2]` give `[[1, 1, 0], [1, 1, 0], [0, 0, 1]]`.
    """
    return (segments_BT[:, :, None] == segments_BT[:, None, :])[:, None]


def probabilities(q_BTNH: jax.Array, k_BSKH: jax.Array, mask: jax.Array, scale: float) -> jax.Array:
    """The attention map [B, N, T, S] in float32, for people to look at; a row with nothing to see is zero."""
    groups = q_BTNH.shape[2] // k_BSKH.shape[2]
    k_BSNH = jnp.repeat(k_BSKH, groups, axis=2).astype(jnp.float32)
    scores_BNTS = jnp.einsum("BTNH,BSNH->BNTS", q_BTNH.astype(jnp.float32), k_BSNH) * scale
    return jax.nn.softmax(scores_BNTS, axis=-1, where=mask)


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017) with grouped key/value heads (Ainslie et al. 2023)."""

    config: ModelConfig
    runtime: Runtime

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        mask: jax.Array,
        positions_BT: jax.Array,
        past: tuple[jax.Array, jax.Array, jax.Array] | None = None,
    ) -> tuple[jax.Array, dict]:
        """Returns [B, T, D] and `aux`: the attention map, and the keys and values seen.

        `past` is (keys [B, S, K, H], values [B, S, K, H], lengths [B]); the new tokens are appended to it.
        """
        c = self.config
        dense = dict(bias=c.bias, dtype=self.runtime.dtype)
        kv = dict(
            shape=(c.width, c.kv_heads, c.head_size), axes=("embed", "kv_heads", "head"), **dense
        )
        q_BTNH = layers.Dense(
            "BTD,DNH->BTNH",
            (c.width, c.heads, c.head_size),
            ("embed", "heads", "head"),
            name="query",
            **dense,
        )(x_BTD)
        k_BTKH = layers.Dense("BTD,DKH->BTKH", name="key", **kv)(x_BTD)
        v_BTKH = layers.Dense("BTD,DKH->BTKH", name="value", **kv)(x_BTD)
        if c.position == "rope":
            q_BTNH = positions.rotate(q_BTNH, positions_BT, c.rope_theta)
            k_BTKH = positions.rotate(k_BTKH, positions_BT, c.rope_theta)
        k_BSKH, v_BSKH = k_BTKH, v_BTKH
        if past is not None:
            keys_BSKH, values_BSKH, lengths_B = past
            k_BSKH = cache.append(keys_BSKH, k_BTKH, lengths_B)
            v_BSKH = cache.append(values_BSKH, v_BTKH, lengths_B)
        scale = c.head_size**-0.5
        y_BTNH = jax.nn.dot_product_attention(
            q_BTNH, k_BSKH.astype(q_BTNH.dtype), v_BSKH.astype(q_BTNH.dtype), mask=mask, scale=scale
        )
        y_BTD = layers.Dense(
            "BTNH,NHD->BTD",
            (c.heads, c.head_size, c.width),
            ("heads", "head", "embed"),
            scale=(2 * c.layers) ** -0.5,
            name="out",
            **dense,
        )(y_BTNH)
        aux = {
            "attention": probabilities(q_BTNH, k_BSKH, mask, scale),
            "keys": k_BSKH,
            "values": v_BSKH,
        }
        return y_BTD, aux
