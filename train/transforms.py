"""How does each optimiser turn gradients into updates? Optax does; here are the seams between it and our parameters.

Layers are stacked and heads have their own axis, so what an optimiser does to a matrix is done to each matrix apart.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from model import matrices
from model.matrices import Axes
from train import paths
from train.paths import Rules

RMS = 0.2  # of AdamW's updates, as measured by Liu et al. 2025, section 2.2


class ScheduleState(NamedTuple):
    """Steps taken, and the learning rate of the last: optax's own keeps no record of it."""

    step: jax.Array
    learning_rate: jax.Array


class Averaged(NamedTuple):
    """The state of a wrapped optimiser, and the weights that are used in place of those it trains."""

    optimizer: Any
    average: Any


class Pair(NamedTuple):
    """Of one parameter."""

    update: jax.Array
    state: Any


def scale_by_schedule(rate: optax.Schedule, factors: Rules = ()) -> optax.GradientTransformation:
    """Multiplies updates by minus the learning rate of their step, and by the factor that `factors` give, if any."""

    def init(params: Any) -> ScheduleState:
        del params
        return ScheduleState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32))

    def update(updates: Any, state: ScheduleState, params: Any = None) -> tuple[Any, ScheduleState]:
        del params
        learning_rate = jnp.asarray(rate(state.step), jnp.float32)
        if factors:
            own = paths.by_name(lambda name, _: paths.first(factors, name), updates)
            updates = jax.tree.map(lambda u, factor: -learning_rate * factor * u, updates, own)
        else:
            updates = jax.tree.map(lambda u: -learning_rate * u, updates)
        return updates, ScheduleState(state.step + 1, learning_rate)

    return optax.GradientTransformation(init, update)


def decay_weights(rate: float, factors: Rules) -> optax.GradientTransformation:
    """Adds `rate * factor * parameter` to each update, the factor being the one that `factors` give."""

    def update(updates: Any, params: Any) -> Any:
        own = paths.by_name(lambda name, _: paths.first(factors, name), params)
        return jax.tree.map(lambda u, p, factor: u + rate * factor * p, updates, params, own)

    return optax.stateless(update)


def adam(
    b1: float, b2: float, eps: float, dtype: str, second_dtype: str
) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2015), its moments kept in types of their own; updates see them before they are rounded.

    Optax has a type for the first alone.
    """
    inner = optax.scale_by_adam(b1, b2, eps, mu_dtype=dtype)
    if second_dtype == "float32":
        return inner

    def kept(state: Any, dtype: str) -> Any:
        return state._replace(nu=optax.tree.cast(state.nu, dtype))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        made, state = inner.update(updates, kept(state, "float32"), params)
        return made, kept(state, second_dtype)

    return optax.GradientTransformation(
        lambda params: kept(inner.init(params), second_dtype), update
    )


def sgd(momentum: float, nesterov: bool, dtype: str) -> optax.GradientTransformation:
    """The gradient, or with momentum `m <- momentum m + g` (Sutskever et al. 2013, in PyTorch's form)."""
    if not momentum:
        return optax.identity()
    return optax.trace(momentum, nesterov, accumulator_dtype=dtype)


def muon(
    momentum: float, nesterov: bool, b1: float, b2: float, eps: float, dtype: str
) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for the matrices of a stack, AdamW for the rest.

    Each layer's momentum is made orthogonal as one matrix [summed, made]. Updates have AdamW's size (Liu et al. 2025,
    equation 4), so that one learning rate serves both.
    """

    def axes(updates: Any) -> Any:
        return paths.by_name(
            lambda name, _: optax.contrib.MuonDimensionNumbers(*paths.first(matrices.STACK, name)),
            updates,
        )

    def sized(update: jax.Array, own: Any) -> jax.Array:
        sides = (
            math.prod(update.shape[i] for i in side)
            for side in (own.reduction_axis, own.output_axis)
        )
        return update * (RMS * max(sides) ** 0.5)

    def kind(name: str, _: Any) -> str:
        return "matrix" if paths.first(matrices.STACK, name) else "rest"

    orthogonal = optax.contrib.scale_by_muon(
        beta=momentum, nesterov=nesterov, mu_dtype=dtype, weight_dimension_numbers=axes
    )
    size = optax.stateless(lambda updates, _: jax.tree.map(sized, updates, axes(updates)))
    transforms = {
        "matrix": optax.chain(orthogonal, size),
        "rest": optax.scale_by_adam(b1, b2, eps, mu_dtype=dtype),
    }
    return optax.partition(transforms, lambda params: paths.by_name(kind, params))


def adafactor() -> optax.GradientTransformation:
    """Adafactor without momentum (Shazeer & Stern 2018, algorithm 4): relative to each matrix's own size.

    The second moment of a matrix with at least 128 rows and columns is the product of their means.
    """
    return each_matrix(
        optax.chain(
            optax.scale_by_factored_rms(min_dim_size_to_factor=128),
            optax.clip_by_block_rms(1.0),
            optax.scale_by_param_block_rms(1e-3),
        )
    )


def schedule_free(
    rate: optax.Schedule, b1: float, b2: float, eps: float, after: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Schedule-free AdamW (Defazio et al. 2024): `after` is what decays and scales the updates of z."""
    adam = optax.scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True)
    # Optax counts these steps from 1, and all others from 0.
    return optax.contrib.schedule_free(optax.chain(adam, after), lambda step: rate(step - 1), b1)


