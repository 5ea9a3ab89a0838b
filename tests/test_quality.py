"""Are the measures of completions what their papers say, and their intervals those of Student's t?"""

import math

import numpy as np
import pytest
import scipy.stats
from sacrebleu import metrics as sacrebleu

from decode import quality
from decode.requests import Completion

WORDS = ("moon", "orbits", "the", "giant", "planet", "is", "cold")


def done(tokens, name=0, sample=0, *, finish_reason="length", text=None, record=True):
    """A completion whose numbers are made from its tokens."""
    tokens = tuple(tokens)
    numbers = np.random.default_rng([7, *tokens])
    each = [tuple(numbers.uniform(size=len(tokens)).tolist()) for _ in range(4)]
    return Completion(
        id=name,
        sample=sample,
        prompt_tokens=(1,),
        tokens=tokens,
        text=" ".join(WORDS[t % len(WORDS)] for t in tokens) if text is None else text,
        finish_reason=finish_reason,
        logprobs=tuple(-x for x in each[0]),
        sampled_logprobs=each[0],
        margins=each[0],
        entropies=each[1] if record else None,
        kept_masses=each[2] if record else None,
        kept_counts=tuple(range(2, 2 + len(tokens))) if record else None,
        ranks=tuple(0 for _ in tokens) if record else None,
    )


def drawn(prompts=5, samples=3, seed=0, longest=13):
    """Random completions: few different tokens, so that n-grams repeat within and across prompts."""
    numbers = np.random.default_rng(seed)
    return [
        done(
            numbers.integers(0, 3, numbers.integers(2, longest)).tolist(),
            f"p{i}",
            sample,
            finish_reason=str(numbers.choice(["stop", "length"])),
        )
        for i in range(prompts)
        for sample in range(samples)
    ]


def flat(groups, what):
    return [x for group in groups for each in group for x in getattr(each, what)]


def grams(ids, n):
    return [ids[i : i + n] for i in range(len(ids)) if i + n <= len(ids)]


def distinct(n):
    def of(groups):
        every = [gram for group in groups for each in group for gram in grams(each.tokens, n)]
        return len(set(every)) / len(every)

    return of


def repetition(groups):
    lists = [grams(each.tokens, 4) for group in groups for each in group]
    return np.mean([1 - len(set(each)) / len(each) for each in lists if each])


# Each measure in one line, straight from its definition.
DEFINITIONS = {
    "logprob": lambda groups: np.mean(flat(groups, "logprobs")),
    "perplexity": lambda groups: math.exp(-np.mean(flat(groups, "logprobs"))),
    "distinct_1": distinct(1),
    "distinct_2": distinct(2),
    "distinct_3": distinct(3),
    "repetition": repetition,
    "tokens": lambda groups: np.mean([len(each.tokens) for group in groups for each in group]),
    "stopped": lambda groups: np.mean([d.finish_reason == "stop" for g in groups for d in g]),
    "entropy": lambda groups: np.mean(flat(groups, "entropies")),
    "kept_mass": lambda groups: np.mean(flat(groups, "kept_masses")),
    "kept_count": lambda groups: np.mean(flat(groups, "kept_counts")),
}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_measure_and_its_values_without_each_prompt_are_the_definitions(name):
    groups = quality.by_prompt(drawn())
    found = quality.MEASURES[name].of(groups)
    np.testing.assert_allclose(found.value, DEFINITIONS[name](groups), rtol=1e-12)
    for i in range(len(groups)):
        rest = groups[:i] + groups[i + 1 :]
        np.testing.assert_allclose(found.without_N[i], DEFINITIONS[name](rest), rtol=1e-12)


def test_every_measure_has_a_definition_here():
    assert {*DEFINITIONS, "self_bleu"} == set(quality.MEASURES)


def test_distinct_and_repetition_of_a_sentence_by_hand():
    """`ababab` has two letters in six, two pairs in five, two triples in four, and two fours in three."""
    groups = [[done([0, 1, 0, 1, 0, 1])]]
    shares = [quality.distinct(groups, n).value for n in (1, 2, 3)]
    assert shares == [2 / 6, 2 / 5, 2 / 4]
    assert quality.repetition(groups).value == pytest.approx(1 / 3)
    assert quality.repetition([[done([0, 1, 0])]]) is None


def test_the_perplexity_of_a_uniform_choice_is_how_many_there_are():
    one = Completion(0, 0, (1,), (2, 3), "", "stop", (-math.log(7),) * 2, (0.0,) * 2, (0.0,) * 2)
    assert quality.perplexity([[one]]).value == pytest.approx(7)
    assert quality.entropy([[one]]) is None


# Intervals.


def test_the_interval_of_a_mean_and_of_a_difference_are_those_of_student():
    numbers = np.random.default_rng(5)
    a, b = ([[done(range(n), i)] for i, n in enumerate(numbers.integers(1, 29, 7))] for _ in "ab")
    ours, theirs = quality.tokens(a), quality.tokens(b)
    lengths_a, lengths_b = ([len(group[0].tokens) for group in groups] for groups in (a, b))
    alone = scipy.stats.ttest_1samp(lengths_a, 0).confidence_interval()
    paired = scipy.stats.ttest_rel(lengths_a, lengths_b).confidence_interval()
    for estimate, interval in [(ours, alone), (ours - theirs, paired)]:
        half = estimate.half_width()
        np.testing.assert_allclose(
            [estimate.value - half, estimate.value + half], [interval.low, interval.high]
        )


