"""Is what is asked of an embedding space read as it was meant, answered, printed and written down?"""

import dataclasses
import io
import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import model
from model import errors
from model.config import ModelConfig
from train import report, word_tests

WORDS = ("man", "king", "woman", "queen", "moon", "sun", "star")


class Words:
    """A tokenizer of whole words behind a blank; all else is token 7, which has no text."""

    vocab_size, unk_id = 8, 7

    def raw(self, token: int) -> bytes:
        return f" {WORDS[token]}".encode() if token < 7 else b""

    def piece(self, token: int) -> str:
        return self.raw(token).decode()

    def encode(self, text: str) -> list[int]:
        return [WORDS.index(word) if word in WORDS else 7 for word in text.split()]


@pytest.fixture(scope="module")
def lm() -> model.LM:
    """Royalty is one axis, sex two, and what is in the sky lies elsewhere."""
    sex, royal = np.eye(5)[[0, 0, 1, 1]], np.eye(5)[2] * [[0], [1], [0], [1]]
    sky = np.eye(5)[3] + np.eye(5)[4] * [[0.1], [0.2], [0.9]]
    rows_VD = np.concatenate([sex + royal, sky, np.ones((1, 5))])
    config = ModelConfig(vocab_size=8, context_length=13, layers=1, width=5, heads=1, head_size=4)
    params = {"embedding": {"weight": jnp.asarray(rows_VD, jnp.float32)}}
    return model.LM(config, params, Words(), None)  # type: ignore[arg-type]


@pytest.fixture
def files(tmp_path):
    """King and queen are nearest by people and by the table, moon and star follow; nobody knows a comet."""
    lines = ("King\tqueen\t9", "moon\tSTAR\t5", "man\tmoon\t1", "man\tcomet\t2")
    (tmp_path / "pairs.tsv").write_text("\n".join(lines))
    (tmp_path / "questions.txt").write_text(
        ": royal\nMan king woman queen\nwoman queen man sun\n: sky\nman king comet moon\n"
    )
    return str(tmp_path / "pairs.tsv"), str(tmp_path / "questions.txt")


def asked(files, lower_case):
    pairs, questions = files
    texts = ["man:king::woman"]
    return word_tests.read(["Moon", "moon"], texts, [pairs], [questions], "out", lower_case)


def test_flags_are_read_and_put_into_lower_case_when_asked(files):
    found = asked(files, lower_case=True)
    assert found.words == ("moon",) and found.analogies == (("man", "king", "woman"),)
    assert found.similarity[files[0]][:2] == [("king", "queen", 9.0), ("moon", "star", 5.0)]
    assert found.analogy_files[files[1]]["royal"][0] == ("man", "king", "woman", "queen")
    kept = asked(files, lower_case=False)
    assert kept.words == ("Moon", "moon") and kept.similarity[files[0]][0][0] == "King"
    spaced = word_tests.read(analogies=["New York : state :: Paris"])
    assert spaced.analogies == (("New York", "state", "Paris"),)


@pytest.mark.parametrize("text", ["man:king", "man:king:woman", "a::b::c", "a:b:c::d", ":b::c", ""])
def test_an_analogy_of_another_form_is_refused(text):
    with pytest.raises(
        errors.BadInput, match=f"^analogy {re.escape(repr(text))} is not of the form A:B::C; give "
    ):
        word_tests.read(analogies=[text])


def test_answers_count_out_what_is_not_in_the_vocabulary(lm, files):
    answers = word_tests.answer(lm, asked(files, lower_case=True))
    assert answers["analogies"][0]["pieces"][0] == " queen"
    rho = answers["similarity"][files[0]]
    assert (rho["pairs"], rho["out_of_vocabulary"], rho["spearman"]) == (3, 1, pytest.approx(0.5))
    sections = answers["analogy_files"][files[1]]
    assert sections["royal"]["accuracy"] == 50 and sections["sky"]["accuracy"] is None
    assert sections["all"]["out_of_vocabulary"] == 1
    cased = word_tests.answer(lm, asked(files, lower_case=False))
    assert cased["similarity"][files[0]]["out_of_vocabulary"] == 3
    assert cased["similarity"][files[0]]["spearman"] is None
    assert word_tests.answer(lm, word_tests.read(["moon"])) == {}


def test_answers_are_printed_with_their_intervals_and_dashes_where_there_are_none(
    lm, files, tmp_path
):
    answers = word_tests.answer(lm, asked(files, lower_case=True))
    file = io.StringIO()
    console = Console(file=file, width=80)
    word_tests.tell(answers, tmp_path, console)
    said = file.getvalue()
    for line in (
        r"man : king = woman : \? +cosine\n·queen +0.96",
        r"pairs.tsv +3 +1 +0.500 +-1.000 to 1.000",
        r"royal +2 +0 +50.0 +0.0 to 100.0",
        r"sky +0 +1 +– +–",
        r"all +2 +1 +50.0 +0.0 to 100.0",
    ):
        assert re.search(line, said), said
    assert "…" not in said


def test_inspect_writes_answers_beside_the_pictures_and_draws_nothing_of_an_unknown_word(
    lm, files, tmp_path, monkeypatch, capsys
):
    encoder = dataclasses.replace(lm.config, family="encoder_only", position="learned")
    monkeypatch.setattr(model, "load", lambda directory: dataclasses.replace(lm, config=encoder))
    for unknown in (word_tests.read(["comet"]), word_tests.read(analogies=["man:comet::moon"])):
        with pytest.raises(errors.BadInput, match="^the word 'comet' is out of the vocabulary; "):
            report.run(tmp_path / "none", asked=unknown)
        assert not (tmp_path / "none").exists()
    assert report.run(tmp_path, asked=asked(files, lower_case=True)) == 0
    written = json.loads((tmp_path / "figures" / "embedding.json").read_text())
    assert written["analogy_files"][files[1]]["all"]["right"] == 1
    panels = json.loads((tmp_path / "figures" / "neighbours.json").read_text())["words"]
    assert [panel["word"] for panel in panels] == ["moon"]
    assert "figures/embedding.json" in capsys.readouterr().out
