"""What does a sweep look like? A panel per measure: a heat map over two settings, or a line over one.

It draws the numbers that `decode.sweep` writes into results.json, and those of `train.standings`.
"""

import math
import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from decode import comparison
from train import figures

COLUMNS = 4
SHARED = "and the same random numbers for all arms."
CELL, LETTER = 0.52, 0.072  # inches: of a cell at least, and of a letter of 8 points


def draw(results: Mapping[str, Any], directory: pathlib.Path) -> pathlib.Path:
    """Writes `figures/sweep.png` and its numbers beside it into the directory of a sweep; returns the picture."""
    return figures.write(panels, data(results), pathlib.Path(directory) / "figures" / "sweep")


def data(results: Mapping[str, Any]) -> dict[str, Any]:
    """What is drawn: up to two axes, and per measure the values over them and half widths of intervals.

    Of more than two axes those with most values are drawn, and the rest averaged over. Measures that are the same in
    every arm are only told. What an arm lacks is null.
    """
    axes, arms = results["axes"], results["arms"]
    order = sorted(range(len(axes)), key=lambda i: -len(axes[i]["values"]))
    columns, rows = (*order[:2], None)[:2]
    drawn = [axes[i] for i in (rows, columns) if i is not None]
    measures, constant = [], []
    for measure in results["measures"]:
        seen = {arm["measures"][measure["name"]]["value"] for arm in arms}
        if len(seen) == 1:
            constant.append({**measure, "value": seen.pop()})
            continue
        places: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
        for arm in arms:
            where = 0 if rows is None else arm["at"][rows], arm["at"][columns]
            places.setdefault(where, []).append(arm["measures"][measure["name"]])
        shape = 1 if rows is None else len(axes[rows]["values"]), len(axes[columns]["values"])
        values, half_widths = (
            [
                [_mean([cell[key] for cell in places[r, c]]) for c in range(shape[1])]
                for r in range(shape[0])
            ]
            for key in ("value", "half_width")
        )
        measures.append({**measure, "values": values, "half_widths": half_widths})
    return {
        "figure": "sweep",
        "axes": drawn,
        "averaged": [axes[i]["name"] for i in order[2:]],
        "note": results.get("note") or f"{results['prompts']} prompts, {SHARED}",
        "over": results.get("over", "prompts"),
        "constant": constant,
        "measures": measures,
    }


