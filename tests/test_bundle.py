"""Do published weights come back tensor for tensor, whatever their files look like, and do ours become theirs?"""

import dataclasses
import json
import shutil

import jax
import numpy as np
import published
import pytest
import tiny

import model
from model import bundle, checkpoint, errors, hf, hf_config, presets
from model.config import ModelConfig


@pytest.mark.parametrize("case", published.SOME)
def test_export_undoes_import_tensor_for_tensor(tmp_path, case):
    said, tensors = published.theirs(tmp_path / "theirs", case)
    tensors = {name: array.astype("f2") for name, array in tensors.items()}
    published.write(tmp_path / "theirs", said, tensors)
    report = bundle.import_(tmp_path / "theirs", tmp_path / "ours")
    assert (report.architecture, report.dtypes) == (said["model_type"], ("float16",))
    back = bundle.export(tmp_path / "ours", tmp_path / "back", limit=7000)
    assert len(back.files) > 2
    published.assert_same(published.read(tmp_path / "back"), tensors)
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == said
    direct, ours = model.load(tmp_path / "theirs"), model.load(tmp_path / "ours")
    assert direct.config == ours.config and direct.digest == ours.digest
    published.assert_same(hf.to_theirs(said["model_type"], ours.config, ours.params), tensors)
    count = sum(leaf.size for leaf in jax.tree.leaves(ours.params))
    assert (report.parameters, report.nbytes, report.tokenizer) == (count, 2 * count, None)


