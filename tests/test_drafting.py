"""Do drafts change nothing but the time? Speculative decoding is token-equal to plain decoding, greedy and drawn.

That drafts which nobody verifies would be seen is a control of `test_invariance.py`.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import tiny

import decode
from decode import context, drafting, jobs, loop
from decode import state as states
from decode.requests import Request
from decode.settings import Settings
from decode.strategy import Models
from model import errors

PROMPTS = ["once upon a time there was a cat", [9, 8, 7, 9, 8, 7, 9, 8], "the moon"]
PLAIN = [
    Settings(max_new_tokens=23, temperature=0),
    Settings(max_new_tokens=23, temperature=0.8, top_k=19),
    Settings(max_new_tokens=17, temperature=1.1, repetition_penalty=1.3, no_repeat_ngram_size=2),
]


def asked(**drafts):
    return [
        Request(prompt, dataclasses.replace(settings, **drafts), f"{i}-{j}")
        for i, prompt in enumerate(PROMPTS)
        for j, settings in enumerate(PLAIN)
    ]


def equal(lm, drafted, plain):
    """Same tokens, text and reasons; numbers up to the rounding of a product over more tokens at once."""
    for a, b in zip(drafted, plain, strict=True):
        assert (a.id, a.tokens, a.text, a.finish_reason) == (
            b.id,
            b.tokens,
            b.text,
            b.finish_reason,
        )
        for name in ("logprobs", "sampled_logprobs"):
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "t5", "lstm"])
def test_drafts_from_the_text_so_far_leave_every_token_as_it_is(family):
    lm = tiny.lm(family)
    plain = decode.generate(lm, asked(), seed=5)
    equal(lm, decode.generate(lm, asked(prompt_lookup_num_tokens=3), seed=5), plain)


@pytest.mark.parametrize("other", [("gpt2", 0)], ids=str)
def test_drafts_of_another_model_leave_every_token_as_it_is(other):
    lm, draft = tiny.lm("llama"), tiny.lm(*other)
    plain = decode.generate(lm, asked(), seed=5)
    equal(lm, decode.generate(lm, asked(num_assistant_tokens=3), seed=5, draft=draft), plain)


def after_one_step(lm, draft, settings):
    """How many tokens one step of the loop brings."""
    lms = Models(lm, None, draft)
    (job,) = jobs.of(lms, Request([9, 8, 7], settings, "a"))
    nets, params = jobs.nets(lms, job.strategy), jobs.params(lms, job.strategy)
    state = loop.empty(job.strategy, nets, 2, 64, ends=4)
    one = jobs.begin(lm, job, 64, 0, 4, (1, 1, 1, 1), 0, jobs.prefilled(lms, job))
    state = states.insert(state, np.int32(1), one)
    state = loop.run(job.strategy, nets, params, state, np.int32(1), np.int32(1))
    return int(state.context.lengths_B[1]) - 3


@pytest.mark.parametrize("temperature", [0, 0.9])
def test_a_draft_model_that_is_the_model_is_right_every_time(temperature):
    lm = tiny.lm("llama")
    settings = Settings(temperature=temperature, num_assistant_tokens=4)
    assert after_one_step(lm, lm, settings) == 5


def reference(tokens, drafts, longest):
    """The latest of the longest earlier matches of the last tokens, by trying all."""
    for size in range(min(longest, len(tokens) - 1), 0, -1):
        for end in range(len(tokens) - 1, size - 1, -1):
            if tokens[end - size : end] == tokens[-size:]:
                return tokens[end : end + drafts]
    return None


def test_lookup_proposes_what_followed_the_latest_of_the_longest_matches():
    rng = np.random.RandomState(0)
    rows = [rng.randint(0, 3, rng.randint(1, 23)).tolist() for _ in range(97)]
    rows += [[1, 2, 3, 4, 1, 2], [7], [7, 7], [1, 2]]
    longest = [1 + i % 5 for i in range(len(rows))]
    settings = [Settings(prompt_lookup_num_tokens=2, max_matching_ngram_size=n) for n in longest]
    padded = np.array([row + [9] * (23 - len(row)) for row in rows], np.int32)
    rest = context.bare(settings, 11).replace(
        tokens_BS=jnp.asarray(padded), lengths_B=jnp.array([len(row) for row in rows])
    )
    found = np.asarray(drafting.lookup(rest, 2))
    matched = 0
    for row, n, got in zip(rows, longest, found, strict=True):
        wanted = reference(row, 2, n)
        if wanted is not None:
            matched += 1
            assert got[: len(wanted)].tolist() == wanted, (row, n)
    assert matched > 80
    assert found[97].tolist() == [3, 4]


TABLE = np.array([[0.5, 1.0, -1.0, 0.0], [1.5, 0.0, 0.5, -0.5], [0.0, 0.0, 1.0, -1.0], [0.0] * 4])


def test_completions_drafted_by_a_different_model_fit_the_models_own_distribution():
    """1,024 pairs of tokens from a table, drafted from its mirror image: a chi-square test at odds of 1e-6."""
    lm, draft = tiny.scripted(by_token=TABLE), tiny.scripted(by_token=TABLE[:, ::-1])
    settings = Settings(max_new_tokens=2, n=1024, num_assistant_tokens=2)
    done = decode.generate(lm, [[0]], settings, seed=0, batch_size=64, draft=draft)
    after = np.exp(TABLE) / np.exp(TABLE).sum(axis=1, keepdims=True)
    observed = np.zeros((4, 4))
    np.add.at(observed, tuple(np.array([c.tokens for c in done]).T), 1)
    expected = 1024 * after[0][:, None] * after
    assert scipy.stats.chisquare(observed.ravel(), expected.ravel()).pvalue > 1e-6
    of_draft = np.exp(TABLE[:, ::-1]) / np.exp(TABLE).sum(axis=1, keepdims=True)
    wrong = 1024 * of_draft[0][:, None] * of_draft
    assert scipy.stats.chisquare(observed.ravel(), wrong.ravel()).pvalue < 1e-6


CYCLE = 9 * np.eye(5)[[1, 2, 3, 4, 0]]  # a b c d e a b ...


@pytest.mark.parametrize("cap", [1, 2, 3, 5, 7])
def test_the_cap_holds_in_the_middle_of_right_drafts(cap):
    lm = tiny.scripted(by_token=CYCLE)
    settings = Settings(max_new_tokens=cap, temperature=0, num_assistant_tokens=4)
    (done,) = decode.generate(lm, [[0]], settings, seed=0, draft=lm)
    assert (done.text, done.finish_reason) == ("bcdeabc"[:cap], "length")


def test_an_end_token_among_right_drafts_ends_the_completion_there():
    lm = tiny.scripted(by_token=CYCLE, eos_id=3)
    settings = Settings(max_new_tokens=9, temperature=0, num_assistant_tokens=4)
    (done,) = decode.generate(lm, [[0]], settings, seed=0, draft=lm)
    assert (done.tokens, done.finish_reason) == ((1, 2, 3), "stop")


def test_drafts_go_on_over_buckets_and_up_to_the_end_of_the_window(monkeypatch):
    lm = tiny.lm("llama")
    settings = Settings(max_new_tokens=200, temperature=0.7)
    plain = decode.generate(lm, [[9, 8, 7]], settings, seed=3)
    monkeypatch.setattr(jobs, "SMALLEST_SLOTS", 32)
    drafted = dataclasses.replace(settings, prompt_lookup_num_tokens=3)
    equal(lm, decode.generate(lm, [[9, 8, 7]], drafted, seed=3), plain)
    assert len(plain[0].tokens) == 58 or plain[0].finish_reason == "stop"


def test_a_draft_model_that_does_not_fit_is_refused_in_one_line():
    lm, asked = tiny.lm("llama"), Settings(num_assistant_tokens=3)
    with pytest.raises(
        errors.BadInput, match="^request 0 has num_assistant_tokens, which needs an"
    ):
        decode.generate(lm, [[5]], asked, seed=0)
    small = tiny.scripted(by_token=CYCLE)
    with pytest.raises(
        errors.BadInput, match="^the draft model's vocabulary is 5, and the model's"
    ):
        decode.generate(lm, [[5]], asked, seed=0, draft=small)
    with pytest.raises(errors.BadInput, match="^9 tokens are to be drafted, and a recurrent model"):
        decode.generate(tiny.lm("gru"), [[5]], Settings(prompt_lookup_num_tokens=9), seed=0)
