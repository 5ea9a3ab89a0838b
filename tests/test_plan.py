"""Does a plan print what a config costs: parameters by part, bytes, operations, and one line for what is wrong?"""

import io
import json
import re

import pytest
import tiny
from rich.console import Console

from configs import preset
from model import errors, presets
from model.config import ModelConfig
from train import plan, recipe

SHAPE = dict(vocab_size=211, context_length=61, layers=3, width=28)
TINY = SHAPE | dict(heads=7, kv_heads=1, hidden=53)
RECIPE = {
    "model": {name: value for name, value in TINY.items() if name != "vocab_size"},
    "tokenizer": {"vocab_size": 283},
    "data": {"train": "python", "length": 31},
    "train": {"steps": 5, "batch_size": 2},
}


def parts(config):
    return {f"{part.stack} {part.name}".strip(): part.total for part in plan.parameters(config)}


def printed(config, length, **names):
    page = io.StringIO()
    plan.table(config, length, console=Console(file=page, width=100), **names)
    return page.getvalue()


def cells(page):
    """The rows of the tables: what two or more blanks hold apart, under the first."""
    rows = [re.split(r"\s{2,}", line.strip()) for line in page.splitlines()]
    return {row[0]: row[1:] for row in rows}


def test_gpt2_by_part():
    """Worked out by hand: 12 layers of width 768; matrices, biases, and two norms a layer and one behind."""
    assert parts(presets.config("gpt2-124m")) == {
        "embedding": 50_257 * 768,
        "positions": 1024 * 768,
        "attention": 12 * (4 * 768 * 768 + 4 * 768),
        "feed-forward": 12 * (8 * 768 * 768 + 5 * 768),
        "norms": 25 * 2 * 768,
    }


def test_an_encoder_decoders_stacks_stand_apart():
    """T5 1.1 small: 8 + 8 layers of width 512, 6 heads of 64, gated feed-forward of 1024, two tables."""
    maps, gated = 4 * 512 * 6 * 64, 3 * 512 * 1024
    found = parts(presets.config("t5-v1.1-small"))
    assert found == {
        "embedding": 32_128 * 512,
        "encoder positions": 32 * 6,
        "encoder attention": 8 * maps,
        "encoder feed-forward": 8 * gated,
        "encoder norms": 17 * 512,
        "decoder positions": 32 * 6,
        "decoder attention": 8 * maps,
        "decoder cross attention": 8 * maps,
        "decoder feed-forward": 8 * gated,
        "decoder norms": 25 * 512,
        "head": 32_128 * 512,
    }
    assert list(found)[0] == "embedding" and list(found)[-1] == "head"


def test_berts_head_is_a_map_a_norm_and_a_bias_per_token():
    found = parts(presets.config("bert-base-uncased"))
    assert found["head"] == 768 * 768 + 768 + 2 * 768 + 30_522
    assert found["embedding"] == (30_522 + 2) * 768 and found["norms"] == 25 * 2 * 768


def test_norms_of_queries_and_keys_are_norms():
    """Qwen 3 0.6B: two of 128 entries beside the two of 1024 in each of 28 layers, and one behind."""
    assert parts(presets.config("qwen3-0.6b"))["norms"] == 28 * (2 * 1024 + 2 * 128) + 1024


@pytest.mark.parametrize(("family", "gates"), [("lstm", 4), ("gru", 3)])
def test_a_recurrent_layer_is_its_cells(family, gates):
    """Two maps and, as PyTorch has it, two biases."""
    assert parts(ModelConfig(**SHAPE, family=family))["cells"] == 3 * 2 * gates * (28 * 28 + 28)


