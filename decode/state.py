"""What is a batch in the middle of decoding? A state whose rows come and go, and never look at one another."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from decode.context import Context
from decode.strategy import Models, Strategy
from model import cache

RECORDS = ("logprobs", "sampled_logprobs", "margins")
LIKELIHOOD = ("entropies", "kept_masses", "ranks", "kept_counts")


class State(struct.PyTreeNode):
    """The first axis of every leaf is the row; a completion has `strategy.width` rows. S is slots, one per position.

    Attributes:
        context: settings, tokens and lengths.
        done_B: bool.
        guide_B: int32, what the guide is fed where the model is fed the prompt's last token.
        caches: what each net keeps of all tokens but the last.
        records: float32 [B, S], of the continuation's tokens, in their slots.
        search: what beams or contrastive search keep beside; None for draws.
    """

    context: Context
    done_B: jax.Array
    guide_B: jax.Array
    caches: Models
    records: dict[str, jax.Array]
    search: Any = None


def room(strategy: Strategy, state: State) -> int:
    """How long a row may become: beyond it there is only room for drafts."""
    return state.context.tokens_BS.shape[1] - strategy.drafts


def going(strategy: Strategy, state: State) -> jax.Array:
    """Which rows are to get a token: neither done nor full, bool [B]."""
    return ~state.done_B & (state.context.lengths_B < room(strategy, state))


def caches(strategy: Strategy, nets: Models, rows: int, slots: int, source: int) -> Models:
    """Empty caches of all nets, with room for drafts."""
    slots += strategy.drafts

    def blank(net: Any, slots: int) -> Any:
        return net and cache.init(net.config, rows, slots, net.runtime.dtype, source)

    return Models(
        blank(nets.main, slots),
        blank(nets.guide, slots + strategy.further),
        blank(nets.draft, slots),
    )


@functools.partial(jax.jit, donate_argnames=("state",))
def insert(state: State, row: jax.Array, one: State) -> State:
    """Puts the rows of `one` in the place of row `row` and the next.

    Leaves with fewer slots fill the first ones; of those with more, the rest holds nothing.
    """

    def put(many: jax.Array, one: jax.Array) -> jax.Array:
        one = one[(slice(None), *(slice(size) for size in many.shape[1:]))]
        start = (row, *(jnp.zeros_like(row) for _ in many.shape[1:]))
        return jax.lax.dynamic_update_slice(many, one, start)

    return jax.tree.map(put, state, one)


@functools.partial(jax.jit, static_argnames=("width",))
def take(state: State, row: jax.Array, width: int) -> State:
    """A state of the `width` rows from `row` on."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, row, width), state)


@functools.partial(jax.jit, static_argnames=("width",))
def finish(state: State, row: jax.Array, width: int) -> State:
    """The `width` rows from `row` on are done, whatever they still had room for; nothing else is copied."""
    ended_B = jax.lax.dynamic_update_slice(state.done_B, jnp.ones(width, bool), (row,))
    return state.replace(done_B=ended_B)


@functools.partial(jax.jit, donate_argnames=("state",))
def rule(state: State, row: jax.Array, bias_V: jax.Array) -> State:
    """Another bias for row `row`: what a grammar allows next."""
    bias_BV = state.context.rules.bias_BV.at[row].set(bias_V)
    rules = state.context.rules.replace(bias_BV=bias_BV)
    return state.replace(context=state.context.replace(rules=rules))
