"""Runs processors on rows with settings, in one compiled function for each tuple of steps and shape."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from decode import context, processors
from decode.settings import Settings

INF = float("inf")


@functools.partial(jax.jit, static_argnames="steps")
def _run(logits_BV, rows, steps):
    return processors.run(steps, logits_BV, rows)


def rows_of(settings, vocabulary, tokens=(), prompt=None, source=None, ends=(), **rules):
    """The context of rows with these settings and a text, the same for all or each their own.

    `prompt` is how much of it was given, all by default, `source` what was read, `ends` the end tokens, and `rules`
    are fields of `context.Rules`.
    """
    count = len(settings)
    plain = context.bare(settings, vocabulary)
    own = len(tokens) > 0 and isinstance(tokens[0], list)
    texts = tokens if own else [list(tokens)] * count
    slots = max(len(t) for t in texts) + 2
    padded = [t + [vocabulary - 1] * (slots - len(t)) for t in texts]
    lengths = [len(t) for t in texts]
    prompts = lengths if prompt is None else np.broadcast_to(prompt, count)
    source = texts if source is None else [list(source)] * count
    filled = [s + [0] * (max(map(len, source)) + 1 - len(s)) for s in source]
    return plain.replace(
        tokens_BS=jnp.array(padded, jnp.int32),
        lengths_B=jnp.array(lengths, jnp.int32),
        prompt_B=jnp.array(prompts, jnp.int32),
        read_BR=jnp.array(filled, jnp.int32),
        read_B=jnp.array([len(s) for s in source], jnp.int32),
        ends_BE=jnp.broadcast_to(jnp.array([*ends, -1], jnp.int32), (count, len(ends) + 1)),
        rules=plain.rules.replace(**{name: jnp.asarray(x) for name, x in rules.items()}),
    )


def apply(steps, logits_BV, settings, rows=None, **facts):
    """The logits that a preset, by name, or some of its steps leave; `settings` is one for all rows or one for each."""
    logits_BV = jnp.asarray(logits_BV, jnp.float32)
    if isinstance(settings, Settings):
        settings = [settings] * len(logits_BV)
    if rows is None:
        rows = rows_of(settings, logits_BV.shape[1], **facts)
    steps = processors.CHAINS[steps] if isinstance(steps, str) else steps
    return np.asarray(_run(logits_BV, rows, steps))


def kept(steps, logits_BV, settings, **facts):
    """The kept ids of each row."""
    out_BV = apply(steps, logits_BV, settings, **facts)
    return [set(np.flatnonzero(row > -INF).tolist()) for row in out_BV]


def logs(*probabilities):
    """A row of logits [1, V]."""
    with np.errstate(divide="ignore"):
        return np.log(np.array([probabilities], np.float64)).astype(np.float32)


def softmax(logits_V):
    """Their probabilities in float64."""
    mass_V = np.exp(np.asarray(logits_V, np.float64) - np.max(logits_V))
    return mass_V / mass_V.sum()
