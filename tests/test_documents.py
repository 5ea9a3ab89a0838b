"""Are files read into the documents they hold, and refused with the place of what is wrong?"""

import gzip
import json
import re

import pytest

from model import errors
from train import documents


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def read(path, **options):
    return list(documents.read(documents.Source(str(path), **options)))


STANZAS = "Io\nEuropa\n\n \nGanymede\r\nis large\n\n\n"


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("file", [STANZAS]),
        ("line", ["Io", "Europa", "Ganymede", "is large"]),
        ("paragraph", ["Io\nEuropa", "Ganymede\r\nis large"]),
    ],
)
@pytest.mark.parametrize("name", ["moons.txt", "moons.md", "moons.txt.gz"])
def test_a_text_file_is_one_document_or_its_lines_or_its_paragraphs(
    tmp_path, name, split, expected
):
    assert read(write(tmp_path / name, STANZAS), split=split) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (STANZAS, ["Io\nEuropa", "Ganymede\r\nis large"]),
        ("\n\nIo\r\nEuropa\nis icy\n\n", ["Io", "Europa", "is icy"]),
        ("Io", ["Io"]),
        ("I\n\n.\n\n", ["I", "."]),
    ],
)
@pytest.mark.parametrize("name", ["moons.txt", "moons.txt.gz"])
def test_a_single_text_file_is_parted_and_the_files_of_a_directory_are_not(
    tmp_path, name, text, expected
):
    path = write(tmp_path / "moons" / name, text)
    assert read(path) == read(path, split="auto") == expected
    assert read(path.parent) == read(f"{path.parent}/*.tx*") == [text]
    assert read(path.parent, split="line") == read(path, split="line")


