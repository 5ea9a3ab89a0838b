"""Which files make a tokenizer, what do they add to a vocabulary, and what is said when they are damaged?"""

import shutil

import pytest
import sentencepiece
import tokenizer_homes

from model import errors, tokenizer


@pytest.fixture(scope="module")
def homes():
    return tokenizer_homes.homes()


@pytest.fixture(scope="module")
def loaded():
    return tokenizer_homes.loaded()


@pytest.fixture
def home(homes, name, tmp_path):
    """A copy to damage."""
    return shutil.copytree(homes[name], tmp_path / name)


def test_sentinels_of_t5_stand_behind_the_pieces_and_the_first_is_the_last(loaded):
    words = loaded["t5"]
    assert words.vocab_size == 61 + 7
    assert [words.piece(id) for id in (61, 67)] == ["<extra_id_6>", "<extra_id_0>"]
    moon = words.encode("moon")
    assert words.encode("moon <extra_id_0> moon", special=True) == [*moon, 67, *moon]
    assert words.decode([*moon, 67, *moon]) == "moon moon"
    assert 67 not in words.encode("moon <extra_id_0> moon")


def test_tokens_that_the_files_add_are_found(homes, tmp_path):
    home = shutil.copytree(homes["llama"], tmp_path / "llama")
    size = tokenizer.load(home).vocab_size
    tokenizer_homes.write(
        home, added_tokens={"<ring>": size}, special_tokens_map={"pad_token": {"content": "[PAD]"}}
    )
    words = tokenizer.load(home)
    assert (words.vocab_size, words.pad_id) == (size + 2, size + 1)
    assert words.encode("moon<ring>")[-1] == size
    assert words.decode([*words.encode("moon"), size, size + 1]) == "moon<ring>"
    tokenizer_homes.write(home, tokenizer_config={"add_bos_token": True, "add_eos_token": True})
    assert tokenizer.load(home).suffix_ids == (2,)


def test_the_old_names_of_gpt2_files_are_read(homes, tmp_path):
    for new, old in {"vocab.json": "encoder.json", "merges.txt": "vocab.bpe"}.items():
        shutil.copy(homes["gpt2"] / new, tmp_path / old)
    assert tokenizer.load(tmp_path).encode("The moon") == tokenizer.load(homes["gpt2"]).encode(
        "The moon"
    )
    assert tokenizer.load(tmp_path).eos_id == 0


def test_a_bare_wordpiece_vocabulary_is_cased_if_it_holds_capitals(tmp_path):
    first = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (tmp_path / "vocab.txt").write_text("\n".join([*first, "moon"]) + "\n")
    assert tokenizer.load(tmp_path).encode("Moon moon") == [5, 5]
    (tmp_path / "vocab.txt").write_text("\n".join([*first, "moon", "Moon"]) + "\n")
    assert tokenizer.load(tmp_path).encode("Moon moon") == [6, 5]


def test_xlm_roberta_has_its_pieces_one_later_and_the_mask_last(homes, tmp_path):
    tokenizer_homes.pieces(tmp_path / "sentencepiece.bpe.model", size=113)
    inner = sentencepiece.SentencePieceProcessor(
        model_file=str(tmp_path / "sentencepiece.bpe.model")
    )
    words = tokenizer.load(tmp_path)
    assert words.encode("moon") == [id + 1 for id in inner.encode("moon")]
    assert (words.prefix_ids, words.suffix_ids, words.pad_id, words.unk_id) == ((0,), (2,), 1, 3)
    assert words.mask_id == inner.vocab_size() + 1
    tokenizer_homes.write(tmp_path, config={"model_type": "mbart"})
    with pytest.raises(
        errors.BadInput, match=r"alone does not give the ids of this model \(none mbart\); add"
    ):
        tokenizer.load(tmp_path)


