"""What does step n train on?

Documents, or records, are tokenised once into memory-mapped arrays, and `batches(...)[step]` is the batch of a step, a
pure function of data, seed and step.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from model import errors
from model.tokenizer import Tokenizer
from train import corpus as corpora
from train import streams
from train.corpus import Corpus
from train.rows import Batch, Rows
from train.streams import Examples
from train.tasks import Item, Task

Progress = Callable[[int, int], None]

_LAYOUT = 2  # of the files below; part of the digest
_CHUNK_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A tokenised corpus: the examples of each training source with its weight, and the held-out ones."""

    directory: pathlib.Path
    digest: str
    train: tuple[Examples, ...]
    valid: Examples
    weights: tuple[float, ...] | None
    report: dict[str, int]


class Share:
    """Some rows of each batch of an endless dataset: what the devices of one process hold of it."""

    def __init__(self, endless: grain.MapDataset, rows: Sequence[int], batch_size: int) -> None:
        self._endless, self._rows, self._size = endless, rows, batch_size

    def __getitem__(self, step: int) -> Batch:
        return _stack([self._endless[step * self._size + row] for row in self._rows])


class Together:
    """Rows of several sources, one source behind the other."""

    def __init__(self, sources: Sequence[Rows]) -> None:
        self._sources = sources
        self._ends = np.cumsum([len(source) for source in sources])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def row(self, index: int, epoch: int) -> Batch:
        """That row."""
        number = int(np.searchsorted(self._ends, index, "right"))
        before = int(self._ends[number - 1]) if number else 0
        return self._sources[number].row(index - before, epoch)


class Filled:
    """Rows that have also the arrays of others, of zeros: what no task of theirs asks for weighs nothing."""

    def __init__(self, source: Rows, empty: Batch) -> None:
        self._source, self._empty = source, empty

    def __len__(self) -> int:
        return len(self._source)

    def row(self, index: int, epoch: int) -> Batch:
        """That row."""
        return {**self._empty, **self._source.row(index, epoch)}


def prepare(
    corpus: Corpus,
    tokenizer: Tokenizer,
    directory: str | os.PathLike[str],
    progress: Progress | None = None,
    train: Sequence[Task] = (),
    valid: Task = Task(),  # noqa: B008  frozen
) -> Prepared:
    """Tokenises the corpus below `directory`, unless that has been done with the same text and tokenizer.

    The result appears under its final name only when complete. One process may prepare a directory at a time.
    `progress` is called with the bytes done and the bytes in all. `train` are the tasks of the sources, by default to
    predict every next token, and `valid` that of the held-out records.
    """
    chosen = [*(train or [Task()] * len(corpus.train)), valid]
    key = json.dumps([_LAYOUT, corpus.digest, tokenizer.digest, [task.reading for task in chosen]])
    digest = hashlib.sha256(key.encode()).hexdigest()
    final = pathlib.Path(directory) / digest[:16]
    if not _is_complete(final, digest):
        partial = final.with_name(f".partial-{final.name}")
        try:
            for stale in (partial, final):
                shutil.rmtree(stale, ignore_errors=True)
            partial.mkdir(parents=True)
            show = progress or (lambda done, total: None)
            _write(partial, corpus, tokenizer, chosen, digest, show)
            os.replace(partial, final)
        except OSError as error:
            raise errors.BadInput(
                f"cannot write tokens to {final}: {error.strerror or error}; free space or choose another directory"
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return read(final, corpus)


def read(final: pathlib.Path, corpus: Corpus) -> Prepared:
    """What `prepare` has left in the directory `final`; of the corpus, no text is read."""
    meta = json.loads((final / "meta.json").read_text())
    names = [f"train-{index}" for index in range(len(corpus.train))]
    weights = tuple(source.weight for source in corpus.train if source.weight is not None)
    return Prepared(
        directory=final,
        digest=meta["digest"],
        train=tuple(streams.open_(final / name, meta["splits"][name]) for name in names),
        valid=streams.open_(final / "valid", meta["splits"]["valid"]),
        weights=weights or None,
        report=meta["report"],
    )


def batches(
    sources: Sequence[Rows],
    weights: Sequence[float] | None,
    *,
    batch_size: int,
    seed: int,
    rows: Sequence[int] | None = None,
) -> grain.MapDataset:
    """An endless dataset whose element `step` is the batch of that step, or these `rows` of it and no work for others.

    Without weights, every row of every source comes once per epoch, in an order of its own each epoch. With
    weights, sources are drawn from in these proportions, each in epochs of its own. Where the tasks of sources make
    different arrays, such as `prefix`, each has all of them.
    """
    if batch_size < 1:
        raise errors.BadInput(f"batch size is {batch_size}; it must be at least 1")
    if not 0 <= seed < 2**32:
        raise errors.BadInput(f"data seed is {seed}; it must be at least 0 and below 2**32")
    sources = _alike(sources)
    if weights is None:
        endless = _epochs(Together(sources), seed)
    else:
        shuffled = [_epochs(source, _fold(seed, number)) for number, source in enumerate(sources)]
        endless = grain.MapDataset.mix(shuffled, weights=list(weights))
    return endless.batch(batch_size) if rows is None else Share(endless, rows, batch_size)


def eval_batches(
    source: Rows, batch_size: int, rows: Sequence[int] | None = None
) -> Iterator[Batch]:
    """All rows in order; the last batch is filled up with rows of weight 0, so every batch has the same shape.

    Given `rows`, each batch has only those of its rows.
    """
    empty = {name: np.zeros_like(array) for name, array in source.row(0, 0).items()}
    for start in range(0, len(source), batch_size):
        wanted = [start + row for row in (range(batch_size) if rows is None else rows)]
        yield _stack([source.row(index, 0) if index < len(source) else empty for index in wanted])


def _epochs(source: Rows, seed: int) -> grain.MapDataset:
    """The rows without end, shuffled anew in each epoch."""
    count = len(source)
    if not count:
        raise errors.BadInput(
            "a source of config.data.train has no row: all its examples were dropped; raise config.data.length"
        )

    def row(place: int, index: int) -> Batch:
        return source.row(index, place // count)

    return grain.MapDataset.range(count).seed(seed).shuffle().repeat().map_with_index(row)


def _alike(sources: Sequence[Rows]) -> Sequence[Rows]:
    """Sources whose rows all have arrays of the same names."""
    rows = [source.row(0, 0) for source in sources if len(source)]
    if len({frozenset(row) for row in rows}) < 2:
        return sources
    empty = {name: np.zeros_like(array) for row in rows for name, array in row.items()}
    return [Filled(source, empty) for source in sources]


def _fold(seed: int, number: int) -> int:
    """A seed for source `number`, so that sources of equal size are not shuffled alike."""
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:4])


