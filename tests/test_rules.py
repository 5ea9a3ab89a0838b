"""Do the lists among the settings become the arrays that the processors read, and are wrong ids refused?"""

import dataclasses
import re

import numpy as np
import pytest
import tiny
import tokenizer_homes

from decode import rules
from decode.settings import Settings
from model import errors

LETTERS = tiny.scripted(np.zeros((11, 11)), eos_id=10)
FIELDS = tuple(rules.of(LETTERS, [Settings()]).__dict__)


def row(lm=LETTERS, **settings):
    """The rules of one row by name, without the axis of rows."""
    found = rules.of(lm, [Settings(**settings)], rules.counts(lm, [Settings(**settings)]))
    return {name: np.asarray(getattr(found, name))[0] for name in FIELDS}


def sequences(**settings):
    """{tokens: bias} of a row."""
    found = row(tiny.lm(), **settings)
    rows = zip(found["sequences_BNL"].tolist(), found["sequence_bias_BN"].tolist(), strict=True)
    return {tuple(i for i in ids if i >= 0): bias for ids, bias in rows if max(ids) >= 0}


def test_without_rules_nothing_is_added_forbidden_or_forced_and_rows_share_one_array():
    found = row()
    assert not found["bias_BV"].any() and not found["breakers_BV"].any()
    assert not found["sequence_bias_BN"].any()
    for name in ("begin_BN", "forced_BN", "forced_end_B", "sequences_BNL"):
        assert (found[name] == -1).all()
    one, other = (rules.of(LETTERS, [Settings(top_k=k)]) for k in (3, 5))
    for name in FIELDS:
        assert getattr(one, name) is getattr(other, name)
        assert not getattr(one, name).flags.writeable


def test_biases_add_up_and_what_is_not_allowed_gets_minus_infinity():
    found = row(
        logit_bias={2: 1.5, 5: -3, 7: 2}, allowed_token_ids=[1, 2, 5, 7], suppress_tokens=[7]
    )
    no = -np.inf
    assert found["bias_BV"].tolist() == [no, 0, 1.5, no, no, -3, no, no, no, no, no]
    settings = Settings(suppress_tokens=[3])
    np.testing.assert_array_equal(
        rules.bias(LETTERS, settings), rules.of(LETTERS, [settings]).bias_BV[0]
    )


def test_first_forced_and_last_tokens_stand_in_their_places():
    found = row(begin_suppress_tokens=[4, 2], forced_tokens=[6, 5], forced_eos_token_id=9)
    assert found["begin_BN"].tolist() == [4, 2, *[-1] * 14]
    assert found["forced_BN"].tolist() == [6, 5, *[-1] * 14]
    assert found["forced_end_B"] == 9
    assert row(forced_bos_token_id=3)["forced_BN"].tolist() == [3, *[-1] * 15]
    assert row(forced_bos_token_id=6, forced_tokens=[6, 5])["forced_BN"][:3].tolist() == [6, 5, -1]


def test_sequences_are_right_aligned_with_their_bias():
    found = row(sequence_bias=[((1, 2, 3), 0.5), ((4,), -2)], bad_words=[[5, 6]])
    assert found["sequences_BNL"].shape == (16, 8)
    assert found["sequences_BNL"][:3, 5:].tolist() == [[1, 2, 3], [-1, -1, 4], [-1, 5, 6]]
    assert found["sequence_bias_BN"][:4].tolist() == [0.5, -2, -np.inf, 0]


def test_a_bad_word_is_banned_as_it_stands_and_behind_a_space():
    words = tiny.words()
    forms = {tuple(words.encode(form)) for form in ("moon", " moon")}
    assert len(forms) == 2
    assert sequences(bad_words=["moon"]) == dict.fromkeys(forms, -np.inf)
    assert sequences(bad_words=[" moon"]) == {tuple(words.encode(" moon")): -np.inf}


def test_an_end_token_is_no_bad_word():
    moon = tuple(tiny.words().encode(" moon"))
    assert sequences(bad_words=[[3], " moon"]) == {moon: -np.inf}
    assert sequences(bad_words=[[3], [5]], stop_token_ids=[5]) == {}
    assert sequences(bad_words=[[3]], ignore_eos=True) == {(3,): -np.inf}


