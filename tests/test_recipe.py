"""Is every wrong config told in one line, and does a run go on only under a recipe that computes the same?"""

import dataclasses
import json
import re

import pytest

from decode.settings import Settings
from model import errors
from model.config import Head, ModelConfig, Runtime
from train import recipe, start


def config(**groups) -> dict:
    """A config that holds together; each group's keys are changed as asked, None removes one."""
    whole = {
        "seed": 5,
        "model": {"context_length": 31, "layers": 3, "width": 28, "heads": 7, "kv_heads": 1},
        "tokenizer": {"vocab_size": 307},
        "data": {"train": "a.txt", "length": 29},
        "train": {"steps": 11, "batch_size": 6, "accumulate": 3},
        "optimizer": {"learning_rate": 1},
        "runtime": {"dropout": 0.1, "mesh": {"data": 2}},
        "decode": {"prompts": ["The moon"], "settings": {"top-k": {"top_k": 13}}},
    }
    for name, change in groups.items():
        if isinstance(change, dict):
            both = {**whole.get(name, {}), **change}
            whole[name] = {key: value for key, value in both.items() if value is not None}
        else:
            whole[name] = change
    return whole


def test_a_config_becomes_dataclasses_with_every_default():
    made = recipe.from_config(config())
    assert made.seed == 5
    assert made.tokenizer == recipe.Tokenizer(kind="unigram", vocab_size=307)
    assert made.train == recipe.Train(steps=11, batch_size=6, accumulate=3)
    assert made.optimizer.learning_rate == 1.0
    assert made.runtime.mesh == {"data": 2}
    assert made.runtime.runtime == Runtime(dropout=0.1, scan=True)
    assert type(made.runtime.runtime) is Runtime
    assert made.decode == recipe.Decode(("The moon",), {"top-k": Settings(top_k=13)})
    assert made.model_config(307) == ModelConfig(
        vocab_size=307, context_length=31, layers=3, width=28, heads=7, kv_heads=1
    )


@pytest.mark.parametrize(
    ("task", "model", "few"),
    [
        ({}, {}, False),
        ({"kind": "masked"}, {"family": "encoder_only", "kv_heads": None}, True),
        ({"kind": "chat"}, {}, True),
        ({"kind": "seq2seq", "source": "{{ a }}", "target": "{{ b }}"}, {}, True),
        (
            {"kind": "seq2seq", "source": "{{ a }}", "target": "{{ b }}"},
            {"family": "encoder_decoder"},
            False,
        ),
    ],
)
def test_logits_are_left_out_where_few_tokens_are_targets_unless_the_config_says_otherwise(
    task, model, few
):
    whole = config(task=task, model=model)
    assert recipe.from_config(whole).loss.skip is few
    for own in (True, False):
        assert recipe.from_config({**whole, "loss": {"skip": own}}).loss.skip is own


def test_groups_that_only_have_defaults_may_be_left_out():
    whole = config()
    for name in ("optimizer", "runtime", "decode", "seed"):
        del whole[name]
    made = recipe.from_config(whole)
    assert made.seed == 0 and made.decode.prompts == () and made.runtime.mesh is None


def test_the_vocabulary_is_the_tokenizers_unless_the_model_asks_for_more():
    assert recipe.from_config(config()).model_config(307).vocab_size == 307
    padded = recipe.from_config(config(model={"vocab_size": 320}))
    assert padded.model_config(307).vocab_size == 320
    with pytest.raises(
        errors.BadInput,
        match=r"^config.model.vocab_size is 300, and the tokenizer has 307 pieces; leave it out or ",
    ):
        recipe.from_config(config(model={"vocab_size": 300}))


def test_a_presets_vocabulary_gives_way_to_the_tokenizers():
    small = {"preset": "transformer-base", "layers": 1, "kv_heads": None}
    made = recipe.from_config(config(model=small, task={"kind": "seq2seq"}))
    assert made.model_config(307).vocab_size == 307
    padded = recipe.from_config(
        config(model={**small, "vocab_size": 320}, task={"kind": "seq2seq"})
    )
    assert padded.model_config(307).vocab_size == 320


