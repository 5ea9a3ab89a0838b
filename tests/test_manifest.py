"""Can a run be repeated from its record, and is every way in which it was tampered with told by name?"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny

import decode
import model
from decode import difference, manifest
from decode.requests import Request
from decode.settings import Settings
from model import errors, files

REQUESTS = [
    Request("once upon\u2028a time", Settings(max_new_tokens=11, temperature=0.8, n=2), "ä"),
    Request([9, 8, 7], Settings(max_new_tokens=7, top_k=1), 5),
    Request("cat", Settings(max_new_tokens=13, temperature=0)),
]


@pytest.fixture(scope="module")
def lm():
    return tiny.lm("gpt2")


@pytest.fixture(scope="module")
def completions(lm):
    return decode.generate(lm, REQUESTS, seed=3)


@pytest.fixture
def run(tmp_path, lm, completions):
    """A decoding run on disk."""
    manifest.write(tmp_path, lm, decode.requests(REQUESTS), completions, seed=3)
    return tmp_path


def edit(run, change):
    """Changes the manifest's values."""
    path = run / "manifest.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def refused(message):
    return pytest.raises(errors.BadInput, match=message)


def test_a_run_is_replayed_identically(run, lm, completions):
    report = manifest.replay(run, lm)
    count = sum(len(done.tokens) for done in completions)
    assert report.identical
    assert str(report) == f"identical: 4 completions, {count} tokens, every number to the bit"


