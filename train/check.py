"""Is a config's model what training takes it for? Self-tests on its own model, text and optimiser, in under a minute.

They run in float32 and without dropout, on the first documents of the text. A tokenizer that is still to be trained is
not: bytes stand for its pieces. What would take too long is halved until it does not, and the report says so.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import model
from model import errors, sharding, tokenizer
from model.config import RECURRENT, ModelConfig, Runtime
from train import data, documents, flight, flops, optimizer, paths, rows, step, streams
from train.recipe import Recipe

STEPS = 40  # in which one batch must have been learnt, at most
LEARNT, FALLEN = 0.5, 0.8  # of its first loss: where to stop, and what it must have come to
RATE = 1e-3  # at least, to learn it with: this is no test of how fast the run may learn
ROUNDING = 1e-4  # of the largest value, where sums are added in another order
CHARACTERS = 200_000  # of text that is read
SECONDS = 25  # of arithmetic, at the EFFICIENCY of what a matrix product reaches here
EFFICIENCY = 0.2
FIRST_BYTE = 3  # the id of byte 0, where bytes stand for pieces; 1 and 2 begin and end a document


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
        if asked.task.kind != "causal":
            raise errors.BadInput(
                f"config.task.kind is {asked.task.kind!r}, and the checks are of models that predict the next token; "
                "check a causal task"
            )
        self.asked, path = asked, asked.tokenizer.path
        self.words = tokenizer.load(path) if path else None
        size = (
            self.words.vocab_size if self.words else asked.tokenizer.vocab_size or FIRST_BYTE + 256
        )
        self.whole = asked.model_config(size)
        self.parts = min(max(asked.train.accumulate, 2), 4)
        self.rows = 2 * self.parts
        self.config, self.length = reduced(self.whole, asked.data.length, self.rows)
        runtime = Runtime(scan=True, remat=asked.runtime.remat)
        self.net: nn.Module = model.build(self.config, runtime)
        self.key = jax.random.key(asked.seed)

    @functools.cached_property
    def packed(self) -> list[rows.Packed]:
        """Rows of the first documents of each source."""
        sources = self.asked.corpus().train
        return [rows.Packed(self._tokens(source), self.length) for source in sources]

    def batches(self) -> Any:
        """The dataset of batches, made anew as a new process would."""
        sources = self.asked.corpus().train
        weights = [source.weight for source in sources if source.weight is not None] or None
        return data.batches(self.packed, weights, batch_size=self.rows, seed=self.asked.seed)

    @functools.cached_property
    def batch(self) -> dict[str, np.ndarray]:
        """The first one; its first micro-batch has few targets, as of a document's end."""
        batch = dict(self.batches()[0])
        batch["weights"] = np.where(
            (np.arange(self.rows) % self.parts == 0)[:, None] & (np.arange(self.length) > 2),
            np.float32(0),
            batch["weights"],
        )
        return batch

    @functools.cached_property
    def params(self) -> Any:
        """As training begins with them."""
        return jax.jit(functools.partial(model.init, self.net))(key=self.key)

    @functools.cached_property
    def logits(self) -> Callable[..., np.ndarray]:
        """`logits(tokens, segments=..., mask=...)`, of the fresh parameters."""
        apply = jax.jit(lambda params, *given, **more: self.net.apply(params, *given, **more)[0])
        return lambda *given, **more: np.asarray(apply({"params": self.params}, *given, **more))

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
        rate = max(self.asked.optimizer.learning_rate, RATE)
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

    def _tokens(self, source: documents.Source) -> streams.Tokens:
        """The first documents of a source as one stream."""
        bos, eos = (self.words.bos_id, self.words.eos_id) if self.words else (1, 2)
        ids, offsets, left = [], [0], CHARACTERS
        for text in documents.read(source):
            ids += [bos, *self._ids(text[:left]), eos]
            offsets.append(len(ids))
            left -= len(text)
            if left <= 0:
                break
        stream = np.array(ids) % self.config.vocab_size
        return streams.Tokens(stream, np.array(offsets))

    def _ids(self, text: str) -> list[int]:
        if self.words:
            return list(self.words.encode(text))
        return [FIRST_BYTE + byte for byte in text.encode()]


