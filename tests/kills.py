"""Can anybody tell from its numbers that a run was killed? The harness: real processes, SIGKILL, and a comparison.

A cell is a config that is trained twice: once in peace, and once killed at random moments and started again until it
is done. `cells.py` lists them, `benchmarks/kills.py` runs them all, and `test_resume.py` a part.
"""

import dataclasses
import json
import math
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

from model import checkpoint, tokenizer
from tests import running
from train import data, prepare, recipe

BITWISE, CLOSE = "bitwise", "close"
ONE = {"data": 1}
BASE = "base"
COUNTS = ("step", "split", "tokens")
TOLERANCE = 1e-3  # of losses, relative, where sums are computed in another order: on another mesh
PHASES = ("tokenising", "starting", "stepping", "saving", "evaluating", "sampling")
PATIENCE = 13  # steps after which a kill no longer waits for its phase

# What the process does at any moment, in a file that survives it: a phase and a step.
TRACE = """
import os
trace = os.open({path!r}, os.O_CREAT | os.O_RDWR)
now = ["starting", 0]
def tell(phase, step=None):
    now[:] = phase, now[1] if step is None else step
    os.pwrite(trace, "{{}} {{}}".format(*now).ljust(32).encode(), 0)
def during(phase, owner, name):
    usual = getattr(owner, name)
    def call(*args, **kwargs):
        before = now[0]
        tell(phase)
        try:
            return usual(*args, **kwargs)
        finally:
            tell(before)
    setattr(owner, name, call)
during("tokenising", loop.tokenizer, "train")
during("tokenising", loop.data, "prepare")
during("saving", loop.checkpoint.Checkpoints, "save")
during("evaluating", loop, "_evaluate")
during("sampling", loop, "_samples")
step = loop.Meter.step
loop.Meter.step = lambda self, number, metrics: (tell("stepping", number), step(self, number, metrics))
tell("starting")
"""


@dataclasses.dataclass(frozen=True)
class Cell:
    """A config, as changes of `running.config`.

    Attributes:
        name: what the report calls it.
        changes: of its groups.
        meshes: each start of the killed run takes the next of them,
        processes: and the next of these numbers of processes, which share its devices.
        promise: to what its numbers are equal.
        sources: of training, with paths in the directory of `running.texts`; by default its mixture of two.
        tuned: whether it begins with the run `BASE`, whose model and tokenizer it has.
    """

    name: str
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    meshes: tuple[dict[str, int], ...] = (ONE,)
    processes: tuple[int, ...] = (1,)
    promise: str = BITWISE
    sources: tuple[dict[str, Any], ...] = ()
    tuned: bool = False


@dataclasses.dataclass
class Outcome:
    """What became of a cell: each kill's phase, each resume's step, and what differs from the run in peace."""

    kills: list[str]
    resumed: list[int]
    differences: set[str]


def config(cell: Cell, source: pathlib.Path, mesh: dict[str, int]) -> dict:
    """The cell's config on a mesh."""
    runtime = {**cell.changes.get("runtime", {}), "mesh": mesh}
    whole = running.config(source, **{**cell.changes, "runtime": runtime})
    if cell.sources:
        whole["data"]["train"] = [
            {**each, "path": str(source / each["path"])} for each in cell.sources
        ]
    if cell.tuned:
        del whole["tokenizer"], whole["model"]
        whole["start"] = {"path": str(source / BASE)}
    return whole


def materials(directory: pathlib.Path, cells: Sequence[Cell]) -> pathlib.Path:
    """The directory with all that cells learn from, and what some begin with."""
    source = running.texts(directory)
    if any(cell.tuned for cell in cells):
        train = {"steps": 7, "save_every": 0, "eval_every": 0, "sample_every": 0}
        base = running.config(source, train=train)
        status, _, err = running.finish(running.start(base, source / BASE))
        assert status == 0, err
    return source


