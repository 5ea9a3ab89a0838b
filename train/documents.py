"""Which records, or documents, does a data source of a config hold?

Files in the formats of `train/formats.py`, plain or gzip, from a path, a glob or a directory; parallel files; data sets
of the Hugging Face library; or the prose and code that every CPython carries. A record is a mapping of named fields.
"""

import dataclasses
import difflib
import functools
import glob
import hashlib
import itertools
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from model import errors
from train import embedded, formats, hub

COLUMNED = ("tsv", "csv", "labelled", "conll")
FORMATS = ("auto", "text", "jsonl", "json", *COLUMNED, "parquet", "datasets")
SPLITS = ("auto", "file", "paragraph", "line")
EMBEDDED = embedded.NAMES

_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".tsv": "tsv",
    ".csv": "csv",
    ".conll": "conll",
    ".parquet": "parquet",
}
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class Source:
    """Where records come from: a file, a glob, a directory, a data set `hf://NAME:SPLIT`, or one of EMBEDDED.

    Attributes:
        path: where. A mapping of field names to files means parallel files: line n of each is one record.
        weight: the share of the training rows against the other sources; without weights every row of every source
            comes once per epoch.
        format: one of FORMATS; "auto" goes by the file's suffix before .gz, and takes what it does not know for text.
        field: of which field a text is read, and the name that the text of a text file gets. A number means that a
            TSV or CSV file has no header: its columns are then counted from 0.
        split: what one document of a text file is: the file, each paragraph (blank lines part them), or each line.
            "auto" takes the files of a directory or a glob whole, and parts a single file, so that some of it can be
            held out: into paragraphs, or into lines where there is only one paragraph.
        columns: names of the columns of a TSV or CSV file without a header, of labelled lines, or of a CoNLL file.
        part: a share by position, such as "0:0.9" and "0.9:1": of a single text file by characters, of all else by
            records. Of n of them "0:0.9" has the first int(0.9 n), and "0.9:1" the others.
        limit: at most so many records, the first ones.
        task: what is learnt from it, where that is not the config's own `task`; its keys.
    """

    path: str | dict[str, str]
    weight: float | None = None
    format: str = "auto"
    field: str = "text"
    split: str = "auto"
    columns: tuple[str, ...] = ()
    part: str | None = None
    limit: int | None = None
    task: dict[str, Any] | None = None

    def __post_init__(self):
        for name, known in (("format", FORMATS), ("split", SPLITS)):
            value = getattr(self, name)
            if value not in known:
                hint = errors.nearest(value, known)
                raise errors.BadInput(
                    f"{name} of data source {self.name} is {value!r}{hint}; it must be one of: {', '.join(known)}"
                )
        if self.weight is not None and not 0 < self.weight < float("inf"):
            raise errors.BadInput(
                f"weight of data source {self.name} is {self.weight}; it must be a number above 0"
            )
        if self.limit is not None and self.limit < 1:
            raise errors.BadInput(
                f"limit of data source {self.name} is {self.limit}; it must be at least 1"
            )
        if self.part is not None and self.share is None:
            raise errors.BadInput(
                f"part of data source {self.name} is {self.part!r}; it must be two numbers from 0 to 1, the second "
                "larger, such as '0:0.9'"
            )
        if isinstance(self.path, dict) and (not self.path or self.format not in ("auto", "text")):
            raise errors.BadInput(
                f"data source {self.name} has path={self.path!r} and format={self.format!r}; a mapping names parallel "
                "text files, one line a record, by field"
            )

    @property
    def name(self) -> str:
        """The path, as messages give it."""
        return self.path if isinstance(self.path, str) else " + ".join(self.path.values())

    @property
    def share(self) -> tuple[float, float] | None:
        """`part` in numbers; None where there is none, or none that means anything."""
        try:
            first, last = map(float, (self.part or "").split(":"))
        except ValueError:
            return None
        return (first, last) if 0 <= first < last <= 1 else None


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


def records(source: Source) -> Iterator[formats.Record]:
    """The records of a source with all their fields, files in the order of their paths."""
    return (record for _, record in located(source))


def located(source: Source) -> Iterator[formats.Located]:
    """As `records`, each behind the place where it stands, such as `train.jsonl line 3`, for messages about it."""
    count = 0
    for found in _chosen(source):
        count += 1
        yield found
    if not count:
        raise errors.BadInput(f"data source {source.name} holds no record{_remedy(source)}")


def read(source: Source) -> Iterator[str]:
    """The text of each record, its one `field`; those without a visible character are skipped."""
    count = 0
    for place, record in _chosen(source):
        text = _text(place, record, source.field)
        if text.strip():
            count += 1
            yield text
    if not count:
        raise errors.BadInput(f"data source {source.name} holds no text{_remedy(source)}")


