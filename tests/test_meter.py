"""Are rates those of the steps alone, and is a bad step told one step late, with all that was known of it?"""

import hashlib
import io
import json
import math
import re

import jax
import numpy as np
import pytest
import running
from rich import console as consoles

from model import errors
from model.config import ModelConfig
from train import flops, log, meter, recipe

ROWS = [[2, 3, 5], [7, 11, 13]]
ROOTS = np.array([2, np.inf], np.float32)
CONFIG = ModelConfig(vocab_size=307, context_length=31, layers=2, width=16, heads=2)


@pytest.fixture
def clock(monkeypatch):
    """Time that stands still but for what a test adds to `clock[0]`."""
    now = [100.0]
    monkeypatch.setattr(meter.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(flops, "peak", lambda: flops.Peak(1e6, "measured"))
    return now


def make(directory, clock, before=None, log_every=2, **train):
    """A meter of 61 steps, and what it shows."""
    asked = recipe.from_config(running.config(directory, train={"log_every": log_every, **train}))
    out = io.StringIO()
    progress = log.Progress(61, consoles.Console(file=out, highlight=False))
    record = log.Record(directory, 0)
    batch = {"tokens": np.array(ROWS, np.int32)}
    (directory / "config.json").write_text("{}\n")
    key = jax.random.key(17)
    account = meter.Meter(
        asked, CONFIG, record, progress, before or {}, lambda n: batch, key, {"train_step": 1}
    )
    return account, out


def values(loss=3.25, grad_norm=0.5, tokens=174, limit=math.inf):
    return {
        "loss": np.float32(loss),
        "grad_norm": np.float32(grad_norm),
        "limit": np.float32(limit),
        "tokens": np.int32(tokens),
        "norms": {"parameters": {"w": np.float32(3)}, "gradients": {"layers": {"w": ROOTS}}},
    }


def ledger(directory):
    return [json.loads(line) for line in (directory / "ledger.jsonl").read_text().splitlines()]


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
    before = {"tokens": 1000, "losses": {"train": 4.5, "valid": 4.75}}
    before |= {"skipped": [5], "history": [[7, "4.5", "1.5"]]}
    account, _ = make(tmp_path, clock, before)
    clock[0] += 1
    account.step(8, values(tokens=7))
    with account.pause():
        pass
    assert account.meta() == {
        "tokens": 1007,
        "losses": {"train": 3.25, "valid": 4.75},
        "skipped": [5],
        "history": [[7, "4.5", "1.5"], [8, "3.25", "0.5"]],
    }


@pytest.mark.parametrize(
    ("loss", "norm", "limit", "said"),
    [
        (math.nan, 1, math.inf, "loss nan and gradient norm 1.0"),
        (math.inf, 1, math.inf, "loss inf and gradient norm 1.0"),
        (3.5, math.nan, math.inf, "loss 3.5 and gradient norm nan"),
        (3.5, math.inf, math.inf, "loss 3.5 and gradient norm inf"),
        (3.5, 1, 3.25, "loss 3.5 and gradient norm 1.0; spikes begin at 3.25"),
    ],
)
def test_a_bad_step_is_named_when_the_next_one_is_handed_in(
    tmp_path, clock, loss, norm, limit, said
):
    account, _ = make(tmp_path, clock, log_every=1)
    account.step(6, values(limit=3.25))
    clock[0] += 1
    account.step(7, values(loss, norm, limit=limit))
    clock[0] += 1
    message = (
        f"step 7 has {said}; {tmp_path / 'flight.json'} has its rows and norms; the last checkpoint is kept; go on "
        "without such batches by --config.train.on_bad_step=skip, or lower optimizer.learning_rate in another --workdir"
    )
    with pytest.raises(errors.BadInput, match=f"^{re.escape(message)}$"):
        account.step(8, values())
    assert [line["step"] for line in running.metrics(tmp_path)] == [6]
    found = json.loads((tmp_path / "flight.json").read_text())
    digests = [hashlib.sha256(np.array(row, "<i4")).hexdigest() for row in ROWS]
    assert found == {
        "step": 7,
        "metrics": {
            "loss": repr(float(loss)),
            "grad_norm": repr(float(norm)),
            "limit": repr(float(limit)),
            "tokens": "174",
        },
        "history": [[6, "3.25", "0.5"], [7, repr(float(loss)), repr(float(norm))]],
        "norms": {"parameters": {"w": "3.0"}, "gradients": {"layers/w": ["2.0", "inf"]}},
        "key": jax.random.key_data(jax.random.fold_in(jax.random.key(17), 6)).tolist(),
        "config": hashlib.sha256(b"{}\n").hexdigest(),
        "rows": [{"sha256": d, "tokens": row} for d, row in zip(digests, ROWS, strict=True)],
    }
    assert ledger(tmp_path) == [
        {
            "step": 7,
            "event": "stopped",
            "loss": repr(float(loss)),
            "grad_norm": repr(float(norm)),
            "limit": repr(float(limit)),
            "rows": digests,
        }
    ]


def test_a_skipped_step_counts_for_nothing_and_ten_in_a_row_end_the_run(tmp_path, clock):
    account, out = make(tmp_path, clock, log_every=1, on_bad_step="skip")
    for number in range(1, 12):
        clock[0] += 1
        account.step(number, values(math.nan if number != 2 else 3.25))
    clock[0] += 1
    account.step(12, values(math.nan))
    assert (
        "step 3 has loss nan and gradient norm 0.5: skipped, as ledger.jsonl says\n"
        in out.getvalue()
    )
    assert [(line["step"], line["tokens"]) for line in running.metrics(tmp_path)] == [(2, 174)]
    assert account.meta()["skipped"] == [1, *range(3, 12)]
    with pytest.raises(
        errors.BadInput,
        match="^step 12 has loss nan and gradient norm 0.5, the last of 10 bad steps in a row; .*flight.json has its "
        "rows and norms; the last checkpoint is kept; lower optimizer.learning_rate in another --workdir$",
    ):
        account.step(13, values())
    steps = [(line["step"], line["event"]) for line in ledger(tmp_path)]
    assert steps == [(step, "skipped") for step in (1, *range(3, 13))]


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
