"""What of a text is hidden, so that it has to be learnt back? Masks, T5's spans and BART's noise.

Text ids in, ids out, in numpy alone; everything random comes from the Generator that is passed in.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from model import errors
from model.tokenizer import Tokenizer

_WORD = frozenset(b"0123456789_ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz") | frozenset(
    range(128, 256)
)
_CLOSING = b" \t\r\n\"')]}"  # may stand between a full stop and the end of its sentence


@dataclasses.dataclass(frozen=True)
class Pieces:
    """What corruption must know of each id of a vocabulary, bool [V].

    Attributes:
        special: adds no text (begin, end, mask, sentinels, unused ids) or stands for any (unknown).
        begins: opens a word, whatever stands before it.
        ends: closes a word, so that what follows opens one.
        stops: ends a sentence.
    """

    special: np.ndarray
    begins: np.ndarray
    ends: np.ndarray
    stops: np.ndarray

    @functools.cached_property
    def ordinary(self) -> np.ndarray:
        """The ids that are not special, which random replacements are drawn from."""
        return np.flatnonzero(~self.special)

    def words(self, tokens: np.ndarray, segments: np.ndarray | None = None) -> np.ndarray:
        """The number of each token's word, counted from 0; a special token, and a segment's first, opens a new one."""
        opens = self.begins[tokens] | self.special[tokens]
        opens[1:] |= (self.ends | self.special)[tokens[:-1]]
        if segments is not None:
            opens[1:] |= segments[1:] != segments[:-1]
        opens[:1] = True
        return np.cumsum(opens) - 1

    def sentences(self, tokens: np.ndarray) -> list[np.ndarray]:
        """The tokens cut behind each run of full stops; joined, they are the tokens again."""
        stops = self.stops[tokens]
        cuts = 1 + np.flatnonzero(stops[:-1] & ~stops[1:])
        return [part for part in np.split(tokens, cuts) if len(part)]


def pieces(tokenizer: Tokenizer) -> Pieces:
    """The tables of a tokenizer, by the bytes that each id adds to a text.

    A word is a run of letters, digits and underscores, with the space before it; anything beyond ASCII counts as a
    letter. So ` go`, `ing` are one word, and `.` another. A sentence ends in one of `.!?`, closing quotes behind it.
    """
    raw = [tokenizer.raw(id) for id in range(tokenizer.vocab_size)]
    special = np.array([not text for text in raw], bool)
    for id in (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.unk_id):
        if id is not None:
            special[id] = True
    if tokenizer.mask_id is not None:
        special[tokenizer.mask_id] = True
    return Pieces(
        special=special,
        begins=np.array([bool(text) and text[0] not in _WORD for text in raw], bool),
        # Lone spaces belong to the word behind them, or a tokenizer of characters would have as many words again.
        ends=np.array([bool(text.strip(b" ")) and text[-1] not in _WORD for text in raw], bool),
        stops=np.array([text.rstrip(_CLOSING).endswith((b".", b"!", b"?")) for text in raw], bool),
    )


def masked(
    tokens: np.ndarray,
    rng: np.random.Generator,
    *,
    pieces: Pieces,
    mask_id: int,
    segments: np.ndarray | None = None,
    rate: float = 0.15,
    mask: float = 0.8,
    random: float = 0.1,
    whole_words: bool = False,
) -> dict[str, np.ndarray]:
    """Masked LM (Devlin et al. 2019, section 3.1), masked anew for each epoch (Liu et al. 2019, section 4.1).

    Of the ordinary tokens (or of their words, all of whose tokens are then chosen) `rate` are chosen without
    replacement: the number is rounded up or down at random, so that it is right on average, and is at least 1. Of the
    chosen tokens, each by itself, a share `mask` becomes `mask_id`, a share `random` any ordinary id, the rest stays.

    Args:
        tokens: with special ids, and padding where segments is 0; neither is ever chosen.
    """
    _check_share("rate", rate)
    if min(mask, random) < 0 or mask + random > 1:
        raise errors.BadInput(
            f"masking has mask={mask} and random={random}; each must be at least 0, and their sum at most 1"
        )
    tokens = _ids(tokens)
    open_T = ~pieces.special[tokens]
    if segments is not None:
        open_T &= segments > 0
    unit_T = pieces.words(tokens, segments) if whole_words else np.arange(len(tokens))
    units = np.unique(unit_T[open_T])
    count = min(len(units), max(1, int(rate * len(units) + rng.random())))
    chosen_T = np.isin(unit_T, rng.choice(units, count, replace=False)) & open_T
    fate_T = rng.random(len(tokens))
    other_T = pieces.ordinary[rng.integers(0, max(1, len(pieces.ordinary)), len(tokens))]
    corrupted_T = np.where(
        fate_T < mask, mask_id, np.where(fate_T < mask + random, other_T, tokens)
    )
    return {
        "tokens": _ids(np.where(chosen_T, corrupted_T, tokens)),
        "targets": tokens,
        "weights": chosen_T.astype(np.float32),
    }


def span_counts(length: int, density: float = 0.15, mean_span: float = 3.0) -> tuple[int, int]:
    """Of how many of `length` tokens, and in how many spans, span corruption makes noise."""
    _check_share("density", density)
    if not mean_span >= 1:
        raise errors.BadInput(f"mean_span is {mean_span}; it must be at least 1")
    if length < 2:
        return 0, 0
    noise = min(max(round(length * density), 1), length - 1)
    return noise, min(max(round(noise / mean_span), 1), length - noise)


def span_lengths(source: int, density: float = 0.15, mean_span: float = 3.0) -> tuple[int, int]:
    """How many tokens of text `span_corruption` turns into a source of at most `source`, and the target's length then.

    The longest text that fits, as `random_spans_helper` of T5 finds it; a source of 512 takes 568 tokens, and the
    target has 114.
    """
    if source < 3:
        raise errors.BadInput(f"a source of {source} tokens holds no span; it must have at least 3")
    text = source - 1
    while _corrupted(text + 1, density, mean_span)[0] <= source:
        text += 1
    return text, _corrupted(text, density, mean_span)[1]


def span_corruption(
    tokens: np.ndarray,
    rng: np.random.Generator,
    *,
    sentinels: Sequence[int],
    eos_id: int,
    density: float = 0.15,
    mean_span: float = 3.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Source and target of T5's pre-training (Raffel et al. 2020, section 3.1.4), for text ids without begin or end.

    `span_counts` fixes the numbers of noise tokens and spans; the noise, and what is kept, are each cut into so many
    parts of at least one token, every cut equally likely, and laid in turns, a kept part first. In the source each
    noise part becomes a sentinel, in the target each kept part does. Both end in `eos_id`. So it is in T5's released
    code (`random_spans_noise_mask` and `nonnoise_span_to_unique_sentinel` in its data/preprocessors.py): a noise part
    comes last, and the target has no sentinel behind it. In the paper's figure 2 kept text comes last, and has one.

    A text of fewer than two tokens is kept whole; one of a single span always loses its end.
    """
    noise, spans = span_counts(len(tokens), density, mean_span)
    if spans > len(sentinels):
        raise errors.BadInput(
            f"{len(tokens)} tokens have {spans} noise spans, and the tokenizer has {len(sentinels)} sentinels; "
            "use shorter rows, longer spans or a tokenizer with more"
        )
    if not spans:
        return _ids([*tokens, eos_id]), _ids([eos_id])
    parts = np.stack([_parts(len(tokens) - noise, spans, rng), _parts(noise, spans, rng)], axis=1)
    noise_T = np.repeat(np.arange(2 * spans) % 2 == 1, parts.ravel())
    source, target = (with_sentinels(tokens, gone_T, sentinels) for gone_T in (noise_T, ~noise_T))
    return np.append(source, np.int32(eos_id)), np.append(target, np.int32(eos_id))


