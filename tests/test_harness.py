"""Do lm-eval's requests get the answers that lm-eval means, and does a task of its run to its table?"""

import json
import sys
import types

import numpy as np
import pytest
import tiny

from decode.requests import Completion
from model import errors
from train import few_shot, harness, scoring

ROWS = [("the moon circles", 0), ("a cat sat on", 1), ("larger than", 0), ("once upon a time", 1)]
CHOICES = [" jupiter", " a mat"]


@pytest.fixture(scope="module")
def adapter():
    return harness.Adapter(tiny.small("lstm"))


def requests(*arguments):
    return [types.SimpleNamespace(args=each) for each in arguments]


def test_the_order_of_requests_changes_no_answer(adapter):
    asked = requests(*((context, text) for context, _ in ROWS for text in CHOICES))
    found = adapter.loglikelihood(asked)
    order = np.random.default_rng(0).permutation(len(asked))
    assert adapter.loglikelihood([asked[i] for i in order]) == [found[i] for i in order]
    words = adapter.reader.lm.words
    pair = scoring.Pair((words.bos_id, *words.encode(ROWS[0][0])), tuple(words.encode(CHOICES[0])))
    assert found[0] == tuple(adapter.reader.likelihoods([pair])[0][:2])


def test_nothing_before_a_text_is_its_begin(adapter):
    words = adapter.reader.lm.words
    pair = scoring.Pair((words.bos_id,), tuple(words.encode("a cat")))
    (found,) = adapter.loglikelihood(requests(("", "a cat")))
    assert found == tuple(adapter.reader.likelihoods([pair])[0][:2])


def test_a_long_context_loses_its_beginning_and_is_counted():
    adapter = harness.Adapter(tiny.small("lstm"))
    (long,) = adapter.loglikelihood(requests(("once upon a time " * 20, " a mat")))
    assert adapter.shortened == 1
    words = adapter.reader.lm.words
    whole = words.encode("once upon a time " * 20 + " a mat")
    size = len(words.encode(" a mat"))
    pair = scoring.Pair(tuple(whole[-62:-size]), tuple(whole[-size:]))
    assert long[0] == pytest.approx(adapter.reader.likelihoods([pair])[0].logprob, rel=1e-6)
    with pytest.raises(
        errors.BadInput,
        match=r"^a continuation has \d+ tokens, and the window holds 61; take a mode",
    ):
        adapter.loglikelihood(requests(("a", " cat" * 99)))


@pytest.mark.oracle
def test_rolling_windows_are_those_of_lm_evals_documentation(monkeypatch):
    pytest.importorskip("lm_eval")
    # Tokens 0 to 9, a window of 4: as `LM.loglikelihood_rolling` draws them.
    words = types.SimpleNamespace(bos_id=99, encode_batch=lambda texts: [list(range(10)), [5]])
    config = types.SimpleNamespace(context_length=4, family="decoder_only")
    lm = types.SimpleNamespace(words=words, config=config, virtual_tokens=0)
    adapter = harness.Adapter(lm)
    seen = []

    def likelihoods(self, pairs):
        seen.extend(pairs)
        return [scoring.Likelihood(float(sum(text)), False, len(text)) for _, text in pairs]

    monkeypatch.setattr(scoring.Reader, "likelihoods", likelihoods)
    assert adapter.loglikelihood_rolling(requests(("0 to 9",), ("5",))) == [45.0, 5.0]
    assert seen == [
        ((99,), (0, 1, 2, 3)),
        ((3,), (4, 5, 6, 7)),
        ((5, 6, 7), (8, 9)),
        ((99,), (5,)),
    ]


@pytest.mark.oracle
def test_an_encoder_decoder_has_no_rolling_likelihood():
    pytest.importorskip("lm_eval")
    adapter = harness.Adapter(tiny.small("encoder_decoder"))
    with pytest.raises(
        errors.BadInput,
        match=r"^the model is an encoder_decoder, which predicts no text on its own,",
    ):
        adapter.loglikelihood_rolling(requests(("a cat",)))


