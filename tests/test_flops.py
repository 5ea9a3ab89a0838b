"""Does the count of operations agree with the compiler's, and the peak with the device?"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

import model
from model import presets
from model.config import ModelConfig
from train import flops

SHAPE = dict(vocab_size=211, context_length=64, layers=3, width=60)
OURS = dict(**SHAPE, heads=6, head_size=14, hidden=142)
LABELS = ("a", "b", "c", "d", "e")
LLAMA = ModelConfig(**OURS, kv_heads=2)
# Per family and whatever changes a matrix. All experts are chosen, because the compiler would count them all, and the
# exact GELU is replaced, whose error function it expands into 60 operations an entry.
PLAIN = dict(**SHAPE, heads=5, activation="relu")
CONFIGS = {
    "llama": LLAMA,
    "gpt2": presets.config("gpt2-124m", **SHAPE, heads=5),
    "neox": presets.config("pythia-160m", **PLAIN | dict(heads=3), rope=dict(fraction=0.2)),
    "gemma2": presets.config("gemma2-2b", **OURS, kv_heads=3),
    "mixtral": presets.config("mixtral-8x7b", **OURS, kv_heads=2, experts=dict(count=3, chosen=3)),
    "bert": presets.config("bert-base-cased", **PLAIN),
    "tagger": presets.config("bert-base-cased", **PLAIN, head=dict(kind="token", labels=LABELS)),
    "encoder": presets.config("bert-base-cased", **PLAIN, head=dict(kind="none")),
    "t5": presets.config("t5-v1.1-small", **OURS, encoder_layers=2),
    "bart": presets.config("bart-base", **PLAIN, encoder_layers=5),
    "lstm": ModelConfig(**SHAPE, family="lstm", tied=True),
    "gru": ModelConfig(**SHAPE, family="gru"),
}


def shapes(config):
    net = model.build(config)
    return net, jax.eval_shape(lambda: model.init(net, key=jax.random.key(0)))


def scores(config, length):
    """Of a forward pass: (as we count them, as a compiler does, which computes what a mask hides)."""
    sides = flops.by_part(config, length).values()
    ours = sum(n for parts in sides for part, n in parts.items() if part.endswith("scores"))
    maps = {"encoder_only": config.layers, "decoder_only": config.layers}
    maps["encoder_decoder"] = config.encoder_layers + 2 * config.layers
    if config.family not in maps:
        return 0, 0
    return ours, 4 * length * maps[config.family] * config.heads * config.head_size


@pytest.mark.parametrize(("name", "length"), [("llama", 7), *((name, 61) for name in CONFIGS)])
def test_a_forward_pass_costs_what_the_compiler_counts(name, length):
    """Within 8 %, the share of norms, softmax and activations in a model so narrow.

    The compiler halves no attention, and counts the turns of a recurrent layer's loop once.
    """
    config, rows = CONFIGS[name], 3
    if config.family in ("lstm", "gru"):
        length = 1
    net, params = shapes(config)
    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    sides = [tokens] * len(flops.by_part(config, length))
    compiled = jax.jit(lambda p, *t: net.apply({"params": p}, *t)[0]).lower(params, *sides)
    counted = compiled.cost_analysis()["flops"]
    ours, uncut = scores(config, length)
    expected = rows * length * (flops.forward(config, length) - ours + uncut)
    assert expected < counted < 1.08 * expected


@pytest.mark.parametrize("name", CONFIGS)
def test_matrices_cost_two_operations_for_each_parameter_that_is_neither_looked_up_nor_a_vector(
    name,
):
    config = CONFIGS[name]
    lookups = {"embedding", "position", "relative", "types"}
    _, params = shapes(config)
    met = sum(
        math.prod(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if path[-1].key == "weight" and not lookups & {step.key for step in path}
    )
    if config.tied and config.head.kind == "lm":
        met += config.vocab_size * config.width
    assert flops.forward(config, 13) - scores(config, 13)[0] == 2 * met


def test_a_trained_token_costs_six_per_parameter_and_half_the_attention():
    """GPT-2 124M at 1024 tokens: 12 layers of 12 width^2 + 50257 width; 6 T width a layer."""
    config = presets.config("gpt2-124m")
    assert flops.training(config, 1024) == 6 * 123_532_032 + 12 * 6 * 1024 * 768
    assert flops.training(config, 1024) == 3 * flops.forward(config, 1024)


def test_gpt3_takes_the_published_operations():
    """Brown et al. 2020, table D.1: 3.14e23 for 300e9 tokens, 6 per parameter and no attention."""
    config = presets.config("gpt3-175b")
    matrices = flops.training(config, 2048) - 3 * flops.by_part(config, 2048)["target"]["scores"]
    assert 300e9 * matrices == pytest.approx(3.14e23, rel=0.005)


def test_only_the_chosen_experts_cost_operations():
    """Mixtral: 2 of 8 experts of 3 x 4096 x 14336, and a router of 8 rows, in each of 32 layers."""
    parts = flops.by_part(presets.config("mixtral-8x7b"), 7)["target"]
    assert parts["feed-forward"] == 2 * 32 * (2 * 3 * 4096 * 14_336 + 8 * 4096)


def test_an_encoder_sees_both_ways_and_a_decoder_half():
    """BERT base at 512 tokens: 4 T width a layer, where GPT-2 has 2 T width."""
    assert flops.by_part(presets.config("bert-base-cased"), 512)["source"]["scores"] == (
        12 * 4 * 512 * 768
    )
    assert flops.by_part(presets.config("gpt2-124m"), 512)["target"]["scores"] == 12 * 2 * 512 * 768


def test_an_encoder_decoder_counts_each_side_by_its_own_tokens():
    """BART base at 100 tokens, had it 3 heads of keys and values beside its 12 of 64: 6 + 6 layers of width 768.

    Keys and values of the source are made once for each of its tokens, in each layer of the decoder.
    """
    square, grouped, scores_both_ways = 2 * 768 * 768, 2 * 768 * 3 * 64, 4 * 100 * 768
    assert flops.by_part(presets.config("bart-base", kv_heads=3), 100) == {
        "source": {
            "attention": 6 * (2 * square + 2 * grouped),
            "scores": 6 * scores_both_ways,
            "feed-forward": 6 * 8 * square,
            "cross attention": 6 * 2 * grouped,
        },
        "target": {
            "attention": 6 * (2 * square + 2 * grouped),
            "scores": 3 * scores_both_ways,
            "feed-forward": 6 * 8 * square,
            "cross attention": 6 * 2 * square,
            "cross scores": 6 * scores_both_ways,
            "head": 2 * 50_265 * 768,
        },
    }


def test_a_window_bounds_what_a_token_sees():
    """Layers with a window of 5, and every other without one: key by key, half of the token itself."""
    config = dataclasses.replace(LLAMA, windows=(5, 0))
    seen = [sum(min(t + 0.5, w, 37) for t in range(37)) for w in (5, 37, 5)]
    expected = sum(4 * 6 * 14 * keys / 37 for keys in [seen[0], 37 * 37 / 2, seen[2]])
    counted = flops.by_part(config, 37)["target"]["scores"]
    assert counted == pytest.approx(expected, abs=3)
    assert flops.by_part(config, 5)["target"] == flops.by_part(LLAMA, 5)["target"]


def test_a_text_classifier_shares_its_head_among_the_tokens():
    config = presets.config("bert-base-cased", head=dict(kind="sequence", labels=("a", "b")))
    parts = flops.by_part(config, 128)["source"]
    assert parts["head"] == 2 * 768 * (768 + 2) // 128


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
