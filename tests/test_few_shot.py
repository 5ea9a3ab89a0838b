"""Are arms measured on the prompts they should have, and does what is written say so?

What answers here is a reader of rules, so that every score is known; one run goes through a real model.
"""

import dataclasses
import hashlib
import json
import math
import types

import numpy as np
import pytest
import tiny

from decode.requests import Completion
from model import errors
from tests import legible
from train import few_shot, scoring, shot_curve
from train.scoring import Likelihood

TRAIN = [
    ("a good cat", 1),
    ("a bad mat", 0),
    ("bad cake", 0),
    ("good donuts", 1),
    ("a good mat", 1),
]
TEST = [
    ("bad apples", 0),
    ("a good moon", 1),
    ("bad system", 0),
    ("the good apples", 1),
    ("bad cat", 0),
]
PROMPT = dict(question="Text: {{ text }}\nIs:", labels={"0": " bad", "1": " good"})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    home = tmp_path_factory.mktemp("few_shot")
    for name, rows in (("train", TRAIN), ("test", TEST)):
        lines = (json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)
        (home / f"{name}.jsonl").write_text("".join(lines))
    return {name: str(home / f"{name}.jsonl") for name in ("train", "test")}


@dataclasses.dataclass
class Rules:
    """Reads `good` in the question and likes ` bad` by `bias` nats, whatever is asked."""

    bias: float
    window: int = 997
    rows: int = 8
    seen: list = dataclasses.field(default_factory=list)

    @property
    def lm(self):
        config = types.SimpleNamespace(context_length=self.window, family="decoder_only")
        return types.SimpleNamespace(words=tiny.words(), config=config, virtual_tokens=0)

    def likelihoods(self, pairs, told=None):
        words, found = tiny.words(), []
        for context, continuation in pairs:
            text = words.decode([*context, *continuation])
            self.seen.append(text)
            question, _, said = text.split("\n\n")[-1].rpartition("Is:")
            logprob = self.bias * (said == " bad")
            if "good" in question or "bad" in question:
                logprob += math.log(0.6 if said.strip() in question else 0.4)
            found.append(Likelihood(logprob, False, len(continuation)))
        return found


def asked(data, **prompt):
    return few_shot.asked({"prompt": {**PROMPT, **prompt}, "data": data})


@pytest.mark.parametrize(
    "bias, calibration, right",
    [
        (0.0, "none", 100.0),
        (5.0, "none", 60.0),  # three of five are bad
        (5.0, "content_free", 100.0),
        (5.0, "unconditional", 100.0),
        (-7.0, "content_free", 100.0),
    ],
)
def test_calibration_undoes_a_bias_towards_a_label(data, bias, calibration, right):
    wanted = asked(data, calibration=calibration, premise="Is:", content_free=("N/A", "-"))
    arm = few_shot.evaluate(wanted, Rules(bias), 2)
    assert arm.scores.value == pytest.approx(right)
    assert [line["reference"] for line in arm.lines] == ["0", "1", "0", "1", "0"]


def test_shots_stand_before_the_question_and_before_the_one_without_content(data):
    reader = Rules(0.0)
    few_shot.evaluate(asked(data, choose="first", calibration="content_free"), reader, 2)
    shots = "Text: a good cat\nIs: good\n\nText: a bad mat\nIs: bad\n\n"
    assert reader.seen[0] == shots + "Text: bad apples\nIs: bad"
    assert reader.seen[10] == shots + "Text: N/A\nIs: bad"
    assert len(reader.seen) == 20


def test_dropped_shots_are_told_question_by_question(data):
    reader = Rules(0.0, window=71)
    wanted = asked(data, choose="first", too_long="drop_shots")
    arm = few_shot.evaluate(wanted, reader, 3)
    assert arm.numbers["dropped_shots"] == sum(line["dropped_shots"] for line in arm.lines) > 0
    for line in arm.lines:
        assert line["shots"] == [0, 1, 2][line["dropped_shots"] :]
        assert line["prompt"].count("Is:") == 1 + len(line["shots"])
        assert sum(line["tokens"].values()) <= 71
    with pytest.raises(
        errors.BadInput, match=r"^question 0 takes \d+ tokens with 3 shots .* holds 71;"
    ):
        few_shot.evaluate(asked(data, choose="first"), reader, 3)


def said(texts, monkeypatch):
    """Lets decoding write these texts, and returns what it was asked."""
    calls = []

    def generate(lm, prompts, settings, **_):
        start = sum(len(call[0]) for call in calls)
        calls.append((prompts, settings))
        blank: dict = dict(
            prompt_tokens=(), tokens=(), logprobs=(), sampled_logprobs=(), margins=()
        )
        return [
            Completion(id=i, sample=0, text=text, finish_reason="stop", **blank)
            for i, text in enumerate(texts[start : start + len(prompts)])
        ]

    monkeypatch.setattr(few_shot.decode, "generate", generate)
    return calls


def test_generated_labels_are_matched_and_others_counted(data, monkeypatch):
    calls = said([" bad", " Good.", " awful", " good", "no idea"], monkeypatch)
    arm = few_shot.evaluate(asked(data, score="generation"), Rules(0.0), 0)
    assert [line["prediction"] for line in arm.lines] == ["0", "1", None, "1", None]
    assert arm.numbers["unmatched"] == 2 and arm.scores.value == pytest.approx(60)
    (prompts, settings), *_ = calls
    assert prompts[0] == "Text: bad apples\nIs:"
    assert (settings.temperature, settings.stop, settings.max_new_tokens) == (0, ("\n\n",), 16)


