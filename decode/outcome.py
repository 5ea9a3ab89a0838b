"""What has become of a row? Its tokens and records as the host reads them, its text as it comes, its completion."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from decode import beam, stopping
from decode.jobs import Job
from decode.requests import Completion, Request
from decode.settings import Settings
from decode.state import State
from model import LM, errors

COUNTED = ("ranks", "kept_counts")


class View:
    """What the host reads of a state before the next run overwrites it; records and beams only on request."""

    def __init__(self, state: State):
        self._state = state
        self.tokens_BS = np.array(state.context.tokens_BS)
        self.lengths_B = np.array(state.context.lengths_B)
        self.done_B = np.array(state.done_B)

    @functools.cached_property
    def records(self) -> dict[str, np.ndarray]:
        return {name: np.array(held_BS) for name, held_BS in self._state.records.items()}

    @functools.cached_property
    def sampled_logprobs_BS(self) -> np.ndarray:
        return np.array(self._state.records["sampled_logprobs"])

    @functools.cached_property
    def beams(self) -> beam.Search | None:
        search = self._state.search
        return jax.tree.map(np.array, search) if isinstance(search, beam.Search) else None

    def tokens(self, job: Job, row: int) -> list[int]:
        """What a row has been continued with, as far as it was allowed to; nothing of beams before they are done."""
        if self.beams is not None:
            best = self.ranked(row, job.strategy.width) if self.done_B[row] else []
            return self.finished(job, best[0]) if best else []
        start, end = len(job.tokens), int(self.lengths_B[row])
        bad = self.broken(job, row)
        return self.tokens_BS[row, start : end if bad is None else start + bad].tolist()

    def broken(self, job: Job, row: int) -> int | None:
        """The first generated token for which there was nothing to choose from; beams without a choice just end."""
        if self.beams is not None:
            return None
        start, end = len(job.tokens), int(self.lengths_B[row])
        bad = np.flatnonzero(np.isnan(self.sampled_logprobs_BS[row, start:end]))
        return int(bad[0]) if len(bad) else None

    def over(self, job: Job, row: int) -> bool:
        """Whether a row gets no more tokens."""
        return bool(self.done_B[row]) or self.broken(job, row) is not None

    def ranked(self, row: int, width: int) -> list[int]:
        """The rows that hold what the beams from this row on have finished, best first."""
        assert self.beams is not None
        scores_B = self.beams.finished.scores_B
        rows = sorted(range(row, row + width), key=lambda i: -scores_B[i])
        return [i for i in rows if scores_B[i] > -math.inf]

    def finished(self, job: Job, row: int) -> list[int]:
        """The continuation that beams have finished and this row holds."""
        assert self.beams is not None
        held = self.beams.finished
        return held.tokens_BS[row, len(job.tokens) : held.lengths_B[row]].tolist()


class Teller:
    """The text of a completion as its tokens come; never what may turn out to begin a stop string."""

    def __init__(self, lm: LM, job: Job):
        self._job, self._count = job, 0
        self._stopper = stopping.Stopper(
            lm.words.reader(), job.settings.stop, job.settings.min_new_tokens
        )

    def tell(
        self, tokens: Sequence[int], completions: Sequence[Completion]
    ) -> Iterator[tuple[int, str]]:
        """Each token with the text it adds; a completion's last one brings all that was held back."""
        for place, token in enumerate(tokens, start=1):
            text = ""
            if completions and place == len(tokens):
                text = completions[0].text[self._count :]
            elif token not in self._job.ends:
                self._stopper.push(token)
                text = self._stopper.told()
            self._count += len(text)
            yield token, text


def completions(
    lm: LM,
    job: Job,
    view: View,
    row: int,
    tokens: Sequence[int],
    stopper: stopping.Stopper | None,
    complete: bool,
) -> list[Completion]:
    """Those of a job that is done; `complete` says that a stop string or a grammar has ended it."""
    if view.beams is not None:
        return _beams(lm, job, view, row)
    start, count = len(job.tokens), len(tokens)
    bad = None if complete else view.broken(job, row)
    records = {
        name: tuple(held_BS[row, start : start + count].tolist())
        for name, held_BS in view.records.items()
    }
    logprob = view.records["logprobs"][row, start + (bad or 0)]
    if bad is not None and math.isnan(logprob):
        raise _damaged(lm, job, start + bad)
    error = None if bad is None else _stuck(job, start + bad)
    return [completion(lm, job, job.sample, tokens, records, stopper, complete, error)]