def with_sentinels(tokens: np.ndarray, gone_T: np.ndarray, sentinels: Sequence[int]) -> np.ndarray:
    """The tokens with each run of those that are gone replaced by the next sentinel.

    `Thank you for inviting me to your party last week` without `for inviting` and `last` is `Thank you <X> me to your
    party <Y> week`, and without all others `<X> for inviting <Y> last <Z>` (Raffel et al. 2020, figure 2).
    """
    first_T = gone_T & ~np.append(False, gone_T[:-1])
    marked_T = _ids(tokens).copy()
    marked_T[first_T] = _ids(sentinels)[: np.count_nonzero(first_T)]
    return marked_T[first_T | ~gone_T]


def denoising(
    tokens: np.ndarray,
    rng: np.random.Generator,
    *,
    mask_id: int,
    sentences: Sequence[np.ndarray] | None = None,
    rate: float = 0.3,
    mean_span: float = 3.0,
    deleted: float = 0.0,
    rotated: bool = False,
) -> np.ndarray:
    """The source of BART's pre-training (Lewis et al. 2020, section 2.2); its target is the text as it was.

    The paper's best is the two first: `sentences`, the same tokens in parts, are shuffled; then spans, whose lengths
    are Poisson with mean `mean_span`, are each replaced by one `mask_id`, until `rate` of the tokens are gone; a span
    of no token puts a mask between two. The last span is cut to fit, and spans of no token are left out where the
    source would become longer than the text. Before that a share `deleted` of the tokens vanishes unmarked, and
    `rotated` lets the text begin at a random token. The begin and end of a text are not to be among the tokens.
    """
    for name, share in (("rate", rate), ("deleted", deleted)):
        if not 0 <= share < 1:
            raise errors.BadInput(f"{name} is {share}; it must be at least 0 and below 1")
    if not mean_span > 0:
        raise errors.BadInput(f"mean_span is {mean_span}; it must be above 0")
    source = _ids(tokens)
    if sentences is not None and len(sentences) > 1:
        source = _ids(np.concatenate([sentences[i] for i in rng.permutation(len(sentences))]))
    if rotated:
        source = np.roll(source, -int(rng.integers(max(1, len(source)))))
    if deleted:
        source = source[rng.random(len(source)) >= deleted]
    return _infilled(source, rng, round(rate * len(source)), mean_span, mask_id)


