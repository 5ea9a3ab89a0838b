"""What may a processor look at besides logits? A row's settings as arrays, its rules, and its tokens so far."""

from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from decode import keys
from decode import settings as names
from decode.settings import Settings

FILTERS = {  # what a row that is not drawn leaves off: its choice could not change, or must not
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "top_n_sigma": 0.0,
    "top_h": 0.0,
    "xtc_probability": 0.0,
    "mirostat": 0,
    "dynatemp_range": 0.0,
    "temperature": 0.0,
}

EARLY: dict[bool | str, int] = {False: 0, True: 1, "never": 2}


class Rules(struct.PyTreeNode):
    """What differs per row and is not a number.

    Attributes:
        bias_BV: float32, added to logits; -inf where a token is not allowed at all.
        begin_BN: int32, tokens that must not be the first; -1 is none.
        forced_BN: int32, the i-th generated token where that is at least 0.
        forced_end_B: int32, the token at the last place before the limit, or -1.
        sequences_BNL: int32, right-aligned behind -1: biased sequences of tokens.
        sequence_bias_BN: float32, of each; -inf bans it.
        breakers_BV: bool, tokens that break a repetition, for DRY.
    """

    bias_BV: jax.Array
    begin_BN: jax.Array
    forced_BN: jax.Array
    forced_end_B: jax.Array
    sequences_BNL: jax.Array
    sequence_bias_BN: jax.Array
    breakers_BV: jax.Array


class Context(struct.PyTreeNode):
    """The first axis of every leaf is the row.

    Attributes:
        knobs: the numbers among the settings by name, and what `knobs` adds to them.
        rules: the others.
        tokens_BS: int32, prompt and continuation; what stands at or beyond a row's length is leftovers.
        lengths_B: int32, tokens so far: the position of the token to come.
        prompt_B: int32, so many first ones were given; of an encoder-decoder, what its target begins with.
        read_BR: int32, what an encoder has read; otherwise the prompt.
        read_B: int32, so many first ones of it are real.
        limits_B: int32, the length at which a row is done.
        ends_BE: int32, the tokens that end a row; -1 where none does.
        keys_B: each row's key, to be folded with position and stream.
        surprise_B: float32, the largest surprise that mirostat allows, in bits.
    """

    knobs: dict[str, jax.Array]
    rules: Rules
    tokens_BS: jax.Array
    lengths_B: jax.Array
    prompt_B: jax.Array
    read_BR: jax.Array
    read_B: jax.Array
    limits_B: jax.Array
    ends_BE: jax.Array
    keys_B: jax.Array
    surprise_B: jax.Array


def knobs(settings: Sequence[Settings]) -> dict[str, Any]:
    """The numbers of some rows' settings, an array [B] each.

    Added are `top_p_rest`, what p has beyond its float32 rounding; `decay_start` (-1 is never) and `decay_factor`;
    `candidates`, the top_k of contrastive search; `length_rule`, 1 for t5; `early_stopping`, 2 for never; and
    `likelihood`.
    """
    arrays: dict[str, Any] = {}
    for name, kind in names.numeric().items():
        values = [FILTERS[name] if name in _off(s) else getattr(s, name) for s in settings]
        arrays[name] = np.array(values, np.float64 if kind is float else np.int32)
    exact_B = arrays["top_p"]
    arrays = {
        name: x.astype(np.float32) if x.dtype == np.float64 else x for name, x in arrays.items()
    }
    decays = [s.exponential_decay_length_penalty or (-1, 1.0) for s in settings]
    return {
        **arrays,
        "top_p_rest": (exact_B - exact_B.astype(np.float32)).astype(np.float32),
        "decay_start": np.array([start for start, _ in decays], np.int32),
        "decay_factor": np.array([factor for _, factor in decays], np.float32),
        "candidates": np.array([s.top_k for s in settings], np.int32),
        "length_rule": np.array([s.length_rule == "t5" for s in settings], np.int32),
        "early_stopping": np.array([EARLY[s.early_stopping] for s in settings], np.int32),
        "likelihood": np.array([s.likelihood for s in settings], np.int32),
    }


def _off(settings: Settings) -> Collection[str]:
    """The filters that a row leaves off: those that mirostat replaces, and all where nothing is drawn."""
    if not settings.drawn:
        return FILTERS
    return FILTERS.keys() - {"temperature", "mirostat"} if settings.mirostat else ()


def no_rules(rows: int, vocabulary: int, counts: tuple[int, int, int, int] = (1, 1, 1, 1)) -> Rules:
    """Rules that change nothing; `counts` are first tokens, forced tokens, sequences and their length."""
    begin, forced, sequences, length = counts
    return Rules(
        bias_BV=jnp.zeros((rows, vocabulary), jnp.float32),
        begin_BN=jnp.full((rows, begin), -1, jnp.int32),
        forced_BN=jnp.full((rows, forced), -1, jnp.int32),
        forced_end_B=jnp.full(rows, -1, jnp.int32),
        sequences_BNL=jnp.full((rows, sequences, length), -1, jnp.int32),
        sequence_bias_BN=jnp.zeros((rows, sequences), jnp.float32),
        breakers_BV=jnp.zeros((rows, vocabulary), bool),
    )


def bare(settings: Sequence[Settings], vocabulary: int) -> Context:
    """The context of rows that have no tokens and no noise: to see what settings make of logits [B, V] alone."""
    rows = len(settings)
    nothing_B = jnp.zeros(rows, jnp.int32)
    return Context(
        knobs={name: jnp.asarray(x_B) for name, x_B in knobs(settings).items()},
        rules=no_rules(rows, vocabulary),
        tokens_BS=jnp.zeros((rows, 1), jnp.int32),
        lengths_B=nothing_B,
        prompt_B=nothing_B,
        read_BR=jnp.zeros((rows, 1), jnp.int32),
        read_B=nothing_B,
        limits_B=nothing_B + 2**30,
        ends_BE=jnp.full((rows, 1), -1, jnp.int32),
        keys_B=jax.random.wrap_key_data(jnp.zeros((rows, 2), jnp.uint32), impl=keys.IMPLEMENTATION),
        surprise_B=jnp.array([2 * s.mirostat_tau for s in settings], jnp.float32),
    )
