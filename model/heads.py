"""What do the last hidden states become? Logits over the vocabulary, or over the classes of a text or of its tokens."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from model import attention, layers
from model.config import GATED, ModelConfig, Runtime


class Output(nn.Module):
    """Float32 logits [B, T, V] by a table of the vocabulary: its own, or the embedding's (Press & Wolf 2017)."""

    config: ModelConfig
    runtime: Runtime
    bias: bool = False

    @nn.compact
    def __call__(self, x_BTD: jax.Array, table_VD: jax.Array | None) -> jax.Array:
        """The logits; `table_VD` is the embedding's if the model is tied, else None."""
        c = self.config
        axes = ("vocab", "embed")
        if not c.tied:
            init = layers.normal(0.02, axes)
            table_VD = self.param("weight", init, (c.vocab_size, c.width), jnp.float32)
        assert table_VD is not None
        if c.embedding == "head_scaled":
            x_BTD *= jnp.asarray(c.width**-0.5, x_BTD.dtype)
        table_VD = table_VD.astype(self.runtime.dtype)
        logits_BTV = jnp.einsum("BTD,VD->BTV", x_BTD, table_VD, preferred_element_type=jnp.float32)
        if self.bias or c.bias == "output":
            zeros = nn.with_logical_partitioning(nn.initializers.zeros_init(), axes[:1])
            bias_V = self.param("bias", zeros, (c.vocab_size,), jnp.float32)
            logits_BTV += bias_V.astype(jnp.float32)[None, None, :]
        return attention.soft_cap(logits_BTV, c.logit_cap)


def params(config: ModelConfig, params: Any) -> dict[str, Any]:
    """Those of a model's parameters that its `head` reads."""
    names = ("embedding", "output", "head") if config.tied else ("output", "head")
    return {name: params[name] for name in names if name in params}


class Transform(nn.Module):
    """What BERT does to a hidden state before the vocabulary's table: a map, the activation, a norm."""

    config: ModelConfig
    runtime: Runtime

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        c, dtype = self.config, self.runtime.dtype
        dense = layers.Dense(
            "BTD,DF->BTF", (c.width, c.width), ("embed", "mlp"), True, dtype, name="dense"
        )
        kind = GATED.get(c.activation, c.activation)  # without the gate
        h_BTF = layers.ACTIVATIONS[kind](dense(x_BTD))
        return layers.Norm(c, dtype, name="norm")(h_BTF)


class Classifier(nn.Module):
    """Float32 logits over the head's labels: [B, C] for a text, of what its first real token has, or [B, T, C]."""

    config: ModelConfig
    runtime: Runtime

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, mask_BT: jax.Array | None, train: bool, every: bool
    ) -> jax.Array:
        """The logits; if `every`, of every token as if it were a text's first, [B, T, C], for packed texts."""
        head = self.config.head
        drop = nn.Dropout(self.runtime.dropout, deterministic=not train)
        if head.kind == "sequence":
            x_BTD = x_BTD if every else _first(x_BTD, mask_BT)
            x_BTD = _pooled(x_BTD, head.activation, self.runtime.dtype)
        logits_BTC = _classes(drop(x_BTD), len(head.labels), self.runtime.dtype)
        return logits_BTC if every or head.kind == "token" else logits_BTC[:, 0]


class Pair(nn.Module):
    """Whether the second text of a row follows the first (Devlin et al. 2019): float32 logits [B, 2], of yes and no."""

    runtime: Runtime

    @nn.compact
    def __call__(self, x_BTD: jax.Array, mask_BT: jax.Array | None) -> jax.Array:
        x_BTD = _pooled(_first(x_BTD, mask_BT), "tanh", self.runtime.dtype)
        return _classes(x_BTD, 2, self.runtime.dtype)[:, 0]


def mean(x_BSD: jax.Array, mask_BT: jax.Array | None, segments_BT: jax.Array | None) -> jax.Array:
    """The mean of the hidden states of each token's text, [B, T, D]: of its segment, or of the row's real tokens."""
    text_BT = jnp.ones(x_BSD.shape[:2], jnp.int32) if segments_BT is None else segments_BT
    same_BTS = text_BT[:, :, None] == text_BT[:, None, :]
    if mask_BT is not None:
        same_BTS &= mask_BT[:, None, :]
    same_BTS = same_BTS.astype(x_BSD.dtype)
    share_BTS = same_BTS / jnp.maximum(same_BTS.sum(2, keepdims=True), 1)
    return jnp.einsum("BTS,BSD->BTD", share_BTS, x_BSD)


def _pooled(x_BTD: jax.Array, activation: str, dtype: str) -> jax.Array:
    """What tokens say of their text, [B, T, D]: a map of the module that calls, and the activation."""
    width = x_BTD.shape[-1]
    dense = layers.Dense("BTD,DF->BTF", (width, width), ("embed", "mlp"), True, dtype, name="dense")
    return layers.ACTIVATIONS[activation](dense(x_BTD))


def _classes(x_BTD: jax.Array, count: int, dtype: str) -> jax.Array:
    """Float32 logits [B, T, C] by a map of the module that calls."""
    axes = ("embed", "class")
    out = layers.Dense("BTD,DC->BTC", (x_BTD.shape[-1], count), axes, True, dtype, name="out")
    return out(x_BTD).astype(jnp.float32)


def _first(x_BTD: jax.Array, mask_BT: jax.Array | None) -> jax.Array:
    """The hidden state of each row's first real token, [B, 1, D]."""
    if mask_BT is None:
        return x_BTD[:, :1]
    first_B = jnp.argmax(mask_BT, axis=1)
    return jnp.take_along_axis(x_BTD, first_B[:, None, None], axis=1)
