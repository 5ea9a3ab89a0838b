"""Which English and Python does every CPython carry? The text of a first run, without a download.

Prose is the language reference by topic and the docstrings of modules; code is whole functions and classes; docstrings
are those of functions, each with the code that it describes.
"""

import ast
import functools
import importlib
import json
import os
import pathlib
import sysconfig
import warnings
from collections.abc import Iterator

NAMES = ("python", "python-prose", "python-code", "python-docstrings")

# Directories of the standard library with tests, tables, generated code or other people's packages.
_NOT_TEXT = frozenset(
    "__phello__ __pycache__ ctypes dist-packages distutils encodings ensurepip idle_test idlelib lib-dynload "
    "lib2to3 msilib pydoc_data site-packages test tests tkinter turtledemo".split()
)
# In characters. A shorter definition is little more than its name; a longer class would be so large a part of
# the held-out text, a fifth of it in one case, that the measure would be of that class.
_SHORTEST, _LONGEST = 200, 20_000
_SHORTEST_DOCSTRING, _LONGEST_FUNCTION = 20, 1000


def records(name: str, field: str) -> Iterator[dict[str, str]]:
    """The records of one of NAMES: a document is the text of `field`; a function has `text` and `code`."""
    if name == "python-docstrings":
        return ({"text": text, "code": code} for text, code in functions())
    return ({field: text} for text in documents(name))


@functools.cache
def functions() -> tuple[tuple[str, str], ...]:
    """The first paragraph of each function's docstring in one line, and the function without it."""
    found: dict[str, str] = {}
    for _, tree in _parsed():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and (docstring := ast.get_docstring(node)):
                text = " ".join(docstring.split("\n\n")[0].split())
                rest = node.body[1:] or [ast.Pass()]
                code = ast.unparse(ast.FunctionDef(**{**vars(node), "body": rest}))
                if len(text) >= _SHORTEST_DOCSTRING and len(code) <= _LONGEST_FUNCTION:
                    found.setdefault(text, code)
    return tuple(found.items())


@functools.cache
def documents(name: str) -> tuple[str, ...]:
    """The documents of one of NAMES: reference topics and module docstrings; functions and classes."""
    if name == "python":
        return documents("python-prose") + documents("python-code")
    docstrings, definitions = _standard_library()
    return definitions if name == "python-code" else _topics() + docstrings


def identity(name: str) -> str:
    """What, beside the bytes of `files`, decides which documents there are."""
    limits = (_SHORTEST, _LONGEST)
    if name == "python-docstrings":
        limits = (_SHORTEST_DOCSTRING, _LONGEST_FUNCTION)
    return json.dumps([name, *limits, _topics()])


def files() -> list[pathlib.Path]:
    """The source files of the standard library that are text for us, sorted."""
    found = []
    for directory, inside, names in os.walk(sysconfig.get_paths()["stdlib"]):
        inside[:] = [name for name in inside if name not in _NOT_TEXT]
        found += [pathlib.Path(directory, name) for name in names if name.endswith(".py")]
    return sorted(found, key=lambda path: path.as_posix())


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
    for text, tree in _parsed():
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


def _parsed() -> Iterator[tuple[str, ast.Module]]:
    """The text of every source file, and what Python makes of it."""
    for path in files():
        try:
            text = path.read_text("utf-8")
            with warnings.catch_warnings(action="ignore"):
                tree = ast.parse(text)
        except (OSError, SyntaxError, ValueError):
            continue  # not every Python's library is the one its makers shipped
        yield text, tree
