"""Do the rules put every part of a model where they say, and are meshes refused that cannot work?"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import model
from model import errors, sharding

CONFIG = model.ModelConfig(
    vocab_size=34, context_length=13, layers=3, width=24, heads=4, kv_heads=2, hidden=22, bias="all"
)


def boxed(scan=True, config=CONFIG):
    net = model.build(config, model.Runtime(scan=scan))
    return jax.eval_shape(lambda: model.init_boxed(net, key=jax.random.key(0)))


def test_a_mesh_has_all_axes_all_devices_and_automatic_types():
    mesh = sharding.make_mesh(dict(tensor=2, fsdp=4))
    assert dict(mesh.shape) == {"data": 1, "fsdp": 4, "sequence": 1, "tensor": 2, "expert": 1}
    assert mesh.axis_types == (AxisType.Auto,) * 5
    assert dict(sharding.make_mesh(None).shape)["data"] == 8
    assert sharding.make_mesh(devices=jax.devices()[5:6]).devices.item() == jax.devices()[5]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (dict(tensr=8), "mesh has no axis 'tensr' (did you mean 'tensor'?); known: data, fsdp, se"),
        (dict(data=0), "mesh axis data is 0; it must be at least 1"),
        (dict(data=3), "mesh {'data': 3} needs 3 devices and 8 are here; change runtime.mesh"),
    ],
)
def test_a_mesh_that_cannot_be_is_refused(sizes, message):
    with pytest.raises(errors.BadInput, match=re.escape(message)):
        sharding.make_mesh(sizes)


def test_every_parameter_lies_where_the_rules_say():
    where = sharding.of_tree(boxed(), sharding.make_mesh(dict(data=2, fsdp=2, tensor=2)))
    layers = where["stack"]["layers"]
    assert where["embedding"]["weight"].spec == P("tensor", "fsdp")
    assert layers["attention"]["query"]["weight"].spec == P(None, "fsdp", "tensor", None)
    assert layers["attention"]["key"]["bias"].spec == P(None, "tensor", None)
    assert layers["attention"]["out"]["weight"].spec == P(None, "tensor", None, "fsdp")
    assert layers["feed_forward"]["up"]["weight"].spec == P(None, "fsdp", "tensor")
    assert layers["feed_forward"]["down"]["weight"].spec == P(None, "tensor", "fsdp")
    assert layers["attention_norm"]["scale"].spec == P(None, None)


def test_layers_apart_lie_as_layers_stacked():
    mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
    stacked, apart = (sharding.of_tree(boxed(scan), mesh)["stack"] for scan in (True, False))
    for i in range(3):
        jax.tree.map(
            lambda one, all_: np.testing.assert_equal(tuple(all_.spec), (None, *one.spec)),
            apart[f"layers_{i}"],
            stacked["layers"],
        )


def test_every_parameter_but_vectors_is_split_over_all_of_fsdp_and_tensor():
    mesh = sharding.make_mesh(dict(fsdp=4, tensor=2))
    tree = boxed()
    where = sharding.of_tree(tree, mesh)
    leaves = jax.tree_util.tree_leaves_with_path(nn.meta.unbox(tree))
    for (path, leaf), sharded in zip(leaves, jax.tree.leaves(where), strict=True):
        parts = np.prod(leaf.shape) / np.prod(sharded.shard_shape(leaf.shape))
        assert parts == 8 or path[-1].key != "weight", path


def test_leaves_without_names_are_replicated():
    tree = {"step": jax.ShapeDtypeStruct((), jnp.int32), "table": jnp.zeros((3, 5))}
    where = sharding.of_tree(tree, sharding.make_mesh(dict(fsdp=8)))
    assert {leaf.spec for leaf in where.values()} == {P()}


def test_what_the_mesh_cannot_split_is_whole_everywhere_and_said():
    mesh = sharding.make_mesh(dict(fsdp=2, tensor=4))
    where = sharding.of_tree(boxed(), mesh)
    attention = where["stack"]["layers"]["attention"]
    assert where["output"]["weight"].spec == P(None, "fsdp")  # 34 pieces
    assert attention["key"]["weight"].spec == P(None, "fsdp", None, None)  # 2 key heads
    assert attention["query"]["weight"].spec == P(None, "fsdp", "tensor", None)  # 4 query heads
    assert set(sharding.notes(boxed(), mesh)) == {
        "vocab of 34 is whole on every device of mesh axis tensor, whose 4 do not divide it",
        "kv_heads of 2 is whole on every device of mesh axis tensor, whose 4 do not divide it",
        "mlp of 22 is whole on every device of mesh axis tensor, whose 4 do not divide it",
    }
    assert sharding.notes(boxed(), sharding.make_mesh(dict(fsdp=4, tensor=2))) == []


def test_experts_lie_apart():
    config = dataclasses.replace(CONFIG, experts=model.config.Experts(4, 2))
    where = sharding.of_tree(boxed(config=config), sharding.make_mesh(dict(data=2, expert=4)))
    specs = [leaf.spec for leaf in jax.tree.leaves(where) if "expert" in leaf.spec]
    assert [spec[1] for spec in specs].count("expert") == 3  # gate, up and down; and the router
    assert P(None, "fsdp", "expert") in specs


@pytest.mark.parametrize(
    ("sizes", "rows"),
    [(dict(data=8), [3]), (dict(data=2, fsdp=2, sequence=2), [2, 3]), (dict(tensor=8), range(8))],
)
def test_a_process_needs_the_rows_that_its_devices_hold(sizes, rows):
    """A process whose one device is the fourth of the mesh."""
    mesh = sharding.make_mesh(sizes)
    assert sharding.rows_here(mesh, 8, [mesh.devices.flat[3]]) == list(rows)
    assert sharding.rows_here(mesh, 8) == list(range(8))


def test_a_batch_has_its_rows_on_data_and_fsdp_and_its_tokens_on_sequence():
    mesh = sharding.make_mesh(dict(data=2, fsdp=2, sequence=2))
    assert sharding.batch(mesh).spec == P(("data", "fsdp"), "sequence")
    assert sharding.batch(mesh).shard_shape((8, 10)) == (2, 5)
    assert sharding.replicated(mesh).is_fully_replicated


def test_on_mesh_puts_the_constraints_in_force_and_only_while_it_runs():
    mesh = sharding.make_mesh(dict(data=8))
    x_BT = jnp.zeros((8, 3))

    def constrain(x_BT):
        return nn.with_logical_constraint(x_BT, ("batch", None))

    inside = sharding.on_mesh(jax.jit(constrain), mesh)(x_BT)
    assert inside.sharding.shard_shape(x_BT.shape) == (1, 3)
    assert jax.jit(lambda x_BT: constrain(x_BT))(x_BT).sharding.shard_shape(x_BT.shape) == (8, 3)
