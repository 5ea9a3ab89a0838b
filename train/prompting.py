"""What does a question read as, with so many shots before it, and does the context window hold that?

`Prompt` is the config group. A prompt is an instruction, shots and the question, with a separator between; a shot is a
question with its answer.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from model import LM, errors, tokenizer
from train import documents, shots, tasks
from train.tasks import Record

LENGTHS = ("sum", "token", "character", "byte")
CALIBRATIONS = ("none", "content_free", "unconditional")
SCORES = ("likelihood", "generation")
TOO_LONG = ("refuse", "drop_shots")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """How questions are put to a model, and how its answers are read.

    Attributes:
        question: a Jinja template over the fields of a record; the model goes on behind it.
        answer: what stands behind the question of a shot, and what a free answer is compared with; a template too.
        label: of questions with labels, the field that has the label.
        labels: the text of each label behind its question, its space included: `{"0": " bad", "1": " good"}`.
        instruction: what stands before all; a text, not a template.
        separator: what stands between instruction, shots and question; a generated answer ends there.
        choose: which shots, as `shots.Pool` has it, with `seed`, `unit` and `ngram`.
        score: `likelihood` takes the likeliest label; `generation` what the model writes.
        length: by what the log-likelihood of a label is divided: 1 (`sum`), or its tokens, characters or bytes.
        calibration: what is subtracted from that: the same of the prompt whose question is `content_free` (Zhao et al.
            2021), or of `premise` alone (Holtzman et al. 2021).
        content_free: what takes the place of every field; of several the probabilities are averaged.
        premise: such as `Sentiment:`; empty is the begin of a text.
        pattern: a regular expression whose first group is the free answer, in what is generated and in `answer`.
        ignore: characters of it that do not count, such as the commas of 1,234.
        max_new_tokens: room for a generated answer.
        too_long: what becomes of a prompt that the window does not hold: `refuse`, or `drop_shots` from its far end.
    """

    question: str
    answer: str = ""
    label: str = "label"
    labels: dict[str, str] = dataclasses.field(default_factory=dict)
    instruction: str = ""
    separator: str = "\n\n"
    choose: str = "random"
    seed: int = 0
    unit: str = "word"
    ngram: int = 1
    score: str = "likelihood"
    length: str = "sum"
    calibration: str = "none"
    content_free: tuple[str, ...] = ("N/A",)
    premise: str = ""
    pattern: str = ""
    ignore: str = ""
    max_new_tokens: int = 16
    too_long: str = "refuse"

    def __post_init__(self) -> None:
        for name, known in (
            ("choose", shots.KINDS),
            ("unit", shots.UNITS),
            ("score", SCORES),
            ("length", LENGTHS),
            ("calibration", CALIBRATIONS),
            ("too_long", TOO_LONG),
        ):
            value = getattr(self, name)
            if value not in known:
                raise errors.BadInput(
                    f"config.prompt.{name} is {value!r}{errors.nearest(value, known)}; known: {', '.join(known)}"
                )
        for name, least in (("ngram", 1), ("max_new_tokens", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise errors.BadInput(
                    f"config.prompt.{name} is {getattr(self, name)}; it must be at least {least}"
                )
        self._check_labels()
        self._check_pattern()

    def _check_labels(self) -> None:
        if bool(self.labels) == bool(self.answer):
            raise errors.BadInput(
                f"config.prompt has answer={self.answer!r} and {len(self.labels)} labels; give labels to choose from, "
                "or the template of a free answer"
            )
        texts = list(self.labels.values())
        if self.labels and (len(texts) < 2 or len(set(texts)) < len(texts) or "" in texts):
            raise errors.BadInput(
                f"config.prompt.labels is {self.labels!r}; give at least two, each with a text of its own"
            )
        if self.score == "likelihood" and not self.labels:
            raise errors.BadInput(
                "config.prompt.score is 'likelihood', which chooses among labels, and there are none; add "
                "config.prompt.labels, or set score='generation'"
            )
        if self.calibration == "content_free" and not self.content_free:
            raise errors.BadInput(
                "config.prompt.content_free is empty, and calibration needs one; leave it at ('N/A',)"
            )

    def _check_pattern(self) -> None:
        if not self.pattern:
            return
        if self.labels:
            raise errors.BadInput(
                f"config.prompt.pattern is {self.pattern!r}, which is for free answers, and there are labels; leave it "
                "out"
            )
        try:
            groups = re.compile(self.pattern).groups
        except re.error as error:
            raise errors.BadInput(
                f"config.prompt.pattern is {self.pattern!r}, which is no regular expression ({error}); correct it"
            ) from error
        if groups < 1:
            raise errors.BadInput(
                f"config.prompt.pattern is {self.pattern!r}, which has no group; put the answer in brackets"
            )

    def asked(self, record: Record) -> str:
        """The question of a record."""
        return tasks.fill(self.question, record)

    def reference(self, record: Record) -> str:
        """The right answer: a label, or the text of a free answer."""
        if not self.labels:
            return tasks.fill(self.answer, record)
        if self.label not in record:
            raise errors.BadInput(
                f"config.prompt.label is {self.label!r}{errors.nearest(self.label, record)}, and a record has: "
                f"{', '.join(record)}"
            )
        label = str(record[self.label])
        if label not in self.labels:
            raise errors.BadInput(
                f"label {label!r} is not one of config.prompt.labels{errors.nearest(label, self.labels)}: "
                f"{', '.join(self.labels)}; add it, or correct the record"
            )
        return label

    def shot(self, record: Record) -> str:
        """A question with its answer."""
        reference = self.reference(record)
        return self.asked(record) + (self.labels[reference] if self.labels else reference)

    def extracted(self, text: str) -> str | None:
        """The free answer in a text; None where the pattern finds none."""
        if self.pattern:
            found = re.search(self.pattern, text)
            if found is None:
                return None
            text = found.group(1) or ""
        return "".join(letter for letter in text if letter not in self.ignore).strip()


@dataclasses.dataclass(frozen=True)
class Data:
    """Where shots and questions come from: sources as `data.train` of a run has them.

    Attributes:
        train: examples to choose shots from.
        test: the questions.
    """

    test: Any
    train: Any = ()


@dataclasses.dataclass(frozen=True)
class Laid:
    """A prompt in the window.

    Attributes:
        shots: how many of those asked are in it, the last ones.
        tokens: of the window, by what takes them: `instruction` (the begin of a text and a soft prompt included),
            `shots`, `question`, and `answer`, the room for one. A piece across two counts for the second.
    """

    text: str
    shots: int
    tokens: Mapping[str, int]


def lay(prompt: Prompt, shot_texts: Sequence[str], question: str, lm: LM, *, where: str) -> Laid:
    """The prompt with as many of the shots as the window holds, if that is what `too_long` says, else with all.

    The answer's room counts: the longest label, or `max_new_tokens`; not beside the source of an encoder-decoder, whose
    target has a window of its own.

    Raises:
        BadInput: when it does not fit, with its tokens by part; nothing is ever cut.
    """
    window, kept = lm.config.context_length, list(shot_texts)
    separate = lm.config.family == "encoder_decoder"
    room = _room(prompt, lm)
    while True:
        text, tokens = _parts(prompt, kept, question, lm)
        tokens["answer"] = room
        total = sum(tokens.values()) - room * separate
        if max(total, room) <= window:
            return Laid(text, len(kept), tokens)
        if prompt.too_long == "refuse" or not kept or room > window:
            break
        del kept[0]
    listed = ", ".join(f"{name} {count}" for name, count in tokens.items())
    remedy = "leave it out, or take a model with a longer window"
    if kept:
        remedy = "ask for fewer shots, or set config.prompt.too_long='drop_shots'"
    raise errors.BadInput(
        f"{where} takes {total} tokens with {len(kept)} shots ({listed}), and the window holds {window}; {remedy}"
    )


def _room(prompt: Prompt, lm: LM) -> int:
    if prompt.score == "generation":
        return prompt.max_new_tokens
    return max(map(len, lm.words.encode_batch(prompt.labels.values())))


def _parts(
    prompt: Prompt, shot_texts: Sequence[str], question: str, lm: LM
) -> tuple[str, dict[str, int]]:
    """The text, and the tokens that instruction, shots and question each add to what stands before."""
    before = prompt.instruction + prompt.separator if prompt.instruction else ""
    shown = "".join(text + prompt.separator for text in shot_texts)
    grown = [before, before + shown, before + shown + question]
    counts = [len(ids) for ids in lm.words.encode_batch(grown)]
    frame = lm.virtual_tokens + len(tokenizer.prompt_ids(lm.words, ""))
    return grown[-1], {
        "instruction": frame + counts[0],
        "shots": counts[1] - counts[0],
        "question": counts[2] - counts[1],
    }


def blank(prompt: Prompt, record: Record, filler: str) -> str:
    """The question without content: `filler` in the place of every field of the record."""
    return tasks.fill(prompt.question, dict.fromkeys(record, filler))


def records(values: Any, where: str, limit: int | None = None) -> list[dict[str, Any]]:
    """All records of a config's sources, or the first `limit`."""
    found: list[dict[str, Any]] = []
    for source in documents.sources(values, where):
        found += documents.records(source)
    return found[:limit]
