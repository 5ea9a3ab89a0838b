"""What does a request become? Jobs, one per completion or search, each with the rows it begins with."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from decode import context, contrastive, grammar, keys, loop, rules
from decode import state as states
from decode import strategy as strategies
from decode.context import Context
from decode.requests import Request
from decode.settings import Settings
from decode.state import State
from decode.strategy import Models, Strategy
from model import LM, errors, tokenizer
from model.config import RECURRENT

SMALLEST_PROMPT = 16
SMALLEST_SLOTS = 128  # of GPT-2's step at batch 1, attention over them takes 3 %
FEWEST_ENDS = 4


@dataclasses.dataclass(frozen=True)
class Job:
    """One sample of one request, or one search, on its way through the rows.

    Attributes:
        prompt: what the person gave, in tokens.
        read: the tokens of it that the cache holds before the first step.
        guide_read: those that the guide's cache holds.
        guide_token: what the guide is fed in place of the prompt's last token.
        tokens: what the rows begin with: the prompt, or an encoder-decoder's first token of a target.
        limit: the length at which the rows are done.
        ends: the tokens that end a completion.
    """

    id: str | int
    sample: int
    settings: Settings
    strategy: Strategy
    prompt: tuple[int, ...]
    read: tuple[int, ...]
    guide_read: tuple[int, ...]
    guide_token: int
    tokens: tuple[int, ...]
    limit: int
    ends: tuple[int, ...]

    @property
    def opening(self) -> tuple[tuple[int, ...], int]:
        """What is read before the first step, and what that feeds."""
        return self.read, self.tokens[-1]


def bucket(count: int, smallest: int, largest: int) -> int:
    """The power of two from `smallest` up that holds `count`, or `largest`: few shapes, few compilations."""
    size = smallest
    while size < count:
        size *= 2
    return min(size, largest)


def of(lms: Models, request: Request) -> list[Job]:
    """The jobs of a request; `lms` are the model and its helpers.

    Raises:
        BadInput: when the model cannot follow it.
    """
    lm, settings = lms.main, request.settings
    prompt = _prompt_tokens(lm, request)
    read, tokens = _begin(lm, request, prompt)
    rules.check(lm, settings)
    strategy = strategies.of(settings, lm.config)
    _helped(lms, request, strategy)
    guide_read, guide_token = read, tokens[-1]
    if strategy.guide == "prompt":
        guide_read, guide_token = _negative(lm, request, tokens)
    further = max(0, len(guide_read) - len(read)) if lm.config.family != "encoder_decoder" else 0
    steps = -(-further // strategies.GUIDE_SLOTS)
    strategy = dataclasses.replace(strategy, further=steps * strategies.GUIDE_SLOTS)
    limit = min(len(tokens) + settings.max_new_tokens, lm.config.context_length)
    for name, other in zip(lms._fields, _called(lms, strategy), strict=True):
        room = other and other.config.context_length - further * (name == "guide")
        if other and limit > room:
            amateur = "amateur " if strategy.guide == "amateur" else ""
            who = {"draft": "draft ", "guide": amateur}.get(name, "")
            beside = f" behind a negative_prompt of {len(guide_read) + 1}" if further else ""
            raise errors.BadInput(
                f"request {request.id!r} may grow to {limit} tokens{beside}, and the window of the {who}model "
                f"holds {other.config.context_length}; shorten one of them, or lower max_new_tokens"
            )
    eos = () if settings.ignore_eos else lm.tokenizer.eos_ids
    ends = (*eos, *(i for i in settings.stop_token_ids if i not in eos))
    if settings.constrained:
        grammar.compile(lm.tokenizer, lm.config.vocab_size, ends, settings)
    samples = max(settings.n, settings.best_of) if strategy.kind == "draw" else 1
    assert request.id is not None
    return [
        Job(
            id=request.id,
            sample=sample,
            settings=settings,
            strategy=strategy,
            prompt=prompt,
            read=read,
            guide_read=guide_read,
            guide_token=guide_token,
            tokens=tokens,
            limit=limit,
            ends=ends,
        )
        for sample in range(samples)
    ]


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
    if request.settings.prompt_logprobs and lm.virtual_tokens:
        raise errors.BadInput(
            f"request {request.id!r} asks for prompt_logprobs, and the prompt begins with {lm.virtual_tokens} virtual "
            "tokens, which are never predicted; leave them out"
        )
    if request.settings.prompt_logprobs and lm.prefix:
        raise errors.BadInput(
            f"request {request.id!r} asks for prompt_logprobs, and a prefix LM sees all of its prompt, none of which "
            "it predicts; leave them out"
        )
    if not separate:
        return prompt[:-1], prompt
    if request.settings.prompt_logprobs:
        raise errors.BadInput(
            f"request {request.id!r} asks for prompt_logprobs, and an encoder reads its prompt without predicting it; "
            "leave them out"
        )
    start = tokenizer.decoder_start(lm.tokenizer)
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
    return _tokens(lm, name, prompt)


def _tokens(lm: LM, name: str, prompt: str | Sequence[int]) -> tuple[int, ...]:
    """A prompt's ids, behind those of the model's soft prompt."""
    virtual = tuple(lm.config.vocab_size + i for i in range(lm.virtual_tokens))
    if isinstance(prompt, str):
        return (*virtual, *tokenizer.prompt_ids(lm.tokenizer, prompt))
    for token in prompt:
        if not 0 <= token < lm.config.vocab_size:
            raise errors.BadInput(
                f"{name} has token id {token}; this model's are 0 to {lm.config.vocab_size - 1}"
            )
    return (*virtual, *prompt)


def _negative(lm: LM, request: Request, tokens: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """What guidance leads away from, but its last token, and that: the negative prompt, or, as Hugging Face has it,
    the prompt's last token alone."""
    asked = request.settings.negative_prompt
    name = f"request {request.id!r}, negative_prompt"
    if asked is None and lm.config.family == "encoder_decoder":
        raise errors.BadInput(
            f"{name} is missing, and guidance of an encoder-decoder needs it; give a text to lead away from"
        )
    if asked is None:
        return (), tokens[-1]
    if not asked:
        raise errors.BadInput(f"{name} is empty; give it at least one token, or leave it out")
    negative = _tokens(lm, name, asked)
    if lm.config.family == "encoder_decoder":
        return negative, tokens[-1]
    return negative[:-1], negative[-1]


