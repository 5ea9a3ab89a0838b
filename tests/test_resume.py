"""Can anybody tell from its numbers that a run was killed? Real processes and kills, compared to the bit."""

import random
import re
import signal
import time

import pytest

from model import checkpoint
from tests import kills, running

STEPS = 61
CELL = kills.Cell("dropout, accumulation, packing, mixture")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return running.texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def config(source):
    return kills.config(CELL, source, kills.ONE)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """A run that was left in peace."""
    workdir = tmp_path_factory.mktemp("whole")
    status, out, err = running.finish(running.start(config, workdir))
    assert (status, err) == (0, "")
    assert "train_step compiled 1x" in out
    found = kills.everything(workdir, config)
    lines = [(line["step"], line["split"]) for line in found["metrics"]]
    assert lines == sorted(
        [(step, "train") for step in (*range(4, STEPS, 4), STEPS)]
        + [(step, "valid") for step in (23, 46, STEPS)]
    )
    assert re.findall(rb"(?m)^## step (\d+)$", found["samples"]) == [b"31", b"61"]
    assert len(found["parameters"]) > 8 and len(found["optimizer"]) > 16
    return found


def test_a_run_that_is_killed_again_and_again_ends_like_one_that_is_left_in_peace(
    config, source, whole, tmp_path
):
    workdir = tmp_path / "run"
    phases, resumed = kills.killed(CELL, source, workdir, random.Random(7), kills=5)
    assert len(phases) == 5 and len(set(phases)) >= 3, phases
    control = kills.copy(workdir, "control")
    more, found = kills.finish(CELL, source, workdir, number=5)
    assert len({*resumed, *more}) >= 2, (phases, resumed, more)
    assert kills.differences(whole, found) == set()

    # The controls: the same resume with other dropout masks, or another seed, would have been seen.
    _, redrawn = kills.finish(CELL, source, control, 5, "loop.TRAINING = 7")
    assert kills.differences(whole, redrawn) >= {"parameters", "optimizer", "metrics"}
    reseeded = kills.everything(workdir, {**config, "seed": 6})
    assert kills.differences(whole, reseeded) == {"batches"}
    assert kills.differences(whole, reseeded, kills.CLOSE) == {"batches"}


def test_how_often_a_run_is_looked_at_or_saved_does_not_change_what_it_learns(
    config, whole, tmp_path
):
    seldom = {"log_every": 50, "eval_every": 0, "sample_every": 0, "save_every": 0, "keep": 1}
    config = {**config, "train": {**config["train"], **seldom}}
    assert running.finish(running.start(config, tmp_path))[0] == 0
    assert kills.differences(whole, kills.everything(tmp_path, config)) == {"metrics", "samples"}
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [str(STEPS)]


def steps_done(workdir) -> int:
    return max((line["step"] for line in running.metrics(workdir)), default=0)


def test_a_run_told_to_stop_saves_and_ends_like_one_that_is_left_in_peace(config, whole, tmp_path):
    workdir = tmp_path / "run"
    for signum, target in ((signal.SIGTERM, 8), (signal.SIGINT, 28)):
        process = running.start(config, workdir)
        kills.wait_for(process, lambda target=target: steps_done(workdir) >= target)
        process.send_signal(signum)
        sent = time.monotonic()
        status, out, err = running.finish(process)
        assert status == 128 + signum
        assert err.strip() == "ganymede: finishing this step and saving; once more ends it at once"
        stopped = re.search(
            rf"{signum.name}: stopped after step (\d+) of 61, saved in ([\d.]+) s; run the same",
            out,
        )
        assert float(stopped.group(2)) < time.monotonic() - sent + 0.1
        assert int(stopped.group(1)) == checkpoint.latest(workdir / "checkpoints") >= target
    status, out, err = running.finish(running.start(config, workdir))
    assert (status, err) == (0, "")
    assert f"resuming at step {stopped.group(1)} of 61" in out
    assert kills.differences(whole, kills.everything(workdir, config)) == set()