def test_a_family_that_cannot_learn_the_task_is_told_as_such():
    task = {"kind": "classify", "labels": ("a", "b")}
    with pytest.raises(
        errors.BadInput,
        match=r"^config.model.family is 'decoder_only', and config.task.kind='classify' is learnt by one of: encoder_o",
    ):
        recipe.from_config(config(task=task))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"trian": {}},
            r"config has no key 'trian' \(did you mean 'train'\?\); known keys: model, ",
        ),
        ({"train": {"step": 3}}, r"config.train has no key 'step' \(did you mean 'steps'\?\)"),
        (
            {"train": {"steps": "11"}},
            r"config.train.steps is '11' \(str\); it must be a whole number",
        ),
        ({"train": {"steps": None}}, "config.train lacks steps; add it to the config"),
        ({"train": {"keep": 0}}, "config.train.keep is 0; it must be at least 1"),
        ({"train": {"save_every": -1}}, "config.train.save_every is -1; it must be at least 0"),
        (
            {"train": {"batch_size": 7}},
            "config.train.accumulate=3 does not divide config.train.batch_size=7; change one of them",
        ),
        (
            {"model": {"heads": 3}},
            "model.heads=3 does not divide model.width=28; change one of them",
        ),
        ({"model": {"haeds": 3}}, r"config.model has no key 'haeds' \(did you mean 'heads'\?\)"),
        (
            {"model": {"vocab_size": "x"}},
            r"config.model.vocab_size is 'x' \(str\); it must be a whole number",
        ),
        ({"model": {"vocab_size": 0}}, "model.vocab_size is 0; it must be at least 1"),
        (
            {"decode": {"settings": {"greedy": 5}}},
            "^config.decode.settings.greedy is 5; it must be a group of keys$",
        ),
        (
            {"decode": {"settings": 5}},
            r"^config.decode.settings is 5 \(int\); it must be a group of keys$",
        ),
        (
            {"decode": {"prompts": ("a", 5)}},
            r"^config.decode.prompts\[1\] is 5 \(int\); it must be text$",
        ),
        (
            {"decode": {"prompts": "a"}},
            r"^config.decode.prompts is 'a' \(str\); it must be a list$",
        ),
        (
            {"runtime": {"mesh": {"data": "2"}}},
            r"^config.runtime.mesh.data is '2' \(str\); it must be a whole number$",
        ),
        ({"model": 3}, "config.model is 3; it must be a group of keys"),
        (
            {"tokenizer": {"path": "elsewhere"}},
            "vocab_size=307 and path='elsewhere'; give exactly one of them",
        ),
        (
            {"tokenizer": {"vocab_size": None}},
            "vocab_size=None and path=None; give exactly one of them",
        ),
        (
            {"data": {"length": 32}},
            "config.data.length is 32; it must be from 1 to config.model.context_length=31",
        ),
        (
            {"data": {"overlap": 29}},
            "config.data.overlap is 29; it must be at least 0 and below config.data.length=29",
        ),
        ({"optimizer": {"b2": 1}}, "optimizer.b2 is 1.0; it must be at least 0 and below 1"),
        ({"optimizer": {"warmup_steps": 11}}, "warmup_steps=11 does not end within 11 steps"),
        ({"runtime": {"dropout": 1}}, "runtime.dropout is 1.0; it must be at least 0 and below 1"),
        (
            {"runtime": {"scan": False}},
            "config.runtime.scan is False, but training keeps layers stacked; leave it out",
        ),
        (
            {"decode": {"settings": {"x": {"top_q": 1}}}},
            r"config.decode.settings.x has no key 'top_q'",
        ),
        ({"decode": {"settings": {"x": {"top_p": 1.5}}}}, "top_p is 1.5; it must be above 0"),
        ({"seed": -1}, r"^config.seed is -1; it must be from 0 to 2\^32 - 1$"),
        ({"seed": 2**32}, r"^config.seed is 4294967296; it must be from 0 to 2\^32 - 1$"),
        (
            {"decode": {"seed": -1}},
            r"^config.decode.seed is -1; it must be from 0 to 2\^64 - 1$",
        ),
        (
            {"decode": {"seed": 2**64}},
            r"^config.decode.seed is 18446744073709551616; it must be from 0 to 2\^64 - 1$",
        ),
        (
            {"tokenizer": {"kind": "unigrm"}},
            r"^config.tokenizer.kind is 'unigrm' \(did you mean 'unigram'\?\); known: bpe, unigram, char, word$",
        ),
        (
            {"tokenizer": {"vocab_size": 0}},
            "^config.tokenizer.vocab_size is 0; it must be at least 1$",
        ),
        (
            {"optimizer": {"learning_rate": float("inf")}},
            "optimizer.learning_rate is inf; it must be above 0 and finite",
        ),
        (
            {"optimizer": {"learning_rate": float("nan")}},
            "optimizer.learning_rate is nan; it must be above 0 and finite",
        ),
        (
            {"model": {"rope": {"theta": 0}}},
            "model.rope.theta is 0.0; it must be above 0 and finite",
        ),
        (
            {"model": {"rope": {"theta": float("inf")}}},
            "model.rope.theta is inf; it must be above 0 and finite",
        ),
        (
            {"model": {"norm_epsilon": -1e-5}},
            "model.norm_epsilon is -1e-05; it must be above 0 and finite",
        ),
        ({"seed": "5"}, r"config.seed is '5' \(str\); it must be a whole number"),
    ],
)
def test_a_wrong_config_is_told_in_one_line(change, message):
    with pytest.raises(errors.BadInput, match=message) as caught:
        recipe.from_config(config(**change))
    assert "\n" not in str(caught.value)


