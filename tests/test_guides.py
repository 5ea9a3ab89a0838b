"""Is a second opinion weighed in as its paper says? Every token again, from full forward passes and numpy."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import scipy.special
import test_two_roads
import tiny

import decode
import model
from decode import guides, strategy
from decode.requests import Request
from decode.settings import Settings
from model import errors
from tests import searches
from tests.goldens import make_searches

PROMPT, NEGATIVE = (9, 8, 7, 30), (41, 5, 200)


def logprobs(lm, prompt, tokens):
    """What a model says of each token [T, V] behind a prompt, by one full forward pass, in float64."""
    done = decode.Completion(0, 0, tuple(prompt), tuple(tokens), "", "", (), (), ())
    return scipy.special.log_softmax(test_two_roads.forward(lm, done).astype(np.float64), axis=1)


def greedy(lm, settings, **others):
    """A completion without noise."""
    return decode.generate(lm, [PROMPT], settings, seed=0, **others)[0]


def best(score_TV, tokens):
    """Whether each token has the largest score, up to the rounding of float32."""
    chosen_T = score_TV[np.arange(len(tokens)), list(tokens)]
    return bool((chosen_T >= score_TV.max(axis=1) - 5e-5).all())


@pytest.mark.parametrize("family", ["gpt2", "lstm"])
@pytest.mark.parametrize("negative", [None, NEGATIVE], ids=["last token", "negative prompt"])
def test_guidance_is_the_weighed_difference_of_two_prompts(family, negative):
    lm = tiny.lm(family)
    settings = Settings(
        max_new_tokens=17, temperature=0, guidance_scale=1.7, negative_prompt=negative
    )
    done = greedy(lm, settings)
    own = logprobs(lm, PROMPT, done.tokens)
    other = logprobs(lm, negative or PROMPT[-1:], done.tokens)
    assert best(other + 1.7 * (own - other), done.tokens)
    assert not best(own, done.tokens)


def test_guidance_of_an_encoder_decoder_leads_away_from_another_source():
    lm = tiny.lm("t5")
    settings = Settings(
        max_new_tokens=17, temperature=0, guidance_scale=1.7, negative_prompt=NEGATIVE
    )
    done = greedy(lm, settings)
    own, other = (logprobs(lm, prompt, done.tokens) for prompt in (PROMPT, NEGATIVE))
    assert best(other + 1.7 * (own - other), done.tokens)
    with pytest.raises(errors.BadInput, match="^request 0, negative_prompt is missing, and guid"):
        decode.generate(lm, [PROMPT], Settings(guidance_scale=2), seed=0)


def test_a_negative_prompt_far_longer_than_the_prompt_has_its_own_slots():
    lm = tiny.lm("llama")
    long = tuple(5 + i % 40 for i in range(50))
    settings = Settings(max_new_tokens=9, temperature=0, guidance_scale=1.5, negative_prompt=long)
    done = greedy(lm, settings)
    own, other = (logprobs(lm, prompt, done.tokens) for prompt in (PROMPT, long))
    assert best(other + 1.5 * (own - other), done.tokens)
    too_long = Settings(max_new_tokens=30, guidance_scale=1.5, negative_prompt=long)
    with pytest.raises(
        errors.BadInput,
        match="^request 0 may grow to 34 tokens behind a negative_prompt of 50, and the window",
    ):
        decode.generate(lm, [PROMPT], too_long, seed=0)


def test_contrastive_decoding_subtracts_the_amateur_among_plausible_tokens():
    lm, amateur = tiny.lm("llama"), tiny.lm("gpt2")
    settings = Settings(
        max_new_tokens=17, temperature=0, contrastive_beta=0.8, contrastive_alpha=0.6
    )
    done = greedy(lm, settings, amateur=amateur)
    own, other = logprobs(lm, PROMPT, done.tokens), logprobs(amateur, PROMPT, done.tokens)
    plausible = own >= own.max(axis=1, keepdims=True) + np.log(0.6)
    # The raw logits of the paper differ from log-probabilities by a constant per position.
    score = np.where(plausible, 1.8 * own - 0.8 * other, -np.inf)
    assert best(score, done.tokens)
    assert not best(1.8 * own - 0.8 * other, done.tokens)
    with pytest.raises(errors.BadInput, match="^request 0 has contrastive_beta, which needs anoth"):
        decode.generate(lm, [PROMPT], settings, seed=0)


@functools.cache
def layers(net):
    """Logits of a full forward pass, and what the head makes of every layer's hidden state."""

    def look(params, tokens_BT):
        logits_BTV, aux = net.apply({"params": params}, tokens_BT)
        early = [net.apply({"params": params}, x, method="head") for x in aux["hidden"]]
        return logits_BTV, early

    return jax.jit(look)


