"""What is on disk when a run is stopped? Complete checkpoints only, each verified leaf by leaf when it is read.

A checkpoint is written beside its final name and renamed when it is whole, so a kill leaves either all of it or a
directory that nobody lists. `meta` records a digest per leaf: Orbax itself reads a flipped bit without complaint.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import logging
import pathlib
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Set
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from model import blocks, errors, files, sharding

# Under which name training keeps the weights that stand in place of those it trains.
AVERAGE = "/average/"
HALF_WRITTEN = "*.orbax-checkpoint-tmp*"
# How Orbax and TensorStore word what a disk refuses; the exception's type depends on which thread met it.
DISK = re.compile(
    r"no space left[\w ]*|file too large|disk quota exceeded|read-only file system|permission denied",
    re.I,
)
# How TensorStore names the array that it could not read.
UNREADABLE = re.compile(r'(?:Error reading|Metadata at) "([^"]+)/')


def _hush() -> None:
    """Keeps Orbax's own words off the terminal: what matters to a person is raised as BadInput, once.

    It logs every stage of a save and each failure in three threads; and after a failed read or write, the work it
    abandons complains past any handler, of a closed event loop and of exceptions that nobody fetched.
    """
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    logging.getLogger("asyncio").addFilter(lambda record: "orbax" not in record.getMessage())
    usual = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        code = getattr(unraisable.object, "cr_code", None)  # of a coroutine
        if "Event loop is closed" in str(unraisable.exc_value) or (
            code and "orbax" in code.co_filename
        ):
            return
        usual(unraisable)

    sys.unraisablehook = hook


_hush()


class Checkpoints:
    """The checkpoints of one run: written in the background, the last `keep` complete ones kept.

    Attributes:
        directory: where they are; made if missing.
        discarded: half-written checkpoints that a killed run left behind, removed when this object was made.
    """

    def __init__(self, directory: str | pathlib.Path, keep: int = 2) -> None:
        self.directory = pathlib.Path(directory).absolute()
        with _disk_errors(f"checkpoints cannot be kept in {self.directory}"):
            self.directory.mkdir(parents=True, exist_ok=True)
        # Of several processes one tidies up; Orbax lets none of them go on before the first has come that far.
        self.discarded = (
            sorted(self.directory.glob(HALF_WRITTEN)) if jax.process_index() == 0 else []
        )
        for path in self.discarded:
            shutil.rmtree(path, ignore_errors=True)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(
            self.directory, options=options, item_names=("state", "meta")
        )
        self._writing: int | None = None

    def latest(self) -> int | None:
        """The step of the newest complete checkpoint, or None."""
        return latest(self.directory)

    def save(self, step: int, state: Any, meta: Mapping[str, Any]) -> None:
        """Copies `state` and returns; the files are written in the background.

        Raises:
            BadInput: when this or the previous checkpoint does not fit on the disk.
        """
        self.wait()
        self._writing = step
        leaves = _describe(state)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self.directory).free
        if free < size:
            raise self._failure(f"it needs {size:,} bytes and {free:,} are free")
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            meta=ocp.args.JsonSave({"meta": dict(meta), "leaves": leaves}),
        )
        with self._written():
            self._manager.save(step, args=items, force=True)

    def wait(self) -> None:
        """Returns when the last save is on disk, and raises BadInput when it could not be written."""
        with self._written():
            self._manager.wait_until_finished()

    def restore(self, step: int, abstract_state: Any) -> tuple[Any, dict]:
        """The state and meta of a complete checkpoint, laid out as `abstract_state` (`jax.ShapeDtypeStruct`s) says."""
        return _read(self.directory, step, abstract_state)

    def close(self) -> None:
        """Waits for the last save and ends the background threads."""
        try:
            self.wait()
        finally:
            with contextlib.suppress(Exception):  # what went wrong was raised by `wait`
                self._manager.close()

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        """Turns a disk's refusal, from whichever thread, into one line."""
        try:
            yield
        except Exception as error:
            reason = _disk_reason(error)
            if reason is None:
                raise
            raise self._failure(reason) from error

    def _failure(self, reason: str) -> errors.BadInput:
        last = self.latest()
        kept = "no earlier one exists" if last is None else f"the one of step {last} is kept"
        return errors.BadInput(
            f"checkpoint of step {self._writing} was not written to {self.directory} ({reason}); {kept}; "
            "make room and run the same command again"
        )


def latest(directory: str | pathlib.Path) -> int | None:
    """The step of the newest complete checkpoint in a directory, or None; half-written ones do not count."""
    paths = pathlib.Path(directory).glob("*") if pathlib.Path(directory).is_dir() else ()
    return max((int(path.name) for path in paths if path.name.isdigit()), default=None)


def params_only(directory: str | pathlib.Path, step: int, abstract_params: Any) -> Any:
    """The parameters of a checkpoint, without reading its optimizer state.

    Where training kept an average of one, that is read in its place.
    """
    directory = pathlib.Path(directory).absolute()
    with _damage(directory, step):
        there = _read_json(directory, step)["leaves"]
    # Wherever it stands in the optimiser's state.
    averaged = {name.partition(AVERAGE)[2]: name for name in there if AVERAGE in name}
    trained = {name for name in there if name.startswith("params/")}
    only = {*averaged.values()} | trained - {f"params/{name}" for name in averaged}
    flat = traverse_util.flatten_dict(abstract_params, sep="/")
    names = {name: averaged.get(name, f"params/{name}") for name in flat}
    wanted = {full: flat[name] for name, full in names.items()}
    nested = _read(directory, step, traverse_util.unflatten_dict(wanted, sep="/"), only)[0]
    read = traverse_util.flatten_dict(nested, sep="/")
    return traverse_util.unflatten_dict({name: read[names[name]] for name in flat}, sep="/")


