"""What acts on each token alone: the dense seam, the embedding, norms, feed-forward and experts.

`Dense` is the one place where an activation meets a weight matrix. Sharding names, adapters, quantised or transposed
weights all attach there.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from model import config
from model.config import RECURRENT, ModelConfig, Runtime

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: nn.gelu(x, approximate=True),
    "relu": nn.relu,
    "silu": nn.silu,
    "tanh": jnp.tanh,
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
        first_bias: what the bias begins with.
    """

    equation: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    bias: bool
    dtype: str
    scale: float = 1.0
    first_bias: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        operands, result = self.equation.split("->")
        letters_in, letters_weight = operands.split(",")
        size = dict(zip(letters_weight, self.shape, strict=True))
        fan_in = 1
        for letter in (set(letters_in) & set(letters_weight)) - set(result):
            fan_in *= size[letter]
        init = normal(self.scale * fan_in**-0.5, self.axes)
        weight = self.param("weight", init, self.shape, jnp.float32)
        y = product(self.equation, x.astype(self.dtype), weight.astype(self.dtype))
        if self.bias:
            own = [letter for letter in result if letter in letters_weight]
            axes = tuple(self.axes[letters_weight.index(letter)] for letter in own)
            init = nn.with_logical_partitioning(self.first_bias, axes)
            bias = self.param("bias", init, tuple(size[letter] for letter in own), jnp.float32)
            y += jnp.expand_dims(bias.astype(self.dtype), tuple(range(y.ndim - bias.ndim)))
        return y


def product(equation: str, x: jax.Array, weight: jax.Array) -> jax.Array:
    """The einsum, as one plain matrix product where the letters summed over end one operand and begin the other.

    XLA sums `BTNH,NHD` over H before N, and transposes the weight for it each time: a quarter of a step of decoding.
    """
    letters_in, letters_weight = equation.split("->")[0].split(",")
    summed = "".join(letter for letter in letters_weight if letter in letters_in)
    if not (letters_in.endswith(summed) and letters_weight.startswith(summed)):
        return jnp.einsum(equation, x, weight)
    rows, columns = x.shape[: x.ndim - len(summed)], weight.shape[len(summed) :]
    size = math.prod(weight.shape[: len(summed)])
    y = x.reshape(*rows, size) @ weight.reshape(size, -1)
    return y.reshape(*rows, *columns)


class Embedding(nn.Module):
    """The table of tokens, or of `types` of tokens.

    Where the parameters hold a soft prompt beside it, as `prompt/weight` [P, D], the ids behind the vocabulary are its
    rows: tokens that can be read, and never predicted, because no head knows them.
    """

    config: ModelConfig
    runtime: Runtime
    types: bool = False

    def setup(self) -> None:
        c = self.config
        rows, axis = (c.token_types, "position") if self.types else (c.vocab_size, "vocab")
        # T5 shrinks what its head reads, and begins with a table of ones' size instead. No norm stands before a
        # recurrent layer, and what is small stays small there: for hundreds of steps nothing else was learnt from 0.02.
        recurrent = c.family in RECURRENT
        init = normal(
            1.0 if c.embedding == "head_scaled" else 0.1 if recurrent else 0.02, (axis, "embed")
        )
        self.weight = self.param("weight", init, (rows, c.width), jnp.float32)

    def __call__(self, ids_BT: jax.Array) -> jax.Array:
        table_VD = self.weight
        if self.has_variable("params", "prompt"):
            prompt_PD = self.get_variable("params", "prompt")["weight"]
            table_VD = jnp.concatenate([table_VD, prompt_PD.astype(table_VD.dtype)])
        x_BTD = jnp.take(table_VD, ids_BT, axis=0).astype(self.runtime.dtype)
        if self.config.embedding in ("scaled", "scaled_normed"):
            x_BTD *= jnp.asarray(self.config.width**0.5, x_BTD.dtype)
        return x_BTD


class Norm(nn.Module):
    """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang & Sennrich 2019) over the last axis, computed in float32."""

    config: ModelConfig
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kind, width = self.config.norm, (x.shape[-1],)
        ones = nn.with_logical_partitioning(nn.initializers.ones_init(), ("norm",))
        zeros = nn.with_logical_partitioning(nn.initializers.zeros_init(), ("norm",))
        y = x.astype(jnp.float32)
        if kind == "layer":
            y = y - y.mean(axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + self.config.norm_epsilon)
        from_zero = kind == "rms_plus_one"
        scale = self.param("scale", zeros if from_zero else ones, width, jnp.float32)
        one = (1,) * (x.ndim - 1)
        y = y * (scale.astype(jnp.float32) + float(from_zero)).reshape(*one, *width)
        if kind == "layer":
            bias = self.param("bias", zeros, width, jnp.float32).astype(jnp.float32)
            y = y + bias.reshape(*one, *width)
        return y.astype(self.dtype)


class FeedForward(nn.Module):
    """Two maps with an activation between; when gated, a third one multiplies it (Shazeer 2020, equation 6)."""

    config: ModelConfig
    runtime: Runtime

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        c = self.config
        dense = dict(bias=c.bias in ("all", "output"), dtype=self.runtime.dtype)
        up = dict(shape=(c.width, c.hidden), axes=("embed", "mlp"), **dense)
        activate = ACTIVATIONS[config.GATED.get(c.activation, c.activation)]
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


class Experts(nn.Module):
    """A mixture of feed-forwards (Jiang et al. 2024, section 2.1): each token's `chosen` best, by their softmax.

    Every expert computes every token and the rest are weighed 0: exact, without a token dropped or a neighbour felt,
    for `count / chosen` times the arithmetic.
    """

    config: ModelConfig
    runtime: Runtime

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        c, count = self.config, self.config.experts.count
        dense = dict(bias=False, dtype=self.runtime.dtype)
        up = dict(shape=(count, c.width, c.hidden), axes=("expert", "embed", "mlp"), **dense)
        scores_BTE = Dense(
            "BTD,DE->BTE", (c.width, count), ("embed", "expert"), name="router", **dense
        )(x_BTD)
        weights_BTE = routing(scores_BTE.astype(jnp.float32), c.experts.chosen)
        activate = ACTIVATIONS[config.GATED.get(c.activation, c.activation)]
        h_BTEF = Dense("BTD,EDF->BTEF", name="up", **up)(x_BTD)
        if c.gated:
            h_BTEF = activate(Dense("BTD,EDF->BTEF", name="gate", **up)(x_BTD)) * h_BTEF
        else:
            h_BTEF = activate(h_BTEF)
        h_BTEF = h_BTEF * weights_BTE[:, :, :, None].astype(h_BTEF.dtype)
        return Dense(
            "BTEF,EFD->BTD",
            (count, c.hidden, c.width),
            ("expert", "mlp", "embed"),
            scale=(2 * c.layers) ** -0.5 * (count / c.experts.chosen) ** 0.5,
            name="down",
            **dense,
        )(h_BTEF)


def routing(scores_BTE: jax.Array, chosen: int) -> jax.Array:
    """The softmax over each token's `chosen` highest scores; all others get 0, and the lowest id wins a tie.

    Example: scores `[0, ln 3, -9]` with two chosen give `[0.25, 0.75, 0]`.
    """
    best, ids = jax.lax.top_k(scores_BTE, chosen)
    weights = jax.nn.softmax(best, axis=-1)
    places = jax.nn.one_hot(ids, scores_BTE.shape[-1], dtype=weights.dtype)
    return (weights[..., None] * places).sum(axis=-2)
