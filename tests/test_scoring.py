"""Are likelihoods those of the model's own forward pass, whatever stands beside them, and answers read as published?"""

import types

import jax
import numpy as np
import pytest
import tiny

from decode import compilations
from model import errors
from train import scoring
from train.scoring import Likelihood, Pair

FAMILIES = ["decoder_only", "encoder_decoder", "lstm"]
SIZES = [
    (7, 5),
    (1, 3),
    (17, 11),
    (13, 2),
    (23, 19),
]  # the last is the only one in the larger bucket


@pytest.fixture(scope="module", params=FAMILIES)
def reader(request):
    return scoring.Reader(tiny.small(request.param), rows=3)


@pytest.fixture(scope="module")
def pairs(reader):
    rng = np.random.default_rng(0)
    sizes = SIZES if reader.lm.config.family == "lstm" else SIZES[:-1]
    return [Pair(*(tuple(rng.integers(4, 300, n).tolist()) for n in size)) for size in sizes]


def forward(lm, pairs):
    """Log-probabilities [T, V] of each continuation, by one pass over all: rows are filled up on the right."""
    separate = lm.config.family == "encoder_decoder"
    rows = [
        ([lm.words.bos_id] if separate else [*pair.context]) + [*pair.continuation[:-1]]
        if separate
        else [*pair.context, *pair.continuation]
        for pair in pairs
    ]
    rows_BT = np.stack([np.pad(row, (0, 43 - len(row))) for row in rows]).astype(np.int32)
    sides, more = (rows_BT,), {}
    if separate:
        longest = max(len(pair.context) for pair in pairs)
        padded = [np.pad(pair.context, (0, longest - len(pair.context))) for pair in pairs]
        source_BS = np.stack(padded).astype(np.int32)
        sides, more = (source_BS, rows_BT), {"source_mask": source_BS > 0}
    logits_BTV = jax.jit(lambda params: lm.net.apply({"params": params}, *sides, **more)[0])(
        lm.params
    )
    logprobs_BTV = np.asarray(jax.nn.log_softmax(logits_BTV), np.float64)
    starts = [0 if separate else len(pair.context) - 1 for pair in pairs]
    return [
        logprobs_BTV[i, start : start + len(pair.continuation)]
        for i, (start, pair) in enumerate(zip(starts, pairs, strict=True))
    ]


def test_likelihoods_are_those_of_the_whole_forward_pass(reader, pairs):
    found = reader.likelihoods(pairs)
    expected = forward(reader.lm, pairs)
    for pair, likelihood, logprobs_TV in zip(pairs, found, expected, strict=True):
        total = logprobs_TV[np.arange(len(pair.continuation)), list(pair.continuation)].sum()
        assert likelihood == Likelihood(pytest.approx(total, rel=2e-5), False, len(pair[1]))
    best = [
        Pair(pair.context, (int(e[0].argmax()),)) for pair, e in zip(pairs, expected, strict=True)
    ]
    assert all(each.greedy for each in reader.likelihoods(best))


def test_order_neighbours_and_doubles_change_nothing(reader, pairs):
    found = reader.likelihoods(pairs)
    order = [3, 0, 2, 2, 1, 0]
    assert reader.likelihoods([pairs[i] for i in order]) == [found[i] for i in order]
    alone = [reader.likelihoods([pair])[0].logprob for pair in pairs]
    np.testing.assert_allclose(alone, [each.logprob for each in found], rtol=1e-5)


def test_nothing_to_predict_is_certain(reader):
    assert reader.likelihoods([Pair((5, 7), ())]) == [Likelihood(0.0, True, 0)]


def test_a_new_length_in_a_bucket_compiles_nothing(reader, pairs):
    reader.likelihoods(pairs)
    others = [Pair((5,) * size, (7, 11, 13, 17)) for size in (2, 3, 9, 21)]
    with compilations.counted() as count:
        reader.likelihoods(others)
    assert not count


def test_what_the_window_does_not_hold_is_refused(reader):
    context = 62 if reader.lm.config.family == "encoder_decoder" else 60
    with pytest.raises(
        errors.BadInput,
        match=rf"^a prompt of {context} tokens and its answer of 3 are more than the window of 61; shorten the prompt$",
    ):
        reader.likelihoods([Pair((5,) * context, (7, 7, 7))])


def test_text_and_continuation_are_encoded_as_one_and_cut_alike():
    lm = tiny.small()
    words, context = lm.words, "once upon a time, the "
    texts = ["moon", " cake"]
    made = scoring.pairs(lm, context, texts)
    for text, (given, predicted) in zip(texts, made, strict=True):
        assert [*given, *predicted] == [words.bos_id, *words.encode(context + text)]
    assert made[0].context == made[1].context, "both are likelihoods of what follows the same"
    assert len(made[0].context) < len(words.encode(context)) + 1, "a piece goes across the cut here"


def test_a_soft_prompt_stands_before_all_that_is_given():
    lm = tiny.small()
    soft = types.SimpleNamespace(words=lm.words, config=lm.config, virtual_tokens=3)
    plain, longer = (scoring.pairs(each, "a cat", [" sat"])[0] for each in (lm, soft))
    size = lm.config.vocab_size
    assert longer == Pair((size, size + 1, size + 2, *plain.context), plain.continuation)


def test_a_target_stands_alone_and_has_its_end_if_asked():
    lm = tiny.small("encoder_decoder")
    given, predicted = scoring.pairs(lm, "a cat", ["a mat"])[0]
    assert given == (lm.words.bos_id, *lm.words.encode("a cat"))
    assert predicted == tuple(lm.words.encode("a mat"))
    ended = scoring.pairs(lm, "a cat", ["a mat"], ended=True)[0]
    assert ended.continuation == (*predicted, lm.words.eos_id)


def test_the_length_of_a_label_is_counted_as_said():
    found = Likelihood(-12.0, False, 3)
    text = " ünï"  # four characters, six bytes
    assert [scoring.per(name, text, found) for name in ("sum", "token", "character", "byte")] == [
        -12.0,
        -4.0,
        -3.0,
        -2.0,
    ]


def test_calibration_divides_by_the_probability_without_content():
    p = np.array([[0.55, 0.4, 0.05], [0.2, 0.3, 0.5]])
    blank = np.array([[[0.7, 0.1, 0.2], [0.5, 0.3, 0.2]]] * 2)  # two content-free prompts for each
    got = scoring.calibrated(np.log(p) - 3, np.log(blank) + 5)
    expected = p / blank.mean(axis=1)  # W p with W = diag(mean p_cf)^-1
    expected /= expected.sum(axis=1, keepdims=True)
    probabilities = np.exp(got) / np.exp(got).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-12)
    assert probabilities.argmax(1).tolist() == [1, 2], "the first would say 0 without"


@pytest.mark.parametrize(
    "text, label",
    [
        (" Good.", "1"),
        ("good film\n", "1"),
        ("goodness", None),
        ("very  GOOD indeed", "2"),
        ("it is good", None),
        ("", None),
        ("'bad'", "0"),
    ],
)
def test_what_is_written_is_the_longest_label_it_begins_with(text, label):
    assert (
        scoring.matched(text, {"0": " bad", "1": " good", "2": " very good", "3": " very"}) == label
    )


def test_an_encoder_alone_gives_no_likelihoods():
    lm = tiny.small()
    config = type("C", (), {"family": "encoder_only"})
    with pytest.raises(
        errors.BadInput,
        match=r"^the model is an encoder_only model, which gives no text a likelihood; prompt a decoder_only, ",
    ):
        scoring.Reader(type("M", (), {"config": config, "words": lm.words}))