def _helped(lms: Models, request: Request, strategy: Strategy) -> None:
    """Refuses a strategy whose helper is missing or does not fit."""
    for name, wanted, setting in (
        ("amateur", strategy.guide == "amateur", "contrastive_beta"),
        ("draft", strategy.draft == "model", "num_assistant_tokens"),
    ):
        other = lms.guide if name == "amateur" else lms.draft
        if wanted and other is not None and other.config.family in RECURRENT:
            strategies.check_rollback(strategy.drafts)
        if wanted and other is None:
            raise errors.BadInput(
                f"request {request.id!r} has {setting}, which needs another model; add {name}= (--{name}=DIR)"
            )


def check_helper(name: str, lm: LM, other: LM | None) -> None:
    """Refuses a draft or amateur model that does not speak the model's tokens."""
    if other is None:
        return
    for what, ours, theirs in (
        ("vocabulary", lm.config.vocab_size, other.config.vocab_size),
        ("tokenizer digest", lm.tokenizer.digest[:12], other.tokenizer.digest[:12]),
        ("number of virtual tokens", lm.virtual_tokens, other.virtual_tokens),
        ("encoder", *(x.config.family == "encoder_decoder" for x in (lm, other))),
    ):
        if ours != theirs:
            raise errors.BadInput(
                f"the {name} model's {what} is {theirs}, and the model's {ours}; both must read the same tokens"
            )


def nets(lms: Models, strategy: Strategy) -> Models:
    """The nets that a strategy calls."""
    return Models(*(lm and lm.net for lm in _called(lms, strategy)))


def params(lms: Models, strategy: Strategy) -> Models:
    """Their parameters."""
    return Models(*(lm and lm.params for lm in _called(lms, strategy)))


def _called(lms: Models, strategy: Strategy) -> Models:
    guide = {"prompt": lms.main, "amateur": lms.guide}.get(strategy.guide)
    return Models(lms.main, guide, lms.draft if strategy.draft == "model" else None)


