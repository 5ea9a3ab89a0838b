"""Do adapters mean the same in the PEFT library's files and here, both ways, and is what cannot be told so?"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import model
from model import adapters, errors, hf, peft
from model.adapters import AdapterConfig
from model.config import ModelConfig
from tests import published

ALL = {
    "gpt2": ["c_attn", "c_fc", "c_proj"],
    "gpt_neox": ["query_key_value", "dense_4h_to_h"],
    "llama": ["q_proj", "v_proj", "o_proj", "down_proj", "lm_head"],
    "bert": ["query", "attention.output.dense"],
    "t5": ["q", "o", "wo"],
}
RULES = {
    "gpt2": ("attention/(query|value)", "feed_forward/up"),
    "gpt_neox": ("attention/key", "attention/out"),
    "llama": ("attention/(query|out)", "^output"),
    "bert": ("attention", "head/dense"),
    "t5": ("(attention|cross)/value", "down"),
}
KINDS = {
    "lora": dict(),
    "rslora": dict(use_rslora=True),
    "dora": dict(use_dora=True),
}


def their_model(name):
    import torch
    import transformers as t

    torch.manual_seed(11)
    small = dict(hidden_size=20, num_hidden_layers=2, num_attention_heads=5, intermediate_size=14)
    made = {
        "gpt2": lambda: t.GPT2LMHeadModel(
            t.GPT2Config(vocab_size=31, n_positions=13, n_embd=20, n_layer=2, n_head=5)
        ),
        "gpt_neox": lambda: t.GPTNeoXForCausalLM(
            t.GPTNeoXConfig(vocab_size=31, max_position_embeddings=13, rotary_pct=0.5, **small)
        ),
        "llama": lambda: t.LlamaForCausalLM(
            t.LlamaConfig(vocab_size=31, max_position_embeddings=13, num_key_value_heads=1, **small)
        ),
        "bert": lambda: t.BertForSequenceClassification(
            t.BertConfig(vocab_size=31, max_position_embeddings=13, num_labels=3, **small)
        ),
        "t5": lambda: t.T5ForConditionalGeneration(
            t.T5Config(vocab_size=31, d_model=20, d_kv=4, d_ff=14, num_layers=2, num_heads=5)
        ),
    }[name]()
    return made.eval()


def shake(parameters):
    """Sets each parameter to a random value, so that no part of it can be forgotten unseen."""
    import torch

    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.3 * torch.randn(parameter.shape))


def their_logits(theirs, name):
    import torch

    ids = torch.tensor([[3, 17, 5, 30, 11], [1, 2, 3, 5, 8]])
    more = dict(decoder_input_ids=torch.tensor([[0, 7, 9], [0, 4, 6]])) if name == "t5" else {}
    with torch.no_grad():
        return theirs(input_ids=ids, **more).logits.numpy()


def our_logits(lm, params, name, virtual=0):
    ids = np.array([[3, 17, 5, 30, 11], [1, 2, 3, 5, 8]])
    ahead = np.tile(lm.config.vocab_size + np.arange(virtual), (2, 1))
    places = [jnp.asarray(np.concatenate([ahead, ids], axis=1), jnp.int32)]
    places += [jnp.array([[0, 7, 9], [0, 4, 6]])] if name == "t5" else []
    return np.asarray(jax.jit(lm.net.apply)({"params": params}, *places)[0])


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, atol=3e-5 * np.abs(theirs).max())


@pytest.mark.oracle
@pytest.mark.parametrize("name", ALL)
def test_an_adapter_that_peft_wrote_means_the_same_here(name, tmp_path):
    import peft as theirs_peft

    for kind, values in KINDS.items():
        base, there, out = their_model(name), tmp_path / "base", tmp_path / kind
        base.save_pretrained(there)
        task = "SEQ_CLS" if name == "bert" else None
        more = dict(rank_pattern={"c_fc": 2}, alpha_pattern={"c_fc": 9}) if name == "gpt2" else {}
        described = theirs_peft.LoraConfig(
            r=3, lora_alpha=5, target_modules=ALL[name], task_type=task, **values, **more
        )
        wrapped = theirs_peft.get_peft_model(base, described).eval()
        shake(p for p in wrapped.parameters() if p.requires_grad)
        wrapped.save_pretrained(out)
        lm = model.load(there)
        read, adapter = peft.read(out, lm.config)
        assert (read.kind == "dora", read.rank_stabilized) == (kind == "dora", kind == "rslora")
        close(
            our_logits(lm, adapters.merge(lm.params, adapter, read), name),
            their_logits(wrapped, name),
        )


@pytest.mark.oracle
@pytest.mark.parametrize("name", ALL)
def test_an_adapter_that_we_wrote_means_the_same_to_peft(name, tmp_path):
    import peft as theirs_peft

    there = tmp_path / "base"
    their_model(name).save_pretrained(there)
    lm = model.load(there)
    draw = np.random.default_rng(3)
    for kind in KINDS:
        config = AdapterConfig(
            "dora" if kind == "dora" else "lora",
            3,
            5.0,
            kind == "rslora",
            targets=RULES[name],
            whole=("head/out",) if name == "bert" else ("norm/scale",),
        )
        adapter = jax.tree.map(
            lambda leaf: leaf + jnp.asarray(0.3 * draw.normal(size=leaf.shape), jnp.float32),
            adapters.init(lm.params, config, key=jax.random.key(5)),
        )
        out = tmp_path / kind
        peft.write(out, lm.params, lm.config, adapter, config, str(there))
        wrapped = theirs_peft.PeftModel.from_pretrained(their_model(name), out).eval()
        ours = our_logits(lm, adapters.merge(lm.params, adapter, config), name)
        close(ours, their_logits(wrapped, name))
        again, back = peft.read(out, lm.config)  # and what we read of it is what we wrote
        close(our_logits(lm, adapters.merge(lm.params, back, again), name), ours)


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_a_soft_prompt_means_the_same_both_ways(name, tmp_path):
    import peft as theirs_peft

    base = their_model(name)
    base.save_pretrained(tmp_path / "base")
    lm = model.load(tmp_path / "base")
    task = "SEQ_2_SEQ_LM" if name == "t5" else "CAUSAL_LM"
    described = theirs_peft.PromptTuningConfig(task_type=task, num_virtual_tokens=3)
    wrapped = theirs_peft.get_peft_model(base, described).eval()
    wrapped.save_pretrained(tmp_path / "theirs")
    read, adapter = peft.read(tmp_path / "theirs", lm.config)
    params = adapters.merge(lm.params, adapter, read)
    theirs = their_logits(wrapped, name)
    close(our_logits(lm, params, name, virtual=3), theirs)
    peft.write(tmp_path / "ours", lm.params, lm.config, adapter, read)
    again = theirs_peft.PeftModel.from_pretrained(their_model(name), tmp_path / "ours").eval()
    np.testing.assert_array_equal(their_logits(again, name), theirs)


def written(tmp_path, case="gpt2", changed=None, config=None):
    """A base of a published shape with random numbers, and in another directory our adapter of it."""
    tmp_path.mkdir(exist_ok=True)
    published.theirs(tmp_path / "base", case)
    lm = model.load(tmp_path / "base")
    config = config or AdapterConfig(rank=3, targets=("query",))
    adapter = adapters.init(lm.params, config, key=jax.random.key(5))
    adapter = jax.tree.map(lambda leaf: leaf + 0.25, adapter)
    peft.write(tmp_path / "adapter", lm.params, lm.config, adapter, config, str(tmp_path / "base"))
    if changed:
        path = tmp_path / "adapter" / peft.CONFIG
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    return lm, adapter, config


def test_an_adapter_of_modules_that_are_one_parameter_comes_back_bit_for_bit(tmp_path):
    config = AdapterConfig("dora", 3, 5.0, True, targets=("attention/",), whole=("stack/norm",))
    lm, adapter, _ = written(tmp_path, "llama-tied", config=config)
    read, back = peft.read(tmp_path / "adapter", lm.config)
    one, two = hf.flatten(adapter), hf.flatten(back)
    assert one.keys() == two.keys()
    for path, leaf in one.items():
        np.testing.assert_array_equal(leaf, two[path], err_msg=path)
    assert (read.kind, read.rank, read.alpha, read.rank_stabilized) == ("dora", 3, 5.0, True)
    again = adapters.init(lm.params, read, key=jax.random.key(5))  # its rules find the same
    assert hf.flatten(again).keys() == one.keys()


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"peft_type": "IA3"}, r"adapter_config.json has peft_type 'IA3'; known: LORA, PROMPT_TUNING$"),
        ({"bias": "all"}, r"has bias 'all', which we would compute differently; merge that adapter with PEFT, and "),
        ({"init_lora_weights": "pissa"}, r"has init_lora_weights 'pissa', which we would compute differently; "),
        ({"use_dora": True}, r"lora_magnitude_vector of the adapter has shape None, and the model asks for \(\d+,\);"),
    ],
)  # fmt: skip
def test_an_adapter_that_we_would_compute_differently_is_refused(changed, message, tmp_path):
    lm, _, _ = written(tmp_path, changed=changed)
    with pytest.raises(errors.BadInput, match=message):
        peft.read(tmp_path / "adapter", lm.config)


def test_an_adapters_directory_is_its_base_with_the_adapter_merged(tmp_path):
    lm, adapter, config = written(tmp_path)
    loaded = model.load(tmp_path / "adapter")
    merged = adapters.merge(lm.params, adapter, config)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, merged)
    assert (loaded.config, loaded.directory) == (lm.config, tmp_path / "adapter")
    assert loaded.digest != lm.digest
    written(tmp_path / "moved", changed={"base_model_name_or_path": "meta/Llama"})
    with pytest.raises(
        errors.BadInput,
        match=r"adapter_config.json has base_model_name_or_path 'meta/Llama', which is no directory here; set it to",
    ):
        model.load(tmp_path / "moved" / "adapter")


def test_an_adapter_of_another_model_is_refused_by_the_name_of_its_module(tmp_path):
    written(tmp_path)
    (tmp_path / "more").mkdir()
    published.theirs(tmp_path / "more" / "llama", "llama-tied")
    config = model.load(tmp_path / "more" / "llama").config
    with pytest.raises(
        errors.BadInput,
        match=r"^the adapter changes 'transformer.h.0.attn.c_attn.weight', which the model does not",
    ):
        peft.read(tmp_path / "adapter", config)


@pytest.mark.parametrize(
    "case, config, message",
    [
        ("mixtral", AdapterConfig(targets=("_forward/up",)), r"^stack/layers_0/feed_forward/up/weight is adapted, "),
        ("gpt2", AdapterConfig("prompt", virtual_tokens=2, whole=("stack/norm",)), r"^PEFT's files of soft prompts h"),
        ("gpt2", AdapterConfig(targets=("query",), whole=("^embedding",)), r"^embedding/weight is trained whole and "),
    ],
)  # fmt: skip
def test_what_peft_has_no_place_for_is_refused(case, config, message, tmp_path):
    with pytest.raises(errors.BadInput, match=message):
        written(tmp_path, case, config=config)


def test_a_model_that_transformers_does_not_have_keeps_its_adapter(tmp_path):
    config = ModelConfig(31, 13, 2, 10, family="lstm")
    with pytest.raises(
        errors.BadInput, match=r"^PEFT adapts models of transformers, and none .*'lstm' in the same"
    ):
        peft.write(tmp_path / "out", {}, config, {}, AdapterConfig(targets=("input",)))  # fmt: skip
