"""Theirs: how do the tensors of a Hugging Face checkpoint lie in our parameter tree, and ours in theirs?

One table per architecture, read in both directions. A row says: their name, our path (three for a fused tensor), their
axes, our axes. Axes are letters of the dimension key; parentheses join axes into one dimension, and Q numbers the parts
of a fused tensor. `"(NH)D"` against `"DNH"` is a PyTorch linear layer over heads; `"D(QNH)"` is GPT-2's fused
query-key-value matrix.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from model import errors
from model.config import ModelConfig

QKV = ("query", "key", "value")


@dataclasses.dataclass(frozen=True)
class Row:
    """One of their tensors and the parameters of ours it holds; `{i}` counts layers."""

    theirs: str
    ours: tuple[str, ...]
    their_axes: str
    our_axes: str


def _norm(theirs: str, ours: str) -> tuple[Row, Row]:
    return (
        Row(f"{theirs}.weight", (f"{ours}/scale",), "D", "D"),
        Row(f"{theirs}.bias", (f"{ours}/bias",), "D", "D"),
    )


GPT2 = (
    Row("transformer.wte.weight", ("embedding/weight",), "VD", "VD"),
    Row("transformer.wpe.weight", ("position/weight",), "PD", "PD"),
    *_norm("transformer.h.{i}.ln_1", "stack/layers_{i}/attention_norm"),
    Row(
        "transformer.h.{i}.attn.c_attn.weight",
        tuple(f"stack/layers_{{i}}/attention/{name}/weight" for name in QKV),
        "D(QNH)",
        "DNH",
    ),
    Row(
        "transformer.h.{i}.attn.c_attn.bias",
        tuple(f"stack/layers_{{i}}/attention/{name}/bias" for name in QKV),
        "(QNH)",
        "NH",
    ),
    Row(
        "transformer.h.{i}.attn.c_proj.weight",
        ("stack/layers_{i}/attention/out/weight",),
        "(NH)D",
        "NHD",
    ),
    Row("transformer.h.{i}.attn.c_proj.bias", ("stack/layers_{i}/attention/out/bias",), "D", "D"),
    *_norm("transformer.h.{i}.ln_2", "stack/layers_{i}/feed_forward_norm"),
    Row(
        "transformer.h.{i}.mlp.c_fc.weight",
        ("stack/layers_{i}/feed_forward/up/weight",),
        "DF",
        "DF",
    ),
    Row("transformer.h.{i}.mlp.c_fc.bias", ("stack/layers_{i}/feed_forward/up/bias",), "F", "F"),
    Row(
        "transformer.h.{i}.mlp.c_proj.weight",
        ("stack/layers_{i}/feed_forward/down/weight",),
        "FD",
        "FD",
    ),
    Row(
        "transformer.h.{i}.mlp.c_proj.bias", ("stack/layers_{i}/feed_forward/down/bias",), "D", "D"
    ),
    *_norm("transformer.ln_f", "norm"),
)

LLAMA = (
    Row("model.embed_tokens.weight", ("embedding/weight",), "VD", "VD"),
    Row(
        "model.layers.{i}.input_layernorm.weight",
        ("stack/layers_{i}/attention_norm/scale",),
        "D",
        "D",
    ),
    Row(
        "model.layers.{i}.self_attn.q_proj.weight",
        ("stack/layers_{i}/attention/query/weight",),
        "(NH)D",
        "DNH",
    ),
    Row(
        "model.layers.{i}.self_attn.k_proj.weight",
        ("stack/layers_{i}/attention/key/weight",),
        "(KH)D",
        "DKH",
    ),
    Row(
        "model.layers.{i}.self_attn.v_proj.weight",
        ("stack/layers_{i}/attention/value/weight",),
        "(KH)D",
        "DKH",
    ),
    Row(
        "model.layers.{i}.self_attn.o_proj.weight",
        ("stack/layers_{i}/attention/out/weight",),
        "D(NH)",
        "NHD",
    ),
    Row(
        "model.layers.{i}.post_attention_layernorm.weight",
        ("stack/layers_{i}/feed_forward_norm/scale",),
        "D",
        "D",
    ),
    Row(
        "model.layers.{i}.mlp.gate_proj.weight",
        ("stack/layers_{i}/feed_forward/gate/weight",),
        "FD",
        "DF",
    ),
    Row(
        "model.layers.{i}.mlp.up_proj.weight",
        ("stack/layers_{i}/feed_forward/up/weight",),
        "FD",
        "DF",
    ),
    Row(
        "model.layers.{i}.mlp.down_proj.weight",
        ("stack/layers_{i}/feed_forward/down/weight",),
        "DF",
        "FD",
    ),
    Row("model.norm.weight", ("norm/scale",), "D", "D"),
    Row("lm_head.weight", ("output/weight",), "VD", "VD"),
)

TABLES = {"gpt2": GPT2, "llama": LLAMA}


def from_theirs(architecture: str, config: ModelConfig, tensors: Mapping[str, Any]) -> Any:
    """Their named tensors as our parameter tree (one entry per layer)."""
    tree: dict[str, Any] = {}
    for row in _rows(architecture, config):
        if row.theirs not in tensors:
            raise errors.BadInput(
                f"tensor {row.theirs!r} is missing; {architecture} needs it for {row.ours[0]}"
            )
        for path, array in zip(
            row.ours, _to_ours(row, np.asarray(tensors[row.theirs]), config), strict=True
        ):
            *parents, leaf = path.split("/")
            node = tree
            for name in parents:
                node = node.setdefault(name, {})
            node[leaf] = array
    return tree


def to_theirs(architecture: str, config: ModelConfig, params: Any) -> dict[str, np.ndarray]:
    """Our parameter tree (one entry per layer) as their named tensors."""
    tensors = {}
    for row in _rows(architecture, config):
        parts = []
        for path in row.ours:
            node = params
            for name in path.split("/"):
                node = node[name]
            parts.append(np.asarray(node))
        tensors[row.theirs] = _to_theirs(row, parts, config)
    return tensors


def _rows(architecture: str, config: ModelConfig) -> Iterator[Row]:
    """The table of an architecture with its layers counted out; a tied model has no head of its own."""
    for row in TABLES[architecture]:
        if config.tied and row.ours == ("output/weight",):
            continue
        for i in range(config.layers if "{i}" in row.theirs else 1):
            yield dataclasses.replace(
                row,
                theirs=row.theirs.format(i=i),
                ours=tuple(path.format(i=i) for path in row.ours),
            )


def _sizes(config: ModelConfig, parts: int) -> dict[str, int]:
    return {
        "D": config.width,
        "N": config.heads,
        "K": config.kv_heads,
        "H": config.head_size,
        "F": config.hidden,
        "V": config.vocab_size,
        "P": config.context_length,
        "Q": parts,
    }


def _letters(axes: str) -> str:
    return axes.replace("(", "").replace(")", "")


def _to_ours(row: Row, array: np.ndarray, config: ModelConfig) -> list[np.ndarray]:
    sizes = _sizes(config, len(row.ours))
    letters = _letters(row.their_axes)
    shape = tuple(sizes[letter] for letter in letters)
    if array.size != np.prod(shape):
        raise errors.BadInput(
            f"tensor {row.theirs!r} has shape {array.shape}; the config asks for "
            + "×".join(f"{letter}={sizes[letter]}" for letter in letters)
        )
    order = ("Q" if "Q" in letters else "") + row.our_axes
    array = array.reshape(shape).transpose([letters.index(letter) for letter in order])
    return list(array) if "Q" in letters else [array]


def _to_theirs(row: Row, parts: list[np.ndarray], config: ModelConfig) -> np.ndarray:
    sizes = _sizes(config, len(parts))
    letters = _letters(row.their_axes)
    array = np.stack(parts) if "Q" in letters else parts[0]
    order = ("Q" if "Q" in letters else "") + row.our_axes
    array = array.transpose([order.index(letter) for letter in letters])
    shape, joined = [], 0
    for character in row.their_axes:
        if character == "(":
            joined = 1
        elif character == ")":
            shape.append(joined)
            joined = 0
        elif joined:
            joined *= sizes[character]
        else:
            shape.append(sizes[character])
    return array.reshape(shape)
