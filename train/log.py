"""What does a run tell, and to whom? Files for programs (`Record`), lines or a bar for people (`Progress`)."""

import contextlib
import json
import math
import os
import pathlib
import re
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich import console as consoles
from rich import progress as bars
from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2

from model import checkpoint, errors
from train import tracker, visible

SILENCE = 10  # seconds after which plain output says that work goes on


class Record:
    """The run's `metrics.jsonl`, `ledger.jsonl`, `tensorboard/` and `samples.md`.

    A line of `metrics.jsonl` is `{"step": 20, "split": "train", "loss": ..., "time": {...}}`. Of two runs that compute
    the same, all is equal except what stands under `time`. What is not finite is written as null.
    """

    writes = True

    def __init__(self, directory: pathlib.Path, step: int, wandb: str | None = None) -> None:
        """Opens the files and forgets what they hold beyond `step`, the one that the run goes on from.

        `wandb` is a project of Weights & Biases, which gets the same numbers.
        """
        self.directory = directory
        self._tracker = tracker.Tracker(wandb, directory) if wandb else None
        try:
            for name in ("metrics.jsonl", "ledger.jsonl"):
                forget(directory / name, step, _step_of_metrics)
            forget(directory / "samples.md", step, _step_of_samples)
            self._metrics = (directory / "metrics.jsonl").open("a", encoding="utf-8")
            self._samples = (directory / "samples.md").open("a", encoding="utf-8")
            (directory / "tensorboard").mkdir(exist_ok=True)
            # Not tensorboardX's SummaryWriter: its thread dies of a full disk, and then the next event waits for ever.
            self._events = event_file_writer.EventsWriter(
                str(directory / "tensorboard" / "events"), f".{os.getpid()}"
            )
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._events.write_event(
                event_pb2.Event(wall_time=time.time(), step=step + 1, session_log=start)
            )
        except OSError as error:
            raise self._unwritten(error) from error

    def metrics(
        self,
        step: int,
        split: str,
        values: Mapping[str, float],
        timing: Mapping[str, float | None],
    ) -> None:
        """Appends what was measured at a step; `timing` is what may differ from run to run, None what nobody knows."""
        line = {"step": step, "split": split, **_finite(values), "time": _finite(timing)}
        known = {f"time/{name}": value for name, value in timing.items() if value is not None}
        scalars = {**values, **known}
        event = summary.Summary(
            value=[
                summary.Summary.Value(tag=f"{split}/{name}", simple_value=value)
                for name, value in scalars.items()
            ]
        )
        try:
            self._metrics.write(json.dumps(line, allow_nan=False) + "\n")
            self._metrics.flush()
            self._events.write_event(
                event_pb2.Event(wall_time=time.time(), step=step, summary=event)
            )
        except OSError as error:
            raise self._unwritten(error) from error
        if self._tracker is not None:
            self._tracker.metrics(step, {f"{split}/{name}": v for name, v in scalars.items()})

    def samples(self, step: int, texts: Mapping[str, Sequence[tuple[str, str]]]) -> None:
        """Appends completions to `samples.md`: per name of their settings, pairs of prompt and text.

        Blanks at the end of a text are shown as signs, for nobody would see them.
        """
        lines = [f"## step {step}", ""]
        for name, pairs in texts.items():
            lines += [f"### {name}", ""]
            for prompt, text in pairs:
                body, end = visible.ending(text)
                lines += [textwrap.indent(_visible(f"[{prompt}]{body}{end}"), "    "), ""]
        try:
            self._samples.write("\n".join(lines) + "\n")
            self._samples.flush()
        except OSError as error:
            raise self._unwritten(error) from error

    def event(self, step: int, event: str, values: Mapping[str, Any]) -> None:
        """Appends to `ledger.jsonl` what happened at a step, and returns when it is on disk."""
        line = {"step": step, "event": event, **values}
        try:
            with (self.directory / "ledger.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._unwritten(error) from error

    def sync(self) -> None:
        """Returns when all that was written is on disk; a checkpoint of the same step may be saved then."""
        try:
            self._events.flush()
            for file in (self._metrics, self._samples):
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._unwritten(error) from error

    def close(self) -> None:
        """Closes the files; what was to be said of them was said when they were written."""
        for file in (self._metrics, self._samples, self._events):
            try:
                file.close()
            except OSError:
                pass
        if self._tracker is not None:
            self._tracker.close()

    def _unwritten(self, error: OSError) -> errors.BadInput:
        return errors.BadInput(
            f"{self.directory} cannot be written to ({error.strerror}); the last checkpoint is kept; "
            "make room and run the same command again"
        )


class Nothing(Record):
    """The `Record` of a process that leaves writing to another."""

    writes = False

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory

    def metrics(self, step: int, split: str, values: Any, timing: Any) -> None:
        """Not written."""

    def samples(self, step: int, texts: Any) -> None:
        """Not written."""

    def event(self, step: int, what: str, values: Any) -> None:
        """Not written."""

    def sync(self) -> None:
        """Nothing is waiting to be written."""

    def close(self) -> None:
        """Nothing is open."""


class Progress:
    """A bar on a terminal, else plain lines; what is said with `say` stays in both."""

    def __init__(self, steps: int, console: consoles.Console | None = None) -> None:
        self.console = console or consoles.Console(highlight=False)
        self._steps = steps
        self._bar = bars.Progress(
            bars.TextColumn("training"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TextColumn("{task.fields[status]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=steps, status="compiling")

    def start(self, step: int) -> None:
        """Shows the bar, at `step`."""
        self._bar.update(self._task, completed=step)
        self._bar.start()

    def stop(self) -> None:
        """Ends the bar; what is said from now on stands below it."""
        self._bar.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def work(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Around long work on text: a bar, or a line now and then, for each call with bytes done and bytes in all."""
        bar = bars.Progress(
            bars.TextColumn(what),
            bars.BarColumn(),
            bars.DownloadColumn(),
            bars.TransferSpeedColumn(),
            bars.TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        task = bar.add_task(what, total=None)
        said = time.monotonic()

        def show(done: int, total: int) -> None:
            nonlocal said
            bar.update(task, completed=done, total=total)
            if not self.console.is_terminal and time.monotonic() - said > SILENCE:
                self.say(f"{what}: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB")
                said = time.monotonic()

        with bar:
            yield show

    def step(
        self, step: int, values: Mapping[str, float], timing: Mapping[str, Any], line: bool
    ) -> None:
        """Moves the bar; without one, prints a line where `line` says so."""
        status = (
            f"loss {values['loss']:.4f}  {timing['tokens_per_second']:>9,.0f} tokens/s  "
            f"FLOP use {timing['utilisation']:>4.0%}  {duration(timing['seconds_left']):>9} left"
        )
        self._bar.update(self._task, completed=step, status=status)
        if line and not self.console.is_terminal:
            self.say(f"step {step:>{len(str(self._steps))}}/{self._steps}  {status}")


def duration(seconds: float) -> str:
    """Seconds in the two units that matter: `9 s`, `2 min 05 s`, `3 h 07 min`, `2 d 01 h`."""
    whole = round(seconds)
    for unit, size, smaller, part in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part:02} {smaller}"
    return f"{whole} s"


def forget(path: pathlib.Path, step: int, step_of: Callable[[str], float | None]) -> None:
    """Removes the lines of a file that belong to later steps: all of them at once, or none when we are killed.

    `step_of` tells the step of a line, or None when it belongs to the line above it.
    """
    if not path.exists():
        return
    kept: list[str] = []
    current: float = 0
    lines = _lines(path)
    for line in lines:
        found = step_of(line)
        current = current if found is None else found
        if current <= step:
            kept.append(line)
    if kept != lines:
        checkpoint.write_file(path, "".join(kept))


def _lines(path: pathlib.Path) -> list[str]:
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        return file.readlines()


def _step_of_metrics(line: str) -> float:
    """The step of a complete line; a torn one is later than any."""
    try:
        return json.loads(line)["step"] if line.endswith("\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf


def _step_of_samples(line: str) -> int | None:
    """Texts are indented, so only our own headings start with `## step`."""
    heading = re.match(r"## step (\d+)$", line.rstrip("\n"))
    return int(heading.group(1)) if heading else None


def _visible(text: str) -> str:
    """Text in which what cannot be printed is escaped; lines and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def _finite(values: Mapping[str, float | None]) -> dict[str, float | None]:
    return {
        name: value if value is not None and math.isfinite(value) else None
        for name, value in values.items()
    }
