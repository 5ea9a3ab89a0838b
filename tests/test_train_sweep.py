"""Is every arm of a training sweep trained once, whatever happens to others, and are the numbers those of the arms?"""

import csv
import fcntl
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys

import pytest
import running
from matplotlib.figure import Figure
from test_trials import flags

from model import errors
from train import heatmap, overlay, standings, sweep, trials

RATE = "optimizer.learning_rate"
T_2, T_4 = (
    4.302652729911275,
    2.7764451051977987,
)  # of Student's t, two-sided 95 %, from printed tables

# In place of `launch.py train`: an arm of 7 steps of which each costs nothing, told by `plan.json` what to do.
PROGRAM = """
import json, os, pathlib, re, signal, sys, time
config, place = (pathlib.Path(word.split("=", 1)[1]) for word in sys.argv[-2:])
text = config.read_text()
rate, seed = (re.search(rf"'{key}': ([-.e0-9]+)", text)[1] for key in ("learning_rate", "seed"))
plan = json.loads((place.parent / "plan.json").read_text())
(place / "starts").open("a").write("x")
act = plan.get(f"{rate} {seed}", plan.get(rate))
if act == "crash":
    sys.exit("Traceback\\\\n  in what it did\\\\nMemoryError: no room\\\\n\\\\n")
if act == "bad":
    sys.exit("ganymede: config.train.batch_size=6 does not divide")
if act == "memory":
    os.kill(os.getpid(), signal.SIGKILL)
if act == "stop" and not (place / "saved").exists():
    def save(signum, frame):
        (place / "checkpoints" / "3").mkdir(parents=True)
        (place / "saved").write_text(f"{signum} {os.getpgrp() == os.getpid()}")
        time.sleep(0.2)  # a second signal would be seen
        sys.exit(128 + signum)
    signal.signal(signal.SIGINT, save)
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(60)
loss = float(rate) * 1000 + int(seed) ** 2 / 100
rows = []
for step in (2, 4, 6, 7):
    time_ = {"tokens_per_second": 50.0 if step < 5 else 25.0}
    rows.append({"step": step, "split": "train", "loss": loss + 1 / step, "tokens": 100 * step, "time": time_})
    if step in (4, 7):
        more = {"loss": loss if step == 7 else loss + 3, "bits_per_byte": loss / 2, "tokens": 100 * step, "time": {}}
        rows.append({"step": step, "split": "valid", **more})
(place / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\\\n" for row in rows))
(place / "checkpoints" / "7").mkdir(parents=True)
""".replace("\\\\n", "\\n")


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    return running.config(tmp_path_factory.mktemp("none"), train={"steps": 7})


@pytest.fixture
def sweeping(groups, tmp_path):
    """Runs a sweep of fakes that do what `plan` says: the exit code and what was said."""

    def go(asked, plan=None, **more):
        (tmp_path / "plan.json").write_text(json.dumps(plan or {}))
        said = []
        command = [sys.executable, "-S", "-c", PROGRAM]
        code = sweep.run(asked, tmp_path, command, say=said.append, **more)
        return code, said

    return go


def made(groups, rates="0.001,0.002,0.005", seeds="2", **more):
    return trials.arms(groups, flags(optimizer__learning_rate=rates), seeds=seeds, **more)


def starts(tmp_path, asked):
    """How often each arm was started."""
    paths = [tmp_path / arm.digest / "starts" for arm in asked.arms]
    return [len(path.read_text()) if path.exists() else 0 for path in paths]


def test_each_arm_is_a_process_with_a_config_of_its_own_and_one_that_is_done_is_left(
    groups, sweeping, tmp_path
):
    asked = made(groups)
    code, said = sweeping(asked.arms)
    assert code == 0 and starts(tmp_path, asked) == [1] * 6
    place = tmp_path / asked.arms[4].digest
    assert said[8] == f"arm 5 of 6: {RATE}=0.002, seed=6: training in {place}"
    assert re.fullmatch(rf"arm 5 of 6: {RATE}=0.002, seed=6: done in \d+ s", said[9])
    code, said = sweeping(asked.arms)
    assert code == 0 and starts(tmp_path, asked) == [1] * 6
    assert said[4] == f"arm 5 of 6: {RATE}=0.002, seed=6: done before"
    # The file alone says what the arm is, whatever becomes of the one that the sweep was started with.
    names: dict = {}
    exec((place / "config.py").read_text(), names)
    assert trials.recipe.from_config(names["get_config"]().to_dict()) == asked.arms[4].recipe


