"""Which likely token repeats the text least? Contrastive search (Su et al. 2022), one candidate in each row.

A step feeds the candidates, one per row of a completion, and compares their last hidden states with those of the text
so far. The chosen one's cache, hidden state and logits become every row's, and give the candidates of the next step.
The first step feeds the prompt's last token, which is no choice; so n tokens take n + 1 steps.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from decode import processors, sampling
from decode import state as states
from decode.context import Context
from decode.state import State
from decode.strategy import Models, Strategy
from model import cache

Record = dict[str, jax.Array]
RECORDED = ("logprobs", *states.LIKELIHOOD)


class Search(struct.PyTreeNode):
    """What contrastive search keeps beside tokens; the first axis is the row.

    Attributes:
        token_B: int32, the candidate.
        probability_B: float32, its probability; -1 where there is none.
        record: float32 [B], `RECORDED`, of the candidate.
        features_BSD: float32, the last hidden state of each token so far, of length 1, in its slot.
        begun_B: bool, whether the prompt's last token has been fed.
    """

    token_B: jax.Array
    probability_B: jax.Array
    record: Record
    features_BSD: jax.Array
    begun_B: jax.Array


def blank(strategy: Strategy, net: nn.Module, rows: int, slots: int) -> Search:
    """A search's beginning, but for the hidden states of a prompt."""
    return Search(
        token_B=np.zeros(rows, np.int32),
        probability_B=np.full(rows, -1, np.float32),
        record={name: np.zeros(rows, np.float32) for name in RECORDED},
        features_BSD=np.zeros((rows, slots, net.config.width), np.float32),
        begun_B=np.zeros(rows, bool),
    )


@functools.partial(jax.jit, static_argnames=("net",))
def read(
    net: nn.Module,
    params: Any,
    search: Search,
    tokens_1T: jax.Array,
    prefix_1: jax.Array | None = None,
) -> Search:
    """A search that knows the hidden states of what was read before the first step, zeros behind it.

    `prefix_1` are so many tokens as see each other both ways.
    """
    memory = cache.for_prompt(net.config, tokens_1T.shape[1], net.runtime.dtype)
    mask_1T = jnp.ones(tokens_1T.shape, bool)
    both_ways = {} if prefix_1 is None else {"prefix": prefix_1}
    aux = net.apply({"params": params}, tokens_1T, mask_1T, memory, method="trace", **both_ways)[2]
    held_BSD = search.features_BSD
    known = min(held_BSD.shape[1], tokens_1T.shape[1])
    features_1TD = _unit(aux["features"])[:, :known]
    return search.replace(features_BSD=held_BSD.at[:, :known].set(features_1TD))


