"""How good are a run's predictions of a task? Which metrics each kind of task has, and their values with intervals.

A *line* is a record as `predictions.jsonl` has it: `source`, `prediction`, `references`, and what else is known of it.
"""

import hashlib
import inspect
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from decode import quality
from model import errors
from train import bootstrap, metrics
from train.groups import Evaluate
from train.tasks import Task

Line = dict[str, Any]

PASS = re.compile(r"pass@([1-9]\d*)")
LABELS = ("accuracy", "macro_f1")
TAGS = ("entity_f1", "token_accuracy", "surface_f1")
TEXTS = (*("exact_match", "chrf", "bleu", "rouge1", "rouge2", "rougeL"), "number_match")
NATS = ("perplexity", "word_perplexity", "bits_per_byte", "loss")
# By kind of task, how many are measured where none is named; then which there are.
KNOWN: dict[str, tuple[int, tuple[str, ...]]] = {
    "classify": (2, LABELS),
    "tag": (1, TAGS),
    "seq2seq": (2, (*TEXTS, *NATS)),
    "chat": (2, (*TEXTS, *NATS)),
    "causal": (3, NATS),
}
# What the nats of a line are divided by.
COUNTED = {"bits_per_byte": "bytes", "word_perplexity": "words"} | dict.fromkeys(
    ("loss", "perplexity"), "targets"
)
GIVEN = ("tokens", "kind", "k")  # arguments of metrics that are no options


def named(evaluate: Evaluate, task: Task) -> tuple[str, ...]:
    """The metrics that are measured: those asked for, or the first of those that the task has."""
    if evaluate.metrics:
        return evaluate.metrics
    if evaluate.tests:
        return ("pass@1",)
    if task.kind == "tag" and not all(map(is_tag, task.labels)):
        return ("token_accuracy",)
    count = 2 if prompted(evaluate, task) else KNOWN.get(task.kind, (0, ()))[0]
    return known(evaluate, task)[:count]


def known(evaluate: Evaluate, task: Task) -> tuple[str, ...]:
    """The metrics that a task has."""
    if prompted(evaluate, task):
        return TEXTS if evaluate.references else ()
    return KNOWN.get(task.kind, (0, ()))[1]


def prompted(evaluate: Evaluate, task: Task) -> bool:
    """Whether a model of plain text is given prompts: the fields of records, and not documents, are then read."""
    return task.kind == "causal" and bool(evaluate.references or evaluate.tests)


def written(names: Sequence[str]) -> bool:
    """Whether some of these metrics are of texts that a model writes."""
    return any(name in TEXTS or PASS.fullmatch(name) for name in names)


def is_tag(label: str) -> bool:
    """Whether a label can be part of an entity, or outside of all, as in B-person, I-person, O."""
    return metrics.TAG.fullmatch(label) is not None


def check(evaluate: Evaluate, task: Task) -> None:
    """Refuses metrics that the task does not have, options that they do not have, and tests of what is no program."""
    decoding, names = evaluate.decoding, named(evaluate, task)
    if evaluate.tests and task.kind not in ("seq2seq", "chat", "causal"):
        raise errors.BadInput(
            f"config.evaluate.tests is {evaluate.tests!r}, and config.task.kind={task.kind!r} writes no programs; "
            "leave it out"
        )
    if decoding.n > 1 and decoding.temperature == 0:
        raise errors.BadInput(
            f"config.evaluate.settings has n={decoding.n} and no temperature, so that all would be alike; add a "
            "temperature above 0"
        )
    for name in names:
        _check_name(name, evaluate, task)
    for name, options in evaluate.options.items():
        if name not in names:
            raise errors.BadInput(
                f"config.evaluate.options has {name!r}{errors.nearest(name, names)}, which is not measured; measured "
                f"are: {', '.join(names) or 'none'}"
            )
        arguments = list(inspect.signature(_measure(name)).parameters)[2:]
        taken = [each for each in arguments if each not in GIVEN]
        for option in options:
            if option not in taken:
                raise errors.BadInput(
                    f"config.evaluate.options.{name} has {option!r}{errors.nearest(option, taken)}; {name} takes: "
                    f"{', '.join(taken) or 'none'}"
                )


