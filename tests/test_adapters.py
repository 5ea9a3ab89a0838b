"""Is a merged adapter the model that the papers describe, does nothing but it get a gradient, and are rules obeyed?"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import PartitionSpec

import decode
import model
from model import adapters, blocks, errors, sharding
from model.adapters import AdapterConfig
from model.config import Experts, ModelConfig, Runtime
from tests import tiny

SHAPE = dict(vocab_size=31, context_length=13, layers=2, width=10, hidden=14)
MODELS = {
    "llama": dict(heads=6, kv_heads=2, head_size=4),
    "gpt2": dict(heads=5, position="learned", norm="layer", bias="all", activation="gelu", tied=True),
    "mixtral": dict(heads=5, experts=Experts(3, 2)),
    "bert": dict(heads=5, family="encoder_only", position="learned", bias="all", activation="gelu"),
    "t5": dict(heads=5, family="encoder_decoder", position="relative"),
    "lstm": dict(family="lstm", hidden=0),
}  # fmt: skip
# Of every matrix of a layer, how `layers.Dense` is told to use it: which letters stand on its way in.
EQUATIONS = {
    "query": "DNH",
    "key": "DKH",
    "value": "DKH",
    "out": "NHD",
    "up": "DF",
    "gate": "DF",
    "down": "FD",
    "router": "DE",
}


@functools.cache
def boxed(name, scan=True):
    config = ModelConfig(**{**SHAPE, **MODELS[name]})
    net = model.build(config, Runtime(scan=scan))
    return jax.eval_shape(functools.partial(model.init_boxed, net), key=jax.random.key(0))


@functools.cache
def random(name, scan=True):
    """Parameters without a zero among them, made without running the network."""
    draw = np.random.default_rng(7)
    shapes = jax.tree.map(lambda leaf: leaf.shape, jax.tree.map(lambda b: b, unboxed(name, scan)))
    return jax.tree.map(
        lambda leaf: jnp.asarray(draw.normal(size=leaf), jnp.float32),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def unboxed(name, scan=True):
    return jax.tree.map(
        lambda box: box.value, boxed(name, scan), is_leaf=lambda node: hasattr(node, "names")
    )


def flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def shaken(adapter, seed=3):
    """An adapter that has been trained for a while."""
    draw = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: leaf + jnp.asarray(0.3 * draw.normal(size=leaf.shape), jnp.float32), adapter
    )


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("name", MODELS)
def test_a_fresh_adapter_changes_no_bit_and_its_rules_reach_every_matrix_of_every_family(
    name, kind
):
    params = random(name)
    config = AdapterConfig(kind=kind, rank=3, targets=("layers/",))
    adapter = adapters.init(params, config, key=jax.random.key(5))
    merged = adapters.merge(params, adapter, config)
    jax.tree.map(np.testing.assert_array_equal, merged, params)
    adapted = {path.rpartition("/lora_a")[0] for path in flat(adapter) if "lora_a" in path}
    inner = {path.removesuffix("/weight") for path in flat(params) if "/layers/" in path}
    assert adapted == {path for path in inner if f"{path}/weight" in flat(params)}
    # and a trained one changes every one of them
    moved = adapters.merge(params, shaken(adapter), config)
    same = {path for path, leaf in flat(moved).items() if np.array_equal(leaf, flat(params)[path])}
    assert same == flat(params).keys() - {f"{path}/weight" for path in adapted}


@pytest.mark.parametrize("stabilized", [False, True])
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_an_effective_weight_is_that_of_the_papers_for_every_map_of_a_layer(kind, stabilized):
    """W' = W + alpha / r (or sqrt r) B A, and in DoRA each of its rows at the trained length, by plain numpy."""
    params = random("mixtral")
    config = AdapterConfig(kind, 3, 5.0, stabilized, targets=("stack/",))
    adapter = shaken(adapters.init(params, config, key=jax.random.key(5)))
    merged, added = flat(adapters.merge(params, adapter, config)), flat(adapter)
    scale = 5.0 / (3**0.5 if stabilized else 3)
    for name, letters in EQUATIONS.items():
        module = f"stack/layers/{'attention' if letters[-1] in 'HD' and 'F' not in letters else 'feed_forward'}/{name}"
        weight = np.asarray(flat(params)[f"{module}/weight"])
        a, b = (np.asarray(added[f"{module}/lora_{x}/weight"]) for x in "ab")
        into = {"out": 2}.get(name, 1)
        counted = weight.ndim - len(letters)
        for at in np.ndindex(weight.shape[:counted]):
            rows = weight[at].reshape(int(np.prod(weight[at].shape[:into])), -1).T
            fine = rows + scale * b[at].reshape(3, -1).T @ a[at].reshape(-1, 3).T
            if kind == "dora":
                length = np.asarray(added[f"{module}/magnitude/scale"][at]).reshape(-1, 1)
                fine = length * fine / np.linalg.norm(fine, axis=1, keepdims=True)
            found = np.asarray(merged[f"{module}/weight"][at])
            np.testing.assert_allclose(found, fine.T.reshape(found.shape), rtol=2e-5, atol=2e-6)


