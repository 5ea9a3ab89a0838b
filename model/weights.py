"""How do safetensors files become arrays, and arrays files, without ever holding much more than one tensor twice?

Files are mapped, so a tensor costs nothing until it is read; `place` copies it in pieces, lets go of the pages it has
read, and looks for numbers that are none on the way. The library judges whether a file is sound; its own arrays are
copies, and would double the memory.
"""

import json
import mmap
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from model import errors, hf
from model.hf import Stacked, Tensor

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "F8_E4M3": np.dtype(jnp.float8_e4m3fn),
    "F8_E5M2": np.dtype(jnp.float8_e5m2),
}
WHOLE_NUMBERS = {  # of buffers; no parameter is one
    **{f"I{8 * n}": np.dtype(f"i{n}") for n in (1, 2, 4, 8)},
    **{f"U{8 * n}": np.dtype(f"u{n}") for n in (1, 2, 4, 8)},
    "BOOL": np.dtype(bool),
}
CODES = {dtype: code for code, dtype in (DTYPES | WHOLE_NUMBERS).items()}
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")
PIECE = (
    128 << 10
)  # bytes copied at once: a transposed copy stays in the cache, 3 times as fast as in one go
HELD = 32 << 20  # bytes that are read between two times of letting go
LIMIT = 4 << 30  # bytes of a file
ALIGNED = 64  # what the CPU backend takes without another copy


class Weights(Mapping[str, np.ndarray]):
    """The tensors of a directory by name, as views of its mapped files; `stem` is what these are called."""

    def __init__(self, directory: pathlib.Path, stem: str = "model"):
        self._views: dict[str, np.ndarray] = {}
        self._maps: list[mmap.mmap] = []
        self.nbytes = 0
        for path, names in _files(directory, stem).items():
            self._open(path, names)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def release(self) -> None:
        """Lets go of what was read: it is in the file, should anybody ask again."""
        for mapped in self._maps:
            mapped.madvise(mmap.MADV_DONTNEED)

    def _open(self, path: pathlib.Path, names: set[str] | None) -> None:
        try:
            with safetensors.safe_open(path, "np") as file:
                slices = [(name, file.get_slice(name)) for name in file.offset_keys()]
                held = [(name, each.get_dtype(), each.get_shape()) for name, each in slices]
            with path.open("rb") as opened:
                mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, safetensors.SafetensorError) as error:
            reason = re.sub(r"\s+", " ", str(error))
            raise errors.BadInput(
                f"{path} is damaged or no safetensors file ({reason}); fetch it again"
            ) from error
        absent = sorted((names or set()) - {name for name, _, _ in held})
        if absent:
            raise errors.BadInput(
                f"{path} lacks {hf.listing(absent)}, which the index says it holds; fetch it again"
            )
        self._maps.append(mapped)
        offset = 8 + int.from_bytes(mapped[:8], "little")
        for name, code, shape in held:
            if code not in DTYPES | WHOLE_NUMBERS:
                raise errors.BadInput(
                    f"tensor {name!r} of {path} has dtype {code}; known: {', '.join(DTYPES)}"
                )
            dtype = (DTYPES | WHOLE_NUMBERS)[code]
            count = int(np.prod(shape, dtype=np.int64))
            view = np.frombuffer(mapped, dtype, count, offset) if count else np.empty(0, dtype)
            offset += count * dtype.itemsize
            self.nbytes += count * dtype.itemsize
            self._views[name] = view.reshape(shape)


