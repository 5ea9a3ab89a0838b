"""A tiny run as a real process: what the tests of `train/loop.py` start, stop and compare."""

import json
import os
import pathlib
import random
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
WORDS = (
    "moon planet orbit of the is large small round io europa ganymede callisto turns around".split()
)

# Runs the config on its first argument in the directory on its second; a third is executed before, and the fourth says
# which of several processes it is.
PROGRAM = """
import json, sys
sys.modules["torch"] = None  # where the oracles are installed, tensorboardX would import it, for seconds
from model import errors
from train import distributed, loop, recipe
exec(sys.argv[3])
try:
    with distributed.join(*json.loads(sys.argv[4])) as peers:
        loop.run(recipe.from_config(json.loads(sys.argv[1])), sys.argv[2], peers)
except errors.BadInput as error:
    print(f"ganymede: {error}", file=sys.stderr)
    sys.exit(2)
"""


def texts(directory: pathlib.Path) -> pathlib.Path:
    """Two small files of sentences, a.txt and b.txt, and records of all that tasks can ask for, records.jsonl."""
    directory.mkdir(exist_ok=True)
    for name in "ab":
        draw = random.Random(name)
        lines = [" ".join(draw.choices(WORDS, k=draw.randint(5, 23))) for _ in range(211)]
        (directory / f"{name}.txt").write_text(".\n".join(lines) + ".\n")
    draw = random.Random("records")
    lines = [json.dumps(_record(draw.choices(WORDS, k=draw.randint(2, 5)))) for _ in range(211)]
    (directory / "records.jsonl").write_text("\n".join(lines) + "\n")
    return directory


def _record(words: list[str]) -> dict:
    """Some words, and backwards; how many there are, and of each whether it is long."""
    text, backwards = " ".join(words), " ".join(reversed(words))
    said = [{"role": "user", "content": text}, {"role": "assistant", "content": backwards}]
    tags = ["long" if len(word) > 5 else "short" for word in words]
    return {
        "text": text,
        "target": backwards,
        "messages": said,
        "label": str(len(words)),
        "tokens": words,
        "tags": tags,
    }


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
        whole[name] = {**whole.get(name, {}), **change} if isinstance(change, dict) else change
    return whole


def free_port() -> int:
    """Where nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(
    config: dict,
    workdir: pathlib.Path,
    before: str = "",
    devices: int = 1,
    peer: tuple[int, int, int] | None = None,
) -> subprocess.Popen:
    """The process, on simulated devices; `before` is executed first. `peer` is port, number and count of several."""
    joined = (None, None, None) if peer is None else (f"127.0.0.1:{peer[0]}", *peer[1:])
    quiet = {} if peer is None else {"TF_CPP_MIN_LOG_LEVEL": "4"}
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            PROGRAM,
            json.dumps(config),
            str(workdir),
            before,
            json.dumps(joined),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": str(devices), **quiet},
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
