"""What does a run stand on before its first step? Recipe, tokenizer, tokens, and the checkpoint it goes on from.

One process makes them; the others see that they mean the same.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import model
from decode import labels
from decode.requests import Request
from model import checkpoint, errors, tokenizer
from model.config import ModelConfig
from model.tokenizer import Tokenizer
from train import data, log, recipe, rows
from train.corpus import Corpus
from train.distributed import Peers
from train.recipe import Recipe


def prepare(
    asked: Recipe, directory: pathlib.Path, progress: log.Progress, allow_change: Sequence[str]
) -> str:
    """Tokenizer, tokens and `config.json`, as far as they are not there, and what the run goes on from, as JSON."""
    corpus = asked.corpus()
    words = _tokenizer(asked, corpus, directory, progress)
    config = asked.model_config(words.vocab_size)
    _check_prompts(asked, words, config)
    first = checkpoint.latest(directory / "checkpoints") or 0
    _keep_recipe(asked, config, words, directory, first, allow_change)
    identity = {
        "model": json.loads(json.dumps(dataclasses.asdict(config))),  # as a checkpoint keeps it
        "tokenizer": words.digest,
        "corpus": corpus.digest,
    }
    if first:
        _check_identity(directory / "checkpoints", first, identity)
    tokens = None
    if first < asked.train.steps:
        with progress.work("tokenising") as show:
            tasks: dict[str, Any] = dict(train=asked.tasks, valid=asked.task)
            tokens = data.prepare(corpus, words, directory / "data", show, **tasks).directory
    text = recipe.to_json(asked, config)
    found = {"config": text, "identity": identity, "step": first, "tokens": str(tokens)}
    return json.dumps(found)


def rows_of(
    asked: Recipe, prepared: data.Prepared, words: Tokenizer, config: ModelConfig
) -> list[rows.Rows]:
    """The rows of each source of training."""
    return [
        rows.build(
            task,
            examples,
            words,
            config,
            length=asked.data.length,
            source_length=asked.data.source_length,
            seed=asked.seed,
            name=str(number),
            virtual=asked.virtual_tokens,
        )
        for number, (task, examples) in enumerate(zip(asked.tasks, prepared.train, strict=True))
    ]


def check_shared(directory: pathlib.Path, peers: Peers) -> None:
    """Refuses processes that do not see the same directory."""
    if not (directory / "config.json").exists():
        raise errors.BadInput(
            f"process {peers.index} does not see {directory / 'config.json'}, which process 0 has written; "
            "--workdir must lie on a file system that all processes share"
        )


def check_same(first: str, own: str, peers: Peers) -> None:
    """Refuses processes that were started with different configs."""
    for key, there, here in recipe.changes(json.loads(first), json.loads(own), ()):
        raise errors.BadInput(
            f"process {peers.index} was started with {key}={here!r}, and process 0 with {there!r}; "
            "start all with the same config"
        )


def _tokenizer(
    asked: Recipe, corpus: Corpus, directory: pathlib.Path, progress: log.Progress
) -> Tokenizer:
    """The run's tokenizer: the one it has, or a copy of another run's, or a new one of its own text."""
    # config.json is written after the tokenizer, so beside one stands the tokenizer that belongs to it.
    if (directory / "config.json").exists():
        return tokenizer.load(directory / "tokenizer")
    wanted = asked.tokenizer
    if wanted.path is not None:
        words = tokenizer.load(wanted.path)
    else:
        size = f"of {wanted.vocab_size:,} pieces " if wanted.vocab_size else ""
        documents = corpus.report[
            "train_documents"
        ]  # reads the text: what is wrong with it is told first
        progress.say(f"training a {wanted.kind} tokenizer {size}on {documents:,} documents")
        words = tokenizer.train(
            _texts(asked, corpus),
            kind=wanted.kind,
            vocab_size=wanted.vocab_size,
            min_count=wanted.min_count,
            special=tuple(dict.fromkeys(name for task in asked.tasks for name in task.special)),
        )
    words.save(directory / "tokenizer")
    return words


def _texts(asked: Recipe, corpus: Corpus) -> Iterator[str]:
    """All that is to be trained on, each source as its task reads it; a message says where a wrong record stands."""
    for index, task in enumerate(asked.tasks):
        for item in corpus.train_documents(index):
            try:
                yield from task.texts(item)
            except errors.BadInput as error:
                raise errors.BadInput(f"{corpus.place(item)}: {error}") from error


def _check_prompts(asked: Recipe, words: Tokenizer, config: ModelConfig) -> None:
    """Refuses prompts that sampling would refuse, before hours have gone into training."""
    if config.family == "encoder_only":
        lm = model.LM(config, {}, words, model.build(config))
        for prompt in asked.decode.prompts:
            framed = asked.task.framed(prompt, words)
            labels.of(lm, Request(framed, id=f"config.decode.prompts: {prompt}"))
        return
    for prompt in asked.decode.prompts:
        framed = asked.task.framed(prompt, words)
        ids = tokenizer.prompt_ids(words, framed) if isinstance(framed, str) else framed
        tokens = len(ids)
        if not 1 < tokens < config.context_length:
            raise errors.BadInput(
                f"config.decode.prompts has {prompt!r}, of {tokens} tokens with the first; it must have at least 2 and "
                f"fewer than config.model.context_length={config.context_length}"
            )


def _keep_recipe(
    asked: Recipe,
    config: ModelConfig,
    words: Tokenizer,
    directory: pathlib.Path,
    first: int,
    allow_change: Sequence[str],
) -> None:
    """Writes `config.json`, unless one stands there that says otherwise in more than what may change.

    What was allowed to change stands in `ledger.jsonl`, with the step from which it holds.
    """
    path, ledger = directory / "config.json", directory / "ledger.jsonl"
    text = recipe.to_json(asked, config)
    new = json.loads(text)
    recipe.check_allowed(allow_change, new)
    if path.exists():
        kept = recipe.of_run(directory)
        old = json.loads(recipe.to_json(kept, kept.model_config(words.vocab_size)))
        lines = ledger.read_text() if ledger.exists() else ""
        for key, there, here in recipe.changes(old, new):
            if key not in allow_change:
                raise errors.BadInput(
                    f"{directory} holds a run with {key}={there!r}, and this config has {here!r}; choose another "
                    f"--workdir, or the value it was started with{recipe.way_out(key)}"
                )
            change = {"step": first, "event": "changed", "key": key, "was": there, "is": here}
            lines += json.dumps(change) + "\n"
        if lines:
            checkpoint.write_file(ledger, lines)
    checkpoint.write_file(path, text)


def _check_identity(directory: pathlib.Path, first: int, identity: dict[str, Any]) -> None:
    """Refuses to go on from a checkpoint with another model, another tokenizer or other text."""
    meta = checkpoint.read_meta(directory, first)
    names = {
        "model": "group model",
        "tokenizer": "the tokenizer",
        "corpus": "the text of group data",
    }
    for name, what in names.items():
        there, here = meta[name], identity[name]
        if there != here:
            raise errors.BadInput(
                f"{what} is not what the checkpoint of step {first} in {directory.absolute()} was trained with "
                f"(was {str(there)[:12]}, is {str(here)[:12]}); restore it or choose another --workdir"
            )
