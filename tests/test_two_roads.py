"""Do the decode loop and one full forward pass say the same, for every family? Promise 2 of the contract."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import tiny

import decode
from decode import keys
from decode.requests import Request
from decode.settings import Settings

MINE = Request(
    "ganymede is located", Settings(max_new_tokens=19, temperature=0.9, top_p=0.95), "mine"
)


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def lm(request):
    return tiny.lm(request.param)


@functools.cache
def both_ways(net):
    return jax.jit(lambda p, t, n: net.apply({"params": p}, t, prefix=n)[0])


@functools.cache
def compiled(net):
    if net.config.family == "encoder_decoder":
        return jax.jit(lambda p, t, s, m: net.apply({"params": p}, s, t, source_mask=m)[0])
    return jax.jit(lambda p, t: net.apply({"params": p}, t)[0])


def forward(lm, done):
    """The logits that each token of a completion was drawn from, by one full forward pass.

    What stands behind the tokens fills up the one compiled shape.
    """
    size = lm.config.context_length

    def padded(tokens):
        return jnp.array([[*tokens, *[0] * (size - len(tokens))]])

    start, given = len(done.prompt_tokens), padded([*done.prompt_tokens, *done.tokens])
    if lm.config.family != "encoder_decoder":
        logits_BTV = compiled(lm.net)(lm.params, given)
    else:
        target, start = padded([lm.tokenizer.bos_id, *done.tokens]), 1
        source, mask = padded(done.prompt_tokens), jnp.arange(size)[None] < len(done.prompt_tokens)
        logits_BTV = compiled(lm.net)(lm.params, target, source, mask)
    return np.asarray(logits_BTV)[0, start - 1 : start - 1 + len(done.tokens)]


@pytest.mark.parametrize("length", [1, 16, 17, 33])
def test_log_probabilities_equal_those_of_one_full_forward_pass(lm, length):
    prompt = np.random.RandomState(length).randint(5, 300, length).tolist()
    settings = Settings(max_new_tokens=23, temperature=1.1, n=2)
    for done in decode.generate(lm, [prompt], settings, seed=length):
        logits = forward(lm, done).astype(np.float64)
        logprobs = scipy.special.log_softmax(logits, axis=1)
        expected = logprobs[np.arange(len(done.tokens)), list(done.tokens)]
        np.testing.assert_allclose(done.logprobs, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_prefix_lm_reads_its_prompts_both_ways_on_either_road(name):
    """Two prompts that differ in their last token alone, which all of a prompt sees; read forwards, as a control."""
    lm = tiny.lm(name)
    prompts = [[*range(5, 24), last] for last in (29, 31)]
    settings = Settings(max_new_tokens=23, temperature=1.1, n=2)
    for prefix in (True, False):
        read = dataclasses.replace(lm, prefix=prefix)
        for done in decode.generate(read, prompts, settings, seed=7):
            size, count = lm.config.context_length, len(done.prompt_tokens)
            row = [*done.prompt_tokens, *done.tokens]
            given = jnp.array([[*row, *[0] * (size - len(row))]])
            logits = np.asarray(both_ways(lm.net)(lm.params, given, jnp.array([count])), np.float64)
            logprobs = scipy.special.log_softmax(logits[0], axis=1)[count - 1 : len(row) - 1]
            expected = logprobs[np.arange(len(done.tokens)), list(done.tokens)]
            apart = np.abs(np.array(done.logprobs) - expected).max()
            assert apart < 1e-5 if prefix else apart > 1e-2


def test_greedy_tokens_are_the_best_of_one_full_forward_pass(lm):
    (done,) = decode.generate(lm, [[9, 8, 7]], Settings(max_new_tokens=40, temperature=0), seed=0)
    logits = forward(lm, done)
    assert list(done.tokens) == np.argmax(logits, axis=1).tolist()
    ranked = np.sort(logits, axis=1)
    np.testing.assert_allclose(done.margins, ranked[:, -1] - ranked[:, -2], atol=2e-5)


def test_tokens_are_the_gumbel_maxima_that_the_key_schedule_promises(lm):
    """Every draw again, from its published key and the logits of one full forward pass."""
    (done,) = decode.generate(lm, [MINE], seed=7)
    start = 1 if lm.config.family == "encoder_decoder" else len(done.prompt_tokens)
    for place, (token, logits) in enumerate(zip(done.tokens, forward(lm, done), strict=True)):
        key = keys.token_key(7, "mine", 0, start + place)
        scaled = logits.astype(np.float64) / 0.9
        order = np.argsort(-scaled, kind="stable")
        mass = np.exp(scaled[order] - scaled.max())
        nucleus = order[np.cumsum(mass) - mass < 0.95 * mass.sum()]
        noise = np.asarray(keys.gumbel(key[None], len(scaled)))[0]
        assert nucleus[np.argmax((scaled + noise)[nucleus])] == token
