"""Theirs: how do the tensors of a Hugging Face checkpoint become our parameters, and ours theirs?

The tables of `architectures` are read in both directions here. Nothing is computed before it is asked for: a parameter
of a mapped file is a view of it, and a tensor to be written is made when it is written.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from model import architectures, config, errors, hf_config, positions
from model.config import RECURRENT, ModelConfig
from model.rows import Architecture, Row

TABLES = architectures.TABLES
model_config = hf_config.model_config
CONDITIONS: dict[str, Callable[[ModelConfig], bool]] = {
    "gated": lambda c: c.gated,
    "plain": lambda c: not c.gated,
    "tied": lambda c: c.tied and c.head.kind == "lm",
    "untied": lambda c: not c.tied and c.head.kind == "lm",
    "lm": lambda c: c.head.kind == "lm",
    "sequence": lambda c: c.head.kind == "sequence",
    "token": lambda c: c.head.kind == "token",
}
BIASES = config.CHOICES["bias"]  # each has the biases of those before it
NEEDED = {
    **dict.fromkeys(("query", "key", "value"), "qkv"),
    "out": "attention",
    **dict.fromkeys(("up", "gate", "down"), "all"),
    "output": "output",
}
NAMED = 5  # so many tensors of a list are named, the rest counted


@dataclasses.dataclass(frozen=True)
class Entry:
    """A row of a table for one layer; several names where each expert has a tensor of its own."""

    names: tuple[str, ...]
    ours: tuple[str, ...]
    their_axes: str
    our_axes: str
    experts: bool

    @property
    def order(self) -> str:
        """Our axes of one of their tensors, behind Q where that numbers parameters of ours."""
        return "Q" * self.parted + self.our_axes.removeprefix("E" * self.experts)

    @property
    def parted(self) -> bool:
        """Whether Q counts parameters of ours rather than being an axis of one."""
        return "Q" in self.their_axes and "Q" not in self.our_axes


@dataclasses.dataclass(frozen=True)
class Match:
    """Which tensors of a checkpoint are what.

    Attributes:
        found: of each name in the table, the checkpoint's own, or None where it may be left out and is.
        copies: tensors that must equal another: (its name, the other's name), both the checkpoint's.
        aside: those that the model does not use.
    """

    found: dict[str, str | None]
    copies: tuple[tuple[str, str], ...]
    aside: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor that is made when it is read."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


class Stacked:
    """Arrays of the same shape as one, along a new first axis; only what is indexed is read."""

    def __init__(self, parts: Sequence[Any]):
        self.parts = parts
        self.shape = (len(parts), *parts[0].shape)
        self.dtype = parts[0].dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        first, *rest = index if isinstance(index, tuple) else (index,)
        return np.stack([part[tuple(rest)] for part in self.parts[first]])

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.stack(self.parts).astype(dtype or self.dtype, copy=False)


def from_theirs(architecture: str, config: ModelConfig, tensors: Mapping[str, Any]) -> Any:
    """Their named tensors as our parameter tree (one entry per layer)."""
    tensors = {name: np.asarray(array) for name, array in tensors.items()}
    match = resolve(architecture, config, tensors)
    check_copies(match, tensors)
    return nest({k: np.asarray(v) for k, v in views(architecture, config, tensors, match).items()})


def to_theirs(architecture: str, config: ModelConfig, params: Any) -> dict[str, np.ndarray]:
    """Our parameter tree (one entry per layer) as their named tensors."""
    made = outgoing(architecture, config, flatten(params))
    return {each.name: np.ascontiguousarray(each.read()) for each in made}


def resolve(architecture: str, config: ModelConfig, names: Iterable[str]) -> Match:
    """Which of a checkpoint's tensors is which of the table's, whatever prefix the file leaves out.

    Raises:
        BadInput: naming what is missing and what nobody knows.
    """
    table = TABLES[architecture]
    needed = {name: bool(e.ours) for e in entries(architecture, config) for name in e.names}
    prefix = _prefix(table, config)
    copies = {
        name if name in _tops(table) else prefix + name: prefix + of
        if prefix + of in needed
        else of
        for name, of in table.copies
    }
    found: dict[str, str | None] = {}
    twice, aside, unknown = [], [], []
    for actual in names:
        options = spellings(table, actual)
        name = next((name for name in options if name in needed and name not in found), None)
        copy = next((copies[name] for name in options if name in copies), None)
        if name:
            found[name] = actual
        elif copy in needed:
            twice.append((actual, copy))
        elif any(re.search(rule, name) for rule in table.aside for name in options):
            aside.append(actual)
        else:
            unknown.append(actual)
    missing = [name for name, must in needed.items() if must and name not in found]
    if missing or unknown:
        raise errors.BadInput(complaint(architecture, missing, unknown))
    found = {name: found.get(name) for name in needed}
    of = {name: actual for name, actual in found.items() if actual is not None}
    return Match(found, tuple((name, of[copy]) for name, copy in twice), tuple(aside))


def check_copies(match: Match, tensors: Mapping[str, Any]) -> None:
    """Refuses a tensor that stands twice, because the config ties it, and differs."""
    for name, of in match.copies:
        if not np.array_equal(_bits(tensors[name]), _bits(tensors[of])):
            raise errors.BadInput(
                f"the config ties {name!r} to {of!r}, and the two tensors differ; "
                "set tie_word_embeddings to false in config.json, or remove the one that is not meant"
            )


def views(
    architecture: str, config: ModelConfig, tensors: Mapping[str, Any], match: Match
) -> dict[str, Any]:
    """Our parameters by path, as views of theirs where there is one tensor for each, else as `Stacked`."""
    found: dict[str, Any] = {}
    for entry in entries(architecture, config):
        actual = [match.found[name] for name in entry.names]
        if not entry.ours:
            _check_zero(actual[0], tensors)
            continue
        sizes = sizes_of(config, entry)
        parts = [to_ours(entry, str(name), tensors[name], sizes) for name in actual]  # type: ignore[index]
        found |= dict(zip(entry.ours, parts[0], strict=True))
        if entry.experts:
            found[entry.ours[0]] = Stacked([part[0] for part in parts])
    return found


def outgoing(
    architecture: str, config: ModelConfig, leaves: Mapping[str, Any], renamed: Mapping = {}
) -> Iterator[Tensor]:
    """Their tensors, each made when it is read, from our parameters by path.

    `renamed` gives some of them other names, or None to leave one out that may be.
    """
    for entry in entries(architecture, config):
        sizes = sizes_of(config, entry)
        shape = _shape(entry.their_axes, sizes)
        sources = [leaves[path] for path in entry.ours]
        dtype = (sources[0] if sources else leaves["embedding/weight"]).dtype
        for j, canonical in enumerate(entry.names):
            name = renamed.get(canonical, canonical)
            if name is not None:
                read = _reader(entry, sources, sizes, j, dtype)
                yield Tensor(name, shape, np.dtype(dtype), read)


def entries(architecture: str, config: ModelConfig) -> Iterator[Entry]:
    """The rows of an architecture that this config has, with layers and experts counted out."""
    table = TABLES[architecture]
    prefix = _prefix(table, config)
    rows = [(prefix, row) for row in table.base] + [("", row) for row in table.top]
    for start, row in rows:
        if not _counts(row, config):
            continue
        encoder = bool(row.ours) and row.ours[0].startswith("encoder/")
        layers = config.encoder_layers if encoder else config.layers
        for i in range(layers if "{i}" in row.theirs else 1):
            experts = range(config.experts.count if "{j}" in row.theirs else 1)
            yield Entry(
                tuple(start + row.theirs.format(i=i, j=j) for j in experts),
                tuple(path.format(i=i) for path in row.ours),
                row.their_axes,
                row.our_axes,
                "{j}" in row.theirs,
            )


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A tree's leaves by path: `{"norm": {"scale": x}}` is `{"norm/scale": x}`."""
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= flatten(value, f"{prefix}/{name}" if prefix else name)
    return found


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = leaf
    return tree


def listing(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(repr, names[:NAMED])) + more


def complaint(architecture: str, missing: Sequence[str], unknown: Sequence[str]) -> str:
    """What is wrong with a set of names."""
    parts = [f"lack {listing(missing)}"] * bool(missing)
    parts += [f"hold {listing(unknown)}, which no {architecture} of this config has"] * bool(
        unknown
    )
    return f"the weights {' and '.join(parts)}; give the config.json that belongs to them"


def _prefix(table: Architecture, config: ModelConfig) -> str:
    """A model without a head is saved without the prefix."""
    return "" if config.head.kind == "none" else table.prefix


def _tops(table: Architecture) -> set[str]:
    return {row.theirs for row in table.top}


def spellings(table: Architecture, name: str) -> list[str]:
    """What a tensor may be called in the table: as it is, with the prefix, or without."""
    for old, new in table.aliases:
        name = re.sub(old, new, name)
    return [name, table.prefix + name, name.removeprefix(table.prefix)]


def _counts(row: Row, config: ModelConfig) -> bool:
    return all(CONDITIONS[word](config) for word in row.when) and all(
        _exists(path, config) for path in row.ours
    )


def _exists(path: str, c: ModelConfig) -> bool:
    """Whether a model of this config has this parameter."""
    *parents, owner, leaf = path.split("/")
    bidirectional = c.family == "encoder_only"
    if path == "output/weight":
        return not c.tied and c.head.kind == "lm"
    if path == "output/bias" and bidirectional:
        return c.head.kind == "lm"
    if parents == ["head"]:
        kinds = {"dense": ("lm", "sequence"), "norm": ("lm",), "out": ("sequence", "token")}
        return c.head.kind in kinds[owner]
    if parents == ["pair"]:
        return c.head.next_sentence
    owners = {
        "types": bool(c.token_types),
        "position": c.position.startswith("learned"),
        "relative": c.position == "relative",
        "embedding_norm": c.embedding in ("normed", "scaled_normed"),
        "query_norm": c.scores.norm,
        "key_norm": c.scores.norm,
        "gate": c.gated,
        "router": bool(c.experts.count),
    }
    if not owners.get(owner, True):
        return False
    if leaf == "bias" and owner.endswith("norm"):
        return c.norm == "layer"
    if leaf == "bias" and owner in NEEDED:
        return BIASES.index(c.bias) >= BIASES.index(NEEDED[owner])
    return True


def sizes_of(config: ModelConfig, entry: Entry) -> dict[str, int]:
    """How long each axis is, by its letter."""
    return {
        "D": config.width,
        "d": config.width,
        "N": config.heads,
        "K": config.kv_heads,
        "H": config.head_size,
        "F": config.hidden,
        "V": config.vocab_size,
        "P": config.context_length + 2 * (config.position == "learned_from_2"),
        "Y": config.token_types,
        "C": len(config.head.labels) or 2,  # whether the second text follows, or not
        "E": config.experts.count,
        "U": positions.BUCKETS,
        "Q": RECURRENT.get(config.family, len(entry.ours)),
        "1": 1,
    }


def letters_of(axes: str) -> str:
    """Without parentheses and ones."""
    return axes.translate({ord(sign): None for sign in "()1"})


def _shape(axes: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Example: `"D(NH)"` of 4 heads of 3 over a width of 5 is `(5, 12)`."""
    return tuple(
        math.prod(sizes[letter] for letter in group.strip("()"))
        for group in re.findall(r"\(\w+\)|\w", axes)
    )


def to_ours(entry: Entry, name: str, array: Any, sizes: Mapping[str, int]) -> list[np.ndarray]:
    """One of their tensors as the parameters of ours that it holds."""
    if tuple(array.shape) != _shape(entry.their_axes, sizes):
        raise errors.BadInput(
            f"tensor {name!r} has shape {tuple(array.shape)}; the config asks for "
            + "×".join(f"{letter}={sizes[letter]}" for letter in letters_of(entry.their_axes))
        )
    letters = letters_of(entry.their_axes)
    array = array.reshape([sizes[letter] for letter in letters])
    array = array.transpose([letters.index(letter) for letter in entry.order])
    return list(array) if entry.parted else [array]


def _reader(
    entry: Entry, sources: Sequence[Any], sizes: Mapping[str, int], j: int, dtype: Any
) -> Callable[[], np.ndarray]:
    letters = letters_of(entry.their_axes)
    shape = _shape(entry.their_axes, sizes)

    def read() -> np.ndarray:
        if not sources:
            return np.zeros(shape, dtype)
        parts = [np.asarray(source[j] if entry.experts else source) for source in sources]
        array = np.stack(parts) if entry.parted else parts[0]
        return array.transpose([entry.order.index(letter) for letter in letters]).reshape(shape)

    return read


def _check_zero(name: str | None, tensors: Mapping[str, Any]) -> None:
    if name is not None and np.any(np.asarray(tensors[name]) != 0):
        raise errors.BadInput(
            f"tensor {name!r} is not zero, and this model has no such parameter; set it to zero"
        )


def _bits(array: Any) -> np.ndarray:
    """An array's bytes: a NaN equals itself, and no dtype is unknown."""
    array = np.ascontiguousarray(array)
    return np.frombuffer(array.tobytes(), np.uint8)
