"""How far are our logits and gradients from a reference's?

Ours come from one batch of rows of different lengths, padded on one side, or from rows that stand alone; theirs always
from rows that stand alone. So a difference shows wherever padding, or the company of other rows, changes anything.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import model
from model import hf, hf_config
from model.config import ModelConfig, Runtime
from tests import references, torch_models
from tests.references import Reference, Row

PADDINGS = ("none", "left", "right")
PAD = 5  # a token like any other, which must be ignored because the mask says so
FLOAT32 = Runtime()
EXACT = 1e-4  # the bound of float32, in units of the largest logit
ROUGH = 0.1  # of bfloat16, whose every rounding is up to 0.004; torch strays as far, benchmarks/parity.py shows
SLOPE = 1e-4  # of gradients, in units of the largest entry of each tensor's


def load(reference: Reference, tensors: Mapping[str, np.ndarray]) -> tuple[ModelConfig, Any]:
    """Our config and parameters for a reference and its tensors."""
    config = config_of(reference, tensors)
    if reference.architecture == "encoder_decoder":
        params = torch_models.transformer_from_theirs(reference.config, tensors)
    else:
        params = hf.from_theirs(reference.architecture, config, tensors)
    return config, jax.tree.map(jnp.asarray, params)


def config_of(reference: Reference, names: Iterable[str]) -> ModelConfig:
    """Our config of a reference's config.json and the names of its tensors."""
    return our_config(json.loads(references.config_text(reference)), names)


def our_config(theirs: Mapping[str, Any], names: Iterable[str]) -> ModelConfig:
    """Our config of what a config.json says, or of our own keys, and the names of the tensors."""
    return ModelConfig(**theirs) if "family" in theirs else hf_config.model_config(theirs, names)


def inputs(rows: Sequence[Row], padding: str) -> tuple[tuple, dict[str, jax.Array]]:
    """The arguments of `net.apply` for a batch of rows, whose masks are left out where `padding` is "none"."""
    arrays, masks = {}, {}
    for name in rows[0]:
        width = max(len(row[name]) for row in rows)
        arrays[name] = np.full((len(rows), width), 0 if name == "types" else PAD)
        masks[name] = np.zeros((len(rows), width), bool)
        for i, row in enumerate(rows):
            there = np.arange(len(row[name]))
            if padding == "left":
                there += width - len(row[name])
            arrays[name][i, there], masks[name][i, there] = row[name], True
    sides = [name for name in arrays if name != "types"]
    named = {"types": jnp.asarray(arrays["types"], jnp.int32)} if "types" in arrays else {}
    if padding != "none":
        for name in sides:
            named["mask" if name == "tokens" else f"{name}_mask"] = jnp.asarray(masks[name])
    return tuple(jnp.asarray(arrays[name], jnp.int32) for name in sides), named


def apply(config: ModelConfig, runtime: Runtime, params: Any, places: tuple, named: dict) -> Any:
    """Our logits."""
    return model.build(config, runtime).apply({"params": params}, *places, **named)[0]


# Each model is compiled for a few calls only: so quickly that this takes half the time.
QUICKLY = {"xla_backend_optimization_level": 0}
forward = jax.jit(apply, static_argnums=(0, 1), compiler_options=QUICKLY)


def real(rows: Sequence[Row], padding: str, said: np.ndarray) -> list[np.ndarray]:
    """Of a batch's logits those of each row's own tokens [T, V], or of each whole text [C]."""
    if said.ndim == 2:
        return list(said)
    lengths = [len(row.get("target", row.get("tokens"))) for row in rows]
    width = said.shape[1]
    return [
        one[width - length :] if padding == "left" else one[:length]
        for one, length in zip(said, lengths, strict=True)
    ]


def logits(
    config: ModelConfig, params: Any, rows: Sequence[Row], padding: str, runtime: Runtime = FLOAT32
) -> list[np.ndarray]:
    """Ours of each row: each alone and without a mask where `padding` is "none", else of one batch."""
    batches = [[row] for row in rows] if padding == "none" else [rows]
    found = []
    for batch in batches:
        said = forward(config, runtime, params, *inputs(batch, padding))
        found += real(batch, padding, np.asarray(said))
    return found


def error(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> float:
    """The largest difference, in units of their largest value; a NaN anywhere is one here."""
    pairs = list(zip(ours, theirs, strict=True))
    assert all(a.shape == b.shape for a, b in pairs), [(a.shape, b.shape) for a, b in pairs]
    scale = max(np.abs(b).max() for _, b in pairs)
    return float(np.max([np.abs(a - b).max() for a, b in pairs]) / scale)


def _loss(
    params: Any, config: ModelConfig, places: tuple, named: dict, labels_BT: jax.Array
) -> jax.Array:
    """The mean cross-entropy over the labels that are not negative."""
    log_BTV = jax.nn.log_softmax(apply(config, FLOAT32, params, places, named))
    log_BTV = log_BTV.reshape(*labels_BT.shape, -1)
    picked_BT = jnp.take_along_axis(log_BTV, jnp.maximum(labels_BT, 0)[..., None], axis=-1)[..., 0]
    return -jnp.mean(picked_BT, where=labels_BT >= 0)


_gradient = jax.jit(jax.grad(_loss), static_argnums=1, compiler_options=QUICKLY)


def gradients(
    config: ModelConfig, params: Any, rows: Sequence[Row], labels: Sequence[np.ndarray]
) -> Any:
    """Of the mean cross-entropy over every label of one batch padded on the left."""
    width = max(map(len, labels))
    labels_BT = np.stack([np.pad(one, (width - len(one), 0), constant_values=-1) for one in labels])
    places, named = inputs(rows, "left")
    return _gradient(params, config, places, named, jnp.asarray(labels_BT, jnp.int32))


def gradient_error(
    reference: Reference, config: ModelConfig, ours: Any, theirs: Mapping[str, np.ndarray]
) -> float:
    """The largest difference of any tensor's gradient, in units of that tensor's largest.

    Where theirs is all but zero (what is added to every key alike changes no attention: 1e-8), rounding is all there
    is: the unit is at least a hundredth of the largest gradient of all.
    """
    if reference.architecture == "encoder_decoder":
        tree = torch_models.transformer_from_theirs(reference.config, theirs)
        assert jax.tree.structure(tree) == jax.tree.structure(ours)
        pairs = list(zip(jax.tree.leaves(ours), jax.tree.leaves(tree), strict=True))
    else:
        named = hf.to_theirs(reference.architecture, config, jax.tree.map(np.asarray, ours))
        pairs = [(named[name], array) for name, array in theirs.items()]
    floor = 1e-2 * max(np.abs(b).max() for _, b in pairs)
    return float(np.max([np.abs(a - b).max() / max(np.abs(b).max(), floor) for a, b in pairs]))