def _check_name(name: str, evaluate: Evaluate, task: Task) -> None:
    there, passed = known(evaluate, task), PASS.fullmatch(name)
    if passed and not evaluate.tests:
        raise errors.BadInput(
            f"config.evaluate.metrics has {name!r}, and nothing says what a program is tested with; add "
            "config.evaluate.tests"
        )
    if passed and int(passed[1]) > evaluate.decoding.n:
        raise errors.BadInput(
            f"config.evaluate.metrics has {name!r}, and {evaluate.decoding.n} programs are written for a record; set "
            f"config.evaluate.settings.n to at least {passed[1]}, and a temperature above 0"
        )
    if not passed and name not in there:
        why = (
            "; texts are compared with config.evaluate.references" if task.kind == "causal" else ""
        )
        raise errors.BadInput(
            f"config.evaluate.metrics has {name!r}{errors.nearest(name, there)}, and config.task.kind={task.kind!r} "
            f"is measured by: {', '.join(there) or 'its loss only'}{why}"
        )


def probe(names: Sequence[str], options: Mapping[str, Any]) -> None:
    """Refuses metrics whose library is not installed, or whose options have no such value, before any work is done."""
    for name in names:
        one: Line = {"source": ["a"], "prediction": "a", "references": ["#### 1"]}
        if name in TAGS:
            one |= {"prediction": ["O"], "references": [["O"]]}
        if name not in NATS and not PASS.fullmatch(name):
            score(name, [one], options.get(name, {}))


def score(name: str, lines: Sequence[Line], options: Mapping[str, Any]) -> bootstrap.Scores:
    """A metric of these lines."""
    if passed := PASS.fullmatch(name):
        correct = [line["outcomes"].count("passed") for line in lines]
        samples = [len(line["outcomes"]) for line in lines]
        return metrics.pass_at_k(correct, samples, k=int(passed[1]))
    if name in NATS:
        nats, counts = ([line[key] for line in lines] for key in ("nats", COUNTED[name]))
        return metrics.METRICS[name].of(nats, counts)
    predictions = [line["prediction"] for line in lines]
    references = [line["references"] for line in lines]
    if name in (*LABELS, *TAGS, "number_match"):
        references = [each[0] for each in references]
    more = {"tokens": [line["source"] for line in lines]} if name == "surface_f1" else {}
    return _measure(name)(predictions, references, **more, **options)


def measure(
    names: Sequence[str], lines: Sequence[Line], options: Mapping[str, Any], seed: int
) -> dict[str, dict[str, Any]]:
    """Each metric: its value, the ends of its interval (None where the examples do not say), and what it is."""
    found = {}
    for name in names:
        scores = score(name, lines, options.get(name, {}))
        got = bootstrap.interval(scores, seed=seed)
        found[name] = {
            "title": title(name),
            "value": got.value if math.isfinite(got.value) else None,
            "low": got.low,
            "high": got.high,
            "level": quality.LEVEL,
            "records": len(lines),
            "options": dict(options.get(name, {})),
            "details": dict(scores.details),
        }
    return found


def values(
    names: Sequence[str], lines: Sequence[Line], options: Mapping[str, Any]
) -> list[dict[str, float]]:
    """Of each line, the metrics that say something of a single one, which the mean over classes does not."""
    columns = {
        name: score(name, lines, options.get(name, {})).values_N
        for name in names
        if name != "macro_f1"
    }
    return [
        {name: float(column[i]) for name, column in columns.items() if math.isfinite(column[i])}
        for i in range(len(lines))
    ]


def title(name: str) -> str:
    """A metric as a table names it."""
    return f"{name} (%)" if PASS.fullmatch(name) else metrics.METRICS[name].title


def digest(lines: Sequence[Line]) -> str:
    """SHA-256 of what was asked and what was expected: two evaluations compare where it is the same."""
    asked = [[line["source"], line["references"]] for line in lines]
    return hashlib.sha256(json.dumps(asked, ensure_ascii=False).encode()).hexdigest()


def _measure(name: str) -> Callable[..., bootstrap.Scores]:
    return metrics.METRICS["pass_at_k" if PASS.fullmatch(name) else name].of
