"""Do imported weights give the logits and the gradients of the reference they were made for?

Without torch the reference is a committed golden, with torch (`oracle`) the library itself. What is asked, and how a
difference is measured, is in references.py and agreement.py; the goldens' maker is beside them.
"""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.config import Runtime
from tests import agreement, oracles, references
from tests.goldens import make_parity

NAMES = list(references.REFERENCES)
ROUNDED = ("gpt2", "bloom", "mixtral", "bart")  # in bfloat16, besides these:
ONE_OF_EACH_FAMILY = ("gemma2", "bert-masked", "t5-1.1", "lstm", "gru", "transformer-2017")


def golden(name):
    """Our config and parameters of a golden, its rows and its logits."""
    about, rows, logits = make_parity.read(name)
    reference = references.REFERENCES[name]
    config, params = agreement.load(reference, references.weights(reference, about["shapes"]))
    return config, params, rows, logits


def error(said, logits):
    """Of all our logits from those that a golden has kept."""
    return agreement.error([np.concatenate([make_parity.kept(one) for one in said])], [logits])


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_those_that_the_reference_once_gave(name):
    """Padded on either side in one batch; as a control, a change of any one parameter by 0.03 shows."""
    config, params, rows, logits = golden(name)
    for padding in ("left", "right"):
        said = agreement.logits(config, params, rows, padding)
        assert error(said, logits) < agreement.EXACT, padding
    leaves, treedef = jax.tree.flatten_with_path(params)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    unseen = set()
    for i, path in enumerate(paths):
        changed = [leaf for _, leaf in leaves]
        noise = np.random.RandomState(i).standard_normal(changed[i].shape).astype(np.float32)
        changed[i] += 0.03 * jnp.asarray(noise)
        said = agreement.logits(config, treedef.unflatten(changed), rows, "left")
        if error(said, logits) <= agreement.EXACT:
            unseen.add(path)
    # What is added to every key alike changes no attention, unless keys are turned afterwards.
    blind = {path for path in paths if path.endswith("key/bias")}
    assert unseen == (set() if config.position == "rope" else blind)


@pytest.mark.standard_promotion  # jax.nn.dot_product_attention needs it for bfloat16
@pytest.mark.parametrize("name", ROUNDED + ONE_OF_EACH_FAMILY)
def test_bfloat16_stays_within_its_bound_of_what_the_reference_once_gave(name):
    """benchmarks/parity.py measures the others, and what bfloat16 is in torch."""
    config, params, rows, logits = golden(name)
    said = agreement.logits(config, params, rows, "left", Runtime(dtype="bfloat16"))
    assert 1e-4 < error(said, logits) < agreement.ROUGH


def test_goldens_are_of_the_references_that_there_are_and_small():
    files = {path.stem: path for path in make_parity.HERE.glob("*.npz")}
    assert {name for name in NAMES} <= set(files)
    assert sum(files[name].stat().st_size for name in NAMES) < 350_000
    for name in NAMES:
        about, rows, logits = make_parity.read(name)
        reference = references.REFERENCES[name]
        assert re.fullmatch(r"torch 2\.\S+, transformers 5\.\S+", about["versions"])
        assert about["config"] == references.config_text(reference)
        for asked, expected in zip(rows, references.rows(reference), strict=True):
            assert {k: v.tolist() for k, v in asked.items()} == {
                k: v.tolist() for k, v in expected.items()
            }
        assert np.isfinite(logits).all() and logits.shape[-1] == reference.classes


def test_a_difference_is_the_largest_of_all_rows_and_nan_is_within_no_bound():
    theirs = [np.array([[2.0, -4.0]]), np.array([[1.0, 1.0], [0.0, 3.0]])]
    assert agreement.error(theirs, theirs) == 0
    assert agreement.error([theirs[0], theirs[1] + [[0, 0], [1, 0]]], theirs) == 0.25
    for spoilt in ([theirs[0] * np.nan, theirs[1]], [theirs[0], theirs[1] * np.nan]):
        assert not agreement.error(spoilt, theirs) < agreement.EXACT


