"""What goes in, and what comes out? Requests and completions."""

import dataclasses
import numbers
from collections.abc import Iterable, Sequence
from typing import Any

from decode.settings import Settings
from model import errors

BATCH_SIZE = 8


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt to continue.

    Attributes:
        prompt: text, which the model's tokenizer encodes behind its begin-of-text token; or token ids, taken as
            they are. A model's soft prompt stands before either.
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
        sample: 0 to n - 1, or of `best_of` tries the number of this one; of beams its place, the best first.
        prompt_tokens: what the model was given.
        tokens: what it continued with, the end-of-sequence token included.
        text: the tokens in letters, without the end-of-sequence token, and up to where a stop string begins.
        finish_reason: "stop" at an end-of-sequence token or a stop string or where a grammar is complete, "length" at
            the cap or the end of the context window, "failed" where nothing was allowed to follow.
        logprobs: the model's own, one per token, before temperature and filters.
        sampled_logprobs: of the distribution that was drawn from; 0 where the choice was greedy.
        margins: by how much each token won, noise included: a difference smaller than this, in anything that was
            computed before it, could not have changed the token. Infinite where nothing else was kept.
        stopped_by: the end token or stop string.
        score: of a beam, as its length rule makes it; of the best of several, the sum of log-probabilities.
        entropies, kept_masses, ranks, kept_counts: on request (`likelihood`), one per token: of the model's
            distribution the entropy in nats, the mass and number of tokens that filters kept, and the token's rank.
        prompt_logprobs: on request, of the prompt's tokens but the first.
        error: why it failed.
        places: of an encoder's answer, where in the prompt's tokens it was asked: at a text's first token, at the first
            of each word (-1 is a word without any), or at each mask. Its `tokens` are what it says there, numbers of
            labels or ids of pieces; `logprobs` and `margins` are theirs, and `text` is all of it for people.
        labels, label_logprobs: for each place the names of labels or pieces, the likeliest first, and how likely.
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
    stopped_by: str | int | None = None
    score: float | None = None
    entropies: tuple[float, ...] | None = None
    kept_masses: tuple[float, ...] | None = None
    ranks: tuple[int, ...] | None = None
    kept_counts: tuple[int, ...] | None = None
    prompt_logprobs: tuple[float, ...] | None = None
    error: str | None = None
    places: tuple[int, ...] | None = None
    labels: tuple[tuple[str, ...], ...] | None = None
    label_logprobs: tuple[tuple[float, ...], ...] | None = None


def check_batch_size(batch_size: int) -> None:
    """Refuses what is no number of rows."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise errors.BadInput(
            f"batch_size is {batch_size!r}; it must be a whole number of at least 1"
        )


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
