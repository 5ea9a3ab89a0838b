"""Does the tokenizer keep every character, always train to the same bytes, and say what is wrong?"""

import errno
import io
import os
import pathlib
import re
import subprocess
import sys

import hypothesis
import numpy as np
import pytest
import sentencepiece
from hypothesis import strategies

from model import errors, tokenizer, tokenizer_training, trained_tokenizer

PROSE = """Ganymede is the largest moon of Jupiter, and the only moon known to have a magnetic field.
It was discovered by Galileo Galilei in 1610; the name was proposed by Simon Marius soon after.
It takes seven days to go around the planet, and is in resonance with Europa and with Io.

"""
CODE = """def orbit(moon, planet):
    if moon in planet.moons:
        return planet.moons[moon].orbit
    for other in planet.moons:
        if other.name == moon.name:
            return other.orbit
    return None

"""
KINDS = ("bpe", "unigram")
SIZE = 347
TEXTS = [PROSE * 5, CODE * 11, "Où est Ganymède ? 木星の衛星です。\n"]
TRICKY = [
    "",
    " ",
    "  a   b ",
    "\n\n  \n\t\tx\r\n\r\n   y\r",
    "\0a\0",
    "\u2581",
    "a\u2581b \u2581\u2581 c\u2581",
    "<s></s><pad><unk><0x41><0xE2>",
    " \u2047 \u2585 \ufffd \ufeff \x85 \u2028",
    "naïve 木星 😀🏳️‍🌈 \U0010ffff",
]
unicode_text = strategies.text(strategies.characters(exclude_categories=["Cs"]), max_size=40)
tricky_text = strategies.lists(strategies.sampled_from([*TRICKY, "a", " ", "\n"]), max_size=9)

# No deadline: other tests run beside these.
unhurried = hypothesis.settings(deadline=None, derandomize=True)


@pytest.fixture(scope="module", params=KINDS)
def trained(request):
    return tokenizer.train(TEXTS, vocab_size=SIZE, kind=request.param)


@pytest.mark.parametrize("text", [*TRICKY, *TEXTS])
def test_tricky_text_survives_the_round_trip(trained, text):
    assert trained.decode(trained.encode(text)) == text


@unhurried
@hypothesis.given(text=unicode_text | tricky_text.map("".join))
def test_any_unicode_text_survives_the_round_trip_without_special_ids(trained, text):
    ids = trained.encode(text)
    assert trained.decode(ids) == text
    assert not {trained.pad_id, trained.unk_id, trained.bos_id, trained.eos_id} & set(ids)


@unhurried
@hypothesis.given(text=unicode_text)
def test_ids_are_those_of_sentencepiece_itself_where_no_u2581_occurs(trained, text):
    text = text.replace("\u2581", "")
    reference = sentencepiece.SentencePieceProcessor(model_proto=trained.model)
    assert trained.encode(text) == reference.encode(text)


def test_u2581_is_written_as_its_three_bytes(trained):
    reference = sentencepiece.SentencePieceProcessor(model_proto=trained.model)
    space = [reference.piece_to_id(piece) for piece in ("<0xE2>", "<0x96>", "<0x81>")]
    assert trained.encode("moon\u2581moon") == reference.encode("moon") + space + reference.encode(
        "moon"
    )


@unhurried
@hypothesis.given(texts=strategies.lists(tricky_text.map("".join), max_size=5))
def test_a_batch_has_the_ids_of_its_texts_alone(trained, texts):
    assert trained.encode_batch(texts) == [trained.encode(text) for text in texts]


@hypothesis.settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(
    lines=strategies.lists(
        strategies.sampled_from(["", " ", "if a", "  moon", "\r", "木星"]), max_size=30
    )
)
def test_long_text_is_cut_without_changing_its_ids(trained, lines, monkeypatch):
    text = "\n".join(lines)
    monkeypatch.setattr(trained_tokenizer, "_ENCODE_CHARACTERS", 10**9)
    whole = trained.encode(text)
    monkeypatch.setattr(trained_tokenizer, "_ENCODE_CHARACTERS", 3)
    assert trained.encode(text) == whole
    assert len(trained_tokenizer._parts("moon\nmoon\nmoon")) == 3


def test_special_ids_are_fixed(trained):
    assert (trained.pad_id, trained.unk_id, trained.bos_id, trained.eos_id) == (0, 1, 2, 3)
    assert trained.vocab_size == SIZE


def test_special_ids_vanish_in_text_and_unknown_becomes_the_replacement_character(trained):
    moon = trained.encode("moon")
    assert trained.decode([2, *moon, 3, 0, 1]) == "moon\ufffd"
    assert trained.decode(np.asarray(moon, np.int32)) == "moon"


@pytest.mark.parametrize("id", [-1, SIZE, 10**12])
def test_an_id_outside_the_vocabulary_is_refused(trained, id):
    with pytest.raises(
        errors.BadInput,
        match=rf"token id {id} is not in the vocabulary; ids run from 0 to {SIZE - 1}",
    ):
        trained.decode([5, id])


