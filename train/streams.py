"""How do examples lie on disk? One memory-mapped stream per name, and where each example begins in it."""

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.lib import format as npy

Encoded = Mapping[str, Sequence[int]]


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Sequences of ids as one stream, and where each begins.

    `offsets` has one entry more than there are sequences; the last is the length of the stream.
    """

    ids: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Ids of each sequence."""
        return np.diff(self.offsets)


@dataclasses.dataclass(frozen=True)
class Examples:
    """Examples as streams by name, such as `text`, or `source` and `target`.

    `bytes` is the size in UTF-8 of the text that is predicted, which bits per byte divide by, and `words` how many
    words, parted by white space, it has; both are 0 where not every byte is predicted once.
    """

    streams: Mapping[str, Tokens]
    bytes: int = 0
    words: int = 0

    def __len__(self) -> int:
        return len(next(iter(self.streams.values())))

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {name: stream[index] for name, stream in self.streams.items()}

    @property
    def tokens(self) -> int:
        """Ids in all, of what is read and of what is written."""
        return sum(
            len(stream.ids)
            for name, stream in self.streams.items()
            if name in ("text", "source", "target")
        )


def of(examples: Sequence[Encoded], sizes: Iterable[tuple[int, int]]) -> Examples:
    """Examples in memory, all with the same names; `sizes` are bytes and words of each."""
    streams = {
        name: Tokens(
            np.concatenate([np.asarray(example[name], np.int32) for example in examples]),
            np.cumsum([0, *(len(example[name]) for example in examples)]),
        )
        for name in examples[0]
    }
    sums = np.sum([(0, 0), *sizes], axis=0)
    return Examples(streams, int(sums[0]), int(sums[1]))


class Writer(contextlib.ExitStack):
    """Writes examples below a directory, some at a time; a context, which closes its files."""

    def __init__(self, directory: pathlib.Path, vocab_size: int) -> None:
        super().__init__()
        directory.mkdir()
        self._directory = directory
        self._wide = np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)
        self._files: dict[str, Any] = {}
        self._offsets: dict[str, list[int]] = {}
        self._sizes = {"bytes": 0, "words": 0}

    def add(self, examples: Sequence[Encoded], sizes: Iterable[tuple[int, int]]) -> None:
        """Appends examples, all with the same names; `sizes` are bytes and words of each."""
        for name in examples[0]:
            file = self._opened(name)
            offsets = self._offsets[name]
            stream: list[int] = []
            for example in examples:
                stream += example[name]
                offsets.append(offsets[-1] + len(example[name]))
            file.write(np.array(stream, self._dtype(name)).tobytes())
        for size, words in sizes:
            self._sizes["bytes"] += size
            self._sizes["words"] += words

    def complete(self) -> dict[str, Any]:
        """Completes the files; returns what `open_` needs to know."""
        lengths = {}
        for name, file in self._files.items():
            offsets = self._offsets[name]
            file.seek(0)
            _write_header(file, self._dtype(name), offsets[-1])
            flush(file)
            with (self._directory / f"{name}-offsets.npy").open("wb") as places:
                np.save(places, np.array(offsets, np.int64))
                flush(places)
            lengths[name] = [len(offsets) - 1, offsets[-1]]
        return {"streams": lengths, **self._sizes}

    def _opened(self, name: str) -> Any:
        if name not in self._files:
            path = self._directory / f"{name}.npy"
            self._files[name] = self.enter_context(path.open("wb"))
            self._offsets[name] = [0]
            _write_header(self._files[name], self._dtype(name), 0)
        return self._files[name]

    def _dtype(self, name: str) -> np.dtype:
        """Labels may be negative."""
        return np.dtype(np.int32) if name == "labels" else self._wide


def open_(directory: pathlib.Path, sizes: Mapping[str, Any]) -> Examples:
    """Maps examples into memory; ValueError where a file has not the size that was written."""
    streams = {}
    for name, (count, length) in sizes["streams"].items():
        # As plain arrays: slices of np.memmap cost ten times as much.
        ids, offsets = (
            np.asarray(np.load(directory / file, mmap_mode="r"))
            for file in (f"{name}.npy", f"{name}-offsets.npy")
        )
        if len(ids) != length or len(offsets) != count + 1 or offsets[-1] != length:
            raise ValueError(f"{directory} is not what was written")
        streams[name] = Tokens(ids, offsets)
    if not streams:
        raise ValueError(f"{directory} holds nothing")
    return Examples(streams, sizes["bytes"], sizes["words"])


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes JSON, and waits until the disk has it."""
    with path.open("w") as file:
        json.dump(value, file, indent=1)
        flush(file)


def flush(file: Any) -> None:
    """Puts a file on the disk before a rename says that it is complete."""
    file.flush()
    os.fsync(file.fileno())


def _write_header(file: Any, dtype: np.dtype, count: int) -> None:
    """The header of a one-dimensional array file; numpy leaves room in it for the count to grow."""
    npy.write_array_header_1_0(
        file, {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": (count,)}
    )