def each_matrix(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Applies `inner` to each matrix and each vector of each layer as if there was nothing else."""

    def init(params: Any) -> Any:
        return paths.by_name(lambda name, p: jax.vmap(inner.init)(_apart(p, name)), params)

    def update(updates: Any, states: Any, params: Any) -> tuple[Any, Any]:
        def one(name: str, u: jax.Array, state: Any, p: jax.Array) -> Pair:
            made, state = jax.vmap(inner.update)(_apart(u, name), state, _apart(p, name))
            return Pair(_together(made, name, u.shape), state)

        pairs = paths.by_name(one, updates, states, params)
        first, second = (
            jax.tree.map(lambda pair, i=i: pair[i], pairs, is_leaf=lambda x: isinstance(x, Pair))
            for i in range(2)
        )
        return first, second

    return optax.GradientTransformation(init, update)


def frozen(
    inner: optax.GradientTransformation, patterns: Sequence[str]
) -> optax.GradientTransformation:
    """Applies `inner` to all parameters but those whose path one of the regexes is found in, which stay as they are."""
    if not patterns:
        return inner
    # Not zero: a minus zero to which zero is added becomes a plus.
    still = optax.stateless(
        lambda updates, _: jax.tree.map(lambda u: jnp.full_like(u, -0.0), updates)
    )
    return optax.partition(
        {"trained": inner, "frozen": still},
        lambda params: jax.tree.map(
            lambda out: "frozen" if out else "trained", paths.found(patterns, params)
        ),
    )


def averaged(
    inner: optax.GradientTransformation,
    average: Callable[[Any, Any, Any], Any],
    patterns: Sequence[str],
) -> optax.GradientTransformation:
    """Keeps, beside what `inner` does, an average of the weights that are not frozen, beginning with the first ones.

    Args:
        inner: makes the updates.
        average: of the average so far, the new weights and the new state of `inner`, the new average.
        patterns: what is frozen.
    """

    def init(params: Any) -> Averaged:
        copies = jax.tree.map(jnp.copy, paths.without(patterns, params))
        return Averaged(inner.init(params), copies)

    def update(updates: Any, state: Averaged, params: Any) -> tuple[Any, Averaged]:
        updates, optimizer = inner.update(updates, state.optimizer, params)
        weights = paths.without(patterns, optax.apply_updates(params, updates))
        return updates, Averaged(optimizer, average(state.average, weights, optimizer))

    return optax.GradientTransformation(init, update)


def ema(decay: float) -> Callable[[Any, Any, Any], Any]:
    """`a <- a + (1 - decay) (w - a)`: after t steps `decay^t w_0 + (1 - decay) sum_i decay^(t - i) w_i`."""
    return lambda average, weights, _: jax.tree.map(
        lambda a, w: a + (1 - decay) * (w - a), average, weights
    )


def interpolated(average: Any, weights: Any, optimizer: Any) -> Any:
    """The x of schedule-free training, of which the weights are `(1 - b1) z + b1 x`."""
    del average
    state = optax.tree.get(optimizer, "ScheduleFreeState")
    return optax.contrib.schedule_free_eval_params(state, weights)


def used(weights: Any, state: Any) -> Any:
    """The weights to evaluate with, of those that are trained and an optimiser's state."""
    kept = optax.tree.get(state, "Averaged", default=None)  # whatever stands around it
    if kept is None:
        return weights
    return jax.tree.map(
        lambda a, w: w if isinstance(a, optax.MaskedNode) else a,
        kept.average,
        weights,
        is_leaf=lambda node: isinstance(node, optax.MaskedNode),
    )


def _order(name: str, ndim: int) -> tuple[tuple[int, ...], int]:
    """The axes of a parameter, those that count matrices or vectors first, and how many these are."""
    axes: Axes | None = paths.first((*matrices.STACK, *matrices.TABLES), name)
    if axes is None:
        return tuple(range(ndim)), int("layers" in name.split("/"))
    own = tuple(i % ndim for i in (*axes.summed, *axes.made))
    count = tuple(i for i in range(ndim) if i not in own)
    return (*count, *own), len(count)


def _apart(leaf: jax.Array, name: str) -> jax.Array:
    """A parameter as [matrices, summed, made] or [vectors, size]."""
    order, count = _order(name, leaf.ndim)
    axes = paths.first((*matrices.STACK, *matrices.TABLES), name)
    rows = [math.prod(leaf.shape[i] for i in axes.summed)] if axes else []
    many = math.prod(leaf.shape[i] for i in order[:count])
    return leaf.transpose(order).reshape(many, *rows, -1)


def _together(apart: jax.Array, name: str, shape: tuple[int, ...]) -> jax.Array:
    """The inverse of `_apart`."""
    order, _ = _order(name, len(shape))
    back = tuple(order.index(i) for i in range(len(shape)))
    return apart.reshape(tuple(shape[i] for i in order)).transpose(back)
