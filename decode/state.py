"""What is a batch in the middle of decoding? A state whose rows come and go, and never look at one another."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from decode import context, keys
from decode.context import Context
from decode.settings import Settings
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


def empty(
    strategy: Strategy,
    nets: Models,
    rows: int,
    slots: int,
    source: int = 0,
    ends: int = 1,
    counts: tuple[int, int, int, int] = (1, 1, 1, 1),
) -> State:
    """A batch whose rows are all done: places to insert into.

    Args:
        slots: how long a row may become.
        source: slots for what an encoder reads.
        ends: how many tokens may end each row.
        counts: of the rules, as `context.no_rules` takes them.
    """
    ones_B = jnp.ones(rows, jnp.int32)
    blank = jax.tree.map(
        lambda x: jnp.zeros((rows, *x.shape[1:]), x.dtype), context.knobs([Settings()])
    )
    held = slots + strategy.drafts
    return State(
        context=Context(
            knobs=blank,
            rules=context.no_rules(rows, nets.main.config.vocab_size, counts),
            tokens_BS=jnp.zeros((rows, held), jnp.int32),
            lengths_B=ones_B,
            prompt_B=ones_B,
            read_BR=jnp.zeros((rows, source or held), jnp.int32),
            read_B=0 * ones_B,
            limits_B=0 * ones_B,
            ends_BE=jnp.full((rows, ends), -1, jnp.int32),
            keys_B=jax.random.wrap_key_data(
                jnp.zeros((rows, 2), jnp.uint32), impl=keys.IMPLEMENTATION
            ),
            surprise_B=jnp.zeros(rows, jnp.float32),
        ),
        done_B=jnp.ones(rows, bool),
        guide_B=0 * ones_B,
        caches=caches(strategy, nets, rows, slots, source),
        records={name: jnp.zeros((rows, held), jnp.float32) for name in (*RECORDS, *LIKELIHOOD)},
        search=None,
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


@functools.partial(jax.jit, donate_argnames=("state",))
def finish(state: State, row: jax.Array) -> State:
    """Row `row` is done, whatever it still had room for."""
    return state.replace(done_B=state.done_B.at[row].set(True))


@functools.partial(jax.jit, donate_argnames=("state",))
def rule(state: State, row: jax.Array, bias_V: jax.Array) -> State:
    """Another bias for row `row`: what a grammar allows next."""
    bias_BV = state.context.rules.bias_BV.at[row].set(bias_V)
    rules = state.context.rules.replace(bias_BV=bias_BV)
    return state.replace(context=state.context.replace(rules=rules))
