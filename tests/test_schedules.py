"""Is the learning rate of every step the one that its closed form gives in float64?"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import errors
from train import optimizer

pytestmark = pytest.mark.standard_promotion


def rates(steps, **settings):
    """The learning rate of every step, and of three beyond the last."""
    rate = optimizer.schedule(optimizer.OptimizerConfig(**settings), steps)
    return np.asarray(jax.vmap(rate)(jnp.arange(steps + 3)))[:steps]


def closed(name, step, steps, warmup, peak, end, decay):
    """The rate of a step counted from 0."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(steps - 1 - warmup, 1)
    falls = max(round(decay * steps), 1)
    fallen = max(step - (steps - 1 - falls), 0) / falls
    return {
        "constant": peak,
        "linear": peak * (1 - done * (1 - end)),
        "cosine": peak * (end + (1 - end) * (1 + math.cos(math.pi * done)) / 2),
        "inverse_sqrt": peak * math.sqrt((warmup + 1) / (step + 1)),
        "wsd": peak * (1 - fallen * (1 - end)),
    }[name]


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "inverse_sqrt", "wsd"])
@pytest.mark.parametrize(("steps", "warmup"), [(31, 0), (31, 7), (31, 23), (3, 1)])
def test_every_step_has_the_rate_of_the_closed_form(name, steps, warmup):
    own = {"decay_fraction": 0.2} if name == "wsd" else {}
    actual = rates(
        steps, schedule=name, learning_rate=0.7, warmup_steps=warmup, end_fraction=0.13, **own
    )
    expected = [closed(name, step, steps, warmup, 0.7, 0.13, 0.2) for step in range(steps)]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=3e-7 * 0.7)  # of the peak: float32
    assert actual[warmup] == pytest.approx(max(expected)) == 0.7


def test_inverse_sqrt_is_the_schedule_of_the_2017_transformer():
    """Equation 3 of Vaswani et al.: width 512, 4000 steps of warm-up, steps counted from 1; the peak is 7.0e-4."""
    step = np.arange(1, 20_001, dtype=np.float64)
    expected = 512**-0.5 * np.minimum(step**-0.5, step * 4000**-1.5)
    actual = rates(
        20_000, schedule="inverse_sqrt", learning_rate=(512 * 4000) ** -0.5, warmup_steps=3999
    )
    np.testing.assert_allclose(actual, expected, rtol=0, atol=3e-7 * expected.max())
    assert f"{actual.max():.1e}" == "7.0e-04" and actual.argmax() + 1 == 4000


def test_wsd_is_stable_until_its_last_steps_and_then_a_straight_line():
    actual = rates(20, schedule="wsd", learning_rate=2.0, warmup_steps=1, end_fraction=0.5)
    np.testing.assert_allclose(actual, [1.0, *[2.0] * 17, 1.5, 1.0])  # a tenth of 20 steps


def test_the_rate_after_the_last_step_is_that_of_the_last():
    for name in ("linear", "cosine", "wsd"):
        rate = optimizer.schedule(optimizer.OptimizerConfig(schedule=name), 11)
        np.testing.assert_allclose(float(rate(12)), float(rate(10)), rtol=1e-6)


def test_without_warm_up_the_first_step_has_the_highest_rate():
    config = optimizer.OptimizerConfig(learning_rate=0.3, warmup_steps=0)
    assert float(optimizer.schedule(config, steps=1)(0)) == pytest.approx(0.3)


def test_warm_up_longer_than_training_is_refused():
    config = optimizer.OptimizerConfig(warmup_steps=7)
    message = "optimizer.warmup_steps=7 does not end within 7 steps of training; lower it"
    with pytest.raises(errors.BadInput, match=message):
        optimizer.schedule(config, steps=7)


def test_warm_up_that_reaches_into_the_decline_is_refused():
    config = optimizer.OptimizerConfig(schedule="wsd", warmup_steps=6, decay_fraction=0.5)
    assert optimizer.schedule(config, steps=13)(12) < optimizer.schedule(config, steps=13)(6)
    message = (
        "optimizer.warmup_steps=6 and the last 6 steps, over which optimizer.decay_fraction lets the "
        "learning rate fall, overlap within 11 steps of training; lower one of them or train longer"
    )
    with pytest.raises(errors.BadInput, match=message):
        optimizer.schedule(config, steps=11)
