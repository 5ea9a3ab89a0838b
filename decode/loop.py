"""How does a batch of prompts grow, token by token? A state, a condition and a step; one compiled program.

Streaming and batch decoding run the same executable with another `limit`, so they give the same
bits. Everything that may change between calls is an array, so only shapes compile: the number of
rows and of slots. Rows come and go on their own (`insert`), and none ever looks at another.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from decode import keys, processors, sampling
from model import cache


class State(struct.PyTreeNode):
    """A batch in the middle of decoding. The first axis of every leaf is the row; S is slots, one per position.

    What stands at or beyond a row's length is leftovers.

    Attributes:
        tokens_BS: int32, prompt and continuation; the token at position p stands in slot p.
        lengths_B: int32, tokens held so far.
        limits_B: int32, the length at which a row is done.
        ends_BE: int32, the tokens that end a row; -1 where none does.
        done_B: bool.
        keys_B: each row's key, to be folded with the position.
        knobs: the settings.
        cache: what the net keeps of all tokens but the last.
        logprobs_BS, sampled_logprobs_BS, margins_BS: float32, of the continuation's tokens, in their slots.
    """

    tokens_BS: jax.Array
    lengths_B: jax.Array
    limits_B: jax.Array
    ends_BE: jax.Array
    done_B: jax.Array
    keys_B: jax.Array
    knobs: processors.Knobs
    cache: Any
    logprobs_BS: jax.Array
    sampled_logprobs_BS: jax.Array
    margins_BS: jax.Array


@functools.partial(jax.jit, static_argnames=("net", "rows", "slots", "source", "ends"))
def empty(net: nn.Module, rows: int, slots: int, source: int = 0, ends: int = 1) -> State:
    """A batch whose rows are all done: places to insert into, with `source` slots for what an encoder reads
    and `ends` tokens that may end each."""
    zeros_BS = jnp.zeros((rows, slots), jnp.float32)
    zeros_B = jnp.zeros(rows, jnp.int32)
    return State(
        tokens_BS=jnp.zeros((rows, slots), jnp.int32),
        lengths_B=zeros_B + 1,
        limits_B=zeros_B,
        ends_BE=jnp.full((rows, ends), -1, jnp.int32),
        done_B=jnp.ones(rows, bool),
        keys_B=jax.random.wrap_key_data(jnp.zeros((rows, 2), jnp.uint32), impl=keys.IMPLEMENTATION),
        knobs=processors.Knobs(zeros_BS[:, 0], zeros_B, zeros_BS[:, 0] + 1, zeros_BS[:, 0]),
        cache=cache.init(net.config, rows, slots, net.runtime.dtype, source),
        logprobs_BS=zeros_BS,
        sampled_logprobs_BS=zeros_BS,
        margins_BS=zeros_BS,
    )


@functools.partial(jax.jit, static_argnames=("net",))
def prefill(net: nn.Module, params: Any, tokens_BT: jax.Array, count: jax.Array) -> Any:
    """The cache of one prompt's first `count` tokens; [1, T] whatever the batch is, so its bits never depend on it.

    They are all but the last, which the first step feeds, as every step feeds the newest token; or the whole source
    of an encoder-decoder, whose first step feeds the token that its target begins with.
    """
    size = tokens_BT.shape[1]
    blank = cache.for_prompt(net.config, size, net.runtime.dtype)
    mask_BT = jnp.arange(size)[None] < count
    return net.apply({"params": params}, tokens_BT, mask_BT, blank, method="read")


@functools.partial(jax.jit, donate_argnames=("state",))
def insert(state: State, row: jax.Array, one: State) -> State:
    """Puts a state of one row in the place of row `row`; leaves with fewer slots fill the first ones."""

    def put(many: jax.Array, one: jax.Array) -> jax.Array:
        start = (row, *(jnp.zeros_like(row) for _ in many.shape[1:]))
        return jax.lax.dynamic_update_slice(many, one, start)

    return jax.tree.map(put, state, one)


def step(net: nn.Module, params: Any, state: State) -> State:
    """Every row that is not done gets one token."""
    rows = jnp.arange(len(state.done_B))
    going_B = ~state.done_B
    newest_B = state.tokens_BS[rows, state.lengths_B - 1]
    logits_B1V, memory = net.apply(
        {"params": params}, newest_B[:, None], going_B[:, None], state.cache, method="extend"
    )
    drawn = sampling.draw(
        logits_B1V[:, 0].astype(jnp.float32),
        state.knobs,
        keys.fold(state.keys_B, state.lengths_B, "sample"),
    )

    def record(kept_BS: jax.Array, new_B: jax.Array) -> jax.Array:
        return kept_BS.at[rows, state.lengths_B].set(new_B, mode="drop")

    lengths_B = state.lengths_B + going_B.astype(jnp.int32)
    at_end_B = (drawn.token_B[:, None] == state.ends_BE).any(axis=1)
    ended_B = at_end_B | (lengths_B >= state.limits_B)
    return state.replace(
        tokens_BS=record(state.tokens_BS, drawn.token_B),
        lengths_B=lengths_B,
        done_B=state.done_B | ended_B,
        cache=memory,
        logprobs_BS=record(state.logprobs_BS, drawn.logprob_B),
        sampled_logprobs_BS=record(state.sampled_logprobs_BS, drawn.sampled_logprob_B),
        margins_BS=record(state.margins_BS, drawn.margin_B),
    )


@functools.partial(jax.jit, static_argnames=("net",), donate_argnames=("state",))
def run(net: nn.Module, params: Any, state: State, limit: jax.Array, least: jax.Array) -> State:
    """Steps until `limit` steps are taken, or fewer than `least` rows are still going."""

    def cond(carry: tuple[jax.Array, State]) -> jax.Array:
        taken, state = carry
        going = (~state.done_B).sum(dtype=jnp.int32)
        return (taken < limit) & (going >= least)

    def body(carry: tuple[jax.Array, State]) -> tuple[jax.Array, State]:
        taken, state = carry
        return taken + 1, step(net, params, state)

    return jax.lax.while_loop(cond, body, (jnp.int32(0), state))[1]