def test_only_a_line_feed_ends_a_line_and_a_byte_order_mark_is_no_text(tmp_path):
    path = write(tmp_path / "a.txt", "\ufeffone\u2028still one\x85\x0c\ntwo")
    assert read(path, split="line") == ["one\u2028still one\x85\x0c", "two"]
    assert read(path) == ["one\u2028still one\x85\x0c", "two"]
    assert read(path, split="file") == ["one\u2028still one\x85\x0c\ntwo"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson.gz"])
def test_json_lines_give_the_named_field(tmp_path, name):
    rows = [{"text": "Io", "body": "first\nmoon"}, {"body": " \u2028é😀", "n": 3}, {"body": " "}]
    path = write(tmp_path / name, "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    assert read(path, field="body") == ["first\nmoon", " \u2028é😀"]


@pytest.mark.parametrize("name", ["a.tsv", "a.tsv.gz"])
def test_a_table_gives_the_named_column_or_the_one_with_that_number(tmp_path, name):
    path = write(tmp_path / name, 'label\ttext\r\n0\tsay "Io"\r\n\r\n1\tEuropa\r\n')
    assert read(path) == ['say "Io"', "Europa"]
    assert read(path, field="1") == ["text", 'say "Io"', "Europa"]


def test_format_overrules_the_suffix(tmp_path):
    path = write(tmp_path / "a.txt", '{"text": "Io"}\n')
    assert read(path) == ['{"text": "Io"}']
    assert read(path, format="jsonl") == ["Io"]


def test_directories_and_globs_are_read_in_the_order_of_their_paths_without_hidden_files(
    tmp_path, monkeypatch
):
    for name in ["b/one.txt", "a/two.txt.gz", "a/.hidden", ".git/three.txt", "c.jsonl"]:
        write(tmp_path / name, '{"text": "c"}' if name == "c.jsonl" else name)
    assert read(tmp_path) == ["a/two.txt.gz", "b/one.txt", "c"]
    assert read(f"{tmp_path}/**/*.txt*") == ["a/two.txt.gz", "b/one.txt"]
    found = list(tmp_path.rglob("*"))
    for order in (found, found[::-1]):
        monkeypatch.setattr(type(tmp_path), "rglob", lambda *_, order=order: order)
        assert read(tmp_path) == ["a/two.txt.gz", "b/one.txt", "c"]


def test_a_config_names_sources_by_path_mapping_or_list():
    source = documents.Source("a.tsv", weight=2.0, field="body")
    assert documents.sources("a.txt") == (documents.Source("a.txt"),)
    assert documents.sources(
        ["a.txt", {"path": "a.tsv", "weight": 2, "field": "body"}, source]
    ) == (
        documents.Source("a.txt"),
        source,
        source,
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            [{"path": "a", "wieght": 2}],
            r"data\.train\[0\] has no key 'wieght' \(did you mean 'weight'\?\)",
        ),
        (["a", 7], r"data\.train\[1\] is 7; it must be a path or a mapping"),
        (7, r"data\.train is 7; it must be a path, a mapping with a path, or a list"),
        (
            {"path": "a", "format": "jsonn"},
            r"format of data source a is 'jsonn' \(did you mean 'json'\?\); it must be one of: auto, text,",
        ),
        (
            {"path": "a", "part": "0.9"},
            r"part of data source a is '0\.9'; it must be two numbers from 0 to 1",
        ),
        (
            {"path": "a", "part": "0.9:0.1"},
            r"part of data source a is '0\.9:0\.1'; it must be two numbers",
        ),
        (
            {"path": "a", "part": "0:nan"},
            r"part of data source a is '0:nan'; it must be two numbers",
        ),
        ({"path": "a", "limit": 0}, r"limit of data source a is 0; it must be at least 1"),
        ({"path": {}}, r"has path=\{\} and format='auto'; a mapping names parallel text files"),
        (
            {"path": {"fr": "a", "en": "b"}, "format": "tsv"},
            r"data source a \+ b has path=\{'fr': 'a', 'en': 'b'\} and format='tsv'; a mapping names parallel text",
        ),
        ({"path": {"fr": 7}}, r"data\.train\[0\]\.path.* is .*7.*must be text"),
        (
            {"path": "a", "split": "word"},
            r"split of data source a is 'word'.* auto, file, paragraph, line$",
        ),
        (
            {"path": "a", "weight": 0},
            r"weight of data source a is 0.0; it must be a number above 0",
        ),
        ({"path": "a", "weight": float("nan")}, r"weight of data source a is nan; it must be"),
    ],
)
def test_a_wrong_source_in_a_config_is_named(values, message):
    with pytest.raises(errors.BadInput, match=message) as caught:
        documents.sources(values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.txt", b"Io\nEuropa \xff", {}, r"a\.txt is not UTF-8: byte 0xff at offset 10; convert"),
        (
            "a.txt",
            b"Io\nEuropa \xff",
            {"split": "line"},
            r"a\.txt is not UTF-8: byte 0xff at offset 10; convert",
        ),
        ("a.txt.gz", b"Io\n\xc3", {}, r"a\.txt\.gz is not UTF-8: byte 0xc3 at offset 3; convert"),
        ("a.txt", b"", {}, r"a\.txt holds no text; give one with at least one document"),
        ("a.txt", b" \n\n", {"split": "line"}, r"a\.txt holds no text"),
        (
            "a.jsonl",
            b'{"text": "Io"}\n{"text": Io}',
            {},
            r"a\.jsonl line 2 is not JSON: Expecting value.*; correct",
        ),
        (
            "a.jsonl",
            b'\n["Io"]',
            {},
            r'a\.jsonl line 2 is not a JSON object; write rows like \{"text": "\.\.\.", "label": "\.\.\."\}',
        ),
        (
            "a.jsonl",
            b'{"texts": "Io", "id": 3}',
            {},
            r"a\.jsonl line 1 has no field 'text' \(did you mean 'texts'\?\); set field to one of: texts, id",
        ),
        (
            "a.jsonl",
            b'{"text": 7}',
            {},
            r"a\.jsonl line 1: field 'text' is 7 \(int\); it must be text",
        ),
        (
            "a.jsonl",
            b'{"text": "\\ud800"}',
            {},
            r"a\.jsonl line 1: field 'text' holds a lone surrogate",
        ),
        (
            "a.tsv",
            b"label\tsentence\n0\tIo\n",
            {"field": "sentance"},
            r"a\.tsv line 2 has no field 'sentance' \(did you mean 'sentence'\?\); set field to one of: label, ",
        ),
        (
            "a.tsv",
            b"label\ttext\n0\tIo\n1\n",
            {},
            r"a\.tsv line 3 has 1 columns, and there must be 2: label, text; correct the line",
        ),
        (
            "a.tsv",
            b"Io\n",
            {"field": "3"},
            r"a\.tsv line 1 has no field '3'; set field to one of: 0",
        ),
        ("a.tsv", b"label\ttext\n", {}, r"a\.tsv holds no text; give one"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_the_place(
    tmp_path, name, content, options, message
):
    with pytest.raises(errors.BadInput, match=message) as caught:
        read(write(tmp_path / name, content), **options)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused_with_the_nearest_name(tmp_path):
    write(tmp_path / "moons.txt", "Io")
    with pytest.raises(
        errors.BadInput,
        match=r"data file .*moon\.txt does not exist \(did you mean 'moons\.txt'\?\)",
    ):
        read(tmp_path / "moon.txt")
    with pytest.raises(
        errors.BadInput, match=r"data file pyton does not exist \(did you mean 'python'\?\)"
    ):
        read("pyton")
    with pytest.raises(errors.BadInput, match=r"data file .*\*\.md does not exist; check the path"):
        read(tmp_path / "*.md")


def test_a_directory_or_a_far_name_is_no_suggestion(tmp_path):
    for name in ("opt", "nope", "nose.txt.orig.bak"):
        (tmp_path / name).mkdir()
    write(tmp_path / "note.md", "Io")
    for name in ("nope.txt", "nop", "/nope.txt"):
        path = name if name.startswith("/") else tmp_path / name
        with pytest.raises(errors.BadInput, match=r"nop\S* does not exist; check the path$"):
            read(path)


def test_an_empty_directory_is_refused(tmp_path):
    with pytest.raises(errors.BadInput, match="holds no file"):
        read(tmp_path)


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-9], lambda raw: b"Io", lambda raw: raw[:10] + b"\xff" * 30]
)
def test_a_damaged_gzip_file_is_refused(tmp_path, damage):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(damage(gzip.compress(b"Ganymede, Callisto, Io and Europa " * 7)))
    with pytest.raises(
        errors.BadInput,
        match=r"a\.txt\.gz is not a complete gzip file \(.*\); copy or compress it again",
    ):
        read(path)


