"""What must hold for every model, whatever it is made of: one test for each promise, over all of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import model
from model import blocks, cache
from model.config import Runtime
from tests import variants

every = pytest.mark.parametrize("name", variants.CONFIGS)
causal = pytest.mark.parametrize("name", variants.CAUSAL)
attentive = pytest.mark.parametrize("name", variants.ATTENTIVE)


def say(name, tokens_BT, **looks):
    return np.asarray(
        variants.logits(variants.CONFIGS[name], variants.params(name), tokens_BT, **looks)
    )


def source_unchanged(name):
    """A target token feeds the source too (`variants.logits`), so a change must keep its image: ids modulo 101."""
    return variants.CONFIGS[name].family == "encoder_decoder"


@every
def test_a_token_moves_what_may_see_it_and_nothing_else(name):
    tokens_BT, looks = variants.tokens(), variants.ones()
    if source_unchanged(name):
        net = model.build(variants.CONFIGS[name])
        source_BT = variants.tokens(11)
        run = jax.jit(
            lambda p, t: net.apply({"params": p}, source_BT, t)[0], compiler_options=variants.FAST
        )
        before, after = (
            run(variants.params(name), t) for t in (tokens_BT, tokens_BT.at[0, 6].add(1))
        )
    else:
        before = say(name, tokens_BT, **looks)
        after = say(name, tokens_BT.at[0, 6].set((tokens_BT[0, 6] + 1) % 101), **looks)
    moved_BT = np.abs(np.asarray(after) - np.asarray(before)).max(axis=-1) > 0
    assert not moved_BT[1].any(), "another row"
    assert moved_BT[0, 6]
    if name in variants.CAUSAL:
        assert not moved_BT[0, :6].any(), "an earlier token"
    else:
        assert moved_BT[0].all()
    assert moved_BT[0, 7:].all()


@every
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(name, side):
    tokens_BT = variants.tokens()
    expected = say(name, tokens_BT)
    pads = (5, 0) if side == "left" else (0, 5)
    padded_BT = jnp.pad(tokens_BT, ((0, 0), pads), constant_values=3)
    mask_BT = jnp.pad(jnp.ones_like(tokens_BT, bool), ((0, 0), pads))
    inside = slice(pads[0], pads[0] + 17)
    actual = say(name, padded_BT, mask=mask_BT)[:, inside]
    np.testing.assert_allclose(actual, expected, atol=3e-5)
    one_BT = jnp.ones_like(padded_BT)
    actual = say(name, padded_BT, mask=mask_BT, segments=one_BT)[:, inside]
    np.testing.assert_allclose(actual, expected, atol=3e-5, err_msg="of one segment")
    if side == "left":
        seen = say(name, padded_BT, mask=jnp.ones_like(mask_BT))[:, inside]
        assert np.abs(seen - expected).max() > 1e-3, "the control must differ"


@causal
def test_a_prefix_is_computed_as_if_nothing_followed(name):
    """Of a target: its source is the same."""
    tokens_BT, looks = variants.tokens(), variants.ones()
    whole = say(name, tokens_BT, **looks)
    short = {**looks, "mask": looks["mask"].at[:, 9:].set(False)}
    if source_unchanged(name):
        net = model.build(variants.CONFIGS[name])
        run = jax.jit(
            lambda p, t, mask: net.apply({"params": p}, tokens_BT, t, target_mask=mask)[0],
            compiler_options=variants.FAST,
        )
        whole = run(variants.params(name), tokens_BT, looks["mask"])
        part = run(variants.params(name), tokens_BT.at[:, 9:].set(0), short["mask"])
    else:
        part = say(name, tokens_BT.at[:, 9:].set(0), **short)
    np.testing.assert_allclose(part[:, :9], whole[:, :9], atol=3e-5)


@attentive
def test_a_prefix_language_model_looks_both_ways_within_its_prefix_and_back_from_behind_it(name):
    tokens_BT, prefix_B = variants.tokens(), jnp.array([5, 0])
    mask_BT = jnp.ones((2, 17), bool)
    before = say(name, tokens_BT, mask=mask_BT, prefix=prefix_B)

    def moved_by(column):
        changed_BT = tokens_BT.at[:, column].set((tokens_BT[:, column] + 1) % 101)
        after = say(name, changed_BT, mask=mask_BT, prefix=prefix_B)
        return np.abs(after - before).max(axis=-1) > 0

    within, behind = moved_by(4), moved_by(5)
    assert within[0].all(), "all of the prefix, and all behind it"
    assert not behind[0, :5].any() and behind[0, 5:].all()
    assert not within[1, :4].any(), "a row without a prefix is causal"
    padded_BT = jnp.pad(tokens_BT, ((0, 0), (3, 0)), constant_values=3)
    mask_BT = jnp.pad(mask_BT, ((0, 0), (3, 0)))
    padded = say(name, padded_BT, mask=mask_BT, prefix=prefix_B)
    np.testing.assert_allclose(padded[:, 3:], before, atol=3e-5)


@attentive
def test_a_prefix_that_is_appended_to_a_cache_at_once_is_seen_both_ways(name):
    config, tokens_BT, prefix_B = variants.CONFIGS[name], variants.tokens(), jnp.array([5, 0])
    net, memory = model.build(config), cache.init(config, 2, 19)
    run = jax.jit(
        lambda p, prefix_B: net.apply({"params": p}, tokens_BT, prefix=prefix_B, cache=memory)[0],
        compiler_options=variants.FAST,
    )
    actual = run(variants.params(name), prefix_B)
    expected = say(name, tokens_BT, mask=jnp.ones((2, 17), bool), prefix=prefix_B)
    np.testing.assert_allclose(actual, expected, atol=3e-5)


@pytest.mark.parametrize("name", ["gpt2", "bert", "lstm", "gru"])
def test_padding_between_tokens_changes_nothing_either(name):
    tokens_BT = variants.tokens()
    expected = say(name, tokens_BT)
    real_BT = jnp.array([[t not in range(8, 13) for t in range(22)]] * 2)
    padded_BT = jnp.insert(tokens_BT, jnp.array([8] * 5), 3, axis=1)
    actual = say(name, padded_BT, mask=real_BT)[:, np.asarray(real_BT[0])]
    np.testing.assert_allclose(actual, expected, atol=3e-5)


@every
def test_packed_texts_never_see_each_other(name):
    tokens_BT, looks = variants.tokens(), variants.ones()
    together = {**looks, "segments": jnp.array([[1] * 6 + [2] * 11, [1] * 17])}
    packed = say(name, tokens_BT, **together)
    whole = say(name, tokens_BT, **looks)
    np.testing.assert_allclose(packed[1], whole[1], atol=3e-5)
    assert np.abs(packed[0, 6:] - whole[0, 6:]).max() > 1e-3, "the control must differ"
    for part in (slice(0, 6), slice(6, 17)):
        alone = (
            jnp.zeros((2, 17), jnp.int32).at[:, : part.stop - part.start].set(tokens_BT[:, part])
        )
        mask_BT = jnp.arange(17)[None] < jnp.full((2, 1), part.stop - part.start)
        expected = say(name, alone, **{**looks, "mask": mask_BT})[0, : part.stop - part.start]
        np.testing.assert_allclose(packed[0, part], expected, atol=3e-5)


@functools.cache
def parts(name):
    """Compiled `read` and `extend` of a family."""
    net = model.build(variants.CONFIGS[name])
    return tuple(
        jax.jit(functools.partial(net.apply, method=name), compiler_options=variants.FAST)
        for name in ("read", "extend")
    )


@causal
def test_reading_and_extending_equal_one_full_forward_pass(name):
    """For rows of unequal length that share a cache, for prompts read at once and token by token."""
    config, params, tokens_BT = variants.CONFIGS[name], variants.params(name), variants.tokens()
    read, extend = parts(name)
    weights = {"params": params}
    memory, counts_B = cache.init(config, 2, 19, source=17), jnp.array([11, 4])
    if config.family == "encoder_decoder":
        source_BT, source_mask = (tokens_BT * 7 + 3) % 101, jnp.ones((2, 17), bool)
        memory = read(weights, source_BT, source_mask, memory)
        assert memory.lengths_B.tolist() == [0, 0]
        memory = extend(weights, tokens_BT, jnp.arange(17)[None] < counts_B[:, None], memory)[1]
    else:
        memory = read(weights, tokens_BT, jnp.arange(17)[None] < counts_B[:, None], memory)
    expected = say(name, tokens_BT)
    for _ in range(5):
        assert memory.lengths_B.tolist() == counts_B.tolist()
        newest_BT = jnp.take_along_axis(tokens_BT, counts_B[:, None], axis=1)
        logits_BTV, memory = extend(weights, newest_BT, jnp.ones((2, 1), bool), memory)
        for row, place in enumerate(counts_B.tolist()):
            np.testing.assert_allclose(logits_BTV[row, 0], expected[row, place], atol=3e-5)
        counts_B = counts_B + 1
    rolled = cache.roll_back(memory, counts_B - 3)
    newest_BT = jnp.take_along_axis(tokens_BT, counts_B[:, None] - 3, axis=1)
    logits_BTV, _ = extend(weights, newest_BT, jnp.ones((2, 1), bool), rolled)
    for row, place in enumerate((counts_B - 3).tolist()):
        np.testing.assert_allclose(logits_BTV[row, 0], expected[row, place], atol=3e-5)
    idle = extend(weights, newest_BT, jnp.zeros((2, 1), bool), memory)[1]
    assert idle.lengths_B.tolist() == counts_B.tolist()


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "neox", "mixtral", "bert", "t5", "lstm"])
def test_scan_and_remat_change_neither_loss_nor_gradient(name):
    config, params, tokens_BT = variants.CONFIGS[name], variants.params(name), variants.tokens()
    remat = "dots" if len(name) % 2 else "full"

    def loss(params, runtime):
        logits = variants.logits.__wrapped__(config, params, tokens_BT, runtime=runtime)
        return -jax.nn.log_softmax(logits)[..., 2].mean()

    def gradient(runtime):
        function = jax.value_and_grad(functools.partial(loss, runtime=runtime))
        return jax.jit(function, compiler_options=variants.FAST)

    expected, expected_grad = gradient(Runtime())(params)
    actual, grad = gradient(Runtime(scan=True, remat=remat))(blocks.stack_layers(params))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected_grad))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * scale),
        blocks.unstack_layers(grad),
        expected_grad,
    )


@every
def test_stack_layers_undoes_unstack_layers(name):
    params = variants.params(name)
    back = blocks.unstack_layers(blocks.stack_layers(params))
    assert jax.tree.structure(back) == jax.tree.structure(params)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), back, params))


@every
def test_scanned_weights_are_the_unrolled_ones_stacked(name):
    config = variants.CONFIGS[name]
    plain, scanned = (
        jax.eval_shape(lambda run=run: model.init(model.build(config, run), key=jax.random.key(0)))
        for run in (Runtime(), Runtime(scan=True))
    )
    stacked = jax.eval_shape(blocks.stack_layers, plain)
    assert jax.tree.structure(stacked) == jax.tree.structure(scanned)
    assert jax.tree.all(jax.tree.map(lambda a, b: a.shape == b.shape, stacked, scanned))


@pytest.mark.parametrize("name", sorted({*variants.CONFIGS} - {"mixtral"}))  # routing may flip
@pytest.mark.standard_promotion  # jax's own attention mixes types in bfloat16
def test_bfloat16_stays_near_float32(name):
    expected = say(name, variants.tokens())
    actual = say(name, variants.tokens(), runtime=Runtime(dtype="bfloat16"))
    assert actual.dtype == np.float32
    assert 1e-5 < np.abs(actual - expected).max() / np.abs(expected).max() < 0.08


def test_a_fresh_lstm_has_open_forget_gates_and_a_table_of_a_tenth():
    config = model.ModelConfig(50, 16, 2, 64, family="lstm", tied=True)
    params = model.init(model.build(config), key=jax.random.key(0))
    for layer in params["stack"].values():
        np.testing.assert_array_equal(
            layer["input"]["bias"], np.repeat([0, 1, 0, 0], 64).reshape(4, 64)
        )
        assert not layer["recurrent"]["bias"].any()
    assert np.asarray(params["embedding"]["weight"]).std() == pytest.approx(0.1, rel=0.05)
