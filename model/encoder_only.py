"""BERT-like models: one stack that looks both ways, and a head for masked tokens, for texts or for tokens.

What distinguishes the members is in their `ModelConfig`: BERT has token types; RoBERTa leaves two rows of its position
table unused; DistilBERT has no types and a plainer head.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from model import attention, blocks, heads, layers
from model.config import ModelConfig, Runtime


class EncoderOnly(nn.Module):
    """Tokens in; out come logits over the vocabulary or over classes, or the hidden states."""

    config: ModelConfig
    runtime: Runtime = Runtime()

    @nn.compact
    def __call__(
        self,
        tokens_BT: jax.Array,
        *,
        mask: jax.Array | None = None,
        segments: jax.Array | None = None,
        types: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, dict]:
        """Returns what the head says, and `aux`.

        Float32 logits are [B, T, V] (`lm`), [B, C] (`sequence`) or [B, T, C] (`token`); `none` gives the hidden
        states [B, T, D]. With `head.next_sentence`, `aux["next_sentence"]` are logits [B, 2]: the second text of a row
        follows the first, or does not.

        Args:
            tokens_BT: int32.
            mask: bool [B, T], true at real tokens; padding may stand on either side.
            segments: int32 [B, T]; tokens see their own segment only, and positions start again in each.
            types: int32 [B, T], the type of each token, 0 by default; read only where the model has types.
            train: applies dropout; needs `rngs={"dropout": key}` when `runtime.dropout` is above 0.
        """
        c, run = self.config, self.runtime
        c.check_length(tokens_BT.shape[1])
        embedding = layers.Embedding(c, run, name="embedding")
        x_BTD = embedding(tokens_BT)
        if c.token_types:
            types = jnp.zeros_like(tokens_BT) if types is None else types
            x_BTD += layers.Embedding(c, run, types=True, name="types")(types)
        sight = attention.look(tokens_BT.shape[1], causal=False, mask_BT=mask, segments_BT=segments)
        stack = blocks.Stack(c, run, c.layers, causal=False, name="stack")
        x_BTD, aux = stack(x_BTD, sight, train=train)
        aux = {**aux, "features": x_BTD}
        if c.head.kind == "none":
            return x_BTD, aux
        if c.head.kind == "lm":
            if c.head.next_sentence:
                aux["next_sentence"] = heads.Pair(run, name="pair")(x_BTD, mask)
            x_BTD = heads.Transform(c, run, name="head")(x_BTD)
            return heads.Output(c, run, bias=True, name="output")(x_BTD, embedding.weight), aux
        return heads.Classifier(c, run, name="head")(x_BTD, mask, train), aux
