"""Is what cannot be decoded refused in one line that names it, before anything is computed?"""

import dataclasses
import re

import numpy as np
import pytest
import tiny

import decode
from decode import outcome
from decode.requests import Request
from decode.settings import Settings
from model import errors


@pytest.fixture(scope="module")
def llama():
    return tiny.lm("llama")


SPANNED = "request 'a' has a prompt of 61 tokens, and the context window of 61 must hold one more"


@pytest.mark.parametrize(
    "prompts, message",
    [
        ([""], "request 0 has an empty prompt; give it text or at least one token id"),
        ([Request([], id="a")], "request 'a' has an empty prompt"),
        ([Request([5] * 61, id="a")], SPANNED),
        ([[5], [307]], "request 1 has token id 307; this model's are 0 to 306"),
        ([[-1]], "request 0 has token id -1; this model's are 0 to 306"),
        ("once upon", "the prompts are one str; put it in a list"),
        (Request("once upon"), "the prompts are one Request; put it in a list"),
        ([Request([5], id="a"), Request([6], id="a")], "request id 'a' occurs twice"),
        ([Request([5], id=7), Request([6], id="7")], "request id '7' occurs twice"),
        ([[5], Request([6], id=0)], "request id '0' occurs twice; give each request its own"),
    ],
)
def test_a_prompt_that_cannot_be_completed_is_refused_in_one_line(llama, prompts, message):
    with pytest.raises(errors.BadInput, match="^" + re.escape(message)) as error:
        decode.generate(llama, prompts, seed=0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(temperature=-0.5), "temperature is -0.5; it must be 0, which is greedy, or above"),
        (dict(temperature=float("nan")), "temperature is nan; it must be 0"),
        (dict(temperature=float("inf")), "temperature is inf; it must be 0"),
        (dict(temperature=1e-40), "temperature is 1e-40; it must be 0, which is greedy, or above"),
        (dict(temperature="hot"), "temperature is 'hot'; it must be a number"),
        (dict(top_p=0), "top_p is 0.0; it must be above 0 and at most 1"),
        (dict(top_p=1.01), "top_p is 1.01; it must be above 0 and at most 1"),
        (dict(top_p=float("nan")), "top_p is nan; it must be above 0"),
        (dict(top_k=-1), "top_k is -1; it must be at least 0"),
        (dict(top_k=2.0), "top_k is 2.0; it must be a whole number"),
        (dict(top_k=True), "top_k is True; it must be a whole number"),
        (dict(max_new_tokens=0), "max_new_tokens is 0; it must be at least 1"),
        (dict(n=0), "n is 0; it must be at least 1"),
        (
            dict(min_new_tokens=9, max_new_tokens=8),
            "min_new_tokens is 9, above max_new_tokens; lower",
        ),
        (
            dict(num_beams=4, xtc_probability=0.5),
            "xtc_probability is 0.5, and XTC is for drawing fre",
        ),
        (dict(num_beams=3, n=5), "num_beams is 3, below n, which is 5; raise it"),
        (dict(best_of=2, n=3), "best_of is 2, below n, which is 3; raise it"),
        (
            dict(num_beams=6, num_beam_groups=4),
            "num_beam_groups is 4, which does not divide num_beams",
        ),
        (dict(diversity_penalty=0.5), "diversity_penalty is 0.5, and there is one group of beams"),
        (dict(num_beams=2, stop="x"), "stop is ('x',), and beams end at tokens, not at texts; use"),
        (
            dict(penalty_alpha=0.5),
            "penalty_alpha is 0.5, and contrastive search chooses among top_k",
        ),
        (dict(mirostat=1), "mirostat is 1; it must be 0, which is off, or 2"),
        (
            dict(mirostat=2, prompt_lookup_num_tokens=2),
            "mirostat is 2, and mirostat steers one token",
        ),
        (
            dict(regex="a", grammar="b"),
            "regex is 'a', and a constraint stands alone, without another",
        ),
        (
            dict(regex="a", forced_tokens=[5]),
            "forced_tokens is (5,), and a constraint says what must",
        ),
        (
            dict(guidance_scale=2, dola_layers="low"),
            "guidance_scale is 2.0, and guidance, contrastive_",
        ),
        (
            dict(negative_prompt="a"),
            "negative_prompt is 'a', and guidance_scale is 1, which ignores it",
        ),
        (
            dict(do_sample=True, temperature=0),
            "do_sample is True, with a temperature of 0 or contrast",
        ),
        (
            dict(preset="lama.cpp"),
            "preset is 'lama.cpp' (did you mean 'llama.cpp'?); it must be one of",
        ),
        (
            dict(early_stopping="soon"),
            "early_stopping is 'soon'; it must be true, false or \"never\"",
        ),
        (
            dict(dola_layers="mid"),
            'dola_layers is \'mid\'; it must be "low", "high" or a list of layers',
        ),
        (dict(dola_layers=[-1]), "dola_layers is (-1,); layers are whole numbers from 0"),
        (
            dict(logit_bias={5: 1e39}),
            "logit_bias is {5: 1e+39}; a bias must be a number of float32",
        ),
        (dict(logit_bias={-5: 1.0}), "logit_bias has -5; a token id is a whole number from 0"),
        (dict(presence_penalty=1e39), "presence_penalty is 1e+39; it must be a number of float32"),
        (dict(stop=["a", ""]), "stop is ['a', '']; it must be a list of texts, none of them empty"),
        (dict(bad_words="a"), "bad_words is 'a'; it must be a list of texts or lists of tokens"),
        (
            dict(exponential_decay_length_penalty=[5]),
            "exponential_decay_length_penalty is [5]; it must",
        ),
        (dict(n=2**31), "n is 2147483648; it must be at least 1 and below 2^31"),
    ],
)
def test_a_setting_out_of_range_is_refused_in_one_line(wrong, message):
    with pytest.raises(errors.BadInput, match="^" + re.escape(message)):
        Settings(**wrong)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(prompt=3), "a request has prompt 3; it must be text or a list of token ids"),
        (dict(prompt=[1, "b"]), "a request has prompt [1, 'b']; it must be text"),
        (dict(prompt=[1.0], id="x"), "request 'x' has prompt [1.0]; it must be text"),
        (dict(prompt="a", id=1.5), "request 1.5: an id must be text or a whole number"),
        (dict(prompt="a", id="x\ud800"), "request 'x\\ud800': an id must be Unicode text"),
        (dict(prompt="a", settings={}), "a request has settings {}; they must be a Settings"),
    ],
)
def test_a_malformed_request_is_refused_in_one_line(wrong, message):
    with pytest.raises(errors.BadInput, match="^" + re.escape(message)):
        Request(**wrong)


