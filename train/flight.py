"""What happens at a step whose loss or gradient cannot be trusted? It changes nothing, and its circumstances are kept.

`guard` stands around the optimiser, inside the compiled step: where the loss or the gradient's norm is not finite, or
the loss is a spike, parameters and optimiser keep the bits they had, so the last good state is always at hand although
metrics are read a step late. It is a selection in the pass that writes the new values anyway, a function of the state
and the batch alone, and lies in the checkpoint: a run killed after a bad step goes on to the same bits.
"""

import hashlib
import json
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from model import checkpoint

NAME = "flight.json"
WINDOW = 100  # steps that the running mean remembers, and that a flight record lists
SETTLED = 20  # good losses before a spike can be told
PATIENCE = 10  # bad steps in a row after which skipping has not helped


class GuardState(NamedTuple):
    """The optimiser's own state, mean and variance of the `seen` good losses, and the limit of the last step."""

    inner: Any
    mean: jax.Array
    variance: jax.Array
    seen: jax.Array
    limit: jax.Array


def guard(
    optimizer: optax.GradientTransformation, spike: float
) -> optax.GradientTransformationExtraArgs:
    """`optimizer`, but a bad step updates nothing: neither parameters nor its state, schedule included.

    A step is bad when its loss (`value`) or its gradient's norm is not finite, or its loss is above
    `mean + spike * deviation` of the good losses before it; 0 looks for no spikes. Mean and deviation are those of all
    losses up to WINDOW, from there exponential with weight 1 / WINDOW (West 1979).
    """
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> GuardState:
        zero, none = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32)
        return GuardState(inner.init(params), zero, zero, none, jnp.full((), jnp.inf, jnp.float32))

    def update(
        updates: Any, state: GuardState, params: Any = None, *, value: jax.Array, **extra: Any
    ) -> tuple[Any, GuardState]:
        limit = state.mean + spike * jnp.sqrt(state.variance)
        limit = jnp.where(spike and state.seen >= SETTLED, limit, jnp.inf).astype(jnp.float32)
        good = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(updates)) & (value <= limit)
        updates, after = inner.update(updates, state.inner, params, value=value, **extra)
        share = 1 / jnp.minimum(state.seen + 1, WINDOW).astype(jnp.float32)
        away = value - state.mean
        new = GuardState(
            inner=after,
            mean=state.mean + share * away,
            variance=(1 - share) * (state.variance + share * away**2),
            seen=state.seen + 1,
            limit=limit,
        )
        kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), new, state)
        # Minus zero is what changes no bit of anything that it is added to.
        updates = jax.tree.map(lambda u: jnp.where(good, u, jnp.asarray(-0.0, u.dtype)), updates)
        return updates, kept._replace(limit=limit)

    return optax.GradientTransformationExtraArgs(init, update)


def is_bad(values: Mapping[str, float]) -> bool:
    """Whether `guard` refused the step with these metrics."""
    finite = math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])
    return not (finite and values["loss"] <= values["limit"])


def norms(tree: Any) -> Any:
    """The norm of each leaf, float32; of leaves stacked over layers one per layer, [L]."""

    def norm(path: Any, leaf: jax.Array) -> jax.Array:
        stacked = any(getattr(key, "key", None) == "layers" for key in path)
        axes = tuple(range(int(stacked), leaf.ndim))
        return jnp.sqrt(jnp.square(leaf.astype(jnp.float32)).sum(axis=axes))

    return jax.tree_util.tree_map_with_path(norm, tree)


def rows(batch: Mapping[str, np.ndarray]) -> list[str]:
    """SHA-256 of each row's tokens, as little-endian int32."""
    return [hashlib.sha256(row.astype("<i4").tobytes()).hexdigest() for row in batch["tokens"]]


def write(
    directory: pathlib.Path,
    step: int,
    values: Mapping[str, float],
    norms: Mapping[str, Any],
    history: Iterable[Any],
    batch: Mapping[str, np.ndarray],
    key: jax.Array,
) -> None:
    """Writes `flight.json`: all that a person needs to see what happened at a step, or to compute it again.

    Args:
        directory: of the run.
        step: counted from 1.
        values: its metrics.
        norms: per name (`parameters`, `gradients`) what `norms` said of the step, before its update.
        history: [step, loss, gradient norm] of the last steps up to it.
        batch: what it trained on.
        key: the run's, from which the step's is folded.
    """
    digests, tokens = rows(batch), batch["tokens"].tolist()
    found = {
        "step": step,
        "metrics": {name: repr(value) for name, value in values.items()},
        "history": list(history),
        "norms": {name: _named(tree) for name, tree in norms.items()},
        "key": jax.random.key_data(jax.random.fold_in(key, step - 1)).tolist(),
        "config": hashlib.sha256((directory / "config.json").read_bytes()).hexdigest(),
        "rows": [{"sha256": d, "tokens": t} for d, t in zip(digests, tokens, strict=True)],
    }
    checkpoint.write_file(directory / NAME, json.dumps(found) + "\n")


def reason(step: int, values: Mapping[str, float]) -> str:
    """What was wrong with a bad step, in words."""
    said = f"step {step} has loss {values['loss']} and gradient norm {values['grad_norm']}"
    above = values["loss"] > values["limit"]
    return f"{said}; spikes begin at {values['limit']}" if above else said


def _named(tree: Any) -> dict[str, Any]:
    """Norms by path, as text: JSON has no infinity."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): jax.tree.map(
            repr, np.asarray(leaf).tolist()
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    }
