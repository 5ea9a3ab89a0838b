"""Theirs: how does an adapter lie in the files of the PEFT library, and how does one of its own become ours?

`adapter_model.safetensors` holds the matrices of LoRA under the names of the modules they belong to, which the tables
of `architectures` know, and `adapter_config.json` says how they are meant. A module that is several parameters of ours,
such as GPT-2's `c_attn`, shares its first matrix among them; written, it takes one as wide as theirs together.
"""

import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from model import (
    adapters,
    architectures,
    blocks,
    errors,
    files,
    hf,
    hf_config,
    peft_modules,
    sources,
    weights,
)
from model.adapters import AdapterConfig
from model.config import ModelConfig
from model.hf import Entry, Tensor
from model.peft_modules import Parts

CONFIG, STEM = sources.ADAPTER, "adapter_model"
PREFIX = "base_model.model."
PROMPT = "prompt_embeddings"
TASKS = {
    ("lm", "decoder_only"): "CAUSAL_LM",
    ("lm", "encoder_decoder"): "SEQ_2_SEQ_LM",
    ("sequence", "encoder_only"): "SEQ_CLS",
    ("token", "encoder_only"): "TOKEN_CLS",
}
PART = re.compile(r"^(.+)\.(lora_A|lora_B|lora_magnitude_vector)(?:\.weight)?$")
FREE: tuple = (None, False, {}, [], "")
# What a LoRA's config may say, when it says anything: any other value we would compute differently.
DEMANDS: dict[str, tuple] = {
    **dict.fromkeys(
        (
            *("lora_bias", "use_qalora", "layer_replication", "target_parameters", "use_bdlora"),
            *("trainable_token_indices", "alora_invocation_tokens", "arrow_config", "kasa_config"),
            *("monteclora_config", "loftq_config"),
        ),
        FREE,
    ),
    "bias": ("none", None),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal", None),
}


def read(directory: str | pathlib.Path, config: ModelConfig) -> tuple[AdapterConfig, Any]:
    """An adapter that PEFT has written, for a model of ours: how it is meant, and its tree (one entry per layer).

    Raises:
        BadInput: when it is of a kind that we do not compute, or of another model.
    """
    directory = pathlib.Path(directory)
    said = files.read_json(directory / CONFIG, "give a directory that PEFT has written")
    held = weights.Weights(directory, STEM)
    kind = said.get("peft_type")
    if kind == "PROMPT_TUNING":
        return _read_prompt(said, held, config)
    if kind != "LORA":
        raise errors.BadInput(
            f"{directory / CONFIG} has peft_type {kind!r}; known: LORA, PROMPT_TUNING"
        )
    for key, allowed in DEMANDS.items():
        if key in said and said[key] not in allowed:
            raise errors.BadInput(
                f"{directory / CONFIG} has {key} {said[key]!r}, which we would compute differently; "
                f"merge that adapter with PEFT, and give the merged model"
            )
    modules, rest = _sorted(held)
    described = AdapterConfig(
        kind="dora" if said.get("use_dora") else "lora",
        rank=said["r"],
        alpha=float(said["lora_alpha"]),
        rank_stabilized=bool(said.get("use_rslora")),
        targets=("",),
    )
    known = _known(config)
    leaves: dict[str, Any] = {}
    for module, parts in modules.items():
        entry = _entry(f"{module}.weight", known, config)
        alpha = _pattern(said.get("alpha_pattern"), module, described.alpha)
        leaves |= peft_modules.ours(entry, module, parts, alpha, described, config)
    for name, array in rest.items():
        entry = _entry(name, known, config)
        sizes = hf.sizes_of(config, entry)
        leaves |= dict(zip(entry.ours, hf.to_ours(entry, name, array, sizes), strict=True))
    tree = hf.nest({path: jnp.asarray(leaf, jnp.float32) for path, leaf in leaves.items()})
    added = [path for path in leaves if path.endswith("lora_a/weight")]
    targets = dict.fromkeys(_rule(path.replace("lora_a/", "")) for path in added)
    own = [path for path in leaves if not re.search(r"/(lora_[ab]/weight|magnitude/scale)$", path)]
    whole = dict.fromkeys(map(_rule, own))
    fields = {**vars(described), "targets": tuple(targets), "whole": tuple(whole)}
    return AdapterConfig(**fields), tree


