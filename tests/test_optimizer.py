"""Does a config mean the optimiser that it says, and is one that means nothing refused?"""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from model import errors
from model.config import ModelConfig
from train import losses, optimizer, step

pytestmark = pytest.mark.standard_promotion


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"schedule": "cosin"},
            "optimizer.schedule is 'cosin' (did you mean 'cosine'?); known: cosine, constant, linear, inverse_sqrt",
        ),
        (
            {"name": "adam"},
            "optimizer.name is 'adam' (did you mean 'adamw'?); known: adamw, adafactor, lion, muon, sgd, schedule_free",
        ),
        (
            {"moments_dtype": "bf16"},
            "optimizer.moments_dtype is 'bf16' (did you mean 'bfloat16'?); known: float32, bfloat16",
        ),
        ({"learning_rate": 0.0}, "optimizer.learning_rate is 0.0; it must be above 0"),
        ({"warmup_steps": -1}, "optimizer.warmup_steps is -1; it must be at least 0"),
        ({"end_fraction": 1.5}, "optimizer.end_fraction is 1.5; it must be between 0 and 1"),
        (
            {"schedule": "wsd", "decay_fraction": 0.0},
            "optimizer.decay_fraction is 0.0; it must be above 0 and at most 1",
        ),
        (
            {"decay_fraction": 0.2},
            "optimizer.decay_fraction is 0.2, which only the schedule wsd reads; remove it",
        ),
        ({"weight_decay": -0.1}, "optimizer.weight_decay is -0.1; it must be at least 0"),
        ({"b1": 1.0}, "optimizer.b1 is 1.0; it must be at least 0 and below 1"),
        ({"b2": -0.5}, "optimizer.b2 is -0.5; it must be at least 0 and below 1"),
        ({"eps": 0.0}, "optimizer.eps is 0.0; it must be above 0"),
        ({"clip_norm": 0.0}, "optimizer.clip_norm is 0.0; it must be above 0, or None"),
        ({"ema_decay": 1.0}, "optimizer.ema_decay is 1.0; it must be at least 0 and below 1"),
        (
            {"name": "sgd", "momentum": 1.0},
            "optimizer.momentum is 1.0; it must be at least 0 and below 1",
        ),
        (
            {"name": "sgd", "b1": 0.9},
            "optimizer.b1 is 0.9, which sgd does not read (it reads momentum, nesterov); remove it",
        ),
        (
            {"name": "adafactor", "b2": 0.9},
            "optimizer.b2 is 0.9, which adafactor does not read (it reads none of these); remove it",
        ),
        (
            {"nesterov": False},
            "optimizer.nesterov is False, which adamw does not read (it reads b1, b2, eps); remove",
        ),
        (
            {"name": "adafactor", "moments_dtype": "bfloat16"},
            "optimizer.moments_dtype is 'bfloat16', but adafactor keeps no first moment; remove it",
        ),
        (
            {"name": "lion", "second_moments_dtype": "bfloat16"},
            "optimizer.second_moments_dtype is 'bfloat16', which adamw alone reads, and not lion; remove it",
        ),
        (
            {"second_moments_dtype": "bfloat16", "b2": 0.999},
            "optimizer.second_moments_dtype is 'bfloat16' and optimizer.b2 is 0.999: a change of 0.001 per step is "
            "lost in the 8 bits of bfloat16; lower b2 to 0.95, or keep float32",
        ),
        (
            {"name": "schedule_free", "schedule": "cosine"},
            "optimizer.schedule is 'cosine', and schedule_free replaces a falling rate; remove it or",
        ),
        (
            {"name": "schedule_free", "ema_decay": 0.9},
            "optimizer.ema_decay is 0.9, and schedule_free keeps an average already; remove it",
        ),
        (
            {"name": "schedule_free", "b1": 0.0},
            "optimizer.b1 is 0.0; it must be above 0 for schedule_free, whose average it weighs",
        ),
        (
            {"rate_rules": (("", 1.0, 2.0),)},
            "optimizer.rate_rules has ('', 1.0, 2.0); it must be a pair of a regex and a number",
        ),
        (
            {"rate_rules": (("", True),)},
            "optimizer.rate_rules has ('', True); it must be a pair of a regex and a number",
        ),
        (
            {"decay_rules": (("", -1.0),)},
            "optimizer.decay_rules has ('', -1.0); its number must be at least 0 and finite",
        ),
        (
            {"decay_rules": (("(", 1.0),)},
            "optimizer.decay_rules has '(', which is no regex (missing ), unterminated subpattern",
        ),
        ({"frozen": ("*",)}, "optimizer.frozen has '*', which is no regex (nothing to repeat"),
    ],
)
def test_a_bad_setting_is_refused_by_name_and_value(settings, message):
    with pytest.raises(errors.BadInput, match="^" + re.escape(message)) as caught:
        optimizer.OptimizerConfig(**settings)
    assert "\n" not in str(caught.value)