def test_stacked_and_unstacked_layers_merge_to_the_same_bits():
    params = random("gpt2")
    config = AdapterConfig("dora", 3, targets=("attention", "up/"), whole=("norm/scale",))
    adapter = shaken(adapters.init(params, config, key=jax.random.key(5)))
    stacked = blocks.unstack_layers(adapters.merge(params, adapter, config))
    apart = adapters.merge(blocks.unstack_layers(params), blocks.unstack_layers(adapter), config)
    jax.tree.map(np.testing.assert_array_equal, stacked, apart)


def test_the_gradient_of_dora_holds_the_length_it_divides_by():
    """Of one 2x1 matrix by hand: W = (3, 4), m = 5; d/dB of (1, 1) m W' / |W'| is A m / |W|, with |W| held."""
    tree = {"head": {"out": {"weight": jnp.array([[3.0], [4.0]])}}}
    config = AdapterConfig("dora", 1, 1.0, targets=("out",))
    adapter = adapters.init(tree, config, key=jax.random.key(5))
    a = adapter["head"]["out"]["lora_a"]["weight"]

    def total(adapter):
        return adapters.merge(tree, adapter, config)["head"]["out"]["weight"].sum()

    gradient = jax.grad(total)(adapter)["head"]["out"]
    np.testing.assert_allclose(gradient["lora_b"]["weight"], [[a.sum()]], rtol=1e-6)
    np.testing.assert_allclose(gradient["magnitude"]["scale"], [7 / 5], rtol=1e-6)
    assert not gradient["lora_a"]["weight"].any()  # until B has moved


def test_an_adapter_lies_on_a_mesh_as_its_base_does_and_has_the_shapes_that_init_makes():
    config = AdapterConfig("dora", 3, targets=("stack", "^output"), whole=("stack/norm",))
    made = adapters.boxed(boxed("llama"), config)
    fresh = jax.eval_shape(lambda: adapters.init(random("llama"), config, key=jax.random.key(5)))
    plain = jax.tree.map(lambda b: b.value, made, is_leaf=lambda node: hasattr(node, "names"))
    assert flat(plain).keys() == flat(fresh).keys()
    for path, leaf in flat(fresh).items():
        assert (flat(plain)[path].shape, flat(plain)[path].dtype) == (leaf.shape, leaf.dtype)
    mesh = sharding.make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[:4])
    where = flat(sharding.of_tree(made, mesh))
    query, out = "stack/layers/attention/query", "stack/layers/attention/out"
    assert where[f"{query}/lora_a/weight"].spec == PartitionSpec(None, "fsdp", None)
    assert where[f"{query}/lora_b/weight"].spec == PartitionSpec(None, None, "tensor", None)
    assert where[f"{query}/magnitude/scale"].spec == PartitionSpec(None, "tensor", None)
    assert where[f"{out}/lora_a/weight"].spec == PartitionSpec(None, "tensor", None, None)
    assert where["output/lora_b/weight"].spec == PartitionSpec(None, None)  # 31 is odd
    assert where["stack/norm/scale"].spec == PartitionSpec(None)


def test_a_first_matrix_is_uniform_in_what_pefts_kaiming_allows():
    """a = sqrt(5) gives sqrt(6 / (6 fan_in)); of 2 * 7000 draws the largest is within 1 % of it, but once in 10^60."""
    tree = {"head": {"dense": {"weight": jnp.zeros((7000, 3))}}}
    config = AdapterConfig(rank=2, targets=("dense",))
    one, two = (
        adapters.init(tree, config, key=jax.random.key(i))["head"]["dense"]["lora_a"]["weight"]
        for i in (1, 2)
    )
    bound = 7000**-0.5
    assert 0.99 * bound < np.abs(one).max() <= bound
    assert abs(float(one.mean())) < 5 * bound / 3**0.5 / 14000**0.5  # five sigma
    assert not np.array_equal(one, two)


@pytest.mark.parametrize(
    "changed, message",
    [
        (
            {"targets": ("atention/querry",)},
            r"^adapt\.targets: rule 'atention/querry' is found in no parameter; the nearest matrices are "
            r"stack/layers/attention/query/weight, .*, .*weight$",
        ),
        (
            {"targets": ("query/bias",)},
            r"^adapt\.targets: rule 'query/bias' is found only in stack/layers/attention/query/bias, which is no "
            r"matrix; the nearest matrices are stack/layers/attention/query/weight, ",
        ),
        (
            {"targets": ("^embedding",)},
            r"^adapt\.targets: rule '\^embedding' is found only in embedding/weight, which is no matrix; ",
        ),
        (
            {"whole": ("nrom",)},
            r"^adapt\.whole: rule 'nrom' is found in no parameter; the nearest are .*norm/",
        ),
        (
            {"targets": ("query(",)},
            r"^adapt\.targets: rule 'query\(' is no regular expression \(.*\); correct it$",
        ),
        (
            {"whole": ("query",)},
            r"^stack/layers/attention/query/weight is found by adapt.targets and by adapt.whole; leave it to one",
        ),
        ({"kind": "lorra"}, r"^adapt.kind is 'lorra' \(did you mean 'lora'\?\); known: lora, dora, prompt$"),
        ({"rank": 0}, r"^adapt.rank is 0; it must be at least 1$"),
        ({"alpha": 0.0}, r"^adapt.alpha is 0.0; it must be above 0 and finite$"),
        ({"virtual_tokens": 3}, r"^adapt has kind='lora', 1 targets and virtual_tokens=3; a prompt needs "),
        ({"kind": "prompt"}, r"^adapt has kind='prompt', 1 targets and virtual_tokens=0; a prompt needs "),
    ],
)  # fmt: skip
def test_a_rule_or_a_value_that_cannot_be_followed_is_told_in_one_line(changed, message):
    with pytest.raises(errors.BadInput, match=message) as caught:
        config = AdapterConfig(**{"targets": ("query",), **changed})
        adapters.init(random("gpt2"), config, key=jax.random.key(5))
    assert "\n" not in str(caught.value)


