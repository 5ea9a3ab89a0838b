"""Does every optimiser take the steps of its paper, for each matrix of each layer apart?

The references are plain numpy in float64, one matrix at a time; torch's own are asked where it has them.
"""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from train import optimizer

pytestmark = pytest.mark.standard_promotion

# Two layers. Per name: the shape without layers, and as a matrix [summed, made]; a vector has none.
STACKED = {
    ("attention", "query", "weight"): ((5, 3, 2), (5, 6)),
    ("attention", "out", "weight"): ((3, 2, 5), (6, 5)),
    ("feed_forward", "up", "weight"): ((5, 11), (5, 11)),
    ("feed_forward", "up", "bias"): ((11,), None),
}
STEPS = 5
COMMON = dict(learning_rate=0.03, warmup_steps=2, schedule="constant", clip_norm=None)


def nested(leaves):
    tree = {}
    for path, leaf in leaves.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = leaf
    return tree


def draws(seed, scale=1.0):
    """One value per parameter: a table, and two layers of each of `STACKED`."""
    rng = np.random.default_rng(seed)
    leaves = {("embedding", "weight"): rng.normal(size=(7, 5)) * scale}
    for path, (shape, _) in STACKED.items():
        leaves["stack", "layers", *path] = rng.normal(size=(2, *shape)) * scale
    return {path: leaf.astype(np.float32) for path, leaf in leaves.items()}


START = draws(0, 0.1)
GRADIENTS = [draws(seed) for seed in range(1, STEPS + 1)]


def walk(start, gradients, **settings):
    """The parameters and the state after every step."""
    transform = optimizer.build(optimizer.OptimizerConfig(**{**COMMON, **settings}), 11)
    params = jax.tree.map(jnp.asarray, nested(start))
    state = jax.jit(transform.init)(params)

    @jax.jit
    def one(params, state, gradient):
        updates, state = transform.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    history = []
    for gradient in gradients:
        params, state = one(params, state, jax.tree.map(jnp.asarray, nested(gradient)))
        history.append((params, state))
    return history


def rate(step):
    """Of the warm-up that `COMMON` asks for."""
    return 0.03 * min(step + 1, 3) / 3


def apart(path, leaf):
    """(the matrices or vectors of a parameter, those of each layer apart) in float64."""
    leaf = leaf.astype(np.float64)
    if path[0] == "embedding":
        return [leaf]
    matrix = STACKED[path[2:]][1]
    return [layer.reshape(matrix or layer.shape) for layer in leaf]


def expected(direction, weight_decay, start=START, gradients=GRADIENTS):
    """Every parameter after `p -= rate (direction + decay p)`, where `direction(path, p)` takes a gradient."""
    result = {}
    for path, leaf in start.items():
        blocks = apart(path, leaf)
        decay = weight_decay * (path[-1] == "weight")
        for i, block in enumerate(blocks):
            one = direction(path, block)
            for number, gradient in enumerate(gradients):
                u = one(apart(path, gradient[path])[i], block)
                block = block - rate(number) * (u + decay * block)
            blocks[i] = block
        result[path] = np.stack(blocks).reshape(leaf.shape)
    return result


def assert_close(actual, wanted, rtol=2e-5, atol=2e-6):
    flat = dict(jax.tree_util.tree_leaves_with_path(actual))
    flat = {tuple(key.key for key in path): leaf for path, leaf in flat.items()}
    assert flat.keys() == wanted.keys()
    for path, leaf in wanted.items():
        np.testing.assert_allclose(flat[path], leaf, rtol, atol, err_msg="/".join(path))
        assert np.abs(np.asarray(flat[path]) - START.get(path, 9)).max() > 1e-3


def adam(path, start, b1=0.9, b2=0.95, eps=1e-8):
    m, v, t = 0.0, 0.0, 0

    def one(g, p):
        nonlocal m, v, t
        t += 1
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        return m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)

    return one


def lion(path, start, b1=0.8, b2=0.7):
    m = 0.0

    def one(g, p):
        nonlocal m
        u, m = np.sign(b1 * m + (1 - b1) * g), b2 * m + (1 - b2) * g
        return u

    return one


