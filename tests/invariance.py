"""What may change around a request without changing its completion? The matrix: each axis with what is promised of it.

A cell decodes the same requests under a change, and the same once more under a control that breaks the promise on
purpose. `benchmarks/invariance.py` prints the matrix, and `test_invariance.py` holds a part of it.
"""

import contextlib
import dataclasses
import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import decode
import model
from decode import batch, jobs, keys, loop, sampling
from decode.requests import Completion, Request
from decode.settings import Settings
from model import sharding
from model.config import ModelConfig
from tests import tiny

BITWISE, TOKENS, DIFFERENT = "bitwise", "same tokens", "different"
SHAPE = dict(vocab_size=312, context_length=256, layers=2, width=32, hidden=48, heads=4)
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": dict(kv_heads=2, **SHAPE),
    "gpt2": dict(position="learned", norm="layer", activation="gelu_tanh", bias="all", tied=True, **SHAPE),
    "t5": dict(family="encoder_decoder", position="relative", tied=True, embedding="head_scaled", **SHAPE),
    "lstm": dict(family="lstm", vocab_size=312, context_length=256, layers=2, width=32),
}  # fmt: skip
MINE = [
    Request((9, 8, 7, 30, 31), Settings(max_new_tokens=23, temperature=0), "greedy"),
    Request(tuple(range(5, 24)), Settings(max_new_tokens=19, temperature=0.9, top_p=0.9), "drawn"),
    Request(
        (40, 41),
        Settings(max_new_tokens=17, min_p=0.02, repetition_penalty=1.2, presence_penalty=0.3),
        "penalised",
    ),
]
OTHERS = [
    Request((11 + i, 60), Settings(max_new_tokens=5 + i, temperature=1.3, top_k=7, mirostat=2), f"other{i}")
    for i in range(7)
]  # fmt: skip


@functools.cache
def lm(family: str) -> model.LM:
    """A model with random weights, large enough that its distributions are far from flat."""
    config = ModelConfig(**FAMILIES[family])
    net = model.build(config)

    @jax.jit
    def init() -> Any:
        leaves, tree = jax.tree.flatten(model.init(net, key=jax.random.key(0)))
        each = jax.random.split(jax.random.key(1), len(leaves))
        more = zip(each, leaves, strict=True)
        return tree.unflatten([x + 0.2 * jax.random.normal(k, x.shape) for k, x in more])

    return model.LM(config, init(), tiny.Silent(), net)  # type: ignore[arg-type]


Made = list[Completion]


def run(lm: model.LM, requests: list[Request] = MINE, **others: Any) -> Made:
    """The completions of MINE among those of `requests`, in their own order."""
    done = decode.generate(lm, requests, seed=others.pop("seed", 5), **others)
    mine = {request.id for request in MINE}
    kept = [c for c in done if c.id in mine and c.sample == 0]
    return sorted(kept, key=lambda c: [request.id for request in MINE].index(str(c.id)))


def compare(a: Made, b: Made) -> str:
    """What two decodings of the same requests have in common."""
    if [c.tokens for c in a] != [c.tokens for c in b]:
        return DIFFERENT
    numbers = [[(c.logprobs, c.sampled_logprobs, c.margins) for c in made] for made in (a, b)]
    return BITWISE if numbers[0] == numbers[1] else TOKENS


@contextlib.contextmanager
def patched(owner: Any, **values: Any) -> Iterator[None]:
    """Other values of a module's names, for programs compiled while they hold."""
    before = {name: getattr(owner, name) for name in values}
    for function in (loop.run, loop.empty):
        function.clear_cache()
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)
        for function in (loop.run, loop.empty):
            function.clear_cache()


def changed(requests: list[Request], **settings: Any) -> list[Request]:
    """Requests with some settings replaced."""
    return [
        dataclasses.replace(r, settings=dataclasses.replace(r.settings, **settings))
        for r in requests
    ]


# Changes that should not matter.


def plain(lm: model.LM) -> Made:
    return run(lm)


def again(lm: model.LM) -> Made:
    return run(lm, list(reversed(MINE)))


