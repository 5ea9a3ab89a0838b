"""What does a config file ask for? One frozen dataclass per group, checked before any work is done.

`Recipe` is what a run is: its JSON stands in `config.json`, and a run goes on only under a recipe that computes the
same. `from_config` reads the groups of a config file and `to_json` writes them resolved.
"""

import dataclasses
import functools
import json
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from decode import grid
from decode.requests import Request
from decode.settings import Settings
from model import errors, presets, sources, tokenizer
from model.adapters import AdapterConfig
from model.config import ModelConfig
from train import corpus, documents, grading, optimizer, overrides, start
from train.groups import Data, Decode, Devices, Evaluate, Log, Tokenizer, Train
from train.losses import LossConfig
from train.optimizer import OptimizerConfig
from train.start import Start
from train.tasks import Task

# Which keys may differ when a run goes on: first match wins. What these change is how often something is looked at,
# what becomes of a bad step, or where and in which order the same sums are computed; any other key makes another model
# of the same name.
CHANGEABLE = (
    r"^train\.(log_every|eval_every|sample_every|save_every|keep|on_bad_step|spike)$",
    r"^runtime\.(mesh|unroll|remat|attention)(\.|$)",
    r"^loss\.chunk$",
    r"^(decode|evaluate|log)(\.|$)",
    r"^data\.test(\.|$)",
)
Words = tokenizer.Tokenizer  # what a group of the recipe has the name of
# Which others may when a person says so: from there on it is another run than the config's alone, and `ledger.jsonl`
# says from which step, but the same parameters and optimizer state still mean something.
ALLOWABLE = (
    r"^train\.(steps|batch_size|accumulate)$",
    r"^optimizer\.(learning_rate|schedule|warmup_steps|end_fraction|decay_fraction|weight_decay|b1|b2|eps)$",
    r"^loss\.",
    r"^runtime\.",
)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that a run depends on."""

    model: dict[str, Any]
    task: Task
    tokenizer: Tokenizer
    data: Data
    train: Train
    optimizer: OptimizerConfig
    loss: LossConfig
    runtime: Devices
    decode: Decode
    evaluate: Evaluate = Evaluate()
    log: Log = Log()
    start: Start = Start()
    adapt: AdapterConfig | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise errors.BadInput(f"config.seed is {self.seed}; it must be from 0 to 2^32 - 1")

    def model_config(self, vocab_size: int) -> ModelConfig:
        """The weights of the model over a vocabulary of `vocab_size` pieces, unless the config asks for more."""
        given = self.start.fill(self.model)
        own, head = self.model.get("head", {}), given.get("head", {})
        if isinstance(own, Mapping):
            alike = head.get("kind") == self.task.head["kind"]
            given["head"] = {**(head if alike else {}), **self.task.head, **own}
        wanted = given.get("vocab_size")
        values = {**given, "vocab_size": vocab_size if wanted is None else wanted}
        built = errors.build(ModelConfig, values, "config.model")
        if built.vocab_size < vocab_size:
            raise errors.BadInput(
                f"config.model.vocab_size is {wanted}, and the tokenizer has {vocab_size} pieces; "
                "leave it out or raise it"
            )
        return built

    @property
    def virtual_tokens(self) -> int:
        """How many stand before every example."""
        return 0 if self.adapt is None else self.adapt.virtual_tokens

    def corpus(self) -> corpus.Corpus:
        """The documents or records of its data."""
        data = self.data
        tasks = [self.task, *self.tasks]
        if len({task.whole for task in tasks}) > 1:
            kinds = ", ".join(dict.fromkeys(task.kind for task in tasks))
            raise errors.BadInput(
                f"config.task and the tasks of config.data.train are {kinds}, some of documents and some of records; "
                "mix either"
            )
        return corpus.load(
            data.train,
            data.valid,
            data.held_out,
            deduplicate=data.deduplicate,
            whole=self.task.whole,
        )

    def requests(
        self, words: Words, changed: Mapping[str, Any] | None = None
    ) -> list[tuple[str, str, Request]]:
        """Every prompt under every settings: names of the settings, the prompts as they stand, and the requests."""
        return [
            (name, str(request.prompt), dataclasses.replace(request, prompt=framed))
            for name, request in self.decode.requests(changed)
            for framed in [self.task.framed(str(request.prompt), words)]
        ]

    @property
    def tasks(self) -> list[Task]:
        """The task of each source of training: the recipe's, with what the source says otherwise."""
        own = [source.task or {} for source in documents.sources(self.data.train)]
        shared = {
            field.name: getattr(self.task, field.name)
            for field in dataclasses.fields(Task)
            if getattr(self.task, field.name) != field.default
        }
        return [
            errors.build(
                Task, {**({} if "kind" in values else shared), **values}, "config.data.train.task"
            )
            if values
            else self.task
            for values in own
        ]