def prefilled(lms: Models, job: Job) -> Models:
    """The caches that have read a job's prompt."""
    called = _called(lms, job.strategy)
    openings = Models(job.opening, (job.guide_read, job.guide_token), job.opening)
    return Models(*(lm and _prefill(lm, *each) for lm, each in zip(called, openings, strict=True)))


def _prefill(lm: LM, read: tuple[int, ...], fed: int) -> Any:
    """The cache that has read these tokens, before another is fed."""
    seen = (*read, fed) if lm.prefix else read
    padded_BT = _padded(seen, bucket(len(seen), SMALLEST_PROMPT, lm.config.context_length))
    return loop.prefill(lm.net, lm.params, padded_BT, np.int32(len(read)), lm.prefix)


def _padded(tokens: tuple[int, ...], size: int) -> np.ndarray:
    padded_BT = np.zeros((1, size), np.int32)
    padded_BT[0, : len(tokens)] = tokens
    return padded_BT


def prompt_logprobs(lm: LM, prompt: tuple[int, ...]) -> tuple[float, ...]:
    """The model's log-probability of each token of a prompt but the first."""
    padded_BT = _padded(prompt, bucket(len(prompt), SMALLEST_PROMPT, lm.config.context_length))
    scores_BT = loop.score(lm.net, lm.params, padded_BT, np.int32(len(prompt)))
    return tuple(np.asarray(scores_BT)[0, : len(prompt) - 1].tolist())


def begin(
    lm: LM,
    job: Job,
    slots: int,
    source: int,
    ends: int,
    counts: tuple[int, int, int, int],
    seed: int,
    caches: Models,
) -> State:
    """The rows of a job at its start, in shapes as `loop.empty` takes them."""
    rows, held = job.strategy.width, slots + job.strategy.drafts
    separate = lm.config.family == "encoder_decoder"
    read = job.read if separate else job.prompt
    reads = source or held

    def every(one_1: np.ndarray) -> np.ndarray:
        return np.repeat(one_1, rows, axis=0)

    def number(value: int) -> np.ndarray:
        return np.full(rows, value, np.int32)

    ends_1E = np.array([[*job.ends, *[-1] * (ends - len(job.ends))]], np.int32)
    key = keys.row_key(seed, job.id, job.sample)
    mu = 2 * job.settings.mirostat_tau  # Basu et al. 2021, algorithm 2
    return State(
        context=Context(
            knobs=context.knobs([job.settings] * rows),
            rules=rules.of(lm, [job.settings] * rows, counts),
            tokens_BS=every(_padded(job.tokens, held)),
            lengths_B=number(len(job.tokens)),
            prompt_B=number(len(job.tokens)),
            read_BR=every(_padded(read, reads)),
            read_B=number(len(read)),
            limits_B=number(job.limit),
            ends_BE=every(ends_1E),
            keys_B=jnp.broadcast_to(key, (rows,)),
            surprise_B=np.full(rows, mu, np.float32),
        ),
        done_B=np.zeros(rows, bool),
        guide_B=number(job.guide_token),
        caches=_widened(caches, rows),
        records=_blank_records(rows, held),
        search=_search(lm, job, rows, held),
    )


def _search(lm: LM, job: Job, rows: int, held: int) -> Any:
    """What a job's search begins with; contrastive search compares with the hidden states of what was read."""
    blank = loop.SEARCHES[job.strategy.kind](job.strategy, lm.net, rows, held)
    if job.strategy.kind != "contrastive" or lm.config.family == "encoder_decoder":
        return blank
    seen = job.tokens if lm.prefix else job.read
    padded_1T = _padded(seen, bucket(len(seen), SMALLEST_PROMPT, lm.config.context_length))
    prefix = np.array([len(seen)], np.int32) if lm.prefix else None
    return contrastive.read(lm.net, lm.params, blank, padded_1T, prefix)


@functools.partial(jax.jit, static_argnames=("rows",))
def _widened(caches: Models, rows: int) -> Models:
    """Caches of one row as caches of several equal ones."""
    return jax.tree.map(lambda leaf: jnp.repeat(leaf, rows, axis=0), caches)


@functools.lru_cache(maxsize=32)
def _blank_records(rows: int, held: int) -> dict[str, np.ndarray]:
    blank_BS = np.zeros((rows, held), np.float32)
    return dict.fromkeys((*states.RECORDS, *states.LIKELIHOOD), blank_BS)
