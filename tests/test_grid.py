"""Are the arms of a sweep those that were asked for, and is each mistake told in one line?"""

import json

import pytest

from decode import grid
from decode.settings import Settings
from model import errors


def refused(message):
    return pytest.raises(errors.BadInput, match=message)


def listed(tmp_path, rows):
    path = tmp_path / "arms.json"
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows))
    return str(path)


def test_several_values_span_a_grid_and_one_value_is_every_arms():
    found = grid.arms({"temperature": "0.5,0.8,1", "top_k": "0,50", "max_new_tokens": "7"})
    assert found.axes == {"temperature": (0.5, 0.8, 1.0), "top_k": (0, 50)}
    assert found.whole
    assert [(a.settings.temperature, a.settings.top_k) for a in found.arms] == [
        (0.5, 0), (0.5, 50), (0.8, 0), (0.8, 50), (1.0, 0), (1.0, 50),
    ]  # fmt: skip
    assert {a.settings.max_new_tokens for a in found.arms} == {7}
    assert found.arms[1].name == "temperature=0.5, top_k=50"


def test_arms_record_their_likelihood_unless_told_otherwise():
    assert all(arm.settings.likelihood for arm in grid.arms({"top_k": "1,2"}).arms)
    off = grid.arms({"top_k": "1,2", "likelihood": "false"})
    assert not any(arm.settings.likelihood for arm in off.arms)


def test_a_list_of_arms_takes_the_flags_as_defaults(tmp_path):
    rows = [{}, {"top_k": 5}, {"top_p": 0.9, "max_new_tokens": 3}]
    found = grid.arms({"max_new_tokens": "11"}, listed(tmp_path, rows))
    assert [arm.name for arm in found.arms] == [
        "max_new_tokens=11",
        "max_new_tokens=11, top_k=5",
        "max_new_tokens=3, top_p=0.9",
    ]
    assert [arm.settings.max_new_tokens for arm in found.arms] == [11, 11, 3]
    assert not found.whole
    assert grid.of([{}, {"top_k": 5}]).arms[0].name == "defaults"


@pytest.mark.parametrize(
    "name, text, expected",
    [
        ("top_k", "0, 50", [0, 50]),
        ("temperature", ".5,1e-1,2", [0.5, 0.1, 2]),
        ("do_sample", "true,false,null", [True, False, None]),
        ("allowed_token_ids", "[5, 7],[5]", [[5, 7], [5]]),
        ("logit_bias", '{"5": 1, "7": -2},{}', [{"5": 1, "7": -2}, {}]),
        ("preset", "hf,vllm", ["hf", "vllm"]),
        ("stop", '".",","', [".", ","]),
        ("regex", "[0-9]{1,3},(a|b,c)+", ["[0-9]{1,3}", "(a|b,c)+"]),
        ("regex", "5", ["5"]),
        ("regex", '"a,b"', ["a,b"]),
        ("regex", r"\(,a", [r"\(,a"]),
        ("json_schema", '{"type": "object"}', [{"type": "object"}]),
    ],
)
def test_commas_part_values_but_for_those_in_brackets_and_quotes(name, text, expected):
    assert grid.values(name, text) == expected


def test_a_flag_that_is_repeated_gives_more_values():
    found = grid.arms({"temperature": ["0.5,1", "2"], "max_new_tokens": ["7"]})
    assert found.axes == {"temperature": (0.5, 1.0, 2.0)}


def test_a_digest_depends_on_the_settings_and_not_on_how_they_were_given():
    one, two = grid.of([{"top_k": 5, "temperature": 1}, {"top_k": 7}]).arms
    other, _ = grid.of([{"temperature": 1.0, "top_k": 5, "top_p": 1}, {"top_k": 7}]).arms
    assert one.digest == other.digest != two.digest
    assert one.digest == grid.digest({"likelihood": True, "top_k": 5})
    assert len(one.digest) == 12


def test_an_arm_is_found_by_its_name_or_digest():
    found = grid.arms({"temperature": "0.5,1", "top_k": "0,50"})
    assert grid.find(found, "temperature=1,top_k=0") is found.arms[2]
    assert grid.find(found, found.arms[3].digest[:6]) is found.arms[3]
    with refused(r"no arm is called 'temperature=2' \(did you mean .*; the first is 'temp"):
        grid.find(found, "temperature=2")


def test_values_are_shown_as_a_person_would_write_them():
    shown = [grid.shown(value) for value in (0.5, 1.0, 50, "a\n b", (5, 7), True, None, "x" * 99)]
    assert shown == ["0.5", "1", "50", "a b", "[5, 7]", "true", "null", "x" * 23 + "…"]


@pytest.mark.parametrize(
    "given, message",
    [
        (
            {"top_k": "5"},
            r"the sweep has 1 arms, and needs 2; give a setting several values, such as",
        ),
        ({"top_k": "5,,7"}, r"--top_k has an empty value; write values with commas"),
        ({"top_k": "5,5"}, r"arms 1 and 2 have the same settings; remove one"),
        ({"temperature": "1,1.0"}, r"arms 1 and 2 have the same settings"),
        ({"top_k": "5,many"}, r"arm 2 \(top_k=many\): top_k is 'many'; it must be a whole number"),
        (
            {"min_new_tokens": "3,9", "max_new_tokens": "5"},
            r"arm 2 \(min_new_tokens=9, max_new_tokens=5\): min_new_tokens is 9, above max_new",
        ),
    ],
)
def test_what_is_no_sweep_is_refused_before_anything_runs(given, message):
    with refused(message) as error:
        grid.arms(given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "rows, message",
    [
        ([{"top_k": 5}, {"temprature": 1}], r"arm 2 has no setting 'temprature' \(did you mean"),
        ([{"top_k": 5}, {"top_k": -1}], r"arm 2 \(top_k=-1\): top_k is -1; it must be at least 0"),
        ([{"top_k": 5}], r"the sweep has 1 arms"),
        ([], r"the sweep has 0 arms"),
        ({"top_k": 5}, r"--arms=.* must hold a list of settings objects"),
        ("[{", r"--arms=.* is not JSON \(.*\); correct it"),
    ],
)
def test_a_list_of_arms_that_is_none_is_refused(tmp_path, rows, message):
    with refused(message) as error:
        grid.arms({}, listed(tmp_path, rows))
    assert "\n" not in str(error.value)


def test_a_list_of_arms_is_no_axis_besides(tmp_path):
    path = listed(tmp_path, [{}, {"top_k": 5}])
    with refused(r"--temperature has 2 values beside --arms; put them into .*, or leave --arms"):
        grid.arms({"temperature": "1,2"}, path)
    with refused(r"--arms=none.json cannot be read \(No such file"):
        grid.arms({}, "none.json")


def test_every_setting_can_be_an_axis():
    """The default of each, written as JSON, is read back as the same setting."""
    for name, value in vars(Settings()).items():
        text = value if isinstance(value, str) else json.dumps(value)
        (read,) = grid.values(name, text)
        if value is not None:
            assert getattr(Settings(**{name: read}), name) == value, name
