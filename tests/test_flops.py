"""Does the count of operations agree with the compiler's, and the peak with the device?"""

import math

import jax
import jax.numpy as jnp
import pytest

import model
from train import flops

LLAMA = model.ModelConfig(
    vocab_size=211, context_length=64, layers=3, width=60, heads=6, kv_heads=2, head_size=14
)
GPT2 = model.ModelConfig(
    vocab_size=211,
    context_length=64,
    layers=3,
    width=60,
    heads=5,
    position="learned",
    norm="layer",
    gated=False,
    bias=True,
    tied=True,
)


def compilers_count(function, *arguments):
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


@pytest.mark.parametrize("config", [LLAMA, GPT2])
@pytest.mark.parametrize("length", [7, 61])
def test_a_forward_pass_costs_what_the_compiler_counts(config, length):
    """Within 5 %, the share of norms, softmax and activations; the compiler does not halve attention."""
    net, rows = model.build(config), 3
    params = jax.eval_shape(lambda: model.init(net, key=jax.random.key(0)))
    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    counted = compilers_count(lambda p, t: net.apply({"params": p}, t)[0], params, tokens)
    attention = 2 * length * config.layers * config.heads * config.head_size
    ours = rows * length * (flops.forward(config, length) + attention)
    assert ours < counted < 1.05 * ours


def test_matrix_parameters_are_those_that_are_neither_looked_up_nor_vectors():
    for config, lookups in [(LLAMA, ["embedding"]), (GPT2, ["position"])]:
        net = model.build(config)
        params = jax.eval_shape(lambda net=net: model.init(net, key=jax.random.key(0)))
        met = [
            leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(params)
            if path[-1].key == "weight" and path[0].key not in lookups
        ]
        assert flops.matrix_parameters(config) == sum(math.prod(leaf.shape) for leaf in met)


def test_a_trained_token_costs_six_per_parameter_and_half_the_attention():
    """GPT-2 124M at 1024 tokens: 12 layers of 12 width^2 + 50257 width; 6 T width a layer."""
    config = model.ModelConfig(
        vocab_size=50257, context_length=1024, layers=12, width=768, heads=12, gated=False
    )
    assert flops.matrix_parameters(config) == 123_532_032
    assert flops.training(config, 1024) == 6 * 123_532_032 + 12 * 6 * 1024 * 768
    assert flops.training(config, 1024) == 3 * flops.forward(config, 1024)


def test_utilisation_is_the_fraction_of_the_peak():
    rate = 1e12 / flops.training(LLAMA, 32)
    assert flops.utilisation(rate, LLAMA, 32, flops.Peak(4e12, "measured")) == pytest.approx(0.25)


class Device:
    def __init__(self, kind, platform):
        self.device_kind, self.platform = kind, platform


def test_known_devices_have_published_peaks_and_they_add_up(monkeypatch):
    flops.peak.cache_clear()
    monkeypatch.setattr(jax, "devices", lambda: [Device("NVIDIA H200", "gpu")] * 3)
    assert flops.peak() == (3 * 989e12, "published")
    flops.peak.cache_clear()


def test_unknown_accelerators_are_measured_and_simulated_devices_count_once(monkeypatch):
    monkeypatch.setattr(flops, "measure", lambda: 7.0)
    for platform, expected in [("gpu", 14.0), ("cpu", 7.0)]:
        flops.peak.cache_clear()
        monkeypatch.setattr(jax, "devices", lambda p=platform: [Device("new", p)] * 2)
        assert flops.peak() == (expected, "measured")
    flops.peak.cache_clear()


def test_the_measured_rate_is_one_that_a_processor_can_have():
    """Between 0.1 and 100,000 GFLOP/s: a factor that is lost or counted twice is not the claim."""
    assert 1e8 < flops.measure(size=128, seconds=0.02) < 1e14
