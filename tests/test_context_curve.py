"""Is loss by context what predicting each target alone gives, on the same targets for every run and length?"""

import dataclasses
import importlib
import math
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import model
from model import checkpoint, errors
from tests import legible, tiny
from train import context_curve, data, recipe, streams

DOCUMENTS = [
    list(np.random.default_rng(i).integers(3, 300, n)) for i, n in enumerate((7, 3, 11, 5))
]


def tokens() -> streams.Tokens:
    return streams.of([{"text": ids} for ids in DOCUMENTS], []).streams["text"]


def run(tmp_path, family="decoder_only", length=5, kind="causal", digest="d", tokenizer="t") -> Any:
    """What `measure` looks at of a run, of a tiny model."""
    lm = dataclasses.replace(
        tiny.small("decoder_only" if family == "encoder_only" else family),
        tokenizer=types.SimpleNamespace(digest=tokenizer),
    )
    if family == "encoder_only":
        lm = dataclasses.replace(
            lm, config=dataclasses.replace(lm.config, family=family, position="learned")
        )
    asked = types.SimpleNamespace(
        data=types.SimpleNamespace(length=length), task=types.SimpleNamespace(kind=kind), tasks=()
    )
    return types.SimpleNamespace(
        lm=lm,
        net=lm.net,
        asked=asked,
        step=2,
        directory=tmp_path / family,
        corpus=types.SimpleNamespace(digest=digest),
    )


@pytest.fixture(autouse=True)
def prepared(monkeypatch):
    held_out = types.SimpleNamespace(valid=streams.Examples({"text": tokens()}))
    monkeypatch.setattr(data, "prepare", lambda *args, **kwargs: held_out)
    monkeypatch.setattr(checkpoint, "read_meta", lambda directory, step: {"tokens": 70 * step})


def test_contexts_are_the_powers_of_2_and_the_window():
    assert context_curve.contexts(1) == [1]
    assert context_curve.contexts(8) == [1, 2, 4, 8]
    assert context_curve.contexts(11) == [1, 2, 4, 8, 11]


def test_targets_have_so_many_tokens_of_their_own_document_before_them():
    found = context_curve.choose(tokens(), 5, 99, seed=0)
    # Documents begin at 0, 7, 10 and 21; the second and the last are too short.
    assert found.places_N.tolist() == [5, 6, 15, 16, 17, 18, 19, 20]
    assert found.documents_N.tolist() == [0, 0, 2, 2, 2, 2, 2, 2]
    few = context_curve.choose(tokens(), 5, 3, seed=1)
    assert len(few.places_N) == 3 and set(few.places_N) < set(found.places_N)
    with pytest.raises(
        errors.BadInput,
        match="^no held-out document has more than 11 tokens, .* shorter --contexts$",
    ):
        context_curve.choose(tokens(), 11, 3, seed=1)


@pytest.mark.parametrize("family", ["decoder_only", "lstm"])
def test_loss_by_context_is_that_of_each_target_predicted_alone(family, tmp_path, monkeypatch):
    monkeypatch.setattr(context_curve, "ROW_TOKENS", 9)  # batches of 9, 4 and 1: the last is padded
    one = run(tmp_path, family)
    numbers = context_curve.measure({"one": one}, count=7, seed=3)
    (line,), chosen = numbers["lines"], context_curve.choose(tokens(), 5, 7, seed=3)
    assert (numbers["contexts"], numbers["targets"], numbers["documents"]) == ([1, 2, 4, 5], 7, 2)
    assert (line["family"], line["tokens"]) == (family, 140), "those of its checkpoint's step"
    assert line["parameters"] == sum(x.size for x in jax.tree.leaves(one.lm.params))
    text = [token for ids in DOCUMENTS for token in ids]
    apply = jax.jit(lambda ids: one.net.apply({"params": one.lm.params}, ids)[0][0, -1])
    for size, loss in zip(numbers["contexts"], line["loss"], strict=True):
        nats = []
        for place in chosen.places_N:
            logits_V = apply(jnp.array([text[place - size : place]], jnp.int32))
            nats.append(-jax.nn.log_softmax(logits_V)[text[place]])
        assert loss == pytest.approx(np.mean(nats), rel=1e-5)
    assert max(line["loss"]) - min(line["loss"]) > 1e-3, "the context matters"
    for low, loss, high in zip(line["low"], line["loss"], line["high"], strict=True):
        assert low <= loss <= high


@pytest.mark.parametrize(
    "other, contexts, complaint",
    [
        (dict(digest="e"), (), "b and a have not the same text (e and d); give runs of the same"),
        (dict(tokenizer="u"), (), "b and a have not the same tokenizer (u and t); give runs"),
        (dict(kind="masked"), (), "b is decoder_only with task 'masked'; loss by context is of"),
        (dict(family="encoder_only"), (), "b is encoder_only with task 'causal'; loss by context"),
        (dict(), (2, 67), "a context is 67 tokens, and a takes 1 to 61; give others by --contexts"),
        (dict(), (0, 2), "a context is 0 tokens, and a takes 1 to 61; give others by --contexts"),
    ],
)
def test_runs_and_contexts_that_cannot_be_compared_are_refused(
    tmp_path, other, contexts, complaint
):
    with pytest.raises(errors.BadInput) as caught:
        context_curve.measure({"a": run(tmp_path), "b": run(tmp_path, **other)}, contexts)
    assert str(caught.value).startswith(complaint)


def test_the_picture_has_a_line_per_run_and_every_word_of_it_can_be_read():
    sizes = [1, 2, 4, 8, 16, 32, 64, 128, 256]
    drawn = [
        {
            "name": name,
            "family": name,
            "parameters": 1_000_003,
            "tokens": 1_700_017,
            "loss": [6.7 - slope * math.log(size) for size in sizes],
        }
        for name, slope in (("transformer", 0.41), ("lstm", 0.4), ("a_gru_of_a_long_name", 0.29))
    ]
    numbers = {"targets": 2039, "documents": 97, "contexts": sizes, "lines": drawn}
    legible.check(context_curve.lines, numbers)
    (axes,) = context_curve.lines(numbers).axes
    assert [line.get_ydata().tolist() for line in axes.lines] == [line["loss"] for line in drawn]
    assert len({line.get_color() for line in axes.lines}) == 3
    header, rows = context_curve.table(numbers)
    assert header == ["run", "parameters", "tokens", *map(str, sizes)]
    assert rows[0][:4] == ["transformer", "1,000,003", "1,700,017", "6.700"]


def test_the_configs_of_the_three_kinds_have_equal_parameters_and_see_the_same_tokens():
    counts, others = {}, []
    module: Any = importlib.import_module("configs.context")
    for kind in module.SHAPES:
        asked = recipe.from_config(module.get_config(kind).to_dict())
        leaves = jax.tree.leaves(model.abstract(asked.model_config(2048)))
        counts[kind] = sum(math.prod(leaf.shape) for leaf in leaves)
        others.append((asked.data, asked.train, asked.tokenizer, asked.optimizer, asked.seed))
    assert counts.keys() == {"transformer", "lstm", "gru"}
    assert max(counts.values()) < 1.03 * min(counts.values()), counts
    assert others == [others[0]] * 3
    with pytest.raises(
        ValueError, match="^kind is 'rnn'; it must be one of transformer, lstm, gru$"
    ):
        module.get_config("rnn")
