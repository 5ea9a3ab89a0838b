"""How wrong is a prediction? Arrays in, one value per token out; the caller weighs and averages."""

import jax
import jax.numpy as jnp


def cross_entropy(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """Nats `-log softmax(logits)[target]` of every token, float32 [B, T] whatever the logits' type.

    Example: logits `[0, 0, log 2]` give targets 0, 1, 2 the losses `log 4, log 4, log 2`.
    """
    if logits_BTV.ndim != 3 or targets_BT.shape != logits_BTV.shape[:2]:
        raise ValueError(
            f"logits {logits_BTV.shape} and targets {targets_BT.shape}; "
            "they must be [B, T, V] and [B, T]"
        )
    logits_BTV = logits_BTV.astype(jnp.float32)
    chosen_BT1 = jnp.take_along_axis(logits_BTV, targets_BT[:, :, None], axis=-1)
    return jax.nn.logsumexp(logits_BTV, axis=-1) - chosen_BT1[:, :, 0]
