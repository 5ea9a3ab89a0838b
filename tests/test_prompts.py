"""Are JSON lines read into requests, and is what cannot be read named by line?"""

import json

import pytest
import tiny
import tokenizer_homes

from decode import prompts
from decode.requests import Request
from decode.settings import Settings
from model import errors, tokenizer


def read(*lines, **defaults):
    return prompts.parse(lines, "p.jsonl", defaults)


@pytest.fixture(scope="module")
def chatty(tmp_path_factory):
    """A tokenizer whose chat template writes a token before what each message says."""
    home = tmp_path_factory.mktemp("chatty")
    tokenizer_homes.qwen2(home)
    (home / "chat_template.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}"
    )
    return tokenizer.load(home)


def test_a_tokenizer_without_a_chat_template_is_named_with_the_line():
    line = '{"messages": [{"role": "user", "content": "a"}]}'
    with pytest.raises(errors.BadInput, match="^p.jsonl line 1: this tokenizer was trained with"):
        prompts.parse([line], "p.jsonl", {}, tiny.words())


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
        (
            ['{"prompt": "a", "settings": {"top_p": 7}}'],
            "p.jsonl line 1: top_p is 7.0; it must be above 0 and at most 1",
        ),
        (
            ['{"prompt": "a", "id": 7}', '{"prompt": "b"}', '{"prompt": "c", "id": "7"}'],
            "p.jsonl line 3 has id '7', as line 1 has; give each request its own",
        ),
        (['{"prompt": "a", "messages": []}'], "line 1 has a prompt and messages; give one of them"),
        (
            ['{"messages": [{"role": "user"}]}'],
            r"""line 1 has messages \[.'role': 'user'.\]; they must be a list of objects with "role" and""",
        ),
        (['{"messages": []}'], "line 1 has messages ..; they must be a list of objects"),
        (
            ['{"messages": [{"role": "user", "content": "a"}]}'],
            "line 1 has messages, which need a tokenizer with a chat template; give token ids as",
        ),
        (
            ['{"prompt": "a", "reference": ["b", 3]}'],
            r"line 1 has reference \['b', 3\]; it must be a text or a list of texts",
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


def test_messages_become_the_ids_of_the_chat_template(chatty):
    messages = [{"role": "user", "content": "moon?"}]
    line = json.dumps({"messages": messages, "id": "m"})
    (request,) = prompts.parse([line], "p.jsonl", {"top_k": 3}, chatty)
    assert request.id == "m" and request.settings == Settings(top_k=3)
    assert request.prompt == tuple(chatty.encode("<|im_start|>moon?", special=True))
    assert request.prompt[0] == chatty.encode("<|im_start|>", special=True)[0]


def test_a_reference_is_kept_beside_the_request_and_changes_nothing_of_it():
    plain = '{"prompt": "a"}'
    one, several = '{"prompt": "a", "reference": "b"}', '{"prompt": "a", "reference": ["b", "c"]}'
    assert read(plain) == read(one) == read(several)
    found = prompts.lines([plain, one, several], "p.jsonl")
    assert [line.references for line in found] == [(), ("b",), ("b", "c")]


def test_settings_that_are_no_numbers_are_read_from_a_line():
    line = """{"prompt": "a", "settings": {"logit_bias": {"5": 2}, "stop": ["x"], "bad_words": ["y", [3, 4]],
        "sequence_bias": [[[1, 2], 0.5]], "dola_layers": [0, 1], "ignore_eos": true}}"""
    (request,) = read(line.replace("\n", " "))
    assert request.settings == Settings(
        logit_bias={5: 2.0},
        stop=("x",),
        bad_words=("y", (3, 4)),
        sequence_bias={(1, 2): 0.5},
        dola_layers=(0, 1),
        ignore_eos=True,
    )