def test_what_is_written_reads_back_as_the_same_bits(run, completions):
    lines = (run / "completions.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == 4
    for line, done in zip(lines, completions, strict=True):
        row = json.loads(line)
        margins = [math.inf if margin is None else margin for margin in row["margins"]]
        assert (row["id"], row["sample"], row["text"]) == (done.id, done.sample, done.text)
        assert tuple(row["tokens"]) == done.tokens
        assert tuple(row["prompt_tokens"]) == done.prompt_tokens
        for ours, theirs in [
            (row["logprobs"], done.logprobs),
            (row["sampled_logprobs"], done.sampled_logprobs),
            (margins, done.margins),
        ]:
            assert (np.float32(ours).view(np.uint32) == np.float32(theirs).view(np.uint32)).all()
    assert json.loads(lines[2])["margins"] == [None] * 7
    assert json.loads(lines[0])["prompt"] == "once upon\u2028a time"
    assert json.loads(lines[3])["settings"] == {"max_new_tokens": 13, "temperature": 0.0}


def test_the_manifest_says_what_a_run_came_from(run, lm):
    values = json.loads((run / "manifest.json").read_text("utf-8"))
    content = (run / "completions.jsonl").read_bytes()
    assert values["seed"] == 3
    assert values["batch_size"] == 8
    assert (values["presets"], values["key_schedule"]) == (["hf"], 1)
    assert values["completions"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert values["model"]["weights"] == lm.digest
    assert values["model"]["tokenizer"] == lm.tokenizer.digest
    assert values["model"]["config"]["width"] == 44
    assert [row["requests"] for row in values["settings"]] == [1, 1, 1]
    assert values["settings"][0]["temperature"] == 0.8
    assert values["environment"]["jax"] == jax.__version__
    assert values["environment"]["device"] == jax.devices()[0].device_kind


def test_writing_the_same_run_twice_writes_the_same_bytes(run, lm, completions):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    manifest.write(run, lm, decode.requests(REQUESTS), completions, seed=3)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    assert sorted(before) == ["completions.jsonl", "manifest.json"]


def test_infinite_numbers_and_biases_are_written_and_replayed(tmp_path, lm):
    settings = Settings(max_new_tokens=3, logit_bias={9: -math.inf, 8: 1.5}, likelihood=True)
    asked = decode.requests([[9, 8, 7]], settings)
    (done,) = decode.generate(lm, asked, seed=3)
    odd = dataclasses.replace(done, logprobs=(-math.inf, *done.logprobs[1:]))
    manifest.write(tmp_path, lm, asked, [odd], seed=3)
    assert '"logprobs": ["-inf", ' in (tmp_path / "completions.jsonl").read_text()
    report = manifest.replay(tmp_path, lm)
    assert (report.first.what, report.first.expected) == ("logprobs", -math.inf)
    manifest.write(tmp_path, lm, asked, [done], seed=3)
    assert manifest.replay(tmp_path, lm).identical


@pytest.mark.parametrize(
    "name", ["entropies", "ranks", "kept_masses", "kept_counts", "score", "stopped_by"]
)
def test_every_number_of_a_completion_is_compared(completions, name):
    (done, *_) = completions
    other = dataclasses.replace(done, **{name: (1,) if name.endswith("s") else 1})
    report = difference.compare([done], [other], REQUESTS[:1], [])
    assert report.first.what == name


def test_a_run_is_named_by_its_requests_its_seed_and_its_helpers(lm):
    asked, other = decode.requests(REQUESTS), tiny.lm("llama")
    names = [
        manifest.name(asked, 0),
        manifest.name(asked, 1),
        manifest.name(asked, 0, lm),
        manifest.name(asked, 0, other),
    ]
    assert len(set(names)) == 4
    assert manifest.name(asked, 0, None, None) == names[0]


def test_a_run_with_a_draft_model_names_it_and_needs_it(tmp_path, lm):
    draft, settings = tiny.lm("llama"), Settings(max_new_tokens=7, num_assistant_tokens=2)
    asked = decode.requests([[9, 8, 7]], settings)
    done = decode.generate(lm, asked, seed=3, draft=draft)
    manifest.write(tmp_path, lm, asked, done, seed=3, draft=draft)
    values = json.loads((tmp_path / "manifest.json").read_text())
    assert values["draft"]["weights"] == draft.digest
    assert values["amateur"] is None
    with refused("does not say where its model was; give replay the model itself"):
        manifest.replay(tmp_path, lm)


def test_a_seed_and_batch_size_of_ones_own_are_replayed(tmp_path, lm, monkeypatch):
    asked = decode.requests(REQUESTS)
    done = decode.generate(lm, asked, seed=2**50, batch_size=5)
    manifest.write(tmp_path, lm, asked, done, seed=2**50, batch_size=5)
    calls = []

    def listen(*args, **kwargs):
        calls.append(kwargs)
        return decode.generate(*args, **kwargs)

    monkeypatch.setattr(manifest.batch, "generate", listen)
    assert manifest.replay(tmp_path, lm).identical
    assert calls == [dict(seed=2**50, batch_size=5, draft=None, amateur=None, strict=False)]


def test_a_run_moves_with_its_model_and_the_model_is_loaded_from_there(
    tmp_path, lm, completions, monkeypatch
):
    placed = dataclasses.replace(lm, directory=tmp_path / "a" / "run")
    manifest.write(
        tmp_path / "a" / "run" / "decode", placed, decode.requests(REQUESTS), completions, seed=3
    )
    os.rename(tmp_path / "a", tmp_path / "b")
    loaded = []
    monkeypatch.setattr(model, "load", lambda where: (loaded.append(where), lm)[1])
    assert manifest.replay(tmp_path / "b" / "run" / "decode").identical
    assert loaded == [tmp_path / "b" / "run"]


# What differs.


def nudged(lm, size):
    """The same model with every weight moved by about `size` of itself, under the old digest."""
    params = jax.tree.map(lambda x: x * np.float32(1 + size), lm.params)
    moved = dataclasses.replace(lm, params=params)
    vars(moved)["digest"] = lm.digest
    return moved


def test_another_rounding_is_told_from_another_model_by_its_noise(run, lm):
    report = manifest.replay(run, nudged(lm, 3e-7))
    assert not report.identical
    assert report.first_token is None
    assert 0 < report.noise < 1e-4
    assert re.match(
        r"different: completion 'ä', sample 0, token 0: .* expected, .* got\n", str(report)
    )
    assert "all tokens are equal; log-probabilities differ by up to" in str(report)


def test_another_seed_is_no_near_tie(run, lm):
    edit(run, lambda values: values.update(seed=4))
    report = manifest.replay(run, lm)
    first = report.first_token
    assert (first.id, first.sample, first.index) == ("ä", 0, 0)
    assert first.margin > 0.01
    assert not report.near_tie
    assert "no near tie: something else than rounding has changed" in str(report)
    assert report.differing_tokens == 2


def completion(tokens, logprobs, margins, **kwargs):
    kwargs = dict(id="a", sample=0, prompt_tokens=(1,), text="", finish_reason="length") | kwargs
    return decode.Completion(
        tokens=tokens, logprobs=logprobs, sampled_logprobs=logprobs, margins=margins, **kwargs
    )


ASKED = [Request([1], id="a")]


@pytest.mark.parametrize(
    "margin, near_tie", [(2e-6, True), (1e-5, True), (3e-4, False), (1.0, False)]
)
def test_a_margin_of_the_size_of_the_noise_is_a_near_tie(margin, near_tie):
    before = completion((4, 5, 6), (-1.0, -2.0, -3.0), (1.0, margin, 1.0))
    after = completion((4, 7, 6), (-1.000001, -2.5, -3.5), (1.0, 0.1, 1.0))
    report = difference.compare([before], [after], ASKED, [])
    assert report.near_tie is near_tie
    assert report.noise == pytest.approx(1e-6)
    assert report.first.what == "logprobs"
    assert report.first.index == 0
    assert (report.first_token.expected, report.first_token.got) == (5, 7)
    assert report.first_token.margin == margin
    assert (
        "the first different token is completion 'a', sample 0, token 1: id 5 expected, 7 got"
        in str(report)
    )


def test_a_completion_that_stops_sooner_or_has_another_prompt_or_text_differs():
    one = completion((4, 5), (-1.0, -2.0), (1.0, 1.0))
    for other, what, index in [
        (completion((4,), (-1.0,), (1.0,)), "tokens", 1),
        (dataclasses.replace(one, prompt_tokens=(2,)), "prompt_tokens", None),
        (dataclasses.replace(one, text="x"), "text", None),
        (dataclasses.replace(one, finish_reason="stop"), "finish_reason", None),
        (dataclasses.replace(one, margins=(1.0, 1.5)), "margins", 1),
    ]:
        report = difference.compare([one], [other], ASKED, [])
        assert not report.identical
        assert (report.first.what, report.first.index) == (what, index)
        assert "different: completion 'a', sample 0" in str(report)


def test_another_version_or_device_is_reported_and_not_refused(run, lm):
    edit(run, lambda values: values["environment"].update(jax="0.0.1", device="abacus"))
    report = manifest.replay(run, lm)
    assert report.identical
    assert f"although\n  jax was 0.0.1, is {jax.__version__}\n  device was abacus, is" in str(
        report
    )


# What was tampered with.


def test_edited_completions_are_named(run, lm):
    path = run / "completions.jsonl"
    path.write_text(path.read_text("utf-8").replace('"sample": 1', '"sample": 2'), "utf-8")
    with refused(re.escape(f"{path} changed since the manifest was written (digest ")):
        manifest.replay(run, lm)


def test_an_editeddigest_requests_is_named(run, lm):
    edit(run, lambda values: values["requests"].update(sha256="0" * 64))
    with refused(re.escape(f"{run / 'manifest.json'} changed since the manifest was written")):
        manifest.replay(run, lm)


def test_other_weights_or_another_tokenizer_are_named(run, lm):
    params = jax.tree.map(lambda x: x + 1, lm.params)
    other = dataclasses.replace(lm, params=params, directory=pathlib.Path("runs/x"))
    said = f"the weights of runs/x changed .*digest {other.digest[:12]}, was {lm.digest[:12]}"
    with refused(said):
        manifest.replay(run, other)
    letters = dataclasses.replace(lm, tokenizer=tiny.Letters(307, 3))
    with refused(
        "the tokenizer of the given model changed .*; restore what was there, or decode again"
    ):
        manifest.replay(run, letters)


def test_a_changed_file_of_prompts_is_named_and_a_lost_one_is_no_matter(tmp_path, lm, completions):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "cat"}\n')
    asked = decode.requests(REQUESTS)
    manifest.write(tmp_path / "run", lm, asked, completions, seed=3, prompts=file)
    assert manifest.replay(tmp_path / "run", lm).identical
    file.write_text('{"prompt": "hat"}\n')
    with refused(re.escape(f"{file} changed since the manifest was written")):
        manifest.replay(tmp_path / "run", lm)
    file.unlink()
    assert manifest.replay(tmp_path / "run", lm).identical


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", r"is not a manifest \(JSONDecodeError: .*\); restore the one that decode wrote"),
        ("[]", r"is not a manifest \(TypeError"),
        ('{"format": 1}', r"is not a manifest \(KeyError: 'key_schedule'\)"),
        ("\xff", "is not a manifest"),
    ],
)
def test_a_damaged_manifest_is_named(run, lm, text, message):
    path = run / "manifest.json"
    path.write_bytes(text.encode("latin-1"))
    with refused(re.escape(str(path)) + " " + message) as error:
        manifest.replay(run, lm)
    assert "\n" not in str(error.value)


