"""Do imported weights give the reference's logits, and come back unchanged?"""

import jax.numpy as jnp
import numpy as np
import pytest

import model
from model import errors, hf
from model.config import ModelConfig

SIZES = dict(vocab_size=103, context_length=41, layers=3, width=42, hidden=67)
CONFIGS = {
    "gpt2": ModelConfig(
        heads=3,
        position="learned",
        norm="layer",
        activation="gelu_tanh",
        gated=False,
        bias=True,
        tied=True,
        **SIZES,
    ),
    "llama": ModelConfig(heads=6, kv_heads=2, head_size=14, rope_theta=5000.0, **SIZES),
}


def reference(architecture):
    """A randomly initialised model of transformers with the shape of our config."""
    import torch
    import transformers

    torch.manual_seed(0)
    if architecture == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=103,
            n_positions=41,
            n_embd=42,
            n_layer=3,
            n_head=3,
            n_inner=67,
            initializer_range=0.2,
        )
        return transformers.GPT2LMHeadModel(config).eval()
    config = transformers.LlamaConfig(
        vocab_size=103,
        hidden_size=42,
        intermediate_size=67,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=14,
        max_position_embeddings=41,
        rms_norm_eps=1e-5,
        initializer_range=0.2,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
    )
    return transformers.LlamaForCausalLM(config).eval()


@pytest.mark.oracle
@pytest.mark.parametrize("architecture", hf.TABLES)
def test_logits_and_gradients_equal_those_of_transformers(architecture):
    import jax
    import torch

    theirs = reference(architecture)
    tensors = {name: value.detach().numpy() for name, value in theirs.state_dict().items()}
    config = CONFIGS[architecture]
    net = model.build(config)
    params = jax.tree.map(jnp.asarray, hf.from_theirs(architecture, config, tensors))
    rng = np.random.default_rng(0)
    for length in (1, 23, 41):
        tokens = rng.integers(0, 103, (2, length))
        mask = np.ones((2, length), bool)
        mask[0, : length // 3] = False
        with torch.no_grad():
            positions = torch.tensor(np.maximum(mask.cumsum(1) - 1, 0))
            out = theirs(
                torch.tensor(tokens), attention_mask=torch.tensor(mask), position_ids=positions
            )
        actual, _ = net.apply(
            {"params": params}, jnp.asarray(tokens, jnp.int32), mask=jnp.asarray(mask)
        )
        expected = out.logits.numpy()
        error = np.abs(np.asarray(actual) - expected)[mask].max() / np.abs(expected).max()
        assert error < 1e-5, (length, error)

    def loss(params):
        logits, _ = net.apply({"params": params}, jnp.asarray(tokens[:, :-1], jnp.int32))
        picked = jnp.take_along_axis(
            jax.nn.log_softmax(logits), jnp.asarray(tokens[:, 1:, None]), axis=-1
        )
        return -picked.mean()

    theirs(torch.tensor(tokens), labels=torch.tensor(tokens)).loss.backward()
    grads = hf.to_theirs(architecture, config, jax.grad(loss)(params))
    for name, parameter in theirs.named_parameters():
        expected = parameter.grad.numpy()
        np.testing.assert_allclose(
            grads[name], expected, atol=1e-5 * max(1.0, np.abs(expected).max()), err_msg=name
        )


@pytest.mark.parametrize("architecture", hf.TABLES)
def test_import_undoes_export_tensor_for_tensor(architecture):
    import jax

    config = CONFIGS[architecture]
    params = model.init(model.build(config), key=jax.random.key(0))
    tensors = hf.to_theirs(architecture, config, params)
    back = hf.from_theirs(architecture, config, tensors)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), back, params))


def test_a_missing_or_misshapen_tensor_is_named():
    import jax

    config = CONFIGS["llama"]
    tensors = hf.to_theirs("llama", config, model.init(model.build(config), key=jax.random.key(0)))
    name = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(errors.BadInput, match=f"tensor '{name}' is missing"):
        hf.from_theirs("llama", config, {k: v for k, v in tensors.items() if k != name})
    with pytest.raises(
        errors.BadInput, match=rf"tensor '{name}' has shape \(3,\); the config asks for F=67×D=42"
    ):
        hf.from_theirs("llama", config, {**tensors, name: np.zeros(3)})
