"""Models small enough to compile in a second, and a net whose logits are written down.

`lm(name)` is a whole `model.LM` with random weights and a trained tokenizer; `scripted(...)` is one
whose next-token logits are a table, so that everything about a draw can be computed by hand.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import model
from model import cache, segmentation, tokenizer
from model.config import ModelConfig, Runtime, Scores

TEXT = (
    "the moon ganymede is located in the solar system, where it circles jupiter; it is larger than "
    "mercury. once upon a time there was a cat who sat on a mat and ate cake, not donuts or apples."
)
SHAPE = dict(context_length=61, layers=2, hidden=71)
GPT2 = dict(
    position="learned",
    norm="layer",
    activation="gelu_tanh",
    bias="all",
    tied=True,
    width=44,
    heads=4,
    **SHAPE,
)
LLAMA = dict(width=44, heads=6, kv_heads=2, head_size=14, **SHAPE)
GEMMA2 = dict(
    **LLAMA,
    windows=(11, 0),
    norm="rms_plus_one",
    block="sandwich",
    scores=Scores(cap=5.0),
    embedding="scaled",
    tied=True,
    logit_cap=9.0,
)
T5 = dict(
    **LLAMA,
    family="encoder_decoder",
    position="relative",
    # T5 has 1, and queries that are small instead; with these weights 1 amplifies rounding six times.
    scores=Scores(scale=0.25),
    tied=True,
    embedding="head_scaled",
)
LSTM = dict(family="lstm", width=44, context_length=61, layers=2)
FAMILIES: dict[str, dict] = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "gemma2": GEMMA2,
    "t5": T5,
    "lstm": LSTM,
    "gru": {**LSTM, "family": "gru"},
}


class Silent:
    """A tokenizer of a model whose tokens are numbers and stay so: nothing ends, nothing is spelled."""

    bos_id = eos_id = None
    start_id = 3
    eos_ids = prefix_ids = suffix_ids = ()
    digest = "0" * 64

    def decode(self, ids: Any) -> str:
        return ""

    def reader(self) -> segmentation.Reader:
        return segmentation.Bytes(lambda i: b"")


@functools.cache
def words() -> tokenizer.Tokenizer:
    """A tokenizer of 307 pieces, trained on `TEXT`; its end-of-sequence id is 3."""
    return tokenizer.train([TEXT] * 7, vocab_size=307)


@functools.cache
def lm(family: str = "llama", seed: int = 0, runtime: Runtime = Runtime()) -> model.LM:
    """A model with random weights, large enough that its distributions are far from flat."""
    config = ModelConfig(vocab_size=words().vocab_size, **FAMILIES[family])
    net = model.build(config, runtime)

    @jax.jit
    def init():
        leaves, tree = jax.tree.flatten(model.init(net, key=jax.random.key(seed)))
        keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
        pairs = zip(keys, leaves, strict=True)
        return tree.unflatten([x + 0.15 * jax.random.normal(k, x.shape) for k, x in pairs])

    params = init()
    return model.LM(config, params, words(), net)


@functools.cache
def small(family: str = "decoder_only") -> model.LM:
    """As `lm`, of one layer: for tests of what a model is asked, which compile it under several shapes."""
    shape: dict[str, Any] = dict(vocab_size=words().vocab_size, context_length=61, layers=1)
    heads: dict[str, Any] = {} if family == "lstm" else dict(heads=2, hidden=10)
    net = model.build(ModelConfig(**shape, **heads, width=12, family=family))
    shapes = jax.eval_shape(functools.partial(model.init, net), key=jax.random.key(0))
    numbers = np.random.default_rng(0)  # numpy's, which compile nothing
    params = jax.tree.map(lambda x: numbers.normal(0.1, 0.7, x.shape).astype(np.float32), shapes)
    return model.LM(net.config, params, words(), net)


@dataclasses.dataclass(frozen=True)
class Scripted:
    """A net whose logits after a token at a position are `params["by_token"][token] + params["by_position"][position]`.

    It stands behind the same call as a transformer; its cache counts tokens and holds nothing.
    """

    config: ModelConfig
    runtime: Runtime = Runtime()

    def apply(
        self,
        variables: Any,
        tokens_BT: jax.Array,
        mask: jax.Array,
        cache: cache.Cache,
        method: str,
    ) -> Any:
        params = variables["params"]
        length = tokens_BT.shape[1]
        positions_BT = cache.lengths_B[:, None] + jnp.arange(length, dtype=jnp.int32)[None]
        logits_BTV = (
            jnp.take(params["by_token"], tokens_BT, axis=0)
            + jnp.take(params["by_position"], positions_BT, axis=0, mode="clip")
        )  # fmt: skip
        lengths_B = cache.lengths_B + mask.sum(axis=1, dtype=jnp.int32)
        memory = cache.replace(lengths_B=lengths_B)
        return {"read": memory, "extend": (logits_BTV, memory), "trace": (logits_BTV, memory, {})}[
            method
        ]


class Letters:
    """A tokenizer of single letters: id 0 is `a`; none begins a text, and `eos_id` ends it if given."""

    bos_id = None
    prefix_ids = suffix_ids = ()
    digest = "0" * 64

    def __init__(self, vocab_size: int, eos_id: int | None):
        self.vocab_size, self.eos_id = vocab_size, eos_id
        self.eos_ids = () if eos_id is None else (eos_id,)

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - ord("a") for letter in text]

    def decode(self, ids) -> str:
        return self._join(ids).decode()

    def reader(self):
        return segmentation.Bytes(lambda i: self._join([i]))

    def raw(self, id: int, *, first: bool = False) -> bytes:
        return self._join([id])

    def _join(self, ids) -> bytes:
        return bytes(ord("a") + i for i in ids)


def scripted(
    by_token: Any = None,
    by_position: Any = None,
    *,
    eos_id: int | None = None,
    context_length: int = 64,
) -> model.LM:
    """A model whose logits are given: after each token [V, V], at each position [S, V], or both, added up.

    `by_position[p]` stands for the logits that the token at position p yields: for the token at p + 1.
    """
    table = by_token if by_token is not None else by_position
    size = np.shape(table)[-1]
    params = {
        "by_token": np.zeros((size, size)) if by_token is None else by_token,
        "by_position": np.zeros((1, size)) if by_position is None else by_position,
    }
    params = {name: jnp.asarray(np.asarray(table, np.float32)) for name, table in params.items()}
    config = ModelConfig(vocab_size=size, context_length=context_length, layers=1, width=2, heads=1)
    return model.LM(
        config=config,
        params=params,
        tokenizer=Letters(size, eos_id),
        net=Scripted(config),
    )
