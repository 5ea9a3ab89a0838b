"""How does somebody else repeat a decoding run to the bit? What `write` keeps of it, and `replay`.

`completions.jsonl` has what went in and what came out, one JSON object per completion; every float in it reads back
as the same bits: an infinite margin is null, any other number that JSON lacks is a text. `manifest.json` has what they
came from: seed, versions, device, and digests of weights, tokenizer, requests and completions.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

import model
from decode import batch, difference, jobs, keys
from decode.difference import Report
from decode.requests import Completion, Request
from decode.settings import Settings
from model import LM, checkpoint, errors

FORMAT = 2
COMPLETIONS, MANIFEST = "completions.jsonl", "manifest.json"
PACKAGES = ("ganymede", "jax", "jaxlib", "flax", "numpy")
OPTIONAL = tuple(f.name for f in dataclasses.fields(Completion) if f.default is None)
FLAGS = ("jax_default_matmul_precision", "jax_enable_x64", "jax_cpu_enable_fast_math")


def write(
    directory: str | os.PathLike,
    lm: LM,
    requests: Sequence[Request],
    completions: Sequence[Completion],
    *,
    seed: int,
    batch_size: int = batch.BATCH_SIZE,
    draft: LM | None = None,
    amateur: LM | None = None,
    prompts: str | os.PathLike | None = None,
) -> None:
    """Writes `completions.jsonl` and `manifest.json`: each complete or as it was, whenever we are killed.

    Args:
        requests: as `decode.requests` gives them; `seed`, `batch_size`, `draft` and `amateur` are those of
            `decode.generate`.
        prompts: the file that the requests were read from, if there is one.
    """
    directory = pathlib.Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.BadInput(
            f"{directory} cannot be made: {error.strerror}; choose another directory"
        ) from error
    asked = {request.id: request for request in requests}
    lines = "".join(_line(asked[done.id], done) for done in completions)
    values = {
        "format": FORMAT,
        "presets": sorted({request.settings.preset for request in requests}),
        "key_schedule": keys.VERSION,
        "seed": seed,
        "batch_size": batch_size,
        "buckets": _buckets(),
        "settings": _settings(requests),
        "requests": {"count": len(requests), "sha256": digest(requests)},
        "completions": {
            "count": len(completions),
            "tokens": sum(len(done.tokens) for done in completions),
            "sha256": _sha256(lines),
        },
        "prompts": _prompts(prompts, directory),
        "model": _model(lm, directory),
        "draft": draft and _model(draft, directory),
        "amateur": amateur and _model(amateur, directory),
        "environment": environment(),
    }
    checkpoint.write_file(directory / COMPLETIONS, lines)
    checkpoint.write_file(
        directory / MANIFEST, json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    )


def replay(directory: str | os.PathLike, lm: LM | None = None) -> Report:
    """Decodes again what a manifest describes, and compares every token and the bits of every number.

    Another machine or another version is reported, not refused: the answer is worth having.

    Args:
        directory: what `write` has written.
        lm: the model; by default it is loaded from where the manifest says.

    Raises:
        BadInput: when a file is missing or damaged, or the weights, the tokenizer, the prompts file or
            the completions are not those of the run: which one, and what to restore.
    """
    directory = pathlib.Path(directory)
    values, requests, expected = read(directory)
    _check_prompts(values["prompts"], directory)
    lm = _loaded(values["model"], directory, lm)
    draft, amateur = (
        values[name] and _loaded(values[name], directory) for name in ("draft", "amateur")
    )
    got = batch.generate(
        lm,
        requests,
        seed=values["seed"],
        batch_size=values["batch_size"],
        draft=draft,
        amateur=amateur,
        strict=False,
    )
    here = {**environment(), "buckets": _buckets(), "runtime": dataclasses.asdict(lm.net.runtime)}
    there = {
        **values["environment"],
        "buckets": values["buckets"],
        "runtime": values["model"]["runtime"],
    }
    return difference.compare(expected, got, requests, _changes(there, here))


def read(directory: pathlib.Path) -> tuple[dict[str, Any], list[Request], list[Completion]]:
    """The values of a manifest, and the requests and completions beside it, if they are those it was written with."""
    values = _read_manifest(directory / MANIFEST)
    return values, *_read_completions(directory / COMPLETIONS, values)


def home(source: pathlib.Path) -> pathlib.Path:
    """Where what a model has decoded goes by default: into its run, or under `runs/` for any other directory."""
    return source if (source / "checkpoints").exists() else pathlib.Path("runs", source.name)


def environment() -> dict[str, Any]:
    """What the bits of a run may depend on beyond its inputs."""
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "platform": device.platform,
        "device": device.device_kind,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        **{name: getattr(jax.config, name, None) for name in FLAGS},
    }


def version(name: str) -> str:
    """Of an installed package."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    """The CPU's model: two of one architecture may differ in their vector units, and so in their roundings."""
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def _buckets() -> dict[str, int]:
    return {
        "prompt": jobs.SMALLEST_PROMPT,
        "slots": jobs.SMALLEST_SLOTS,
    }