def run(asked: Recipe) -> int:
    """Prints one line per check; returns 0 where all hold, else 1.

    Raises:
        BadInput: for text or a tokenizer that cannot be read, and rows of fewer than 4 tokens.
    """
    began, failed = time.monotonic(), 0
    subject = Subject(asked)
    count = sum(leaf.size for leaf in jax.tree.leaves(subject.params))
    print(f"{count:,} parameters, batches of {subject.rows} rows of {subject.length} tokens")
    if halved := _reductions(subject):
        print(f"halved, to be done within a minute: {', '.join(halved)}")
    for name, check in CHECKS.items():
        holds, said = check(subject)
        failed += not holds
        print(f"{'ok' if holds else 'WRONG':<6} {name:<22} {said}", flush=True)
    seconds = time.monotonic() - began
    print(f"{failed or 'none'} of {len(CHECKS)} checks failed; {seconds:.0f} s")
    return int(failed > 0)


def reduced(config: ModelConfig, length: int, rows: int) -> tuple[ModelConfig, int]:
    """A model and a length of rows as they are, or halved here and there until the checks take about a minute."""
    affordable = SECONDS * EFFICIENCY * flops.peak().flops_per_second / (STEPS + 10)
    while flops.training(config, length) * length * rows > affordable:
        half = next(_halves(config, length), None)
        if half is None:
            break
        config, length = half
    return config, length


def causality(subject: Subject) -> tuple[bool, str]:
    """Whether logits know of tokens that come later, by changing one."""
    tokens_BT, at = subject.batch["tokens"], 2 * subject.length // 3
    other_BT = _changed(subject, tokens_BT, slice(at, at + 1))
    moved_T = (subject.logits(tokens_BT) != subject.logits(other_BT)).any(axis=(0, 2))
    if moved_T[:at].any():
        return False, f"token {at} changes the logits of token {int(moved_T.argmax())}, before it"
    if not moved_T[at]:
        return False, f"token {at} changes not even its own logits: the model reads nothing"
    return True, f"token {at} of {subject.length} changes no logits before it"


def separation(subject: Subject) -> tuple[bool, str]:
    """Whether packed documents see each other, by changing the first of two."""
    tokens_BT, at = subject.batch["tokens"], subject.length // 2
    other_BT = _changed(subject, tokens_BT, slice(0, at))
    segments_BT = np.where(np.arange(subject.length) < at, 1, 2)[None].repeat(subject.rows, axis=0)
    moved = []
    for segments in (segments_BT.astype(np.int32), np.ones_like(segments_BT, np.int32)):
        pair = [subject.logits(t, segments=segments)[:, at:] for t in (tokens_BT, other_BT)]
        moved.append((pair[0] != pair[1]).any())
    if moved[0]:
        return False, "a document changes the logits of the one packed behind it"
    if not moved[1]:
        return False, "tokens change no logits within their own document: the model reads nothing"
    return True, "a document changes no logits of the one packed behind it"


