"""Is a plan for a mesh what a step costs each device? Against closed forms, real meshes, and what XLA compiles."""

import dataclasses
import io
import math
import re

import compiled
import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

import model
from model import errors, sharding
from train import chips, layout, losses, memory, optimizer, per_device, plan, recipe, step

CONFIG = model.ModelConfig(
    vocab_size=422,
    context_length=31,
    layers=3,
    width=40,
    heads=4,
    kv_heads=2,
    hidden=94,
    bias="all",
)
TINY = {"vocab_size": 422, "context_length": 31, "layers": 3, "width": 40, "heads": 4}
THREE = {"data": 2, "fsdp": 2, "tensor": 2}


def asked(config=CONFIG, rows=16, length=29, *, adapt=None, chunk=0, accumulate=1, **runtime):
    return per_device.Asked(
        config,
        length,
        recipe.Train(steps=7, batch_size=rows, accumulate=accumulate),
        optimizer.OptimizerConfig(**(adapt or {})),
        losses.LossConfig(chunk=chunk),
        model.Runtime(scan=True, **runtime),
    )


def size_of(shape, itemsize):
    return math.prod(shape) * itemsize


def test_each_leaf_has_the_bytes_that_a_real_mesh_gives_it():
    net = model.build(CONFIG, model.Runtime(scan=True))
    state = step.abstract_state(
        net, optimizer.build(optimizer.OptimizerConfig(), 7), sharding.make_mesh(THREE)
    )
    found = per_device.budget(asked(), THREE)
    for ours, theirs in ((found.params, state.params), (found.state, state.opt_state)):
        shards = [leaf.sharding.shard_shape(leaf.shape) for leaf in jax.tree.leaves(theirs)]
        sizes = [leaf.dtype.itemsize for leaf in jax.tree.leaves(theirs)]
        assert [leaf.bytes for leaf in ours] == [
            math.prod(shape) * size for shape, size in zip(shards, sizes, strict=True)
        ]


@pytest.mark.parametrize(
    ("adapt", "copies"),
    [
        ({}, 2),
        ({"moments_dtype": "bfloat16"}, 1.5),
        ({"moments_dtype": "bfloat16", "second_moments_dtype": "bfloat16"}, 1),
        ({"name": "sgd"}, 1),
        ({"name": "sgd", "momentum": 0.0}, 0),
        ({"name": "lion", "ema_decay": 0.9}, 2),
    ],
)
def test_the_optimisers_state_is_so_many_copies_of_the_parameters_and_some_counts(adapt, copies):
    found = per_device.budget(asked(adapt=adapt), {"fsdp": 2, "tensor": 2})
    params = sum(leaf.bytes for leaf in found.params)
    assert 0 <= sum(leaf.bytes for leaf in found.state) - copies * params <= 16


def test_what_a_mesh_does_not_divide_is_whole_on_every_device_and_said():
    odd = dataclasses.replace(CONFIG, vocab_size=421)
    found = per_device.budget(asked(odd), {"tensor": 2})
    table = next(leaf for leaf in found.params if leaf.path == "embedding/weight")
    assert table.bytes == 421 * 40 * 4 and layout.problems(found.params) == [
        "421 is not divided by the 2 devices of tensor, so each has all of it: embedding/weight and 1 more"
    ]


def test_with_full_remat_each_layer_keeps_its_input_and_nothing_else():
    found = per_device.budget(asked(rows=14, remat="full"), {"data": 2})
    assert found.saved == 3 * 7 * 29 * 40 * 4
    assert (
        per_device.budget(asked(rows=14, remat="full"), {"data": 2, "sequence": 29}).saved
        == 3 * 7 * 40 * 4
    )
    none, dots = (
        per_device.budget(asked(rows=14, remat=name), {"data": 2}).saved
        for name in ("none", "dots")
    )
    assert none > dots > found.saved


def test_operations_done_are_three_forward_passes_with_whole_attention_and_four_under_full_remat():
    """By hand: each product of the network forward, twice backward; scores are computed for keys behind, too."""
    layer = 40 * (40 + 2 * 20 + 40) + 3 * 40 * 94 + 2 * 29 * 40
    forward = 2 * 4 * 29 * (3 * layer + 40 * 422)
    found = per_device.budget(asked(rows=8), {"data": 2})
    assert found.cost.flops == 3 * forward
    again = per_device.budget(asked(rows=8, remat="full"), {"data": 2})
    products = 3 * forward + 2 * 4 * 29 * 3 * (
        layer - 40 * 94
    )  # nobody asks for the last one again
    assert again.cost.flops == products


