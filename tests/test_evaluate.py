"""Are loss, perplexity and bits per byte what their definitions say?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import model
from model import errors, sharding
from train import evaluate, losses, step

CONFIG = model.ModelConfig(vocab_size=34, context_length=13, layers=1, width=12, heads=2, hidden=10)
BYTES = 137


def make_batch(seed, rows=8, length=7):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 34, (rows, length + 1)).astype(np.int32)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segments": np.sort(rng.integers(1, 3, (rows, length))).astype(np.int32),
        "weights": (rng.random((rows, length)) < 0.7).astype(np.float32),
    }


@pytest.fixture(scope="module")
def net():
    return model.build(CONFIG, model.Runtime(scan=True, dropout=0.5))


@pytest.fixture(scope="module")
def params(net):
    return jax.jit(lambda key: model.init(net, key=key))(jax.random.key(0))


def measure(net, params, batches, sizes=None, text_bytes=BYTES):
    mesh = sharding.make_mesh(sizes)
    eval_step = evaluate.make_eval_step(net, mesh)
    placed = (step.put_batch(batch, mesh) for batch in batches)
    return evaluate.evaluate(eval_step, params, placed, text_bytes, 1)


def test_a_model_that_knows_nothing_costs_log_v_nats_a_token(net, params):
    blank = {**params, "output": jax.tree.map(jnp.zeros_like, params["output"])}
    batches = [make_batch(1), make_batch(2)]
    tokens = sum(batch["weights"].sum() for batch in batches)
    result = measure(net, blank, batches)
    assert result["tokens"] == tokens
    assert result["loss"] == pytest.approx(np.log(34), rel=1e-6)
    assert result["perplexity"] == pytest.approx(34, rel=1e-5)
    assert result["bits_per_byte"] == pytest.approx(tokens * np.log2(34) / BYTES, rel=1e-6)


def test_the_mean_is_over_targets_without_dropout_and_not_over_batches(net, params):
    batches = [make_batch(1), make_batch(2)]
    batches[0]["weights"][2:] = 0  # a mean of the two means would be another number
    nats = tokens = 0.0
    forward = jax.jit(
        lambda batch: net.apply({"params": params}, batch["tokens"], segments=batch["segments"])[0]
    )
    for batch in batches:
        nats_BT = losses.cross_entropy(forward(batch), batch["targets"])
        nats += float((nats_BT * batch["weights"]).sum())
        tokens += float(batch["weights"].sum())
    assert measure(net, params, batches)["loss"] == pytest.approx(nats / tokens, rel=1e-6)


def test_neither_the_mesh_nor_the_batching_nor_padding_changes_the_result(net, params):
    halves = [make_batch(1), make_batch(2)]
    whole = {name: np.concatenate([half[name] for half in halves]) for name in halves[0]}
    padding = {**make_batch(3), "weights": np.zeros((8, 7), np.float32)}
    expected = measure(net, params, halves)
    for batches, sizes in [([whole], None), (halves, dict(fsdp=4, tensor=2))]:
        assert measure(net, params, [*batches, padding], sizes) == pytest.approx(expected, rel=1e-6)


def test_two_evaluations_are_equal_to_the_bit_and_compile_once(net, params):
    mesh = sharding.make_mesh(None)
    eval_step = evaluate.make_eval_step(net, mesh)
    batches = [step.put_batch(make_batch(seed), mesh) for seed in (1, 2)]
    first, second = (evaluate.evaluate(eval_step, params, batches, BYTES) for _ in range(2))
    assert first == second
    assert eval_step.__wrapped__._cache_size() == 1


def test_many_rows_add_up_in_float64():
    """A float32 sum of 2^24 ones and then some would stop at 2^24."""
    row = np.float32([2**24, 1, 1, 1])
    one = np.ones(1, np.float32)
    rows = [(row, row, row), (one, one, one)]
    result = evaluate.evaluate(lambda params, batch: batch, None, rows, text_bytes=1)
    assert result["tokens"] == 2**24 + 4


def test_a_diverged_model_has_infinite_perplexity_rather_than_an_error():
    row = (np.float32([5e3]), np.float32([0]), np.float32([2]))
    result = evaluate.evaluate(lambda params, batch: batch, None, [row], text_bytes=1)
    assert result["loss"] == 2500 and result["perplexity"] == np.inf


def test_nothing_to_evaluate_is_refused():
    row = (np.float32([1]), np.float32([0]), np.float32([0]))
    with pytest.raises(errors.BadInput, match="held-out text has no target; evaluation needs more"):
        evaluate.evaluate(lambda params, batch: batch, None, [row], 5)


def test_bits_per_byte_and_word_perplexity_are_of_texts_only(net, params):
    row = (np.float32([6]), np.float32([1]), np.float32([4]))
    measured = evaluate.evaluate(lambda params, batch: batch, None, [row], 7, 2)
    assert measured == {
        "loss": 1.5,
        "perplexity": pytest.approx(np.exp(1.5)),
        "accuracy": 0.25,
        "bits_per_byte": pytest.approx(6 / np.log(2) / 7),
        "word_perplexity": pytest.approx(np.exp(3)),
        "tokens": 4,
    }
    without = evaluate.evaluate(lambda params, batch: batch, None, [row])
    assert without.keys() == {"loss", "perplexity", "accuracy", "tokens"}


@pytest.mark.parametrize("chunk", [0, 8])
def test_the_accuracy_is_the_share_of_targets_that_are_likeliest(net, params, chunk):
    batch = make_batch(1)
    logits = net.apply({"params": params}, batch["tokens"], segments=batch["segments"])[0]
    right = (np.asarray(logits).argmax(-1) == batch["targets"]) * batch["weights"]
    mesh = sharding.make_mesh()
    measure_rows = evaluate.make_eval_step(net, mesh, losses.LossConfig(chunk=chunk))
    _, right_B, weights_B = measure_rows(params, step.put_batch(batch, mesh))
    np.testing.assert_array_equal(right_B, right.sum(axis=1))
    np.testing.assert_array_equal(weights_B, batch["weights"].sum(axis=1))
