"""Do the README and the other pages name the files that there are, and is nothing in them left open?"""

import functools
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = ("model", "decode", "train")


@functools.cache
def tracked():
    """The paths that git tracks; in a copy without git, all there are."""
    asked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if asked.returncode == 0:
        return frozenset(filter(None, asked.stdout.split("\0")))
    return frozenset(p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*") if p.is_file())


def pages():
    return sorted(p for p in tracked() if re.fullmatch(r"[^/]+\.md|docs/.+\.md", p))


def tree(readme):
    """The files that "Where is what" names below each folder: `x.py` in an indented line under `folder/`."""
    block = readme.split("## Where is what", 1)[1].split("```")[1]
    found, folder = set(), ""
    for line in block.splitlines():
        if heading := re.match(r"([\w.]+/?)", line):
            folder = heading[1] if heading[1].endswith("/") else ""
        if folder.rstrip("/") in FOLDERS:
            found |= {folder + name for name in re.findall(r"\b\w+\.py\b", line)}
    return found


def links(page, text):
    """Where the relative links of a page lead, from the root."""
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:|#", target):
            place = (ROOT / page).parent / target.split("#")[0]
            yield target, place.resolve().relative_to(ROOT.resolve()).as_posix()


def leads_somewhere(path):
    return path in tracked() or any(name.startswith(f"{path.rstrip('/')}/") for name in tracked())


def open_places(text):
    """The placeholders that are left in a text."""
    return re.findall(r"@@\w*@*", text)


def test_the_readme_names_every_file_of_the_packages_and_no_other():
    there = {
        path
        for path in tracked()
        if path.startswith(tuple(f"{folder}/" for folder in FOLDERS))
        and not path.endswith("__init__.py")
    }
    named = tree((ROOT / "README.md").read_text("utf-8"))
    assert (sorted(there - named), sorted(named - there)) == ([], []), "(unnamed, named in vain)"


@pytest.mark.parametrize("page", pages())
def test_links_lead_to_tracked_files(page):
    found = list(links(page, (ROOT / page).read_text("utf-8")))
    assert [target for target, path in found if not leads_somewhere(path)] == []


@pytest.mark.parametrize("page", pages())
def test_no_placeholder_is_left(page):
    assert open_places((ROOT / page).read_text("utf-8")) == []


def test_what_the_rules_look_for_is_found_where_it_is():
    readme = (
        "x.py\n## Where is what\n```\nlaunch.py  it\nmodel/  a.py\n  b.py  that   c.py, d.py this\n"
        "configs/  e.py\n  f.py\ntrain/\n  g.py\n```\nh.py"
    )
    names = {"model/a.py", "model/b.py", "model/c.py", "model/d.py", "train/g.py"}
    assert tree(readme) == names
    text = "[a](b.md) [c](../README.md#x) [d](https://e.org/f) [g](#h)"
    assert list(links("docs/keys.md", text)) == [
        ("b.md", "docs/b.md"),
        ("../README.md#x", "README.md"),
    ]
    assert leads_somewhere("docs/keys.md") and leads_somewhere("docs")
    assert not leads_somewhere("docs/b.md") and not leads_somewhere("doc")
    assert open_places("a @@QUICK@@ b") == ["@@QUICK@@"]
    assert {"README.md", "CONTRIBUTING.md", "docs/keys.md"} <= set(pages())
