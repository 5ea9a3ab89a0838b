"""How many of its questions does a prompted model answer, with how many shots? A table, a picture, and what it said.

`run` is the verb: an arm for each number of shots. It writes `shots-K/predictions.jsonl` for each, `metrics.json`,
`manifest.json` and `figures/shots.png`.
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich import progress as bars
from rich.console import Console

import decode
from decode import batch, manifest
from model import LM, checkpoint, errors
from train import bootstrap, documents, metrics, prompting, scoring, shot_curve, shots, tables
from train.prompting import Data, Laid, Prompt
from train.scoring import Reader

FORMAT = 1
GENERATED = 64  # prompts between two looks at the bar


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a config of prompts asks for.

    Attributes:
        pool, questions: records.
        digests: of the sources of both.
    """

    prompt: Prompt
    pool: list[dict[str, Any]]
    questions: list[dict[str, Any]]
    digests: dict[str, list[str]]


@dataclasses.dataclass(frozen=True)
class Arm:
    """What became of the questions with so many shots each.

    Attributes:
        lines: what `predictions.jsonl` has, one for each question.
        scores: right or wrong, as `bootstrap` takes it.
    """

    shots: int
    lines: list[dict[str, Any]]
    scores: bootstrap.Scores

    @property
    def numbers(self) -> dict[str, Any]:
        """Accuracy with its interval, in per cent, and the tokens of its prompts, on average by what takes them."""
        interval = bootstrap.interval(self.scores, seed=0)
        tokens = {
            part: [line["tokens"][part] for line in self.lines] for part in self.lines[0]["tokens"]
        }
        return {
            "shots": self.shots,
            **dataclasses.asdict(interval),
            "unmatched": sum(line["prediction"] is None for line in self.lines),
            "dropped_shots": sum(line["dropped_shots"] for line in self.lines),
            "shortened_prompts": sum(bool(line["dropped_shots"]) for line in self.lines),
            "tokens": {part: sum(counts) / len(counts) for part, counts in tokens.items()},
            "longest": max(map(sum, zip(*tokens.values(), strict=True))),
        }


def asked(groups: Mapping[str, Any], limit: int | None = None) -> Asked:
    """What a config's groups `prompt` and `data` say, with the first `limit` questions."""
    known = ("prompt", "data")
    for name in groups:
        if name not in known:
            raise errors.BadInput(
                f"config.{name} stands beside config.prompt, and evaluating prompts reads {' and '.join(known)} alone; "
                "leave it out"
            )
    if limit is not None and limit < 1:
        raise errors.BadInput(f"--limit is {limit}; ask at least one question")
    prompt = errors.build(Prompt, groups["prompt"], "config.prompt")
    data = errors.build(Data, groups.get("data", {}), "config.data")
    questions = prompting.records(data.test, "data.test", limit)
    pool = prompting.records(data.train, "data.train") if data.train else []
    sides = {"train": data.train, "test": data.test}
    digests = {
        name: [documents.digest(source) for source in documents.sources(value, f"data.{name}")]
        for name, value in sides.items()
    }
    return Asked(prompt, pool, questions, digests)


def counts(values: Sequence[str]) -> list[int]:
    """`0,1,2,4` as numbers of shots."""
    found = []
    for value in values:
        if not value.strip().isdecimal():
            raise errors.BadInput(
                f"--shots has {value!r}; it must be a list of whole numbers from 0, such as 0,1,2,4"
            )
        found.append(int(value))
    if len(set(found)) < len(found):
        raise errors.BadInput(f"--shots is {','.join(values)}; name each number once")
    return found


def run(
    groups: Mapping[str, Any],
    lm: LM,
    shot_counts: Sequence[int],
    workdir: pathlib.Path | None = None,
    *,
    limit: int | None = None,
    rows: int = batch.BATCH_SIZE,
) -> int:
    """Evaluates, prints the table, and writes everything into `workdir`, or `eval/NAME` of the model's run."""
    wanted, reader = asked(groups, limit), Reader(lm, rows)
    named = [groups, list(shot_counts), limit, wanted.digests]
    workdir = home(lm, workdir, "prompts", named)
    console = Console(highlight=False)
    arms = []
    for count in shot_counts:
        with _bar(_shots(count), console) as bar:
            arms.append(evaluate(wanted, reader, count, bar))
        if not console.is_terminal:
            console.print(f"{_shots(count)}: {arms[-1].scores.value:.1f} %")
    numbers = _numbers(wanted, arms, lm.config.context_length)
    described = {
        "config": groups,
        "shots": list(shot_counts),
        "limit": limit,
        "data": wanted.digests,
        "model": identity(lm),
    }
    write(workdir, _files(arms, numbers), described)
    picture = shot_curve.draw(numbers, workdir)
    _table(numbers, console)
    console.print(f"wrote {workdir}; picture: {picture}", markup=False, soft_wrap=True)
    return 0


