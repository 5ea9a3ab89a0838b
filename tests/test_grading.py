"""Which metrics does each task have, and what would be predicted without a model?"""

import itertools
import random

import pytest

from model import errors
from train import baselines, grading, metrics
from train.groups import Evaluate
from train.tasks import Task

CLASSIFY = Task("classify", labels=("no", "yes"))
TAG = Task("tag", labels=("O", "B-x", "I-x"))


@pytest.mark.parametrize(
    ("task", "evaluate", "names"),
    [
        (CLASSIFY, Evaluate(), ("accuracy", "macro_f1")),
        (TAG, Evaluate(), ("entity_f1",)),
        (Task("tag", labels=("noun", "verb")), Evaluate(), ("token_accuracy",)),
        (Task("seq2seq"), Evaluate(), ("exact_match", "chrf")),
        (Task("seq2seq"), Evaluate(metrics=("bleu", "loss")), ("bleu", "loss")),
        (Task("seq2seq"), Evaluate(tests="mbpp"), ("pass@1",)),
        (Task(), Evaluate(), ("perplexity", "word_perplexity", "bits_per_byte")),
        (Task(), Evaluate(references=("{{ answer }}",)), ("exact_match", "chrf")),
        (Task("masked"), Evaluate(), ()),
    ],
)
def test_each_task_has_metrics_without_being_asked(task, evaluate, names):
    grading.check(evaluate, task)
    assert grading.named(evaluate, task) == names


@pytest.mark.parametrize(
    ("task", "values", "message"),
    [
        (
            CLASSIFY,
            dict(metrics=("acuracy",)),
            r"config.evaluate.metrics has 'acuracy' \(did you mean 'accuracy'\?\), and config.task.kind='classify' is "
            "measured by: accuracy, macro_f1$",
        ),
        (
            Task("masked"),
            dict(metrics=("bleu",)),
            "has 'bleu', and config.task.kind='masked' is measured by: its loss only$",
        ),
        (
            Task(),
            dict(metrics=("bleu",)),
            "measured by: perplexity, .*; texts are compared with config.evaluate.references",
        ),
        (
            Task("seq2seq"),
            dict(metrics=("pass@1",)),
            "has 'pass@1', and nothing says what a program is tested with; add config.evaluate.tests",
        ),
        (
            Task("seq2seq"),
            dict(metrics=("pass@5",), tests="mbpp"),
            "has 'pass@5', and 1 programs are written for a record; set config.evaluate.settings.n to at least 5",
        ),
        (
            CLASSIFY,
            dict(tests="mbpp"),
            "tests is 'mbpp', and config.task.kind='classify' writes no programs; leave it out",
        ),
        (
            Task("seq2seq"),
            dict(settings={"n": 3}),
            "settings has n=3 and no temperature, so that all would be alike; add a temperature above 0",
        ),
        (
            Task("seq2seq"),
            dict(options={"bleu": {}}),
            "config.evaluate.options has 'bleu', which is not measured; measured are: exact_match, chrf",
        ),
        (
            Task("seq2seq"),
            dict(metrics=("bleu",), options={"bleu": {"tokenise": "none"}}),
            r"options.bleu has 'tokenise' \(did you mean 'tokenize'\?\); bleu takes: tokenize, lowercase",
        ),
    ],
)
def test_what_a_task_does_not_have_is_refused(task, values, message):
    with pytest.raises(errors.BadInput, match=message):
        grading.check(Evaluate(**values), task)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"limit": -1}, "config.evaluate.limit is -1; it must be at least 0"),
        ({"seed": -1}, r"config.evaluate.seed is -1; it must be from 0 to 2\^32 - 1"),
        ({"tests": "mbbp"}, r"config.evaluate.tests is 'mbbp' \(did you mean 'mbpp'\?\); known: "),
        ({"settings": {"top_q": 1}}, "config.evaluate.settings has no key 'top_q'"),
    ],
)
def test_values_that_mean_nothing_are_refused(values, message):
    with pytest.raises(errors.BadInput, match=message):
        Evaluate(**values)


def test_texts_are_written_greedily_unless_settings_say_otherwise():
    assert Evaluate().decoding.temperature == 0
    assert Evaluate(settings={"num_beams": 4}).decoding.num_beams == 4
    assert Evaluate(settings={"temperature": 0.8}).decoding.temperature == 0.8


def test_a_value_that_an_option_cannot_have_is_refused_before_any_work():
    pytest.importorskip("sacrebleu")
    with pytest.raises(errors.BadInput, match="tokenize is '13b' .*sacrebleu has: "):
        grading.probe(("bleu",), {"bleu": {"tokenize": "13b"}})
    grading.probe((*grading.LABELS, *grading.NATS, "number_match", "pass@3"), {})


def test_lines_with_other_sources_or_references_are_other_examples():
    line = {"source": "a", "references": ["b"], "prediction": "c"}
    same = {**line, "prediction": "d"}
    assert grading.digest([line]) == grading.digest([same])
    for change in ({"source": "e"}, {"references": ["b", "e"]}):
        assert grading.digest([line]) != grading.digest([{**line, **change}])


def test_the_share_of_right_tags_is_over_tokens_and_not_over_sentences():
    scores = metrics.token_accuracy([["a"], ["a", "b", "a"]], [["a"], ["a", "a", "b"]])
    assert scores.value == 50  # 2 of 4; a mean of the sentences would be 66.7
    assert scores.values_N.tolist() == [100, pytest.approx(100 / 3)]


def test_the_commonest_label_is_found_and_of_equals_the_first_in_the_alphabet():
    assert baselines.commonest("b a b c".split()) == "b"
    assert baselines.commonest("c b c b a".split()) == "b"


def brute(names, tokens):
    """All spans that are names, the leftmost and then the longest first, but those that overlap an earlier one."""
    spans = [
        (i, -j)
        for i, j in itertools.combinations(range(len(tokens) + 1), 2)
        if tuple(tokens[i:j]) in names
    ]
    tags, free = ["O"] * len(tokens), 0
    for start, minus in sorted(spans):
        if start >= free:
            free = -minus
            for i in range(start, free):
                tags[i] = f"{'B' if i == start else 'I'}-{names[tuple(tokens[start:free])]}"
    return tags


def test_names_are_remembered_from_left_to_right_the_longest_first():
    numbers = random.Random(7)
    for _ in range(101):
        names = {
            tuple(numbers.choices("abc", k=numbers.randint(1, 3))): numbers.choice("xy")
            for _ in range(3)
        }
        tokens = numbers.choices("abcd", k=numbers.randint(0, 11))
        assert baselines.remember(names, tokens) == brute(names, tokens)
    assert baselines.remember({}, ["a"]) == ["O"]


def test_a_name_has_the_type_that_it_has_most_often():
    pytest.importorskip("seqeval")
    sentences = [
        (["in", "New", "York"], ["O", "B-place", "I-place"]),
        (["York", "sees", "York"], ["B-person", "O", "B-place"]),
        (["York"], ["B-person"]),
    ]
    assert baselines.memorise(sentences) == {("New", "York"): "place", ("York",): "person"}
