"""What does an embedding space answer? Analogies asked one by one, and files of analogies and of people's scores.

A person's words are checked here before anything is drawn; the arithmetic is that of train/embeddings.py.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich import markup
from rich.console import Console

import model
from model import checkpoint, errors
from train import embeddings, figures, tables
from train.embeddings import Question

Pair = tuple[str, str, float]


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a person wants to know of a space.

    Attributes:
        words: whose neighbours and places are shown; of none, the most frequent ones.
        analogies: a, b and c of each "a is to b as c is to what?".
        similarity: people's scores of pairs, by file.
        analogy_files: questions by section, by file.
        several: what a word of several pieces is, one of embeddings.SEVERAL.
        lower_case: whether all these words were put into lower case.
    """

    words: tuple[str, ...] = ()
    analogies: tuple[tuple[str, str, str], ...] = ()
    similarity: Mapping[str, Sequence[Pair]] = dataclasses.field(default_factory=dict)
    analogy_files: Mapping[str, Mapping[str, Sequence[Question]]] = dataclasses.field(
        default_factory=dict
    )
    several: str = "mean"
    lower_case: bool = False


NOTHING = Asked()


def read(
    words: Sequence[str] = (),
    analogies: Sequence[str] = (),
    similarity: Sequence[str] = (),
    analogy_files: Sequence[str] = (),
    several: str = "mean",
    lower_case: bool = False,
) -> Asked:
    """Flags as what they ask: analogies are `man:king::woman`, and files are given by their paths.

    Raises:
        BadInput: of an analogy that is none, and of a file that cannot be read or has a line that does not belong.
    """

    def cased(word: str) -> str:
        return word.lower() if lower_case else word

    def pairs(path: str) -> list[Pair]:
        return [(cased(a), cased(b), x) for a, b, x in embeddings.read_pairs(pathlib.Path(path))]

    def sections(path: str) -> dict[str, list[Question]]:
        found = embeddings.read_questions(pathlib.Path(path))
        return {
            name: [(cased(a), cased(b), cased(c), cased(d)) for a, b, c, d in questions]
            for name, questions in found.items()
        }

    return Asked(
        words=tuple(dict.fromkeys(cased(word) for word in words)),
        analogies=tuple(_analogy(cased(text)) for text in analogies),
        similarity={path: pairs(path) for path in similarity},
        analogy_files={path: sections(path) for path in analogy_files},
        several=several,
        lower_case=lower_case,
    )


def answer(lm: model.LM, asked: Asked) -> dict[str, Any]:
    """What the space of a model answers, as `figures/embedding.json` holds it; empty where only words are asked."""
    if not (asked.analogies or asked.similarity or asked.analogy_files):
        return {}
    wanted = [word for three in asked.analogies for word in three]
    wanted += [word for pairs in asked.similarity.values() for a, b, _ in pairs for word in (a, b)]
    wanted += [
        word
        for sections in asked.analogy_files.values()
        for questions in sections.values()
        for four in questions
        for word in four
    ]
    table_VD = np.asarray(lm.params["embedding"]["weight"], np.float32)
    space = embeddings.space(table_VD, lm.words, wanted, asked.several)
    return {
        "several": asked.several,
        "lower_case": asked.lower_case,
        "analogies": [embeddings.analogy(space, *three) for three in asked.analogies],
        "similarity": {
            path: embeddings.similarity(space, pairs) for path, pairs in asked.similarity.items()
        },
        "analogy_files": {
            path: embeddings.analogies(space, sections)
            for path, sections in asked.analogy_files.items()
        },
    }


def tell(
    answers: Mapping[str, Any], directory: pathlib.Path, console: Console | None = None
) -> None:
    """Prints answers, and writes them into `<directory>/embedding.json`; nothing where nothing was asked."""
    if not answers:
        return
    for header, rows in tables_of(answers):
        named = [[markup.escape(row[0]), *row[1:]] for row in rows]
        tables.grid(console or Console(), [markup.escape(header[0]), *header[1:]], named)
    path = directory / "embedding.json"
    directory.mkdir(parents=True, exist_ok=True)
    checkpoint.write_file(path, json.dumps(answers, indent=2, allow_nan=False) + "\n")
    print(f"\nwhat was asked of the embedding space: {path}")


def tables_of(answers: Mapping[str, Any]) -> list[tuple[list[str], list[list[str]]]]:
    """A header and rows for each analogy, for the similarity files, if any, and for each analogy file."""
    found = []
    for each in answers["analogies"]:
        header = [f"{each['a']} : {each['b']} = {each['c']} : ?", "cosine"]
        pairs = zip(each["pieces"], each["cosines"], strict=True)
        found.append((header, [[figures.label(piece), f"{cosine:.2f}"] for piece, cosine in pairs]))
    if answers["similarity"]:
        header = ["similarity", "pairs", "out of vocab.", "Spearman", "95 % interval"]
        rows = [
            [pathlib.Path(path).name, *_counts(each, "pairs"), *_measured(each, "spearman", 3)]
            for path, each in answers["similarity"].items()
        ]
        found.append((header, rows))
    for path, sections in answers["analogy_files"].items():
        name = pathlib.Path(path).name
        header = [name, "questions", "out of vocab.", "right (%)", "95 % interval"]
        rows = [
            [name, *_counts(each, "questions"), *_measured(each, "accuracy", 1)]
            for name, each in sections.items()
        ]
        found.append((header, rows))
    return found


def _analogy(text: str) -> tuple[str, str, str]:
    parts = [part.strip() for part in text.replace("::", ":").split(":")]
    if text.count("::") != 1 or len(parts) != 3 or not all(parts):
        raise errors.BadInput(
            f"analogy {text!r} is not of the form A:B::C; give one such as man:king::woman"
        )
    return parts[0], parts[1], parts[2]


def _counts(each: Mapping[str, Any], what: str) -> list[str]:
    return [f"{each[what]:,}", f"{each['out_of_vocabulary']:,}"]


def _measured(each: Mapping[str, Any], name: str, digits: int) -> list[str]:
    """A value and its interval, or dashes."""
    if each[name] is None:
        return ["–", "–"]
    ends = "–"
    if each["low"] is not None:
        ends = f"{each['low']:.{digits}f} to {each['high']:.{digits}f}"
    return [f"{each[name]:.{digits}f}", ends]