def test_an_arm_that_dies_is_told_with_its_line_and_trained_again_only_when_asked(
    groups, sweeping, tmp_path
):
    asked = made(groups, seeds=None, rates="0.001,0.002,0.003,0.005")
    plan = {"0.001": "crash", "0.002": "memory", "0.003": "bad"}
    code, said = sweeping(asked.arms, plan)
    assert code == 2 and starts(tmp_path, asked) == [1] * 4
    lines = [
        "MemoryError: no room (exit code 1)",
        "ended by SIGKILL (was there not enough memory?)",
        "config.train.batch_size=6 does not divide (exit code 1)",
    ]
    for arm, line, told in zip(asked.arms, lines, said[1::2], strict=False):
        assert (
            f"{arm.name}: failed: {line}; all it said is in {tmp_path}/{arm.digest}/stderr.txt"
            in told
        )
        assert sweep.failure(tmp_path / arm.digest) == line
    assert said[-1] == "3 arms have failed; add --retry to train such arms again"
    code, said = sweeping(asked.arms)
    assert code == 2 and starts(tmp_path, asked) == [1] * 4
    assert said[0] == f"arm 1 of 4: {asked.arms[0].name}: failed before: {lines[0]}"
    report = "\n".join(standings.report(asked, tmp_path))
    assert f"failed: {asked.arms[1].name}: {lines[1]}" in report
    assert sweeping(asked.arms, {"0.003": "bad"}, retry=True)[0] == 2
    assert sweeping(asked.arms, retry=True)[0] == 0
    assert starts(tmp_path, asked) == [2, 2, 3, 1]
    assert not list(tmp_path.glob("*/failed.json"))


def test_a_sweep_that_is_stopped_lets_its_arm_save_and_the_same_command_goes_on(
    groups, sweeping, tmp_path
):
    asked = made(groups, seeds=None)
    usual = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as left:
        sweeping(asked.arms, {"0.002": "stop"})
    assert left.value.code == 128 + signal.SIGINT and signal.getsignal(signal.SIGINT) == usual
    assert starts(tmp_path, asked) == [1, 1, 0]
    assert (
        tmp_path / asked.arms[1].digest / "saved"
    ).read_text() == "2 True"  # out of Ctrl-C's reach
    assert not list(tmp_path.glob("*/failed.json"))
    assert "not done: 2 of 3 arms" in "\n".join(standings.report(asked, tmp_path))
    assert sweeping(asked.arms, {"0.002": "stop"})[0] == 0
    assert starts(tmp_path, asked) == [1, 2, 1]