@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradients_are_summed_over_data_once_per_micro_batch(accumulate):
    found = per_device.budget(asked(accumulate=accumulate), {"data": 8})
    (gradients, head) = found.sent
    assert {each.kind for each in found.sent} == {"all-reduce"} and gradients.axes == ("data",)
    total = 4 * sum(math.prod(leaf.shape) for leaf in found.params)
    assert gradients.bytes + head.bytes == accumulate * total
    assert gradients.wire == pytest.approx(gradients.bytes * 2 * 7 / 8)


def test_a_product_between_elementwise_work_holds_its_operand_and_its_result():
    """tanh fills an operand, the product a result; the sum is computed in what reads the result."""
    x, w = jax.ShapeDtypeStruct((3, 5), jnp.float32), jax.ShapeDtypeStruct((5, 7), jnp.float32)
    traced = jax.make_jaxpr(lambda x, w: jnp.tanh((jnp.tanh(x) @ w) + 1.0).sum())(x, w)
    found = memory.cost(traced, size_of)
    assert found.flops == 2 * 3 * 5 * 7 and found.peak == 4 * (3 * 5 + 3 * 7)


def test_a_loop_holds_what_it_collects_and_works_on_one_turn_at_a_time():
    ws, x = jax.ShapeDtypeStruct((11, 5, 5), jnp.float32), jax.ShapeDtypeStruct((3, 5), jnp.float32)

    def turn(x, w):
        y = x @ w
        return y, y * 2.0

    traced = jax.make_jaxpr(lambda x, ws: jax.lax.scan(turn, x, ws))(x, ws)
    found = memory.cost(traced, size_of)
    carried, collected, slice_of_ws, product = 3 * 5, 11 * 3 * 5, 5 * 5, 3 * 5
    assert found.peak == 4 * (carried + collected + slice_of_ws + product)
    assert found.flops == 11 * 2 * 3 * 5 * 5
    assert memory.saved(traced, size_of, 11, ()) == 4 * collected


@pytest.mark.standard_promotion
@pytest.mark.parametrize(("sizes", "remat"), [({"fsdp": 8}, "full"), (THREE, "none")])
def test_a_plan_is_within_15_percent_of_what_xla_compiles(sizes, remat):
    config = model.ModelConfig(
        vocab_size=496, context_length=61, layers=3, width=80, heads=8, hidden=232
    )
    ask = asked(config, 16, 61, remat=remat, chunk=1 << 20)
    found, made = per_device.budget(ask, sizes), compiled.compile_step(ask, sizes)
    there = made.memory_analysis()
    assert found.arguments == pytest.approx(there.argument_size_in_bytes, rel=0.001)
    assert found.peak == pytest.approx(
        there.argument_size_in_bytes + there.temp_size_in_bytes, rel=0.15
    )
    theirs = compiled.collectives(made.as_text())
    for kinds in (("all-gather",), ("all-reduce", "reduce-scatter")):
        ours = sum(each.bytes for each in found.sent if each.kind in kinds)
        assert ours == pytest.approx(sum(theirs.get(kind, (0, 0))[1] for kind in kinds), rel=0.15)


def test_the_slowest_of_operations_memory_and_links_bounds_the_step():
    found = per_device.budget(asked(rows=8), {"data": 2})
    wire = sum(each.wire for each in found.sent)
    slow = chips.Chip(flops=1e9, memory=found.peak, bandwidth=1e30, links=wire / 7)
    times = per_device.ceiling(found, slow)
    assert times["operations"] == found.cost.flops / 1e9 and times["collectives"] == pytest.approx(
        7
    )
    rows = dict(per_device.ceiling_rows(found, slow))
    assert rows["bound by"] == "collectives"
    assert rows["utilisation, at most"] == f"{found.useful / 1e9 / 7:.1%}"
    assert any(row.startswith("fits into") for row in rows)
    assert not any("links reach" in row for row in rows)
    small = dataclasses.replace(slow, memory=found.peak - 1, reach=1)
    assert (
        dict(per_device.ceiling_rows(found, small))["links reach 1 of 2 devices"] == "slower beyond"
    )
    assert any(
        row.startswith("does not fit into") for row in dict(per_device.ceiling_rows(found, small))
    )