def _infilled(
    tokens: np.ndarray, rng: np.random.Generator, noise: int, mean_span: float, mask_id: int
) -> np.ndarray:
    """The tokens without `noise` of them, in spans that leave a mask each, anywhere with even odds."""
    if not noise:
        return tokens
    lengths = np.zeros(0, np.int64)
    while lengths.sum() < noise:
        lengths = np.append(lengths, rng.poisson(mean_span, noise))
    lengths = lengths[: 1 + np.searchsorted(np.cumsum(lengths), noise)]
    lengths[-1] -= lengths.sum() - noise
    empty = np.flatnonzero(lengths == 0)
    lengths = np.delete(lengths, empty[: max(0, len(lengths) - noise)])
    slots = len(tokens) - noise + len(lengths)
    masks = rng.choice(slots, len(lengths), replace=False)
    takes = np.ones(slots, np.int64)
    takes[masks] = lengths
    begins = np.cumsum(takes) - takes
    begins[masks] = 0  # where a mask is put, whichever token is read is not used
    source = tokens[begins]
    source[masks] = mask_id
    return source


def _corrupted(length: int, density: float, mean_span: float) -> tuple[int, int]:
    """The lengths of the source and the target of span corruption, each with its end."""
    noise, spans = span_counts(length, density, mean_span)
    return length - noise + spans + 1, noise + spans + 1


def _parts(total: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` positive numbers with that sum, all such sequences equally likely."""
    cuts = np.sort(rng.choice(total - 1, count - 1, replace=False)) + 1
    return np.diff(cuts, prepend=0, append=total)


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise errors.BadInput(f"{name} is {value}; it must be above 0 and below 1")


def _ids(values: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.asarray(values, np.int32)