def test_an_arm_that_another_sweep_trains_is_passed_over(groups, sweeping, tmp_path):
    asked = made(groups, seeds=None)
    place = tmp_path / asked.arms[0].digest
    place.mkdir()
    with (place / "sweep.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        code, said = sweeping(asked.arms)
    assert code == 0 and said[0].endswith(": another sweep trains it")
    assert starts(tmp_path, asked) == [0, 1, 1]


def test_shards_leave_the_table_to_a_report_that_trains_nothing(groups, sweeping, tmp_path):
    asked = made(groups)
    sweeping([])  # writes the plan
    said = []
    how = dict(command=[sys.executable, "-S", "-c", PROGRAM], say=said.append)
    assert standings.run(asked, tmp_path, shard="1/2", **how) == 0
    assert starts(tmp_path, asked) == [0, 1, 0, 1, 0, 1]
    assert said[-1] == "shard 1/2 is done; when all are, --report makes the table"
    assert not (tmp_path / "sweep.json").exists()
    assert standings.run(asked, tmp_path, shard="0/2", **how) == 0
    assert standings.run(asked, tmp_path, only_report=True, **how) == 0
    assert starts(tmp_path, asked) == [1] * 6
    assert json.loads((tmp_path / "sweep.json").read_text())["done"] == 6


def test_a_directory_that_cannot_hold_an_arm_is_told(groups, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.BadInput, match=r"cannot hold an arm \(Not a directory\); choose an"):
        sweep.run(made(groups).arms, tmp_path / "file", ["true"], say=lambda line: None)


def test_a_setting_has_the_mean_of_its_seeds_and_the_interval_of_students_t(
    groups, sweeping, tmp_path
):
    asked = made(groups, rates="0.001,0.005", seeds="2,3,5")
    sweeping(asked.arms)
    found = standings.numbers(asked, tmp_path)
    for rate, row in zip((0.001, 0.005), found["settings"], strict=True):
        losses = [rate * 1000 + seed**2 / 100 for seed in (2, 3, 5)]
        half = T_2 * statistics.stdev(losses) / math.sqrt(3)
        assert (row["seeds"], row["asked"], row["values"]) == (3, 3, {RATE: rate})
        for name, value, factor in (
            ("held_out_loss", statistics.fmean(losses), 1),
            ("bits_per_byte", statistics.fmean(losses) / 2, 1 / 2),
            ("train_loss", statistics.fmean(losses) + 1 / 7, 1),
        ):
            expected = {"value": value, "half_width": half * factor}
            assert row["measures"][name] == pytest.approx(expected)
        # 400 tokens at 50 a second, then 300 at 25.
        assert row["seconds"]["value"] == pytest.approx(20) and row["tokens"]["value"] == 700
    five = standings._estimate([{"x": x} for x in (2.0, 3.0, 5.0, 7.0, 11.0)], "x")
    assert five["half_width"] == pytest.approx(
        T_4 * statistics.stdev([2, 3, 5, 7, 11]) / math.sqrt(5)
    )
    assert standings._estimate([{"x": 2.0}], "x") == {"value": 2.0, "half_width": None}


def test_the_table_has_a_row_per_setting_and_the_files_every_number(groups, sweeping, tmp_path):
    asked = made(groups, rates="0.005,0.001,0.002", seeds="2,3")
    sweeping(asked.arms, {"0.002 3": "bad", "0.005": "crash"})
    lines = standings.report(asked, tmp_path)
    table = lines[0].splitlines()
    assert table[0].split("  ")[0] == "learning_rate" and table[0].split()[1] == "seeds"
    assert table[2].split() == ["0.005", "0", "of", "2", "-", "-", "-", "-", "-"]
    assert table[3].split() == (
        "0.001 2 1.0650 ±0.3177 0.5325 ±0.1588 1.2079 ±0.3177 700 20 s".split()
    )
    assert table[4].split() == "0.002 1 of 2 2.0400 1.0200 2.1829 700 20 s".split()
    assert table[-1] == f"lowest held-out loss: 1.0650 ±0.3177 of {RATE}=0.001 (2 seeds)"
    numbers = json.loads((tmp_path / "sweep.json").read_text())
    assert [arm["state"] for arm in numbers["arms"]].count("failed") == 3 and numbers["done"] == 3
    with (tmp_path / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row[RATE], row["seed"], row["held_out_loss"], row["tokens"]) for row in rows[1:3]] == [
        ("0.001", "2", "1.04", "700"),
        ("0.002", "2", "2.04", "700"),
    ]
    assert rows[0]["state"] == "failed" and rows[0]["held_out_loss"] == ""
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        *("sweep.png", "sweep.json", "curves.png", "curves.json")
    }


