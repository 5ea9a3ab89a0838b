"""Is a training step the gradient step it claims to be, on any mesh and under any runtime?

Updates are plain gradient descent wherever two ways of computing are compared: Adam divides by the
gradient's size and would hide a wrong factor.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import model
from model import blocks, errors, sharding
from train import losses, optimizer, step

pytestmark = pytest.mark.standard_promotion

# Dimensions that no test splits are distinct primes; the others are what eight devices divide.
LLAMA = model.ModelConfig(
    vocab_size=34, context_length=13, layers=2, width=24, heads=4, kv_heads=2, hidden=22
)
GPT2 = dataclasses.replace(
    LLAMA, position="learned", norm="layer", activation="gelu", hidden=0, bias="all", tied=True
)
SCANNED = model.Runtime(scan=True)
SGD = optax.sgd(0.5)
INIT = jax.random.key(3)
WHOLE, CHUNKED = losses.LossConfig(chunk=0), losses.LossConfig(chunk=4)
MESHES = [
    dict(data=2, fsdp=2, tensor=2),
    dict(data=8),
    dict(fsdp=8),
    dict(fsdp=2, sequence=2, tensor=2),
]


def make_batch(seed=5, rows=8, length=10, vocab_size=34):
    """Rows of two documents and padding, cut at places and weighted in amounts that differ."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, vocab_size, (rows, length + 1)).astype(np.int32)
    cut = rng.integers(1, length - 2, (rows, 1))
    end = rng.integers(length - 2, length + 1, (rows, 1))
    index = np.arange(length)[None]
    segments = np.where(index < cut, 1, np.where(index < end, 2, 0)).astype(np.int32)
    weights = ((segments > 0) & (rng.random((rows, length)) < 0.8)).astype(np.float32)
    weights[0] = 0
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segments": segments,
        "weights": weights,
    }


@functools.cache
def start(config):
    """The state that every run of a test starts from, on the host."""
    state = step.init_state(
        model.build(config, SCANNED), SGD, sharding.make_mesh(devices=jax.devices()[:1]), key=INIT
    )
    return jax.device_get(state)


@functools.cache
def compiled(config, runtime, mesh, transform, accumulate):
    """(train_step, where its state lies), compiled once for all tests of this file."""
    net = model.build(config, runtime)
    where = step.shardings(step.abstract_state(net, transform, mesh))
    loss = WHOLE if mesh.size == 1 else CHUNKED
    return step.make_train_step(net, transform, mesh, where, accumulate, loss=loss), where


def run(config, batches, runtime=SCANNED, mesh=None, transform=SGD, accumulate=1, seed=11):
    """(params, metrics of each step) after one step per batch."""
    mesh = mesh or sharding.make_mesh(devices=jax.devices()[:1])
    train_step, where = compiled(config, runtime, mesh, transform, accumulate)
    state = start(config).replace(opt_state=transform.init(start(config).params))
    state, history = jax.device_put(state, where), []
    for batch in batches:
        state, metrics = train_step(state, step.put_batch(batch, mesh), jax.random.key(seed))
        history.append(jax.device_get(metrics))
    return jax.device_get(state.params), history


def reference(config, batches, rate=0.5):
    """The same steps without meshes, scans or our loss: losses, gradient norms and parameters."""
    net = model.build(config)
    params = start(config).params

    def loss_fn(params, batch):
        logits, _ = net.apply(
            {"params": blocks.unstack_layers(params)}, batch["tokens"], segments=batch["segments"]
        )
        one_hot = jnp.arange(config.vocab_size)[None, None] == batch["targets"][:, :, None]
        probabilities = jnp.where(one_hot, jax.nn.softmax(logits), 0).sum(axis=-1)
        return -(batch["weights"] * jnp.log(probabilities)).sum() / batch["weights"].sum()

    loss_and_gradient, losses, norms = jax.jit(jax.value_and_grad(loss_fn)), [], []
    for batch in batches:
        loss, gradient = loss_and_gradient(params, batch)
        params = jax.tree.map(lambda p, g: p - rate * g, params, gradient)
        losses.append(float(loss))
        squares = [np.square(np.float64(leaf)).sum() for leaf in jax.tree.leaves(gradient)]
        norms.append(np.sqrt(sum(squares)))
    return losses, norms, jax.device_get(params)


def assert_trees_close(actual, expected, tolerance):
    """Each leaf within `tolerance` of its expected length."""
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        a, b = np.float64(a), np.float64(b)
        error = np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-3)
        assert error <= tolerance, f"{jax.tree_util.keystr(path)}: {error:.2e}"


@functools.cache
def two_steps(config):
    batches = [make_batch(5), make_batch(6)]
    return batches, *reference(config, batches)


@pytest.mark.parametrize(
    ("config", "sizes"), [(LLAMA, None), *((LLAMA, m) for m in MESHES), (GPT2, MESHES[0])]
)
def test_any_mesh_takes_the_step_of_one_device_and_of_the_formula(config, sizes):
    batches, losses, norms, expected = two_steps(config)
    params, history = run(config, batches, mesh=sizes and sharding.make_mesh(sizes))
    np.testing.assert_allclose([m["loss"] for m in history], losses, rtol=1e-5)
    np.testing.assert_allclose([m["grad_norm"] for m in history], norms, rtol=1e-5)
    assert_trees_close(params, expected, 1e-5)
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


