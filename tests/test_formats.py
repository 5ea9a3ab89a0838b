"""Does every format give the records that a file holds, and is each mistake in one told with its place?"""

import gzip
import importlib
import json

import pytest

from model import errors
from train import documents

VERSE = "Io is near.\n\nEuropa is icy.\nGanymede is large.\n"


def write(path, content):
    raw = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return str(path)


def records(path, **options):
    return list(documents.records(documents.Source(path, **options)))


MOONS = [{"name": "Io", "days": "1.8"}, {"name": "Europa, icy", "days": "3.6"}]
# name of the file, its content, options of the source, records
CASES = [
    (
        "a.jsonl.gz",
        '{"name": "Io", "days": 1.8}\n\n{"tags": ["O"], "x": null}\n',
        {},
        [{"name": "Io", "days": 1.8}, {"tags": ["O"], "x": None}],
    ),
    (
        "a.json",
        '\ufeff[{"name": "Io"},\n {"name": "Europa"}]',
        {},
        [{"name": "Io"}, {"name": "Europa"}],
    ),
    ("a.tsv", "name\tdays\r\nIo\t1.8\n\nEuropa, icy\t3.6\t\t\n", {}, MOONS),
    ("a.tsv", "Io\t1.8\nEuropa, icy\t3.6\n", {"columns": ("name", "days")}, MOONS),
    ("a.tsv", "Io\t1.8\nEuropa\n", {"field": "0"}, [{"0": "Io", "1": "1.8"}, {"0": "Europa"}]),
    ("a.csv.gz", 'name,days\nIo,1.8\n"Europa, icy",3.6\n', {}, MOONS),
    (
        "a.csv",
        '"says ""Io""\nand more",7\n',
        {"columns": ("text", "n")},
        [{"text": 'says "Io"\nand more', "n": "7"}],
    ),
    (
        "a.train",
        "4 Who was Galileo ?\n\n0 a\u2028 b\n",
        {"format": "labelled"},
        [{"label": "4", "text": "Who was Galileo ?"}, {"label": "0", "text": "a\u2028 b"}],
    ),
    (
        "a.train",
        "1 fine\n",
        {"format": "labelled", "columns": ("sense", "sentence")},
        [{"sense": "1", "sentence": "fine"}],
    ),
    (
        "a.conll",
        "-DOCSTART- -X- O\n\nIo NN B-moon\nmoves VB O\n\n\nHi UH O",
        {},
        [{"tokens": ["Io", "moves"], "tags": ["B-moon", "O"]}, {"tokens": ["Hi"], "tags": ["O"]}],
    ),
    (
        "a.annotated",
        "New York\tB-place\n#\tO\n \n",
        {"format": "conll"},
        [{"tokens": ["New York", "#"], "tags": ["B-place", "O"]}],
    ),
    (
        "a.conll",
        "Io\tO\tB-moon\n",
        {"columns": ("tokens", "tags", "guess")},
        [{"tokens": ["Io"], "tags": ["O"], "guess": ["B-moon"]}],
    ),
    (
        "a.txt",
        VERSE,
        {"split": "line", "field": "verse"},
        [{"verse": "Io is near."}, {"verse": "Europa is icy."}, {"verse": "Ganymede is large."}],
    ),
]


@pytest.mark.parametrize(("name", "content", "options", "expected"), CASES)
def test_a_format_gives_all_fields_of_its_records(tmp_path, name, content, options, expected):
    assert records(write(tmp_path / name, content), **options) == expected


def test_a_record_comes_with_the_place_where_it_stands(tmp_path):
    def places(name, content, **options):
        path = write(tmp_path / name, content)
        found = documents.located(documents.Source(path, **options))
        return [place.removeprefix(f"{tmp_path}/") for place, _ in found]

    assert places("a.jsonl", '{"a": 1}\n\n{"a": 2}') == ["a.jsonl line 1", "a.jsonl line 3"]
    assert places("a.json", '[{"a": 1}, {"a": 2}]') == ["a.json row 1", "a.json row 2"]
    assert places("a.csv", 'a\n"1\n2"\n3\n') == ["a.csv line 3", "a.csv line 4"]
    assert places("a.conll", "\nIo O\nis O\n\nHi O\n") == ["a.conll line 2", "a.conll line 5"]
    assert places("a.txt", VERSE, split="line") == [f"a.txt line {n}" for n in (1, 3, 4)]


