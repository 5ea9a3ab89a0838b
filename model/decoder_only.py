"""GPT and LLaMA-like models: one causal stack that reads what it has written.

What distinguishes the members is in their `ModelConfig`: GPT-2 has learned positions, LayerNorm, a plain GELU
feed-forward, biases and a tied head; LLaMA has rotary positions, RMSNorm, a gated SiLU feed-forward and neither.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from model import attention, blocks, errors, layers, positions
from model.cache import Cache
from model.config import ModelConfig, Runtime


class DecoderOnly(nn.Module):
    """Tokens in, logits over the next token out.

    `setup` rather than `@nn.compact` because `features` and `head` are called apart: the decode loop
    wants logits at one position per row, and a chunked loss wants them a few rows at a time.
    """

    config: ModelConfig
    runtime: Runtime = Runtime()

    def setup(self) -> None:
        c, run = self.config, self.runtime
        self.embedding = layers.Embedding(c, run)
        self.position = positions.PositionEmbedding(c, run)
        self.stack = blocks.Stack(c, run)
        self.norm = layers.Norm(c, run.dtype)
        self.dropout = nn.Dropout(run.dropout)
        if not c.tied:
            self.output = layers.Embedding(c, run)

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
        cache: Cache | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, dict]:
        """The last hidden state [B, T, D], normalised, and `aux`.

        Args:
            tokens_BT: int32.
            mask: bool [B, T], true at real tokens; padding may stand on either side, and on the
                right when there is a cache.
            segments: int32 [B, T]; tokens see their own segment only, and positions start again in each.
            cache: tokens are appended behind each row's own length; `aux["cache"]` is the cache with them in it.
            train: applies dropout; needs `rngs={"dropout": key}` when `runtime.dropout` is above 0.
        """
        batch, length = tokens_BT.shape
        if length > self.config.context_length:
            raise errors.BadInput(
                f"{length} tokens are more than model.context_length={self.config.context_length}; shorten the input"
            )
        index_BT = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None], (batch, length))
        if cache is not None:
            slots = cache.keys[0].shape[1]
            index_BT = index_BT + cache.lengths_B[:, None]
            positions_BT = index_BT
            sees = attention.causal(index_BT, jnp.arange(slots, dtype=jnp.int32))
        else:
            positions_BT = index_BT
            sees = attention.causal(index_BT, jnp.arange(length, dtype=jnp.int32))
            if mask is not None:
                positions_BT = positions.from_mask(mask)
                sees = sees & attention.real(mask)
            if segments is not None:
                positions_BT = positions.from_segments(segments)
                sees = sees & attention.same_segment(segments)
        x_BTD = self.position(self.embedding(tokens_BT), positions_BT)
        x_BTD = self.dropout(x_BTD, deterministic=not train)
        x_BTD = nn.with_logical_constraint(x_BTD, blocks.ACTIVATION_AXES)
        x_BTD, aux = self.stack(x_BTD, sees, positions_BT, cache, train)
        if cache is not None:
            count_B = length if mask is None else mask.sum(axis=1, dtype=jnp.int32)
            aux["cache"] = Cache(
                keys=tuple(aux["keys"]),
                values=tuple(aux["values"]),
                lengths_B=cache.lengths_B + count_B,
            )
        return self.norm(x_BTD), aux

    def head(self, x_BTD: jax.Array) -> jax.Array:
        """Float32 logits [B, T, V] of hidden states."""
        return (self.embedding if self.config.tied else self.output).attend(x_BTD)
