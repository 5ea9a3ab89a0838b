"""Does a run refuse what it must, before work is lost, and leave behind what its directory promises?"""

import fcntl
import json
import os
import re
import shutil

import pytest
import running

import decode
import model
from model import checkpoint, errors, tokenizer
from train import evaluate, loop, recipe

pytestmark = pytest.mark.standard_promotion

MESH = {"data": 2, "fsdp": 2, "tensor": 2}


def config(source, **groups) -> dict:
    """Four steps of a batch of eight on all eight devices; no samples, which `test_resume.py` has."""
    whole = running.config(source, decode={"prompts": []}, runtime={"mesh": MESH})
    whole["train"] = {"steps": 4, "batch_size": 8, "accumulate": 2, "log_every": 1, "save_every": 3}
    whole["optimizer"] = {"warmup_steps": 1}
    for name, change in groups.items():
        whole[name] = {**whole[name], **change} if isinstance(change, dict) else change
    return whole


def run(config, workdir) -> None:
    loop.run(recipe.from_config(config), workdir)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return running.texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def watched(source, tmp_path_factory):
    """A complete run, and (step, lines of metrics on disk) at each of its saves."""
    workdir, saves = tmp_path_factory.mktemp("runs") / "finished", []
    usual = checkpoint.Checkpoints.save

    def save(self, step, state, meta):
        saves.append((step, [(line["step"], line["split"]) for line in running.metrics(workdir)]))
        usual(self, step, state, meta)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.Checkpoints, "save", save)
        loop.run(recipe.from_config(config(source)), workdir, profile="3:1")
    return workdir, saves


