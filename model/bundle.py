"""How do published weights become ours, and ours files that others read? `import_` and `export`.

A bundle is a directory: config.json (our config, and what came with the weights), our parameters as safetensors under
their paths, `aside.safetensors` with tensors that the model does not use, and `tokenizer/`. So `export(import_(x))` is
`x`, tensor for tensor.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

import model
from model import errors, hf, hf_config, peft, sources, tokenizer, weights
from model.config import ModelConfig
from model.hf import Tensor
from model.sources import Opened
from model.tokenizer import Tokenizer

GENERATION = "generation_config.json"
ADAPTER = "adapter"
# How transformers reads a BPE model of ours as we do, but for a U+2581 in the text, which it takes for a space.
AS_LLAMA = {
    "tokenizer_class": "LlamaTokenizer",
    "legacy": False,
    "add_prefix_space": False,
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "clean_up_tokenization_spaces": False,
}
UNIGRAM = (
    "the tokenizer is a unigram model of SentencePiece's: use that library, "
    "because transformers would take it for BPE"
)


@dataclasses.dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        out: where.
        architecture: the `model_type`.
        parameters: how many numbers the model has.
        nbytes: of them.
        dtypes: in which they are.
        files: those that hold them.
        aside: tensors that the model does not use; kept beside it, and written again by `export`.
        tokenizer: how many tokens it has; None when there is none.
        note: what a person should know besides.
        seconds: that it took.
    """

    out: pathlib.Path
    architecture: str
    parameters: int
    nbytes: int
    dtypes: tuple[str, ...]
    files: tuple[str, ...]
    aside: tuple[str, ...]
    tokenizer: int | None
    seconds: float
    note: str = ""

    def __str__(self) -> str:
        words = f"{self.tokenizer:,} tokens" if self.tokenizer else "none; text cannot be encoded"
        lines = [
            f"{self.architecture}: {self.parameters:,} parameters in {', '.join(self.dtypes)}",
            f"tokenizer: {words}",
            f"wrote {self.out}: {self.nbytes:,} bytes of weights, {len(self.files)} file(s), {self.seconds:.1f} s",
        ]
        if self.aside:
            lines.append(f"not used by the model, and kept: {hf.listing(self.aside)}")
        return "\n".join([*lines, self.note] if self.note else lines)


def import_(source: str | pathlib.Path, out: str | pathlib.Path) -> Report:
    """Writes the bundle of a Hugging Face directory.

    Raises:
        BadInput: when it cannot be read, holds what we would compute differently, or `out` exists.
    """
    start, source, out = time.monotonic(), pathlib.Path(source), pathlib.Path(out)
    kind, said = sources.read(source)
    if kind != "theirs":
        raise errors.BadInput(f"{source} is a {kind}, which needs no import; load it as it is")
    opened = sources.open_theirs(source, said)
    words = sources.words(source, opened.config)
    match = opened.match
    assert match is not None
    origin: dict[str, Any] = {
        "config": said,
        "renamed": {name: actual for name, actual in match.found.items() if name != actual},
        "copies": dict(match.copies),
    }
    if (source / GENERATION).is_file():
        origin["generation"] = json.loads((source / GENERATION).read_text(encoding="utf-8"))
    with _staged(out) as part:
        names = weights.write(part, map(functools.partial(_read, opened), opened.leaves))
        if match.aside:
            aside = (_kept(name, opened.weights[name]) for name in match.aside)
            weights.write(part, aside, limit=1 << 62, stem="aside")
        if words is not None:
            words.save(part / "tokenizer")
        groups = {"format": sources.FORMAT, "model": dataclasses.asdict(opened.config)}
        _write_json(part / "config.json", groups | {"source": origin})
    return _report(start, out, said["model_type"], opened.leaves, names, match.aside, words)


def export(
    source: str | pathlib.Path, out: str | pathlib.Path, limit: int = weights.LIMIT
) -> Report:
    """Writes a run or a bundle as a Hugging Face directory, in files of at most `limit` bytes.

    A run that has trained an adapter is written merged, and in the directory's own `adapter` the adapter alone.

    Raises:
        BadInput: when no architecture of theirs is such a model, or `out` exists.
    """
    source, out = pathlib.Path(source), pathlib.Path(out)
    kind, groups = sources.read(source)
    if kind == "theirs":
        raise errors.BadInput(f"{source} is a Hugging Face directory already; copy it")
    if kind == "run":
        return _export_run(source, out, limit, groups)
    start = time.monotonic()
    opened = sources.open_bundle(source, groups)
    sources.check_shapes(opened, model.abstract(opened.config))
    words = sources.words(source / "tokenizer", opened.config)
    aside = weights.Weights(source, "aside") if (source / "aside.safetensors").is_file() else {}
    leaves = opened.leaves
    with _staged(out) as part:
        names = weights.write(part, _returned(opened, aside), limit)
        _write_json(part / "config.json", opened.source["config"])
        if "generation" in opened.source:
            _write_json(part / GENERATION, opened.source["generation"])
        _write_words(part, words)
    return _report(start, out, opened.architecture, leaves, names, tuple(aside), words)


