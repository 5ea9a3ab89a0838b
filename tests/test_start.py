"""Does a run begin with the model it is told to, train nothing else than it is told to, and go on to the same bits?"""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import running
from flax import linen as nn

import model
from model import adapters, blocks, bundle, errors, hf, hf_config, peft, sharding, tokenizer
from model.adapters import AdapterConfig
from model.config import Head, ModelConfig, Runtime
from tests import published
from train import evaluate, loop, recipe, rows, start, step
from train.losses import LossConfig
from train.streams import Examples, Tokens
from train.tasks import Task

pytestmark = pytest.mark.standard_promotion


def config(source, **groups) -> dict:
    """Three steps of a batch of eight, saved after the second."""
    whole = running.config(source, decode={"prompts": []}, runtime={"dropout": 0.1, "mesh": MESH})
    whole["train"] = {"steps": 3, "batch_size": 8, "log_every": 1, "save_every": 2}
    whole["optimizer"] = {"warmup_steps": 1}
    return whole | groups


def tuned(source, base, **groups) -> dict:
    """The same text, from a base that says which tokenizer and which model, in a larger vocabulary."""
    whole = config(source, start={"path": str(base)}, model={"vocab_size": 307}, **groups)
    return {name: group for name, group in whole.items() if name != "tokenizer"}


NOTE = "'embedding/weight', 'output/weight' has no like in {}, and starts fresh"
MESH = {"data": 2, "fsdp": 2, "tensor": 2}
LORA = {"kind": "dora", "rank": 3, "alpha": 5, "targets": ["attention", "up"]}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return running.texts(tmp_path_factory.mktemp("texts"))


def write(directory, seed):
    """A published LLaMA of random weights, for 300 pieces."""
    described = ModelConfig(300, 31, 2, 16, 2)
    draw = np.random.default_rng(seed)
    leaves = {
        path: draw.normal(size=leaf.shape, scale=0.1).astype("f4")
        for path, leaf in hf.flatten(nn.meta.unbox(model.abstract(described))).items()
    }
    tensors = hf.to_theirs("llama", described, hf.nest(leaves))
    published.write(directory, hf_config.their_config("llama", described), tensors)


@pytest.fixture(scope="module")
def base(source, tmp_path_factory):
    """A Hugging Face directory that runs start from."""
    directory = tmp_path_factory.mktemp("base")
    write(directory, seed=7)
    words = tokenizer.train([(source / "a.txt").read_text()], kind="bpe", vocab_size=300)
    words.save(directory)
    return directory


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
    assert len(held) == 3 * (
        3 * 5 + 2
    )  # of five maps three parts, and two tables; each with two moments
    assert not any(
        "/layers/" in name and "lora_" not in name and "magnitude" not in name for name in held
    )
    groups = json.loads((adapted / "config.json").read_text())
    assert groups["model"]["width"] == 16 and groups["tokenizer"]["path"] == str(base)


def test_an_adapted_run_loads_merged_and_nothing_but_its_targets_has_moved(base, adapted):
    lm, before, found = model.load(adapted), model.load(base), model.load_adapter(adapted)
    merged = adapters.merge(found.base.params, found.tree, found.config)
    jax.tree.map(np.testing.assert_array_equal, lm.params, merged)
    moved = {
        path
        for path, leaf in hf.flatten(lm.params).items()
        if not np.array_equal(leaf, hf.flatten(before.params)[path])
    } - {"embedding/weight", "output/weight"}
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
    write(tmp_path / "base", seed=11)
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


def test_a_start_takes_every_weight_that_fits_and_names_those_that_begin_afresh(base):
    mesh, key = sharding.make_mesh(devices=jax.devices()[:2]), jax.random.key(5)
    held = hf.flatten(blocks.stack_layers(model.load(base).params))
    for changed, fresh in (({}, ()), ({"vocab_size": 307}, ("embedding/weight", "output/weight"))):
        config = dataclasses.replace(model.load(base).config, **changed)
        net = model.build(config, Runtime(scan=True))
        begun = start.begin(str(base), None, net, mesh, None, key=key)
        assert begun.base is None and begun.identity == {}
        assert begun.notes == ((NOTE.format(base),) if fresh else ())
        for path, leaf in hf.flatten(begun.params).items():
            if path in fresh:
                assert leaf.shape == (307, 16) and 0.01 < float(leaf.std()) < 0.03
            else:
                np.testing.assert_array_equal(leaf, held[path], err_msg=path)
    lm, labelled = Head(), Head("sequence", ("a", "b"))
    one = {"head/dense/weight": np.zeros((3, 3)), "stack/norm/scale": np.zeros(3)}
    assert (
        adapters.absent(one, one, (lm, lm)) == []
    )  # what BERT's two heads call dense is not one map
    assert adapters.absent(one, one, (lm, labelled)) == ["head/dense/weight"]
    deeper = model.build(dataclasses.replace(config, layers=3), Runtime(scan=True))
    with pytest.raises(
        errors.BadInput, match=r"^config.model.layers is 3, and the model of config"
    ):
        start.begin(str(base), None, deeper, mesh, None, key=key)


