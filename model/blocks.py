"""A block, and a stack of them: scanned or unrolled, with or without recomputation, one set of weights either way."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from model import attention, layers
from model.cache import Cache
from model.config import ModelConfig, Runtime

REMAT = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}
ACTIVATION_AXES = ("batch", "sequence", "activation")


class Block(nn.Module):
    """Attention, then feed-forward, each normalised first and added to the residual stream (pre-norm)."""

    config: ModelConfig
    runtime: Runtime
    train: bool

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, mask: jax.Array, positions_BT: jax.Array, past: Any = None
    ) -> tuple[jax.Array, dict]:
        c, dtype = self.config, self.runtime.dtype
        drop = nn.Dropout(self.runtime.dropout, deterministic=not self.train)
        h_BTD = layers.Norm(c, dtype, name="attention_norm")(x_BTD)
        h_BTD, aux = attention.Attention(c, self.runtime, name="attention")(
            h_BTD, mask, positions_BT, past
        )
        x_BTD = x_BTD + drop(h_BTD)
        h_BTD = layers.Norm(c, dtype, name="feed_forward_norm")(x_BTD)
        h_BTD = layers.FeedForward(c, self.runtime, name="feed_forward")(h_BTD)
        x_BTD = nn.with_logical_constraint(x_BTD + drop(h_BTD), ACTIVATION_AXES)
        return x_BTD, aux


class Stack(nn.Module):
    """`layers` blocks in a row.

    Returns the residual stream and `aux`, per layer: attention maps, and keys and values. A scanned stack keeps no
    `aux` (stacking it would cost memory in every training step) and takes no cache.
    """

    config: ModelConfig
    runtime: Runtime

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        mask: jax.Array,
        positions_BT: jax.Array,
        cache: Cache | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, dict]:
        c, run = self.config, self.runtime
        block = Block
        if run.remat != "none":
            block = nn.remat(Block, policy=REMAT[run.remat], prevent_cse=not run.scan)
        if run.scan:
            scan = nn.scan(
                lambda layer, x, mask, positions: (layer(x, mask, positions)[0], None),
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=nn.broadcast,
                length=c.layers,
                unroll=min(run.unroll, c.layers),
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            x_BTD, _ = scan(block(c, run, train, name="layers"), x_BTD, mask, positions_BT)
            return x_BTD, {}
        aux: dict[str, list] = {"attention": [], "keys": [], "values": []}
        for i in range(c.layers):
            past = None if cache is None else (cache.keys[i], cache.values[i], cache.lengths_B)
            x_BTD, layer_aux = block(c, run, train, name=f"layers_{i}")(
                x_BTD, mask, positions_BT, past
            )
            for name, value in layer_aux.items():
                aux[name].append(value)
        return x_BTD, aux


def unstack_layers(tree: Any) -> Any:
    """Scanned parameters `{"layers": [L, ...]}` as one entry per layer `{"layers_0": ..., "layers_1": ...}`.

    Works at any depth of nested dictionaries; everything else passes through.
    """
    if not isinstance(tree, dict):
        return tree
    result = {}
    for name, value in tree.items():
        if name == "layers":
            count = len(jax.tree.leaves(value)[0])
            for i in range(count):
                result[f"layers_{i}"] = jax.tree.map(lambda leaf, i=i: leaf[i], value)
        else:
            result[name] = unstack_layers(value)
    return result


def stack_layers(tree: Any) -> Any:
    """The inverse of `unstack_layers`."""
    if not isinstance(tree, dict):
        return tree
    numbered = sorted(
        (name for name in tree if name.startswith("layers_")), key=lambda name: int(name[7:])
    )
    result = {name: stack_layers(value) for name, value in tree.items() if name not in numbered}
    if numbered:
        result["layers"] = jax.tree.map(
            lambda *leaves: jnp.stack(leaves), *(tree[name] for name in numbered)
        )
    return result
