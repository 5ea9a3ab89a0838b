"""Is every setting a flag that says what it does, and is its text read as what it is?"""

import dataclasses
import re

import pytest

from decode import options
from decode.settings import Settings
from model import errors


@pytest.mark.parametrize(
    ("name", "texts", "value"),
    [
        ("top_k", ["5"], 5),
        ("temperature", ["0.7"], 0.7),
        ("top_p", ["1e-2"], 0.01),
        ("penalty_last_n", ["-1"], -1),
        ("forced_bos_token_id", ["3"], 3),
        ("ignore_eos", ["true"], True),
        ("do_sample", ["false"], False),
        ("early_stopping", ["never"], "never"),
        ("early_stopping", ["true"], True),
        ("regex", ["[ab] 5"], "[ab] 5"),
        ("preset", ["vllm"], "vllm"),
        ("stop", ["END"], ["END"]),
        ("stop", ["5", '["[", "@"]'], ["5", "[", "@"]),
        ("bad_words", ["moon", "[[3, 4]]"], ["moon", [3, 4]]),
        ("stop_token_ids", ["3", "[5, 7]"], [3, 5, 7]),
        ("logit_bias", ['{"5": -1.5}'], {"5": -1.5}),
        ("sequence_bias", ["[[[1, 2], 0.5]]"], [[[1, 2], 0.5]]),
        ("exponential_decay_length_penalty", ["[30, 1.05]"], [30, 1.05]),
        ("dola_layers", ["low"], "low"),
        ("dola_layers", ["[0, 1]"], [0, 1]),
        ("negative_prompt", ["not this"], "not this"),
        ("negative_prompt", ["[5]"], [5]),
    ],
)
def test_a_text_is_read_as_the_setting_it_is_of(name, texts, value):
    found = options.values({name: texts})[name]
    assert (found, type(found)) == (value, type(value))


def test_what_is_read_makes_settings_for_every_name():
    """Each default, written as a person would, gives the default back."""
    for field in dataclasses.fields(Settings):
        if field.default is not None:
            default = field.default
            text = str(default).lower() if isinstance(default, bool | str) else str(default)
            text = '["\\n", ":", "\\"", "*"]' if field.name == "dry_sequence_breakers" else text
            text = "[]" if default == () else text
            assert Settings(**options.values({field.name: [text]})) == Settings(), field.name


def test_a_value_may_stand_in_a_file(tmp_path):
    path = tmp_path / "schema.json"
    path.write_text('{"type": "integer"}\n')
    given = Settings(**options.values({"json_schema": [f"@{path}"]}))
    assert given == Settings(json_schema='{"type": "integer"}')
    path.write_text("7\n")
    assert options.values({"top_k": [f"@{path}"]}) == {"top_k": 7}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(top_k=["five"]), "--top_k is 'five'; it must be a number, such as --top_k=1"),
        (dict(top_k=["1", "2"]), "--top_k is given 2 times; give it once"),
        (dict(ignore_eos=["yes"]), "--ignore_eos is 'yes'; it must be true or false"),
        (dict(logit_bias=["{5: 1}"]), "--logit_bias is '{5: 1}', which is not JSON (Expecting"),
        (dict(stop=["[a"]), "--stop is '[a', which is not JSON (Expecting value"),
        (dict(suppress_tokens=["x"]), "--suppress_tokens is 'x', which is not JSON"),
        (
            dict(regex=["@nowhere"]),
            "--regex=@nowhere cannot be read (No such file or directory); @ is followed by the name",
        ),
    ],
)
def test_what_cannot_be_read_is_named_by_its_flag(given, message):
    with pytest.raises(errors.BadInput, match="^" + re.escape(message)) as error:
        options.values(given)
    assert "\n" not in str(error.value)


def test_every_setting_is_described_by_itself_or_with_another_and_listed_under_a_heading():
    described = [name for names, _ in options.described() for name in names]
    told = {name for _, text in options.described() for name in re.findall("`(\\w+)`", text)}
    names = {field.name for field in dataclasses.fields(Settings)}
    assert len(described) == len(set(described))
    assert set(described) <= names == set(described) | told & names
    listing = options.listing()
    for heading in options.HEADINGS.values():
        assert f"\n{heading}:\n" in listing
    assert all(f"--{name}" in listing for name in described)
    assert max(map(len, listing.splitlines())) < 140
