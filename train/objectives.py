"""What is to be learnt from an example? Token ids in, the arrays of a row out.

Everything random comes from the Generator that is passed in; `generator` makes the one of an example in an epoch.
What a function returns has its own length: `packing` lays it into rows. `corruption` hides parts of a text first.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from model import errors

Example = dict[str, np.ndarray]


def generator(seed: int, example: int, epoch: int, name: str = "") -> np.random.Generator:
    """The random numbers of one example in one epoch; `name` tells apart sources or uses within it.

    Philox-4x64 (Salmon et al. 2011) under the first 128 bits of the SHA-256 of "seed example epoch name", of which the
    first eight bytes, big-endian, are the key's low word. numpy promises never to change the words this gives:

    >>> generator(0, 5, 1, "masked").bit_generator.random_raw(2).tolist()
    [17492305602704688988, 11643794793694687319]
    """
    digest = hashlib.sha256(f"{seed} {example} {epoch} {name}".encode()).digest()
    key = np.frombuffer(digest[:16], ">u8").astype(np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def causal(text: np.ndarray, weights: np.ndarray | None = None) -> Example:
    """Each token predicts the next one; `weights`, one per token of the text, says which count as targets."""
    weighed = np.ones(len(text)) if weights is None else weights
    return {
        "tokens": _ids(text[:-1]),
        "targets": _ids(text[1:]),
        "weights": np.asarray(weighed[1:], np.float32),
    }


def prefix(segments: np.ndarray, weights: np.ndarray, rng: np.random.Generator) -> Example:
    """Prefix LM (Raffel et al. 2020, section 3.2.1): before a random place all see all, behind it tokens are predicted.

    The prefix is of equal length in each document of a row, from 1 to all tokens of the longest, whose last predicts
    its end; documents that it covers are only read. For a document of four tokens, the next of two, and a prefix of 2:

        segments  1 1 1 1 2 2
        prefix    1 1 0 0 0 0    as many ones as tokens of each document
        weights   0 1 1 0 0 1
    """
    place = np.arange(len(segments))
    first = np.maximum.accumulate(np.where(np.diff(segments, prepend=0) != 0, place, 0))
    within = np.where(segments > 0, place - first, 0)
    split = int(rng.integers(1, 2 + within.max(initial=0)))
    seen = place - first < split - 1  # the last token of the prefix predicts the first behind it
    return {
        "weights": np.where(seen, np.float32(0), weights).astype(np.float32),
        "prefix": _ids(place < split),
    }


def continuation(source: np.ndarray, target: np.ndarray) -> Example:
    """Source and target as one text of a decoder-only model; only the target's tokens, its end among them, count."""
    return dialogue([(source, False), (target, True)])


def dialogue(turns: Sequence[tuple[np.ndarray, bool]]) -> Example:
    """Turns, each with whether the model is to say it, as one text of which only such turns count.

    A turn brings its own marks; that of its end counts as said with it. A mark that asks for the answer (a role's name)
    belongs to a turn that does not count.
    """
    if not any(len(ids) and said for ids, said in turns):
        raise errors.BadInput(
            "an example has no token to be learnt: its answer is empty; leave it out"
        )
    text = np.concatenate([np.asarray(ids, np.int32) for ids, _ in turns])
    weights = np.concatenate([np.full(len(ids), said) for ids, said in turns])
    return causal(text, weights)


def pair(source: np.ndarray, target: np.ndarray, *, start_id: int) -> Example:
    """Source and target of an encoder-decoder: the target, with its end, is predicted from `start_id` on."""
    return {
        "source": _ids(source),
        "tokens": _ids([start_id, *target[:-1]]),
        "targets": _ids(target),
        "weights": np.ones(len(target), np.float32),
    }


def classification(text: np.ndarray, label: int) -> Example:
    """The class of a text, as the target of its first token."""
    first = np.arange(len(text)) == 0
    return {"tokens": _ids(text), "targets": _ids(first * label), "weights": first.astype("f4")}