def read_meta(directory: str | pathlib.Path, step: int) -> dict:
    """What `save` was given as `meta`."""
    directory = pathlib.Path(directory).absolute()
    with _damage(directory, step):
        return _read_json(directory, step)["meta"]


def tree_digest(params: Any) -> str:
    """SHA-256 of parameters over sorted path, dtype, shape and bytes: the name of a model's weights.

    The same for stacked and unstacked layers, on any mesh.

    Example: `{"a": float32 [1.0]}` digests the line `a float32 (1,) <sha256 of 00 00 80 3f>` and a newline.
    """
    entries = _describe(blocks.unstack_layers(jax.tree.map(sharding.to_host, params)))
    lines = [
        f"{name} {leaf['dtype']} {tuple(leaf['shape'])} {leaf['sha256']}\n"
        for name, leaf in sorted(entries.items())
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def write_file(path: pathlib.Path, text: str) -> None:
    """Writes a file that is complete or as it was, whenever we are killed."""
    with _disk_errors(f"{path} cannot be written"):
        files.write_text(path, text)


def _describe(tree: Any) -> dict[str, dict]:
    """Per leaf: what shape, dtype and bytes it has, by a path such as `params/norm/scale`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    names = [_name(path) for path, _ in leaves]
    if jax.process_count() > 1:  # one leaf at a time: no host need hold the whole tree
        digests = [_sha256(sharding.to_host(leaf)) for _, leaf in leaves]
    else:
        leaves = jax.device_get(leaves)
        with (
            concurrent.futures.ThreadPoolExecutor() as pool
        ):  # hashlib releases the interpreter lock
            digests = list(pool.map(_sha256, (leaf for _, leaf in leaves)))
    return {
        name: {"shape": list(np.shape(leaf)), "dtype": str(leaf.dtype), "sha256": digest}
        for name, (_, leaf), digest in zip(names, leaves, digests, strict=True)
    }


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _sha256(leaf: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data).hexdigest()


def _read(
    directory: pathlib.Path, step: int, abstract: Any, only: Set[str] | None = None
) -> tuple[Any, dict]:
    """Reads a checkpoint, or the leaves that `only` names, into `abstract`, and verifies each one's digest."""
    path = directory / str(step)
    with _damage(directory, step):
        record = _read_json(directory, step)
        held = {
            name: leaf for name, leaf in record["leaves"].items() if only is None or name in only
        }
        _check_same(path, held, abstract)
        args = ocp.args.PyTreeRestore(
            item=abstract,
            restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
            partial_restore=only is not None,
        )
        with ocp.PyTreeCheckpointer() as reader:
            state = reader.restore(path / "state", args=args)
        for name, leaf in _describe(state).items():
            if leaf["sha256"] != held[name]["sha256"]:
                raise OSError(f"{name} is not what was written")
    return state, record["meta"]


def _read_json(directory: pathlib.Path, step: int) -> dict:
    try:
        return json.loads((directory / str(step) / "meta" / "metadata").read_text())
    except ValueError:
        raise OSError("meta/metadata is not what was written") from None


def _check_same(path: pathlib.Path, held: Mapping[str, Mapping], abstract: Any) -> None:
    """Raises unless a checkpoint holds just what is asked for; Orbax would cast a dtype without a word."""
    there = {name: f"{leaf['dtype']} {leaf['shape']}" for name, leaf in held.items()}
    here = {
        _name(path): f"{leaf.dtype} {list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)
    }
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            raise errors.BadInput(
                f"checkpoint {path} is of another model than this config: {name} is {there.get(name, 'absent')} there "
                f"and {here.get(name, 'absent')} here; use the config it was trained with"
            )


@contextlib.contextmanager
def _damage(directory: pathlib.Path, step: int) -> Iterator[None]:
    """Whatever goes wrong in reading a complete checkpoint means that its files were changed since."""
    try:
        yield
    except errors.BadInput:
        raise
    except Exception as error:
        others = [
            int(path.name)
            for path in directory.glob("*")
            if path.name.isdigit() and int(path.name) < step
        ]
        then = f"go on from step {max(others)}" if others else "start again from step 0"
        path = directory / str(step)
        raise errors.BadInput(
            f"checkpoint {path} is damaged ({_what_is_damaged(path, error)}); remove that directory to {then}"
        ) from error


def _what_is_damaged(path: pathlib.Path, error: Exception) -> str:
    """Which file or array of the checkpoint at `path` was not there, or was not what it should be."""
    for name in ("meta/metadata", "state"):
        if not (path / name).exists():
            return f"{name} is missing"
    reason = " ".join(str(error.__cause__ or error).split())
    array = UNREADABLE.search(reason)
    return f"{array.group(1).replace('.', '/')} cannot be read" if array else reason[:120]


@contextlib.contextmanager
def _disk_errors(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise errors.BadInput(
            f"{what}: {error.strerror}; make room or choose another directory"
        ) from error


def _disk_reason(error: Exception) -> str | None:
    """What the disk refused, in its own words; None when the error is not the disk's."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    match = DISK.search(str(error))
    return match.group(0) if match else None
