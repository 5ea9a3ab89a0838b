"""What does an embedding space look like? Nearest neighbours, and a projection on two or three axes.

Each function takes what train/embeddings.py gives, and what the JSON beside the picture holds.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from mpl_toolkits.mplot3d import proj3d  # type: ignore[import-untyped]

import model
from train import embeddings, figures

ASKED = 8  # words whose neighbours are shown if nobody asks for others
MAPPED = 150  # words on a map
SIZE = 8  # points, of the names beside dots
BLANKS = "\u2581\u0120 "  # how a piece begins a word


def embedding_space(
    lm: model.LM,
    directory: pathlib.Path,
    words: Sequence[str] | None = None,
    counts_V: np.ndarray | None = None,
    several: str = "mean",
) -> tuple[list[pathlib.Path], dict[str, Any]]:
    """Draws the nearest neighbours of words, and the words on two and on three axes where there are enough.

    Without `words` the most frequent are taken: by `counts_V`, or else by their order in the vocabulary. `several` is
    that of `embeddings.space`. Returns the pictures and the numbers of the neighbours.
    """
    table_VD = np.asarray(lm.params["embedding"]["weight"], np.float32)
    space = embeddings.space(table_VD, lm.words, words or (), several)
    order = "as given"
    if not words:
        order = "the most frequent" if counts_V is not None else "the first of the vocabulary"
        tokens = embeddings.frequent(lm.words, MAPPED, counts_V)
        names = [space.names[token] for token in tokens]
        space = dataclasses.replace(space, rows=dict(zip(names, tokens, strict=True)))
    long = [name for name in space.rows if len(name) > 4] or list(space.rows)
    shown = list(words or long[:: max(1, len(long) // ASKED)][:ASKED])
    found = embeddings.neighbours(space, shown)
    pictures = [figures.write(neighbours, found, directory / "neighbours")] if shown else []
    for dimensions in (2, 3):
        if len(space.rows) > dimensions:
            rows = list(space.rows.values())
            numbers = embeddings.projection(space, rows, dimensions) | {"order": order}
            stem = directory / f"embeddings_{dimensions}d"
            pictures.append(figures.write(projection, numbers, stem))
    return pictures, found


def neighbours(numbers: Mapping[str, Any]) -> Figure:
    """A panel per word: the pieces nearest to it, and their cosines as bars."""
    words = numbers["words"]
    margin = 0.35 + max(
        figures.inches(figures.label(p), figures.LABEL) for word in words for p in word["pieces"]
    )
    columns = min(len(words), 4)
    rows, side = -(-len(words) // columns), 1.1
    most = max(len(word["pieces"]) for word in words)
    top, title, body = 0.6, 0.33, 0.19 * most
    width = max(columns * (margin + side) + 0.3, 5.2)
    height = top + rows * (title + body) + 0.1
    figure = Figure(figsize=(width, height))
    for i, word in enumerate(words):
        row, column = divmod(i, columns)
        left, upper = margin + column * (margin + side), top + row * (title + body) + title
        high = 0.19 * len(word["pieces"])
        axes = figure.add_axes(
            (left / width, 1 - (upper + high) / height, side / width, high / height)
        )
        places = range(len(word["pieces"]))
        axes.barh(places, [max(x, 0) for x in word["cosines"]], height=0.72, color=figures.BLUE)
        for y, cosine in enumerate(word["cosines"]):
            beside: Any = dict(textcoords="offset points", va="center", fontsize=8)
            axes.annotate(f"{cosine:.2f}", (max(cosine, 0), y), (3, 0), color=figures.INK, **beside)
        axes.set_xlim(0, 1.35)  # room for the number behind the longest bar
        axes.set_ylim(len(word["pieces"]) - 0.5, -0.5)
        axes.set_yticks(
            places, [figures.label(piece) for piece in word["pieces"]], color=figures.INK
        )
        axes.tick_params(axis="y", length=0)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        figures.above(axes, 3, figures.label(word["word"]), weight="bold")
    note = "Cosine with each word's own embedding; the word itself is left out."
    figures.heading(figure, 0.12 / width, "Nearest in the embedding space", note)
    return figure


def projection(numbers: Mapping[str, Any]) -> Figure:
    """A dot per piece on two or three principal axes; names that would cover others are left to the numbers."""
    points_NK, deep = np.array(numbers["points"]), len(numbers["explained"]) == 3
    figure = Figure(figsize=(7.6, 7.0))
    box = (0.0, 0.0, 0.95, 0.97) if deep else (0.105, 0.065, 0.875, 0.84)
    axes: Any = figure.add_axes(box, projection="3d" if deep else None)
    if deep:
        axes.scatter(*points_NK.T, color=figures.BLUE, s=9, depthshade=True, linewidth=0)
        for wall in (axes.xaxis, axes.yaxis, axes.zaxis):
            wall.set_pane_color("white")
            wall._axinfo["grid"].update(color=figures.FAINT, linewidth=0.7)
        axes.set_box_aspect((1, 1, 0.85), zoom=1.05)
        axes.view_init(elev=18, azim=-60)
        x_N, y_N, _ = proj3d.proj_transform(*points_NK.T, axes.get_proj())
    else:
        axes.scatter(*points_NK.T, color=figures.BLUE, s=9, linewidth=0)
        axes.margins(0.06)
        axes.grid(color=figures.FAINT, linewidth=0.7)
        axes.set_axisbelow(True)
        x_N, y_N = points_NK.T
    for axis, share in zip("xyz", numbers["explained"], strict=False):
        name = f"axis {'xyz'.index(axis) + 1} · {figures.percent(share)}"
        getattr(axes, f"set_{axis}label")(
            name, color=figures.SOFT, labelpad=14 if deep and axis != "z" else 4
        )
        low, high = getattr(axes, f"get_{axis}lim")()
        places = [
            x
            for x in ticker.MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high)
            if low <= x <= high
        ]
        getattr(axes, f"set_{axis}ticks")(places)
    names = [figures.label(piece.lstrip(BLANKS) or piece) for piece in numbers["pieces"]]
    _names(figure, axes, np.stack([x_N, y_N], 1), names)
    kept = f"{len(points_NK)} pieces, {numbers['order']}, on their principal axes, with the variance of each."
    figures.heading(figure, 0.12 / 7.6, "The embedding space", kept)
    return figure


def _names(figure: Figure, axes: Axes, points_N2: np.ndarray, names: Sequence[str]) -> None:
    """Names right or left of their dots, the first first; one that would cover a dot or a text is not drawn."""
    figure.draw_without_rendering()
    texts = [each.get_window_extent() for each in axes.findobj(Text) if each.get_text().strip()]
    dots_N2 = axes.transData.transform(points_N2) / figure.dpi
    taken = np.stack([dots_N2[:, 0] - 0.02, dots_N2[:, 1] - 0.02, *(dots_N2.T + 0.02)], 1)
    taken = np.concatenate([taken, np.array([box.extents for box in texts]) / figure.dpi])
    bounds = np.array(axes.bbox.extents) / figure.dpi
    for i, name in enumerate(names):
        left, low = dots_N2[i]
        wide = figures.inches(name, {"size": SIZE}) + 0.05
        for start, points, side in ((left + 0.03, 3, "left"), (left - 0.03 - wide, -3, "right")):
            box = np.array([start, low - 0.06, start + wide, low + 0.06])
            apart = (taken[:, 2] < box[0]) | (box[2] < taken[:, 0])
            apart |= (taken[:, 3] < box[1]) | (box[3] < taken[:, 1])
            inside = (box[:2] > bounds[:2]).all() and (box[2:] < bounds[2:]).all()
            if apart.all() and inside:
                beside: Any = dict(textcoords="offset points", ha=side, va="center_baseline")
                look: Any = dict(fontsize=SIZE, color=figures.INK)
                Axes.annotate(axes, name, points_N2[i], (points, 0), **beside, **look)
                taken = np.concatenate([taken, box[None]])
                break