def test_what_an_optimiser_reads_is_written_out_and_reads_back_as_the_same():
    for name, own in optimizer.OPTIMIZERS.items():
        config = optimizer.OptimizerConfig(name=name, rate_rules=(("bias", 2.0), ("", 1.0)))
        values = json.loads(json.dumps(vars(config)))
        given = {key for key in optimizer.OWN if values[key] is not None}
        assert given == own.keys()
        assert values["schedule"] == ("constant" if name == "schedule_free" else "cosine")
        assert errors.build(optimizer.OptimizerConfig, values, "optimizer") == config
    assert optimizer.OptimizerConfig(schedule="wsd").decay_fraction == 0.1


def test_the_rules_that_come_with_it_fit_an_adapter_without_a_bias():
    params = {"query": {"lora_a/weight": jnp.ones((2, 3)), "lora_b/weight": jnp.ones((3, 2))}}
    optimizer.check(optimizer.OptimizerConfig(), params)
    with pytest.raises(errors.BadInput, match="parameter query/magnitude matches no rule"):
        optimizer.check(optimizer.OptimizerConfig(), {"query": {"magnitude": jnp.ones(3)}})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"decay_rules": [["weight$", 1.0]]},
            "optimizer.decay_rules: parameter stack/layers/attention_norm/scale matches no rule of ['weight$']; add",
        ),
        (
            {"rate_rules": [["/wieght$", 1.0], ["", 1.0]]},
            "optimizer.rate_rules: rule '/wieght$' is first for no parameter; correct or remove it",
        ),
        (
            {"frozen": ["^embeding"]},
            "optimizer.frozen: '^embeding' is found in no parameter; correct or remove it",
        ),
        ({"frozen": ["."]}, "optimizer.frozen: ['.'] match every parameter; leave one to train"),
    ],
)
def test_rules_that_do_not_fit_a_model_are_refused_before_it_is_built(settings, message):
    described = ModelConfig(vocab_size=11, context_length=7, layers=2, width=6, heads=3)
    config = errors.build(optimizer.OptimizerConfig, settings, "config.optimizer")
    with pytest.raises(errors.BadInput, match="^" + re.escape(message)):
        optimizer.check_model(config, described)
    params = {
        "stack": {"layers": {"attention_norm": {"scale": jnp.ones(2), "weight": jnp.ones(3)}}}
    }
    whole = {"decay_rules": (("", 1.0),), **settings}
    made = optimizer.build(errors.build(optimizer.OptimizerConfig, whole, "config.optimizer"), 3)
    with pytest.raises(errors.BadInput, match="^" + re.escape(message)):
        made.init(params)


def test_rules_that_fit_pass_the_check():
    described = ModelConfig(vocab_size=11, context_length=7, layers=2, width=6, heads=3)
    config = optimizer.OptimizerConfig(
        decay_rules=(("^stack/layers/attention/query/weight$", 2.0), ("", 0.5)),
        rate_rules=(("embedding", 0.1), ("", 1.0)),
        frozen=("_norm/scale",),
    )
    optimizer.check_model(config, described)


def test_a_long_gradient_is_shortened_to_clip_norm_and_a_short_one_left_alone():
    params = {"weight": jnp.zeros((1, 2)), "bias": jnp.zeros(1)}
    config = optimizer.OptimizerConfig(clip_norm=1.0, b1=0.0, weight_decay=0.0)
    for length, expected in [(10.0, 1.0), (0.5, 0.5)]:
        gradient = {"weight": jnp.array([[0.6, 0.0]]) * length, "bias": jnp.array([0.8]) * length}
        transform = optimizer.build(config, steps=3)
        _, state = transform.update(gradient, transform.init(params), params)
        seen = optax.tree.get(state, "mu")  # with b1 = 0, the gradient after clipping
        assert float(optax.tree.norm(seen)) == pytest.approx(expected)


