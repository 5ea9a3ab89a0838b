"""Do penalties, bans and forced tokens do to each logit what their definitions say, and nothing to the others?

The references: closed forms by hand, loops over lists in Python, and, marked `oracle`, the processors of transformers.
"""

import chains
import numpy as np
import pytest

from decode import processors
from decode.settings import Settings

INF = float("inf")
FIVE = chains.logs(0.2, 0.2, 0.2, 0.2, 0.2)
TEXTS = processors.REPETITION, processors.PRESENCE


def probabilities(steps, logits_BV, settings, **facts):
    return chains.softmax(chains.apply(steps, logits_BV, settings, **facts)[0])


@pytest.mark.parametrize("text", [[0], [0, 1, 2], [0, 1, 2, 0, 0]])
def test_a_repetition_penalty_of_50_multiplies_negative_logits_of_what_was_said(text):
    ours = probabilities(TEXTS, FIVE, Settings(repetition_penalty=50.0), tokens=text)
    mass = np.array([0.2 ** (50 if i in text else 1) for i in range(5)])
    np.testing.assert_allclose(ours, mass / mass.sum(), atol=1e-6)


@pytest.mark.parametrize("text", [[0], [0, 1, 2], [0, 1, 2, 0, 0]])
def test_presence_is_subtracted_once_and_frequency_as_often_as_a_token_occurs(text):
    settings = Settings(presence_penalty=5.0, frequency_penalty=5.0)
    ours = probabilities(TEXTS, FIVE, settings, tokens=text)
    mass = np.exp([-5.0 * text.count(i) - 5.0 * (i in text) for i in range(5)])
    np.testing.assert_allclose(ours, mass / mass.sum(), atol=1e-6)


def test_an_encoder_repetition_penalty_favours_what_the_source_has():
    settings = Settings(encoder_repetition_penalty=2.0)
    facts = dict(tokens=[0], source=[1, 2, 2])
    logits = np.array([[4.0, 4.0, -4.0, -4.0]])
    ours = chains.apply((processors.ENCODER_REPETITION,), logits, settings, **facts)
    assert ours.tolist() == [[4.0, 8.0, -2.0, -4.0]]


@pytest.mark.parametrize(
    "last_n, penalised", [(-1, {0, 1, 2, 3}), (0, set()), (1, {3}), (2, {2, 3}), (9, {0, 1, 2, 3})]
)
def test_only_the_last_n_tokens_count_for_penalties(last_n, penalised):
    settings = Settings(repetition_penalty=2.0, penalty_last_n=last_n)
    out_V = chains.apply(TEXTS, np.ones((1, 5)), settings, tokens=[0, 1, 2, 3])[0]
    assert out_V.tolist() == [0.5 if i in penalised else 1.0 for i in range(5)]


def test_presence_counts_what_was_generated_and_in_llama_cpp_the_prompt_too():
    settings = Settings(presence_penalty=1.0)
    facts = dict(tokens=[0, 1, 2, 3], prompt=2)
    ours = chains.apply((processors.OUTPUT_PRESENCE,), np.zeros((1, 5)), settings, **facts)
    assert ours.tolist() == [[0, 0, -1, -1, 0]]
    ours = chains.apply((processors.PRESENCE,), np.zeros((1, 5)), settings, **facts)
    assert ours.tolist() == [[-1, -1, -1, -1, 0]]
    for name, step in [("hf", 0), ("vllm", 0), ("strict", 0), ("llama.cpp", 1)]:
        steps = processors.OUTPUT_PRESENCE, processors.PRESENCE
        assert steps[step] in processors.CHAINS[name]
        assert steps[1 - step] not in processors.CHAINS[name]


def dry_by_hand(settings, text, breakers, vocabulary):
    """What each token loses, by the definition: every earlier place, every length."""
    last_n = settings.dry_penalty_last_n
    window = text if last_n < 0 else text[max(0, len(text) - last_n) :]
    lost = np.zeros(vocabulary)
    for token in range(vocabulary):
        longest = 0
        for place in range(1, len(window)):
            for n in range(1, place + 1):
                end = window[len(window) - n :]
                if window[place] == token and window[place - n : place] == end:
                    longest = max(longest, n if not breakers & set(end) else 0)
        if longest >= settings.dry_allowed_length and token not in breakers:
            power = longest - settings.dry_allowed_length
            lost[token] = settings.dry_multiplier * settings.dry_base**power
    return lost