def test_a_lone_surrogate_is_refused(trained):
    with pytest.raises(errors.BadInput, match=r"lone surrogate U\+D800 at character 2"):
        trained.encode("ab\ud800")


@unhurried
@hypothesis.given(
    ids=strategies.lists(
        strategies.integers(0, SIZE - 1) | strategies.integers(4, 270), max_size=30
    )
)
def test_streamed_text_equals_decoded_text_for_any_ids(trained, ids):
    stream = trained.reader()
    assert "".join(map(stream.push, ids)) + stream.flush() == trained.decode(ids)


@unhurried
@hypothesis.given(text=unicode_text)
def test_a_stream_only_ever_shows_a_prefix_of_the_text(trained, text):
    stream, shown = trained.reader(), ""
    for id in trained.encode(text):
        shown += stream.push(id)
        assert text.startswith(shown)
    assert shown == text and stream.flush() == ""


def test_labels_are_printable_and_show_spaces_and_line_breaks(trained):
    labels = [trained.piece(id) for id in range(trained.vocab_size)]
    assert labels[:4] == ["<pad>", "<unk>", "<s>", "</s>"]
    assert all(label.isprintable() and label for label in labels)
    show = lambda text: "".join(trained.piece(id) for id in trained.encode(text))  # noqa: E731
    assert show("a b\n\tc\r<") == "a▁b⏎⇥c␍<"
    assert show("\x07é") in (r"\x07é", r"\x07<0xC3><0xA9>")


def test_training_twice_gives_the_same_bytes(trained):
    kind = "bpe" if trained == tokenizer.train(TEXTS, vocab_size=SIZE, kind="bpe") else "unigram"
    assert tokenizer.train(iter(TEXTS), vocab_size=SIZE, kind=kind).model == trained.model
    assert tokenizer.train(TEXTS[::-1], vocab_size=SIZE, kind=kind).model == trained.model


def test_the_trainer_runs_on_one_thread_because_pieces_depend_on_their_number(monkeypatch):
    asked = {}
    monkeypatch.setattr(
        sentencepiece.SentencePieceTrainer, "train", lambda **options: asked.update(options)
    )
    tokenizer.train(TEXTS, vocab_size=SIZE)
    assert asked["num_threads"] == 1


def test_another_process_with_another_hash_seed_trains_the_same_bytes():
    program = (
        "import sys; from model import tokenizer; texts = eval(sys.stdin.read());"
        f"print(*(tokenizer.train(texts, vocab_size={SIZE}, kind=kind).digest for kind in {KINDS}))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program],
        input=ascii(TEXTS),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
        cwd=pathlib.Path(__file__).parent.parent,
        check=True,
    )
    here = [tokenizer.train(TEXTS, vocab_size=SIZE, kind=kind).digest for kind in KINDS]
    assert printed.stdout.split() == here


def test_other_text_gives_another_digest(trained):
    assert tokenizer.train([*TEXTS, "Callisto"], vocab_size=SIZE).digest != trained.digest


def test_indentation_of_code_is_one_token_with_its_line_break(trained):
    assert trained.piece(trained.encode("x\n        return")[1]) == "⏎▁▁▁▁▁▁▁▁"


@pytest.mark.parametrize(
    "text",
    [
        "C " * 1000 + "Callisto " * 500,
        "Callisto\0" * 50,
        "Callisto\u2581" * 50,
        "Callisto \u2585 " * 50,
        "Callisto \u2047 " * 50,
    ],
    ids=["long line", "NUL", "U+2581", "U+2585", "U+2047"],
)
def test_no_text_is_silently_left_out_of_the_training(text):
    learnt = tokenizer.train([text], vocab_size=271)
    assert len(learnt.encode("Callisto")) < len("Callisto")


def test_training_reads_at_most_the_bytes_allowed_whatever_the_order():
    texts = [f"moon{number} " * 300 for number in range(41)]
    sample = tokenizer_training._sample(texts, max_bytes=20_000)
    assert 20_000 <= sum(map(len, sample)) < 20_000 + 3000
    assert tokenizer_training._sample(texts[::-1], max_bytes=20_000) == sample
    assert sorted(tokenizer_training._sample(texts, max_bytes=10**9)) == sorted(texts)


def test_blocks_of_a_long_document_join_to_the_document():
    for text in (CODE * 1009, "x" * 200_003, "\n" * 70_001, ""):
        blocks = list(tokenizer_training._blocks([text]))
        assert "".join(blocks) == text
        assert all(0 < len(block) <= 1 << 16 for block in blocks)


