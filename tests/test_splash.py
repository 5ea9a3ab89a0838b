"""Is the TPU's kernel, interpreted, the attention that is written out?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import attention, sharding, splash

LENGTH, SIZE = 256, 6  # two of the kernel's blocks


def draw(heads, kv_heads):
    keys = jax.random.split(jax.random.key(3), 4)
    shapes = [(2, LENGTH, count, SIZE) for count in (heads, kv_heads, kv_heads, heads)]
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def values_and_gradients(kind, sight, q, k, v, weigh, cap):
    def total(q, k, v):
        y = attention.attend(q, k, v, sight, 0.5, cap, kind)
        return (y * weigh).sum(), y

    both = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)
    (_, y), gradients = jax.jit(both)(q, k, v)
    return [y, *gradients]


@pytest.mark.parametrize(
    ("sizes", "cap"), [(None, 0.0), (None, 2.0), (dict(data=2, tensor=2), 0.0)]
)
def test_values_and_gradients_are_those_of_the_written_out_attention(sizes, cap, monkeypatch):
    kernel, used = splash.attend, []
    monkeypatch.setattr(splash, "attend", lambda *args: used.append(1) or kernel(*args))
    q, k, v, weigh = draw(4, 2)
    segments = jnp.array(np.arange(LENGTH) // [[150], [61]], jnp.int32)
    sight = attention.look(LENGTH, causal=True, segments_BT=segments)
    assert splash.applies(q, k)
    expected = values_and_gradients("xla", sight, q, k, v, weigh, cap)
    measure = values_and_gradients
    if sizes:
        measure = sharding.on_mesh(measure, sharding.make_mesh(sizes, jax.devices()[:4]))
    for name, ours, theirs in zip(
        "yqkv", measure("splash", sight, q, k, v, weigh, cap), expected, strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=2e-4, err_msg=name)
    assert used


@pytest.mark.parametrize(
    "limit",
    [
        lambda sight: attention.within(sight, 3),
        lambda sight: sight.replace(bias=jnp.zeros((1, 1, LENGTH, LENGTH)).at[:, :, 5, 3].set(2.0)),
        lambda sight: attention.look(LENGTH, causal=True, prefix_B=jnp.array([5, 7])),
    ],
)
def test_what_the_kernel_does_not_know_is_written_out(limit, monkeypatch):
    monkeypatch.setattr(splash, "attend", None)
    q, k, v, weigh = draw(2, 2)
    sight = limit(attention.look(LENGTH, causal=True))
    expected = values_and_gradients("xla", sight, q, k, v, weigh, 0.0)
    found = values_and_gradients("splash", sight, q, k, v, weigh, 0.0)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_rows_that_are_no_whole_blocks_are_written_out():
    q, k, _, _ = draw(2, 2)
    assert not splash.applies(q[:, 1:], k[:, 1:])
