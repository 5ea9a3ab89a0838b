"""Are predictions what the model says of each record alone, and is what is written of them true?"""

import collections
import dataclasses
import functools
import json
import types

import jax
import numpy as np
import pytest
from rich import console

import decode
import model
from decode.requests import Completion
from model import errors, tokenizer
from train import evaluate, predictions, recipe, task_eval, tasks

NOUNS = "moon dog planet cat Europa".split()
TEXTS = [f"the {NOUNS[n % 5]} sees a {NOUNS[n % 3]}" + " and goes" * (n % 4) for n in range(17)]
LABELS = ("no", "yes", "perhaps")
TAGS = ("O", "B-x", "I-x")
RECORDS = {
    "classify": [{"text": text, "label": LABELS[n % 3 % 2]} for n, text in enumerate(TEXTS)],
    "tag": [
        {"tokens": text.split(), "tags": ["O", "B-x", *["O"] * (len(text.split()) - 2)]}
        for text in TEXTS
    ],
    "seq2seq": [{"a": text, "b": text.split()[1], "c": "dog"} for text in TEXTS],
    "chat": [
        {
            "messages": [
                {"role": "user", "content": text},
                {"role": "assistant", "content": NOUNS[n % 5]},
            ]
        }
        for n, text in enumerate(TEXTS)
    ],
    "causal": [{"text": text} for text in TEXTS],
}
TASKS = {
    "classify": {"kind": "classify", "labels": LABELS},
    "tag": {"kind": "tag", "labels": TAGS, "source": "tokens", "too_long": "truncate"},
    "seq2seq": {"kind": "seq2seq", "source": "{{ a }}", "target": "{{ b }}"},
    "chat": {"kind": "chat"},
    "causal": {},
}
FAMILY = {"classify": "encoder_only", "tag": "encoder_only", "seq2seq": "encoder_decoder"}


@functools.cache
def words():
    return tokenizer.train(TEXTS * 3, kind="bpe", vocab_size=331, special=tasks.SPECIAL["chat"])


@functools.cache
def weights(kind, size, drawn):
    """A model for a task, with random weights that make it prefer one thing to another."""
    family = FAMILY.get(kind, "decoder_only")
    head = tasks.Task(**TASKS[kind]).head
    shape = dict(context_length=61, layers=1, width=12, heads=2, hidden=11)
    config = errors.build(
        model.ModelConfig, dict(family=family, vocab_size=size, head=head, **shape), "config.model"
    )
    net = model.build(config)
    params = jax.tree.map(lambda leaf: 2 * leaf, model.init(net, key=jax.random.key(drawn)))
    return config, params, net


@pytest.fixture
def opened(tmp_path):
    """`opened(kind, **groups)`: a run of that task, as it is read back; its records are what is held out."""

    def make(kind, drawn=3, length=37, test=False, **asked):
        path = tmp_path / f"{kind}.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS[kind]))
        config, params, net = weights(kind, words().vocab_size, drawn)
        data = dict(train=str(path), valid=str(path), deduplicate=False, length=length)
        groups = {
            "model": dict(family=config.family, context_length=61, layers=1, width=12, heads=2),
            "task": TASKS[kind],
            "tokenizer": {"path": "elsewhere"},
            "data": {**data, "source_length": 41, "test": str(path) if test else None},
            "train": {"steps": 5, "batch_size": 8},
            "evaluate": asked,
        }
        made = recipe.from_config(groups)
        lm = model.LM(config, params, words(), net)
        return evaluate.Run(tmp_path / f"run{drawn}", lm, made, made.corpus(), 5)

    return make


def measured(run):
    return task_eval.measure(run, task_eval.test_records(run))


@functools.cache
def forward(net):
    return jax.jit(
        lambda params, *args, **kw: jax.nn.log_softmax(
            net.apply({"params": params}, *args, **kw)[0]
        )
    )


def padded(ids, length=61):
    """One row, and which of it is real."""
    row_1T = np.zeros((1, length), np.int32)
    row_1T[0, : len(ids)] = ids
    return row_1T, (np.arange(length) < len(ids))[None].astype(np.int32)


def alone(run, ids):
    """Log-probabilities of one text by itself."""
    tokens_1T, segments_1T = padded(ids)
    return np.asarray(forward(run.lm.net)(run.lm.params, tokens_1T, segments=segments_1T)[0])


def framed(text_ids):
    return [words().bos_id, *text_ids, words().eos_id]


