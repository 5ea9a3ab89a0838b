"""What does one step of training compute, and on which device does each part of it lie?

`train_step` is the pure function; `make_train_step` jits it, in this one place, for a network, an
optimiser and a mesh.
"""

import bisect
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct
from jax.sharding import Mesh

import model
from model import adapters, errors, heads, sharding
from model.adapters import AdapterConfig
from train import flight, losses, paths, transforms

Batch = Mapping[str, jax.Array]
LossFunction = Callable[[Any, Batch, jax.Array], losses.Sums]


class TrainState(struct.PyTreeNode):
    """All that training carries from one step to the next; nothing random is among it.

    Attributes:
        step: int32, steps taken so far.
        params: of the network, unboxed; of an adapter only those it adds.
        opt_state: of the optax transformation.
    """

    step: jax.Array
    params: Any
    opt_state: Any

    @property
    def weights(self) -> Any:
        """What is evaluated, sampled from and loaded: the optimiser's average of the parameters, if it keeps one."""
        return transforms.used(self.params, self.opt_state)


def abstract_state(
    net: nn.Module,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    adapt: AdapterConfig | None = None,
) -> TrainState:
    """Shapes, types and shardings of a state: what a checkpoint is restored into."""
    boxed = boxed_state(net, optimizer, adapt)
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        nn.meta.unbox(boxed),
        sharding.of_tree(boxed, mesh),
    )


def boxed_state(
    net: nn.Module, optimizer: optax.GradientTransformation, adapt: AdapterConfig | None = None
) -> TrainState:
    """Shapes and types of a state, each boxed with its logical axis names; no mesh is needed."""
    key = jax.random.key(0)
    boxed = jax.eval_shape(functools.partial(model.init_boxed, net), key=key)
    if adapt is not None:
        boxed = adapters.boxed(boxed, adapt)
    plain = jax.eval_shape(functools.partial(_state, optimizer), nn.meta.unbox(boxed))
    return _boxed_alike(plain, boxed)


def notes(net: nn.Module, mesh: Mesh) -> list[str]:
    """What of a network the mesh leaves whole, because it cannot be split evenly."""
    boxed = jax.eval_shape(lambda: model.init_boxed(net, key=jax.random.key(0)))
    return sharding.notes(boxed, mesh)


def init_state(
    net: nn.Module, optimizer: optax.GradientTransformation, mesh: Mesh, *, key: jax.Array
) -> TrainState:
    """A fresh state, each part made on the devices it belongs to; no mesh changes its values."""
    fresh = jax.jit(
        functools.partial(_fresh, net, optimizer),
        out_shardings=shardings(abstract_state(net, optimizer, mesh)),
    )
    return fresh(key)


def state_of(params: Any, optimizer: optax.GradientTransformation, where: TrainState) -> TrainState:
    """A state at step 0 of parameters that are there, each part laid as `where` says."""
    return jax.jit(functools.partial(_state, optimizer), out_shardings=where)(params)


def shardings(state: TrainState) -> TrainState:
    """Where each part of a state, abstract or real, lies."""
    return jax.tree.map(lambda leaf: leaf.sharding, state)


def put_batch(
    batch: Mapping[str, np.ndarray],
    mesh: Mesh,
    batch_size: int | None = None,
) -> Batch:
    """A host batch of [B, T] arrays, laid on the devices.

    Given `batch_size`, `batch` holds only those rows of one of that size that lie here: `sharding.rows_here`.
    """
    where = sharding.batch(mesh)
    rows = None if batch_size is None else sharding.rows_here(mesh, batch_size)

    def put(name: str, array: np.ndarray) -> jax.Array:
        shape = (len(array) if batch_size is None else batch_size, *array.shape[1:])
        sharding.check_divides(f"batch.{name}", shape, where)

        def part(index: Any) -> np.ndarray:
            wanted = range(shape[0])[index[0]]
            start = wanted[0] if rows is None else bisect.bisect_left(rows, wanted[0])
            return array[(slice(start, start + len(wanted)), *index[1:])]

        return jax.make_array_from_callback(shape, where, part)

    return {name: put(name, array) for name, array in batch.items()}