def padding(subject: Subject) -> tuple[bool, str]:
    """Whether padding before a text is seen: its logits are those of the text alone."""
    blank = max(1, subject.length // 4)
    tokens_BT = subject.batch["tokens"][:, : subject.length - blank]
    mask_BT = np.ones(tokens_BT.shape, bool)
    padded = [np.pad(array, ((0, 0), (blank, 0))) for array in (tokens_BT, mask_BT)]
    alone = subject.logits(tokens_BT, mask=mask_BT)
    behind = subject.logits(padded[0], mask=padded[1])[:, blank:]
    error = np.abs(behind - alone).max() / np.abs(alone).max()
    said = f"{blank} tokens of padding move logits by {error:.0e} of the largest"
    return bool(error <= ROUNDING), said


def accumulation(subject: Subject) -> tuple[bool, str]:
    """Whether micro-batches add up to the gradient of the whole batch."""
    whole = _flat(subject.gradients[1](subject.params))
    parts = _flat(subject.gradients[subject.parts](subject.params))
    error = np.linalg.norm(whole - parts) / np.linalg.norm(whole)
    said = f"the gradient in {subject.parts} micro-batches is {error:.0e} off that of the batch"
    return bool(error <= ROUNDING), said


def learning(subject: Subject) -> tuple[bool, str]:
    """Whether one batch can be learnt by heart."""
    losses, _, rate = subject.learnt
    said = f"loss {losses[0]:.4f} to {losses[-1]:.4f} in {len(losses)} steps on one batch at rate {rate:g}"
    return losses[-1] <= FALLEN * losses[0], said


def dead(subject: Subject) -> tuple[bool, str]:
    """Whether every parameter has a gradient, once the batch has been learnt: before, what begins at 0 hides others."""
    norms = flight.norms(subject.gradients[1](subject.learnt[1]))
    trained = paths.without(subject.asked.optimizer.frozen, norms)
    leaves = jax.tree_util.tree_leaves_with_path(trained)
    silent = []
    for path, norm in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        layers = np.flatnonzero(np.atleast_1d(norm) == 0).tolist()
        silent += [f"{name} of layer {i}" if np.ndim(norm) else name for i in layers]
    if silent:
        more = f", and {len(silent) - 5} more" if len(silent) > 5 else ""
        return False, f"without gradient: {', '.join(silent[:5])}{more}"
    return True, f"all {len(leaves)} arrays of parameters have a gradient, in every layer"


def schedule(subject: Subject) -> tuple[bool, str]:
    """Whether learning rates are numbers that a step can be taken with; shows some."""
    steps, warmup = subject.asked.train.steps, subject.asked.optimizer.warmup_steps
    every = jnp.arange(steps, dtype=jnp.int32)
    rates = np.broadcast_to(
        jax.vmap(optimizer.schedule(subject.asked.optimizer, steps))(every), steps
    )
    shown = sorted({0, min(warmup, steps - 1), steps // 4, steps // 2, 3 * steps // 4, steps - 1})
    table = ", ".join(f"{i + 1}: {rates[i]:.2e}" for i in shown)
    wrong = ~np.isfinite(rates) | (rates < 0)
    if wrong.any():
        return (
            False,
            f"the rate of step {int(wrong.argmax()) + 1} is {rates[wrong.argmax()]}; {table}",
        )
    return bool(rates.max() > 0), f"rates by step: {table}"


def purity(subject: Subject) -> tuple[bool, str]:
    """Whether a batch depends on its step alone, and not on what was asked before."""
    steps = (0, 7, 3)
    first, second = subject.batches(), subject.batches()
    found = {number: first[number] for number in steps}
    for number in (*reversed(steps), *steps):
        again = second[number]
        if any((found[number][name] != array).any() for name, array in again.items()):
            return False, f"batch({number}) is another when it is asked for in another order"
    return True, "batch(step) is the same in any order, and made anew"


CHECKS: dict[str, Callable[[Subject], tuple[bool, str]]] = {
    "causality": causality,
    "packed documents": separation,
    "padding": padding,
    "accumulation": accumulation,
    "one batch learnt": learning,
    "dead parameters": dead,
    "schedule": schedule,
    "batches": purity,
}


def _halves(config: ModelConfig, length: int) -> Iterator[tuple[ModelConfig, int]]:
    """What may be halved, what matters least to the checks first; widths last."""
    change = functools.partial(dataclasses.replace, config)
    if length > 64:
        yield config, length // 2
    if config.layers >= 4:
        layers = config.layers // 2
        yield change(layers=layers, windows=config.windows[:layers]), length
    if config.vocab_size > 1024:
        yield change(vocab_size=config.vocab_size // 2), length
    if config.family in RECURRENT and config.width % 2 == 0:
        yield change(width=config.width // 2), length
    elif config.width % 2 == config.heads % 2 == config.hidden % 2 == 0 and config.heads > 2:
        keys = math.gcd(config.kv_heads, config.heads // 2)
        half = {name: getattr(config, name) // 2 for name in ("width", "heads", "hidden")}
        yield change(**half, kv_heads=keys), length


def _reductions(subject: Subject) -> list[str]:
    """What of the model is not as the recipe has it, in words."""
    wanted = subject.whole
    found = [
        f"model.{field.name} {getattr(wanted, field.name)} to {getattr(subject.config, field.name)}"
        for field in dataclasses.fields(wanted)
        if getattr(wanted, field.name) != getattr(subject.config, field.name)
    ]
    if subject.length != subject.asked.data.length:
        found.insert(0, f"data.length {subject.asked.data.length} to {subject.length}")
    return found


def _changed(subject: Subject, tokens_BT: np.ndarray, where: slice) -> np.ndarray:
    """The same rows with other tokens there."""
    other_BT = tokens_BT.copy()
    other_BT[:, where] = (other_BT[:, where] + 1) % subject.config.vocab_size
    return other_BT


def _flat(tree: Any) -> np.ndarray:
    """All entries of a tree in one array."""
    return np.concatenate([np.float64(leaf).ravel() for leaf in jax.tree.leaves(tree)])