def test_parallel_files_give_one_record_a_line_even_an_empty_one(tmp_path):
    paths = {
        "fr": write(tmp_path / "a.fr.gz", "Où ?\n\nlà\u2028-bas\n"),
        "en": write(tmp_path / "a.en", "Where?\r\n\nover there"),
    }
    expected = [("Où ?", "Where?"), ("", ""), ("là\u2028-bas", "over there")]
    assert records(paths) == [{"fr": fr, "en": en} for fr, en in expected]
    assert list(documents.read(documents.Source(paths, field="en"))) == ["Where?", "over there"]
    assert documents.sources({"path": paths, "weight": 2})[0].path == paths


@pytest.mark.parametrize(("left", "right"), [(7, 5), (5, 7), (0, 3)])
def test_misaligned_parallel_files_are_refused_with_both_counts(tmp_path, left, right):
    paths = {
        "fr": write(tmp_path / "a.fr", "x\n" * left),
        "en": write(tmp_path / "a.en.gz", "y\n" * right),
    }
    counts = rf"\S+a\.fr has {left}, \S+a\.en\.gz has {right}"
    message = rf"^parallel files differ in their number of lines: {counts}; line n of each is one record, so correct"
    with pytest.raises(errors.BadInput, match=message):
        records(paths)


def test_a_parallel_file_must_be_one(tmp_path):
    paths = {"fr": write(tmp_path / "a.fr", "x\n"), "en": str(tmp_path / "*.en")}
    with pytest.raises(errors.BadInput, match=r"data file \S+\*\.en does not exist; check the"):
        records(paths)
    for name in ("a.en", "b.en"):
        write(tmp_path / name, "y\n")
    with pytest.raises(errors.BadInput, match=r"parallel file \S+\*\.en is 2 files; name one file"):
        records(paths)


@pytest.mark.parametrize("share", [0.9, 0.29, 0.7])
def test_parts_of_a_text_file_meet_at_the_floor_of_their_share_of_its_characters(tmp_path, share):
    text = "é\n\nb\U0001f600" * 23 + "c"
    path = write(tmp_path / "a.txt", text)
    parts = [
        next(documents.read(documents.Source(path, split="file", part=part)))
        for part in (f"0:{share}", f"{share}:1")
    ]
    assert "".join(parts) == text
    assert len(parts[0]) == int(len(text) * share)


def test_parts_of_other_sources_are_of_their_records_and_a_limit_takes_the_first(tmp_path):
    path = write(tmp_path / "a.jsonl", "".join(f'{{"n": {n}}}\n' for n in range(11)))
    numbers = lambda **options: [row["n"] for row in records(path, **options)]  # noqa: E731
    assert numbers(part="0:0.9") == list(range(9))
    assert numbers(part="0.9:1") == [9, 10]
    assert numbers(part="0.5:1", limit=3) == [5, 6, 7]
    assert numbers(limit=2) == [0, 1]
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in "abcd":
        write(folder / f"{name}.txt", name * 5)
    assert records(str(folder), part="0.5:0.75") == [{"text": "ccccc"}]


def test_the_digest_follows_columns_part_limit_and_the_files_of_each_side(tmp_path):
    one, two = write(tmp_path / "a.tsv", "a\tb\n"), write(tmp_path / "b.tsv", "c\td\n")
    paths = [one, {"x": one, "y": two}, {"x": two, "y": one}, {"y": one, "x": two}]
    sources = [documents.Source(path) for path in paths]
    for options in ({"columns": ("p", "q")}, {"part": "0:0.5"}, {"limit": 1}):
        sources.append(documents.Source(one, **options))
    assert len({documents.digest(source) for source in sources}) == len(sources)


