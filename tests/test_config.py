"""Is a configuration that cannot be built refused in one line that says what to change? And a text too long?"""

import dataclasses
import math

import jax.numpy as jnp
import pytest

from model import errors
from model.config import ModelConfig, Rope, Runtime
from tests import variants

SIZES = dict(vocab_size=101, context_length=31, layers=3, width=40, heads=4)


def test_the_weights_are_described_by_at_most_25_fields():
    assert len(dataclasses.fields(ModelConfig)) <= 25


def test_fields_left_0_follow_from_the_others():
    made = ModelConfig(**SIZES)
    assert (made.kv_heads, made.head_size, made.hidden, made.encoder_layers) == (4, 10, 112, 0)
    assert ModelConfig(**SIZES, activation="relu").hidden == 160
    assert ModelConfig(**SIZES, family="encoder_decoder").encoder_layers == 3
    recurrent = ModelConfig(101, 31, layers=3, width=40, family="gru")
    assert (recurrent.heads, recurrent.head_size, recurrent.position) == (1, 40, "none")


def test_windows_repeat_over_the_layers():
    made = ModelConfig(**SIZES, windows=(5, 0))
    assert [made.window(i) for i in range(3)] == [5, 0, 5]
    assert ModelConfig(**SIZES).window(2) == 0


def test_a_config_comes_back_from_its_values():
    for made in variants.CONFIGS.values():
        assert errors.build(ModelConfig, dataclasses.asdict(made), "model") == made


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(heads=7), "model.heads=7 does not divide model.width=40"),
        (dict(heads=0), "model.heads is 0; it must be at least 1"),
        (dict(kv_heads=3), "model.kv_heads=3 does not divide model.heads=4"),
        (dict(layers=0), "model.layers is 0; it must be at least 1"),
        (dict(hidden=-1), "model.hidden is -1; it must be at least 1, or 0 to follow"),
        (
            dict(position="rop"),
            r"model.position is 'rop' \(did you mean 'rope'\?\); known: none, learned",
        ),
        (
            dict(head_size=7),
            r"model.head_size=7 and model.rope.fraction=1.0 turn 7 entries of a head, .* make it even",
        ),
        (dict(head_size=6, rope=Rope(fraction=0.1)), "turn 0 entries of a head"),
        (dict(activation="swiglo"), r"model.activation is 'swiglo' \(did you mean 'swiglu'\?\)"),
        (dict(windows=(3, 0, 0, 3)), r"model.windows is \(3, 0, 0, 3\); it must hold at most one"),
        (dict(windows=(-3,)), r"model.windows is \(-3,\); .* each at least 1, or 0 to see all"),
        (
            dict(windows=(3,), family="encoder_only"),
            r"model.windows is \(3,\), which a model of family 'encoder_only' does not have",
        ),
        (dict(token_types=2), "model.token_types is 2, which a model of family 'decoder_only'"),
        (dict(encoder_layers=2), "model.encoder_layers is 2, which a model of family"),
        (
            dict(head={"kind": "token", "labels": ["a"]}),
            "model.head.kind is 'token', which only an",
        ),
        (
            dict(head={"kind": "sequence"}, family="encoder_only"),
            "model.head has kind='sequence' and 0 labels; a classification head needs labels",
        ),
        (
            dict(head={"next_sentence": True}),
            "model.head.next_sentence is True, which only an encoder_only model has; leave it out",
        ),
        (
            dict(head={"kind": "none", "next_sentence": True}, family="encoder_only"),
            "model.head.next_sentence is true and model.head.kind is 'none'; only 'lm' has both",
        ),
        (dict(head={"kind": "tokens"}), r"model.head.kind is 'tokens' \(did you mean 'token'\?\)"),
        (dict(rope={"theta": 0}), "model.rope.theta is 0.0; it must be above 0 and finite"),
        (dict(rope={"theta": math.inf}), "model.rope.theta is inf; it must be above 0 and finite"),
        (
            dict(rope={"fraction": 1.5}),
            "model.rope.fraction is 1.5; it must be above 0 and at most",
        ),
        (dict(rope={"scaling": "yarm"}), r"model.rope.scaling is 'yarm' \(did you mean 'yarn'\?\)"),
        (
            dict(rope={"scaling": "yarn"}),
            "model.rope.original_length is 0, and scaling 'yarn' needs",
        ),
        (
            dict(rope={"scaling": "llama3", "original_length": 8, "low": 4.0}),
            "model.rope.low=4.0 is not above 0 and below model.rope.high=4.0",
        ),
        (dict(scores={"cap": -1}), "model.scores.cap is -1.0; it must be at least 0 and finite"),
        (
            dict(experts={"count": 3, "chosen": 4}),
            "model.experts has count=3 and chosen=4; chosen must be from 1 to count",
        ),
        (dict(rope=7), r"model.rope is 7 \(int\); it must be a group of keys"),
        (dict(rope={"base": 7}), "model.rope has no key 'base'; known keys: theta"),
    ],
)
def test_a_config_that_cannot_be_built_says_what_to_change(change, message):
    with pytest.raises(errors.BadInput, match=message) as caught:
        errors.build(ModelConfig, {**SIZES, **change}, "model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(dropout=1.0), "runtime.dropout is 1.0; it must be at least 0 and below 1"),
        (dict(unroll=0), "runtime.unroll is 0; it must be at least 1"),
        (dict(dtype="float16"), r"runtime.dtype is 'float16' \(did you mean 'bfloat16'\?\)"),
    ],
)
def test_a_runtime_that_cannot_be_says_what_to_change(change, message):
    with pytest.raises(errors.BadInput, match=message):
        Runtime(**change)


@pytest.mark.parametrize("name", ["llama", "bert", "t5", "lstm"])
def test_more_tokens_than_the_window_are_refused(name):
    with pytest.raises(errors.BadInput, match="37 tokens are more than model.context_length=31"):
        variants.logits(
            variants.CONFIGS[name], variants.params(name), jnp.zeros((2, 37), jnp.int32)
        )
