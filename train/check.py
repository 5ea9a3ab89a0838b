"""Is a config's model what training takes it for? Self-tests on its own model, text, tasks and optimiser, in a minute.

They run in float32 and without dropout, on the first of the text, from fresh parameters. A tokenizer still to be
trained is not: characters stand for its pieces. A check that means nothing for a task is left out, and the report says
so, and what was halved to be done in time.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from model.config import RECURRENT
from train import flight, optimizer, paths
from train.recipe import Recipe
from train.subject import SIDES, Subject

FALLEN = 0.8  # of its first loss: what that of one batch must have come to
ROUNDING = 1e-4  # of the largest value, where sums are added in another order


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
    without = left_out(subject)
    for name, check in CHECKS.items():
        if name in without:
            print(f"{'-':<6} {name:<22} left out: {without[name]}", flush=True)
            continue
        holds, said = check(subject)
        failed += not holds
        print(f"{'ok' if holds else 'WRONG':<6} {name:<22} {said}", flush=True)
    seconds = time.monotonic() - began
    print(f"{failed or 'none'} of {len(CHECKS.keys() - without)} checks failed; {seconds:.0f} s")
    return int(failed > 0)


def left_out(subject: Subject) -> dict[str, str]:
    """The checks that mean nothing for a recipe, and why."""
    family, kinds = subject.config.family, {task.kind for task in subject.asked.tasks}
    found = {}
    if family == "encoder_only":
        found["causality"] = "an encoder looks both ways"
    elif family in ("decoder_only", *RECURRENT) and "prefix" not in kinds:
        found["both ways"] = "the model looks back only"
    if kinds <= {"classify", "spans", "denoising"} or subject.asked.task.next_sentence:
        found["packed documents"] = "a row is one example"
    return found


def causality(subject: Subject) -> tuple[bool, str]:
    """Whether logits know of tokens that come later, by changing one."""
    at = 2 * subject.length // 3
    moved_T = _moved(subject, _with_prefix(subject, at // 2), "tokens", at)
    if moved_T[:at].any():
        return False, f"token {at} changes the logits of token {int(moved_T.argmax())}, before it"
    if not moved_T[at]:
        return False, f"token {at} changes not even its own logits: the model reads nothing"
    return True, f"token {at} of {subject.length} changes no logits before it"


def both_ways(subject: Subject) -> tuple[bool, str]:
    """Whether what is to be read both ways, a text, a source or a prefix, knows of tokens before and behind."""
    side = "source" if "source" in subject.inputs else "tokens"
    length = subject.inputs[side].shape[1]
    if subject.config.family == "decoder_only":
        length = max(3, length // 2)
    at = length // 2
    moved_T = _moved(subject, _with_prefix(subject, length), side, at)[:length]
    for where, what in ((slice(at), "before"), (slice(at + 1, None), "behind")):
        if not moved_T[where].any():
            return False, f"token {at} changes no hidden state {what} it"
    return True, f"token {at} of {length} changes hidden states before and behind it"


def separation(subject: Subject) -> tuple[bool, str]:
    """Whether packed documents see each other, by changing the first of two."""
    given = _with_prefix(subject, max(1, subject.length // 4))
    parted, changed = {}, {}
    for name, start in SIDES.items():
        if name in subject.inputs:
            tokens_BT = given[name]
            half = tokens_BT.shape[1] // 2
            second_T = np.arange(tokens_BT.shape[1]) >= half
            parted[f"{start}segments"] = np.broadcast_to(
                1 + second_T.astype(np.int32), tokens_BT.shape
            )
            changed[name] = _changed(subject, tokens_BT, slice(0, half))
    one = {name: np.ones_like(array) for name, array in parted.items()}
    moved = []
    for segments in (parted, one):
        pair = [
            subject.logits({**given, **tokens, **segments})[:, subject.length // 2 :]
            for tokens in ({}, changed)
        ]
        moved.append((pair[0] != pair[1]).any())
    if moved[0]:
        return False, "a document changes the logits of the one packed behind it"
    if not moved[1]:
        return False, "tokens change no logits within their own document: the model reads nothing"
    return True, "a document changes no logits of the one packed behind it"


def padding(subject: Subject) -> tuple[bool, str]:
    """Whether padding before a text is seen: its logits are those of the text alone."""
    blank = max(1, subject.length // 4)
    alone, padded = {}, {}
    for name, tokens_BT in subject.inputs.items():
        kept_BT = tokens_BT[:, : max(1, tokens_BT.shape[1] - blank)]
        for key, array in ((name, kept_BT), (f"{SIDES[name]}mask", np.ones(kept_BT.shape, bool))):
            alone[key] = array
            padded[key] = np.pad(array, ((0, 0), (blank, 0)))
    logits, behind = subject.logits(alone), subject.logits(padded)
    if logits.ndim == 3:
        behind = behind[:, blank:]
    error = np.abs(behind - logits).max() / np.abs(logits).max()
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
    "both ways": both_ways,
    "packed documents": separation,
    "padding": padding,
    "accumulation": accumulation,
    "one batch learnt": learning,
    "dead parameters": dead,
    "schedule": schedule,
    "batches": purity,
}


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


def _with_prefix(subject: Subject, length: int) -> dict[str, np.ndarray]:
    """The inputs, and where a prefix is learnt, one of that length."""
    prefix = "prefix" in subject.batch
    return {
        **subject.inputs,
        **({"prefix": np.full(subject.rows, length, np.int32)} if prefix else {}),
    }


def _moved(subject: Subject, given: dict[str, np.ndarray], side: str, at: int) -> np.ndarray:
    """Of which tokens of a side [T] the hidden states, or logits, are others if one token is another."""
    other = {**given, side: _changed(subject, given[side], slice(at, at + 1))}
    (logits, states), (logits_there, states_there) = map(subject.call, (given, other))
    moved_T = (states[side] != states_there[side]).any(axis=(0, 2))
    if side == "tokens" and logits.ndim == 3:
        moved_T |= (logits != logits_there).any(axis=(0, 2))
    return moved_T


def _changed(subject: Subject, tokens_BT: np.ndarray, where: slice) -> np.ndarray:
    """The same rows with other tokens there."""
    other_BT = tokens_BT.copy()
    other_BT[:, where] = (other_BT[:, where] + 1) % subject.config.vocab_size
    return other_BT


def _flat(tree: Any) -> np.ndarray:
    """All entries of a tree in one array."""
    return np.concatenate([np.float64(leaf).ravel() for leaf in jax.tree.leaves(tree)])
