"""Which value does a parameter get, by its path? Lists of (regex, value), of which the first match wins.

A path is that of a run's checkpoint: `stack/layers/attention/query/weight`, where `layers` says that the first axis
counts layers.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from model import errors

Rules = Sequence[tuple[str, Any]]

# Multiplies weight_decay. As in GPT-2, every matrix and table decays. Names decide, not ranks:
# stacked layers give a bias a second axis.
DECAY = (
    (r"(^|/)(bias|scale)$", 0.0),
    (r"(^|/)weight$", 1.0),
)


def by_rule(rules: Rules, params: Any, where: str = "", *, spare: bool = False) -> Any:
    """For each parameter the value of the first rule whose regex is found in its path.

    Example: `by_rule([("bias$", 0), ("", 1)], {"a": {"bias": b, "weight": w}})` gives
    `{"a": {"bias": 0, "weight": 1}}`.

    Raises:
        BadInput: when a parameter matches no rule, or a rule is first for no parameter and none is to `spare`. `where`
            says whose rules.
    """
    used = set()

    def value(name: str, _: Any) -> Any:
        for pattern, result in rules:
            if re.search(pattern, name):
                used.add(pattern)
                return result
        raise errors.BadInput(
            f"{where}parameter {name} matches no rule of {[pattern for pattern, _ in rules]}; add one"
        )

    values = by_name(value, params)
    for pattern, _ in rules:
        if pattern not in used and not spare:
            raise errors.BadInput(
                f"{where}rule {pattern!r} is first for no parameter; correct or remove it"
            )
    return values


def first(rules: Rules, name: str) -> Any:
    """The value of the first rule whose regex is found in a path, or None."""
    return next((value for pattern, value in rules if re.search(pattern, name)), None)


def by_name(function: Callable[..., Any], params: Any, *others: Any) -> Any:
    """A tree like `params` of what `function` makes of each path, its parameter, and what `others` have there."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(
            jax.tree_util.keystr(path, simple=True, separator="/"), *leaves
        ),
        params,
        *others,
    )


def found(patterns: Sequence[str], params: Any, where: str = "") -> Any:
    """For each parameter whether one of the regexes is found in its path.

    Raises:
        BadInput: when one is found in no path, or there is no path without one.
    """
    used = set()

    def any_in(name: str, _: Any) -> bool:
        hits = {pattern for pattern in patterns if re.search(pattern, name)}
        used.update(hits)
        return bool(hits)

    values = by_name(any_in, params)
    for pattern in patterns:
        if pattern not in used:
            raise errors.BadInput(
                f"{where}{pattern!r} is found in no parameter; correct or remove it"
            )
    if patterns and all(jax.tree.leaves(values)):
        raise errors.BadInput(f"{where}{list(patterns)} match every parameter; leave one to train")
    return values


def without(patterns: Sequence[str], params: Any) -> Any:
    """The tree, empty where one of the regexes is found in a path: what optax leaves alone."""
    return jax.tree.map(
        lambda leaf, out: optax.MaskedNode() if out else leaf, params, found(patterns, params)
    )


def stopped(patterns: Sequence[str], params: Any) -> Any:
    """The tree, without gradients where one of the regexes is found in a path."""
    return jax.tree.map(
        lambda leaf, out: jax.lax.stop_gradient(leaf) if out else leaf,
        params,
        found(patterns, params),
    )
