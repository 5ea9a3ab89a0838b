"""Which models of torch and transformers do we compare with, in what awkward shapes, and what are they asked?

Each is a `config.json` as its hub would have it, and random weights that anybody can draw again from a tensor's name
and shape. `oracles` says what it answers.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

VOCABULARY = 67
FIRST = 3  # 0, 1 and 2 stand for padding, beginning or end in one config or another
EPSILON = 0.02  # of norms, so large that any other shows
TWO_SIDED = ("t5", "bart", "marian", "encoder_decoder")

Row = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Reference:
    """A model of theirs.

    Attributes:
        builds: the class of transformers, or the name in `torch_models.MODELS`.
        config: what its config.json says; of a model of torch, our ModelConfig.
        lengths: of the rows it reads: one token, some, the whole window.
        more: tensors that its files have, though a model made from its config would tie them.
        zeros: tensors that are zero in every published file, and nothing in our model.
    """

    builds: str
    config: dict[str, Any]
    lengths: tuple[int, int, int] = (1, 7, 19)
    more: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    zeros: tuple[str, ...] = ()

    @property
    def architecture(self) -> str:
        """The name of its table in `model.hf`."""
        return self.config.get("model_type") or self.config["family"]

    @property
    def two_sided(self) -> bool:
        """Whether it reads a source and writes a target."""
        return self.architecture in TWO_SIDED

    @property
    def classes(self) -> int:
        """How many logits it gives."""
        return len(self.config.get("id2label", ())) or VOCABULARY


def _llama(builds: str = "Llama", window: int = 19, **other: Any) -> Reference:
    """LLaMA and its like: grouped heads that together are wider than the model, and a head of its own."""
    config = dict(
        model_type=builds.lower(),
        vocab_size=VOCABULARY,
        hidden_size=18,
        intermediate_size=43,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=14,
        max_position_embeddings=window,
        rms_norm_eps=EPSILON,
        rope_theta=5000.0,
        tie_word_embeddings=False,
    )
    config = {key: value for key, value in (config | other).items() if value is not None}
    return Reference(f"{builds}ForCausalLM", config, (1, window // 2, window))


def _gpt_neox(**other: Any) -> Reference:
    config = dict(
        model_type="gpt_neox",
        vocab_size=VOCABULARY,
        hidden_size=39,
        intermediate_size=41,
        num_hidden_layers=2,
        num_attention_heads=3,
        max_position_embeddings=19,
        rotary_pct=0.47,
        rotary_emb_base=1000,
        layer_norm_eps=EPSILON,
    )
    return Reference("GPTNeoXForCausalLM", config | other)


def _bloom(width: int, heads: int) -> Reference:
    config = dict(
        model_type="bloom",
        vocab_size=VOCABULARY,
        hidden_size=width,
        n_layer=2,
        n_head=heads,
        seq_length=19,
        layer_norm_epsilon=EPSILON,
    )
    return Reference("BloomForCausalLM", config)


def _encoder(builds: str, head: str, classes: int = 0) -> Reference:
    """BERT, RoBERTa or DistilBERT with one of its heads."""
    sizes = dict(
        hidden_size=20,
        num_attention_heads=5,
        num_hidden_layers=2,
        intermediate_size=37,
        layer_norm_eps=EPSILON,
    )
    config: dict[str, Any] = {
        "Bert": dict(**sizes, max_position_embeddings=19, type_vocab_size=3, pad_token_id=0),
        "Roberta": dict(**sizes, max_position_embeddings=21, type_vocab_size=1, pad_token_id=1),
        "DistilBert": dict(
            dim=20,
            n_heads=5,
            n_layers=2,
            hidden_dim=37,
            activation="gelu",
            max_position_embeddings=19,
            pad_token_id=0,
        ),
    }[builds]
    config |= dict(model_type=builds.lower(), vocab_size=VOCABULARY)
    if classes:
        config["id2label"] = {str(i): f"class {i}" for i in range(classes)}
        config["label2id"] = {f"class {i}": i for i in range(classes)}
    return Reference(f"{builds}For{head}", config)


def _t5(lengths: tuple[int, int, int] = (1, 7, 19), **other: Any) -> Reference:
    config = dict(
        model_type="t5",
        vocab_size=VOCABULARY,
        d_model=18,
        d_kv=7,
        d_ff=43,
        num_layers=2,
        num_decoder_layers=3,
        num_heads=5,
        decoder_start_token_id=0,
        layer_norm_epsilon=EPSILON,
    )
    untied = other.get("tie_word_embeddings") is False
    more = {"lm_head.weight": (VOCABULARY, 18)} if untied else {}
    return Reference("T5ForConditionalGeneration", config | other, lengths, more)


def _bart(builds: str, **other: Any) -> Reference:
    """BART and Marian."""
    config = dict(
        vocab_size=VOCABULARY,
        d_model=18,
        max_position_embeddings=19,
        encoder_layers=3,
        encoder_attention_heads=3,
        encoder_ffn_dim=41,
        decoder_layers=2,
        decoder_attention_heads=3,
        decoder_ffn_dim=41,
        pad_token_id=1,
    )
    zeros = ("final_logits_bias",) if builds.startswith("Bart") else ()
    return Reference(builds, config | other, zeros=zeros)


def _of_torch(family: str, **other: Any) -> Reference:
    config = dict(family=family, vocab_size=VOCABULARY, context_length=19, layers=2, width=18)
    return Reference(family, config | other)


REFERENCES: dict[str, Reference] = {
    "gpt2": Reference(
        "GPT2LMHeadModel",
        dict(
            model_type="gpt2",
            vocab_size=VOCABULARY,
            n_embd=21,
            n_head=3,
            n_layer=2,
            n_inner=43,
            n_positions=19,
            layer_norm_epsilon=EPSILON,
        ),
    ),
    "llama": _llama(),
    "llama-one-kv-head": _llama(
        hidden_size=20,
        num_attention_heads=5,
        num_key_value_heads=1,
        head_dim=6,
        attention_bias=True,
    ),
    "llama-100-heads": _llama(
        hidden_size=100, num_attention_heads=100, num_key_value_heads=20, head_dim=2
    ),
    "llama-linear": _llama(window=31, rope_scaling=dict(rope_type="linear", factor=3.0)),
    "llama-dynamic": _llama(window=31, rope_scaling=dict(rope_type="dynamic", factor=3.0)),
    # One of its seven wavelengths is below 32 / 4, one between, the others above 32 / 1: all three cases.
    "llama-llama3": _llama(
        window=61,
        rope_scaling=dict(
            rope_type="llama3",
            factor=5.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        ),
    ),
    # The ramp begins after the second of seven frequencies and ends before the last.
    "llama-yarn": _llama(
        window=58,
        rope_theta=100.0,
        rope_scaling=dict(
            rope_type="yarn",
            factor=2.0,
            beta_fast=2.0,
            beta_slow=0.25,
            original_max_position_embeddings=29,
        ),
    ),
    "mistral": _llama("Mistral", sliding_window=5),
    "mixtral": _llama("Mixtral", num_local_experts=5, num_experts_per_tok=2),
    "qwen2": _llama("Qwen2", hidden_size=24, head_dim=None, tie_word_embeddings=True),
    "qwen2-windows": _llama(
        "Qwen2",
        hidden_size=24,
        head_dim=None,
        num_hidden_layers=3,
        use_sliding_window=True,
        sliding_window=5,
        max_window_layers=1,
    ),
    "qwen3": _llama("Qwen3"),
    "gemma2": _llama(
        "Gemma2",
        num_hidden_layers=3,
        head_dim=10,
        query_pre_attn_scalar=29,
        sliding_window=5,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
        hidden_activation="gelu_pytorch_tanh",
        tie_word_embeddings=True,
    ),
    "bloom": _bloom(21, 7),
    "bloom-12-heads": _bloom(24, 12),
    "bloom-100-heads": _bloom(200, 100),
    "gpt_neox": _gpt_neox(),
    "gpt_neox-sequential": _gpt_neox(use_parallel_residual=False),
    "bert-masked": _encoder("Bert", "MaskedLM"),
    "bert-sequence": _encoder("Bert", "SequenceClassification", classes=5),
    "bert-token": _encoder("Bert", "TokenClassification", classes=7),
    "roberta-masked": _encoder("Roberta", "MaskedLM"),
    "roberta-sequence": _encoder("Roberta", "SequenceClassification", classes=5),
    "distilbert-masked": _encoder("DistilBert", "MaskedLM"),
    "distilbert-sequence": _encoder("DistilBert", "SequenceClassification", classes=5),
    "distilbert-token": _encoder("DistilBert", "TokenClassification", classes=7),
    "t5": _t5(feed_forward_proj="relu"),
    "t5-far": _t5((1, 43, 151), feed_forward_proj="relu"),  # the last bucket begins near 113
    "t5-1.1": _t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "bart": _bart("BartForConditionalGeneration", model_type="bart", activation_function="gelu"),
    "bart-scaled": _bart(
        "BartForConditionalGeneration",
        model_type="bart",
        activation_function="relu",
        scale_embedding=True,
    ),
    "marian": _bart(
        "MarianMTModel",
        model_type="marian",
        activation_function="swish",
        scale_embedding=True,
        decoder_start_token_id=1,
    ),
    "transformer-2017": _of_torch(
        "encoder_decoder",
        encoder_layers=3,
        heads=3,
        hidden=41,
        position="sinusoidal",
        norm="layer",
        block="post",
        activation="relu",
        bias="all",
        tied=True,
        embedding="scaled",
    ),
    "lstm": _of_torch("lstm"),
    "gru": _of_torch("gru"),
}


def weights(
    reference: Reference, shapes: Mapping[str, Sequence[int]], seed: str = ""
) -> dict[str, np.ndarray]:
    """Random tensors, each a function of its name, its shape and the seed.

    numpy has promised never to change the stream of RandomState. Vectors that are weights are the scales of norms, to
    which Gemma adds one. T5 does not scale its scores; its queries are smaller instead, as in its files.
    """
    made, gemma = {}, reference.architecture == "gemma2"
    for name, shape in shapes.items():
        number = int.from_bytes(hashlib.sha256((seed + name).encode()).digest()[:4], "big")
        deviation = min(0.3, 1.3 / np.sqrt(shape[-1])) * (name not in reference.zeros)
        if name.endswith("Attention.q.weight"):
            deviation *= reference.config["d_kv"] ** -0.5
        mean = float(len(shape) == 1 and name.endswith("weight") and not gemma)
        array = mean + deviation * np.random.RandomState(number).standard_normal(shape)
        made[name] = array.astype(np.float32)
    return made


def rows(reference: Reference, seed: int = 0) -> list[Row]:
    """Three rows of different lengths; source and target of one differ in length too."""
    random = np.random.RandomState(seed)
    made = []
    for i, length in enumerate(reference.lengths):
        sides = {"tokens": length}
        if reference.two_sided:
            sides = {"source": reference.lengths[(i + 1) % 3], "target": length}
        row = {side: random.randint(FIRST, VOCABULARY, many) for side, many in sides.items()}
        if types := reference.config.get("type_vocab_size", 0):
            row["types"] = random.randint(0, types, length)
        made.append({name: array.astype(np.int32) for name, array in row.items()})
    return made


def config_text(reference: Reference) -> str:
    """Its config.json."""
    named = {} if "family" in reference.config else {"architectures": [reference.builds]}
    return json.dumps(reference.config | named, indent=1)


def labels(reference: Reference, asked: list[Row]) -> Iterator[np.ndarray]:
    """Random labels for each row."""
    random = np.random.RandomState(1)
    for row in asked:
        length = len(row.get("target", row.get("tokens", ())))
        many = 1 if "Sequence" in reference.builds else length
        yield random.randint(0, reference.classes, many)
