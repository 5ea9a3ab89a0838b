"""Theirs: what does the config.json of decoders say of their weights? One form per `model_type`, read both ways."""

from typing import Any

from model import errors, forms
from model.config import Experts, ModelConfig, Scores
from model.forms import SIZES, Form, Theirs

LLAMA_KEYS = {**SIZES, "rms_norm_eps": "norm_epsilon", "tie_word_embeddings": "tied"}
LLAMA_DEFAULTS = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_theta": 10_000.0}


def _read_llama(theirs: Theirs) -> dict[str, Any]:
    attention, mlp = bool(theirs.get("attention_bias")), bool(theirs.get("mlp_bias"))
    if mlp and not attention:
        raise forms.refused("mlp_bias", True, ("false, or attention_bias beside it",))
    return dict(
        kv_heads=theirs.get("num_key_value_heads") or theirs["num_attention_heads"],
        head_size=theirs.get("head_dim") or 0,
        activation=forms.activation("hidden_act", theirs.get("hidden_act", "silu"), gated=True),
        rope=forms.read_rope(theirs),
        bias="all" if mlp else "attention" if attention else "none",
    )


def _write_llama(config: ModelConfig) -> dict[str, Any]:
    return {
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "hidden_act": forms.their_activation(config),
        "attention_bias": config.bias in ("attention", "all"),
        "mlp_bias": config.bias == "all",
        **forms.write_rope(config.rope),
    }


def _write_whole(config: ModelConfig) -> dict[str, Any]:
    """For transformers the heads of LLaMA and Gemma 2 divide the width, though head_dim says how large they are."""
    if config.width % config.heads:
        raise forms.refused("num_attention_heads", config.heads, (f"divisors of {config.width}",))
    return _write_llama(config)


def _read_mistral(theirs: Theirs) -> dict[str, Any]:
    window = theirs.get("sliding_window")
    return _read_llama(theirs) | {"windows": (window,) if window else ()}


def _write_mistral(config: ModelConfig) -> dict[str, Any]:
    return _write_llama(config) | {"sliding_window": max(config.windows, default=None)}


def _read_mixtral(theirs: Theirs) -> dict[str, Any]:
    experts = Experts(theirs["num_local_experts"], theirs["num_experts_per_tok"])
    return _read_mistral(theirs) | {"experts": experts}


def _write_mixtral(config: ModelConfig) -> dict[str, Any]:
    count, chosen = config.experts.count, config.experts.chosen
    return _write_mistral(config) | {"num_local_experts": count, "num_experts_per_tok": chosen}


def _read_qwen(theirs: Theirs) -> dict[str, Any]:
    slides = bool(theirs.get("use_sliding_window"))
    full = theirs.get("max_window_layers", 28) if slides else theirs["num_hidden_layers"]
    default = [
        "full_attention" if i < full else "sliding_attention"
        for i in range(theirs["num_hidden_layers"])
    ]
    values = {**theirs, "sliding_window": theirs.get("sliding_window", 4096) if slides else None}
    return _read_llama(values) | {"windows": forms.read_windows(values, default)}


def _read_qwen2(theirs: Theirs) -> dict[str, Any]:
    return _read_qwen(theirs) | {"bias": "qkv"}


def _read_qwen3(theirs: Theirs) -> dict[str, Any]:
    return _read_qwen(theirs) | {"scores": Scores(norm=True)}


def _write_qwen(config: ModelConfig) -> dict[str, Any]:
    windows = forms.write_windows(config)
    return _write_llama(config) | windows | {"use_sliding_window": any(config.windows)}


def _read_gemma2(theirs: Theirs) -> dict[str, Any]:
    slides = ("sliding_attention", "full_attention")
    default = [slides[i % 2] for i in range(theirs["num_hidden_layers"])]
    act = theirs.get("hidden_activation") or theirs.get("hidden_act") or "gelu_pytorch_tanh"
    if theirs["query_pre_attn_scalar"] <= 0:
        raise errors.BadInput(
            f"config.json: query_pre_attn_scalar is {theirs['query_pre_attn_scalar']}; it must be above 0"
        )
    scale = theirs["query_pre_attn_scalar"] ** -0.5
    return _read_llama({**theirs, "hidden_act": act}) | dict(
        windows=forms.read_windows(theirs, default),
        scores=Scores(scale=scale, cap=theirs["attn_logit_softcapping"] or 0.0),
        logit_cap=theirs["final_logit_softcapping"] or 0.0,
    )


def _write_gemma2(config: ModelConfig) -> dict[str, Any]:
    written = _write_whole(config)
    scalar = (config.scores.scale or config.head_size**-0.5) ** -2
    return written | dict(
        forms.write_windows(config),
        hidden_activation=written["hidden_act"],
        query_pre_attn_scalar=round(scalar) if abs(scalar - round(scalar)) < 1e-6 else scalar,
        attn_logit_softcapping=config.scores.cap or None,
        final_logit_softcapping=config.logit_cap or None,
    )