def test_what_is_written_goes_by_the_tasks_options(adapter, monkeypatch):
    calls = []

    def generate(lm, prompts, **_):
        calls.append(prompts)
        blank: dict = dict(
            prompt_tokens=(), tokens=(), logprobs=(), sampled_logprobs=(), margins=()
        )
        return [
            Completion(id=p.id, sample=0, text=str(i), finish_reason="stop", **blank)
            for i, p in enumerate(prompts)
        ]

    monkeypatch.setattr(harness.decode, "generate", generate)
    asked = requests(
        (
            "a cat",
            {"until": ["\n", "."], "max_gen_toks": 7, "do_sample": False, "temperature": 0.5},
        ),
        ("a mat", {"until": "\n"}),
        ("a mat", {"until": "\n"}),
        ("a mat", {"do_sample": True, "temperature": 0.7, "top_p": 0.9}),
    )
    assert adapter.generate_until(asked) == ["0", "1", "2", "3"]
    settings = [request.settings for request in calls[0]]
    assert [(s.temperature, s.stop, s.max_new_tokens, s.top_p) for s in settings] == [
        (0.0, ("\n", "."), 7, 1.0),
        (0.0, ("\n",), 30, 1.0),
        (0.0, ("\n",), 30, 1.0),
        (0.7, (), 30, 0.9),
    ]
    ids = [request.id for request in calls[0]]
    adapter.generate_until(asked[::-1])
    assert [request.id for request in calls[1]][0] == ids[3], "noise goes by what is asked"
    assert len(set(ids)) == 4
    for options, message in (
        (
            {"max_gen_toks": 61},
            r"^a task of lm-eval asks for 61 new tokens, and the window holds 61; set max_gen_toks",
        ),
        (
            {"top_pp": 1},
            r"^a task of lm-eval has top_pp=1 in generation_kwargs \(did you mean 'top_p'\?\), which deco",
        ),
    ):
        with pytest.raises(errors.BadInput, match=message):
            adapter.generate_until(requests(("a cat", options)))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A directory with a task of two choices, over records of our own."""
    home = tmp_path_factory.mktemp("tasks")
    rows = (json.dumps({"text": text, "label": label}) + "\n" for text, label in ROWS)
    (home / "moons.jsonl").write_text("".join(rows))
    (home / "moons.yaml").write_text(
        f"task: moons\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {home}/moons.jsonl}}}}\n"
        "output_type: multiple_choice\ntest_split: test\ndoc_to_text: '{{text}}'\ndoc_to_target: label\n"
        "doc_to_choice: [' jupiter', ' a mat']\ntarget_delimiter: ''\nmetric_list: [{metric: acc}]\n"
    )
    return home


@pytest.mark.oracle
def test_a_task_of_lm_eval_scores_as_our_own_prompts_do(home, tmp_path, monkeypatch, capsys):
    tasks = pytest.importorskip("lm_eval.tasks")
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    manager = tasks.TaskManager(include_path=str(home), include_defaults=False)
    monkeypatch.setattr(tasks, "TaskManager", lambda **_: manager)
    lm = tiny.small("lstm")
    assert harness.run(lm, ["moons"], (), tmp_path / "theirs") == 0
    told = capsys.readouterr().out
    theirs = json.loads((tmp_path / "theirs" / "metrics.json").read_text())["results"]["moons"]
    prompt = {"question": "{{ text }}", "labels": {"0": CHOICES[0], "1": CHOICES[1]}}
    groups = {"prompt": prompt, "data": {"test": str(home / "moons.jsonl")}}
    ours = few_shot.evaluate(few_shot.asked(groups), scoring.Reader(lm), 0)
    assert 100 * theirs["acc,none"] == ours.scores.value
    lines = (tmp_path / "theirs" / "predictions.jsonl").read_text().splitlines()
    for line, mine in zip(map(json.loads, lines), ours.lines, strict=True):
        scores = [float(each[0]) for each in line["filtered_resps"]]
        assert scores == pytest.approx(list(mine["scores"].values()), rel=1e-6)
    assert "|moons|" in told and "|acc" in told
    assert (tmp_path / "theirs" / "manifest.json").is_file()
    with pytest.raises(
        errors.BadInput,
        match=r"^lm-eval has no task 'moon' \(did you mean 'moons'\?\); tasks of your",
    ):
        harness.run(lm, ["moon"], (), tmp_path)
    with pytest.raises(
        errors.BadInput, match=r"^--include_path=nowhere is no directory; give one with YAML tasks$"
    ):
        harness.run(lm, ["moons"], (), tmp_path, include="nowhere")


def test_without_lm_eval_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(
        errors.BadInput,
        match=r"^tasks of lm-eval need lm_eval, which is not installed; pip install 'ganymede\[harness\]'$",
    ):
        harness.run(tiny.small("lstm"), ["moons"])
