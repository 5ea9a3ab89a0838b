"""How is it written down that a tensor of theirs is a parameter of ours?

A row says: their name, our path (several for a fused tensor; none for what must be zero), their axes, our axes. Axes
are letters of the dimension key; parentheses join axes into one dimension. Q numbers the parts of a fused tensor or the
gates of a cell, d is the width again, U are T5's buckets, 1 is an axis of one. `{i}` counts layers and `{j}` experts.
`"(NH)D"` against `"DNH"` is a PyTorch linear layer over heads; `"D(QNH)"` GPT-2's fused query-key-value matrix.
"""

import dataclasses

QKV = ("query", "key", "value")
# Of the maps of a layer: their axes in PyTorch, ours, and those of the bias.
MAPS = {
    "query": ("(NH)D", "DNH", "(NH)", "NH"),
    "key": ("(KH)D", "DKH", "(KH)", "KH"),
    "value": ("(KH)D", "DKH", "(KH)", "KH"),
    "out": ("D(NH)", "NHD", "D", "D"),
    "up": ("FD", "DF", "F", "F"),
    "gate": ("FD", "DF", "F", "F"),
    "down": ("DF", "FD", "D", "D"),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One of their tensors and the parameters of ours it holds.

    `when` names what the config must be for the row to count (`hf.CONDITIONS`), besides having such a parameter.
    """

    theirs: str
    ours: tuple[str, ...]
    their_axes: str
    our_axes: str
    when: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Architecture:
    """All tensors of a `model_type`.

    Attributes:
        base: rows of the model without its head; in a checkpoint with a head their names start with `prefix`, and
            published files often leave it out.
        top: rows of the heads.
        prefix: see `base`.
        aliases: (regular expression, replacement) for names of older files.
        copies: a tensor that some files hold a second time, and of what it is a copy when the head is tied.
        aside: regular expressions of tensors that our model computes itself or has no use for.
    """

    base: tuple[Row, ...]
    top: tuple[Row, ...] = ()
    prefix: str = ""
    aliases: tuple[tuple[str, str], ...] = ()
    copies: tuple[tuple[str, str], ...] = ()
    aside: tuple[str, ...] = ()


def row(theirs: str, ours: str, axes: str, our_axes: str = "", *when: str) -> Row:
    """A tensor that is one parameter; `axes` are theirs, and ours too unless given."""
    return Row(theirs, (ours,), axes, our_axes or axes, when)


def norm(theirs: str, ours: str, *when: str) -> tuple[Row, ...]:
    """A norm; RMSNorm has no bias, and no such parameter."""
    return (
        row(f"{theirs}.weight", f"{ours}/scale", "D", "", *when),
        row(f"{theirs}.bias", f"{ours}/bias", "D", "", *when),
    )


def maps(theirs: str, ours: str, *when: str, **names: str) -> tuple[Row, ...]:
    """Linear layers of PyTorch: `maps("mlp.", "feed_forward/", up="fc1", down="fc2")`, weights and biases."""
    found: list[Row] = []
    for name, their_name in names.items():
        axes, our_axes, bias, our_bias = MAPS[name]
        where, path = f"{theirs}{their_name}", f"{ours}{name}"
        found.append(row(f"{where}.weight", f"{path}/weight", axes, our_axes, *when))
        found.append(row(f"{where}.bias", f"{path}/bias", bias, our_bias, *when))
    return tuple(found)


def dense(theirs: str, ours: str, axes: str, our_axes: str, *when: str) -> tuple[Row, ...]:
    """A linear layer of a head, with its bias."""
    return (
        row(f"{theirs}.weight", f"{ours}/weight", axes, our_axes, *when),
        row(f"{theirs}.bias", f"{ours}/bias", axes[0], "", *when),
    )


def fused(theirs: str, ours: str, axes: str, bias_axes: str) -> tuple[Row, ...]:
    """Query, key and value in one tensor."""
    return (
        Row(f"{theirs}.weight", tuple(f"{ours}/{part}/weight" for part in QKV), axes, "DNH"),
        Row(f"{theirs}.bias", tuple(f"{ours}/{part}/bias" for part in QKV), bias_axes, "NH"),
    )


def untied(name: str = "lm_head.weight") -> Row:
    """The head of a model that has its own."""
    return row(name, "output/weight", "VD")