def _settings(requests: Iterable[Request]) -> list[dict[str, Any]]:
    """Each of the settings in use, with the number of requests that have it."""
    counts: dict[Settings, int] = {}
    for request in requests:
        counts[request.settings] = counts.get(request.settings, 0) + 1
    return [{**_written(dataclasses.asdict(s)), "requests": n} for s, n in counts.items()]


def _line(request: Request, done: Completion) -> str:
    values = {
        "id": done.id,
        "sample": done.sample,
        "prompt": request.prompt,
        "text": done.text,
        "finish_reason": done.finish_reason,
        "settings": request.settings.changed,
        "prompt_tokens": done.prompt_tokens,
        "tokens": done.tokens,
        "logprobs": done.logprobs,
        "sampled_logprobs": done.sampled_logprobs,
        "margins": [None if math.isinf(margin) else margin for margin in done.margins],
    }
    values |= {name: value for name in OPTIONAL if (value := getattr(done, name)) is not None}
    return json_line(values)


def json_line(values: Mapping[str, Any]) -> str:
    """A line of JSON, which stays one whatever reads it."""
    line = json.dumps(_written(values), ensure_ascii=False, allow_nan=False)
    for separator in "\x85\u2028\u2029":  # some readers end lines at these
        line = line.replace(separator, f"\\u{ord(separator):04x}")
    return line + "\n"


