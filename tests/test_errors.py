"""What a person reads when something they gave us is wrong: one line with name, value and remedy."""

import dataclasses
import re
from typing import Any

import pytest

from model import errors


@dataclasses.dataclass(frozen=True)
class Part:
    """A group within the group."""

    depth: int = 0


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One field for each kind of annotation that a config uses."""

    steps: int
    rate: float = 0.5
    name: str = "soup"
    warm: bool = False
    limit: int | None = None
    sizes: tuple[int, ...] = ()
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    extra: Any = None
    part: Part | None = None

    def __post_init__(self):
        if self.steps < 1:
            raise errors.BadInput(f"recipe.steps is {self.steps}; it must be at least 1")


def build(**values):
    return errors.build(Recipe, values, "config.recipe")


def test_bad_input_is_a_value_error_so_that_python_callers_can_catch_it():
    assert issubclass(errors.BadInput, ValueError)


@pytest.mark.parametrize(
    "word, hint",
    [
        ("topk", " (did you mean 'top_k'?)"),
        ("temperatur", " (did you mean 'temperature'?)"),
        ("top_k", " (did you mean 'top_k'?)"),
        ("zzz", ""),
        ("", ""),
    ],
)
def test_the_nearest_known_word_is_suggested_and_nothing_when_none_is_near(word, hint):
    assert errors.nearest(word, ["temperature", "top_k", "top_p_mass"]) == hint


def test_the_known_words_may_be_any_iterable():
    assert errors.nearest("widht", iter({"width": 7})) == " (did you mean 'width'?)"


def test_values_of_the_annotated_types_are_kept_and_defaults_fill_the_rest():
    recipe = build(steps=3, limit=5, weights={"a": 0.25}, extra=[b"any"])
    assert recipe == Recipe(steps=3, limit=5, weights={"a": 0.25}, extra=[b"any"])
    assert recipe.rate == 0.5 and recipe.sizes == ()


def test_a_whole_number_becomes_a_float_and_a_list_becomes_a_tuple():
    recipe = build(steps=3, rate=2, sizes=[7, 11])
    assert isinstance(recipe.rate, float) and recipe.rate == 2.0
    assert recipe.sizes == (7, 11)


def test_elements_become_what_their_annotation_says():
    weights = build(steps=3, weights={"a": 2}).weights
    assert weights == {"a": 2.0} and isinstance(weights["a"], float)
    assert build(steps=3, part=Part(5)).part == Part(5)


@pytest.mark.parametrize("values", [5, "steps", ["steps"], None])
def test_what_is_no_group_of_keys_is_refused(values):
    message = f"config.recipe is {values!r}; it must be a group of keys"
    with pytest.raises(errors.BadInput, match=f"^{re.escape(message)}$"):
        errors.build(Recipe, values, "config.recipe")


def test_a_key_that_is_no_text_is_refused():
    with pytest.raises(errors.BadInput, match="^config.recipe has no key 5; known keys: steps, "):
        errors.build(Recipe, {"steps": 3, 5: 1}, "config.recipe")


def test_nothing_is_accepted_where_nothing_is_an_option():
    assert build(steps=3, limit=None).limit is None


@pytest.mark.parametrize(
    "values, message",
    [
        (
            dict(steps=3, rat=0.1),
            "config.recipe has no key 'rat' (did you mean 'rate'?); "
            "known keys: steps, rate, name, warm, limit, sizes, weights, extra, part",
        ),
        (
            dict(steps=3, zzzz=1),
            "config.recipe has no key 'zzzz'; "
            "known keys: steps, rate, name, warm, limit, sizes, weights, extra, part",
        ),
        (dict(rate=0.1), "config.recipe lacks steps; add it to the config"),
        (dict(steps="3"), "config.recipe.steps is '3' (str); it must be a whole number"),
        (dict(steps=3.0), "config.recipe.steps is 3.0 (float); it must be a whole number"),
        (dict(steps=True), "config.recipe.steps is True (bool); it must be a whole number"),
        (dict(steps=None), "config.recipe.steps is None (NoneType); it must be a whole number"),
        (dict(steps=3, rate="fast"), "config.recipe.rate is 'fast' (str); it must be a number"),
        (dict(steps=3, rate=True), "config.recipe.rate is True (bool); it must be a number"),
        (dict(steps=3, warm=1), "config.recipe.warm is 1 (int); it must be true or false"),
        (dict(steps=3, name=5), "config.recipe.name is 5 (int); it must be text"),
        (
            dict(steps=3, limit="no"),
            "config.recipe.limit is 'no' (str); it must be a whole number or nothing",
        ),
        (
            dict(steps=3, limit=True),
            "config.recipe.limit is True (bool); it must be a whole number or nothing",
        ),
        (dict(steps=3, sizes=7), "config.recipe.sizes is 7 (int); it must be a list"),
        (
            dict(steps=3, weights=[1]),
            "config.recipe.weights is [1] (list); it must be a group of keys",
        ),
        (
            dict(steps=3, sizes=[7, "x"]),
            "config.recipe.sizes[1] is 'x' (str); it must be a whole number",
        ),
        (
            dict(steps=3, weights={"a": 1, "b": "2"}),
            "config.recipe.weights.b is '2' (str); it must be a number",
        ),
        (
            dict(steps=3, weights={5: 1.0}),
            "config.recipe.weights has key 5 (int); a key must be text",
        ),
        (
            dict(steps=3, part=5),
            "config.recipe.part is 5 (int); it must be a group of keys or nothing",
        ),
        (dict(steps=0), "recipe.steps is 0; it must be at least 1"),
    ],
)
def test_a_wrong_key_or_value_is_refused_by_name_and_value_in_one_line(values, message):
    with pytest.raises(errors.BadInput, match=f"^{re.escape(message)}$"):
        build(**values)


def test_a_value_that_spans_lines_is_still_told_in_one():
    with pytest.raises(errors.BadInput) as caught:
        build(steps="first\nsecond")
    assert "\n" not in str(caught.value) and r"first\nsecond" in str(caught.value)
