"""Are two decodings the same to the bit, and where do they first part? A near tie is told from a bug.

Two machines round differently, so their scores differ by some noise. Where the winner's margin is of the
size of that noise the machines may draw different tokens, and everything behind such a place differs.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from decode.requests import Completion, Request

NUMBERS = ("logprobs", "sampled_logprobs", "margins")
ON_REQUEST = ("entropies", "kept_masses", "ranks", "kept_counts")
ANSWERS = ("places", "labels", "label_logprobs")
WHOLE = (
    *("text", "finish_reason", "stopped_by", "score", "prompt_logprobs", "error"),
    *ON_REQUEST,
    *ANSWERS,
)
LEAST_NOISE = 1e-6  # of float32 logits; two runs may agree by luck before they part
GENEROUS = 16  # a margin of so many times the noise that was seen still counts as a near tie


@dataclasses.dataclass(frozen=True)
class Divergence:
    """A place where two decodings part.

    Attributes:
        id, sample: of the completion.
        index: of the token in the completion; None for what belongs to no token.
        what: the field of the completion that differs.
        expected, got: its values; None beyond the end of a completion.
        margin: by how much the expected token had won.
    """

    id: str | int
    sample: int
    index: int | None
    what: str
    expected: Any
    got: Any
    margin: float | None = None


@dataclasses.dataclass(frozen=True)
class Report:
    """What a replay found.

    Attributes:
        completions, tokens: how many there should be.
        differing: completions with any difference.
        differing_tokens: completions with different tokens.
        first: the first difference of any kind; None when all bits are equal.
        first_token: the first different token.
        noise: the largest difference between log-probabilities before tokens part.
        near_tie: whether the first different token had won by no more than such noise may decide.
        environment: what is not as it was, a line each.
        unit: what tokens are: of an encoder its answers.
    """

    completions: int
    tokens: int
    differing: int
    differing_tokens: int
    first: Divergence | None
    first_token: Divergence | None
    noise: float
    near_tie: bool
    environment: tuple[str, ...]
    unit: str = "tokens"

    @property
    def identical(self) -> bool:
        """Whether every token, text and number is the same, bit for bit."""
        return self.first is None

    def __str__(self) -> str:
        changed = [f"  {line}" for line in self.environment]
        if self.first is None:
            said = f"identical: {self.completions} completions, {self.tokens} {self.unit}, every number to the bit"
            return "\n".join([said, *(["although", *changed] if changed else [])])
        said = f"different: {_place(self.first)}: {_values(self.first)}"
        lines = [
            f"  {self.differing} of {self.completions} completions differ, {self.differing_tokens} in their tokens"
        ]
        if self.first_token is None:
            lines.append(
                f"  all tokens are equal; log-probabilities differ by up to {self.noise:.2g}"
            )
        else:
            if self.first_token != self.first:
                lines.append(
                    f"  the first different token is {_place(self.first_token)}: {_values(self.first_token)}"
                )
            verdict = (
                "a near tie"
                if self.near_tie
                else "no near tie: something else than rounding has changed"
            )
            margin = (
                ""
                if self.first_token.margin is None
                else f"it had won by {self.first_token.margin:.2g}, and "
            )
            lines.append(
                f"  {margin}log-probabilities before it differ by up to {self.noise:.2g}: {verdict}"
            )
        return "\n".join([said, *lines, *changed])


def compare(
    expected: Sequence[Completion],
    got: Sequence[Completion],
    requests: Sequence[Request],
    environment: Sequence[str],
) -> Report:
    """Compares each expected completion with the one of the same request and sample."""
    temperature = {request.id: request.settings.temperature for request in requests}
    ours = {(done.id, done.sample): done for done in got}
    pairs = [(done, ours[done.id, done.sample]) for done in expected]
    every = [found for a, b in pairs if (found := _first(a, b))]
    tokens = [found for a, b in pairs if (found := _first_token(a, b))]
    noise = max((_noise(a, b) for a, b in pairs), default=0.0)
    near_tie = False
    if tokens and tokens[0].margin is not None:
        scale = min(1.0, temperature[tokens[0].id] or 1.0)  # a low temperature magnifies noise
        near_tie = tokens[0].margin * scale <= GENEROUS * max(noise, LEAST_NOISE)
    return Report(
        completions=len(expected),
        tokens=sum(len(done.tokens) for done in expected),
        differing=len(every),
        differing_tokens=len(tokens),
        first=every[0] if every else None,
        first_token=tokens[0] if tokens else None,
        noise=noise,
        near_tie=near_tie,
        environment=tuple(environment),
        unit="tokens" if all(done.places is None for done in expected) else "answers",
    )


def _first(a: Completion, b: Completion) -> Divergence | None:
    """The first difference: in what the model was given, then token by token, then in what follows from tokens."""
    if a.prompt_tokens != b.prompt_tokens:
        return Divergence(a.id, a.sample, None, "prompt_tokens", a.prompt_tokens, b.prompt_tokens)
    for index in range(min(len(a.tokens), len(b.tokens))):
        for what in ("tokens", *NUMBERS):
            x, y = getattr(a, what)[index], getattr(b, what)[index]
            if x != y:
                return Divergence(a.id, a.sample, index, what, x, y, a.margins[index])
    if longer := _first_token(a, b):
        return longer
    for what in WHOLE:
        x, y = getattr(a, what), getattr(b, what)
        if x != y:
            return Divergence(a.id, a.sample, None, what, x, y)
    return None


def _same_tokens(a: Completion, b: Completion) -> int:
    """How many tokens two completions begin with in common."""
    count = 0
    for x, y in zip(a.tokens, b.tokens, strict=False):
        if x != y:
            break
        count += 1
    return count


def _first_token(a: Completion, b: Completion) -> Divergence | None:
    if a.tokens == b.tokens:
        return None
    index = _same_tokens(a, b)
    x, y = (done.tokens[index] if index < len(done.tokens) else None for done in (a, b))
    margin = a.margins[index] if index < len(a.margins) else None
    return Divergence(a.id, a.sample, index, "tokens", x, y, margin)


def _noise(a: Completion, b: Completion) -> float:
    """The largest difference between log-probabilities while the tokens are the same."""
    if a.prompt_tokens != b.prompt_tokens:
        return 0.0
    count = _same_tokens(a, b)
    pairs = zip(a.logprobs[:count], b.logprobs[:count], strict=True)
    return max((abs(x - y) for x, y in pairs), default=0.0)


def _place(found: Divergence) -> str:
    where = "" if found.index is None else f", token {found.index}"
    return f"completion {found.id!r}, sample {found.sample}{where}"


def _values(found: Divergence) -> str:
    name = {
        "tokens": "id",
        "logprobs": "log-probability",
        "sampled_logprobs": "sampled log-probability",
    }
    what = name.get(found.what, found.what.replace("_", " ").removesuffix("s"))
    values = ["nothing" if value is None else repr(value) for value in (found.expected, found.got)]
    return f"{what} {values[0]} expected, {values[1]} got"
