"""Does a prompt read as its templates say, and is every token of the window accounted for?"""

import types

import pytest
import tiny

from model import errors
from model.config import ModelConfig
from train import prompting
from train.prompting import Prompt

LABELS = {"0": " bad", "1": " good"}
SENTIMENT = dict(question="Text: {{ text }}\nIs:", labels=LABELS)
RECORD = {"text": "a cat", "label": "1"}


def model(window, family="decoder_only", virtual=0):
    """All that laying a prompt asks of a model."""
    config = ModelConfig(vocab_size=307, context_length=window, layers=1, width=2, heads=1)
    config = types.SimpleNamespace(context_length=config.context_length, family=family)
    return types.SimpleNamespace(words=tiny.words(), config=config, virtual_tokens=virtual)


def size(text):
    return len(tiny.words().encode(text))


def test_a_prompt_is_instruction_shots_and_question():
    prompt = Prompt(**SENTIMENT, instruction="Judge.", separator="\n--\n")
    shots = [prompt.shot({"text": "a dog", "label": 0}), prompt.shot(RECORD)]
    laid = prompting.lay(prompt, shots, prompt.asked({"text": "Ganymede"}), model(997), where="q")
    assert laid.text == (
        "Judge.\n--\nText: a dog\nIs: bad\n--\nText: a cat\nIs: good\n--\nText: Ganymede\nIs:"
    )
    assert prompting.lay(prompt, [], "why", model(997), where="q").text == "Judge.\n--\nwhy"
    assert prompting.lay(Prompt(**SENTIMENT), [], "why", model(97), where="q").text == "why"


def test_free_answers_come_from_their_template():
    prompt = Prompt(question="{{ q }} =", answer=" {{ a }}", score="generation")
    assert prompt.shot({"q": "1 + 1", "a": 2}) == "1 + 1 = 2"
    assert prompt.reference({"q": "1 + 1", "a": 2}) == " 2"
    assert prompting.blank(prompt, {"q": "1 + 1", "a": 2}, "N/A") == "N/A ="


@pytest.mark.parametrize("virtual", [0, 5])
def test_the_tokens_of_the_parts_are_those_of_the_whole(virtual):
    prompt = Prompt(**SENTIMENT, instruction="Once upon a time")
    shots = [prompt.shot(RECORD)] * 3
    laid = prompting.lay(
        prompt, shots, prompt.asked(RECORD), model(499, virtual=virtual), where="q"
    )
    assert list(laid.tokens) == ["instruction", "shots", "question", "answer"]
    assert laid.tokens["instruction"] == virtual + 1 + size("Once upon a time\n\n")
    assert laid.tokens["answer"] == max(size(" bad"), size(" good"))
    whole = virtual + 1 + size(laid.text)
    assert sum(laid.tokens.values()) - laid.tokens["answer"] == whole


@pytest.mark.parametrize("spare, dropped", [(0, 0), (-1, 1)])
def test_shots_are_dropped_whole_from_the_far_end_and_only_when_they_must(spare, dropped):
    prompt = Prompt(**SENTIMENT, too_long="drop_shots")
    shots = [prompt.shot({"text": text, "label": 0}) for text in ("a cat", "a mat", "cake")]
    whole = prompting.lay(prompt, shots, "why", model(997), where="q")
    window = sum(whole.tokens.values()) + spare
    laid = prompting.lay(prompt, shots, "why", model(window), where="q")
    assert laid.shots == 3 - dropped
    assert laid.text == "\n\n".join([*shots[dropped:], "why"])
    assert sum(laid.tokens.values()) <= window


def test_an_encoder_decoder_has_its_answer_in_a_window_of_its_own():
    prompt = Prompt(question="{{ q }}", answer="{{ a }}", score="generation", max_new_tokens=31)
    question = "Ganymede"
    assert prompting.lay(prompt, [], question, model(31, "encoder_decoder"), where="q").shots == 0
    with pytest.raises(errors.BadInput, match="answer 31"):
        prompting.lay(prompt, [], question, model(31), where="q")


