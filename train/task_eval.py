"""How well does a run do what it was trained for? Predictions, their metrics, and a comparison of two runs.

An evaluation is a directory: `predictions.jsonl` with a line for each record, `metrics.json`, and `manifest.json` with
what they came from.
"""

import dataclasses
import hashlib
import itertools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import rich.console

from decode import manifest
from model import checkpoint, errors
from train import (
    baselines,
    bootstrap,
    documents,
    evaluate,
    grading,
    predictions,
    tables,
    tasks,
    terminal,
)
from train.evaluate import Run
from train.grading import Line

LINES, METRICS, MANIFEST = "predictions.jsonl", "metrics.json", "manifest.json"
FORMAT = 1
LIBRARIES = ("sacrebleu", "rouge-score", "seqeval")
WIDEST = 12  # classes of which each has its row


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluation's directory holds."""

    directory: pathlib.Path
    lines: list[Line]
    values: dict[str, Any]


def run(
    directory: pathlib.Path,
    changed: Sequence[str] = (),
    workdir: str | None = None,
    other: str | None = None,
) -> int:
    """Evaluates a run, prints what was found, and compares it with another; an evaluation is only read.

    Args:
        directory: of a run, or of an evaluation.
        changed: flags such as `--config.evaluate.limit=100`.
        workdir: where the evaluation goes; by default below `<directory>/eval`.
        other: a run, or an evaluation, of the same records.
    """
    console = rich.console.Console()
    theirs = found(pathlib.Path(other)) if other else None
    if (directory / METRICS).exists() and (directory / LINES).exists():
        ours: Evaluation | None = read(directory)
    else:
        asked = evaluate.opened(directory, changed)
        records = test_records(asked)  # what is wrong with them is told before any work is done
        terminal.evaluation_table(evaluate.of(asked), console)
        ours = None if records is None else measure(asked, records, workdir)
    if ours:
        show(ours, console)
        print(f"{ours.directory} has {LINES}, {METRICS} and {MANIFEST}")
    if theirs and ours is None:
        raise errors.BadInput(
            f"{directory} has no predictions to compare, because its task makes none; leave --compare out"
        )
    if theirs and ours:
        # Several evaluations of a run: that of these records.
        matching = [each for each in theirs if _examples(each) == _examples(ours)]
        compare(ours, (matching or theirs)[0], console)
    return 0


def measure(run: Run, records: Sequence[Any], workdir: str | None = None) -> Evaluation:
    """Predicts, measures and writes."""
    asked = run.asked
    evaluated, task = asked.evaluate, asked.task
    names, options = grading.named(evaluated, task), evaluated.options
    split = "test" if asked.data.test else "held-out"
    values: dict[str, Any] = {"split": split, "step": run.step, "records": len(records)}
    if asked.data.test and not grading.prompted(evaluated, task):
        made = predictions.examples(run, records)
        rows = evaluate.rows_of(asked, made, run.lm.tokenizer, run.lm.config)
        values["loss"] = evaluate.measure(run, rows, made)
    lines = predictions.of(run, records, names)
    if names:
        values["metrics"] = grading.measure(names, lines, options, evaluated.seed)
        values["baseline"] = baseline(run, records, lines, names)
        for line, own in zip(lines, grading.values(names, lines, options), strict=True):
            line["values"] = own
    values["told"] = told(lines)
    values["examples"] = grading.digest(lines)
    return write(run, split, lines, values, workdir)


def test_records(run: Run) -> list[Any] | None:
    """The first records of the test data, or else of the held-out; None of plain text that nothing is asked of."""
    asked = run.asked
    evaluated, task = asked.evaluate, asked.task
    if not asked.data.test and not evaluated.metrics and not task.whole:
        return None
    grading.probe(grading.named(evaluated, task), evaluated.options)
    limit = evaluated.limit or None
    if not asked.data.test:
        return list(run.corpus.held_out_documents[:limit])
    whole = task.whole or grading.prompted(evaluated, task)
    reading = documents.records if whole else documents.read
    sources = documents.sources(asked.data.test, "data.test")
    every = itertools.chain.from_iterable(reading(source) for source in sources)
    return list(itertools.islice(every, limit))


