"""How does the learning rate change over a run? One optax schedule per name, each fast to write in closed form."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from model import errors


@dataclasses.dataclass(frozen=True)
class Span:
    """What a schedule falls over, once warm-up is done.

    Attributes:
        peak: the highest learning rate.
        warmup: steps before it.
        length: steps from the peak to the last.
        end_fraction: of the peak, at the last step.
        decay: of all steps, how many the last decline takes.
    """

    peak: float
    warmup: int
    length: int
    end_fraction: float
    decay: int


def cosine(span: Span) -> optax.Schedule:
    """Half a cosine from the peak to its `end_fraction`."""
    return optax.cosine_decay_schedule(span.peak, span.length, alpha=span.end_fraction)


def linear(span: Span) -> optax.Schedule:
    """A straight line from the peak to its `end_fraction`."""
    return optax.linear_schedule(span.peak, span.peak * span.end_fraction, span.length)


def constant(span: Span) -> optax.Schedule:
    """The peak."""
    return optax.constant_schedule(span.peak)


def inverse_sqrt(span: Span) -> optax.Schedule:
    """Vaswani et al. 2017, equation 3: with s steps counted from 1 and W = warmup + 1, `peak sqrt(W / s)`.

    Together with the rise, `peak s / W`, that is their `min(s^-0.5, s W^-1.5)` scaled to its own maximum.
    """
    width = span.warmup + 1

    def rate(count: jax.Array) -> jax.Array:
        return span.peak * jnp.sqrt(width / (count + width))

    return rate


def wsd(span: Span) -> optax.Schedule:
    """Warm-up, stable, decay (Hu et al. 2024): the peak, until the last `decay` steps fall linearly from it."""
    if span.decay > span.length:
        raise errors.BadInput(
            f"optimizer.warmup_steps={span.warmup} and the last {span.decay} steps, over which "
            f"optimizer.decay_fraction lets the learning rate fall, overlap within "
            f"{span.warmup + span.length + 1} steps of training; lower one of them or train longer"
        )
    fall = optax.linear_schedule(span.peak, span.peak * span.end_fraction, span.decay)
    stable = span.length - span.decay
    return optax.join_schedules([optax.constant_schedule(span.peak), fall], [stable])


SCHEDULES: dict[str, Callable[[Span], optax.Schedule]] = {
    "cosine": cosine,
    "constant": constant,
    "linear": linear,
    "inverse_sqrt": inverse_sqrt,
    "wsd": wsd,
}


def with_warmup(name: str, span: Span) -> optax.Schedule:
    """The named schedule behind a linear rise from `peak / (warmup + 1)` at step 0 to the peak at step `warmup`."""
    rise = optax.linear_schedule(span.peak / (span.warmup + 1), span.peak, max(span.warmup, 1))
    return optax.join_schedules([rise, SCHEDULES[name](span)], [span.warmup])
