"""How does one file become records, each with the place where it stands?

Text, JSON lines, a JSON array, TSV, CSV, lines that begin with a label, CoNLL, Parquet, and parallel files. Only a line
feed ends a line. What cannot be read is told in one line with the file and the place in it.
"""

import contextlib
import csv
import gzip
import importlib
import itertools
import json
import pathlib
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

from model import errors

Record = dict[str, Any]
Located = tuple[str, Record]  # where a record stands, as a message names it, and its fields


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, gzip undone; whatever makes it unreadable is told with its name."""
    try:
        with gzip.open(path, "rb") if path.name.endswith(".gz") else open(path, "rb") as file:
            yield file  # type: ignore[misc]
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise errors.BadInput(
            f"{path} is not a complete gzip file ({error}); copy or compress it again"
        ) from error
    except OSError as error:
        raise errors.BadInput(f"cannot read {path}: {error.strerror or error}") from error


def cut(part: tuple[float, float] | None, size: int) -> slice:
    """The positions of a share of `size` things: from `int(size * first)` to before `int(size * last)`."""
    first, last = part or (0.0, 1.0)
    return slice(int(size * first), int(size * last))


def text(
    path: pathlib.Path,
    file: Iterable[bytes],
    *,
    field: str,
    split: str,
    part: tuple[float, float] | None = None,
) -> Iterator[Located]:
    """Documents of a text file under the name `field`: the file, its paragraphs, or its lines; none that are blank.

    "auto" parts it into paragraphs, or into lines where there is only one. Of a `part` of its characters, a share such
    as (0.0, 0.9), only what lies in it is read.
    """
    if split == "line" and part is None:
        for number, line in _lines(path, file):
            if line.strip():
                yield f"{path} line {number}", {field: line}
        return
    whole = _decode(path, b"".join(file), 0).removeprefix("\ufeff")
    whole = whole[cut(part, len(whole))]
    paragraphs = re.split(r"\n\s*\n", whole) if split in ("auto", "paragraph") else []
    single = sum(1 for paragraph in paragraphs if paragraph.strip()) < 2
    if split == "file":
        paragraphs = [whole]
    elif split == "line" or (split == "auto" and single):
        paragraphs = [line.removesuffix("\r") for line in whole.split("\n")]
    for document in paragraphs:
        if document.strip():
            yield str(path), {field: document}


def jsonl(path: pathlib.Path, file: Iterable[bytes]) -> Iterator[Located]:
    """One JSON object per line; empty lines are skipped."""
    for number, line in _lines(path, file):
        place = f"{path} line {number}"
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise errors.BadInput(f"{place} is not JSON: {error}; correct the line") from error
            yield place, _object(place, row)


def array(path: pathlib.Path, file: Iterable[bytes]) -> Iterator[Located]:
    """A JSON file that holds one array of objects; they are counted from 1."""
    written = _decode(path, b"".join(file), 0).removeprefix("\ufeff")
    try:
        rows = json.loads(written)
    except ValueError as error:
        raise errors.BadInput(f"{path} is not JSON: {error}; correct the file") from error
    if not isinstance(rows, list):
        raise errors.BadInput(
            f"{path} holds {type(rows).__name__}; it must hold an array of objects, or one object a line as .jsonl"
        )
    for number, row in enumerate(rows, 1):
        place = f"{path} row {number}"
        yield place, _object(place, row)


def tsv(
    path: pathlib.Path, file: Iterable[bytes], *, columns: Sequence[str], numbered: bool
) -> Iterator[Located]:
    """Rows of cells between tabs, as they stand: nothing is quoted. For the other arguments see `_table`."""
    rows = ((number, line.split("\t")) for number, line in _lines(path, file))
    return _table(path, rows, columns, numbered)


def comma_separated(
    path: pathlib.Path, file: Iterable[bytes], *, columns: Sequence[str], numbered: bool
) -> Iterator[Located]:
    """Rows of a CSV file (RFC 4180): a quoted cell may hold commas, line ends and doubled quotes."""
    return _table(path, _quoted(path, file), columns, numbered)


def labelled(
    path: pathlib.Path, file: Iterable[bytes], *, columns: Sequence[str]
) -> Iterator[Located]:
    """Lines such as `4 Who was Galileo ?`: a label, a space, a text. They are the fields `label` and `text`."""
    names = columns or ("label", "text")
    if len(names) != 2:
        raise errors.BadInput(
            f"columns of {path} are {', '.join(names)}; a line of format labelled has two, a label and a text"
        )
    for number, line in _lines(path, file):
        place = f"{path} line {number}"
        label, space, sentence = line.partition(" ")
        if line.strip():
            if not (label and space):
                raise errors.BadInput(
                    f"{place} is {line[:40]!r}; it must be a label, a space and a text"
                )
            yield place, dict(zip(names, (label, sentence), strict=True))


def conll(
    path: pathlib.Path, file: Iterable[bytes], *, columns: Sequence[str]
) -> Iterator[Located]:
    """Sentences of one token a line, blank lines between them: lists `tokens` and `tags`, the first and last column.

    Cells lie between tabs, or between spaces where a line has no tab. `columns` names all of them instead. The lines
    that mark a document's begin in CoNLL 2003, `-DOCSTART-`, are no sentence.
    """
    names = tuple(columns) or ("tokens", "tags")
    sentence: list[list[str]] = []
    first = 1
    for number, line in itertools.chain(_lines(path, file), [(0, "")]):
        if line.strip():
            cells = line.split("\t") if "\t" in line else line.split()
            if len(cells) != len(names) if columns else len(cells) < 2:
                wanted = ", ".join(names) if columns else "a token, a tab or space, and a tag"
                raise errors.BadInput(
                    f"{path} line {number} is {line[:40]!r}, of {len(cells)} columns; it must be {wanted}"
                )
            first = first if sentence else number
            sentence.append(cells if columns else [cells[0], cells[-1]])
        elif sentence:
            if sentence[0][0] != "-DOCSTART-":
                lists = map(list, zip(*sentence, strict=True))
                yield f"{path} line {first}", dict(zip(names, lists, strict=True))
            sentence = []


def parquet(path: pathlib.Path, file: IO[bytes]) -> Iterator[Located]:
    """The rows of a Parquet file, counted from 1; needs pyarrow."""
    try:
        library = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise errors.BadInput(
            f"{path} is a Parquet file, and pyarrow is not installed; pip install 'ganymede[data]'"
        ) from error
    number = 0
    try:
        for batch in library.ParquetFile(file).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{path} row {number}", row
    except ValueError as error:  # what pyarrow's own errors are
        reason = " ".join(str(error).split())
        raise errors.BadInput(
            f"{path} is not a complete Parquet file ({reason}); copy or write it again"
        ) from error


def parallel(files: Mapping[str, pathlib.Path]) -> Iterator[Located]:
    """Files of which line n is the same record in other words: one field each, by name."""
    sides = [_file_lines(path) for path in files.values()]
    place = f"{next(iter(files.values()))} line "
    for number, lines in enumerate(itertools.zip_longest(*sides), 1):
        if None in lines:
            counts = [
                f"{path} has {number - 1 if line is None else number + sum(1 for _ in side)}"
                for path, line, side in zip(files.values(), lines, sides, strict=True)
            ]
            raise errors.BadInput(
                f"parallel files differ in their number of lines: {', '.join(counts)}; line n of each is one record, "
                "so correct the files"
            )
        yield f"{place}{number}", dict(zip(files, lines, strict=True))


def _file_lines(path: pathlib.Path) -> Iterator[str]:
    with opened(path) as file:
        yield from (line for _, line in _lines(path, file))


def _table(
    path: pathlib.Path,
    rows: Iterable[tuple[int, list[str]]],
    columns: Sequence[str],
    numbered: bool,
) -> Iterator[Located]:
    """Rows by the names in `columns`, by numbers from 0, or by the names in the first row; blank ones are none.

    Empty cells behind the last column, which some programs write, are none either.
    """
    header = list(columns)
    for number, cells in rows:
        place = f"{path} line {number}"
        if cells in ([], [""]):
            continue
        if numbered:
            yield place, {str(column): cell for column, cell in enumerate(cells)}
        elif not header:
            header = cells
            if twice := next((name for name in header if header.count(name) > 1), None):
                raise errors.BadInput(f"{place} names two columns {twice!r}; rename one")
        elif len(cells) < len(header) or any(cells[len(header) :]):
            raise errors.BadInput(
                f"{place} has {len(cells)} columns, and there must be {len(header)}: {', '.join(header)}; "
                "correct the line"
            )
        else:
            yield place, dict(zip(header, cells, strict=False))


def _quoted(path: pathlib.Path, file: Iterable[bytes]) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file, each with the number of its last line."""
    rows = csv.reader((line + "\n" for _, line in _lines(path, file)), strict=True)
    try:
        for cells in rows:
            yield rows.line_num, cells
    except csv.Error as error:
        raise errors.BadInput(
            f"{path} line {rows.line_num} is not CSV: {error}; correct the line, or write the rows as .jsonl"
        ) from error


def _object(place: str, row: Any) -> Record:
    if not isinstance(row, dict):
        raise errors.BadInput(
            f'{place} is not a JSON object; write rows like {{"text": "...", "label": "..."}}'
        )
    return row


def _lines(path: pathlib.Path, file: Iterable[bytes]) -> Iterator[tuple[int, str]]:
    """Numbered lines without their ends; only a line feed ends a line."""
    offset = 0
    for number, raw in enumerate(file, 1):
        line = _decode(path, raw, offset)
        offset += len(raw)
        if number == 1:
            line = line.removeprefix("\ufeff")
        yield number, line.removesuffix("\n").removesuffix("\r")


def _decode(path: pathlib.Path, raw: bytes, offset: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise errors.BadInput(
            f"{path} is not UTF-8: byte 0x{raw[error.start]:02x} at offset {offset + error.start}; "
            "convert the file to UTF-8"
        ) from error