def _written(value: Any) -> Any:
    """Numbers that JSON has none of as texts, "-inf", however deep; everything else as it is."""
    if isinstance(value, Mapping):
        return {name: _written(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [_written(x) for x in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _read_back(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_read_back, value))
    return float(value) if value in ("inf", "-inf", "nan") else value


def _tuple(texts: Any) -> Any:
    """Lists of texts, which are never numbers, as tuples."""
    return tuple(map(_tuple, texts)) if isinstance(texts, list) else texts


def name(requests: Sequence[Request], seed: int, *helpers: LM | None) -> str:
    """What a directory for such a run may be called: the same requests of the same models have the same name."""
    digests = [digest(requests), *(helper.digest for helper in helpers if helper)]
    return f"{_sha256(' '.join(digests))[:8] if len(digests) > 1 else digests[0][:8]}-{seed}"


def _sha256(text: str | bytes) -> str:
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


def digest(requests: Iterable[Request]) -> str:
    """Of what was asked for, in order: ids, prompts and settings."""
    return _sha256(json.dumps([[r.id, r.prompt, r.settings.changed] for r in requests]))


def _prompts(
    path: str | os.PathLike | None, directory: pathlib.Path
) -> dict[str, str | None] | None:
    """Which file the prompts stood in, as far as it can be read again."""
    if path is None or not pathlib.Path(path).is_file():
        return None
    path = pathlib.Path(path)
    return {"file": _relative(path, directory), "sha256": _sha256(path.read_bytes())}


def _relative(path: pathlib.Path | None, directory: pathlib.Path) -> str | None:
    """From the manifest's directory, so that a run and its decodings can move together."""
    return None if path is None else pathlib.Path(os.path.relpath(path, directory)).as_posix()


def _read_manifest(path: pathlib.Path) -> dict[str, Any]:
    """The manifest, if this version can repeat what it describes."""
    try:
        values = json.loads(_read(path))
        versions = values["format"], values["key_schedule"]
        writer = values["environment"]["ganymede"]
        for name in ("seed", "batch_size", "prompts", "buckets", "draft", "amateur"):
            values[name]
        for name in ("directory", "weights", "tokenizer", "runtime"):
            values["model"][name]
        values["requests"]["sha256"], values["completions"]["sha256"]
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, errors.BadInput):
            raise
        raise errors.BadInput(
            f"{path} is not a manifest ({type(error).__name__}: {error}); restore the one that decode wrote"
        ) from error
    if versions != (FORMAT, keys.VERSION):
        raise errors.BadInput(
            f"{path} has format and key schedule {versions}, and this version repeats "
            f"{(FORMAT, keys.VERSION)}; replay it with the version that wrote it, ganymede {writer}"
        )
    return values


def _read(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise errors.BadInput(
            f"{path} cannot be read: {error.strerror}; give a directory that decode has written"
        ) from error


def _read_completions(
    path: pathlib.Path, values: dict[str, Any]
) -> tuple[list[Request], list[Completion]]:
    """What was asked for and what came out, if they are what the manifest was written with."""
    content = _read(path)
    _same(path, _sha256(content), values["completions"]["sha256"])
    requests: dict[Any, Request] = {}
    completions = []
    for line in content.decode().split("\n")[:-1]:
        row = json.loads(line)
        settings = errors.build(Settings, row.pop("settings"), f"{path}: settings")
        requests.setdefault(row["id"], Request(row.pop("prompt"), settings, row["id"]))
        row["margins"] = [math.inf if margin is None else margin for margin in row["margins"]]
        lists = {
            name: _tuple(value) if name == "labels" else tuple(map(_read_back, value))
            for name, value in row.items()
            if isinstance(value, list)
        }
        completions.append(Completion(**{**row, **lists}))
    _same(path.with_name(MANIFEST), digest(requests.values()), values["requests"]["sha256"])
    return list(requests.values()), completions


def _check_prompts(prompts: dict[str, str] | None, directory: pathlib.Path) -> None:
    """The file of prompts, where it is still there, must be the one that was read."""
    if prompts and (file := _found(prompts["file"], directory)).is_file():
        _same(file, _sha256(_read(file)), prompts["sha256"])


def _same(what: Any, here: str, there: str) -> None:
    if here != there:
        raise errors.BadInput(
            f"{what} changed since the manifest was written (digest {here[:12]}, was {there[:12]}); "
            "restore what was there, or decode again"
        )


def _model(lm: LM, directory: pathlib.Path) -> dict[str, Any]:
    """Where a model was, and what it was."""
    return {
        "directory": _relative(lm.directory, directory),
        "weights": lm.digest,
        "tokenizer": lm.tokenizer.digest,
        "config": dataclasses.asdict(lm.config),
        "runtime": dataclasses.asdict(lm.net.runtime),
    }


def _loaded(values: dict[str, Any], directory: pathlib.Path, lm: LM | None = None) -> LM:
    """The model of these values, from where it was if it is not given; refuses another one."""
    if lm is None and values["directory"] is None:
        raise errors.BadInput(
            f"{directory / MANIFEST} does not say where its model was; give replay the model itself"
        )
    lm = lm or model.load(_found(values["directory"], directory))
    where = "the given model" if lm.directory is None else lm.directory
    _same(f"the weights of {where}", lm.digest, values["weights"])
    _same(f"the tokenizer of {where}", lm.tokenizer.digest, values["tokenizer"])
    return lm


def _found(path: str, directory: pathlib.Path) -> pathlib.Path:
    """Where a path relative to the manifest leads."""
    return pathlib.Path(os.path.normpath(directory / path))


def _changes(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """A line for each value that is not as it was: `jax was 0.10.2, is 0.12.0`."""
    names = [*there, *(name for name in here if name not in there)]
    return [
        f"{name} was {there.get(name)}, is {here.get(name)}"
        for name in names
        if there.get(name) != here.get(name)
    ]