def test_free_answers_match_by_the_group_of_a_pattern(tmp_path, monkeypatch):
    rows = [
        {"q": "1", "a": "so\n#### 1,200"},
        {"q": "2", "a": "#### -7"},
        {"q": "3", "a": "#### 5"},
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompt = dict(question="{{ q }}", answer="{{ a }}", score="generation", ignore=",")
    prompt["pattern"] = r"#### (-?[0-9.,]+)"
    groups = {"prompt": prompt, "data": {"test": str(tmp_path / "q.jsonl")}}
    said(["thus #### 1200", "#### 7", "five"], monkeypatch)
    arm = few_shot.evaluate(few_shot.asked(groups), Rules(0.0), 0)
    found = [(line["reference"], line["prediction"]) for line in arm.lines]
    assert found == [("1200", "1200"), ("-7", "7"), ("5", None)]
    assert arm.scores.value == pytest.approx(100 / 3)
    groups["prompt"]["pattern"] = "is (.)"
    with pytest.raises(
        errors.BadInput,
        match=r"^question 0 has the answer 'so\\n#### 1,200', in which config.prompt.pattern 'is \(.\)' finds noth",
    ):
        few_shot.evaluate(few_shot.asked(groups), Rules(0.0), 0)


def test_a_run_writes_predictions_numbers_picture_and_what_they_came_from(data, tmp_path, capsys):
    lm = tiny.small("lstm")
    groups = {"prompt": {**PROMPT, "too_long": "drop_shots"}, "data": data}
    few_shot.run(groups, lm, [0, 1, 3], tmp_path, limit=4)
    told = capsys.readouterr().out
    numbers = json.loads((tmp_path / "metrics.json").read_text())
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert [arm["shots"] for arm in numbers["arms"]] == [0, 1, 3]
    assert numbers["majority"] == {"answer": "0", "value": 50.0}
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
    assert manifest["model"]["weights"] == lm.digest and manifest["limit"] == 4
    lines = (tmp_path / "shots-1" / "predictions.jsonl").read_text().splitlines()
    right = [line["prediction"] == line["reference"] for line in map(json.loads, lines)]
    assert len(right) == 4 and 100 * np.mean(right) == numbers["arms"][1]["value"]
    line = json.loads(lines[2])
    pairs = scoring.pairs(lm, line["prompt"], [" bad", " good"])
    expected = [each.logprob for each in scoring.Reader(lm).likelihoods(pairs)]
    assert list(line["scores"].values()) == pytest.approx(expected, rel=1e-4)
    assert (tmp_path / "figures" / "shots.png").stat().st_size > 10_000
    assert (
        "always '0': 50.0 %" in told
        and "dropped from" in told
        and "4 questions; shots: drawn" in told
    )


@pytest.mark.parametrize("labels", [True, False])
def test_every_word_of_the_picture_can_be_read(labels):
    values = [
        (0, 47.0, 37.0, 57.0),
        (1, 50.4, 50.4, 50.4),
        (2, 99.5, 98.0, 100.0),
        (16, 12.5, None, None),
    ]
    numbers = dict(
        **dict(metric="accuracy", questions=1621, choose="nearest", score="likelihood"),
        **dict(length="character", calibration="unconditional"),
        majority={"answer": "a label that is long", "value": 50.4} if labels else None,
        arms=[dict(zip(("shots", "value", "low", "high"), each, strict=True)) for each in values],
    )
    legible.check(shot_curve.curve, shot_curve.data(numbers))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model": {}}, r"^config.model stands beside config.prompt, and evaluating prompts reads prompt and data"),
        ({"prompt": {**PROMPT, "shot": 3}}, r"^config.prompt has no key 'shot'"),
        ({"data": {"train": "x"}}, r"^config.data lacks test; add it to the config$"),
    ],
)  # fmt: skip
def test_a_config_of_other_groups_is_refused(data, changes, message):
    with pytest.raises(errors.BadInput, match=message):
        few_shot.asked({"prompt": PROMPT, "data": data, **changes})


def test_numbers_of_shots_and_questions_are_checked(data):
    assert few_shot.counts(["0", " 2", "16"]) == [0, 2, 16]
    for given, message in (
        (
            ["1", "-2"],
            r"^--shots has '-2'; it must be a list of whole numbers from 0, such as 0,1,2,4$",
        ),
        (["1", "1"], r"^--shots is 1,1; name each number once$"),
    ):
        with pytest.raises(errors.BadInput, match=message):
            few_shot.counts(given)
    with pytest.raises(errors.BadInput, match=r"^--limit is 0; ask at least one question$"):
        few_shot.asked({"prompt": PROMPT, "data": data}, 0)


def test_an_evaluation_lies_in_its_run_under_a_name_of_what_was_asked(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    lm = dataclasses.replace(tiny.small("lstm"), directory=tmp_path)
    one, other = (few_shot.home(lm, None, "prompts", asked) for asked in ([0, 1], [0, 2]))
    assert one.parent == tmp_path / "eval" and one.name.startswith("prompts-") and one != other
    assert few_shot.home(lm, None, "prompts", [0, 1]) == one


def test_a_model_from_nowhere_needs_a_workdir(data):
    with pytest.raises(
        errors.BadInput, match=r"^the model was not loaded from a directory; give a workdir$"
    ):
        few_shot.home(tiny.small("lstm"), None, "prompts", [])