def test_training_prints_nothing(capfd):
    tokenizer.train(TEXTS, vocab_size=SIZE, kind="unigram")
    with pytest.raises(errors.BadInput):
        tokenizer.train(TEXTS, vocab_size=10)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("size", "words"),
    [
        (9973, "allows at most"),
        (2**40, "allows at most"),
        (13, "need at least"),
        (-7, "need at least"),
    ],
)
def test_an_impossible_vocabulary_size_is_refused_with_one_that_works(kind, size, words):
    with pytest.raises(
        errors.BadInput, match=rf"tokenizer vocab_size is {size}, .*{words} \d+; set vocab_size to"
    ) as caught:
        tokenizer.train(TEXTS, vocab_size=size, kind=kind)
    possible = int(re.search(rf"{words} (\d+)", str(caught.value))[1])
    assert tokenizer.train(TEXTS, vocab_size=possible, kind=kind).vocab_size == possible
    assert "\n" not in str(caught.value)


def test_pieces_for_indentation_give_way_to_a_small_vocabulary():
    flat = re.sub(r"\n +", "\n", CODE * 11)
    needed = []
    for text in (flat, CODE * 11):
        with pytest.raises(errors.BadInput, match="need at least") as caught:
            tokenizer.train([text], vocab_size=13)
        needed.append(re.search(r"at least (\d+)", str(caught.value))[1])
    assert needed[0] == needed[1]


@pytest.mark.parametrize("coverage", [0.0, 1.01, -1])
def test_an_impossible_character_coverage_is_refused(coverage):
    with pytest.raises(
        errors.BadInput, match=rf"tokenizer character_coverage is {coverage}; it must"
    ):
        tokenizer_training.train(TEXTS, vocab_size=SIZE, character_coverage=coverage)


@pytest.mark.parametrize("texts", [[], [""], ["\n\n", "\u2585"]])
def test_no_text_is_refused(texts):
    with pytest.raises(errors.BadInput, match="there is no text to train a tokenizer on"):
        tokenizer.train(texts, vocab_size=SIZE)


def test_an_unknown_kind_is_refused_with_the_nearest():
    with pytest.raises(
        errors.BadInput, match=r"tokenizer kind is 'unigrm' \(did you mean 'unigram'\?\)"
    ):
        tokenizer.train(TEXTS, vocab_size=SIZE, kind="unigrm")


def test_a_saved_tokenizer_loads_to_the_same_digest_and_ids(trained, tmp_path):
    trained.save(tmp_path / "tokenizer")
    loaded = tokenizer.load(tmp_path / "tokenizer")
    assert loaded == trained and loaded.digest == trained.digest
    assert loaded.encode(PROSE) == trained.encode(PROSE)
    assert [path.name for path in (tmp_path / "tokenizer").iterdir()] == ["tokenizer.model"]


def test_a_full_disk_keeps_the_old_file_and_leaves_no_other(trained, tmp_path, monkeypatch):
    (tmp_path / "tokenizer.model").write_bytes(b"old")

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        errors.BadInput, match=r"cannot write .*tokenizer\.model: No space left on device"
    ):
        trained.save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "tokenizer.model": b"old"
    }


def test_a_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(
        errors.BadInput,
        match=r"cannot read the tokenizer of .*: there is none; the directory must hold tokenizer\.json, vocab\.json "
        r"with merges\.txt, source\.spm with target\.spm and vocab\.json, vocab\.txt, or a SentencePiece model",
    ):
        tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    "damage", [lambda model: b"junk", lambda model: model[:1000], lambda model: b""]
)
def test_a_damaged_tokenizer_is_refused_without_a_word_on_the_terminal(
    trained, tmp_path, damage, capfd
):
    (tmp_path / "tokenizer.model").write_bytes(damage(trained.model))
    with pytest.raises(errors.BadInput, match=r"tokenizer\.model is not a SentencePiece model"):
        tokenizer.load(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_a_tokenizer_that_has_our_special_ids_and_loses_spaces_is_refused(tmp_path):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(PROSE.split("\n")),
        model_writer=model,
        vocab_size=307,
        byte_fallback=True,
        minloglevel=2,
        pad_id=0,
        unk_id=1,
        bos_id=2,
        eos_id=3,
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    with pytest.raises(errors.BadInput, match=r"tokenizer\.model changes spaces or line breaks"):
        tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert tokenizer.load(tmp_path).decode([2, 3]) == ""  # beside such a file it is somebody's own


def test_special_tokens_in_a_text_are_parsed_only_when_asked_for(trained):
    moon, orbit = trained.encode("moon"), trained.encode("orbit")
    assert trained.encode("moon</s>orbit<s>", special=True) == [*moon, 3, *orbit, 2]
    assert not {2, 3} & set(trained.encode("moon</s>orbit<s>"))


def test_a_prompt_stands_behind_the_begin_of_text_id(trained):
    assert tokenizer.prompt_ids(trained, "moon") == [2, *trained.encode("moon")]
    assert (trained.prefix_ids, trained.suffix_ids, trained.eos_ids) == ((2,), (), (3,))
    assert (trained.mask_id, trained.start_id) == (None, None)


def test_a_trained_tokenizer_has_no_chat_template(trained):
    with pytest.raises(
        errors.BadInput, match="this tokenizer was trained without the special tokens of a chat"
    ):
        trained.chat([{"role": "user", "content": "moon"}])
