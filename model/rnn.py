"""LSTM and GRU language models, the row before transformers: behind the same call, and under the same stack.

A layer's state takes the place of keys and values: what attention looks up, a recurrent layer has to carry along.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from model import cache, layers
from model.attention import Sight
from model.config import RECURRENT, ModelConfig, Runtime
from model.decoder_only import DecoderOnly

State = tuple[jax.Array, jax.Array]


def lstm(state: State, from_input_BQD: jax.Array, from_state_BQD: jax.Array) -> State:
    """One step (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000).

    Gates are i, f, g, o: `c' = f c + i g`, `h' = o tanh(c')`, with g a tanh and the others sigmoids.
    """
    i_BD, f_BD, g_BD, o_BD = jnp.moveaxis(from_input_BQD + from_state_BQD, 1, 0)
    c_BD = nn.sigmoid(f_BD) * state[1] + nn.sigmoid(i_BD) * jnp.tanh(g_BD)
    return nn.sigmoid(o_BD) * jnp.tanh(c_BD), c_BD


def gru(state: State, from_input_BQD: jax.Array, from_state_BQD: jax.Array) -> State:
    """One step (Cho et al. 2014, in PyTorch's form, where r gates what the state has already been mapped to).

    Gates are r, z, n: `h' = (1 - z) tanh(n + r m) + z h`, where m is the state's share of n. There is no cell.
    """
    r_BD = nn.sigmoid(from_input_BQD[:, 0] + from_state_BQD[:, 0])
    z_BD = nn.sigmoid(from_input_BQD[:, 1] + from_state_BQD[:, 1])
    n_BD = jnp.tanh(from_input_BQD[:, 2] + r_BD * from_state_BQD[:, 2])
    return (1 - z_BD) * n_BD + z_BD * state[0], state[1]


def remembering(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """A bias [Q, H] that leaves forget gates open at first (Jozefowicz et al. 2015, section 2.2), the others at 0."""
    return jnp.zeros(shape, dtype).at[..., 1, :].set(1)


CELLS = {"lstm": lstm, "gru": gru}


class Layer(nn.Module):
    """A cell run along each row; padding leaves its state alone, and the first token of a segment finds it empty."""

    config: ModelConfig
    runtime: Runtime
    train: bool

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        sight: Sight,
        source: None = None,
        past: Any = None,
        kept: None = None,
    ) -> tuple[jax.Array, dict]:
        """Returns [B, T, D] and `aux`: states as `keys` and cells as `values`, [B, T or S, 1, D]."""
        family, width = self.config.family, x_BTD.shape[-1]
        batch, length = x_BTD.shape[:2]
        dense = dict(
            shape=(width, RECURRENT[family], width),
            # Not over tensor too: every step would have to gather, and on a mesh of data, fsdp and tensor XLA's
            # gradients of a loop over tokens inside a loop over layers were 1 % off (jax 0.10.2 and 0.12).
            axes=("embed", "gate", "head"),
            bias=True,
            dtype=self.runtime.dtype,
        )
        first_bias = remembering if family == "lstm" else nn.initializers.zeros
        inputs_BTQH = layers.Dense("BTD,DQH->BTQH", name="input", first_bias=first_bias, **dense)(
            x_BTD
        )
        starts_BT = jnp.broadcast_to(sight.positions_BT == 0, (batch, length))
        real_BT = jnp.ones((batch, length), bool) if sight.real_BT is None else sight.real_BT
        blank_BD = jnp.zeros((batch, width), inputs_BTQH.dtype)
        state = (blank_BD, blank_BD)
        if past is not None:
            last_B = (past[2] - 1) % cache.STATES
            h_BD, c_BD = (
                blank_BD if kept is None else _at(kept, last_B).astype(blank_BD.dtype)
                for kept in past[:2]
            )
            state = (h_BD, c_BD)

        def step(recurrent: nn.Module, state: State, inputs: tuple) -> tuple[State, State]:
            inputs_BQH, starts_B, real_B = inputs
            begun = jax.tree.map(lambda old_BD: jnp.where(starts_B[:, None], 0, old_BD), state)
            made = CELLS[family](begun, inputs_BQH, recurrent(begun[0]))
            after = jax.tree.map(lambda *pair: jnp.where(real_B[:, None], *pair), made, state)
            return after, after

        along = nn.scan(
            step, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1
        )
        recurrent = layers.Dense("BD,DQH->BQH", name="recurrent", **dense)
        _, states = along(recurrent, state, (inputs_BTQH, starts_BT, real_BT))
        h_BTD = nn.Dropout(self.runtime.dropout, deterministic=not self.train)(states[0])
        keys, values = (new_BTD[:, :, None] for new_BTD in states)
        if past is not None:
            count_B = real_BT.sum(axis=1, dtype=jnp.int32)
            keys, values = (
                new if old is None else cache.append_ring(old, new, past[2], count_B)
                for old, new in zip(past[:2], (keys, values), strict=True)
            )
        return h_BTD, {"keys": keys, "values": values}


def _at(states_BSKH: jax.Array, slots_B: jax.Array) -> jax.Array:
    """The state in each row's slot, [B, D]."""
    return jnp.take_along_axis(states_BSKH, slots_B[:, None, None, None], axis=1)[:, 0, 0]


class Recurrent(DecoderOnly):
    """Tokens in, logits over the next token out, with all that came before in a state of fixed size."""

    block: Any = Layer