def newton_schulz(x):
    """Jordan et al. 2024: five steps of the quintic towards the nearest matrix with singular values of 1."""
    x = x / np.linalg.norm(x)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def muon(path, start, momentum=0.95):
    if start.ndim < 2 or path[0] == "embedding":
        return adam(path, start)
    m, t = 0.0, 0

    def one(g, p):
        nonlocal m, t
        t += 1
        m = momentum * m + (1 - momentum) * g
        # Nesterov's, with each part's bias corrected (Dozat 2016).
        ahead = momentum * m / (1 - momentum ** (t + 1)) + (1 - momentum) * g / (1 - momentum**t)
        return newton_schulz(ahead) * 0.2 * max(g.shape) ** 0.5

    return one


def adafactor(path, start):
    row, column, v, t = 0.0, 0.0, 0.0, 0

    def one(g, p):
        nonlocal row, column, v, t
        t += 1
        old, square = 1 - t**-0.8, g * g + 1e-30
        if g.ndim == 2 and min(g.shape) >= 128:
            row = old * row + (1 - old) * square.mean(axis=1)
            column = old * column + (1 - old) * square.mean(axis=0)
            u = g / np.sqrt(np.outer(row, column) / row.mean())
        else:
            v = old * v + (1 - old) * square
            u = g / np.sqrt(v)
        u = u / max(1.0, np.sqrt((u * u).mean()))
        return u * max(1e-3, np.sqrt((p * p).mean()))

    return one


@pytest.mark.parametrize(
    ("direction", "settings"),
    [
        (adam, dict(name="adamw")),
        (lion, dict(name="lion", b1=0.8, b2=0.7)),
        (muon, dict(name="muon")),
        (adafactor, dict(name="adafactor")),
    ],
)
def test_the_steps_are_those_of_the_paper_for_each_matrix_of_each_layer(direction, settings):
    actual = walk(START, GRADIENTS, weight_decay=0.2, **settings)[-1][0]
    assert_close(actual, expected(direction, 0.2))


def test_muon_makes_every_layer_orthogonal_by_itself():
    """A fresh step is the gradient with singular values near 1: of Jordan's quintic, from 0.7 to 1.2."""
    start = {path: leaf * 0 for path, leaf in START.items()}
    (params, _), *_ = walk(start, GRADIENTS[:1], name="muon", learning_rate=3.0, warmup_steps=0)
    for path, (_, matrix) in STACKED.items():
        if matrix is None:
            continue
        made = functools.reduce(lambda node, name: node[name], ("stack", "layers", *path), params)
        for layer, gradient in zip(made, GRADIENTS[0]["stack", "layers", *path], strict=True):
            step_IO = -np.asarray(layer).reshape(matrix) / (3.0 * 0.2 * max(matrix) ** 0.5)
            u, _, v = np.linalg.svd(gradient.reshape(matrix), full_matrices=False)
            sizes = np.diag(u.T @ step_IO @ v.T)
            assert 0.6 < sizes.min() <= sizes.max() < 1.25
            np.testing.assert_allclose(step_IO, u * sizes @ v, atol=2e-5)


def test_schedule_free_averages_as_algorithm_1_says():
    """Defazio et al. 2024: the gradient is taken at y, between the fast z and their average x."""
    b1, b2, decay = 0.9, 0.95, 0.2
    history = walk(START, GRADIENTS, name="schedule_free", weight_decay=decay)
    trained, average = {}, {}
    for path, leaf in START.items():
        x = z = leaf.astype(np.float64)
        v = total = 0.0
        for t, gradient in enumerate(GRADIENTS, 1):
            g, y = gradient[path].astype(np.float64), (1 - b1) * z + b1 * x
            v = b2 * v + (1 - b2) * g * g
            u = g / (np.sqrt(v / (1 - b2**t)) + 1e-8) + decay * (path[-1] == "weight") * y
            z = z - rate(t - 1) * u
            total += rate(t - 1) ** 2
            x = x + (z - x) * rate(t - 1) ** 2 / total
        trained[path], average[path] = (1 - b1) * z + b1 * x, x
    params, state = history[-1]
    assert_close(params, trained)
    assert_close(state.average, average)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_average_is_the_closed_form_of_all_weights_there_were(name):
    history = walk(START, GRADIENTS, name=name, ema_decay=0.7)
    plain = walk(START, GRADIENTS, name=name)
    weights = [nested(START), *(params for params, _ in history)]
    for t in range(1, STEPS + 1):
        share = [0.7**t, *(0.3 * 0.7 ** (t - i) for i in range(1, t + 1))]
        wanted = jax.tree.map(
            lambda *all, share=share: sum(
                s * np.float64(w) for s, w in zip(share, all, strict=True)
            ),
            *weights[: t + 1],
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
            history[t - 1][1].average,
            wanted,
        )
    jax.tree.map(np.testing.assert_array_equal, history[-1][0], plain[-1][0])


