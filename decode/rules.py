"""Which tokens do the lists among the settings forbid, force or favour? The rules of some rows, as arrays.

Texts become tokens here, and ids that the model does not have are refused. What a row does not ask for is an array
that all rows share.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from decode import spelling
from decode.context import Rules
from decode.settings import Settings
from decode.spelling import Vocabulary
from model import LM, errors

Counts = tuple[int, int, int, int]
LEAST: Counts = (
    16,
    16,
    16,
    8,
)  # shapes that hold the usual rules, so that these compile nothing anew

_LISTS = (
    "allowed_token_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_tokens",
    "stop_token_ids",
)
_SINGLES = ("forced_bos_token_id", "forced_eos_token_id")


def counts(lm: LM, settings: Iterable[Settings]) -> Counts:
    """Shapes that hold the rules of all `settings`: first tokens, forced tokens, sequences and their length.

    Powers of two, `LEAST` or more.
    """
    needed: tuple[int, ...] = LEAST
    for s in set(settings):
        sequences = [ids for ids, _ in _sequences(_vocabulary(lm), s)]
        longest = max(map(len, sequences), default=0)
        sizes = (len(s.begin_suppress_tokens), len(_forced(s)), len(sequences), longest)
        needed = tuple(map(max, needed, sizes))
    begin, forced, count, length = (1 << (size - 1).bit_length() for size in needed)
    return begin, forced, count, length


def of(lm: LM, settings: Sequence[Settings], counts: Counts = LEAST) -> Rules:
    """The rules of some rows in the shapes of `counts`, as numpy arrays that may be shared and cannot be written.

    Raises:
        BadInput: when a setting names a token that the model does not have, or no token is left.
    """
    vocabulary = _vocabulary(lm)
    rows = {s: _row(vocabulary, s, counts) for s in set(settings)}
    if len(settings) == 1:
        return rows[settings[0]]
    fields = rows[settings[0]].__dict__
    return Rules(
        **{name: np.concatenate([getattr(rows[s], name) for s in settings]) for name in fields}
    )


def bias(lm: LM, settings: Settings) -> np.ndarray:
    """What is added to each logit of a row, float32 [V]; -inf where a token is not allowed."""
    return _bias(_vocabulary(lm), settings)[0]


def check(lm: LM, settings: Settings) -> None:
    """Refuses rules that the model cannot follow: tokens that it does not have, or none that is left."""
    _row(_vocabulary(lm), settings, counts(lm, [settings]))


# What an encoder's answer depends on, or goes without saying: its labels are the likeliest.
HEEDED = ("top_k", "temperature", "max_new_tokens")


def notes(lm: LM, settings: Iterable[Settings]) -> list[str]:
    """What of some settings has no effect on this model, a line each."""
    if lm.config.family == "encoder_only":
        changed = {name: value for s in settings for name, value in s.changed.items()}
        return [
            f"{name} is {value!r}, and an encoder does not write; of settings it heeds top_k alone"
            for name, value in changed.items()
            if name not in HEEDED
        ]
    size = lm.config.vocab_size
    wide = sorted({s.top_k for s in settings if s.top_k > size})
    return [
        f"top_k is {top_k}, and the vocabulary has {size} tokens; all are kept" for top_k in wide
    ]


def _vocabulary(lm: LM) -> Vocabulary:
    return spelling.of(lm.words, lm.config.vocab_size)


@functools.lru_cache(maxsize=64)
def _row(vocabulary: Vocabulary, s: Settings, counts: Counts) -> Rules:
    """The rules of one row, [1, ...]."""
    for name, token in _named(s):
        _check(name, token, vocabulary.size)
    begin, forced, count, length = counts
    changed = {}
    if s.begin_suppress_tokens:
        changed["begin_BN"] = _padded(s.begin_suppress_tokens, begin)
    if _forced(s):
        changed["forced_BN"] = _padded(_forced(s), forced)
    if s.forced_eos_token_id is not None:
        changed["forced_end_B"] = np.array([s.forced_eos_token_id], np.int32)
    if sequences := _sequences(vocabulary, s):
        tokens_BNL = np.full((1, count, length), -1, np.int32)
        added_BN = np.zeros((1, count), np.float32)
        for place, (ids, value) in enumerate(sequences):
            tokens_BNL[0, place, length - len(ids) :] = ids
            added_BN[0, place] = value
        changed |= {"sequences_BNL": tokens_BNL, "sequence_bias_BN": added_BN}
    if s.dry_multiplier:
        changed["breakers_BV"] = _breakers(vocabulary, s.dry_sequence_breakers)
    for array in changed.values():
        array.flags.writeable = False
    return _none(vocabulary.size, counts).replace(bias_BV=_bias(vocabulary, s), **changed)


@functools.lru_cache(maxsize=16)
def _none(size: int, counts: Counts) -> Rules:
    """Rules of one row that change nothing."""
    begin, forced, count, length = counts
    arrays = dict(
        bias_BV=np.zeros((1, size), np.float32),
        begin_BN=_padded((), begin),
        forced_BN=_padded((), forced),
        forced_end_B=np.full(1, -1, np.int32),
        sequences_BNL=np.full((1, count, length), -1, np.int32),
        sequence_bias_BN=np.zeros((1, count), np.float32),
        breakers_BV=np.zeros((1, size), bool),
    )
    for array in arrays.values():
        array.flags.writeable = False
    return Rules(**arrays)


def _padded(ids: Sequence[int], count: int) -> np.ndarray:
    return np.array([[*ids, *[-1] * (count - len(ids))]], np.int32)


@functools.lru_cache(maxsize=64)
def _bias(vocabulary: Vocabulary, s: Settings) -> np.ndarray:
    """`bias_BV` of one row."""
    if not (s.logit_bias or s.allowed_token_ids or s.suppress_tokens):
        return np.asarray(_none(vocabulary.size, LEAST).bias_BV)
    bias_BV = np.zeros((1, vocabulary.size), np.float32)
    if s.allowed_token_ids:
        bias_BV[:] = -np.inf
        bias_BV[0, list(s.allowed_token_ids)] = 0
    for token, value in s.logit_bias:
        bias_BV[0, token] += value
    bias_BV[0, list(s.suppress_tokens)] = -np.inf
    if not np.isfinite(bias_BV).any():
        raise errors.BadInput(
            "allowed_token_ids, suppress_tokens and logit_bias leave no token; allow at least one"
        )
    bias_BV.flags.writeable = False
    return bias_BV


def _forced(s: Settings) -> tuple[int, ...]:
    """The tokens that a completion begins with."""
    first, tokens = s.forced_bos_token_id, s.forced_tokens
    if first is None:
        return tokens
    if tokens and tokens[0] != first:
        raise errors.BadInput(
            f"forced_bos_token_id is {first}, and forced_tokens begins with {tokens[0]}; give one of them"
        )
    return (first, *tokens[1:])


@functools.lru_cache(maxsize=64)
def _sequences(vocabulary: Vocabulary, s: Settings) -> tuple[tuple[tuple[int, ...], float], ...]:
    """The biased sequences, and the bad words as such of -inf.

    As with Hugging Face a bad word that is nothing but an end token stays allowed.
    """
    eos = () if s.ignore_eos else vocabulary.words.eos_ids
    ends = {(token,) for token in (*eos, *s.stop_token_ids)}
    bad = [ids for word in s.bad_words for ids in _spelled(vocabulary, word) if ids not in ends]
    return (*s.sequence_bias, *((ids, -np.inf) for ids in dict.fromkeys(bad)))


def _spelled(vocabulary: Vocabulary, word: str | tuple[int, ...]) -> list[tuple[int, ...]]:
    """The tokens of a bad word: of a text as it stands, and as it stands behind a space."""
    if not isinstance(word, str):
        return [word]
    forms = [word] if word[0].isspace() else [word, f" {word}"]
    spelled = [tuple(vocabulary.words.encode(form)) for form in forms]
    return [ids for ids in dict.fromkeys(spelled) if ids]


@functools.lru_cache(maxsize=16)
def _breakers(vocabulary: Vocabulary, texts: tuple[str, ...]) -> np.ndarray:
    """Whether the text of each token holds one of `texts`, [1, V]."""
    wanted = [text.encode() for text in texts]
    return np.array(
        [[any(text in raw for text in wanted) for raw in spelling.table(vocabulary)]], bool
    )


def _named(s: Settings) -> Iterator[tuple[str, int]]:
    """Every token id that rules name, with its setting."""
    for name in _LISTS:
        yield from ((name, token) for token in getattr(s, name))
    for name in _SINGLES:
        if getattr(s, name) is not None:
            yield name, getattr(s, name)
    yield from (("logit_bias", token) for token, _ in s.logit_bias)
    yield from (("sequence_bias", token) for ids, _ in s.sequence_bias for token in ids)
    words = (word for word in s.bad_words if not isinstance(word, str))
    yield from (("bad_words", token) for ids in words for token in ids)


def _check(name: str, token: int, size: int) -> None:
    if not 0 <= token < size:
        raise errors.BadInput(f"{name} has token id {token}; this model's are 0 to {size - 1}")
