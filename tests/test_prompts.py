"""Are JSON lines read into requests, and is what cannot be read named by line?"""

import pytest

from decode import prompts
from decode.requests import Request
from decode.settings import Settings
from model import errors


def read(*lines, **defaults):
    return prompts.parse(lines, "p.jsonl", defaults)


def test_a_line_is_a_request_and_its_settings_go_before_the_defaults():
    requests = read(
        '{"prompt": "Once", "id": "a", "settings": {"top_k": 5}}\n',
        "\n",
        '{"prompt": [2, 3]}',
        top_k=7,
        n=2,
    )
    assert requests == [
        Request("Once", Settings(top_k=5, n=2), "a"),
        Request((2, 3), Settings(top_k=7, n=2)),
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], r'p.jsonl has no prompts; give lines such as \{"prompt": "Once"\}'),
        (['{"prompt": "a"}', "{oops}"], "p.jsonl line 2 is not JSON"),
        (['["a"]'], """p.jsonl line 1 is '\\["a"\\]'; it must be an object with a "prompt\""""),
        (['{"text": "a"}'], 'it must be an object with a "prompt"'),
        (
            ['{"prompt": "a", "setings": {}}'],
            r"p.jsonl line 1 has no field 'setings' \(did you mean 'settings'\?\)",
        ),
        (
            ['{"prompt": "a", "settings": 3}'],
            "p.jsonl line 1 has settings 3; they must be an object",
        ),
        (
            ['{"prompt": "a", "settings": {"top_kk": 3}}'],
            r"p.jsonl line 1, settings has no key 'top_kk' \(did you mean 'top_k'\?\)",
        ),
        (
            ['{"prompt": "a", "settings": {"top_k": "x"}}'],
            "p.jsonl line 1, settings.top_k is 'x' .str.; it must be a whole number",
        ),
        (
            ['{"prompt": 7}'],
            "p.jsonl line 1: a request has prompt 7; it must be text or a list of token ids",
        ),
    ],
)
def test_what_cannot_be_read_is_named_by_line(lines, message):
    with pytest.raises(errors.BadInput, match=message):
        read(*lines)


def test_a_file_is_read_and_what_keeps_it_from_being_read_is_told(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "é"}\n', encoding="utf-8")
    assert prompts.read(str(path), {}) == [Request("é")]
    path.write_bytes(b'{"prompt": "\xe9"}\n')
    with pytest.raises(errors.BadInput, match="p.jsonl is not UTF-8 .byte 12: .*; convert it"):
        prompts.read(str(path), {})
    with pytest.raises(errors.BadInput, match="nope cannot be read .No such file or directory."):
        prompts.read(str(tmp_path / "nope"), {})


def test_settings_of_a_command_line_are_numbers():
    assert prompts.numbers({"top_k": "5", "temperature": "0.7", "top_p": "1e-2"}) == {
        "top_k": 5,
        "temperature": 0.7,
        "top_p": 0.01,
    }
    with pytest.raises(errors.BadInput, match="--top_k is 'five'; it must be a number"):
        prompts.numbers({"top_k": "five"})
