"""Are neighbours, analogies, rho and the axes of an embedding space what trying everything gives?"""

import itertools
import re

import numpy as np
import pytest
import scipy.stats

from model import errors
from train import embeddings

PIECES = (
    b"", b" king", b" queen", b" man", b" woman", b" the", b" moon", b"light", b"king", b"s", b" 7",
)  # fmt: skip


class Words:
    """A tokenizer of a few pieces, the longest first; what has none is token 0, which has no text."""

    vocab_size, unk_id = len(PIECES), 0

    def raw(self, token: int) -> bytes:
        return PIECES[token]

    def piece(self, token: int) -> str:
        return PIECES[token].decode().replace(" ", "▁") or "<unk>"

    def encode(self, text: str) -> list[int]:
        ids = []
        while text:
            fits = [i for i in range(1, len(PIECES)) if text.startswith(PIECES[i].decode())]
            best = max(fits, key=lambda i: len(PIECES[i]), default=0)
            ids.append(best)
            text = text[max(1, len(PIECES[best])) :]
        return ids


TABLE = np.random.default_rng(3).normal(size=(13, 5)) * np.arange(1, 14)[:, None]
ASKED = ("king", "queen", "man", "woman", "the", "moon", "moonlight", "kings", "zebra")


def space(several="mean", table=TABLE):
    return embeddings.space(table, Words(), ASKED, several)  # type: ignore[arg-type]


def cosine(a, b):
    return a @ b / np.sqrt(a @ a * (b @ b))


@pytest.mark.parametrize(
    "word, ids",
    [("king", [1]), ("moonlight", [6, 7]), ("light", [7]), ("zebra", [0] * 5), ("7", [10])],
)
def test_a_word_is_spelled_as_within_a_text_unless_that_is_longer(word, ids):
    """`light` begins no word here: behind a blank it takes one piece more."""
    spelled = embeddings.spelled(Words(), word)  # type: ignore[arg-type]
    assert [token for token in spelled if token] == [token for token in ids if token]


def test_a_word_of_several_pieces_is_their_mean_or_out():
    found = space()
    assert found.tokens == 11 and len(found.names) == 13
    moonlight = found.unit_VD[found.rows["moonlight"]]
    mean = TABLE[[6, 7]].mean(0)
    np.testing.assert_allclose(moonlight, mean / np.linalg.norm(mean), rtol=1e-12)
    assert found.names[found.rows["kings"]] == "kings" and "zebra" not in found.rows
    assert set(space("out").rows) == set(ASKED) - {"moonlight", "kings", "zebra"}
    assert len(space("out").names) == 11, "rows of a padded table beyond the vocabulary are none"
    with pytest.raises(
        errors.BadInput, match="^several is 'sum'; a word of several pieces is one of: mean, out$"
    ):
        space("sum")


def test_neighbours_are_all_rows_sorted_by_cosine_but_the_word_and_what_has_no_text():
    found = embeddings.neighbours(space("out"), ["queen", "moon"], count=4)
    for panel, token in zip(found["words"], (2, 6), strict=True):
        others = sorted(set(range(1, 11)) - {token}, key=lambda i: -cosine(TABLE[i], TABLE[token]))
        assert panel["pieces"] == [Words().piece(i) for i in others[:4]]
        np.testing.assert_allclose(
            panel["cosines"], [cosine(TABLE[i], TABLE[token]) for i in others[:4]], rtol=1e-4
        )
    everything = embeddings.neighbours(space("out"), ["moon"], count=99)["words"][0]
    assert len(everything["pieces"]) == 9


def test_an_analogy_is_the_row_nearest_to_b_minus_a_plus_c():
    found = space()
    unit = {word: found.unit_VD[row] for word, row in found.rows.items()}
    wanted = unit["king"] - unit["man"] + unit["woman"]
    rows = [i for i in range(1, 13) if i not in (found.rows[w] for w in ("king", "man", "woman"))]
    rows.sort(key=lambda i: -cosine(found.unit_VD[i], wanted))
    answer = embeddings.analogy(found, "man", "king", "woman", count=3)
    assert answer["pieces"] == [found.names[i] for i in rows[:3]]
    np.testing.assert_allclose(
        answer["cosines"], [cosine(found.unit_VD[i], wanted) for i in rows[:3]], rtol=1e-4
    )


