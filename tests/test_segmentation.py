"""Does every kind of vocabulary give the ids and the text of its own library, all at once and one id at a time?"""

import json
import pathlib
import shutil

import hypothesis
import pytest
import sentencepiece
import tiny
import tokenizer_homes
import tokenizers
from hypothesis import strategies

from model import errors, segmentation, tokenizer

unicode_text = strategies.text(strategies.characters(exclude_categories=["Cs"]), max_size=30)
likely_text = strategies.lists(
    strategies.sampled_from(["moon", " ", "\n", "木", "😀", "é", "▁", "'s", ".", "a"]), max_size=9
).map("".join)
unhurried = hypothesis.settings(deadline=None, derandomize=True, max_examples=50)


@pytest.fixture(scope="module")
def homes():
    return tokenizer_homes.homes()


@pytest.fixture(scope="module")
def loaded():
    return tokenizer_homes.loaded()


def direct(name: str, home: pathlib.Path):
    """Text to ids without special ones, and back, by the library alone."""
    if name in ("gpt2", "bart"):
        made = tokenizers.ByteLevelBPETokenizer(str(home / "vocab.json"), str(home / "merges.txt"))
        return lambda text: made.encode(text).ids, made.decode
    if name == "bert":
        made = tokenizers.BertWordPieceTokenizer(str(home / "vocab.txt"), lowercase=True)
        return lambda text: made.encode(text, add_special_tokens=False).ids, made.decode
    if name in ("t5", "llama"):
        path = next(home.glob("*.model"))
        made = sentencepiece.SentencePieceProcessor(model_file=str(path))
        return made.encode, made.decode
    made = tokenizers.Tokenizer.from_file(str(home / "tokenizer.json"))
    made.no_truncation()
    made.encode_special_tokens = True
    return lambda text: made.encode(text, add_special_tokens=False).ids, made.decode


LIBRARIES = [name for name in tokenizer_homes.KINDS if name != "marian"]


@pytest.mark.parametrize("name", LIBRARIES)
@unhurried
@hypothesis.given(text=unicode_text | likely_text | strategies.sampled_from(tokenizer_homes.TEXTS))
def test_any_text_has_the_ids_of_the_library_alone(homes, loaded, name, text):
    encode, _ = direct(name, homes[name])
    assert loaded[name].encode(text) == encode(text)


@pytest.mark.parametrize("name", LIBRARIES)
@unhurried
@hypothesis.given(data=strategies.data())
def test_any_ids_have_the_text_of_the_library_alone(homes, loaded, name, data):
    words = loaded[name]
    _, decode = direct(name, homes[name])
    ids = data.draw(strategies.lists(strategies.integers(0, words.vocab_size - 1), max_size=23))
    plain = [id for id in ids if words.decode([id]) or id not in words._segmenter.special]
    top = 61 if name == "t5" else words.vocab_size  # SentencePiece knows nothing of the sentinels
    plain = [id for id in plain if id < top]
    assert words.decode(plain) == decode(plain)


@pytest.mark.parametrize("name", tokenizer_homes.KINDS)
@unhurried
@hypothesis.given(data=strategies.data())
def test_streamed_text_equals_decoded_text_for_any_ids(loaded, name, data):
    words = loaded[name]
    ids = data.draw(strategies.lists(strategies.integers(0, words.vocab_size + 5), max_size=29))
    assert tokenizer_homes.streamed(words, ids) == words.decode(ids)


@pytest.mark.parametrize("name", tokenizer_homes.KINDS)
@unhurried
@hypothesis.given(text=unicode_text | likely_text)
def test_a_stream_shows_no_character_in_halves(loaded, name, text):
    words, shown = loaded[name], ""
    ids = words.encode(text)
    whole, stream = words.decode(ids), words.reader()
    for id in ids:
        shown += stream.push(id)
        assert whole.startswith(shown)
    assert shown + stream.flush() == whole


@pytest.mark.parametrize("name", [*tokenizer_homes.KINDS, "ours"])
@unhurried
@hypothesis.given(text=unicode_text | likely_text)
def test_the_bytes_of_ids_joined_are_the_text_and_the_first_drops_what_decoding_drops(
    loaded, name, text
):
    words = {**loaded, "ours": tiny.words()}[name]
    ids = words.encode(text)
    while ids and not words.raw(ids[0], first=True):
        ids = ids[1:]
    raw = b"".join(words.raw(id, first=place == 0) for place, id in enumerate(ids))
    assert raw.decode("utf-8", "replace") == words.decode(ids)


@pytest.mark.parametrize("name", ["gpt2", "bart", "llama", "llama_json"])
@unhurried
@hypothesis.given(text=unicode_text | likely_text)
def test_byte_tokenizers_give_every_text_back(loaded, name, text):
    text = text.replace("▁", "") if name.startswith("llama") else text
    assert loaded[name].decode(loaded[name].encode(text)) == text


@pytest.mark.parametrize("name", tokenizer_homes.KINDS)
def test_a_batch_has_the_ids_of_its_texts_alone(loaded, name):
    assert loaded[name].encode_batch(tokenizer_homes.TEXTS) == [
        loaded[name].encode(text) for text in tokenizer_homes.TEXTS
    ]


