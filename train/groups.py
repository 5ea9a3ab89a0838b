"""What are the groups of a config? One frozen dataclass each, which refuses what is wrong in itself."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from decode.requests import Request
from decode.settings import Settings
from model import errors, tokenizer
from model.config import Runtime

BAD_STEPS = ("stop", "skip")
TESTS = ("", "mbpp", "humaneval")  # whose form the tests of a program have


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Attributes:
    kind: `unigram`, `bpe`, `char` or `word`.
    vocab_size: pieces in all, special tokens among them; without, kinds `char` and `word` have all there are.
    min_count: how often a word must occur to be one, of kind `word`.
    path: a directory with a tokenizer to use instead of training one, or a file of words, one a line.
    """

    kind: str = "unigram"
    vocab_size: int | None = None
    min_count: int = 1
    path: str | None = None

    def __post_init__(self) -> None:
        unsized = self.kind in tokenizer.UNSIZED and self.vocab_size is None
        if (self.vocab_size is None) == (self.path is None) and not unsized:
            raise errors.BadInput(
                f"config.tokenizer has vocab_size={self.vocab_size} and path={self.path!r}; give exactly one of them"
            )
        if self.kind not in tokenizer.KINDS:
            raise errors.BadInput(
                f"config.tokenizer.kind is {self.kind!r}{errors.nearest(self.kind, tokenizer.KINDS)}; "
                f"known: {', '.join(tokenizer.KINDS)}"
            )
        if self.vocab_size is not None and self.vocab_size < 1:
            raise errors.BadInput(
                f"config.tokenizer.vocab_size is {self.vocab_size}; it must be at least 1"
            )


@dataclasses.dataclass(frozen=True)
class Data:
    """Attributes:
    train: the sources, as `documents.sources` reads them.
    valid: sources of held-out text; without, a share of the training documents is held out.
    test: sources that nothing is chosen by; `eval` measures a task on them.
    held_out: that share.
    deduplicate: leaves out training documents that repeat or resemble others; published splits are taken as they are.
    length: tokens of a row, of the target where there is a source.
    source_length: tokens of the source of an encoder-decoder; by default as many.
    overlap: how many tokens of the row before a held-out row repeats as mere context, so that fewer of those that are
        measured stand at a row's start.
    """

    train: Any
    length: int
    source_length: int = 0
    valid: Any = None
    test: Any = None
    held_out: float = 0.05
    deduplicate: bool = True
    overlap: int = 0

    def __post_init__(self) -> None:
        if not self.source_length:
            object.__setattr__(self, "source_length", self.length)


@dataclasses.dataclass(frozen=True)
class Train:
    """How long, how much at once, and how often to look.

    Attributes:
        steps: updates in all.
        batch_size: rows of an update, on all devices together.
        accumulate: in how many parts its gradient is computed, to save memory.
        log_every: steps between two lines of `metrics.jsonl`.
        eval_every: steps between two evaluations; 0 evaluates at the end only.
        sample_every: steps between two sets of samples; 0 samples at the end only.
        save_every: steps between two checkpoints; 0 saves at the end, and when told to stop, only.
        keep: how many checkpoints stay.
        on_bad_step: what follows when a loss or gradient is not finite, or the loss is a spike: `stop`, or `skip` the
            batch and go on from the state before it.
        spike: how many running standard deviations above the running mean a loss is one; 0 looks for none.
    """

    steps: int
    batch_size: int
    accumulate: int = 1
    log_every: int = 10
    eval_every: int = 0
    sample_every: int = 0
    save_every: int = 0
    keep: int = 2
    on_bad_step: str = "stop"
    spike: float = 0.0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "keep"):
            if getattr(self, name) < 1:
                raise errors.BadInput(
                    f"config.train.{name} is {getattr(self, name)}; it must be at least 1"
                )
        for name in ("eval_every", "sample_every", "save_every"):
            if getattr(self, name) < 0:
                raise errors.BadInput(
                    f"config.train.{name} is {getattr(self, name)}; it must be at least 0"
                )
        if self.on_bad_step not in BAD_STEPS:
            raise errors.BadInput(
                f"config.train.on_bad_step is {self.on_bad_step!r}{errors.nearest(self.on_bad_step, BAD_STEPS)}; "
                f"known: {', '.join(BAD_STEPS)}"
            )
        if not 0 <= self.spike < math.inf:
            raise errors.BadInput(
                f"config.train.spike is {self.spike}; it must be at least 0 and finite"
            )
        if self.batch_size % self.accumulate:
            raise errors.BadInput(
                f"config.train.accumulate={self.accumulate} does not divide config.train.batch_size={self.batch_size}; "
                "change one of them"
            )