@pytest.mark.parametrize(
    "groups, message",
    [
        ({"model": {"norm": "layer"}}, r"^config.model.norm is 'layer', and the model of config.start.path='.*' has '"),
        ({"adapt": LORA, "start": {}}, r"^config.adapt says how a model is adapted, and config.start.path does not sa"),
        ({"adapt": LORA, "optimizer": {"frozen": ["norm"]}}, r"^config.optimizer.frozen is \['norm'\], and config.ada"),
        ({"adapt": {"kind": "prompt", "virtual_tokens": 3}}, r"^config.adapt.virtual_tokens is 3, and config.task"),
        ({"adapt": LORA | {"targets": ["qurey"]}}, r"^adapt.targets: rule 'qurey' is found in no parameter; the near"),
        ({"start": {"path": "nowhere"}}, r"^there is no directory nowhere; give a run, a bundle or a Hugging Face dir"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(groups, message, source, base, tmp_path):
    with pytest.raises(errors.BadInput, match=message):
        asked = tuned(source, base) | {"tokenizer": {"path": str(base)}} | groups
        asked = (
            asked if "start" not in groups or groups["start"] else asked | config(source) | groups
        )
        loop.run(recipe.from_config(asked), tmp_path / "run")


def examples(**streams):
    """Two examples of given streams."""
    return Examples(
        {
            name: Tokens(
                np.array(one + two, np.uint16 if min(one + two) >= 0 else np.int32),
                np.array([0, len(one), len(one) + len(two)]),
            )
            for name, (one, two) in streams.items()
        }
    )


@pytest.mark.parametrize(
    "task, streams, expected",
    [
        (
            Task("classify", labels=("a", "b")),
            {"text": ([3, 4], [5]), "labels": ([1], [0])},
            {"tokens": [31, 32, 3, 4, 31, 32, 5], "targets": [1, 0, 0, 0, 0, 0, 0], "weights": [1, 0, 0, 0, 1, 0, 0],
             "segments": [1, 1, 1, 1, 2, 2, 2]},
        ),
        (
            Task("tag", labels=("a", "b")),
            {"text": ([3, 4], [5]), "labels": ([1, -1], [0])},
            {"tokens": [31, 32, 3, 4, 31, 32, 5], "targets": [0, 0, 1, 0, 0, 0, 0], "weights": [0, 0, 1, 0, 0, 0, 1],
             "segments": [1, 1, 1, 1, 2, 2, 2]},
        ),
        (
            Task("seq2seq"),
            {"source": ([3], [6]), "target": ([4, 5], [7])},
            {"tokens": [31, 32, 3, 4, 31, 32, 6], "targets": [0, 3, 4, 5, 0, 6, 7], "weights": [0, 0, 1, 1, 0, 0, 1]},
        ),
        (
            Task("chat"),
            {"text": ([3, 4, 5], [6, 7]), "said": ([0, 0, 1], [0, 1])},
            {"tokens": [31, 32, 3, 4, 31, 32, 6], "targets": [0, 3, 4, 5, 0, 6, 7], "weights": [0, 0, 0, 1, 0, 0, 1]},
        ),
    ],
)  # fmt: skip
def test_virtual_tokens_stand_before_every_example_of_a_row_and_are_no_targets(
    task, streams, expected
):
    config = ModelConfig(31, 13, 2, 16, 2, family="encoder_only" if task.labels else "decoder_only")
    built = rows.build(
        task, examples(**streams), None, config, length=7, source_length=7, virtual=2
    )
    row = built.row(0, 0)
    for name, values in expected.items():
        np.testing.assert_array_equal(row[name], values, err_msg=name)
    assert row["targets"].max() < 31


def test_a_soft_prompt_learns_from_rows_that_begin_with_it_and_nothing_else_moves(base):
    mesh, key = sharding.make_mesh(devices=jax.devices()[:2]), jax.random.key(5)
    net = model.build(model.load(base).config, Runtime(scan=True))
    adapt = AdapterConfig("prompt", virtual_tokens=2)
    begun = start.begin(str(base), adapt, net, mesh, None, key=key)
    built = rows.build(
        Task("seq2seq"),
        examples(source=([3], [6]), target=([4, 5], [7])),
        None,
        net.config,
        length=7,
        source_length=7,
        virtual=2,
    )
    row = built.row(0, 0)
    batch = {name: np.stack([array] * 2) for name, array in row.items()}

    def loss(params, batch):
        sums = step.batch_loss(net, LossConfig(), begun.whole(params), batch, key)
        return sums.objective

    gradient = hf.flatten(jax.jit(jax.grad(loss))(begun.params, batch))
    assert gradient.keys() == {adapters.PROMPT}
    rows_PD = np.asarray(gradient[adapters.PROMPT])
    assert rows_PD.shape == (2, 16) and np.isfinite(rows_PD).all() and (rows_PD != 0).all()
