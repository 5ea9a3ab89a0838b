"""How do whole causal rows attend on a TPU without an attention map? By JAX's Splash kernel, each device its share.

Elsewhere the same kernel is interpreted, which is slow, and what the tests compare.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as kernels,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
)
from jax.sharding import PartitionSpec

from model import sharding

LANES = 128  # the kernel's blocks, and what heads are filled up to
ROWS = ("data", "fsdp")


def applies(q_BTNH: jax.Array, k_BSKH: jax.Array) -> bool:
    """Whether the kernel takes such rows on the mesh in force: whole blocks, and each device whole rows and heads."""
    batch, length, heads, _ = q_BTNH.shape
    split, parts = sharding.devices_of("data") * sharding.devices_of("fsdp"), _tensor()
    even = batch % split == heads % parts == k_BSKH.shape[2] % parts == 0
    return even and length % LANES == 0 and sharding.devices_of("sequence") == 1


def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    segments_BT: jax.Array | None,
    scale: float,
    cap: float,
) -> jax.Array:
    """Values averaged by the causal attention map within each segment, [B, T, N, H].

    Args:
        segments_BT: of packed rows, or None: each is one.
        scale: of the scores.
        cap: as `attention.soft_cap` has it; 0 is none.
    """
    batch, length, _, size = q_BTNH.shape
    if segments_BT is None:
        segments_BT = jnp.zeros((batch, length), jnp.int32)
    q, k, v = (_head_first(x, -size % LANES) for x in (q_BTNH * scale, k_BSKH, v_BSKH))
    rows: Callable[..., jax.Array] = functools.partial(_rows, cap=cap)
    if jax.sharding.get_abstract_mesh().shape:
        head, row = PartitionSpec(ROWS, "tensor"), PartitionSpec(ROWS)
        rows = jax.shard_map(
            rows, in_specs=(head, head, head, row), out_specs=head, check_vma=False
        )
    y_BNTH = rows(q, k, v, jnp.broadcast_to(segments_BT, (batch, length)))
    return y_BNTH.swapaxes(1, 2)[..., :size].astype(q_BTNH.dtype)


def _tensor() -> int:
    return sharding.devices_of("tensor")


def _head_first(x_BTNH: jax.Array, missing: int) -> jax.Array:
    """[B, N, T, H], each head filled up with zeros, which change no product."""
    return jnp.pad(x_BTNH.swapaxes(1, 2), ((0, 0), (0, 0), (0, 0), (0, missing)))


def _rows(
    q_BNTH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, segments_BT: jax.Array, cap: float
) -> jax.Array:
    """What one device computes of its rows and heads."""
    length = q_BNTH.shape[2]
    mask = masks.MultiHeadMask([masks.CausalMask((length, length))] * q_BNTH.shape[1])
    kernel = kernels.make_splash_mha(
        mask,
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=cap or None,
        interpret=jax.default_backend() != "tpu",
    )

    def row(q_NTH: jax.Array, k_KSH: jax.Array, v_KSH: jax.Array, segments_T: jax.Array) -> Any:
        return kernel(q_NTH, k_KSH, v_KSH, kernels.SegmentIds(segments_T, segments_T))

    return jax.vmap(row)(q_BNTH, k_BKSH, v_BKSH, segments_BT)
