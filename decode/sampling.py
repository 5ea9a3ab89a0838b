"""Which token comes next? One draw per row, with the row's own noise, and the record of how likely it was."""

import jax
import jax.numpy as jnp
import numpy as np

from decode import keys, processors
from decode.context import Context
from decode.state import LIKELIHOOD

ZERO = np.float32(0)
Record = dict[str, jax.Array]


def draw(logits_BV: jax.Array, context: Context, preset: str) -> tuple[jax.Array, Record]:
    """One token per row, int32, and what is recorded of it, float32 [B] each.

    Draws by the Gumbel-max trick: argmax of logits plus noise is a sample of their softmax. A greedy row takes the
    first of its largest scores. Noise is added to logits whose largest is 0, where float32 is finest; when every
    row is greedy, none is made.

    Recorded are `logprobs`, the model's own, from the logits as they came; `sampled_logprobs`, of the distribution
    drawn from, 0 where the choice was greedy and not a number where nothing was allowed; `margins`, the winner's
    score minus the runner-up's, noise included; and what `likelihood` adds.
    """
    kept_BV = processors.PRESETS[preset](logits_BV, context)
    greedy_B1 = (context.knobs["temperature"] == 0)[:, None]
    best_B1 = kept_BV.max(axis=1, keepdims=True)

    def noisy() -> jax.Array:
        keys_B = keys.fold(context.keys_B, context.lengths_B, "sample")
        level_BV = kept_BV - best_B1 + keys.gumbel(keys_B, logits_BV.shape[1])
        return jnp.where(greedy_B1, kept_BV, level_BV)

    score_BV = jax.lax.cond(greedy_B1.all(), lambda: kept_BV, noisy)
    token_B = jnp.argmax(score_BV, axis=1).astype(jnp.int32)
    chosen_BV = jnp.arange(logits_BV.shape[1])[None] == token_B[:, None]
    runner_up_B = jnp.where(chosen_BV, -jnp.inf, score_BV).max(axis=1)
    sampled_B = jnp.where(greedy_B1[:, 0], ZERO, _logprob(kept_BV, token_B))
    return token_B, {
        "logprobs": _logprob(logits_BV, token_B),
        "sampled_logprobs": jnp.where(best_B1[:, 0] == -jnp.inf, jnp.nan, sampled_B),
        "margins": score_BV.max(axis=1) - runner_up_B,
        **likelihood(logits_BV, kept_BV, token_B, context),
    }


def likelihood(
    logits_BV: jax.Array, kept_BV: jax.Array, token_B: jax.Array, context: Context
) -> Record:
    """Of the model's distribution: its entropy in nats, the mass and the number of the tokens that were kept, and
    the rank of the chosen one, 1 for the likeliest and the lower ids first among equals. Zeros where no row asks.
    """

    def measured() -> Record:
        level_BV = logits_BV - logits_BV.max(axis=1, keepdims=True)
        mass_BV = jnp.exp(level_BV)
        total_B = mass_BV.sum(axis=1)
        weighed_BV = jnp.where(mass_BV > 0, mass_BV * level_BV, ZERO)
        kept = kept_BV > -jnp.inf
        chosen_B1 = jnp.take_along_axis(logits_BV, token_B[:, None], axis=1)
        lower_BV = jnp.arange(logits_BV.shape[1])[None] < token_B[:, None]
        ahead_BV = (logits_BV > chosen_B1) | ((logits_BV == chosen_B1) & lower_BV)
        return {
            "entropies": jnp.log(total_B) - weighed_BV.sum(axis=1) / total_B,
            "kept_masses": jnp.where(kept, mass_BV, ZERO).sum(axis=1) / total_B,
            "ranks": 1 + ahead_BV.sum(axis=1, dtype=jnp.int32).astype(jnp.float32),
            "kept_counts": kept.sum(axis=1, dtype=jnp.int32).astype(jnp.float32),
        }

    def nothing() -> Record:
        return {name: jnp.zeros(len(logits_BV), jnp.float32) for name in LIKELIHOOD}

    return jax.lax.cond((context.knobs["likelihood"] > 0).any(), measured, nothing)


def _logprob(logits_BV: jax.Array, token_B: jax.Array) -> jax.Array:
    level_BV = logits_BV - logits_BV.max(axis=1, keepdims=True)
    chosen_B = jnp.take_along_axis(level_BV, token_B[:, None], axis=1)[:, 0]
    return chosen_B - jnp.log(jnp.exp(level_BV).sum(axis=1))
