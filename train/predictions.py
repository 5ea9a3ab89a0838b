"""What does a run's model make of the records of its task? A label, tags, or a text of each.

Records are read exactly as in training: in the same rows where a head answers, framed alike where a text is written.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

import decode
from decode.requests import Completion, Request
from model import errors, heads, sharding, tokenizer
from train import evaluate, grading, jail, losses, step, streams, tasks
from train.evaluate import Run
from train.grading import Line
from train.tasks import Record, Task

OUTSIDE = "O"
PROGRAMS = {"mbpp": jail.mbpp, "humaneval": jail.humaneval}


def of(run: Run, records: Sequence[Any], names: Sequence[str]) -> list[Line]:
    """A line for each record, with what these metrics need: `id`, its place; `source`; `references`; and

    classify: `prediction`, its `logprob`, and `probabilities` of all labels.
    tag: a tag for each token, and the `logprob` of all together; `cut` is how many tokens no row holds, which are taken
    to be outside of all names.
    Texts: `prediction`, `logprob`, `finish_reason` and `tokens`, the `cut` tokens of the source; of several samples
    the prediction is the first and `samples` are all; `outcomes` says of each what became of the program in the jail.
    Likelihood: `nats` of the `targets` of what should be written, its `bytes` and `words`.
    """
    kind = run.asked.task.kind
    if kind in tasks.LABELLED:
        lines = (_labels if kind == "classify" else _tags)(run, records)
    else:
        lines = [_asked(run, record) for record in records]
        if grading.written(names):
            lines = _joined(lines, _texts(run, records))
        if set(names) & set(grading.NATS):
            lines = _joined(lines, _nats(run, records))
    return [{"id": number, **line} for number, line in enumerate(lines)]


def examples(run: Run, records: Sequence[Any]) -> streams.Examples:
    """The records as training would have them; where one cannot be, the message says which."""
    task, words = _learnt(run), run.lm.tokenizer
    made = task.encode_placed(records, words, lambda n: f"record {n + 1} to evaluate")
    return streams.of(made, map(task.measure, records))


def source(task: Task, record: Any) -> Any:
    """What is read of a record, as a line shows it."""
    if task.kind == "tag":
        return record[tasks.named(task.source)]
    if task.kind == "chat":
        return record["messages"][: _last_said(record)]
    return record if isinstance(record, str) else tasks.fill(task.source, record)


def _labels(run: Run, records: Sequence[Record]) -> list[Line]:
    task = run.asked.task
    found = _scores(run, examples(run, records))
    uniform_1C = np.full((1, len(task.labels)), -math.log(len(task.labels)))
    lines = []
    for number, record in enumerate(records):
        scores_C = found.get(number, uniform_1C)[0].astype(float)  # those of one that was dropped
        best = int(scores_C.argmax())
        lines.append(
            {
                "source": source(task, record),
                "prediction": task.labels[best],
                "references": [str(record[task.label])],
                "logprob": float(scores_C[best]),
                "probabilities": dict(zip(task.labels, np.exp(scores_C).tolist(), strict=True)),
                **({} if number in found else {"dropped": True}),
            }
        )
    return lines


def _tags(run: Run, records: Sequence[Record]) -> list[Line]:
    task, words = run.asked.task, run.lm.tokenizer
    found = _scores(run, examples(run, records))
    lines = []
    for number, record in enumerate(records):
        tokens = source(task, record)
        pieces = words.encode_batch(tokenizer.token_texts(tokens))
        spelled = [i for i, ids in enumerate(pieces) if ids]
        scores_TC = found.get(number, np.zeros((0, len(task.labels))))
        tags = [OUTSIDE] * len(tokens)
        for i, scores_C in zip(
            spelled, scores_TC, strict=False
        ):  # a row may end before the sentence
            tags[i] = task.labels[int(scores_C.argmax())]
        cut = len(tokens) - len(scores_TC)
        lines.append(
            {
                "source": list(tokens),
                "prediction": tags,
                "references": [list(record[task.label])],
                "logprob": float(scores_TC.max(axis=1).sum()) if len(scores_TC) else 0.0,
                **({"cut": cut} if cut else {}),
            }
        )
    return lines


def _nats(run: Run, records: Sequence[Any]) -> list[Line]:
    """How unlikely the model finds what should be written."""
    task, made = _learnt(run), examples(run, records)
    net, head = run.net, step.head(run.net, key=None)

    def forward(params: Any, batch: step.Batch) -> jax.Array:
        x_BTD, _ = step.features(net, params, batch, key=None)
        read = heads.params(net.config, params)
        # A row at a time: the logits of all would fill the memory.
        return jax.lax.map(
            lambda row: losses.cross_entropy(head(read, row[0][None]), row[1][None])[0],
            (x_BTD, batch["targets"]),
        )

    found = dict(_answers(run, made, forward))
    none = np.zeros(0)
    return [
        {
            "nats": math.fsum(found.get(number, none).tolist()),
            "targets": len(found.get(number, none)),
            "bytes": size,
            "words": words,
        }
        for number, (size, words) in enumerate(map(task.measure, records))
    ]


def _scores(run: Run, made: streams.Examples) -> dict[int, np.ndarray]:
    """By the number of an example, log-probabilities [places, C] of the labels, at each place that is asked for one."""
    net, head = run.net, step.head(run.net, key=None)

    def forward(params: Any, batch: step.Batch) -> jax.Array:
        x_BTD, _ = step.features(net, params, batch, key=None)
        return jax.nn.log_softmax(head(heads.params(net.config, params), x_BTD))

    return dict(_answers(run, made, forward))


def _answers(
    run: Run, made: streams.Examples, forward: Callable[[Any, step.Batch], jax.Array]
) -> Iterator[tuple[int, np.ndarray]]:
    """The number of each example that rows hold, and what `forward` says [B, T, ...] at its weighted targets."""
    source_rows: Any = evaluate.rows_of(run.asked, made, run.lm.tokenizer, run.lm.config)
    jitted = jax.jit(
        forward,
        in_shardings=(None, sharding.batch(run.mesh)),
        out_shardings=sharding.replicated(run.mesh),
    )
    compiled = sharding.on_mesh(jitted, run.mesh)
    parts: dict[int, list[np.ndarray]] = {}
    number = 0
    for batch in run.batches(source_rows):
        found_BT, weights_BT = jax.device_get((compiled(run.params, batch), batch["weights"]))
        for found_T, weights_T in zip(found_BT, weights_BT, strict=True):
            if number < len(source_rows):
                owners_T, asked_T = source_rows.owners(number), weights_T > 0
                for owner in np.unique(owners_T[asked_T]).tolist():
                    parts.setdefault(owner, []).append(found_T[asked_T & (owners_T == owner)])
            number += 1
    for owner, pieces in parts.items():  # a document may go on in the next row
        yield owner, np.concatenate(pieces)


def _texts(run: Run, records: Sequence[Any]) -> list[Line]:
    asked = run.asked.evaluate
    prompts = [_prompt(run, record) for record in records]
    requests = [Request(ids, asked.decoding, number) for number, (ids, _) in enumerate(prompts)]
    drops = run.asked.task.too_long == "drop"
    made = decode.generate(run.lm, requests, seed=asked.seed, strict=not drops)
    done: list[list[Completion]] = [[] for _ in records]
    for completion in made:
        done[int(completion.id)].append(completion)
    lines = []
    for (ids, cut), samples in zip(prompts, done, strict=True):
        first = samples[0]
        line = {
            "prediction": first.text,
            "logprob": math.fsum(first.logprobs),
            "finish_reason": first.finish_reason,
            "tokens": len(first.tokens),
            "prompt_tokens": len(ids),
        }
        if len(samples) > 1:
            line["samples"] = [sample.text for sample in samples]
        if cut:
            line["cut"] = cut
        if first.error:
            line["dropped"] = first.error
        lines.append(line)
    return _tested(run, records, lines, done) if asked.tests else lines


def _asked(run: Run, record: Any) -> Line:
    return {"source": source(_asking(run), record), "references": references(run, record)}


def _joined(lines: Sequence[Line], others: Sequence[Line]) -> list[Line]:
    return [line | other for line, other in zip(lines, others, strict=True)]


def _tested(
    run: Run, records: Sequence[Record], lines: list[Line], done: Sequence[Sequence[Completion]]
) -> list[Line]:
    """With what became of each program."""
    build = PROGRAMS[run.asked.evaluate.tests]
    programs = [
        build(record, sample.text)
        for record, samples in zip(records, done, strict=True)
        for sample in samples
    ]
    results = iter(jail.run_all(programs))
    for line, samples in zip(lines, done, strict=True):
        line["outcomes"] = [next(results).outcome for _ in samples]
    return lines


def _learnt(run: Run) -> Task:
    """The task with the first reference for its target."""
    task, templates = run.asked.task, run.asked.evaluate.references
    return (
        dataclasses.replace(task, target=templates[0])
        if templates and task.kind == "seq2seq"
        else task
    )


def _asking(run: Run) -> Task:
    """The task with the prompt of the evaluation."""
    task, prompt = run.asked.task, run.asked.evaluate.prompt
    return dataclasses.replace(task, source=prompt) if prompt else task


def _prompt(run: Run, record: Any) -> tuple[list[int], int]:
    """What is read of a record, and how many tokens of it were cut off because training does so."""
    task, words = _asking(run), run.lm.tokenizer
    if task.kind == "chat":
        return list(task.framed({"messages": source(task, record)}, words)), 0  # type: ignore[arg-type]
    ids = tokenizer.prompt_ids(words, source(task, record))
    separate = run.lm.config.family == "encoder_decoder"
    room = run.asked.data.source_length if separate and task.too_long == "truncate" else len(ids)
    return ids[:room], max(0, len(ids) - room)


def references(run: Run, record: Any) -> list[str]:
    """What should have been written."""
    task, templates = run.asked.task, run.asked.evaluate.references
    if templates:
        return [tasks.fill(template, record) for template in templates]
    if task.kind == "chat":
        return [record["messages"][_last_said(record)]["content"]]
    return [tasks.fill(task.target, record)] if task.kind == "seq2seq" else []


def _last_said(record: Record) -> int:
    """Where in a conversation the assistant speaks last."""
    said = record.get("messages", [])
    places = [i for i, message in enumerate(said) if message.get("role") == "assistant"]
    if not places:
        raise errors.BadInput(
            f"a conversation of {len(said)} messages has none of the assistant's to compare with; leave it out"
        )
    return places[-1]
