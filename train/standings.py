"""Which setting of a training sweep is best, and how sure is that? Numbers, tables and pictures of what arms measured.

A row is a setting; its value is the mean over seeds, with half of the 95 % interval of Student's t.
"""

import csv
import io
import itertools
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from decode import comparison, grid, quality
from model import files
from train import curves, heatmap, log, overlay, sweep
from train import trials as of_trials
from train.trials import Arm, Trials

JSON, CSV = "sweep.json", "sweep.csv"
GAP = "  "
MEASURES: tuple[dict[str, Any], ...] = (
    {"name": "held_out_loss", "label": "held-out loss", "title": "held-out loss", "digits": 4},
    {"name": "bits_per_byte", "label": "bits/byte", "title": "bits per byte", "digits": 4},
    {"name": "train_loss", "label": "train loss", "title": "training loss", "digits": 4},
)
LEGEND = (
    "Mean over seeds ± half of its 95 % interval (Student's t; one seed has none). Train loss: the mean of the",
    "last 5 % of lines. Time: of the steps, without compiling and evaluating.",
)


def run(
    trials: Trials,
    workdir: pathlib.Path,
    command: Sequence[str],
    *,
    shard: str = "0/1",
    retry: bool = False,
    only_report: bool = False,
    say: Callable[[str], Any] = print,
) -> int:
    """Trains the arms of a shard, as `sweep.run` does, and reports on all if they are all; returns the exit code."""
    arms, code = of_trials.shard(trials, shard), 0
    if not only_report:
        code = sweep.run(arms, workdir, command, retry=retry, say=say)
        if len(arms) < len(trials.arms):
            say(f"shard {shard} is done; when all are, --report makes the table")
            return code
    workdir.mkdir(parents=True, exist_ok=True)
    for line in report(trials, workdir):
        say(line)
    return code


def report(trials: Trials, workdir: pathlib.Path) -> list[str]:
    """Writes sweep.json, sweep.csv and pictures of what the arms have measured so far; returns lines for people."""
    found = numbers(trials, workdir)
    files.write_text(workdir / JSON, json.dumps(found, indent=1, allow_nan=False) + "\n")
    files.write_text(workdir / CSV, as_csv(found))
    lines = [table(found), f"wrote {workdir / JSON} and {workdir / CSV}"]
    drawn = []
    if any(row["seeds"] for row in found["settings"]):
        shown = {
            "axes": found["axes"],
            "arms": found["settings"],
            "measures": found["measures"],
            "note": f"{found['done']} of {len(found['arms'])} arms are done.",
            "over": "seeds",
        }
        drawn.append(heatmap.draw(shown, workdir))
    curve = overlay.draw([(arm, workdir / arm.digest) for arm in trials.arms], workdir)
    drawn += [curve] if curve else []
    return lines + [f"picture: {path}" for path in drawn]


def numbers(trials: Trials, workdir: pathlib.Path) -> dict[str, Any]:
    """All that is known of a sweep, as sweep.json has it: of each arm, and of each setting over its seeds."""
    arms = [_arm(arm, workdir / arm.digest, trials) for arm in trials.arms]
    by_digest = {arm["digest"]: arm for arm in arms}
    groups = list(trials.settings.values())
    whole = bool(trials.axes) and len(groups) == math.prod(map(len, trials.axes.values()))
    axes = {path: _ordered(several) for path, several in trials.axes.items()}
    settings = []
    for i, group in enumerate(groups):
        done = [found for arm in group if (found := by_digest[arm.digest])["state"] == "done"]
        at = [several.index(v) for several, v in zip(axes.values(), group[0].setting, strict=True)]
        settings.append(
            {
                "values": dict(zip(trials.axes, group[0].setting, strict=True)),
                "at": at if whole else [i],
                "asked": len(group),
                "seeds": len(done),
                "measures": {m["name"]: _estimate(done, m["name"]) for m in MEASURES},
                "tokens": _estimate(done, "tokens"),
                "seconds": _estimate(done, "seconds"),
            }
        )
    return {
        "axes": _axes(axes) if whole else [_names(trials, groups)],
        "measures": list(MEASURES),
        "done": sum(arm["state"] == "done" for arm in arms),
        "settings": settings,
        "arms": arms,
    }


