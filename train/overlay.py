"""How did the losses of all arms of a sweep fall? One picture, a colour per setting."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from decode import grid
from model import errors
from train import curves, figures
from train.trials import Arm

LONGEST = 14  # settings in the legend; of more, the best


def draw(arms: Sequence[tuple[Arm, pathlib.Path]], workdir: pathlib.Path) -> pathlib.Path | None:
    """Writes `figures/curves.png` and its numbers; None if no arm has a loss yet."""
    numbers = data(arms)
    if not numbers["lines"]:
        return None
    return figures.write(lines, numbers, workdir / "figures" / "curves")


def data(arms: Sequence[tuple[Arm, pathlib.Path]]) -> dict[str, Any]:
    """Per arm its curve: held-out losses where every arm has several, else smoothed training losses."""
    found = []
    for arm, place in arms:
        try:
            found.append((arm, curves.loss(place)))
        except errors.BadInput:  # an arm that has not begun
            continue
    several = all(len(curve["held_out"]["loss"]) > 1 for _, curve in found)
    kind, name = ("held_out", "loss") if several else ("training", "smoothed")
    settings = list(dict.fromkeys(str(arm.setting) for arm, _ in found))
    return {
        "figure": "curves",
        "kind": "held-out loss" if several else "training loss (mean of the last 5 %)",
        "lines": [
            {
                "name": ", ".join(grid.shown(value) for value in arm.setting),
                "seed": arm.recipe.seed,
                "setting": settings.index(str(arm.setting)),
                "x": curve["x"],
                "at": curve[kind][curve["x"]],
                "loss": curve[kind][name],
            }
            for arm, curve in found
            if curve[kind][name]
        ],
    }


def lines(numbers: Mapping[str, Any]) -> Figure:
    """Loss against tokens or steps, a line per arm."""
    figure = Figure(figsize=(7.6, 4.4))
    axes = figure.add_axes((0.085, 0.125, 0.665, 0.75))
    drawn = numbers["lines"]
    count = max(line["setting"] for line in drawn) + 1
    last = {line["setting"]: line["loss"][-1] for line in drawn}
    named = sorted(last, key=last.__getitem__)[:LONGEST]
    colors = figures.ATTENTION(np.linspace(0.2, 1, count))
    for line in drawn:
        label = None
        if line["setting"] in named:
            named.remove(line["setting"])  # once per setting, whatever its seeds
            label = line["name"] or "the config"
        axes.plot(
            line["at"], line["loss"], color=colors[line["setting"]], linewidth=1.2, label=label
        )
    axes.grid(axis="y", color=figures.FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.set_xlabel("training tokens" if drawn[0]["x"] == "tokens" else "training steps")
    axes.set_ylabel(f"{numbers['kind']}, nats per token")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=8)
    figure.text(0.02, 0.97, f"The losses of {len(drawn)} arms", **figures.TITLE, va="top")
    return figure