def _beams(lm: LM, job: Job, view: View, row: int) -> list[Completion]:
    """The n best that beams have finished, numbered in this order.

    One margin stands for the whole search: a gap at any step may have decided any token.
    """
    assert view.beams is not None
    width, start, s = job.strategy.width, len(job.tokens), job.settings
    end = int(view.lengths_B[row])
    if view.beams.broken_B[row : row + width].any():
        raise _damaged(lm, job, end - 1)
    ranked = view.ranked(row, width)
    if not ranked:
        nothing = dict.fromkeys(view.records, ())
        return [completion(lm, job, 0, (), nothing, error=_stuck(job, end - 1))]
    scores = view.beams.finished.scores_B[ranked].tolist()
    gaps = [better - worse for better, worse in zip(scores[: s.n], scores[1:], strict=False)]
    margin = min(*gaps, float(view.beams.margins_B[row : row + width].min()), math.inf)
    made = []
    for place, (held, score) in enumerate(zip(ranked[: s.n], scores, strict=False)):
        tokens = view.finished(job, held)
        count = len(tokens)
        records = {
            name: tuple(held_BS[held, start : start + count].tolist())
            for name, held_BS in view.beams.finished.records.items()
        }
        records["margins"] = (margin,) * count
        made.append(completion(lm, job, place, tokens, records, score=score))
    return made


def _damaged(lm: LM, job: Job, position: int) -> errors.BadInput:
    return errors.BadInput(
        f"request {job.id!r}: the logits at position {position} are not numbers; "
        f"the weights{f' in {lm.directory}' if lm.directory else ''} are damaged or diverged"
    )


def _stuck(job: Job, position: int) -> str:
    return (
        f"request {job.id!r}: nothing may follow token {position - 1}, because its settings forbid every token; "
        "loosen the constraint or the bans"
    )


def completion(
    lm: LM,
    job: Job,
    sample: int,
    tokens: Sequence[int],
    records: dict[str, tuple],
    stopper: stopping.Stopper | None = None,
    complete: bool = False,
    error: str | None = None,
    score: float | None = None,
) -> Completion:
    """What a person gets of some tokens and their records."""
    at_end = bool(tokens) and tokens[-1] in job.ends
    text = lm.tokenizer.decode(tokens[:-1] if at_end else tokens)
    if stopper is not None:
        complete = stopper.flush() is not None or complete
        text = stopper.text(text)
    reason = "stop" if at_end or complete else "failed" if error else "length"
    asked = {}
    if job.settings.likelihood:
        asked = {name: records[name] for name in ("entropies", "kept_masses")}
        asked |= {name: tuple(int(x) for x in records[name]) for name in COUNTED}
    return Completion(
        id=job.id,
        sample=sample,
        prompt_tokens=job.prompt,
        tokens=tuple(tokens),
        text=text,
        finish_reason=reason,
        logprobs=records["logprobs"],
        sampled_logprobs=records["sampled_logprobs"],
        margins=records["margins"],
        stopped_by=tokens[-1] if at_end else stopper.found if stopper else None,
        score=score,
        error=error,
        **asked,
    )


def refused(request: Request, error: str) -> Completion:
    """The completion of a request that cannot be followed."""
    assert request.id is not None
    return Completion(
        id=request.id,
        sample=0,
        prompt_tokens=(),
        tokens=(),
        text="",
        finish_reason="failed",
        logprobs=(),
        sampled_logprobs=(),
        margins=(),
        error=error if repr(request.id) in error else f"request {request.id!r}: {error}",
    )


def best(settings: Settings, made: list[Completion]) -> list[Completion]:
    """The ones to keep: of several tries the most likely, in the order of their numbers otherwise."""
    if not settings.best_of:
        return made[: settings.n]
    scores = [math.fsum(done.logprobs) for done in made]
    scored = [dataclasses.replace(d, score=x) for d, x in zip(made, scores, strict=True)]
    ranks = sorted(range(len(made)), key=lambda i: (made[i].finish_reason == "failed", -scores[i]))
    return [scored[i] for i in ranks[: settings.n]]