@dataclasses.dataclass(frozen=True)
class Devices(Runtime):
    """`Runtime`, and the mesh that it runs on; layers are always stacked, as checkpoints hold them.

    Attributes:
        mesh: devices per axis (`data`, `fsdp`, `sequence`, `tensor`); None puts all of them on `data`.
    """

    scan: bool = True
    mesh: dict[str, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scan:
            raise errors.BadInput(
                "config.runtime.scan is False, but training keeps layers stacked; leave it out, and set "
                "config.runtime.unroll to the number of layers to compile them one by one"
            )

    @property
    def runtime(self) -> Runtime:
        """Without the mesh."""
        return Runtime(
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(Runtime)}
        )


@dataclasses.dataclass(frozen=True)
class Decode:
    """Attributes:
    prompts: texts that samples go on from.
    settings: `Settings` by name; each prompt is completed under each.
    seed: of their randomness.
    """

    prompts: tuple[str, ...] = ()
    settings: dict[str, Settings] = dataclasses.field(
        default_factory=lambda: {"greedy": Settings(temperature=0.0)}
    )
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**64:
            raise errors.BadInput(
                f"config.decode.seed is {self.seed}; it must be from 0 to 2^64 - 1"
            )

    def requests(self, changed: Mapping[str, Any] | None = None) -> list[tuple[str, Request]]:
        """Every prompt under every settings, these with `changed` values: pairs of the settings' name and a request."""
        return [
            (name, Request(prompt, dataclasses.replace(settings, **(changed or {})), f"{name} {i}"))
            for name, settings in self.settings.items()
            for i, prompt in enumerate(self.prompts)
        ]


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """What `eval` asks of a model on the records of `data.test`, or else on the held-out ones.

    Attributes:
        metrics: which, of those that `grading.KNOWN` has for the task; by default the first of them.
        options: of a metric by its name: `{"bleu": {"tokenize": "none"}}`.
        settings: how a text is written, `Settings` by name; without a temperature the likeliest tokens are.
        prompt: the template of what is read, where that is not `task.source`.
        references: templates of what should be written, where that is not `task.target`.
        tests: whose tests a program that is written has to pass: `mbpp` or `humaneval`, by the fields of a record.
        baseline: a template of what would be written without a model, to compare with.
        limit: at most so many records, the first ones; 0 takes all.
        seed: of drawn tokens, and of the resamples that intervals are made from.
    """

    metrics: tuple[str, ...] = ()
    options: dict[str, dict] = dataclasses.field(default_factory=dict)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    prompt: str = ""
    references: tuple[str, ...] = ()
    tests: str = ""
    baseline: str = ""
    limit: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise errors.BadInput(f"config.evaluate.limit is {self.limit}; it must be at least 0")
        if not 0 <= self.seed < 2**32:
            raise errors.BadInput(
                f"config.evaluate.seed is {self.seed}; it must be from 0 to 2^32 - 1"
            )
        if self.tests not in TESTS:
            raise errors.BadInput(
                f"config.evaluate.tests is {self.tests!r}{errors.nearest(self.tests, TESTS)}; "
                f"known: {', '.join(filter(None, TESTS))}"
            )
        self.decoding  # noqa: B018  refuses bad settings

    @property
    def decoding(self) -> Settings:
        """How a text is written."""
        return errors.build(
            Settings, {"temperature": 0.0, **self.settings}, "config.evaluate.settings"
        )


@dataclasses.dataclass(frozen=True)
class Log:
    """Attributes:
    wandb: the project of Weights & Biases that is told, too; by default none.
    """

    wandb: str | None = None