def baseline(
    run: Run, records: Sequence[Any], lines: Sequence[Line], names: Sequence[str]
) -> dict[str, Any] | None:
    """A title, and the metrics of what is predicted without a model; None where nothing is."""
    asked = run.asked.evaluate
    simple = _without_a_model(run, records, lines)
    if simple is None:
        return None
    title, predicted = simple
    alike = [{**line, "prediction": one} for line, one in zip(lines, predicted, strict=True)]
    fitting = [name for name in names if "@" not in name and name not in grading.NATS]
    return {
        "title": title,
        "metrics": grading.measure(fitting, alike, asked.options, asked.seed),
    }


def _without_a_model(
    run: Run, records: Sequence[Any], lines: Sequence[Line]
) -> tuple[str, Sequence[Any]] | None:
    task, template = run.asked.task, run.asked.evaluate.baseline
    if template:
        return "template", [tasks.fill(template, record) for record in records]
    learnt = [
        record
        for index, own in enumerate(run.asked.tasks)
        if task.kind in tasks.LABELLED and own == task
        for record in run.corpus.train_documents(index)
    ]
    if not learnt:
        return None
    if task.kind == "classify":
        most = baselines.commonest(str(record[task.label]) for record in learnt)
        return f"always {most}", [most] * len(lines)
    if not all(map(grading.is_tag, task.labels)):
        return None
    field = tasks.named(task.source)
    known = baselines.memorise((record[field], record[task.label]) for record in learnt)
    return "names seen", [baselines.remember(known, line["source"]) for line in lines]


def told(lines: Sequence[Line]) -> dict[str, int]:
    """How often a prediction is not what it could be: nothing of this goes without saying."""
    counts = {
        "dropped": sum("dropped" in line for line in lines),
        "cut": sum("cut" in line for line in lines),
        "tokens_cut": sum(line.get("cut", 0) for line in lines),
        "unfinished": sum(line.get("finish_reason") == "length" for line in lines),
    }
    return {name: count for name, count in counts.items() if count}


def write(
    run: Run, split: str, lines: Sequence[Line], values: dict[str, Any], workdir: str | None
) -> Evaluation:
    """The files of an evaluation; by default in a directory named by all that it depends on."""
    asked = run.asked
    sources = documents.sources(asked.data.test, "data.test") if asked.data.test else ()
    came = {
        "format": FORMAT,
        "run": str(run.directory),
        "step": run.step,
        "weights": run.lm.digest,
        "tokenizer": run.lm.tokenizer.digest,
        "corpus": run.corpus.digest,
        "split": split,
        "sources": [{"path": each.name, "sha256": documents.digest(each)} for each in sources],
        "examples": values["examples"],
        "task": dataclasses.asdict(asked.task),
        "evaluate": dataclasses.asdict(asked.evaluate),
        "decoding": asked.evaluate.decoding.changed,
        "dtype": asked.runtime.dtype,
        "rows": evaluate.ROWS * run.mesh.size,
    }
    name = f"{split}-{_sha256(json.dumps(came, sort_keys=True, default=str))[:8]}"
    directory = pathlib.Path(workdir or run.directory / "eval" / name)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.BadInput(
            f"{directory} cannot be made: {error.strerror}; choose another directory"
        ) from error
    text = "".join(map(manifest.json_line, lines))
    libraries = {name: manifest.version(name) for name in LIBRARIES}
    came |= {
        "predictions": {"count": len(lines), "sha256": _sha256(text)},
        "environment": {**manifest.environment(), **libraries},
    }
    checkpoint.write_file(directory / LINES, text)
    for file, content in ((MANIFEST, came), (METRICS, values)):  # the last says that all is there
        checkpoint.write_file(
            directory / file, json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        )
    return Evaluation(directory, list(lines), values)


