"""Does the optimiser do what its configuration says, and what torch's does?"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import model
from model import blocks, errors
from train import optimizer, paths

pytestmark = pytest.mark.standard_promotion

GPT2 = dict(position="learned", norm="layer", activation="gelu", bias="all", tied=True)


@pytest.mark.parametrize(
    ("name", "middle", "last"),
    # Peak 2, 5 steps of warm-up, 16 steps in all: step 10 is half-way from 5 to 15.
    [("cosine", 1.1, 0.2), ("linear", 1.1, 0.2), ("constant", 2.0, 2.0)],
)
def test_a_schedule_passes_through_its_endpoints(name, middle, last):
    config = optimizer.OptimizerConfig(
        learning_rate=2.0, schedule=name, warmup_steps=5, end_fraction=0.1
    )
    rate = optimizer.schedule(config, steps=16)
    actual = [float(rate(step)) for step in (0, 1, 4, 5, 10, 15, 16)]
    np.testing.assert_allclose(actual, [2 / 6, 4 / 6, 10 / 6, 2, middle, last, last], rtol=1e-6)


def test_cosine_and_linear_differ_between_the_endpoints():
    quarter = {}
    for name in ("cosine", "linear"):
        config = optimizer.OptimizerConfig(learning_rate=1.0, schedule=name, end_fraction=0.0)
        quarter[name] = float(optimizer.schedule(config, steps=9)(2))
    np.testing.assert_allclose(quarter["cosine"], 0.5 * (1 + np.cos(np.pi / 4)), rtol=1e-6)
    np.testing.assert_allclose(quarter["linear"], 0.75, rtol=1e-6)


def test_without_warm_up_the_first_step_has_the_highest_rate():
    config = optimizer.OptimizerConfig(learning_rate=0.3, warmup_steps=0)
    assert float(optimizer.schedule(config, steps=1)(0)) == pytest.approx(0.3)


def test_warm_up_longer_than_training_is_refused():
    config = optimizer.OptimizerConfig(warmup_steps=7)
    message = "optimizer.warmup_steps=7 does not end within 7 steps of training; lower it"
    with pytest.raises(errors.BadInput, match=message):
        optimizer.schedule(config, steps=7)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("schedule", "cosin", "optimizer.schedule is 'cosin' (did you mean 'cosine'?); known: cos"),
        ("learning_rate", 0.0, "optimizer.learning_rate is 0.0; it must be above 0"),
        ("warmup_steps", -1, "optimizer.warmup_steps is -1; it must be at least 0"),
        ("end_fraction", 1.5, "optimizer.end_fraction is 1.5; it must be between 0 and 1"),
        ("weight_decay", -0.1, "optimizer.weight_decay is -0.1; it must be at least 0"),
        ("b1", 1.0, "optimizer.b1 is 1.0; it must be at least 0 and below 1"),
        ("b2", -0.5, "optimizer.b2 is -0.5; it must be at least 0 and below 1"),
        ("eps", 0.0, "optimizer.eps is 0.0; it must be above 0"),
        ("clip_norm", 0.0, "optimizer.clip_norm is 0.0; it must be above 0, or None"),
    ],
)
def test_a_bad_setting_is_refused_by_name_and_value(field, value, message):
    with pytest.raises(errors.BadInput, match=re.escape(message)):
        optimizer.OptimizerConfig(**{field: value})


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("shape", [{}, GPT2])
def test_matrices_and_tables_decay_and_biases_and_norms_do_not(shape, scan):
    config = model.ModelConfig(
        vocab_size=11, context_length=7, layers=2, width=6, heads=3, hidden=5, **shape
    )
    net = model.build(config, model.Runtime(scan=scan))
    params = jax.eval_shape(lambda: model.init(net, key=jax.random.key(0)))
    factors = paths.by_rule(paths.DECAY, params)
    unstacked = jax.eval_shape(blocks.unstack_layers, params) if scan else params
    ranks = jax.tree.leaves(jax.tree.map(lambda leaf: leaf.ndim, unstacked))
    names = [path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(unstacked)]
    for path, factor in jax.tree_util.tree_leaves_with_path(factors):
        assert factor == (path[-1].key == "weight"), path
    # Independently of names: what is a vector in each layer is a norm's or a bias. Biases of heads are [N, H].
    for name, rank in zip(names, ranks, strict=True):
        assert (name == "weight") == (rank >= 2 and name != "bias")


def test_the_first_rule_found_in_the_path_wins():
    params = {"a": {"bias": jnp.zeros(2), "weight": jnp.zeros(3)}, "b": {"weight": jnp.zeros(5)}}
    given = [("^a/weight", "first"), ("weight$", "second"), ("", "rest")]
    assert paths.by_rule(given, params) == {
        "a": {"bias": "rest", "weight": "first"},
        "b": {"weight": "second"},
    }
    docstring = paths.by_rule([("bias$", 0), ("", 1)], {"a": {"bias": 3, "weight": 5}})
    assert docstring == {"a": {"bias": 0, "weight": 1}}


def test_a_parameter_without_a_rule_is_refused():
    with pytest.raises(
        errors.BadInput, match=r"parameter a/gain matches no rule of \['weight\$'\]"
    ):
        paths.by_rule([("weight$", 1)], {"a": {"gain": jnp.zeros(2), "weight": jnp.zeros(2)}})


def test_a_rule_without_a_parameter_is_refused():
    with pytest.raises(errors.BadInput, match=r"rule 'wieght\$' is first for no parameter"):
        paths.by_rule([("wieght$", 1), ("", 0)], {"a": jnp.zeros(2)})


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
    for step in range(5):
        _, state = transform.update(params, state, params)
        recorded = optax.tree.get(state, "learning_rate")
        assert float(recorded) == pytest.approx(float(expected(step)))


@pytest.mark.oracle
@pytest.mark.parametrize("clip_norm", [None, 0.7])
def test_adamw_is_torchs(clip_norm):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(7)
    shapes = {"weight": (5, 3), "bias": (3,)}
    start = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    steps = 11
    config = optimizer.OptimizerConfig(
        learning_rate=0.03, warmup_steps=3, weight_decay=0.2, b1=0.8, b2=0.9, clip_norm=clip_norm
    )
    transform, rate = optimizer.build(config, steps), optimizer.schedule(config, steps)
    params = jax.tree.map(jnp.asarray, start)
    state = transform.init(params)

    theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    groups = [
        {"params": [theirs["weight"]], "weight_decay": 0.2},
        {"params": [theirs["bias"]], "weight_decay": 0.0},
    ]
    peer = torch.optim.AdamW(groups, lr=0.03, betas=(0.8, 0.9), eps=1e-8)
    for step in range(steps):
        gradient = {
            name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()
        }
        updates, state = transform.update(jax.tree.map(jnp.asarray, gradient), state, params)
        params = optax.apply_updates(params, updates)
        for name, value in gradient.items():
            theirs[name].grad = torch.tensor(value)
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(theirs.values(), clip_norm)
        for group in peer.param_groups:
            group["lr"] = float(rate(step))
        peer.step()
    for name, value in theirs.items():
        np.testing.assert_allclose(params[name], value.detach().numpy(), rtol=3e-6, atol=3e-7)
        assert np.abs(np.asarray(params[name]) - start[name]).max() > 0.1
