"""Does every parameter get the value of the first rule that its path matches, and no other?"""

import functools
import math

import jax
import jax.numpy as jnp
import pytest
import tiny

import model
from model import blocks, config, errors, matrices
from model.config import ModelConfig, Runtime
from train import paths

GPT2 = dict(position="learned", norm="layer", activation="gelu", bias="all", tied=True)
FAMILIES = {
    **tiny.FAMILIES,
    "mixtral": {**tiny.LLAMA, "experts": config.Experts(count=3, chosen=2)},
    "bert": {**tiny.GPT2, "family": "encoder_only", "token_types": 2},
}


@functools.cache
def shapes(family):
    net = model.build(ModelConfig(vocab_size=31, **FAMILIES[family]), Runtime(scan=True))
    return jax.eval_shape(functools.partial(model.init_boxed, net), key=jax.random.key(0))


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("shape", [{}, GPT2])
def test_matrices_and_tables_decay_and_biases_and_norms_do_not(shape, scan):
    described = ModelConfig(
        vocab_size=11, context_length=7, layers=2, width=6, heads=3, hidden=5, **shape
    )
    net = model.build(described, Runtime(scan=scan))
    params = jax.eval_shape(lambda: model.init(net, key=jax.random.key(0)))
    factors = paths.by_rule(paths.DECAY, params)
    unstacked = jax.eval_shape(blocks.unstack_layers, params) if scan else params
    ranks = jax.tree.leaves(jax.tree.map(lambda leaf: leaf.ndim, unstacked))
    names = [path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(unstacked)]
    for path, factor in jax.tree_util.tree_leaves_with_path(factors):
        assert factor == (path[-1].key == "weight"), path
    # Independently of names: what is a vector in each layer is a norm's or a bias. Biases of heads are [N, H].
    for name, rank in zip(names, ranks, strict=True):
        assert (name == "weight") == (rank >= 2 and name != "bias")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_matrices_of_a_stack_are_those_that_its_logical_axes_describe(family):
    """Which axes are summed over is written down twice: as names where a weight is made, and as rules by path."""
    boxes = jax.tree.leaves(
        shapes(family), is_leaf=lambda node: hasattr(node, "names") and hasattr(node, "value")
    )
    names = jax.tree.leaves(paths.by_name(lambda name, _: name, model_tree(family)))
    seen = 0
    for name, box in zip(names, boxes, strict=True):
        axes, ndim = paths.first(matrices.STACK, name), len(box.names)
        is_matrix = name.endswith("weight") and "layers" in box.names
        assert (axes is not None) == is_matrix, name
        if axes is None:
            continue
        seen += 1
        counted = {box.names[i] for i in range(ndim) if i - ndim not in (*axes.summed, *axes.made)}
        assert counted == {"layers"} | ({"expert", "gate"} & set(box.names)) - (
            {"expert"} if "router" in name else set()
        )
        summed = [box.names[i] for i in axes.summed]
        into = {"out": ["heads", "head"], "down": ["mlp"]}
        assert summed == into.get(name.split("/")[-2], ["embed"])
        assert math.prod(box.value.shape[i] for i in axes.made) > 1
    assert seen == len({name for name in names if "/layers/" in name and "weight" in name}) > 1


def model_tree(family):
    return jax.tree.map(
        lambda box: box.value,
        shapes(family),
        is_leaf=lambda node: hasattr(node, "names") and hasattr(node, "value"),
    )


def test_the_first_rule_found_in_the_path_wins():
    params = {"a": {"bias": jnp.zeros(2), "weight": jnp.zeros(3)}, "b": {"weight": jnp.zeros(5)}}
    given = [("^a/weight", "first"), ("weight$", "second"), ("", "rest")]
    assert paths.by_rule(given, params) == {
        "a": {"bias": "rest", "weight": "first"},
        "b": {"weight": "second"},
    }
    docstring = paths.by_rule([("bias$", 0), ("", 1)], {"a": {"bias": 3, "weight": 5}})
    assert docstring == {"a": {"bias": 0, "weight": 1}}


def test_a_parameter_without_a_rule_is_refused():
    with pytest.raises(
        errors.BadInput, match=r"^x: parameter a/gain matches no rule of \['weight\$'\]; add one$"
    ):
        paths.by_rule(
            [("weight$", 1)], {"a": {"gain": jnp.zeros(2), "weight": jnp.zeros(2)}}, "x: "
        )


def test_a_rule_without_a_parameter_is_refused():
    with pytest.raises(errors.BadInput, match=r"rule 'wieght\$' is first for no parameter"):
        paths.by_rule([("wieght$", 1), ("", 0)], {"a": jnp.zeros(2)})


def test_any_of_several_patterns_may_be_found_and_each_must_be():
    params = {"a": {"bias": 2, "weight": 3}, "b": {"weight": 5}}
    assert paths.found(["^a", "bias"], params) == {
        "a": {"bias": True, "weight": True},
        "b": {"weight": False},
    }
    with pytest.raises(errors.BadInput, match=r"^x: 'c' is found in no parameter; correct or remo"):
        paths.found(["a", "c"], params, "x: ")
    with pytest.raises(errors.BadInput, match=r"^x: \['a', 'b'\] match every parameter; leave one"):
        paths.found(["a", "b"], params, "x: ")
