"""What has a run done so far, and how fast? Counts what steps report, and tells it to people and files."""

import collections
import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from model import checkpoint, errors
from model.config import ModelConfig
from train import data, flight, flops, log
from train.recipe import Recipe


class Meter:
    """The host's side of training: everything about the steps that is not computed on a device.

    Metrics are read one step late, so that reading waits for nothing: `step` hands in those of a step and reads those
    of the step before. `pause` catches up, and keeps what happens inside it out of the rates.
    """

    def __init__(
        self,
        asked: Recipe,
        config: ModelConfig,
        record: log.Record,
        progress: log.Progress,
        before: Mapping[str, Any],
        batch: Callable[[int], data.Batch],
        key: jax.Array,
        programs: Mapping[str, int],
    ) -> None:
        """`before` is what `meta` returned when the run was last saved; `batch(n)` is what step n trained on, and
        `key` the one its own was folded from; `programs` counts what this process compiles, as
        `compilations.counted` does."""
        self._programs = programs
        self._asked, self._config, self._batch, self._key = asked, config, batch, key
        self._record, self._progress = record, progress
        self._tokens: int = before.get("tokens", 0)
        self._losses: dict[str, float] = dict(before.get("losses", {}))
        self._skipped: list[int] = list(before.get("skipped", ()))
        self._history = collections.deque(before.get("history", ()), maxlen=flight.WINDOW)
        self._pending: tuple[int, Mapping[str, Any]] | None = None
        self._peak = flops.peak()
        self._began, self._steps, self._own_tokens = time.perf_counter(), 0, 0
        self._compiling, self._paused, self._waited_in_all = 0.0, 0.0, 0.0
        self._restart()

    def meta(self) -> dict[str, Any]:
        """What a checkpoint must hold for the next process to count on from here."""
        return {
            "tokens": self._tokens,
            "losses": self._losses,
            "skipped": self._skipped,
            "history": list(self._history),
        }

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around waiting for a batch."""
        start = time.perf_counter()
        yield
        took = time.perf_counter() - start
        self._waited += took
        self._waited_in_all += took

    @contextlib.contextmanager
    def compiling(self, compiles: bool) -> Iterator[None]:
        """Around handing a step to the devices, which returns at once unless it has to be compiled."""
        yield
        if compiles:
            self._compiling = time.perf_counter() - self._mark
            self._restart()

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Around what is not a step."""
        self._settle()
        start = time.perf_counter()
        yield
        took = time.perf_counter() - start
        self._paused += took
        self._mark += took

    def step(self, number: int, metrics: Mapping[str, Any]) -> None:
        """Takes the metrics of a step that is still being computed."""
        self._settle()
        self._pending = number, metrics

    def evaluated(self, number: int, values: Mapping[str, float]) -> None:
        """Takes what evaluation after a step found."""
        if not math.isfinite(values["loss"]):
            raise errors.BadInput(
                f"the held-out loss is {values['loss']} after step {number}; the last checkpoint is kept; "
                "lower optimizer.learning_rate in another --workdir"
            )
        told = "bits_per_byte" if "bits_per_byte" in values else "accuracy"
        self._losses |= {"valid": values["loss"], told: values[told]}
        self._record.metrics(number, "valid", {**values, "tokens": self._tokens}, {})
        if told == "accuracy":
            more = f"accuracy {values[told]:.2%}"
        else:
            more = f"perplexity {values['perplexity']:.2f}  {values[told]:.4f} bits per byte"
        self._progress.say(
            f"step {number}/{self._asked.train.steps}  held-out loss {values['loss']:.4f}  {more}"
        )

    def summary(self, params: Any) -> str:
        """What the whole run came to, and the losses to the last digit."""
        seconds = time.perf_counter() - self._began
        stepping = seconds - self._compiling - self._paused
        rate = self._own_tokens / stepping
        use = flops.utilisation(rate, self._config, self._asked.data.length, self._peak)
        peak = f"{self._peak.source} {self._peak.flops_per_second / 1e9:,.0f} GFLOP/s"
        speed = f"{rate:,.0f} tokens/s, {use:.0%} of the {peak}"
        waited = f"{self._waited_in_all / stepping:.1%} of it waiting for data"
        memory = device_memory()
        held = "" if memory is None else f", at most {memory / 2**30:,.2f} GiB on a device"
        return "\n".join(
            [
                f"trained {self._steps} steps in {log.duration(seconds)}: {speed}, {waited}{held}",
                f"train_step compiled {self._programs['train_step']}x, in {self._compiling:.1f} s",
                last_losses(self.meta()),
                f"weights {checkpoint.tree_digest(params)}",
            ]
        )

    def _settle(self) -> None:
        """Reads the metrics handed in last, waiting for their step if it is not done."""
        if self._pending is None:
            return
        number, metrics = self._pending
        self._pending = None
        norms = metrics["norms"]  # left on the devices: only a bad step's are read
        scalars = {name: value for name, value in metrics.items() if name != "norms"}
        values = {name: value.item() for name, value in jax.device_get(scalars).items()}
        self._history.append([number, repr(values["loss"]), repr(values["grad_norm"])])
        if flight.is_bad(values):
            return self._bad(number, values, norms)
        del values["limit"]
        if self._asked.loss.plain:
            values.pop("objective", None)  # the loss once more
        tokens = values.pop("tokens")
        self._tokens += tokens
        self._own_tokens += tokens
        self._steps += 1
        self._losses["train"] = values["loss"]
        line = number % self._asked.train.log_every == 0 or number == self._asked.train.steps
        timing = self._timing(tokens, number)
        if line:
            self._record.metrics(number, "train", {**values, "tokens": self._tokens}, timing)
            self._restart()
        self._progress.step(number, values, timing, line)

    def _timing(self, tokens: int, number: int) -> dict[str, Any]:
        """Rates since the last line, what was compiled, and from the whole process's pace the time that is left."""
        now = time.perf_counter()
        self._since += tokens
        seconds = now - self._mark
        rate = self._since / seconds
        pace = (now - self._began - self._compiling) / self._steps
        return {
            "tokens_per_second": rate,
            "utilisation": flops.utilisation(
                rate, self._config, self._asked.data.length, self._peak
            ),
            "data_wait": self._waited / seconds,
            "seconds_left": pace * (self._asked.train.steps - number),
            "compile_seconds": self._compiling,
            "compiles": self._programs["train_step"],
            "device_memory": device_memory(),
        }

    def _restart(self) -> None:
        """Rates are taken from here on."""
        self._mark, self._since, self._waited = time.perf_counter(), 0, 0.0

    def _bad(self, number: int, values: Mapping[str, float], norms: Mapping[str, Any]) -> None:
        """Records a step that changed nothing; raises unless the run is to go on without it."""
        batch, reason = self._batch(number), flight.reason(number, values)
        skips = self._asked.train.on_bad_step == "skip"
        path = self._record.directory / flight.NAME
        if self._record.writes:
            flight.write(path.parent, number, values, norms, self._history, batch, self._key)
        described = {name: repr(values[name]) for name in ("loss", "grad_norm", "limit")}
        self._record.event(
            number,
            "skipped" if skips else "stopped",
            {**described, "rows": flight.rows(batch)},
        )
        if not skips:
            raise errors.BadInput(
                f"{reason}; {path} has its rows and norms; the last checkpoint is kept; go on without such batches by "
                "--config.train.on_bad_step=skip, or lower optimizer.learning_rate in another --workdir"
            )
        self._skipped.append(number)
        patience = flight.PATIENCE
        if self._skipped[-patience:] == list(range(number - patience + 1, number + 1)):
            raise errors.BadInput(
                f"{reason}, the last of {patience} bad steps in a row; {path} has its rows and norms; the last "
                "checkpoint is kept; lower optimizer.learning_rate in another --workdir"
            )
        self._progress.say(f"{reason}: skipped, as ledger.jsonl says")


def device_memory() -> int | None:
    """The most bytes that one of this process's devices has held so far; None where the backend does not say."""
    found = [device.memory_stats() or {} for device in jax.local_devices()]
    return max(
        (stats["peak_bytes_in_use"] for stats in found if "peak_bytes_in_use" in stats),
        default=None,
    )


def last_losses(meta: Mapping[str, Any]) -> str:
    """The losses in a checkpoint's meta, to the last digit."""
    names = {
        "train": "last training loss",
        "valid": "held-out loss",
        "bits_per_byte": "bits per byte",
        "accuracy": "held-out accuracy",
    }
    losses = meta.get("losses", {})
    return ", ".join(f"{text} {losses[name]!r}" for name, text in names.items() if name in losses)
