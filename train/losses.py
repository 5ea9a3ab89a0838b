"""How wrong is a prediction? Losses per token, and their weighted sum over a batch without all logits at once."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from model import errors, sharding

Head = Callable[[Any, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What training minimises beside cross-entropy, and how much of it is computed at a time.

    Attributes:
        label_smoothing: how much of each target's probability is spread over all tokens (Szegedy et al. 2016, section
            7; Vaswani et al. 2017 have 0.1).
        z_loss: weight of the squared logarithm of the softmax's denominator, which keeps logits from drifting
            (Chowdhery et al. 2022, section 5: 1e-4).
        chunk: about how many tokens have their logits in a device's memory at once; 0 takes all. It changes nothing but
            the order in which the gradient of the head is summed.
        skip: brings the targets of each row together, in eight chunks or more, and computes no logits for a chunk that
            has none. None is what suits the task of a recipe: true for hidden tokens and for the answers of a decoder.
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    chunk: int = 1024
    skip: bool | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise errors.BadInput(
                f"loss.label_smoothing is {self.label_smoothing}; it must be at least 0 and below 1"
            )
        if not 0 <= self.z_loss < math.inf:
            raise errors.BadInput(f"loss.z_loss is {self.z_loss}; it must be at least 0 and finite")
        if self.chunk < 0:
            raise errors.BadInput(
                f"loss.chunk is {self.chunk}; it must be at least 0, which is all"
            )

    @property
    def plain(self) -> bool:
        """Whether cross-entropy is all that is minimised."""
        return not (self.label_smoothing or self.z_loss)


class Sums(NamedTuple):
    """Over the weighted targets of a batch: what is minimised, and the plain cross-entropy in nats."""

    objective: jax.Array
    nats: jax.Array


def cross_entropy(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """Nats `-log softmax(logits)[target]` of every token, float32 [B, T] whatever the logits' type.

    Example: logits `[0, 0, log 2]` give targets 0, 1, 2 the losses `log 4, log 4, log 2`.
    """
    return _terms(logits_BTV, targets_BT)[0]


def objective(logits_BTV: jax.Array, targets_BT: jax.Array, config: LossConfig) -> jax.Array:
    """What training minimises of every token, float32 [B, T]: smoothed cross-entropy plus the z-loss.

    Example: logits `[0, 0, log 2]`, target 2 and smoothing 0.3 give `0.7 log 2 + 0.1 (log 4 + log 4 + log 2)`.
    """
    nats_BT, total_BT = _terms(logits_BTV, targets_BT)
    loss_BT = nats_BT
    if config.label_smoothing:
        spread_BT = total_BT - logits_BTV.astype(jnp.float32).mean(axis=-1)
        loss_BT = (1 - config.label_smoothing) * nats_BT + config.label_smoothing * spread_BT
    if config.z_loss:
        loss_BT = loss_BT + config.z_loss * jnp.square(total_BT)
    return loss_BT


def summed(
    head: Head,
    params: Any,
    x_BTD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    config: LossConfig,
) -> Sums:
    """Weighted sums over a batch whose hidden states `head(params, x_BTD)` turns into logits.

    Only `objective` has a gradient. In chunks each one's gradient is computed right behind its value, while its logits
    are there, so neither all logits nor a second product with the table are ever needed.
    """
    parts = _parts(x_BTD, config)
    if config.skip:
        x_BTD, targets_BT, weights_BT = _together(parts, x_BTD, targets_BT, weights_BT)
    targets = targets_BT, weights_BT
    if parts == 1:
        return _sums(head, config, params, x_BTD, *targets)
    return _chunked(head, config, parts, params, x_BTD, *targets)


def by_row(
    head: Head,
    params: Any,
    x_BTD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    config: LossConfig,
) -> tuple[jax.Array, jax.Array]:
    """Nats, and how many targets have the largest logit, weighted and summed over each row: float32 [B] both.

    What `summed` would measure, without a gradient.
    """

    def measured(x_BTD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array) -> list:
        logits_BTV = head(params, x_BTD)
        nats_BT = cross_entropy(logits_BTV, targets_BT)
        right_BT = (logits_BTV.argmax(axis=-1) == targets_BT).astype(jnp.float32)
        return [(each_BT * weights_BT).sum(axis=1) for each_BT in (nats_BT, right_BT)]

    parts, batch = _parts(x_BTD, config), (x_BTD, targets_BT, weights_BT)
    if config.skip:
        batch = _together(parts, *batch)
    if parts == 1:
        nats_B, right_B = measured(*batch)
        return nats_B, right_B
    found = jax.lax.map(lambda chunk: _unless(config, measured, *chunk), _chunks_of(parts, *batch))
    nats_B, right_B = (each.sum(axis=0) for each in found)
    return nats_B, right_B


def chunks(rows: int, length: int, tokens: int) -> int:
    """The fewest equal parts of `length` that hold at most `tokens` tokens of all rows, or one position each."""
    if not tokens:
        return 1
    return next(
        n
        for n in range(1, length + 1)
        if length % n == 0 and (rows * length <= n * tokens or n == length)
    )


def _parts(x_BTD: jax.Array, config: LossConfig) -> int:
    """How many chunks a device's hidden states are cut into."""
    rows, length = sharding.share(x_BTD.shape[:2])
    eighth = -(-rows * length // 8)
    return chunks(
        rows, length, min(config.chunk or eighth, eighth) if config.skip else config.chunk
    )


def _together(
    parts: int, x_BTD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Tokens in another order, in which the first chunks of `_split` have those of each row that are targets."""
    last_BT = jnp.argsort(weights_BT == 0, axis=1, stable=True)
    order_BT = last_BT.reshape(len(last_BT), parts, -1).swapaxes(1, 2).reshape(last_BT.shape)

    def ordered(array: jax.Array) -> jax.Array:
        places = order_BT.reshape(*order_BT.shape, *[1] * (array.ndim - 2))
        return jnp.take_along_axis(array, places, axis=1)

    return ordered(x_BTD), ordered(targets_BT), ordered(weights_BT)


def _unless(config: LossConfig, compute: Callable[..., Any], *chunk: jax.Array) -> Any:
    """What `compute` makes of a chunk, or zeros where that is allowed and no token of it has a weight."""
    if not config.skip:
        return compute(*chunk)
    shapes = jax.eval_shape(compute, *chunk)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.cond((chunk[-1] != 0).any(), compute, lambda *_: zeros, *chunk)


def _terms(logits_BTV: jax.Array, targets_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Nats of the targets, and the logarithm of the softmax's denominator, float32 [B, T]."""
    if logits_BTV.ndim != 3 or targets_BT.shape != logits_BTV.shape[:2]:
        raise ValueError(
            f"logits {logits_BTV.shape} and targets {targets_BT.shape}; "
            "they must be [B, T, V] and [B, T]"
        )
    logits_BTV = logits_BTV.astype(jnp.float32)
    chosen_BT1 = jnp.take_along_axis(logits_BTV, targets_BT[:, :, None], axis=-1)
    total_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    return total_BT - chosen_BT1[:, :, 0], total_BT


def _sums(
    head: Head,
    config: LossConfig,
    params: Any,
    x_BTD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
) -> Sums:
    logits_BTV = head(params, x_BTD)
    minimised = (objective(logits_BTV, targets_BT, config) * weights_BT).sum()
    plain = jax.lax.stop_gradient(cross_entropy(logits_BTV, targets_BT))
    return Sums(minimised, (plain * weights_BT).sum())


def _split(array: jax.Array, parts: int, axes: tuple[str | None, ...]) -> jax.Array:
    """[B, T, ...] as [parts, B, T / parts, ...]; part i has the positions i, i + parts, ...

    A device holds neighbouring tokens, so each part has its share of every device's and no token moves.
    """
    rows, length, *rest = array.shape
    split = array.reshape(rows, length // parts, parts, *rest)
    return nn.with_logical_constraint(jnp.moveaxis(split, 2, 0), (None, *axes))


def _chunks_of(parts: int, x_BTD: jax.Array, *arrays_BT: jax.Array) -> tuple[jax.Array, ...]:
    tokens = ("batch", "sequence")
    split = (_split(array_BT, parts, tokens) for array_BT in arrays_BT)
    return _split(x_BTD, parts, (*tokens, "activation")), *split


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _chunked(
    head: Head, config: LossConfig, parts: int, params: Any, x_BTD: jax.Array, *targets: jax.Array
) -> Sums:
    """`_sums`, chunk by chunk."""

    def add(total: Sums, chunk: tuple) -> tuple[Sums, None]:
        sums = _unless(config, functools.partial(_sums, head, config, params), *chunk)
        return jax.tree.map(jnp.add, total, sums), None

    start = Sums(jnp.float32(0), jnp.float32(0))
    return jax.lax.scan(add, start, _chunks_of(parts, x_BTD, *targets))[0]


def _forward(
    head: Head, config: LossConfig, parts: int, params: Any, x_BTD: jax.Array, *targets: jax.Array
) -> tuple[Sums, tuple[Any, jax.Array]]:
    """Values, and the gradients with them."""

    def minimised(params: Any, *chunk: jax.Array) -> tuple[jax.Array, Sums]:
        sums = _sums(head, config, params, *chunk)
        return sums.objective, sums

    def add(total: tuple, chunk: tuple) -> tuple[tuple, jax.Array]:
        compute = jax.value_and_grad(minimised, argnums=(0, 1), has_aux=True)
        (_, sums), (gradient, x_gradient) = _unless(
            config, functools.partial(compute, params), *chunk
        )
        return jax.tree.map(jnp.add, total, (sums, gradient)), x_gradient

    start = Sums(jnp.float32(0), jnp.float32(0)), jax.tree.map(jnp.zeros_like, params)
    (sums, gradient), split = jax.lax.scan(add, start, _chunks_of(parts, x_BTD, *targets))
    x_gradient = jnp.moveaxis(split, 0, 2).reshape(x_BTD.shape)
    return sums, (gradient, x_gradient)


def _backward(
    head: Head, config: LossConfig, parts: int, gradients: tuple, cotangents: Sums
) -> tuple:
    scaled = jax.tree.map(
        lambda gradient: gradient * cotangents.objective.astype(gradient.dtype), gradients
    )
    return *scaled, None, None


_chunked.defvjp(_forward, _backward)