def test_the_state_records_the_learning_rate_of_the_update_just_made():
    config = optimizer.OptimizerConfig(learning_rate=0.5, warmup_steps=3, schedule="linear")
    params = {"weight": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    transform = optimizer.build(config, steps=11)
    state, expected = transform.init(params), optimizer.schedule(config, 11)
    for number in range(5):
        _, state = transform.update(params, state, params)
        recorded = optax.tree.get(state, "learning_rate")
        assert float(recorded) == pytest.approx(float(expected(number)))


PLAIN = dict(name="sgd", momentum=0.0, learning_rate=0.5, clip_norm=None, schedule="constant")


def test_rules_multiply_the_learning_rate_and_the_decay_of_their_parameters():
    config = optimizer.OptimizerConfig(
        **PLAIN,
        weight_decay=0.25,
        decay_rules=(("^a/weight", 2.0), ("weight", 1.0), ("", 0.0)),
        rate_rules=(("^b", 3.0), ("", 1.0)),
    )
    params = {"a": {"weight": jnp.ones(2), "bias": jnp.ones(2)}, "b": {"weight": jnp.ones(3)}}
    transform = optimizer.build(config, steps=3)
    gradient = jax.tree.map(lambda p: jnp.full_like(p, 7.0), params)
    updates, _ = transform.update(gradient, transform.init(params), params)
    expected = {"a": {"weight": -0.5 * 7.5, "bias": -0.5 * 7}, "b": {"weight": -0.5 * 3 * 7.25}}
    jax.tree.map(np.testing.assert_allclose, updates, expected)


def distance(params, batch, key):
    del key
    total = sum(jnp.square(leaf + batch["x"].mean()).sum() for leaf in jax.tree.leaves(params))
    total *= batch["weights"].sum()
    return losses.Sums(total, total)


def test_frozen_parameters_keep_their_bits_and_have_no_state_and_no_share_of_the_norm():
    params = {
        "a": {"weight": jnp.array([-0.0, 0.0, 3.5])},
        "b": {"weight": jnp.array([[2.0, 5.0]])},
    }
    batch = {name: jnp.ones((2, 3)) for name in ("x", "weights", "segments")}
    for name in optimizer.OPTIMIZERS:
        average = {} if name == "schedule_free" else {"ema_decay": 0.5}
        frozen = dict(
            name=name, clip_norm=0.1, decay_rules=(("", 1.0),), frozen=("^a/",), **average
        )
        made = optimizer.build(optimizer.OptimizerConfig(**frozen), steps=3)
        state = step.TrainState(jnp.zeros((), jnp.int32), params, made.init(params))
        leaves = jax.tree_util.tree_leaves_with_path(state.opt_state)
        assert not [path for path, _ in leaves if "'a'" in jax.tree_util.keystr(path)]
        for _ in range(2):
            state, metrics = step.train_step(
                state, batch, jax.random.key(0), loss_fn=distance, optimizer=made, frozen=("^a/",)
            )
        # The same steps of a model that has nothing else.
        alone = optimizer.build(optimizer.OptimizerConfig(**{**frozen, "frozen": ()}), steps=3)
        rest = {"b": params["b"]}
        other = step.TrainState(jnp.zeros((), jnp.int32), rest, alone.init(rest))
        for _ in range(2):
            other, expected = step.train_step(
                other, batch, jax.random.key(0), loss_fn=distance, optimizer=alone
            )
        assert metrics["grad_norm"] == expected["grad_norm"] > 1
        np.testing.assert_array_equal(state.params["b"]["weight"], other.params["b"]["weight"])
        np.testing.assert_array_equal(state.weights["b"]["weight"], other.weights["b"]["weight"])
        for kept in (state.params, state.weights):
            assert kept["a"]["weight"].tobytes() == params["a"]["weight"].tobytes()
        assert np.abs(state.params["b"]["weight"] - params["b"]["weight"]).max() > 0


def test_the_rules_that_come_with_it_fit_an_adapter_which_has_neither_biases_nor_scales():
    adapter = {"query": {"lora_a": {"weight": jnp.ones(3)}, "lora_b": {"weight": jnp.ones(2)}}}
    optimizer.build(optimizer.OptimizerConfig(), 7).init(adapter)
    own = optimizer.OptimizerConfig(decay_rules=(("bias$", 0.0), ("", 1.0)))
    with pytest.raises(errors.BadInput, match=r"rule 'bias\$' is first for no parameter"):
        optimizer.build(own, 7).init(adapter)