def degeneration(feature_BD: jax.Array, text_BSD: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """The largest cosine [B] between a token's hidden state and those of the first `lengths_B`; all have length 1."""
    cosine_BS = jnp.einsum("BD,BSD->BS", feature_BD, text_BSD)
    inside_BS = jnp.arange(cosine_BS.shape[1], dtype=jnp.int32)[None] < lengths_B[:, None]
    return jnp.where(inside_BS, cosine_BS, -jnp.inf).max(axis=1)


def step(strategy: Strategy, nets: Models, params: Models, state: State) -> State:
    """Every completion takes its best candidate: the largest `(1 - alpha) p - alpha` times its degeneration."""
    context, search = state.context, state.search
    going_B = states.going(strategy, state)
    rows_B = jnp.arange(len(going_B), dtype=jnp.int32)
    first_B = ~search.begun_B
    newest_B = context.tokens_BS[rows_B, context.lengths_B - 1]
    fed_B1 = jnp.where(first_B, newest_B, search.token_B)[:, None]
    logits_BTV, memory, aux = nets.main.apply(
        {"params": params.main}, fed_B1, going_B[:, None], state.caches.main, method="trace"
    )
    feature_BD = _unit(aux["features"][:, 0])
    alpha_B = context.knobs["penalty_alpha"]
    likeness_B = degeneration(feature_BD, search.features_BSD, context.lengths_B)
    score_B = (1 - alpha_B) * search.probability_B - alpha_B * likeness_B
    score_B = jnp.where(search.probability_B >= 0, score_B, -jnp.inf)
    best_P2, lane_P2 = jax.lax.top_k(score_B.reshape(-1, strategy.width), 2)
    lane_P = jnp.where(first_B[:: strategy.width], 0, lane_P2[:, 0].astype(jnp.int32))
    start_B = rows_B - rows_B % strategy.width
    chosen_B = jnp.where(going_B, start_B + jnp.repeat(lane_P, strategy.width), rows_B)
    taken_B = going_B & search.begun_B
    record = {name: x_B[chosen_B] for name, x_B in search.record.items()}
    best_B = score_B[chosen_B]
    record["logprobs"] = jnp.where(jnp.isnan(best_B), jnp.nan, record["logprobs"])
    record["sampled_logprobs"] = jnp.where(best_B > -jnp.inf, np.float32(0), jnp.nan)
    record["margins"] = jnp.repeat(best_P2[:, 0] - best_P2[:, 1], strategy.width)
    token_B = search.token_B[chosen_B]
    place_B = jnp.where(taken_B, context.lengths_B, context.tokens_BS.shape[1])

    def write(held: jax.Array, new: jax.Array, place_B: jax.Array) -> jax.Array:
        return held.at[rows_B, place_B].set(new, mode="drop")

    context = context.replace(
        tokens_BS=write(context.tokens_BS, token_B, place_B),
        lengths_B=context.lengths_B + taken_B.astype(jnp.int32),
    )
    ended_B = (token_B[:, None] == context.ends_BE).any(axis=1)
    ended_B = taken_B & (ended_B | (context.lengths_B >= context.limits_B))
    fed_place_B = jnp.where(going_B, context.lengths_B - 1, context.tokens_BS.shape[1])
    found = _candidates(strategy, logits_BTV[:, 0].astype(jnp.float32)[chosen_B], context)
    token_B, probability_B, next_record = jax.tree.map(
        lambda new, old: jnp.where(going_B, new, old),
        found,
        (search.token_B, search.probability_B, search.record),
    )
    return state.replace(
        context=context,
        done_B=state.done_B | ended_B,
        caches=state.caches._replace(main=cache.reorder(memory, chosen_B)),
        records={
            name: write(held_BS, record[name], place_B) for name, held_BS in state.records.items()
        },
        search=Search(
            token_B=token_B,
            probability_B=probability_B,
            record=next_record,
            features_BSD=write(search.features_BSD, feature_BD[chosen_B], fed_place_B),
            begun_B=search.begun_B | going_B,
        ),
    )


def _candidates(
    strategy: Strategy, logits_BV: jax.Array, context: Context
) -> tuple[jax.Array, jax.Array, Record]:
    """The likeliest tokens, one for each row of a completion, with probability and record; -1 beyond `candidates`."""
    width = strategy.width
    logits_PV = logits_BV[::width]
    one = jax.tree.map(lambda x: x[::width], context)
    kept_PV = processors.PRESETS[strategy.preset](logits_PV, one)
    best_PW, token_PW = jax.lax.top_k(kept_PV, min(width, kept_PV.shape[1]))
    further = ((0, 0), (0, width - best_PW.shape[1]))
    best_PW = jnp.pad(best_PW, further, constant_values=-jnp.inf)
    token_PW = jnp.pad(token_PW.astype(jnp.int32), further)
    whole_P1 = jax.nn.logsumexp(kept_PV, axis=1, keepdims=True)
    rank_1W = jnp.arange(width, dtype=jnp.int32)[None]
    there_PW = (best_PW > -jnp.inf) & (rank_1W < one.knobs["candidates"][:, None])
    probability_PW = jnp.where(there_PW, jnp.exp(best_PW - whole_P1), -1)
    logprobs_PV = jax.nn.log_softmax(logits_PV)
    token_B = token_PW.reshape(-1)

    def likelihood() -> Record:
        kept_BV = jnp.repeat(kept_PV, width, axis=0)
        return sampling.likelihood(logits_BV, kept_BV, token_B, context)

    record = jax.lax.cond(
        (context.knobs["likelihood"] > 0).any(),
        likelihood,
        lambda: {name: jnp.zeros(len(token_B), jnp.float32) for name in states.LIKELIHOOD},
    )
    record["logprobs"] = jnp.take_along_axis(logprobs_PV, token_PW, axis=1).reshape(-1)
    return token_B, probability_PW.reshape(-1), record


def _unit(x: jax.Array) -> jax.Array:
    """Vectors of length 1, float32; zeros stay."""
    x = x.astype(jnp.float32)
    norm = jnp.sqrt((x * x).sum(axis=-1, keepdims=True))
    return x / jnp.where(norm > 0, norm, 1)