def alone(lm: model.LM) -> Made:
    return [done for request in MINE for done in run(lm, [request])]


def crowded(lm: model.LM) -> Made:
    return run(lm, [*OTHERS[:3], *MINE[:1], *OTHERS[3:], *MINE[1:]])


def rows(lm: model.LM) -> Made:
    return run(lm, batch_size=16)


def one_row(lm: model.LM) -> Made:
    return run(lm, batch_size=1)


def longer(lm: model.LM) -> Made:
    """A cap that is never felt: the first tokens of a longer completion."""
    done = run(lm, changed(MINE, max_new_tokens=60))
    sizes = [request.settings.max_new_tokens for request in MINE]
    return [
        dataclasses.replace(
            c, **{name: getattr(c, name)[:n] for name in ("tokens", "logprobs", "sampled_logprobs", "margins")}
        )
        for c, n in zip(done, sizes, strict=True)
    ]  # fmt: skip


def small_slots(lm: model.LM) -> Made:
    """Slots begin at 32, so that rows move to larger batches on the way."""
    with patched(jobs, SMALLEST_SLOTS=32):
        return run(lm)


def wide_prompts(lm: model.LM) -> Made:
    with patched(jobs, SMALLEST_PROMPT=64):
        return run(lm)


def chunked(lm: model.LM) -> Made:
    """Prompts are read two tokens at a time."""
    whole = loop.prefill

    def read(net: Any, params: Any, tokens_BT: Any, count: Any, prefix: bool = False) -> Any:
        if net.config.family == "encoder_decoder":  # an encoder reads its source at once
            return whole(net, params, tokens_BT, count)
        memory = model.cache.for_prompt(net.config, tokens_BT.shape[1], net.runtime.dtype)
        for start in range(0, int(count), 2):
            part_BT = tokens_BT[:, start : start + 2]
            mask_BT = np.arange(start, start + part_BT.shape[1])[None] < count
            memory = _read(net, params, part_BT, mask_BT, memory)
        return memory

    with patched(jobs, loop=types.SimpleNamespace(**{**vars(loop), "prefill": read})):
        return run(lm)


@functools.partial(jax.jit, static_argnames=("net",))
def _read(net: Any, params: Any, tokens_BT: Any, mask_BT: Any, memory: Any) -> Any:
    return net.apply({"params": params}, tokens_BT, mask_BT, memory, method="read")


def every_step(lm: model.LM) -> Made:
    """The host looks after every step, as streaming does."""
    return run(lm, on_token=lambda *_: None)


def streamed(lm: model.LM) -> Made:
    made = []
    for request in MINE:
        *_, done = decode.stream(lm, request, seed=5)
        made.append(done)
    return made  # type: ignore[return-value]


def samples(lm: model.LM) -> Made:
    return run(lm, changed(MINE, n=3))


def recorded(lm: model.LM) -> Made:
    return run(lm, changed(MINE, likelihood=True))


def drafted(lm: model.LM) -> Made:
    return run(lm, changed(MINE, prompt_lookup_num_tokens=3))


def drafted_by_model(lm: model.LM) -> Made:
    return run(lm, changed(MINE, num_assistant_tokens=3), draft=lm)


def on_devices(lm: model.LM) -> Made:
    """The weights lie on four devices, split over two axes."""
    boxed = jax.eval_shape(lambda: model.init_boxed(lm.net, key=jax.random.key(0)))
    mesh = sharding.make_mesh(dict(fsdp=2, tensor=2), jax.devices()[:4])
    laid = jax.device_put(lm.params, sharding.of_tree(boxed, mesh))
    return run(dataclasses.replace(lm, params=laid))


# Controls: promises broken on purpose.


def next_key(keys_B: jax.Array, positions_B: jax.Array, stream: str = "sample") -> jax.Array:
    return keys.fold(jnp.roll(keys_B, 1), positions_B, stream)


def keys_of_neighbours(change: Callable[[model.LM], Made]) -> Callable[[model.LM], Made]:
    """The change in a loop that folds the key of the row beside."""

    def control(lm: model.LM) -> Made:
        with patched(sampling, keys=types.SimpleNamespace(**{**vars(keys), "fold": next_key})):
            return change(lm)

    return control