@pytest.fixture(scope="module")
def finished(watched):
    """A complete run; tests that change it do so to a copy."""
    return watched[0]


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def content(workdir) -> dict:
    return {str(path): path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


def test_a_run_directory_holds_what_is_promised(finished):
    groups = json.loads((finished / "config.json").read_text())
    assert groups["model"]["vocab_size"] == 300 and groups["optimizer"]["b2"] == 0.95
    assert [(line["step"], line["split"]) for line in running.metrics(finished)] == [
        (1, "train"),
        (2, "train"),
        (3, "train"),
        (4, "train"),
        (4, "valid"),
    ]
    assert {path.name for path in (finished / "checkpoints").iterdir()} == {"3", "4"}
    assert list((finished / "tensorboard").iterdir()) and list(finished.glob("profile/**/*.pb"))
    assert tokenizer.load(finished / "tokenizer").vocab_size == 300


def test_what_a_step_reports_is_on_disk_before_the_step_is_saved(watched):
    """Else a kill after the save would lose it: the resumed run does not come by that step again."""
    trained = [(step, "train") for step in (1, 2, 3, 4)]
    assert watched[1] == [(3, trained[:3]), (4, [*trained, (4, "valid")])]


def test_a_line_of_metrics_has_the_loss_and_apart_from_it_the_speed(finished):
    first = json.loads((finished / "metrics.jsonl").read_text().split("\n")[0])
    assert first["tokens"] > 100 and 5 < first["loss"] < 7 and first["time"]["compiles"] == 1
    assert {"tokens_per_second", "utilisation", "data_wait", "seconds_left"} < set(first["time"])


def test_a_run_loads_as_the_model_that_the_summary_names(finished):
    lm = model.load(finished)
    assert lm.digest == checkpoint.tree_digest(lm.params)
    assert lm.config.vocab_size == lm.tokenizer.vocab_size == 300


def test_a_run_measures_samples_and_loads_the_average_of_its_weights_if_it_keeps_one(
    source, tmp_path, monkeypatch, capsys
):
    seen = []

    def measured(eval_step, params, batches, text_bytes, text_words):
        seen.append(checkpoint.tree_digest(params))
        return {"loss": 3.0, "perplexity": 20.0, "bits_per_byte": 2.0, "tokens": 5.0}

    monkeypatch.setattr(evaluate, "evaluate", measured)
    monkeypatch.setattr(decode, "generate", lambda lm, *_, **__: seen.append(lm.digest) or [])
    wanted = {"ema_decay": 0.5, "frozen": ["^embedding"], "learning_rate": 0.1}
    train = {"save_every": 0, "steps": 2}
    prompts = {"prompts": ["the moon"]}
    run(config(source, optimizer=wanted, train=train, decode=prompts), tmp_path)
    assert seen == [digest := model.load(tmp_path).digest] * 2
    assert f"weights {digest}" in capsys.readouterr().out
    leaves = json.loads((tmp_path / "checkpoints" / "2" / "meta" / "metadata").read_text())[
        "leaves"
    ]
    trained = leaves["params/stack/norm/scale"]["sha256"]
    assert leaves["opt_state/inner/average/stack/norm/scale"]["sha256"] != trained
    assert not [name for name in leaves if re.search("^opt_state.*embedding", name)]


def test_a_complete_run_started_again_says_so_and_does_nothing_else(source, copy, capsys):
    before = content(copy)
    run(config(source), copy)
    assert content(copy) == before
    loss = next(line["loss"] for line in running.metrics(copy) if line["step"] == 4)
    assert re.fullmatch(
        rf"{re.escape(str(copy))} is complete at step 4; last training loss {re.escape(repr(loss))}, "
        r"held-out loss [\d.]+, bits per byte [\d.]+\n",
        capsys.readouterr().out,
    )


@pytest.mark.parametrize(
    ("change", "key", "was", "now"),
    [
        ({"seed": 6}, "seed", 5, 6),
        ({"model": {"layers": 3}}, "model.layers", 2, 3),
        ({"train": {"batch_size": 16}}, "train.batch_size", 8, 16),
        ({"tokenizer": {"kind": "bpe"}}, "tokenizer.kind", "'unigram'", "'bpe'"),
    ],
)
def test_a_directory_of_another_run_is_refused_and_left_as_it_was(
    source, copy, change, key, was, now
):
    before = content(copy)
    with pytest.raises(
        errors.BadInput,
        match=rf"^{re.escape(str(copy))} holds a run with {key}={was}, and this config has {now}; choose another "
        rf"--workdir, or the value it was started with{recipe.way_out(key)}$",
    ):
        run(config(source, **change), copy)
    assert content(copy) == before
    assert bool(recipe.way_out(key)) == (key == "train.batch_size")


def test_a_change_that_is_allowed_is_the_runs_from_then_on_and_told_with_its_step(
    source, copy, capsys
):
    changed = config(source, optimizer={"warmup_steps": 1, "learning_rate": 3e-4})
    key = "optimizer.learning_rate"
    with pytest.raises(errors.BadInput, match=rf", or add --allow_change={key}$"):
        run(changed, copy)
    loop.run(recipe.from_config(changed), copy, allow_change=[key])
    assert "is complete at step 4" in capsys.readouterr().out
    ledger = {"step": 4, "event": "changed", "key": key, "was": 1e-3, "is": 3e-4}
    assert json.loads((copy / "ledger.jsonl").read_text()) == ledger
    run(changed, copy)
    assert json.loads((copy / "ledger.jsonl").read_text()) == ledger
    with pytest.raises(errors.BadInput, match=f"holds a run with {key}=0.0003"):
        run(config(source), copy)


def test_a_directory_whose_config_is_not_a_runs_is_refused(source, tmp_path):
    (tmp_path / "config.json").write_text("no JSON")
    shutil.copytree(finished_tokenizer(source, tmp_path), tmp_path / "tokenizer")
    with pytest.raises(
        errors.BadInput,
        match=r"config.json is not JSON \(.*\); restore it, or give another directory",
    ):
        run(config(source), tmp_path)


def finished_tokenizer(source, tmp_path):
    words = tokenizer.train((source / "a.txt").read_text().splitlines(), vocab_size=300)
    words.save(tmp_path / "other")
    return tmp_path / "other"


def test_going_on_with_another_tokenizer_is_refused(source, copy, tmp_path):
    shutil.rmtree(copy / "tokenizer")
    shutil.copytree(finished_tokenizer(source, tmp_path), copy / "tokenizer")
    with pytest.raises(
        errors.BadInput,
        match=r"^the tokenizer is not what the checkpoint of step 4 in .* was trained with \(was \w{12}, is \w{12}\); "
        "restore it or choose another --workdir$",
    ):
        run(config(source), copy)


def test_going_on_with_other_text_is_refused(copy, tmp_path):
    source = running.texts(tmp_path / "texts")
    groups = json.loads((copy / "config.json").read_text())
    groups["data"]["train"] = config(source)["data"]["train"]
    (copy / "config.json").write_text(json.dumps(groups))
    with (source / "b.txt").open("a") as file:
        file.write("one more line.\n")
    with pytest.raises(
        errors.BadInput, match="^the text of group data is not what the checkpoint of step 4 in"
    ):
        run(config(source), copy)


def test_evaluating_on_other_text_than_was_kept_out_of_training_is_refused(source, copy, tmp_path):
    measured = evaluate.of_run(copy)
    last = [line for line in running.metrics(copy) if line["split"] == "valid"][-1]
    assert measured["loss"] == pytest.approx(last["loss"], rel=1e-5)
    (copy / "evaluation.json").unlink()
    same, other = (running.texts(tmp_path / name) for name in ("same", "other"))
    for place in (same, other):
        with (place / "b.txt").open("a") as file:
            file.write("one more line.\n" if place == other else "")
        groups = json.loads((copy / "config.json").read_text())
        groups["data"]["train"] = config(place)["data"]["train"]
        (copy / "config.json").write_text(json.dumps(groups))
        if place == same:  # the same text elsewhere
            assert evaluate.of_run(copy) == measured
            (copy / "evaluation.json").unlink()
    message = (
        rf"^the held-out text is not the one kept out of the training of {re.escape(str(copy))} \(the text of group "
        r"data was \w{12}, is \w{12}\): its files, or the Python version, changed; restore them or train again"
    )
    with pytest.raises(errors.BadInput, match=message):
        evaluate.of_run(copy)
    assert not (copy / "evaluation.json").exists()


def test_evaluation_computes_in_the_dtype_of_the_run(copy):
    exact = evaluate.of_run(copy)["loss"]
    path = copy / "config.json"
    path.write_text(path.read_text().replace('"dtype": "float32"', '"dtype": "bfloat16"'))
    rounded = evaluate.of_run(copy)["loss"]
    assert rounded != pytest.approx(exact, rel=1e-7)
    assert rounded == pytest.approx(exact, rel=1e-2)


def test_text_that_is_missing_is_told_before_a_tokenizer_is_said_to_be_trained(
    source, tmp_path, capsys
):
    missing = {"path": str(tmp_path / "gone.txt")}
    with pytest.raises(errors.BadInput, match="gone.txt"):
        run(config(source, data={"train": missing}), tmp_path / "run")
    assert "training a" not in capsys.readouterr().out
    run(config(source, train={"steps": 2}), tmp_path / "control")
    assert "training a unigram tokenizer of 300 pieces on " in capsys.readouterr().out


def test_a_damaged_checkpoint_is_named_and_without_it_the_run_ends_the_same(source, copy, capsys):
    expected = (
        running.metrics(copy),
        json.loads((copy / "checkpoints/4/meta/metadata").read_text())["leaves"],
    )
    for path in (copy / "checkpoints/4/state").rglob("d/*"):
        os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(
        errors.BadInput,
        match=r"checkpoints/4 is damaged \(.*\); remove that directory to go on from",
    ):
        model.load(copy)
    shutil.rmtree(copy / "checkpoints/4")
    half = copy / "checkpoints/4.orbax-checkpoint-tmp"
    half.mkdir()
    run(config(source), copy)
    out = capsys.readouterr().out
    assert f"not used, because it is half-written: {half}\nresuming at step 3 of 4\n" in out
    assert running.metrics(copy) == expected[0]
    assert json.loads((copy / "checkpoints/4/meta/metadata").read_text())["leaves"] == expected[1]


def test_two_processes_do_not_train_in_one_directory(source, copy):
    handle = os.open(copy, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(
        errors.BadInput,
        match="^another process is training in .*run; wait for it or choose another",
    ):
        run(config(source), copy)
    os.close(handle)


def test_a_workdir_that_cannot_be_made_is_bad_input(source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        errors.BadInput, match=r"file cannot hold a run \(File exists\); choose another --workdir"
    ):
        run(config(source), tmp_path / "file")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"train": {"batch_size": 6}},
            "config.train.batch_size=6 has a dimension of 6, which mesh axes data×fsdp of 4 devices do not divide",
        ),
        (
            {"train": {"batch_size": 12}},
            "config.train.batch_size=12 in config.train.accumulate=2 parts has a dimension of 6, which mesh axes",
        ),
        (
            {"runtime": {"mesh": {"data": 3}}},
            r"mesh {'data': 3} needs 3 devices and 8 are here; change runtime.mesh",
        ),
        (
            {"decode": {"prompts": [""]}},
            "config.decode.prompts has '', of 1 tokens with the first; it must have at le",
        ),
        (
            {"decode": {"prompts": ["qwertz " * 31]}},
            r"config.decode.prompts has 'qwertz .*', of \d+ tokens with the first; it must have at least 2 and fewer "
            "than config.model.context_length=31",
        ),
        ({"data": {"train": "nowhere.txt"}}, "nowhere.txt"),
        ({"tokenizer": {"vocab_size": 5003}}, "vocab_size is 5003, but this text allows at most"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_tokenised(
    source, tmp_path, change, message
):
    with pytest.raises(errors.BadInput, match=message):
        run(config(source, **change), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()
    assert not (tmp_path / "run" / "data").exists()


def test_a_loss_that_is_not_finite_ends_the_run_and_is_never_saved(source, tmp_path):
    asked = config(
        source, optimizer={"learning_rate": 1e30, "warmup_steps": 0}, train={"save_every": 1}
    )
    with pytest.raises(
        errors.BadInput,
        match=r"^step 2 has loss \S+ and gradient norm \S+; .*flight.json has its rows and norms; the last "
        "checkpoint is kept; go on without such batches by --config.train.on_bad_step=skip, or lower ",
    ):
        run(asked, tmp_path)
    assert checkpoint.latest(tmp_path / "checkpoints") == 1
    assert [line["step"] for line in running.metrics(tmp_path)] == [1]
    found = json.loads((tmp_path / "flight.json").read_text())
    assert found["step"] == 2 and len({row["sha256"] for row in found["rows"]}) == 8
    assert {found["metrics"]["loss"], found["metrics"]["grad_norm"]} & {"nan", "inf"}


def test_a_disk_that_fills_up_ends_the_run_with_one_line_and_the_last_checkpoint_kept(
    source, tmp_path
):
    """A real refusal, once the first checkpoint is there: no file may grow beyond 10,000 bytes."""
    before = (
        "import resource; from train import loop\n"
        "signal = loop.signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "usual = loop.checkpoint.Checkpoints.save\n"
        "def save(self, step, state, meta):\n"
        "    self.wait()\n"
        "    if step > 3: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))\n"
        "    usual(self, step, state, meta)\n"
        "loop.checkpoint.Checkpoints.save = save\n"
    )
    asked = config(source, runtime={"mesh": {"data": 1}})
    status, out, err = running.finish(running.start(asked, tmp_path, before))
    assert status == 2
    assert re.fullmatch(
        r"ganymede: checkpoint of step 4 was not written to .*/checkpoints \(File too large\); the one of step 3 is "
        "kept; make room and run the same command again\n",
        err,
    )
    status, out, err = running.finish(running.start(asked, tmp_path))
    assert (status, err) == (0, "")
    assert "resuming at step 3 of 4" in out
    assert [line["step"] for line in running.metrics(tmp_path)] == [1, 2, 3, 4, 4]
