"""How does a gradient become an update? AdamW with a schedule, clipping, and decay by rule."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from model import errors

SCHEDULES = ("cosine", "constant", "linear")

# Multiplies weight_decay. As in GPT-2, every matrix and table decays. Names decide, not ranks:
# stacked layers give a bias a second axis.
DECAY = (
    (r"(^|/)(bias|scale)$", 0.0),
    (r"(^|/)weight$", 1.0),
)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter 2019) and its learning rate.

    Attributes:
        learning_rate: the highest, reached at the end of warm-up.
        schedule: how it falls from there: `cosine`, `linear` or not at all (`constant`).
        warmup_steps: steps of linear rise before it.
        end_fraction: of the highest learning rate, at the last step.
        weight_decay: per step and per unit of learning rate; matrices and tables only.
        b1, b2, eps: Adam's moments and its denominator's floor.
        clip_norm: gradients longer than this are shortened to it; None leaves them.
    """

    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup_steps: int = 0
    end_fraction: float = 0.1
    weight_decay: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    clip_norm: float | None = 1.0

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise errors.BadInput(
                f"optimizer.schedule is {self.schedule!r}"
                f"{errors.nearest(self.schedule, SCHEDULES)}; known: {', '.join(SCHEDULES)}"
            )
        rate_holds = 0 < self.learning_rate < math.inf
        self._check(rate_holds, "learning_rate", "above 0 and finite")
        self._check(self.warmup_steps >= 0, "warmup_steps", "at least 0")
        self._check(0 <= self.end_fraction <= 1, "end_fraction", "between 0 and 1")
        self._check(self.weight_decay >= 0, "weight_decay", "at least 0")
        self._check(0 <= self.b1 < 1, "b1", "at least 0 and below 1")
        self._check(0 <= self.b2 < 1, "b2", "at least 0 and below 1")
        self._check(self.eps > 0, "eps", "above 0")
        self._check(self.clip_norm is None or self.clip_norm > 0, "clip_norm", "above 0, or None")

    def _check(self, holds: bool, name: str, wanted: str) -> None:
        if not holds:
            raise errors.BadInput(f"optimizer.{name} is {getattr(self, name)}; it must be {wanted}")


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate of each step, counted from 0.

    From `learning_rate / (warmup_steps + 1)` at step 0 it rises by as much each step, to
    `learning_rate` at step `warmup_steps`; from there it falls to `end_fraction * learning_rate` at
    the last step, `steps - 1`.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    if warmup >= steps:
        raise errors.BadInput(
            f"optimizer.warmup_steps={warmup} does not end within {steps} steps of training; "
            "lower it or train longer"
        )
    rise = optax.linear_schedule(peak / (warmup + 1), peak, max(warmup, 1))
    length = max(steps - 1 - warmup, 1)
    fall = {
        "cosine": optax.cosine_decay_schedule(peak, length, alpha=config.end_fraction),
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, peak * config.end_fraction, length),
    }[config.schedule]
    return optax.join_schedules([rise, fall], [warmup])


def build(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW; the state records the `learning_rate` last used."""
    clip = (
        optax.identity()
        if config.clip_norm is None
        else optax.clip_by_global_norm(config.clip_norm)
    )
    return optax.chain(
        clip,
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        decay_weights(config.weight_decay, DECAY),
        scale_by_schedule(schedule(config, steps)),
    )


class ScheduleState(NamedTuple):
    """Steps taken, and the learning rate of the last: optax's own keeps no record of it."""

    step: jax.Array
    learning_rate: jax.Array


def scale_by_schedule(rate: optax.Schedule) -> optax.GradientTransformation:
    """Multiplies updates by minus the learning rate of their step."""

    def init(params: Any) -> ScheduleState:
        del params
        return ScheduleState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32))

    def update(updates: Any, state: ScheduleState, params: Any = None) -> tuple[Any, ScheduleState]:
        del params
        learning_rate = jnp.asarray(rate(state.step), jnp.float32)
        updates = jax.tree.map(lambda u: -learning_rate * u, updates)
        return updates, ScheduleState(state.step + 1, learning_rate)

    return optax.GradientTransformation(init, update)


def decay_weights(rate: float, rules: Sequence[tuple[str, float]]) -> optax.GradientTransformation:
    """Adds `rate * factor * parameter` to each update, the factor being the one `rules` give."""

    def update(updates: Any, params: Any) -> Any:
        return jax.tree.map(
            lambda u, p, factor: u + rate * factor * p, updates, params, by_rule(rules, params)
        )

    return optax.stateless(update)


def by_rule(rules: Sequence[tuple[str, Any]], params: Any) -> Any:
    """For each parameter the value of the first rule whose regex is found in its path.

    Example: `by_rule([("bias$", 0), ("", 1)], {"a": {"bias": b, "weight": w}})` gives
    `{"a": {"bias": 0, "weight": 1}}`.

    Raises:
        BadInput: when a parameter matches no rule, or a rule is first for no parameter.
    """
    used = set()

    def value(path: Any, _: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for pattern, result in rules:
            if re.search(pattern, name):
                used.add(pattern)
                return result
        raise errors.BadInput(
            f"parameter {name} matches no rule of {[pattern for pattern, _ in rules]}; add one"
        )

    values = jax.tree_util.tree_map_with_path(value, params)
    for pattern, _ in rules:
        if pattern not in used:
            raise errors.BadInput(
                f"rule {pattern!r} is first for no parameter; correct or remove it"
            )
    return values