def test_a_text_gets_the_likeliest_label_and_the_baseline_is_the_commonest(opened):
    run = opened("classify")
    found = measured(run)
    for line, record in zip(found.lines, RECORDS["classify"], strict=True):
        scores_C = alone(run, framed(words().encode(record["text"])))
        assert line["prediction"] == LABELS[int(scores_C.argmax())]
        assert line["logprob"] == pytest.approx(scores_C.max(), abs=1e-5)
        np.testing.assert_allclose(
            [line["probabilities"][label] for label in LABELS], np.exp(scores_C), atol=1e-5
        )
    truth = [record["label"] for record in RECORDS["classify"]]
    right = [line["prediction"] == label for line, label in zip(found.lines, truth, strict=True)]
    one = found.values["metrics"]["accuracy"]
    assert one["value"] == pytest.approx(100 * np.mean(right)) and one["records"] == 17
    assert one["low"] <= one["value"] <= one["high"]
    assert [line["values"]["accuracy"] for line in found.lines] == [100.0 * each for each in right]
    ((most, count),) = collections.Counter(truth).most_common(1)
    simple = found.values["baseline"]
    assert simple["title"] == f"always {most}"
    assert simple["metrics"]["accuracy"]["value"] == pytest.approx(100 * count / 17)


def test_a_token_gets_the_likeliest_tag_of_its_first_piece_and_tokens_cut_off_are_told(opened):
    length = 11
    run = opened("tag", length=length)
    found = measured(run)
    cut = 0
    for line, record in zip(found.lines, RECORDS["tag"], strict=True):
        pieces = [words().encode(text) for text in tokenizer.token_texts(record["tokens"])]
        ids = framed([id for token in pieces for id in token])[:length]
        best_T = alone(run, ids).argmax(-1)[: len(ids)]
        firsts = np.cumsum([1, *map(len, pieces[:-1])])
        expected = [TAGS[best_T[i]] if i < length else "O" for i in firsts]
        assert line["prediction"] == expected
        missing = int((firsts >= length).sum())
        assert line.get("cut", 0) == missing
        cut += missing
    assert cut and found.values["told"]["tokens_cut"] == cut
    table = found.values["metrics"]["entity_f1"]["details"]["types"]
    assert table["all"]["references"] == 17
    # Every name of the test stands in training, and nothing else is spelled so at another place but "moon", "dog", ...
    assert found.values["baseline"]["metrics"]["entity_f1"]["value"] > 0


def test_a_text_is_written_from_the_prompt_of_training_and_its_likelihood_is_the_models(opened):
    asked = dict(metrics=("exact_match", "loss", "bits_per_byte"), limit=7)
    run = opened("seq2seq", settings={"max_new_tokens": 3}, references=("{{ b }}", "dog"), **asked)
    found = measured(run)
    assert len(found.lines) == 7 and found.values["records"] == 7
    settings = decode.Settings(temperature=0.0, max_new_tokens=3)
    texts = [record["a"] for record in RECORDS["seq2seq"][:7]]
    made = decode.generate(run.lm, texts, settings, seed=0)
    assert [line["prediction"] for line in found.lines] == [done.text for done in made]
    total = size = 0
    for line, record in zip(found.lines, RECORDS["seq2seq"], strict=False):
        assert line["references"] == [record["b"], "dog"]
        source = [words().bos_id, *words().encode(record["a"])]
        target = [*words().encode(record["b"]), words().eos_id]
        read, written = padded(source), padded([words().bos_id, *target[:-1]])
        segments = dict(source_segments=read[1], target_segments=written[1])
        scores_TV = forward(run.lm.net)(run.lm.params, read[0], written[0], **segments)[0]
        nats = -np.asarray(scores_TV)[np.arange(len(target)), target].sum()
        assert line["nats"] == pytest.approx(nats, rel=1e-4)
        total, size = total + nats, size + len(record["b"])
    bits = found.values["metrics"]["bits_per_byte"]["value"]
    assert bits == pytest.approx(total / np.log(2) / size, rel=1e-4)


