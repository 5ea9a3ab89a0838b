"""Does a bad step change nothing, to the bit, and does a run that skips one still not care when it is killed?"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import running

from model import checkpoint, errors
from train import data, flight, log, loop, recipe

pytestmark = pytest.mark.standard_promotion

SPIKE = 3.0


def start():
    """Two parameters, a negative zero among them, and what updates them."""
    params = {"w": jnp.array([[2.0, -0.0, 3.0]]), "b": jnp.array([-0.0, 5.0])}
    transform = flight.guard(optax.adam(0.5), SPIKE)
    return params, transform, transform.init(params), jax.jit(transform.update)


def test_the_limit_is_that_of_mean_and_deviation_of_the_good_losses_before():
    params, _, state, update = start()
    grads = jax.tree.map(jnp.ones_like, params)
    losses = list(np.random.default_rng(3).normal(4, 0.1, 2 * flight.WINDOW + 7).astype("f4"))
    mean, variance, good = 0.0, 0.0, []
    for number, loss in enumerate(losses):
        bad = number in (31, 53)
        loss = {31: np.float32(np.nan), 53: np.float32(9)}.get(number, loss)
        _, state = update(grads, state, params, value=loss)
        if 20 <= len(good) <= flight.WINDOW:
            np.testing.assert_allclose(state.limit, np.mean(good) + SPIKE * np.std(good), rtol=1e-5)
        elif len(good) < 20:
            assert state.limit == np.inf
        else:
            np.testing.assert_allclose(state.limit, mean + SPIKE * variance**0.5, rtol=1e-5)
        values = {"loss": float(loss), "grad_norm": 5**0.5, "limit": state.limit.item()}
        assert flight.is_bad(values) == (bad or float(loss) > values["limit"])
        if not flight.is_bad(values):
            good.append(np.float64(loss))
            share = max(1 / len(good), 1 / flight.WINDOW)
            variance = (1 - share) * (variance + share * (loss - mean) ** 2)
            mean = mean + share * (np.float64(loss) - mean)
    assert len(good) > 190


@pytest.mark.parametrize("what", ["loss", "gradient", "spike"])
def test_a_bad_step_leaves_every_bit_of_parameters_and_optimiser(what):
    params, _, state, update = start()
    grads = jax.tree.map(jnp.ones_like, params)
    for number in range(23):
        _, state = update(grads, state, params, value=jnp.float32(4 + 0.1 * (number % 2)))
    value = {"loss": jnp.nan, "spike": 4.3}.get(what, 4.0)
    bad = {**grads, "b": jnp.array([jnp.inf, 1])} if what == "gradient" else grads

    def bits(tree):
        return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]

    updates, after = update(bad, state, params, value=jnp.float32(value))
    assert bits(optax.apply_updates(params, updates)) == bits(params)
    assert bits(after._replace(limit=state.limit)) == bits(state)
    updates, after = update(grads, state, params, value=jnp.float32(4.0))
    assert bits(optax.apply_updates(params, updates)) != bits(params)
    assert after.seen == state.seen + 1


def test_norms_are_those_of_each_layer():
    tree = {"layers": {"w": np.arange(1, 7, dtype="f4").reshape(2, 3)}, "b": np.array([3, 4], "f4")}
    found = jax.jit(flight.norms)(tree)
    np.testing.assert_allclose(found["layers"]["w"], [14**0.5, 77**0.5], rtol=1e-6)
    np.testing.assert_allclose(found["b"], 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"on_bad_step": "skipp"},
            r"config.train.on_bad_step is 'skipp' \(did you mean 'skip'\?\); known: stop, skip",
        ),
        ({"spike": -1.0}, "config.train.spike is -1.0; it must be at least 0 and finite"),
    ],
)
def test_a_policy_that_does_not_exist_is_refused(tmp_path, change, message):
    with pytest.raises(errors.BadInput, match=f"^{message}$"):
        recipe.from_config(running.config(tmp_path, train=change))


class Killed(BaseException):
    """Ends a run in the middle of a step."""


def test_a_run_killed_right_after_it_skipped_a_batch_ends_like_one_left_in_peace(
    tmp_path, monkeypatch
):
    """Step 5 is given targets that weigh nothing anyone could tell."""
    asked = running.config(
        running.texts(tmp_path / "texts"),
        train={"steps": 8, "batch_size": 8, "log_every": 1, "save_every": 3, "on_bad_step": "skip"},
        decode={"prompts": []},
        runtime={"mesh": {"data": 8}},
        optimizer={"warmup_steps": 1},
    )
    asked["train"] |= {"accumulate": 1, "eval_every": 0, "sample_every": 0}
    usual = data.batches

    def poisoned(*args, **kwargs):
        whole = usual(*args, **kwargs)

        class Spoilt:
            def __getitem__(self, step):
                batch = whole[step]
                weights = np.full_like(batch["weights"], np.nan) if step == 4 else batch["weights"]
                return {**batch, "weights": weights}

        return Spoilt()

    def run(name):
        loop.run(recipe.from_config(asked), tmp_path / name)
        saved = json.loads((tmp_path / name / "checkpoints/8/meta/metadata").read_text())
        return (
            saved,
            running.metrics(tmp_path / name),
            (tmp_path / name / "ledger.jsonl").read_text(),
        )

    monkeypatch.setattr(data, "batches", poisoned)
    whole = run("whole")
    assert whole[0]["meta"]["skipped"] == [5]
    assert [line["step"] for line in whole[1] if line["split"] == "train"] == [1, 2, 3, 4, 6, 7, 8]
    (event,) = [json.loads(line) for line in whole[2].splitlines()]
    assert (event["step"], event["event"], event["loss"]) == (5, "skipped", "nan")
    found = json.loads((tmp_path / "whole" / "flight.json").read_text())
    norms = found["norms"]["parameters"].values()
    assert {len(of_layers) for of_layers in norms if isinstance(of_layers, list)} == {2}

    for message in ("skipped", "step 6"):
        with monkeypatch.context() as patch:
            say = log.Progress.say

            def killed(self, text, say=say, message=message):
                say(self, text)
                if message in text:
                    raise Killed

            patch.setattr(log.Progress, "say", killed)
            with pytest.raises(Killed):
                run("killed")
    assert checkpoint.latest(tmp_path / "killed" / "checkpoints") == 3
    assert run("killed") == whole
