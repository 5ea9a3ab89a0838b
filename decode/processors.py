"""What happens to logits before a token is drawn, and in which order? One chain of steps per preset.

A preset maps float32 logits [B, V] and a `Context` to float32 logits [B, V]; -inf is not kept. Every preset has every
step: its own system's in that system's order and by its rules, the others where Hugging Face has them.
`docs/decoding.md` has formulas, sources, and why each stands where it does.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decode import bans, filters, keys, occurrences, penalties, selection
from decode.context import Context

Rows = Callable[[Context], jax.Array]


class Step(NamedTuple):
    """One processor: which rows [B] of a context ask for it, and what it makes of their logits.

    Or, instead of new logits, how tokens are ranked for a nucleus.
    """

    asked: Rows
    change: Callable[[jax.Array, Context], jax.Array]
    rank: Callable[[jax.Array, Context], selection.Ranking] | None = None


def _differs(name: str, off: float) -> Rows:
    return lambda c: c.knobs[name] != off


def _filter(name: str, change: Callable[[jax.Array, jax.Array], jax.Array], off: float = 0) -> Step:
    """A step whose change takes the logits and one knob."""
    return Step(_differs(name, off), lambda x, c: change(x, c.knobs[name]))


def _drawn(context: Context) -> jax.Array:
    return context.knobs["temperature"] > 0


def _made(context: Context) -> jax.Array:
    """How many tokens have been generated."""
    return context.lengths_B - context.prompt_B


def _said(context: Context, from_B: jax.Array) -> jax.Array:
    """The text from a position, of which the last `penalty_last_n` count; -1 elsewhere."""
    last_n_B = context.knobs["penalty_last_n"]
    near_B = jnp.where(last_n_B < 0, 0, context.lengths_B - last_n_B)
    return occurrences.within(context.tokens_BS, jnp.maximum(from_B, near_B), context.lengths_B)


def _text(context: Context) -> jax.Array:
    return _said(context, jnp.zeros_like(context.prompt_B))


def _output(context: Context) -> jax.Array:
    return _said(context, context.prompt_B)


def _sequences(from_B: Rows) -> Step:
    return Step(
        lambda c: (c.rules.sequences_BNL >= 0).any(axis=(1, 2)),
        lambda x, c: bans.sequences(
            x,
            c.rules.sequences_BNL,
            c.rules.sequence_bias_BN,
            c.tokens_BS,
            c.lengths_B,
            from_B(c),
        ),
    )


def _presence(ids_BN: Rows) -> Step:
    return Step(
        lambda c: (c.knobs["presence_penalty"] != 0) | (c.knobs["frequency_penalty"] != 0),
        lambda x, c: penalties.presence(
            x, c.knobs["presence_penalty"], c.knobs["frequency_penalty"], ids_BN(c)
        ),
    )


def _dry(logits_BV: jax.Array, context: Context) -> jax.Array:
    return penalties.dry(
        logits_BV,
        context.knobs["dry_multiplier"],
        context.knobs["dry_base"],
        context.knobs["dry_allowed_length"],
        context.knobs["dry_penalty_last_n"],
        context.rules.breakers_BV,
        context.tokens_BS,
        context.lengths_B,
    )


def _forced(context: Context) -> jax.Array:
    return bans.forced_now(
        context.rules.forced_BN,
        context.rules.forced_end_B,
        context.lengths_B,
        context.prompt_B,
        context.limits_B,
    )


def _coin(context: Context) -> jax.Array:
    """Whether XTC strikes this time: a uniform number of the row's own stream `xtc` is at most its probability."""
    words_B2 = jax.random.key_data(keys.fold(context.keys_B, context.lengths_B, "xtc"))
    return keys.uniform(words_B2) <= context.knobs["xtc_probability"]


def _same(logits_BV: jax.Array, context: Context) -> jax.Array:
    return logits_BV


def _top_p(rule: float) -> Step:
    return Step(
        lambda c: (c.knobs["top_p"] < 1) | (c.knobs["top_p_rest"] < 0),
        _same,
        lambda x, c: filters.top_p(x, c.knobs["top_p"], c.knobs["top_p_rest"], rule),
    )


def _typical(rule: float) -> Step:
    return Step(
        _differs("typical_p", 1), _same, lambda x, c: filters.typical(x, c.knobs["typical_p"], rule)
    )