DAMAGES = [
    (
        "gpt2",
        "merges.txt",
        None,
        r"holds vocab\.json without merges\.txt; add the file that belongs to it",
    ),
    ("gpt2", "vocab.json", b"{", r"vocab\.json is not valid JSON \(.*\); restore the file"),
    ("gpt2", "vocab.json", b"[]", r"vocab\.json holds list; it must hold a group of keys"),
    (
        "gpt2",
        "vocab.json",
        b"{}",
        r"vocab\.json is no vocabulary: it must give each piece its id; it is empty",
    ),
    ("gpt2", "vocab.json", b'{"a": "b"}', r"it must give each piece its id, and gives 'a' 'b'"),
    (
        "gpt2",
        "merges.txt",
        b"xy zz\n",
        r"merges\.txt does not belong to vocab\.json \(.*\); take both",
    ),
    ("gpt2", "merges.txt", b"\xff", r"merges\.txt is not UTF-8 text \(byte 0\); restore the file"),
    ("gpt2", "tokenizer_config.json", b"", r"tokenizer_config\.json is not valid JSON"),
    (
        "gpt2",
        "added_tokens.json",
        b'{"<ring>": 5000}',
        r"adds the token '<ring>' with id 5000, and its vocabulary gives it \d+; the files do not belong together",
    ),
    (
        "llama",
        "added_tokens.json",
        b'{"</s>": 5000}',
        r"adds the token '</s>' with id 5000, and its .* gives it 2;",
    ),
    (
        "llama",
        "added_tokens.json",
        b'{"<ring>": "x"}',
        r"the added tokens of .* are damaged \(.*\); restore",
    ),
    (
        "llama",
        "tokenizer.model",
        b"",
        r"tokenizer\.model is not a SentencePiece model; restore the file",
    ),
    (
        "bert",
        "vocab.txt",
        b"moon\nring\n",
        r"vocab\.txt has no \[UNK\]; it must be a WordPiece vocabulary, one piece",
    ),
    (
        "marian",
        "target.spm",
        None,
        r"lacks target\.spm; a Marian tokenizer is source\.spm, target\.spm and vocab\.json",
    ),
    ("marian", "vocab.json", b'{"</s>": 0}', r"vocab\.json has no <unk>; take the three files"),
    (
        "qwen2",
        "tokenizer.json",
        b'{"model": 3}',
        r"tokenizer\.json is not a tokenizer \(.*\); restore the file",
    ),
    (
        "t5",
        "tokenizer_config.json",
        b'{"extra_ids": "many"}',
        r"tokenizer_config\.json has extra_ids='many'; it must be a number of sentinels",
    ),
    (
        "bert",
        "tokenizer_config.json",
        b'{"mask_token": 103}',
        r"tokenizer_config\.json has mask_token=103; a token must be text",
    ),
    (
        "gpt2",
        "tokenizer_config.json",
        b'{"additional_special_tokens": ["<ring>", 7]}',
        r"tokenizer_config\.json has additional_special_tokens\[1\]=7; a token must be text",
    ),
    (
        "gpt2",
        "tokenizer_config.json",
        b'{"additional_special_tokens": 7}',
        r"tokenizer_config\.json: additional_special_tokens is 7 \(int\); it must be a list or a group of",
    ),
    (
        "llama",
        "tokenizer_config.json",
        b'{"add_bos_token": ["<s>"]}',
        r"tokenizer_config\.json: add_bos_token is \['<s>'\] \(list\); it must be true or false or nothing",
    ),
    (
        "bert",
        "tokenizer_config.json",
        b'{"do_lower_case": null}',
        r"tokenizer_config\.json: do_lower_case is None \(NoneType\); it must be true or false",
    ),
    (
        "t5",
        "config.json",
        b'{"model_type": "t5", "decoder_start_token_id": 999}',
        r"config\.json has decoder_start_token_id=999, and the tokenizer's ids run from 0 to 67; take both",
    ),
]


@pytest.mark.parametrize(("name", "file", "content", "message"), DAMAGES)
def test_what_is_damaged_is_said_in_one_line(home, file, content, message):
    (home / file).unlink(missing_ok=True)
    if content is not None:
        (home / file).write_bytes(content)
    with pytest.raises(errors.BadInput, match=message) as caught:
        tokenizer.load(home)
    assert "\n" not in str(caught.value)