def read(directory: pathlib.Path) -> Evaluation:
    """An evaluation that was written."""
    try:
        text = (directory / LINES).read_text("utf-8")
        values = json.loads((directory / METRICS).read_text("utf-8"))
        came = json.loads((directory / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise errors.BadInput(
            f"{directory} is no complete evaluation ({error}); evaluate the run again"
        ) from error
    if _sha256(text) != came["predictions"]["sha256"]:
        raise errors.BadInput(
            f"{directory / LINES} changed since its manifest was written; evaluate the run again"
        )
    return Evaluation(directory, [json.loads(line) for line in text.split("\n")[:-1]], values)


def found(directory: pathlib.Path) -> list[Evaluation]:
    """The evaluation in a directory, or those of a run, the newest first."""
    if (directory / METRICS).exists():
        return [read(directory)]
    places = [path.parent for path in directory.glob(f"eval/*/{METRICS}")]
    every = [read(place) for place in sorted(places, key=lambda p: -(p / METRICS).stat().st_mtime)]
    if not any(each.lines for each in every):
        raise errors.BadInput(
            f"{directory} has no evaluation with predictions; run eval --from={directory} first"
        )
    return [each for each in every if each.lines]


def show(found: Evaluation, console: rich.console.Console) -> None:
    """Prints the table of an evaluation, and where it is."""
    values = found.values
    print(
        f"\n{values['split']}: {values['records']:,} records, by the model of step {values['step']:,}"
    )
    if "loss" in values:
        loss = values["loss"]
        print(
            f"loss {loss['loss']:.4f} nats per target; of {int(loss['tokens']):,} targets {loss['accuracy']:.2%} are "
            "the likeliest"
        )
    if "metrics" in values:
        _show_metrics(values, console)
    for name, count in values.get("told", {}).items():
        print(TELL[name].format(count=count))


TELL = {
    "dropped": "{count:,} records are too long to be read; a guess stands for each",
    "cut": "{count:,} records were cut to what a row holds",
    "tokens_cut": "{count:,} tokens were cut off in all",
    "unfinished": "{count:,} texts were ended by max_new_tokens or the window",
}


def _show_metrics(values: dict[str, Any], console: rich.console.Console) -> None:
    simple = values["baseline"]
    rows = []
    for name, one in values["metrics"].items():
        row = [
            one["title"],
            _number(one["value"], name),
            _between(one, name),
            f"{one['records']:,}",
        ]
        if simple:
            row.append(_number(simple["metrics"].get(name, {}).get("value"), name))
        rows.append(row)
    header = ["metric", "value", "95 % interval", "records"]
    tables.grid(console, [*header, *([simple["title"]] if simple else [])], rows)
    for one in values["metrics"].values():
        types = one["details"].get("types", {})
        if 1 < len(types) <= WIDEST + 1:
            shown = [
                [name, *(_number(row[key], "f1") for key in ("precision", "recall", "f1"))]
                + [f"{row['references']:,}", f"{row['predictions']:,}"]
                for name, row in types.items()
            ]
            head = ["", "precision", "recall", "F1", "references", "predictions"]
            tables.grid(console, head, shown)
    console.print()


def compare(ours: Evaluation, theirs: Evaluation, console: rich.console.Console) -> None:
    """Prints what one evaluation has more than another of the same records, metric by metric."""
    if _examples(ours) != _examples(theirs):
        raise errors.BadInput(
            f"{theirs.directory} has {len(theirs.lines)} records and {ours.directory} {len(ours.lines)}, and they are "
            "not the same; evaluate both runs on the same test records, with the same limit and references"
        )
    shared = [name for name in ours.values["metrics"] if name in theirs.values["metrics"]]
    rows = []
    for name in shared:
        options = ours.values["metrics"][name]["options"]
        if options != theirs.values["metrics"][name]["options"]:
            raise errors.BadInput(
                f"{name} of {ours.directory} has the options {options}, and of {theirs.directory} "
                f"{theirs.values['metrics'][name]['options']}; evaluate both with the same"
            )
        one, other = (grading.score(name, each.lines, options) for each in (ours, theirs))
        got = bootstrap.compare(one, other, seed=0)
        between = dataclasses.asdict(got.difference)
        row = [grading.title(name), _number(one.value, name), _number(other.value, name)]
        rows.append(
            [
                *row,
                f"{got.difference.value:+.{_digits(name)}f}",
                _between(between, name),
                f"{got.p_value:.4f}",
            ]
        )
    if not rows:
        raise errors.BadInput(
            f"{ours.directory} and {theirs.directory} share no metric; evaluate both with the same"
        )
    print(f"\nagainst {theirs.directory}, {len(ours.lines):,} records of both")
    tables.grid(console, ["metric", "this", "that", "difference", "95 % interval", "p"], rows)


def _examples(found: Evaluation) -> str:
    return grading.digest(found.lines)


def _digits(name: str) -> int:
    """Places behind the point: bits and nats are small numbers."""
    return 4 if name in ("loss", "bits_per_byte") else 2


def _number(value: float | None, name: str) -> str:
    return "-" if value is None else f"{value:.{_digits(name)}f}"


def _between(ends: dict[str, Any], name: str) -> str:
    low, high = ends["low"], ends["high"]
    return "-" if low is None else f"{_number(low, name)} to {_number(high, name)}"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
