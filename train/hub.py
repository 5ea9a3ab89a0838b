"""Which records does the Hugging Face `datasets` library have under a name, or in a directory it has saved?

`hf://NAME:SPLIT`, `hf://NAME:CONFIGURATION:SPLIT`, or a directory that `save_to_disk` wrote, with `:SPLIT` behind it
where it has splits. The library is needed for these only.
"""

import hashlib
import importlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from model import errors

PREFIX = "hf://"
FILES = ("dataset_dict.json", "state.json")  # by which a saved directory is known


def names(path: str) -> bool:
    """Whether a path means a data set of the library."""
    places = [pathlib.Path(place).expanduser() for place in {path, path.partition(":")[0]}]
    return path.startswith(PREFIX) or any(
        (place / name).is_file() for place in places for name in FILES
    )


def records(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a split with the place of each, counted from 1."""
    for number, row in enumerate(_load(path), 1):
        yield f"{path} row {number}", dict(row)


def digest(path: str) -> str:
    """SHA-256 of the files that a split is read from, in their order."""
    found = hashlib.sha256(json.dumps(_load(path).column_names).encode())
    for cached in _load(path).cache_files:
        with open(cached["filename"], "rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


def _load(path: str) -> Any:
    try:
        library = importlib.import_module("datasets")
    except ImportError as error:
        raise errors.BadInput(
            f"data source {path} needs the datasets library, which is not installed; pip install 'ganymede[data]'"
        ) from error
    name, *rest = path.removeprefix(PREFIX).split(":")
    directory = os.path.expanduser(name)
    split = rest[-1] if rest else None
    try:
        if os.path.isdir(directory):
            loaded = library.load_from_disk(directory)
        else:
            loaded = library.load_dataset(name, *rest[:-1])
    except Exception as error:  # scripts, caches and the network: anything may go wrong in it
        reason = " ".join(str(error).split())
        raise errors.BadInput(
            f"cannot load data set {path} ({type(error).__name__}: {reason}); check its name, or save it to a "
            "directory with save_to_disk and give that"
        ) from error
    if not isinstance(loaded, dict):
        if split is not None:
            raise errors.BadInput(f"data set {path} has no splits; leave out :{split}")
        return loaded
    if split not in loaded:
        hint = errors.nearest(split or "", loaded)
        raise errors.BadInput(
            f"data set {path} has no split {split!r}{hint}; write one behind the path: "
            + ", ".join(f"{name}:{known}" for known in loaded)
        )
    return loaded[split]
