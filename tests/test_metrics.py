"""Are the metrics what their papers define and their libraries compute, and is bad input refused in one line?"""

import itertools
import math
import re

import numpy as np
import pytest

from model import errors
from train import metrics

HYPOTHESES = ["the cat sat on the mat .", "a dog runs in the park", "it is cold", "two men talk ."]
REFERENCES = [
    ["the cat sat on a mat .", "there is a cat on the mat ."],
    ["a dog is running in the park"],
    ["it is very cold today", "it is cold", "how cold it is"],
    ["two men are talking ."],
]
TAGS = [  # predicted, reference; the last has an I- that continues nothing
    ("B-per I-per O B-loc O", "B-per I-per O B-loc B-loc"),
    ("O B-per O", "O B-loc O"),
    ("I-loc O I-per", "B-loc O B-per"),
    ("O O", "O O"),
]
TOKENS = ["ann lee saw rome paris", "the rome falls", "rome and bob", "no names"]


def split(texts):
    return [text.split() for text in texts]


PREDICTED, WANTED = (split(side) for side in zip(*TAGS, strict=True))


def value(name, *arguments, **options):
    return metrics.METRICS[name].of(*arguments, **options).value


# Every metric: counts of a part are those of the part alone.

EXAMPLES = {
    "accuracy": (["a", "b", "b", "c"], ["a", "b", "c", "c"]),
    "exact_match": (HYPOTHESES, REFERENCES),
    "number_match": (
        ["#### 7", "8", "#### 1,200", "#### 5"],
        [f"#### {n}" for n in (7, 8, 1200, 6)],
    ),
    "macro_f1": (["a", "b", "b", "c"], ["a", "b", "c", "c"]),
    "entity_f1": (PREDICTED, WANTED),
    "surface_f1": (PREDICTED, WANTED, split(TOKENS)),
    "token_accuracy": (PREDICTED, WANTED),
    "bleu": (HYPOTHESES, REFERENCES),
    "chrf": (HYPOTHESES, REFERENCES),
    "rouge1": (HYPOTHESES, REFERENCES),
    "rouge2": (HYPOTHESES, REFERENCES),
    "rougeL": (HYPOTHESES, REFERENCES),
    "loss": ([2.0, 3.5, 1.25, 7.0], [2, 3, 5, 7]),
    "perplexity": ([2.0, 3.5, 1.25, 7.0], [2, 3, 5, 7]),
    "word_perplexity": ([2.0, 3.5, 1.25, 7.0], [2, 3, 5, 7]),
    "bits_per_byte": ([2.0, 3.5, 1.25, 7.0], [2, 3, 5, 7]),
    "pass_at_k": ([0, 1, 3, 5], [5, 5, 7, 5]),
}


@pytest.mark.parametrize("name", metrics.METRICS)
def test_the_counts_of_some_examples_give_the_value_of_these_alone(name):
    every = metrics.METRICS[name].of(*EXAMPLES[name])
    assert every.counts_NKC.shape[::2] == (4, len(every.classes)) and len(every.references) == 4
    for part in itertools.chain.from_iterable(
        itertools.combinations(range(4), n) for n in (1, 2, 3)
    ):
        alone = value(name, *([column[i] for i in part] for column in EXAMPLES[name]))
        np.testing.assert_allclose(every.of(every.counts_NKC[list(part)].sum(0)), alone, rtol=1e-12)
    np.testing.assert_allclose(
        every.values_N, [every.of(counts_KC) for counts_KC in every.counts_NKC], rtol=1e-12
    )


@pytest.mark.parametrize("name", metrics.METRICS)
def test_lists_of_different_lengths_and_empty_ones_are_refused(name):
    predictions, references, *others = EXAMPLES[name]
    for short in (predictions[:3], references), ([], []):
        with pytest.raises(
            errors.BadInput,
            match=r"^there are \d predictions and \d references; give as many .* one$",
        ):
            metrics.METRICS[name].of(*short, *others)


# Text.


def test_exact_match_takes_any_reference_and_leaves_blanks_aside():
    assert value(
        "exact_match", [" yes\n", "No", "maybe"], ["yes", "no", ["perhaps", "maybe"]]
    ) == pytest.approx(200 / 3)


@pytest.mark.parametrize(
    "text, number",
    [
        ("so 3 + 4 = 7\n#### 7", "7"),
        ("#### 1,234,567", "1234567"),
        ("#### -3.5 dollars\n#### 9", "-3.5"),
        ("the answer is 7", None),
        ("####7", None),
        ("#### $7", None),
    ],
)
def test_the_number_of_an_arithmetic_answer_stands_behind_four_hashes(text, number):
    assert metrics.final_number(text) == number


