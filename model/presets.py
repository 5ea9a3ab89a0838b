"""Which published models are there, and what distinguishes them?

Per family what its members share, then a table of their sizes. A config's model group names one, and may change it:
`{"preset": "gpt2-124m", "context_length": 256}`.
"""

import copy
from collections.abc import Mapping
from typing import Any

from model import errors
from model.config import ModelConfig

Values = dict[str, Any]

# The 2017 Transformer: sinusoids are added, each sum is normalised, and one table embeds both languages and gives the
# logits (Vaswani et al. 2017, section 3.4). The paper has "about 37000" shared tokens and no longest row.
TRANSFORMER: Values = dict(
    family="encoder_decoder",
    vocab_size=37_000,
    context_length=512,
    position="sinusoidal",
    norm="layer",
    norm_epsilon=1e-6,
    block="post",
    activation="relu",
    bias="all",
    tied=True,
    embedding="scaled",
)

# BERT: the Transformer's encoder alone, with learned positions and token types, GELU, and the sum of embeddings normed.
BERT: Values = dict(
    family="encoder_only",
    context_length=512,
    position="learned",
    norm="layer",
    norm_epsilon=1e-12,
    block="post",
    activation="gelu",
    bias="all",
    tied=True,
    embedding="normed",
    token_types=2,
)

# RoBERTa: BERT trained longer on byte-level tokens; one token type, and positions count from 2.
ROBERTA = BERT | dict(
    vocab_size=50_265, position="learned_from_2", norm_epsilon=1e-5, token_types=1
)

# DistilBERT: every other layer of BERT, without token types.
DISTILBERT = BERT | dict(token_types=0)

# BART: BERT's layers as encoder and decoder.
BART: Values = dict(
    family="encoder_decoder",
    vocab_size=50_265,
    context_length=1024,
    position="learned_from_2",
    norm="layer",
    block="post",
    activation="gelu",
    bias="all",
    tied=True,
    embedding="normed",
)

# T5: positions are a bias of the scores, learned per bucket of distances; RMSNorm first, no bias, scores not scaled.
T5: Values = dict(
    family="encoder_decoder",
    vocab_size=32_128,
    context_length=512,
    head_size=64,
    position="relative",
    scores=dict(scale=1.0),
    norm="rms",
    norm_epsilon=1e-6,
    activation="relu",
    tied=True,
    embedding="head_scaled",
)

# T5 1.1 and FLAN-T5: a gated feed-forward, and an output table of its own.
T5_V1_1 = T5 | dict(activation="geglu_tanh", tied=False, embedding="plain")

# GPT-2: a causal stack with learned positions, LayerNorm before each part, GELU, biases everywhere, one table.
GPT2: Values = dict(
    vocab_size=50_257,
    context_length=1024,
    position="learned",
    norm="layer",
    activation="gelu_tanh",
    bias="all",
    tied=True,
)

# GPT-3: GPT-2, larger. Every other layer's attention was sparse in a way that the paper does not give; ours is dense.
GPT3 = GPT2 | dict(context_length=2048)

# Jurassic-1: GPT-3 with five times the vocabulary, wider and less deep.
JURASSIC = GPT3 | dict(vocab_size=256_000)

# BLOOM: GPT-2 with ALiBi in place of learned positions, a norm behind the embedding, and tokens for 46 languages.
BLOOM = GPT2 | dict(vocab_size=250_880, context_length=2048, position="alibi", embedding="normed")

# LLaMA: rotary positions, RMSNorm, SwiGLU of 8/3 the width, no bias, an output table of its own.
LLAMA: Values = dict(
    vocab_size=32_000,
    context_length=2048,
    position="rope",
    norm="rms",
    norm_epsilon=1e-6,
    activation="swiglu",
)

# LLaMA 2: twice the context; the largest shares keys and values among eight heads.
LLAMA2 = LLAMA | dict(context_length=4096, norm_epsilon=1e-5)

# LLaMA 3: four times the vocabulary, slower rotations, grouped heads at every size.
LLAMA3 = LLAMA | dict(
    vocab_size=128_256, context_length=8192, norm_epsilon=1e-5, kv_heads=8, rope=dict(theta=5e5)
)

