"""Do caches hold what a prefix LM sees of a prompt: all of it, from everywhere?

That the decode loop goes on from them as one full pass does is in `test_two_roads.py`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import model
from decode import contrastive, jobs
from decode.requests import Request
from decode.settings import Settings
from decode.strategy import Models
from model import errors
from model.config import ModelConfig
from train import scoring

PROMPT = np.random.RandomState(7).randint(5, 300, 13).tolist()
NEGATIVE = np.random.RandomState(11).randint(5, 300, 5).tolist()


@functools.cache
def lm(prefix=True):
    """ALiBi, whose bias has two forms, one of which sees ahead."""
    shape = dict(tiny.GPT2, position="alibi", embedding="normed", context_length=31)
    config = ModelConfig(vocab_size=tiny.words().vocab_size, **shape)
    net = model.build(config)
    shapes = jax.eval_shape(lambda: model.init(net, key=jax.random.key(0)))
    rng = np.random.default_rng(5)
    params = jax.tree.map(lambda x: 0.3 * rng.standard_normal(x.shape).astype(np.float32), shapes)
    return model.LM(config, params, tiny.words(), net, prefix=prefix)


@jax.jit
def forward(params, tokens_BT, prefix_B):
    return lm().net.apply({"params": params}, tokens_BT, prefix=prefix_B)


def whole(tokens, prefix):
    """Logits and `aux` of one full pass."""
    row = jnp.zeros((1, 16), jnp.int32).at[0, : len(tokens)].set(jnp.array(tokens))
    return forward(lm().params, row, jnp.array([prefix]))


def job(settings, prompt=PROMPT, **lms):
    found = Models(lm(), **lms)
    return found, jobs.of(found, Request(prompt, settings, 0))[0]


def assert_holds(cache, prompt, prefix):
    """All but the last token of a prompt."""
    count = len(prompt) - 1
    assert cache.lengths_B.tolist() == [count]
    aux = whole(prompt, prefix)[1]
    for ours_BKSH, theirs_BSKH in zip(cache.keys, aux["keys"], strict=True):
        theirs_BKSH = np.asarray(theirs_BSKH).swapaxes(1, 2)
        np.testing.assert_allclose(ours_BKSH[:, :, :count], theirs_BKSH[:, :, :count], atol=1e-5)


def test_a_prompt_is_seen_from_all_of_its_tokens_its_last_among_them():
    cache = jobs.prefilled(*job(Settings())).main
    assert_holds(cache, PROMPT, len(PROMPT))
    with pytest.raises(AssertionError, match="Not equal"):
        assert_holds(cache, PROMPT, len(PROMPT) - 1)


def test_what_is_written_behind_it_is_what_one_full_pass_says():
    cache = jobs.prefilled(*job(Settings())).main
    written = [*PROMPT[-1:], 9, 8]
    tokens_1T, mask_1T = jnp.array([written]), jnp.ones((1, 3), bool)
    extend = jax.jit(functools.partial(lm().net.apply, method="extend"))
    logits = extend({"params": lm().params}, tokens_1T, mask_1T, cache)[0]
    expected = whole([*PROMPT, 9, 8], len(PROMPT))[0][:, len(PROMPT) - 1 : len(PROMPT) + 2]
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_guidance_and_a_draft_model_read_their_prompts_each_in_its_own_way():
    settings = Settings(guidance_scale=1.5, negative_prompt=NEGATIVE)
    assert_holds(jobs.prefilled(*job(settings)).guide, NEGATIVE, len(NEGATIVE))
    draft = jobs.prefilled(*job(Settings(num_assistant_tokens=2), draft=lm(prefix=False))).draft
    assert_holds(draft, PROMPT, 0)


def test_contrastive_search_compares_with_what_was_seen_both_ways():
    _, asked = job(Settings(penalty_alpha=0.4, top_k=3))
    held_BSD = jobs._search(lm(), asked, 1, 31).features_BSD[:, : len(PROMPT) - 1]
    expected = contrastive._unit(whole(PROMPT, len(PROMPT))[1]["features"])
    np.testing.assert_allclose(held_BSD, expected[:, : len(PROMPT) - 1], atol=1e-5)


def test_a_likelihood_is_that_of_a_text_behind_a_prompt_that_is_seen_both_ways():
    pair = scoring.Pair(tuple(PROMPT), (9, 8))
    (found,) = scoring.Reader(lm(), rows=1).likelihoods([pair])
    logits = whole([*PROMPT, 9, 8], len(PROMPT))[0][0, len(PROMPT) - 1 : len(PROMPT) + 1]
    expected = jax.nn.log_softmax(logits)[jnp.arange(2), jnp.array([9, 8])].sum()
    assert abs(found.logprob - expected) < 1e-4


def test_a_prompt_that_is_seen_as_a_whole_has_no_log_probabilities():
    with pytest.raises(
        errors.BadInput, match="request 0 asks for prompt_logprobs, and a prefix LM"
    ):
        job(Settings(prompt_logprobs=True))
