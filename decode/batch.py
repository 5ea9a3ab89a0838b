"""Text in, text out: which request goes into which row, and what comes back in which order?

A request's arithmetic depends on the request and on the number of rows alone. Its prompt is
prefilled by itself, in a bucket of its own length; its slots are the bucket of what it has grown to,
and when they are full it moves on to a batch of twice as many. A batch always runs with `batch_size`
rows, idle ones among them, because matrix products of another number of rows may round otherwise.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from decode import grammar, jobs, labels, loop, outcome, rules, stopping
from decode import requests as asked
from decode import state as states
from decode.jobs import Job
from decode.requests import Completion
from decode.settings import Settings
from decode.state import State
from decode.strategy import Models
from model import LM, errors

BATCH_SIZE = asked.BATCH_SIZE
STEPS = 32  # between two looks of the host: often enough that Ctrl-C is heard
OnToken = Callable[[str | int, int, int, str], Any]


def generate(
    lm: LM,
    prompts: Iterable[Any],
    settings: Settings | None = None,
    *,
    seed: int,
    batch_size: int = BATCH_SIZE,
    draft: LM | None = None,
    amateur: LM | None = None,
    on_token: OnToken | None = None,
    strict: bool = True,
) -> list[Completion]:
    """Completes prompts: text, token ids, or `Request`s with settings of their own.

    Args:
        lm: a loaded model.
        prompts: a list; those that are not requests get `settings` and their place as id.
        settings: of the prompts that are not requests.
        seed: the root of all randomness, 0 to 2^64 - 1.
        batch_size: rows that run at once. A completion is the same bits whatever shares its batch. With another
            `batch_size` it is the same up to the rounding of matrix products.
        draft: a smaller model of the same tokens, for requests with `num_assistant_tokens`.
        amateur: a weaker one, for requests with `contrastive_beta`.
        strict: refuses all requests when one of them cannot be followed; otherwise its completion says why, and the
            others go on.
        on_token: called with (request id, sample, token, the text it adds) as each token comes.

    Returns:
        Completions in the order of the prompts, those of one together. One that failed says so itself. Those of an
        encoder are answers, as `labels.complete` gives them.
    """
    requests = asked.requests(prompts, settings)
    if lm.config.family == "encoder_only" and draft is None and amateur is None:
        return labels.complete(lm, requests, batch_size, strict)
    lms = _models(lm, draft, amateur)
    done: dict[str | int, list[Completion]] = {request.id: [] for request in requests}  # type: ignore[misc]
    tellers: dict[tuple, outcome.Teller] = {}
    todo = []
    for request in requests:
        try:
            todo += jobs.of(lms, request)
        except errors.BadInput as error:
            if strict:
                raise
            done[request.id] = [outcome.refused(request, str(error))]  # type: ignore[index]
    for job, tokens, completions in _run(lms, todo, seed, batch_size, 1 if on_token else STEPS):
        if on_token:
            name = job.id, job.sample
            teller = tellers.setdefault(name, outcome.Teller(lm, job))
            for token, text in teller.tell(tokens, completions):
                on_token(*name, token, text)
        done[job.id] += completions
    return [
        completion
        for request in requests
        for completion in outcome.best(request.settings, done[request.id])  # type: ignore[index]
    ]


def stream(
    lm: LM,
    prompt: Any,
    settings: Settings | None = None,
    *,
    seed: int,
    batch_size: int = BATCH_SIZE,
    draft: LM | None = None,
    amateur: LM | None = None,
) -> Iterator[str | Completion]:
    """Yields the text of one completion as it comes, in whole characters, then the `Completion` of `generate`."""
    requests, lms = asked.requests([prompt], settings), _models(lm, draft, amateur)
    for name in ("n", "best_of"):
        if (value := getattr(requests[0].settings, name)) > 1:
            raise errors.BadInput(
                f"{name} is {value}; a stream carries one completion, so it must be 1"
            )
    job = jobs.of(lms, requests[0])[0]
    teller = outcome.Teller(lm, job)
    for _, tokens, completions in _run(lms, [job], seed, batch_size, 1):
        for _, text in teller.tell(tokens, completions):
            if text:
                yield text
        yield from completions


def _models(lm: LM, draft: LM | None, amateur: LM | None) -> Models:
    """The model and its helpers, if they can work together."""
    lm.words  # noqa: B018  a model without a tokenizer is refused before anything else
    for name, other in (("model", lm), ("draft", draft), ("amateur", amateur)):
        if other and other.config.family == "encoder_only":
            raise errors.BadInput(
                f"the {name} is an encoder_only model, which labels texts and fills masks at once: it is no helper, "
                "has none, and does not stream; generate with it alone"
            )
        jobs.check_helper(name, lm, other)
    return Models(lm, amateur, draft)


@dataclasses.dataclass
class _Run:
    """A job on its way.

    Attributes:
        tokens: what it has been continued with.
        paused: its rows between two batches.
    """

    job: Job
    stopper: stopping.Stopper | None
    matcher: grammar.Matcher | None
    tokens: list[int] = dataclasses.field(default_factory=list)
    paused: State | None = None


@dataclasses.dataclass
class _Level:
    """A batch of one number of slots, the runs that have grown to it, and those in its places."""

    slots: int
    waiting: collections.deque[_Run] = dataclasses.field(default_factory=collections.deque)
    busy: dict[int, _Run] = dataclasses.field(default_factory=dict)
    state: State | None = None


def _run(
    lms: Models, todo: list[Job], seed: int, batch_size: int, steps: int
) -> Iterator[tuple[Job, list[int], list[Completion]]]:
    """Yields (job, its tokens since last time, its completions once it is done), every `steps` steps."""
    asked.check_batch_size(batch_size)
    alike: dict[tuple, list[Job]] = collections.defaultdict(list)
    for job in todo:
        alike[job.strategy, job.settings.constrained, _shapes(lms.main, job)].append(job)
    groups = [_Group(lms, group, key[2], seed, batch_size) for key, group in alike.items()]
    for group, (_, constrained, _) in zip(groups, alike, strict=True):
        yield from group.run(1 if constrained else steps)


class _Shapes(NamedTuple):
    """What of a job is a shape beside its slots; it follows from the job alone, whatever it shares a batch with."""

    source: int
    ends: int
    counts: rules.Counts


def _shapes(lm: LM, job: Job) -> _Shapes:
    source = 0
    if lm.config.family == "encoder_decoder":
        longest = max(len(job.read), len(job.guide_read))
        source = jobs.bucket(longest, jobs.SMALLEST_PROMPT, lm.config.context_length)
    ends = jobs.bucket(len(job.ends), jobs.FEWEST_ENDS, 1 << 30)
    return _Shapes(source, ends, rules.counts(lm, [job.settings]))


class _Group:
    """The jobs of one strategy, in batches of one shape per level."""

    def __init__(self, lms: Models, group: list[Job], shapes: _Shapes, seed: int, batch_size: int):
        self.lms, self.seed, self.strategy = lms, seed, group[0].strategy
        self.nets = jobs.nets(lms, self.strategy)
        self.params = jobs.params(lms, self.strategy)
        self.places = max(1, batch_size // self.strategy.width)
        self.shapes = shapes
        self.levels: dict[int, _Level] = {}
        self.prefilled: tuple[Any, Models] = (None, Models(None))
        self.prompt_logprobs = functools.cache(functools.partial(jobs.prompt_logprobs, lms.main))
        for job in group:
            self._join(self._new(job), len(job.tokens) + 1)

    def run(self, steps: int) -> Iterator[tuple[Job, list[int], list[Completion]]]:
        """Until all jobs are done."""
        while level := self._next():
            self._fill(level)
            width = self.strategy.width
            least = width * (len(level.busy) if level.waiting else 1)
            assert level.state is not None
            level.state = loop.run(
                self.strategy,
                self.nets,
                self.params,
                level.state,
                np.int32(steps),
                np.int32(least),
            )
            view = outcome.View(level.state)
            for place, run in list(level.busy.items()):
                yield from self._look(level, view, place, run)
            if not level.busy and not level.waiting:
                del self.levels[level.slots]

    def _new(self, job: Job) -> _Run:
        words, s = self.lms.main.tokenizer, job.settings
        stopper = None
        if s.stop:
            stopper = stopping.Stopper(words.reader(), s.stop, s.min_new_tokens)
        matcher = None
        if s.constrained:
            vocabulary = self.lms.main.config.vocab_size
            matcher = grammar.compile(words, vocabulary, job.ends, s).start()
        return _Run(job, stopper, matcher)

    def _join(self, run: _Run, length: int) -> None:
        """Puts a run where rows of this length are."""
        window = self.lms.main.config.context_length
        slots = jobs.bucket(length, jobs.SMALLEST_SLOTS, window)
        self.levels.setdefault(slots, _Level(slots)).waiting.append(run)

    def _next(self) -> _Level | None:
        """The largest batch that can be filled or is under way, else the smallest: so few runs ever wait half-way."""
        for slots in sorted(self.levels, reverse=True):
            level = self.levels[slots]
            if level.busy or len(level.waiting) >= self.places:
                return level
        return self.levels[min(self.levels)] if self.levels else None

    def _fill(self, level: _Level) -> None:
        """Lets those who wait into the free places."""
        width = self.strategy.width
        if level.state is None:
            rows = width * self.places
            level.state = loop.empty(self.strategy, self.nets, rows, level.slots, *self.shapes)
        for place in range(self.places):
            if not level.waiting or place in level.busy:
                continue
            run = level.busy[place] = level.waiting.popleft()
            one = run.paused or self._first(run.job, level.slots)
            run.paused = None
            level.state = states.insert(level.state, np.int32(place * width), one)
        for place, run in level.busy.items():
            if run.matcher is not None:
                bias_V = rules.bias(self.lms.main, run.job.settings)
                bias_V = np.where(run.matcher.mask(), bias_V, np.float32(-np.inf))
                level.state = states.rule(level.state, np.int32(place), bias_V)

    def _first(self, job: Job, slots: int) -> State:
        """The rows of a job at its start; samples of one prompt share its caches."""
        read = job.opening, job.guide_read, job.guide_token
        if self.prefilled[0] != read:
            self.prefilled = read, jobs.prefilled(self.lms, job)
        return jobs.begin(
            self.lms.main, job, slots, *self.shapes, seed=self.seed, caches=self.prefilled[1]
        )

    def _look(
        self, level: _Level, view: outcome.View, place: int, run: _Run
    ) -> Iterator[tuple[Job, list[int], list[Completion]]]:
        """What a place has brought since last time; frees it when its run is done or has outgrown it."""
        width, job = self.strategy.width, run.job
        row = place * width
        new, complete = _follow(run, view.tokens(job, row)[len(run.tokens) :])
        run.tokens += new
        if view.over(job, row) or complete:
            del level.busy[place]
            if not view.done_B[row]:
                level.state = states.finish(level.state, np.int32(row), width)
            done = outcome.completions(
                self.lms.main, job, view, row, run.tokens, run.stopper, complete
            )
            if job.settings.prompt_logprobs:
                scores = self.prompt_logprobs(job.prompt)
                done = [dataclasses.replace(each, prompt_logprobs=scores) for each in done]
            yield job, new, done
            return
        if view.lengths_B[row] >= level.slots:
            del level.busy[place]
            run.paused = states.take(level.state, np.int32(row), width)
            self._join(run, level.slots + 1)
        if new:
            yield job, new, []


def _follow(run: _Run, tokens: list[int]) -> tuple[list[int], bool]:
    """New tokens up to where a stop string or a grammar is complete, and whether one is."""
    for place, token in enumerate(tokens, start=1):
        if token in run.job.ends:
            continue
        if run.stopper is not None and run.stopper.push(token) is not None:
            return tokens[:place], True
        if run.matcher is not None:
            run.matcher.advance(token)
            if run.matcher.done and not run.job.ends:
                return tokens[:place], True
    return tokens, False
