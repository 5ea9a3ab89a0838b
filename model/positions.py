"""What knows where a token is: position numbers, tables, rotary embedding, and biases by distance."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from model import layers
from model.config import ModelConfig, Rope, Runtime

BUCKETS = 32  # of T5, in every published size
FARTHEST = 128


def from_mask(mask_BT: jax.Array) -> jax.Array:
    """Positions that count real tokens only, so that left padding moves nothing.

    Example: mask `[0, 0, 1, 1, 1]` gives `[0, 0, 0, 1, 2]`.
    """
    return jnp.maximum(jnp.cumsum(mask_BT.astype(jnp.int32), axis=1) - 1, 0)


def from_segments(segments_BT: jax.Array, mask_BT: jax.Array | None = None) -> jax.Array:
    """Positions that start again at every change of segment, and count real tokens only.

    Example: segments `[1, 1, 2, 2, 2, 0]` give `[0, 1, 0, 1, 2, 0]`, and where the mask is `[0, 1, 0, 1, 1, 1]`
    `[0, 0, 0, 0, 1, 0]`.
    """
    mask_BT = jnp.ones_like(segments_BT, bool) if mask_BT is None else mask_BT
    one_BT = mask_BT.astype(jnp.int32)
    count_BT = jnp.cumsum(one_BT, axis=1)
    changes_BT = jnp.concatenate(
        [jnp.ones_like(segments_BT[:, :1], bool), segments_BT[:, 1:] != segments_BT[:, :-1]], axis=1
    )
    before_BT = jax.lax.cummax(jnp.where(changes_BT, count_BT - one_BT, 0), axis=1)
    return jnp.maximum(count_BT - 1 - before_BT, 0)


def sinusoidal(positions_BT: jax.Array, width: int, halves: bool = False) -> jax.Array:
    """Vaswani et al. 2017, section 3.5: `sin(p / 10000^(2i/D))` in the even, `cos` in the odd entries.

    With `halves` all sines come first, as in the paper's own code. Returns float32 [B, T, D].
    """
    frequencies = 10_000.0 ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angles = positions_BT.astype(jnp.float32)[:, :, None] * frequencies[None, None, :]
    if halves:
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)[:, :, :width]
    pairs = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return pairs.reshape(*positions_BT.shape, -1)[:, :, :width]


def frequencies(rope: Rope, size: int) -> jax.Array:
    """Radians per position of each of the `size / 2` pairs, slowest last: `theta^(-2i/size)`, scaled.

    LLaMA 3 leaves frequencies of more than `high` turns in the original window as they are, divides those of fewer
    than `low` by `factor`, and blends between. YaRN (Peng et al. 2023, section 3.2) blends along the pairs.
    """
    half = size // 2
    theta = rope.theta
    if rope.scaling == "ntk":
        theta *= rope.factor ** (size / max(1, size - 2))
    plain = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if rope.scaling == "linear":
        return plain / rope.factor
    if rope.scaling == "llama3":
        turns = rope.original_length * plain / (2 * math.pi)
        kept = jnp.clip((turns - rope.low) / (rope.high - rope.low), 0, 1)
        return plain * (kept + (1 - kept) / rope.factor)
    if rope.scaling == "yarn":
        first, last = (_pair(rope, size, turns) for turns in (rope.high, rope.low))
        first, last = max(math.floor(first), 0), min(math.ceil(last), size - 1)
        place = jnp.arange(half, dtype=jnp.float32) - first
        kept = 1 - jnp.clip(place / max(last - first, 1e-3), 0, 1)
        return plain * (kept + (1 - kept) / rope.factor)
    return plain


def _pair(rope: Rope, size: int, turns: float) -> float:
    """The place, among the pairs, of the frequency that turns so often in the original window."""
    return (
        size * math.log(rope.original_length / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))
    )


def rotate(x_BTNH: jax.Array, positions_BT: jax.Array, rope: Rope) -> jax.Array:
    """Rotary embedding (Su et al. 2021), pairing entry i with entry i + H/2 as in GPT-NeoX and LLaMA checkpoints.

    The angles are float32 whatever the activations are: bfloat16 cannot tell position 256 from 257.
    """
    size = int(x_BTNH.shape[-1] * rope.fraction)
    turned, kept = x_BTNH[..., :size], x_BTNH[..., size:]
    radians = frequencies(rope, size)[None, None, None, :]
    angles = positions_BT.astype(jnp.float32)[:, :, None, None] * radians
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if rope.scaling == "yarn":
        magnitude = rope.magnitude or 0.1 * math.log(max(rope.factor, 1)) + 1
        cos, sin = cos * magnitude, sin * magnitude
    first, second = jnp.split(turned.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    rotated = rotated.astype(x_BTNH.dtype)
    return rotated if size == x_BTNH.shape[-1] else jnp.concatenate([rotated, kept], axis=-1)


def slopes(heads: int) -> np.ndarray:
    """ALiBi's slope of each head (Press et al. 2022): `2^(-8 i / n)`, and for a count that is no power of two every
    other slope of the next one behind those of the last, as the authors' code has it.

    Example: 3 heads have `[1/16, 1/256, 1/4]`.
    """
    power = 2 ** math.floor(math.log2(heads))
    first = 2.0 ** (-8 / power * np.arange(1, power + 1))
    between = 2.0 ** (-4 / power * np.arange(1, 2 * power, 2))
    return np.concatenate([first, between])[:heads].astype(np.float32)


def alibi(heads: int, positions_BT: jax.Array, keys_BS: jax.Array, causal: bool) -> jax.Array:
    """What ALiBi adds to the scores: `-slope |distance|`, float32 [B, N, T, S].

    Where nobody looks ahead the distance to the key may be its position: a softmax does not see what it adds to a whole
    row. That is [B, N, 1, S], which for BLOOM's 112 heads matters.
    """
    slopes_N = jnp.asarray(slopes(heads))
    keys_BNTS = keys_BS.astype(jnp.float32)[:, None, None, :]
    if not causal:
        keys_BNTS = -jnp.abs(keys_BNTS - positions_BT.astype(jnp.float32)[:, None, :, None])
    return slopes_N[None, :, None, None] * keys_BNTS


def buckets(causal: bool) -> np.ndarray:
    """T5's bucket of each distance (key minus query) from -128 to 128, where all farther ones belong too.

    Half of them are exact distances and half grow logarithmically up to 128 (Raffel et al. 2020, section 2.1); looking
    both ways, each direction has half of the buckets.
    """
    distance = np.arange(-FARTHEST, FARTHEST + 1)
    count = BUCKETS if causal else BUCKETS // 2
    offset = 0 if causal else np.where(distance > 0, count, 0)
    size = np.maximum(-distance, 0) if causal else np.abs(distance)
    exact = count // 2
    ratio = np.log(np.maximum(size, 1) / exact) / np.log(FARTHEST / exact)
    # A power of two must fall on its bucket's first distance whatever the last bit of the logarithm.
    far = exact + np.floor(ratio * (count - exact) + 1e-9).astype(np.int64)
    return (offset + np.where(size < exact, size, np.minimum(far, count - 1))).astype(np.int32)


class RelativeBias(nn.Module):
    """T5's learned bias of each head for each bucket of distances, shared by all layers of a stack: [B, N, T, S]."""

    config: ModelConfig
    causal: bool

    @nn.compact
    def __call__(self, positions_BT: jax.Array, keys_BS: jax.Array) -> jax.Array:
        init = layers.normal(0.02, ("position", "heads"))
        table = self.param("weight", init, (BUCKETS, self.config.heads), jnp.float32)
        distance_BTS = keys_BS[:, None, :] - positions_BT[:, :, None]
        place_BTS = jnp.clip(distance_BTS, -FARTHEST, FARTHEST) + FARTHEST
        bucket_BTS = jnp.take(jnp.asarray(buckets(self.causal)), place_BTS, axis=0)
        bias_BTSN = jnp.take(table.astype(jnp.float32), bucket_BTS, axis=0)
        return bias_BTSN.transpose(0, 3, 1, 2)


class PositionEmbedding(nn.Module):
    """What is added to the token embedding: a learned row, a sinusoid, or nothing."""

    config: ModelConfig
    runtime: Runtime

    @nn.compact
    def __call__(self, x_BTD: jax.Array, positions_BT: jax.Array) -> jax.Array:
        c = self.config
        if c.position in ("learned", "learned_from_2"):
            unused = 2 if c.position == "learned_from_2" else 0
            init = layers.normal(0.02, ("position", "embed"))
            table = self.param("weight", init, (c.context_length + unused, c.width), jnp.float32)
            row_BTD = jnp.take(table, positions_BT + unused, axis=0, mode="clip")
            return x_BTD + row_BTD.astype(x_BTD.dtype)
        if c.position in ("sinusoidal", "sinusoidal_halves"):
            wave_BTD = sinusoidal(positions_BT, c.width, c.position == "sinusoidal_halves")
            return x_BTD + wave_BTD.astype(x_BTD.dtype)
        return x_BTD
