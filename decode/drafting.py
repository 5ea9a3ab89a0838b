"""Which tokens may well come next? Drafts, from a smaller model or from the text so far, that the model then verifies.

A draft that is wrong costs time and changes nothing: what is kept is what would have been drawn without drafts, with
the same noise (drafter-invariant speculative decoding, Daliri, Musco & Suresh 2025). A draft model draws with that
noise too, so it agrees as often as the two distributions are alike.
"""

import jax
import jax.numpy as jnp

from decode import occurrences, sampling
from decode.context import Context
from decode.strategy import Models, Strategy


def propose(
    strategy: Strategy,
    nets: Models,
    params: Models,
    context: Context,
    caches: Models,
    going_B: jax.Array,
) -> tuple[jax.Array, Models]:
    """int32 [B, K], and the caches: that of a draft model has the newest token and all drafts in it."""
    if strategy.draft == "model":
        return _drawn(strategy, nets, params, context, caches, going_B)
    if strategy.draft == "lookup":
        return lookup(context, strategy.drafts), caches
    return jnp.zeros((len(going_B), 0), jnp.int32), caches


def _drawn(
    strategy: Strategy,
    nets: Models,
    params: Models,
    context: Context,
    caches: Models,
    going_B: jax.Array,
) -> tuple[jax.Array, Models]:
    """What the draft model draws; the last draft is fed too, since all may turn out right."""
    rows = jnp.arange(len(going_B))

    def step(carry: tuple, _: None) -> tuple[tuple, jax.Array]:
        context, draft = carry
        newest_B = context.tokens_BS[rows, context.lengths_B - 1]
        logits_B1V, draft = nets.draft.apply(
            {"params": params.draft}, newest_B[:, None], going_B[:, None], draft, method="extend"
        )
        token_B = sampling.draw(logits_B1V[:, 0].astype(jnp.float32), context, strategy.preset)[0]
        return (append(context, token_B), draft), token_B

    (_, draft), tokens_TB = jax.lax.scan(
        step, (context, caches.draft), None, length=strategy.drafts + 1
    )
    return tokens_TB[:-1].T, caches._replace(draft=draft)


def append(context: Context, token_B: jax.Array) -> Context:
    """The context with one more token; a token beyond the slots is dropped."""
    rows = jnp.arange(len(token_B))
    tokens_BS = context.tokens_BS.at[rows, context.lengths_B].set(token_B, mode="drop")
    return context.replace(tokens_BS=tokens_BS, lengths_B=context.lengths_B + 1)


def lookup(context: Context, drafts: int) -> jax.Array:
    """The tokens behind the latest of the longest earlier occurrences of the last tokens (Saxena 2023).

    At most `max_matching_ngram_size` tokens are compared. Where nothing matches the text's first ones
    are proposed, and behind its end token 0.

    Example: `[1, 2, 3, 4, 1, 2]` and two drafts give `[3, 4]`.
    """
    tokens_BS, lengths_B = context.tokens_BS, context.lengths_B
    slots = tokens_BS.shape[1]
    place_1S = jnp.arange(slots, dtype=jnp.int32)[None]
    longest_B1 = context.knobs["max_matching_ngram_size"][:, None]
    past = tokens_BS, place_1S < lengths_B[:, None], place_1S
    length_BS = occurrences.runs(past, tokens_BS, lengths_B, longest_B1.max())
    rank_BS = jnp.where(length_BS > 0, jnp.minimum(length_BS, longest_B1) * slots + place_1S, -1)
    behind_B = jnp.argmax(rank_BS, axis=1).astype(jnp.int32)
    places_BK = behind_B[:, None] + jnp.arange(drafts, dtype=jnp.int32)[None]
    found_BK = jnp.take_along_axis(tokens_BS, jnp.minimum(places_BK, slots - 1), axis=1)
    return jnp.where(places_BK < lengths_B[:, None], found_BK, 0)