MISTAKES = [
    (
        "a.json",
        '{"data": []}',
        {},
        r"a\.json holds dict; it must hold an array of objects, or one object a line",
    ),
    ("a.json", '[{"a": 1},\n7]', {}, r"a\.json row 2 is not a JSON object; write rows like"),
    ("a.json", '[{"a": 1},\n', {}, r"a\.json is not JSON: .*line 2 column 1.*; correct the file"),
    ("a.json", "[]", {}, r"a\.json holds no record; give one with at least one document"),
    (
        "a.jsonl",
        '{"a": 1}',
        {"part": "0:0.5"},
        r"a\.jsonl holds no record in its part '0:0\.5'; take a larger part",
    ),
    (
        "a.csv",
        'a,b\n"1,2\n',
        {},
        r"a\.csv line 2 is not CSV: unexpected end of data; correct the line, or write",
    ),
    (
        "a.csv",
        "a,b\n1,2,3\n",
        {},
        r"a\.csv line 2 has 3 columns, and there must be 2: a, b; correct the line",
    ),
    ("a.tsv", "a\ta\n", {}, r"a\.tsv line 1 names two columns 'a'; rename one"),
    (
        "a.all",
        "4 Who\nGalileo\n",
        {"format": "labelled"},
        r"a\.all line 2 is 'Galileo'; it must be a label, a space",
    ),
    (
        "a.all",
        "4 Who\n",
        {"format": "labelled", "columns": ("a",)},
        r"columns of \S+a\.all are a; a line of format",
    ),
    (
        "a.conll",
        "Io O\nEuropa\n",
        {},
        r"a\.conll line 2 is 'Europa', of 1 columns; it must be a token, a tab or",
    ),
    (
        "a.conll",
        "Io O\n",
        {"columns": ("x", "y", "z")},
        r"line 1 is 'Io O', of 2 columns; it must be x, y, z$",
    ),
    (
        "a.conll",
        "Io O\nis \xff".encode("latin-1"),
        {},
        r"a\.conll is not UTF-8: byte 0xff at offset 8; convert",
    ),
    (
        "a.txt",
        "Io",
        {"columns": ("x",)},
        r"has columns, and \S+a\.txt is read as text, which names its own; leave",
    ),
]


@pytest.mark.parametrize(("name", "content", "options", "message"), MISTAKES)
def test_a_mistake_is_told_in_one_line_with_its_place(tmp_path, name, content, options, message):
    with pytest.raises(errors.BadInput, match=message) as caught:
        records(write(tmp_path / name, content), **options)
    assert "\n" not in str(caught.value)


def test_a_field_that_is_no_text_is_refused_where_text_is_wanted(tmp_path):
    source = documents.Source(write(tmp_path / "a.conll", "Io O\n"), field="tokens")
    with pytest.raises(
        errors.BadInput, match=r"a\.conll line 1: field 'tokens' is \['Io'\] \(list\)"
    ):
        next(documents.read(source))


@pytest.mark.oracle
def test_parquet_gives_its_rows_and_a_broken_file_is_named(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    rows = [{"tokens": ["Io", "moves"], "label": 3}, {"tokens": [], "label": None}]
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert records(str(path)) == rows
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(errors.BadInput, match=r"a\.parquet is not a complete Parquet file \(.*\)"):
        records(str(path))


@pytest.mark.oracle
def test_a_saved_data_set_gives_the_rows_of_the_split_that_is_named(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {
        "train": [{"text": "Io", "label": 1}, {"text": "Europa", "label": 0}],
        "test": [{"text": "Hi", "label": 1}],
    }
    made = datasets.DatasetDict(
        {name: datasets.Dataset.from_list(split) for name, split in rows.items()}
    )
    home = str(tmp_path / "moons")
    made.save_to_disk(home)
    assert records(f"{home}:train") == rows["train"]
    assert records(f"{home}:test", format="datasets") == rows["test"]
    made["test"].save_to_disk(f"{home}-test")
    assert records(f"{home}-test") == rows["test"]
    assert list(documents.read(documents.Source(f"{home}:train", limit=1))) == ["Io"]
    digests = [
        documents.digest(documents.Source(f"{home}{end}")) for end in (":train", ":test", "-test")
    ]
    assert digests[0] != digests[1] == digests[2]
    message = r"moons:tset has no split 'tset' \(did you mean 'test'\?\); write one behind the path: \S+moons:train, "
    with pytest.raises(errors.BadInput, match=message):
        records(f"{home}:tset")
    with pytest.raises(errors.BadInput, match=r"data set \S+moons has no split None; write one"):
        records(home)
    with pytest.raises(errors.BadInput, match=r"moons-test:test has no splits; leave out :test"):
        records(f"{home}-test:test")
    with pytest.raises(errors.BadInput, match=r"cannot load data set hf://\S+ \(.+\); check its"):
        records(f"hf://{json.dumps(None)}/none-such:train")


def test_a_directory_beside_other_files_is_no_saved_data_set(tmp_path, monkeypatch):
    write(tmp_path / "state.json", "{}")
    monkeypatch.chdir(tmp_path)
    assert records(write(tmp_path / "a.txt", "Io")) == records("a.txt") == [{"text": "Io"}]


@pytest.mark.parametrize("name", ["a.parquet", "hf://moons:train"])
def test_a_library_that_is_not_installed_is_named(tmp_path, monkeypatch, name):
    path = name if ":" in name else write(tmp_path / name, "")

    def missing(library):
        raise ImportError(library)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(errors.BadInput, match=r"not installed; pip install 'ganymede\[data\]'$"):
        records(path)
