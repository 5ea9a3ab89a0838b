"""Who sees whom, what the cache holds, and what attention says of itself."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import model
from model import attention, cache, errors, layers, sharding
from model.config import Head, ModelConfig, Runtime, Scores
from tests import variants


def run(name, **kwargs):
    net = model.build(variants.CONFIGS[name])
    return jax.jit(lambda p, t: net.apply({"params": p}, t, **kwargs))(
        variants.params(name), variants.tokens()
    )


@pytest.mark.parametrize("name", ["llama", "gemma2", "bert"])
def test_attention_maps_are_distributions_over_what_a_token_may_see(name):
    aux, config = run(name)[1], variants.CONFIGS[name]
    assert len(aux["attention"]) == config.layers
    for layer, map_BNTS in enumerate(aux["attention"]):
        assert map_BNTS.shape == (2, config.heads, 17, 17)
        np.testing.assert_allclose(map_BNTS.sum(axis=-1), 1.0, atol=1e-5)
        seen = np.ones((17, 17), bool)
        if name != "bert":
            seen = np.tri(17, dtype=bool) & ~np.tri(17, k=-(config.window(layer) or 17), dtype=bool)
        assert ((np.asarray(map_BNTS) > 0) == seen).all()


def test_an_encoder_decoder_shows_all_three_kinds_of_maps():
    net = model.build(variants.CONFIGS["t5"])
    source_BS, target_BT = variants.tokens(11), variants.tokens(5)
    _, aux = jax.jit(lambda p: net.apply({"params": p}, source_BS, target_BT))(
        variants.params("t5")
    )
    shapes = {name: aux[name][0].shape for name in aux if name.endswith("attention")}
    assert shapes == {
        "attention": (2, 3, 5, 5),
        "cross_attention": (2, 3, 5, 11),
        "encoder_attention": (2, 3, 11, 11),
    }
    np.testing.assert_allclose(aux["cross_attention"][1].sum(axis=-1), 1.0, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_unused_aux_costs_nothing(name):
    """Gemma's capped attention is made of its map; LLaMA's map is made only to be looked at."""
    net, params = model.build(variants.CONFIGS[name]), variants.params(name)

    def flops(function):
        lowered = jax.jit(function).lower(params, variants.tokens())
        return lowered.compile(variants.FAST).cost_analysis()["flops"]

    used = flops(lambda p, t: net.apply({"params": p}, t))
    unused = flops(lambda p, t: net.apply({"params": p}, t)[0])
    bare = flops(lambda p, t: net.apply({"params": p}, t, method="features")[0])
    assert bare <= unused
    assert unused < used or name == "gemma2"


def test_dropout_needs_training_and_follows_its_key():
    config, params = variants.CONFIGS["gpt2"], variants.params("gpt2")
    net = model.build(config, Runtime(dropout=0.5))

    @jax.jit
    def trained(key):
        rngs = {"dropout": key}
        return net.apply({"params": params}, variants.tokens(), train=True, rngs=rngs)[0]

    first, again, other = (trained(jax.random.key(seed)) for seed in (0, 0, 1))
    assert (first == again).all() and (first != other).any()
    still = variants.logits(config, params, variants.tokens(), runtime=net.runtime)
    assert (still == variants.logits(config, params, variants.tokens())).all()


@pytest.mark.parametrize("name", ["t5", "transformer", "lstm", "gru"])
def test_dropout_reaches_the_encoder_and_every_recurrent_layer(name):
    config = variants.CONFIGS[name]
    net = model.build(config, Runtime(dropout=0.5))
    sides = [variants.tokens()] * (2 if config.family == "encoder_decoder" else 1)

    @jax.jit
    def trained(params, key):
        return net.apply({"params": params}, *sides, train=True, rngs={"dropout": key})[1]

    first, again, other = (trained(variants.params(name), jax.random.key(i)) for i in (0, 0, 1))
    if name in ("lstm", "gru"):
        for state in (first["features"], other["features"]):
            assert 0.4 < (state == 0).mean() < 0.6
    else:
        first, again, other = (aux["encoder_features"] for aux in (first, again, other))
        assert (first == again).all() and (first != other).any()


def test_grouped_heads_equal_full_heads_with_repeated_keys_and_values():
    grouped = variants.CONFIGS["llama"]
    full = dataclasses.replace(grouped, kv_heads=6)
    params = variants.params("llama")

    def repeat(path, leaf):
        return jnp.repeat(leaf, 3, axis=1) if path[-2].key in ("key", "value") else leaf

    wide = jax.tree_util.tree_map_with_path(repeat, params)
    expected = variants.logits(grouped, params, variants.tokens())
    np.testing.assert_allclose(variants.logits(full, wide, variants.tokens()), expected, atol=1e-5)


def test_a_window_as_long_as_the_text_changes_nothing_and_a_shorter_one_does():
    config, params, tokens = (
        variants.CONFIGS["llama"],
        variants.params("llama"),
        variants.tokens(),
    )
    everything = variants.logits(config, params, tokens)
    for window, same in ((17, True), (16, False)):
        windowed = variants.logits(dataclasses.replace(config, windows=(window,)), params, tokens)
        assert bool((windowed == everything).all()) == same
        assert (windowed[:, :16] == everything[:, :16]).all()


def test_many_heads_are_computed_each_for_itself():
    """128 heads of size 2, of which the second half does not count: the same as the first 64 alone."""
    sizes = dict(vocab_size=31, context_length=13, layers=1, width=14, head_size=2)
    many, half = ModelConfig(heads=128, **sizes), ModelConfig(heads=64, **sizes)
    params = jax.jit(lambda: model.init(model.build(many), key=jax.random.key(3)))()
    attention_of = params["stack"]["layers_0"]["attention"]
    out = attention_of["out"]["weight"]
    attention_of["out"]["weight"] = out.at[64:].set(0.0)
    tokens = variants.tokens(11) % 31
    expected = variants.logits(many, params, tokens)
    for name in ("query", "key", "value"):
        attention_of[name]["weight"] = attention_of[name]["weight"][:, :64]
    attention_of["out"]["weight"] = out[:64]
    np.testing.assert_allclose(variants.logits(half, params, tokens), expected, atol=1e-6)


def test_a_prefix_of_all_tokens_makes_a_decoder_an_encoder():
    """By ALiBi, whose bias grows with the distance in either direction."""
    decoder, params = variants.CONFIGS["bloom"], variants.params("bloom")
    encoder = dataclasses.replace(decoder, family="encoder_only", head=Head("none"))
    weights = {name: params[name] for name in ("embedding", "stack")}
    expected = variants.logits(encoder, weights, variants.tokens())
    whole = run("bloom", prefix=jnp.array([17, 17]))[1]["features"]
    np.testing.assert_allclose(whole, expected, atol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_fresh_weights_give_scores_of_deviation_one_whatever_multiplies_them(scale):
    """T5's multiplier is 1, LLaMA's `head_size^-0.5`: heads of 64 tell the two apart by a factor of 8."""
    config = ModelConfig(
        position="none",
        scores=Scores(scale),
        vocab_size=31,
        context_length=7,
        layers=1,
        width=64,
        heads=16,
        head_size=64,
    )
    part = attention.Attention(config, Runtime())
    x_BTD = jax.random.normal(jax.random.key(5), (2, 7, 64))
    sight = attention.look(7, causal=False)

    @jax.jit
    def maps(key):
        return part.init_with_output(key, x_BTD, sight)[0][1]["attention"]

    logs = jnp.log(maps(jax.random.key(6)))
    assert 0.8 < (logs - logs.mean(axis=-1, keepdims=True)).std() / (6 / 7) ** 0.5 < 1.25


def test_a_soft_cap_bounds_scores_and_nearly_leaves_small_ones():
    scores = jnp.array([-1e9, -0.01, 0.0, 0.01, 50.0])
    expected = [-5.0, -0.01, 0.0, 0.01, 5.0]
    np.testing.assert_allclose(attention.soft_cap(scores, 5.0), expected, atol=1e-6)
    assert (attention.soft_cap(scores, 0.0) == scores).all()


def test_worked_rows_of_the_docstrings():
    line = jnp.array([[0, 1, 2]])
    rows = attention.before(line, line)[0, 0].astype(int).tolist()
    assert rows == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    rows = attention.before(line, line, jnp.array([2]))[0, 0].astype(int).tolist()
    assert rows == [[1, 1, 0], [1, 1, 0], [1, 1, 1]]
    near = attention.within(attention.look(3, causal=True), 2)
    assert near.sees[0, 0, 2].astype(int).tolist() == [0, 1, 1]
    parts = jnp.array([[1, 1, 2]])
    rows = attention.same_segment(parts, parts)[0, 0].astype(int).tolist()
    assert rows == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    weights = layers.routing(jnp.array([[[0.0, np.log(3.0), -9.0]]]), 2)
    np.testing.assert_allclose(weights[0, 0], [0.25, 0.75, 0.0], atol=1e-6)


def test_worked_rows_of_the_cache():
    slots = jnp.array([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]])[:, None, :, None]
    new = jnp.array([[8.0], [9.0]])[:, :, None, None]
    written = cache.append(slots, new, jnp.array([2, 0]))
    assert written[:, 0, :, 0].tolist() == [[1.0, 2.0, 8.0], [9.0, 0.0, 0.0]]
    pair = jnp.array([[5.0, 6.0], [7.0, 8.0]])[:, :, None, None]
    written = cache.append(slots, pair, jnp.array([2, 1]))
    assert written[:, 0, :, 0].tolist() == [[1.0, 2.0, 5.0], [0.0, 7.0, 8.0]]
    slots = slots.swapaxes(1, 2)
    new = jnp.array([[7.0, 8.0, 9.0]])[:, :, None, None]
    turned = cache.append_ring(slots[:1], new, jnp.array([2]), jnp.array([2]))
    assert turned[0, :, 0, 0].tolist() == [8.0, 2.0, 7.0]
    full = cache.append_ring(slots[:1], new, jnp.array([2]), jnp.array([3]))
    assert full[0, :, 0, 0].tolist() == [8.0, 9.0, 7.0]
    kept = cache.append_ring(slots[:1], new, jnp.array([2]), jnp.array([0]))
    assert kept[0, :, 0, 0].tolist() == [1.0, 2.0, 0.0]


@pytest.mark.parametrize("name", ["llama", "t5", "lstm", "gru"])
def test_a_cache_reorders_rows_and_rolls_back_lengths(name):
    memory = cache.init(variants.CONFIGS[name], 2, 5, source=3)
    memory = memory.replace(
        lengths_B=jnp.array([4, 2]), keys=(memory.keys[0].at[1].set(7.0), *memory.keys[1:])
    )
    swapped = cache.reorder(memory, jnp.array([1, 1]))
    assert swapped.lengths_B.tolist() == [2, 2]
    assert (swapped.keys[0] == 7.0).all()
    assert cache.roll_back(memory, jnp.array([3, 3])).lengths_B.tolist() == [3, 2]


@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom", "bert", "t5"])
def test_blocks_of_queries_give_the_logits_and_gradients_of_all_at_once(name, monkeypatch):
    """Of packed documents behind padding: grouped heads, caps and windows, ALiBi, both ways, and across."""
    monkeypatch.setattr(attention, "BLOCK", 5)
    segments_BT = jnp.array([[1] * 6 + [2] * 9 + [0] * 2, [1] * 17], jnp.int32)
    inputs = (variants.tokens(),) * (2 if name == "t5" else 1)
    looks = {} if name == "t5" else {"segments": segments_BT, "mask": segments_BT > 0}

    def measured(kind):
        net = model.build(variants.CONFIGS[name], Runtime(attention=kind))

        def loss(params):
            logits_BTV, _ = net.apply({"params": params}, *inputs, **looks)
            return jnp.square(logits_BTV).mean(), logits_BTV

        return jax.jit(jax.grad(loss, has_aux=True))(variants.params(name))

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max() + 1e-3)),
        measured("blocks"),
        measured("xla"),
    )


def test_blocks_store_no_map_and_skip_what_nobody_sees():
    """Of a causal row of 8 blocks no [T, T] array is made, but for the mask that is given."""
    rows, length = 2, 8 * attention.BLOCK
    sight = attention.look(length, causal=True)
    q_BTNH = jnp.ones((rows, length, 1, 8))

    def compiled(kind):
        def total(q_BTNH):
            return attention.attend(q_BTNH, q_BTNH, q_BTNH, sight, 1.0, 0.0, kind).sum()

        return jax.jit(jax.grad(total)).lower(q_BTNH).compile(variants.FAST)

    blocks, whole = compiled("blocks"), compiled("xla")
    temp = [program.memory_analysis().temp_size_in_bytes for program in (blocks, whole)]
    assert temp[0] < 0.5 * temp[1]
    assert f"{length},{length}]" not in blocks.as_text()


@pytest.mark.parametrize(("axis", "blocks"), [("data", True), ("sequence", False)])
def test_rows_whose_tokens_lie_on_several_devices_are_not_cut(axis, blocks, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 3)
    sight, parts = attention.look(8, causal=True), []
    monkeypatch.setattr(attention, "_cut", lambda *args: parts.append(args))
    x_BTNH = jax.ShapeDtypeStruct((2, 8, 1, 2), jnp.float32)
    mesh = sharding.make_mesh({axis: 2}, jax.devices()[:2])
    attend = sharding.on_mesh(
        lambda: jax.eval_shape(
            lambda x: attention.attend(x, x, x, sight, 1.0, 0.0, "auto"), x_BTNH
        ),
        mesh,
    )
    monkeypatch.setattr(attention, "_attend", lambda kind, scale, cap, q, *others: q)
    attend()
    assert bool(parts) == blocks


def test_cudnn_needs_bfloat16():
    message = (
        "runtime.attention is 'cudnn', which computes in bfloat16, and runtime.dtype is 'float32'"
    )
    with pytest.raises(errors.BadInput, match=message):
        Runtime(attention="cudnn")
