"""How do files become documents, one string each?

Text, JSON lines and TSV, plain or gzip, from a file, a glob or a directory; or the prose and code that
every CPython carries. What cannot be read is told in one line with the file and the place in it.
"""

import ast
import dataclasses
import difflib
import functools
import glob
import gzip
import hashlib
import importlib
import json
import os
import pathlib
import re
import sysconfig
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from model import errors

FORMATS = ("auto", "text", "jsonl", "tsv")
SPLITS = ("auto", "file", "paragraph", "line")
EMBEDDED = ("python", "python-prose", "python-code")

_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".tsv": "tsv"}
_SURROGATE = re.compile("[\ud800-\udfff]")
# Directories of the standard library with tests, tables, generated code or other people's packages.
_NOT_TEXT = frozenset(
    "__phello__ __pycache__ ctypes dist-packages distutils encodings ensurepip idle_test idlelib lib-dynload "
    "lib2to3 msilib pydoc_data site-packages test tests tkinter turtledemo".split()
)
# In characters. A shorter definition is little more than its name; a longer class would be so large a part of
# the held-out text, a fifth of it in one case, that the measure would be of that class.
_SHORTEST, _LONGEST = 200, 20_000


@dataclasses.dataclass(frozen=True)
class Source:
    """Where documents come from: a file, a glob, a directory, or one of the names in EMBEDDED.

    `weight` is the share of the training rows against the other sources; without weights every row of
    every source comes once per epoch. `field` names the field of a JSON line or the column of a TSV file
    (a number counts columns from 0 in a file without a header). `split` says what one document of a
    text file is: the file, each paragraph (blank lines part them), or each line. "auto" takes the files
    of a directory or a glob whole, and parts a single file, so that some of it can be held out: into
    paragraphs, or into lines where there is only one paragraph.
    """

    path: str
    weight: float | None = None
    format: str = "auto"
    field: str = "text"
    split: str = "auto"

    def __post_init__(self):
        for name, known in (("format", FORMATS), ("split", SPLITS)):
            value = getattr(self, name)
            if value not in known:
                hint = errors.nearest(value, known)
                raise errors.BadInput(
                    f"{name} of data source {self.path} is {value!r}{hint}; it must be one of: {', '.join(known)}"
                )
        if self.weight is not None and not 0 < self.weight < float("inf"):
            raise errors.BadInput(
                f"weight of data source {self.path} is {self.weight}; it must be a number above 0"
            )


def sources(values: Any, where: str = "data.train") -> tuple[Source, ...]:
    """Reads what a config says: a path, a mapping with the fields of Source, or a list of either."""
    if isinstance(values, str | Mapping | Source):
        values = [values]
    if not isinstance(values, Sequence):
        raise errors.BadInput(
            f"{where} is {values!r}; it must be a path, a mapping with a path, or a list of them"
        )
    found = []
    for number, value in enumerate(values):
        if isinstance(value, str):
            value = Source(value)
        elif isinstance(value, Mapping):
            value = errors.build(Source, value, f"{where}[{number}]")
        if not isinstance(value, Source):
            raise errors.BadInput(
                f"{where}[{number}] is {value!r}; it must be a path or a mapping with a path"
            )
        found.append(value)
    return tuple(found)


def read(source: Source) -> Iterator[str]:
    """The documents of a source, files in the order of their paths; those without a visible character are skipped."""
    if source.path in EMBEDDED:
        documents: Iterable[str] = _embedded(source.path)
    else:
        documents = (text for path in _paths(source) for text in _read_file(path, source))
    count = 0
    for text in documents:
        if text.strip():
            count += 1
            yield text
    if not count:
        raise errors.BadInput(
            f"data source {source.path} holds no text; give one with at least one document"
        )


def digest(source: Source) -> str:
    """SHA-256 of how a source is read and of its files' bytes; not of where they lie."""
    reading = [source.format, source.field, _split(source)]
    hashed = hashlib.sha256(json.dumps(reading).encode())
    embedded = source.path in EMBEDDED
    if embedded:
        hashed.update(json.dumps([source.path, _SHORTEST, _LONGEST, _topics()]).encode())
    for path in _modules() if embedded else _paths(source):
        try:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            raise errors.BadInput(f"cannot read {path}: {error.strerror or error}") from error
        hashed.update(_format(path, source).encode() + content)
    return hashed.hexdigest()


def _paths(source: Source) -> list[pathlib.Path]:
    """The files of a source, sorted; hidden ones are not looked at."""
    path = pathlib.Path(source.path).expanduser()
    if path.is_dir():
        inside = (found for found in path.rglob("*") if found.is_file())
        files = [
            found
            for found in inside
            if not any(part.startswith(".") for part in found.relative_to(path).parts)
        ]
        if not files:
            raise errors.BadInput(f"data directory {path} holds no file; put text files in it")
    elif path.exists():
        files = [path]
    else:
        files = [
            pathlib.Path(found)
            for found in glob.glob(str(path), recursive=True)
            if os.path.isfile(found)
        ]
    if not files:
        hint = _similar(path.name, _beside(path)) or errors.nearest(source.path, EMBEDDED)
        raise errors.BadInput(f"data file {source.path} does not exist{hint}; check the path")
    return sorted(files, key=lambda found: found.as_posix())


def _beside(path: pathlib.Path) -> list[str]:
    """The names of the files in a path's directory; of none where we may not look."""
    try:
        return [found.name for found in path.parent.iterdir() if found.is_file()]
    except OSError:
        return []


