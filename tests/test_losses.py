"""Is the loss the negative log-likelihood of the target, whatever the logits look like?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train import losses


def test_the_docstring_example_holds():
    logits_BTV = jnp.log(jnp.array([[[1.0, 1.0, 2.0]] * 3]))
    nats_BT = losses.cross_entropy(logits_BTV, jnp.array([[0, 1, 2]]))
    np.testing.assert_allclose(nats_BT, np.log([[4.0, 4.0, 2.0]]), rtol=1e-6)


def test_equals_minus_the_log_of_the_exact_probability():
    rng = np.random.default_rng(3)
    logits_BTV = rng.normal(0, 5, (2, 3, 7))
    targets_BT = rng.integers(0, 7, (2, 3))
    expected_BT = np.empty((2, 3))
    for b in range(2):
        for t in range(3):
            weights_V = np.exp(logits_BTV[b, t])
            expected_BT[b, t] = -np.log(weights_V[targets_BT[b, t]] / weights_V.sum())
    actual_BT = losses.cross_entropy(jnp.float32(logits_BTV), jnp.int32(targets_BT))
    np.testing.assert_allclose(actual_BT, expected_BT, rtol=1e-5)


def test_logits_of_any_size_and_type_give_finite_float32():
    logits_BTV = jnp.array([[[3e4, -3e4, 0.0]]], jnp.bfloat16)
    nats_BT = losses.cross_entropy(logits_BTV, jnp.array([[1]]))
    assert nats_BT.dtype == jnp.float32
    np.testing.assert_allclose(nats_BT, [[59904.0]])  # the two nearest bfloat16 of 30000 apart


def test_the_gradient_is_the_probability_minus_one_at_the_target():
    logits_BTV = jnp.log(jnp.array([[[1.0, 2.0, 5.0]]]))
    gradient_BTV = jax.grad(lambda x: losses.cross_entropy(x, jnp.array([[1]])).sum())(logits_BTV)
    np.testing.assert_allclose(gradient_BTV, [[[1 / 8, 2 / 8 - 1, 5 / 8]]], rtol=1e-6)


@pytest.mark.parametrize(("logits", "targets"), [((2, 3), (2, 3)), ((2, 3, 7), (3, 2))])
def test_shapes_that_do_not_belong_together_are_refused(logits, targets):
    with pytest.raises(ValueError, match=r"they must be \[B, T, V\] and \[B, T\]"):
        losses.cross_entropy(jnp.zeros(logits), jnp.zeros(targets, jnp.int32))
