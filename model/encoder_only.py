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
    """Tokens in; out come logits over the vocabulary or over classes, or the hidden states.

    `setup` rather than `@nn.compact` because `features` and `head` are called apart, by a loss that wants logits a few
    tokens at a time.
    """

    config: ModelConfig
    runtime: Runtime = Runtime()

    def setup(self) -> None:
        c, run = self.config, self.runtime
        self.embedding = layers.Embedding(c, run)
        if c.token_types:
            self.types = layers.Embedding(c, run, types=True)
        self.stack = blocks.Stack(c, run, c.layers, causal=False)
        if c.head.kind == "lm":
            self.transform = heads.Transform(c, run, name="head")
            self.output = heads.Output(c, run, bias=True)
            if c.head.next_sentence:
                self.pair = heads.Pair(run)
        elif c.head.kind != "none":
            self.classifier = heads.Classifier(c, run, name="head")

    def __call__(self, tokens_BT: jax.Array, **kwargs) -> tuple[jax.Array, dict]:
        """Returns what the head says, and `aux`; the arguments are those of `features`.

        Float32 logits are [B, T, V] (`lm`), [B, C] (`sequence`) or [B, T, C] (`token`); `none` gives the hidden
        states [B, T, D].
        """
        x_BTD, aux = self.features(tokens_BT, **kwargs)
        return self.head(x_BTD, mask=kwargs.get("mask"), train=kwargs.get("train", False)), aux

    def features(
        self,
        tokens_BT: jax.Array,
        *,
        mask: jax.Array | None = None,
        segments: jax.Array | None = None,
        types: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, dict]:
        """What the head reads [B, T, D], and `aux` with the last hidden states as `features`.

        With `head.pooling` "mean" each token has the mean of its text's hidden states, else its own.

        With `head.next_sentence`, `aux["next_sentence"]` are logits [B, 2]: the second text of a row follows the
        first, or does not.

        Args:
            tokens_BT: int32.
            mask: bool [B, T], true at real tokens; padding may stand on either side.
            segments: int32 [B, T]; tokens see their own segment only, and positions start again in each.
            types: int32 [B, T], the type of each token, 0 by default; read only where the model has types.
            train: applies dropout; needs `rngs={"dropout": key}` when `runtime.dropout` is above 0.
        """
        c = self.config
        c.check_length(tokens_BT.shape[1])
        x_BTD = self.embedding(tokens_BT)
        if c.token_types:
            x_BTD += self.types(jnp.zeros_like(tokens_BT) if types is None else types)
        sight = attention.look(tokens_BT.shape[1], causal=False, mask_BT=mask, segments_BT=segments)
        x_BTD, aux = self.stack(x_BTD, sight, train=train)
        aux = {**aux, "features": x_BTD}
        if c.head.next_sentence:
            aux["next_sentence"] = self.pair(x_BTD, mask)
        if c.head.pooling == "mean":
            x_BTD = heads.mean(x_BTD, mask, segments)
        return x_BTD, aux

    def head(
        self,
        x_BTD: jax.Array,
        *,
        mask: jax.Array | None = None,
        train: bool = False,
        every: bool = False,
    ) -> jax.Array:
        """What the head says of hidden states; the other arguments matter to classes only.

        If `every`, every token has logits [B, T, C] as if a text began with it, which is how packed texts are read.
        """
        kind = self.config.head.kind
        if kind == "none":
            return x_BTD
        if kind == "lm":
            table_VD = self.embedding.weight if self.config.tied else None
            return self.output(self.transform(x_BTD), table_VD)
        return self.classifier(x_BTD, mask, train, every)
