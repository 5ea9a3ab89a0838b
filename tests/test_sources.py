"""Is a directory of published weights read as what it is, and is what we cannot read named in one line?"""

import json

import numpy as np
import published
import pytest
import tiny

import model
from model import bundle, errors, hf, sharding, weights


def test_a_t5_has_a_head_of_its_own_where_its_files_have_one(tmp_path):
    said, tensors = published.theirs(tmp_path / "theirs", "t5-1.1")
    for claim in (True, False):
        published.write(tmp_path / "theirs", said | dict(tie_word_embeddings=claim), tensors)
        assert not model.load(tmp_path / "theirs").config.tied


def test_a_mesh_holds_the_same_weights_in_parts(tmp_path):
    published.theirs(tmp_path / "theirs", "llama")
    mesh = sharding.make_mesh({"fsdp": 4, "tensor": 2})
    said = json.loads((tmp_path / "theirs" / "config.json").read_text())
    said |= dict(vocab_size=36)
    tensors = {
        name: array[:36] if "embed" in name or "head" in name else array
        for name, array in published.read(tmp_path / "theirs").items()
    }
    published.write(tmp_path / "theirs", said, tensors)
    laid, whole = model.load(tmp_path / "theirs", mesh), model.load(tmp_path / "theirs")
    table = laid.params["embedding"]["weight"]
    assert {shard.data.shape for shard in table.addressable_shards} == {(18, 6)}
    assert laid.digest == whole.digest


@pytest.mark.parametrize("name", ["mixtral", "bert-ForMaskedLM", "t5"])
def test_every_family_loads_onto_a_mesh(tmp_path, name):
    published.theirs(tmp_path / "theirs", name)
    mesh = sharding.make_mesh({"data": 2, "fsdp": 4})
    laid, whole = model.load(tmp_path / "theirs", mesh), model.load(tmp_path / "theirs")
    table = laid.params["embedding"]["weight"]
    assert {shard.data.shape for shard in table.addressable_shards} == {(37, 6)}
    assert laid.digest == whole.digest


def said_differently(**values):
    def change(directory, said, tensors):
        published.write(directory, said | values, tensors)

    return change


def without_config(directory, said, tensors):
    (directory / "config.json").unlink()


def config_of_nothing(directory, said, tensors):
    (directory / "config.json").write_text("{}")


def config_without_width(directory, said, tensors):
    published.write(
        directory, {key: value for key, value in said.items() if key != "hidden_size"}, tensors
    )


def without_tensors(directory, said, tensors):
    kept = {name: array for name, array in tensors.items() if ".1." not in name}
    published.write(directory, said, kept)


def with_more_tensors(directory, said, tensors):
    published.write(directory, said, {**tensors, "score.weight": np.ones((2, 24), np.float32)})


def with_a_nan(directory, said, tensors):
    tensors["model.layers.2.mlp.up_proj.weight"][3, 5] = np.nan
    published.write(directory, said, tensors)


def truncated(directory, said, tensors):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def untrue_tie(directory, said, tensors):
    published.write(directory, said | dict(tie_word_embeddings=True), tensors)


def with_a_larger_tokenizer(directory, said, tensors):
    tiny.words().save(directory)