def table(found: Mapping[str, Any]) -> str:
    """For a terminal: a row per setting, in the order of the sweep, and what is lowest."""
    rows = found["settings"]
    columns = [
        [name.rsplit(".", 1)[-1], *(grid.shown(row["values"][name]) for row in rows)]
        for name in (rows[0]["values"] if rows else ())
    ]
    left = len(columns)
    columns.append(["seeds", *(_count(row) for row in rows)])
    for m in MEASURES:
        cells = [_cell(row["measures"][m["name"]], m["digits"]) for row in rows]
        columns.append([m["label"], *cells])
    columns.append(["tokens", *(_cell(row["tokens"], 0) for row in rows)])
    columns.append(["time", *(_time(row["seconds"]["value"]) for row in rows)])
    widths = [max(map(len, column)) for column in columns]
    lines = [
        GAP.join(
            f"{cell:<{wide}}" if i < left else f"{cell:>{wide}}"
            for i, (cell, wide) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in zip(*columns, strict=True)
    ]
    rule = "─" * (sum(widths) + len(GAP) * (len(widths) - 1))
    return "\n".join([lines[0], rule, *lines[1:], "", *LEGEND, *_notes(found)])


def as_csv(found: Mapping[str, Any]) -> str:
    """A row per arm, with the digits that its numbers have."""
    keys = list(found["settings"][0]["values"]) if found["settings"] else []
    measured = [m["name"] for m in MEASURES] + ["tokens", "seconds"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["digest", *keys, "seed", "state", *measured])
    for arm in found["arms"]:
        cells = [arm["values"][key] for key in keys] + [arm["seed"], arm["state"]]
        writer.writerow([arm["digest"], *cells, *(arm[name] for name in measured)])
    return out.getvalue()


def _arm(arm: Arm, place: pathlib.Path, trials: Trials) -> dict[str, Any]:
    """What an arm measured; nothing of one that is not done."""
    failed, done = sweep.failure(place), sweep.finished(arm, place)
    measured: dict[str, Any] = dict.fromkeys([m["name"] for m in MEASURES] + ["tokens", "seconds"])
    if done:
        training, held_out = curves.read_metrics(place / "metrics.jsonl")
        losses = [line["loss"] for line in training if line["loss"] is not None]
        last = held_out[-1] if held_out else {}
        measured.update(
            held_out_loss=last.get("loss"),
            bits_per_byte=last.get("bits_per_byte"),
            train_loss=curves.trailing_mean(losses)[-1] if losses else None,
            tokens=training[-1].get("tokens") if training else None,
            seconds=_seconds(training),
        )
    return {
        "name": arm.name,
        "digest": arm.digest,
        "values": dict(zip(trials.axes, arm.setting, strict=True)),
        "seed": arm.recipe.seed,
        "state": "done" if done else "failed" if failed else "not done",
        "failure": None if done else failed,
        "budget": arm.tokens,
        **measured,
    }


def _seconds(training: Sequence[Mapping[str, Any]]) -> float | None:
    """How long the steps took, from the tokens between two lines and the rate there: whichever process made them."""
    tokens = [0, *(line.get("tokens", 0) for line in training)]
    rates = [(line.get("time") or {}).get("tokens_per_second") for line in training]
    if not all(rates):
        return None
    return math.fsum(
        (after - before) / rate
        for (before, after), rate in zip(itertools.pairwise(tokens), rates, strict=True)
    )


def _estimate(arms: Sequence[Mapping[str, Any]], name: str) -> dict[str, float | None]:
    """The mean over arms and the half width of its interval; null where an arm has no such number."""
    several = [arm[name] for arm in arms]
    found = None if None in several else quality.mean(several)
    if found is None:
        return {"value": None, "half_width": None}
    return {"value": found.value, "half_width": found.half_width()}


def _ordered(several: Sequence[Any]) -> list[Any]:
    """Numbers by size, else in the order of the sweep."""
    numeric = all(type(value) in (int, float) for value in several)
    return sorted(several) if numeric else list(several)


def _axes(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """The axes of a whole grid as pictures have them; numbers of a single one stand at their places."""
    made: list[dict[str, Any]]
    made = [{"name": path, "values": [grid.shown(v) for v in axes[path]]} for path in axes]
    (first, *others) = axes.values()
    if not others and all(type(value) in (int, float) for value in first):
        made[0] |= {"numbers": list(first), "log": _is_log(first)}
    return made


def _names(trials: Trials, groups: Sequence[Sequence[Arm]]) -> dict[str, Any]:
    """The one axis of settings that are no whole grid."""
    names = [
        ", ".join(
            f"{path.rsplit('.', 1)[-1]}={grid.shown(value)}"
            for path, value in zip(trials.axes, arm.setting, strict=True)
        )
        for arm, *_ in groups
    ]
    return {"name": comparison.ARM, "values": [name or "the config" for name in names]}


def _is_log(several: Sequence[float]) -> bool:
    """Whether ascending numbers are closer to equal ratios than to equal differences."""
    if several[0] <= 0 or len(several) < 3:
        return several[0] > 0 and several[-1] >= 10 * several[0]
    spread = [
        np.std(steps) / np.mean(steps) for steps in (np.diff(several), np.diff(np.log(several)))
    ]
    return bool(spread[1] < spread[0])


def _notes(found: Mapping[str, Any]) -> list[str]:
    """What the table does not have, and which setting is best."""
    notes = [f"failed: {arm['name']}: {arm['failure']}" for arm in found["arms"] if arm["failure"]]
    missing = sum(arm["state"] == "not done" for arm in found["arms"])
    if missing:
        notes.append(f"not done: {missing} of {len(found['arms'])} arms")
    ranked = [
        row for row in found["settings"] if row["measures"]["held_out_loss"]["value"] is not None
    ]
    if ranked:
        best = min(ranked, key=lambda row: row["measures"]["held_out_loss"]["value"])
        told = ", ".join(f"{path}={grid.shown(v)}" for path, v in best["values"].items())
        loss = _cell(best["measures"]["held_out_loss"], 4)
        notes.append(
            f"lowest held-out loss: {loss} of {told or 'the config'} ({_count(best)} seeds)"
        )
    return notes


def _cell(estimate: Mapping[str, float | None], digits: int) -> str:
    value, half = estimate["value"], estimate["half_width"]
    if value is None:
        return "-"
    return f"{value:,.{digits}f}" + (f" ±{half:.{digits}f}" if half is not None and digits else "")


def _count(row: Mapping[str, Any]) -> str:
    return (
        str(row["seeds"]) if row["seeds"] == row["asked"] else f"{row['seeds']} of {row['asked']}"
    )


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else log.duration(seconds)
