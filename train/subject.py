"""What do the self-tests test? The model of a recipe, fresh, and batches of the first of its text under its own tasks.

What would take more than a minute is halved until it does not.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn

import model
from model import errors, sharding, tokenizer
from model.config import RECURRENT, ModelConfig, Runtime
from train import data, documents, flops, optimizer, rows, step, streams, tasks
from train.documents import Source
from train.recipe import Recipe

STEPS = 40  # in which one batch must have been learnt, at most
LEARNT = 0.5  # of its first loss: where to stop
# To learn it with, at least: this is no test of how fast the run may learn. Adam's best rate falls with the width (Yang
# et al. 2022, table 3), and a tiny model needs a larger one.
RATE, RATE_OF_WIDTH = 1e-3, 0.16
CHARACTERS = 200_000  # of text that is read
SECONDS = 25  # of arithmetic, at the EFFICIENCY of what a matrix product reaches here
EFFICIENCY = 0.2
# A row's tokens, which ids are of a vocabulary that may have been halved.
IDS = ("tokens", "source", "targets")
SIDES = {"tokens": "", "source": "source_"}  # what names of a side's arrays begin with


class Subject:
    """What is tested: the model of a recipe, some of its text, and what several checks need.

    Attributes:
        whole: the model of the recipe.
        config, length: of the model that is tested and of its rows, after `reduced`.
        parts: micro-batches that one of `rows` rows is parted into.
    """

    def __init__(self, asked: Recipe) -> None:
        if asked.data.length < 4:
            raise errors.BadInput(
                f"config.data.length is {asked.data.length}, and checks need rows of at least 4 tokens; raise it"
            )
        self.asked, path = asked, asked.tokenizer.path
        self._items = [
            list(_first(source, task))
            for source, task in zip(asked.corpus().train, asked.tasks, strict=True)
        ]
        self.words = tokenizer.load(path) if path else self._characters()
        size = 0 if path else asked.tokenizer.vocab_size or 0
        self.whole = asked.model_config(max(size, self.words.vocab_size))
        self.parts = min(max(asked.train.accumulate, 2), 4)
        self.rows = 2 * self.parts
        self.config, self.length = reduced(self.whole, asked.data.length, self.rows)
        runtime = Runtime(scan=True, remat=asked.runtime.remat)
        self.net: nn.Module = model.build(self.config, runtime)
        self.key = jax.random.key(asked.seed)

    @functools.cached_property
    def sources(self) -> list[rows.Rows]:
        """Rows of the first documents or records of each source, under its task."""
        asked = self.asked
        # Characters are more than pieces.
        longer = asked.tokenizer.path is None or self.length < asked.data.length
        return [
            rows.build(
                dataclasses.replace(task, too_long="truncate") if longer else task,
                _examples(task.encode(items, self.words)),
                self.words,
                self.config,
                length=self.length,
                source_length=max(4, asked.data.source_length * self.length // asked.data.length),
                seed=asked.seed,
                name=str(number),
            )
            for number, (task, items) in enumerate(zip(asked.tasks, self._items, strict=True))
        ]

    def batches(self) -> Any:
        """The dataset of batches, made anew as a new process would."""
        weights = [s.weight for s in self.asked.corpus().train if s.weight is not None] or None
        return data.batches(self.sources, weights, batch_size=self.rows, seed=self.asked.seed)

    @functools.cached_property
    def batch(self) -> dict[str, np.ndarray]:
        """The first one; its first micro-batch has a single target, as some have few."""
        batch = dict(self.batches()[0])
        for name in set(IDS) & batch.keys():
            size = len(self.config.head.labels) if name == "targets" else 0
            batch[name] = batch[name] % (size or self.config.vocab_size)
        weights_BT = batch["weights"].copy()
        few_FT = weights_BT[:: self.parts]
        few_FT[np.cumsum(few_FT > 0).reshape(few_FT.shape) > 1] = 0
        return {**batch, "weights": weights_BT}

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        """Its tokens, and those of its source, without a segment: all of a row is one text."""
        return {name: self.batch[name] for name in SIDES if name in self.batch}

    @functools.cached_property
    def params(self) -> Any:
        """As training begins with them."""
        return jax.jit(functools.partial(model.init, self.net))(key=self.key)

    @functools.cached_property
    def call(self) -> Callable[..., tuple[np.ndarray, dict[str, np.ndarray]]]:
        """`call(inputs)`, of the fresh parameters: logits, and the hidden states of each side by its name.

        Besides `inputs` there may be `segments` and `mask`, of a source `source_segments` and `source_mask`, and
        `prefix`.
        """
        two = "source" in self.inputs

        @jax.jit
        def apply(params: Any, given: Mapping[str, jax.Array]) -> Any:
            more = dict(given)
            places = [more.pop("source")] if two else []
            places.append(more.pop("tokens"))
            if two:
                more = {n if n.startswith("source") else f"target_{n}": a for n, a in more.items()}
            logits, aux = self.net.apply({"params": params}, *places, **more)
            states = {"tokens": "features", "source": "encoder_features"}
            return logits, {side: aux[name] for side, name in states.items() if name in aux}

        return lambda given: jax.device_get(apply(self.params, dict(given)))

    def logits(self, given: Mapping[str, np.ndarray]) -> np.ndarray:
        """Those of `call`: of each token [B, T, V], or of each text [B, C]."""
        return self.call(given)[0]

    @functools.cached_property
    def gradients(self) -> dict[int, Callable[[Any], Any]]:
        """The gradient of the batch's loss as a function of parameters, whole and in `parts` micro-batches."""
        loss_fn = functools.partial(step.batch_loss, self.net, self.asked.loss)

        def of(accumulate: int) -> Callable[[Any], Any]:
            both = functools.partial(step.loss_and_gradient, loss_fn, accumulate=accumulate)
            compiled = jax.jit(both)
            return lambda params: jax.device_get(compiled(params, self.batch, self.key)[1])

        return {accumulate: of(accumulate) for accumulate in (1, self.parts)}

    @functools.cached_property
    def learnt(self) -> tuple[list[float], Any, float]:
        """The losses of updates on one batch until it is half learnt, the parameters then, and the rate."""
        own = RATE_OF_WIDTH / self.config.width
        rate = max(self.asked.optimizer.learning_rate, RATE, own)
        config = dataclasses.replace(
            self.asked.optimizer,
            learning_rate=rate,
            schedule="constant",
            warmup_steps=0,
            decay_fraction=None,
        )
        transform = optimizer.build(config, STEPS)
        mesh = sharding.make_mesh(devices=jax.devices()[:1])
        where = step.shardings(step.abstract_state(self.net, transform, mesh))
        state = step.init_state(self.net, transform, mesh, key=self.key)
        train_step = step.make_train_step(
            self.net, transform, mesh, where, frozen=config.frozen, loss=self.asked.loss
        )
        batch, losses = step.put_batch(self.batch, mesh), []
        for _ in range(STEPS):
            state, metrics = train_step(state, batch, self.key)
            losses.append(float(metrics["loss"]))
            if losses[-1] < LEARNT * losses[0]:
                break
        return losses, state.params, rate

    def _characters(self) -> tokenizer.Tokenizer:
        """A tokenizer that is there at once, with the special tokens of the tasks."""
        pairs = list(zip(self.asked.tasks, self._items, strict=True))
        return tokenizer.train(
            (text for task, items in pairs for item in items for text in task.texts(item)),
            kind="char",
            special=tuple(dict.fromkeys(name for task, _ in pairs for name in task.special)),
        )


