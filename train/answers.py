"""How does a person read what an encoder says? Lines of a table: what it answers, and what of."""

import math

import decode
from decode.requests import Completion

SHOWN = 12  # labels of a place


def lines(kind: str, prompt: str, done: Completion) -> list[tuple[str, str]]:
    """Pairs of an answer and what it is of: by the kind of head a text's label, the tag of each word, or each mask."""
    if done.error is not None or not done.labels or not done.label_logprobs:
        return [("failed", prompt)]
    ranked = [
        likely(names, logprobs)
        for names, logprobs in zip(done.labels, done.label_logprobs, strict=True)
    ]
    if kind == "sequence":
        return [(done.text, f"{prompt}\n{ranked[0]}")]
    if kind == "lm":
        masks = [(f"mask {i}", chances) for i, chances in enumerate(ranked, start=1)]
        return [("filled", done.text), *masks]
    words, best = prompt.split(), [names[0] for names in done.labels]
    found = decode.entities(best)
    spans = [f"{name}: {' '.join(words[i:j])} (words {i + 1} to {j})" for name, i, j in found]
    told = zip(best, words, ranked, strict=True)
    return [
        ("entities", "\n".join(spans) or "none"),
        *((name, f"{word}  {chances}") for name, word, chances in told),
    ]


def likely(names: tuple[str, ...], logprobs: tuple[float, ...]) -> str:
    """Labels with their probabilities: `sun 93.1%  moon 5.0%`."""
    pairs = [
        f"{name} {math.exp(logprob):.1%}" for name, logprob in zip(names, logprobs, strict=True)
    ]
    return "  ".join(pairs[:SHOWN]) + ("  …" if len(pairs) > SHOWN else "")