KNOWN = "known: gpt2, llama, mistral, mixtral, qwen2, qwen3, gemma2, bloom, gpt_neox, bert, rob"
WRONG = [
    (without_config, "holds no model: config.json is missing; give a run, a bundle or a Hugging"),
    (config_of_nothing, "has neither a model_type, as Hugging Face's has, nor a model group, as a"),
    (config_without_width, "config.json lacks hidden_size, which a llama model has"),
    (
        said_differently(model_type="lama"),
        rf"model_type 'lama' \(did you mean 'llama'\?\); {KNOWN}",
    ),
    (
        said_differently(format="ganymede-bundle-9"),
        "format 'ganymede-bundle-9', which this version",
    ),
    (said_differently(hidden_act="mish"), "has hidden_act 'mish', which Ganymede does not compute"),
    (
        said_differently(architectures=["LlamaForX"]),
        r"has architectures \['LlamaForX'\], which Gany",
    ),
    (
        said_differently(rope_scaling={"type": "longrope"}),
        "has rope_type 'longrope', which Ganymede",
    ),
    (
        said_differently(mlp_bias=True),
        "has mlp_bias True, which Ganymede does not compute; it compu",
    ),
    (
        said_differently(quantization_config={"bits": 4}),
        "has quantization_config {'bits': 4}, which Ganymede does not compute; give weights without it",
    ),
    (said_differently(hidden_size="24"), "model.width is '24' .str.; it must be a whole number"),
    (
        said_differently(intermediate_size=31),
        r"tensor 'model.layers.0.mlp.gate_proj.weight' has shape \(28, 24\); .* asks for F=31×D=24",
    ),
    (
        without_tensors,
        "the weights lack 'model.layers.1.input_layernorm.weight', .* and 4 more; give the config",
    ),
    (
        said_differently(num_hidden_layers=2),
        "the weights hold 'model.layers.2.input_layernorm.weight', .* and 4 more, which no llama of",
    ),
    (with_more_tensors, "the weights hold 'score.weight', which no llama of this config has; give"),
    (with_a_nan, "tensor 'model.layers.2.mlp.up_proj.weight' holds a NaN or an infinity; the wei"),
    (truncated, r"model.safetensors is damaged or no safetensors file \(.*\); fetch it again"),
    (
        untrue_tie,
        "ties 'lm_head.weight' to 'model.embed_tokens.weight', and the two tensors differ",
    ),
    (with_a_larger_tokenizer, "has 307 tokens, and the embedding 37 rows; give the tokenizer that"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_what_is_wrong_with_a_directory_is_told_in_one_line_and_leaves_nothing(
    tmp_path, change, message
):
    said, tensors = published.theirs(tmp_path / "theirs", "llama")
    change(tmp_path / "theirs", said, tensors)
    for act in (model.load, lambda source: bundle.import_(source, tmp_path / "ours")):
        with pytest.raises(errors.BadInput, match=message) as caught:
            act(tmp_path / "theirs")
        assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


@pytest.mark.parametrize(
    ("case", "values", "message"),
    [
        (
            "bert-ForMaskedLM",
            {"position_embedding_type": "relative_key"},
            "position_embedding_type",
        ),
        ("bert-ForMaskedLM", {"is_decoder": True}, "is_decoder True, which Ganymede does not comp"),
        ("roberta-Model", {"pad_token_id": 0}, "pad_token_id 0, which .* does not compute; .* 1"),
        ("bart", {"normalize_before": True}, "normalize_before True"),
        ("bart", {"encoder_ffn_dim": 31}, "encoder_ffn_dim 31, .* 'the same as decoder_ffn_dim'"),
        ("bart", {"encoder_attention_heads": 3}, "encoder_attention_heads 3, .* 'the same as dec"),
        ("marian", {"share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings"),
        ("marian", {"decoder_vocab_size": 41}, "decoder_vocab_size 41"),
        ("t5", {"feed_forward_proj": "gated-mish"}, "feed_forward_proj 'mish'"),
        ("t5", {"relative_attention_num_buckets": 16}, "relative_attention_num_buckets 16"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "apply_residual_connection"),
        ("qwen2", {"layer_types": ["chunked_attention"] * 3}, "layer_types 'chunked_attention'"),
        ("gpt_neox", {"attention_bias": False}, "attention_bias False, which Ganymede does not"),
    ],
)
def test_what_a_config_says_that_we_would_compute_differently_is_refused(case, values, message):
    with pytest.raises(errors.BadInput, match=message):
        hf.model_config(published.config_json(case) | values)


@pytest.mark.parametrize(
    ("case", "key", "value", "message"),
    [
        ("llama", "model_type", ["llama"], r"has model_type \['llama'\] .*; known: gpt2, llama"),
        (
            "llama",
            "rope_scaling",
            "linear",
            r": rope_scaling is 'linear' \(str\); it must be a group of keys or nothing",
        ),
        (
            "llama",
            "rope_scaling",
            {"rope_type": "yarn", "factor": "4"},
            r": rope_parameters.factor is '4' \(str\); it must be a number or nothing",
        ),
        ("gpt2", "architectures", 7, r": architectures is 7 \(int\); it must be a list or nothing"),
        (
            "gpt2",
            "activation_function",
            ["relu"],
            r": activation_function is \['relu'\] \(list\); .* text",
        ),
        (
            "mixtral",
            "num_experts_per_tok",
            None,
            r": num_experts_per_tok is None .* a whole number",
        ),
        ("qwen2", "num_hidden_layers", None, r": num_hidden_layers is None .* a whole number"),
        ("qwen2", "layer_types", 3, r": layer_types is 3 \(int\); it must be a list or nothing"),
        ("gemma2", "query_pre_attn_scalar", None, r": query_pre_attn_scalar is None .* a number"),
        ("mixtral", "num_local_experts", None, r": num_local_experts is None .* a whole number"),
        ("gemma2", "attn_logit_softcapping", "5", r": attn_logit_softcapping is '5' \(str\)"),
        ("gemma2", "query_pre_attn_scalar", 0, r": query_pre_attn_scalar is 0; it must be above 0"),
        ("t5", "feed_forward_proj", None, r": feed_forward_proj is None .* it must be text"),
        (
            "roberta-Model",
            "max_position_embeddings",
            "9",
            r": max_position_embeddings is '9' \(str\)",
        ),
        (
            "bert-ForTokenClassification",
            "id2label",
            {"LABEL_0": 0},
            r": id2label is {'LABEL_0': 0}; its keys must be whole numbers",
        ),
    ],
)
def test_a_value_of_another_type_than_a_config_json_has_there_is_refused_by_name(
    case, key, value, message
):
    said = published.config_json(case)
    hf.model_config(said)
    with pytest.raises(errors.BadInput, match=f"^config.json.*{message}"):
        hf.model_config({**said, key: value})


def test_a_roberta_without_its_length_is_refused():
    said = published.config_json("roberta-Model")
    del said["max_position_embeddings"]
    with pytest.raises(
        errors.BadInput, match="^config.json lacks max_position_embeddings, which a"
    ):
        hf.model_config(said)


def test_a_bias_that_bart_does_not_have_must_be_zero(tmp_path):
    said, tensors = published.theirs(tmp_path / "theirs", "bart")
    assert not tensors["final_logits_bias"].any()
    tensors["final_logits_bias"][0, 3] = 0.5
    published.write(tmp_path / "theirs", said, tensors)
    with pytest.raises(
        errors.BadInput, match="tensor 'final_logits_bias' is not zero, and this mo"
    ):
        model.load(tmp_path / "theirs")


def test_a_directory_without_a_tokenizer_still_has_a_model(tmp_path):
    published.theirs(tmp_path / "theirs", "gpt2")
    assert model.load(tmp_path / "theirs").tokenizer is None
    assert weights.Weights(tmp_path / "theirs").nbytes > 0
