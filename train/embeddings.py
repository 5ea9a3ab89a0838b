"""Which words lie near each other in a model's embedding table, and does that agree with people?

Everything is by cosine: a `Space` holds the rows of the table, scaled to length 1, and those of further words.
A word is spelled as it stands within a text. One of several pieces is their mean, or out of the vocabulary.
"""

import dataclasses
import functools
import itertools
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats  # type: ignore[import-untyped]

from model import errors
from model.tokenizer import Tokenizer
from train import bootstrap

SEVERAL = ("mean", "out")  # what a word of several pieces is
NEAREST = 8  # neighbours that are shown of a word
FEW = 5  # words that are too few for a map
COUNTED = 10_000_000  # tokens that say which are frequent
BLOCK = 256  # questions that are compared with all rows at once
Question = tuple[str, str, str, str]


@dataclasses.dataclass(frozen=True)
class Space:
    """Directions with names.

    Attributes:
        names: of each row: the pieces of the vocabulary, then words of several pieces.
        unit_VD: the rows, of length 1.
        rows: the row of each word that was asked for and found.
        tokens: how many rows are the vocabulary's; row i < tokens is token i.
        hidden_V: rows that are nobody's neighbour: tokens without text.
    """

    names: tuple[str, ...]
    unit_VD: np.ndarray
    rows: Mapping[str, int]
    tokens: int
    hidden_V: np.ndarray


def space(
    table_VD: np.ndarray, words: Tokenizer, wanted: Iterable[str] = (), several: str = "mean"
) -> Space:
    """The space of an embedding table, in which the words `wanted` can be asked for.

    `several` says what a word of several pieces is: the "mean" of their rows, or "out" of the vocabulary. A word
    with a piece that the tokenizer does not know is always out.
    """
    if several not in SEVERAL:
        raise errors.BadInput(
            f"several is {several!r}; a word of several pieces is one of: {', '.join(SEVERAL)}"
        )
    count = min(len(table_VD), words.vocab_size)
    table_VD = np.asarray(table_VD[:count], np.float64)
    names = [words.piece(i) for i in range(count)]
    rows: dict[str, int] = {}
    means: list[np.ndarray] = []
    for word in dict.fromkeys(wanted):
        ids = spelled(words, word)
        if not ids or words.unk_id in ids or max(ids) >= count:
            continue
        if len(ids) == 1:
            rows[word] = ids[0]
        elif several == "mean":
            rows[word] = count + len(means)
            names.append(word)
            means.append(table_VD[ids].mean(0))
    every_VD = np.concatenate([table_VD, means]) if means else table_VD
    length_V = np.linalg.norm(every_VD, axis=1)
    hidden_V = np.array([not words.raw(i) for i in range(count)] + [False] * len(means))
    unit_VD = every_VD / np.where(length_V == 0, 1, length_V)[:, None]
    return Space(tuple(names), unit_VD, rows, count, hidden_V)


def spelled(words: Tokenizer, word: str) -> list[int]:
    """The pieces of a word within a text: behind a blank, or without one where that is shorter."""
    behind, alone = words.encode(" " + word), words.encode(word)
    return alone if len(alone) < len(behind) else behind


def neighbours(space: Space, asked: Sequence[str], count: int = NEAREST) -> dict[str, Any]:
    """The rows nearest to each word by cosine, itself left out: the numbers of figures.neighbours."""
    panels = []
    for word in asked:
        cosine_V = space.unit_VD @ space.unit_VD[_row(space, word)]
        cosine_V[_row(space, word)] = -np.inf
        panels.append({"word": word, **_nearest(space, cosine_V, count)})
    return {"figure": "neighbours", "words": panels}


def analogy(space: Space, a: str, b: str, c: str, count: int = NEAREST) -> dict[str, Any]:
    """What is to c as b is to a: the rows nearest to b - a + c, with a, b and c left out.

    Mikolov, Yih and Zweig 2013, "Linguistic Regularities in Continuous Space Word Representations".
    """
    first, second, third = (_row(space, word) for word in (a, b, c))
    unit_VD = space.unit_VD
    wanted_D = unit_VD[second] - unit_VD[first] + unit_VD[third]
    cosine_V = unit_VD @ (wanted_D / (np.linalg.norm(wanted_D) or 1))
    cosine_V[[first, second, third]] = -np.inf
    return {"a": a, "b": b, "c": c, **_nearest(space, cosine_V, count)}