# LLaMA 3.1: the slow rotations of LLAMA3 are slowed further, for sixteen times its context; 3.2's small ones more so.
LLAMA3_1 = LLAMA3 | dict(
    context_length=131_072,
    rope=dict(theta=5e5, scaling="llama3", factor=8.0, original_length=8192, low=1.0, high=4.0),
)
LLAMA3_2 = LLAMA3_1 | dict(rope={**LLAMA3_1["rope"], "factor": 32.0}, tied=True)

# Mistral: LLaMA with grouped heads, where each layer sees 4096 tokens back.
MISTRAL = LLAMA | dict(context_length=32_768, norm_epsilon=1e-5, kv_heads=8, windows=(4096,))

# Mixtral: Mistral without the window, and each token's feed-forward is 2 of 8 experts.
MIXTRAL = MISTRAL | dict(windows=(), rope=dict(theta=1e6), experts=dict(count=8, chosen=2))

# Qwen 2 and 2.5: LLaMA with grouped heads, and biases on queries, keys and values.
QWEN2 = LLAMA | dict(vocab_size=152_064, context_length=131_072, bias="qkv", rope=dict(theta=1e6))

# Qwen 3: those biases are gone; each head's queries and keys are normed instead, and heads have 128 entries.
QWEN3 = QWEN2 | dict(
    vocab_size=151_936,
    context_length=40_960,
    bias="none",
    kv_heads=8,
    head_size=128,
    scores=dict(norm=True),
)

# Gemma 2: norms on both sides of each part, caps on scores and logits, every other layer sees 4096 tokens back.
GEMMA2: Values = dict(
    vocab_size=256_000,
    context_length=8192,
    head_size=256,
    position="rope",
    windows=(4096, 0),
    scores=dict(scale=256**-0.5, cap=50.0),
    norm="rms_plus_one",
    norm_epsilon=1e-6,
    block="sandwich",
    activation="geglu_tanh",
    tied=True,
    embedding="scaled",
    logit_cap=30.0,
)

# Its largest has smaller heads, and scales scores by its width / heads, not by what a head has.
GEMMA2_27B = GEMMA2 | dict(head_size=128, scores=dict(scale=144**-0.5, cap=50.0))

# GPT-NeoX: attention and feed-forward read the same input; a quarter of each head is rotated.
NEOX: Values = dict(
    context_length=2048,
    position="rope",
    rope=dict(fraction=0.25),
    norm="layer",
    block="parallel",
    activation="gelu",
    bias="all",
)

