"""When is a processor worth its time? When a row of the batch asks for it; the other rows keep their bits."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def when(active_B: jax.Array, logits_BV: jax.Array, changed: Callable[[], jax.Array]) -> jax.Array:
    """What `changed` computes where a row is active, the logits as they are elsewhere; free if no row is."""
    return jax.lax.cond(
        active_B.any(),
        lambda: jnp.where(active_B[:, None], changed(), logits_BV),
        lambda: logits_BV,
    )


def keep(logits_BV: jax.Array, kept_BV: jax.Array) -> jax.Array:
    """-inf where a token is not kept; a row whose largest logit is infinite stays as it is."""
    whole_B1 = ~jnp.isfinite(logits_BV.max(axis=1, keepdims=True))
    return jnp.where(kept_BV | whole_B1, logits_BV, -jnp.inf)
