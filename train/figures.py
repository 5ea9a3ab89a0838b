"""What do the pictures look like? Functions from numbers to a figure, and the writing of both.

Every drawing function takes exactly what the JSON beside the picture holds, so a picture can be
drawn again from it. Figures are made without pyplot: nothing global is kept, and no display needed.
"""

import functools
import json
import math
import pathlib
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import cm, colors, font_manager, style, ticker
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath

from model import errors, files
from train import visible

# Blue and vermilion of Okabe & Ito (2008), which people with any colour vision tell apart; the rest is grey.
BLUE, VERMILION = "#0072B2", "#D55E00"
INK, SOFT, PALE, FAINT = "#1F2933", "#616E7C", "#C3CAD2", "#E4E8EC"
# From a tint that differs from the white of masked cells to almost black; lightness falls all the way.
ATTENTION = colors.LinearSegmentedColormap.from_list(
    "attention", ["#E4EEF6", "#9CC7E0", "#3F93C4", BLUE, "#0B4A7D", "#06233F"]
)
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a token with two dollar signs is no formula
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": SOFT,
    "xtick.labelsize": 8,
    "ytick.color": SOFT,
    "ytick.labelsize": 8,
}
TITLE: dict[str, Any] = {"size": 11.5, "weight": "bold"}
LABEL: dict[str, Any] = {"size": 8}
LONGEST_LABEL = 14
DENSEST, COARSEST, WIDEST = (
    160,
    100,
    4000,
)  # dots per inch, and pixels beyond which they are reduced


def label(piece: str) -> str:
    """A token's piece as an axis label: blanks visible, what the font lacks escaped, never longer than 14 letters.

    Example: `" \\nx"` becomes `"·⏎x"`.
    """
    shown = "".join(map(_shown, piece))
    return shown if len(shown) <= LONGEST_LABEL else shown[: LONGEST_LABEL - 1] + "…"


def percent(share: float) -> str:
    """A probability for people, three digits: `8.40 %`."""
    return "<0.001 %" if 0 < share < 1e-5 else f"{100 * share:#.3g}".rstrip(".") + " %"


def write(
    draw: Callable[[Any], Figure], numbers: Mapping[str, Any], stem: pathlib.Path
) -> pathlib.Path:
    """Draws, writes `<stem>.png` and `<stem>.json`, each whole or not at all, and returns the path of the picture.

    The same numbers give the same bytes: no dates or versions are stored, and keys keep their order.
    """
    image, data = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.json")
    lines = (
        f"  {json.dumps(name)}: {json.dumps(value, allow_nan=False)}"
        for name, value in numbers.items()
    )
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    with style.context(["default", STYLE]):
        figure = draw(numbers)
        figure.set_dpi(min(DENSEST, max(COARSEST, WIDEST / max(figure.get_size_inches()))))
        canvas = FigureCanvasAgg(figure)
        try:
            stem.parent.mkdir(parents=True, exist_ok=True)
            files.write_whole(data, lambda part: part.write_text(text, encoding="utf-8"))
            files.write_whole(
                image, lambda part: canvas.print_png(part, metadata={"Software": None})
            )
        except OSError as error:
            raise errors.BadInput(
                f"{stem.parent} does not take the figure {stem.name} ({error.strerror}); "
                "make room there or choose another directory"
            ) from error
    return image


def loss(numbers: Mapping[str, Any]) -> Figure:
    """Training and held-out loss against tokens or steps; the last values stand at the ends of the lines."""
    figure = Figure(figsize=(7.6, 4.4))
    axes = figure.add_axes((0.085, 0.125, 0.695, 0.72))
    unit, training, held_out = numbers["x"], numbers["training"], numbers["held_out"]
    ends: list[tuple[float, str, str]] = []
    if training["loss"]:
        smooth = training["smoothed"] != training["loss"]
        if smooth:
            axes.plot(training[unit], training["loss"], color=BLUE, alpha=0.25, linewidth=0.8)
        axes.plot(training[unit], training["smoothed"], color=BLUE, linewidth=1.6)
        last = training["smoothed"][-1]
        ends.append((last, f"training {last:.3f}" + "\n(mean of the last 5 %)" * smooth, BLUE))
    if held_out["loss"]:
        dots: Any = dict(linewidth=1.6, marker="o", markersize=4, clip_on=False, zorder=3)
        axes.plot(held_out[unit], held_out["loss"], color=VERMILION, **dots)
        bits = held_out["bits_per_byte"][-1]
        more = "" if bits is None else f"\n= {bits:.3f} bits per byte"
        ends.append((held_out["loss"][-1], f"held-out {held_out['loss'][-1]:.3f}{more}", VERMILION))
    if numbers["xz"]:
        level, bits = numbers["xz"]["loss"], numbers["xz"]["bits_per_byte"]
        axes.axhline(level, color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
        ends.append((level, f"xz -9e needs\n{bits:.3f} bits per byte", SOFT))
    every = training[unit] + held_out[unit]
    axes.set_xlim(min(every), max(every) if max(every) > min(every) else min(every) + 1)
    axes.grid(axis="y", color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(7, integer=True))
    axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=" "))
    axes.set_xlabel("training tokens" if unit == "tokens" else "training steps")
    axes.set_ylabel("loss (nats per token)")
    end_labels(axes, 4.4 * 0.72, ends)
    note = f"{max(training['step'] + held_out['step']):,} steps"
    note += f" · {max(every):,} tokens" if unit == "tokens" else ""
    if numbers["not_finite"]:
        note += f" · not finite at step {numbers['not_finite'][0]:,}"
    heading(figure, 0.085, "Loss on the training text and on text held out from it", note)
    return figure