def test_a_file_that_the_system_does_not_let_us_read_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "a.txt", "Io")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(errors.BadInput, match=r"cannot read .*a\.txt: Permission denied"):
        read(path)


def digest(path, **options):
    return documents.digest(documents.Source(str(path), **options))


def test_the_digest_follows_the_content_and_the_reading_but_not_the_place(tmp_path):
    first = write(tmp_path / "one" / "a.txt", "Io")
    original = digest(first)
    assert digest(write(tmp_path / "two" / "b.txt", "Io")) == original
    assert digest(first, weight=2.0) == original
    splits = [digest(first, split=split) for split in documents.SPLITS]
    assert splits[0] == original and len(set(splits)) == len(documents.SPLITS)
    assert digest(first.parent) == digest(first.parent, split="file") != original
    assert digest(write(tmp_path / "one" / "a.txt", "Io ")) != original
    assert digest(write(tmp_path / "a.jsonl", "Io")) != original
    assert re.fullmatch("[0-9a-f]{64}", digest("python-prose"))


def test_a_file_named_like_the_embedded_text_does_not_change_its_digest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = digest("python-prose")
    write(tmp_path / "python-prose", "Io")
    assert digest("python-prose") == before


def test_the_embedded_text_is_prose_and_whole_definitions_without_tests_and_tables():
    prose, code = read("python-prose"), read("python-code")
    assert read("python") == prose + code
    assert any('The "with" statement' in text for text in prose)
    assert sum(map(len, prose)) > 400_000 and sum(map(len, code)) > 3_000_000
    assert all(re.match(r"(@|def |class |async def )", text) for text in code)
    assert all(200 <= len(text) <= 20_000 for text in code)
    assert any(text.startswith("def getopt(") for text in code)
    assert not any(text.startswith("class _TestCase") for text in code)


def test_functions_come_with_what_their_docstrings_say():
    found = list(documents.records(documents.Source("python-docstrings")))
    assert len(found) > 1000 and all(each.keys() == {"text", "code"} for each in found)
    each = next(each for each in found if each["text"].startswith("Adds 'prefix' to the"))
    assert each["code"].startswith("def indent(text, prefix, predicate=None):\n")
    assert "prefix" in each["code"] and '"""' not in each["code"]
