"""How do the arms of a sweep compare? The numbers for programs, and tables of them for people.

A cell has an arm's value and below it the difference from the baseline, with the half width of its 95 % interval
over prompts. The baseline has the half width of its own value instead.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from decode import grid, quality
from decode.grid import Arm, Grid
from decode.quality import Estimate

NARROWEST, WIDEST = 80, 120
GAP = "  "
ARM = "arm"  # the axis of arms that are no whole grid
LONGEST = 40  # letters of an arm there


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of an arm: its measures, what failed in one line, and whether it was decoded just now."""

    arm: Arm
    measures: Mapping[str, Estimate | None] | None = None
    failure: str | None = None
    decoded: bool = False


def numbers(arms: Grid, results: Sequence[Result], baseline: Arm, prompts: int) -> dict[str, Any]:
    """All that is known of a sweep, as JSON has it.

    Per arm and measure: the value, and the difference from the baseline, each with the half width of its interval.
    """
    measured = {result.arm: result.measures or {} for result in results}
    names = [
        name
        for name in quality.COLUMNS
        if any(measures.get(name) for measures in measured.values())
    ]
    axes, at = _axes(arms)
    rows = []
    for result in results:
        cells = {}
        for name in names:
            ours, theirs = measured[result.arm].get(name), measured[baseline].get(name)
            between = ours - theirs if ours and theirs else None
            cells[name] = {
                "value": _plain(ours),
                "half_width": ours and ours.half_width(),
                "difference": _plain(between),
                "difference_half_width": between and between.half_width(),
            }
        rows.append(
            {
                "name": result.arm.name,
                "digest": result.arm.digest,
                "settings": dict(result.arm.values),
                "at": at[result.arm],
                "failure": result.failure,
                "measures": cells,
            }
        )
    return {
        "prompts": prompts,
        "baseline": {"name": baseline.name, "digest": baseline.digest},
        "axes": axes,
        "measures": [
            {
                "name": name,
                "label": quality.COLUMNS[name].label,
                "title": quality.COLUMNS[name].title,
                "digits": quality.COLUMNS[name].digits,
            }
            for name in names
        ],
        "arms": rows,
        "notes": _notes(results, baseline, prompts),
    }


def table(numbers: Mapping[str, Any], width: int) -> str:
    """For a terminal: two lines per arm, in as many blocks of measures as the width asks for."""
    width = min(max(width, NARROWEST), WIDEST)
    axes = [_axis(numbers, i) for i in range(len(numbers["axes"]))]
    columns = [_column(numbers, measure) for measure in numbers["measures"]]
    left = sum(_wide(axis) + len(GAP) for axis in axes)
    blocks: list[list[list[str]]] = [[]]
    for column in columns:
        used = left + sum(_wide(each) + len(GAP) for each in blocks[-1])
        if blocks[-1] and used + _wide(column) > width:
            blocks.append([])
        blocks[-1].append(column)
    return "\n".join([*(_block(axes, block) for block in blocks), *_legend(numbers)])


def markdown(numbers: Mapping[str, Any]) -> str:
    """One table with every measure, for `sweep.md`."""
    axes = [_axis(numbers, i) for i in range(len(numbers["axes"]))]
    columns = [_column(numbers, measure) for measure in numbers["measures"]]
    heads = [column[0].strip() for column in axes + columns]
    lines = [_row(heads), _row(["---"] * len(axes) + ["---:"] * len(columns))]
    for row in range(1, len(axes[0]), 2):
        cells = [axis[row] for axis in axes]
        cells += [
            f"{column[row].strip()}<br>{column[row + 1].strip()}".removesuffix("<br>")
            for column in columns
        ]
        lines.append(_row(cells))
    titles = [f"* {measure['label']}: {measure['title']}" for measure in numbers["measures"]]
    return "\n".join(["# Sweep", "", *lines, "", *_legend(numbers), "", *titles, ""])


def _axes(arms: Grid) -> tuple[list[dict[str, Any]], dict[Arm, list[int]]]:
    """The axes with their values in words, and where each arm stands on them: of arms that are no whole grid, one."""
    if not arms.whole:
        names = [_short(arm.name) for arm in arms.arms]
        return [{"name": ARM, "values": names}], {arm: [i] for i, arm in enumerate(arms.arms)}
    axes = [
        {"name": axis, "values": [grid.shown(value) for value in several]}
        for axis, several in arms.axes.items()
    ]
    at = {
        arm: [several.index(getattr(arm.settings, axis)) for axis, several in arms.axes.items()]
        for arm in arms.arms
    }
    return axes, at


def _axis(numbers: Mapping[str, Any], i: int) -> list[str]:
    """A column of the table: head, then per arm the value of a setting and an empty line."""
    axis = numbers["axes"][i]
    lines = [axis["name"]]
    for arm in numbers["arms"]:
        mark = "failed" if arm["failure"] and not i else ""
        lines += [axis["values"][arm["at"][i]], mark]
    return lines


def _column(numbers: Mapping[str, Any], measure: Mapping[str, Any]) -> list[str]:
    """A column of the table: head, then per arm the value and the difference."""
    name, digits = measure["name"], measure["digits"]
    lines = [measure["label"]]
    for arm in numbers["arms"]:
        cell = arm["measures"][name]
        own = arm["digest"] == numbers["baseline"]["digest"]
        half = cell["half_width"] if own else cell["difference_half_width"]
        lines.append("-" if cell["value"] is None else f"{cell['value']:.{digits}f}")
        change = "" if own or cell["difference"] is None else f"{cell['difference']:+.{digits}f}"
        same = not own and cell["difference"] == 0 and not half
        lines.append("=" if same else change + ("" if half is None else f"±{half:.{digits}f}"))
    return lines


def _block(axes: Sequence[Sequence[str]], columns: Sequence[Sequence[str]]) -> str:
    widths = [_wide(column) for column in (*axes, *columns)]
    lines = []
    for cells in zip(*axes, *columns, strict=True):
        padded = [
            f"{cell:<{wide}}" if i < len(axes) else f"{cell:>{wide}}"
            for i, (cell, wide) in enumerate(zip(cells, widths, strict=True))
        ]
        lines.append(GAP.join(padded).rstrip())
    rule = "─" * (sum(widths) + len(GAP) * (len(widths) - 1))
    return "\n".join([lines[0], rule, *lines[1:], ""])


def _legend(numbers: Mapping[str, Any]) -> list[str]:
    return [
        f"Below each value: its difference from {numbers['baseline']['name']} ± the half width of a 95 % interval over",
        f"{numbers['prompts']} prompts, paired (all arms share prompts and random numbers); = is no difference at all.",
        *numbers["notes"],
    ]


def _notes(results: Sequence[Result], baseline: Arm, prompts: int) -> list[str]:
    """What the numbers do not have, and why."""
    notes = [f"failed: {each.arm.name}: {each.failure}" for each in results if each.failure]
    if any(each.measures is None and each.arm == baseline for each in results):
        notes.append(f"no differences: the baseline {baseline.name} failed")
    if prompts == 1:
        notes.append("no intervals: there is one prompt")
    if quality.sacrebleu is None:
        notes.append("no BLEU and chrF: install sacrebleu, as pip install 'ganymede[metrics]' does")
    return notes


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def _wide(column: Sequence[str]) -> int:
    return max(map(len, column))


def _plain(estimate: Estimate | None) -> float | None:
    """Its value, if JSON has it."""
    return estimate.value if estimate and math.isfinite(estimate.value) else None
