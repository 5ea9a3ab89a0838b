"""Which documents does a run learn from, and which are kept away from it to measure it?

The held-out documents are given, or chosen by a hash of their content; whatever resembles one of them
never reaches the training text.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from model import errors
from train import documents, overlap

_KEPT, _HELD_OUT, _DUPLICATE, _NEAR_DUPLICATE = range(4)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Training sources and held-out documents; what it decides does not depend on the order of documents.

    Without `valid`, a training document is held out if its SHA-256, read as a number from 0 to 1, lies
    below `held_out`. Dropped from training are exact duplicates of another document, and documents that
    share a quarter of their five-word sequences with the held-out text or hold a quarter of those of one
    held-out document. Documents chosen by hash that resemble a longer one of them are held out of both.
    Without `deduplicate` nothing is dropped, as published splits want it. Documents are whole records if
    `whole`, and texts otherwise.
    """

    train: tuple[documents.Source, ...]
    valid: tuple[documents.Source, ...] = ()
    held_out: float = 0.05
    deduplicate: bool = True
    whole: bool = False

    def __post_init__(self):
        if not self.train:
            raise errors.BadInput(
                'data.train names no source; give a file, or "python" for the embedded text'
            )
        if not 0 < self.held_out < 1:
            raise errors.BadInput(f"data.held_out is {self.held_out}; it must lie between 0 and 1")
        if len({source.weight is None for source in self.train}) > 1:
            bare = next(source.path for source in self.train if source.weight is None)
            raise errors.BadInput(
                f"data source {bare} has no weight, but others have; give all a weight, or none"
            )

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of all that decides which documents are trained on and which are held out."""
        content = [
            [documents.digest(source) for source in group] for group in (self.train, self.valid)
        ]
        decided = [content, self.held_out, overlap.VERSION, self.deduplicate, self.whole]
        return hashlib.sha256(json.dumps(decided).encode()).hexdigest()

    def read(self, source: documents.Source) -> Iterator[Any]:
        """All that a source holds."""
        return documents.records(source) if self.whole else documents.read(source)

    def place(self, item: Any) -> str:
        """The file and line of a record, or the source of a document."""
        for source in (*self.train, *self.valid):
            for place, record in documents.located(source):
                if item in (record, record.get(source.field)):
                    return place
        return "a document"

    def train_documents(self, index: int) -> Iterator[Any]:
        """The training documents of source `index`, in the order of the source."""
        fates = self._survey.fates[index]
        read = 0
        for item in self.read(self.train[index]):
            if read < len(fates) and fates[read] == _KEPT:
                yield item
            read += 1
        if read != len(fates):
            raise errors.BadInput(
                f"{self.train[index].path} changed while it was read; start again"
            )

    def items(self) -> Iterator[Any]:
        """The training documents of all sources, one source after another."""
        for index in range(len(self.train)):
            yield from self.train_documents(index)

    @property
    def held_out_documents(self) -> tuple[Any, ...]:
        """The documents that are only ever measured."""
        return self._survey.held_out

    @property
    def report(self) -> dict[str, int]:
        """How many documents and bytes are trained on, held out, and dropped for which reason."""
        return self._survey.report

    @functools.cached_property
    def _survey(self) -> "_Survey":
        return _survey_given(self) if self.valid else _survey_hashed(self)


@dataclasses.dataclass(frozen=True)
class _Survey:
    """What became of each document: one fate per document of each training source."""

    held_out: tuple[Any, ...]
    fates: tuple[bytearray, ...]
    report: dict[str, int]


def load(train: Any, valid: Any = None, held_out: float = 0.05, **others: bool) -> Corpus:
    """The corpus that a config describes; `train` and `valid` are what `documents.sources` reads."""
    given = documents.sources(valid, "data.valid") if valid else ()
    return Corpus(documents.sources(train, "data.train"), given, held_out, **others)


def text(item: str | Mapping[str, Any]) -> str:
    """A document, or all of a record in one line."""
    if isinstance(item, str):
        return item
    return json.dumps(item, ensure_ascii=False, sort_keys=True, default=str)


def _survey_hashed(corpus: Corpus) -> _Survey:
    """Holds out documents by their hash, then drops from training what resembles them."""
    limit = int(corpus.held_out * 2**64)
    fates, chosen, seen = [], [], set()
    for source in corpus.train:
        fates.append(bytearray())
        for item in corpus.read(source):
            digest = _digest(item)
            if digest in seen and corpus.deduplicate:
                fate = _DUPLICATE
            else:
                fate = _HELD_OUT if int.from_bytes(digest[:8]) < limit else _KEPT
            seen.add(digest)
            fates[-1].append(fate)
            if fate == _HELD_OUT:
                chosen.append(item)
    if not chosen:
        total = sum(map(len, fates))
        raise errors.BadInput(
            f"none of the {total} documents of data.train fell into the held-out share {corpus.held_out}; "
            "name files in data.valid, raise data.held_out, or set split of the source to 'paragraph' or 'line' "
            "(a single text file is parted by itself, the files of a directory are not)"
        )
    if not corpus.deduplicate:
        return _drop_resembling(corpus, tuple(chosen), fates, overlap.Index([]), 0)
    texts = [text(item) for item in chosen]
    longest_first = sorted(
        range(len(texts)), key=lambda number: (-len(texts[number]), texts[number])
    )
    index = overlap.Index([texts[number] for number in longest_first])
    distinct = sorted(
        number
        for rank, number in enumerate(longest_first)
        if not index.resembles(texts[number], before=rank)
    )
    held_out = tuple(chosen[number] for number in distinct)
    return _drop_resembling(corpus, held_out, fates, index, len(chosen) - len(distinct))


def _survey_given(corpus: Corpus) -> _Survey:
    """Takes the held-out documents as they are given, then drops from training what equals or resembles them."""
    held_out = tuple(item for source in corpus.valid for item in corpus.read(source))
    seen = {_digest(item) for item in held_out}
    fates = []
    for source in corpus.train:
        fates.append(bytearray())
        for item in corpus.read(source):
            digest = _digest(item)
            fates[-1].append(_DUPLICATE if digest in seen and corpus.deduplicate else _KEPT)
            seen.add(digest)
    index = overlap.Index([text(item) for item in held_out] if corpus.deduplicate else [])
    return _drop_resembling(corpus, held_out, fates, index, 0)


def _drop_resembling(
    corpus: Corpus,
    held_out: tuple[Any, ...],
    fates: list[bytearray],
    index: overlap.Index,
    merged: int,
) -> _Survey:
    """The second reading: which of the documents kept so far resemble the held-out ones?"""
    size = 0
    for source, decided in zip(corpus.train, fates, strict=True):
        for number, item in enumerate(corpus.read(source)):
            whole = text(item)
            if decided[number] == _KEPT and corpus.deduplicate and index.resembles(whole):
                decided[number] = _NEAR_DUPLICATE
            if decided[number] == _KEPT:
                size += len(whole.encode())
        if _KEPT not in decided:
            raise errors.BadInput(
                f"all {len(decided)} documents of data source {source.path} are held out or repeat other documents; "
                "give other files in data.train or data.valid"
            )
    fate_counts = np.bincount(np.frombuffer(b"".join(fates), np.uint8), minlength=4).tolist()
    report = {
        "train_documents": fate_counts[_KEPT],
        "train_bytes": size,
        "held_out_documents": len(held_out),
        "held_out_bytes": sum(len(text(item).encode()) for item in held_out),
        "duplicates_dropped": fate_counts[_DUPLICATE],
        "near_duplicates_dropped": fate_counts[_NEAR_DUPLICATE] + merged,
    }
    return _Survey(held_out, tuple(fates), report)


def _digest(item: str | Mapping[str, Any]) -> bytes:
    return hashlib.sha256(text(item).encode()).digest()