def numbered(lm: model.LM) -> Made:
    """Requests that are known by their place only."""
    done = decode.generate(lm, [dataclasses.replace(r, id=None) for r in reversed(MINE)], seed=5)
    return done[::-1]


def another_seed(change: Callable[..., Made]) -> Callable[[model.LM], Made]:
    """The change in a run that has lost its seed."""

    def control(lm: model.LM) -> Made:
        with patched(keys, seed_words=lambda seed: np.array([0, 6], np.uint32)):
            return change(lm)

    return control


def rough(change: Callable[[model.LM], Made]) -> Callable[[model.LM], Made]:
    """The change on weights that are rounded to 8 bits: more than a rounding of sums."""

    def control(lm: model.LM) -> Made:
        params = jax.tree.map(lambda x: x.astype(jnp.float8_e4m3fn).astype(x.dtype), lm.params)
        return change(dataclasses.replace(lm, params=params))

    return control


def believed(change: Callable[[model.LM], Made]) -> Callable[[model.LM], Made]:
    """Drafts that nobody verifies."""

    def control(lm: model.LM) -> Made:
        with patched(loop, _right=lambda token_BT, drafts_BK: jnp.ones_like(drafts_BK)):
            return change(lm)

    return control


def last_sample(lm: model.LM) -> Made:
    """Samples whose numbers depend on how many there are."""
    row_key = keys.row_key
    with patched(keys, row_key=lambda seed, id, sample: row_key(seed, id, 2 - sample)):
        return samples(lm)


@dataclasses.dataclass(frozen=True)
class Cell:
    """An axis, what is promised along it, the change, and a control under which the promise must fail."""

    axis: str
    promise: str
    change: Callable[[model.LM], Made]
    control: Callable[[model.LM], Made]
    breaks: str


CELLS = (
    Cell("order of requests", BITWISE, again, numbered, "requests known by place"),
    Cell("row", BITWISE, crowded, keys_of_neighbours(crowded), "the key of the row beside"),
    Cell("neighbours and their settings", BITWISE, crowded, keys_of_neighbours(crowded), "the key of the row beside"),
    Cell("batch fill: alone", BITWISE, alone, another_seed(alone), "another seed"),
    Cell("cap, in one bucket", BITWISE, longer, another_seed(longer), "another seed"),
    Cell("a look after every step", BITWISE, every_step, another_seed(every_step), "another seed"),
    Cell("streaming", BITWISE, streamed, another_seed(streamed), "another seed"),
    Cell("n", BITWISE, samples, last_sample, "sample numbers from the end"),
    Cell("likelihood record", BITWISE, recorded, another_seed(recorded), "another seed"),
    Cell("batch_size 16", TOKENS, rows, rough(rows), "weights rounded to 8 bits"),
    Cell("batch_size 1", TOKENS, one_row, rough(one_row), "weights rounded to 8 bits"),
    Cell("cache length: from 32 slots", TOKENS, small_slots, rough(small_slots), "weights rounded to 8 bits"),
    Cell("padding: prompt bucket of 64", TOKENS, wide_prompts, rough(wide_prompts), "weights rounded to 8 bits"),
    Cell("prefill in chunks of 2", TOKENS, chunked, rough(chunked), "weights rounded to 8 bits"),
    Cell("drafts by lookup", TOKENS, drafted, believed(drafted), "drafts believed"),
    Cell("drafts by a model", TOKENS, drafted_by_model, rough(drafted_by_model), "weights rounded to 8 bits"),
    Cell("four devices", TOKENS, on_devices, rough(on_devices), "weights rounded to 8 bits"),
)  # fmt: skip
RANK = {DIFFERENT: 0, TOKENS: 1, BITWISE: 2}


def holds(cell: Cell, measured: str) -> bool:
    """Whether what was measured is at least what is promised."""
    return RANK[measured] >= RANK[cell.promise]


assert batch.BATCH_SIZE == 8, "the matrix is stated for it"