# fmt: off
PRESETS: dict[str, Values] = {
    # Vaswani et al. 2017, table 3.
    "transformer-base": TRANSFORMER | dict(layers=6, width=512, heads=8),
    "transformer-big": TRANSFORMER | dict(layers=6, width=1024, heads=16),
    # Devlin et al. 2019, section 3; Liu et al. 2019; Sanh et al. 2019.
    "bert-base-uncased": BERT | dict(vocab_size=30_522, layers=12, width=768, heads=12),
    "bert-base-cased": BERT | dict(vocab_size=28_996, layers=12, width=768, heads=12),
    "bert-large-uncased": BERT | dict(vocab_size=30_522, layers=24, width=1024, heads=16),
    "bert-large-cased": BERT | dict(vocab_size=28_996, layers=24, width=1024, heads=16),
    "roberta-base": ROBERTA | dict(layers=12, width=768, heads=12),
    "roberta-large": ROBERTA | dict(layers=24, width=1024, heads=16),
    "distilbert-base-uncased": DISTILBERT | dict(vocab_size=30_522, layers=6, width=768, heads=12),
    "distilbert-base-cased": DISTILBERT | dict(vocab_size=28_996, layers=6, width=768, heads=12),
    # Lewis et al. 2020.
    "bart-base": BART | dict(layers=6, width=768, heads=12),
    "bart-large": BART | dict(layers=12, width=1024, heads=16),
    # Raffel et al. 2020, section 3.7; the two largest widen only heads and feed-forward.
    "t5-small": T5 | dict(layers=6, width=512, heads=8, hidden=2048),
    "t5-base": T5 | dict(layers=12, width=768, heads=12, hidden=3072),
    "t5-large": T5 | dict(layers=24, width=1024, heads=16, hidden=4096),
    "t5-3b": T5 | dict(layers=24, width=1024, heads=32, head_size=128, hidden=16_384),
    "t5-11b": T5 | dict(layers=24, width=1024, heads=128, head_size=128, hidden=65_536),
    "t5-v1.1-small": T5_V1_1 | dict(layers=8, width=512, heads=6, hidden=1024),
    "t5-v1.1-base": T5_V1_1 | dict(layers=12, width=768, heads=12, hidden=2048),
    "t5-v1.1-large": T5_V1_1 | dict(layers=24, width=1024, heads=16, hidden=2816),
    "t5-v1.1-xl": T5_V1_1 | dict(layers=24, width=2048, heads=32, hidden=5120),
    "t5-v1.1-xxl": T5_V1_1 | dict(layers=24, width=4096, heads=64, hidden=10_240),
    # Radford et al. 2019, table 2, with the counts of what was released.
    "gpt2-124m": GPT2 | dict(layers=12, width=768, heads=12),
    "gpt2-355m": GPT2 | dict(layers=24, width=1024, heads=16),
    "gpt2-774m": GPT2 | dict(layers=36, width=1280, heads=20),
    "gpt2-1.5b": GPT2 | dict(layers=48, width=1600, heads=25),
    # Brown et al. 2020, table 2.1. Its 1.3B has 24 heads of 128, which are more than its width, and would be 1.5B.
    "gpt3-125m": GPT3 | dict(layers=12, width=768, heads=12),
    "gpt3-350m": GPT3 | dict(layers=24, width=1024, heads=16),
    "gpt3-760m": GPT3 | dict(layers=24, width=1536, heads=16),
    "gpt3-1.3b": GPT3 | dict(layers=24, width=2048, heads=16),
    "gpt3-2.7b": GPT3 | dict(layers=32, width=2560, heads=32),
    "gpt3-6.7b": GPT3 | dict(layers=32, width=4096, heads=32),
    "gpt3-13b": GPT3 | dict(layers=40, width=5140, heads=40, head_size=128),
    "gpt3-175b": GPT3 | dict(layers=96, width=12_288, heads=96),
    # Lieber et al. 2021, table 1.
    "jurassic1-large": JURASSIC | dict(layers=32, width=4096, heads=32),
    "jurassic1-jumbo": JURASSIC | dict(layers=76, width=13_824, heads=96),
    # BigScience 2022, table 3.
    "bloom-560m": BLOOM | dict(layers=24, width=1024, heads=16),
    "bloom-1.1b": BLOOM | dict(layers=24, width=1536, heads=16),
    "bloom-1.7b": BLOOM | dict(layers=24, width=2048, heads=16),
    "bloom-3b": BLOOM | dict(layers=30, width=2560, heads=32),
    "bloom-7.1b": BLOOM | dict(layers=30, width=4096, heads=32),
    "bloom-176b": BLOOM | dict(layers=70, width=14_336, heads=112),
    # Touvron et al. 2023a, table 2; 2023b; Grattafiori et al. 2024, table 3.
    "llama-7b": LLAMA | dict(layers=32, width=4096, heads=32, hidden=11_008),
    "llama-13b": LLAMA | dict(layers=40, width=5120, heads=40, hidden=13_824),
    "llama-33b": LLAMA | dict(layers=60, width=6656, heads=52, hidden=17_920),
    "llama-65b": LLAMA | dict(layers=80, width=8192, heads=64, hidden=22_016, norm_epsilon=1e-5),
    "llama2-7b": LLAMA2 | dict(layers=32, width=4096, heads=32, hidden=11_008),
    "llama2-13b": LLAMA2 | dict(layers=40, width=5120, heads=40, hidden=13_824),
    "llama2-70b": LLAMA2 | dict(layers=80, width=8192, heads=64, kv_heads=8, hidden=28_672),
    "llama3-8b": LLAMA3 | dict(layers=32, width=4096, heads=32, hidden=14_336),
    "llama3-70b": LLAMA3 | dict(layers=80, width=8192, heads=64, hidden=28_672),
    "llama3.1-8b": LLAMA3_1 | dict(layers=32, width=4096, heads=32, hidden=14_336),
    "llama3.1-70b": LLAMA3_1 | dict(layers=80, width=8192, heads=64, hidden=28_672),
    "llama3.1-405b": LLAMA3_1 | dict(layers=126, width=16_384, heads=128, hidden=53_248),
    "llama3.2-1b": LLAMA3_2 | dict(layers=16, width=2048, heads=32, hidden=8192),
    "llama3.2-3b": LLAMA3_2 | dict(layers=28, width=3072, heads=24, hidden=8192),
    # Jiang et al. 2023, table 1; 2024, table 1.
    "mistral-7b": MISTRAL | dict(layers=32, width=4096, heads=32, hidden=14_336),
    "mixtral-8x7b": MIXTRAL | dict(layers=32, width=4096, heads=32, hidden=14_336),
    # Yang et al. 2024a, 2024b and 2025, each table 1, with the vocabularies of what was released.
    "qwen2-0.5b": QWEN2 | dict(vocab_size=151_936, layers=24, width=896, heads=14, kv_heads=2, hidden=4864, tied=True),
    "qwen2-7b": QWEN2 | dict(layers=28, width=3584, heads=28, kv_heads=4, hidden=18_944),
    "qwen2.5-14b": QWEN2 | dict(layers=48, width=5120, heads=40, kv_heads=8, hidden=13_824, norm_epsilon=1e-5),
    "qwen3-0.6b": QWEN3 | dict(layers=28, width=1024, heads=16, hidden=3072, tied=True),
    "qwen3-8b": QWEN3 | dict(layers=36, width=4096, heads=32, hidden=12_288),
    # Gemma Team 2024, table 1.
    "gemma2-2b": GEMMA2 | dict(layers=26, width=2304, heads=8, kv_heads=4, hidden=9216),
    "gemma2-9b": GEMMA2 | dict(layers=42, width=3584, heads=16, kv_heads=8, hidden=14_336),
    "gemma2-27b": GEMMA2_27B | dict(layers=46, width=4608, heads=32, kv_heads=16, hidden=36_864),
    # Black et al. 2022, section 2; Biderman et al. 2023, table 1.
    "neox-20b": NEOX | dict(vocab_size=50_432, layers=44, width=6144, heads=64, activation="gelu_tanh"),
    "pythia-160m": NEOX | dict(vocab_size=50_304, layers=12, width=768, heads=12),
    "pythia-1.4b": NEOX | dict(vocab_size=50_304, layers=24, width=2048, heads=16),
    "pythia-6.9b": NEOX | dict(vocab_size=50_432, layers=32, width=4096, heads=32),
    "pythia-12b": NEOX | dict(vocab_size=50_688, layers=36, width=5120, heads=40),
}
# fmt: on


def get(name: str) -> Values:
    """The values of `ModelConfig` that make the published model of that name.

    Raises:
        BadInput: when there is none.
    """
    if not isinstance(name, str) or name not in PRESETS:
        raise errors.BadInput(
            f"there is no preset {name!r}{errors.nearest(str(name), PRESETS)}; known: {', '.join(PRESETS)}"
        )
    return copy.deepcopy(PRESETS[name])


def config(name: str, **changes: Any) -> ModelConfig:
    """The published model of that name, with `changes`."""
    return errors.build(ModelConfig, resolve({"preset": name, **changes}), f"preset {name}")


def resolve(group: Mapping[str, Any]) -> Values:
    """A config's model group without `preset`: the values it names, changed by the others; subgroups key by key.

    Example: `{"preset": "llama3-8b", "rope": {"fraction": 0.5}}` has `{"theta": 500000.0, "fraction": 0.5}` as `rope`.
    """
    changes = dict(group)
    if "preset" not in changes:
        return changes
    values = get(changes.pop("preset"))
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(values.get(key), Mapping)
        values[key] = {**values[key], **value} if both else value
    return values
