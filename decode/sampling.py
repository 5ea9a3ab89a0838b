"""Which token comes next? One draw per row, with the row's own noise, and the record of how likely it was."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from decode import keys, processors


class Draw(struct.PyTreeNode):
    """One token per row and what is known about it.

    Attributes:
        token_B: int32.
        logprob_B: the model's own log-probability of it, from the logits as they came.
        sampled_logprob_B: that of the distribution drawn from; 0 where the choice was greedy.
        margin_B: the winner's score minus the runner-up's, noise included.
    """

    token_B: jax.Array
    logprob_B: jax.Array
    sampled_logprob_B: jax.Array
    margin_B: jax.Array


def draw(logits_BV: jax.Array, knobs: processors.Knobs, keys_B: jax.Array) -> Draw:
    """Draws by the Gumbel-max trick: argmax of logits plus noise is a sample of their softmax.

    A greedy row takes the first of its largest logits. Noise is added to logits whose largest is 0,
    where float32 is finest; when every row is greedy, none is made.
    """
    greedy_B1 = (knobs.temperature_B == 0)[:, None]
    kept_BV = processors.hf(logits_BV, knobs)

    def noisy() -> jax.Array:
        level_BV = kept_BV - kept_BV.max(axis=1, keepdims=True)
        return jnp.where(greedy_B1, logits_BV, level_BV + keys.gumbel(keys_B, logits_BV.shape[1]))

    score_BV = jax.lax.cond(greedy_B1.all(), lambda: logits_BV, noisy)
    token_B = jnp.argmax(score_BV, axis=1).astype(jnp.int32)
    chosen_BV = jnp.arange(logits_BV.shape[1])[None] == token_B[:, None]
    runner_up_B = jnp.where(chosen_BV, -jnp.inf, score_BV).max(axis=1)
    return Draw(
        token_B=token_B,
        logprob_B=_logprob(logits_BV, token_B),
        sampled_logprob_B=jnp.where(greedy_B1[:, 0], np.float32(0), _logprob(kept_BV, token_B)),
        margin_B=score_BV.max(axis=1) - runner_up_B,
    )


def _logprob(logits_BV: jax.Array, token_B: jax.Array) -> jax.Array:
    level_BV = logits_BV - logits_BV.max(axis=1, keepdims=True)
    chosen_B = jnp.take_along_axis(level_BV, token_B[:, None], axis=1)[:, 0]
    return chosen_B - jnp.log(jnp.exp(level_BV).sum(axis=1))
