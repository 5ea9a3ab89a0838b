"""Does contrastive search choose as its formula says, and as Hugging Face did?"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import decode
import model
from decode import contrastive, jobs, loop
from decode.requests import Request
from decode.settings import Settings
from tests import searches

GANYMEDE = Settings(max_new_tokens=17, penalty_alpha=0.6, top_k=5)


@functools.partial(jax.jit, static_argnames="net")
def forward(net, params, tokens, source):
    """Log-probabilities and last hidden states of a whole text, in one pass without a cache."""
    sides = (tokens,) if source is None else (source, tokens)
    logits, aux = net.apply({"params": params}, *sides)
    return jax.nn.log_softmax(logits[0]), aux["features"][0]


def by_hand(lm, prompt, s):
    """Su et al. 2022, equation 5, each candidate read anew behind the whole text; with what it won by."""
    separate = lm.config.family == "encoder_decoder"
    source = np.array([prompt]) if separate else None
    text = [lm.tokenizer.bos_id] if separate else list(prompt)
    start, margins = len(text), []

    def ask(tokens):
        padded = np.array([tokens + [0] * (start + s.max_new_tokens - len(tokens))])
        said, hidden = forward(lm.net, lm.params, padded, source)
        hidden = np.asarray(hidden, np.float64)[: len(tokens)]
        unit = hidden / np.linalg.norm(hidden, axis=1, keepdims=True)
        return np.exp(np.asarray(said, np.float64)[len(tokens) - 1]), unit

    while len(text) < start + s.max_new_tokens:
        p = ask(text)[0]
        scores = {}
        for token in np.argsort(-p, kind="stable")[: s.top_k].tolist():
            unit = ask([*text, token])[1]
            likeness = (unit[:-1] @ unit[-1]).max()
            scores[token] = (1 - s.penalty_alpha) * p[token] - s.penalty_alpha * likeness
        first, second = sorted(scores, key=lambda v: -scores[v])[:2]
        text.append(first)
        margins.append(scores[first] - scores[second])
        if first in lm.tokenizer.eos_ids:
            break
    return tuple(text[start:]), margins


@pytest.mark.parametrize("family", ["gpt2", "t5", "lstm"])
def test_tokens_and_margins_are_those_of_the_formula(family):
    lm = tiny.lm(family)
    prompt = lm.tokenizer.encode("ganymede is")
    found = decode.generate(
        lm, [prompt, [7]], dataclasses.replace(GANYMEDE, max_new_tokens=9), seed=0
    )
    for c in found:
        tokens, margins = by_hand(
            lm, c.prompt_tokens, dataclasses.replace(GANYMEDE, max_new_tokens=9)
        )
        assert c.tokens == tokens
        np.testing.assert_allclose(c.margins, margins, atol=1e-4)


def test_log_probabilities_are_the_models_own_and_nothing_counts_as_drawn():
    lm = tiny.lm("gpt2")
    s = dataclasses.replace(GANYMEDE, max_new_tokens=9, likelihood=True)
    [c] = decode.generate(lm, ["ganymede is"], s, seed=0)
    text = np.array([[*c.prompt_tokens, *c.tokens]])
    said = np.asarray(forward(lm.net, lm.params, text, None)[0])[len(c.prompt_tokens) - 1 : -1]
    mine = said[range(len(c.tokens)), c.tokens]
    np.testing.assert_allclose(c.logprobs, mine, atol=1e-4)
    assert set(c.sampled_logprobs) == {0.0}
    assert list(c.ranks) == (1 + (said > mine[:, None]).sum(axis=1)).tolist()
    assert max(c.ranks) <= 5 and min(c.ranks) == 1 < max(c.ranks)


def varied():
    """Settings that differ in everything that is no shape; widths of 5 to 8 candidates are one."""
    for i, (alpha, k, more) in enumerate(
        [(0.6, 5, {}), (0.0001, 8, {}), (1.0, 7, {}), (0.3, 6, dict(repetition_penalty=1.4))]
    ):
        s = Settings(max_new_tokens=5 + i, penalty_alpha=alpha, top_k=k, **more)
        yield Request(["once upon", [9], "the moon", "a cat"][i], s, i)


def test_company_and_settings_of_others_do_not_matter_to_the_bit_and_compile_once():
    lm, asked = tiny.lm("gpt2"), list(varied())
    compiled = loop.run._cache_size()
    together = decode.generate(lm, asked, seed=3, batch_size=16)
    assert loop.run._cache_size() - compiled <= 1
    for request in asked:
        [alone] = decode.generate(lm, [request], seed=3, batch_size=16)
        assert alone == together[request.id]
    assert loop.run._cache_size() - compiled <= 1


def test_almost_no_penalty_is_greedy_and_the_whole_penalty_is_not():
    lm = tiny.lm("gpt2")
    asked = [dataclasses.replace(GANYMEDE, penalty_alpha=a) for a in (1e-6, 1.0)]
    prompt = lm.tokenizer.encode("once")
    little, much = (decode.generate(lm, [prompt], s, seed=0)[0].tokens for s in asked)
    said = forward(lm.net, lm.params, np.array([[*prompt, *little]]), None)[0]
    assert little == tuple(np.argmax(said[len(prompt) - 1 : -1], axis=1).tolist()) != much


def test_a_text_that_outgrows_its_slots_goes_on_as_before_and_streams_what_it_says(monkeypatch):
    lm = tiny.lm("gpt2")
    [usual] = decode.generate(lm, ["ganymede is"], GANYMEDE, seed=0)
    monkeypatch.setattr(jobs, "SMALLEST_SLOTS", 16)
    *texts, grown = decode.stream(lm, "ganymede is", GANYMEDE, seed=0)
    assert len(usual.prompt_tokens) + 17 > 16
    assert grown.tokens == usual.tokens
    assert len(texts) > 3 and "".join(texts) == grown.text == usual.text


def test_forbidden_tokens_are_no_candidates_even_where_fewer_than_k_are_left():
    lm = tiny.lm("gpt2")
    s = dataclasses.replace(GANYMEDE, penalty_alpha=1.0, allowed_token_ids=(7, 8, 9))
    [c] = decode.generate(lm, ["once"], s, seed=0)
    assert set(c.tokens) <= {7, 8, 9} and len(c.tokens) == 17
    once = dataclasses.replace(s, no_repeat_ngram_size=1)
    [failed] = decode.generate(lm, [Request([5, 6], once, "a")], seed=0)
    assert sorted(failed.tokens) == [7, 8, 9] and failed.finish_reason == "failed"
    assert failed.error.startswith("request 'a': nothing may follow token 4, because its settings")


def test_a_context_counts_as_far_as_it_is_real():
    text = jnp.array([[[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]] * 3)
    feature = jnp.array([[0.0, 1.0]] * 3)
    found = contrastive.degeneration(feature, text, jnp.array([1, 2, 3], jnp.int32))
    np.testing.assert_allclose(found, [0.0, 0.8, 1.0], atol=1e-7)


def test_damaged_weights_are_refused():
    lm = tiny.lm("gpt2")
    broken = jax.tree.map(lambda x: x * jnp.nan, lm.params)
    with pytest.raises(model.errors.BadInput, match="the logits at position 1 are not numbers"):
        decode.generate(dataclasses.replace(lm, params=broken), [[7]], GANYMEDE, seed=0)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_tokens_are_those_that_hugging_face_chose(name):
    """Of version 4.44, which had it."""
    cases = searches.cases(name, "penalty_alpha")
    assert len(cases) > 5
    for found, case in zip(searches.ours(name, cases), cases, strict=True):
        assert [list(c.tokens) for c in found] == [one["tokens"] for one in case["found"]], case
