"""One small model of each kind that the families are made of: awkward sizes, every part in some of them."""

import functools

import jax
import jax.numpy as jnp

import model
from model.config import Experts, Head, ModelConfig, Rope, Runtime, Scores

# The claims here are about the model, not about LLVM, whose optimisation takes half of the time.
FAST = {"xla_backend_optimization_level": 0}
SIZES = dict(vocab_size=101, context_length=31, layers=2, width=22, hidden=37)
LAYERED = dict(norm="layer", activation="gelu_tanh", bias="all", tied=True)
BERT = dict(
    family="encoder_only",
    block="post",
    embedding="normed",
    **{**LAYERED, "activation": "gelu"},
    **SIZES,
)
CONFIGS = {
    "gpt2": ModelConfig(heads=2, position="learned", **LAYERED, **SIZES),
    "llama": ModelConfig(heads=6, kv_heads=2, head_size=14, **SIZES),
    "multi_query": ModelConfig(heads=5, kv_heads=1, head_size=6, position="sinusoidal", **SIZES),
    "bloom": ModelConfig(
        heads=5, head_size=6, position="alibi", embedding="normed", **LAYERED, **SIZES
    ),
    "gemma2": ModelConfig(
        heads=4,
        kv_heads=2,
        head_size=10,
        windows=(5, 0),
        scores=Scores(scale=0.3, cap=3.0),
        norm="rms_plus_one",
        block="sandwich",
        activation="geglu_tanh",
        tied=True,
        embedding="scaled",
        logit_cap=7.0,
        **SIZES,
    ),
    "qwen3": ModelConfig(
        heads=4, kv_heads=2, head_size=10, scores=Scores(norm=True), bias="qkv", **SIZES
    ),
    "neox": ModelConfig(
        heads=3,
        head_size=14,
        rope=Rope(fraction=0.3),
        block="parallel",
        **{**LAYERED, "tied": False},
        **SIZES,
    ),
    "mixtral": ModelConfig(heads=3, head_size=6, windows=(7,), experts=Experts(5, 2), **SIZES),
    "bert": ModelConfig(heads=2, position="learned", token_types=2, **BERT),
    "roberta": ModelConfig(
        heads=2, position="learned_from_2", head=Head("token", ("B", "I", "O")), **BERT
    ),
    "t5": ModelConfig(
        family="encoder_decoder",
        heads=3,
        head_size=6,
        position="relative",
        scores=Scores(scale=1.0),
        activation="relu",
        tied=True,
        embedding="head_scaled",
        encoder_layers=3,
        **SIZES,
    ),
    "transformer": ModelConfig(
        family="encoder_decoder",
        heads=2,
        position="sinusoidal",
        block="post",
        embedding="scaled",
        **{**LAYERED, "activation": "relu", "bias": "output"},
        **SIZES,
    ),
    "lstm": ModelConfig(family="lstm", tied=True, **SIZES),
    "gru": ModelConfig(family="gru", **SIZES),
}
CAUSAL = [name for name, config in CONFIGS.items() if config.family != "encoder_only"]
ATTENTIVE = [name for name, config in CONFIGS.items() if config.family == "decoder_only"]


@functools.cache
def params(name: str):
    """Weights that are random and large enough to matter, one entry per layer."""
    net = model.build(CONFIGS[name])

    @functools.partial(jax.jit, compiler_options=FAST)
    def init():
        leaves, tree = jax.tree.flatten(model.init(net, key=jax.random.key(0)))
        keys = jax.random.split(jax.random.key(1), len(leaves))
        pairs = zip(keys, leaves, strict=True)
        return tree.unflatten([x + 0.2 * jax.random.normal(k, x.shape) for k, x in pairs])

    return init()


@functools.partial(jax.jit, static_argnames=("config", "runtime"), compiler_options=FAST)
def logits(config, params, tokens_BT, *, runtime=Runtime(), **looks):
    """What a model says of `tokens_BT`: of the target, with the source in reverse, where there are two sides.

    `looks` are mask, segments, prefix and types, for both sides alike.
    """
    net = model.build(config, runtime)
    if config.family != "encoder_decoder":
        return net.apply({"params": params}, tokens_BT, **looks)[0]
    sides = {f"{side}_{name}": x for name, x in looks.items() for side in ("source", "target")}
    source_BT = (tokens_BT * 7 + 3) % config.vocab_size
    return net.apply({"params": params}, source_BT, tokens_BT, **sides)[0]


def tokens(length: int = 17) -> jax.Array:
    """Two rows."""
    return jax.random.randint(jax.random.key(2), (2, length), 0, 101)


def ones(length: int = 17) -> dict[str, jax.Array]:
    """A mask and segments that change nothing."""
    return dict(mask=jnp.ones((2, length), bool), segments=jnp.ones((2, length), jnp.int32))
