"""Is a sweep one decoding run per arm, paired, compiled once, and finished wherever it was stopped?"""

import contextlib
import dataclasses
import json
import re

import numpy as np
import pytest
import tiny

import decode
from decode import comparison, compilations, grid, manifest, quality, sweep
from model import errors

LINES = """\
{"prompt": "abc", "id": "a", "reference": "dcb"}
{"prompt": [5, 2], "reference": ["ab", "ba"], "settings": {"n": 3}}

{"prompt": "ga"}
{"prompt": "bfe", "id": "last"}
"""
GIVEN = {"temperature": "0.5,0.8,1.0", "top_k": "0,4", "max_new_tokens": "13"}


SIZE = 23  # of no other test's vocabulary, so that nothing is compiled before


def scripted(seed=0, scale=2.0):
    """A model whose logits after each token are drawn once; the last letter ends a text."""
    by_token = scale * np.random.default_rng(seed).normal(size=(SIZE, SIZE))
    return tiny.scripted(by_token, eos_id=SIZE - 1)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The model, and what its first sweep in this process has said."""
    lm, place = scripted(), tmp_path_factory.mktemp("first")
    _, said = swept(lm, sweep.read(prompts(place)), place / "s")
    return lm, said


@pytest.fixture(scope="module")
def lm(first):
    return first[0]


@pytest.fixture
def asked(tmp_path):
    return sweep.read(prompts(tmp_path))


def prompts(tmp_path, lines=LINES):
    path = tmp_path / "prompts.jsonl"
    path.write_text(lines, encoding="utf-8")
    return str(path)


def swept(lm, asked, workdir, given=GIVEN, **more):
    """The outcome and what was said."""
    said = []
    outcome = sweep.run(lm, asked, grid.arms(given), workdir, say=said.append, **more)
    return outcome, said


def tokens(workdir, arm):
    """The tokens of each completion of an arm, as its record has them."""
    lines = (workdir / "arms" / arm.digest / "completions.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["tokens"] for line in lines]


def refused(message):
    return pytest.raises(errors.BadInput, match=message)


# Arms are decoding runs.


def test_each_arm_is_a_decoding_run_that_replays(tmp_path, asked, lm):
    outcome, _ = swept(lm, asked, tmp_path / "s")
    arms = grid.arms(GIVEN).arms
    assert outcome.code == 0
    assert {path.name for path in (tmp_path / "s" / "arms").iterdir()} == {a.digest for a in arms}
    for arm in arms[1::2]:
        assert manifest.replay(tmp_path / "s" / "arms" / arm.digest, lm).identical
    alone = decode.generate(lm, asked.of(arms[4]), seed=0)
    assert tokens(tmp_path / "s", arms[4]) == [list(each.tokens) for each in alone]
    assert len(alone) == 6


def test_the_decoding_loop_is_compiled_once_for_all_values(tmp_path, asked, first):
    lm, said = first
    assert "1 program compiled for 6 arms" in said
    other = {
        "temperature": "0,0.7,3",
        "top_k": "0,2",
        "top_p": "0.5,1",
        "repetition_penalty": "1.5",
    }
    _, said = swept(lm, asked, tmp_path / "s", {**other, "max_new_tokens": "11"}, seed=7)
    assert "0 programs compiled for 12 arms" in said


def test_a_compile_counter_counts_programs_by_name():
    jitted = decode.batch.loop.jax.jit(lambda x_B: x_B * 2)
    with compilations.counted() as programs:
        for size in (2, 3, 2):
            jitted(np.ones(size, np.float32))
            jitted(decode.batch.loop.jnp.ones(size, np.float32))
    assert programs[compilations.name(jitted)] == 2
    jitted(np.ones(5, np.float32))
    assert programs[compilations.name(jitted)] == 2


# Common random numbers.


def test_a_temperature_changes_no_noise(tmp_path, asked):
    """Where all tokens are equally likely no temperature matters, and only the noise says what is drawn."""
    flat, given = scripted(scale=0.0), {"temperature": "0.3,1,1.7", "max_new_tokens": "11"}
    outcome, _ = swept(flat, asked, tmp_path / "s", given)
    arms = grid.arms(given).arms
    first = tokens(tmp_path / "s", arms[0])
    assert all(tokens(tmp_path / "s", arm) == first for arm in arms)
    assert len({tuple(each) for each in first}) == 6
    for arm in outcome.numbers["arms"]:
        assert arm["measures"]["distinct_2"]["difference"] == 0
        assert arm["measures"]["distinct_2"]["difference_half_width"] == 0
    swept(flat, asked, tmp_path / "t", given, seed=1)
    assert tokens(tmp_path / "t", arms[0]) != first


def test_arms_that_are_greedy_both_differ_in_nothing(tmp_path, asked, lm):
    given = {"temperature": "0", "top_k": "0,4"}
    outcome, said = swept(lm, asked, tmp_path / "s", given)
    first, second = grid.arms(given).arms
    assert tokens(tmp_path / "s", first) == tokens(tmp_path / "s", second)
    (row,) = [line for line in said[-2].splitlines() if "=" in line][:1]
    assert set(row.split()) == {"="}


# Stopped anywhere, it goes on.


def test_a_sweep_goes_on_with_the_arms_that_are_not_whole(tmp_path, asked, lm):
    workdir = tmp_path / "s"
    swept(lm, asked, workdir)
    results = (workdir / "results.json").read_bytes()
    table = (workdir / "sweep.md").read_bytes()
    homes = [workdir / "arms" / arm.digest for arm in grid.arms(GIVEN).arms]
    (homes[1] / "manifest.json").unlink()
    (homes[3] / "manifest.json").write_text("{")
    text = (homes[4] / "completions.jsonl").read_text("utf-8")
    (homes[4] / "completions.jsonl").write_text(text.replace('"sample": 0', '"sample": 1', 1))
    _, said = swept(lm, asked, workdir)
    assert [line.endswith("done before") for line in said[:6]] == [
        True, False, True, False, False, True,
    ]  # fmt: skip
    assert said[6] == "0 programs compiled for 3 arms"
    assert (workdir / "results.json").read_bytes() == results
    assert (workdir / "sweep.md").read_bytes() == table
    _, said = swept(lm, asked, workdir)
    assert all(line.endswith("done before") for line in said[:6]) and len(said) == 8


def test_an_arm_whose_place_holds_another_run_is_decoded(tmp_path, asked, lm):
    swept(lm, asked, tmp_path / "s")
    swept(lm, asked, tmp_path / "t", seed=1)
    results = (tmp_path / "s" / "results.json").read_bytes()
    arm = grid.arms(GIVEN).arms[2]
    for name in ("manifest.json", "completions.jsonl"):
        other = (tmp_path / "t" / "arms" / arm.digest / name).read_bytes()
        (tmp_path / "s" / "arms" / arm.digest / name).write_bytes(other)
    _, said = swept(lm, asked, tmp_path / "s")
    assert [line.endswith("done before") for line in said[:6]] == [True] * 2 + [False] + [True] * 3
    assert (tmp_path / "s" / "results.json").read_bytes() == results


def test_a_sweep_killed_in_an_arm_keeps_the_arms_before_it(tmp_path, asked, lm, monkeypatch):
    generate, calls = sweep.batch.generate, []

    def killed(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate(*args, **kwargs)

    monkeypatch.setattr(sweep.batch, "generate", killed)
    with contextlib.suppress(KeyboardInterrupt):
        swept(lm, asked, tmp_path / "s")
    _, said = swept(lm, asked, tmp_path / "s")
    assert [line.endswith("done before") for line in said[:6]] == [True] * 2 + [False] * 4
    assert len(calls) == 3 + 4


def test_a_larger_grid_in_the_same_place_decodes_only_what_is_new(tmp_path, asked, lm):
    swept(lm, asked, tmp_path / "s")
    _, said = swept(lm, asked, tmp_path / "s", {**GIVEN, "top_k": "4,0,2"})
    assert sum(line.endswith("done before") for line in said) == 6
    record = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert record["axes"] == {"temperature": [0.5, 0.8, 1.0], "top_k": [4, 0, 2]}
    assert len(record["arms"]) == 9


def test_another_seed_model_or_set_of_prompts_needs_another_place(tmp_path, asked, lm):
    swept(lm, asked, tmp_path / "s")
    with refused(r"s holds a sweep with seed 0, and this one 3; choose another --workdir"):
        swept(lm, asked, tmp_path / "s", seed=3)
    with refused(r"s holds a sweep with model [0-9a-f]+, and this one [0-9a-f]+; choose another"):
        swept(scripted(seed=1), asked, tmp_path / "s")
    with refused(r"s holds a sweep with draft None, and this one [0-9a-f]+; choose another"):
        swept(lm, asked, tmp_path / "s", draft=lm)
    other = sweep.read(prompts(tmp_path, LINES.replace("ga", "gb")))
    with refused(r"s holds a sweep with prompts [0-9a-f]+, and this one"):
        swept(lm, other, tmp_path / "s")
    swept(lm, sweep.read(prompts(tmp_path, LINES.replace("dcb", "x"))), tmp_path / "s")
    (tmp_path / "file").write_text("")
    with refused(r"file.* cannot be written: Not a directory; choose another --workdir"):
        swept(lm, asked, tmp_path / "file" / "s")


def test_a_sweep_stands_in_its_run_by_default_and_is_named_by_what_it_is(tmp_path, asked):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    arms, other = grid.arms(GIVEN), grid.arms({"top_k": "1,2"})
    place = sweep.home(tmp_path / "run", asked, arms, 5)
    assert place.parent == tmp_path / "run" / "sweep" and re.fullmatch("[0-9a-f]{8}-5", place.name)
    assert sweep.home(tmp_path / "run", asked, other, 5) != place
    assert sweep.home(tmp_path / "bundle", asked, arms, 5).parent.as_posix() == "runs/bundle/sweep"


# What is said.


def test_the_table_has_values_and_paired_differences_with_intervals(tmp_path, asked, lm):
    outcome, said = swept(lm, asked, tmp_path / "s", baseline="temperature=0.8, top_k=4")
    arms = grid.arms(GIVEN).arms
    found = [
        quality.measure(decode.generate(lm, asked.of(arm), seed=0), asked.references)
        for arm in (arms[0], arms[3])
    ]
    between = found[0]["logprob"] - found[1]["logprob"]
    lines = said[-2].splitlines()
    assert all(len(line) <= 120 for line in lines)
    heads = [line for line in lines if line.startswith("temperature")]
    for label in ("log-prob", "perplexity", "dist-3", "rep-4", "self-BLEU", "entropy", "kept mass"):
        assert sum(label in line for line in heads) == 1
    cell = outcome.numbers["arms"][0]["measures"]["logprob"]
    assert cell["value"] == found[0]["logprob"].value
    assert cell["difference"] == pytest.approx(between.value)
    assert cell["difference_half_width"] == pytest.approx(between.half_width())
    text = f"{between.value:+.3f}±{between.half_width():.3f}"
    assert text in said[-2] and text in (tmp_path / "s" / "sweep.md").read_text("utf-8")
    assert "temperature=0.8, top_k=4 ± the half width of a 95 % interval" in said[-2]
    assert json.loads((tmp_path / "s" / "results.json").read_text()) == outcome.numbers


@pytest.mark.parametrize("width", [80, 100, 120])
def test_a_table_keeps_to_the_width_it_is_given(tmp_path, asked, lm, width):
    outcome, _ = swept(lm, asked, tmp_path / "s")
    table = comparison.table(outcome.numbers, width).splitlines()
    assert width - 16 < max(map(len, table)) <= max(width, 105)
    rows = [line for line in table if line.startswith("0.5          4")]
    assert len(rows) == sum(line.startswith("temperature") for line in table)
    values = [word for row in rows for word in row.split()[2:]]
    shown = [
        f"{cell['value']:.{measure['digits']}f}"
        for cell, measure in zip(
            outcome.numbers["arms"][1]["measures"].values(),
            outcome.numbers["measures"],
            strict=True,
        )
    ]
    assert values == shown


def test_an_arm_that_fails_is_told_and_the_others_go_on(tmp_path, asked, lm, monkeypatch):
    generate = sweep.batch.generate

    def broken(lm, requests, **more):
        if requests[0].settings.temperature == 0.5 and requests[0].settings.top_k == 4:
            raise errors.BadInput("the weights are damaged")
        return generate(lm, requests, **more)

    monkeypatch.setattr(sweep.batch, "generate", broken)
    outcome, said = swept(lm, asked, tmp_path / "s")
    assert outcome.code == 2
    assert said[1] == "arm 2 of 6: temperature=0.5, top_k=4: failed: the weights are damaged"
    assert sum("tokens in" in line for line in said) == 5
    assert "failed: temperature=0.5, top_k=4: the weights are damaged" in said[-2]
    assert outcome.numbers["arms"][1]["measures"]["tokens"]["value"] is None
    outcome, said = swept(lm, asked, tmp_path / "s", baseline="temperature=0.5,top_k=4")
    assert "no differences: the baseline temperature=0.5, top_k=4 failed" in said[-2]
    assert outcome.numbers["arms"][0]["measures"]["tokens"]["difference"] is None
    monkeypatch.undo()
    outcome, said = swept(lm, asked, tmp_path / "s")
    assert outcome.code == 0
    assert sum("tokens in" in line for line in said) == 1


def test_completions_that_fail_alone_are_told(tmp_path, asked, lm, monkeypatch):
    generate = sweep.batch.generate

    def broken(lm, requests, **more):
        first, *rest = generate(lm, requests, **more)
        if requests[0].settings.top_k:
            return [first, *rest]
        return [dataclasses.replace(first, finish_reason="failed", error="nothing is left"), *rest]

    monkeypatch.setattr(sweep.batch, "generate", broken)
    outcome, said = swept(lm, asked, tmp_path / "s", {"top_k": "4,0"})
    assert outcome.code == 2
    assert re.fullmatch(
        r"arm 2 of 2: top_k=0: \d+ tokens, failed 1 of 6 completions: nothing is left in .* s",
        said[1],
    )
    assert outcome.numbers["arms"][1]["measures"]["tokens"]["value"] is not None


def test_what_the_numbers_lack_is_said(tmp_path, lm, monkeypatch):
    monkeypatch.setattr(quality, "sacrebleu", None)
    one = sweep.read(prompts(tmp_path, '{"prompt": "ab", "reference": "c"}'))
    _, said = swept(lm, one, tmp_path / "s")
    assert "no intervals: there is one prompt" in said[-2]
    assert "no BLEU and chrF: install sacrebleu" in said[-2]


# Prompts.


def test_prompts_bring_references_and_settings_of_their_own(asked):
    assert [request.id for request in asked.requests] == ["a", 1, 2, "last"]
    assert asked.references == {"a": ("dcb",), 1: ("ab", "ba")}
    requests = asked.of(grid.arms(GIVEN).arms[2])
    assert [request.settings.n for request in requests] == [1, 3, 1, 1]
    assert {request.settings.temperature for request in requests} == {0.8}


@pytest.mark.parametrize(
    "lines, message",
    [
        ('{"prompt": "a"}\n{"prompt": ', r"prompts.jsonl line 2 is not JSON"),
        ('{"prompt": "a", "refrence": "b"}', r"line 1 has no field 'refrence'"),
        ('{"prompt": "a", "reference": 5}', r"line 1 has reference 5; it must be a text or a list"),
        ('{"prompt": "a", "reference": ["b", 5]}', r"line 1 has reference \['b', 5\]; it must"),
        (
            '{"prompt": "a", "id": 1}\n{"prompt": "b", "id": 1}',
            r"id '?1'?.* (occurs twice|as line 1 has); give each request its own",
        ),
        ("\n", r"prompts.jsonl has no prompts"),
    ],
)
def test_a_mistake_in_the_prompts_is_told_with_its_line(tmp_path, lines, message):
    with refused(message) as error:
        sweep.read(prompts(tmp_path, lines))
    assert "\n" not in str(error.value)


def test_prompts_that_cannot_be_read_are_named(tmp_path):
    with refused(r"none.jsonl cannot be read \(No such file or directory\); name a file of JSON"):
        sweep.read(str(tmp_path / "none.jsonl"))
    (tmp_path / "latin").write_bytes(b'{"prompt": "\xff"}')
    with refused(r"latin is not UTF-8 \(byte 12: invalid start byte\); convert it"):
        sweep.read(str(tmp_path / "latin"))


def test_a_prompt_that_contradicts_an_arm_is_refused_before_anything_runs(tmp_path, lm):
    line = '{"prompt": "a", "id": "x", "settings": {"top_k": 3}}'
    with refused(r"request 'x' has top_k 3 of its own, and the sweep sets it; remove one"):
        swept(lm, sweep.read(prompts(tmp_path, line)), tmp_path / "s")
    line = '{"prompt": "a", "id": "x", "settings": {"min_new_tokens": 15}}'
    with refused(
        r"arm 'temperature=0.5, top_k=0', request 'x': min_new_tokens is 15, above max_new_tokens"
    ):
        swept(lm, sweep.read(prompts(tmp_path, line)), tmp_path / "s")
    assert not (tmp_path / "s").exists()