@pytest.mark.oracle
@pytest.mark.parametrize("case", published.CASES)
def test_what_transformers_saved_it_loads_again_from_our_export(tmp_path, case):
    """Every weight is the same bits; the logits may differ by a rounding, as those of its own copies in memory do."""
    import torch
    import transformers

    name, values = published.CASES[case]
    cls = getattr(transformers, name)
    torch.manual_seed(0)
    theirs = cls(cls.config_class(**values)).eval()
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(0, 0.3)
    theirs.save_pretrained(tmp_path / "theirs")
    aside = bundle.import_(tmp_path / "theirs", tmp_path / "ours").aside
    bundle.export(tmp_path / "ours", tmp_path / "back")
    published.assert_same(published.read(tmp_path / "back"), published.read(tmp_path / "theirs"))
    again = cls.from_pretrained(tmp_path / "back").eval()
    lm = model.load(tmp_path / "ours")
    kind = theirs.config.model_type
    said = json.loads((tmp_path / "theirs" / "config.json").read_text())
    ids = {key: value for key, value in said.items() if key.endswith("token_id")}
    write_own = tmp_path / "own"
    write_own.mkdir()
    published.write(
        write_own,
        hf_config.their_config(kind, lm.config) | ids,
        hf.to_theirs(kind, lm.config, lm.params),
    )
    own = cls.from_pretrained(write_own).eval()
    for other in (again, own):
        weights, others = theirs.state_dict(), other.state_dict()
        for key in weights:
            assert torch.equal(weights[key], others[key]) or (other is own and key in aside)
    tokens = torch.tensor([[7, 3, 11, 29, 23, 5, 13]])
    both = {"decoder_input_ids": tokens.flip(1)} if theirs.config.is_encoder_decoder else {}
    with torch.no_grad():
        expected, one, two = (each(tokens, **both)[0] for each in (theirs, again, own))
    assert torch.allclose(expected, one, rtol=0, atol=1e-5)
    assert torch.allclose(expected, two, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", published.CASES)
def test_a_config_of_ours_can_be_said_in_their_words_and_read_again(case):
    said = published.config_json(case)
    config = hf.model_config(said)
    assert hf.model_config(hf_config.their_config(said["model_type"], config)) == config
    found = hf_config.holding(config)
    assert found is not None and hf.model_config(hf_config.their_config(found, config)) == config


def test_old_files_say_the_same_in_other_words(tmp_path):
    """Names without prefix, LayerNorm's gamma and beta, masks, and tied tensors that stand twice: all come back."""
    said, tensors = published.theirs(tmp_path / "theirs", "bert-ForMaskedLM")
    old = {}
    for name, array in tensors.items():
        name = name.removeprefix("bert.").replace("LayerNorm.weight", "LayerNorm.gamma")
        old[name.replace("LayerNorm.bias", "LayerNorm.beta")] = array
    old["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
    old["embeddings.position_ids"] = np.arange(31)[None]
    old["cls.seq_relationship.weight"] = np.ones((2, 24), np.float32)
    published.write(tmp_path / "theirs", said, old)
    report = bundle.import_(tmp_path / "theirs", tmp_path / "ours")
    assert set(report.aside) == {"embeddings.position_ids", "cls.seq_relationship.weight"}
    assert "not used by the model, and kept: " in str(report)
    bundle.export(tmp_path / "ours", tmp_path / "back")
    published.assert_same(published.read(tmp_path / "back"), old)
    lm = model.load(tmp_path / "ours")
    published.assert_same(hf.to_theirs("bert", lm.config, lm.params), tensors)


def test_weights_that_nobody_else_made_are_exported_where_an_architecture_holds_them():
    expected = {"gpt2": "gpt2", "llama": "mistral", "gemma2": None, "t5": None, "lstm": None}
    for family, architecture in expected.items():
        config = ModelConfig(vocab_size=307, **tiny.FAMILIES[family])
        assert hf_config.holding(config) == architecture, family
    divided = {"width": 48, "head_size": 8}  # LLaMA and Gemma 2 of transformers want that
    for family in ("llama", "gemma2"):
        config = ModelConfig(vocab_size=307, **tiny.FAMILIES[family] | divided)
        assert hf_config.holding(config) == family


def test_every_preset_is_held_by_its_own_architecture_and_few_by_none():
    """The paper of 2017 interleaves sines and cosines, and GPT-3's 13B has heads that do not divide its width."""
    none = [name for name in presets.PRESETS if hf_config.holding(presets.config(name)) is None]
    assert none == ["transformer-base", "transformer-big", "gpt3-13b"]
    for name in ("gpt2-124m", "llama3.1-8b", "bert-base-cased", "t5-v1.1-xl", "gemma2-27b"):
        assert name.startswith(str(hf_config.holding(presets.config(name))))


def trained(directory, family, kind="unigram"):
    """A run directory of one of the tiny models."""
    lm = tiny.lm(family)
    lm.tokenizer.save(directory / "tokenizer")
    said = {"model": dataclasses.asdict(lm.config), "tokenizer": {"kind": kind}}
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
    assert report.architecture == {"gpt2": "gpt2", "llama": "mistral"}[family]
    assert report.tokenizer == 307
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
def test_transformers_reads_the_tokenizer_of_an_exported_run_as_we_do(tmp_path):
    import transformers

    words = trained(tmp_path / "run", "gpt2", kind="bpe").tokenizer
    assert bundle.export(tmp_path / "run", tmp_path / "theirs").note == ""
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    for text in (tiny.TEXT, "  two  spaces\n\n\tand tabs, é 漢\n"):
        assert theirs(text)["input_ids"] == [*words.prefix_ids, *words.encode(text)]
        assert theirs.decode(words.encode(text)) == text
    other = trained(tmp_path / "other", "gpt2")
    assert "is a unigram model" in str(bundle.export(tmp_path / "other", tmp_path / "x"))
    assert other.tokenizer.digest == words.digest


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


def test_a_bundle_whose_config_was_changed_is_refused(tmp_path):
    published.theirs(tmp_path / "theirs", "llama")
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
    published.theirs(tmp_path / "theirs", "gpt2")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(errors.BadInput, match="full exists and is not empty; choose another"):
        bundle.import_(tmp_path / "theirs", tmp_path / "full")
    assert (tmp_path / "full" / "file").read_text() == "mine"
    with pytest.raises(
        errors.BadInput, match="file exists and is no directory; choose another name"
    ):
        bundle.import_(tmp_path / "theirs", tmp_path / "full" / "file")
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