def _read_neox(theirs: Theirs) -> dict[str, Any]:
    rope = forms.read_rope({**theirs, "partial_rotary_factor": theirs["rotary_pct"]})
    return dict(
        rope=rope,
        block="parallel" if theirs["use_parallel_residual"] else "pre",
        activation=forms.activation("hidden_act", theirs["hidden_act"]),
    )


def _write_neox(config: ModelConfig) -> dict[str, Any]:
    written = forms.write_rope(config.rope)
    return written | dict(
        rotary_pct=config.rope.fraction,
        rotary_emb_base=written.pop("rope_theta"),
        use_parallel_residual=config.block == "parallel",
        hidden_act=forms.their_activation(config),
    )


LLAMA_FORM: dict[str, Any] = dict(
    fixed={}, read=_read_llama, write=_write_whole, defaults=LLAMA_DEFAULTS
)
NO_PART: dict[str, tuple] = {"partial_rotary_factor": (None, 1.0)}
NO_BIAS: dict[str, tuple] = {"attention_bias": (False, None), "mlp_bias": (False, None)}
FORMS = {
    "gpt2": Form(
        classes={"GPT2LMHeadModel": "lm", "GPT2Model": "lm"},
        keys={
            "vocab_size": "vocab_size",
            "n_positions": "context_length",
            "n_embd": "width",
            "n_layer": "layers",
            "n_head": "heads",
            "n_inner": "hidden",
            "layer_norm_epsilon": "norm_epsilon",
            "tie_word_embeddings": "tied",
        },
        fixed=dict(position="learned", norm="layer", bias="all"),
        defaults={
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            "tie_word_embeddings": True,
            "n_inner": None,
        },
        demands={"scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,)},
        **forms.activations("activation_function", tanh="gelu_new"),
    ),
    "llama": Form(
        classes={"LlamaForCausalLM": "lm"}, keys=LLAMA_KEYS, demands=NO_PART, **LLAMA_FORM
    ),
    "mistral": Form(
        classes={"MistralForCausalLM": "lm"},
        keys=LLAMA_KEYS,
        fixed={},
        read=_read_mistral,
        write=_write_mistral,
        defaults=LLAMA_DEFAULTS | {"num_key_value_heads": 8, "sliding_window": 4096},
        demands=NO_PART | NO_BIAS,
    ),
    "mixtral": Form(
        classes={"MixtralForCausalLM": "lm"},
        keys=LLAMA_KEYS,
        fixed={},
        read=_read_mixtral,
        write=_write_mixtral,
        defaults=LLAMA_DEFAULTS
        | {
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
        demands=NO_PART | NO_BIAS,
    ),
    "qwen2": Form(
        classes={"Qwen2ForCausalLM": "lm"},
        keys=LLAMA_KEYS,
        fixed={},
        read=_read_qwen2,
        write=_write_qwen,
        defaults=LLAMA_DEFAULTS | {"num_key_value_heads": 32},
        demands=NO_PART | NO_BIAS,
    ),
    "qwen3": Form(
        classes={"Qwen3ForCausalLM": "lm"},
        keys=LLAMA_KEYS,
        fixed={},
        read=_read_qwen3,
        write=_write_qwen,
        defaults=LLAMA_DEFAULTS | {"num_key_value_heads": 32, "head_dim": 128},
        demands=NO_PART | {"mlp_bias": (False, None)},
    ),
    "gemma2": Form(
        classes={"Gemma2ForCausalLM": "lm"},
        keys=LLAMA_KEYS,
        fixed=dict(norm="rms_plus_one", block="sandwich", embedding="scaled"),
        read=_read_gemma2,
        write=_write_gemma2,
        defaults=LLAMA_DEFAULTS
        | {
            "tie_word_embeddings": True,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        demands=NO_PART | {"mlp_bias": (False, None), "use_bidirectional_attention": (None, False)},
    ),
    "bloom": Form(
        classes={"BloomForCausalLM": "lm", "BloomModel": "lm"},
        keys={
            "vocab_size": "vocab_size",
            "hidden_size": "width",
            "n_layer": "layers",
            "n_head": "heads",
            "seq_length": "context_length",
            "layer_norm_epsilon": "norm_epsilon",
            "tie_word_embeddings": "tied",
        },
        fixed=dict(
            position="alibi", norm="layer", bias="all", embedding="normed", activation="gelu_tanh"
        ),
        read=lambda theirs: {},
        write=lambda config: {},
        defaults={"seq_length": 2048, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True},
        demands={"apply_residual_connection_post_layernorm": (False,)},
        synonyms={
            "n_embed": "hidden_size",
            "num_hidden_layers": "n_layer",
            "num_attention_heads": "n_head",
        },
    ),
    "gpt_neox": Form(
        classes={"GPTNeoXForCausalLM": "lm"},
        keys={**SIZES, "layer_norm_eps": "norm_epsilon", "tie_word_embeddings": "tied"},
        fixed=dict(norm="layer", bias="all"),
        read=_read_neox,
        write=_write_neox,
        defaults={
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-5,
            "tie_word_embeddings": False,
            "rotary_pct": 0.25,
            "rope_theta": 10_000.0,
            "use_parallel_residual": True,
        },
        demands={"attention_bias": (True,)},
        synonyms={"rotary_emb_base": "rope_theta"},
    ),
}