def _export_run(
    source: pathlib.Path, out: pathlib.Path, limit: int, groups: Mapping[str, Any]
) -> Report:
    words, adapted = groups.get("tokenizer") or {}, groups.get("adapt") is not None
    start, lm = time.monotonic(), model.load(source)
    architecture = hf_config.holding(lm.config)
    if architecture is None:
        raise errors.BadInput(
            f"{source} holds a model of family {lm.config.family!r} that no architecture of transformers has in the "
            f"same form; those are {', '.join(hf_config.FORMS)}"
        )
    leaves = hf.flatten(lm.params)
    with _staged(out) as part:
        names = weights.write(part, hf.outgoing(architecture, lm.config, leaves), limit)
        said = hf_config.their_config(architecture, lm.config)
        dtype = np.dtype(leaves["embedding/weight"].dtype).name
        _write_json(
            part / "config.json", said | _special(lm.tokenizer, lm.config) | {"torch_dtype": dtype}
        )
        _write_words(part, lm.tokenizer)
        ours = tuple(lm.tokenizer.files) == (tokenizer.FILE,)
        bpe = ours and words.get("kind") == "bpe" and words.get("path") is None
        if bpe:
            _write_json(part / "tokenizer_config.json", AS_LLAMA)
        notes = [] if bpe or not ours else [UNIGRAM]
        if adapted:
            notes.append(_write_adapter(source, part / ADAPTER))
    report = _report(start, out, architecture, leaves, names, (), lm.tokenizer)
    return dataclasses.replace(report, note="\n".join(notes))


def _write_adapter(source: pathlib.Path, out: pathlib.Path) -> str:
    """The adapter of a run by itself, as PEFT reads it, if PEFT can hold it; what a person should know of it."""
    found = model.load_adapter(source)
    base = str(found.base.directory)
    try:
        peft.write(out, found.base.params, found.base.config, found.tree, found.config, base)
    except errors.BadInput as error:
        return f"the adapter alone was not written: {error}"
    missing = "; the exported weights do not have it" if found.config.kind == "prompt" else ""
    return f"the adapter alone, of {base}, is in {out.name}, for PEFT{missing}"


def _returned(opened: Opened, aside: Any) -> Iterator[Tensor]:
    """The tensors that were imported, under the names they had."""
    source = opened.source
    seen = {}
    for tensor in hf.outgoing(opened.architecture, opened.config, opened.leaves, source["renamed"]):
        seen[tensor.name] = tensor
        yield _released(tensor, opened)
    for name, of in source["copies"].items():
        yield dataclasses.replace(seen[of], name=name)
    yield from (_kept(name, aside[name]) for name in aside)


def _read(opened: Opened, path: str) -> Tensor:
    """A parameter, looked at for numbers that are none when it is read."""
    view = opened.leaves[path]

    def read() -> np.ndarray:
        opened.weights.release()
        array = np.asarray(view)
        weights.check_float(opened.names[path], array)
        weights.check_finite(opened.names[path], array)
        return array

    return Tensor(path, tuple(view.shape), view.dtype, read)


def _released(tensor: Tensor, opened: Opened) -> Tensor:
    def read() -> np.ndarray:
        opened.weights.release()
        return tensor.read()

    return dataclasses.replace(tensor, read=read)


def _kept(name: str, view: np.ndarray) -> Tensor:
    return Tensor(name, view.shape, view.dtype, lambda: view)


def _special(words: Tokenizer | None, config: ModelConfig) -> dict[str, Any]:
    """The ids that transformers wants to find in config.json."""
    if words is None:
        return {}
    found = {
        "bos_token_id": words.bos_id,
        "eos_token_id": words.eos_id,
        "pad_token_id": words.pad_id,
    }
    if config.family == "encoder_decoder":
        begins = (words.start_id, words.bos_id, words.pad_id, 0)
        found["decoder_start_token_id"] = next(id for id in begins if id is not None)
    return found


def _write_words(part: pathlib.Path, words: Tokenizer | None) -> None:
    """The tokenizer's files, as a Hugging Face directory has them."""
    for name, content in (words.files if words is not None else {}).items():
        path = part / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _write_json(path: pathlib.Path, groups: Any) -> None:
    path.write_text(json.dumps(groups, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _staged(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """A directory beside `out` that takes its name when all is written, and vanishes when something goes wrong."""
    if out.exists() and not out.is_dir():
        raise errors.BadInput(f"{out} exists and is no directory; choose another name")
    if out.exists() and any(out.iterdir()):
        raise errors.BadInput(
            f"{out} exists and is not empty; choose another directory, or remove it"
        )
    part = out.with_name(f".{out.name}-partial")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        part.rename(out)
    except OSError as error:
        raise errors.BadInput(
            f"{out} cannot be written: {error.strerror or error}; make room or choose another directory"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _report(
    start: float,
    out: pathlib.Path,
    architecture: str,
    leaves: dict[str, Any],
    names: Iterable[str],
    aside: tuple[str, ...],
    words: Tokenizer | None,
) -> Report:
    counts = [int(np.prod(leaf.shape, dtype=np.int64)) for leaf in leaves.values()]
    sizes = [np.dtype(leaf.dtype).itemsize for leaf in leaves.values()]
    return Report(
        out=out,
        architecture=architecture,
        parameters=sum(counts),
        nbytes=sum(count * size for count, size in zip(counts, sizes, strict=True)),
        dtypes=tuple(sorted({np.dtype(leaf.dtype).name for leaf in leaves.values()})),
        files=tuple(names),
        aside=aside,
        tokenizer=None if words is None else words.vocab_size,
        seconds=time.monotonic() - start,
    )