def test_analogies_count_what_is_right_and_what_is_out_of_the_vocabulary(monkeypatch):
    """Built so that king - man + woman is queen; the vector of b - a + c is nearest to b itself or c otherwise."""
    table = TABLE.copy()
    table[1:5] = np.eye(5)[[0, 0, 1, 1]] + np.eye(5)[[2, 3, 2, 3]]
    monkeypatch.setattr(embeddings, "BLOCK", 2)
    royal = [("man", "king", "woman", "queen"), ("woman", "queen", "man", "king")]
    sections = {
        "royal": [*royal, ("man", "king", "woman", "zebra")],
        "odd": [("man", "king", "woman", "moon")],
        "unknown": [("zebra", "king", "woman", "moon")],
    }
    found = embeddings.analogies(space("out", table), sections)
    ends = {"low": 100, "high": 100}
    assert found["royal"] == {
        "questions": 2, "out_of_vocabulary": 1, "right": 2, "accuracy": 100, **ends,
    }  # fmt: skip
    ends = {"low": None, "high": None}
    assert found["odd"] == {
        "questions": 1, "out_of_vocabulary": 0, "right": 0, "accuracy": 0, **ends,
    }  # fmt: skip
    assert found["unknown"]["accuracy"] is None
    assert found["all"] == {
        "questions": 3, "out_of_vocabulary": 2, "right": 2, "accuracy": pytest.approx(200 / 3),
        "low": 0, "high": 100,
    }  # fmt: skip


def test_what_analogies_take_for_right_is_what_an_analogy_answers():
    """Of any three words, also where b - a + c is nearest to one of them."""
    found, words = space("out"), ("king", "queen", "man", "woman", "the", "moon")
    right, wrong = [], []
    for a, b, c in itertools.permutations(words, 3):
        best = embeddings.analogy(found, a, b, c)["pieces"][0]
        if best.startswith("▁") and best[1:] in words:
            right.append((a, b, c, best[1:]))
            wrong += [(a, b, c, word) for word in words if word != best[1:]]
    scores = embeddings.analogies(found, {"right": right, "wrong": wrong})
    assert scores["right"]["right"] == len(right) > 10 and scores["wrong"]["right"] == 0


def test_the_interval_of_analogies_is_that_of_drawing_questions_with_replacement():
    """Of 83 questions the share is normal to within the error of 10,000 draws and the steps of 1 in 83."""
    low, high = embeddings._share_interval(31, 83)
    error = np.sqrt(31 / 83 * 52 / 83 / 83)
    expected = 100 * (31 / 83 + scipy.stats.norm.ppf([0.025, 0.975]) * error)
    np.testing.assert_allclose([low, high], expected, atol=1.3)


def test_rho_of_a_sample_is_scipys_of_its_pairs_written_out():
    """With ties in both columns, and pairs that are drawn several times or not at all."""
    numbers = np.random.default_rng(19)
    x_N, y_N = numbers.integers(0, 7, 13) / 7, numbers.normal(size=13).round(1)
    weights_BN = np.stack([np.bincount(numbers.integers(0, 13, 13), minlength=13) for _ in "12345"])
    rho_B = embeddings._spearman(x_N, y_N, weights_BN.astype(float))
    for rho, weights_N in zip(rho_B, weights_BN, strict=True):
        drawn = np.repeat(x_N, weights_N), np.repeat(y_N, weights_N)
        assert rho == pytest.approx(scipy.stats.spearmanr(*drawn).statistic)
    assert np.isnan(embeddings._spearman(x_N, y_N, 13.0 * np.eye(13)[:1])).all()


def test_the_interval_of_rho_is_that_of_pairs_drawn_with_replacement():
    found = space("out")
    names = [(a, b) for a, b in itertools.combinations(found.rows, 2)]
    scores = np.random.default_rng(23).normal(size=len(names))
    pairs = [(*two, float(score)) for two, score in zip(names, scores, strict=True)]
    sure = embeddings.similarity(found, pairs)
    cosines = [found.unit_VD[found.rows[a]] @ found.unit_VD[found.rows[b]] for a, b in names]
    numbers, rhos = np.random.default_rng(29), []
    for _ in range(800):
        drawn = numbers.integers(0, len(names), len(names))
        rhos.append(scipy.stats.spearmanr(np.array(cosines)[drawn], scores[drawn]).statistic)
    # An end from 800 draws has a standard deviation of 0.03, four of which are allowed.
    np.testing.assert_allclose(
        [sure["low"], sure["high"]], np.quantile(rhos, [0.025, 0.975]), atol=0.12
    )


