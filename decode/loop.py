"""How does a batch of prompts grow, token by token? A state, a condition and a step; one compiled program.

Streaming and batch decoding run the same executable with another `limit`, so they give the same
bits. Everything that may change between calls is an array, so only shapes and the strategy compile.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from decode import beam, contrastive, drafting, guides, keys, processors, sampling
from decode import context as contexts
from decode import state as states
from decode.context import Context
from decode.settings import Settings
from decode.state import State
from decode.strategy import Models, Strategy
from model import cache

Step = Callable[[Strategy, Models, Models, State], State]


@functools.partial(jax.jit, static_argnames=("net", "prefix"))
def prefill(
    net: nn.Module, params: Any, tokens_BT: jax.Array, count: jax.Array, prefix: bool = False
) -> Any:
    """The cache of one prompt's first `count` tokens; [1, T] whatever the batch is, so its bits never depend on it.

    They are all but the last, which the first step feeds, as every step feeds the newest token; or the whole source
    of an encoder-decoder, whose first step feeds the token that its target begins with.

    The prompt of a prefix LM is read whole, since all of it is seen from everywhere, and its last token forgotten
    again: the first step, feeding it, finds what it would have seen.
    """
    size = tokens_BT.shape[1]
    blank = cache.for_prompt(net.config, size, net.runtime.dtype)
    if not prefix:
        mask_BT = jnp.arange(size)[None] < count
        return net.apply({"params": params}, tokens_BT, mask_BT, blank, method="read")
    mask_BT = jnp.arange(size)[None] < count + 1
    whole = mask_BT.sum(axis=1, dtype=jnp.int32)
    read = net.apply({"params": params}, tokens_BT, mask_BT, blank, whole, method="read")
    return cache.roll_back(read, count)


@functools.partial(jax.jit, static_argnames=("net",))
def score(net: nn.Module, params: Any, tokens_BT: jax.Array, count: jax.Array) -> jax.Array:
    """The log-probability of each of a prompt's tokens behind those before it, float32 [B, T - 1]."""
    mask_BT = jnp.arange(tokens_BT.shape[1])[None] < count
    logits_BTV, _ = net.apply({"params": params}, tokens_BT, mask=mask_BT)
    logprobs_BTV = jax.nn.log_softmax(logits_BTV[:, :-1].astype(jnp.float32))
    return jnp.take_along_axis(logprobs_BTV, tokens_BT[:, 1:, None], axis=2)[..., 0]


def draw(strategy: Strategy, nets: Models, params: Models, state: State) -> State:
    """Every row that is going gets one token, or as many of its drafts as turn out right and one more."""
    context, going_B = state.context, states.going(strategy, state)
    rows = jnp.arange(len(going_B))
    newest_B1 = context.tokens_BS[rows, context.lengths_B - 1][:, None]
    drafts_BK, caches = drafting.propose(strategy, nets, params, context, state.caches, going_B)
    fed_BT = jnp.concatenate([newest_B1, drafts_BK], axis=1)
    mask_BT = jnp.broadcast_to(going_B[:, None], fed_BT.shape)
    *logits, caches = guides.extend(
        strategy, nets, params, state.replace(caches=caches), fed_BT, mask_BT
    )
    token_BT, record_BT = _drawn(strategy, logits, drafts_BK, context)
    right_BK = _right(token_BT, drafts_BK)
    at_end_BT = (token_BT[:, :, None] == context.ends_BE[:, None]).any(axis=2)
    before_end_BT = jnp.cumsum(at_end_BT, axis=1, dtype=jnp.int32) - at_end_BT.astype(jnp.int32)
    count_B = jnp.minimum(
        1 + right_BK.sum(axis=1, dtype=jnp.int32),
        (before_end_BT == 0).sum(axis=1, dtype=jnp.int32),
    )
    count_B = jnp.minimum(count_B, context.limits_B - context.lengths_B)
    count_B = jnp.where(going_B, count_B, 0)
    lengths_B = context.lengths_B + count_B
    kept_BT = jnp.arange(fed_BT.shape[1], dtype=jnp.int32)[None] < count_B[:, None]
    ended_B = (at_end_BT & kept_BT).any(axis=1) | (lengths_B >= context.limits_B)

    def record(held_BS: jax.Array, new_BT: jax.Array) -> jax.Array:
        place_BT = context.lengths_B[:, None] + jnp.arange(new_BT.shape[1], dtype=jnp.int32)[None]
        place_BT = jnp.where(kept_BT, place_BT, held_BS.shape[1])
        return held_BS.at[rows[:, None], place_BT].set(new_BT, mode="drop")

    surprise_B = processors.surprise(context, record_BT["sampled_logprobs"][:, 0])
    return state.replace(
        context=context.replace(
            tokens_BS=record(context.tokens_BS, token_BT),
            lengths_B=lengths_B,
            surprise_B=jnp.where(going_B, surprise_B, context.surprise_B),
        ),
        done_B=state.done_B | ended_B,
        caches=_back(state.caches, caches, count_B),
        records={name: record(held_BS, record_BT[name]) for name, held_BS in state.records.items()},
    )


