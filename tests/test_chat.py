"""Is a conversation written as the template of its directory says, and a template that fails told in one line?"""

import shutil

import pytest
import tokenizer_homes

from model import errors, tokenizer


@pytest.fixture(scope="module")
def homes():
    return tokenizer_homes.homes()


@pytest.fixture(scope="module")
def loaded():
    return tokenizer_homes.loaded()


def test_a_chat_is_written_as_the_template_says(loaded):
    words = loaded["qwen2"]
    assert words.chat(tokenizer_homes.USER) == tokenizer_homes.CHAT
    assert words.chat(
        tokenizer_homes.USER, add_generation_prompt=False
    ) == tokenizer_homes.CHAT.removesuffix("<|im_start|>assistant\n")
    ids = words.encode(tokenizer_homes.CHAT, special=True)
    assert ids.count(words.vocab_size - 2) == 2 and ids.count(words.eos_id) == 1
    assert loaded["llama"].chat(tokenizer_homes.USER) == "<s>[INST] Where is Ganymede? [/INST]"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ messages[0] | tojson }}", '{"role": "user", "content": "Where is Ganymede?"}'),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "1"),
        (
            "{% generation %}{{ eos_token }}{% endgeneration %}{{ tools is none }}",
            "<|endoftext|>True",
        ),
        ("{{ strftime_now('moon') }}", "moon"),
    ],
)
def test_templates_have_what_transformers_gives_them(homes, tmp_path, template, text):
    home = shutil.copytree(homes["gpt2"], tmp_path / "gpt2")
    (home / "chat_template.jinja").write_text(template)
    assert tokenizer.load(home).chat(tokenizer_homes.USER) == text


def test_named_templates_need_a_default_and_a_file_wins(homes, tmp_path):
    home = shutil.copytree(homes["gpt2"], tmp_path / "gpt2")
    named = [{"name": "default", "template": "moon"}, {"name": "tool_use", "template": "ring"}]
    tokenizer_homes.write(home, tokenizer_config={"chat_template": named})
    assert tokenizer.load(home).chat(tokenizer_homes.USER) == "moon"
    (home / "chat_template.jinja").write_text("field")
    assert tokenizer.load(home).chat(tokenizer_homes.USER) == "field"
    (home / "chat_template.jinja").unlink()
    tokenizer_homes.write(home, tokenizer_config={"chat_template": named[1:]})
    (home / "additional_chat_templates").mkdir()
    (home / "additional_chat_templates" / "rag.jinja").write_text("found")
    words = tokenizer.load(home)
    with pytest.raises(
        errors.BadInput, match=r"no chat template named default \(it has: tool_use, rag\); give"
    ):
        words.chat(tokenizer_homes.USER)
    words.save(tmp_path / "bundle")
    assert tokenizer.load(tmp_path / "bundle").digest == words.digest


def test_a_template_that_fails_is_one_line(homes, tmp_path):
    home = shutil.copytree(homes["gpt2"], tmp_path / "gpt2")
    for template, reason in {
        "{{ raise_exception('roles must\nalternate') }}": r"roles must alternate \(TemplateError\)",
        "{% for %}": r".*\(TemplateSyntaxError\)",
        "{{ messages[0].content + 1 }}": r".*\(TypeError\)",
        "{{ messages.__class__.__mro__ }}": r".*unsafe.*\(SecurityError\)",
    }.items():
        (home / "chat_template.jinja").write_text(template)
        with pytest.raises(
            errors.BadInput, match=rf"the chat template fails: {reason}; change"
        ) as caught:
            tokenizer.load(home).chat(tokenizer_homes.USER)
        assert "\n" not in str(caught.value)


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["qwen2", "llama"])
def test_transformers_writes_the_same_chat_with_the_same_ids(homes, loaded, name):
    import transformers

    reference = transformers.AutoTokenizer.from_pretrained(homes[name])
    words = loaded[name]
    text = reference.apply_chat_template(
        tokenizer_homes.USER, tokenize=False, add_generation_prompt=True
    )
    assert words.chat(tokenizer_homes.USER) == text
    ids = reference(text, add_special_tokens=False).input_ids
    assert words.encode(text, special=True) == ids
