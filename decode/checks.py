"""Which settings are refused, and in which words? The form of each value, its range, and what contradicts what."""

import json
import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from model import errors

SMALLEST_TEMPERATURE = 1e-30  # logits of a few thousand divided by it still are float32
LARGEST = 3.4e38  # float32 ends a little above
PRESETS = ("hf", "vllm", "llama.cpp", "strict")
CONSTRAINTS = ("regex", "json_schema", "grammar")
Ids = tuple[int, ...]
KINDS: dict[type, tuple[type, str]] = {
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    bool: (bool, "true or false"),
}


def check(settings: Any, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a `Settings`, each in its form; refuses what is out of range."""
    values = {}
    for name, default in defaults.items():
        value = getattr(settings, name)
        if value is not None or default is not None:
            value = (FORMS.get(name) or _plain(type(default)))(name, value)
        if isinstance(value, float) and LARGEST < abs(value) < math.inf:
            raise errors.BadInput(
                f"{name} is {value}; it must be a number of float32, at most {LARGEST}"
            )
        if value is not None and name in RANGES:
            holds, words = RANGES[name]
            if not holds(value):
                raise errors.BadInput(f"{name} is {value}; it must be {words}")
        values[name] = value
    return values


def contradictions(settings: Any) -> None:
    """Refuses settings that cannot be had together."""
    for name, holds, words in CONTRADICTIONS:
        if holds(settings):
            said = words.format(s=settings)
            raise errors.BadInput(f"{name} is {getattr(settings, name)!r}, {said}")


def _plain(kind: type) -> Callable[[str, Any], Any]:
    """A check that a value is of the kind of its default, and the conversion to it."""
    accepted, words = KINDS[kind]

    def convert(name: str, value: Any) -> Any:
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise errors.BadInput(f"{name} is {value!r}; it must be {words}")
        return kind(value)

    return convert


def _id(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or int(value) < 0:
        raise errors.BadInput(f"{name} has {value!r}; a token id is a whole number from 0")
    return int(value)


def _ids(name: str, value: Any) -> Ids:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise errors.BadInput(f"{name} is {value!r}; it must be a list of token ids")
    return tuple(_id(name, v) for v in value)


def _texts(name: str, value: Any) -> tuple[str, ...]:
    listed = (value,) if isinstance(value, str) else value
    texts = tuple(listed) if isinstance(listed, Iterable) else (None,)
    if not all(isinstance(text, str) and text for text in texts):
        raise errors.BadInput(
            f"{name} is {value!r}; it must be a list of texts, none of them empty"
        )
    return texts


def _entries(name: str, value: Any) -> list[tuple[Any, float]]:
    """A mapping, or pairs, with numbers as values."""
    entries = value.items() if isinstance(value, Mapping) else value
    try:
        pairs = [(key, float(number)) for key, number in entries]
    except (TypeError, ValueError) as error:
        raise errors.BadInput(f"{name} is {value!r}; it must map tokens to numbers") from error
    if not all(number == -math.inf or abs(number) <= LARGEST for _, number in pairs):
        raise errors.BadInput(
            f"{name} is {value!r}; a bias must be a number of float32, at most {LARGEST}, or -inf"
        )
    return pairs


def _bias(name: str, value: Any) -> tuple[tuple[int, float], ...]:
    """Sorted pairs; JSON's keys are texts."""
    pairs = {
        _id(name, int(key) if isinstance(key, str) and key.isdigit() else key): number
        for key, number in _entries(name, value)
    }
    return tuple(sorted(pairs.items()))


def _sequences(name: str, value: Any) -> tuple[tuple[Ids, float], ...]:
    pairs = tuple((_ids(name, key), number) for key, number in _entries(name, value))
    if any(not ids for ids, _ in pairs):
        raise errors.BadInput(f"{name} is {value!r}; a sequence needs at least one token")
    return pairs


def _words(name: str, value: Any) -> tuple[str | Ids, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable) or not all(value := tuple(value)):
        raise errors.BadInput(f"{name} is {value!r}; it must be a list of texts or lists of tokens")
    return tuple(word if isinstance(word, str) else _ids(name, word) for word in value)


def _text_or_ids(name: str, value: Any) -> str | Ids:
    return value if isinstance(value, str) else _ids(name, value)


def _layers(name: str, value: Any) -> str | Ids:
    if isinstance(value, str):
        if value not in ("low", "high"):
            raise errors.BadInput(
                f'{name} is {value!r}; it must be "low", "high" or a list of layers'
            )
        return value
    whole = isinstance(value, Iterable) and (value := tuple(value))
    if not whole or not all(isinstance(x, numbers.Integral) and int(x) >= 0 for x in value):
        raise errors.BadInput(f"{name} is {value!r}; layers are whole numbers from 0")
    return tuple(int(x) for x in value)


def _schema(name: str, value: Any) -> str:
    """A JSON schema as text, or as the object that it is."""
    return json.dumps(value) if isinstance(value, Mapping | bool) else _text(name, value)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise errors.BadInput(f"{name} is {value!r}; it must be text")
    return value


def _decay(name: str, value: Any) -> tuple[int, float]:
    try:
        start, factor = value
        if int(start) != start or start < 0 or not 0 < float(factor) < math.inf:
            raise ValueError
    except (TypeError, ValueError) as error:
        raise errors.BadInput(
            f"{name} is {value!r}; it must be a number of tokens and a factor above 0, such as [30, 1.05]"
        ) from error
    return int(start), float(factor)


def _early(name: str, value: Any) -> bool | str:
    if value is not True and value is not False and value != "never":
        raise errors.BadInput(f'{name} is {value!r}; it must be true, false or "never"')
    return value


def _choice(*known: str) -> Callable[[str, Any], str]:
    def convert(name: str, value: Any) -> str:
        if value not in known:
            hint = errors.nearest(str(value), known)
            raise errors.BadInput(
                f"{name} is {value!r}{hint}; it must be one of {', '.join(known)}"
            )
        return value

    return convert


FORMS: dict[str, Callable[[str, Any], Any]] = {
    "dry_sequence_breakers": _texts,
    "logit_bias": _bias,
    "sequence_bias": _sequences,
    "bad_words": _words,
    "allowed_token_ids": _ids,
    "suppress_tokens": _ids,
    "begin_suppress_tokens": _ids,
    "forced_bos_token_id": _id,
    "forced_tokens": _ids,
    "forced_eos_token_id": _id,
    "exponential_decay_length_penalty": _decay,
    "stop": _texts,
    "stop_token_ids": _ids,
    "do_sample": _plain(bool),
    "length_rule": _choice("hf", "t5"),
    "early_stopping": _early,
    "dola_layers": _layers,
    "negative_prompt": _text_or_ids,
    "regex": _text,
    "json_schema": _schema,
    "grammar": _text,
    "preset": _choice(*PRESETS),
}


def _from(least: int) -> tuple[Callable[[Any], bool], str]:
    return lambda x: least <= x < 2**31, f"at least {least} and below 2^31"


def _fraction(rest: str) -> tuple[Callable[[Any], bool], str]:
    return lambda x: 0 <= x < 1, f"at least 0 and below 1; {rest}"


_PENALTY = (lambda x: 0 < x < math.inf, "above 0; 1 changes nothing")
_FINITE = (math.isfinite, "a finite number; 0 changes nothing")
_NOT_NEGATIVE = (lambda x: 0 <= x < math.inf, "at least 0, which is off")
RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_new_tokens": _from(1),
    "min_new_tokens": _from(0),
    "temperature": (
        lambda x: x == 0 or SMALLEST_TEMPERATURE <= x < math.inf,
        f"0, which is greedy, or above (at least {SMALLEST_TEMPERATURE})",
    ),
    "dynatemp_range": _NOT_NEGATIVE,
    "dynatemp_exponent": (lambda x: 0 < x < math.inf, "above 0"),
    "top_k": _from(0),
    "top_p": (lambda x: 0 < x <= 1, "above 0 and at most 1, which keeps all tokens"),
    "min_p": (lambda x: 0 <= x <= 1, "from 0, which keeps all tokens, to 1"),
    "typical_p": (lambda x: 0 < x <= 1, "above 0 and at most 1, which keeps all tokens"),
    "epsilon_cutoff": _fraction("0 keeps all tokens"),
    "eta_cutoff": _fraction("0 keeps all tokens"),
    "top_n_sigma": _NOT_NEGATIVE,
    "top_h": (lambda x: 0 <= x <= 1, "from 0, which is off, to 1"),
    "xtc_probability": (lambda x: 0 <= x <= 1, "from 0, which is off, to 1"),
    "xtc_threshold": (lambda x: 0 <= x <= 1, "from 0 to 1; above 0.5 it is off"),
    "mirostat": (lambda x: x in (0, 2), "0, which is off, or 2"),
    "mirostat_tau": (lambda x: 0 <= x < math.inf, "at least 0 bits"),
    "mirostat_eta": (lambda x: 0 <= x < math.inf, "at least 0"),
    "repetition_penalty": _PENALTY,
    "presence_penalty": _FINITE,
    "frequency_penalty": _FINITE,
    "penalty_last_n": (lambda x: -1 <= x < 2**31, "-1, which is all, or a number of tokens"),
    "encoder_repetition_penalty": _PENALTY,
    "dry_multiplier": _NOT_NEGATIVE,
    "dry_base": (lambda x: 1 <= x < math.inf, "at least 1"),
    "dry_allowed_length": _from(1),
    "dry_penalty_last_n": (lambda x: -1 <= x < 2**31, "-1, which is all, or a number of tokens"),
    "no_repeat_ngram_size": _from(0),
    "encoder_no_repeat_ngram_size": _from(0),
    "n": _from(1),
    "best_of": _from(0),
    "num_beams": _from(1),
    "length_penalty": (math.isfinite, "a finite number"),
    "num_beam_groups": _from(1),
    "diversity_penalty": _NOT_NEGATIVE,
    "penalty_alpha": (lambda x: 0 <= x <= 1, "from 0, which is off, to 1"),
    "guidance_scale": (math.isfinite, "a finite number; 1 is off"),
    "contrastive_beta": _NOT_NEGATIVE,
    "contrastive_alpha": (lambda x: 0 < x <= 1, "above 0 and at most 1"),
    "num_assistant_tokens": (lambda x: 0 <= x < 64, "from 0, which is off, to 63"),
    "prompt_lookup_num_tokens": (lambda x: 0 <= x < 64, "from 0, which is off, to 63"),
    "max_matching_ngram_size": (lambda x: 1 <= x <= 16, "from 1 to 16"),
}


