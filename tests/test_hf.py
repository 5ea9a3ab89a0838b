"""Do tensors become parameters and tensors again unchanged, and is one that does not fit told by name?"""

import jax
import numpy as np
import pytest

import model
from model import errors, hf
from tests import agreement, references
from tests.goldens import make_parity

# Nobody publishes files of the Transformer of 2017, and there is no table of its names.
NAMES = [name for name in references.REFERENCES if name != "transformer-2017"]


def imported(name):
    """A reference's architecture, our config of it, and its random tensors."""
    reference = references.REFERENCES[name]
    tensors = references.weights(reference, make_parity.read(name)[0]["shapes"])
    return reference.architecture, agreement.config_of(reference, tensors), tensors


@pytest.mark.parametrize("name", NAMES)
def test_export_undoes_import_and_the_tree_is_that_of_a_fresh_model(name):
    architecture, config, tensors = imported(name)
    params = hf.from_theirs(architecture, config, tensors)
    back = hf.to_theirs(architecture, config, params)
    assert back.keys() == tensors.keys()
    for each, array in tensors.items():
        np.testing.assert_array_equal(back[each], array, err_msg=each)
    fresh = jax.eval_shape(lambda: model.init(model.build(config), key=jax.random.key(0)))
    assert jax.tree.map(lambda leaf: leaf.shape, fresh) == jax.tree.map(np.shape, params)


@pytest.mark.parametrize(
    "name, lost",
    [
        ("llama", "model.layers.1.mlp.up_proj.weight"),
        ("mixtral", "model.layers.1.block_sparse_moe.experts.3.w2.weight"),
        ("bert-token", "classifier.bias"),
        ("t5-1.1", "lm_head.weight"),
        ("lstm", "rnn.bias_hh_l1"),
    ],
)
def test_a_tensor_that_is_missing_or_misshapen_is_named(name, lost):
    architecture, config, tensors = imported(name)
    with pytest.raises(errors.BadInput, match=f"^the weights lack '{lost}'; give the config.json "):
        hf.from_theirs(architecture, config, {k: v for k, v in tensors.items() if k != lost})
    with pytest.raises(
        errors.BadInput, match=rf"^tensor '{lost}' has shape \(3,\); the config asks for .*\d$"
    ):
        hf.from_theirs(architecture, config, {**tensors, lost: np.zeros(3, np.float32)})
