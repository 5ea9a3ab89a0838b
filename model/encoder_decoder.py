"""The 2017 Transformer, T5 and BART: one stack reads the source both ways, another writes the target looking at it.

What distinguishes the members is in their `ModelConfig`: the Transformer has sinusoids and norms after each sum, T5
relative positions, RMSNorm and no biases, BART learned positions.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from model import attention, blocks, heads, layers
from model.cache import Cache
from model.config import ModelConfig, Runtime


class EncoderDecoder(nn.Module):
    """Source and target in, logits over the target's next token out; one table embeds both.

    `setup` rather than `@nn.compact` because `encode` and `decode` are called apart.
    """

    config: ModelConfig
    runtime: Runtime = Runtime()

    def setup(self) -> None:
        c, run = self.config, self.runtime
        self.embedding = layers.Embedding(c, run)
        self.encoder = blocks.Stack(c, run, c.encoder_layers, causal=False)
        self.decoder = blocks.Stack(c, run, c.layers)
        self.output = heads.Output(c, run)

    def __call__(
        self, source_BS: jax.Array, target_BT: jax.Array, **kwargs
    ) -> tuple[jax.Array, dict]:
        """Returns float32 logits [B, T, V] and `aux`; the arguments are those of `features`."""
        x_BTD, aux = self.features(source_BS, target_BT, **kwargs)
        return self.head(x_BTD), {**aux, "features": x_BTD}

    def features(
        self,
        source_BS: jax.Array,
        target_BT: jax.Array,
        *,
        source_mask: jax.Array | None = None,
        target_mask: jax.Array | None = None,
        source_segments: jax.Array | None = None,
        target_segments: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, dict]:
        """The target's last hidden state [B, T, D], and `aux`; the encoder's is named `encoder_...`.

        Args:
            source_BS, target_BT: int32; the target begins with the token that starts a decoder.
            source_mask, target_mask: bool, true at real tokens; padding may stand on either side.
            source_segments, target_segments: int32, of packed pairs: a target token sees the source of its own number.
            train: applies dropout; needs `rngs={"dropout": key}` when `runtime.dropout` is above 0.
        """
        length = target_BT.shape[1]
        self.config.check_length(length)
        memory_BSD, read = self.encode(source_BS, source_mask, source_segments, train)
        sight = attention.look(
            length, causal=True, mask_BT=target_mask, segments_BT=target_segments
        )
        source = jnp.ones((1, 1, 1, source_BS.shape[1]), bool)
        if source_mask is not None:
            source = source & attention.real(source_mask)
        if source_segments is not None and target_segments is not None:
            source = source & attention.same_segment(target_segments, source_segments)
        x_BTD, aux = self.decoder(
            self.embedding(target_BT), sight.replace(source=source), memory_BSD, None, train
        )
        return x_BTD, {**aux, **{f"encoder_{name}": value for name, value in read.items()}}

    def encode(
        self,
        source_BS: jax.Array,
        mask: jax.Array | None = None,
        segments: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, dict]:
        """The encoder's hidden states [B, S, D], and its `aux` with them as `features`."""
        self.config.check_length(source_BS.shape[1])
        sight = attention.look(source_BS.shape[1], causal=False, mask_BT=mask, segments_BT=segments)
        memory_BSD, aux = self.encoder(self.embedding(source_BS), sight, train=train)
        return memory_BSD, {**aux, "features": memory_BSD}

    def head(self, x_BTD: jax.Array) -> jax.Array:
        """Float32 logits [B, T, V] of hidden states."""
        return self.output(x_BTD, self.embedding.weight if self.config.tied else None)

    def read(self, tokens_BS: jax.Array, mask: jax.Array, cache: Cache) -> Cache:
        """The cache with a source in it, and no token of a target yet."""
        memory_BSD, _ = self.encode(tokens_BS, mask)
        nothing_BT = jnp.zeros_like(mask[:, :1])
        _, aux = self._append(tokens_BS[:, :1], nothing_BT, cache, attention.real(mask), memory_BSD)
        keys, values = (
            tuple(new_BSKH.swapaxes(1, 2) for new_BSKH in aux[name])
            for name in ("cross_keys", "cross_values")
        )
        return cache.replace(source=(keys, values, mask))

    def extend(self, tokens_BT: jax.Array, mask: jax.Array, cache: Cache) -> tuple:
        """Float32 logits [B, T, V] behind each token of a target, and the cache with them in it."""
        return self.trace(tokens_BT, mask, cache)[:2]

    def trace(self, tokens_BT: jax.Array, mask: jax.Array, cache: Cache) -> tuple:
        """What `extend` gives, and `aux` with the last hidden state as `features` and every layer's as `hidden`."""
        x_BTD, aux = self._append(tokens_BT, mask, cache, attention.real(cache.source[2]))
        return self.head(x_BTD), aux["cache"], {**aux, "features": x_BTD}

    def _append(
        self,
        tokens_BT: jax.Array,
        mask: jax.Array,
        cache: Cache,
        source: jax.Array,
        memory_BSD: jax.Array | None = None,
    ) -> tuple[jax.Array, dict]:
        """More tokens of a target; the source is what the cache holds unless `memory_BSD` is given."""
        length, slots = tokens_BT.shape[1], cache.slots
        self.config.check_length(length)
        sight = attention.look_back(cache.lengths_B, length, slots, mask).replace(source=source)
        past = cache if memory_BSD is None else cache.replace(source=None)
        x_BTD, aux = self.decoder(self.embedding(tokens_BT), sight, memory_BSD, past)
        return x_BTD, cache.after(aux, length, mask)
