"""What acts on each token alone: the dense seam, the embedding, norms, feed-forward.

`Dense` is the one place where an activation meets a weight matrix. Sharding names, adapters, quantised or transposed
weights all attach there.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from model.config import ModelConfig, Runtime

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: nn.gelu(x, approximate=True),
    "relu": nn.relu,
    "silu": nn.silu,
}


def normal(scale: float, axes: tuple[str, ...]) -> Callable:
    """A normal initialiser of standard deviation `scale` whose parameter carries logical axis names."""
    return nn.with_logical_partitioning(nn.initializers.normal(scale), axes)


class Dense(nn.Module):
    """A linear map written as an einsum: `Dense("BTD,DNH->BTNH", (D, N, H), ("embed", "heads", "head"))`.

    Attributes:
        equation: of the input and the weight; the letters of the output that come from the weight carry the bias.
        shape: of the weight, in the order of its letters.
        axes: logical axis names of the weight, for sharding.
        bias: whether a bias over the output's own letters is added.
        scale: multiplies the initial standard deviation 1/sqrt(fan_in); residual branches pass 1/sqrt(2 layers)
            (Radford et al. 2019, section 2.3).
    """

    equation: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    bias: bool
    dtype: str
    scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        operands, result = self.equation.split("->")
        letters_in, letters_weight = operands.split(",")
        size = dict(zip(letters_weight, self.shape, strict=True))
        fan_in = 1
        for letter in set(letters_in) & set(letters_weight):
            fan_in *= size[letter]
        init = normal(self.scale * fan_in**-0.5, self.axes)
        weight = self.param("weight", init, self.shape, jnp.float32)
        y = jnp.einsum(self.equation, x.astype(self.dtype), weight.astype(self.dtype))
        if self.bias:
            own = [letter for letter in result if letter in letters_weight]
            axes = tuple(self.axes[letters_weight.index(letter)] for letter in own)
            zeros = nn.with_logical_partitioning(nn.initializers.zeros_init(), axes)
            bias = self.param("bias", zeros, tuple(size[letter] for letter in own), jnp.float32)
            y += jnp.expand_dims(bias.astype(self.dtype), tuple(range(y.ndim - bias.ndim)))
        return y


class Embedding(nn.Module):
    """The token table, and, when tied, the output head."""

    config: ModelConfig
    runtime: Runtime

    def setup(self) -> None:
        shape = (self.config.vocab_size, self.config.width)
        self.weight = self.param("weight", normal(0.02, ("vocab", "embed")), shape, jnp.float32)

    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        return jnp.take(self.weight.astype(self.runtime.dtype), tokens_BT, axis=0)

    def attend(self, x_BTD: jax.Array) -> jax.Array:
        """Float32 logits by the transposed table (Press & Wolf 2017)."""
        weight_VD = self.weight.astype(self.runtime.dtype)
        return jnp.einsum("BTD,VD->BTV", x_BTD, weight_VD, preferred_element_type=jnp.float32)


class Norm(nn.Module):
    """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang & Sennrich 2019) over the last axis, computed in float32."""

    config: ModelConfig
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        layer = self.config.norm == "layer"
        width = (x.shape[-1],)
        ones = nn.with_logical_partitioning(nn.initializers.ones_init(), ("norm",))
        zeros = nn.with_logical_partitioning(nn.initializers.zeros_init(), ("norm",))
        y = x.astype(jnp.float32)
        if layer:
            y = y - y.mean(axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + self.config.norm_epsilon)
        one = (1,) * (x.ndim - 1)
        y = y * self.param("scale", ones, width, jnp.float32).reshape(*one, *width)
        if layer:
            y = y + self.param("bias", zeros, width, jnp.float32).reshape(*one, *width)
        return y.astype(self.dtype)


class FeedForward(nn.Module):
    """Two maps with an activation between; when gated, a third one multiplies it (Shazeer 2020, equation 6)."""

    config: ModelConfig
    runtime: Runtime

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        c = self.config
        dense = dict(bias=c.bias, dtype=self.runtime.dtype)
        up = dict(shape=(c.width, c.hidden), axes=("embed", "mlp"), **dense)
        activate = ACTIVATIONS[c.activation]
        h_BTF = Dense("BTD,DF->BTF", name="up", **up)(x_BTD)
        if c.gated:
            h_BTF = activate(Dense("BTD,DF->BTF", name="gate", **up)(x_BTD)) * h_BTF
        else:
            h_BTF = activate(h_BTF)
        residual = (2 * c.layers) ** -0.5
        return Dense(
            "BTF,FD->BTD",
            (c.hidden, c.width),
            ("mlp", "embed"),
            scale=residual,
            name="down",
            **dense,
        )(h_BTF)
