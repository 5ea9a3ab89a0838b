"""Does a mesh leave the loss and every gradient of each family as they are?"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import model
from model import sharding
from model.config import RECURRENT, Runtime
from tests import variants

SPLIT = dict(width=24, hidden=40, vocab_size=104, context_length=32)  # what the mesh divides


def divisible(config):
    """The same kind of model, in sizes that eight devices can share."""
    if config.family in RECURRENT:
        return dataclasses.replace(config, **SPLIT)
    kv_heads = 4 if config.kv_heads == config.heads else 2
    return dataclasses.replace(config, **SPLIT, heads=4, kv_heads=kv_heads, head_size=6)


@pytest.mark.parametrize("name", ["gemma2", "mixtral", "bert", "t5", "lstm", "gru"])
def test_a_mesh_of_three_axes_leaves_loss_and_gradients(name):
    config = divisible(variants.CONFIGS[name])
    net = model.build(config, Runtime(scan=True))
    boxed = jax.eval_shape(lambda: model.init_boxed(net, key=jax.random.key(0)))
    init = jax.jit(lambda: model.init(net, key=jax.random.key(0)), compiler_options=variants.FAST)
    params = init()
    tokens_BT = jax.random.randint(jax.random.key(2), (8, 16), 0, 101)

    def loss(params, tokens_BT):
        sides = (tokens_BT,) * (2 if config.family == "encoder_decoder" else 1)
        logits, _ = net.apply({"params": params}, *sides)
        return -jax.nn.log_softmax(logits)[..., 0].mean()

    def both():
        return jax.jit(jax.value_and_grad(loss), compiler_options=variants.FAST)

    expected_loss, expected = both()(params, tokens_BT)
    mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
    laid = jax.device_put(params, sharding.of_tree(boxed, mesh))
    actual_loss, actual = sharding.on_mesh(both(), mesh)(
        laid, jax.device_put(tokens_BT, sharding.batch(mesh))
    )
    np.testing.assert_allclose(actual_loss, expected_loss, rtol=1e-5)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        scale = float(jnp.abs(b).max())
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(a, b, atol=3e-4 * scale + 1e-9, err_msg=name)