def test_similarity_is_spearmans_rho_over_the_pairs_it_knows():
    pairs = [
        ("king", "queen", 9.0), ("man", "woman", 8.5), ("the", "moon", 1.0), ("king", "moonlight", 1.0),
        ("moon", "moonlight", 7.0), ("zebra", "king", 2.0),
    ]  # fmt: skip
    found = embeddings.similarity(space(), pairs)
    rows = space()
    cosines = [rows.unit_VD[rows.rows[a]] @ rows.unit_VD[rows.rows[b]] for a, b, _ in pairs[:5]]
    # Rho is the correlation of ranks; those of equal scores are shared.
    ranks = scipy.stats.rankdata(cosines), [5, 4, 1.5, 1.5, 3]
    assert found["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert (found["pairs"], found["out_of_vocabulary"]) == (5, 1)
    assert embeddings.similarity(space("out"), pairs)["out_of_vocabulary"] == 3
    assert embeddings.similarity(space(), pairs[:1])["spearman"] is None


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_projection_is_on_the_leading_eigenvectors_of_the_covariance(dimensions):
    found = space()
    rows = list(range(1, 12))
    numbers = embeddings.projection(found, rows, dimensions)
    points = found.unit_VD[rows] - found.unit_VD[rows].mean(0)
    values, vectors = np.linalg.eigh(points.T @ points)
    order = np.argsort(-values)[:dimensions]
    ours, theirs = np.array(numbers["points"]), points @ vectors[:, order]
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-4)
    np.testing.assert_allclose(numbers["explained"], values[order] / values.sum(), rtol=1e-4)
    assert (ours[np.abs(ours).argmax(0), range(dimensions)] > 0).all()
    assert numbers["pieces"] == [found.names[row] for row in rows]


def test_fewer_words_than_axes_are_refused():
    with pytest.raises(
        errors.BadInput, match="^3 words have no 3 axes; give more words than dimensions$"
    ):
        embeddings.projection(space(), [1, 2, 3], 3)


def test_a_word_that_is_out_of_the_vocabulary_is_refused():
    with pytest.raises(
        errors.BadInput,
        match="^the word 'zebra' is out of the vocabulary; give one that the tokenizer",
    ):
        embeddings.neighbours(space(), ["zebra"])


def test_the_most_frequent_words_are_letters_behind_a_blank():
    words: list[int] = embeddings.frequent(Words(), 3)  # type: ignore[arg-type]
    assert words == [1, 2, 3]
    counts = np.array([99, 0, 2, 3, 5, 11, 13, 50, 60, 70])
    assert embeddings.frequent(Words(), 4, counts) == [6, 5, 4, 3]  # type: ignore[arg-type]


def test_a_vocabulary_without_words_has_its_characters_mapped(monkeypatch):
    monkeypatch.setattr(Words, "raw", lambda self, token: b"abcdefghi. "[token : token + 1])
    assert embeddings.frequent(Words(), 99) == list(range(11))  # type: ignore[arg-type]


def test_tokens_are_counted_over_the_training_texts_of_a_run(tmp_path, monkeypatch):
    assert embeddings.token_counts(tmp_path) is None
    for i, ids in enumerate([[1, 1, 5, 5, 5], [2, 1, 7, 7, 7]]):
        (tmp_path / f"data/x/train-{i}").mkdir(parents=True)
        np.save(
            tmp_path / f"data/x/train-{i}/{('text', 'target')[i]}.npy", np.array(ids, np.uint16)
        )
        np.save(tmp_path / f"data/x/train-{i}/text-offsets.npy", np.array([0, 9]))
    monkeypatch.setattr(embeddings, "COUNTED", 4)
    assert embeddings.token_counts(tmp_path).tolist() == [0, 3, 1, 0, 0, 2, 0, 2]


def test_files_of_pairs_and_of_questions_are_read(tmp_path):
    (tmp_path / "pairs").write_text("king\tqueen\t8.5\n\nmoon sun 3\n")
    assert embeddings.read_pairs(tmp_path / "pairs") == [
        ("king", "queen", 8.5),
        ("moon", "sun", 3.0),
    ]
    (tmp_path / "questions").write_text(": royal men\na b c d\n: two\ne f g h\ni j k l\n")
    assert embeddings.read_questions(tmp_path / "questions") == {
        "royal men": [("a", "b", "c", "d")],
        "two": [("e", "f", "g", "h"), ("i", "j", "k", "l")],
    }


@pytest.mark.parametrize(
    "read, text, complaint",
    [
        ("read_pairs", "a\tb\t1\na\tb", ", line 2, is 'a\\tb'; it must be two words and a number"),
        ("read_pairs", "a b nan", ", line 1, is 'a b nan'; it must be two words and a number"),
        ("read_pairs", "\n", " is empty; give a file with words"),
        ("read_questions", "a b c", ", line 1, is 'a b c'; it must be four words, or ': ' and a section's name"),
    ],
)  # fmt: skip
def test_lines_that_are_none_are_named(read, text, complaint, tmp_path):
    (tmp_path / "file").write_text(text)
    with pytest.raises(errors.BadInput, match=re.escape(f"{tmp_path / 'file'}{complaint}") + "$"):
        {"read_pairs": embeddings.read_pairs, "read_questions": embeddings.read_questions}[read](
            tmp_path / "file"
        )


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(
        errors.BadInput,
        match=r"^cannot read .*none \(No such file or directory\); give a text file$",
    ):
        embeddings.read_pairs(tmp_path / "none")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(
        errors.BadInput, match=r"^cannot read .*bytes \(it is not UTF-8\); give a text file$"
    ):
        embeddings.read_pairs(tmp_path / "bytes")