def analogies(space: Space, sections: Mapping[str, Sequence[Question]]) -> dict[str, Any]:
    """The share of questions a : b = c : d whose d is nearest to b - a + c, in per cent, of all and by section.

    Questions with a word out of the vocabulary are counted out, and how many they are is said. `low` and `high` are
    the ends of the 95 % bootstrap interval; no value is None where there is no question.
    """
    found: dict[str, Any] = {}
    for name, questions in sections.items():
        known = [q for q in questions if all(word in space.rows for word in q)]
        rows_NQ = np.array([[space.rows[word] for word in q] for q in known], int).reshape(-1, 4)
        right = sum(
            int((_answers(space, rows_NQ[i : i + BLOCK]) == rows_NQ[i : i + BLOCK, 3]).sum())
            for i in range(0, len(known), BLOCK)
        )
        found[name] = {
            "questions": len(known),
            "out_of_vocabulary": len(questions) - len(known),
            "right": right,
        }
    total = {
        key: sum(each[key] for each in found.values())
        for key in ("questions", "out_of_vocabulary", "right")
    }
    found["all"] = total
    for each in found.values():
        count, right = each["questions"], each["right"]
        each["accuracy"] = 100 * right / count if count else None
        each["low"], each["high"] = _share_interval(right, count)
    return found


def similarity(space: Space, pairs: Sequence[tuple[str, str, float]]) -> dict[str, Any]:
    """Spearman's rho between cosines and people's scores, over the pairs whose words are both in the vocabulary.

    The others are counted out, and how many they are is said. `low` and `high` are the ends of the 95 % bootstrap
    interval over pairs. None where rho is not defined.
    """
    known = [(space.rows[a], space.rows[b], x) for a, b, x in pairs if {a, b} <= space.rows.keys()]
    cosines = [float(space.unit_VD[a] @ space.unit_VD[b]) for a, b, _ in known]
    scores = [score for *_, score in known]
    defined = len(set(cosines)) > 1 and len(set(scores)) > 1
    numbers: dict[str, Any] = {"spearman": None, "low": None, "high": None}
    if defined:
        rho = float(scipy.stats.spearmanr(cosines, scores).statistic)
        of = functools.partial(_spearman, np.array(cosines), np.array(scores))
        sure = bootstrap.resampled(of, rho, len(known), seed=0)
        numbers = {"spearman": rho, "low": sure.low, "high": sure.high}
    return {"pairs": len(known), "out_of_vocabulary": len(pairs) - len(known), **numbers}


def projection(space: Space, rows: Sequence[int], dimensions: int = 2) -> dict[str, Any]:
    """The directions of some rows on their first principal axes: the numbers of figures.projection.

    Each axis points to where its largest coordinate is, since the sign that comes out of the decomposition is none.
    """
    if len(rows) <= dimensions:
        raise errors.BadInput(
            f"{len(rows)} words have no {dimensions} axes; give more words than dimensions"
        )
    points_ND = space.unit_VD[list(rows)]
    centred_ND = points_ND - points_ND.mean(0)
    _, sizes, axes_KD = np.linalg.svd(centred_ND, full_matrices=False)
    points_NK = centred_ND @ axes_KD[:dimensions].T
    largest_K = np.abs(points_NK).argmax(0)
    points_NK = points_NK * np.where(points_NK[largest_K, np.arange(dimensions)] < 0, -1, 1)
    shares = (sizes**2 / max((sizes**2).sum(), 1e-300))[:dimensions]
    return {
        "figure": "projection",
        "pieces": [space.names[row] for row in rows],
        "explained": [_number(share) for share in shares],
        "points": [[_number(x) for x in point] for point in points_NK],
    }


def frequent(words: Tokenizer, count: int, counts_V: np.ndarray | None = None) -> list[int]:
    """The tokens that are words, at least two letters, most frequent first.

    Where the vocabulary tells the beginnings of words by a blank, only these are words; where it has next to none, as
    one of characters, every token with a text is taken. Without counts they come in the order of the vocabulary, in
    which BPE and unigram put what is frequent first.
    """
    texts = [words.raw(i).decode(errors="replace") for i in range(words.vocab_size)]
    every = [i for i, text in enumerate(texts) if text]
    letters = [i for i in every if len(texts[i].strip()) > 1 and texts[i].strip().isalpha()]
    begun = [i for i in letters if texts[i].startswith(" ")]
    found = next((tier for tier in (begun, letters) if len(tier) >= FEW), every)
    if counts_V is not None:
        counts = np.zeros(words.vocab_size, int)
        counts[: len(counts_V)] = counts_V[: words.vocab_size]
        found = sorted((i for i in found if counts[i]), key=lambda i: -counts[i])
    return found[:count]


def token_counts(directory: pathlib.Path) -> np.ndarray | None:
    """How often each token is in the beginning of a run's prepared training text; None where there is none."""
    total = None
    paths = [directory.glob(f"data/*/train-*/{name}.npy") for name in ("text", "source", "target")]
    for path in sorted(itertools.chain.from_iterable(paths)):
        counts_V = np.bincount(np.load(path, mmap_mode="r")[:COUNTED])
        size = max(len(counts_V), 0 if total is None else len(total))
        counts_V = np.pad(counts_V, (0, size - len(counts_V)))
        total = counts_V if total is None else counts_V + np.pad(total, (0, size - len(total)))
    return total