def test_an_adapter_of_another_model_is_refused_by_the_name_of_what_does_not_fit():
    config = AdapterConfig(rank=3, targets=("query",))
    adapter = adapters.init(random("llama"), config, key=jax.random.key(5))
    with pytest.raises(errors.BadInput, match=r"^the adapter's part for stack/layers/attention/qu"):
        adapters.merge(random("gpt2"), adapter, config)
    with pytest.raises(
        errors.BadInput, match=r"^the adapter has .*lora_a/weight, and the model no"
    ):
        adapters.merge(random("lstm"), adapter, config)


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "t5", "lstm"])
def test_virtual_tokens_are_read_as_the_tokens_whose_rows_they_copy_and_never_predicted(name):
    lm = tiny.lm(name)
    vocabulary = lm.config.vocab_size
    config = AdapterConfig("prompt", virtual_tokens=3)
    fresh = adapters.init(lm.params, config, key=jax.random.key(5))
    rows = fresh["embedding"]["prompt"]["weight"]
    table = np.asarray(lm.params["embedding"]["weight"])
    ids = [int(np.flatnonzero((table == row).all(axis=1))[0]) for row in np.asarray(rows)]
    assert len(set(ids)) == 3
    params = adapters.merge(lm.params, fresh, config)
    assert adapters.virtual_tokens(params) == 3 and adapters.virtual_tokens(lm.params) == 0
    text = [5, 17, 42, 11]
    virtual = jnp.array([[vocabulary, vocabulary + 1, vocabulary + 2, *text]])
    real = jnp.array([[*ids, *text]])
    target = [jnp.array([[3, 7]])] if name == "t5" else []
    one = lm.net.apply({"params": params}, virtual, *target)[0]
    two = lm.net.apply({"params": lm.params}, real, *target)[0]
    assert one.shape[-1] == vocabulary
    np.testing.assert_array_equal(one, two)


def soft(seed=5):
    """A model behind a trained prompt of three vectors."""
    lm = tiny.lm("gpt2")
    config = AdapterConfig("prompt", virtual_tokens=3)
    adapter = shaken(adapters.init(lm.params, config, key=jax.random.key(seed)))
    return dataclasses.replace(lm, params=adapters.merge(lm.params, adapter, config))


def test_decoding_reads_the_virtual_tokens_before_every_prompt_and_scores_as_one_forward_pass_does():
    lm = soft()
    settings = decode.Settings(max_new_tokens=5, temperature=0.0, ignore_eos=True)
    done = decode.generate(lm, ["once upon", [5, 17, 42]], settings, seed=0)
    prompts = [lm.tokenizer.bos_id, *lm.tokenizer.encode("once upon")], [5, 17, 42]
    rows_BT = np.zeros((2, 23), np.int32)
    for i, (completion, ids) in enumerate(zip(done, prompts, strict=True)):
        vocabulary = lm.config.vocab_size
        given = (vocabulary, vocabulary + 1, vocabulary + 2, *ids)
        assert completion.prompt_tokens == given
        rows_BT[i, : len(given) + 5] = *given, *completion.tokens
    logits_BTV = jax.jit(lm.net.apply)({"params": lm.params}, rows_BT)[0]
    scores_BTV = np.asarray(jax.nn.log_softmax(logits_BTV))
    for i, completion in enumerate(done):
        at = np.arange(5) + len(completion.prompt_tokens) - 1
        expected = scores_BTV[i, at, list(completion.tokens)]
        np.testing.assert_allclose(completion.logprobs, expected, atol=2e-5)


def test_what_virtual_tokens_do_not_go_with_is_refused():
    lm = soft()
    with pytest.raises(
        errors.BadInput,
        match=r"asks for prompt_logprobs, and the prompt begins with 3 virtual tokens, which are never predicted; ",
    ):
        decode.generate(lm, ["once"], decode.Settings(prompt_logprobs=True), seed=0)
    with pytest.raises(
        errors.BadInput,
        match=r"^the draft model's number of virtual tokens is 0, and the model's 3; both must read the same tokens$",
    ):
        decode.generate(
            lm, ["once"], decode.Settings(num_assistant_tokens=2), seed=0, draft=tiny.lm("gpt2")
        )
