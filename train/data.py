"""What does step n train on?

Documents are tokenised once into memory-mapped arrays; fixed-length rows are cut from them so that no
document sees another; and `batches(...)[step]` is the batch of a step, a pure function of data, seed and step.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from numpy.lib import format as npy

from model import errors
from model.tokenizer import Tokenizer
from train.corpus import Corpus

Batch = dict[str, np.ndarray]
Progress = Callable[[int, int], None]

_LAYOUT = 1  # of the files below; part of the digest
_CHUNK_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Documents as one stream of ids, each [bos, ..., eos], and where each begins.

    `offsets` has one entry more than there are documents; the last is the length of the stream. `bytes` is the
    size of the text in UTF-8, which bits per byte divide by.
    """

    ids: np.ndarray
    offsets: np.ndarray
    bytes: int

    @property
    def documents(self) -> int:
        """The number of documents."""
        return len(self.offsets) - 1


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A tokenised corpus: one stream per training source with its weight, and the held-out stream."""

    directory: pathlib.Path
    digest: str
    train: tuple[Tokens, ...]
    valid: Tokens
    weights: tuple[float, ...] | None
    report: dict[str, int]


class Packed:
    """Rows of `length` tokens cut from a stream, by index; each non-bos token is a target of exactly one row.

    A row's segments count its documents from 1, so attention within equal segments keeps documents apart;
    0 is padding, after the end of the stream. `overlap` lets a row repeat that many tokens of the row before
    it as context whose targets weigh 0.

    For documents `[b c e]` and `[b d e]` and length 4, row 0 is

        tokens    b c e b
        targets   c e b d
        segments  1 1 1 2
        weights   1 1 0 1

    and row 1 is tokens `d 0 0 0`, targets `e 0 0 0`, segments `1 0 0 0`, weights `1 0 0 0`.
    """

    def __init__(self, tokens: Tokens, length: int, overlap: int = 0):
        if length < 1:
            raise errors.BadInput(f"row length is {length}; it must be at least 1")
        if not 0 <= overlap < length:
            raise errors.BadInput(
                f"overlap of rows is {overlap}; it must be at least 0 and below their length {length}"
            )
        self.tokens, self.length, self.overlap = tokens, length, overlap

    def __len__(self) -> int:
        stride = self.length - self.overlap
        targets = len(self.tokens.ids) - 1
        return 1 + max(0, -(-(targets - self.length) // stride))

    def __getitem__(self, index: int) -> Batch:
        ids, offsets = self.tokens.ids, self.tokens.offsets
        start = index * (self.length - self.overlap)
        count = min(self.length, len(ids) - 1 - start)
        if not (0 <= index < len(self) and count > 0):
            raise IndexError(f"row {index} of {len(self)}")
        row: Batch = {
            name: np.zeros(self.length, np.int32) for name in ("tokens", "targets", "segments")
        }
        row["weights"] = np.zeros(self.length, np.float32)
        row["tokens"][:count] = ids[start : start + count]
        row["targets"][:count] = ids[start + 1 : start + count + 1]
        # Where a document begins after the row's first token, up to its last target.
        first, last = np.searchsorted(offsets, [start, start + count], "right")
        begins = np.asarray(offsets[first:last]) - start
        row["segments"][begins[begins < count]] = 1
        row["segments"][:count] = 1 + np.cumsum(row["segments"][:count])
        row["weights"][:count] = 1
        row["weights"][begins - 1] = 0
        if index:
            row["weights"][: self.overlap] = 0
        return row


class Share:
    """Some rows of each batch of an endless dataset: what the devices of one process hold of it."""

    def __init__(self, endless: grain.MapDataset, rows: Sequence[int], batch_size: int) -> None:
        self._endless, self._rows, self._size = endless, rows, batch_size

    def __getitem__(self, step: int) -> Batch:
        return _stack([self._endless[step * self._size + row] for row in self._rows])


def prepare(
    corpus: Corpus,
    tokenizer: Tokenizer,
    directory: str | os.PathLike[str],
    progress: Progress | None = None,
) -> Prepared:
    """Tokenises the corpus below `directory`, unless that has been done with the same text and tokenizer.

    The result appears under its final name only when complete. One process may prepare a directory at a time.
    `progress` is called with the bytes done and the bytes in all.
    """
    key = json.dumps([_LAYOUT, corpus.digest, tokenizer.digest])
    digest = hashlib.sha256(key.encode()).hexdigest()
    final = pathlib.Path(directory) / digest[:16]
    if not _is_complete(final, digest):
        if tokenizer.bos_id is None or tokenizer.eos_id is None:
            raise errors.BadInput(
                f"tokenizer {tokenizer.digest[:16]} has no ids for begin and end of text; train another"
            )
        partial = final.with_name(f".partial-{final.name}")
        try:
            for stale in (partial, final):
                shutil.rmtree(stale, ignore_errors=True)
            partial.mkdir(parents=True)
            _write(partial, corpus, tokenizer, digest, progress or (lambda done, total: None))
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
        train=tuple(_open(final / name, meta["splits"][name]) for name in names),
        valid=_open(final / "valid", meta["splits"]["valid"]),
        weights=weights or None,
        report=meta["report"],
    )


def batches(
    packed: Sequence[Packed],
    weights: Sequence[float] | None,
    *,
    batch_size: int,
    seed: int,
    rows: Sequence[int] | None = None,
) -> grain.MapDataset:
    """An endless dataset whose element `step` is the batch of that step, or these `rows` of it and no work for others.

    Without weights, every row of every source comes once per epoch, in an order of its own each epoch. With
    weights, sources are drawn from in these proportions, each in epochs of its own.
    """
    if batch_size < 1:
        raise errors.BadInput(f"batch size is {batch_size}; it must be at least 1")
    if not 0 <= seed < 2**32:
        raise errors.BadInput(f"data seed is {seed}; it must be at least 0 and below 2**32")
    sources = [grain.MapDataset.source(source) for source in packed]
    if weights is None:
        endless = grain.MapDataset.concatenate(sources).seed(seed).shuffle().repeat()
    else:
        shuffled = [
            source.seed(_fold(seed, number)).shuffle().repeat()
            for number, source in enumerate(sources)
        ]
        endless = grain.MapDataset.mix(shuffled, weights=list(weights))
    return endless.batch(batch_size) if rows is None else Share(endless, rows, batch_size)


def eval_batches(
    packed: Packed, batch_size: int, rows: Sequence[int] | None = None
) -> Iterator[Batch]:
    """All rows in order; the last batch is filled up with rows of weight 0, so every batch has the same shape.

    Given `rows`, each batch has only those of its rows.
    """
    empty = {name: np.zeros_like(array) for name, array in packed[0].items()}
    for start in range(0, len(packed), batch_size):
        wanted = [start + row for row in (range(batch_size) if rows is None else rows)]
        yield _stack([packed[index] if index < len(packed) else empty for index in wanted])


def _fold(seed: int, number: int) -> int:
    """A seed for source `number`, so that sources of equal size are not shuffled alike."""
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:4])


def _write(
    directory: pathlib.Path, corpus: Corpus, tokenizer: Tokenizer, digest: str, progress: Progress
) -> None:
    """Writes every split and, last, the description of them all."""
    report = corpus.report
    total = report["train_bytes"] + report["held_out_bytes"]
    texts: list[tuple[str, Iterable[str]]] = [
        (f"train-{index}", corpus.train_documents(index)) for index in range(len(corpus.train))
    ]
    texts.append(("valid", corpus.held_out_documents))
    splits: dict[str, Any] = {}
    done = 0
    for name, documents in texts:
        splits[name] = _write_split(
            directory / name,
            documents,
            tokenizer,
            functools.partial(_advance, progress, done, total),
        )
        done += splits[name]["bytes"]
    meta = {
        "digest": digest,
        "corpus": corpus.digest,
        "tokenizer": tokenizer.digest,
        "splits": splits,
        "report": report,
    }
    with (directory / "meta.json").open("w") as file:
        json.dump(meta, file, indent=1)
        _flush(file)


def _advance(progress: Progress, before: int, total: int, size: int) -> None:
    """Reports `size` more bytes than there were before."""
    progress(before + size, total)


def _write_split(
    directory: pathlib.Path,
    documents: Iterable[str],
    tokenizer: Tokenizer,
    progress: Callable[[int], None],
) -> dict[str, int]:
    """Writes `tokens.npy` and `offsets.npy` of one split, a chunk of documents at a time; returns their sizes."""
    directory.mkdir()
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    offsets, size = [0], 0
    with (directory / "tokens.npy").open("wb") as file:
        _write_header(file, dtype, 0)
        for chunk in _chunks(documents):
            encoded = tokenizer.encode_batch(chunk)
            stream = [id for ids in encoded for id in (tokenizer.bos_id, *ids, tokenizer.eos_id)]
            file.write(np.array(stream, dtype).tobytes())
            for ids in encoded:
                offsets.append(offsets[-1] + len(ids) + 2)
            size += sum(len(text.encode()) for text in chunk)
            progress(size)
        file.seek(0)
        _write_header(file, dtype, offsets[-1])
        _flush(file)
    with (directory / "offsets.npy").open("wb") as file:
        np.save(file, np.array(offsets, np.int64))
        _flush(file)
    return {"documents": len(offsets) - 1, "tokens": offsets[-1], "bytes": size}


def _write_header(file: Any, dtype: np.dtype, count: int) -> None:
    """The header of a one-dimensional array file; numpy leaves room in it for the count to grow."""
    npy.write_array_header_1_0(
        file, {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": (count,)}
    )


def _stack(rows: Sequence[Batch]) -> Batch:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _chunks(documents: Iterable[str]) -> Iterator[list[str]]:
    """Documents in lists of about a million characters."""
    chunk, size = [], 0
    for text in documents:
        chunk.append(text)
        size += len(text)
        if size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _flush(file: Any) -> None:
    """Puts a file on the disk before a rename says that it is complete."""
    file.flush()
    os.fsync(file.fileno())


def _is_complete(directory: pathlib.Path, digest: str) -> bool:
    """Whether a directory holds what its description says."""
    try:
        meta = json.loads((directory / "meta.json").read_text())
        for name, sizes in meta["splits"].items():
            _open(directory / name, sizes)
        return meta["digest"] == digest
    except (OSError, ValueError, KeyError):
        return False


def _open(directory: pathlib.Path, sizes: dict[str, int]) -> Tokens:
    """Maps one split into memory; ValueError where a file has not the size that was written."""
    # As plain arrays: slices of np.memmap cost ten times as much.
    ids = np.asarray(np.load(directory / "tokens.npy", mmap_mode="r"))
    offsets = np.asarray(np.load(directory / "offsets.npy", mmap_mode="r"))
    if (
        len(ids) != sizes["tokens"]
        or len(offsets) != sizes["documents"] + 1
        or offsets[-1] != len(ids)
    ):
        raise ValueError(f"{directory} is not what was written")
    return Tokens(ids, offsets, sizes["bytes"])