def from_config(config: Mapping[str, Any]) -> Recipe:
    """The recipe of a config: its groups, which are the fields of `Recipe`, and the seed.

    A `preset` in `model` stands for the values of that published model, which the group's other keys change, and whose
    vocabulary the run's own tokenizer takes the place of.

    Raises:
        BadInput: for an unknown key, a wrong type, or values that do not go together.
    """
    groups = {"task": {}, "optimizer": {}, "loss": {}, "runtime": {}, "decode": {}, **config}
    groups = {name: group for name, group in groups.items() if (name, group) != ("adapt", None)}
    kinds = {
        "task": Task,
        "tokenizer": Tokenizer,
        "data": Data,
        "train": Train,
        "optimizer": OptimizerConfig,
        "loss": LossConfig,
        "runtime": Devices,
        "evaluate": Evaluate,
        "log": Log,
        "start": Start,
        "adapt": AdapterConfig,
    }
    for name in ("model", "decode", *kinds):
        if not isinstance(groups.get(name, {}), Mapping):
            raise errors.BadInput(f"config.{name} is {groups[name]!r}; it must be a group of keys")
    built: dict[str, Any] = {
        name: errors.build(kind, groups[name], f"config.{name}")
        for name, kind in kinds.items()
        if name in groups
    }
    if "tokenizer" not in built and "start" in built and built["start"].path is not None:
        built["tokenizer"] = Tokenizer(path=built["start"].words)
    built["decode"] = _decode(groups["decode"])
    built["model"] = _model(groups.get("model", {}))
    if built["loss"].skip is None:
        task, answers = built["task"].kind, built["model"].get("family") != "encoder_decoder"
        few = task == "masked" or (task in ("seq2seq", "chat") and answers)
        built["loss"] = dataclasses.replace(built["loss"], skip=few)
    others = {name: value for name, value in groups.items() if name not in built}
    recipe = errors.build(Recipe, {**others, **built}, "config")
    _check(recipe)
    return recipe


def of_run(directory: str | os.PathLike[str], changed: Sequence[str] = ()) -> Recipe:
    """The recipe in a run's `config.json`, with the values of flags such as `--config.evaluate.limit=5` put in."""
    kind, groups = sources.read(pathlib.Path(directory))
    if kind != "run":
        raise errors.BadInput(
            f"{directory} has weights and no recipe, which would name prompts and held-out text; add --prompt if you "
            "decode, or give a directory that train has written"
        )
    return from_config(overrides.apply(groups, changed))


def frame_of(directory: pathlib.Path, words: Words) -> Callable[[Any], str | list[int]] | None:
    """What a run's task makes of a prompt; None where there is no run, or it reads a mere text as it is."""
    if not (directory / "config.json").is_file() or sources.read(directory)[0] != "run":
        return None
    task = of_run(directory).task
    return functools.partial(task.framed, words=words) if task.whole or task.special else None


def to_json(recipe: Recipe, model: ModelConfig) -> str:
    """The recipe as `config.json` holds it: every default written out, `model` resolved."""
    groups = {**dataclasses.asdict(recipe), "model": dataclasses.asdict(model)}
    return json.dumps(groups, indent=2, ensure_ascii=False) + "\n"


