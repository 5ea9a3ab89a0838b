"""Does a mesh leave the loss and every gradient of each family as they are?"""

import dataclasses

import numpy as np
import pytest

from tests import meshes, variants

# Every family, every kind of mesh, and dimensions that a mesh cannot split; `make sharding` has the whole table.
CELLS = [
    ("gemma2", "fsdp 2, sequence 2, tensor 2"),
    ("mixtral", "data 4, expert 2"),
    ("bert", "data 2, fsdp 2, tensor 2"),
    ("t5", "data 2, fsdp 2, tensor 2"),
    ("lstm", "fsdp 8"),
    ("gru", "data 2, fsdp 2, tensor 2"),
    ("multi_query", "fsdp 2, tensor 4"),
]


@pytest.mark.parametrize(("name", "mesh"), CELLS)
def test_a_mesh_leaves_loss_and_gradients(name, mesh):
    config = meshes.divisible(variants.CONFIGS[name])
    loss, gradient = meshes.differences(config, meshes.MESHES[mesh])
    assert loss <= meshes.LOSS_BOUND
    assert gradient <= meshes.GRADIENT_BOUND


def test_what_a_mesh_cannot_split_is_whole_and_changes_nothing():
    """101 pieces, a width of 22 and 3 heads on axes of 2 and 4."""
    config = dataclasses.replace(variants.CONFIGS["mixtral"], context_length=32)
    loss, gradient = meshes.differences(config, dict(fsdp=4, tensor=2))
    assert loss <= meshes.LOSS_BOUND
    assert gradient <= meshes.GRADIENT_BOUND


@pytest.mark.standard_promotion
def test_training_on_a_mesh_has_the_losses_of_one_device():
    """Sharded initialisation, dropout, accumulation, AdamW."""
    config = meshes.divisible(variants.CONFIGS["qwen3"])
    expected = meshes.training(config, dict(data=1), devices=1)
    actual = meshes.training(config, meshes.MESHES["fsdp 2, sequence 2, tensor 2"])
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    assert len(set(expected)) == meshes.STEPS
