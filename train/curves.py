"""How did the loss of a run fall? The numbers of its curve, read from `metrics.jsonl`."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from model import errors


def loss(run: pathlib.Path) -> dict[str, Any]:
    """Both losses of a run by step and tokens, and where `xz -9e` stands if `eval` has measured it."""
    run = pathlib.Path(run)
    training, held_out = read_metrics(run / "metrics.jsonl")
    not_finite = [record["step"] for record in training + held_out if record["loss"] is None]
    training = [record for record in training if record["loss"] is not None]
    held_out = [record for record in held_out if record["loss"] is not None]
    if not training + held_out:
        raise errors.BadInput(
            f"{run / 'metrics.jsonl'} holds no finite loss yet; train for longer, then look again"
        )
    unit = "tokens" if all("tokens" in record for record in training + held_out) else "step"
    values = [record["loss"] for record in training]
    return {
        "figure": "loss",
        "x": unit,
        "not_finite": sorted(not_finite),
        "xz": compressor(run / "evaluation.json", held_out),
        "training": {
            **_columns(training, "step", unit),
            "loss": values,
            "smoothed": trailing_mean(values),
        },
        "held_out": _columns(held_out, "step", unit, "loss", "bits_per_byte"),
    }


def read_metrics(path: pathlib.Path) -> tuple[list[dict], list[dict]]:
    """The training and the held-out records of a metrics file, by step.

    Of several for one step the last counts. A last line without its end is still being written and is left out.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise errors.BadInput(
            f"{path} cannot be read ({error.strerror}); is {path.parent} a run directory?"
        ) from error
    except UnicodeDecodeError as error:
        raise errors.BadInput(
            f"{path} is not UTF-8 at byte {error.start}; restore it or train again"
        ) from error
    records: dict[str, dict[int, dict]] = {"train": {}, "valid": {}}
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        record = _record(f"{path} line {number}", line)
        if record["split"] in records:
            records[record["split"]][record["step"]] = record
    training, held_out = ([steps[step] for step in sorted(steps)] for steps in records.values())
    return training, held_out


def trailing_mean(values: Sequence[float]) -> list[float]:
    """Each value's mean with those before it, over the last twentieth of what has been seen so far.

    A window that grows with the run lags little behind a steep start and still calms the end. Twenty values or fewer
    are returned as they are; the 21st is the mean of two.
    """
    total = np.cumsum([0.0, *values])
    ends = np.arange(1, len(values) + 1)
    starts = ends - -(-ends // 20)
    return (
        ((total[ends] - total[starts]) / (ends - starts)).tolist()
        if len(values) > 20
        else list(values)
    )


def compressor(path: pathlib.Path, held_out: list[dict]) -> dict[str, float] | None:
    """The bits per byte that `eval` found `xz -9e` to need, and the loss that would need as many.

    None where `eval` has not been run, or the held-out text not measured.
    """
    if not path.exists() or not held_out or not held_out[-1].get("bits_per_byte"):
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and "bytes" not in found and "loss" in found:
            return None  # of a task, which no compressor does
        bits = 8 * found["xz_bytes"] / found["bytes"]
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise errors.BadInput(f"{path} is not what eval writes; run eval again") from error
    last = held_out[-1]
    return {"bits_per_byte": bits, "loss": bits * last["loss"] / last["bits_per_byte"]}


def _record(where: str, line: str) -> dict:
    """A line of a metrics file, checked."""
    try:
        record = json.loads(line, parse_constant=lambda _: None)
    except json.JSONDecodeError as error:
        raise errors.BadInput(f"{where} is not JSON ({error.msg}); remove the line") from error
    if not isinstance(record, dict):
        raise errors.BadInput(
            f"{where} is {line.strip()[:40]!r}; it must be a JSON object, or be removed"
        )
    kinds = {"step": int, "split": str, "loss": int | float | None}
    for name, kind in kinds.items():
        value = record.get(name, ...)
        if not isinstance(value, kind) or isinstance(value, bool):
            found = f"{name}={value!r}" if name in record else f"no {name}"
            raise errors.BadInput(f"{where} has {found}; correct or remove the line")
    return record


def _columns(records: list[dict], *names: str) -> dict[str, list]:
    return {name: [record.get(name) for record in records] for name in names}
