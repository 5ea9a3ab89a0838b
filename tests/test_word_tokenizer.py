"""Does a vocabulary of whole words count as word-level language models are measured, and refuse what is none?"""

import re

import hypothesis
import pytest
from hypothesis import strategies

from model import errors, tokenizer

LINES = ["the moon is near", "the moon is icy", "the ring", "ring"]
# By count, then by letters: 3 the, 2 is moon ring, 1 icy near.
ORDER = ["the", "is", "moon", "ring", "icy", "near"]
unhurried = hypothesis.settings(deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def words():
    return tokenizer.train(LINES, kind="word")


def test_words_are_ordered_by_count_then_letters_behind_the_special_tokens(words):
    assert [words.piece(id) for id in range(words.vocab_size)] == ["<pad>", "<unk>", "<s>", "</s>", *ORDER]  # fmt: skip
    assert words.encode("the near moon") == [4, 9, 6]


def test_a_size_or_a_least_count_leaves_out_the_rare_words():
    assert tokenizer.train(LINES, kind="word", vocab_size=4 + 3).encode("ring moon") == [1, 6]
    assert tokenizer.train(LINES, kind="word", min_count=2).encode("ring icy moon") == [7, 1, 6]


def test_a_file_names_the_vocabulary_in_its_order(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes("zebra\r\n<unk>\nmoon\nélan\n".encode())
    made = tokenizer.load(path)
    assert made.encode("moon <unk> élan zebra the") == [5, 1, 6, 4, 1]
    assert made.vocab_size == 7


@unhurried
@hypothesis.given(
    strategies.lists(
        strategies.lists(strategies.sampled_from([*ORDER, "zz", "<s>", "</s>", "<unk>"])),
        max_size=5,
    )
)
def test_each_line_counts_its_words_and_one_end_however_it_is_parted(words, lines):
    """The reference is a dictionary and a count; framing is done as the training data does it."""
    table = {word: 4 + rank for rank, word in enumerate(ORDER)}
    expected = [id for line in lines for id in (*(table.get(word, 1) for word in line), 3)]
    apart = words.encode_batch(" ".join(line) for line in lines)
    assert [id for ids in apart for id in (*ids, words.eos_id)] == expected
    whole = "".join(" ".join(line) + "\n" for line in lines)
    if lines:
        assert [*words.encode(whole), words.eos_id] == expected


def test_words_are_joined_by_single_spaces_and_unknown_ones_are_shown(words):
    assert words.decode(words.encode("  the\tmoon  is zz\n")) == "the moon is <unk>"
    assert words.decode([2, 4, 3, 0, 6, 1]) == "the moon <unk>"


@unhurried
@hypothesis.given(strategies.lists(strategies.integers(0, 9), max_size=9))
def test_a_stream_of_words_is_their_text(words, ids):
    stream = words.reader()
    assert "".join(map(stream.push, ids)) + stream.flush() == words.decode(ids)
    shown = [id for id in ids if id not in (0, 2, 3)]
    spelt = b"".join(words.raw(id, first=not at) for at, id in enumerate(shown))
    assert spelt.decode() == words.decode(ids)


def test_a_prompt_begins_with_the_begin_of_text_id(words):
    assert tokenizer.prompt_ids(words, "the moon") == [2, 4, 6]


def test_words_train_and_save_to_the_same_digest(words, tmp_path):
    assert tokenizer.train(LINES[::-1], kind="word").digest == words.digest
    words.save(tmp_path)
    assert tokenizer.load(tmp_path).digest == words.digest
    assert tokenizer.load(tmp_path).encode("icy zz") == [8, 1]


@pytest.mark.oracle
def test_transformers_reads_the_same_words(words, tmp_path):
    import transformers

    words.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ["the moon zz", "the moon\nis <unk> near\n"]:
        assert theirs(text, add_special_tokens=False).input_ids == words.encode(text)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (2, 3, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 4}, "vocab_size is 4, and there are 6 words and 4 special tokens; set"),
        ({"vocab_size": 11}, "is 11, and there are 6 words and 4 special tokens; set vocab_size from 5 to 10"),
        ({"min_count": 0}, "min_count is 0; it must be at least 1"),
        ({"min_count": 4}, "there is no word that occurs 4 times to train a tokenizer on; give more text"),
    ],
)  # fmt: skip
def test_an_impossible_vocabulary_is_refused(options, message):
    with pytest.raises(errors.BadInput, match=re.escape(message)):
        tokenizer.train(LINES, kind="word", **options)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"moon\nring\nmoon\n", r"vocab\.txt line 3 repeats 'moon' of line 1; leave it out"),
        (b"moon\nring 7\n", r"vocab\.txt line 2 is 'ring 7'; a vocabulary has one word a line"),
        (b"\n<unk>\n", r"vocab\.txt holds no word; give one a line"),
        (b"moon\xff", r"vocab\.txt is not UTF-8 text \(byte 4\); convert the file"),
    ],
)
def test_a_file_that_is_no_vocabulary_is_refused(tmp_path, content, message):
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(errors.BadInput, match=message):
        tokenizer.load(tmp_path / "vocab.txt")