BIAS = Step(
    lambda c: (c.rules.bias_BV != 0).any(axis=1), lambda x, c: bans.biased(x, c.rules.bias_BV)
)
SEQUENCES = _sequences(lambda c: jnp.zeros_like(c.prompt_B))
OUTPUT_SEQUENCES = _sequences(lambda c: c.prompt_B)
ENCODER_REPETITION = Step(
    _differs("encoder_repetition_penalty", 1),
    lambda x, c: penalties.repetition(
        x,
        1 / c.knobs["encoder_repetition_penalty"],
        occurrences.within(c.read_BR, jnp.zeros_like(c.read_B), c.read_B),
    ),
)
REPETITION = Step(
    _differs("repetition_penalty", 1),
    lambda x, c: penalties.repetition(x, c.knobs["repetition_penalty"], _text(c)),
)
OUTPUT_PRESENCE = _presence(_output)
PRESENCE = _presence(_text)
DRY = Step(_differs("dry_multiplier", 0), _dry)
NGRAMS = Step(
    lambda c: (c.knobs["no_repeat_ngram_size"] > 0) | (c.knobs["encoder_no_repeat_ngram_size"] > 0),
    lambda x, c: penalties.no_repeated_ngrams(
        x,
        (c.knobs["no_repeat_ngram_size"], c.knobs["encoder_no_repeat_ngram_size"]),
        (c.read_BR, c.read_B),
        c.tokens_BS,
        c.lengths_B,
    ),
)
MINIMUM = Step(
    lambda c: _made(c) < c.knobs["min_new_tokens"], lambda x, c: bans.without(x, c.ends_BE)
)
FORCED = Step(lambda c: _forced(c) >= 0, lambda x, c: bans.forced(x, _forced(c)))
DECAY = Step(
    lambda c: (c.knobs["decay_start"] >= 0) & (_made(c) > c.knobs["decay_start"]),
    lambda x, c: penalties.exponential_decay(
        x, c.knobs["decay_start"], c.knobs["decay_factor"], _made(c), c.ends_BE
    ),
)
BEGIN = Step(
    lambda c: (_made(c) == bans.free_from(c.rules.forced_BN)) & (c.rules.begin_BN >= 0).any(axis=1),
    lambda x, c: bans.without(x, c.rules.begin_BN),
)
TEMPERATURE = Step(
    lambda c: (c.knobs["temperature"] != 1) & (c.knobs["dynatemp_range"] == 0) & _drawn(c),
    lambda x, c: filters.temperature(x, c.knobs["temperature"]),
)
DYNAMIC = Step(
    lambda c: (c.knobs["dynatemp_range"] > 0) & _drawn(c),
    lambda x, c: filters.dynamic_temperature(
        x, c.knobs["temperature"], c.knobs["dynatemp_range"], c.knobs["dynatemp_exponent"]
    ),
)
SIGMA = _filter("top_n_sigma", filters.top_n_sigma)
TOP_H = _filter("top_h", filters.top_h)
TOP_K = _filter("top_k", filters.top_k)
EXACTLY_TOP_K = _filter("top_k", filters.exactly_top_k)
TOP_P = _top_p(selection.REACHES)
WITHIN_TOP_P = _top_p(selection.WITHIN)
MIN_P = _filter("min_p", filters.min_p)
TYPICAL = _typical(selection.REACHES)
EXCEEDING_TYPICAL = _typical(selection.EXCEEDS)
EPSILON = _filter("epsilon_cutoff", filters.epsilon)
ETA = _filter("eta_cutoff", filters.eta)
XTC = Step(
    lambda c: (c.knobs["xtc_probability"] > 0) & (c.knobs["xtc_threshold"] <= 0.5),
    lambda x, c: filters.xtc(x, c.knobs["xtc_threshold"], _coin(c)),
)
MIROSTAT = Step(_differs("mirostat", 0), lambda x, c: filters.mirostat(x, c.surprise_B))

