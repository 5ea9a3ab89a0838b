"""What does each setting do to the text? One decoding run per arm, on the same prompts and the same random numbers.

The noise of a token is a function of seed, request, sample and position, so arms with equal ids and seed share it and
their differences are paired. An arm that is done is never done again; a sweep can be stopped and started anywhere.
"""

import dataclasses
import hashlib
import json
import pathlib
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import decode
from decode import batch, comparison, compilations, grid, loop, manifest, prompts, quality
from decode.grid import Arm, Grid
from decode.requests import Completion, Request
from decode.settings import Settings
from model import LM, errors, files
from model.tokenizer import Tokenizer

FORMAT = 1
ARMS, RECORD = "arms", "sweep.json"
SAME = ("format", "seed", "batch_size", "model", "draft", "amateur", "prompts")  # in all arms
RESULTS, TABLE = "results.json", "sweep.md"


class Models(NamedTuple):
    """The model, the one that drafts and the one that guides; the names are the manifest's."""

    model: LM
    draft: LM | None = None
    amateur: LM | None = None


@dataclasses.dataclass(frozen=True)
class Prompts:
    """What every arm continues.

    Attributes:
        requests: with the settings that the lines bring, and defaults for the rest.
        given: what each of them brings itself, which goes before an arm's.
        references: of those that have any.
        file: where they stood, if in a file.
    """

    requests: tuple[Request, ...]
    given: tuple[Mapping[str, Any], ...]
    references: Mapping[str | int, tuple[str, ...]]
    file: str | None = None

    def of(self, arm: Arm) -> list[Request]:
        """An arm's requests."""
        return [
            dataclasses.replace(request, settings=_merged(arm, given, request.id))
            for request, given in zip(self.requests, self.given, strict=True)
        ]

    @property
    def digest(self) -> str:
        """Of what is continued, the same with other references."""
        rows = [
            [request.id, request.prompt, given]
            for request, given in zip(self.requests, self.given, strict=True)
        ]
        return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Where a sweep is, the numbers that `results.json` has, and the exit code: 2 if an arm failed."""

    workdir: pathlib.Path
    numbers: Mapping[str, Any]
    code: int


def run(
    lm: LM,
    asked: Prompts,
    arms: Grid,
    workdir: pathlib.Path,
    *,
    seed: int = 0,
    baseline: str | None = None,
    draft: LM | None = None,
    amateur: LM | None = None,
    say: Callable[[str], Any] = print,
) -> Outcome:
    """Decodes and measures every arm, skips those that are done, and writes and tells the table.

    `<workdir>/arms/<digest of the settings>/` is an arm's own decoding run, as `decode` writes one and `replay`
    repeats it; `sweep.json` says what the sweep is, `results.json` has all numbers and `sweep.md` the table.

    Args:
        asked, arms: as `read` and `decode.grid.arms` make them.
        baseline: the name or digest of the arm that others are compared with; by default the first.
        draft, amateur: as in `decode.generate`.
        say: what to do with each line for people.

    Raises:
        BadInput: before anything is decoded. An arm that fails later is told in a line; the exit code is 2 then.
    """
    for arm in arms.arms:
        asked.of(arm)  # refuses what contradicts itself
    first = arms.arms[0] if baseline is None else grid.find(arms, baseline)
    models = Models(lm, draft, amateur)
    _claim(workdir, record(models, asked, arms, seed))
    results = []
    with compilations.counted() as programs:
        for number, arm in enumerate(arms.arms, start=1):
            began, place = time.perf_counter(), workdir / ARMS / arm.digest
            result, said = _arm(arm, place, models, asked, seed)
            results.append(result)
            seconds = f" in {time.perf_counter() - began:.1f} s" if result.decoded else ""
            say(f"arm {number} of {len(arms.arms)}: {arm.name}: {said}{seconds}")
    if decoded := sum(result.decoded for result in results):
        say(_compiled(programs[compilations.name(loop.run)], decoded))
    numbers = comparison.numbers(arms, results, first, len(asked.requests))
    files.write_text(workdir / RESULTS, json.dumps(numbers, indent=1, allow_nan=False) + "\n")
    files.write_text(workdir / TABLE, comparison.markdown(numbers))
    say(comparison.table(numbers, shutil.get_terminal_size((110, 24)).columns))
    say(f"wrote {workdir}/{TABLE} and {workdir}/{RESULTS}; each arm's run is in {workdir}/{ARMS}")
    return Outcome(workdir, numbers, 2 if any(each.failure for each in results) else 0)


def home(source: pathlib.Path, asked: Prompts, arms: Grid, seed: int) -> pathlib.Path:
    """Where a sweep goes by default: into the run that its model is from, named by what it is."""
    name = grid.digest({"prompts": asked.digest, "arms": [a.digest for a in arms.arms]})
    return manifest.home(source) / "sweep" / f"{name[:8]}-{seed}"


def read(path: str, words: Tokenizer | None = None) -> Prompts:
    """The prompts of JSON lines, each with the settings and references that it brings.

    `words` is the tokenizer, whose chat template lines with messages need.
    """
    lines = prompts.read_lines(path, words)
    requests = decode.requests(prompts.request(line, {}) for line in lines)
    named = [(r.id, line) for r, line in zip(requests, lines, strict=True)]
    return Prompts(
        requests=tuple(requests),
        given=tuple(line.settings for line in lines),
        references={name: line.references for name, line in named if line.references},  # type: ignore[misc]
        file=None if path == "-" else path,
    )


def _arm(
    arm: Arm, place: pathlib.Path, models: Models, asked: Prompts, seed: int
) -> tuple[comparison.Result, str]:
    """An arm's measures, decoded now or before, and what there is to say of it."""
    requests = asked.of(arm)
    done = finished(place, models, requests, seed)
    before = done is not None
    if done is None:
        try:
            done = batch.generate(
                models.model, requests, seed=seed, draft=models.draft, amateur=models.amateur
            )
        except errors.BadInput as error:
            return comparison.Result(arm, failure=str(error)), f"failed: {error}"
        manifest.write(
            place,
            models.model,
            requests,
            done,
            seed=seed,
            draft=models.draft,
            amateur=models.amateur,
            prompts=asked.file,
        )
    broken = [each for each in done if each.finish_reason == "failed"]
    failure = f"{len(broken)} of {len(done)} completions: {broken[0].error}" if broken else None
    tokens = sum(len(each.tokens) for each in done)
    said = "done before" if before else f"{tokens:,} tokens"
    said += f", failed {failure}" if failure else ""
    measures = quality.measure(done, asked.references)
    return comparison.Result(arm, measures, failure, decoded=not before), said