def write(
    directory: str | pathlib.Path,
    base: Any,
    config: ModelConfig,
    adapter: Any,
    described: AdapterConfig,
    name: str | None = None,
) -> list[str]:
    """Writes an adapter as PEFT reads it; `base` are the parameters it belongs to, `name` where these lie.

    Raises:
        BadInput: when no class of transformers has such a model, or PEFT no place for such an adapter.
    """
    directory = pathlib.Path(directory)
    architecture = _architecture(config)
    leaves, base = (hf.flatten(blocks.unstack_layers(tree)) for tree in (adapter, base))
    said: dict[str, Any] = {
        "base_model_name_or_path": name,
        "task_type": _task(config, leaves),
        "inference_mode": True,
    }
    if described.kind == "prompt":
        if len(leaves) > 1:
            others = sorted(leaves.keys() - {adapters.PROMPT})
            raise errors.BadInput(
                f"PEFT's files of soft prompts hold nothing else, and {hf.listing(others)} is trained beside this one; "
                "keep it in its run"
            )
        rows = np.asarray(leaves[adapters.PROMPT], np.float32) * np.float32(_scaling(config))
        tensors = {PROMPT: rows}
        said |= {
            "peft_type": "PROMPT_TUNING",
            "num_virtual_tokens": len(rows),
            "token_dim": config.width,
            "num_transformer_submodules": 1,
            "num_attention_heads": config.heads,
            "num_layers": config.layers,
        }
    else:
        tensors, modules = _matrices(architecture, leaves, base, config, described)
        whole = _whole(architecture, leaves, base, config)
        saved = dict.fromkeys(path.rpartition(".")[0] for path in whole)
        said |= _lora(architecture, described, modules, list(saved))
        tensors |= {f"{PREFIX}{path}": array for path, array in whole.items()}
    directory.mkdir(parents=True, exist_ok=True)
    written = weights.write(directory, map(_tensor, tensors.items()), 1 << 62, STEM)
    files.write_text(directory / CONFIG, json.dumps(said, indent=2, ensure_ascii=False) + "\n")
    return [*written, CONFIG]


def _task(config: ModelConfig, leaves: Mapping[str, Any]) -> str | None:
    """PEFT's name for what the head is for; of a classifier only with its own weights, which PEFT then looks for."""
    if config.head.labels and "head/out/weight" not in leaves and adapters.PROMPT not in leaves:
        return None
    return TASKS.get((config.head.kind, config.family))


def _lora(
    architecture: str,
    described: AdapterConfig,
    modules: Mapping[str, tuple[int, float]],
    saved: list[str],
) -> dict[str, Any]:
    """The keys of adapter_config.json; `modules` have each its rank and alpha."""

    def whole(value: float) -> float:
        return int(value) if value == int(value) else value

    ranks = {module: rank for module, (rank, _) in modules.items() if rank != described.rank}
    alphas = {
        module: whole(alpha)
        for module, (_, alpha) in modules.items()
        if not math.isclose(alpha, described.alpha)
    }
    return {
        "peft_type": "LORA",
        "r": described.rank,
        "lora_alpha": whole(described.alpha),
        "lora_dropout": 0.0,
        "target_modules": sorted(modules),
        "modules_to_save": saved or None,
        "fan_in_fan_out": architecture == "gpt2",
        "bias": "none",
        "use_dora": described.kind == "dora",
        "use_rslora": described.rank_stabilized,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
    }


def _matrices(
    architecture: str,
    leaves: Mapping[str, Any],
    base: Mapping[str, Any],
    config: ModelConfig,
    described: AdapterConfig,
) -> tuple[Parts, dict[str, tuple[int, float]]]:
    """Their tensors of every adapted module, and each module's rank and alpha."""
    tensors: Parts = {}
    modules: dict[str, tuple[int, float]] = {}
    for entry in hf.entries(architecture, config):
        owners = [path.removesuffix("weight") for path in entry.ours]
        if not any(f"{owner}lora_a/weight" in leaves for owner in owners):
            continue
        if entry.experts:
            raise errors.BadInput(
                f"{owners[0]}weight is adapted, and PEFT has no module for each expert; leave experts out of "
                "adapt.targets, or export the merged model"
            )
        parts, scale = peft_modules.theirs(entry, owners, leaves, base, config, described)
        rank = len(parts["lora_A"])
        module = entry.names[0].removesuffix(".weight")
        modules[module] = rank, scale * (math.sqrt(rank) if described.rank_stabilized else rank)
        for part, array in parts.items():
            suffix = "" if part == "lora_magnitude_vector" else ".weight"
            tensors[f"{PREFIX}{module}.{part}{suffix}"] = array
    return tensors, modules