def features(
    net: nn.Module, params: Any, batch: Batch, *, key: jax.Array | None
) -> tuple[jax.Array, dict[str, Any]]:
    """What a network makes of a batch before its head: hidden states [B, T, D] where targets are, and `aux`.

    `key` is for the dropout of training; None computes without.
    """
    call = functools.partial(net.apply, {"params": params}, method="features", **_mode(key))
    segments = batch["segments"]
    if net.config.family == "encoder_decoder":
        sides = dict(source_segments=batch["source_segments"], target_segments=segments)
        return call(batch["source"], batch["tokens"], **sides)
    more = {"types": batch["types"]} if "types" in batch else {}
    if "prefix" in batch:
        more["prefix"] = batch["prefix"].sum(axis=1)
    return call(batch["tokens"], segments=segments, **more)


def head(net: nn.Module, *, key: jax.Array | None) -> losses.Head:
    """Its head: parameters and hidden states [B, T, D] in, logits [B, T, V] of tokens or of classes out.

    A text's class is asked of its first token. `key` is that of `features`.
    """
    mode = {} if net.config.head.kind == "lm" else {"every": True, **_mode(key)}
    return lambda params, x_BTD: net.apply({"params": params}, x_BTD, method="head", **mode)


def _mode(key: jax.Array | None) -> dict[str, Any]:
    """Whether a network drops out, and by which key."""
    return {} if key is None else {"train": True, "rngs": {"dropout": key}}


def batch_loss(
    net: nn.Module, config: losses.LossConfig, params: Any, batch: Batch, key: jax.Array
) -> losses.Sums:
    """The loss of every weighted target, summed over a batch; `key` is for dropout.

    A batch of next-sentence pairs adds theirs to what is minimised, and `nats` stay those of the tokens.
    """
    x_BTD, aux = features(net, params, batch, key=key)
    if net.config.head.kind != "lm":
        config = dataclasses.replace(config, chunk=0, skip=False)
    sums = losses.summed(
        head(net, key=jax.random.fold_in(key, 1)),
        heads.params(net.config, params),
        x_BTD,
        batch["targets"],
        batch["weights"],
        config,
    )
    if "pair_targets" in batch:
        nats_B1 = losses.cross_entropy(aux["next_sentence"][:, None], batch["pair_targets"][:, :1])
        pairs = (nats_B1 * batch["pair_weights"][:, :1]).sum()
        sums = sums._replace(objective=sums.objective + pairs)
    return sums