def evaluate(
    wanted: Asked,
    reader: Reader,
    count: int,
    told: scoring.Told = lambda done, total: None,
) -> Arm:
    """The arm of so many shots."""
    prompt, lm = wanted.prompt, reader.lm
    pool = shots.Pool(
        [prompt.asked(record) for record in wanted.pool] if count else [],
        **{name: getattr(prompt, name) for name in ("seed", "unit", "ngram")},
        kind=prompt.choose,
    )
    lines, laid, records = [], [], []
    for number, record in enumerate(wanted.questions):
        question = prompt.asked(record)
        places = pool.choose(number, question, count)
        shown = [prompt.shot(wanted.pool[place]) for place in places]
        placed = prompting.lay(prompt, shown, question, lm, where=f"question {number}")
        kept = places[count - placed.shots :]
        laid.append(placed)
        records.append((record, [prompt.shot(wanted.pool[place]) for place in kept]))
        line = {"question": number, "shots": kept, "dropped_shots": count - placed.shots}
        lines.append(line | {"prompt": placed.text, "tokens": dict(placed.tokens)})
    answer = _by_likelihood if prompt.score == "likelihood" else _by_generation
    references = [prompt.reference(record) for record, _ in records]
    if not prompt.labels:
        references = [_extracted(prompt, text, i) for i, text in enumerate(references)]
    for line, reference, found in zip(
        lines, references, answer(prompt, reader, laid, records, told), strict=True
    ):
        line |= {"reference": reference, **found}
    # An answer that is none is wrong: it equals no reference, which always is a text.
    return Arm(count, lines, metrics.accuracy([line["prediction"] for line in lines], references))


def _extracted(prompt: Prompt, text: str, number: int) -> str:
    found = prompt.extracted(text)
    if found is None:
        raise errors.BadInput(
            f"question {number} has the answer {text[-60:]!r}, in which config.prompt.pattern {prompt.pattern!r} finds "
            "nothing; correct one of them"
        )
    return found


def _by_likelihood(
    prompt: Prompt,
    reader: Reader,
    laid: Sequence[Laid],
    records: Sequence[tuple[Mapping[str, Any], list[str]]],
    told: scoring.Told,
) -> Iterator[dict[str, Any]]:
    """The likeliest label of each, and the score of every one."""
    texts = [placed.text for placed in laid]
    blanks: list[str] = []  # those of one prompt after another, as many for each
    if prompt.calibration == "content_free":
        for i, (record, shown) in enumerate(records):
            for filler in prompt.content_free:
                question = prompting.blank(prompt, record, filler)
                where = f"the content-free prompt {filler!r} of question {i}"
                fixed = dataclasses.replace(prompt, too_long="refuse")
                blanks.append(prompting.lay(fixed, shown, question, reader.lm, where=where).text)
    if prompt.calibration == "unconditional":
        blanks = [prompt.premise] * len(texts)
    scores_NC = _scores(prompt, reader, texts + blanks, told)
    if blanks:
        count, names = len(texts), len(prompt.labels)
        blank_NMC = scores_NC[count:].reshape(count, -1, names)
        scores_NC = scoring.calibrated(scores_NC[:count], blank_NMC)
    labels = list(prompt.labels)
    for scores_C in scores_NC.tolist():
        best = max(range(len(labels)), key=scores_C.__getitem__)
        yield {"prediction": labels[best], "scores": dict(zip(labels, scores_C, strict=True))}


def _scores(prompt: Prompt, reader: Reader, texts: Sequence[str], told: scoring.Told) -> np.ndarray:
    """Of each label behind each text, [N, C]."""
    names = list(prompt.labels.values())
    pairs = [pair for text in texts for pair in scoring.pairs(reader.lm, text, names, ended=True)]
    found = reader.likelihoods(pairs, told)
    scores = [
        scoring.per(prompt.length, names[i % len(names)], each) for i, each in enumerate(found)
    ]
    return np.array(scores).reshape(len(texts), len(names))


def _by_generation(
    prompt: Prompt,
    reader: Reader,
    laid: Sequence[Laid],
    records: Sequence[tuple[Mapping[str, Any], list[str]]],
    told: scoring.Told,
) -> Iterator[dict[str, Any]]:
    """What the model writes behind each, greedily, and the label or answer that it is."""
    stop = (prompt.separator,) if prompt.separator else ()
    settings = decode.Settings(temperature=0.0, max_new_tokens=prompt.max_new_tokens, stop=stop)
    for start in range(0, len(laid), GENERATED):
        part = [placed.text for placed in laid[start : start + GENERATED]]
        for done in decode.generate(reader.lm, part, settings, seed=0, batch_size=reader.rows):
            text = done.text
            read = scoring.matched(text, prompt.labels) if prompt.labels else prompt.extracted(text)
            yield {"prediction": read, "text": text, "finish_reason": done.finish_reason}
        told(start + len(part), len(laid))


