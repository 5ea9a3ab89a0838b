"""Can anybody tell from its numbers that a run was killed? The harness: real processes, SIGKILL, and a comparison.

A cell is a config that is trained twice: once in peace, and once killed at random moments and started again until it
is done. `benchmarks/kills.py` runs the whole matrix, and `test_resume.py` a part of it.
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
from collections.abc import Callable
from typing import Any

from model import checkpoint, tokenizer
from tests import running
from train import data, prepare, recipe

BITWISE, CLOSE = "bitwise", "close"
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
    """A config, as changes of `running.config`; each start of the killed run takes the next of `meshes`.

    Without `weighted` the two sources are one pool of rows instead of a mixture.
    """

    name: str
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    meshes: tuple[dict[str, int], ...] = ({"data": 1},)
    promise: str = BITWISE
    weighted: bool = True


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
    if not cell.weighted:
        whole["data"]["train"] = [
            {name: value for name, value in each.items() if name != "weight"}
            for each in whole["data"]["train"]
        ]
    return whole


def start(
    cell: Cell, source: pathlib.Path, workdir: pathlib.Path, number: int, before: str = ""
) -> subprocess.Popen:
    """The cell's process number `number`, traced in a file beside its directory."""
    mesh = cell.meshes[number % len(cell.meshes)]
    traced = TRACE.format(path=str(_trace(workdir)))
    devices = math.prod(mesh.values())
    _trace(workdir).unlink(missing_ok=True)
    return running.start(config(cell, source, mesh), workdir, traced + before, devices)


def in_peace(cell: Cell, source: pathlib.Path, workdir: pathlib.Path) -> dict:
    """What the cell's config computes when nobody kills it, on its first mesh."""
    status, _, err = running.finish(start(cell, source, workdir, 0))
    assert status == 0 and not _complaints(err), err
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
        process = start(cell, source, workdir, number)
        low, high = (max(1, steps * (number - 1 + i) // kills) for i in (0, 1))
        phase = aims[number]
        aim = (phase, draw.randint(low, high) if phase not in PHASES[:2] else 0)
        wait_for(process, lambda workdir=workdir, aim=aim: reached(workdir, *aim))
        time.sleep(draw.uniform(0, 1.0 if phase == "starting" else 0.03))
        process.kill()
        status, out, err = running.finish(process)
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
    process = start(cell, source, workdir, number, before)
    status, out, err = running.finish(process)
    assert status == 0 and not _complaints(err), err
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
    ledger = workdir / "ledger.jsonl"
    return {
        "parameters": groups["params"],
        "optimizer": groups["opt_state"] | groups["step"],
        "sums": saved["meta"],
        "metrics": running.metrics(workdir),
        "samples": (workdir / "samples.md").read_bytes(),
        "ledger": ledger.read_bytes() if ledger.exists() else b"",
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


def _complaints(err: str) -> list[str]:
    """What a process said on standard error, but for XLA's opinion of how arrays are moved between meshes."""
    return [line for line in err.splitlines() if "spmd_partitioner" not in line]


def _resumed(out: str) -> list[int]:
    return [int(step) for step in re.findall(r"resuming at step (\d+)", out)]


# The matrix.

OFTEN = {"eval_every": 11, "sample_every": 17, "save_every": 5}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adafactor": {"name": "adafactor"},
    "lion, bfloat16 moments": {"name": "lion", "moments_dtype": "bfloat16"},
    "muon, averaged weights": {"name": "muon", "ema_decay": 0.9},
    "sgd": {"name": "sgd", "schedule": "wsd"},
    "schedule-free": {"name": "schedule_free", "schedule": "constant"},
}  # besides adamw, which all others have
ONE, EIGHT = {"data": 1}, {"data": 2, "fsdp": 2, "tensor": 2}
WIDE = {"batch_size": 8, **OFTEN}  # rows that eight devices can share


def _cell(
    name: str,
    meshes: Any = (ONE,),
    promise: str = BITWISE,
    weighted: bool = True,
    **changes: Any,
) -> Cell:
    changes["train"] = {**OFTEN, **changes.get("train", {})}
    return Cell(name, changes, meshes, promise, weighted)


CELLS = (
    _cell("decoder, dropout, 2 micro-batches, mixture"),
    _cell("LSTM", model={"family": "lstm", "heads": 0}),
    _cell("no dropout, one batch", runtime={"dropout": 0.0}, train={"accumulate": 1}),
    _cell("3 micro-batches, LayerNorm, learned positions",
          train={"accumulate": 3}, model={"norm": "layer", "position": "learned", "tied": True}),
    _cell("no mixture, short rows", weighted=False, data={"length": 11}),
    _cell("bfloat16", runtime={"dtype": "bfloat16"}),
    _cell("recomputation, unrolled", runtime={"remat": "full", "unroll": 2}),
    _cell("bad steps skipped",
          optimizer={"learning_rate": 1e-5}, train={"on_bad_step": "skip", "spike": 1.0}),
    *(_cell(name, optimizer=group) for name, group in OPTIMIZERS.items()),
    _cell("8 devices: data 2, fsdp 2, tensor 2", (EIGHT,), train=WIDE),
    _cell("8 devices: fsdp 8", ({"fsdp": 8},), train={**WIDE, "accumulate": 1}),
    _cell("LSTM on 8 devices: fsdp 4, data 2", ({"fsdp": 4, "data": 2},), train={**WIDE, "accumulate": 1},
          model={"family": "lstm", "heads": 0}),
    _cell("1, 8, 1 ... devices", (ONE, EIGHT), CLOSE, train=WIDE, runtime={"dropout": 0.0}),
)  # fmt: skip


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
