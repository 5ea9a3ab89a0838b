"""Do several processes train the one run that a single process would, whatever happens to one of them?"""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import running

from model import checkpoint, errors
from train import data, distributed, loop, recipe, rows, streams

STEPS = 12
# Trains the config in two directories, one run after another, as one of two processes.
BOTH = """
import json, sys
from train import distributed, loop, recipe
asked = recipe.from_config(json.loads(sys.argv[3]))
with distributed.join(sys.argv[1], int(sys.argv[2]), 2, silence=60) as peers:
    for workdir in sys.argv[4:]:
        loop.run(asked, workdir, peers)
"""


def start(command: list[str]) -> subprocess.Popen:
    """With two devices."""
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=running.ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(running.ROOT),
            "JAX_NUM_CPU_DEVICES": "2",
            "TF_CPP_MIN_LOG_LEVEL": "4",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def launch(config_file: pathlib.Path, workdir: pathlib.Path) -> list[subprocess.Popen]:
    """The command line in two processes."""
    shared = "--num_processes=2 --heartbeat_timeout=2 --coordinator_timeout=60".split()
    where = f"--coordinator=127.0.0.1:{running.free_port()}"
    flags = [f"--config={config_file}", f"--workdir={workdir}", where, *shared]
    return [start(["launch.py", "train", *flags, f"--process_id={index}"]) for index in (0, 1)]


def wait_for_step(workdir: pathlib.Path, step: int, process: subprocess.Popen) -> None:
    end = time.monotonic() + 120
    while max((line["step"] for line in running.metrics(workdir)), default=0) < step:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.005)


def digests(workdir: pathlib.Path, step: int = STEPS) -> dict[str, str]:
    """Of every leaf of the state: parameters, optimizer, step."""
    path = workdir / "checkpoints" / str(step) / "meta" / "metadata"
    return {name: leaf["sha256"] for name, leaf in json.loads(path.read_text())["leaves"].items()}


def assert_close(one: pathlib.Path, two: pathlib.Path, until: int = STEPS) -> None:
    """The same lines, and numbers that differ by no more than the order of sums makes them."""
    lines = ([x for x in running.metrics(run) if x["step"] <= until] for run in (one, two))
    for a, b in zip(*lines, strict=True):
        assert a.keys() == b.keys()
        assert (a["step"], a["split"]) == (b["step"], b["split"])
        for name in a.keys() - {"step", "split"}:
            assert a[name] == pytest.approx(b[name], rel=1e-5), (a["step"], name)