def test_numbers_compare_as_text_and_a_prediction_without_one_is_wrong():
    found = metrics.number_match(
        ["#### 1,000", "1000", "#### 1000.0", "x #### 1000"], ["#### 1000"] * 4
    )
    assert found.values_N.tolist() == [100, 0, 0, 100]


def test_a_reference_without_a_number_is_refused():
    with pytest.raises(
        errors.BadInput,
        match=r"^reference 1 ends 'seven', without a number behind '#### '; give GSM8K's",
    ):
        metrics.number_match(["#### 7"] * 2, ["#### 7", "seven"])


def test_bleu_and_chrf_of_the_corpus_are_those_of_sacrebleu():
    library = pytest.importorskip("sacrebleu.metrics")
    streams = [[(*texts, None, None)[i] for texts in REFERENCES] for i in range(3)]
    upper = [text.upper() for text in HYPOTHESES]
    for ours, theirs in [
        (metrics.bleu(HYPOTHESES, REFERENCES), library.BLEU()),
        (
            metrics.bleu(HYPOTHESES, REFERENCES, tokenize="none"),
            library.BLEU(tokenize="none", force=True),
        ),
        (metrics.bleu(HYPOTHESES, REFERENCES, lowercase=True), library.BLEU(lowercase=True)),
        (metrics.chrf(HYPOTHESES, REFERENCES), library.CHRF()),
    ]:
        assert ours.value == pytest.approx(
            theirs.corpus_score(HYPOTHESES, streams).score, rel=1e-12
        )
        assert ours.details["signature"] == str(theirs.get_signature())
    assert 20 < metrics.bleu(HYPOTHESES, REFERENCES).value < 80
    assert (
        metrics.bleu(upper, REFERENCES).value
        < 5
        < metrics.bleu(upper, REFERENCES, lowercase=True).value
    )
    assert (
        metrics.chrf(upper, REFERENCES, lowercase=True).value
        == metrics.chrf(HYPOTHESES, REFERENCES).value
    )


def test_text_in_tokens_is_scored_token_by_token():
    """13a separates `n't.` once more; `none` compares what blanks separate: 4/5, 3/4, 2/3, 1/2 of a . b c d."""
    assert value("bleu", ["a b c d e"], ["a b c d f"], tokenize="none") == pytest.approx(
        100 * 0.2**0.25
    )
    both = [
        value("bleu", ["it isn't. so we go"], ["it isn't . so we go"], tokenize=t)
        for t in ("13a", "none")
    ]
    assert both[0] == pytest.approx(100) and both[1] < 80


def test_an_unknown_tokenizer_of_bleu_is_refused():
    with pytest.raises(
        errors.BadInput,
        match=r"^tokenize is '13b' \(did you mean '13a'\?\); sacrebleu has: 13a, char, ",
    ):
        metrics.bleu(["a"], ["a"], tokenize="13b")


def test_rouge_by_hand_is_the_mean_over_references():
    """`cats sat` stems to cat sat. Against `the cat sat`: 2 words of 2 and 3; against `a dog`: none."""
    hypothesis, references = ["cats sat"], [["the cat sat", "a dog"]]
    assert value("rouge1", hypothesis, references) == pytest.approx(100 * (2 * 2 / 5 + 0) / 2)
    assert value("rouge2", hypothesis, references) == pytest.approx(100 * (2 * 1 / 3 + 0) / 2)
    # The longest common subsequence of `b a c` with `a b c` has 2 of 3 words.
    assert value("rougeL", ["bb aa cc"], ["aa bb cc"]) == pytest.approx(100 * 2 / 3)


def test_an_example_without_references_is_refused():
    with pytest.raises(errors.BadInput, match="^example 1 has no reference; give it one$"):
        metrics.rouge(["a", "b"], [["a"], []])


# Classes and entities.


def test_macro_f1_is_that_of_scikit_learn():
    library = pytest.importorskip("sklearn.metrics")
    numbers = np.random.default_rng(3)
    predictions, references = numbers.integers(0, 5, (2, 41)).tolist()
    references = [min(label, 3) for label in references]  # class 4 is only ever predicted
    expected = library.f1_score(references, predictions, average="macro")
    assert value("macro_f1", predictions, references) == pytest.approx(100 * expected)
    assert value("macro_f1", predictions, references, labels=range(7)) == pytest.approx(
        100 * expected
    )


