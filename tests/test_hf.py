"""Do imported weights give the reference's logits, and come back unchanged?"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import model
from model import errors, hf
from tests.goldens import make_hf

CONFIGS = make_hf.CONFIGS
FULL = make_hf.SIZES["context_length"]


@functools.partial(jax.jit, static_argnums=0)
def forward(config, params, tokens_BT, mask_BT):
    return model.build(config).apply({"params": params}, tokens_BT, mask=mask_BT)[0]


def distance(architecture, tensors, tokens_BT, mask_BT, expected_BTV):
    """The largest difference of our float32 logits from theirs, in units of their largest logit."""
    config = CONFIGS[architecture]
    params = jax.tree.map(jnp.asarray, hf.from_theirs(architecture, config, tensors))
    actual_BTV = forward(config, params, jnp.asarray(tokens_BT), jnp.asarray(mask_BT))
    difference = np.abs(np.asarray(actual_BTV) - expected_BTV)[mask_BT]
    return difference.max() / np.abs(expected_BTV[mask_BT]).max()


@pytest.mark.parametrize("length", [1, FULL])
@pytest.mark.parametrize("architecture", hf.TABLES)
def test_logits_equal_those_that_transformers_once_gave(architecture, length):
    """Measured: at most 1.3e-6 of the largest logit; a change of each tensor by 0.01 moves them by 1.6e-3 or more."""
    with np.load(make_hf.HERE / f"{architecture}.npz") as golden:
        arrays = dict(golden)
    tensors = {n.removeprefix("weights."): a for n, a in arrays.items() if n.startswith("weights.")}
    tokens_BT, mask_BT, logits_BTV = (
        arrays[f"{name}.{length}"] for name in ("tokens", "mask", "logits")
    )
    assert "transformers 5" in str(arrays["versions"])
    assert tokens_BT.shape == (3, length) and mask_BT.sum() == {1: 3, FULL: 21 + 31 + 1}[length]
    assert distance(architecture, tensors, tokens_BT, mask_BT, logits_BTV) < 1e-4
    seen = [name for name in tensors if not blind(name, length)]
    assert len(seen) > 10
    for name in seen:
        changed = tensors[name].copy()
        changed += 0.01 * np.random.default_rng(0).normal(size=changed.shape).astype(np.float32)
        error = distance(architecture, {**tensors, name: changed}, tokens_BT, mask_BT, logits_BTV)
        assert error > 1e-4, name


def blind(name, length):
    """Whether a tensor cannot matter: one token attends to itself, whatever the queries and keys."""
    return length == 1 and re.search(r"(q|k)_proj", name)


@pytest.mark.oracle
@pytest.mark.parametrize("architecture", hf.TABLES)
def test_logits_and_gradients_equal_those_of_transformers(architecture):
    import torch

    theirs = make_hf.reference(architecture)
    tensors = make_hf.weights(theirs)
    config = CONFIGS[architecture]
    for length in (1, 23, FULL):
        tokens, mask = make_hf.batch(length)
        error = distance(architecture, tensors, tokens, mask, make_hf.logits(theirs, tokens, mask))
        assert error < 1e-5, (length, error)

    def loss(params):
        logits, _ = model.build(config).apply({"params": params}, jnp.asarray(tokens[:, :-1]))
        picked = jnp.take_along_axis(
            jax.nn.log_softmax(logits), jnp.asarray(tokens[:, 1:, None]), axis=-1
        )
        return -picked.mean()

    labels = torch.tensor(tokens, dtype=torch.long)
    theirs(labels, labels=labels).loss.backward()
    params = jax.tree.map(jnp.asarray, hf.from_theirs(architecture, config, tensors))
    grads = hf.to_theirs(architecture, config, jax.grad(loss)(params))
    for name, parameter in theirs.named_parameters():
        expected = parameter.grad.numpy()
        np.testing.assert_allclose(
            grads[name], expected, atol=1e-5 * max(1.0, np.abs(expected).max()), err_msg=name
        )


@pytest.mark.parametrize("architecture", hf.TABLES)
def test_import_undoes_export_tensor_for_tensor(architecture):
    config = CONFIGS[architecture]
    params = model.init(model.build(config), key=jax.random.key(0))
    tensors = hf.to_theirs(architecture, config, params)
    back = hf.from_theirs(architecture, config, tensors)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), back, params))


def test_a_missing_or_misshapen_tensor_is_named():
    config = CONFIGS["llama"]
    tensors = hf.to_theirs("llama", config, model.init(model.build(config), key=jax.random.key(0)))
    name = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(errors.BadInput, match=f"tensor '{name}' is missing"):
        hf.from_theirs("llama", config, {k: v for k, v in tensors.items() if k != name})
    with pytest.raises(
        errors.BadInput, match=rf"tensor '{name}' has shape \(3,\); the config asks for F=43×D=18"
    ):
        hf.from_theirs("llama", config, {**tensors, name: np.zeros(3)})