def start(
    cell: Cell, source: pathlib.Path, workdir: pathlib.Path, number: int, before: str = ""
) -> list[subprocess.Popen]:
    """The cell's processes of its start `number`; the first is traced in a file beside its directory."""
    mesh, count = (each[number % len(each)] for each in (cell.meshes, cell.processes))
    traced = TRACE.format(path=str(_trace(workdir))) + before
    devices = math.prod(mesh.values()) // count
    _trace(workdir).unlink(missing_ok=True)
    asked = config(cell, source, mesh)
    if count == 1:
        return [running.start(asked, workdir, traced, devices)]
    port = running.free_port()
    return [
        running.start(asked, workdir, before if i else traced, devices, (port, i, count))
        for i in range(count)
    ]


def in_peace(cell: Cell, source: pathlib.Path, workdir: pathlib.Path) -> dict:
    """What the cell's config computes when nobody kills it, on its first mesh."""
    _succeeded(start(cell, source, workdir, 0))
    return everything(workdir, config(cell, source, cell.meshes[0]))


def killed(
    cell: Cell, source: pathlib.Path, workdir: pathlib.Path, draw: random.Random, kills: int
) -> tuple[list[str], list[int]]:
    """Starts the cell's run and kills it, `kills` times; returns the phases of the kills and the steps of resumes.

    The first kill is aimed at tokenisation, the others in random order at the other phases; each has its share of the
    steps, waits for its phase from a random one of these on, and falls a random moment after that.
    """
    steps = config(cell, source, {})["train"]["steps"]
    phases, resumed = [], []
    rounds = -(-kills // len(PHASES))
    aims = [PHASES[0], *(phase for _ in range(rounds) for phase in draw.sample(PHASES[1:], 5))]
    for number in range(kills):
        processes = start(cell, source, workdir, number)
        low, high = (max(1, steps * (number - 1 + i) // kills) for i in (0, 1))
        phase = aims[number]
        aim = (phase, draw.randint(low, high) if phase not in PHASES[:2] else 0)
        wait_for(processes[0], lambda workdir=workdir, aim=aim: reached(workdir, *aim))
        time.sleep(draw.uniform(0, 1.0 if phase == "starting" else 0.03))
        for process in processes:
            process.kill()
        ended = [running.finish(process) for process in processes]
        status, out, err = ended[0]
        assert status in (0, -signal.SIGKILL), err
        if status:
            phases.append(now(workdir)[0])
        resumed += _resumed(out)
    return phases, resumed


def torment(
    cell: Cell, source: pathlib.Path, workdir: pathlib.Path, draw: random.Random, kills: int, whole: dict
) -> Outcome:  # fmt: skip
    """Kills the cell's run again and again, lets it end, and compares it with `whole`, of `in_peace`."""
    phases, resumed = killed(cell, source, workdir, draw, kills)
    more, found = finish(cell, source, workdir, kills)
    return Outcome(phases, resumed + more, differences(whole, found, cell.promise))


def finish(
    cell: Cell, source: pathlib.Path, workdir: pathlib.Path, number: int, before: str = ""
) -> tuple[list[int], dict]:
    """Lets a run end: the step it resumed at, if any, and all that it has computed."""
    out = _succeeded(start(cell, source, workdir, number, before))
    return _resumed(out), everything(workdir, config(cell, source, cell.meshes[0]))


def everything(workdir: pathlib.Path, config: dict) -> dict:
    """What a run computed, by name: parameters, optimiser, metrics, samples, ledger, and its next ten batches."""
    asked = recipe.from_config(config)
    steps = asked.train.steps
    saved = json.loads((workdir / "checkpoints" / str(steps) / "meta" / "metadata").read_text())
    words = tokenizer.load(workdir / "tokenizer")
    tasks = dict(train=asked.tasks, valid=asked.task)
    prepared = data.prepare(asked.corpus(), words, workdir / "data", **tasks)
    sources = prepare.rows_of(asked, prepared, words, asked.model_config(words.vocab_size))
    batches = data.batches(
        sources, prepared.weights, batch_size=asked.train.batch_size, seed=asked.seed
    )
    groups: dict[str, dict] = {"params": {}, "opt_state": {}, "step": {}}
    for name, leaf in saved["leaves"].items():
        groups[name.split("/")[0]][name] = leaf["sha256"]
    files = {path.name: path.read_bytes() for path in workdir.iterdir() if path.is_file()}
    return {
        "parameters": groups["params"],
        "optimizer": groups["opt_state"] | groups["step"],
        "sums": saved["meta"],
        "metrics": running.metrics(workdir),
        "samples": files.get("samples.md", b""),
        "ledger": files.get("ledger.jsonl", b""),
        "batches": [
            {name: array.tobytes() for name, array in batches[step].items()}
            for step in range(steps, steps + 10)
        ],
    }


def differences(one: dict, two: dict, promise: str = BITWISE) -> set[str]:
    """The names of `everything` in which two runs differ; where they are only close, of batches, tokens and losses."""
    if promise == BITWISE:
        return {name for name in one if one[name] != two[name]}
    found = {"batches"} if one["batches"] != two["batches"] else set()
    if len(one["metrics"]) != len(two["metrics"]):
        return found | {"metrics"}
    for here, there in zip(one["metrics"], two["metrics"], strict=True):
        if [here[name] for name in COUNTS] != [there[name] for name in COUNTS]:
            found |= {"tokens"}
        if not math.isclose(here["loss"], there["loss"], rel_tol=TOLERANCE):
            found |= {"losses"}
    return found


def wait_for(process: subprocess.Popen, condition: Callable[[], Any], seconds: float = 120) -> None:
    """Returns as soon as the condition holds, or the process is done."""
    end = time.monotonic() + seconds
    while process.poll() is None and not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def now(workdir: pathlib.Path) -> tuple[str, int]:
    """The phase and the step of the process that trains there, or of the one that was killed there."""
    phase, step = "importing", "0"
    if _trace(workdir).exists() and (words := _trace(workdir).read_text().split()):
        phase, step = words
    # Checkpoints are written in the background.
    if list(workdir.glob(f"checkpoints/{checkpoint.HALF_WRITTEN}")) and int(step):
        phase = "saving"
    return phase, int(step)


def reached(workdir: pathlib.Path, phase: str, step: int) -> bool:
    """Whether the process is in that phase, at that step or later, or has gone by it long ago."""
    phase_now, step_now = now(workdir)
    if step_now > step + PATIENCE:
        return True
    return phase_now == phase and step_now >= step


def _trace(workdir: pathlib.Path) -> pathlib.Path:
    return workdir.with_name(f"{workdir.name}.trace")


def _succeeded(processes: Sequence[subprocess.Popen]) -> str:
    """What the first of them said; all must have come to their end without a complaint."""
    ended = [running.finish(process) for process in processes]
    for status, _, err in ended:
        assert status == 0 and not _complaints(err), err
    return ended[0][1]


def _complaints(err: str) -> list[str]:
    """What a process said on standard error, but for XLA's opinion of how arrays are moved between meshes."""
    return [line for line in err.splitlines() if "spmd_partitioner" not in line]


def _resumed(out: str) -> list[int]:
    return [int(step) for step in re.findall(r"resuming at step (\d+)", out)]


def copy(workdir: pathlib.Path, name: str) -> pathlib.Path:
    """The run as it is now, elsewhere: what a control goes on with."""
    return shutil.copytree(workdir, workdir.with_name(name))


def environment() -> None:
    """Simulated devices, and programs compiled once for all processes and without LLVM's optimiser, as in tests."""
    for name, value in {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(running.ROOT / ".cache" / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }.items():
        os.environ.setdefault(name, value)