def _numbers(wanted: Asked, arms: Sequence[Arm], window: int) -> dict[str, Any]:
    """What `metrics.json` has."""
    references = arms[0].scores.references
    common, often = collections.Counter(references).most_common(1)[0]
    found = []
    for arm in arms:
        more: dict[str, Any] = {}
        if arm is not arms[0]:
            compared = bootstrap.compare(arm.scores, arms[0].scores, seed=0)
            more = {
                "above_first": dataclasses.asdict(compared.difference),
                "p_value": compared.p_value,
            }
        found.append({**arm.numbers, **more})
    prompt = wanted.prompt
    majority = {"answer": common, "value": 100 * often / len(references)} if prompt.labels else None
    return {
        "metric": "accuracy" if prompt.labels else "exact match",
        "unit": "%",
        "questions": len(references),
        "window": window,
        "choose": prompt.choose,
        "score": prompt.score,
        "length": prompt.length,
        "calibration": prompt.calibration,
        "majority": majority,
        "arms": found,
    }


def _files(arms: Sequence[Arm], numbers: Mapping[str, Any]) -> dict[str, str]:
    files = {"metrics.json": json.dumps(numbers, indent=2, ensure_ascii=False) + "\n"}
    for arm in arms:
        lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in arm.lines)
        files[f"shots-{arm.shots}/predictions.jsonl"] = "".join(lines)
    return files


def home(lm: LM, workdir: pathlib.Path | None, kind: str, asked: Any) -> pathlib.Path:
    """Where an evaluation goes: the workdir, or `eval/KIND-NAME` of the model's run, named by what is asked of what."""
    if workdir is not None:
        return workdir
    if lm.directory is None:
        raise errors.BadInput("the model was not loaded from a directory; give a workdir")
    said = json.dumps([asked, lm.digest, lm.words.digest], sort_keys=True, default=str)
    name = hashlib.sha256(said.encode()).hexdigest()[:8]
    return manifest.home(pathlib.Path(lm.directory)) / "eval" / f"{kind}-{name}"


def identity(lm: LM) -> dict[str, str]:
    """Which model was asked: where it lies, and its digests."""
    return {
        "directory": str(lm.directory),
        "weights": lm.digest,
        "tokenizer": lm.words.digest,
    }


def write(workdir: pathlib.Path, files: Mapping[str, str], described: Mapping[str, Any]) -> None:
    """Writes texts by name, and `manifest.json` with their digests last; each is complete or as it was."""
    digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}
    values = {
        "format": FORMAT,
        **described,
        "files": digests,
        "environment": manifest.environment(),
    }
    listed = json.dumps(values, indent=2, ensure_ascii=False, default=str) + "\n"
    for name, text in {**files, "manifest.json": listed}.items():
        path = workdir / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise errors.BadInput(
                f"{path.parent} cannot be made: {error.strerror}; choose another directory"
            ) from error
        checkpoint.write_file(path, text)


def _table(numbers: Mapping[str, Any], console: Console) -> None:
    """What was measured, what the prompts took of the window, and what did not fit it."""
    arms, generated = numbers["arms"], numbers["score"] == "generation"
    said = f"{numbers['questions']:,} questions; {shot_curve.described(numbers)}"
    console.print(said, markup=False, soft_wrap=True)
    header = ["shots", f"{numbers['metric']} %", "95 % interval", f"above {arms[0]['shots']}", "p"]
    rows = []
    for arm in arms:
        above = arm.get("above_first")
        row = [str(arm["shots"]), f"{arm['value']:.1f}", _between(arm)]
        row += [f"{above['value']:+.1f}", f"{arm['p_value']:.4f}"] if above else ["", ""]
        rows.append([*row, *[str(arm["unmatched"])] * generated])
    tables.grid(console, [*header, *["unmatched"] * generated], rows)
    parts = list(arms[0]["tokens"])
    rows = [
        [str(arm["shots"]), *(f"{arm['tokens'][part]:.0f}" for part in parts), str(arm["longest"])]
        for arm in arms
    ]
    header = ["tokens", *parts, f"longest of {numbers['window']}"]
    tables.grid(console, header, rows)
    console.print()
    for arm in arms:
        if arm["dropped_shots"]:
            console.print(
                f"{_shots(arm['shots'])}: {arm['dropped_shots']:,} dropped from {arm['shortened_prompts']:,} prompts "
                f"that were longer than the window of {numbers['window']}",
                soft_wrap=True,
            )
    if numbers["majority"]:
        common = numbers["majority"]
        text = f"always {common['answer']!r}: {common['value']:.1f} %"
        console.print(text, markup=False, soft_wrap=True)


def _shots(count: int) -> str:
    return f"{count} shot{'s' * (count != 1)}"


def _between(arm: Mapping[str, Any]) -> str:
    return "" if arm["low"] is None else f"{arm['low']:.1f} to {arm['high']:.1f}"


@contextlib.contextmanager
def _bar(what: str, console: Console) -> Iterator[scoring.Told]:
    """A bar on a terminal, for calls with what is done and all there is."""
    bar = bars.Progress(
        bars.TextColumn(what),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task(what, total=None)
    with bar:
        yield lambda done, total: bar.update(task, completed=done, total=total)