@pytest.mark.parametrize(
    "text, allowed, multiplier, breakers, lost",
    [
        ([0, 1], 2, 1.0, (), {}),
        ([0, 1, 2, 0, 1], 2, 1.0, (), {2: 1.0}),
        ([0, 1, 3, 4, 0, 1], 2, 1.0, (3,), {}),
        ([0, 1, 2, 0, 1], 2, 2.0, (), {2: 2.0}),
        ([0, 1, 2, 3, 4, 0, 1], 4, 1.0, (), {}),
        ([0, 1, 2, 0, 1], 1, 1.0, (), {2: 1.1}),
        ([3, 0, 1, 2, 3, 0, 1], 2, 1.0, (), {2: 1.1}),
        ([3, 0, 1, 2, 3, 0, 1], 2, 1.0, (3,), {2: 1.0}),
        ([3, 0, 1, 2, 3, 0, 1], 2, 1.0, (1,), {}),
        ([0, 0, 0, 0], 2, 1.0, (), {0: 1.1}),
    ],
)
def test_dry_penalises_what_would_go_on_repeating_by_the_length_of_the_repetition(
    text, allowed, multiplier, breakers, lost
):
    settings = Settings(dry_multiplier=multiplier, dry_base=1.1, dry_allowed_length=allowed)
    marked_BV = np.isin(np.arange(5), breakers)[None]
    facts = dict(tokens=text, breakers_BV=marked_BV)
    ours = chains.apply((processors.DRY,), np.zeros((1, 5)), settings, **facts)[0]
    expected = [-lost.get(i, 0.0) for i in range(5)]
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
    np.testing.assert_allclose(-dry_by_hand(settings, text, set(breakers), 5), expected, rtol=1e-6)


def test_dry_equals_its_definition_on_random_texts():
    rng = np.random.RandomState(0)
    settings, texts, marks, expected = [], [], [], []
    for i in range(200):
        settings.append(
            Settings(
                dry_multiplier=float(rng.choice([0.5, 1.0])),
                dry_base=float(rng.choice([1.0, 1.2, 2.0])),
                dry_allowed_length=int(rng.randint(1, 4)),
                dry_penalty_last_n=int(rng.choice([-1, 0, 3, 8])),
            )
        )
        texts.append(rng.randint(0, 3 + i % 2, rng.randint(1, 18)).tolist())
        marks.append(set(rng.choice(4, rng.randint(0, 2), replace=False).tolist()))
        expected.append(-dry_by_hand(settings[-1], texts[-1], marks[-1], 4))
    marked_BV = np.array([[t in m for t in range(4)] for m in marks])
    ours_BV = chains.apply(
        (processors.DRY,), np.zeros((200, 4)), settings, tokens=texts, breakers_BV=marked_BV
    )
    np.testing.assert_allclose(ours_BV, expected, rtol=1e-6)
    assert (np.array(expected) < 0).any(axis=1).mean() > 0.2


def test_dry_does_not_overflow_on_a_text_of_one_token():
    settings = Settings(dry_multiplier=1.0, dry_base=3.0)
    out = chains.apply((processors.DRY,), np.zeros((1, 3)), settings, tokens=[1] * 211)
    assert out[0, 1] < -1e38 and not np.isnan(out).any() and out[0, [0, 2]].tolist() == [0, 0]


def test_an_ngram_of_the_text_or_of_the_source_is_not_ended_again():
    steps = (processors.NGRAMS,)
    zeros = np.zeros((1, 5))
    for settings, text, source, banned in [
        (Settings(no_repeat_ngram_size=2), [0, 1, 2, 0], [4], {1}),
        (Settings(no_repeat_ngram_size=1), [0, 1, 2, 0], [4], {0, 1, 2}),
        (Settings(no_repeat_ngram_size=3), [0, 1, 2, 0], [4], set()),
        (Settings(no_repeat_ngram_size=3), [0, 1, 2, 0, 1, 3, 0, 1], [4], {2, 3}),
        (Settings(no_repeat_ngram_size=9), [0, 1], [4], set()),
        (Settings(encoder_no_repeat_ngram_size=2), [3, 0], [0, 1, 0, 2], {1, 2}),
        (Settings(encoder_no_repeat_ngram_size=2), [3, 4], [0, 1, 0, 2], set()),
        (Settings(encoder_no_repeat_ngram_size=3), [0], [0, 1, 0, 2], set()),
        (
            Settings(no_repeat_ngram_size=2, encoder_no_repeat_ngram_size=3),
            [1, 4, 0, 1],
            [0, 1, 2],
            {4, 2},
        ),
    ]:
        kept = chains.kept(steps, zeros, settings, tokens=text, source=source)
        assert kept == [set(range(5)) - banned], (settings, text)