def test_entities_by_hand():
    """Correct: per at 0-1 and loc at 3 of the first, loc and per of the third; 5 are predicted, 6 in the reference."""
    found = metrics.entity_f1(PREDICTED, WANTED)
    assert found.value == pytest.approx(100 * 2 * 4 / (5 + 6))
    assert found.classes == ("loc", "per")
    all_ = found.details["types"]["all"]
    assert (all_["precision"], all_["recall"]) == (pytest.approx(80), pytest.approx(400 / 6))
    assert found.details["types"]["loc"] == {
        "precision": 100, "recall": 50, "f1": pytest.approx(200 / 3), "references": 4, "predictions": 2,
    }  # fmt: skip
    assert np.isnan(found.values_N[3]), "a sentence without entities says nothing"


def test_random_tags_score_as_seqeval_scores_them():
    library = pytest.importorskip("seqeval.metrics")
    numbers = np.random.default_rng(5)
    kinds = ["O", "B-x", "I-x", "B-y", "I-y"]
    sides = [[[kinds[k] for k in row] for row in numbers.integers(0, 5, (13, 7))] for _ in "ab"]
    found = metrics.entity_f1(*sides)
    assert found.value == pytest.approx(100 * library.f1_score(sides[1], sides[0]))
    report = library.classification_report(sides[1], sides[0], output_dict=True)
    for name in "xy":
        ours = found.details["types"][name]
        theirs = [100 * report[name][key] for key in ("precision", "recall", "f1-score")]
        assert [ours["precision"], ours["recall"], ours["f1"]] == pytest.approx(theirs)


def test_different_names_count_once_and_only_where_they_are_found_in_place():
    """In the reference: ann lee/per, rome/loc, paris/loc, bob/per. Predicted: ann lee, rome/loc, rome/per, bob."""
    assert value("surface_f1", PREDICTED, WANTED, split(TOKENS)) == pytest.approx(
        100 * 2 * 3 / (4 + 4)
    )
    # The right name in the wrong place is none that was found.
    assert value("surface_f1", [["B-x", "O"]], [["O", "B-x"]], [["rome", "rome"]]) == 0


def test_tags_that_do_not_fit_are_refused():
    with pytest.raises(
        errors.BadInput,
        match="^example 1 has 1 predicted tags and 2 in the reference; give one per token$",
    ):
        metrics.entity_f1([["O"], ["O"]], [["O"], ["O", "O"]])
    with pytest.raises(
        errors.BadInput, match="^example 0 has the tag 'PER'; tags are O, or B- or I- and a type$"
    ):
        metrics.entity_f1([["PER"]], [["B-PER"]])


# Likelihood and code.


def test_likelihoods_by_their_formulas():
    nats, counts = [3.0, 5.0], [2, 11]
    assert value("loss", nats, counts) == pytest.approx(8 / 13)
    assert value("perplexity", nats, counts) == pytest.approx(math.exp(8 / 13))
    assert value("bits_per_byte", nats, counts) == pytest.approx(8 / 13 / math.log(2))
    with pytest.raises(
        errors.BadInput, match="^what is divided by counts nothing; give examples with tokens$"
    ):
        metrics.perplexity([0.0], [0])


@pytest.mark.parametrize("k", [1, 2, 3])
def test_pass_at_k_is_the_share_of_choices_with_one_that_passes(k):
    counted = []
    for c, n in [(0, 5), (1, 5), (3, 7), (5, 5)]:
        choices = list(itertools.combinations([1] * c + [0] * (n - c), k))
        counted.append(sum(any(choice) for choice in choices) / len(choices))
    assert value("pass_at_k", [0, 1, 3, 5], [5, 5, 7, 5], k=k) == pytest.approx(
        100 * np.mean(counted)
    )


def test_fewer_samples_than_k_are_refused():
    text = "task 1 has 1 correct of 2 samples, and k is 3; draw at least k samples of each task"
    with pytest.raises(errors.BadInput, match=f"^{re.escape(text)}$"):
        metrics.pass_at_k([1, 1], [3, 2], k=3)


@pytest.mark.parametrize(
    "name, package", [("bleu", "sacrebleu"), ("rouge1", "rouge_score"), ("entity_f1", "seqeval")]
)
def test_a_missing_library_is_named_with_its_installation(name, package, monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(metrics.importlib, "import_module", absent)
    text = f'this metric needs {package}, which is not installed; pip install "ganymede[metrics]"'
    with pytest.raises(errors.BadInput, match=f"^{re.escape(text)}$"):
        metrics.METRICS[name].of(*EXAMPLES[name])
