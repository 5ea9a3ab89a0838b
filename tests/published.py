"""Directories as Hugging Face's libraries save them, of every architecture, small and with random weights."""

import json

import numpy as np
from flax import linen as nn
from safetensors import numpy as reference

import model
from model import hf

DECODER = dict(
    vocab_size=37,
    hidden_size=24,
    intermediate_size=28,
    num_hidden_layers=3,
    num_attention_heads=6,
    max_position_embeddings=31,
    bos_token_id=1,
    eos_token_id=2,
)
GROUPED = DECODER | dict(num_key_value_heads=2)
GPT2 = dict(vocab_size=37, n_positions=31, n_embd=24, n_layer=2, n_head=6) | dict(
    bos_token_id=1, eos_token_id=1
)
T5 = dict(vocab_size=37, d_model=24, d_kv=14, d_ff=29, num_heads=6, num_layers=2) | dict(
    num_decoder_layers=3
)
TWO = dict(vocab_size=37, d_model=24, encoder_layers=2, decoder_layers=3) | dict(
    encoder_ffn_dim=29,
    decoder_ffn_dim=29,
    encoder_attention_heads=6,
    decoder_attention_heads=6,
    max_position_embeddings=31,
)
MARIAN = TWO | dict(pad_token_id=0, decoder_start_token_id=0, scale_embedding=True)
DISTILBERT = dict(vocab_size=37, dim=24, n_layers=2, n_heads=6, hidden_dim=29) | dict(
    max_position_embeddings=31, num_labels=3
)
LLAMA3 = dict(rope_type="llama3", rope_theta=5e5, factor=8.0) | dict(
    low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16
)
YARN = dict(rope_type="yarn", rope_theta=5e5, factor=8.0, original_max_position_embeddings=16)
ENCODERS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "Model")
# Which class, and the config it is made from.
CASES: dict[str, tuple[str, dict]] = {
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "gpt2-untied": ("GPT2LMHeadModel", GPT2 | dict(tie_word_embeddings=False)),
    "llama": ("LlamaForCausalLM", GROUPED),
    "llama-tied": (
        "LlamaForCausalLM",
        GROUPED | dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True, head_dim=14),
    ),
    "llama3": ("LlamaForCausalLM", GROUPED | dict(rope_parameters=LLAMA3)),
    "llama-yarn": ("LlamaForCausalLM", GROUPED | dict(rope_parameters=YARN)),
    "mistral": ("MistralForCausalLM", GROUPED | dict(sliding_window=7)),
    "mixtral": ("MixtralForCausalLM", GROUPED | dict(num_local_experts=3)),
    "qwen2": (
        "Qwen2ForCausalLM",
        GROUPED | dict(use_sliding_window=True, sliding_window=7, max_window_layers=1),
    ),
    "qwen3": ("Qwen3ForCausalLM", GROUPED | dict(head_dim=14)),
    "gemma2": (
        "Gemma2ForCausalLM",
        GROUPED | dict(head_dim=14, query_pre_attn_scalar=17, sliding_window=5),
    ),
    "bloom": ("BloomForCausalLM", dict(vocab_size=37, hidden_size=24, n_layer=2, n_head=6)),
    "gpt_neox": ("GPTNeoXForCausalLM", DECODER | dict(rotary_pct=0.5)),
    "gpt_neox-pre": (
        "GPTNeoXForCausalLM",
        DECODER | dict(rotary_pct=0.5, use_parallel_residual=False),
    ),
    **{f"bert-{head}": (f"Bert{head}", DECODER) for head in (*ENCODERS, "ForPreTraining")},
    "bert-untied": ("BertForMaskedLM", DECODER | dict(tie_word_embeddings=False)),
    **{
        f"roberta-{head}": (f"Roberta{head}", DECODER | dict(type_vocab_size=1, pad_token_id=1))
        for head in ENCODERS
    },
    **{f"distilbert-{head}": (f"DistilBert{head}", DISTILBERT) for head in ENCODERS},
    "t5": ("T5ForConditionalGeneration", T5),
    "t5-1.1": (
        "T5ForConditionalGeneration",
        T5 | dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    ),
    "bart": ("BartForConditionalGeneration", TWO),
    "bart-scaled": ("BartForConditionalGeneration", TWO | dict(scale_embedding=True)),
    "marian": ("MarianMTModel", MARIAN | dict(activation_function="swish")),
}
SOME = ("gpt2", "llama-tied", "mixtral", "gemma2", "bert-ForMaskedLM", "t5", "bart", "marian")


def config_json(case):
    """What a config.json of the case says; the keys that transformers adds matter only to transformers."""
    cls, values = CASES[case]
    kinds = {"gpt2": "gpt2", "llama3": "llama"}
    return dict(values, architectures=[cls], model_type=kinds.get(case, case.split("-")[0]))


def theirs(directory, case):
    """A Hugging Face directory with random weights, made without any library of theirs; its config and tensors."""
    directory.mkdir()
    said = config_json(case)
    config = hf.model_config(said)
    draw = np.random.default_rng(5)
    shapes = hf.flatten(nn.meta.unbox(model.abstract(config)))
    leaves = {path: draw.normal(size=leaf.shape).astype("f4") for path, leaf in shapes.items()}
    tensors = hf.to_theirs(said["model_type"], config, hf.nest(leaves))
    write(directory, said, tensors)
    return said, tensors


def write(directory, said, tensors):
    (directory / "config.json").write_text(json.dumps(said))
    reference.save_file(tensors, directory / "model.safetensors")


def read(directory):
    found = {}
    for path in directory.glob("*.safetensors"):
        found |= reference.load_file(path)
    return found


def assert_same(one, two):
    assert set(one) == set(two)
    for name, array in one.items():
        assert array.dtype == two[name].dtype, name
        np.testing.assert_array_equal(array.view("u1"), two[name].view("u1"), err_msg=name)