def test_a_manifest_of_another_key_schedule_is_refused_with_the_version_that_wrote_it(run, lm):
    edit(
        run,
        lambda values: (
            values.update(key_schedule=2),
            values["environment"].update(ganymede="9.9"),
        ),
    )
    with refused(r"has format and key schedule \(2, 2\), .* wrote it, ganymede 9.9"):
        manifest.replay(run, lm)


def test_missing_files_are_named(tmp_path, run, lm):
    with refused(re.escape(f"{tmp_path / 'no' / 'manifest.json'} cannot be read: No such file")):
        manifest.replay(tmp_path / "no", lm)
    (run / "completions.jsonl").unlink()
    with refused(re.escape(f"{run / 'completions.jsonl'} cannot be read: No such file")):
        manifest.replay(run, lm)


def test_a_manifest_without_a_model_directory_asks_for_the_model(run):
    with refused("does not say where its model was; give replay the model itself"):
        manifest.replay(run)


def test_a_write_that_fails_leaves_the_old_record_as_it_was(run, lm, completions, monkeypatch):
    before = {path.name: path.read_bytes() for path in run.iterdir()}

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with refused(r"completions.jsonl cannot be written: No space left on device; make room"):
        manifest.write(run, lm, decode.requests(REQUESTS), completions[:1], seed=4)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_directory_that_cannot_be_made_is_named(tmp_path, lm):
    (tmp_path / "file").write_text("")
    with refused(re.escape(f"{tmp_path / 'file' / 'run'} cannot be made: Not a directory")):
        manifest.write(tmp_path / "file" / "run", lm, [], [], seed=0)


def test_another_process_on_one_device_in_another_order_gives_the_same_bits(run, completions):
    """Requests backwards and one at a time, in a process of its own that has one device instead of eight."""
    program = (
        "import decode, tiny, test_manifest as t\n"
        "lm = tiny.lm('gpt2')\n"
        "asked = decode.requests(t.REQUESTS)\n"
        "done = [c for r in reversed(asked) for c in decode.generate(lm, [r], seed=3)]\n"
        "print(sorted((str(c.id), c.sample, c.tokens, c.logprobs, c.margins) for c in done))\n"
    )
    here = pathlib.Path(__file__).parent
    paths = {"PYTHONPATH": os.pathsep.join([str(here.parent), str(here)])}
    ran = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | paths, capture_output=True, text=True
    )
    ours = sorted((str(c.id), c.sample, c.tokens, c.logprobs, c.margins) for c in completions)
    assert ran.stdout.strip() == str(ours), ran.stderr
