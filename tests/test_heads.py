"""Does the head that tells whether a text follows another read what BERT's reads, and say what BERT's says?"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import model
from model import bundle, errors, hf_config
from model.config import Head, ModelConfig
from tests import published, variants

CONFIG = ModelConfig(
    family="encoder_only",
    vocab_size=53,
    context_length=19,
    layers=1,
    width=15,
    heads=3,
    position="learned",
    norm="layer",
    block="post",
    activation="gelu",
    bias="all",
    tied=True,
    embedding="normed",
    token_types=2,
    head=Head(next_sentence=True),
)


@functools.partial(jax.jit, static_argnums=0, compiler_options=variants.FAST)
def fresh(config):
    return model.init(model.build(config), key=jax.random.key(3))


@functools.partial(jax.jit, static_argnums=0, compiler_options=variants.FAST)
def say(config, params, tokens_BT, mask_BT):
    return model.build(config).apply({"params": params}, tokens_BT, mask=mask_BT)


def test_a_pair_is_told_by_the_first_real_token_and_the_tokens_as_without():
    """tanh(x W + b) V + c of the hidden state there, in numpy; the control is padding taken for the first token."""
    params = fresh(CONFIG)
    drawn = jax.random.split(jax.random.key(5), 4)
    leaves, tree = jax.tree.flatten(params["pair"])
    pair = tree.unflatten(
        [jax.random.normal(k, x.shape) for k, x in zip(drawn, leaves, strict=True)]
    )
    tokens_BT = jnp.arange(26, dtype=jnp.int32).reshape(2, 13)
    mask_BT = jnp.arange(13)[None] >= jnp.array([0, 4])[:, None]
    logits_BTV, aux = say(CONFIG, params | {"pair": pair}, tokens_BT, mask_BT)
    assert aux["next_sentence"].shape == (2, 2) and aux["next_sentence"].dtype == jnp.float32
    dense, out = (jax.tree.map(np.asarray, pair[name]) for name in ("dense", "out"))

    def said(places):
        first_BD = np.asarray(aux["features"])[[0, 1], places]
        hidden_BD = np.tanh(first_BD @ dense["weight"] + dense["bias"])
        return hidden_BD @ out["weight"] + out["bias"]

    np.testing.assert_allclose(aux["next_sentence"], said([0, 4]), atol=1e-5)
    assert np.abs(aux["next_sentence"] - said([0, 0])).max() > 0.1
    rest = {name: leaf for name, leaf in params.items() if name != "pair"}
    alone_BTV, without = say(dataclasses.replace(CONFIG, head=Head()), rest, tokens_BT, mask_BT)
    np.testing.assert_array_equal(logits_BTV, alone_BTV)
    assert logits_BTV.shape == (2, 13, 53) and "next_sentence" not in without


def test_both_heads_of_bert_are_read_and_written_back(tmp_path):
    _, tensors = published.theirs(tmp_path / "theirs", "bert-ForPreTraining")
    names = {"bert.pooler.dense.weight", "cls.seq_relationship.weight", "cls.seq_relationship.bias"}
    assert names <= set(tensors)
    report = bundle.import_(tmp_path / "theirs", tmp_path / "ours")
    assert report.aside == () or not set(report.aside) & names
    lm = model.load(tmp_path / "ours")
    assert lm.config.head == Head(next_sentence=True)
    weight = tensors["cls.seq_relationship.weight"]
    np.testing.assert_array_equal(lm.params["pair"]["out"]["weight"], weight.T)
    bundle.export(tmp_path / "ours", tmp_path / "back")
    published.assert_same(published.read(tmp_path / "back"), tensors)


@pytest.mark.oracle
def test_both_heads_say_what_those_of_transformers_say(tmp_path):
    import torch
    import transformers

    published.theirs(tmp_path / "theirs", "bert-ForPreTraining")
    theirs = transformers.BertForPreTraining.from_pretrained(tmp_path / "theirs").eval()
    lm = model.load(tmp_path / "theirs")
    tokens_BT = np.arange(22).reshape(2, 11)
    types_BT = (np.arange(11) > [[4], [6]]).astype(int)
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor(tokens_BT), token_type_ids=torch.tensor(types_BT))
    logits_BTV, aux = lm.net.apply(
        {"params": lm.params}, jnp.int32(tokens_BT), types=jnp.int32(types_BT)
    )
    for ours, said in (
        (logits_BTV, expected.prediction_logits),
        (aux["next_sentence"], expected.seq_relationship_logits),
    ):
        assert np.abs(ours - said.numpy()).max() < 1e-4 * np.abs(said.numpy()).max()


def test_a_text_is_the_mean_of_its_hidden_states_packed_padded_or_alone():
    """tanh(m W + b) V + c of the mean m, in numpy; the control is the head that reads the first token."""
    config = dataclasses.replace(
        CONFIG, head=Head("sequence", ("no", "yes", "maybe"), pooling="mean")
    )
    params = fresh(config)
    leaves, tree = jax.tree.flatten(params["head"])
    drawn = jax.random.split(jax.random.key(5), len(leaves))
    params["head"] = tree.unflatten(
        [jax.random.normal(k, x.shape) for k, x in zip(drawn, leaves, strict=True)]
    )
    dense, out = (jax.tree.map(np.asarray, params["head"][name]) for name in ("dense", "out"))
    texts = [np.arange(1, 8), np.arange(9, 14)]

    def said(mean_D):
        return np.tanh(mean_D @ dense["weight"] + dense["bias"]) @ out["weight"] + out["bias"]

    expected = []
    for text in texts:
        logits_BC, aux = say(
            config, params, text[None].astype(np.int32), np.ones((1, len(text)), bool)
        )
        expected.append(said(np.asarray(aux["features"])[0].mean(axis=0)))
        np.testing.assert_allclose(logits_BC[0], expected[-1], atol=1e-5)
        first = dataclasses.replace(config, head=dataclasses.replace(config.head, pooling="first"))
        other_BC, _ = say(first, params, text[None].astype(np.int32), np.ones((1, len(text)), bool))
        assert np.abs(other_BC - logits_BC).max() > 0.1

    tokens_BT, mask_BT = np.zeros((2, 9), np.int32), np.zeros((2, 9), bool)
    for row, text in enumerate(texts):
        tokens_BT[row, 9 - len(text) :], mask_BT[row, 9 - len(text) :] = text, True
    np.testing.assert_allclose(say(config, params, tokens_BT, mask_BT)[0], expected, atol=1e-5)

    net, packed_BT = model.build(config), np.concatenate([*texts, [0, 0]])[None].astype(np.int32)
    segments_BT = np.repeat([1, 2, 0], [7, 5, 2])[None].astype(np.int32)
    x_BTD, _ = net.apply({"params": params}, packed_BT, segments=segments_BT, method="features")
    logits_BTC = net.apply({"params": params}, x_BTD, every=True, method="head")
    np.testing.assert_allclose(logits_BTC[0, [0, 7]], expected, atol=1e-5)


def test_a_mean_is_of_a_text_alone_and_no_hugging_face_class_has_it():
    with pytest.raises(errors.BadInput, match="only 'sequence' pools"):
        Head("token", ("a", "b"), pooling="mean")
    head = Head("sequence", ("a", "b"), pooling="mean")
    assert hf_config.holding(dataclasses.replace(CONFIG, head=head)) is None
    head = dataclasses.replace(head, pooling="first")
    assert hf_config.holding(dataclasses.replace(CONFIG, head=head)) == "bert"
