"""A block, and a stack of them: scanned or unrolled, with or without recomputation, one set of weights either way."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from model import attention, config, layers, positions
from model.attention import Sight
from model.cache import Cache
from model.config import ModelConfig, Runtime

REMAT = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}
ACTIVATION_AXES = ("batch", "sequence", "activation")


class Block(nn.Module):
    """Attention, where there is a source cross-attention, then feed-forward, each added to the residual stream.

    Norms stand before each part (`pre`), after each sum (`post`), or around each part (`sandwich`); in a `parallel`
    block attention and feed-forward read the same stream (Black et al. 2022, section 2.1).
    """

    config: ModelConfig
    runtime: Runtime
    train: bool

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        sight: Sight,
        source_BSD: jax.Array | None = None,
        past: Any = None,
        kept: Any = None,
    ) -> tuple[jax.Array, dict]:
        """Returns [B, T, D] and `aux`; `past` and `kept` are the caches of attention and of cross-attention."""
        c, run = self.config, self.runtime
        drop = nn.Dropout(run.dropout, deterministic=not self.train)

        def norm(name: str, x_BTD: jax.Array, at: tuple[str, ...]) -> jax.Array:
            return layers.Norm(c, run.dtype, name=name)(x_BTD) if c.block in at else x_BTD

        def branch(name: str, x_BTD: jax.Array, part: nn.Module, *args: Any) -> tuple:
            h_BTD = norm(f"{name}_norm", x_BTD, ("pre", "sandwich", "parallel"))
            h_BTD = part(h_BTD, *args)
            h_BTD, aux = h_BTD if isinstance(h_BTD, tuple) else (h_BTD, {})
            return drop(norm(f"{name}_out_norm", h_BTD, ("sandwich",))), aux

        def add(name: str, x_BTD: jax.Array, h_BTD: jax.Array) -> jax.Array:
            return norm(f"{name}_norm", x_BTD + h_BTD, ("post",))

        self_attention = attention.Attention(c, run, name="attention")
        h_BTD, aux = branch(
            "attention", x_BTD, self_attention, sight.replace(source=None), None, past
        )
        before_BTD, x_BTD = x_BTD, add("attention", x_BTD, h_BTD)
        if sight.source is not None:
            cross = attention.Attention(c, run, name="cross")
            h_BTD, cross_aux = branch("cross", x_BTD, cross, sight, source_BSD, kept)
            x_BTD = add("cross", x_BTD, h_BTD)
            aux |= {f"cross_{name}": value for name, value in cross_aux.items()}
        feed_forward = (layers.Experts if c.experts.count else layers.FeedForward)(
            c, run, name="feed_forward"
        )
        read_BTD = before_BTD if c.block == "parallel" else x_BTD
        h_BTD, _ = branch("feed_forward", read_BTD, feed_forward)
        x_BTD = add("feed_forward", x_BTD, h_BTD)
        return nn.with_logical_constraint(x_BTD, ACTIVATION_AXES), aux


class Stack(nn.Module):
    """Positions, blocks in a row, and the last norm: what turns embedded tokens into hidden states.

    Returns them and `aux`, per layer: attention maps, keys and values, and hidden states, of which the first is the
    embedding's. A scanned stack keeps no `aux` (stacking it would cost memory in every training step) and takes no
    cache.

    Attributes:
        layers: how many blocks.
        causal: whether tokens see none behind them, which relative positions want to know.
        block: what a layer is.
    """

    config: ModelConfig
    runtime: Runtime
    layers: int
    causal: bool = True
    block: Any = Block

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        sight: Sight,
        source_BSD: jax.Array | None = None,
        cache: Cache | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, dict]:
        c, run = self.config, self.runtime
        x_BTD = positions.PositionEmbedding(c, run, name="position")(x_BTD, sight.positions_BT)
        if c.embedding in ("normed", "scaled_normed"):
            x_BTD = layers.Norm(c, run.dtype, name="embedding_norm")(x_BTD)
        x_BTD = nn.Dropout(run.dropout)(x_BTD, deterministic=not train)
        x_BTD = nn.with_logical_constraint(x_BTD, ACTIVATION_AXES)
        sight = self._biased(sight)
        block = self.block
        if run.remat != "none":
            block = nn.remat(block, policy=REMAT[run.remat], prevent_cse=not run.scan)
        aux: dict[str, list] = {}
        if run.scan:
            layer = block(c, run, train, name="layers")
            x_BTD = self._scanned(layer, x_BTD, sight, source_BSD)
        else:
            x_BTD, aux = self._unrolled(block, x_BTD, sight, source_BSD, cache, train)
        if c.block != "post" and c.family not in config.RECURRENT:
            x_BTD = layers.Norm(c, run.dtype, name="norm")(x_BTD)
        return x_BTD, aux

    def _biased(self, sight: Sight) -> Sight:
        """The look, with what positions add to the scores."""
        c = self.config
        where = sight.positions_BT, sight.keys_BS
        if c.position == "alibi":
            behind = self.causal and sight.prefix_B is None
            return sight.replace(bias=positions.alibi(c.heads, *where, behind))
        if c.position == "relative":
            bias = positions.RelativeBias(c, self.causal, name="relative")(*where)
            return sight.replace(bias=bias)
        return sight

    def _windows(self) -> list[int]:
        """How far back each layer sees; a layer that sees all has a window that nothing can leave."""
        return [self.config.window(i) or self.config.context_length for i in range(self.layers)]

    def _scanned(
        self, block: nn.Module, x_BTD: jax.Array, sight: Sight, source_BSD: jax.Array | None
    ) -> jax.Array:
        """One block's code, looped over stacked weights."""
        windows = self._windows()
        many = None
        if len(set(windows)) > 1:
            many = jnp.array(windows, jnp.int32)
        elif any(self.config.windows):
            sight = attention.within(sight, windows[0])
        scan = nn.scan(
            lambda layer, x, window, sight, source: (
                layer(x, sight if window is None else attention.within(sight, window), source)[0],
                None,
            ),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=self.layers,
            unroll=min(self.runtime.unroll, self.layers),
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return scan(block, x_BTD, many, sight, source_BSD)[0]

    def _unrolled(
        self,
        block: Any,
        x_BTD: jax.Array,
        sight: Sight,
        source_BSD: jax.Array | None,
        cache: Cache | None,
        train: bool,
    ) -> tuple[jax.Array, dict]:
        """Each block's own code."""
        windows = self._windows() if any(self.config.windows) else []
        looks = {window: attention.within(sight, window) for window in windows}
        aux: dict[str, list] = {"hidden": [x_BTD]}
        for i in range(self.layers):
            past, kept = (None, None) if cache is None else cache.layer(i)
            x_BTD, layer_aux = block(self.config, self.runtime, train, name=f"layers_{i}")(
                x_BTD, looks[windows[i]] if windows else sight, source_BSD, past, kept
            )
            for name, value in {**layer_aux, "hidden": x_BTD}.items():
                aux.setdefault(name, []).append(value)
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