def attention(numbers: Mapping[str, Any]) -> Figure:
    """A panel per head: row t shows how token t spreads its attention over tokens 0 … t; the rest is blank."""
    labels = [label(piece) for piece in numbers["pieces"]]
    layers, heads = numbers["layers"], numbers["heads"]
    panels = [
        (maps, layer, head)
        for layer, maps in zip(layers, numbers["attention"], strict=True)
        for head in range(heads)
    ]
    columns = heads if len(layers) > 1 else _columns(heads)
    rows = -(-len(panels) // columns)
    margin = 0.45 + max(inches(text, LABEL) for text in labels)
    side = max(1.55, 0.155 * len(labels), (6.4 - margin) / columns - 0.2)
    top, title, gap, bar = 0.62, 0.3, 0.2, 0.8
    width, height = margin + columns * (side + gap) + bar, top + rows * (side + title) + margin
    figure = Figure(figsize=(width, height))

    def place(left: float, upper: float, wide: float, high: float) -> Axes:
        return figure.add_axes(
            (left / width, 1 - (upper + high) / height, wide / width, high / height)
        )

    for i, (maps, layer, head) in enumerate(panels):
        row, column = divmod(i, columns)
        axes = place(margin + column * (side + gap), top + title + row * (side + title), side, side)
        _heat_map(axes, maps[head])
        axes.set_title(f"layer {layer} · head {head}", fontsize=9, loc="left", pad=4)
        last = i + columns >= len(panels)
        axes.set_xticks(range(len(labels)), labels if last else [], rotation=90, color=INK)
        axes.set_yticks(range(len(labels)), [] if column else labels, color=INK)
    figure.text(margin / width, 0.1 / height, "key: token looked at", color=SOFT, va="bottom")
    figure.text(
        0.12 / width,
        1 - (top + title) / height,
        "query: token that looks",
        color=SOFT,
        rotation=90,
        va="top",
    )
    bar_axes = place(width - bar + 0.05, top + title, 0.12, min(side, 2.5))
    figure.colorbar(
        cm.ScalarMappable(colors.Normalize(0, 1), ATTENTION), cax=bar_axes, ticks=[0, 0.5, 1]
    )
    bar_axes.set_title("weight", fontsize=8, color=SOFT, loc="left", pad=8)
    which = f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]} to {layers[-1]}"
    note = "Each row sums to 1 over the token itself and those before it. Blank: later tokens, which it cannot see."
    heading(figure, 0.12 / width, f"Where each token looks: attention of {which}", note)
    return figure


def next_token(numbers: Mapping[str, Any]) -> Figure:
    """A panel per setting: blue bars are tokens that can be drawn, grey ones those that the setting removed."""
    panels, vocab_size = numbers["panels"], numbers["vocab_size"]
    rest = vocab_size - len(numbers["pieces"])
    labels = [label(piece) for piece in numbers["pieces"]] + [f"{rest:,} others"] * bool(rest)
    margin, gap, top, bottom, body = (
        0.25 + max(inches(text, LABEL) for text in labels),
        0.25,
        1.3,
        0.5,
        0.24 * len(labels),
    )
    side = max(2.05, (7.6 - margin) / len(panels) - gap)
    width, height = margin + len(panels) * (side + gap), top + body + bottom
    figure = Figure(figsize=(width, height))
    longest = max(max(panel["before"] + panel["after"]) for panel in panels)
    for i, panel in enumerate(panels):
        box = (margin + i * (side + gap)) / width, bottom / height, side / width, body / height
        axes = figure.add_axes(box)
        _bars(axes, panel, longest, bool(rest))
        axes.set_yticks(range(len(labels)), [] if i else labels, color=INK)
        kept = f"keeps {panel['kept']:,} of {vocab_size:,} tokens\nthat had {percent(panel['mass'])} of the mass"
        above(axes, 32, panel["name"], weight="bold")
        text = f"all {vocab_size:,} tokens\ncan be drawn" if panel["kept"] == vocab_size else kept
        above(axes, 6, text, fontsize=8, color=SOFT)
    prompt = " ".join("".join(map(_shown, word)) for word in numbers["prompt"].split(" "))
    while inches(title := f"What comes after “{prompt}”", TITLE) > width - 0.4:
        prompt = "…" + prompt[2:]
    removed = any(panel["kept"] < vocab_size for panel in panels)
    note = (
        "Blue: can be drawn, with its probability."
        + " Grey: removed, with the probability it had." * removed
    )
    heading(figure, 0.12 / width, title, note)
    return figure


