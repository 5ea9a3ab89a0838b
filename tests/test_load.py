"""Does `model.load` give back the weights that were saved, and refuse a run whose parts do not belong together?"""

import dataclasses
import json
import shutil

import jax
import numpy as np
import optax
import pytest
import running
from jax import numpy as jnp

import model
from model import blocks, checkpoint, errors, sharding, tokenizer
from model.config import ModelConfig, Runtime
from train import transforms


@pytest.fixture(scope="module")
def stacked():
    """A model's configuration and its parameters as training keeps them."""
    config = ModelConfig(vocab_size=300, context_length=31, layers=3, width=14, heads=7)
    return config, model.init(model.build(config, Runtime(scan=True)), key=jax.random.key(5))


@pytest.fixture
def run(stacked, tmp_path):
    """What training leaves behind: config.json, tokenizer, and checkpoints of steps 3 and 4."""
    config, params = stacked
    workdir = tmp_path / "run"
    lines = (running.texts(tmp_path / "texts") / "a.txt").read_text().splitlines()
    words = tokenizer.train(lines, vocab_size=300, kind="unigram")
    words.save(workdir / "tokenizer")
    meta = {"tokenizer": words.digest, "model": dataclasses.asdict(config)}
    (workdir / "config.json").write_text(json.dumps({"seed": 5, "model": meta["model"]}))
    checkpoints = checkpoint.Checkpoints(workdir / "checkpoints")
    for step in (3, 4):
        scaled = jax.tree.map(lambda leaf, step=step: leaf * step, params)
        checkpoints.save(step, {"params": scaled, "opt_state": jnp.zeros(2)}, meta)
    checkpoints.close()
    return workdir


def test_a_loaded_model_is_the_newest_that_was_saved_whatever_its_layout(stacked, run):
    config, params = stacked
    lm = model.load(run)
    saved = jax.tree.map(lambda leaf: leaf * 4, params)
    assert (lm.config, lm.directory) == (config, run)
    assert lm.tokenizer.digest == tokenizer.load(run / "tokenizer").digest
    assert lm.digest == checkpoint.tree_digest(saved) == checkpoint.tree_digest(lm.params)
    fresh = model.init(lm.net, key=jax.random.key(0))
    assert jax.tree.structure(fresh) == jax.tree.structure(lm.params)
    tokens_BT = jnp.asarray([[2, 5, 7, 11, 13], [2, 17, 19, 23, 29]])
    logits, _ = lm.net.apply({"params": lm.params}, tokens_BT)
    expected, _ = model.build(config, Runtime(scan=True)).apply({"params": saved}, tokens_BT)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    for one, two in zip(
        jax.tree.leaves(blocks.stack_layers(lm.params)), jax.tree.leaves(saved), strict=True
    ):
        np.testing.assert_array_equal(one, two)


def test_a_model_whose_weights_were_averaged_is_loaded_with_the_average(stacked, run):
    _, params = stacked
    meta = checkpoint.read_meta(run / "checkpoints", 4)
    trained, average = (jax.tree.map(lambda leaf, k=k: leaf * k, params) for k in (5, 7))
    # As with frozen embeddings, of which no average is kept.
    kept = {name: part for name, part in average.items() if name != "embedding"}
    opt_state = transforms.Averaged(jnp.zeros(2), {**kept, "embedding": optax.MaskedNode()})
    checkpoints = checkpoint.Checkpoints(run / "checkpoints")
    checkpoints.save(5, {"params": trained, "opt_state": opt_state}, meta)
    checkpoints.close()
    expected = {**average, "embedding": trained["embedding"]}
    assert model.load(run).digest == checkpoint.tree_digest(expected)
    laid = model.load(run, sharding.make_mesh({"data": 4, "fsdp": 2}))
    assert laid.digest == checkpoint.tree_digest(expected)


def test_a_run_is_loaded_straight_onto_a_mesh(run):
    laid = model.load(run, sharding.make_mesh({"data": 4, "fsdp": 2}))
    table = laid.params["embedding"]["weight"]
    assert {shard.data.shape for shard in table.addressable_shards} == {(300, 7)}
    assert laid.digest == model.load(run).digest


def remove_config(workdir):
    (workdir / "config.json").unlink()


def break_config(workdir):
    (workdir / "config.json").write_text("{")


def change_config(workdir):
    groups = json.loads((workdir / "config.json").read_text())
    groups["model"]["rope"]["theta"] = 500.0
    (workdir / "config.json").write_text(json.dumps(groups))


def remove_checkpoints(workdir):
    shutil.rmtree(workdir / "checkpoints")


def half_write(workdir):
    for step in (3, 4):
        (workdir / "checkpoints" / str(step)).rename(
            workdir / "checkpoints" / f"{step}.orbax-checkpoint-tmp"
        )


def change_tokenizer(workdir):
    words = tokenizer.train(
        ["another text " + "of other words " * 31] * 7, vocab_size=283, kind="bpe"
    )
    words.save(workdir / "tokenizer")


def remove_tokenizer(workdir):
    shutil.rmtree(workdir / "tokenizer")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "there is no directory .*run; give a run, a bundle or a Hugging Face"),
        (remove_config, "run holds no model: config.json is missing; give a run, a bundle or"),
        (break_config, r"config.json is not JSON \(.*\); restore it, or give another directory"),
        (
            change_config,
            r"has model.rope=Rope\(theta=500.0,.* the checkpoint of step 4 was trained with .*10000.0,.*; restore",
        ),
        (remove_checkpoints, "run has no complete checkpoint yet; train it until one is saved"),
        (half_write, "run has no complete checkpoint yet; train it until one is saved"),
        (
            change_tokenizer,
            r"tokenizer has digest \w{12}, and the checkpoint of step 4 was trained with \w{12}; restore the tokenizer",
        ),
        (remove_tokenizer, "cannot read the tokenizer .*"),
    ],
)
def test_what_is_missing_or_changed_in_a_run_is_told_when_its_model_is_loaded(run, change, message):
    change(run)
    with pytest.raises(errors.BadInput, match=message) as caught:
        model.load(run)
    assert "\n" not in str(caught.value)
