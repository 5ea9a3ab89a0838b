"""What knows where a token is: position numbers, sinusoidal and learned tables, rotary embedding."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from model import layers
from model.config import ModelConfig, Runtime


def from_mask(mask_BT: jax.Array) -> jax.Array:
    """Positions that count real tokens only, so that left padding moves nothing.

    Example: mask `[0, 0, 1, 1, 1]` gives `[0, 0, 0, 1, 2]`.
    """
    return jnp.maximum(jnp.cumsum(mask_BT.astype(jnp.int32), axis=1) - 1, 0)


def from_segments(segments_BT: jax.Array) -> jax.Array:
    """Positions that start again at every change of segment.

    Example: segments `[1, 1, 2, 2, 2, 0]` give `[0, 1, 0, 1, 2, 0]`.
    """
    index_T = jnp.arange(segments_BT.shape[1], dtype=jnp.int32)
    changes_BT = jnp.concatenate(
        [jnp.ones_like(segments_BT[:, :1], bool), segments_BT[:, 1:] != segments_BT[:, :-1]], axis=1
    )
    starts_BT = jax.lax.cummax(jnp.where(changes_BT, index_T[None], 0), axis=1)
    return index_T[None] - starts_BT


def sinusoidal(positions_BT: jax.Array, width: int) -> jax.Array:
    """Vaswani et al. 2017, section 3.5: `sin(p / 10000^(2i/D))` in the even, `cos` in the odd entries.

    Returns float32 [B, T, D].
    """
    frequencies = 10_000.0 ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angles = positions_BT.astype(jnp.float32)[:, :, None] * frequencies[None, None, :]
    pairs = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return pairs.reshape(*positions_BT.shape, -1)[:, :, :width]


def rotate(x_BTNH: jax.Array, positions_BT: jax.Array, theta: float) -> jax.Array:
    """Rotary embedding (Su et al. 2021), pairing entry i with entry i + H/2 as in GPT-NeoX and LLaMA checkpoints.

    The angles are float32 whatever the activations are: bfloat16 cannot tell position 256 from 257.
    """
    half = x_BTNH.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions_BT.astype(jnp.float32)[:, :, None, None] * frequencies[None, None, None, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTNH.dtype)


class PositionEmbedding(nn.Module):
    """What is added to the token embedding: a learned row, a sinusoid, or nothing."""

    config: ModelConfig
    runtime: Runtime

    @nn.compact
    def __call__(self, x_BTD: jax.Array, positions_BT: jax.Array) -> jax.Array:
        c = self.config
        if c.position == "learned":
            init = layers.normal(0.02, ("position", "embed"))
            table = self.param("weight", init, (c.context_length, c.width), jnp.float32)
            return x_BTD + jnp.take(table, positions_BT, axis=0, mode="clip").astype(x_BTD.dtype)
        if c.position == "sinusoidal":
            return x_BTD + sinusoidal(positions_BT, c.width).astype(x_BTD.dtype)
        return x_BTD
