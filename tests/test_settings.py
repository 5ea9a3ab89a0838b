"""Is what cannot be decoded refused in one line that names it, before anything is computed?"""

import re

import numpy as np
import pytest
import tiny

import decode
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
