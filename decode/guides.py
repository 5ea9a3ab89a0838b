"""Where do the next token's logits come from? From the model, or from weighing it against a second opinion.

Classifier-free guidance asks the same model about another prompt, contrastive decoding asks a weaker model, and DoLa
asks the model's own early layers.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from decode.state import State
from decode.strategy import Models, Strategy

Knobs = dict[str, jax.Array]
RELATIVE_TOP = np.float32(0.1)  # Chuang et al. 2024, section 2.3, after Li et al. 2023


def extend(
    strategy: Strategy,
    nets: Models,
    params: Models,
    state: State,
    tokens_BT: jax.Array,
    mask_BT: jax.Array,
) -> tuple[jax.Array, jax.Array, Models]:
    """Float32 logits [B, T, V] behind each token, the model's own ones, and the caches with the tokens in them."""
    context, caches = state.context, state.caches
    logits_BTV, main, aux = nets.main.apply(
        {"params": params.main}, tokens_BT, mask_BT, caches.main, method="trace"
    )
    logits_BTV = logits_BTV.astype(jnp.float32)
    caches = caches._replace(main=main)
    if strategy.guide == "early":
        early_JBTV = _early(strategy, nets, params, aux)
        return contrast(logits_BTV, early_JBTV), logits_BTV, caches
    if not strategy.second:
        return logits_BTV, logits_BTV, caches
    first_B = context.lengths_B == context.prompt_B
    tokens_BT = tokens_BT.at[:, 0].set(jnp.where(first_B, state.guide_B, tokens_BT[:, 0]))
    other_BTV, guide = nets.guide.apply(
        {"params": params.guide}, tokens_BT, mask_BT, caches.guide, method="extend"
    )
    weigh = WEIGHED[strategy.guide]
    mixed_BTV = weigh(logits_BTV, other_BTV.astype(jnp.float32), context.knobs)
    return mixed_BTV, logits_BTV, caches._replace(guide=guide)


def guidance(logits_BTV: jax.Array, other_BTV: jax.Array, knobs: Knobs) -> jax.Array:
    """`other + scale (own - other)` on log-probabilities (Sanchez et al. 2023, equation 7).

    A scale of 1 is the model itself, above 1 leads away from the other prompt.
    """
    own_BTV, other_BTV = jax.nn.log_softmax(logits_BTV), jax.nn.log_softmax(other_BTV)
    scale_B11 = knobs["guidance_scale"][:, None, None]
    mixed_BTV = other_BTV + scale_B11 * (own_BTV - other_BTV)
    return jnp.where(scale_B11 == 1, logits_BTV, mixed_BTV)


def amateur(logits_BTV: jax.Array, other_BTV: jax.Array, knobs: Knobs) -> jax.Array:
    """`(1 + beta) expert - beta amateur` on logits, among the tokens whose probability is at least alpha times the
    largest (Li et al. 2023, in the form of O'Brien & Lewis 2023, section 2)."""
    beta_B11 = knobs["contrastive_beta"][:, None, None]
    floor_B11 = jnp.log(knobs["contrastive_alpha"])[:, None, None]
    best_BT1 = logits_BTV.max(axis=-1, keepdims=True)
    plausible_BTV = logits_BTV >= best_BT1 + floor_B11
    mixed_BTV = (1 + beta_B11) * logits_BTV - beta_B11 * other_BTV
    return jnp.where(plausible_BTV, mixed_BTV, -jnp.inf)


WEIGHED: dict[str, Callable[[jax.Array, jax.Array, Knobs], jax.Array]] = {
    "prompt": guidance,
    "amateur": amateur,
}


def contrast(logits_BTV: jax.Array, early_JBTV: jax.Array) -> jax.Array:
    """DoLa (Chuang et al. 2024): the last layer's log-probabilities minus those of the early layer that differs most
    from it by Jensen-Shannon divergence, among the tokens of at least a tenth of the largest probability."""
    final_BTV, early_JBTV = jax.nn.log_softmax(logits_BTV), jax.nn.log_softmax(early_JBTV)
    middle_JBTV = jnp.logaddexp(final_BTV[None], early_JBTV) - np.float32(np.log(2))
    apart_JBT = (
        jnp.exp(final_BTV[None]) * (final_BTV[None] - middle_JBTV)
        + jnp.exp(early_JBTV) * (early_JBTV - middle_JBTV)
    ).sum(axis=-1)
    layer_BT = jnp.argmax(apart_JBT, axis=0)
    chosen_BTV = jnp.take_along_axis(early_JBTV, layer_BT[None, :, :, None], axis=0)[0]
    plausible_BTV = final_BTV >= final_BTV.max(axis=-1, keepdims=True) + jnp.log(RELATIVE_TOP)
    return jnp.where(plausible_BTV, final_BTV - chosen_BTV, -jnp.inf)


def _early(strategy: Strategy, nets: Models, params: Models, aux: dict[str, Any]) -> jax.Array:
    """What the head makes of early layers' hidden states, float32 [J, B, T, V]."""
    hidden = [aux["hidden"][layer] for layer in strategy.early]
    read = [nets.main.apply({"params": params.main}, x_BTD, method="head") for x_BTD in hidden]
    return jnp.stack(read).astype(jnp.float32)