@pytest.mark.parametrize(
    ("settings", "first", "second"),
    [
        (dict(name="adamw"), 5, 5),
        (dict(name="lion"), 5, 0),
        (dict(name="muon"), 5, 2),
        (dict(name="sgd"), 5, 0),
    ],
)
def test_first_moments_are_kept_in_their_own_dtype_and_second_ones_in_float32(
    settings, first, second
):
    narrow, wide = (
        walk(START, GRADIENTS, moments_dtype=dtype, **settings)[-1]
        for dtype in ("bfloat16", "float32")
    )
    for (_, state), dtype in ((narrow, jnp.bfloat16), (wide, jnp.float32)):
        kinds = {"mu": [], "trace": [], "nu": []}
        for path, leaf in jax.tree_util.tree_leaves_with_path(state):
            for name in {key.name for key in path if hasattr(key, "name")} & kinds.keys():
                kinds[name].append(leaf.dtype)
        assert kinds["mu"] + kinds["trace"] == [dtype] * first
        assert kinds["nu"] == [jnp.float32] * second
    # Rounding shows, and nothing else does: a direction is off by at most the last of eight bits, or lion's sign.
    gaps = jax.tree.map(lambda a, b: np.abs(np.asarray(a - b)), narrow[0], wide[0])
    assert 0 < max(gap.mean() for gap in jax.tree.leaves(gaps)) < 3e-3


def bfloat16(values):
    return np.asarray(values, ml_dtypes.bfloat16).astype(np.float32)


def test_a_second_moment_in_bfloat16_is_rounded_once_a_step_and_follows_the_gradient():
    narrow, wide = (
        walk(START, GRADIENTS, second_moments_dtype=dtype) for dtype in ("bfloat16", "float32")
    )
    squares = optax.tree.get(narrow[-1][1], "nu")
    assert {leaf.dtype for leaf in jax.tree.leaves(squares)} == {jnp.bfloat16.dtype}
    wanted = dict.fromkeys(START, np.float32(0))
    for gradient in GRADIENTS:
        for path, value in gradient.items():
            wanted[path] = bfloat16(np.float32(0.95) * wanted[path] + np.float32(0.05) * value**2)
    for path, value in wanted.items():
        kept = np.float32(functools.reduce(lambda node, name: node[name], path, squares))
        np.testing.assert_allclose(kept, value, rtol=2**-7)  # where float32 rounds otherwise
        assert (kept == value).mean() > 0.99
    # Five roundings by at most 2^-9 each: updates are off by 2^-9 of a step or two, and parameters move by 0.12.
    gaps = jax.tree.map(lambda a, b: np.abs(np.asarray(a - b)).max(), narrow[-1][0], wide[-1][0])
    assert 0 < max(jax.tree.leaves(gaps)) < 1e-3


@pytest.mark.parametrize(("b2", "settled"), [(0.95, True), (0.999, False)])
def test_a_second_moment_in_bfloat16_falls_to_a_smaller_gradients_square_only_if_b2_is_small(
    b2, settled
):
    value = np.float32(1)
    for _ in range(300 if settled else 30_000):
        value = bfloat16(np.float32(b2) * value + np.float32((1 - b2) * 0.25))
    assert (0.25 <= value <= 0.25 * (1 + 2**-8 / 0.05)) if settled else value == 1
    assert (b2 <= optimizer.BFLOAT16_B2) == settled


