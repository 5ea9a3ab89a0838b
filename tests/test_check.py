"""Does each self-test hold for what is right, and fail when exactly that is broken?"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import running

from model import attention, errors
from model.config import ModelConfig
from train import check, data, flops, optimizer, recipe, step, subject

pytestmark = pytest.mark.standard_promotion


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    source = running.texts(tmp_path_factory.mktemp("texts"))
    return recipe.from_config(running.config(source, optimizer={"learning_rate": 0.01}))


@pytest.fixture(scope="module")
def right(asked):
    """What is tested when nothing is broken; its programs are compiled once."""
    return check.Subject(asked)


# By kind of task: family, source, and what differs otherwise.
KINDS = {
    "prefix": ("decoder_only", "a.txt", {}),
    "masked": ("encoder_only", "a.txt", {"whole_words": True}),
    "spans": ("encoder_decoder", "a.txt", {}),
    "denoising": ("encoder_decoder", "a.txt", {}),
    "seq2seq": ("encoder_decoder", "records.jsonl", {}),
    "chat": ("decoder_only", "records.jsonl", {}),
    "classify": ("encoder_only", "records.jsonl", {"labels": ["2", "3", "4", "5"]}),
    "tag": ("encoder_only", "records.jsonl", {"labels": ["long", "short"], "source": "tokens"}),
}


@pytest.fixture(scope="module")
def subject_of(tmp_path_factory):
    """By kind of task, a subject of one layer."""
    source = running.texts(tmp_path_factory.mktemp("records"))

    @functools.cache
    def make(kind):
        family, name, more = KINDS[kind]
        groups = running.config(
            source,
            task={"kind": kind, **more},
            model={"family": family, "layers": 1, "context_length": 61},
            data={"train": {"path": str(source / name), "split": "line"}, "length": 59},
            optimizer={"learning_rate": 0.03},
        )
        return check.Subject(recipe.from_config(groups))

    return make


def like(right, *parts):
    """A subject whose programs are compiled anew, except for these parts of it."""
    anew = check.Subject(right.asked)
    for name in ("sources", "params", *parts):
        setattr(anew, name, getattr(right, name))
    return anew


def sees_everything(owner, name):
    """A change that lets attention see what `name` would have hidden."""

    def apply(patch):
        usual = getattr(owner, name)
        patch.setattr(owner, name, lambda *args: jnp.ones_like(usual(*args)))

    return apply


def mean_of_means(patch):
    """Micro-batches that are averaged one by one."""
    usual = step.loss_and_gradient

    def broken(loss_fn, params, batch, key, accumulate):
        parts = step.micro_batches(batch, accumulate)
        each = [
            usual(loss_fn, params, {name: rows[i] for name, rows in parts.items()}, key, 1)
            for i in range(accumulate)
        ]
        return jax.tree.map(lambda *leaves: sum(leaves) / accumulate, *each)

    patch.setattr(step, "loss_and_gradient", broken)


def forgotten_layer(patch):
    """Norms of the second layer that the loss does not reach."""
    usual = step.batch_loss

    def broken(net, config, params, batch, key):
        def cut(path, leaf):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            forgotten = name.startswith("stack/layers/") and "norm" in name
            return leaf.at[1].set(jax.lax.stop_gradient(leaf[1])) if forgotten else leaf

        return usual(net, config, jax.tree_util.tree_map_with_path(cut, params), batch, key)

    patch.setattr(step, "batch_loss", broken)


def endless_rate(patch):
    usual = optimizer.schedule
    patch.setattr(
        optimizer, "schedule", lambda *args: lambda i: jnp.where(i == 30, jnp.nan, usual(*args)(i))
    )


def uphill(patch):
    usual = optimizer.build
    patch.setattr(optimizer, "build", lambda *args: optax.chain(usual(*args), optax.scale(-1.0)))


def counting(patch):
    """Batches that depend on how many were asked for."""
    usual = data.batches

    class Batches:
        def __init__(self, *args, **kwargs):
            self.inner, self.asked = usual(*args, **kwargs), 0

        def __getitem__(self, number):
            self.asked += 1
            return self.inner[number + self.asked]

    patch.setattr(data, "batches", Batches)


BREAKS = {
    "causality": (sees_everything(attention, "before"), r"token 19 changes the logits of token \d+, before it"),
    "packed documents": (
        sees_everything(attention, "same_segment"),
        "a document changes the logits of the one packed behind it",
    ),
    "padding": (sees_everything(attention, "real"), r"7 tokens of padding move logits by \de[+-]0[0-3] of the largest"),
    "accumulation": (mean_of_means, r"the gradient in 2 micro-batches is \d?e?[+-.\d]+ off that of the batch"),
    "one batch learnt": (uphill, r"loss 5\.\d+ to \d+\.\d+ in 40 steps on one batch at rate 0.01"),
    "dead parameters": (forgotten_layer, "without gradient: stack/layers/.*norm.* of layer 1"),
    "schedule": (endless_rate, r"the rate of step 31 is nan; 1: .*, 61: .*"),
    "batches": (counting, r"batch\(\d\) is another when it is asked for in another order"),
}  # fmt: skip


def test_there_is_a_control_for_every_check():
    assert {*BREAKS, "both ways"} == set(check.CHECKS)


def test_all_checks_hold_for_a_recipe_that_is_right(asked, right, monkeypatch, capsys):
    monkeypatch.setattr(check, "Subject", lambda asked: right)
    assert check.run(asked) == 0
    out = capsys.readouterr().out
    assert re.findall(r"(?m)^(ok|WRONG)", out) == ["ok"] * 8
    assert re.search(r"(?m)^- +both ways +left out: the model looks back only$", out)
    assert re.search(r"(?m)^none of 8 checks failed; \d+ s$", out)
    assert "parameters, batches of 4 rows of 29 tokens\n" in out and "halved" not in out


@pytest.mark.parametrize("name", BREAKS)
def test_a_check_fails_when_its_promise_is_broken(right, name, monkeypatch):
    apply, said = BREAKS[name]
    changed = like(right, *(["learnt"] if name == "dead parameters" else []))
    apply(monkeypatch)
    holds, text = check.CHECKS[name](changed)
    assert not holds and re.fullmatch(said, text), text


def test_a_check_that_fails_is_told_and_counted(asked, monkeypatch, capsys):
    endless_rate(monkeypatch)
    monkeypatch.setattr(check, "CHECKS", {"schedule": check.schedule, "batches": check.purity})
    assert check.run(asked) == 1
    out = capsys.readouterr().out
    assert re.search(r"(?m)^WRONG  schedule +the rate of step 31 is nan", out)
    assert re.search(r"(?m)^1 of 2 checks failed; \d+ s$", out)


def test_a_model_without_attention_is_held_to_the_same(asked):
    lstm = dataclasses.replace(
        asked, model={"context_length": 31, "layers": 1, "width": 17, "family": "lstm"}
    )
    found = check.Subject(lstm)
    for name in ("packed documents", "padding"):
        assert check.CHECKS[name](found)[0], name


def test_what_takes_too_long_is_halved_and_widths_last(monkeypatch):
    config = ModelConfig(
        vocab_size=4096, context_length=512, layers=6, width=96, heads=4, kv_heads=2, windows=(64, 0, 0, 0)
    )  # fmt: skip
    cost = flops.training(config, 512) * 512 * 4 * (subject.STEPS + 10)

    def reduced(share):
        rate = share * cost / (subject.SECONDS * subject.EFFICIENCY)
        monkeypatch.setattr(flops, "peak", lambda: flops.Peak(rate, "given"))
        return subject.reduced(config, 512, 4)

    assert reduced(1.01) == (config, 512)
    assert reduced(0.9) == (config, 256)
    made, length = reduced(1e-6)
    assert length == 64 and (made.layers, made.vocab_size) == (3, 1024)
    assert (made.width, made.heads, made.kv_heads, made.head_size) == (48, 2, 2, 24)
    assert made.windows == (64, 0, 0)


def test_rows_too_short_to_check_are_refused(asked):
    short = dataclasses.replace(asked, data=dataclasses.replace(asked.data, length=3))
    message = "config.data.length is 3, and checks need rows of at least 4 tokens; raise it"
    with pytest.raises(errors.BadInput, match=f"^{message}$"):
        check.Subject(short)


def test_halving_is_said(asked, monkeypatch, capsys):
    usual = subject.reduced
    monkeypatch.setattr(
        subject,
        "reduced",
        lambda config, length, rows: (usual(config, length, rows)[0], length // 2),
    )
    monkeypatch.setattr(check, "CHECKS", {})
    check.run(asked)
    assert "halved, to be done within a minute: data.length 29 to 14\n" in capsys.readouterr().out


def test_the_first_micro_batch_has_few_targets(right):
    """Else a mean of means would pass for the mean."""
    per_row = np.asarray(right.batch["weights"]).sum(axis=1)
    assert per_row[[0, 2]].sum() == 1 and per_row[[1, 3]].min() > 20


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_is_checked_with_rows_of_its_own(kind, subject_of):
    found = subject_of(kind)
    batch, task = found.batch, found.asked.task
    assert batch.keys() == found.sources[0].row(0, 0).keys()
    assert ("source" in batch) == (KINDS[kind][0] == "encoder_decoder")
    assert batch["tokens"].max() < found.config.vocab_size and batch["weights"][1::2].any()
    special = [found.words.encode(name, special=True) for name in task.special]
    assert all(len(ids) == 1 for ids in special)
    if kind in ("masked", "spans", "denoising"):
        read = batch["source" if "source" in batch else "tokens"]
        assert np.isin(read, special[0]).any()
    assert check.purity(found)[0]


@pytest.mark.parametrize(
    ("kind", "without"),
    [
        ("prefix", set()),
        ("masked", {"causality"}),
        ("spans", {"packed documents"}),
        ("denoising", {"packed documents"}),
        ("seq2seq", set()),
        ("chat", {"both ways"}),
        ("classify", {"causality", "packed documents"}),
        ("tag", {"causality"}),
    ],
)
def test_what_means_nothing_for_a_task_is_left_out(kind, without, subject_of):
    assert check.left_out(subject_of(kind)).keys() == without


@pytest.mark.parametrize("kind", ["masked", "seq2seq", "classify", "prefix"])
def test_the_checks_hold_for_models_that_look_both_ways(kind, subject_of):
    found = subject_of(kind)
    names = ["both ways", "causality", "packed documents", "padding"]
    if kind == "classify":  # whose rows have one target each
        names.append("accumulation")
    for name in set(names) - check.left_out(found).keys():
        assert check.CHECKS[name](found)[0], (name, check.CHECKS[name](found)[1])


def back_only(patch):
    """Attention that never sees what comes later."""
    usual = attention.look

    def broken(length, *, causal, prefix_B=None, **others):
        return usual(length, causal=True, **others)

    patch.setattr(attention, "look", broken)


@pytest.mark.parametrize("kind", ["masked", "seq2seq", "prefix"])
def test_what_should_look_both_ways_and_does_not_is_found(kind, subject_of, monkeypatch):
    back_only(monkeypatch)
    holds, text = check.both_ways(like(subject_of(kind)))
    assert not holds and re.fullmatch(r"token \d+ changes no hidden state before it", text), text


@pytest.mark.parametrize(
    ("kind", "name"), [("masked", "same_segment"), ("seq2seq", "same_segment"), ("masked", "real")]
)
def test_packed_texts_and_padding_that_are_seen_are_found(kind, name, subject_of, monkeypatch):
    sees_everything(attention, name)(monkeypatch)
    found = check.separation if name == "same_segment" else check.padding
    assert not found(like(subject_of(kind)))[0]