def test_a_bias_is_added_bans_hold_against_infinity_and_none_leaves_every_bit():
    logits = np.array([[1.0, -0.0, INF, INF, -INF]], np.float32)
    bias_BV = np.array([[0.5, 0.0, -INF, -2.0, 3.0]], np.float32)
    ours = chains.apply((processors.BIAS,), logits, Settings(), bias_BV=bias_BV)
    assert ours.tolist() == [[1.5, -0.0, -INF, INF, -INF]]
    assert np.signbit(ours[0, 1])


def test_a_sequence_is_biased_at_its_last_token_behind_the_others():
    sequences = np.array([[[-1, -1, 2], [-1, 0, 3], [1, 0, 3], [-1, 1, 4], [-1, -1, -1]]])
    bias = np.array([[1.0, 2.0, -4.0, -INF, 8.0]], np.float32)
    rules = dict(sequences_BNL=sequences, sequence_bias_BN=bias)
    for text, expected in [
        ([1, 0], [0, 0, 1, -2, 0]),
        ([4, 0], [0, 0, 1, 2, 0]),
        ([0], [0, 0, 1, 2, 0]),
        ([0, 1], [0, 0, 1, 0, -INF]),
    ]:
        ours = chains.apply(
            (processors.SEQUENCES,), np.zeros((1, 5)), Settings(), tokens=text, **rules
        )
        assert ours.tolist() == [expected], text


def test_vllm_looks_for_sequences_in_what_was_generated_only():
    rules = dict(
        sequences_BNL=np.array([[[1, 0, 3]]]), sequence_bias_BN=np.array([[-INF]], np.float32)
    )
    for prompt, banned in [(0, {3}), (1, set()), (2, set())]:
        facts = dict(tokens=[1, 0], prompt=prompt, **rules)
        zeros = np.zeros((1, 5))
        kept = chains.kept((processors.OUTPUT_SEQUENCES,), zeros, Settings(), **facts)
        assert kept == [set(range(5)) - banned]
        assert chains.kept((processors.SEQUENCES,), zeros, Settings(), **facts) == [{0, 1, 2, 4}]


LENGTHS = (
    processors.MINIMUM,
    processors.FORCED,
    processors.DECAY,
    processors.BEGIN,
)


def test_no_end_comes_before_the_minimum_and_then_it_may():
    for made, expected in [(0, {0, 1, 2}), (1, {0, 1, 2}), (2, {0, 1, 2, 3, 4})]:
        facts = dict(tokens=[0] * (3 + made), prompt=3, ends=[3, 4])
        zeros = np.zeros((1, 5))
        assert chains.kept(LENGTHS, zeros, Settings(min_new_tokens=2), **facts) == [expected]


def test_forced_tokens_come_in_their_order_the_first_free_one_may_be_suppressed_and_the_end_last():
    settings = Settings()
    rules = dict(
        forced_BN=np.array([[2, 4]]), forced_end_B=np.array([3]), begin_BN=np.array([[0, 1]])
    )
    for made, expected in [(0, {2}), (1, {4}), (2, {2, 3, 4}), (3, {0, 1, 2, 3, 4}), (4, {3})]:
        rows = chains.rows_of([settings], 5, tokens=[0] * (3 + made), prompt=3, **rules)
        rows = rows.replace(limits_B=np.array([8], np.int32))
        out = chains.apply(LENGTHS, np.full((1, 5), 7.0), [settings], rows=rows)
        assert set(np.flatnonzero(out[0] > -INF).tolist()) == expected, made
        assert set(out[0, list(expected)].tolist()) == {0.0 if len(expected) == 1 else 7.0}


def test_ends_gain_exponentially_after_the_start():
    settings = Settings(exponential_decay_length_penalty=(2, 1.5))
    logits = np.array([[1.0, 2.0, 3.0, -4.0, -INF]])
    for made, factor in [(0, 1), (2, 1), (3, 1.5), (5, 1.5**3)]:
        facts = dict(tokens=[0] * (3 + made), prompt=3, ends=[2, 3, 4])
        ours = chains.apply(LENGTHS, logits, settings, **facts)[0]
        expected = [1, 2, 3 * factor, -4 + 4 * (factor - 1), -INF]
        np.testing.assert_allclose(ours, expected, rtol=1e-6)


def theirs(name, *arguments):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    return getattr(transformers.generation.logits_process, name)(*arguments)


