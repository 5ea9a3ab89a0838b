"""Can anybody tell from its numbers that a run was killed? Real processes and kills, compared to the bit."""

import json
import pathlib
import random
import re
import shutil
import signal
import time

import pytest
import running

from model import checkpoint, tokenizer
from train import data, recipe

STEPS = 61


def everything(workdir: pathlib.Path, config: dict) -> dict:
    """What a run computed, by name: parameters, optimizer, metrics, samples, and its next ten batches."""
    asked = recipe.from_config(config)
    saved = json.loads((workdir / "checkpoints" / str(STEPS) / "meta" / "metadata").read_text())
    prepared = data.prepare(
        asked.data.corpus(), tokenizer.load(workdir / "tokenizer"), workdir / "data"
    )
    packed = [data.Packed(tokens, asked.data.length) for tokens in prepared.train]
    batches = data.batches(
        packed, prepared.weights, batch_size=asked.train.batch_size, seed=asked.seed
    )
    groups = {"params": {}, "opt_state": {}, "step": {}}
    for name, leaf in saved["leaves"].items():
        groups[name.split("/")[0]][name] = leaf["sha256"]
    return {
        "parameters": groups["params"],
        "optimizer": groups["opt_state"] | groups["step"],
        "sums": saved["meta"],
        "metrics": running.metrics(workdir),
        "samples": (workdir / "samples.md").read_bytes(),
        "batches": [
            {name: array.tobytes() for name, array in batches[step].items()}
            for step in range(STEPS, STEPS + 10)
        ],
    }


def differences(one: dict, two: dict) -> set[str]:
    return {name for name in one if one[name] != two[name]}


def wait_for(process, condition, seconds: float = 120) -> None:
    """Returns as soon as the condition holds, or the process is done."""
    end = time.monotonic() + seconds
    while process.poll() is None and not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def steps_done(workdir: pathlib.Path) -> int:
    return max((line["step"] for line in running.metrics(workdir)), default=0)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return running.config(running.texts(tmp_path_factory.mktemp("texts")))


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """A run that was left in peace."""
    workdir = tmp_path_factory.mktemp("whole")
    status, out, err = running.finish(running.start(config, workdir))
    assert (status, err) == (0, "")
    assert "train_step compiled 1x" in out
    found = everything(workdir, config)
    lines = [(line["step"], line["split"]) for line in found["metrics"]]
    assert lines == sorted(
        [(step, "train") for step in (*range(4, STEPS, 4), STEPS)]
        + [(step, "valid") for step in (23, 46, STEPS)]
    )
    assert re.findall(rb"(?m)^## step (\d+)$", found["samples"]) == [b"31", b"61"]
    assert len(found["parameters"]) > 8 and len(found["optimizer"]) > 16
    return found


def test_a_run_that_is_killed_again_and_again_ends_like_one_that_is_left_in_peace(
    config, whole, tmp_path
):
    workdir, draw = tmp_path / "run", random.Random(1)
    moments = {
        "tokenising": lambda: list(workdir.glob("data/*")),
        "saving": lambda: list(workdir.glob(f"checkpoints/{checkpoint.HALF_WRITTEN}")),
        "evaluating": lambda: steps_done(workdir) >= 20,
        "sampling": lambda: steps_done(workdir) >= 28,
        "any": lambda: steps_done(workdir) >= 40,
    }
    kills, resumed = 0, []
    for name, moment in moments.items():
        process = running.start(config, workdir)
        wait_for(process, moment)
        time.sleep(draw.uniform(0, 0 if name in ("tokenising", "saving") else 0.03))
        process.kill()
        status, out, err = running.finish(process)
        kills += status == -signal.SIGKILL
        resumed += re.findall(r"resuming at step (\d+)", out)
    shutil.copytree(workdir, tmp_path / "control")
    status, out, err = running.finish(running.start(config, workdir))
    assert (status, err) == (0, "")
    resumed += re.findall(r"resuming at step (\d+)", out)
    assert kills == len(moments) and len(set(resumed)) >= 3
    assert differences(whole, everything(workdir, config)) == set()
    assert f"{whole['sums']['losses']['train']!r}" in out

    # The control: the same resume with other dropout masks would have been seen.
    process = running.start(config, tmp_path / "control", "loop.TRAINING = 7")
    assert running.finish(process)[0] == 0
    assert differences(whole, everything(tmp_path / "control", config)) >= {
        "parameters",
        "optimizer",
        "metrics",
    }
    assert differences(whole, everything(workdir, {**config, "seed": 6})) == {"batches"}


def test_how_often_a_run_is_looked_at_or_saved_does_not_change_what_it_learns(
    config, whole, tmp_path
):
    seldom = {"log_every": 50, "eval_every": 0, "sample_every": 0, "save_every": 0, "keep": 1}
    config = {**config, "train": {**config["train"], **seldom}}
    assert running.finish(running.start(config, tmp_path))[0] == 0
    assert differences(whole, everything(tmp_path, config)) == {"metrics", "samples"}
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [str(STEPS)]


def test_a_run_told_to_stop_saves_and_ends_like_one_that_is_left_in_peace(config, whole, tmp_path):
    workdir = tmp_path / "run"
    for signum, target in ((signal.SIGTERM, 8), (signal.SIGINT, 28)):
        process = running.start(config, workdir)
        wait_for(process, lambda target=target: steps_done(workdir) >= target)
        process.send_signal(signum)
        status, out, err = running.finish(process)
        assert status == 128 + signum
        assert err.strip() == "ganymede: finishing this step and saving; once more ends it at once"
        stopped = re.search(
            rf"{signum.name}: stopped after step (\d+) of 61, which is saved; run the same", out
        )
        assert int(stopped.group(1)) == checkpoint.latest(workdir / "checkpoints") >= target
    status, out, err = running.finish(running.start(config, workdir))
    assert (status, err) == (0, "")
    assert f"resuming at step {stopped.group(1)} of 61" in out
    assert differences(whole, everything(workdir, config)) == set()