@pytest.mark.oracle
@pytest.mark.parametrize("word", ["moon", "木", " moon", "'s"])
def test_bad_words_have_the_ids_that_transformers_gives_them_with_and_without_a_space(word):
    import transformers

    load = transformers.AutoTokenizer.from_pretrained
    there = {
        tuple(load(tokenizer_homes.homes()["gpt2"], add_prefix_space=space)(word).input_ids)
        for space in (False, True)
    }
    lm = dataclasses.replace(LETTERS, tokenizer=tokenizer_homes.loaded()["gpt2"])
    lm = dataclasses.replace(lm, config=dataclasses.replace(lm.config, vocab_size=307))
    found = rules.of(lm, [Settings(bad_words=[word])]).sequences_BNL[0].tolist()
    assert {tuple(i for i in ids if i >= 0) for ids in found if max(ids) >= 0} == there


def test_breakers_of_repetition_are_the_tokens_whose_text_holds_one():
    words, lm = tiny.words(), tiny.lm()
    assert not row(lm)["breakers_BV"].any()
    breakers = row(lm, dry_multiplier=0.8, dry_sequence_breakers=["\n", "cat", "."])["breakers_BV"]
    wanted = [any(b in words.decode([id]) for b in ("\n", "cat", ".")) for id in range(307)]
    assert breakers.tolist() == wanted
    assert 3 <= sum(wanted) < 50


def test_rows_keep_their_own_rules_side_by_side():
    each = [Settings(suppress_tokens=[2]), Settings(), Settings(forced_tokens=range(1, 9))]
    counts = rules.counts(LETTERS, each)
    together = rules.of(LETTERS, each, counts)
    for place, settings in enumerate(each):
        alone = rules.of(LETTERS, [settings], counts)
        for name in FIELDS:
            np.testing.assert_array_equal(getattr(together, name)[place], getattr(alone, name)[0])


@pytest.mark.parametrize(
    ("settings", "counts"),
    [
        ({}, (16, 16, 16, 8)),
        (dict(bad_words=["the moon"] * 9, forced_tokens=[1] * 16), (16, 16, 16, 8)),
        (dict(begin_suppress_tokens=[1] * 17), (32, 16, 16, 8)),
        (dict(forced_tokens=[1] * 33), (16, 64, 16, 8)),
        (dict(sequence_bias=[((1, i), 1.0) for i in range(17)]), (16, 16, 32, 8)),
        (dict(bad_words=[[2] * 9]), (16, 16, 16, 16)),
    ],
)
def test_shapes_are_powers_of_two_that_usual_rules_do_not_exceed(settings, counts):
    assert rules.counts(tiny.lm(), [Settings(), Settings(**settings)]) == counts


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(logit_bias={11: 1.0}), "logit_bias has token id 11; this model's are 0 to 10"),
        (dict(suppress_tokens=[3, 99]), "suppress_tokens has token id 99; this model's are 0 to"),
        (dict(allowed_token_ids=[11]), "allowed_token_ids has token id 11; this model's"),
        (dict(begin_suppress_tokens=[11]), "begin_suppress_tokens has token id 11; this"),
        (dict(forced_tokens=[11]), "forced_tokens has token id 11; this model's"),
        (dict(forced_bos_token_id=11), "forced_bos_token_id has token id 11; this model's"),
        (dict(forced_eos_token_id=11), "forced_eos_token_id has token id 11; this model's"),
        (dict(stop_token_ids=[11]), "stop_token_ids has token id 11; this model's"),
        (dict(sequence_bias={(1, 11): 1.0}), "sequence_bias has token id 11; this model's"),
        (dict(bad_words=["a", [1, 11]]), "bad_words has token id 11; this model's"),
        (
            dict(allowed_token_ids=[3], suppress_tokens=[3]),
            "allowed_token_ids, suppress_tokens and logit_bias leave no token; allow at least one",
        ),
        (
            dict(forced_bos_token_id=1, forced_tokens=[2]),
            "forced_bos_token_id is 1, and forced_tokens begins with 2; give one of them",
        ),
    ],
)
def test_what_a_model_cannot_follow_is_refused_in_one_line(settings, message):
    with pytest.raises(errors.BadInput, match="^" + re.escape(message)) as error:
        rules.check(LETTERS, Settings(**settings))
    assert "\n" not in str(error.value)


def test_a_top_k_beyond_the_vocabulary_is_noted_once():
    each = [Settings(top_k=k) for k in (11, 12, 0, 12)]
    assert rules.notes(LETTERS, each) == [
        "top_k is 12, and the vocabulary has 11 tokens; all are kept"
    ]
