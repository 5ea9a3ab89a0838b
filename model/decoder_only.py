"""GPT and LLaMA-like models: one causal stack that reads what it has written.

What distinguishes the members is in their `ModelConfig`, and `model.presets` spells it out: GPT-2 has learned
positions, LayerNorm, a plain GELU feed-forward, biases and a tied head; LLaMA rotary positions, RMSNorm, a gated SiLU
feed-forward and neither; BLOOM ALiBi.
"""

from typing import Any

import jax
from flax import linen as nn

from model import attention, blocks, heads, layers
from model.cache import Cache
from model.config import ModelConfig, Runtime


class DecoderOnly(nn.Module):
    """Tokens in, logits over the next token out; `block` is what a layer is.

    `setup` rather than `@nn.compact` because `features` and `head` are called apart: the decode loop
    wants logits at one position per row, and a chunked loss wants them a few rows at a time.
    """

    config: ModelConfig
    runtime: Runtime = Runtime()
    block: Any = blocks.Block

    def setup(self) -> None:
        c, run = self.config, self.runtime
        self.embedding = layers.Embedding(c, run)
        self.stack = blocks.Stack(c, run, c.layers, block=self.block)
        self.output = heads.Output(c, run)

    def __call__(self, tokens_BT: jax.Array, **kwargs) -> tuple[jax.Array, dict]:
        """Returns float32 logits [B, T, V] and `aux`; the arguments are those of `features`."""
        x_BTD, aux = self.features(tokens_BT, **kwargs)
        return self.head(x_BTD), {**aux, "features": x_BTD}

    def features(
        self,
        tokens_BT: jax.Array,
        *,
        mask: jax.Array | None = None,
        segments: jax.Array | None = None,
        prefix: jax.Array | None = None,
        cache: Cache | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, dict]:
        """The last hidden state [B, T, D], normalised, and `aux`.

        Args:
            tokens_BT: int32.
            mask: bool [B, T], true at real tokens; padding may stand on either side, and on the
                right when there is a cache.
            segments: int32 [B, T]; tokens see their own segment only, and positions start again in each.
            prefix: int32 [B]; so many first real tokens of a row see each other both ways, as in a prefix LM.
            cache: tokens are appended behind each row's own length; `aux["cache"]` is the cache with them in it.
            train: applies dropout; needs `rngs={"dropout": key}` when `runtime.dropout` is above 0.
        """
        length = tokens_BT.shape[1]
        self.config.check_length(length)
        if cache is None:
            sight = attention.look(
                length, causal=True, mask_BT=mask, segments_BT=segments, prefix_B=prefix
            )
        else:
            slots = cache.slots
            sight = attention.look_back(cache.lengths_B, length, slots, mask, prefix)
        x_BTD, aux = self.stack(self.embedding(tokens_BT), sight, None, cache, train)
        return x_BTD, aux if cache is None else cache.after(aux, length, mask)

    def head(self, x_BTD: jax.Array) -> jax.Array:
        """Float32 logits [B, T, V] of hidden states."""
        return self.output(x_BTD, self.embedding.weight if self.config.tied else None)

    def read(
        self, tokens_BT: jax.Array, mask: jax.Array, cache: Cache, prefix: jax.Array | None = None
    ) -> Cache:
        """The cache with a prompt in it."""
        return self.features(tokens_BT, mask=mask, prefix=prefix, cache=cache)[1]["cache"]

    def extend(self, tokens_BT: jax.Array, mask: jax.Array, cache: Cache) -> tuple:
        """Float32 logits [B, T, V] behind each token, and the cache with them in it."""
        return self.trace(tokens_BT, mask, cache)[:2]

    def trace(
        self, tokens_BT: jax.Array, mask: jax.Array, cache: Cache, prefix: jax.Array | None = None
    ) -> tuple:
        """What `extend` gives, and `aux` with the last hidden state as `features` and every layer's as `hidden`."""
        x_BTD, aux = self.features(tokens_BT, mask=mask, prefix=prefix, cache=cache)
        return self.head(x_BTD), aux["cache"], {**aux, "features": x_BTD}
