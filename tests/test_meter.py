"""Are rates those of the steps alone, and is a loss that is not finite found one step late and never saved?"""

import io
import json
import math

import numpy as np
import pytest
import running
from rich import console as consoles

from model import errors
from model.config import ModelConfig
from train import flops, log, meter, recipe

CONFIG = ModelConfig(vocab_size=307, context_length=31, layers=2, width=16, heads=2)


@pytest.fixture
def clock(monkeypatch):
    """Time that stands still but for what a test adds to `clock[0]`."""
    now = [100.0]
    monkeypatch.setattr(meter.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(flops, "peak", lambda: flops.Peak(1e6, "measured"))
    return now


def make(directory, clock, before=None, log_every=2):
    """A meter of 61 steps, and what it shows."""
    asked = recipe.from_config(running.config(directory, train={"log_every": log_every}))
    out = io.StringIO()
    progress = log.Progress(61, consoles.Console(file=out, highlight=False))
    record = log.Record(directory, 0)
    batch = {"tokens": np.array([[2, 3, 5], [7, 11, 13]], np.int32)}
    return meter.Meter(
        asked, CONFIG, record, progress, before or {}, lambda step: batch, {"train_step": 1}
    ), out


def values(loss=3.25, grad_norm=0.5, tokens=174):
    return {
        "loss": np.float32(loss),
        "grad_norm": np.float32(grad_norm),
        "tokens": np.int32(tokens),
    }


def test_rates_are_taken_between_lines_without_compiling_and_pauses(tmp_path, clock):
    account, _ = make(tmp_path, clock)
    with account.compiling(True):
        clock[0] += 50
    account.step(1, values())
    clock[0] += 1
    with account.pause():
        clock[0] += 1000
    with account.waiting():
        clock[0] += 0.5
    account.step(2, values())
    clock[0] += 0.5
    account.step(3, values())
    (line,) = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert (line["step"], line["split"], line["tokens"], line["loss"]) == (
        2,
        "train",
        2 * 174,
        3.25,
    )
    rate = 2 * 174 / 2
    assert line["time"] == {
        "tokens_per_second": rate,
        "utilisation": rate * flops.training(CONFIG, 29) / 1e6,
        "data_wait": 0.25,
        "seconds_left": pytest.approx(1002 / 2 * 59),
        "compile_seconds": 50,
        "compiles": 1,
        "device_memory": None,
    }


def test_the_peak_that_all_rates_are_compared_with_is_the_one_found_at_the_start(
    tmp_path, clock, monkeypatch
):
    account, _ = make(tmp_path, clock, log_every=1)
    monkeypatch.setattr(flops, "peak", lambda: flops.Peak(5e6, "another"))
    for number in (1, 2):
        account.step(number, values())
        clock[0] += 1
    (line,) = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert line["time"]["utilisation"] == 174 * flops.training(CONFIG, 29) / 1e6


def test_counts_go_on_from_what_a_checkpoint_holds(tmp_path, clock):
    account, _ = make(tmp_path, clock, {"tokens": 1000, "losses": {"train": 4.5, "valid": 4.75}})
    clock[0] += 1
    account.step(8, values(tokens=7))
    with account.pause():
        pass
    assert account.meta() == {"tokens": 1007, "losses": {"train": 3.25, "valid": 4.75}}


@pytest.mark.parametrize(
    ("loss", "norm"), [(math.nan, 1), (math.inf, 1), (3.5, math.nan), (3.5, math.inf)]
)
def test_a_step_that_is_not_finite_is_named_when_the_next_one_is_handed_in(
    tmp_path, clock, loss, norm
):
    account, _ = make(tmp_path, clock, log_every=1)
    account.step(6, values())
    clock[0] += 1
    account.step(7, values(loss, norm))
    clock[0] += 1
    with pytest.raises(
        errors.BadInput,
        match=rf"^step 7 has loss {loss} and gradient norm {float(norm)} on the rows in",
    ):
        account.step(8, values())
    assert [line["step"] for line in running.metrics(tmp_path)] == [6]
    found = json.loads((tmp_path / "nonfinite.json").read_text())
    assert found["step"] == 7
    assert [row["tokens"] for row in found["rows"]] == [[2, 3, 5], [7, 11, 13]]


def test_a_held_out_loss_that_is_not_finite_ends_the_run(tmp_path, clock):
    account, _ = make(tmp_path, clock)
    with pytest.raises(
        errors.BadInput,
        match="^the held-out loss is nan after step 7; the last checkpoint is kept; low",
    ):
        account.evaluated(7, {"loss": math.nan, "perplexity": math.nan, "bits_per_byte": math.nan})


def test_an_evaluation_is_recorded_and_shown(tmp_path, clock):
    account, out = make(tmp_path, clock)
    account.evaluated(23, {"loss": 2.0, "perplexity": 7.389, "bits_per_byte": 1.5, "targets": 31.0})
    assert (
        out.getvalue()
        == "step 23/61  held-out loss 2.0000  perplexity 7.39  1.5000 bits per byte\n"
    )
    (line,) = running.metrics(tmp_path)
    expected = {
        "step": 23,
        "split": "valid",
        "loss": 2.0,
        "perplexity": 7.389,
        "bits_per_byte": 1.5,
    }
    assert {name: line[name] for name in expected} == expected
    assert meter.last_losses(account.meta()) == "held-out loss 2.0, bits per byte 1.5"
