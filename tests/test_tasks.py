"""Does a record become the ids that its task means, framed as decoding frames a prompt?"""

import re

import pytest

import model
from model import errors, tokenizer
from model.config import ModelConfig
from train import prepare, recipe, tasks

TEXT = "the small moon goes around the large planet , and the dog looks at the moon .\n" * 7
PAIR = {"fr": "la lune", "en": "the moon"}
MESSAGES = [
    {"role": "system", "content": "the dog"},
    {"role": "user", "content": "the moon"},
    {"role": "assistant", "content": "goes"},
    {"role": "user", "content": "large"},
    {"role": "assistant", "content": "small"},
]


@pytest.fixture(scope="module")
def words():
    special = tuple(name for task in tasks.SPECIAL.values() for name in task)
    return tokenizer.train(
        [TEXT], kind="bpe", vocab_size=449, special=tuple(dict.fromkeys(special))
    )


def encoded(task, record, words):
    (example,) = task.encode([record], words)
    return example


def test_a_document_stands_between_its_begin_and_its_end(words):
    assert encoded(tasks.Task(), "the moon", words) == {
        "text": [words.bos_id, *words.encode("the moon"), words.eos_id]
    }


def test_a_source_is_framed_as_a_prompt_and_a_target_ends(words):
    task = tasks.Task("seq2seq", source="Say: {{ fr }}", target="{{ en }}")
    example = encoded(task, PAIR, words)
    assert example["source"] == tokenizer.prompt_ids(words, "Say: la lune")
    assert example["target"] == [*words.encode("the moon"), words.eos_id]
    assert example["source"] == tokenizer.prompt_ids(words, task.framed(PAIR, words))


def test_a_label_is_its_place_among_the_labels(words):
    task = tasks.Task("classify", labels=("no", "yes"))
    example = encoded(task, {"text": "the moon", "label": "yes"}, words)
    assert example["labels"] == [1] and example["text"][0] == words.bos_id


def test_the_first_piece_of_a_token_has_its_tag_and_all_else_has_none(words):
    task = tasks.Task("tag", source="tokens", labels=("O", "B-x"))
    record = {"tokens": ["the", "Zebra", "moon"], "tags": ["O", "B-x", "O"]}
    example = encoded(task, record, words)
    pieces = words.encode_batch(["the", " Zebra", " moon"])
    assert len(pieces[1]) > 1
    assert example["text"] == [words.bos_id, *sum(pieces, []), words.eos_id]
    outside = [tasks.OUTSIDE]
    assert example["labels"] == [
        *outside,
        *[0, *outside * (len(pieces[0]) - 1)],
        *[1, *outside * (len(pieces[1]) - 1)],
        *[0, *outside * (len(pieces[2]) - 1)],
        *outside,
    ]
    assert words.decode(example["text"]) == "the Zebra moon"


def test_only_what_the_assistant_says_is_learnt_and_its_end_is_said(words):
    example = encoded(tasks.Task("chat"), {"messages": MESSAGES}, words)
    assert example["text"] == words.encode(
        words.chat(MESSAGES, add_generation_prompt=False), special=True
    )
    said = [id for id, said in zip(example["text"], example["said"], strict=True) if said]
    end = words.encode("<|end|>", special=True)
    assert said == [*words.encode("goes"), *end, *words.encode("small"), *end]


def test_a_prompt_of_a_chat_asks_for_an_answer(words):
    framed = tasks.Task("chat").framed("the moon", words)
    asked = words.chat([{"role": "user", "content": "the moon"}], add_generation_prompt=True)
    assert framed == words.encode(asked, special=True)


def test_what_a_task_hides_is_special_in_its_prompts_too(words):
    hidden = words.encode("<extra_id_0>", special=True)
    expected = [words.bos_id, *words.encode("the"), *hidden, *words.encode(" moon")]
    for prompt in ("the <extra_id_0> moon", {"text": "the <extra_id_0> moon"}):
        assert tasks.Task("spans").framed(prompt, words) == expected
    assert words.mask_id in tasks.Task("denoising").framed("the <mask> moon", words)
    assert tasks.Task("masked").framed("the <mask>", words) == "the <mask>", "for decoding to read"


def test_a_prompt_to_tag_is_a_text_or_the_words_of_a_record(words):
    task = tasks.Task("tag", source="{{ tokens }}", labels=("O",))
    assert task.framed({"tokens": ["the", "moon"]}, words) == "the moon"
    assert task.framed("the moon", words) == "the moon"


def test_a_prompt_that_an_encoder_could_not_answer_is_refused_before_training(words):
    config = ModelConfig(words.vocab_size, 13, 1, 4, 2, family="encoder_only", position="learned")
    asked = recipe.from_config(
        {
            "model": {"family": "encoder_only", "layers": 1, "width": 4, "heads": 2, "context_length": 13},
            "task": {"kind": "masked"},
            "tokenizer": {"path": "elsewhere"},
            "data": {"train": "elsewhere", "length": 13},
            "train": {"steps": 1, "batch_size": 1},
            "decode": {"prompts": ("the <mask> moon", "the moon")},
        }
    )  # fmt: skip
    with pytest.raises(
        errors.BadInput, match="'config.decode.prompts: the moon' has no <mask>, and"
    ):
        prepare._check_prompts(asked, words, config)