def test_a_state_is_made_where_it_belongs_with_the_values_of_one_device():
    mesh, net = sharding.make_mesh(MESHES[0]), model.build(GPT2, SCANNED)
    adam = optimizer.build(optimizer.OptimizerConfig(), steps=3)
    abstract = step.abstract_state(net, adam, mesh)
    state = step.init_state(net, adam, mesh, key=INIT)

    def describe(leaf):
        return (leaf.shape, leaf.dtype, leaf.sharding)

    assert jax.tree.map(describe, abstract) == jax.tree.map(describe, state)
    assert_trees_close(state.params, start(GPT2).params, 1e-6)
    where = step.shardings(state).params
    for moment in ("mu", "nu"):
        assert step.shardings(optax.tree.get(state.opt_state, moment)) == where
    table = state.params["embedding"]["weight"]
    assert {part.data.shape for part in table.addressable_shards} == {(34 // 2, 24 // 2)}


def test_steps_compile_once_and_consume_their_state():
    mesh = sharding.make_mesh(MESHES[0])
    train_step, where = compiled(LLAMA, SCANNED, mesh, SGD, 1)
    state = jax.device_put(start(LLAMA), where)
    for seed in range(5):
        before = state
        state, _ = train_step(state, step.put_batch(make_batch(seed), mesh), jax.random.key(seed))
    assert train_step.__wrapped__._cache_size() == 1
    assert int(state.step) == 5
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))


def test_a_caller_cannot_forget_the_mesh_and_the_rules(monkeypatch):
    seen = []

    def spy(net, config, params, batch, key):
        seen.append((nn.get_logical_axis_rules(), jax.sharding.get_abstract_mesh().axis_names))
        return losses.Sums(*[params["bias"].sum() * batch["weights"].sum()] * 2)

    monkeypatch.setattr(step, "batch_loss", spy)
    mesh = sharding.make_mesh(MESHES[1])
    state = step.TrainState(jnp.zeros((), jnp.int32), {"bias": jnp.ones(3)}, SGD.init(None))
    where = jax.tree.map(lambda _: sharding.replicated(mesh), state)
    train_step = step.make_train_step(None, SGD, mesh, where)
    train_step(jax.device_put(state, where), step.put_batch(make_batch(), mesh), jax.random.key(0))
    assert seen == [(sharding.RULES, sharding.AXES)]


def test_micro_batches_sum_to_the_big_batch():
    batch = make_batch()
    parts = [batch["weights"][i::4].sum() for i in range(4)]
    assert max(parts) > 1.2 * min(parts)  # else a mean of means would pass too
    big, (expected,) = run(LLAMA, [batch])
    small, (actual,) = run(LLAMA, [batch], accumulate=4)
    assert_trees_close(small, big, 1e-6)
    for name in ("loss", "grad_norm", "param_norm", "tokens"):
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-6)


def test_micro_batches_on_a_mesh_sum_to_the_big_batch_of_one_device():
    big, (expected,) = run(LLAMA, [make_batch()])
    small, (actual,) = run(LLAMA, [make_batch()], mesh=sharding.make_mesh(MESHES[0]), accumulate=2)
    assert_trees_close(small, big, 1e-5)
    np.testing.assert_allclose(actual["loss"], expected["loss"], rtol=1e-5)


def test_every_row_is_in_exactly_one_micro_batch_and_none_crosses_devices():
    rows_BT = jnp.arange(6)[:, None] * jnp.ones((1, 3), jnp.int32)
    parts = step.micro_batches({"weights": rows_BT}, 2)["weights"]
    assert parts[:, :, 0].tolist() == [[0, 2, 4], [1, 3, 5]]


def test_dropout_changes_with_key_step_and_micro_batch_and_with_nothing_else():
    runtime = dataclasses.replace(SCANNED, dropout=0.2)
    frozen = optax.sgd(0.0)  # the losses differ by their masks alone
    twice = {name: np.repeat(rows[:4], 2, axis=0) for name, rows in make_batch().items()}

    def nats(seed, accumulate):
        _, history = run(LLAMA, [twice] * 2, runtime, None, frozen, accumulate, seed)
        return [float(metrics["loss"]) for metrics in history]

    for accumulate in (1, 2):
        assert nats(7, accumulate) == nats(7, accumulate)
        assert len({*nats(7, accumulate), *nats(8, accumulate)}) == 4
    # Both micro-batches hold the same rows; with the same masks their mean would be the loss of one.
    net, key = model.build(LLAMA, runtime), jax.random.fold_in(jax.random.key(7), 0)
    one = {name: jnp.asarray(rows[::2]) for name, rows in twice.items()}
    loss_fn = jax.jit(lambda key: step.batch_loss(net, WHOLE, start(LLAMA).params, one, key).nats)
    masked = [loss_fn(jax.random.fold_in(key, i)) / one["weights"].sum() for i in range(2)]
    assert abs(masked[0] - masked[1]) > 1e-4
    assert nats(7, 2)[0] == pytest.approx(float(masked[0] + masked[1]) / 2, rel=1e-5)