def test_the_loss_of_records_without_the_tasks_target_is_that_of_the_first_reference(opened):
    asked = dict(metrics=("loss", "bits_per_byte"), limit=7)
    expected = measured(opened("seq2seq", **asked)).values
    run = opened("seq2seq", references=("{{ first }}", "{{ second }}"), **asked)
    records = [
        {"a": record["a"], "first": record["b"], "second": "dog"}
        for record in RECORDS["seq2seq"][:7]
    ]
    found = task_eval.measure(run, records).values
    assert found["metrics"]["loss"]["value"] == expected["metrics"]["loss"]["value"]
    assert found["metrics"]["bits_per_byte"] == expected["metrics"]["bits_per_byte"]


def test_the_loss_of_test_records_is_that_of_the_same_records_held_out(opened):
    run = opened("seq2seq", test=True, metrics=("loss",))
    found = measured(run)
    assert found.values["split"] == "test"
    sums = [sum(line[key] for line in found.lines) for key in ("nats", "targets")]
    assert found.values["loss"]["loss"] == pytest.approx(sums[0] / sums[1], rel=1e-5)
    assert found.values["loss"]["tokens"] == sums[1]
    assert found.values["metrics"]["loss"]["value"] == pytest.approx(sums[0] / sums[1], rel=1e-5)


def test_every_document_has_the_nats_of_its_own_tokens_wherever_rows_cut_it(opened):
    run = opened("causal", test=True, length=61)
    whole = measured(run)
    assert list(whole.values["metrics"]) == ["perplexity", "word_perplexity", "bits_per_byte"]
    assert [line["targets"] for line in whole.lines] == [
        1 + len(words().encode(text)) for text in TEXTS
    ]
    ids = framed(words().encode(TEXTS[0]))  # it begins the first row
    scores_TV = alone(run, ids[:-1])
    nats = -scores_TV[np.arange(len(ids) - 1), ids[1:]].sum()
    assert whole.lines[0]["nats"] == pytest.approx(nats, rel=1e-4)
    assert whole.lines[0]["words"] == len(TEXTS[0].split())
    # Plain text that nobody asks anything of has no evaluation besides that of held-out text.
    assert task_eval.test_records(opened("causal")) is None


def test_a_conversation_is_continued_where_the_assistant_speaks_last(opened, monkeypatch):
    run = opened("chat")
    seen = []

    def noted(lm, requests, **others):
        seen.extend(request.prompt for request in requests)
        return scripted(NOUNS)(lm, requests)

    monkeypatch.setattr(decode, "generate", noted)
    lines = predictions.of(run, RECORDS["chat"][:5], ("exact_match",))
    assert [line["prediction"] for line in lines] == NOUNS
    for line, prompt, record in zip(lines, seen, RECORDS["chat"], strict=False):
        (example,) = run.asked.task.encode([record], words())
        asked = example["said"].index(1)
        assert list(prompt) == example["text"][:asked]
        assert line["references"] == [record["messages"][-1]["content"]]
        assert line["source"] == record["messages"][:1]


def scripted(texts):
    """Stands for `decode.generate`: the texts of each request in turn."""

    def generate(lm, requests, **others):
        made = iter(texts)
        blank = dict(prompt_tokens=(), tokens=(1,), logprobs=(-1.0,), finish_reason="stop")
        return [
            Completion(
                id=request.id, sample=i, text=next(made), sampled_logprobs=(), margins=(), **blank
            )
            for request in requests
            for i in range(request.settings.n)
        ]

    return generate


def test_programs_pass_or_fail_in_the_jail_and_pass_at_k_counts_them(opened, monkeypatch):
    run = opened(
        "seq2seq",
        tests="mbpp",
        metrics=("pass@1", "pass@2"),
        settings={"n": 2, "temperature": 0.8},
    )
    tests = {"test_setup_code": "", "test_list": ["assert f(2) == 4"]}
    records = [{**record, **tests} for record in RECORDS["seq2seq"][:2]]
    good, bad = "def f(x):\n    return x + x\n", "def f(x):\n    return x\n"
    monkeypatch.setattr(decode, "generate", scripted([good, bad, bad, "f ("]))
    found = task_eval.measure(run, records)
    assert [line["outcomes"] for line in found.lines] == [["passed", "failed"], ["failed", "error"]]
    assert [line["samples"] for line in found.lines] == [[good, bad], [bad, "f ("]]
    assert found.values["metrics"]["pass@1"]["value"] == 25  # (1/2 + 0) / 2
    assert found.values["metrics"]["pass@2"]["value"] == 50


