"""Do published weights come back tensor for tensor, whatever their files look like? Is what we cannot read named?"""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import tiny
from flax import linen as nn
from safetensors import numpy as reference

import model
from model import bundle, checkpoint, errors, hf, hf_config, sharding, weights
from model.config import ModelConfig

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


@pytest.mark.parametrize("case", SOME)
def test_export_undoes_import_tensor_for_tensor(tmp_path, case):
    said, tensors = theirs(tmp_path / "theirs", case)
    tensors = {name: array.astype("f2") for name, array in tensors.items()}
    write(tmp_path / "theirs", said, tensors)
    report = bundle.import_(tmp_path / "theirs", tmp_path / "ours")
    assert (report.architecture, report.dtypes) == (said["model_type"], ("float16",))
    back = bundle.export(tmp_path / "ours", tmp_path / "back", limit=7000)
    assert len(back.files) > 2
    assert_same(read(tmp_path / "back"), tensors)
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == said
    direct, ours = model.load(tmp_path / "theirs"), model.load(tmp_path / "ours")
    assert direct.config == ours.config and direct.digest == ours.digest
    assert_same(hf.to_theirs(said["model_type"], ours.config, ours.params), tensors)
    count = sum(leaf.size for leaf in jax.tree.leaves(ours.params))
    assert (report.parameters, report.nbytes, report.tokenizer) == (count, 2 * count, None)


