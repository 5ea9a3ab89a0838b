"""What are the weights of a model, and how does today's run compute with them?

`ModelConfig` describes the weights and nothing else; `Runtime` describes one run's arithmetic. The dimension key, used
as suffix of array names throughout:

    B batch   T query length   S key length   D width   N query heads   K key/value heads   G = N/K
    H head size   F hidden width   V vocabulary   L stacked layers   R adapter rank   W beam width
"""

import dataclasses
import math

from model import errors

CHOICES = {
    "family": ("decoder_only",),
    "position": ("none", "learned", "sinusoidal", "rope"),
    "norm": ("layer", "rms"),
    "activation": ("gelu", "gelu_tanh", "relu", "silu"),
    "dtype": ("float32", "bfloat16"),
    "remat": ("none", "dots", "full"),
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The weights of a model: enough to build it, count it and load it.

    The defaults are those of LLaMA-like decoders; GPT-2 is `position="learned", norm="layer", activation="gelu_tanh",
    gated=False, bias=True, tied=True`. Fields left 0 follow from the others: `kv_heads = heads`,
    `head_size = width / heads`, `hidden = 4 width` (plain) or `8/3 width` rounded up to a multiple of 8 (gated).
    """

    vocab_size: int
    context_length: int
    layers: int
    width: int
    heads: int
    family: str = "decoder_only"
    kv_heads: int = 0
    head_size: int = 0
    hidden: int = 0
    position: str = "rope"
    rope_theta: float = 10_000.0
    norm: str = "rms"
    norm_epsilon: float = 1e-5
    activation: str = "silu"
    gated: bool = True
    bias: bool = False
    tied: bool = False

    def __post_init__(self) -> None:
        _check_choices(self, "model")
        for name in ("vocab_size", "context_length", "layers", "width", "heads"):
            if getattr(self, name) < 1:
                raise errors.BadInput(
                    f"model.{name} is {getattr(self, name)}; it must be at least 1"
                )
        for name in ("kv_heads", "head_size", "hidden"):
            if getattr(self, name) < 0:
                raise errors.BadInput(
                    f"model.{name} is {getattr(self, name)}; it must be at least 1, or 0 to follow from the others"
                )
        for name in ("rope_theta", "norm_epsilon"):
            if not 0 < getattr(self, name) < math.inf:
                raise errors.BadInput(
                    f"model.{name} is {getattr(self, name)}; it must be above 0 and finite"
                )
        object.__setattr__(self, "kv_heads", self.kv_heads or self.heads)
        if not self.head_size:
            if self.width % self.heads:
                raise errors.BadInput(
                    f"model.heads={self.heads} does not divide model.width={self.width}; "
                    "change one of them, or set model.head_size"
                )
            object.__setattr__(self, "head_size", self.width // self.heads)
        if self.heads % self.kv_heads:
            raise errors.BadInput(
                f"model.kv_heads={self.kv_heads} does not divide model.heads={self.heads}; change one of them"
            )
        if self.position == "rope" and self.head_size % 2:
            raise errors.BadInput(
                f"model.head_size={self.head_size} is odd, and rotary positions turn pairs; "
                "make it even or choose another model.position"
            )
        if not self.hidden:
            hidden = -(-8 * self.width // 24) * 8 if self.gated else 4 * self.width
            object.__setattr__(self, "hidden", hidden)


@dataclasses.dataclass(frozen=True)
class Runtime:
    """How one run computes: the same weights give the same model under any of these.

    Attributes:
        dtype: of activations and matrix products; parameters stay float32.
        dropout: probability of zeroing an entry of the embedding or of a residual branch; only when training.
        scan: parameters of all layers stacked ([L, ...] under one name), run by `lax.scan`: compiles once per stack.
            Otherwise one entry per layer. `blocks.stack_layers` and `blocks.unstack_layers` convert.
        unroll: with `scan`, how many layers each turn of the compiled loop holds; `layers` removes the loop.
        remat: what the backward pass computes again: `none`, all but matrix products (`dots`), everything (`full`).
    """

    dtype: str = "float32"
    dropout: float = 0.0
    scan: bool = False
    unroll: int = 1
    remat: str = "none"

    def __post_init__(self) -> None:
        _check_choices(self, "runtime")
        if not 0.0 <= self.dropout < 1.0:
            raise errors.BadInput(
                f"runtime.dropout is {self.dropout}; it must be at least 0 and below 1"
            )
        if self.unroll < 1:
            raise errors.BadInput(f"runtime.unroll is {self.unroll}; it must be at least 1")


def _check_choices(config: ModelConfig | Runtime, where: str) -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        known = CHOICES.get(field.name)
        if known and value not in known:
            hint = errors.nearest(str(value), known)
            raise errors.BadInput(
                f"{where}.{field.name} is {value!r}{hint}; known: {', '.join(known)}"
            )