def digest(source: Source) -> str:
    """SHA-256 of how a source is read and of its files' bytes; not of where they lie."""
    reading: list[Any] = [source.format, source.field, _split(source)]
    later = {name: getattr(source, name) for name in ("columns", "part", "limit")}
    reading += [
        [name, value] for name, value in later.items() if value
    ]  # absent, as they once were
    if isinstance(source.path, dict):
        reading.append(list(source.path))
    hashed = hashlib.sha256(json.dumps(reading).encode())
    if _of_hub(source):
        hashed.update(hub.digest(source.name).encode())
        return hashed.hexdigest()
    if source.path in EMBEDDED:
        hashed.update(embedded.identity(source.name).encode())
    for path in embedded.files() if source.path in EMBEDDED else _paths(source):
        try:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            raise errors.BadInput(f"cannot read {path}: {error.strerror or error}") from error
        hashed.update(_format(path, source).encode() + content)
    return hashed.hexdigest()


def _chosen(source: Source) -> Iterator[formats.Located]:
    """The records in `part`, up to `limit`."""
    found = _all(source)
    if source.share is not None and not _cut_by_characters(source):
        kept = formats.cut(source.share, sum(1 for _ in _all(source)))
        found = itertools.islice(found, kept.start, kept.stop)
    return itertools.islice(found, source.limit)


def _all(source: Source) -> Iterator[formats.Located]:
    """Every record of a source, with its place."""
    if isinstance(source.path, dict):
        return formats.parallel(dict(zip(source.path, _paths(source), strict=True)))
    if source.path in EMBEDDED:
        return ((source.name, each) for each in embedded.records(source.path, source.field))
    if _of_hub(source):
        return hub.records(source.path)
    return itertools.chain.from_iterable(_read_file(path, source) for path in _paths(source))


def _of_hub(source: Source) -> bool:
    """Whether the `datasets` library reads it."""
    if not isinstance(source.path, str) or source.path in EMBEDDED:
        return False
    return source.format == "datasets" or (source.format == "auto" and hub.names(source.path))


def _text(place: str, record: formats.Record, field: str) -> str:
    """One field of a record, which must be text."""
    if field not in record:
        raise errors.BadInput(
            f"{place} has no field {field!r}{errors.nearest(field, record)}; set field to one of: {', '.join(record)}"
        )
    text = record[field]
    if not isinstance(text, str):
        raise errors.BadInput(
            f"{place}: field {field!r} is {text!r} ({type(text).__name__}); it must be text"
        )
    if _SURROGATE.search(text):
        raise errors.BadInput(f"{place}: field {field!r} holds a lone surrogate; remove it")
    return text


def _remedy(source: Source) -> str:
    """The end of a message about a source that is empty."""
    if source.part is None:
        return "; give one with at least one document"
    return f" in its part {source.part!r}; take a larger part"


def _paths(source: Source) -> list[pathlib.Path]:
    """The files of a source, sorted, parallel ones as given; hidden ones are not looked at."""
    if isinstance(source.path, dict):
        alone = (Source(side, format="text") for side in source.path.values())
        return [_only(side) for side in alone]
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
        hint = _similar(path.name, _beside(path)) or errors.nearest(source.name, EMBEDDED)
        raise errors.BadInput(f"data file {source.name} does not exist{hint}; check the path")
    return sorted(files, key=lambda found: found.as_posix())


def _only(source: Source) -> pathlib.Path:
    """The file of a source that must be one."""
    paths = _paths(source)
    if len(paths) > 1:
        raise errors.BadInput(
            f"parallel file {source.name} is {len(paths)} files; name one file for each field"
        )
    return paths[0]


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
    return "file" if source.split == "auto" and not _is_file(source) else source.split


def _is_file(source: Source) -> bool:
    """Whether a source is one file by its own name."""
    path = source.path
    return (
        isinstance(path, str) and path not in EMBEDDED and pathlib.Path(path).expanduser().is_file()
    )


def _cut_by_characters(source: Source) -> bool:
    """Whether `part` counts characters: where there is one file, of text."""
    return _is_file(source) and _format(pathlib.Path(source.name), source) == "text"


def _format(path: pathlib.Path, source: Source) -> str:
    """How a file is read: as the source says, or by its suffix before .gz."""
    if source.format != "auto":
        return source.format
    return _SUFFIXES.get(pathlib.Path(path.name.removesuffix(".gz")).suffix.lower(), "text")


def _read_file(path: pathlib.Path, source: Source) -> Iterator[formats.Located]:
    """The records of one file."""
    how = _format(path, source)
    if source.columns and how not in COLUMNED:
        raise errors.BadInput(
            f"data source {source.name} has columns, and {path} is read as {how}, which names its own; leave them out, "
            f"or set format to one of: {', '.join(COLUMNED)}"
        )
    document: dict[str, Any] = {"field": source.field, "split": _split(source)}
    if _cut_by_characters(source):
        document["part"] = source.share
    numbered = not source.columns and source.field.isdecimal()
    table: dict[str, Any] = {"columns": source.columns, "numbered": numbered}
    readers: dict[str, Callable[..., Iterator[formats.Located]]] = {
        "text": functools.partial(formats.text, **document),
        "jsonl": formats.jsonl,
        "json": formats.array,
        "tsv": functools.partial(formats.tsv, **table),
        "csv": functools.partial(formats.comma_separated, **table),
        "labelled": functools.partial(formats.labelled, columns=source.columns),
        "conll": functools.partial(formats.conll, columns=source.columns),
        "parquet": formats.parquet,
    }
    with formats.opened(path) as file:
        yield from readers[how](path, file)