def _write(
    directory: pathlib.Path,
    corpus: Corpus,
    tokenizer: Tokenizer,
    chosen: Sequence[Task],
    digest: str,
    progress: Progress,
) -> None:
    """Writes every split and, last, the description of them all."""
    report = corpus.report
    total = report["train_bytes"] + report["held_out_bytes"]
    items: list[tuple[str, Iterable[Item]]] = [
        (f"train-{index}", corpus.train_documents(index)) for index in range(len(corpus.train))
    ]
    items.append(("valid", corpus.held_out_documents))
    splits: dict[str, Any] = {}
    done = 0
    for (name, split), task in zip(items, chosen, strict=True):
        with streams.Writer(directory / name, tokenizer.vocab_size) as writer:
            for chunk, size in _chunks(split):
                made = task.encode_placed(chunk, tokenizer, _places(corpus, chunk))
                writer.add(made, map(task.measure, chunk))
                done += size
                progress(done, total)
            splits[name] = writer.complete()
    meta = {
        "digest": digest,
        "corpus": corpus.digest,
        "tokenizer": tokenizer.digest,
        "splits": splits,
        "report": report,
    }
    streams.write_json(directory / "meta.json", meta)


def _places(corpus: Corpus, chunk: Sequence[Item]) -> Callable[[int], str]:
    return lambda number: corpus.place(chunk[number])


def _stack(rows: Sequence[Batch]) -> Batch:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _chunks(items: Iterable[Item]) -> Iterator[tuple[list[Item], int]]:
    """Documents or records in lists of about a million bytes, and these bytes."""
    chunk, size = [], 0
    for item in items:
        chunk.append(item)
        size += len(corpora.text(item).encode())
        if size >= _CHUNK_BYTES:
            yield chunk, size
            chunk, size = [], 0
    if chunk:
        yield chunk, size


def _is_complete(directory: pathlib.Path, digest: str) -> bool:
    """Whether a directory holds what its description says."""
    try:
        meta = json.loads((directory / "meta.json").read_text())
        for name, sizes in meta["splits"].items():
            streams.open_(directory / name, sizes)
        return meta["digest"] == digest
    except (OSError, ValueError, KeyError):
        return False