def reduced(config: ModelConfig, length: int, rows: int) -> tuple[ModelConfig, int]:
    """A model and a length of rows as they are, or halved here and there until the checks take about a minute."""
    affordable = SECONDS * EFFICIENCY * flops.peak().flops_per_second / (STEPS + 10)
    while flops.training(config, length) * length * rows > affordable:
        half = next(_halves(config, length), None)
        if half is None:
            break
        config, length = half
    return config, length


def _first(source: Source, task: tasks.Task) -> Iterator[tasks.Item]:
    """The first documents or records of a source, CHARACTERS of them; a document is cut there."""
    left = CHARACTERS
    items: Iterator[Any] = documents.records(source) if task.whole else documents.read(source)
    for item in items:
        yield item[:left] if isinstance(item, str) else item
        left -= sum(map(len, task.texts(item)))
        if left <= 0:
            return


def _examples(encoded: list[dict[str, list[int]]]) -> streams.Examples:
    """Examples in memory."""
    found = {}
    for name in encoded[0]:
        parts = [np.asarray(example[name], np.int32) for example in encoded]
        offsets = np.cumsum([0, *map(len, parts)])
        found[name] = streams.Tokens(np.concatenate(parts), offsets)
    return streams.Examples(found)


def _halves(config: ModelConfig, length: int) -> Iterator[tuple[ModelConfig, int]]:
    """What may be halved, what matters least to the checks first; widths last."""
    change = functools.partial(dataclasses.replace, config)
    if length > 64:
        yield config, length // 2
    if config.layers >= 4:
        layers = config.layers // 2
        encoder = {"encoder_layers": config.encoder_layers // 2} if config.encoder_layers else {}
        yield change(layers=layers, windows=config.windows[:layers], **encoder), length
    if config.vocab_size > 1024:
        yield change(vocab_size=config.vocab_size // 2), length
    if config.family in RECURRENT and config.width % 2 == 0:
        yield change(width=config.width // 2), length
    elif config.width % 2 == config.heads % 2 == config.hidden % 2 == 0 and config.heads > 2:
        keys = math.gcd(config.kv_heads, config.heads // 2)
        half = {name: getattr(config, name) // 2 for name in ("width", "heads", "hidden")}
        yield change(**half, kv_heads=keys), length
