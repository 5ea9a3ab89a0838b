"""Does a run begin with the model it is told to, train nothing else than it is told to, and go on to the same bits?"""

import json
import shutil

import jax
import numpy as np
import pytest
import running

import model
from model import adapters, bundle, checkpoint, errors, hf, peft
from train import evaluate, loop, recipe

pytestmark = pytest.mark.standard_promotion


def config(source, **groups) -> dict:
    """Three steps of a batch of eight, saved after the second."""
    whole = running.config(source, decode={"prompts": []}, runtime={"dropout": 0.1})
    whole["train"] = {"steps": 3, "batch_size": 8, "log_every": 1, "save_every": 2}
    whole["optimizer"] = {"warmup_steps": 1}
    return whole | groups


def tuned(source, base, **groups) -> dict:
    """The same text, from a base that says which tokenizer and which model."""
    whole = config(source, start={"path": str(base)}, **groups)
    return {name: group for name, group in whole.items() if name not in ("tokenizer", "model")}


LORA = {"kind": "dora", "rank": 3, "alpha": 5, "targets": ["attention", "up"]}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return running.texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def base(source, tmp_path_factory):
    """A run that others start from."""
    workdir = tmp_path_factory.mktemp("runs") / "base"
    loop.run(recipe.from_config(config(source)), workdir)
    return workdir


@pytest.fixture(scope="module")
def adapted(source, base, tmp_path_factory):
    """An adapted run, stopped after two steps and gone on with."""
    workdir = tmp_path_factory.mktemp("runs") / "adapted"
    asked = tuned(source, base, adapt=LORA)
    loop.run(recipe.from_config(asked), workdir)
    return workdir


def test_a_resumed_adapted_run_comes_to_the_bits_of_the_one_that_was_not_stopped(
    source, base, adapted, tmp_path
):
    shutil.copytree(adapted, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "3")
    loop.run(recipe.from_config(tuned(source, base, adapt=LORA)), tmp_path / "run")
    one, two = (model.load_adapter(each) for each in (adapted, tmp_path / "run"))
    jax.tree.map(np.testing.assert_array_equal, one.tree, two.tree)


def test_a_checkpoint_of_an_adapted_run_holds_the_adapter_and_its_optimiser_and_names_the_base(
    base, adapted
):
    record = json.loads((adapted / "checkpoints" / "3" / "meta" / "metadata").read_text())
    assert record["meta"]["base"] == model.load(base).digest
    held = [name for name in record["leaves"] if "weight" in name or "scale" in name]
    assert len(held) == 3 * 3 * 5  # of five maps three parts, each with two moments
    assert all("lora_" in name or "magnitude" in name for name in held)
    groups = json.loads((adapted / "config.json").read_text())
    assert groups["model"]["width"] == 16 and groups["tokenizer"]["path"] == str(base / "tokenizer")


def test_an_adapted_run_loads_merged_and_nothing_but_its_targets_has_moved(base, adapted):
    lm, before, found = model.load(adapted), model.load(base), model.load_adapter(adapted)
    merged = adapters.merge(before.params, found.tree, found.config)
    jax.tree.map(np.testing.assert_array_equal, lm.params, merged)
    moved = {
        path
        for path, leaf in hf.flatten(lm.params).items()
        if not np.array_equal(leaf, hf.flatten(before.params)[path])
    }
    maps = (
        "attention/query",
        "attention/key",
        "attention/value",
        "attention/out",
        "feed_forward/up",
    )
    assert moved == {f"stack/layers_{i}/{name}/weight" for i in (0, 1) for name in maps}
    valid = running.metrics(adapted)[-1]
    measured = evaluate.of_run(adapted)
    np.testing.assert_allclose(measured["loss"], valid["loss"], rtol=1e-6)


def test_an_exported_adapted_run_is_the_merged_model_and_beside_it_the_adapter_alone(
    adapted, tmp_path
):
    report = bundle.export(adapted, tmp_path / "out")
    assert "the adapter alone, of " in str(report)
    lm = model.load(adapted)
    jax.tree.map(np.testing.assert_array_equal, model.load(tmp_path / "out").params, lm.params)
    read, tree = peft.read(tmp_path / "out" / "adapter", lm.config)
    found = model.load_adapter(adapted)
    assert (read.kind, read.rank, read.alpha) == ("dora", 3, 5.0)
    jax.tree.map(np.testing.assert_array_equal, tree, found.tree)


def test_another_base_is_refused_when_a_run_goes_on_and_when_it_is_loaded(
    source, base, adapted, tmp_path
):
    shutil.copytree(base, tmp_path / "base")
    shutil.copytree(adapted, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "3")
    groups = (tmp_path / "run" / "config.json").read_text()
    (tmp_path / "run" / "config.json").write_text(groups.replace(str(base), str(tmp_path / "base")))
    shutil.rmtree(tmp_path / "base" / "checkpoints" / "3")  # what stays is the base one step before
    with pytest.raises(
        errors.BadInput,
        match=r"^the weights of config.start.path='.*base' are not those that the checkpoint of this run was trained "
        r"on \(were [0-9a-f]{12}, are [0-9a-f]{12}\); restore them or choose another --workdir$",
    ):
        asked = tuned(source, tmp_path / "base", adapt=LORA)
        loop.run(recipe.from_config(asked), tmp_path / "run")
    with pytest.raises(
        errors.BadInput, match=r"was trained on the weights [0-9a-f]{12} of .*base, and there are"
    ):
        model.load(tmp_path / "run")  # fmt: skip


def test_a_full_fine_tuning_begins_with_every_weight_of_its_start(source, base, tmp_path):
    """At a learning rate of 0 it ends with them too."""
    still = {"learning_rate": 0.0, "schedule": "constant", "warmup_steps": 0, "weight_decay": 0.0}
    asked = tuned(source, base, optimizer=still)
    loop.run(recipe.from_config(asked), tmp_path / "run")
    one, two = model.load(base), model.load(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, one.params, two.params)
    assert two.words.digest == one.words.digest
    meta = checkpoint.read_meta(tmp_path / "run" / "checkpoints", 3)
    assert "base" not in meta


@pytest.mark.parametrize(
    "groups, message",
    [
        ({"model": {"norm": "layer"}}, r"^config.model.norm is 'layer', and the model of config.start.path='.*' has 'rms'; "),
        ({"adapt": LORA, "start": {}}, r"^config.adapt says how a model is adapted, and config.start.path does not say "),
        ({"adapt": LORA, "optimizer": {"frozen": ["norm"]}}, r"^config.optimizer.frozen is \['norm'\], and config.adapt "),
        ({"adapt": {"kind": "prompt", "virtual_tokens": 3}}, r"^config.adapt.kind is 'prompt', which train does not pl"),
        ({"adapt": LORA | {"targets": ["qurey"]}}, r"^adapt.targets: rule 'qurey' is found in no parameter; the nearest"),
        ({"start": {"path": "nowhere"}}, r"^there is no directory nowhere; give a run, a bundle or a Hugging Face dir"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(groups, message, source, base, tmp_path):
    with pytest.raises(errors.BadInput, match=message):
        asked = tuned(source, base) | {"tokenizer": {"path": str(base / "tokenizer")}} | groups
        asked = (
            asked if "start" not in groups or groups["start"] else asked | config(source) | groups
        )
        loop.run(recipe.from_config(asked), tmp_path / "run")