def test_a_token_meets_13_of_mixtrals_47_billion():
    """Jiang et al. 2024, abstract."""
    found = plan.parameters(presets.config("mixtral-8x7b"))
    assert sum(part.total for part in found) == 46_702_792_704
    assert sum(part.active for part in found) == 46_702_792_704 - 32 * 6 * 3 * 4096 * 14_336
    assert round(sum(part.active for part in found) / 1e9) == 13


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (presets.config("llama-7b"), {"token": 2 * 32 * 4096 * 2}),
        (presets.config("llama2-70b"), {"token": 2 * 80 * 8 * 128 * 2}),
        (presets.config("bert-base-cased"), {}),
        # Keys and values of each side, and whether a source token is real.
        (presets.config("bart-base"), {"token": 2 * 6 * 768 * 2, "source token": 2 * 6 * 768 * 2 + 1}),
    ],
)  # fmt: skip
def test_the_cache_grows_with_each_token_by_its_keys_and_values(config, expected):
    assert plan.cache_bytes(config) == expected


def test_a_recurrent_models_cache_does_not_grow():
    """An LSTM keeps twice what a GRU does, whatever the context; a row's length is four bytes."""
    lstm, gru = (plan.cache_bytes(ModelConfig(**SHAPE, family=name)) for name in ("lstm", "gru"))
    assert lstm["row"] - 4 == 2 * (gru["row"] - 4) and lstm.keys() == {"row"}


def test_the_whole_table_of_a_model_with_experts():
    """A golden worked out by hand from the shape, in the order it is read."""
    config = errors.build(ModelConfig, TINY | {"experts": {"count": 5, "chosen": 2}}, "config")
    expert = 3 * 28 * 53
    total = 2 * 211 * 28 + 3 * (28 * 16 * 4 + 28 * 5 + 5 * expert) + 7 * 28
    met = total - 3 * 3 * expert
    forward = 2 * (211 * 28 + 3 * (28 * 16 * 4 + 28 * 5 + 2 * expert)) + 3 * 2 * 31 * 28
    page = printed(config, 31, name="tiny")
    lines = page.splitlines()
    assert lines[0] == (
        "tiny: decoder-only, 3 layers of width 28, 7 heads of 4 (1 of keys and values), positions rope, "
        "feed-forward 2 of 5 times 53 swiglu, rms norm pre, vocabulary 211, context 61"
    )
    rows = cells(page)
    assert list(rows)[3:8] == ["embedding", "attention", "feed-forward", "norms", "head"]
    assert rows["total"] == [f"{total:,}", "100.0%", f"{met:,}"]
    assert rows["weights in bfloat16"] == [f"{total * 2 / 1e3:.2f} kB"]
    assert rows["weights in int8"] == [f"{total / 1e3:.2f} kB"]
    assert rows["weights, gradient and Adam's moments in float32"] == [f"{total * 16 / 1e6:.2f} MB"]
    assert rows["cache in bfloat16, per token"] == ["48 B"]
    assert rows["per token, in rows of 31"] == ["operations"]
    assert rows["forward"] == [f"{forward / 1e3:.2f} kFLOP"]
    assert rows["training"] == [f"{3 * forward / 1e3:.2f} kFLOP"]


def test_the_table_needs_no_colour_and_ends_no_line_in_blanks():
    page = printed(presets.config("bloom-176b"), 2048, name="bloom-176b")
    assert "\x1b" not in page and not [line for line in page.splitlines() if line != line.rstrip()]
    assert cells(page)["total"] == ["176,247,271,424", "100.0%"] and "met by a token" not in page


def test_a_preset_is_planned_at_its_whole_context_unless_told():
    config = preset.get_config("gpt2-355m").to_dict()
    assert plan.asked(config) == (presets.config("gpt2-355m"), 1024)
    assert plan.asked(config | {"data": {"length": 128}}) == (presets.config("gpt2-355m"), 128)


def test_a_whole_recipe_is_planned_with_its_tokenizer_and_its_rows():
    config, length = plan.asked(RECIPE)
    assert (config.vocab_size, config.width, length) == (283, 28, 31)


@pytest.mark.parametrize(
    ("family", "task"),
    [
        ("encoder_only", {"kind": "masked"}),
        ("encoder_only", {"kind": "classify", "labels": ["a", "b", "c"]}),
        ("encoder_only", {"kind": "tag", "labels": ["a", "b", "c"]}),
        ("encoder_decoder", {"kind": "spans"}),
        ("encoder_decoder", {"kind": "denoising"}),
        ("encoder_decoder", {"kind": "seq2seq"}),
        ("decoder_only", {"kind": "chat"}),
        ("decoder_only", {"kind": "prefix"}),
    ],
)
def test_a_recipe_of_any_task_is_planned(family, task, capsys):
    model = RECIPE["model"] | {"family": family}
    assert plan.run(RECIPE | {"task": task, "model": model}) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"model: {family.replace('_', '-')}, ") and "head" in said