def _whole(
    architecture: str, leaves: Mapping[str, Any], base: Mapping[str, Any], config: ModelConfig
) -> Parts:
    """Their tensors of every module of which a parameter is trained itself."""
    own = {path: leaf for path, leaf in leaves.items() if path in base}
    if config.tied and "embedding/weight" in own:
        raise errors.BadInput(
            "embedding/weight is trained whole and serves the head too, which PEFT would leave as it was; leave it out "
            "of adapt.whole, or export the merged model"
        )
    entries = list(hf.entries(architecture, config))
    modules = {
        entry.names[0].rpartition(".")[0] for entry in entries if own.keys() & set(entry.ours)
    }
    merged = {path: np.asarray(leaf) for path, leaf in ({**base, **own}).items()}
    return {
        tensor.name: np.ascontiguousarray(tensor.read())
        for tensor in hf.outgoing(architecture, config, merged)
        if tensor.name.rpartition(".")[0] in modules
    }


def _read_prompt(
    said: Mapping[str, Any], held: Mapping[str, np.ndarray], config: ModelConfig
) -> tuple[AdapterConfig, Any]:
    """A soft prompt; of a table for encoder and decoder PEFT itself uses the first half."""
    rows = held.get(PROMPT)
    count = said.get("num_virtual_tokens") or 0
    if rows is None or rows.ndim != 2 or rows.shape[1] != config.width or len(rows) < count:
        raise errors.BadInput(
            f"{PROMPT} of the adapter has shape {None if rows is None else rows.shape}, and the model asks for "
            f"{(count, config.width)}; give the base model that it was trained on"
        )
    table = jnp.asarray(rows[:count], jnp.float32) / np.float32(_scaling(config))
    return AdapterConfig("prompt", virtual_tokens=count), hf.nest({adapters.PROMPT: table})


def _scaling(config: ModelConfig) -> float:
    """What the embedding multiplies rows by; PEFT puts its vectors behind that."""
    return config.width**0.5 if config.embedding in ("scaled", "scaled_normed") else 1.0


def _sorted(held: Mapping[str, np.ndarray]) -> tuple[dict[str, Parts], Parts]:
    """Of each module its matrices, and the tensors that are whole parameters."""
    modules: dict[str, Parts] = {}
    rest: Parts = {}
    for key in held:
        name = key.removeprefix(PREFIX)
        if match := PART.match(name):
            modules.setdefault(match[1], {})[match[2]] = held[key]
        elif ".base_layer." not in name:  # beside an adapted head PEFT keeps a copy of the base's
            rest[name.replace(".modules_to_save.", ".")] = held[key]
    return modules, rest


def _architecture(config: ModelConfig) -> str:
    architecture = hf_config.holding(config)
    if architecture is None:
        raise errors.BadInput(
            f"PEFT adapts models of transformers, and none of these has a model of family {config.family!r} in the "
            "same form; keep the adapter in its run"
        )
    return architecture


def _known(config: ModelConfig) -> dict[str, Entry]:
    """The entries of a model by the names of its tensors."""
    return {
        name: entry for entry in hf.entries(_architecture(config), config) for name in entry.names
    }


def _entry(name: str, known: Mapping[str, Entry], config: ModelConfig) -> Entry:
    table = architectures.TABLES[_architecture(config)]
    found = next((known[each] for each in hf.spellings(table, name) if each in known), None)
    if found is None:
        raise errors.BadInput(
            f"the adapter changes {name!r}, which the model does not have{errors.nearest(name, known)}; "
            "give the base model that it was trained on"
        )
    return found


def _pattern(patterns: Mapping[str, float] | None, module: str, usual: float) -> float:
    """The value that PEFT's table of patterns gives a module."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return float(value)
    return usual


def _rule(path: str) -> str:
    """A regex that finds this parameter in every layer, stacked or not."""
    return "^" + re.sub(r"layers_\d+", r"layers\\w*", path) + "$"


def _tensor(named: tuple[str, np.ndarray]) -> Tensor:
    name, array = named
    return Tensor(name, array.shape, array.dtype, lambda: array)
