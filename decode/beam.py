"""Which continuations of a prompt score highest? Beam search: the best few are carried on, step by step.

Semantics are those of Hugging Face: its candidates, its three ways of stopping early, its beam sampling; and diverse
beam search (Vijayakumar et al. 2018), whose beams stand in groups. A search of one group is the usual one.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from decode import context as contexts
from decode import guides, keys, processors, sampling
from decode import state as states
from decode.context import Context
from decode.state import State
from decode.strategy import Models, Strategy
from model import cache

KEPT = ("logprobs", "sampled_logprobs", *states.LIKELIHOOD)
SCALES = np.float32(1e-30), np.float32(1e30)  # an extreme length penalty leaves scores finite
Records = dict[str, jax.Array]


class Hypotheses(struct.PyTreeNode):
    """Finished continuations, best first in each group; the first axis is the row, and holds one of them.

    Attributes:
        tokens_BS: int32, from the prompt on.
        records: float32 [B, S], `KEPT`, of its tokens in their slots.
        scores_B: float32, -inf where there is none yet.
        lengths_B: int32.
    """

    tokens_BS: jax.Array
    records: Records
    scores_B: jax.Array
    lengths_B: jax.Array


class Search(struct.PyTreeNode):
    """What beams keep beside their tokens; the first axis is the row, and the rows of a group stand together.

    Attributes:
        scores_B: float32, of the running beams, best first in each group; -inf is none, and of a group that is done.
        finished: the best so far.
        margins_B: float32, the smallest gap that any decision of the group has had.
        broken_B: bool, whether a running beam's logits were not numbers.
    """

    scores_B: jax.Array
    finished: Hypotheses
    margins_B: jax.Array
    broken_B: jax.Array


class Candidates(NamedTuple):
    """What may follow a group's beams, best first, or first drawn first: C of U groups.

    Attributes:
        score_UC: sum of processed log-probabilities.
        order_UC: the same, or with noise: what they are sorted by.
        token_UC, row_UC: the token, and the row that it would follow.
        sampled_UC: the log-probability of drawing it before all others; 0 where nothing is drawn.
        ended_UC: bool, whether the continuation ends with it.
        real_UC: bool, whether it is one.
        best_UK, place_UK: of those that go on the scores, one more than there are beams, and their places in C.
    """

    score_UC: jax.Array
    order_UC: jax.Array
    token_UC: jax.Array
    row_UC: jax.Array
    sampled_UC: jax.Array
    ended_UC: jax.Array
    real_UC: jax.Array
    best_UK: jax.Array
    place_UK: jax.Array


def blank(strategy: Strategy, net: Any, rows: int, slots: int) -> Search:
    """A search's beginning: all beams of a group are equal, so only its first one counts."""
    first_B = np.arange(rows) % _size(strategy) == 0
    return Search(
        scores_B=np.where(first_B, np.float32(0), np.float32(-np.inf)),
        finished=Hypotheses(
            tokens_BS=np.zeros((rows, slots), np.int32),
            records={name: np.zeros((rows, slots), np.float32) for name in KEPT},
            scores_B=np.full(rows, -np.inf, np.float32),
            lengths_B=np.zeros(rows, np.int32),
        ),
        margins_B=np.full(rows, np.inf, np.float32),
        broken_B=np.zeros(rows, bool),
    )


def _size(strategy: Strategy) -> int:
    """Beams in a group."""
    return strategy.width // strategy.groups


def penalty(knobs: dict[str, jax.Array], length_B: jax.Array) -> jax.Array:
    """What the log-probability of L tokens is divided by: `L^a`, or `((5 + L) / 6)^a` (Wu et al. 2016, equation 14).

    The tokens are the generated ones, the one that ends them included; of T5X a prompt in the cache counts too.
    """
    length_B = length_B.astype(jnp.float32)
    base_B = jnp.where(knobs["length_rule"] == 1, (5 + length_B) / 6, length_B)
    return jnp.clip(base_B ** knobs["length_penalty"], *SCALES)