def read_pairs(path: pathlib.Path) -> list[tuple[str, str, float]]:
    """A similarity file: word, word and people's score in each line, between tabs or blanks."""
    pairs = []
    for number, line in _lines(path):
        parts = line.split()
        if len(parts) != 3 or not _finite(parts[2]):
            raise errors.BadInput(
                f"{path}, line {number}, is {line[:60]!r}; it must be two words and a number"
            )
        pairs.append((parts[0], parts[1], float(parts[2])))
    return pairs


def read_questions(path: pathlib.Path) -> dict[str, list[Question]]:
    """An analogy file: lines of four words, in sections that lines such as `: capitals` begin."""
    sections: dict[str, list[Question]] = {}
    name = "analogies"
    for number, line in _lines(path):
        parts = line.split()
        if parts[0].startswith(":"):
            name = line.lstrip(": ").strip()
        elif len(parts) == 4:
            sections.setdefault(name, []).append((parts[0], parts[1], parts[2], parts[3]))
        else:
            raise errors.BadInput(
                f"{path}, line {number}, is {line[:60]!r}; it must be four words, or ': ' and a section's name"
            )
    return sections


def _answers(space: Space, rows_NQ: np.ndarray) -> np.ndarray:
    """The nearest row of each question; the length of b - a + c changes no order."""
    first, second, third = rows_NQ[:, 0], rows_NQ[:, 1], rows_NQ[:, 2]
    wanted_ND = space.unit_VD[second] - space.unit_VD[first] + space.unit_VD[third]
    cosine_NV = wanted_ND @ space.unit_VD.T
    cosine_NV[:, space.hidden_V] = -np.inf
    np.put_along_axis(cosine_NV, rows_NQ[:, :3], -np.inf, axis=1)
    return cosine_NV.argmax(1)


def _spearman(x_N: np.ndarray, y_N: np.ndarray, weights_BN: np.ndarray) -> np.ndarray:
    """Rho of samples in which pair n occurs `weights_BN[b, n]` times; not a number where all of a sample are tied."""
    ranks = [_ranks(values_N, weights_BN) for values_N in (x_N, y_N)]
    size = weights_BN.shape[1]
    a_BN, b_BN = (
        rank_BN - (weights_BN * rank_BN).sum(1, keepdims=True) / size for rank_BN in ranks
    )
    products_B, a_B, b_B = (
        (weights_BN * one_BN * other_BN).sum(1)
        for one_BN, other_BN in ((a_BN, b_BN), (a_BN, a_BN), (b_BN, b_BN))
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return products_B / np.sqrt(a_B * b_B)


def _ranks(values_N: np.ndarray, weights_BN: np.ndarray) -> np.ndarray:
    """The mean rank of each value in samples that hold it several times, or not at all."""
    order_N = np.argsort(values_N, kind="stable")
    sorted_N = values_N[order_N]
    begins = np.flatnonzero(np.concatenate([[True], sorted_N[1:] != sorted_N[:-1]]))
    tied_BG = np.add.reduceat(weights_BN[:, order_N], begins, axis=1)
    ranks_BG = np.cumsum(tied_BG, axis=1) - (tied_BG - 1) / 2
    return ranks_BG[:, np.searchsorted(sorted_N[begins], values_N)]


def _share_interval(right: int, count: int) -> tuple[float | None, float | None]:
    """In per cent: how many of `count` questions drawn with replacement are right follows a binomial distribution."""
    if count < 2:
        return None, None
    drawn = np.random.default_rng(0).binomial(count, right / count, bootstrap.DRAWS)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return 100 * float(low) / count, 100 * float(high) / count


def _nearest(space: Space, cosine_V: np.ndarray, count: int) -> dict[str, list]:
    cosine_V[space.hidden_V] = -np.inf
    order = np.argsort(-cosine_V, kind="stable")[:count]
    order = order[np.isfinite(cosine_V[order])]
    return {
        "pieces": [space.names[row] for row in order],
        "cosines": [_number(cosine_V[row]) for row in order],
    }


def _row(space: Space, word: str) -> int:
    if word not in space.rows:
        raise errors.BadInput(
            f"the word {word!r} is out of the vocabulary; give one that the tokenizer knows"
        )
    return space.rows[word]


def _lines(path: pathlib.Path) -> list[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1."""
    try:
        text = pathlib.Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise errors.BadInput(f"cannot read {path} ({reason}); give a text file") from error
    numbered = [(i, line) for i, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not numbered:
        raise errors.BadInput(f"{path} is empty; give a file with words")
    return numbered


def _finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _number(value: Any) -> float:
    """Five digits: what a picture can show and more than an embedding means."""
    return float(f"{float(value):.5g}")
