"""Text in, text out: which request goes into which row, and what comes back in which order?

A request's arithmetic depends on the request and on the number of rows alone. Its prompt is
prefilled by itself, in a bucket of its own length; its slots are a bucket of what it may grow to;
it shares a batch with requests of the same slots. A batch always runs with `batch_size` rows, idle
ones among them, because matrix products of another number of rows may round otherwise.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from decode import keys, loop, processors
from decode import requests as asked
from decode.requests import Completion, Request
from decode.settings import Settings
from model import LM, errors, segmentation, tokenizer

BATCH_SIZE = 8
LEAST_ROWS = 2  # one row takes another path through a CPU's matrix product, with other roundings
STEPS = 32  # between two looks of the host: often enough that Ctrl-C is heard
SMALLEST_PROMPT = 16
SMALLEST_SLOTS = 64


@dataclasses.dataclass(frozen=True)
class _Job:
    """One sample of one request on its way through the rows.

    Attributes:
        prompt: what the person gave, in tokens.
        read: the tokens of it that the cache holds before the first step.
        tokens: what the row begins with: the prompt, or an encoder-decoder's first token of a target.
        limit: the length at which the row is done.
    """

    id: str | int
    sample: int
    settings: Settings
    prompt: tuple[int, ...]
    read: tuple[int, ...]
    tokens: tuple[int, ...]
    limit: int


def generate(
    lm: LM,
    prompts: Iterable[Any],
    settings: Settings | None = None,
    *,
    seed: int,
    batch_size: int = BATCH_SIZE,
    on_token: Callable[[str | int, int, int, str], Any] | None = None,
) -> list[Completion]:
    """Completes prompts: text, token ids, or `Request`s with settings of their own.

    Args:
        lm: a loaded model.
        prompts: a list; those that are not requests get `settings` and their place as id.
        settings: of the prompts that are not requests.
        seed: the root of all randomness, 0 to 2^64 - 1.
        batch_size: rows that run at once. A completion is the same bits whatever shares its batch. With another
            `batch_size` it is the same up to the rounding of matrix products.
        on_token: called with (request id, sample, token, the text it adds) as each token comes.

    Returns:
        Completions in the order of the prompts, the samples of one together.
    """
    words, requests = lm.words, asked.requests(prompts, settings)
    jobs = _jobs(lm, requests)
    texts = {(job.id, job.sample): words.reader() for job in jobs}
    done = {}
    for job, tokens, completion in _run(lm, jobs, seed, batch_size, 1 if on_token else STEPS):
        name = job.id, job.sample
        if on_token:
            for token, text in _texts(lm, texts[name], tokens, completion is not None):
                on_token(*name, token, text)
        if completion:
            done[name] = completion
    return [done[job.id, job.sample] for job in jobs]


def stream(
    lm: LM,
    prompt: Any,
    settings: Settings | None = None,
    *,
    seed: int,
    batch_size: int = BATCH_SIZE,
) -> Iterator[str | Completion]:
    """Yields the text of one completion as it comes, in whole characters, then the `Completion` of `generate`."""
    requests = asked.requests([prompt], settings)
    if requests[0].settings.n != 1:
        raise errors.BadInput(
            f"n is {requests[0].settings.n}; a stream carries one completion, so it must be 1"
        )
    texts = lm.words.reader()
    for _, tokens, completion in _run(lm, _jobs(lm, requests), seed, batch_size, 1):
        for _, text in _texts(lm, texts, tokens, completion is not None):
            if text:
                yield text
        if completion:
            yield completion


def bucket(count: int, smallest: int, largest: int) -> int:
    """The power of two from `smallest` up that holds `count`, or `largest`: few shapes, few compilations."""
    size = smallest
    while size < count:
        size *= 2
    return min(size, largest)


def _jobs(lm: LM, requests: list[Request]) -> list[_Job]:
    jobs = []
    for place, request in enumerate(requests):
        prompt = _prompt_tokens(lm, request)
        read, tokens = _begin(lm, request, prompt)
        limit = min(len(tokens) + request.settings.max_new_tokens, lm.config.context_length)
        name, settings = place if request.id is None else request.id, request.settings
        jobs += [
            _Job(name, sample, settings, prompt, read, tokens, limit)
            for sample in range(settings.n)
        ]
    return jobs


def _begin(
    lm: LM, request: Request, prompt: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the cache reads before the first step, and what the row begins with."""
    window, separate = lm.config.context_length, lm.config.family == "encoder_decoder"
    if len(prompt) + (not separate) > window:
        room = "must hold it" if separate else "must hold one more"
        raise errors.BadInput(
            f"request {request.id!r} has a prompt of {len(prompt)} tokens, and the context window of {window} "
            f"{room}; shorten the prompt"
        )
    if not separate:
        return prompt[:-1], prompt
    start = lm.tokenizer.bos_id if lm.tokenizer.start_id is None else lm.tokenizer.start_id
    if start is None:
        raise errors.BadInput(
            "nothing says which token a target of this encoder-decoder begins with; "
            "add decoder_start_token_id to its config.json"
        )
    return prompt, (start,)


def _prompt_tokens(lm: LM, request: Request) -> tuple[int, ...]:
    name, prompt = f"request {request.id!r}", request.prompt
    if not prompt:
        raise errors.BadInput(f"{name} has an empty prompt; give it text or at least one token id")
    if isinstance(prompt, str):
        return tuple(tokenizer.prompt_ids(lm.tokenizer, prompt))
    for token in prompt:
        if not 0 <= token < lm.config.vocab_size:
            raise errors.BadInput(
                f"{name} has token id {token}; this model's are 0 to {lm.config.vocab_size - 1}"
            )
    return tuple(prompt)