def test_a_text_fills_the_one_field_of_a_template(words):
    task = tasks.Task("seq2seq", source="Say: {{ fr }}", target="{{ en }}")
    assert task.framed("la lune", words) == task.framed({"fr": "la lune"}, words) == "Say: la lune"
    spare = "{% if b %}{{ b }}: {% endif %}{{ a }}"
    assert tasks.Task("seq2seq", source=spare).framed("x", words) == "x"
    two = tasks.Task("seq2seq", source="{{ a }}{{ b }}", target="{{ c }}")
    with pytest.raises(errors.BadInput, match="has the fields a, b, and a mere text fills one"):
        two.framed("x", words)
    assert two.framed({"a": "x", "b": ""}, words) == "x"


@pytest.mark.parametrize(
    ("task", "record", "sizes"),
    [
        (tasks.Task(), "été dit", (9, 2)),
        (tasks.Task("seq2seq", source="{{ fr }}", target="{{ en }}"), PAIR, (8, 2)),
        (tasks.Task("chat"), {"messages": MESSAGES}, (10, 2)),
        (tasks.Task("masked"), "été dit", (0, 0)),
        (tasks.Task("classify", labels=("a",)), {"text": "x", "label": "a"}, (0, 0)),
    ],
)
def test_bytes_and_words_are_those_that_are_predicted(task, record, sizes):
    assert task.measure(record) == sizes


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda w: tasks.Task("clasify"), "config.task.kind is 'clasify' (did you mean 'classify'?)"),
        (lambda w: tasks.Task("classify"), "config.task has kind='classify' and 0 labels; classify and"),
        (lambda w: tasks.Task("causal", labels=("a",)), "config.task has kind='causal' and 1 labels"),
        (lambda w: tasks.Task("tag", labels=("a", "a")), "config.task.labels has one twice: a, a"),
        (lambda w: tasks.Task("masked", rate=1.0), "config.task.rate is 1.0; it must be at least 0"),
        (lambda w: tasks.Task(too_long="cut"), "config.task.too_long is 'cut'; known: refuse, drop"),
        (lambda w: tasks.Task(next_sentence=True), "next_sentence is true, which goes with kind='masked'"),
        (
            lambda w: encoded(tasks.Task("seq2seq", source="{{ de }}"), PAIR, w),
            "template '{{ de }}': 'de' is undefined; a record has: fr, en",
        ),
        (
            lambda w: encoded(tasks.Task("seq2seq", source="{{ fr"), PAIR, w),
            "template '{{ fr' cannot be read: ",
        ),
        (
            lambda w: encoded(tasks.Task("classify", labels=("no", "yes")), {"text": "x", "label": "yess"}, w),
            "label 'yess' is not one of config.task.labels (did you mean 'yes'?): no, yes; add it, or",
        ),
        (
            lambda w: encoded(tasks.Task("classify", labels=("no",)), {"text": "x", "lable": "no"}, w),
            "a record has no field 'label' (did you mean 'lable'?); it has: text, lable",
        ),
        (
            lambda w: encoded(tasks.Task("tag", source="tokens", labels=("O",)), {"tokens": ["a"], "tags": []}, w),
            "a record has 1 tokens and 0 tags; each token needs one",
        ),
        (
            lambda w: encoded(tasks.Task("chat"), {"messages": MESSAGES[:2]}, w),
            "a conversation of 2 messages has none of the assistant's",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_in_one_line(make, message, words):
    with pytest.raises(errors.BadInput, match=re.escape(message)) as caught:
        make(words)
    assert "\n" not in str(caught.value)


def test_a_task_is_learnt_by_models_that_can():
    sizes = dict(vocab_size=7, context_length=7, layers=1, width=6, heads=1, position="learned")
    decoder = model.ModelConfig(**sizes)
    encoder = model.ModelConfig(family="encoder_only", **sizes)
    tasks.Task().check_model(decoder)
    tasks.Task("masked").check_model(encoder)
    with pytest.raises(
        errors.BadInput,
        match="family is 'decoder_only', and config.task.kind='masked' is learnt by",
    ):
        tasks.Task("masked").check_model(decoder)
    with pytest.raises(
        errors.BadInput,
        match="head is 'lm' with 0 labels, and config.task.kind='tag' needs 'token'",
    ):
        tasks.Task("tag", labels=("O",)).check_model(encoder)
    with pytest.raises(errors.BadInput, match="config.model.token_types is 0; set it to 2"):
        tasks.Task("masked", next_sentence=True).check_model(encoder)
