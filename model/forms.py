"""Theirs: how is a setting said in a config.json? Activations, rotary positions and windows, read and written."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from model import errors
from model.config import GATED, ModelConfig, Rope

Theirs = Mapping[str, Any]
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "hidden",
    "max_position_embeddings": "context_length",
}


# What is computed with before it becomes a field of ours, which says its own type.
KINDS: dict[str, Any] = {
    "architectures": tuple[str, ...] | None,
    "num_labels": int | None,
    "num_hidden_layers": int,
    "max_position_embeddings": int,
    "num_local_experts": int,
    "num_experts_per_tok": int,
    "query_pre_attn_scalar": float,
    "attn_logit_softcapping": float | None,
    "final_logit_softcapping": float | None,
    "max_window_layers": int,
    "sliding_window": int | None,
    "layer_types": tuple[str, ...] | None,
    "feed_forward_proj": str,
    "activation_function": str,
    "activation": str,
    "hidden_act": str | None,
    "hidden_activation": str | None,
    "rope_parameters": dict | None,
    "rope_scaling": dict | None,
}
ROPE_KINDS: dict[str, Any] = {
    "factor": float | None,
    "original_max_position_embeddings": int | None,
    "attention_factor": float | None,
    "mscale": float | None,
    "mscale_all_dim": float | None,
}


@dataclasses.dataclass(frozen=True)
class Form:
    """How a `model_type` says what its weights are.

    Attributes:
        classes: of `architectures`, and which head each has; the first of a head is the one written.
        pairs: which of these also says whether a second text follows the first.
        keys: their keys and the fields of ours that mean the same.
        fixed: fields that its config.json need not mention.
        read: the other fields, from their keys.
        write: the other keys, from our fields.
        defaults: what keys are when a file leaves them out, as published files do.
        demands: keys that may have these values only.
        synonyms: older names of keys.
    """

    classes: dict[str, str]
    keys: dict[str, str]
    fixed: dict[str, Any]
    read: Callable[[Theirs], dict[str, Any]]
    write: Callable[[ModelConfig], dict[str, Any]]
    defaults: dict[str, Any] = dataclasses.field(default_factory=dict)
    demands: dict[str, tuple] = dataclasses.field(default_factory=dict)
    synonyms: dict[str, str] = dataclasses.field(default_factory=dict)
    pairs: str = ""


def refused(key: str, value: Any, known: Any) -> errors.BadInput:
    """The line for a setting that we would compute differently."""
    said = [repr(each) for each in known if each is not None]
    remedy = f"it computes {' or '.join(said)}" if said else "give weights without it"
    return errors.BadInput(
        f"config.json has {key} {value!r}, which Ganymede does not compute; {remedy}"
    )


def check_kinds(said: Theirs, kinds: Mapping[str, Any] = KINDS, where: str = "") -> None:
    """Refuses a value of another type than `kinds` gives its key."""
    for key in kinds.keys() & said.keys():
        errors.typed(f"config.json: {where}{key}", said[key], kinds[key])


def activation(key: str, value: Any, gated: bool = False) -> str:
    """Ours, of a feed-forward that multiplies it by a third map or does not."""
    if value not in ACTIVATIONS:
        raise refused(key, value, ACTIVATIONS)
    plain = ACTIVATIONS[value]
    return next(name for name, inner in GATED.items() if inner == plain) if gated else plain


def their_activation(config: ModelConfig) -> str:
    """Theirs, without saying whether it is gated."""
    plain = GATED.get(config.activation, config.activation)
    return "gelu_pytorch_tanh" if plain == "gelu_tanh" else plain


def read_rope(theirs: Theirs) -> Rope:
    """Of `rope_parameters` (transformers 5) or of `rope_theta` and `rope_scaling` beside each other (before)."""
    said = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    if any(isinstance(value, Mapping) for value in said.values()):
        raise refused("rope_parameters", said, ("one set for all layers",))
    check_kinds(said, ROPE_KINDS, "rope_parameters.")
    kind = said.get("rope_type", said.get("type", "default"))
    fraction = said.get("partial_rotary_factor", theirs.get("partial_rotary_factor")) or 1.0
    values: dict[str, Any] = dict(
        theta=said.get("rope_theta", theirs["rope_theta"]), fraction=fraction
    )
    if kind in ("linear", "dynamic", "llama3", "yarn"):
        values |= dict(scaling=kind, factor=said.get("factor"))
    elif kind != "default":
        raise refused("rope_type", kind, ("default", "linear", "dynamic", "llama3", "yarn"))
    if kind in ("llama3", "yarn"):
        window = theirs["max_position_embeddings"]
        values["original_length"] = said.get("original_max_position_embeddings") or window
    if kind == "llama3":
        values |= dict(low=said.get("low_freq_factor"), high=said.get("high_freq_factor"))
    if kind == "yarn":
        if said.get("truncate") is False:
            raise refused("rope_parameters.truncate", False, (True,))
        values["factor"] = values["factor"] or window / values["original_length"]
        values |= dict(low=said.get("beta_slow") or 1.0, high=said.get("beta_fast") or 32.0)
        values["magnitude"] = _magnitude(said, values["factor"])
    return errors.build(Rope, values, "config.json, read as ours: model.rope")


def _magnitude(said: Theirs, factor: float) -> float:
    """YaRN's attention factor, where it is not the paper's."""
    if said.get("attention_factor") is not None:
        return said["attention_factor"]
    if not (said.get("mscale") and said.get("mscale_all_dim")):
        return 0.0
    log = math.log(max(factor, 1.0))
    return (0.1 * said["mscale"] * log + 1) / (0.1 * said["mscale_all_dim"] * log + 1)


def write_rope(rope: Rope) -> dict[str, Any]:
    """As files had it before transformers 5, which it still reads."""
    written: dict[str, Any] = {"rope_theta": rope.theta, "rope_scaling": None}
    if rope.scaling == "none":
        return written
    said: dict[str, Any] = {"rope_type": rope.scaling, "factor": rope.factor}
    if rope.original_length:
        said["original_max_position_embeddings"] = rope.original_length
    if rope.scaling == "llama3":
        said |= {"low_freq_factor": rope.low, "high_freq_factor": rope.high}
    if rope.scaling == "yarn":
        said |= {"beta_slow": rope.low, "beta_fast": rope.high}
        said |= {"attention_factor": rope.magnitude} if rope.magnitude else {}
    return written | {"rope_scaling": said}


def read_windows(theirs: Theirs, default: list[str]) -> tuple[int, ...]:
    """`layer_types` names each layer; the shortest cycle that gives them all is ours."""
    known = {"full_attention": 0, "sliding_attention": theirs.get("sliding_window") or 0}
    types = theirs.get("layer_types") or default
    for kind in types:
        if kind not in known:
            raise refused("layer_types", kind, known)
    each = [known[kind] for kind in types]
    lengths = range(1, len(each) + 1)
    cycles = (each[:n] for n in lengths if all(w == each[i % n] for i, w in enumerate(each)))
    shortest = tuple(next(cycles, ()))
    return shortest if any(shortest) else ()


def write_windows(config: ModelConfig) -> dict[str, Any]:
    """Each layer by name."""
    windows = [config.window(i) for i in range(config.layers)]
    types = ["sliding_attention" if window else "full_attention" for window in windows]
    return {"layer_types": types, "sliding_window": max(windows) or None}


def activations(key: str, tanh: str = "gelu_pytorch_tanh") -> dict[str, Any]:
    """`read` and `write` where nothing but the activation needs translation; `tanh` is their name for that GELU."""
    return dict(
        read=lambda theirs: {"activation": activation(key, theirs[key])},
        write=lambda config: {
            key: tanh if config.activation == "gelu_tanh" else their_activation(config)
        },
    )
