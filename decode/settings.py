"""What can a person ask for, and what do they get? Settings, requests and completions."""

import dataclasses
import math
import numbers
from collections.abc import Iterable, Sequence
from typing import Any

from model import errors

KINDS: dict[Any, tuple[type, str]] = {
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
}
SMALLEST_TEMPERATURE = 1e-30  # logits of a few thousand divided by it still are float32


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a prompt is continued. The defaults sample from the model's own distribution, nothing filtered.

    Attributes:
        max_new_tokens: a cap; an end-of-sequence token, or the end of the context window, comes sooner.
        temperature: divides the logits; 0 is greedy, and then nothing is filtered or drawn.
        top_k: keeps the k most likely tokens, and those that tie with the last of them; 0 keeps all.
        top_p: keeps the smallest set of most likely tokens whose mass reaches p; 1 keeps all.
        n: completions of the same prompt; fewer of them are the first of more.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    n: int = 1

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            convert: Any = type(field.default)
            kind, wanted = KINDS[convert]
            if not isinstance(value, kind) or isinstance(value, bool):
                raise errors.BadInput(f"{field.name} is {value!r}; it must be {wanted}")
            object.__setattr__(self, field.name, convert(value))
        for name, least in (("max_new_tokens", 1), ("top_k", 0), ("n", 1)):
            value = getattr(self, name)
            if not least <= value < 2**31:
                raise errors.BadInput(
                    f"{name} is {value}; it must be at least {least} and below 2^31"
                )
        heat, p = self.temperature, self.top_p
        if not (heat == 0 or SMALLEST_TEMPERATURE <= heat < math.inf):
            raise errors.BadInput(
                f"temperature is {heat}; it must be 0, which is greedy, or above (at least {SMALLEST_TEMPERATURE})"
            )
        if not 0 < p <= 1:
            raise errors.BadInput(
                f"top_p is {p}; it must be above 0 and at most 1, which keeps all tokens"
            )


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt to continue.

    Attributes:
        prompt: text, which the model's tokenizer encodes behind its begin-of-text token; or token ids, taken as
            they are.
        settings: how to continue it.
        id: names the request, and is part of its random numbers; without one it is its place in the list.
            The number 7 and the text "7" are the same id.
    """

    prompt: str | Sequence[int]
    settings: Settings = Settings()
    id: str | int | None = None

    def __post_init__(self) -> None:
        name = "a request" if self.id is None else f"request {self.id!r}"
        if not isinstance(self.id, str | numbers.Integral | None) or isinstance(self.id, bool):
            raise errors.BadInput(f"{name}: an id must be text or a whole number")
        if isinstance(self.id, numbers.Integral):
            object.__setattr__(self, "id", int(self.id))
        elif self.id and any("\ud800" <= letter <= "\udfff" for letter in self.id):
            raise errors.BadInput(f"{name}: an id must be Unicode text; remove the lone surrogate")
        if not isinstance(self.settings, Settings):
            raise errors.BadInput(f"{name} has settings {self.settings!r}; they must be a Settings")
        if isinstance(self.prompt, str):
            return
        ids = list(self.prompt) if isinstance(self.prompt, Iterable) else [None]
        if not all(isinstance(i, numbers.Integral) and not isinstance(i, bool) for i in ids):
            raise errors.BadInput(
                f"{name} has prompt {self.prompt!r}; it must be text or a list of token ids"
            )
        object.__setattr__(self, "prompt", tuple(int(i) for i in ids))


@dataclasses.dataclass(frozen=True)
class Completion:
    """What became of one sample of a request.

    Attributes:
        id: of the request.
        sample: 0 to n - 1.
        prompt_tokens: what the model was given.
        tokens: what it continued with, the end-of-sequence token included.
        text: the tokens in letters, without the end-of-sequence token.
        finish_reason: "stop" at an end-of-sequence token, "length" at the cap or the end of the context window.
        logprobs: the model's own, one per token, before temperature and filters.
        sampled_logprobs: of the distribution that was drawn from; 0 where the choice was greedy.
        margins: by how much each token won, noise included: a difference smaller than this, in anything that was
            computed before it, could not have changed the token. Infinite where nothing else was kept.
    """

    id: str | int
    sample: int
    prompt_tokens: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str
    finish_reason: str
    logprobs: tuple[float, ...]
    sampled_logprobs: tuple[float, ...]
    margins: tuple[float, ...]


def requests(prompts: Iterable[Any], settings: Settings | None = None) -> list[Request]:
    """The requests that `generate` makes of prompts: each with an id, no id twice.

    Prompts that already are requests keep their settings, so `settings` beside nothing but requests is refused.
    """
    if isinstance(prompts, str | Request):
        raise errors.BadInput(f"the prompts are one {type(prompts).__name__}; put it in a list")
    made, seen = [], set()
    prompts = list(prompts)
    if settings is not None and prompts and all(isinstance(p, Request) for p in prompts):
        raise errors.BadInput(
            "settings stand beside requests, which carry their own; give one or the other"
        )
    for place, prompt in enumerate(prompts):
        request = prompt if isinstance(prompt, Request) else Request(prompt, settings or Settings())
        if request.id is None:
            request = dataclasses.replace(request, id=place)
        if str(request.id) in seen:
            raise errors.BadInput(
                f"request id {str(request.id)!r} occurs twice; give each request its own"
            )
        seen.add(str(request.id))
        made.append(request)
    return made
