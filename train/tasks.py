"""What is learnt from a record, and how does the record become token ids under that?

`Task` is the config group; `encode` makes examples of records: named arrays of any length, which `train/rows.py` turns
into the rows of a batch.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
from jinja2 import meta, nodes

from model import chat, errors, tokenizer, trained_tokenizer
from model.config import RECURRENT, ModelConfig
from model.tokenizer import Tokenizer
from train import packing

Record = Mapping[str, Any]
Item = str | Record  # a document, or a record of several fields

_LEFT_TO_RIGHT = ("decoder_only", *RECURRENT)
# Which models can learn each, and what their head must be.
KINDS: dict[str, tuple[tuple[str, ...], str]] = {
    "causal": (_LEFT_TO_RIGHT, "lm"),
    "prefix": (("decoder_only",), "lm"),
    "masked": (("encoder_only",), "lm"),
    "spans": (("encoder_decoder",), "lm"),
    "denoising": (("encoder_decoder",), "lm"),
    "seq2seq": (("encoder_decoder", *_LEFT_TO_RIGHT), "lm"),
    "chat": (_LEFT_TO_RIGHT, "lm"),
    "classify": (("encoder_only",), "sequence"),
    "tag": (("encoder_only",), "token"),
}
TEXT = ("causal", "prefix", "masked", "spans", "denoising")  # learnt from documents
LABELLED = ("classify", "tag")
LABEL = {"classify": "label", "tag": "tags"}
# Whose loss is about all bytes of a text, each once.
MEASURED = ("causal", "seq2seq", "chat")
MASK = trained_tokenizer.MASK
SENTINELS = tuple(f"<extra_id_{i}>" for i in range(100))
SPECIAL = {"masked": (MASK,), "denoising": (MASK,), "spans": SENTINELS, "chat": chat.SPECIAL}
OUTSIDE = -1  # the label of a token that is asked for none


@dataclasses.dataclass(frozen=True)
class Task:
    """What a run learns.

    Attributes:
        kind: from documents, each read as text: `causal` predicts every next token; `prefix` those behind a random
            place, before which all see all (Raffel et al. 2020, section 3.2.1); `masked` tokens that are hidden (Devlin
            et al. 2019); `spans` that are cut out (T5); `denoising` a text from what BART's noise leaves of it. From
            records of several fields: `seq2seq` writes a target for a source; `chat` what the assistant says in
            `messages`; `classify` finds the label of a source; `tag` the label of each of its tokens.
        source, target: what is read and what is written, as Jinja templates over the fields of a record:
            `{{ dialogue }}`. For `tag`, the field that lists the tokens.
        label: the field with the label, or with the list of tags.
        labels: all that there are, in the order of the head's classes.
        rate: share of the tokens that are hidden; by default 0.15, for denoising 0.3.
        mean_span: tokens of a span, on average.
        whole_words: hides all tokens of a word, or none.
        next_sentence: a masked model also learns whether a text follows another.
        permuted: denoising also shuffles sentences.
        too_long: what becomes of an example that no row holds: `refuse`, `drop` or `truncate`.
    """

    kind: str = "causal"
    source: str = "{{ text }}"
    target: str = "{{ target }}"
    label: str = ""
    labels: tuple[str, ...] = ()
    rate: float = 0.0
    mean_span: float = 3.0
    whole_words: bool = False
    next_sentence: bool = False
    permuted: bool = True
    too_long: str = "refuse"

    def __post_init__(self) -> None:
        for name, known in (("kind", KINDS), ("too_long", packing.TOO_LONG)):
            value = getattr(self, name)
            if value not in known:
                raise errors.BadInput(
                    f"config.task.{name} is {value!r}{errors.nearest(value, known)}; known: {', '.join(known)}"
                )
        if bool(self.labels) != (self.kind in LABELLED):
            raise errors.BadInput(
                f"config.task has kind={self.kind!r} and {len(self.labels)} labels; "
                f"{' and '.join(LABELLED)} need labels, and no other has any"
            )
        if len(set(self.labels)) < len(self.labels):
            raise errors.BadInput(
                f"config.task.labels has one twice: {', '.join(self.labels)}; name each once"
            )
        if self.next_sentence and self.kind != "masked":
            raise errors.BadInput(
                f"config.task.next_sentence is true, which goes with kind='masked' and not {self.kind!r}; leave it out"
            )
        if not 0 <= self.rate < 1:
            raise errors.BadInput(
                f"config.task.rate is {self.rate}; it must be at least 0 and below 1"
            )
        object.__setattr__(self, "label", self.label or LABEL.get(self.kind, ""))
        if not self.rate:
            object.__setattr__(self, "rate", 0.3 if self.kind == "denoising" else 0.15)

    @property
    def whole(self) -> bool:
        """Whether it reads records of several fields, and not documents."""
        return self.kind not in TEXT

    @property
    def special(self) -> tuple[str, ...]:
        """The special tokens that it needs."""
        return SPECIAL.get(self.kind, ())

    @property
    def reading(self) -> list[Any]:
        """All of it that examples depend on: what a cache of them is named by."""
        if not self.whole:
            return ["text"]
        return [self.kind, self.source, self.target, self.label, self.labels]

    @property
    def head(self) -> dict[str, Any]:
        """The head of the model that can learn it."""
        kind = KINDS[self.kind][1]
        return {"kind": kind, "labels": self.labels, "next_sentence": self.next_sentence}

    def check_model(self, config: ModelConfig) -> None:
        """Refuses a model that cannot learn it."""
        _, head = KINDS[self.kind]
        if self.next_sentence and not config.token_types:
            raise errors.BadInput(
                "config.task.next_sentence is true, and config.model.token_types is 0; set it to 2, one for each text"
            )
        self.check_family(config.family)
        if config.head.kind != head or config.head.labels != self.labels:
            raise errors.BadInput(
                f"config.model.head is {config.head.kind!r} with {len(config.head.labels)} labels, and "
                f"config.task.kind={self.kind!r} needs {head!r} with those of config.task.labels; leave "
                "config.model.head out"
            )

    def check_family(self, family: str) -> None:
        """Refuses a family whose models cannot learn it."""
        families, _ = KINDS[self.kind]
        if family not in families:
            raise errors.BadInput(
                f"config.model.family is {family!r}, and config.task.kind={self.kind!r} is learnt by one of: "
                f"{', '.join(families)}; change one of them"
            )

    def framed(self, prompt: Item, words: Tokenizer) -> str | list[int]:
        """A prompt as the model has learnt to read one: text for the tokenizer to frame, or ids as they are.

        A mere text stands for the one field that the template names, those of `{% if %}` aside, for
        words between white space, or for what the user says. Special tokens count where the task hides text behind
        them.
        """
        if self.kind == "chat":
            messages = [{"role": "user", "content": prompt}]
            if not isinstance(prompt, str):
                messages = _field(prompt, "messages", list)
            return words.encode(words.chat(messages), special=True)
        if self.kind == "tag":
            tokens = prompt if isinstance(prompt, str) else _field(prompt, named(self.source), list)
            return tokens if isinstance(tokens, str) else " ".join(tokens)
        if not self.whole:
            text = prompt if isinstance(prompt, str) else str(_field(prompt, "text", str))
            hidden = self.kind in ("spans", "denoising")
            if not hidden:
                return text
            return [*words.prefix_ids, *words.encode(text, special=True), *words.suffix_ids]
        return fill(
            self.source, _filled(self.source, prompt) if isinstance(prompt, str) else prompt
        )

    def texts(self, item: Item) -> list[str]:
        """All text that ids are made of: what a tokenizer is trained on."""
        if isinstance(item, str):
            return [item]
        if self.kind == "chat":
            return [message["content"] for message in _field(item, "messages", list)]
        if self.kind == "tag":
            return [" ".join(_field(item, named(self.source), list))]
        source = fill(self.source, item)
        return [source] if self.kind == "classify" else [source, fill(self.target, item)]

    def measure(self, item: Item) -> tuple[int, int]:
        """Bytes and words of the text that is predicted, each once; zeros where that is not what is learnt."""
        if self.kind not in MEASURED:
            return 0, 0
        if self.kind == "chat":
            said = _field(item, "messages", list)
            text = " ".join(each["content"] for each in said if each["role"] == "assistant")
        else:
            text = item if isinstance(item, str) else fill(self.target, item)
        return len(text.encode()), len(text.split())

    def encode(self, items: Sequence[Item], words: Tokenizer) -> list[dict[str, list[int]]]:
        """Their examples.

        A document is `text`, from its begin to its end; so is a text to classify, with `labels` of one entry, and a
        sentence to tag, with a label for the first id of each token and `OUTSIDE` elsewhere. Sources and targets are
        `source`, as decoding frames a prompt, and `target` with its end. A conversation is `text`, and `said`: 1 where
        the assistant speaks.
        """
        return _ENCODERS[self.kind if self.whole else "text"](self, items, words)

    def encode_placed(
        self, items: Sequence[Item], words: Tokenizer, place: Callable[[int], str]
    ) -> list[dict[str, list[int]]]:
        """Their examples; where one of them cannot be one, the message begins with its `place`, by number."""
        try:
            return self.encode(items, words)
        except errors.BadInput:
            for number, item in enumerate(items):
                try:
                    self.encode([item], words)
                except errors.BadInput as error:
                    raise errors.BadInput(f"{place(number)}: {error}") from error
            raise


def fill(template: str, record: Item) -> str:
    """A Jinja template with the fields of a record; an unknown field is refused."""
    fields = {"text": record} if isinstance(record, str) else record
    try:
        return _template(template).render(fields)
    except jinja2.UndefinedError as error:
        raise errors.BadInput(
            f"template {template!r}: {error.message}; a record has: {', '.join(fields)}; correct one of them"
        ) from error


_ENVIRONMENT = jinja2.Environment(
    undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True
)


@functools.cache
def _template(text: str) -> jinja2.Template:
    try:
        return _ENVIRONMENT.from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise errors.BadInput(
            f"template {text!r} cannot be read: {error.message}; correct it"
        ) from error


def _names(template: str) -> set[str]:
    """The fields that a template asks for."""
    return meta.find_undeclared_variables(_ENVIRONMENT.parse(template))


def _filled(template: str, text: str) -> Record:
    """A text as the one field that must be there; those of `{% if input %}` are empty beside it."""
    tests = [clause.test for clause in _ENVIRONMENT.parse(template).find_all(nodes.If)]
    spare = {each.name for each in tests if isinstance(each, nodes.Name)}
    names = sorted(_names(template) - spare)
    if len(names) != 1:
        raise errors.BadInput(
            f"the template {template!r} of this task has the fields {', '.join(names) or 'none'}, and a mere text "
            'fills one; give them by --prompts, in lines such as {"fields": {"text": "..."}}'
        )
    return {**dict.fromkeys(spare, ""), names[0]: text}


def named(template: str) -> str:
    """The field that `{{ tokens }}`, or `tokens`, names."""
    return template.strip("{} ")


def _field(record: Item, name: str, kind: type) -> Any:
    """A field of a record, of that type."""
    if isinstance(record, str) or name not in record:
        known = () if isinstance(record, str) else tuple(record)
        raise errors.BadInput(
            f"a record has no field {name!r}{errors.nearest(name, known)}; it has: {', '.join(known)}"
        )
    if not isinstance(record[name], kind):
        raise errors.BadInput(
            f"field {name!r} of a record is {record[name]!r}; it must be {errors.WORDS.get(kind, 'a list')}"
        )
    return record[name]


def _text(task: Task, items: Sequence[Item], words: Tokenizer) -> list[dict[str, list[int]]]:
    begin, end = tokenizer.frame(words)
    texts = [str(item) for item in items]
    return [{"text": [*begin, *ids, *end]} for ids in words.encode_batch(texts)]


def _seq2seq(task: Task, items: Sequence[Item], words: Tokenizer) -> list[dict[str, list[int]]]:
    end = tokenizer.end_id(words)
    sources = words.encode_batch([fill(task.source, item) for item in items])
    targets = words.encode_batch([fill(task.target, item) for item in items])
    return [
        {
            "source": [*words.prefix_ids, *source, *words.suffix_ids],
            "target": [*target, end],
        }
        for source, target in zip(sources, targets, strict=True)
    ]


def _classify(task: Task, items: Sequence[Item], words: Tokenizer) -> list[dict[str, list[int]]]:
    begin, end = tokenizer.frame(words)
    encoded = words.encode_batch([fill(task.source, item) for item in items])
    labels = [_label(task, str(_field(item, task.label, object))) for item in items]
    return [
        {"text": [*begin, *ids, *end], "labels": [label]}
        for ids, label in zip(encoded, labels, strict=True)
    ]


def _tag(task: Task, items: Sequence[Item], words: Tokenizer) -> list[dict[str, list[int]]]:
    begin, end = tokenizer.frame(words)
    examples = []
    for item in items:
        tokens, tags = _field(item, named(task.source), list), _field(item, task.label, list)
        if len(tokens) != len(tags):
            raise errors.BadInput(
                f"a record has {len(tokens)} tokens and {len(tags)} tags; each token needs one"
            )
        pieces = words.encode_batch(tokenizer.token_texts(tokens))
        text, labels = list(begin), [OUTSIDE] * len(begin)
        for ids, tag in zip(pieces, tags, strict=True):
            text += ids
            labels += [_label(task, tag), *[OUTSIDE] * (len(ids) - 1)][: len(ids)]
        examples.append({"text": [*text, *end], "labels": [*labels, *[OUTSIDE] * len(end)]})
    return examples


def _label(task: Task, label: str) -> int:
    if label not in task.labels:
        raise errors.BadInput(
            f"label {label!r} is not one of config.task.labels{errors.nearest(label, task.labels)}: "
            f"{', '.join(task.labels)}; add it, or correct the record"
        )
    return task.labels.index(label)


def _chat(task: Task, items: Sequence[Item], words: Tokenizer) -> list[dict[str, list[int]]]:
    return [_conversation(_field(item, "messages", list), words) for item in items]


def _conversation(messages: Sequence[Mapping[str, Any]], words: Tokenizer) -> dict[str, list[int]]:
    """A conversation in the words of the chat template, cut where the assistant begins and ceases to speak."""
    text: list[int] = []
    said: list[int] = []
    done = ""
    for number, message in enumerate(messages, start=1):
        if message.get("role") != "assistant":
            continue
        asked = words.chat(messages[: number - 1], add_generation_prompt=True)
        answered = words.chat(messages[:number], add_generation_prompt=False)
        if not (asked.startswith(done) and answered.startswith(asked)):
            raise errors.BadInput(
                "the tokenizer's chat template changes earlier turns when a conversation goes on, so answers cannot be "
                "told apart; use another template"
            )
        for stretch, mine in ((asked[len(done) :], 0), (answered[len(asked) :], 1)):
            ids = words.encode(stretch, special=True)
            text += ids
            said += [mine] * len(ids)
        done = answered
    if not any(said):
        raise errors.BadInput(
            f"a conversation of {len(messages)} messages has none of the assistant's, which are what is learnt; leave "
            "it out"
        )
    return {"text": text, "said": said}


_ENCODERS = {
    "text": _text,
    "seq2seq": _seq2seq,
    "classify": _classify,
    "tag": _tag,
    "chat": _chat,
}


def special_ids(words: Tokenizer, names: Sequence[str]) -> list[int]:
    """The ids of special tokens by name, of a tokenizer that must have them."""
    ids = []
    for name in names:
        found = words.encode(name, special=True)
        if len(found) != 1:
            raise errors.BadInput(
                f"the tokenizer has no special token {name}, which config.task needs; train one with this task, or use "
                "another"
            )
        ids += found
    return ids
