"""How does accuracy grow with the number of shots? The picture of what `train/few_shot.py` measures."""

import pathlib
import textwrap
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from train import figures

CHOICES = {
    "first": "the first of the pool",
    "random": "drawn anew for each question",
    "nearest": "those most like the question",
}
LENGTHS = {
    "sum": "of the likeliest label",
    "token": "of the label that is likeliest per token",
    "character": "of the label that is likeliest per character",
    "byte": "of the label that is likeliest per byte",
}
CALIBRATIONS = {
    "none": "",
    "content_free": ", calibrated by a content-free prompt",
    "unconditional": ", over its likelihood behind the premise alone",
}

BAR: dict[str, Any] = dict(color=figures.PALE, linewidth=5, zorder=1)


def draw(numbers: Mapping[str, Any], directory: pathlib.Path) -> pathlib.Path:
    """Writes `figures/shots.png` and its numbers beside it; returns the picture."""
    return figures.write(curve, data(numbers), directory / "figures" / "shots")


def data(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """What is drawn."""
    arms = sorted(numbers["arms"], key=lambda arm: arm["shots"])
    columns = {name: [arm[name] for arm in arms] for name in ("shots", "value", "low", "high")}
    return {
        "figure": "shots",
        "metric": numbers["metric"],
        "questions": numbers["questions"],
        "note": described(numbers),
        "majority": numbers["majority"],
        **columns,
    }


def described(numbers: Mapping[str, Any]) -> str:
    """How shots were chosen, and answers read, in words."""
    if numbers["score"] == "generation":
        how = "answers as the model writes them"
    else:
        how = f"answers: {LENGTHS[numbers['length']][3:]}{CALIBRATIONS[numbers['calibration']]}"
    return f"shots: {CHOICES[numbers['choose']]}; {how}"


def curve(numbers: Mapping[str, Any]) -> Figure:
    """Accuracy by shots at equal distances, with intervals, and the share of the commonest label."""
    note = f"{numbers['note'].capitalize()}. Bars: 95 % intervals over questions."
    note = textwrap.fill(note, 105)
    high = 4.2 + 0.16 * note.count("\n")
    figure = Figure(figsize=(7.6, high))
    axes = figure.add_axes((0.085, 0.52 / high, 0.74, 2.95 / high))
    places, tops = range(len(numbers["shots"])), []
    for place, value, low, top in zip(
        places, numbers["value"], numbers["low"], numbers["high"], strict=True
    ):
        tops.append(value if top is None else top)
        axes.vlines(place, value if low is None else low, tops[-1], **BAR)
    look: Any = dict(linewidth=1.6, marker="o", markersize=5, zorder=3)
    axes.plot(places, numbers["value"], color=figures.BLUE, **look)
    beside: Any = dict(textcoords="offset points", fontsize=8)
    for place, value, top in zip(places, numbers["value"], tops, strict=True):
        where: Any = dict(xytext=(0, 7), ha="center", color=figures.BLUE)
        axes.annotate(f"{value:.1f}", (place, top), **where, **beside)
    if numbers["majority"]:
        share, name = numbers["majority"]["value"], figures.label(numbers["majority"]["answer"])
        axes.axhline(share, color=figures.SOFT, linewidth=1, linestyle=(0, (4, 3)), zorder=2)
        where = dict(xytext=(8, 0), va="center", color=figures.SOFT)
        where["xycoords"] = axes.get_yaxis_transform()
        axes.annotate(f"always\n{name!r}:\n{share:.1f} %", (1, share), **where, **beside)
    axes.margins(y=0.12)
    axes.set_xlim(-0.5, len(places) - 0.5)
    axes.set_xticks(list(places), [str(count) for count in numbers["shots"]])
    axes.grid(axis="y", color=figures.FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel("shots in the prompt")
    axes.set_ylabel(f"{numbers['metric']} (%)")
    title = f"{numbers['metric'].capitalize()} against shots, {numbers['questions']:,} questions"
    figure.text(0.085, 1 - 0.12 / high, title, **figures.TITLE, va="top")
    figure.text(0.085, 1 - 0.37 / high, note, color=figures.SOFT, va="top")
    return figure