def _similar(name: str, known: Iterable[str]) -> str:
    """As errors.nearest, but strict: a directory's files are no list of what could have been meant."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.75)
    return errors.nearest(name, close)


def _split(source: Source) -> str:
    """What one document of a text file is; "auto" is left for a single file, which has to be read to know."""
    single = source.path not in EMBEDDED and pathlib.Path(source.path).expanduser().is_file()
    return "file" if source.split == "auto" and not single else source.split


def _format(path: pathlib.Path, source: Source) -> str:
    """How a file is read: as the source says, or by its suffix before .gz."""
    if source.format != "auto":
        return source.format
    return _SUFFIXES.get(pathlib.Path(path.name.removesuffix(".gz")).suffix.lower(), "text")


def _read_file(path: pathlib.Path, source: Source) -> Iterator[str]:
    """The documents of one file; whatever makes it unreadable is told with its name."""
    opened = gzip.open if path.name.endswith(".gz") else open
    readers = {"text": _read_text, "jsonl": _read_jsonl, "tsv": _read_tsv}
    try:
        with opened(path, "rb") as file:
            yield from readers[_format(path, source)](path, file, source)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise errors.BadInput(
            f"{path} is not a complete gzip file ({error}); copy or compress it again"
        ) from error
    except OSError as error:
        raise errors.BadInput(f"cannot read {path}: {error.strerror or error}") from error


def _read_text(path: pathlib.Path, file: Iterable[bytes], source: Source) -> Iterator[str]:
    """Documents of a text file: the file, its paragraphs, or its lines."""
    split = _split(source)
    if split == "line":
        yield from (line for _, line in _lines(path, file))
        return
    text = _decode(path, b"".join(file), 0).removeprefix("\ufeff")
    if split == "file":
        yield text
        return
    paragraphs = re.split(r"\n\s*\n", text)
    if split == "auto" and sum(1 for paragraph in paragraphs if paragraph.strip()) < 2:
        yield from (line.removesuffix("\r") for line in text.split("\n"))
    else:
        yield from paragraphs


def _read_jsonl(path: pathlib.Path, file: Iterable[bytes], source: Source) -> Iterator[str]:
    """One document per line: the named field of a JSON object."""
    for number, line in _lines(path, file):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise errors.BadInput(
                f"{path} line {number} is not JSON: {error}; correct the line"
            ) from error
        if not isinstance(row, dict):
            raise errors.BadInput(
                f'{path} line {number} is not a JSON object; write rows like {{"{source.field}": "..."}}'
            )
        if source.field not in row:
            raise errors.BadInput(
                f"{path} line {number} has no field {_unknown(source.field, row)}"
            )
        text = row[source.field]
        if not isinstance(text, str):
            raise errors.BadInput(
                f"{path} line {number}: field {source.field!r} is {text!r} ({type(text).__name__}); it must be text"
            )
        if _SURROGATE.search(text):
            raise errors.BadInput(
                f"{path} line {number}: field {source.field!r} holds a lone surrogate; remove it"
            )
        yield text


def _read_tsv(path: pathlib.Path, file: Iterable[bytes], source: Source) -> Iterator[str]:
    """One document per row: the named column, or the one with that number in a file without a header."""
    lines = _lines(path, file)
    if source.field.isdecimal():
        column = int(source.field)
    else:
        header = next(lines, (1, ""))[1].split("\t")
        if source.field not in header:
            raise errors.BadInput(f"{path} has no column {_unknown(source.field, header)}")
        column = header.index(source.field)
    for number, line in lines:
        cells = line.split("\t")
        if column < len(cells):
            yield cells[column]
        elif line:
            raise errors.BadInput(
                f"{path} line {number} has {len(cells)} columns, so none for {source.field!r}, which is number "
                f"{column} counted from 0; correct the line or data.field"
            )


def _unknown(field: str, known: Iterable[str]) -> str:
    """The end of a message about a field that is not there."""
    known = list(known)
    return f"{field!r}{errors.nearest(field, known)}; set field to one of: {', '.join(known)}"


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


@functools.cache
def _embedded(name: str) -> tuple[str, ...]:
    """The documents of one of EMBEDDED: reference topics and module docstrings; functions and classes."""
    if name == "python":
        return _embedded("python-prose") + _embedded("python-code")
    docstrings, definitions = _standard_library()
    return definitions if name == "python-code" else _topics() + docstrings


def _topics() -> tuple[str, ...]:
    """What `help("with")` and its like print: the language reference by topic."""
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        return ()
    return tuple(topics[topic] for topic in sorted(topics))


@functools.cache
def _standard_library() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The docstrings of the standard library's modules, and the sources of their functions and classes."""
    docstrings, definitions = [], []
    for path in _modules():
        try:
            text = path.read_text("utf-8")
            with warnings.catch_warnings(action="ignore"):
                tree = ast.parse(text)
        except (OSError, SyntaxError, ValueError):
            continue  # not every Python's library is the one its makers shipped
        docstrings.append(ast.get_docstring(tree) or "")
        lines = text.splitlines(keepends=True)
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                definitions.append("".join(lines[first - 1 : node.end_lineno]))
    return (
        tuple(text for text in docstrings if len(text) >= _SHORTEST),
        tuple(text for text in definitions if _SHORTEST <= len(text) <= _LONGEST),
    )


def _modules() -> list[pathlib.Path]:
    """The source files of the standard library that are text for us, sorted."""
    found = []
    for directory, inside, names in os.walk(sysconfig.get_paths()["stdlib"]):
        inside[:] = [name for name in inside if name not in _NOT_TEXT]
        found += [pathlib.Path(directory, name) for name in names if name.endswith(".py")]
    return sorted(found, key=lambda path: path.as_posix())
