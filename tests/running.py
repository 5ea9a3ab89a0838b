"""A tiny run as a real process: what the tests of `train/loop.py` start, stop and compare."""

import json
import os
import pathlib
import random
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
WORDS = (
    "moon planet orbit of the is large small round io europa ganymede callisto turns around".split()
)

# Runs the config on its first argument in the directory on its second; a third is executed before.
PROGRAM = """
import json, sys
sys.modules["torch"] = None  # where the oracles are installed, tensorboardX would import it, for seconds
from model import errors
from train import loop, recipe
exec(sys.argv[3])
try:
    loop.run(recipe.from_config(json.loads(sys.argv[1])), sys.argv[2])
except errors.BadInput as error:
    print(f"ganymede: {error}", file=sys.stderr)
    sys.exit(2)
"""


def texts(directory: pathlib.Path) -> pathlib.Path:
    """Two small files of sentences, a.txt and b.txt."""
    directory.mkdir(exist_ok=True)
    for name in "ab":
        draw = random.Random(name)
        lines = [" ".join(draw.choices(WORDS, k=draw.randint(5, 23))) for _ in range(211)]
        (directory / f"{name}.txt").write_text(".\n".join(lines) + ".\n")
    return directory


def config(source: pathlib.Path, **groups) -> dict:
    """Dropout, accumulation, packing and a mixture; nothing that is logged, measured or saved falls together."""
    whole = {
        "seed": 5,
        "model": {"context_length": 31, "layers": 2, "width": 16, "heads": 2},
        "tokenizer": {"vocab_size": 300},
        "data": {
            "train": [
                {"path": str(source / "a.txt"), "split": "line", "weight": 0.7},
                {"path": str(source / "b.txt"), "split": "line", "weight": 0.3},
            ],
            "held_out": 0.1,
            "length": 29,
        },
        "train": {
            "steps": 61,
            "batch_size": 6,
            "accumulate": 2,
            "log_every": 4,
            "eval_every": 23,
            "sample_every": 31,
            "save_every": 7,
        },
        "optimizer": {"warmup_steps": 5},
        "runtime": {"dropout": 0.2},
        "decode": {
            "prompts": ["the moon"],
            "settings": {"warm": {"max_new_tokens": 5, "temperature": 0.9}},
        },
    }
    for name, change in groups.items():
        whole[name] = {**whole[name], **change} if isinstance(change, dict) else change
    return whole


def start(
    config: dict, workdir: pathlib.Path, before: str = "", devices: int = 1
) -> subprocess.Popen:
    """The process, on simulated devices; `before` is executed first."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, json.dumps(config), str(workdir), before],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": str(devices)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    """Its exit status, output and errors."""
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def metrics(workdir: pathlib.Path) -> list[dict]:
    """The complete lines of metrics.jsonl so far, without what may differ from run to run."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [
        {name: value for name, value in json.loads(line).items() if name != "time"}
        for line in lines
    ]