def resolved(recipe: Recipe) -> dict[str, Any]:
    """Every key of a recipe with its value, by dotted path, as far as it can be said before the tokenizer is there."""
    config = recipe.model_config(recipe.tokenizer.vocab_size or 1)
    return _flat(json.loads(to_json(recipe, config)))


def digest(recipe: Recipe) -> str:
    """12 letters for what a run computes: of all keys but those that are `CHANGEABLE`, defaults written out."""
    return grid.digest(
        {key: value for key, value in resolved(recipe).items() if not _one_of(CHANGEABLE, key)}
    )


def changes(
    old: Mapping[str, Any], new: Mapping[str, Any], ignore: Sequence[str] = CHANGEABLE
) -> list[tuple[str, Any, Any]]:
    """The keys, with both values, in which two recipes' JSON differ so that they would compute something else.

    Example: `changes({"train": {"steps": 5, "keep": 1}}, {"train": {"steps": 7, "keep": 2}})` is
    `[("train.steps", 5, 7)]`.
    """
    before, after = _flat(old), _flat(new)
    return [
        (key, before.get(key), after.get(key))
        for key in before | after
        if before.get(key) != after.get(key) and not _one_of(ignore, key)
    ]


def check_allowed(keys: Sequence[str], config: Mapping[str, Any]) -> None:
    """Refuses keys of `--allow_change` that do not exist, or that would make what was learned meaningless."""
    known = _flat(config)
    for key in keys:
        if key not in known:
            raise errors.BadInput(
                f"--allow_change={key}: the config has no such key{errors.nearest(key, known)}"
            )
        if not way_out(key):
            raise errors.BadInput(
                f"--allow_change={key}: what was learned so far belongs to the old value; choose another --workdir"
            )


def way_out(key: str) -> str:
    """How a message goes on about a changed key that may be allowed; nothing about another."""
    allowable = _one_of(ALLOWABLE, key)
    return f", or add --allow_change={key}" if allowable else ""


def _model(group: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a model, its preset resolved."""
    values = dict(presets.resolve(group))
    if "vocab_size" not in group and "preset" in group:
        values.pop("vocab_size")
    return values


def _decode(group: Mapping[str, Any]) -> Decode:
    values = dict(group)
    if isinstance(values.get("settings"), Mapping):
        values["settings"] = {
            name: errors.build(Settings, settings, f"config.decode.settings.{name}")
            for name, settings in values["settings"].items()
        }
    return errors.build(Decode, values, "config.decode")


def _check(recipe: Recipe) -> None:
    """What groups must agree on, as far as it can be said before the tokenizer is there."""
    family = recipe.start.fill(recipe.model).get("family", ModelConfig.family)
    for task in (recipe.task, *recipe.tasks):
        task.check_family(family)
    provisional = recipe.model_config(recipe.tokenizer.vocab_size or 1)
    for task in (recipe.task, *recipe.tasks):
        task.check_model(provisional)
    grading.check(recipe.evaluate, recipe.task)
    if not 1 <= recipe.data.length <= provisional.context_length:
        raise errors.BadInput(
            f"config.data.length is {recipe.data.length}; it must be from 1 to "
            f"config.model.context_length={provisional.context_length}"
        )
    if not 1 <= recipe.data.source_length <= provisional.context_length:
        raise errors.BadInput(
            f"config.data.source_length is {recipe.data.source_length}; it must be from 1 to "
            f"config.model.context_length={provisional.context_length}"
        )
    if not 0 <= recipe.data.overlap < recipe.data.length:
        raise errors.BadInput(
            f"config.data.overlap is {recipe.data.overlap}; it must be at least 0 and below "
            f"config.data.length={recipe.data.length}"
        )
    start.check(recipe.start, recipe.adapt, recipe.optimizer.frozen)
    optimizer.schedule(recipe.optimizer, recipe.train.steps)
    optimizer.check_model(recipe.optimizer, provisional)


def _one_of(rules: Sequence[str], key: str) -> bool:
    return any(re.search(rule, key) for rule in rules)


def _flat(groups: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(groups, Mapping):
        return {prefix: groups}
    flat: dict[str, Any] = {}
    for key, value in groups.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else key)
    return flat