def _drawn(
    strategy: Strategy, logits: list[jax.Array], drafts_BK: jax.Array, context: Context
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The token behind each of T tokens, drawn as if those before it were settled: [B, T], and its record.

    `logits` are those to draw from and the model's own, [B, T, V].
    """
    if not strategy.drafts:
        drawn_BV, own_BV = (x_BTV[:, 0] for x_BTV in logits)
        token_B, record = sampling.draw(drawn_BV, context, strategy.preset, own_BV)
        return token_B[:, None], {name: x_B[:, None] for name, x_B in record.items()}

    def step(context: Context, given: tuple) -> tuple[Context, tuple]:
        logits_BV, own_BV, draft_B = given
        drawn = sampling.draw(logits_BV, context, strategy.preset, own_BV)
        return drafting.append(context, draft_B), drawn

    last_B1 = jnp.zeros_like(drafts_BK[:, :1])
    drafts_TB = jnp.concatenate([drafts_BK, last_B1], axis=1).T
    along = (*(jnp.moveaxis(x_BTV, 1, 0) for x_BTV in logits), drafts_TB)
    _, drawn = jax.lax.scan(step, context, along)
    return jax.tree.map(lambda x_TB: x_TB.T, drawn)


def _right(token_BT: jax.Array, drafts_BK: jax.Array) -> jax.Array:
    """1 at the drafts that are what was drawn, as are all before them."""
    return jnp.cumprod(token_BT[:, :-1] == drafts_BK, axis=1, dtype=jnp.int32)


def _back(before: Models, after: Models, count_B: jax.Array) -> Models:
    """The caches with `count_B` tokens more than before, whatever was fed."""
    return Models(
        *(
            new and cache.roll_back(new, old.lengths_B + count_B)
            for old, new in zip(before, after, strict=True)
        )
    )


STEPS: dict[str, Step] = {"draw": draw, "beam": beam.step, "contrastive": contrastive.step}
# What a search keeps beside tokens: made of the strategy, the net, and how many rows and slots there are.
SEARCHES: dict[str, Callable[[Strategy, nn.Module, int, int], Any]] = {
    "draw": lambda *_: None,
    "beam": beam.blank,
    "contrastive": contrastive.blank,
}


@functools.partial(
    jax.jit, static_argnames=("strategy", "nets", "rows", "slots", "source", "ends", "counts")
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
        lambda x: jnp.zeros((rows, *x.shape[1:]), x.dtype), contexts.knobs([Settings()])
    )
    held = slots + strategy.drafts
    return State(
        context=Context(
            knobs=blank,
            rules=contexts.no_rules(rows, nets.main.config.vocab_size, counts),
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
        caches=states.caches(strategy, nets, rows, slots, source),
        records={
            name: jnp.zeros((rows, held), jnp.float32)
            for name in (*states.RECORDS, *states.LIKELIHOOD)
        },
        search=SEARCHES[strategy.kind](strategy, nets.main, rows, held),
    )


@functools.partial(jax.jit, static_argnames=("strategy", "nets"), donate_argnames=("state",))
def run(
    strategy: Strategy,
    nets: Models,
    params: Models,
    state: State,
    limit: jax.Array,
    least: jax.Array,
) -> State:
    """Steps until `limit` steps are taken, or fewer than `least` rows are still going."""

    def cond(carry: tuple[jax.Array, State]) -> jax.Array:
        taken, state = carry
        return (taken < limit) & (states.going(strategy, state).sum(dtype=jnp.int32) >= least)

    def body(carry: tuple[jax.Array, State]) -> tuple[jax.Array, State]:
        taken, state = carry
        return taken + 1, STEPS[strategy.kind](strategy, nets, params, state)

    return jax.lax.while_loop(cond, body, (jnp.int32(0), state))[1]