def each_with_theirs(number, vocabulary, source, biases, ends, given):
    """Every processor of tokens with its settings, transformers' of the same, and its rules."""
    torch = pytest.importorskip("torch")
    size, factor, start = 1 + number % 4, (0.5, 1.3, 2.0)[number % 3], number % 5
    least, read = 3 + number % 3, torch.tensor([source])
    wide = max(map(len, biases))
    sequences = [[-1] * (wide - len(ids)) + list(ids) for ids in biases]
    biased = dict(
        sequences_BNL=np.array([sequences]),
        sequence_bias_BN=np.array([list(biases.values())], np.float32),
    )
    banned = np.where(np.isin(np.arange(vocabulary), ends), -INF, 0.0)[None].astype(np.float32)
    plain = [
        (processors.REPETITION, dict(repetition_penalty=factor), "RepetitionPenalty", factor),
        (
            processors.ENCODER_REPETITION,
            dict(encoder_repetition_penalty=factor),
            *("EncoderRepetitionPenalty", factor, read),
        ),
        (processors.NGRAMS, dict(no_repeat_ngram_size=size), "NoRepeatNGram", size),
        (
            processors.NGRAMS,
            dict(encoder_no_repeat_ngram_size=size),
            *("EncoderNoRepeatNGram", size, read),
        ),
        (processors.MINIMUM, dict(min_new_tokens=least), "MinNewTokensLength", given, least, ends),
    ]
    for step, settings, name, *arguments in plain:
        yield step, Settings(**settings), theirs(f"{name}LogitsProcessor", *arguments), {}
    decay = start, factor
    yield (
        processors.DECAY,
        Settings(exponential_decay_length_penalty=decay),
        theirs("ExponentialDecayLengthPenalty", decay, ends, given),
        {},
    )
    yield processors.SEQUENCES, Settings(), theirs("SequenceBiasLogitsProcessor", biases), biased
    suppress = theirs("SuppressTokensLogitsProcessor", ends)
    yield processors.BIAS, Settings(), suppress, dict(bias_BV=banned)


@pytest.mark.oracle
@pytest.mark.parametrize("vocabulary", [2, 7, 211])
def test_every_processor_of_tokens_equals_that_of_transformers(vocabulary):
    """Random texts of few different tokens, so that much repeats; infinite logits among them."""
    torch = pytest.importorskip("torch")
    rng = np.random.RandomState(vocabulary)
    ends, given, length = [vocabulary - 1, 0], 7, 11
    few = min(vocabulary, 4)
    for number in range(12):
        text = rng.randint(0, few, length).tolist()
        source = rng.randint(0, few, 9).tolist()
        logits = (3 * rng.randn(1, vocabulary)).astype(np.float32)
        logits[0, number % vocabulary] = (-INF, INF, 0.0)[number % 3]
        biases = {
            tuple(text[len(text) - n + 1 :]) + (int(rng.randint(few)),): float(rng.randn())
            for n in (1, 2, 3)
        }
        ids, scores = torch.tensor([text]), torch.tensor(logits)
        for step, settings, expected, rules in each_with_theirs(
            number, vocabulary, source, biases, ends, given
        ):
            facts = dict(tokens=text, prompt=given, source=source, ends=ends)
            ours = chains.apply((step,), logits, settings, **facts, **rules)
            wanted = expected(ids, scores.clone()).numpy()
            assert ((ours > -INF) == (wanted > -INF)).all(), settings
            np.testing.assert_allclose(ours, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.oracle
def test_forced_and_first_tokens_equal_those_of_transformers():
    torch = pytest.importorskip("torch")
    logits = np.random.RandomState(0).randn(1, 7).astype(np.float32)
    for length in (1, 2, 3, 4):
        rules = dict(
            forced_BN=np.array([[5]]), forced_end_B=np.array([6]), begin_BN=np.array([[1, 2]])
        )
        rows = chains.rows_of([Settings()], 7, tokens=[0] * length, prompt=1, **rules)
        rows = rows.replace(limits_B=np.array([4], np.int32))
        ours = chains.apply(LENGTHS, logits, [Settings()], rows=rows)
        ids, scores = torch.zeros((1, length), dtype=torch.int64), torch.tensor(logits)
        for process in (
            theirs("ForcedBOSTokenLogitsProcessor", 5),
            theirs("ForcedEOSTokenLogitsProcessor", 4, 6),
            theirs("SuppressTokensAtBeginLogitsProcessor", [1, 2], 2),
        ):
            scores = process(ids, scores)
        assert (ours == scores.numpy()).all(), length