def test_a_recipe_may_name_a_preset_and_change_it_and_says_all_of_it_in_its_json():
    group = {"preset": "gpt2-124m", "layers": 3, "context_length": 31}
    made = recipe.from_config(RECIPE | {"model": group})
    sizes = dict(vocab_size=283, layers=3, context_length=31)
    assert made.model_config(283) == presets.config("gpt2-124m", **sizes)
    groups = json.loads(recipe.to_json(made, made.model_config(283)))
    assert "preset" not in groups["model"] and groups["model"]["position"] == "learned"
    assert recipe.from_config(groups).model_config(283) == made.model_config(283)


def test_a_preset_without_its_vocabulary_has_the_tokenizers():
    """`--config.model.vocab_size=null`."""
    group = {"preset": "gpt2-124m", "vocab_size": None}
    assert plan.asked(RECIPE | {"model": group})[0] == presets.config("gpt2-124m", vocab_size=283)


def test_windows_are_told():
    assert ", windows (4096, 0), " in plan.describe(presets.config("gemma2-2b"))
    assert ", windows (4096), " in plan.describe(presets.config("mistral-7b"))
    assert "windows" not in plan.describe(presets.config("llama-7b"))


def test_a_recipe_with_a_tokenizer_of_its_own_has_that_ones_vocabulary(tmp_path):
    tiny.words().save(tmp_path)
    asked = RECIPE | {"tokenizer": {"path": str(tmp_path)}}
    assert plan.asked(asked)[0].vocab_size == tiny.words().vocab_size == 307


def test_a_recipe_that_states_its_vocabulary_needs_no_tokenizer_to_be_there():
    asked = RECIPE | {"model": TINY, "tokenizer": {"path": "nowhere"}}
    assert plan.asked(asked)[0].vocab_size == 211


def test_a_plan_prints_the_presets_name_and_whether_it_was_changed(capsys):
    assert plan.run({"model": {"preset": "gpt2-124m"}}) == 0
    assert capsys.readouterr().out.startswith("gpt2-124m: decoder-only, 12 layers of width 768, ")
    assert plan.run({"model": {"preset": "gpt2-124m", "layers": 2}}) == 0
    said = capsys.readouterr().out
    assert said.startswith("gpt2-124m, changed: decoder-only, 2 layers of width 768, ")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"data": {"length": 7}},
            r"config has no group 'model', so there is nothing to plan; add one, or give "
            r"--config=configs/preset\.py:NAME$",
        ),
        ({"model": {"preset": "bloom-175b"}}, r"there is no preset 'bloom-175b' \(did you mean 'bloom-17"),
        ({"model": 3}, "config.model is 3; it must be a group of keys$"),
        ({"model": {"preset": "gpt2-124m", "heads": 7}}, "model.heads=7 does not divide model.width=768"),
        ({"model": {"preset": "gpt2-124m", "head": 7}}, r"config.model.head is 7 \(int\); it must be a group"),
        ({"model": {"layers": 3}}, "config.model lacks vocab_size, context_length, width; add it"),
        (
            {"model": TINY, "data": {"length": 62}},
            "config.data.length is 62; it must be from 1 to config.model.context_length=61$",
        ),
        ({"model": TINY, "data": {"train": "python"}}, "config.data has no key 'train'; known keys: length"),
        ({**RECIPE, "tokenizer": {"kind": "char"}}, "config.tokenizer.vocab_size is None, and how many pieces"),
        ({"model": TINY, "seed": 3}, "config lacks tokenizer, data, train; add it to the config"),
        ({"model": TINY, "optimiser": {}}, r"config has no key 'optimiser' \(did you mean 'optimizer'\?\)"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(config, message):
    with pytest.raises(errors.BadInput, match=f"^{message}") as told:
        plan.run(config)
    assert "\n" not in str(told.value)
