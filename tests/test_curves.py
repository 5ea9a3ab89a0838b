"""Does the loss curve hold what the metrics file holds, and is an odd line named?"""

import json
import pathlib

import numpy as np
import pytest

from model import errors
from train import curves


def write_metrics(run: pathlib.Path, lines: list) -> None:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (run / "metrics.jsonl").write_text(text, encoding="utf-8")


def metric(step: int, split: str = "train", **values) -> dict:
    return {"step": step, "split": split, **values, "time": {"seconds": 0.1}}


def test_the_loss_curve_holds_what_the_metrics_file_holds(tmp_path):
    lines = [metric(step, loss=7.0 - step) for step in (1, 2, 3)]
    lines += [metric(3, "valid", loss=5.5, bits_per_byte=2.5), metric(3, "other", loss=1.0)]
    write_metrics(tmp_path, lines)
    numbers = curves.loss(tmp_path)
    assert list(numbers) == ["figure", "x", "not_finite", "xz", "training", "held_out"]
    assert (numbers["figure"], numbers["x"], numbers["xz"]) == ("loss", "step", None)
    assert numbers["training"] == {"step": [1, 2, 3], "loss": [6, 5, 4], "smoothed": [6, 5, 4]}
    assert numbers["held_out"] == {"step": [3], "loss": [5.5], "bits_per_byte": [2.5]}


def test_the_axis_is_tokens_where_every_line_has_them(tmp_path):
    write_metrics(tmp_path, [metric(1, loss=2.0, tokens=31), metric(2, "valid", loss=3, tokens=61)])
    numbers = curves.loss(tmp_path)
    assert numbers["x"] == "tokens"
    assert (numbers["training"]["tokens"], numbers["held_out"]["tokens"]) == ([31], [61])
    write_metrics(tmp_path, [metric(1, loss=2.0, tokens=31), metric(2, "valid", loss=3.0)])
    assert curves.loss(tmp_path)["x"] == "step"


def test_xz_stands_at_the_loss_that_would_need_as_many_bits(tmp_path):
    write_metrics(tmp_path, [metric(7, "valid", loss=3.0, bits_per_byte=1.5)])
    (tmp_path / "evaluation.json").write_text('{"bytes": 1000, "xz_bytes": 250}')
    assert curves.loss(tmp_path)["xz"] == {"bits_per_byte": 2.0, "loss": 4.0}


@pytest.mark.parametrize("text", ["", "[]", '{"bytes": 10}', '{"bytes": 0, "xz_bytes": 5}'])
def test_an_evaluation_that_is_none_is_named(tmp_path, text):
    write_metrics(tmp_path, [metric(7, "valid", loss=3.0, bits_per_byte=1.5)])
    (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(errors.BadInput, match="evaluation.json is not what eval writes; run eval"):
        curves.loss(tmp_path)


def test_a_step_measured_twice_counts_once_and_a_line_being_written_not_at_all(tmp_path):
    write_metrics(tmp_path, [metric(5, loss=2.0), metric(7, loss=9.0), metric(7, loss=3.0)])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "spl')
    training = curves.loss(tmp_path)["training"]
    assert (training["step"], training["loss"]) == ([5, 7], [2.0, 3.0])


def test_a_loss_that_is_not_finite_leaves_the_curve_and_is_named(tmp_path):
    write_metrics(
        tmp_path,
        [metric(1, loss=2.0), metric(2, loss=None), '{"step": 3, "split": "train", "loss": NaN}'],
    )
    numbers = curves.loss(tmp_path)
    assert numbers["not_finite"] == [2, 3] and numbers["training"]["loss"] == [2.0]


def test_the_trailing_mean_covers_a_twentieth_of_what_was_seen():
    values = list(np.random.default_rng(3).normal(size=53))
    expected = [np.mean(values[i - -(-i // 20) : i]) for i in range(1, 54)]
    np.testing.assert_allclose(curves.trailing_mean(values), expected, rtol=1e-12)
    assert curves.trailing_mean(values[:20]) == values[:20]


@pytest.mark.parametrize(
    "line, complaint",
    [
        ('{"step": 1', r"line 2 is not JSON \(.*\); remove the line"),
        ("[1, 2]", r"line 2 is '\[1, 2\]'; it must be a JSON object, or be removed"),
        ("", "line 2 is not JSON"),
        ({"split": "train", "loss": 1.0}, "line 2 has no step; correct or remove the line"),
        ({"step": 2, "loss": 1.0}, "line 2 has no split"),
        ({"step": 2, "split": "train"}, "line 2 has no loss"),
        ({"step": True, "split": "train", "loss": 1.0}, "line 2 has step=True"),
        ({"step": 2, "split": "valid", "loss": "low"}, "line 2 has loss='low'"),
    ],
)
def test_an_odd_line_of_metrics_is_named_with_its_file_and_number(tmp_path, line, complaint):
    write_metrics(tmp_path, [metric(1, loss=2.0), line, metric(3, loss=2.0)])
    with pytest.raises(errors.BadInput, match=rf"metrics\.jsonl {complaint}") as caught:
        curves.loss(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_run_without_losses_is_refused_in_one_line(tmp_path):
    with pytest.raises(errors.BadInput, match="metrics.jsonl cannot be read .* run directory"):
        curves.loss(tmp_path)
    write_metrics(tmp_path, [metric(1, "other", loss=2.0)])
    with pytest.raises(errors.BadInput, match="metrics.jsonl holds no finite loss yet; train"):
        curves.loss(tmp_path)
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\n")
    with pytest.raises(errors.BadInput, match="metrics.jsonl is not UTF-8 at byte 0"):
        curves.loss(tmp_path)