def test_seeds_reach_to_their_limits():
    made = recipe.from_config(config(seed=2**32 - 1, decode={"seed": 2**64 - 1}))
    assert (made.seed, made.decode.seed) == (4294967295, 18446744073709551615)


def test_json_says_everything_and_comes_back_as_the_same_recipe():
    made = recipe.from_config(config())
    model = made.model_config(307)
    text = recipe.to_json(made, model)
    groups = json.loads(text)
    assert errors.build(ModelConfig, groups["model"], "model") == model
    assert groups["model"]["rope"]["theta"] == 10_000.0  # a default, written out
    assert groups["optimizer"]["b2"] == 0.95  # a default, written out
    again = recipe.from_config(groups)
    assert recipe.to_json(again, again.model_config(307)) == text


def test_a_run_directory_gives_back_its_recipe(tmp_path):
    made = recipe.from_config(config())
    (tmp_path / "config.json").write_text(recipe.to_json(made, made.model_config(307)))
    again = recipe.of_run(tmp_path)
    assert again.train == made.train and again.decode == made.decode
    assert again.model_config(307) == made.model_config(307)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            None,
            "holds no model: config.json is missing; give a run, a bundle or a Hugging Face directory",
        ),
        ("{", r"config.json is not JSON \(.*\); restore it, or give another directory"),
        ("[]", "config.json holds no group of keys; restore it, or give another directory"),
        (
            '{"model": {}, "train": {"setps": 3}}',
            r"config.train has no key 'setps' \(did you mean 'steps'\?\)",
        ),
        (
            '{"model_type": "llama"}',
            "has weights and no recipe, which would name prompts and held-out text; add --prompt if you",
        ),
    ],
)
def test_a_directory_without_a_recipe_is_told_in_one_line(tmp_path, text, message):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(errors.BadInput, match=message):
        recipe.of_run(tmp_path)