def test_what_is_written_reads_back_and_says_what_it_came_from(opened):
    run = opened("classify")
    found = measured(run)
    again = task_eval.read(found.directory)
    assert again.lines == found.lines
    assert again.values == json.loads(json.dumps(found.values))
    came = json.loads((found.directory / "manifest.json").read_text())
    assert (came["weights"], came["step"], came["split"]) == (run.lm.digest, 5, "held-out")
    assert came["predictions"]["count"] == 17 and came["tokenizer"] == words().digest
    assert came["environment"]["jax"] == jax.__version__
    assert found.directory.parent == run.directory / "eval"
    (found.directory / "predictions.jsonl").write_text("{}\n")
    with pytest.raises(errors.BadInput, match="predictions.jsonl changed since its manifest was"):
        task_eval.read(found.directory)


def test_two_runs_are_compared_on_the_same_records_only(opened, capsys):
    ours, theirs = (measured(opened("classify", drawn=drawn)) for drawn in (3, 5))
    shown = console.Console(width=110)
    task_eval.compare(ours, theirs, shown)
    row = next(line for line in capsys.readouterr().out.splitlines() if "accuracy" in line)
    one, other = (each.values["metrics"]["accuracy"]["value"] for each in (ours, theirs))
    assert one != other
    assert f"{one:.2f}" in row and f"{other:.2f}" in row and f"{one - other:+.2f}" in row
    fewer = measured(opened("classify", drawn=5, limit=13))
    with pytest.raises(
        errors.BadInput, match="has 13 records and .* 17, and they are not the same"
    ):
        task_eval.compare(ours, fewer, shown)
    # Of a run's evaluations the one of the same records is taken.
    assert task_eval.run(ours.directory, other=str(theirs.directory.parent.parent)) == 0
    assert f"against {theirs.directory}, 17 records of both" in capsys.readouterr().out


def test_the_table_has_every_metric_the_baseline_and_what_was_cut(opened, capsys):
    found = measured(opened("tag", length=11))
    task_eval.show(found, console.Console(width=110))
    out = capsys.readouterr().out
    assert "held-out: 17 records, by the model of step 5" in out
    header, row = next(
        (a, b)
        for a, b in zip(out.splitlines(), out.splitlines()[1:], strict=False)
        if "metric" in a
    )
    assert "95 % interval" in header and "names seen" in header
    assert row.startswith("F1 of entities (%)") and row.split()[-2] == "17"
    assert f"{found.values['told']['tokens_cut']} tokens were cut off in all" in out


def test_a_run_without_evaluations_is_told_how_to_make_one(tmp_path):
    with pytest.raises(
        errors.BadInput, match=r"has no evaluation with predictions; run eval --from"
    ):
        task_eval.found(tmp_path)


def test_only_what_is_evaluated_may_differ_from_the_run(tmp_path):
    with pytest.raises(
        errors.BadInput,
        match=r"^--config.train.steps=7: eval changes only config.evaluate and config.data.test of a run",
    ):
        evaluate.opened(tmp_path, ["--config.evaluate.limit=5", "--config.train.steps=7"])


def test_a_record_with_an_unknown_label_is_told_with_its_number(opened):
    records = [*RECORDS["classify"][:2], {**RECORDS["classify"][2], "label": "neither"}]
    with pytest.raises(errors.BadInput, match=r"^record 3 to evaluate: label 'neither' is not one"):
        predictions.of(opened("classify"), records, ("accuracy",))


def test_an_example_that_was_dropped_counts_as_a_guess_that_is_told(opened):
    run = opened("classify", length=11)
    long = dataclasses.replace(run.asked.task, too_long="drop")
    asked = dataclasses.replace(run.asked, task=long)
    lines = predictions.of(
        dataclasses.replace(run, asked=asked), RECORDS["classify"], ("accuracy",)
    )
    sizes = [2 + len(words().encode(record["text"])) for record in RECORDS["classify"]]
    assert [line.get("dropped", False) for line in lines] == [size > 11 for size in sizes]
    assert task_eval.told(lines)["dropped"] == sum(size > 11 for size in sizes) > 0
    with pytest.raises(errors.BadInput, match=r"example 3 .*has \d+ tokens, and a row holds 11"):
        predictions.of(run, RECORDS["classify"], ("accuracy",))


def test_a_conversation_without_an_assistant_is_refused():
    task = types.SimpleNamespace(kind="chat")
    record = {"messages": [{"role": "user", "content": "the moon"}]}
    with pytest.raises(errors.BadInput, match="1 messages has none of the assistant's to compare"):
        predictions.source(task, record)
