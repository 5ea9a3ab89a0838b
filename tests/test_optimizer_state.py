"""Does the state of every optimiser lie on a mesh, survive a checkpoint to the bit, and hand on its average?"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from model import checkpoint, sharding
from model.config import ModelConfig
from train import losses, optimizer, step

pytestmark = pytest.mark.standard_promotion

MESH = {"data": 2, "fsdp": 2, "tensor": 2}
WEIGHTS = {
    "query": ((2, 6, 4, 3), ("layers", "embed", "heads", "head")),
    "out": ((2, 4, 3, 6), ("layers", "heads", "head", "embed")),
}
ARMS: dict[str, dict[str, Any]] = {
    **{name: {"name": name} for name in ("lion", "sgd", "adafactor", "schedule_free")},
    "lean": {"name": "muon", "moments_dtype": "bfloat16", "ema_decay": 0.5, "frozen": ("bias$",)},
}


def wave(key, shape):
    """Values of all sizes that compile faster than random ones."""
    return jnp.sin(jnp.arange(np.prod(shape), dtype=jnp.float32) ** 1.3).reshape(shape)


class Weights(nn.Module):
    """A module of nothing but weights, under the paths and the axes that a transformer has."""

    shapes: dict

    @nn.compact
    def __call__(self) -> None:
        for name, (shape, axes) in self.shapes.items():
            self.param(name, nn.with_logical_partitioning(wave, axes), shape)


class Attention(nn.Module):
    @nn.compact
    def __call__(self) -> None:
        for name, weight in WEIGHTS.items():
            Weights({"weight": weight}, name=name)()


class Layers(nn.Module):
    @nn.compact
    def __call__(self) -> None:
        Attention(name="attention")()


class Stack(nn.Module):
    @nn.compact
    def __call__(self) -> None:
        Layers(name="layers")()


class Net(nn.Module):
    """What `step.init_state` needs of a network."""

    config: ModelConfig

    @nn.compact
    def __call__(self, tokens_BT: jax.Array) -> None:
        Stack(name="stack")()
        table = {"weight": ((258, 262), ("vocab", "embed")), "bias": ((262,), ("embed",))}
        Weights(table, name="embedding")()


NET = Net(ModelConfig(vocab_size=5, context_length=7, layers=2, width=4, heads=2))


def distance(params, batch, key):
    """A loss whose gradient is of every weight, and another in each step."""
    draw = jax.random.uniform(key)
    total = sum(jnp.square(jnp.cos(leaf + draw)).sum() for leaf in jax.tree.leaves(params))
    total *= batch["weights"].sum()
    return losses.Sums(total, total)


@functools.cache
def machine(arm, sizes):
    """(abstract state, fresh state, a step) on a mesh, or on one device without sizes."""
    mesh = sharding.make_mesh(dict(sizes) if sizes else None, None if sizes else jax.devices()[:1])
    config = optimizer.OptimizerConfig(learning_rate=0.1, **ARMS[arm])
    transform = optimizer.build(config, steps=7)
    abstract = step.abstract_state(NET, transform, mesh)
    where = step.shardings(abstract)
    one = jax.jit(
        functools.partial(
            step.train_step, loss_fn=distance, optimizer=transform, frozen=config.frozen
        ),
        donate_argnums=0,
        in_shardings=(where, None, None),
        out_shardings=(where, None),
    )
    batch = {"weights": jnp.ones((2, 3)), "segments": jnp.ones((2, 3), jnp.int32)}
    return (
        abstract,
        lambda: step.init_state(NET, transform, mesh, key=jax.random.key(3)),
        lambda state: one(state, batch, jax.random.key(5))[0],
    )


def assert_same(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("arm", ARMS)
def test_a_state_on_a_mesh_is_that_of_one_device_and_goes_on_from_a_checkpoint_to_the_bit(
    arm, tmp_path
):
    abstract, fresh, advance = machine(arm, tuple(MESH.items()))
    begun = jax.device_get(fresh())
    state = advance(advance(jax.device_put(begun, step.shardings(abstract))))
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(2, state, {})
    checkpoints.wait()
    restored, _ = checkpoints.restore(2, abstract)
    checkpoints.close()
    assert_same(restored, state)
    whole, resumed = advance(state), advance(restored)
    assert_same(resumed, whole)
    assert step.shardings(resumed) == step.shardings(abstract)

    there, _, advance = machine(arm, None)
    single = advance(advance(advance(jax.device_put(begun, step.shardings(there)))))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(single), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.linalg.norm(a - b) <= 2e-3 * np.linalg.norm(b) + 1e-6

    # What is as large as a parameter is split as the parameter is; the rest is small.
    split = {leaf.shape: leaf.sharding for leaf in jax.tree.leaves(whole.params)}
    for leaf in jax.tree.leaves(whole.opt_state):
        if leaf.size > 300:
            assert leaf.sharding.is_equivalent_to(split[leaf.shape], leaf.ndim)
            assert not leaf.sharding.is_fully_replicated

    # A reader of parameters gets the average where there is one.
    read = checkpoint.params_only(tmp_path, 2, abstract.params)
    loaded, _ = checkpoint.Checkpoints(tmp_path).restore(2, abstract)
    assert_same(read, loaded.weights)
    averaged = arm in ("schedule_free", "lean")
    for name in ("embedding", "stack"):
        gap = np.abs(jax.tree.leaves(read[name])[-1] - jax.tree.leaves(loaded.params[name])[-1])
        assert (gap.max() > 1e-4) == averaged