def write(
    directory: pathlib.Path, tensors: Iterable[Tensor], limit: int = LIMIT, stem: str = "model"
) -> list[str]:
    """Writes tensors into one file, or into several of at most `limit` bytes and an index; returns the files' names."""
    shards: list[list[Tensor]] = [[]]
    total = filled = 0
    for tensor in tensors:
        size = _nbytes(tensor)
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += size
        total += size
    if len(shards) == 1:
        _write_file(directory / f"{stem}.safetensors", shards[0])
        return [f"{stem}.safetensors"]
    names = [f"{stem}-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        _write_file(directory / name, shard)
    held = {t.name: name for name, shard in zip(names, shards, strict=True) for t in shard}
    index = {"metadata": {"total_size": total}, "weight_map": held}
    (directory / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return names


def place(name: str, view: Any, weights: Weights, sharding: Any = None) -> jax.Array:
    """A parameter on the default device, or each device's own part of it where `sharding` lays it.

    Float64 becomes float32, unless jax is told to keep 64 bits; every other dtype stays.

    Raises:
        BadInput: when it holds a NaN or an infinity, or is of whole numbers.
    """
    check_float(name, view)
    if sharding is None:
        return jax.device_put(_copy(name, view, weights))

    def part(index: Any) -> np.ndarray:
        return _copy(name, view[index], weights)

    dtype = jax.dtypes.canonicalize_dtype(view.dtype)
    return jax.make_array_from_callback(tuple(view.shape), sharding, part, dtype=dtype)


def check_float(name: str, view: Any) -> None:
    """Refuses whole numbers: what they stand for is said elsewhere, if at all."""
    if view.dtype not in DTYPES.values():
        raise errors.BadInput(
            f"tensor {name!r} is of {view.dtype}, and quantised weights are not read; give it in "
            + " or ".join(DTYPES)
        )


def check_finite(name: str, array: np.ndarray) -> None:
    """Refuses a NaN or an infinity."""
    if array.dtype.itemsize > 1 and array.dtype.kind in "fV":
        bits = array.view(f"u{array.dtype.itemsize}")
        mask = bits.dtype.type(np.array(np.inf, array.dtype).view(bits.dtype))
        bad = bits.size and (bits & mask).max() == mask  # all bits of an exponent
    elif array.dtype in DTYPES.values():
        bad = not np.all(np.isfinite(array.astype(np.float32)))
    else:
        return
    if bad:
        raise errors.BadInput(
            f"tensor {name!r} holds a NaN or an infinity; the weights are damaged, fetch them again"
        )


def _copy(name: str, view: Any, weights: Weights) -> np.ndarray:
    """The view's numbers in memory of their own, aligned, and in the order of its axes."""
    dtype = jax.dtypes.canonicalize_dtype(view.dtype)
    bits = f"u{view.dtype.itemsize}"
    count = int(np.prod(view.shape, dtype=np.int64))
    memory = np.empty(count * dtype.itemsize + ALIGNED, np.uint8)
    start = -memory.ctypes.data % ALIGNED
    target = memory[start : start + count * dtype.itemsize].view(dtype).reshape(view.shape)
    held = 0
    for piece in _pieces(view):
        read = view[piece]
        check_finite(name, read)
        if (
            dtype == view.dtype
        ):  # as whole numbers: numpy copies bfloat16 one by one, 8 times as slowly
            target.view(bits)[piece] = read.view(bits)
        else:
            target[piece] = read
        held += read.nbytes
        if held > HELD:
            weights.release()
            held = 0
    weights.release()
    return target


def _pieces(view: Any) -> Iterator[tuple[slice, ...]]:
    """Cuts along the axis that is outermost in the file, so that each page is read once."""
    if not view.shape:
        yield ()
        return
    outermost = 0 if isinstance(view, Stacked) else int(np.argmax(view.strides))
    length = view.shape[outermost]
    size = int(np.prod(view.shape, dtype=np.int64)) * view.dtype.itemsize
    step = max(1, length * PIECE // max(1, size))
    for start in range(0, length, step):
        yield (slice(None),) * outermost + (slice(start, start + step),)


def _files(directory: pathlib.Path, stem: str) -> dict[pathlib.Path, set[str] | None]:
    """The files that hold the weights, and, where an index says so, which tensors each must have."""
    index = directory / f"{stem}.safetensors.index.json"
    if index.is_file():
        return _indexed(directory, index)
    found = [directory / f"{stem}.safetensors"]
    if not found[0].is_file():
        found = sorted(directory.glob("*.safetensors"))
    if len(found) == 1:
        return {found[0]: None}
    if found:
        raise errors.BadInput(
            f"{directory} holds {hf.listing([path.name for path in found])} and no {index.name} that says which "
            "of them belong together; add it"
        )
    pickles = sorted(path.name for rule in PICKLES for path in directory.glob(rule))
    if pickles:
        raise errors.BadInput(
            f"{directory} holds its weights in {hf.listing(pickles)} only, which is not read: opening a pickle runs "
            "the code in it, and the others need libraries that Ganymede does without; convert them with "
            "transformers: AutoModel.from_pretrained(directory).save_pretrained(directory)"
        )
    raise errors.BadInput(f"{directory} holds no weights; add model.safetensors")


def _indexed(directory: pathlib.Path, index: pathlib.Path) -> dict[pathlib.Path, set[str] | None]:
    try:
        held = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files: dict[pathlib.Path, set[str] | None] = {}
        for name, file in held.items():
            files.setdefault(directory / pathlib.PurePath(file).name, set()).add(name)  # type: ignore[union-attr]
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise errors.BadInput(
            f"{index} is no index of safetensors files ({type(error).__name__}: {error}); fetch it again"
        ) from error
    absent = [path.name for path in files if not path.is_file()]
    if absent:
        raise errors.BadInput(
            f"{directory} lacks {hf.listing(absent)}, which its index names; fetch it"
        )
    return files


def _nbytes(tensor: Tensor) -> int:
    return int(np.prod(tensor.shape, dtype=np.int64)) * tensor.dtype.itemsize


def _write_file(path: pathlib.Path, tensors: Sequence[Tensor]) -> None:
    """One file, tensor by tensor, the widest numbers first so that all lie aligned, as the library does."""
    ordered = sorted(tensors, key=lambda tensor: (-tensor.dtype.itemsize, tensor.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in ordered:
        ends = [offset, offset + _nbytes(tensor)]
        header[tensor.name] = {
            "dtype": CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": ends,
        }
        offset = ends[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in ordered:
            _append(file, tensor)


def _append(file: BinaryIO, tensor: Tensor) -> None:
    array = np.ascontiguousarray(tensor.read())
    file.write(array.reshape(-1).view(np.uint8).data)