def torch_walk(make, start, gradients, weight_decay):
    """The parameters that a torch optimiser ends with; decay is taken off before each step, as AdamW does."""
    import torch

    theirs = {path: torch.nn.Parameter(torch.tensor(value)) for path, value in start.items()}
    peer = make(list(theirs.values()))
    for number, gradient in enumerate(gradients):
        for path, value in gradient.items():
            theirs[path].grad = torch.tensor(value)
        for group in peer.param_groups:
            group["lr"] = rate(number)
        with torch.no_grad():
            for path, value in theirs.items():
                value *= 1 - rate(number) * weight_decay * (path[-1] == "weight")
        peer.step()
    return {path: value.detach().numpy() for path, value in theirs.items()}


@pytest.mark.oracle
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.8, False), (0.8, True)])
def test_sgd_is_torchs(momentum, nesterov):
    torch = pytest.importorskip("torch")
    make = functools.partial(torch.optim.SGD, lr=1.0, momentum=momentum, nesterov=nesterov)
    wanted = torch_walk(make, START, GRADIENTS, weight_decay=0.2)
    settings = dict(name="sgd", momentum=momentum, nesterov=nesterov)
    assert_close(walk(START, GRADIENTS, weight_decay=0.2, **settings)[-1][0], wanted)


@pytest.mark.oracle
@pytest.mark.parametrize("clip_norm", [None, 0.7])
def test_adamw_is_torchs(clip_norm):
    torch = pytest.importorskip("torch")

    def clipped(gradient):
        norm = np.sqrt(sum(np.square(leaf, dtype=np.float64).sum() for leaf in gradient.values()))
        shrink = np.float32(min(1, (clip_norm or np.inf) / norm))
        return {path: leaf * shrink for path, leaf in gradient.items()}

    make = functools.partial(torch.optim.AdamW, betas=(0.8, 0.9), eps=1e-8, weight_decay=0.0)
    wanted = torch_walk(make, START, [clipped(g) for g in GRADIENTS], weight_decay=0.2)
    settings = dict(b1=0.8, b2=0.9, weight_decay=0.2, clip_norm=clip_norm)
    assert_close(walk(START, GRADIENTS, **settings)[-1][0], wanted)


@pytest.mark.oracle
def test_adafactor_is_torchs_where_a_matrix_is_large_enough_to_be_factored():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    name = ("stack", "layers", "feed_forward", "up", "weight")

    def draw():
        return {name: rng.normal(size=(2, 131, 137)).astype(np.float32)}

    start, gradients = draw(), [draw() for _ in range(3)]
    settings = dict(name="adafactor", weight_decay=0.2, decay_rules=(("weight", 1.0),))
    both, state = walk(start, gradients, **settings)[-1]
    sizes = {leaf.size for leaf in jax.tree.leaves(state) if leaf.size > 2}
    assert sizes == {2 * 131, 2 * 137}
    for i in range(2):
        wanted = torch_walk(
            # Its own decay: the size of a matrix is taken before.
            functools.partial(torch.optim.Adafactor, eps=(1e-30, 1e-3), weight_decay=0.2),
            {name: start[name][i]},
            [{name: gradient[name][i]} for gradient in gradients],
            weight_decay=0.0,
        )
        layer = both["stack"]["layers"]["feed_forward"]["up"]["weight"][i]
        np.testing.assert_allclose(layer, wanted[name], rtol=2e-5, atol=2e-6)
        assert np.abs(layer - start[name][i]).max() > 1e-2


@pytest.mark.oracle
def test_muon_is_torchs_up_to_its_bfloat16():
    """Without Nesterov's momentum, which torch does not correct for its bias."""
    torch = pytest.importorskip("torch")
    name = ("stack", "layers", "attention", "out", "weight")
    settings = dict(name="muon", nesterov=False, momentum=0.9, weight_decay=0.2)
    params = walk(START, GRADIENTS, **settings)[-1][0]
    make = functools.partial(
        torch.optim.Muon, momentum=0.9, nesterov=False, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
    )  # fmt: skip
    for i in range(2):
        matrices = [{name: tree[name][i].reshape(6, 5)} for tree in (START, *GRADIENTS)]
        wanted = torch_walk(make, matrices[0], matrices[1:], weight_decay=0.2)[name]
        layer = np.asarray(params["stack"]["layers"]["attention"]["out"]["weight"][i])
        gone = np.abs(wanted - matrices[0][name]).max()
        assert np.abs(layer.reshape(6, 5) - wanted).max() < 0.03 * gone