def tagging(text: np.ndarray, labels: np.ndarray) -> Example:
    """A class for each token; where the label is negative, none is asked for."""
    if len(text) != len(labels):
        raise errors.BadInput(
            f"a text of {len(text)} tokens has {len(labels)} labels; each token needs one"
        )
    asked = np.asarray(labels) >= 0
    return {
        "tokens": _ids(text),
        "targets": _ids(np.where(asked, labels, 0)),
        "weights": asked.astype(np.float32),
    }


def next_sentence(
    documents: Sequence[Sequence[np.ndarray]],
    place: tuple[int, int],
    rng: np.random.Generator,
    *,
    length: int,
    cls_id: int,
    sep_id: int,
    short: float = 0.1,
) -> Example:
    """Two texts, `[CLS] A [SEP] B [SEP]`, of which B follows A or is from another document (Devlin et al. 2019, A.2).

    A are the first of the sentences that begin at `place` and fill the row. With even odds B are the others of them, or
    as many tokens from a random sentence of a random other document on; a lone sentence always gets such a B. A pair of
    more than `length` tokens loses tokens of the longer text, at either end with even odds. A share `short` of pairs
    are made for a random smaller length, as those of later tasks are.

    Args:
        documents: sentences of ids, none empty.
        place: number of the document, and of its sentence; `places` lists them.

    Returns:
        `tokens`, `types` (1 from the first token of B on), and at the first token, with `pair_weights` 1, the class in
        `pair_targets`: 0 when B follows A, 1 when it does not.
    """
    _check_pairs(documents, length)
    number, first = place
    room = length - 3
    target = int(rng.integers(2, room + 1)) if rng.random() < short else room
    chunk = _fill(documents[number], first, target)
    split = int(rng.integers(1, len(chunk))) if len(chunk) > 1 else 1
    a, b = chunk[:split], chunk[split:]
    follows = bool(b) and rng.random() < 0.5
    if not follows:
        other = int(rng.integers(len(documents) - 1))
        strange = documents[other + (other >= number)]
        b = _fill(strange, int(rng.integers(len(strange))), target - sum(map(len, a)))
    kept_a, kept_b = _shorten(np.concatenate(a), np.concatenate(b), room, rng)
    tokens = _ids([cls_id, *kept_a, sep_id, *kept_b, sep_id])
    start = np.arange(len(tokens)) == 0
    return {
        "tokens": tokens,
        "types": _ids(np.arange(len(tokens)) >= len(kept_a) + 2),
        "pair_targets": _ids(start & (not follows)),
        "pair_weights": start.astype(np.float32),
    }


def places(documents: Sequence[Sequence[np.ndarray]], length: int) -> list[tuple[int, int]]:
    """Where the pairs of `next_sentence` begin: each sentence is in the row that exactly one of them fills."""
    _check_pairs(documents, length)
    found = []
    for number, sentences in enumerate(documents):
        first = 0
        while first < len(sentences):
            found.append((number, first))
            first += len(_fill(sentences, first, length - 3))
    return found


def _fill(sentences: Sequence[np.ndarray], first: int, tokens: int) -> list[np.ndarray]:
    """The sentences from `first` on, at least one, until they have that many tokens."""
    last, size = first, 0
    while last < len(sentences) and (size < tokens or last == first):
        size += len(sentences[last])
        last += 1
    return list(sentences[first:last])


def _shorten(
    a: np.ndarray, b: np.ndarray, room: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Both texts with at most `room` tokens together: the longer loses one at either end, again and again."""
    while len(a) + len(b) > room:
        cut = slice(1, None) if rng.random() < 0.5 else slice(None, -1)
        a, b = (a[cut], b) if len(a) > len(b) else (a, b[cut])
    return a, b


def _check_pairs(documents: Sequence[Sequence[np.ndarray]], length: int) -> None:
    if len(documents) < 2:
        raise errors.BadInput(
            f"next-sentence pairs need a second document to draw from, and there are {len(documents)}"
        )
    if length < 5:
        raise errors.BadInput(
            f"a pair of {length} tokens has no room for two texts and three marks; give at least 5"
        )


def _ids(values: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.asarray(values, np.int32)