def test_dola_contrasts_the_early_layer_that_differs_most():
    lm = tiny.lm("gemma2")
    settings = Settings(max_new_tokens=17, temperature=0, dola_layers=[0, 1])
    done = greedy(lm, settings)
    tokens_BT = np.array([[*PROMPT, *done.tokens]], np.int32)
    final, early = layers(lm.net)(lm.params, tokens_BT)
    span = slice(len(PROMPT) - 1, len(PROMPT) - 1 + len(done.tokens))
    final, *early = (
        scipy.special.log_softmax(np.asarray(x, np.float64)[0, span], axis=1)
        for x in (final, early[0], early[1])
    )
    chosen = set()
    for place, token in enumerate(done.tokens):
        p = np.exp(final[place])
        apart = []
        for layer in early:
            q = np.exp(layer[place])
            m = (p + q) / 2
            apart.append((p @ np.log(p / m) + q @ np.log(q / m)) / 2)
        best = int(np.argmax(apart))
        chosen.add(best)
        plausible = final[place] >= final[place].max() + np.log(0.1)
        score = np.where(plausible, final[place] - early[best][place], -np.inf)
        assert score[token] >= score.max() - 5e-5
    assert chosen == {0, 1}


@pytest.mark.parametrize(
    "named, layers, tied, early",
    [
        ("low", 32, False, tuple(range(0, 16, 2))),
        ("low", 32, True, tuple(range(2, 16, 2))),
        ("high", 32, False, tuple(range(16, 32, 2))),
        ("low", 60, False, tuple(range(0, 20, 2))),
        ("high", 60, False, tuple(range(40, 60, 2))),
        ("low", 4, True, (2,)),
        ((3, 1), 4, False, (1, 3)),
    ],
)
def test_layers_have_the_names_that_hugging_face_gave_them(named, layers, tied, early):
    config = tiny.ModelConfig(
        vocab_size=7, context_length=8, layers=layers, width=2, heads=1, tied=tied
    )
    assert strategy.of(Settings(dola_layers=named), config).early == early


def test_a_layer_that_is_not_there_is_refused():
    with pytest.raises(
        errors.BadInput, match="^dola_layers has 2, and the model has 2 layers; name"
    ):
        decode.generate(tiny.lm("llama"), [PROMPT], Settings(dola_layers=[1, 2]), seed=0)


def test_guided_requests_with_different_scales_share_a_batch_bit_for_bit():
    lm = tiny.lm("llama")
    asked = [
        Request(PROMPT, Settings(max_new_tokens=7, guidance_scale=scale), str(scale))
        for scale in (1.3, 1.9, 0.4)
    ]
    together = decode.generate(lm, asked, seed=0)
    assert together == [decode.generate(lm, [one], seed=0)[0] for one in asked]
    assert set(guides.WEIGHED) == {"prompt", "amateur"}


def test_drafts_leave_guided_tokens_as_they_are():
    lm = tiny.lm("llama")
    settings = dict(max_new_tokens=17, guidance_scale=1.4, negative_prompt=NEGATIVE)
    (plain,) = decode.generate(lm, [PROMPT], Settings(**settings), seed=0)
    drafted = Settings(**settings, prompt_lookup_num_tokens=3)
    assert decode.generate(lm, [PROMPT], drafted, seed=0)[0].tokens == plain.tokens


@pytest.mark.oracle
@pytest.mark.parametrize("negative", [None, (41, 5, 20)], ids=["last token", "negative prompt"])
def test_guided_tokens_are_those_of_transformers(negative):
    import torch

    lm, theirs = searches.lm("gpt2"), make_searches.build("gpt2")
    inputs = torch.tensor([PROMPT])
    given = None if negative is None else torch.tensor([negative])
    out = theirs.generate(
        inputs,
        max_new_tokens=11,
        do_sample=False,
        guidance_scale=1.7,
        negative_prompt_ids=given,
        pad_token_id=0,
    )
    settings = Settings(
        max_new_tokens=11,
        temperature=0,
        guidance_scale=1.7,
        negative_prompt=negative,
        ignore_eos=True,
    )
    (done,) = decode.generate(lm, [PROMPT], settings, seed=0)
    assert list(done.tokens) == out[0, len(PROMPT) :].tolist()


def test_log_probabilities_stay_the_models_own_whatever_guides_it():
    lm = tiny.lm("llama")
    for settings in (
        dict(guidance_scale=1.7),
        dict(dola_layers="low"),
        dict(guidance_scale=2, num_beams=2),
    ):
        (done,) = decode.generate(lm, [PROMPT], Settings(max_new_tokens=7, **settings), seed=0)
        own = logprobs(lm, PROMPT, done.tokens)[np.arange(len(done.tokens)), list(done.tokens)]
        np.testing.assert_allclose(done.logprobs, own, atol=1e-5)


def test_a_helper_of_a_larger_window_reads_a_long_prompt():
    """Its prompt fills a bucket that is longer than the model's window."""
    lm = tiny.lm("llama")
    settings = Settings(max_new_tokens=3, temperature=0, contrastive_beta=0.5)
    far = dataclasses.replace(lm.config, context_length=96)
    amateur = model.LM(far, lm.params, lm.tokenizer, model.build(far))
    prompt = [5 + i % 90 for i in range(50)]
    (done,) = decode.generate(lm, [prompt], settings, seed=0, amateur=amateur)
    (same,) = decode.generate(lm, [prompt], settings, seed=0, amateur=lm)
    assert done.tokens == same.tokens
