"""How likely are given texts behind given prompts, and which answer does that, or what a model writes, amount to?

Likelihoods are those of evaluation (`evaluate.make_eval_step`), over rows that few lengths pad.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from decode import batch, jobs
from model import LM, errors, sharding, tokenizer
from model.tokenizer import Tokenizer
from train import evaluate, rows, step

SHORTEST = 32  # tokens of a row; longer rows hold twice as many each, up to the window
Told = Callable[[int, int], Any]


class Pair(NamedTuple):
    """What is given, and what is predicted behind it: token ids."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


class Likelihood(NamedTuple):
    """Of a continuation: its log-probability in nats, whether greedy decoding would write it, and its tokens."""

    logprob: float
    greedy: bool
    tokens: int


@dataclasses.dataclass(frozen=True)
class Reader:
    """A model that reads, and says how likely what it reads is.

    Attributes:
        rows: that run at once; a few more where they do not divide among the devices.
    """

    lm: LM
    rows: int = batch.BATCH_SIZE

    def __post_init__(self) -> None:
        if self.lm.config.family == "encoder_only":
            raise errors.BadInput(
                "the model is an encoder_only model, which gives no text a likelihood; prompt a decoder_only, "
                "encoder_decoder or recurrent one"
            )

    def likelihoods(
        self, pairs: Sequence[Pair], told: Told = lambda done, total: None
    ) -> list[Likelihood]:
        """Of each pair, in their order; equal ones are computed once.

        Rows are sorted by length and then by their ids, so the order of the pairs changes nothing.

        Args:
            told: is called with the pairs done and the pairs in all.

        Raises:
            BadInput: when a pair is longer than the window.
        """
        found = {pair: Likelihood(0.0, True, 0) for pair in set(pairs)}
        todo = sorted(
            (pair for pair in found if pair.continuation),
            key=lambda pair: (self._sizes(pair), pair),
            reverse=True,
        )
        done = 0
        while done < len(todo):
            sizes = self._sizes(todo[done])
            part = [pair for pair in todo[done : done + self._count] if self._sizes(pair) == sizes]
            for pair, likelihood in zip(part, self._measured(part, sizes), strict=True):
                found[pair] = likelihood
            done += len(part)
            told(done, len(todo))
        return [found[pair] for pair in pairs]

    def _sizes(self, pair: Pair) -> tuple[int, ...]:
        """The lengths of the rows that hold a pair."""
        window = self.lm.config.context_length
        lengths = [len(pair.context), len(pair.continuation)]
        if self.lm.config.family != "encoder_decoder":
            lengths = [sum(lengths) - 1]
        if max(lengths) > window:
            raise errors.BadInput(
                f"a prompt of {len(pair.context)} tokens and its answer of {len(pair.continuation)} are more than the "
                f"window of {window}; shorten the prompt"
            )
        return tuple(jobs.bucket(length, SHORTEST, window) for length in lengths)

    def _measured(self, pairs: Sequence[Pair], sizes: tuple[int, ...]) -> list[Likelihood]:
        separate = self.lm.config.family == "encoder_decoder"
        arrays = (
            _targets(pairs, self._count, sizes) if separate else _rows(pairs, self._count, sizes)
        )
        if separate:
            arrays["tokens"][: len(pairs), 0] = rows.start_id(self.lm.words)
        if self.lm.prefix:
            arrays["prefix"] = np.zeros_like(arrays["tokens"])
            for i, pair in enumerate(pairs):
                arrays["prefix"][i, : len(pair.context)] = 1
        eval_step, params, mesh = self._compiled
        nats_B, right_B, weights_B = jax.device_get(eval_step(params, step.put_batch(arrays, mesh)))
        return [
            Likelihood(-float(nats_B[i]), bool(right_B[i] == weights_B[i]), len(pair.continuation))
            for i, pair in enumerate(pairs)
        ]

    @property
    def _count(self) -> int:
        devices = self._compiled[2].size
        return -(-self.rows // devices) * devices

    @functools.cached_property
    def _compiled(self) -> tuple[evaluate.EvalStep, Any, jax.sharding.Mesh]:
        mesh = sharding.make_mesh()
        params = jax.device_put(self.lm.params, sharding.replicated(mesh))
        return evaluate.make_eval_step(self.lm.net, mesh), params, mesh


def _rows(pairs: Sequence[Pair], count: int, sizes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Each pair in a row of its own, weighted where it is predicted."""
    arrays = _empty(count, sizes[0])
    for i, (context, continuation) in enumerate(pairs):
        ids = [*context, *continuation]
        last = len(ids) - 1
        arrays["tokens"][i, :last] = ids[:-1]
        arrays["targets"][i, :last] = ids[1:]
        arrays["segments"][i, :last] = 1
        arrays["weights"][i, len(context) - 1 : last] = 1
    return arrays


def _targets(pairs: Sequence[Pair], count: int, sizes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Sources, and the targets that are predicted; what these begin with is put in by the caller."""
    arrays = _empty(count, sizes[1])
    for name in ("source", "source_segments"):
        arrays[name] = np.zeros((count, sizes[0]), np.int32)
    for i, (context, continuation) in enumerate(pairs):
        arrays["source"][i, : len(context)] = context
        arrays["source_segments"][i, : len(context)] = 1
        last = len(continuation)
        arrays["tokens"][i, 1:last] = continuation[:-1]
        arrays["targets"][i, :last] = continuation
        arrays["segments"][i, :last] = 1
        arrays["weights"][i, :last] = 1
    return arrays


def _empty(count: int, length: int) -> dict[str, np.ndarray]:
    arrays = {
        name: np.zeros((count, length), np.int32) for name in ("tokens", "targets", "segments")
    }
    return {**arrays, "weights": np.zeros((count, length), np.float32)}


def pairs(lm: LM, context: str, continuations: Sequence[str], *, ended: bool = False) -> list[Pair]:
    """What is given and what is predicted where texts go on a text.

    Left to right a text and its continuation are encoded as one, as a person would have typed them, and cut where the
    tokens cease to be those of the text alone: at the same place for all continuations, so that their likelihoods are
    of the same event. The target of an encoder-decoder stands alone, and is `ended` if asked.
    """
    words = lm.words
    virtual = tuple(lm.config.vocab_size + i for i in range(lm.virtual_tokens))
    given = tokenizer.prompt_ids(words, context)
    if lm.config.family == "encoder_decoder" or words.suffix_ids:
        end = [tokenizer.end_id(words)] if ended and lm.config.family == "encoder_decoder" else []
        return [Pair((*virtual, *given), (*ids, *end)) for ids in words.encode_batch(continuations)]
    wholes = [
        [*words.prefix_ids, *ids]
        for ids in words.encode_batch([context + text for text in continuations])
    ]
    cut = min(_common(given, whole) for whole in wholes)
    begin = (*virtual, *(() if cut else (begin_id(words),)))
    return [Pair((*begin, *whole[:cut]), (*whole[cut:],)) for whole in wholes]


def begin_id(words: Tokenizer) -> int:
    """What stands before a text of which nothing is given: its begin, or the end of the one before."""
    return tokenizer.end_id(words) if words.bos_id is None else words.bos_id


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two lists begin with together."""
    alike = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(alike, min(len(one), len(other)))


def per(length: str, text: str, found: Likelihood) -> float:
    """A log-likelihood divided by what `length` says."""
    sizes = {
        "sum": 1,
        "token": found.tokens,
        "character": len(text),
        "byte": len(text.encode()),
    }
    return found.logprob / sizes[length]


def calibrated(scores_NC: np.ndarray, blank_NMC: np.ndarray) -> np.ndarray:
    """Scores with what blank prompts prefer taken out: minus the log of their mean probabilities, [N, C].

    The likeliest label of Zhao et al. 2021 ("Calibrate Before Use", section 5: W = diag(p)^-1, b = 0), and with one
    blank prompt that is the premise of Holtzman et al. 2021 ("Surface Form Competition", PMI_DC, equation 3).

    Args:
        scores_NC: log-likelihoods of C labels behind N prompts.
        blank_NMC: the same behind the M blank prompts of each.
    """
    probabilities_NMC = np.exp(blank_NMC - blank_NMC.max(axis=-1, keepdims=True))
    probabilities_NMC /= probabilities_NMC.sum(axis=-1, keepdims=True)
    return scores_NC - np.log(np.maximum(probabilities_NMC.mean(axis=1), 1e-300))


def matched(text: str, labels: Mapping[str, str]) -> str | None:
    """The label whose text a generated one begins with, as whole words; case, blanks and full stops aside.

    Where one label's text begins another's the longer counts. None where it is none of them.
    """
    said = _normal(text)
    found = [
        (len(wanted), label)
        for label, wanted in ((label, _normal(name)) for label, name in labels.items())
        if wanted and re.match(re.escape(wanted) + r"(?!\w)", said)
    ]
    return max(found)[1] if found else None


def _normal(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .,;:!?\"'")