@pytest.mark.standard_promotion
@pytest.mark.parametrize(
    ("name", "billions", "sizes"),
    [("gpt3-175b", 174.6, "data:4,fsdp:32,tensor:8"), ("bloom-176b", 176.2, "fsdp:64,tensor:4")],
)
def test_the_largest_published_models_are_planned_from_their_preset(name, billions, sizes):
    mesh = layout.parse(sizes)
    groups = {"model": {"preset": name}, "train": {"batch_size": 1024}}
    found = per_device.budget(plan.asked_step(groups), mesh)
    assert found.asked.runtime.remat == "full" and found.asked.runtime.dtype == "bfloat16"
    assert sum(math.prod(leaf.shape) for leaf in found.params) / 1e9 == pytest.approx(
        billions, abs=0.1
    )
    split = sum(leaf.bytes * leaf.parts() for leaf in found.params)
    assert split == 4 * sum(math.prod(leaf.shape) for leaf in found.params)


def test_the_page_names_devices_and_what_training_would_refuse():
    page = io.StringIO()
    found = per_device.budget(asked(rows=9), layout.parse("data:2,tensor:2"))
    per_device.table(found, Console(file=page, width=160), chips.named("v5p"))
    text = page.getvalue()
    assert text.startswith(
        "4 devices: data 2 × tensor 2; 9 rows of 29 tokens, accumulate 1, float32, "
    )
    assert "refused by train: config.train.batch_size=9 in config.train.accumulate=1 parts" in text
    assert re.search(r"stack/layers/feed_forward/up/weight +3×40×94 +- fsdp tensor +\S+ kB\n", text)
    assert re.search(r"bound by +(operations|memory|collectives)\n", text)


@pytest.mark.parametrize(
    ("mesh", "chip", "groups", "message"),
    [
        ("data", None, {}, r"--mesh has 'data'; write axes and devices, such as data:8,fsdp:64$"),
        ("", None, {}, r"--mesh has ''; write axes and devices"),
        ("data:8,,fsdp:2", None, {}, r"--mesh has ''; write axes"),
        ("tensr:8", None, {}, r"--mesh has no axis 'tensr' \(did you mean 'tensor'\?\); known: data, fsdp"),
        ("data:2,data:4", None, {}, r"--mesh names axis data twice; give it once$"),
        ("data:0", None, {}, r"--mesh has data:0; the number of devices must be a whole number from 1$"),
        ("data:-2", None, {}, r"--mesh has data:-2; the number"),
        ("data:two", None, {}, r"--mesh has data:two; the number"),
        ("data:2", "v5q", {}, r"--chip is 'v5q' \(did you mean 'v5[ep]'\?\); known: v4, v5e, v5p, v6e"),
        (None, "v5p", {}, r"--chip=v5p needs devices; add --mesh=data:8, or another$"),
        ("data:2", None, {}, r"--mesh needs to know how many rows a step has; add --config\.train\.batch_size=N$"),
        ("data:2", None, {"train": 3}, r"--mesh needs to know how many rows"),
        ("data:2", None, {"train": {"batch_size": 0}}, r"config\.train\.batch_size is 0; it must be at least 1$"),
        ("data:2", None, {"train": {"batch_size": 2}, "los": {}}, r"config has no key 'los' \(did you mean 'loss'\?\)"),
        ("data:2", None, {"train": {"batch_size": 2}, "loss": 3}, r"config\.loss is 3; it must be a group of keys$"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(mesh, chip, groups, message):
    with pytest.raises(errors.BadInput, match=f"^{message}") as told:
        plan.run({"model": TINY} | groups, mesh, chip)
    assert "\n" not in str(told.value)


def test_what_a_step_of_an_encoder_or_an_adapter_costs_a_device_is_not_known():
    for groups, message in (
        ({"model": {"preset": "bert-base-cased"}}, r"^config\.model\.family is 'encoder_only', and what a step"),
        ({"model": {"preset": "t5-small"}}, r"^config\.model\.family is 'encoder_decoder', and what a step"),
        ({"adapt": {"targets": ["query"]}}, r"^config\.adapt is given, and what a step costs"),
    ):  # fmt: skip
        with pytest.raises(errors.BadInput, match=message):
            plan.run({"train": {"batch_size": 2}, **groups}, "data:2")