def test_a_batch_is_padded_with_real_tokens_that_only_the_mask_tells_apart():
    rows = [{"tokens": np.array([7])}, {"tokens": np.array([8, 9, 10])}]
    (tokens_BT,), named = agreement.inputs(rows, "left")
    assert tokens_BT.tolist() == [[5, 5, 7], [8, 9, 10]]
    assert named["mask"].tolist() == [[False, False, True], [True, True, True]]
    (tokens_BT,), named = agreement.inputs(rows, "right")
    assert tokens_BT.tolist() == [[7, 5, 5], [8, 9, 10]]
    assert named["mask"].tolist() == [[True, False, False], [True, True, True]]


def test_weights_are_drawn_from_names_and_shapes_alone():
    """Literals, so that no golden can change its weights unnoticed."""
    reference = references.REFERENCES["bart"]
    shapes = {"a.weight": (2, 3), "norm.weight": (2,), "final_logits_bias": (1, 2)}
    drawn = references.weights(reference, shapes)
    assert drawn["a.weight"].shape == (2, 3) and drawn["a.weight"].dtype == np.float32
    np.testing.assert_allclose(drawn["a.weight"][0], LITERALS[0], atol=1e-6)
    np.testing.assert_allclose(drawn["norm.weight"], LITERALS[1], atol=1e-6)
    assert not drawn["final_logits_bias"].any()
    again = references.weights(reference, {"a.weight": (2, 3)}, seed="other")
    assert np.abs(again["a.weight"] - drawn["a.weight"]).min() > 1e-3


LITERALS = ([-0.789003, -0.099837, 0.577140], [1.167981, 1.614356])


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_the_reference_with_fresh_weights_and_rows(name):
    """Alone at its true length without a mask, and padded on either side; at one token, some, and the window."""
    reference = references.REFERENCES[name]
    tensors = references.weights(reference, oracles.shapes(reference), seed="fresh")
    theirs = oracles.build(reference, tensors)
    rows = references.rows(reference, seed=2)
    said = [oracles.logits(theirs, row).detach().numpy() for row in rows]
    config, params = agreement.load(reference, tensors)
    for padding in ("left", "right"):
        ours = agreement.logits(config, params, rows, padding)
        assert agreement.error(ours, said) < agreement.EXACT, padding
    ours = agreement.logits(config, params, rows[::2], "none")
    assert agreement.error(ours, said[::2]) < agreement.EXACT


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
def test_gradients_equal_the_references_tensor_for_tensor(name):
    """Theirs of rows that stand alone, ours of one padded batch; the control is another set of labels."""
    reference = references.REFERENCES[name]
    tensors = references.weights(reference, oracles.shapes(reference))
    theirs, rows = oracles.build(reference, tensors), references.rows(reference)
    labels = list(references.labels(reference, rows))
    oracles.losses([oracles.logits(theirs, row) for row in rows], labels).backward()
    expected = oracles.gradients(theirs)
    config, params = agreement.load(reference, tensors)
    ours = agreement.gradients(config, params, rows, labels)
    assert agreement.gradient_error(reference, config, ours, expected) < agreement.SLOPE
    others = agreement.gradients(config, params, rows, [(array + 1) % 5 for array in labels])
    assert agreement.gradient_error(reference, config, others, expected) > 0.1


@pytest.mark.oracle
@pytest.mark.parametrize(
    "name", [n for n in NAMES if "family" not in references.REFERENCES[n].config]
)
def test_what_transformers_writes_back_describes_the_same_model(name, tmp_path):
    """Its config.json has other keys than those on its hub: `rope_parameters`, `layer_types`, every default."""
    reference = references.REFERENCES[name]
    theirs = oracles.build(reference, references.weights(reference, oracles.shapes(reference)))
    theirs.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    names = oracles.shapes(reference)
    assert agreement.our_config(written, names) == agreement.config_of(reference, names)