def test_every_prompt_is_asked_for_under_every_settings():
    asked = recipe.Decode(
        ("The", "A"), {"warm": Settings(temperature=0.7), "top-k": Settings(top_k=3)}
    )
    named = asked.requests({"max_new_tokens": 7})
    assert [(name, request.prompt, request.id) for name, request in named] == [
        ("warm", "The", "warm 0"),
        ("warm", "A", "warm 1"),
        ("top-k", "The", "top-k 0"),
        ("top-k", "A", "top-k 1"),
    ]
    assert named[0][1].settings == Settings(temperature=0.7, max_new_tokens=7)
    assert asked.requests()[3][1].settings == Settings(top_k=3)


def resolved(**change) -> dict:
    made = recipe.from_config(config(**change))
    return json.loads(recipe.to_json(made, made.model_config(307)))


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"train": {"log_every": 1, "eval_every": 2, "sample_every": 3, "save_every": 4, "keep": 5}},
        {"decode": {"prompts": ["Europa"], "settings": {"greedy": {"temperature": 0}}, "seed": 3}},
        {"runtime": {"mesh": {"data": 1, "fsdp": 2}, "unroll": 3, "remat": "full"}},
        {"model": {"hidden": 80, "vocab_size": 307}},  # what it would be anyway
    ],
)
def test_what_does_not_change_the_numbers_may_change(change):
    assert recipe.changes(resolved(), resolved(**change)) == []


@pytest.mark.parametrize(
    ("change", "key", "was", "now"),
    [
        ({"model": {"layers": 2}}, "model.layers", 3, 2),
        ({"tokenizer": {"kind": "bpe"}}, "tokenizer.kind", "unigram", "bpe"),
        ({"data": {"train": "b.txt"}}, "data.train", "a.txt", "b.txt"),
        ({"train": {"steps": 12}}, "train.steps", 11, 12),
        ({"train": {"batch_size": 9}}, "train.batch_size", 6, 9),
        ({"train": {"accumulate": 2}}, "train.accumulate", 3, 2),
        (
            {"optimizer": {"clip_norm": None, "learning_rate": 0.5}},
            "optimizer.learning_rate",
            1.0,
            0.5,
        ),
        ({"runtime": {"dropout": 0.2}}, "runtime.dropout", 0.1, 0.2),
        ({"seed": 6}, "seed", 5, 6),
    ],
)
def test_what_changes_the_numbers_is_named_with_both_values(change, key, was, now):
    assert recipe.changes(resolved(), resolved(**change)) == [(key, was, now)]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("model.width", "--allow_change=model.width: what was learned so far belongs to the old"),
        ("train.step", "the config has no such key (did you mean 'train.steps'?)"),
    ],
)
def test_a_change_that_cannot_be_allowed_is_refused(key, message):
    groups = {"model": {"width": 24}, "train": {"steps": 7}}
    recipe.check_allowed(["train.steps"], groups)
    with pytest.raises(errors.BadInput, match=re.escape(message)):
        recipe.check_allowed([key], groups)


def test_a_head_is_the_tasks_with_what_the_config_or_a_model_of_the_same_task_adds(
    tmp_path, monkeypatch
):
    task = {"kind": "classify", "labels": ("no", "yes")}
    groups = {"task": task, "tokenizer": {"vocab_size": 307}}
    encoder = {"family": "encoder_only", "kv_heads": None}
    given = config(model={**encoder, "head": {"pooling": "mean"}}, **groups)
    pooled = Head("sequence", ("no", "yes"), pooling="mean")
    assert recipe.from_config(given).model_config(307).head == pooled

    base = ModelConfig(307, 31, 1, 16, 2, family="encoder_only")
    for head, expected in (
        (Head("sequence", ("a", "b", "c"), "relu"), Head("sequence", ("no", "yes"), "relu")),
        (Head("token", ("a", "b")), Head("sequence", ("no", "yes"))),
    ):
        found = dataclasses.replace(base, head=head)
        monkeypatch.setattr(start.sources, "config_of", lambda _, found=found: found)
        given = {**config(**groups), "model": {}, "start": {"path": str(tmp_path)}}
        assert recipe.from_config(given).model_config(307).head == expected