def _run(
    lm: LM, jobs: list[_Job], seed: int, batch_size: int, steps: int
) -> Iterator[tuple[_Job, list[int], Completion | None]]:
    """Yields (job, its tokens since last time, its completion once it is done), every `steps` steps."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise errors.BadInput(
            f"batch_size is {batch_size!r}; it must be a whole number of at least 1"
        )
    if lm.config.family == "encoder_only":
        raise errors.BadInput(
            "an encoder_only model fills and classifies, and does not write; "
            "decode with a decoder_only, encoder_decoder or recurrent one"
        )
    rows, window = max(LEAST_ROWS, batch_size), lm.config.context_length
    queues: dict[tuple, collections.deque[_Job]] = collections.defaultdict(collections.deque)
    for job in jobs:
        source = 0
        if lm.config.family == "encoder_decoder":
            source = bucket(len(job.read), SMALLEST_PROMPT, window)
        queues[bucket(job.limit, SMALLEST_SLOTS, window), source].append(job)
    for (slots, source), queue in queues.items():
        state = loop.empty(lm.net, rows, slots, source, len(ends(lm)))
        busy: dict[int, _Job] = {}
        told: dict[int, int] = {}
        prompt, cache = None, None
        while queue or busy:
            for row in range(rows):
                if queue and row not in busy:
                    job = busy[row] = queue.popleft()
                    told[row] = len(job.tokens)
                    if prompt != job.prompt:
                        prompt, cache = job.prompt, _prefill(lm, job.read)
                    state = loop.insert(state, np.int32(row), _one(lm, job, slots, seed, cache))
            least = len(busy) if queue else 1
            state = loop.run(lm.net, lm.params, state, np.int32(steps), np.int32(least))
            view = _View(state)
            for row, job in list(busy.items()):
                length = int(view.lengths_B[row])
                tokens = view.tokens_BS[row, told[row] : length].tolist()
                told[row] = length
                if view.done_B[row]:
                    del busy[row]
                    yield job, tokens, view.completion(lm, job, row)
                elif tokens:
                    yield job, tokens, None


def ends(lm: LM) -> tuple[int, ...]:
    """The tokens that end a row; -1 where none does."""
    return lm.tokenizer.eos_ids or (-1,)


def _prefill(lm: LM, read: tuple[int, ...]) -> Any:
    """The cache that has read these tokens."""
    size = bucket(len(read), SMALLEST_PROMPT, lm.config.context_length)
    padded_BT = np.array([[*read, *[0] * (size - len(read))]], np.int32)
    return loop.prefill(lm.net, lm.params, padded_BT, np.int32(len(read)))


def _one(lm: LM, job: _Job, slots: int, seed: int, cache: Any) -> loop.State:
    """The state of one row at its start."""
    blank_BS = np.zeros((1, slots), np.float32)
    tokens_BS = np.zeros((1, slots), np.int32)
    tokens_BS[0, : len(job.tokens)] = job.tokens
    return loop.State(
        tokens_BS=tokens_BS,
        lengths_B=np.array([len(job.tokens)], np.int32),
        limits_B=np.array([job.limit], np.int32),
        ends_BE=np.array([ends(lm)], np.int32),
        done_B=np.array([False]),
        keys_B=keys.row_key(seed, job.id, job.sample)[None],
        knobs=processors.knobs([job.settings]),
        cache=cache,
        logprobs_BS=blank_BS,
        sampled_logprobs_BS=blank_BS,
        margins_BS=blank_BS,
    )


class _View:
    """What the host reads of a state; copies, because the next run overwrites the state's memory."""

    def __init__(self, state: loop.State):
        self.tokens_BS = np.array(state.tokens_BS)
        self.lengths_B = np.array(state.lengths_B)
        self.done_B = np.array(state.done_B)
        records = (state.logprobs_BS, state.sampled_logprobs_BS, state.margins_BS)
        self._records = [np.array(record_BS) for record_BS in records if self.done_B.any()]

    def completion(self, lm: LM, job: _Job, row: int) -> Completion:
        """The finished row's."""
        start, length = len(job.tokens), int(self.lengths_B[row])
        tokens = tuple(self.tokens_BS[row, start:length].tolist())
        logprobs, sampled, margins = (
            tuple(record_BS[row, start:length].tolist()) for record_BS in self._records
        )
        broken = [start + i for i, value in enumerate(logprobs) if math.isnan(value)]
        if broken:
            raise errors.BadInput(
                f"request {job.id!r}: the logits at position {broken[0]} are not numbers; "
                f"the weights{f' in {lm.directory}' if lm.directory else ''} are damaged or diverged"
            )
        stopped = tokens[-1] in lm.tokenizer.eos_ids
        return Completion(
            id=job.id,
            sample=job.sample,
            prompt_tokens=job.prompt,
            tokens=tokens,
            text=lm.tokenizer.decode(tokens[:-1] if stopped else tokens),
            finish_reason="stop" if stopped else "length",
            logprobs=logprobs,
            sampled_logprobs=sampled,
            margins=margins,
        )


def _texts(
    lm: LM, stream: segmentation.Reader, tokens: list[int], last: bool
) -> Iterator[tuple[int, str]]:
    """Each token with the text it adds; the `last` brings what was held back, and an end of sequence nothing."""
    for place, token in enumerate(tokens):
        text = "" if token in lm.tokenizer.eos_ids else stream.push(token)
        yield token, text + (stream.flush() if last and place == len(tokens) - 1 else "")