def step(strategy: Strategy, nets: Models, params: Models, state: State) -> State:
    """Every group of beams goes on with its best candidates, and keeps the best that have ended."""
    context, search = state.context, state.search
    going_B = states.going(strategy, state)
    rows_B = jnp.arange(len(going_B), dtype=jnp.int32)
    newest_B1 = context.tokens_BS[rows_B, context.lengths_B - 1][:, None]
    *both, caches = guides.extend(strategy, nets, params, state, newest_B1, going_B[:, None])
    logprobs_BV, own_BV = (jax.nn.log_softmax(x_BTV[:, 0]) for x_BTV in both)
    alive_B = going_B & (search.scores_B > -jnp.inf)
    broken_B = alive_B & jnp.isnan(logprobs_BV[:, 0])
    scores_B = jnp.where(alive_B & ~broken_B, search.scores_B, -jnp.inf)
    found, kept_BV = _candidates(strategy, logprobs_BV, scores_B, context)

    def behind(place_UW: jax.Array) -> tuple[jax.Array, jax.Array, Records]:
        """The rows that some candidates follow, and these rows' tokens and records with them."""
        parent_B, token_B, sampled_B = (
            jnp.take_along_axis(x_UC, place_UW, axis=1).reshape(-1)
            for x_UC in (found.row_UC, found.token_UC, found.sampled_UC)
        )
        new = {
            "logprobs": own_BV[parent_B, token_B],
            "sampled_logprobs": sampled_B,
            **_likelihood(own_BV, kept_BV, parent_B, token_B, context),
        }
        records = {
            name: state.records[name][parent_B].at[rows_B, context.lengths_B].set(new[name])
            for name in KEPT
        }
        tokens_BS = context.tokens_BS[parent_B].at[rows_B, context.lengths_B].set(token_B)
        return parent_B, tokens_BS, records

    size = _size(strategy)
    parent_B, tokens_BS, records = behind(found.place_UK[:, :size])
    first_UW = jnp.broadcast_to(jnp.arange(size, dtype=jnp.int32), found.place_UK[:, :size].shape)
    finished, scores_B, gap_B = _settled(strategy, found, search, context, *behind(first_UW)[1:])
    over_P = (scores_B.reshape(-1, strategy.width) == -jnp.inf).all(axis=1)
    over_P |= broken_B.reshape(-1, strategy.width).any(axis=1)
    new = Search(
        scores_B=scores_B,
        finished=finished,
        margins_B=jnp.minimum(search.margins_B, gap_B),
        broken_B=search.broken_B | broken_B,
    )

    def where_going(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(going_B.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    parent_B = jnp.where(going_B, parent_B, rows_B)
    return state.replace(
        context=context.replace(
            tokens_BS=where_going(tokens_BS, context.tokens_BS),
            lengths_B=context.lengths_B + going_B.astype(jnp.int32),
        ),
        done_B=state.done_B | (going_B & jnp.repeat(over_P, strategy.width)),
        caches=Models(*(kept and cache.reorder(kept, parent_B) for kept in caches)),
        records={
            **state.records,
            **{name: where_going(x_BS, state.records[name]) for name, x_BS in records.items()},
        },
        search=jax.tree.map(where_going, new, search),
    )


def _candidates(
    strategy: Strategy, logprobs_BV: jax.Array, scores_B: jax.Array, context: Context
) -> tuple[Candidates, jax.Array]:
    """The candidates of every group, one group of each completion after the other, and the processed scores [B, V]."""
    groups, size = strategy.groups, _size(strategy)
    rows_B = jnp.arange(len(scores_B), dtype=jnp.int32)

    def split(x: jax.Array) -> jax.Array:
        return x.reshape(-1, groups, size, *x.shape[1:]).swapaxes(0, 1)

    def joined(x: jax.Array) -> jax.Array:
        return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])

    taken_PV = jnp.zeros((len(scores_B) // strategy.width, logprobs_BV.shape[1]), jnp.float32)
    given = jax.tree.map(split, (context, logprobs_BV, scores_B, rows_B))
    group = functools.partial(_group, strategy)
    made: tuple[Candidates, jax.Array] = jax.lax.scan(group, taken_PV, given)[1]
    found, kept_UWV = jax.tree.map(joined, made)
    return found, kept_UWV.reshape(logprobs_BV.shape)


def _group(strategy: Strategy, taken_PV: jax.Array, given: tuple) -> tuple:
    """The candidates of one group of each of P completions, whose earlier groups have taken tokens so many times."""
    context, logprobs_PWV, scores_PW, row_PW = given
    places, size, vocabulary = logprobs_PWV.shape
    knobs = {name: x_PW[:, 0] for name, x_PW in context.knobs.items()}
    if strategy.groups > 1:
        fewer_PV = knobs["diversity_penalty"][:, None] * taken_PV
        logprobs_PWV = logprobs_PWV - fewer_PV[:, None]
    rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), context)
    kept_BV = processors.PRESETS[strategy.preset](logprobs_PWV.reshape(-1, vocabulary), rows)
    kept_PWV = kept_BV.reshape(logprobs_PWV.shape)
    running_PW1 = scores_PW[:, :, None]
    sum_PWV = jnp.where(running_PW1 > -jnp.inf, running_PW1 + kept_PWV, -jnp.inf)
    sum_PN = sum_PWV.reshape(places, -1)
    drawn_P1 = (knobs["temperature"] > 0)[:, None]

    def noisy() -> tuple[jax.Array, jax.Array]:
        number_B = row_PW.reshape(-1) % strategy.width
        keys_B = keys.of_beams(rows.keys_B, rows.lengths_B, number_B)
        noise_PN = keys.gumbel(keys_B, vocabulary).reshape(sum_PN.shape)
        best_P1 = sum_PN.max(axis=1, keepdims=True)
        level_PN = sum_PN - jnp.where(best_P1 > -jnp.inf, best_P1, 0)
        whole_P = jax.nn.logsumexp(sum_PN, axis=1)
        return jnp.where(drawn_P1, level_PN + noise_PN, sum_PN), whole_P

    order_PN, whole_P = jax.lax.cond(
        drawn_P1.any(), noisy, lambda: (sum_PN, jnp.zeros(places, jnp.float32))
    )
    ends_PE = context.ends_BE[:, 0]
    most = size * (max(ends_PE.shape[1], 1) + 1) + 1
    order_PC, index_PC = jax.lax.top_k(order_PN, min(most, sum_PN.shape[1]))
    index_PC = index_PC.astype(jnp.int32)
    score_PC = jnp.take_along_axis(sum_PN, index_PC, axis=1)
    token_PC = index_PC % vocabulary
    last_P1 = (context.lengths_B + 1 >= context.limits_B)[:, :1]
    at_end_PC = (token_PC[:, :, None] == ends_PE[:, None]).any(axis=2)
    ends_P1 = (ends_PE >= 0).sum(axis=1, keepdims=True, dtype=jnp.int32)
    drawable_P1 = size * (jnp.maximum(ends_P1, 1) + 1)
    rank_1C = jnp.arange(order_PC.shape[1], dtype=jnp.int32)[None]
    real_PC = (score_PC > -jnp.inf) & (~drawn_P1 | (rank_1C < drawable_P1))
    best_PK, place_PK = jax.lax.top_k(jnp.where(real_PC & ~at_end_PC, score_PC, -jnp.inf), size + 1)
    next_PW = jnp.take_along_axis(token_PC, place_PK[:, :size], axis=1)
    real_PW = (best_PK[:, :size] > -jnp.inf).astype(jnp.float32)
    taken_PV = taken_PV.at[jnp.arange(places)[:, None], next_PW].add(real_PW)
    found = Candidates(
        score_UC=score_PC,
        order_UC=order_PC,
        token_UC=token_PC,
        row_UC=jnp.take_along_axis(row_PW, index_PC // vocabulary, axis=1),
        sampled_UC=jnp.where(drawn_P1, score_PC - whole_P[:, None], 0),
        ended_UC=at_end_PC | last_P1,
        real_UC=real_PC,
        best_UK=jnp.where(last_P1, -jnp.inf, best_PK),
        place_UK=place_PK,
    )
    return taken_PV, (found, kept_PWV)


def _likelihood(
    logits_BV: jax.Array,
    kept_BV: jax.Array,
    parent_B: jax.Array,
    token_B: jax.Array,
    context: Context,
) -> Records:
    """The likelihood record of tokens behind rows that may be others'."""
    return jax.lax.cond(
        (context.knobs["likelihood"] > 0).any(),
        lambda: sampling.likelihood(logits_BV[parent_B], kept_BV[parent_B], token_B, context),
        lambda: {name: jnp.zeros(len(token_B), jnp.float32) for name in states.LIKELIHOOD},
    )


def _settled(
    strategy: Strategy,
    found: Candidates,
    search: Search,
    context: Context,
    tokens_BS: jax.Array,
    records: Records,
) -> tuple[Hypotheses, jax.Array, jax.Array]:
    """The finished ones with those of the first candidates that have ended; the scores of the beams that go on, none
    of a group that is done; and the smallest gap [B] of these decisions."""
    size, knobs = _size(strategy), context.knobs
    made_B = context.lengths_B + 1 - context.prompt_B
    penalty_UW = penalty(knobs, made_B).reshape(-1, size)
    stored_UW = (found.real_UC & found.ended_UC)[:, :size]
    new = Hypotheses(
        tokens_BS=tokens_BS,
        records=records,
        scores_B=jnp.where(stored_UW, found.score_UC[:, :size] / penalty_UW, -jnp.inf).reshape(-1),
        lengths_B=context.lengths_B + 1,
    )

    def grouped(x: jax.Array) -> jax.Array:
        return x.reshape(-1, size, *x.shape[1:])

    both = jax.tree.map(
        lambda old, new: jnp.concatenate([grouped(old), grouped(new)], axis=1),
        search.finished,
        new,
    )
    best_UK, place_UK = jax.lax.top_k(both.scores_B, size + 1)
    unit_U1 = jnp.arange(len(place_UK))[:, None]
    finished = jax.tree.map(
        lambda x: x[unit_U1, place_UK[:, :size]].reshape(-1, *x.shape[2:]), both
    )
    worst_U, next_U = best_UK[:, size - 1], found.best_UK[:, 0]
    far_B = jnp.where(
        (knobs["early_stopping"] == contexts.EARLY["never"]) & (knobs["length_penalty"] > 0),
        context.limits_B - context.prompt_B,
        made_B,
    )
    hoped_U = next_U / penalty(knobs, far_B)[::size]
    at_once_U = knobs["early_stopping"][::size] == contexts.EARLY[True]
    full_U = worst_U > -jnp.inf
    done_U = full_U & (at_once_U | (hoped_U <= worst_U))
    scores_UW = jnp.where(done_U[:, None], -jnp.inf, found.best_UK[:, :size])
    gap_U = jnp.minimum(_gap(found, size, knobs["temperature"][::size] > 0), _dropped(best_UK))
    stops_U = jnp.where(full_U & ~at_once_U, jnp.abs(hoped_U - worst_U), jnp.inf)
    gap_B = jnp.repeat(jnp.minimum(gap_U, stops_U), size)
    return finished, scores_UW.reshape(-1), gap_B


def _gap(found: Candidates, size: int, drawn_U: jax.Array) -> jax.Array:
    """By how much the candidates of U groups would have to move for others to go on or to be stored."""
    order_UC, ends_UC = found.order_UC, found.real_UC & found.ended_UC
    inside_1C = (jnp.arange(order_UC.shape[1]) < size)[None]
    rival_UC = jnp.where(inside_1C, order_UC[:, size, None], order_UC[:, size - 1, None])
    stored_U = jnp.where(ends_UC, jnp.abs(order_UC - rival_UC), jnp.inf).min(axis=1)
    # Noise belongs to a beam's number, so among drawn beams their order counts, and which were drawn at all.
    best_UK = found.best_UK
    steps_UK = jnp.where(best_UK[:, 1:] > -jnp.inf, best_UK[:, :-1] - best_UK[:, 1:], jnp.inf)
    count_U1 = found.real_UC.sum(axis=1, keepdims=True, dtype=jnp.int32)
    at = [jnp.take_along_axis(order_UC, i, axis=1, mode="clip") for i in (count_U1 - 1, count_U1)]
    undrawn_U = jnp.where(at[1] > -jnp.inf, at[0] - at[1], jnp.inf)[:, 0]
    undrawn_U = jnp.where(count_U1[:, 0] < order_UC.shape[1], undrawn_U, jnp.inf)
    drawing_U = jnp.minimum(steps_UK.min(axis=1), undrawn_U)
    return jnp.minimum(stored_U, jnp.where(drawn_U, drawing_U, _dropped(best_UK)))


def _dropped(best_UK: jax.Array) -> jax.Array:
    """The gap between the last that was kept and the first that was not, infinite where there was none."""
    kept_U, dropped_U = best_UK[:, -2], best_UK[:, -1]
    return jnp.where(dropped_U > -jnp.inf, kept_U - dropped_U, jnp.inf)
