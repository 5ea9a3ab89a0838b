"""Theirs: how are the matrices of one module in PEFT's files made of ours, and ours of them?

`lora_A` is [R, in], `lora_B` [out, R] and DoRA's vector [out], whatever axes in and out are for us.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from model import errors, hf, matrices
from model.adapters import AdapterConfig
from model.config import ModelConfig
from model.hf import Entry

Parts = dict[str, np.ndarray]


def theirs(
    entry: Entry,
    owners: list[str],
    leaves: Mapping[str, Any],
    base: Mapping[str, Any],
    config: ModelConfig,
    described: AdapterConfig,
) -> tuple[Parts, float]:
    """The module's tensors, [R, in], [out, R] and [out], and what their product is multiplied by."""
    _, out = _sides(entry)
    sizes = hf.sizes_of(config, entry)
    made = out.replace("Q", "") if entry.parted else out
    held = {
        i: tuple(np.asarray(leaves[f"{owner}lora_{x}/weight"], np.float32) for x in "ab")
        for i, owner in enumerate(owners)
        if f"{owner}lora_a/weight" in leaves
    }
    thin = {i: a.reshape(-1, a.shape[-1]).T for i, (a, _) in held.items()}
    scale = described.scale(len(next(iter(thin.values()))))
    shared = len(held) == len(owners) and all(
        np.array_equal(first, thin[0]) for first in thin.values()
    )
    first_RI = thin[0] if shared else np.concatenate(list(thin.values()))
    second = np.zeros((len(owners), len(first_RI), *(sizes[letter] for letter in made)), np.float32)
    start = 0
    for i, (_, b) in held.items():
        stop = start + len(b)
        second[i, start:stop] = b * np.float32(described.scale(len(b)) / scale)
        start = 0 if shared else stop
    letters = f"{'Q' * entry.parted}R{made}"
    second = second if entry.parted else second[0]
    second = second.transpose([letters.index(letter) for letter in f"{out}R"])
    parts = {"lora_A": first_RI, "lora_B": second.reshape(-1, len(first_RI))}
    if described.kind == "dora":
        found = [
            _length(path, owner, leaves, base)
            for path, owner in zip(entry.ours, owners, strict=True)
        ]
        lengths = np.stack(found) if entry.parted else found[0]
        own = "Q" * entry.parted + made
        lengths = lengths.transpose([own.index(letter) for letter in out])
        parts["lora_magnitude_vector"] = lengths.reshape(-1)
    return parts, scale


def ours(
    entry: Entry,
    module: str,
    parts: Mapping[str, np.ndarray],
    alpha: float,
    described: AdapterConfig,
    config: ModelConfig,
) -> Parts:
    """Our parts of one module of theirs."""
    if not entry.ours or entry.experts or matrices.dense(entry.ours[0]) is None:
        raise errors.BadInput(
            f"the adapter changes {module!r}, which is no matrix of a layer or head here; merge it with PEFT, and "
            "give the merged model"
        )
    into, out = _sides(entry)
    sizes = hf.sizes_of(config, entry)
    outs = [sizes[letter] for letter in out]
    wanted = {"lora_A", "lora_B", *["lora_magnitude_vector"] * (described.kind == "dora")}
    rank = len(parts.get("lora_A", ()))
    shapes = {
        "lora_A": (rank, math.prod(sizes[letter] for letter in into)),
        "lora_B": (math.prod(outs), rank),
        "lora_magnitude_vector": (math.prod(outs),),
    }
    for part in sorted(wanted | parts.keys()):
        shape = parts[part].shape if part in parts else None
        if part not in wanted or shape != shapes[part]:
            raise errors.BadInput(
                f"{module}.{part} of the adapter has shape {shape}, and the model asks for "
                f"{shapes[part] if part in wanted else None}; give the base model that it was trained on"
            )
    stabilized = described.rank_stabilized
    scale = alpha / (math.sqrt(rank) if stabilized else rank)
    first = np.asarray(parts["lora_A"], np.float32).T
    first = first.reshape(*(sizes[letter] for letter in into), rank)
    second = np.asarray(parts["lora_B"], np.float32) * np.float32(scale / described.scale(rank))
    made = out.replace("Q", "") if entry.parted else out
    order = "Q" * entry.parted + "R" + made
    second = second.reshape(*outs, rank).transpose([f"{out}R".index(x) for x in order])
    lengths = parts.get("lora_magnitude_vector")
    if lengths is not None:
        own = "Q" * entry.parted + made
        lengths = np.asarray(lengths, np.float32).reshape(outs)
        lengths = lengths.transpose([out.index(letter) for letter in own])
    found: Parts = {}
    for i, path in enumerate(entry.ours):
        owner = path.removesuffix("weight")
        found[f"{owner}lora_a/weight"] = first
        found[f"{owner}lora_b/weight"] = second[i] if entry.parted else second
        if lengths is not None:
            found[f"{owner}magnitude/scale"] = lengths[i] if entry.parted else lengths
    return found


def _length(
    path: str, owner: str, leaves: Mapping[str, Any], base: Mapping[str, Any]
) -> np.ndarray:
    """DoRA's trained lengths; of a part that is not adapted those that its weights have."""
    if f"{owner}magnitude/scale" in leaves:
        return np.asarray(leaves[f"{owner}magnitude/scale"], np.float32)
    axes = matrices.dense(path)
    assert axes is not None
    weight = np.asarray(base[path], np.float32)
    return np.sqrt(np.square(weight).sum(axis=axes.summed))


def _sides(entry: Entry) -> tuple[str, str]:
    """The letters of what a matrix sums over, and of what it makes, in their order."""
    axes = matrices.dense(entry.ours[0])
    assert axes is not None
    summed = {entry.our_axes[i] for i in axes.summed}
    groups = [group.strip("()") for group in re.findall(r"\(\w+\)|\w", entry.their_axes)]
    into = next(group for group in groups if set(group) == summed)
    return into, next(group for group in groups if group != into)