def finished(
    directory: pathlib.Path, models: Models, requests: Iterable[Request], seed: int
) -> list[Completion] | None:
    """The completions of a decoding run, if it is whole and is this one; else None."""
    try:
        values, _, completions = manifest.read(directory)
    except errors.BadInput:
        return None
    there = [values["seed"], values["batch_size"], values["requests"]["sha256"]]
    here = [seed, batch.BATCH_SIZE, manifest.digest(requests)]
    for name, lm in models._asdict().items():
        saved = values[name] or {"weights": None, "tokenizer": None}
        there += [saved["weights"], saved["tokenizer"]]
        here += [lm and lm.digest, lm and lm.tokenizer.digest]
    return completions if there == here else None


def record(models: Models, asked: Prompts, arms: Grid, seed: int) -> dict[str, Any]:
    """What a sweep is, for `sweep.json`."""
    return {
        "format": FORMAT,
        "seed": seed,
        "batch_size": batch.BATCH_SIZE,
        **{
            name: lm and f"{lm.digest} {lm.tokenizer.digest}"
            for name, lm in models._asdict().items()
        },
        "prompts": asked.digest,
        "axes": arms.axes,
        "arms": [
            {"name": arm.name, "digest": arm.digest, "settings": arm.values} for arm in arms.arms
        ],
    }


def _merged(arm: Arm, given: Mapping[str, Any], name: str | int | None) -> Settings:
    """The arm's settings with what a line brings; what the line has otherwise than the arm is refused."""
    for key in given:
        if key in arm.values and getattr(Settings(**{key: given[key]}), key) != arm.values[key]:
            raise errors.BadInput(
                f"request {name!r} has {key} {given[key]!r} of its own, and the sweep sets it; remove one"
            )
    try:
        return Settings(**{**dataclasses.asdict(arm.settings), **given})
    except errors.BadInput as error:
        raise errors.BadInput(f"arm {arm.name!r}, request {name!r}: {error}") from error


def _claim(workdir: pathlib.Path, record: Mapping[str, Any]) -> None:
    """Writes what the sweep is; a directory of a sweep that cannot be compared with it is refused."""
    path = workdir / RECORD
    if path.exists():
        there = files.read_json(path, "choose another --workdir")
        for key in SAME:
            if there.get(key) != record[key]:
                values = f"{str(there.get(key))[:12]}, and this one {str(record[key])[:12]}"
                raise errors.BadInput(
                    f"{workdir} holds a sweep with {key} {values}; choose another --workdir"
                )
    try:
        (workdir / ARMS).mkdir(parents=True, exist_ok=True)
        files.write_text(path, json.dumps(record, indent=1) + "\n")
    except OSError as error:
        raise errors.BadInput(
            f"{workdir} cannot be written: {error.strerror}; choose another --workdir"
        ) from error


def _compiled(programs: int, arms: int) -> str:
    """`1 program compiled for 6 arms`: of the decoding loop."""
    return f"{programs} program{'s' * (programs != 1)} compiled for {arms} arm{'s' * (arms != 1)}"
