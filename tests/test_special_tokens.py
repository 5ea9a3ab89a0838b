"""Do characters, special tokens and the turns of a chat survive in a tokenizer of our own?"""

import hypothesis
import pytest
from hypothesis import strategies

from model import chat, errors, tokenizer, tokenizer_training

TEXTS = ["Io is near.\n\tEuropa is icy,\r\n  and Ganymede large.\n", "Où est Ganymède ?\n"]
SPECIAL = ("<mask>", "<extra_id_0>", *chat.SPECIAL)
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where is\nIo?"},
    {"role": "assistant", "content": "near"},
    {"role": "user", "content": "Europa?"},
]
unhurried = hypothesis.settings(deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def characters():
    return tokenizer.train(TEXTS, kind="char", special=SPECIAL)


@pytest.fixture(scope="module")
def words():
    return tokenizer.train(["Where is Io ? near it is", "Be brief ."], kind="word", special=SPECIAL)


@pytest.fixture(params=["characters", "words"])
def trained(request):
    return request.getfixturevalue(request.param)


def test_every_character_of_the_text_is_one_id_and_the_vocabulary_is_these_alone(characters):
    alphabet = set("".join(TEXTS))
    assert characters.vocab_size == 4 + len(SPECIAL) + 256 + len(alphabet)
    ids = characters.encode("".join(TEXTS))
    assert len(ids) == len("".join(TEXTS)) and len(set(ids)) == len(alphabet)
    assert [characters.decode([id]) for id in ids] == list("".join(TEXTS))


@unhurried
@hypothesis.given(
    text=strategies.text(
        strategies.characters(exclude_categories=["Cs"]) | strategies.sampled_from("a \n\u2581\0"),
        max_size=30,
    )
)
def test_any_text_survives_characters_even_those_never_seen(characters, text):
    ids = characters.encode(text)
    assert characters.decode(ids) == text
    assert min(ids, default=99) >= 4 + len(SPECIAL)


def test_characters_train_to_the_same_bytes_in_any_order():
    made = [tokenizer.train(texts, kind="char") for texts in (TEXTS, TEXTS[::-1], iter(TEXTS))]
    assert len({each.digest for each in made}) == 1


def test_a_small_vocabulary_has_the_commonest_characters():
    made = tokenizer.train(["a" * 9 + "b" * 7 + "c" * 5], kind="char", vocab_size=4 + 256 + 1 + 2)
    assert [len(made.encode(letter)) for letter in "abc"] == [1, 1, 1]
    assert [made.encode(letter)[0] >= 261 for letter in "abc"] == [True, True, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "char", "vocab_size": 11}, r"vocab_size is 11, .*need at least 262; set vocab_size to 262"),
        ({"kind": "char", "vocab_size": 9973}, r"vocab_size is 9973, but this text allows at most \d\d\d; set"),
        ({"kind": "bpe"}, r"tokenizer vocab_size is None; kind 'bpe' needs one, such as 8192"),
        ({"kind": "bpe", "vocab_size": 300, "min_count": 2}, r"min_count is 2, and kind 'bpe' counts no words; leave"),
        ({"kind": "char", "special": ("a b",)}, r"special token 'a b' is empty or holds white space; give one without"),
        ({"kind": "char", "special": ("",)}, r"special token '' is empty"),
        ({"kind": "word", "special": ("<s>",)}, r"special token <s> is there already; leave it out"),
        ({"kind": "word", "special": ("<a>", "<a>")}, r"special token <a> is there already; leave it out"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_told(options, message):
    with pytest.raises(errors.BadInput, match=message):
        tokenizer.train(TEXTS, **options)


def test_special_tokens_stand_behind_the_first_four_and_are_read_only_when_asked_for(trained):
    assert [trained.piece(id) for id in range(4 + len(SPECIAL))] == [
        "<pad>", "<unk>", "<s>", "</s>", *SPECIAL,
    ]  # fmt: skip
    near = trained.encode("near")
    assert trained.encode("near<mask>near <extra_id_0></s>", special=True)[: len(near) + 1] == [*near, 4]  # fmt: skip
    assert {4, 5, 3} <= set(trained.encode("near <mask> <extra_id_0> </s>", special=True))
    assert not {3, *range(4, 4 + len(SPECIAL))} & set(trained.encode("near <mask> <|end|> </s>"))
    assert trained.decode([2, *near, 4, *range(5, 10), 3]) == "near"


def test_the_mask_and_the_end_of_a_turn_are_known_by_id(trained):
    assert trained.mask_id == 4
    assert trained.eos_ids == (3, 4 + SPECIAL.index("<|end|>"))
    assert (trained.pad_id, trained.unk_id, trained.bos_id, trained.eos_id) == (0, 1, 2, 3)
    plain = tokenizer.train(TEXTS, kind="char")
    assert (plain.mask_id, plain.eos_ids) == (None, (3,))


def test_a_chat_is_its_turns_between_special_tokens(trained):
    assert trained.chat(TALK[1:3], add_generation_prompt=False) == (
        "<s><|user|>Where is\nIo?<|end|><|assistant|>near<|end|>"
    )
    assert trained.chat(TALK[:2]) == (
        "<s><|system|>Be brief.<|end|><|user|>Where is\nIo?<|end|><|assistant|>"
    )


def test_the_ids_of_a_conversation_begin_with_those_of_its_first_turns(trained):
    whole = trained.encode(trained.chat(TALK, add_generation_prompt=False), special=True)
    for turns in range(1, len(TALK)):
        asks = TALK[turns]["role"] == "assistant"
        first = trained.encode(trained.chat(TALK[:turns], add_generation_prompt=asks), special=True)
        assert whole[: len(first)] == first
    assert whole[0] == trained.bos_id and whole[-1] == trained.eos_ids[-1]


def test_special_tokens_and_the_chat_survive_saving(trained, tmp_path):
    trained.save(tmp_path)
    loaded = tokenizer.load(tmp_path)
    assert (loaded, loaded.digest) == (trained, trained.digest)
    assert (loaded.mask_id, loaded.eos_ids) == (trained.mask_id, trained.eos_ids)
    assert loaded.chat(TALK) == trained.chat(TALK)
    text = trained.chat(TALK)
    assert loaded.encode(text, special=True) == trained.encode(text, special=True)


def test_a_role_that_was_not_trained_in_is_refused(trained):
    with pytest.raises(
        errors.BadInput,
        match="role tool is none of system, user, assistant .*; change the messages",
    ):
        trained.chat([{"role": "tool", "content": "7"}])


def test_a_tokenizer_without_turns_refuses_a_chat():
    made = tokenizer.train(TEXTS, kind="char", special=chat.SPECIAL[:3])
    with pytest.raises(errors.BadInput, match="trained without the special tokens of a chat"):  # fmt: skip
        made.chat(TALK)
    made = tokenizer.train(TEXTS, kind="word")
    with pytest.raises(errors.BadInput, match="has no chat template named default"):
        made.chat(TALK)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_special_tokens_change_no_piece_of_text(kind):
    texts = [" ".join(f"moon{number} rings{number * 7}" for number in range(40))]
    plain = tokenizer.train(texts, vocab_size=293, kind=kind)
    special = tokenizer.train(texts, vocab_size=295, kind=kind, special=("<mask>", "<a,b>"))
    assert special.encode("moon rings") == [id + 2 for id in plain.encode("moon rings")]
    assert special.encode("<a,b>", special=True) == [5] and special.piece(5) == "<a,b>"


def test_special_tokens_are_judged_before_any_text_is_read():
    with pytest.raises(errors.BadInput, match="special token"):
        tokenizer_training.train(iter(()), vocab_size=300, special=("<pad>",))
