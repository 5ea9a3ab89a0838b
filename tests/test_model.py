"""What must hold for every model: causality, caching, padding, packing, layout; and parity with the references."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import model
from model import attention, blocks, cache, errors, positions
from model.config import ModelConfig, Runtime

SIZES = dict(vocab_size=101, context_length=31, layers=3, width=44, hidden=67)
GPT2 = dict(
    position="learned",
    norm="layer",
    activation="gelu_tanh",
    gated=False,
    bias=True,
    tied=True,
    heads=4,
    **SIZES,
)
LLAMA = dict(heads=6, kv_heads=2, head_size=14, **SIZES)
CONFIGS = {
    "gpt2": ModelConfig(**GPT2),
    "llama": ModelConfig(**LLAMA),
    "sinusoidal": ModelConfig(**{**GPT2, "position": "sinusoidal"}),
}


@pytest.fixture(scope="module", params=CONFIGS)
def lm(request):
    """(net, params, tokens [2, 17]): every weight is random and large enough to matter."""
    net = model.build(CONFIGS[request.param])
    params = model.init(net, key=jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    params = tree.unflatten(
        [x + 0.1 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    )
    return net, params, jax.random.randint(jax.random.key(2), (2, 17), 0, 101)


def apply(net, params, tokens, **kwargs):
    """`net.apply`, compiled: operation by operation it would take a hundred times as long."""
    return jitted(net)({"params": params}, tokens, **kwargs)


@functools.cache
def jitted(net):
    return jax.jit(net.apply, static_argnames=("method", "train"))


def logits_of(lm, tokens, **kwargs):
    net, params, _ = lm
    return apply(net, params, tokens, **kwargs)[0]


def test_logits_at_a_position_depend_on_it_and_on_earlier_positions_only(lm):
    net, params, tokens = lm
    table = params["embedding"]["weight"]
    once = jnp.arange(17)[None] % 101

    def score(table):
        changed = {**params, "embedding": {"weight": table}}
        features, _ = apply(net, changed, once, method="features")
        return jnp.sum(features[0, 5] * jnp.arange(44.0))

    reach = jnp.abs(jax.jit(jax.grad(score))(table)).sum(axis=1)[:17]
    assert (reach[:6] > 0).all()
    assert (reach[6:] == 0).all()


@pytest.mark.parametrize("prefill", [1, 5, 16, 17])
def test_cached_decoding_equals_the_full_forward_pass_for_any_prefill(lm, prefill):
    net, params, tokens = lm
    expected = logits_of(lm, tokens)
    memory, parts = cache.init(net.config, 2, 19), []
    for start, stop in [(0, prefill), *((i, i + 1) for i in range(prefill, 17))]:
        logits, aux = apply(net, params, tokens[:, start:stop], cache=memory)
        memory = aux["cache"]
        parts.append(logits)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), expected, atol=1e-5)
    assert memory.lengths_B.tolist() == [17, 17]


def test_prompts_of_unequal_length_share_a_prefill(lm):
    net, params, tokens = lm
    mask = jnp.arange(11)[None] < jnp.array([[11], [4]])
    _, aux = apply(net, params, tokens[:, :11], mask=mask, cache=cache.init(net.config, 2, 16))
    assert aux["cache"].lengths_B.tolist() == [11, 4]
    following = jnp.array([[7], [9]])
    logits, _ = apply(net, params, following, cache=aux["cache"])
    for row, length in enumerate([11, 4]):
        alone = jnp.concatenate([tokens[row, :length], following[row]])[None]
        np.testing.assert_allclose(logits[row, 0], logits_of(lm, alone)[0, -1], atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(lm, side):
    net, params, tokens = lm
    expected = logits_of(lm, tokens)
    pads = (5, 0) if side == "left" else (0, 5)
    padded = jnp.pad(tokens, ((0, 0), pads), constant_values=3)
    mask = jnp.pad(jnp.ones_like(tokens, bool), ((0, 0), pads))
    actual = logits_of(lm, padded, mask=mask)[:, pads[0] : pads[0] + 17]
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    if side == "left":
        unmasked = logits_of(lm, padded)[:, 5:]
        assert jnp.abs(unmasked - expected).max() > 1e-3, "the control must differ"


def test_packed_documents_never_see_each_other(lm):
    _, _, tokens = lm
    segments = jnp.array([[1] * 6 + [2] * 11, [1] * 17])
    packed = logits_of(lm, tokens, segments=segments)
    np.testing.assert_allclose(packed[0, :6], logits_of(lm, tokens[:1, :6])[0], atol=1e-5)
    np.testing.assert_allclose(packed[0, 6:], logits_of(lm, tokens[:1, 6:])[0], atol=1e-5)
    assert jnp.abs(packed[0, 6:] - logits_of(lm, tokens)[0, 6:]).max() > 1e-3, (
        "the control must differ"
    )


@pytest.mark.parametrize(("unroll", "remat"), [(1, "none"), (3, "none"), (2, "dots"), (1, "full")])
def test_scan_unroll_and_remat_change_neither_loss_nor_gradient(lm, unroll, remat):
    net, params, tokens = lm
    scanned = model.build(net.config, Runtime(scan=True, unroll=unroll, remat=remat))

    def loss(net, params):
        logits, _ = apply(net, params, tokens)
        return -jax.nn.log_softmax(logits)[:, :, 3].mean()

    expected, expected_grad = jax.jit(jax.value_and_grad(lambda p: loss(net, p)))(params)
    actual, grad = jax.jit(jax.value_and_grad(lambda p: loss(scanned, p)))(
        blocks.stack_layers(params)
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        blocks.unstack_layers(grad),
        expected_grad,
    )


def test_stack_layers_undoes_unstack_layers(lm):
    _, params, _ = lm
    stacked = blocks.stack_layers(params)
    assert stacked["stack"]["layers"]["attention"]["query"]["weight"].shape[0] == 3
    back = blocks.unstack_layers(stacked)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), back, params))


def test_attention_maps_are_distributions_over_what_a_token_may_see(lm):
    net, params, tokens = lm
    _, aux = apply(net, params, tokens)
    assert len(aux["attention"]) == 3
    for map_BNTS in aux["attention"]:
        assert map_BNTS.shape == (2, net.config.heads, 17, 17)
        np.testing.assert_allclose(map_BNTS.sum(axis=-1), 1.0, atol=1e-5)
        assert (jnp.triu(map_BNTS, 1) == 0).all()


def test_unused_aux_costs_nothing(lm):
    net, params, tokens = lm

    def flops(function):
        return jax.jit(function).lower(params, tokens).compile().cost_analysis()["flops"]

    used = flops(lambda p, t: net.apply({"params": p}, t))
    unused = flops(lambda p, t: net.apply({"params": p}, t)[0])
    bare = flops(lambda p, t: net.apply({"params": p}, t, method="features")[0])
    assert bare <= unused < used


def test_dropout_needs_training_and_follows_its_key(lm):
    net, params, tokens = lm
    dropping = model.build(net.config, Runtime(dropout=0.5))

    def run(seed, train=True):
        rngs = {"dropout": jax.random.key(seed)}
        return apply(dropping, params, tokens, train=train, rngs=rngs)[0]

    assert (run(0) == run(0)).all()
    assert (run(0) != run(1)).any()
    assert (run(0, train=False) == logits_of(lm, tokens)).all()


@pytest.mark.standard_promotion  # jax's own attention mixes types in bfloat16
def test_bfloat16_stays_near_float32(lm):
    net, params, tokens = lm
    half = model.build(net.config, Runtime(dtype="bfloat16"))
    logits, _ = apply(half, params, tokens)
    expected = logits_of(lm, tokens)
    assert logits.dtype == jnp.float32
    assert 1e-5 < jnp.abs(logits - expected).max() / jnp.abs(expected).max() < 0.05


def test_grouped_heads_equal_full_heads_with_repeated_keys_and_values():
    grouped = CONFIGS["llama"]
    full = dataclasses.replace(grouped, kv_heads=6)
    net = model.build(grouped)
    params = model.init(net, key=jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(2), (2, 7), 0, 101)

    def repeat(path, leaf):
        return jnp.repeat(leaf, 3, axis=1) if path[-2].key in ("key", "value") else leaf

    wide = jax.tree_util.tree_map_with_path(repeat, params)
    expected, _ = apply(net, params, tokens)
    actual, _ = apply(model.build(full), wide, tokens)
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_rotary_scores_depend_on_distance_alone():
    key_q, key_k = jax.random.split(jax.random.key(0))
    q, k = jax.random.normal(key_q, (1, 1, 1, 14)), jax.random.normal(key_k, (1, 1, 1, 14))

    def score(at_q, at_k):
        turned_q = positions.rotate(q, jnp.array([[at_q]]), 10_000.0)
        return jnp.sum(turned_q * positions.rotate(k, jnp.array([[at_k]]), 10_000.0))

    np.testing.assert_allclose(score(9, 4), score(25, 20), rtol=1e-4)
    assert abs(score(9, 4) - score(9, 5)) > 1e-3


def test_sinusoidal_table_is_that_of_the_paper():
    table = positions.sinusoidal(jnp.array([[0, 1, 7]]), 6)[0]
    for row, position in enumerate([0, 1, 7]):
        for entry in range(6):
            angle = position / 10_000 ** (2 * (entry // 2) / 6)
            expected = np.cos(angle) if entry % 2 else np.sin(angle)
            np.testing.assert_allclose(table[row, entry], expected, atol=1e-6)


def test_worked_rows_of_the_docstrings():
    assert positions.from_mask(jnp.array([[0, 0, 1, 1, 1]], bool)).tolist() == [[0, 0, 0, 1, 2]]
    assert positions.from_segments(jnp.array([[1, 1, 2, 2, 2, 0]])).tolist() == [[0, 1, 0, 1, 2, 0]]
    causal = attention.causal(jnp.array([[0, 1, 2]]), jnp.arange(3))
    assert causal[0, 0].astype(int).tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    same = attention.same_segment(jnp.array([[1, 1, 2]]))
    assert same[0, 0].astype(int).tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    slots = jnp.array([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]])[:, :, None, None]
    new = jnp.array([[8.0], [9.0]])[:, :, None, None]
    written = cache.append(slots, new, jnp.array([2, 0]))
    assert written[:, :, 0, 0].tolist() == [[1.0, 2.0, 8.0], [9.0, 0.0, 0.0]]


def test_cache_reorders_rows_and_rolls_back_lengths():
    config = CONFIGS["llama"]
    memory = cache.init(config, 2, 5).replace(lengths_B=jnp.array([4, 2]))
    memory = memory.replace(keys=(memory.keys[0].at[1].set(7.0), *memory.keys[1:]))
    swapped = cache.reorder(memory, jnp.array([1, 1]))
    assert swapped.lengths_B.tolist() == [2, 2]
    assert (swapped.keys[0] == 7.0).all()
    assert cache.roll_back(memory, jnp.array([3, 3])).lengths_B.tolist() == [3, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(heads=5), "model.heads=5 does not divide model.width=44"),
        (dict(heads=4, kv_heads=3), "model.kv_heads=3 does not divide model.heads=4"),
        (dict(layers=0), "model.layers is 0; it must be at least 1"),
        (
            dict(position="rop"),
            r"model.position is 'rop' \(did you mean 'rope'\?\); known: none, learned",
        ),
        (dict(position="rope", heads=4, head_size=7), "model.head_size=7 is odd"),
    ],
)
def test_a_config_that_cannot_be_built_says_what_to_change(change, message):
    with pytest.raises(errors.BadInput, match=message):
        ModelConfig(**{**GPT2, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(dropout=1.0), "runtime.dropout is 1.0; it must be at least 0 and below 1"),
        (dict(unroll=0), "runtime.unroll is 0; it must be at least 1"),
        (dict(dtype="float16"), r"runtime.dtype is 'float16' \(did you mean 'bfloat16'\?\)"),
    ],
)
def test_a_runtime_that_cannot_be_says_what_to_change(change, message):
    with pytest.raises(errors.BadInput, match=message):
        Runtime(**change)


def test_more_tokens_than_the_window_are_refused(lm):
    with pytest.raises(errors.BadInput, match="37 tokens are more than model.context_length=31"):
        logits_of(lm, jnp.zeros((1, 37), jnp.int32))


def test_published_sizes_have_the_published_parameter_counts():
    gpt2 = dict(
        position="learned", norm="layer", activation="gelu_tanh", gated=False, bias=True, tied=True
    )
    published = {
        124_439_808: ModelConfig(50257, 1024, layers=12, width=768, heads=12, **gpt2),
        1_557_611_200: ModelConfig(50257, 1024, layers=48, width=1600, heads=25, **gpt2),
        6_738_415_616: ModelConfig(32000, 2048, layers=32, width=4096, heads=32, hidden=11008),
        8_030_261_248: ModelConfig(
            128256, 8192, layers=32, width=4096, heads=32, kv_heads=8, hidden=14336
        ),
    }
    for count, config in published.items():
        for runtime in (Runtime(), Runtime(scan=True)):
            net = model.build(config, runtime)
            shapes = jax.eval_shape(
                lambda net=net: nn.meta.unbox(model.init_boxed(net, key=jax.random.key(0)))
            )
            assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count