def panels(numbers: Mapping[str, Any]) -> Figure:
    """A panel per measure, each with its own scale; only the lowest ones have the settings written below."""
    measures, across = numbers["measures"], numbers["axes"][-1]
    down = numbers["axes"][0] if len(numbers["axes"]) == 2 else None
    named = across["name"] == comparison.ARM
    labels, ticks = across["values"] if named else down["values"] if down else [], across["values"]
    longest = max(map(len, ticks))
    margin = 0.5 + LETTER * max(map(len, labels), default=1)
    columns = min(2 if named else COLUMNS, max(len(measures), 1))
    cell = max(CELL, LETTER * (1 + _longest(measures))) if down else 0.4 * (not named)
    wide = max(2.0, cell * len(ticks))
    turned = not named and LETTER * (longest + 1) > wide / len(ticks)
    high = max(0.9, 0.3 * len(labels)) if down else max(1.2, 0.24 * len(labels))
    gap, title = 0.2 if labels else 0.55, 0.48
    foot = 0.45 + (LETTER * longest if turned else 0)
    rows = -(-len(measures) // columns)
    width = max(margin + columns * (wide + gap), 6.6)
    note = textwrap.fill(_note(numbers), int((width - 0.3) / LETTER))
    top = 0.48 + 0.16 * len(note.splitlines())
    height = top + rows * (high + title) + foot
    figure = Figure(figsize=(width, height))
    for i, measure in enumerate(measures):
        row, column = divmod(i, columns)
        left, upper = margin + column * (wide + gap), top + title - 0.12 + row * (high + title)
        box = left / width, 1 - (upper + high) / height, wide / width, high / height
        axes = figure.add_axes(box)
        axes.set_title(measure["title"], fontsize=9, loc="left", pad=4)
        (_cells if down else _dots if named else _line)(axes, measure, across)
        if labels:
            axes.set_yticks(range(len(labels)), [] if column else labels, color=figures.INK)
        if down and not column:
            axes.set_ylabel(down["name"], fontsize=8, color=figures.SOFT)
        if not named:
            last = i + columns >= len(measures)
            look: Any = dict(color=figures.INK, rotation=90 * turned)
            axes.set_xticks(
                range(len(ticks)) if down else _places(across), ticks if last else [], **look
            )
            axes.set_xlabel(across["name"] * last, fontsize=8, color=figures.SOFT)
    figure.text(0.12 / width, 1 - 0.12 / height, _title(numbers), **figures.TITLE, va="top")
    figure.text(0.12 / width, 1 - 0.37 / height, note, color=figures.SOFT, va="top")
    return figure


def _cells(axes: Axes, measure: Mapping[str, Any], across: Mapping[str, Any]) -> None:
    """Values by colour, dark is high, and in digits."""
    values = np.array(measure["values"], float)
    low, high = (np.nanmin(values), np.nanmax(values)) if np.isfinite(values).any() else (0, 1)
    span = (high - low) or 1.0
    axes.imshow(
        np.ma.masked_invalid(values),
        figures.ATTENTION,
        vmin=low,
        vmax=low + span,
        interpolation="nearest",
        aspect="auto",
    )
    for (row, column), value in np.ndenumerate(values):
        dark = math.isfinite(value) and (value - low) / span > 0.35
        text = _written(measure, value)
        color = "white" if dark else figures.INK
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
    _bare(axes)


def _line(axes: Axes, measure: Mapping[str, Any], across: Mapping[str, Any]) -> None:
    """Values over one axis with their intervals: at their numbers if the axis has any, else at equal distances."""
    axes.errorbar(_places(across), *_points(measure), **_marks("-"))
    if across.get("log"):
        axes.set_xscale("log")
        axes.minorticks_off()
    axes.margins(x=0.08, y=0.12)
    axes.grid(axis="y", color=figures.FAINT, linewidth=0.7)
    axes.set_axisbelow(True)


def _dots(axes: Axes, measure: Mapping[str, Any], across: Mapping[str, Any]) -> None:
    """A value per arm with its interval, the first arm on top."""
    values, half_widths = _points(measure)
    axes.errorbar(values, range(len(values)), xerr=half_widths, **_marks("none"))
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.grid(axis="x", color=figures.FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)


def _points(measure: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    values, half_widths = measure["values"][0], measure["half_widths"][0]
    return np.array(values, float), np.nan_to_num(np.array(half_widths, float))


def _places(axis: Mapping[str, Any]) -> Sequence[float]:
    return axis.get("numbers") or range(len(axis["values"]))


def _marks(line: str) -> dict[str, Any]:
    return dict(
        color=figures.BLUE,
        ecolor=figures.PALE,
        linestyle=line,
        linewidth=1.4,
        marker="o",
        markersize=4,
    )


def _bare(axes: Axes) -> None:
    axes.tick_params(length=0, pad=3)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _mean(numbers: Sequence[float | None]) -> float | None:
    """The mean of the numbers that there are."""
    known = [number for number in numbers if number is not None]
    return math.fsum(known) / len(known) if known else None


def _title(numbers: Mapping[str, Any]) -> str:
    names = [axis["name"] for axis in numbers["axes"]]
    if names == [comparison.ARM]:
        return f"{len(numbers['axes'][0]['values'])} arms"
    return " by ".join(reversed(names))


def _note(numbers: Mapping[str, Any]) -> str:
    note = numbers["note"]
    if len(numbers["axes"]) == 1:
        note += f" Bars: 95 % intervals over {numbers['over']}."
    if numbers["averaged"]:
        note += f" Each cell is the mean over {' and '.join(numbers['averaged'])}."
    same = [f"{each['title']} {_written(each, each['value'])}" for each in numbers["constant"]]
    return note + (f" No difference in {', '.join(same)}." if same else "")


def _written(measure: Mapping[str, Any], value: float | None) -> str:
    known = value is not None and math.isfinite(value)
    return f"{value:.{measure['digits']}f}" if known else "-"


def _longest(measures: Sequence[Mapping[str, Any]]) -> int:
    """Letters of the longest number in a cell."""
    texts = (_written(each, x) for each in measures for row in each["values"] for x in row)
    return max(map(len, texts), default=0)