def test_what_belongs_to_a_call_is_refused_in_one_line(llama):
    def refused(message):
        return pytest.raises(errors.BadInput, match="^" + re.escape(message))

    with refused("batch_size is 0; it must be a whole number of at least 1"):
        decode.generate(llama, [[5]], seed=0, batch_size=0)
    with refused("seed is -1; it must be a whole number from 0 to 2^64 - 1"):
        decode.generate(llama, [[5]], seed=-1)
    with refused("settings stand beside requests, which carry their own"):
        decode.generate(llama, [Request([5])], Settings(), seed=0)
    with refused("n is 2; a stream carries one completion, so it must be 1"):
        next(decode.stream(llama, [5], Settings(n=2), seed=0))


def test_weights_that_give_no_numbers_are_refused_by_request_and_position():
    lm = tiny.scripted(by_position=np.array([[0.0, 1.0], [0.0, 1.0], [np.nan, 0.0]]))
    with pytest.raises(
        errors.BadInput, match="^request 0: the logits at position 3 are not numbers"
    ):
        decode.generate(lm, [[0]], Settings(max_new_tokens=5), seed=0)


def test_lists_mappings_and_schemas_have_one_form_however_they_are_given():
    given = Settings(
        logit_bias={"7": -1, 5: 2.5}, stop="x", suppress_tokens=[3], json_schema={"type": "integer"}
    )
    again = Settings(
        logit_bias=((5, 2.5), (7, -1.0)),
        stop=["x"],
        suppress_tokens=(3,),
        json_schema='{"type": "integer"}',
    )
    assert given == again
    assert hash(given) == hash(again)
    assert given.changed == {
        "logit_bias": ((5, 2.5), (7, -1.0)),
        "stop": ("x",),
        "suppress_tokens": (3,),
        "json_schema": '{"type": "integer"}',
    }


@pytest.mark.parametrize(
    "settings, drawn",
    [
        (dict(), True),
        (dict(temperature=0), False),
        (dict(do_sample=False), False),
        (dict(num_beams=3), False),
        (dict(num_beams=3, do_sample=True), True),
        (dict(penalty_alpha=0.6, top_k=4), False),
    ],
)
def test_tokens_are_drawn_unless_the_temperature_is_zero_or_there_is_a_search(settings, drawn):
    assert Settings(**settings).drawn == drawn


def test_a_request_that_cannot_be_followed_fails_alone_where_that_is_asked_for(llama):
    asked = [
        Request([5, 6], Settings(max_new_tokens=3), "good"),
        Request([5] * 70, Settings(), "long"),
        Request([5], Settings(regex="[a"), "regex"),
    ]
    good, long, regex = decode.generate(llama, asked, seed=0, strict=False)
    assert good == decode.generate(llama, asked[:1], seed=0)[0]
    assert (long.finish_reason, long.tokens) == ("failed", ())
    assert long.error.startswith("request 'long' has a prompt of 70 tokens, and the context window")
    assert regex.error.startswith("request 'regex': regex '[a' cannot be used")
    with pytest.raises(errors.BadInput, match="^request 'long' has a prompt of 70 tokens"):
        decode.generate(llama, asked, seed=0)


def test_the_best_of_several_are_those_that_did_not_fail_by_their_log_probability(llama):
    many = decode.generate(llama, [[5, 6]], Settings(max_new_tokens=5, n=7), seed=0)
    best = decode.generate(llama, [[5, 6]], Settings(max_new_tokens=5, n=2, best_of=7), seed=0)
    ranked = sorted(many, key=lambda done: -sum(done.logprobs))
    assert [done.tokens for done in best] == [done.tokens for done in ranked[:2]]
    np.testing.assert_allclose([done.score for done in best], [sum(d.logprobs) for d in ranked[:2]])
    failed = dataclasses.replace(many[0], finish_reason="failed", logprobs=())
    assert failed not in outcome.best(Settings(n=2, best_of=3), [failed, many[1], many[2]])