def end_labels(axes: Axes, inches: float, ends: list[tuple[float, str, str]]) -> None:
    """Writes each text right of the axes at the height of its value; those that would overlap move apart."""
    low, high = axes.get_ylim()
    line = 13 / 72 / inches  # of 9 points, as a share of the axes
    ends = sorted(ends)
    places = [(value - low) / (high - low) for value, _, _ in ends]
    heights = [line * (1 + text.count("\n")) for _, text, _ in ends]
    for _ in range(100):  # each pass halves an overlap, so this leaves none
        places[0] = max(places[0], 0)
        for i in range(1, len(places)):
            wanted = (heights[i - 1] + heights[i]) / 2 + line / 3
            lack = max(0, wanted - (places[i] - places[i - 1]))
            places[i - 1 : i + 1] = places[i - 1] - lack / 2, places[i] + lack / 2
    for place, (_, text, color) in zip(places, ends, strict=True):
        beside: Any = dict(textcoords="offset points", va="center", color=color)
        axes.annotate(text, (1, place), (8, 0), "axes fraction", **beside)


def _heat_map(axes: Axes, rows: Sequence[Sequence[float]]) -> None:
    """Row t has t + 1 weights; what it cannot see stays white, outside a thin staircase."""
    size = len(rows)
    weights_TS = np.full((size, size), np.nan)
    for t, row in enumerate(rows):
        weights_TS[t, : t + 1] = row
    axes.imshow(
        np.ma.masked_invalid(weights_TS), ATTENTION, vmin=0, vmax=1, interpolation="nearest"
    )
    steps = np.repeat(np.arange(size + 1), 2) - 0.5
    axes.plot(steps[1:], steps[:-1], color=PALE, linewidth=0.7, clip_on=False)
    axes.tick_params(length=0, pad=3)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _bars(axes: Axes, panel: Mapping[str, Any], longest: float, others: bool) -> None:
    """A bar per token with its number behind it, and a line without a bar for all other tokens together."""
    beside: Any = dict(textcoords="offset points", va="center", fontsize=8)
    for y, drawable in enumerate(panel["drawable"]):
        value = panel["after" if drawable else "before"][y]
        color, ink = (BLUE, INK) if drawable else (PALE, SOFT)
        axes.barh(y, value, height=0.72, color=color, linewidth=0)
        axes.annotate(percent(value), (value, y), (3, 0), color=ink, **beside)
    count = len(panel["drawable"])
    if others:
        text = percent(panel["others_after"]) if panel["others_kept"] else "removed"
        axes.annotate(text, (0, count), (3, 0), color=SOFT, style="italic", **beside)
    axes.set_xlim(0, longest * 1.42)  # room for the number behind the longest bar
    axes.set_ylim(count - 0.4 + others, -0.6)
    places = [x for x in ticker.MaxNLocator(3).tick_values(0, longest) if x <= longest]
    axes.set_xticks(places, [f"{100 * x:g} %" for x in places])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("probability", color=SOFT, fontsize=8)


def above(axes: Axes, points: float, text: str, **look: Any) -> None:
    """Writes so many points above the left end of the axes."""
    place: Any = dict(xytext=(0, points), textcoords="offset points", va="bottom", **look)
    axes.annotate(text, (0, 1), xycoords="axes fraction", **place)


def heading(figure: Figure, left: float, title: str, note: str) -> None:
    """Writes the title of a figure, and what it shows in one line below."""
    height = figure.get_size_inches()[1]
    figure.text(left, 1 - 0.12 / height, title, **TITLE, va="top")
    figure.text(left, 1 - 0.37 / height, note, color=SOFT, va="top")


def _columns(count: int) -> int:
    """A nearly square grid without holes where the count allows it: 8 panels in 4 columns, 12 in 4, 7 in 3."""
    square = math.ceil(math.sqrt(count))
    whole = (columns for columns in range(square, 2 * square) if count % columns == 0)
    return next(whole, square)


@functools.cache
def _glyphs() -> frozenset[int]:
    return frozenset(font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap())


def _shown(letter: str) -> str:
    """The letter, a sign for a blank, or an escape for a control and for what the font cannot draw."""
    if letter in visible.SIGNS:
        return visible.SIGNS[letter]
    if unicodedata.category(letter)[0] in "CZ" or ord(letter) not in _glyphs():
        return letter.encode("unicode_escape").decode()
    return letter


def inches(text: str, look: Mapping[str, Any]) -> float:
    """How wide a text is."""
    font = font_manager.FontProperties(family=STYLE["font.family"], **look)
    return TextPath((0, 0), text, prop=font).get_extents().x1 / 72 if text else 0.0