def train_step(
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    base: Any = None,
    *,
    loss_fn: LossFunction,
    optimizer: optax.GradientTransformation,
    accumulate: int = 1,
    frozen: Sequence[str] = (),
    adapt: AdapterConfig | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update by the gradient of the mean loss over all weighted targets of the batch.

    Args:
        state: before the step.
        batch: `weights`, `segments` and what `loss_fn` reads, each [B, T].
        key: the run's; the step's is folded from it by `state.step`.
        loss_fn: `(params, batch, key)` to sums over the weighted targets.
        optimizer: turns the gradient into updates.
        accumulate: in how many micro-batches the gradient is computed.
        frozen: regexes of parameters without a gradient; the optimiser leaves the same alone.
        base: the parameters that those of the state change, if these are an adapter's.
        adapt: how they do.
    """
    key = jax.random.fold_in(key, state.step)

    def loss_of(params: Any, batch: Batch, key: jax.Array) -> losses.Sums:
        params = paths.stopped(frozen, params)
        whole = params if adapt is None else adapters.merge(base, params, adapt)
        return loss_fn(whole, batch, key)

    means, grads = loss_and_gradient(loss_of, state.params, batch, key, accumulate)
    update = optax.with_extra_args_support(optimizer).update
    updates, opt_state = update(grads, state.opt_state, state.params, value=means.nats)
    params = optax.apply_updates(state.params, updates)
    metrics = {
        "loss": means.nats,
        "objective": means.objective,
        "grad_norm": optax.tree.norm(grads),
        "param_norm": optax.tree.norm(params),
        "learning_rate": optax.tree.get(opt_state, "learning_rate", default=jnp.nan),
        "limit": optax.tree.get(opt_state, "limit", default=jnp.inf),
        "tokens": jnp.count_nonzero(batch["segments"]),
        "norms": {"parameters": flight.norms(state.params), "gradients": flight.norms(grads)},
    }
    return TrainState(step=state.step + 1, params=params, opt_state=opt_state), metrics


def loss_and_gradient(
    loss_fn: LossFunction, params: Any, batch: Batch, key: jax.Array, accumulate: int
) -> tuple[losses.Sums, Any]:
    """The mean losses over all weighted targets, and the objective's gradient, in `accumulate` micro-batches.

    Each contributes its weighted sum divided by the weight of the whole batch: a mean of means
    would give the targets of an emptier micro-batch more say.
    """
    weight = batch["weights"].sum()
    weight = jnp.where(weight > 0, weight, 1)

    @functools.partial(jax.value_and_grad, has_aux=True)
    def objective(params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, losses.Sums]:
        means = losses.Sums(*(total / weight for total in loss_fn(params, batch, key)))
        return means.objective, means

    def part(batch: Batch, key: jax.Array) -> tuple[losses.Sums, Any]:
        (_, means), gradient = objective(params, batch, key)
        return means, gradient

    def add(total: Any, numbered: tuple[jax.Array, Batch]) -> tuple[Any, None]:
        i, micro_batch = numbered
        return jax.tree.map(jnp.add, total, part(micro_batch, jax.random.fold_in(key, i))), None

    if accumulate == 1:
        return part(batch, key)
    zeros = jax.tree.map(jnp.zeros_like, (losses.Sums(weight, weight), params))
    return jax.lax.scan(add, zeros, (jnp.arange(accumulate), micro_batches(batch, accumulate)))[0]


def micro_batches(batch: Batch, count: int) -> Batch:
    """Each array [B, T] as [count, B / count, T]; part i has the rows i, i + count, i + 2 count ...

    A device holds neighbouring rows, so each part has its share of every device's and no row moves.
    """
    rows = len(batch["weights"])
    if rows % count:
        raise errors.BadInput(
            f"train.accumulate={count} does not divide a batch of {rows} rows; change one of them"
        )

    def split(rows_BT: jax.Array) -> jax.Array:
        parts = rows_BT.reshape(rows // count, count, -1).swapaxes(0, 1)
        return nn.with_logical_constraint(parts, (None, "batch", "sequence"))

    return {name: split(rows_BT) for name, rows_BT in batch.items()}


def make_train_step(
    net: nn.Module,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    state_shardings: TrainState,
    accumulate: int = 1,
    frozen: Sequence[str] = (),
    loss: losses.LossConfig = losses.LossConfig(),  # noqa: B008  frozen
    base: Any = None,
    adapt: AdapterConfig | None = None,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """`train_step(state, batch, key) -> (state, metrics)`, compiled once; it consumes the state, and no `base`.

    The metrics are device arrays that nothing waits for: read them a step late, and a loss that is
    not finite is found then.
    """
    step = functools.partial(
        train_step,
        loss_fn=functools.partial(batch_loss, net, loss),
        optimizer=optimizer,
        accumulate=accumulate,
        frozen=frozen,
        adapt=adapt,
    )
    places = () if adapt is None else (jax.tree.map(lambda leaf: leaf.sharding, base),)
    jitted = jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(state_shardings, sharding.batch(mesh), sharding.replicated(mesh), *places),
        out_shardings=(state_shardings, sharding.replicated(mesh)),
    )
    call = sharding.on_mesh(jitted, mesh)
    return call if adapt is None else lambda state, batch, key: call(state, batch, key, base)


def _fresh(net: nn.Module, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
    return _state(optimizer, model.init(net, key=key))


def _state(optimizer: optax.GradientTransformation, params: Any) -> TrainState:
    return TrainState(
        step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params)
    )


def _boxed_alike(state: TrainState, boxed: Any) -> TrainState:
    """The state, with each leaf boxed as the parameter is that it belongs to: its path's end and its shape say which.

    What has neither, such as a count or the factors of a matrix, is small and stays as it is.
    """

    def is_box(node: Any) -> bool:
        return isinstance(node, nn.meta.AxisMetadata)

    leaves = jax.tree_util.tree_leaves_with_path(boxed, is_leaf=is_box)
    boxes = {jax.tree_util.keystr(path): box for path, box in leaves}

    def alike(path: Any, leaf: Any) -> Any:
        ends = (jax.tree_util.keystr(path[i:]) for i in range(len(path)))
        box: Any = next((boxes[end] for end in ends if end in boxes), None)
        if not is_box(box) or nn.meta.unbox(box).shape != leaf.shape:
            return leaf
        return box.replace_boxed(leaf)

    return jax.tree_util.tree_map_with_path(alike, state)
