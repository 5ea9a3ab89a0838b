"""What does an encoder say of a text? Its label, the label of each of its words, or what its masks hide.

A text is asked at places, and answered as a completion whose tokens stand for these. It is computed in the bucket of
its own length, in a batch of always as many rows, so an answer is the same bits whatever shares its batch.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from decode import jobs, outcome
from decode import requests as asked
from decode.requests import Completion, Request
from decode.settings import Settings
from model import LM, errors, tokenizer

MASKS = ("<mask>", "[MASK]")
OUTSIDE = "O"  # the tag of a word without any token
BEST = 5  # pieces that are told of a mask
FEWEST_PLACES = 4


@dataclasses.dataclass(frozen=True)
class Asked:
    """A text, and where in it a head is asked.

    Attributes:
        ids: all that the model reads.
        places: in `ids`; -1 for a word that has none there.
        count: how many of the likeliest labels are told.
    """

    id: str | int
    ids: tuple[int, ...]
    places: tuple[int, ...]
    count: int


def classify(
    lm: LM, texts: Sequence[str | Sequence[int]], *, batch_size: int = asked.BATCH_SIZE
) -> list[Completion]:
    """The label of each text, as `text`; `labels[0]` and `label_logprobs[0]` have all, the likeliest first.

    Token ids are taken as they are, and texts framed as in training: `tokenizer.frame`.
    """
    _check_head(lm, "sequence", "classify texts")
    return complete(lm, asked.requests(texts), batch_size)


def tag(
    lm: LM, texts: Sequence[str | Sequence[str]], *, batch_size: int = asked.BATCH_SIZE
) -> list[Completion]:
    """The tag of each word of each text, in `labels` and `label_logprobs` as `classify` has them, a word after another.

    Words are what white space separates, or those that are listed. The first token of a word decides.
    """
    _check_head(lm, "token", "tag words")
    split = [text.split() if isinstance(text, str) else text for text in texts]
    return answers(lm, [_words(lm, i, each, 0) for i, each in enumerate(split)], batch_size)


def fill(
    lm: LM,
    texts: Sequence[str | Sequence[int]],
    *,
    top_k: int = BEST,
    batch_size: int = asked.BATCH_SIZE,
) -> list[Completion]:
    """Each text with its masks (`<mask>` or `[MASK]`) filled, each as if the others stayed; `labels` has the best."""
    _check_head(lm, "lm", "fill masks")
    return complete(lm, asked.requests(texts, Settings(top_k=top_k)), batch_size)


def complete(
    lm: LM, requests: Sequence[Request], batch_size: int = asked.BATCH_SIZE, strict: bool = True
) -> list[Completion]:
    """What the head of an encoder says of each request's prompt; of settings it heeds `top_k` alone.

    `strict` refuses all when one of them cannot be followed; otherwise its completion says why.
    """
    todo: list[Asked] = []
    done: dict[Any, Completion] = {}
    for request in requests:
        try:
            todo.append(of(lm, request))
        except errors.BadInput as error:
            if strict:
                raise
            done[request.id] = outcome.refused(request, str(error))
    done |= {each.id: each for each in answers(lm, todo, batch_size)}
    return [done[request.id] for request in requests]


def of(lm: LM, request: Request) -> Asked:
    """What a request asks of an encoder.

    Raises:
        BadInput: when its head cannot be asked so, or the window does not hold the text.
    """
    kind = lm.config.head.kind
    if kind not in _ASKED:
        raise errors.BadInput(
            f"{lm.directory or 'this model'} has head {kind!r}, which says nothing of a text; train one on it "
            "(config.start.path), or give another directory"
        )
    if not request.prompt:
        raise errors.BadInput(
            f"request {request.id!r} has an empty prompt; give it text or at least one token id"
        )
    return _ASKED[kind](lm, request)


def entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """The entities in BIO tags: (type, its first word, the one behind its last), as CoNLL's script reads them.

    An entity begins at B, or at I behind anything but its own type.

    Example: `["B-per", "I-per", "O", "I-loc"]` is `[("per", 0, 2), ("loc", 3, 4)]`.
    """
    found: list[tuple[str, int, int]] = []
    for place, each in enumerate(tags):
        begins, _, kind = each.partition("-")
        if each == OUTSIDE or begins not in ("B", "I"):
            continue
        last = found[-1] if found else None
        if begins == "I" and last is not None and (last[0], last[2]) == (kind, place):
            found[-1] = (kind, last[1], place + 1)
        else:
            found.append((kind, place, place + 1))
    return found


def _text(lm: LM, request: Request) -> Asked:
    ids = request.prompt
    if isinstance(ids, str):
        ids = _framed(lm, [lm.words.encode(ids)])
    ids = _read(lm, request.id, ids)
    return Asked(request.id, ids, (0,), request.settings.top_k)  # type: ignore[arg-type]


def _tokens(lm: LM, request: Request) -> Asked:
    if not isinstance(request.prompt, str):
        raise errors.BadInput(
            f"request {request.id!r} has token ids, and tags are of words; give it text"
        )
    return _words(lm, request.id, request.prompt.split(), request.settings.top_k)  # type: ignore[arg-type]


def _words(lm: LM, id: str | int, words: Sequence[str], count: int) -> Asked:
    pieces = lm.words.encode_batch(tokenizer.token_texts(words))
    ids = _read(lm, id, _framed(lm, pieces))
    behind = len(ids) - len(tokenizer.frame(lm.words)[1])
    starts = behind - sum(map(len, pieces)) + np.cumsum([0, *map(len, pieces)])
    places = (int(start) if each else -1 for start, each in zip(starts, pieces, strict=False))
    return Asked(id, ids, tuple(places), count)


def _masks(lm: LM, request: Request) -> Asked:
    mask = lm.words.mask_id
    if mask is None:
        raise errors.BadInput(
            f"the tokenizer of {lm.directory or 'this model'} has no mask, so nothing can be hidden from the model; "
            "give one that was trained to fill masks"
        )
    ids = request.prompt
    if isinstance(ids, str):
        for name in MASKS:
            ids = ids.replace(name, lm.words.piece(mask))
        ids = _framed(lm, [lm.words.encode(ids, special=True)])
    ids = _read(lm, request.id, ids)
    places = tuple(place for place, id in enumerate(ids) if id == mask)
    if not places:
        raise errors.BadInput(
            f"request {request.id!r} has no {lm.words.piece(mask)}, and the model says what is behind one; write it "
            "where a word is wanted"
        )
    return Asked(request.id, ids, places, request.settings.top_k or BEST)  # type: ignore[arg-type]


_ASKED: dict[str, Callable[[LM, Request], Asked]] = {
    "sequence": _text,
    "token": _tokens,
    "lm": _masks,
}


def _framed(lm: LM, pieces: Sequence[Sequence[int]]) -> list[int]:
    before, behind = tokenizer.frame(lm.words)
    return [*before, *(id for ids in pieces for id in ids), *behind]


def _read(lm: LM, id: Any, ids: Sequence[int]) -> tuple[int, ...]:
    """What the model reads: ids behind those of its soft prompt, if the window holds them."""
    size, window = lm.config.vocab_size, lm.config.context_length
    for token in ids:
        if not 0 <= token < size:
            raise errors.BadInput(
                f"request {id!r} has token id {token}; this model's are 0 to {size - 1}"
            )
    read = (*range(size, size + lm.virtual_tokens), *ids)
    if len(read) > window:
        raise errors.BadInput(
            f"request {id!r} has a text of {len(read)} tokens, and the context window of {window} must hold it; "
            "shorten the text"
        )
    return read


def answers(lm: LM, todo: Sequence[Asked], batch_size: int = asked.BATCH_SIZE) -> list[Completion]:
    """An answer for each text, in their order; texts of one bucket share batches."""
    asked.check_batch_size(batch_size)
    window = lm.config.context_length
    alike: dict[tuple[int, int], list[int]] = collections.defaultdict(list)
    for number, each in enumerate(todo):
        size = jobs.bucket(len(each.ids), jobs.SMALLEST_PROMPT, window)
        places = jobs.bucket(len(each.places), FEWEST_PLACES, window)
        alike[size, places].append(number)
    done: dict[int, Completion] = {}
    for (size, places), group in alike.items():
        for start in range(0, len(group), batch_size):
            numbers = group[start : start + batch_size]
            rows = _rows([todo[number] for number in numbers], batch_size, size, places)
            logprobs_BPC = np.asarray(_score(lm.net, lm.params, *rows))
            for number, logprobs_PC in zip(numbers, logprobs_BPC, strict=False):
                each = todo[number]
                done[number] = _answer(lm, each, logprobs_PC[: len(each.places)])
    return [done[number] for number in range(len(todo))]


def _rows(part: Sequence[Asked], batch_size: int, size: int, places: int) -> tuple[np.ndarray, ...]:
    """Tokens [B, T], their lengths [B], and places [B, P]; an idle row has one token to look at."""
    tokens_BT = np.zeros((batch_size, size), np.int32)
    lengths_B = np.ones(batch_size, np.int32)
    places_BP = np.zeros((batch_size, places), np.int32)
    for row, each in enumerate(part):
        tokens_BT[row, : len(each.ids)] = each.ids
        lengths_B[row] = len(each.ids)
        places_BP[row, : len(each.places)] = np.maximum(each.places, 0)
    return tokens_BT, lengths_B, places_BP


@functools.partial(jax.jit, static_argnames=("net",))
def _score(
    net: nn.Module, params: Any, tokens_BT: jax.Array, lengths_B: jax.Array, places_BP: jax.Array
) -> jax.Array:
    """Log-probabilities of the labels, or of the vocabulary, at some places: float32 [B, P, C], P = 1 for a text."""
    mask_BT = jnp.arange(tokens_BT.shape[1])[None] < lengths_B[:, None]
    x_BTD, _ = net.apply({"params": params}, tokens_BT, mask=mask_BT, method="features")
    if net.config.head.kind == "sequence":
        logits_BPC = net.apply({"params": params}, x_BTD, mask=mask_BT, method="head")[:, None]
    else:
        x_BPD = jnp.take_along_axis(x_BTD, places_BP[:, :, None], axis=1)
        logits_BPC = net.apply({"params": params}, x_BPD, method="head")
    return jax.nn.log_softmax(logits_BPC.astype(jnp.float32))


class _Said(NamedTuple):
    """What is said at one place: labels by number and by name, and how likely they are, the likeliest first."""

    ids: list[int]
    names: tuple[str, ...]
    logprobs: tuple[float, ...]
    margin: float


def _said(lm: LM, place: int, logprobs_C: np.ndarray, count: int) -> _Said:
    """The `count` likeliest labels of a place, or all for 0."""
    names = lm.config.head.labels
    if place < 0:
        return _Said(
            [names.index(OUTSIDE) if OUTSIDE in names else -1], (OUTSIDE,), (0.0,), math.inf
        )
    if not names:
        logprobs_C = logprobs_C[: lm.words.vocab_size]  # a table may have rows beyond the pieces
    order_C = np.argsort(-logprobs_C, kind="stable")
    best = logprobs_C[order_C[:2]].tolist()
    ids = order_C[: count or None].tolist()
    return _Said(
        ids,
        tuple(names[id] if names else lm.words.piece(id) for id in ids),
        tuple(logprobs_C[ids].tolist()),
        best[0] - best[1] if len(best) > 1 else math.inf,
    )


def _answer(lm: LM, each: Asked, logprobs_PC: np.ndarray) -> Completion:
    """What log-probabilities at the places of a text say."""
    if np.isnan(logprobs_PC).any():
        raise errors.BadInput(
            f"request {each.id!r}: the logits are not numbers; "
            f"the weights{f' in {lm.directory}' if lm.directory else ''} are damaged or diverged"
        )
    said = [
        _said(lm, place, logprobs_C, each.count)
        for place, logprobs_C in zip(each.places, logprobs_PC, strict=True)
    ]
    if lm.config.head.labels:
        text = " ".join(place.names[0] for place in said)
    else:
        filled = dict(zip(each.places, (place.ids[0] for place in said), strict=True))
        ids = [filled.get(place, id) for place, id in enumerate(each.ids)]
        text = lm.words.decode(ids[lm.virtual_tokens :])
    return Completion(
        id=each.id,
        sample=0,
        prompt_tokens=each.ids,
        tokens=tuple(place.ids[0] for place in said),
        text=text,
        finish_reason="stop",
        logprobs=tuple(place.logprobs[0] for place in said),
        sampled_logprobs=(0.0,) * len(said),
        margins=tuple(place.margin for place in said),
        places=each.places,
        labels=tuple(place.names for place in said),
        label_logprobs=tuple(place.logprobs for place in said),
    )


def _check_head(lm: LM, kind: str, what: str) -> None:
    if (lm.config.family, lm.config.head.kind) != ("encoder_only", kind):
        raise errors.BadInput(
            f"{lm.directory or 'this model'} has family {lm.config.family!r} and head {lm.config.head.kind!r}; to "
            f"{what} an 'encoder_only' with head {kind!r} is needed"
        )
