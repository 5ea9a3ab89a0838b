"""Is the loss the negative log-likelihood of the target, whatever the logits look like?"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import errors
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


def summed(config, head, params, x_BTD, targets_BT, weights_BT):
    """(sums, gradients of the objective by parameters and hidden states)."""

    def minimised(params, x_BTD):
        sums = losses.summed(head, params, x_BTD, targets_BT, weights_BT, config)
        return sums.objective, sums

    (_, sums), gradients = jax.jit(jax.value_and_grad(minimised, argnums=(0, 1), has_aux=True))(
        params, x_BTD
    )
    return sums, gradients


def logits(params, x_BTD):
    return 7 * jnp.tanh((x_BTD @ params["table"] + params["bias"][None, None]) / 7)


def case():
    rng = np.random.default_rng(5)
    draw = lambda *shape: jnp.float32(rng.normal(0, 1, shape))  # noqa: E731
    params = {"table": draw(5, 11), "bias": draw(11)}
    weights_BT = jnp.float32(rng.random((2, 6)) < 0.7)
    return logits, params, draw(2, 6, 5), jnp.int32(rng.integers(0, 11, (2, 6))), weights_BT


@pytest.mark.parametrize("chunk", [1, 4, 7])
def test_chunks_give_the_values_and_gradients_of_the_whole(chunk):
    options = dict(label_smoothing=0.2, z_loss=0.03)
    whole = summed(losses.LossConfig(chunk=0, **options), *case())
    parts = summed(losses.LossConfig(chunk=chunk, **options), *case())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), parts, whole)
    plain = summed(losses.LossConfig(chunk=chunk), *case())
    assert plain[0].objective == plain[0].nats == pytest.approx(float(whole[0].nats), rel=1e-6)
    assert abs(whole[0].objective - whole[0].nats) > 0.1


def few(counts, length=24):
    """A case with so many targets in each row, at places of their own."""
    rng, (head, params, *_) = np.random.default_rng(9), case()
    weights_BT = np.zeros((len(counts), length), np.float32)
    for row, count in enumerate(counts):
        weights_BT[row, rng.permutation(length)[:count]] = rng.uniform(0.5, 2, count)
    x_BTD = jnp.float32(rng.normal(0, 1, (*weights_BT.shape, 5)))
    return head, params, x_BTD, jnp.int32(rng.integers(0, 11, weights_BT.shape)), weights_BT


@pytest.mark.parametrize("counts", [(3, 4), (0, 1), (0, 0), (24, 5), (24, 24)])
def test_chunks_without_targets_are_left_out_and_nothing_changes(counts):
    options, computed = dict(label_smoothing=0.2, z_loss=0.03), []
    head, *arrays = few(counts)

    def counting(params, x_BTD):
        jax.debug.callback(lambda: computed.append(x_BTD.shape))
        return head(params, x_BTD)

    whole = summed(losses.LossConfig(chunk=0, **options), head, *arrays)
    found = summed(losses.LossConfig(skip=True, **options), counting, *arrays)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), found, whole)
    jax.effects_barrier()
    assert computed == [(2, 3, 5)] * -(-max(counts) // 3)
    measure = functools.partial(losses.by_row, head, *arrays)
    for one, other in zip(
        measure(losses.LossConfig(skip=True)), measure(losses.LossConfig(chunk=0)), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=2e-5)


def test_logits_are_never_there_at_once():
    config, sizes = losses.LossConfig(chunk=4), []

    def head(params, x_BTD):
        sizes.append(x_BTD.shape)
        return logits(params, x_BTD)

    summed(config, head, *case()[1:])
    assert sizes and set(sizes) == {(2, 2, 5)}


@pytest.mark.parametrize(
    ("rows", "length", "tokens", "parts"),
    [(2, 6, 0, 1), (2, 6, 12, 1), (2, 6, 11, 2), (2, 6, 5, 3), (2, 6, 1, 6), (2, 7, 12, 7)],
)
def test_a_row_is_cut_into_the_fewest_equal_parts(rows, length, tokens, parts):
    assert losses.chunks(rows, length, tokens) == parts


def test_smoothing_and_z_loss_are_those_of_the_papers():
    """Szegedy et al. 2016: cross-entropy with (1 - e) one-hot + e / V; Chowdhery et al. 2022: z log^2 Z."""
    rng = np.random.default_rng(7)
    logits_BTV, targets_BT = rng.normal(0, 3, (2, 3, 5)), rng.integers(0, 5, (2, 3))
    total_BT = np.log(np.exp(logits_BTV).sum(axis=-1))
    wanted_BTV = 0.9 * np.eye(5)[targets_BT] + 0.1 / 5
    expected_BT = -(wanted_BTV * (logits_BTV - total_BT[..., None])).sum(axis=-1)
    config = losses.LossConfig(label_smoothing=0.1, z_loss=0.02)
    actual_BT = losses.objective(jnp.float32(logits_BTV), jnp.int32(targets_BT), config)
    np.testing.assert_allclose(actual_BT, expected_BT + 0.02 * total_BT**2, rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(label_smoothing=1), "loss.label_smoothing is 1; it must be at least 0 and below 1"),
        (dict(z_loss=-1), "loss.z_loss is -1; it must be at least 0 and finite"),
        (dict(chunk=-1), "loss.chunk is -1; it must be at least 0, which is all"),
    ],
)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(errors.BadInput, match=message):
        losses.LossConfig(**values)