def only(run: pathlib.Path, step: int, to: pathlib.Path) -> pathlib.Path:
    """A copy of a run as it was after `step`."""
    shutil.copytree(run, to)
    for path in (to / "checkpoints").iterdir():
        if path.name != str(step):
            shutil.rmtree(path)
    lines = (to / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    (to / "metrics.jsonl").write_text("".join(kept))
    return to


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    train = dict(steps=STEPS, batch_size=16, log_every=1, save_every=4, eval_every=0, keep=3)
    groups = dict(train={**train, "sample_every": 7}, runtime={"dropout": 0.2})
    return running.config(running.texts(tmp_path_factory.mktemp("texts")), **groups)


def spread(config):
    """The same run with its parameters parted over the four devices of two processes."""
    return {**config, "runtime": {**config["runtime"], "mesh": {"fsdp": 4}}}


@pytest.fixture(scope="module")
def config_file(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "two.py"
    read = f"json.loads({json.dumps(spread(config))!r})"
    path.write_text(
        f"import json\nfrom ml_collections import config_dict\n"
        f"def get_config():\n    return config_dict.ConfigDict({read})\n"
    )
    return path


@pytest.fixture(scope="module")
def runs(config, tmp_path_factory):
    """By directory, the same run: of one process with eight devices; of two processes with two devices each, from step
    4 of the former; and of two from the start, of which the second was told to stop.
    """
    root = tmp_path_factory.mktemp("runs")
    with jax.numpy_dtype_promotion("standard"):
        loop.run(recipe.from_config(config), root / "one")
    only(root / "one", 4, root / "two")
    address = f"127.0.0.1:{running.free_port()}"
    arguments = [json.dumps(spread(config)), str(root / "two"), str(root / "stopped")]
    pair = [start(["-c", BOTH, address, str(index), *arguments]) for index in (0, 1)]
    wait_for_step(root / "stopped", 5, pair[0])
    pair[1].send_signal(signal.SIGTERM)
    root.joinpath("said").write_text(json.dumps([running.finish(process) for process in pair]))
    return root


def test_two_processes_go_on_from_a_checkpoint_of_one_and_train_what_it_would(runs):
    assert_close(runs / "one", runs / "two")
    assert digests(runs / "one", 4) == digests(runs / "two", 4)
    assert digests(runs / "one", 8).keys() == digests(runs / "two", 8).keys()
    assert (
        runs.joinpath("one/samples.md").read_bytes() == runs.joinpath("two/samples.md").read_bytes()
    )
    assert [line["step"] for line in running.metrics(runs / "two")][-2:] == [STEPS, STEPS]


def test_a_signal_to_one_process_stops_all_after_the_same_step_which_is_saved(runs):
    (status, out, err), (other_status, _, other_err) = json.loads((runs / "said").read_text())
    assert (status, other_status) == (128 + signal.SIGTERM,) * 2, (err, other_err)
    stopped = int(re.search(r"SIGTERM: stopped after step (\d+) of 12, saved in", out)[1])
    assert stopped == checkpoint.latest(runs / "stopped" / "checkpoints") >= 5
    assert_close(runs / "one", runs / "stopped", until=stopped)
    assert other_err == "ganymede: finishing this step and saving; once more ends it at once\n"


def test_when_a_process_dies_the_other_names_it_and_both_go_on_as_if_nothing_had_been(
    runs, config_file, tmp_path
):
    workdir = only(runs / "two", 4, tmp_path / "run")
    pair = launch(config_file, workdir)
    wait_for_step(workdir, 9, pair[0])
    pair[1].kill()
    (status, _, err), (killed, _, _) = map(running.finish, pair)
    assert killed == -signal.SIGKILL
    assert (status, err) == (
        2,
        "ganymede: process 1 has not answered for 2 s and counts as dead; the last checkpoint is kept; "
        "start all processes again\n",
    )
    assert checkpoint.latest(workdir / "checkpoints") in (4, 8)
    for status, out, err in map(running.finish, launch(config_file, workdir)):
        assert (status, err) == (0, ""), out
    assert digests(workdir) == digests(runs / "two")
    assert running.metrics(workdir) == running.metrics(runs / "two")


@pytest.mark.standard_promotion
def test_a_checkpoint_of_two_processes_is_resumed_by_one(runs, config, tmp_path):
    workdir = only(runs / "two", 8, tmp_path / "run")
    loop.run(recipe.from_config(config), workdir)
    assert_close(workdir, runs / "two")
    assert digests(workdir, 8) == digests(runs / "two", 8)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("here", 0, 2), "--coordinator is 'here'; it must be HOST:PORT of process 0, or auto"),
        (("h:99999", 0, 2), "--coordinator is 'h:99999'; it must be HOST:PORT"),
        (("h:99", 2, 2), "--process_id is 2 of --num_processes=2; give both, the id from 0 to one"),
        (("h:99", None, 2), "--process_id is None of --num_processes=2; give both"),
        ((None, 1, 2), "--process_id=1 and --num_processes=2 need --coordinator=HOST:PORT"),
        (("h:99", 0, 2, 0.0), "--coordinator_timeout is 0 seconds; it must be at least 1"),
        (("h:99", 0, 2, 9.0, 0.5), "--heartbeat_timeout is 0.5 seconds; it must be at least 1"),
    ],
)
def test_flags_that_cannot_be_are_refused(flags, message):
    with pytest.raises(errors.BadInput, match=f"^{re.escape(message)}"):
        with distributed.join(*flags):
            pass


def test_a_coordinator_that_never_answers_is_named_with_the_time_that_was_waited(config_file):
    address = f"127.0.0.1:{running.free_port()}"
    flags = f"--coordinator={address} --process_id=1 --num_processes=2 --coordinator_timeout=1"
    alone = start(["launch.py", "train", f"--config={config_file}", "--workdir=w", *flags.split()])
    status, _, err = running.finish(alone)
    assert status == 2
    assert err == (
        f"ganymede: coordinator {address} and all processes were not together within 1 s; check that process 0 runs "
        "there, that its port is open, and that all processes were started\n"
    )


def test_alone_nothing_is_waited_for():
    peers = distributed.ALONE
    assert peers.first and peers.count == 1
    assert peers.agree(lambda: "word") == "word"
    assert [peers.stopping(3, signum) for signum in (None, signal.SIGINT)] == [None, signal.SIGINT]


def packed() -> list[rows.Packed]:
    """Two streams of 211 tokens, in documents of 19 and of 13."""
    ids = np.arange(211)
    return [
        rows.Packed(streams.Tokens(ids * size, np.append(ids[::size], 211)), 7) for size in (19, 13)
    ]


@pytest.mark.parametrize("weights", [None, (0.7, 0.3)])
def test_a_process_makes_only_its_own_rows_of_a_batch_and_they_are_the_same(weights):
    made = dict(batch_size=5, seed=13)
    whole = data.batches(packed(), weights, **made)
    part = data.batches(packed(), weights, **made, rows=[1, 4])
    for step in (0, 7, 1009):
        for name, array in whole[step].items():
            np.testing.assert_array_equal(part[step][name], array[[1, 4]])


def test_a_process_makes_only_its_own_rows_of_the_held_out_text():
    whole, part = data.eval_batches(packed()[0], 5), data.eval_batches(packed()[0], 5, [0, 3])
    for batch, some in zip(whole, part, strict=True):
        for name in batch:
            np.testing.assert_array_equal(some[name], batch[name][[0, 3]])