CHAINS: dict[str, tuple[Step, ...]] = {
    "hf": (
        *(BIAS, SEQUENCES),
        *(ENCODER_REPETITION, REPETITION, OUTPUT_PRESENCE, DRY),
        *(NGRAMS, MINIMUM, FORCED, DECAY, BEGIN),
        *(TEMPERATURE, DYNAMIC, SIGMA, TOP_H),
        *(TOP_K, TOP_P, MIN_P, TYPICAL, EPSILON, ETA, XTC, MIROSTAT),
    ),
    "vllm": (
        *(OUTPUT_SEQUENCES, BIAS),
        *(REPETITION, OUTPUT_PRESENCE, ENCODER_REPETITION, DRY),
        *(NGRAMS, MINIMUM, FORCED, DECAY, BEGIN),
        *(TEMPERATURE, DYNAMIC, SIGMA, TOP_H),
        *(MIN_P, TOP_K, TOP_P, TYPICAL, EPSILON, ETA, XTC, MIROSTAT),
    ),
    "llama.cpp": (
        *(BIAS, SEQUENCES),
        *(ENCODER_REPETITION, REPETITION, PRESENCE, DRY),
        *(NGRAMS, MINIMUM, FORCED, DECAY, BEGIN),
        *(SIGMA, TOP_H, EXACTLY_TOP_K, EXCEEDING_TYPICAL, TOP_P, MIN_P, EPSILON, ETA, XTC),
        *(TEMPERATURE, DYNAMIC, MIROSTAT),
    ),
    "strict": (
        *(BIAS, SEQUENCES),
        *(ENCODER_REPETITION, REPETITION, OUTPUT_PRESENCE, DRY),
        *(NGRAMS, MINIMUM, FORCED, DECAY, BEGIN),
        *(TEMPERATURE, DYNAMIC, SIGMA, TOP_H, EXACTLY_TOP_K, WITHIN_TOP_P),
        *(MIN_P, TYPICAL, EPSILON, ETA, XTC, MIROSTAT),
    ),
}


def run(steps: tuple[Step, ...], logits_BV: jax.Array, context: Context) -> jax.Array:
    """The steps one after the other, each on the rows that ask for it; free where no row asks for any.

    One loop over the steps that are asked for, with a switch: so the search for a nucleus is compiled once.
    """
    asked_NB = jnp.stack([step.asked(context) for step in steps])
    ranks_N = jnp.array([step.rank is not None for step in steps])
    changes = [lambda x, step=step: step.change(x, context) for step in steps]
    rankings = [lambda x, step=step: _plain(step.rank(x, context)) for step in steps if step.rank]

    def change(i: jax.Array, logits_BV: jax.Array) -> jax.Array:
        return jax.lax.switch(i, changes, logits_BV)

    def nucleus(i: jax.Array, logits_BV: jax.Array) -> jax.Array:
        ranking = jax.lax.switch(jnp.cumsum(ranks_N)[i] - 1, rankings, logits_BV)
        ranking = ranking._replace(p_B=jnp.where(asked_NB[i], ranking.p_B, np.float32(0)))
        return filters.keep(logits_BV, selection.nucleus(ranking))

    def step(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        left_N, logits_BV = state
        i = jnp.argmax(left_N)
        if rankings:
            changed_BV = jax.lax.cond(ranks_N[i], nucleus, change, i, logits_BV)
        else:
            changed_BV = change(i, logits_BV)
        return left_N.at[i].set(False), jnp.where(asked_NB[i][:, None], changed_BV, logits_BV)

    state = (asked_NB.any(axis=1), logits_BV)
    return jax.lax.while_loop(lambda state: state[0].any(), step, state)[1]


def _plain(ranking: selection.Ranking) -> selection.Ranking:
    """With arrays in place of numbers, so that any can be switched to."""
    return ranking._replace(rule=jnp.float32(ranking.rule), ties=jnp.array(ranking.ties))


PRESETS: dict[str, Callable[[jax.Array, Context], jax.Array]] = {
    name: functools.partial(run, steps) for name, steps in CHAINS.items()
}


def surprise(context: Context, sampled_logprob_B: jax.Array) -> jax.Array:
    """The surprise [B] that mirostat allows the next token, after one of that log-probability was drawn.

    It begins at 2 tau; then mu - eta (-log2 p - tau), p being the token's probability in the distribution drawn from.
    """
    observed_B = -sampled_logprob_B / filters.BIT
    error_B = observed_B - context.knobs["mirostat_tau"]
    moved_B = context.surprise_B - context.knobs["mirostat_eta"] * error_B
    return jnp.where(context.knobs["mirostat"] == 2, moved_B, context.surprise_B)