@pytest.mark.parametrize(
    "too_long, shots, message",
    [
        (
            "refuse",
            2,
            r"^question 7 takes {total} tokens with 2 shots \(instruction 1, shots {shots}, question {question}, "
            r"answer {answer}\), and the window holds 11; ask for fewer shots, or set config.prompt.too_long='drop_sh",
        ),
        (
            "drop_shots",
            2,
            r"^question 7 takes {rest} tokens with 0 shots \(instruction 1, shots 0, question {question}, answer "
            r"{answer}\), and the window holds 11; leave it out, or take a model with a longer window$",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_its_tokens(too_long, shots, message):
    prompt = Prompt(**SENTIMENT, too_long=too_long)
    shown = [prompt.shot(RECORD)] * shots
    asked = "once upon a time there was a cat, larger than Mercury"
    before = "".join(f"{text}\n\n" for text in shown)
    sizes = {"shots": size(before), "answer": max(map(size, LABELS.values()))}
    sizes["question"] = size(before + asked) - size(before) if too_long == "refuse" else size(asked)
    rest = 1 + sizes["question"] + sizes["answer"]
    filled = message.format(**sizes, rest=rest, total=rest + sizes["shots"])
    with pytest.raises(errors.BadInput, match=filled):
        prompting.lay(prompt, shown, asked, model(11), where="question 7")


def test_a_free_answer_is_what_the_pattern_finds():
    prompt = Prompt(
        question="q", answer="a", score="generation", pattern=r"#### (-?[0-9.,]+)", ignore=","
    )
    assert prompt.extracted("so\n#### 1,234\n#### 7") == "1234"
    assert prompt.extracted("#### -3.5") == "-3.5"
    assert prompt.extracted("the answer is 7") is None
    assert Prompt(question="q", answer="a", score="generation").extracted(" seven\n") == "seven"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"choose": "nearst"}, r"^config.prompt.choose is 'nearst' \(did you mean 'nearest'\?\); known: first, random"),
        ({"length": "bytes"}, r"^config.prompt.length is 'bytes' \(did you mean 'byte'\?\); known: sum, token, char"),
        ({"ngram": 0}, r"^config.prompt.ngram is 0; it must be at least 1$"),
        ({"labels": {}}, r"^config.prompt has answer='' and 0 labels; give labels to choose from, or the template of"),
        ({"labels": {"0": " a", "1": " a"}}, r"^config.prompt.labels is {'0': ' a', '1': ' a'}; give at least two, ea"),
        (
            {"labels": {}, "answer": "x"},
            r"^config.prompt.score is 'likelihood', which chooses among labels, and there are none; add config.prompt",
        ),
        (
            {"calibration": "content_free", "content_free": ()},
            r"^config.prompt.content_free is empty, and calibration needs one; leave it at \('N/A',\)$",
        ),
        ({"pattern": "(x)"}, r"^config.prompt.pattern is '\(x\)', which is for free answers, and there are labels; le"),
        (
            {"labels": {}, "answer": "x", "score": "generation", "pattern": "x("},
            r"^config.prompt.pattern is 'x\(', which is no regular expression \(missing \), unterminated subpattern at",
        ),
        (
            {"labels": {}, "answer": "x", "score": "generation", "pattern": "x"},
            r"^config.prompt.pattern is 'x', which has no group; put the answer in brackets$",
        ),
    ],
)  # fmt: skip
def test_a_config_that_cannot_be_meant_is_refused(changes, message):
    with pytest.raises(errors.BadInput, match=message):
        Prompt(**{**SENTIMENT, **changes})


@pytest.mark.parametrize(
    "record, message",
    [
        ({"text": "a"}, r"^config.prompt.label is 'label', and a record has: text$"),
        ({"label": 3}, r"^label '3' is not one of config.prompt.labels: 0, 1; add it, or correct the record$"),
    ],
)  # fmt: skip
def test_a_record_without_a_known_label_is_refused(record, message):
    with pytest.raises(errors.BadInput, match=message):
        Prompt(**SENTIMENT).reference(record)


def test_a_template_with_an_unknown_field_is_refused():
    with pytest.raises(
        errors.BadInput,
        match=r"^template 'Text: {{ text }}.*: 'text' is undefined; a record has: x; correct one of them$",
    ):
        Prompt(**SENTIMENT).asked({"x": 1})
