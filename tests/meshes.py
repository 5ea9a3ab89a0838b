"""One model of each kind, in sizes that eight devices share, on one device and on a mesh: how far apart are they?"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

import model
from model import sharding
from model.config import RECURRENT, ModelConfig, Runtime
from tests import variants
from train import optimizer, step

SPLIT = dict(width=24, hidden=40, vocab_size=104, context_length=32)  # what the mesh divides
MESHES = {
    "data 8": dict(data=8),
    "fsdp 8": dict(fsdp=8),
    "data 4, tensor 2": dict(data=4, tensor=2),
    "fsdp 2, tensor 4": dict(fsdp=2, tensor=4),
    "data 2, fsdp 2, tensor 2": dict(data=2, fsdp=2, tensor=2),
    "data 4, sequence 2": dict(data=4, sequence=2),
    "fsdp 2, sequence 2, tensor 2": dict(fsdp=2, sequence=2, tensor=2),
    "data 4, expert 2": dict(data=4, expert=2),
}
LOSS_BOUND, GRADIENT_BOUND = 1e-5, 3e-5
# Of the largest entry of the whole gradient: what is smaller counts as this large. The gradient of a key's bias is 0
# but for rounding, and two roundings differ by all they are.
FLOOR = 1e-3
STEPS = 5


def divisible(config: ModelConfig) -> ModelConfig:
    """The same kind of model, in sizes that eight devices can share."""
    if config.family in RECURRENT:
        return dataclasses.replace(config, **SPLIT)
    experts = dataclasses.replace(config.experts, count=4 if config.experts.count else 0)
    kv_heads = {config.heads: 4, 1: 1}.get(config.kv_heads or config.heads, 2)
    # Of a head of 6, a smaller share than a third would turn no pair.
    rope = dataclasses.replace(config.rope, fraction=max(config.rope.fraction, 0.4))
    return dataclasses.replace(
        config, **SPLIT, heads=4, kv_heads=kv_heads, head_size=6, experts=experts, rope=rope
    )


def differences(config: ModelConfig, sizes: dict[str, int]) -> tuple[float, float]:
    """Of the loss, relative; and of the gradient, the worst tensor's, relative to its largest entry or `FLOOR`."""
    net, params, tokens_BT, (loss, gradients) = _alone(config)
    mesh = sharding.make_mesh(sizes)
    boxed = jax.eval_shape(lambda: model.init_boxed(net, key=jax.random.key(0)))
    laid = jax.device_put(params, sharding.of_tree(boxed, mesh))
    both = sharding.on_mesh(_loss_and_gradient(net, config), mesh)
    actual_loss, actual = both(laid, jax.device_put(tokens_BT, sharding.batch(mesh)))
    assert jax.tree.structure(actual) == jax.tree.structure(gradients)
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(gradients))
    worst = [
        float(np.abs(np.asarray(a) - np.asarray(b)).max() / max(np.abs(b).max(), FLOOR * largest))
        for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(gradients), strict=True)
    ]
    return abs(float(actual_loss) / float(loss) - 1), max(worst)


def training(config: ModelConfig, sizes: dict[str, int], devices: int = 8) -> list[float]:
    """Losses of a few steps of training with dropout and accumulation, from a fresh state."""
    net = model.build(config, Runtime(scan=True, dropout=0.1))
    transform = optimizer.build(optimizer.OptimizerConfig(learning_rate=3e-3), STEPS)
    mesh = sharding.make_mesh(sizes, jax.devices()[:devices])
    state = step.init_state(net, transform, mesh, key=jax.random.key(3))
    where = step.shardings(step.abstract_state(net, transform, mesh))
    train_step = step.make_train_step(net, transform, mesh, where, accumulate=2)
    draw, losses = np.random.default_rng(5), []
    for _ in range(STEPS):
        tokens = draw.integers(0, 101, (16, 17))
        batch = {
            "tokens": tokens[:, :-1].astype(np.int32),
            "targets": tokens[:, 1:].astype(np.int32),
            "segments": np.ones((16, 16), np.int32),
            "weights": draw.integers(0, 2, (16, 16)).astype(np.float32),
        }
        state, metrics = train_step(state, step.put_batch(batch, mesh), jax.random.key(7))
        losses.append(float(metrics["loss"]))
    return losses


@functools.cache
def _alone(config: ModelConfig):
    """The network, its weights, tokens, and what one device computes of them."""
    net = model.build(config, Runtime(scan=True))
    init = jax.jit(lambda: model.init(net, key=jax.random.key(0)), compiler_options=variants.FAST)
    params = init()
    tokens_BT = jax.random.randint(jax.random.key(2), (8, 16), 0, 101)
    return net, params, tokens_BT, _loss_and_gradient(net, config)(params, tokens_BT)


def _loss_and_gradient(net, config: ModelConfig):
    def loss(params, tokens_BT):
        sides = (tokens_BT,) * (2 if config.family == "encoder_decoder" else 1)
        logits, _ = net.apply({"params": params}, *sides)
        return -jax.nn.log_softmax(logits.astype(jnp.float32))[..., 0].mean()

    return jax.jit(jax.value_and_grad(loss), compiler_options=variants.FAST)