def _guides(s: Any) -> int:
    return (s.guidance_scale != 1) + (s.contrastive_beta > 0) + (s.dola_layers is not None)


def _searches(s: Any) -> bool:
    return s.num_beams > 1 or s.penalty_alpha > 0


# Of each: the setting that is named, when it contradicts, and what it contradicts with the remedy.
CONTRADICTIONS: tuple[tuple[str, Callable[[Any], Any], str], ...] = (
    (
        "min_new_tokens",
        lambda s: s.min_new_tokens > s.max_new_tokens,
        "above max_new_tokens; lower one or raise the other",
    ),
    (
        "best_of",
        lambda s: s.best_of and s.best_of < s.n,
        "below n, which is {s.n}; raise it",
    ),
    (
        "best_of",
        lambda s: s.best_of and (_searches(s) or not s.drawn),
        "and nothing is drawn freely, so all would be equal; leave it out",
    ),
    (
        "do_sample",
        lambda s: s.do_sample and (s.temperature == 0 or s.penalty_alpha),
        "with a temperature of 0 or contrastive search, which draw nothing; leave it out",
    ),
    (
        "num_beams",
        lambda s: s.num_beams > 1 and s.n > s.num_beams,
        "below n, which is {s.n}; raise it",
    ),
    (
        "num_beams",
        lambda s: s.num_beams > 1 and s.penalty_alpha,
        "beside contrastive search (penalty_alpha); choose one",
    ),
    (
        "num_beam_groups",
        lambda s: s.num_beams % s.num_beam_groups,
        "which does not divide num_beams; choose a divisor",
    ),
    (
        "num_beam_groups",
        lambda s: s.num_beam_groups > 1 and s.drawn,
        "and diverse beams are not drawn; leave do_sample out",
    ),
    (
        "diversity_penalty",
        lambda s: s.diversity_penalty and s.num_beam_groups == 1,
        "and there is one group of beams; set num_beam_groups",
    ),
    (
        "xtc_probability",
        lambda s: s.xtc_probability and _searches(s),
        "and XTC is for drawing freely, not for beams or contrastive search; choose one",
    ),
    (
        "mirostat",
        lambda s: s.mirostat and (_searches(s) or s.drafts),
        "and mirostat steers one token after the other, without beams, contrastive search or drafts; choose one",
    ),
    (
        "penalty_alpha",
        lambda s: s.penalty_alpha and s.top_k < 2,
        "and contrastive search chooses among top_k tokens; set top_k to at least 2, such as 4",
    ),
    (
        "penalty_alpha",
        lambda s: s.penalty_alpha and s.n > 1,
        "and contrastive search gives one completion; leave n at 1",
    ),
    (
        "num_assistant_tokens",
        lambda s: s.num_assistant_tokens and s.prompt_lookup_num_tokens,
        "beside prompt_lookup_num_tokens; choose one",
    ),
    *(
        (
            name,
            lambda s, name=name: getattr(s, name) and (_searches(s) or s.constrained),
            "and drafts go with plain decoding, not with beams, contrastive search or a constraint; leave it out",
        )
        for name in ("num_assistant_tokens", "prompt_lookup_num_tokens")
    ),
    *(
        (
            name,
            lambda s, name=name: (
                getattr(s, name) is not None
                and (_searches(s) or sum(getattr(s, c) is not None for c in CONSTRAINTS) > 1)
            ),
            "and a constraint stands alone, without another one, beams or contrastive search; choose one",
        )
        for name in CONSTRAINTS
    ),
    *(
        (
            name,
            lambda s, name=name: getattr(s, name) not in (None, ()) and s.constrained,
            "and a constraint says what must come; leave one of them out",
        )
        for name in ("forced_bos_token_id", "forced_tokens", "forced_eos_token_id")
    ),
    (
        "stop",
        lambda s: s.stop and s.num_beams > 1,
        "and beams end at tokens, not at texts; use stop_token_ids",
    ),
    (
        "penalty_alpha",
        lambda s: s.penalty_alpha and _guides(s),
        "beside guidance_scale, contrastive_beta or dola_layers; choose one",
    ),
    (
        "guidance_scale",
        lambda s: _guides(s) > 1,
        "and guidance, contrastive_beta and dola_layers exclude each other; choose one",
    ),
    (
        "negative_prompt",
        lambda s: s.negative_prompt is not None and s.guidance_scale == 1,
        "and guidance_scale is 1, which ignores it; set guidance_scale, such as 1.5",
    ),
)