def test_one_numeric_key_is_a_line_at_its_numbers_and_two_are_a_heat_map(
    groups, sweeping, tmp_path, monkeypatch
):
    axes = standings._axes({"a": [1e-4, 1e-3, 1e-2]})
    assert axes == [
        {
            "name": "a",
            "values": ["0.0001", "0.001", "0.01"],
            "numbers": [1e-4, 1e-3, 1e-2],
            "log": True,
        }
    ]
    logs = {
        several: standings._is_log(several)
        for several in ((1, 2, 3), (2, 4, 8), (0, 1), (3, 4), (1, 10))
    }
    assert [several for several, log in logs.items() if log] == [(2, 4, 8), (1, 10)]
    drawn = []
    monkeypatch.setattr(
        heatmap.figures, "write", lambda draw, numbers, stem: drawn.append(draw(numbers)) or stem
    )
    sweeping(made(groups, rates="0.005,0.001,0.0001", seeds=None).arms)
    standings.report(made(groups, rates="0.005,0.001,0.0001", seeds=None), tmp_path)
    line, curves = drawn
    assert isinstance(curves, Figure)
    (axes, *_) = line.axes
    assert axes.get_xscale() == "log"
    assert axes.lines[0].get_xdata().tolist() == [0.0001, 0.001, 0.005]
    assert axes.lines[0].get_ydata().tolist() == pytest.approx([0.35, 1.25, 5.25])
    two = trials.arms(
        groups, flags(optimizer__learning_rate="0.001,0.003", runtime__dropout="0,.1,.2")
    )
    assert len(standings.numbers(two, tmp_path)["axes"]) == 2
    assert [row["at"] for row in standings.numbers(two, tmp_path)["settings"]] == [
        [i, j] for i in range(2) for j in range(3)
    ]
    zipped = trials.arms(
        groups, flags(optimizer__learning_rate="0.001,0.003", runtime__dropout="0,.1"), way="zip"
    )
    assert standings.numbers(zipped, tmp_path)["axes"] == [
        {
            "name": "arm",
            "values": ["learning_rate=0.001, dropout=0", "learning_rate=0.003, dropout=0.1"],
        }
    ]


def test_curves_are_held_out_losses_of_every_arm_that_has_begun(groups, sweeping, tmp_path):
    asked = made(groups, rates="0.001,0.002", seeds="2,3")
    sweeping(asked.arms, {"0.002 3": "bad"})
    found = overlay.data([(arm, tmp_path / arm.digest) for arm in asked.arms])
    assert [(line["name"], line["seed"], line["setting"]) for line in found["lines"]] == [
        ("0.001", 2, 0),
        ("0.002", 2, 1),
        ("0.001", 3, 0),
    ]
    assert found["lines"][1]["at"] == [400, 700]
    assert found["lines"][1]["loss"] == pytest.approx([2.04 + 3, 2.04])
    assert overlay.draw([(asked.arms[-1], tmp_path / "nowhere")], tmp_path) is None


def launch(*words):
    return subprocess.run(
        [sys.executable, running.ROOT / "launch.py", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(running.ROOT)},
        timeout=300,
    )


def test_two_arms_are_really_trained_from_the_command_line_and_bad_ones_are_told_before(tmp_path):
    config = running.config(
        running.texts(tmp_path / "texts"), train={"steps": 7}, decode={"prompts": []}
    )
    path = tmp_path / "config.py"
    path.write_text(
        f"from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({config})\n"
    )
    words = [
        "sweep",
        f"--config={path}",
        f"--workdir={tmp_path / 'runs'}",
        "--config.optimizer.learning_rate=1e-3,2e-3",
    ]
    done = launch(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("train_step compiled 1x") == 2
    arms = json.loads((tmp_path / "runs" / "sweep.json").read_text())["arms"]
    assert [arm["state"] for arm in arms] == ["done", "done"]
    for arm in arms:
        kept = json.loads((tmp_path / "runs" / arm["digest"] / "config.json").read_text())
        (held_out,) = (
            line
            for line in running.metrics(tmp_path / "runs" / arm["digest"])
            if line["split"] == "valid"
        )
        assert kept["optimizer"]["learning_rate"] == arm["values"][RATE]
        assert held_out["loss"] == arm["held_out_loss"] and f"{held_out['loss']:.4f}" in done.stdout
    bad = launch(*words, "--config.loss.z_loss=0,-1")
    assert bad.returncode == 2 and bad.stderr.count("\n") == 1
    assert bad.stderr.startswith(f"ganymede: arm 2 ({RATE}=0.001, loss.z_loss=-1): ")
