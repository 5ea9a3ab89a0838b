"""Do the pictures of an embedding space show their numbers so that they can be read, and what is drawn by default?"""

import dataclasses
import io
import json

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.colors import to_rgba
from rich.console import Console

import model
from model import errors
from model.config import ModelConfig
from tests import legible
from train import figures, report, scatter, terminal

SPACE = "\u2581"


class Words:
    """41 words behind a blank, and 12 pieces within words; more than one piece spells `wordword`."""

    vocab_size, unk_id, suffix_ids, prefix_ids = 53, None, (), ()

    def raw(self, token: int) -> bytes:
        letters = bytes([97 + token % 26]) * (2 + token // 7)
        return b" " + letters if token < 41 else letters

    def piece(self, token: int) -> str:
        return self.raw(token).decode().replace(" ", SPACE)

    def encode(self, text: str) -> list[int]:
        known = {self.raw(token).decode(): token for token in range(53)}
        return [known[text]] if text in known else [3, 5]


@pytest.fixture(scope="module")
def lm() -> model.LM:
    """A table of 53 rows in two clusters; no other weights are looked at."""
    rows_VD = np.random.default_rng(5).normal(size=(53, 7)) + 2 * (np.arange(53) % 2)[:, None]
    config = ModelConfig(vocab_size=53, context_length=31, layers=1, width=7, heads=1, head_size=4)
    params = {"embedding": {"weight": jnp.asarray(rows_VD, jnp.float32)}}
    return model.LM(config, params, Words(), None)  # type: ignore[arg-type]


def drawn(lm, tmp_path, words=None, counts_V=None):
    pictures, numbers = scatter.embedding_space(lm, tmp_path, words, counts_V)
    terminal.neighbours_table(numbers)
    return {p.stem: json.loads(p.with_suffix(".json").read_text("utf-8")) for p in pictures}


def test_by_default_the_words_of_the_vocabulary_are_mapped(lm, tmp_path, capsys):
    numbers = drawn(lm, tmp_path)
    assert list(numbers) == ["neighbours", "embeddings_2d", "embeddings_3d"]
    words = [Words().piece(token) for token in range(41)]
    for dimensions in (2, 3):
        found = numbers[f"embeddings_{dimensions}d"]
        assert found["pieces"] == words and found["order"] == "the first of the vocabulary"
        assert {len(point) for point in found["points"]} == {dimensions}
    assert len(numbers["neighbours"]["words"]) == scatter.ASKED
    said = capsys.readouterr().out
    for panel in numbers["neighbours"]["words"]:
        assert f"{panel['pieces'][0]} {panel['cosines'][0]:.2f}" in said


def test_counts_say_which_words_are_frequent_and_given_words_are_taken(lm, tmp_path):
    counts_V = np.zeros(53, int)
    counts_V[[7, 11, 13, 2, 45]] = 5, 9, 7, 1, 99
    found = drawn(lm, tmp_path, counts_V=counts_V)["embeddings_2d"]
    assert found["pieces"] == [Words().piece(token) for token in (11, 13, 7, 2)]
    assert found["order"] == "the most frequent"
    given = drawn(lm, tmp_path, ["aa", "bb", "wordword"])
    assert [panel["word"] for panel in given["neighbours"]["words"]] == ["aa", "bb", "wordword"]
    assert given["embeddings_2d"]["pieces"] == [f"{SPACE}aa", f"{SPACE}bb", "wordword"]
    assert "embeddings_3d" not in given, "three points have no three axes"


@pytest.mark.parametrize("kind", ["neighbours", "embeddings_2d", "embeddings_3d"])
def test_every_word_can_be_read(lm, tmp_path, kind):
    numbers = drawn(lm, tmp_path)[kind]
    legible.check(scatter.neighbours if kind == "neighbours" else scatter.projection, numbers)


def test_bars_are_as_long_as_the_cosines_and_dots_lie_where_the_points_are(lm, tmp_path):
    numbers = drawn(lm, tmp_path)
    for axes, panel in zip(
        scatter.neighbours(numbers["neighbours"]).axes, numbers["neighbours"]["words"], strict=True
    ):
        assert [bar.get_width() for bar in axes.patches] == [max(x, 0) for x in panel["cosines"]]
    (axes,) = scatter.projection(numbers["embeddings_2d"]).axes
    np.testing.assert_array_equal(
        axes.collections[0].get_offsets(), numbers["embeddings_2d"]["points"]
    )
    assert tuple(axes.collections[0].get_facecolor()[0]) == to_rgba(figures.BLUE)
    shown = {text.get_text() for text in axes.texts}
    names = [figures.label(piece.strip(SPACE)) for piece in numbers["embeddings_2d"]["pieces"]]
    assert names[0] in shown and len(shown) > 15, "the most frequent comes first"


def test_a_table_of_neighbours_has_a_row_per_word():
    file = io.StringIO()
    numbers = {"words": [{"word": "moon\x1b", "pieces": [" sun"], "cosines": [0.5]}]}
    terminal.neighbours_table(numbers, Console(file=file, width=70))
    assert r"moon\x1b" in file.getvalue() and "sun 0.50" in file.getvalue()


def test_prompts_for_a_model_that_predicts_no_next_token_are_refused(
    lm, tmp_path, monkeypatch, capsys
):
    config = dataclasses.replace(lm.config, family="encoder_only", position="learned")
    encoder = dataclasses.replace(lm, config=config)
    monkeypatch.setattr(model, "load", lambda directory: encoder)
    with pytest.raises(
        errors.BadInput,
        match="holds an encoder_only model, and prompts are for those .* or give another",
    ):
        report.run(tmp_path, ["moon"])
    assert report.run(tmp_path) == 0
    assert "embeddings_3d.png" in capsys.readouterr().out
