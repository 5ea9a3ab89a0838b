"""How is every arm of a training sweep trained, though some crash and somebody stops it in between?

Each arm is a process of its own, so that one which crashes or runs out of memory ends alone. What there is to know of
an arm stands in its directory: another sweep, or the same one started again, goes on from there.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import pprint
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, Self

from model import checkpoint, errors, files
from train import log
from train.trials import Arm

CONFIG, FAILED, ERRORS, LOCK = "config.py", "failed.json", "stderr.txt", "sweep.lock"
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

CONFIG_FILE = '''"""An arm of a sweep: {name}.

Command: python launch.py train --config={path} --workdir={directory}
"""

from math import inf, nan  # noqa: F401  a value may be one of them

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The recipe."""
    return ConfigDict(
{groups}
    )
'''


def run(
    arms: Sequence[Arm],
    workdir: pathlib.Path,
    command: Sequence[str],
    *,
    retry: bool = False,
    say: Callable[[str], Any] = print,
) -> int:
    """Trains one arm after the other in `<workdir>/<digest>`; returns 2 if any has failed, else 0.

    An arm that is done is left as it is, one that was interrupted goes on, and one that failed is told and left unless
    `retry`. Told to stop, the arm that is being trained saves, and we leave with SystemExit(128 + signal).

    Args:
        command: what trains, to which `--config=FILE --workdir=DIR` are added.
        say: what to do with each line for people.
    """
    failed = 0
    with Child() as child:
        for number, arm in enumerate(arms, start=1):
            began, place = time.perf_counter(), workdir / arm.digest
            with _claimed(place) as lock:
                said = _before(arm, place, retry) if lock is not None else "another sweep trains it"
                if said is None and lock is not None:
                    say(f"arm {number} of {len(arms)}: {arm.name}: training in {place}")
                    said = _train(arm, place, command, child, lock)
                    said += f" in {log.duration(time.perf_counter() - began)}"
            say(f"arm {number} of {len(arms)}: {arm.name}: {said}")
            failed += failure(place) is not None
            if child.stop is not None:
                say("stopped; run the same command again to go on")
                raise SystemExit(128 + child.stop)
    if failed:
        told = "arm has" if failed == 1 else "arms have"
        say(f"{failed} {told} failed; add --retry to train such arms again")
    return 2 if failed else 0


def finished(arm: Arm, place: pathlib.Path) -> bool:
    """Whether an arm's last step is saved, with all that it measured."""
    return (checkpoint.latest(place / "checkpoints") or 0) >= arm.recipe.train.steps


def failure(place: pathlib.Path) -> str | None:
    """The line in which an arm's failure was told, if it failed."""
    path = place / FAILED
    return files.read_json(path, "remove it")["failure"] if path.exists() else None


class Child:
    """The process of an arm; while this is entered, signals that tell us to stop are passed on to it.

    It has a process group of its own: a Ctrl-C on the terminal reaches it once, through us, and not twice, at which
    it would not save.
    """

    def __init__(self) -> None:
        self.stop: int | None = None
        self._process: subprocess.Popen | None = None
        self._usual: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for signum in STOPS:
            self._usual[signum] = signal.signal(signum, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for signum, usual in self._usual.items():
            signal.signal(signum, usual)

    def run(self, words: Sequence[str], stderr: pathlib.Path, lock: int) -> int:
        """The exit status of a process; it keeps `lock` even when we are killed."""
        with stderr.open("w", encoding="utf-8") as written:
            if self.stop is not None:
                return 128 + self.stop
            self._process = subprocess.Popen(
                words, stderr=written, stdin=subprocess.DEVNULL, process_group=0, pass_fds=(lock,)
            )
            if self.stop is not None:  # it came while the process was being made
                self._process.send_signal(self.stop)
            status = self._process.wait()
        self._process = None
        return status

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self.stop = signal.SIGTERM if signum == signal.SIGHUP else signum
        if self._process is not None:
            self._process.send_signal(self.stop)


def _before(arm: Arm, place: pathlib.Path, retry: bool) -> str | None:
    """What is to be said of an arm that is not to be trained; None of one that is."""
    if finished(arm, place):
        (place / FAILED).unlink(missing_ok=True)
        return "done before"
    failed = failure(place)
    if failed is None or retry:
        return None
    return f"failed before: {failed}"


def _train(arm: Arm, place: pathlib.Path, command: Sequence[str], child: Child, lock: int) -> str:
    """Trains an arm and returns what has become of it; why it failed is kept in its directory."""
    (place / FAILED).unlink(missing_ok=True)
    path = place / CONFIG
    groups = pprint.pformat(
        json.loads(json.dumps(arm.groups)), indent=1, width=100, sort_dicts=False
    )
    name = arm.name.translate({ord('"'): "'", ord("\\"): "/"})  # what no docstring ends at
    text = CONFIG_FILE.format(name=name, path=path, directory=place, groups=groups)
    files.write_text(path, text)
    words = [*command, f"--config={path}", f"--workdir={place}"]
    status = child.run(words, place / ERRORS, lock)
    if finished(arm, place):
        return "done"
    if child.stop is not None or status in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        return f"stopped after step {checkpoint.latest(place / 'checkpoints') or 0}"
    told = _reason(status, place / ERRORS)
    files.write_text(place / FAILED, json.dumps({"failure": told, "status": status}) + "\n")
    return f"failed: {told}; all it said is in {place / ERRORS}"


def _reason(status: int, path: pathlib.Path) -> str:
    """Why a process failed, in one line."""
    if status < 0:
        memory = " (was there not enough memory?)" if -status == signal.SIGKILL else ""
        return f"ended by {signal.Signals(-status).name}{memory}"
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    return f"{last.removeprefix('ganymede: ')} (exit code {status})"


@contextlib.contextmanager
def _claimed(place: pathlib.Path) -> Iterator[int | None]:
    """Makes an arm ours until it is done, and gives the file that says so; None when it is somebody else's."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        handle = os.open(place / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise errors.BadInput(
            f"{place} cannot hold an arm ({error.strerror}); choose another --workdir"
        ) from error
    mine = True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        mine = False
    except OSError:  # a file system that cannot lock leaves it to people
        pass
    try:
        yield handle if mine else None
    finally:
        os.close(handle)