@pytest.mark.oracle
@pytest.mark.parametrize("case", CASES)
def test_what_transformers_saved_it_loads_again_from_our_export(tmp_path, case):
    """Every weight is the same bits; the logits may differ by a rounding, as those of its own copies in memory do."""
    import torch
    import transformers

    name, values = CASES[case]
    cls = getattr(transformers, name)
    torch.manual_seed(0)
    theirs = cls(cls.config_class(**values)).eval()
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(0, 0.3)
    theirs.save_pretrained(tmp_path / "theirs")
    bundle.import_(tmp_path / "theirs", tmp_path / "ours")
    bundle.export(tmp_path / "ours", tmp_path / "back")
    assert_same(read(tmp_path / "back"), read(tmp_path / "theirs"))
    again = cls.from_pretrained(tmp_path / "back").eval()
    lm = model.load(tmp_path / "ours")
    kind = theirs.config.model_type
    said = json.loads((tmp_path / "theirs" / "config.json").read_text())
    ids = {key: value for key, value in said.items() if key.endswith("token_id")}
    write_own = tmp_path / "own"
    write_own.mkdir()
    write(
        write_own,
        hf_config.their_config(kind, lm.config) | ids,
        hf.to_theirs(kind, lm.config, lm.params),
    )
    own = cls.from_pretrained(write_own).eval()
    for other in (again, own):
        weights, others = theirs.state_dict(), other.state_dict()
        for key in weights:
            # A bare model's pooler is not part of ours.
            assert torch.equal(weights[key], others[key]) or (other is own and "pooler" in key)
    tokens = torch.tensor([[7, 3, 11, 29, 23, 5, 13]])
    both = {"decoder_input_ids": tokens.flip(1)} if theirs.config.is_encoder_decoder else {}
    with torch.no_grad():
        expected, one, two = (each(tokens, **both)[0] for each in (theirs, again, own))
    assert torch.allclose(expected, one, rtol=0, atol=1e-5)
    assert torch.allclose(expected, two, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_a_config_of_ours_can_be_said_in_their_words_and_read_again(case):
    said = config_json(case)
    config = hf.model_config(said)
    assert hf.model_config(hf_config.their_config(said["model_type"], config)) == config
    found = hf_config.holding(config)
    assert found is not None and hf.model_config(hf_config.their_config(found, config)) == config


def test_old_files_say_the_same_in_other_words(tmp_path):
    """Names without prefix, LayerNorm's gamma and beta, masks, and tied tensors that stand twice: all come back."""
    said, tensors = theirs(tmp_path / "theirs", "bert-ForMaskedLM")
    old = {}
    for name, array in tensors.items():
        name = name.removeprefix("bert.").replace("LayerNorm.weight", "LayerNorm.gamma")
        old[name.replace("LayerNorm.bias", "LayerNorm.beta")] = array
    old["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
    old["embeddings.position_ids"] = np.arange(31)[None]
    old["cls.seq_relationship.weight"] = np.ones((2, 24), np.float32)
    write(tmp_path / "theirs", said, old)
    report = bundle.import_(tmp_path / "theirs", tmp_path / "ours")
    assert set(report.aside) == {"embeddings.position_ids", "cls.seq_relationship.weight"}
    assert "not used by the model, and kept: " in str(report)
    bundle.export(tmp_path / "ours", tmp_path / "back")
    assert_same(read(tmp_path / "back"), old)
    lm = model.load(tmp_path / "ours")
    assert_same(hf.to_theirs("bert", lm.config, lm.params), tensors)


def test_a_t5_has_a_head_of_its_own_where_its_files_have_one(tmp_path):
    said, tensors = theirs(tmp_path / "theirs", "t5-1.1")
    for claim in (True, False):
        write(tmp_path / "theirs", said | dict(tie_word_embeddings=claim), tensors)
        assert not model.load(tmp_path / "theirs").config.tied


def test_a_mesh_holds_the_same_weights_in_parts(tmp_path):
    theirs(tmp_path / "theirs", "llama")
    mesh = sharding.make_mesh({"fsdp": 4, "tensor": 2})
    said = json.loads((tmp_path / "theirs" / "config.json").read_text())
    said |= dict(vocab_size=36)
    tensors = {
        name: array[:36] if "embed" in name or "head" in name else array
        for name, array in read(tmp_path / "theirs").items()
    }
    write(tmp_path / "theirs", said, tensors)
    laid, whole = model.load(tmp_path / "theirs", mesh), model.load(tmp_path / "theirs")
    table = laid.params["embedding"]["weight"]
    assert {shard.data.shape for shard in table.addressable_shards} == {(18, 6)}
    assert laid.digest == whole.digest


def test_weights_that_nobody_else_made_are_exported_where_an_architecture_holds_them():
    for family in ("gpt2", "llama", "gemma2"):
        assert hf_config.holding(ModelConfig(vocab_size=307, **tiny.FAMILIES[family])) == family


def trained(directory, family):
    """A run directory of one of the tiny models."""
    lm = tiny.lm(family)
    lm.tokenizer.save(directory / "tokenizer")
    said = {"model": dataclasses.asdict(lm.config)}
    (directory / "config.json").write_text(json.dumps(said))
    meta = {"tokenizer": lm.tokenizer.digest, "model": said["model"]}
    checkpoints = checkpoint.Checkpoints(directory / "checkpoints")
    checkpoints.save(3, {"params": model.blocks.stack_layers(lm.params)}, meta)
    checkpoints.close()
    return lm


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_run_is_exported_and_comes_back_with_its_tokenizer(tmp_path, family):
    lm = trained(tmp_path / "run", family)
    report = bundle.export(tmp_path / "run", tmp_path / "theirs")
    assert (report.architecture, report.tokenizer) == (family, 307)
    said = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert (said["bos_token_id"], said["eos_token_id"], said["torch_dtype"]) == (2, 3, "float32")
    back = model.load(tmp_path / "theirs")
    assert back.digest == lm.digest and back.tokenizer.digest == lm.tokenizer.digest


def test_a_run_that_no_architecture_holds_is_not_exported(tmp_path):
    trained(tmp_path / "run", "lstm")
    with pytest.raises(
        errors.BadInput, match="run holds a model of family 'lstm' that no architec"
    ):
        bundle.export(tmp_path / "run", tmp_path / "theirs")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.oracle
def test_a_run_gives_transformers_the_logits_it_gives_us(tmp_path):
    import torch
    import transformers

    lm = trained(tmp_path / "run", "llama")
    bundle.export(tmp_path / "run", tmp_path / "theirs")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs").eval()
    tokens = np.array([[2, 41, 53, 7, 101, 303]])
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    actual, _ = jax.jit(lm.net.apply)({"params": lm.params}, tokens.astype(np.int32))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def said_differently(**values):
    def change(directory, said, tensors):
        write(directory, said | values, tensors)

    return change


def without_config(directory, said, tensors):
    (directory / "config.json").unlink()


def config_of_nothing(directory, said, tensors):
    (directory / "config.json").write_text("{}")


def config_without_width(directory, said, tensors):
    write(directory, {key: value for key, value in said.items() if key != "hidden_size"}, tensors)


def without_tensors(directory, said, tensors):
    kept = {name: array for name, array in tensors.items() if ".1." not in name}
    write(directory, said, kept)


def with_more_tensors(directory, said, tensors):
    write(directory, said, {**tensors, "score.weight": np.ones((2, 24), np.float32)})


def with_a_nan(directory, said, tensors):
    tensors["model.layers.2.mlp.up_proj.weight"][3, 5] = np.nan
    write(directory, said, tensors)


def truncated(directory, said, tensors):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def untrue_tie(directory, said, tensors):
    write(directory, said | dict(tie_word_embeddings=True), tensors)


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
        "has quantization_config {'bits': 4}, which",
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
    said, tensors = theirs(tmp_path / "theirs", "llama")
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
        hf.model_config(config_json(case) | values)


def test_a_bias_that_bart_does_not_have_must_be_zero(tmp_path):
    said, tensors = theirs(tmp_path / "theirs", "bart")
    assert not tensors["final_logits_bias"].any()
    tensors["final_logits_bias"][0, 3] = 0.5
    write(tmp_path / "theirs", said, tensors)
    with pytest.raises(
        errors.BadInput, match="tensor 'final_logits_bias' is not zero, and this mo"
    ):
        model.load(tmp_path / "theirs")


def test_a_bundle_whose_config_was_changed_is_refused(tmp_path):
    theirs(tmp_path / "theirs", "llama")
    bundle.import_(tmp_path / "theirs", tmp_path / "ours")
    path = tmp_path / "ours" / "config.json"
    whole = json.loads(path.read_text())
    for change, message in (
        (
            {"hidden": 31},
            r"tensor 'stack/layers_0/.*' has shape .28, 24.; the config asks for .31, 24.",
        ),
        ({"layers": 4}, "the weights lack 'stack/layers_3/attention/key/weight', "),
    ):
        path.write_text(json.dumps(whole | {"model": whole["model"] | change}))
        with pytest.raises(errors.BadInput, match=message):
            model.load(tmp_path / "ours")


def test_nothing_is_written_over_and_nothing_is_imported_or_exported_twice(tmp_path):
    theirs(tmp_path / "theirs", "gpt2")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(errors.BadInput, match="full exists and is not empty; choose another"):
        bundle.import_(tmp_path / "theirs", tmp_path / "full")
    assert (tmp_path / "full" / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    bundle.import_(tmp_path / "theirs", tmp_path / "empty")
    with pytest.raises(errors.BadInput, match="empty is a bundle, which needs no import; load it"):
        bundle.import_(tmp_path / "empty", tmp_path / "x")
    with pytest.raises(
        errors.BadInput, match="theirs is a Hugging Face directory already; copy it"
    ):
        bundle.export(tmp_path / "theirs", tmp_path / "x")
    shutil.rmtree(tmp_path / "full")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "theirs"]


def test_a_directory_without_a_tokenizer_still_has_a_model(tmp_path):
    theirs(tmp_path / "theirs", "gpt2")
    assert model.load(tmp_path / "theirs").tokenizer is None
    assert weights.Weights(tmp_path / "theirs").nbytes > 0