def test_arms_that_are_equal_differ_by_zero_and_nothing():
    found = quality.measure(drawn())
    between = [each - each for each in found.values() if each]
    assert len(between) == 12
    assert all(each.value == 0 and each.half_width() == 0 for each in between)


def test_one_prompt_or_an_impossible_token_gives_no_interval():
    assert quality.tokens([[done([1, 2])]]).half_width() is None
    impossible = [[done([1, 2], i)] for i in range(3)]
    impossible[1] = [
        Completion(1, 0, (1,), (2,), "", "length", (-math.inf,), (0.0,), (0.0,)),
    ]
    assert quality.logprob(impossible).value == -math.inf
    assert quality.logprob(impossible).half_width() is None
    assert quality.perplexity(impossible).value == math.inf


# BLEU, chrF, references.


def test_self_bleu_compares_each_completion_with_all_others():
    """Of a b c d e and a b c d f: precisions 4/5, 3/4, 2/3, 1/2, lengths equal: (1/5)^(1/4), both ways."""
    pair = [[done([], 0, text="a b c d e")], [done([], 1, text="a b c d f")]]
    found = quality.self_bleu(pair)
    assert found.value == pytest.approx(100 * 0.2**0.25)
    np.testing.assert_allclose(found.without_N, [100 * 0.2**0.25] * 2)
    equal = [[done([], i, text="a b c d e")] for i in range(3)]
    assert quality.self_bleu(equal).value == pytest.approx(100)
    assert quality.self_bleu(equal[:1]) is None
    # The third has one word in common with the first two together, and is no longer than they are.
    third = [*pair, [done([], 2, text="x y a z q")]]
    texts = ["a b c d e", "a b c d f", "x y a z q"]
    bleu = sacrebleu.BLEU(effective_order=True)
    scores = [bleu.sentence_score(t, [u for u in texts if u != t]).score for t in texts]
    assert quality.self_bleu(third).value == pytest.approx(np.mean(scores))
    assert scores[2] < 20 < scores[0]


def test_self_bleu_of_many_takes_some_at_equal_distances(monkeypatch):
    texts = ["a b c d e", "p q r s t", "a b c d f", "q r s t u", "a b c d g", "x x x x"]
    groups = [[done([], i, text=text)] for i, text in enumerate(texts)]
    monkeypatch.setattr(quality, "MOST", 3)
    assert quality.self_bleu(groups).value == quality.self_bleu(groups[::2]).value
    assert len(quality.self_bleu(groups).without_N) == 6


REFERENCES = {
    "p0": ("moon orbits the giant planet",),
    "p1": ("the moon is cold", "cold is the moon"),
    "p2": ("planet planet planet",),
}


@pytest.fixture(scope="module")
def judged():
    """Two samples of each prompt in longer sentences; one of them is a reference to the letter."""
    numbers = np.random.default_rng(3)
    made = [
        done(numbers.integers(0, 7, 5 + 2 * i).tolist(), f"p{i}", sample)
        for i in range(3)
        for sample in range(2)
    ]
    return quality.by_prompt([*made[:5], done([], "p2", 1, text=" planet planet planet\n")])


def test_bleu_is_that_of_the_corpus_with_and_without_each_prompt(judged):
    def corpus(groups):
        every = [each for group in groups for each in group]
        most = max(len(REFERENCES[each.id]) for each in every)
        streams = [
            [(*REFERENCES[each.id], *[None] * most)[k] for each in every] for k in range(most)
        ]
        return sacrebleu.BLEU().corpus_score([each.text for each in every], streams).score

    found = quality.bleu(judged, REFERENCES)
    assert found.value == pytest.approx(corpus(judged))
    assert 1 < found.value < 99
    rest = [corpus(judged[:i] + judged[i + 1 :]) for i in range(3)]
    np.testing.assert_allclose(found.without_N, rest)


def test_chrf_and_exact_match_are_means_over_completions(judged):
    every = [each for group in judged for each in group]
    scores = [sacrebleu.CHRF().sentence_score(d.text, list(REFERENCES[d.id])).score for d in every]
    assert quality.chrf(judged, REFERENCES).value == pytest.approx(np.mean(scores))
    assert quality.exact_match(judged, REFERENCES).value == pytest.approx(1 / 6)


def test_only_prompts_with_references_are_judged(judged):
    every = [each for group in judged for each in group]
    found = quality.measure([*every, done([1, 2], "other")], REFERENCES)
    assert found["exact_match"].value == pytest.approx(1 / 6)
    assert len(found["bleu"].without_N) == 3 and len(found["tokens"].without_N) == 4
    without = quality.measure(every)
    assert all(without[name] is None for name in quality.TASKS)


def test_without_sacrebleu_and_without_a_record_the_rest_is_measured(judged, monkeypatch):
    monkeypatch.setattr(quality, "sacrebleu", None)
    every = [done(each.tokens, each.id, record=False) for group in judged for each in group]
    found = quality.measure(every, REFERENCES)
    missing = {name for name, each in found.items() if each is None}
    assert missing == {"self_bleu", "chrf", "bleu", "entropy", "kept_mass", "kept_count"}