def test_llama_repeats_the_space_behind_a_special_token_only_in_its_legacy_form(homes, tmp_path):
    home = shutil.copytree(homes["llama"], tmp_path / "llama")
    plain = sentencepiece.SentencePieceProcessor(model_file=str(home / "tokenizer.model"))
    legacy = plain.encode("moon")
    words = tokenizer.load(home)
    ids = words.encode("moon</s>moon", special=True)
    assert ids[: len(legacy) + 1] == [*legacy, 2]
    assert ids[len(legacy) + 1 :] == plain.encode("\nmoon")[2:] != legacy
    tokenizer_homes.write(home, tokenizer_config={"legacy": True})
    assert tokenizer.load(home).encode("moon</s>moon", special=True) == [*legacy, 2, *legacy]


def test_special_tokens_in_a_text_are_parsed_only_when_asked_for(loaded):
    for name, token in {
        "gpt2": "<|endoftext|>",
        "bart": "</s>",
        "qwen2": "<|im_end|>",
        "llama": "</s>",
    }.items():
        words = loaded[name]
        assert words.encode(token, special=True) == [words.eos_id], name
        assert words.eos_id not in words.encode(token), name
        assert words.decode(words.encode(token)) == token, name


def test_a_literal_mask_is_the_mask_for_wordpiece(loaded):
    moon = loaded["bert"].encode("moon")
    assert loaded["bert"].encode("moon [MASK]") == [*moon, loaded["bert"].mask_id]


def test_labels_are_printable(loaded):
    for words in loaded.values():
        labels = [words.piece(id) for id in range(words.vocab_size)]
        assert all(label and label.isprintable() for label in labels)
    assert "".join(map(loaded["gpt2"].piece, loaded["gpt2"].encode(" a\n"))) == "▁a⏎"
    assert loaded["gpt2"].piece(loaded["gpt2"].encode("星")[0]) == "<0xE6>"


def test_marian_encodes_with_the_source_and_decodes_what_the_target_wrote(homes, loaded):
    words = loaded["marian"]
    ids = json.loads((homes["marian"] / "vocab.json").read_text())
    for side, text in {"source.spm": "the moon", "target.spm": "THE MOON"}.items():
        inner = sentencepiece.SentencePieceProcessor(model_file=str(homes["marian"] / side))
        found = [ids[piece] for piece in inner.encode(text, out_type=str)]
        assert words.decode(found) == text
        assert (words.encode(text) == found) == (side == "source.spm")


def test_a_lone_surrogate_is_refused(loaded):
    for words in loaded.values():
        with pytest.raises(errors.BadInput, match=r"lone surrogate U\+D800 at character 2"):
            words.encode("ab\ud800")


def test_each_byte_that_is_no_text_is_one_replacement_character_as_in_sentencepiece(homes, loaded):
    inner = sentencepiece.SentencePieceProcessor(model_file=str(homes["llama"] / "tokenizer.model"))
    pieces = [
        "<0xE6>",
        "<0x9C>",
        "▁",
        "<0xFF>",
        "<0xE6>",
        "<0x9C>",
        "<0xA8>",
        "<0xF0>",
        "<0x9F>",
    ]
    ids = [inner.piece_to_id(piece) for piece in pieces]
    assert loaded["llama"].decode(ids) == inner.decode(ids) == "\ufffd\ufffd \ufffd木\ufffd\ufffd"


@pytest.mark.parametrize(
    ("decoder", "text"),
    [
        ({"type": "Sequence", "decoders": [{"type": "ByteLevel"}]}, "moon 星\ufffd木 a"),
        (None, "moon moon"),
    ],
)
def test_a_stream_keeps_to_decoders_that_look_at_their_neighbours(homes, tmp_path, decoder, text):
    layout = json.loads((homes["qwen2"] / "tokenizer.json").read_text())
    settings = {"add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    if decoder and decoder["type"] == "Sequence":
        decoder = {**decoder, "decoders": [{"type": "ByteLevel", **settings}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps({**layout, "decoder": decoder}))
    words = tokenizer.load(tmp_path)
    ids = words.encode(text)
    for cut in range(len(ids)):
        assert tokenizer_homes.streamed(words, ids[cut:]) == words.decode(ids[cut:])
    stream = words.reader()
    shown = [stream.push(id) for id in ids]
    assert "".join(shown).count("\ufffd") == words.decode(ids).count("\ufffd")


def test_the_longest_token_is_cut_out_of_a_text():
    found = segmentation.split_at("a<s><s>>b", {"<s": 1, "<s>": 2, "<s>>": 3})
    assert list(found) == [("a", 2), ("", 3), ("b", None)]


def test_a_stream_keeps_spaces_that_a_decoder_drops_only_at_the_start(homes, tmp_path):
    layout = json.loads((homes["llama_json"] / "tokenizer.json").read_text())
    layout["decoder"]["decoders"][-1]["start"] = 2
    (tmp_path / "tokenizer.json").write_text(json.dumps(layout))
    words = tokenizer.load(tmp_path)
    ids = words.encode("moon   moon")
    assert tokenizer_homes.streamed(words, ids) == words.decode(ids) == "moon   moon"