def test_a_replayed_step_is_equal_to_the_bit():
    runtime = dataclasses.replace(SCANNED, dropout=0.1)
    mesh, batches = sharding.make_mesh(MESHES[0]), [make_batch(1), make_batch(2)]
    adam = optimizer.build(optimizer.OptimizerConfig(), steps=3)
    first, second = (run(LLAMA, batches, runtime, mesh, adam, 2) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_one_batch_can_be_learnt_by_heart_and_the_metrics_tell():
    config = optimizer.OptimizerConfig(learning_rate=0.03, warmup_steps=2, clip_norm=0.1)
    batches, losses, norms, _ = two_steps(LLAMA)
    _, history = run(LLAMA, batches[:1] * 40, transform=optimizer.build(config, steps=40))
    assert history[0]["loss"] > 0.9 * np.log(34)
    assert history[-1]["loss"] < 0.3
    np.testing.assert_allclose(history[0]["grad_norm"], norms[0], rtol=1e-5)  # before clipping
    np.testing.assert_allclose([m["learning_rate"] for m in history[:3]], [0.01, 0.02, 0.03])
    assert {int(m["tokens"]) for m in history} == {int((batches[0]["segments"] > 0).sum())}


def test_packed_documents_cost_what_each_costs_alone():
    rng = np.random.default_rng(2)
    documents = [rng.integers(0, 34, length + 1) for length in (3, 2, 5)]
    rows = [*([document] for document in documents), documents, documents]
    batch = {name: np.zeros((5, 10), np.int32) for name in ("tokens", "targets", "segments")}
    for i, row in enumerate(rows):
        end = 0
        for number, document in enumerate(row, start=1):
            at = slice(end, end := end + len(document) - 1)
            batch["tokens"][i, at], batch["targets"][i, at] = document[:-1], document[1:]
            batch["segments"][i, at] = 1 if i == 4 else number  # the last row does not part them
    net = model.build(LLAMA, SCANNED)
    logits_BTV, _ = jax.jit(net.apply)(
        {"params": start(LLAMA).params}, batch["tokens"], segments=batch["segments"]
    )
    nats_BT = losses.cross_entropy(logits_BTV, batch["targets"])
    *alone, packed, leaking = np.where(batch["segments"] > 0, nats_BT, 0).sum(axis=1)
    np.testing.assert_allclose(packed, sum(alone), rtol=1e-6)
    assert abs(leaking - packed) > 1e-3 * packed


@pytest.mark.parametrize(
    "runtime",
    [
        model.Runtime(scan=True, unroll=2, remat="full"),
        model.Runtime(scan=True, unroll=1, remat="dots"),
    ],
)
def test_loops_and_recomputation_do_not_change_the_step(runtime):
    expected, (wanted,) = run(LLAMA, [make_batch()])
    params, (metrics,) = run(LLAMA, [make_batch()], runtime)
    assert_trees_close(params, expected, 1e-6)
    np.testing.assert_allclose(metrics["loss"], wanted["loss"], rtol=1e-6)


def test_bfloat16_stays_within_five_percent_of_the_update_and_keeps_float32_parameters():
    before = start(LLAMA).params
    expected, (wanted,) = run(LLAMA, [make_batch()])
    params, (metrics,) = run(LLAMA, [make_batch()], dataclasses.replace(SCANNED, dtype="bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    np.testing.assert_allclose(metrics["loss"], wanted["loss"], rtol=2e-3)
    update, wanted_update = (
        np.concatenate(
            [leaf.ravel() for leaf in jax.tree.leaves(jax.tree.map(np.subtract, after, before))]
        )
        for after in (params, expected)
    )
    error = np.linalg.norm(update - wanted_update) / np.linalg.norm(wanted_update)
    assert 1e-5 < error < 5e-2


def test_a_loss_that_is_not_finite_reaches_the_metrics():
    batch = make_batch()
    batch["weights"][3, 1] = np.nan
    _, history = run(LLAMA, [batch])
    assert np.isnan(history[0]["loss"])


def test_a_batch_without_targets_changes_nothing():
    batch = make_batch()
    batch["weights"][:] = 0
    params, (metrics,) = run(LLAMA, [batch])
    assert metrics["loss"] == metrics["grad_norm"] == 0
    jax.tree.map(np.testing.assert_array_equal, params, start(LLAMA).params)


def test_micro_batches_that_do_not_divide_the_batch_are_refused():
    message = "train.accumulate=3 does not divide a batch of 8 rows; change one of them"
    with pytest.raises(errors.BadInput, match=message):
        run(LLAMA, [make_batch()], accumulate=3)


def test_a_batch_that_the_mesh_cannot_split_is_refused():
    message = "batch.tokens has a dimension of 6, which mesh axes data×fsdp of 8 devices do not"
    with pytest.raises(errors.BadInput, match=re.escape(message)):
        step.put_batch(make_batch(rows=6), sharding.make_mesh(dict(data=4, fsdp=2)))
