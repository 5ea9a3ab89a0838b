"""What are the weights of a model, and how does today's run compute with them?

`ModelConfig` describes the weights and nothing else; `Runtime` describes one run's arithmetic. The dimension key, used
as suffix of array names throughout:

    B batch   T query length   S key length   D width   N query heads   K key/value heads   G = N/K
    H head size   F hidden width   V vocabulary   L stacked layers   R adapter rank   W beam width
    E experts   C classes   Q gates of a recurrent cell   P rows of a position table   Y token types
"""

import dataclasses
import math
from typing import Any

from model import errors

RECURRENT = {"lstm": 4, "gru": 3}  # and the gates of its cell
GATED = {"swiglu": "silu", "geglu": "gelu", "geglu_tanh": "gelu_tanh", "reglu": "relu"}
CHOICES: dict[str, tuple[str, ...]] = {
    "family": ("decoder_only", "encoder_only", "encoder_decoder", *RECURRENT),
    "position": (
        "none",
        "learned",
        "learned_from_2",
        "sinusoidal",
        "sinusoidal_halves",
        "rope",
        "alibi",
        "relative",
    ),
    "rope.scaling": ("none", "linear", "ntk", "dynamic", "llama3", "yarn"),
    "norm": ("layer", "rms", "rms_plus_one"),
    "block": ("pre", "post", "sandwich", "parallel"),
    "activation": ("gelu", "gelu_tanh", "relu", "silu", *GATED),
    "bias": ("none", "qkv", "attention", "all", "output"),
    "embedding": ("plain", "scaled", "normed", "scaled_normed", "head_scaled"),
    "head.kind": ("lm", "sequence", "token", "none"),
    "head.activation": ("tanh", "relu"),
    "head.pooling": ("first", "mean"),
    "dtype": ("float32", "bfloat16"),
    "remat": ("none", "dots", "full"),
    "attention": ("auto", "xla", "blocks", "cudnn", "splash"),
}


def _check_choices(config: Any, where: str, prefix: str = "") -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        known = CHOICES.get(prefix + field.name)
        if known and value not in known:
            hint = errors.nearest(str(value), known)
            raise errors.BadInput(
                f"{where}.{field.name} is {value!r}{hint}; known: {', '.join(known)}"
            )


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise errors.BadInput(f"{name} is {value}; it must be above 0 and finite")


def _check_not_negative(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise errors.BadInput(f"{name} is {value}; it must be at least 0 and finite")


@dataclasses.dataclass(frozen=True)
class Rope:
    """The frequencies of rotary positions (Su et al. 2021), and how they are stretched beyond the trained window.

    Attributes:
        theta: base of the frequencies.
        fraction: of each head that is turned; the rest keeps no position (GPT-NeoX: 0.25).
        scaling: `linear` divides positions by `factor` (Chen et al. 2023); `ntk` raises theta instead; `dynamic` does
            so beyond the window only, which within it changes nothing; `llama3` and `yarn` (Peng et al. 2023) treat
            low and high frequencies apart.
        factor: by how much the window grew.
        original_length: the window before it grew; for `llama3` and `yarn`.
        low, high: turns within the original window below and above which a frequency is low or high: LLaMA 3's
            `low_freq_factor` and `high_freq_factor`, YaRN's `beta_slow` and `beta_fast`.
        magnitude: multiplies what is turned (YaRN's attention factor); 0 is the paper's `0.1 ln factor + 1`.
    """

    theta: float = 10_000.0
    fraction: float = 1.0
    scaling: str = "none"
    factor: float = 1.0
    original_length: int = 0
    low: float = 1.0
    high: float = 4.0
    magnitude: float = 0.0

    def __post_init__(self) -> None:
        _check_choices(self, "model.rope", "rope.")
        for name in ("theta", "factor"):
            _check_positive(f"model.rope.{name}", getattr(self, name))
        if not 0 < self.fraction <= 1:
            raise errors.BadInput(
                f"model.rope.fraction is {self.fraction}; it must be above 0 and at most 1"
            )
        if self.scaling in ("llama3", "yarn"):
            if self.original_length < 1:
                raise errors.BadInput(
                    f"model.rope.original_length is {self.original_length}, and scaling {self.scaling!r} needs the "
                    "window before it grew; give it"
                )
            if not 0 < self.low < self.high:
                raise errors.BadInput(
                    f"model.rope.low={self.low} is not above 0 and below model.rope.high={self.high}; "
                    "change one of them"
                )


@dataclasses.dataclass(frozen=True)
class Scores:
    """How attention scores are made of queries and keys.

    Attributes:
        scale: multiplies them; 0 is `head_size ** -0.5`. T5 has 1.
        cap: `cap tanh(score / cap)` bounds them (Gemma 2); 0 leaves them.
        norm: queries and keys are RMS-normalised over the head first (Qwen 3).
    """

    scale: float = 0.0
    cap: float = 0.0
    norm: bool = False

    def __post_init__(self) -> None:
        for name in ("scale", "cap"):
            _check_not_negative(f"model.scores.{name}", getattr(self, name))


@dataclasses.dataclass(frozen=True)
class Experts:
    """Mixture of experts in place of the one feed-forward (Mixtral): each token uses `chosen` of `count`; 0 is none."""

    count: int = 0
    chosen: int = 2

    def __post_init__(self) -> None:
        if self.count < 0 or (self.count and not 1 <= self.chosen <= self.count):
            raise errors.BadInput(
                f"model.experts has count={self.count} and chosen={self.chosen}; chosen must be from 1 to count"
            )


@dataclasses.dataclass(frozen=True)
class Head:
    """What the last hidden states become.

    Attributes:
        kind: `lm` gives logits over the vocabulary (of an encoder, for masked tokens); `sequence` classifies a text
            as a whole; `token` each token; `none` gives the hidden states themselves.
        labels: names of the classes, in order.
        activation: between the two maps of `sequence`: `tanh` (BERT, RoBERTa) or `relu` (DistilBERT).
        pooling: what `sequence` reads: the hidden state of the first token, or the mean of all.
        next_sentence: beside the `lm` of an encoder, whether a second text follows the first (BERT's pre-training).
    """

    kind: str = "lm"
    labels: tuple[str, ...] = ()
    activation: str = "tanh"
    pooling: str = "first"
    next_sentence: bool = False

    def __post_init__(self) -> None:
        _check_choices(self, "model.head", "head.")
        if self.next_sentence and self.kind != "lm":
            raise errors.BadInput(
                f"model.head.next_sentence is true and model.head.kind is {self.kind!r}; only 'lm' has both"
            )
        if self.pooling != "first" and self.kind != "sequence":
            raise errors.BadInput(
                f"model.head.pooling is {self.pooling!r} and model.head.kind is {self.kind!r}; only 'sequence' pools"
            )
        if bool(self.labels) != (self.kind in ("sequence", "token")):
            raise errors.BadInput(
                f"model.head has kind={self.kind!r} and {len(self.labels)} labels; "
                "a classification head needs labels, and no other has any"
            )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The weights of a model: enough to build it, count it and load it.

    The defaults are those of LLaMA; `model.presets` spells out the others. Fields left 0 follow from the rest:
    `kv_heads = heads`, `head_size = width / heads`, `hidden = 4 width` (plain) or `8/3 width` rounded up to a multiple
    of 8 (gated). A recurrent model reads the sizes, `tied`, `embedding` and nothing else.

    Attributes:
        context_length: the longest row of tokens (of each side, in an encoder–decoder).
        layers, encoder_layers: blocks; in an encoder–decoder `layers` are the decoder's, and the encoder's follow.
        position: `learned_from_2` leaves the table's first two rows unused, as fairseq does (RoBERTa, BART);
            `sinusoidal` interleaves sines and cosines as the paper of 2017 has it, `sinusoidal_halves` keeps them apart
            as its code does (Marian); `relative` is T5's buckets.
        windows: how many tokens back a layer sees, itself among them, repeated over the layers; 0 sees all.
            `(4096,)` is Mistral, `(4096, 0)` Gemma 2.
        norm: `rms_plus_one` multiplies by one more than its weights (Gemma).
        block: where norms stand: before each part (`pre`), after each sum (`post`), around each part (`sandwich`); in
            `parallel` attention and feed-forward read the same input (GPT-NeoX).
        bias: which maps have one: `qkv` queries, keys and values (Qwen 2); `attention` its output too; `all` the
            feed-forward too; `output` the map onto the vocabulary too (Marian).
        tied: the embedding is the output's table (in an encoder–decoder one table serves all three).
        embedding: `scaled` by sqrt(width); `normed` after positions are added; `head_scaled` instead multiplies by
            width^-0.5 before the tied head (T5).
        logit_cap: as `scores.cap`, of the logits.
        token_types: rows of the table that is added for each token's type (BERT: 2).
    """

    vocab_size: int
    context_length: int
    layers: int
    width: int
    heads: int = 0
    family: str = "decoder_only"
    encoder_layers: int = 0
    kv_heads: int = 0
    head_size: int = 0
    hidden: int = 0
    position: str = "rope"
    rope: Rope = Rope()
    windows: tuple[int, ...] = ()
    scores: Scores = Scores()
    norm: str = "rms"
    norm_epsilon: float = 1e-5
    block: str = "pre"
    activation: str = "swiglu"
    experts: Experts = Experts()
    bias: str = "none"
    tied: bool = False
    embedding: str = "plain"
    logit_cap: float = 0.0
    token_types: int = 0
    head: Head = Head()

    def __post_init__(self) -> None:
        _check_choices(self, "model")
        if self.family in RECURRENT:
            self._set(position="none", heads=1, kv_heads=1, head_size=self.width, hidden=self.width)
        for name in ("vocab_size", "context_length", "layers", "width", "heads"):
            if getattr(self, name) < 1:
                raise errors.BadInput(
                    f"model.{name} is {getattr(self, name)}; it must be at least 1"
                )
        for name in ("kv_heads", "head_size", "hidden", "encoder_layers"):
            if getattr(self, name) < 0:
                raise errors.BadInput(
                    f"model.{name} is {getattr(self, name)}; it must be at least 1, or 0 to follow from the others"
                )
        _check_positive("model.norm_epsilon", self.norm_epsilon)
        _check_not_negative("model.logit_cap", self.logit_cap)
        _check_not_negative("model.token_types", self.token_types)
        if any(window < 0 for window in self.windows) or len(self.windows) > self.layers:
            raise errors.BadInput(
                f"model.windows is {self.windows}; it must hold at most one number per layer, each at least 1, or 0 "
                "to see all"
            )
        self._set(kv_heads=self.kv_heads or self.heads)
        if not self.head_size:
            if self.width % self.heads:
                raise errors.BadInput(
                    f"model.heads={self.heads} does not divide model.width={self.width}; "
                    "change one of them, or set model.head_size"
                )
            self._set(head_size=self.width // self.heads)
        if self.heads % self.kv_heads:
            raise errors.BadInput(
                f"model.kv_heads={self.kv_heads} does not divide model.heads={self.heads}; change one of them"
            )
        if self.position == "rope" and (self.rotary_size % 2 or not self.rotary_size):
            raise errors.BadInput(
                f"model.head_size={self.head_size} and model.rope.fraction={self.rope.fraction} turn "
                f"{self.rotary_size} entries of a head, and rotary positions turn pairs; make it even or choose "
                "another model.position"
            )
        if not self.hidden:
            hidden = -(-8 * self.width // 24) * 8 if self.gated else 4 * self.width
            self._set(hidden=hidden)
        self._check_family()

    def _check_family(self) -> None:
        """What only some families have."""
        if self.family == "encoder_decoder":
            self._set(encoder_layers=self.encoder_layers or self.layers)
        only = {
            "encoder_layers": ("encoder_decoder",),
            "windows": ("decoder_only",),
            "token_types": ("encoder_only",),
        }
        for name, families in only.items():
            if getattr(self, name) and self.family not in families:
                raise errors.BadInput(
                    f"model.{name} is {getattr(self, name)}, which a model of family {self.family!r} does not have; "
                    "leave it out"
                )
        if self.head != Head() and self.family != "encoder_only":
            name = "kind" if self.head.kind != "lm" else "next_sentence"
            raise errors.BadInput(
                f"model.head.{name} is {getattr(self.head, name)!r}, which only an encoder_only model has; leave it out"
            )

    @property
    def gated(self) -> bool:
        """Whether the feed-forward multiplies its activation by a third map (Shazeer 2020)."""
        return self.activation in GATED

    @property
    def rotary_size(self) -> int:
        """Entries of each head that rotary positions turn."""
        return int(self.head_size * self.rope.fraction)

    def window(self, layer: int) -> int:
        """How many tokens back that layer sees; 0 sees all."""
        return self.windows[layer % len(self.windows)] if self.windows else 0

    def check_length(self, tokens: int) -> None:
        """Refuses a row of more tokens than the window holds."""
        if tokens > self.context_length:
            raise errors.BadInput(
                f"{tokens} tokens are more than model.context_length={self.context_length}; shorten the input"
            )

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)


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
        attention: how rows without a cache attend: `xla` at once; `blocks` of 128 queries, each to the keys it can see,
            whose maps the backward pass computes again, so that none is stored; `splash`, JAX's kernel for TPUs, for
            causal rows of whole blocks without a bias or a window (others as `xla`); `cudnn`, the fused kernel of
            NVIDIA GPUs, in bfloat16; `auto` takes blocks for causal rows of more than 256 tokens, and `xla` otherwise.
    """

    dtype: str = "float32"
    dropout: float = 0.0
    scan: bool = False
    unroll: int = 1
    remat: str = "none"
    attention: str = "auto"

    def __post_init__(self) -> None:
        _check_choices(self, "runtime")
        if not 0.0 <= self.dropout < 1.0:
            raise errors.BadInput(
                f"runtime.dropout is {self.dropout}; it must be at least 0 and below 1"
            )
        if self.attention == "cudnn" and self.dtype != "bfloat16":
            raise errors.BadInput(
                f"runtime.attention is 'cudnn', which computes in bfloat16, and runtime.dtype is {self.dtype!r}; "
                "change one of them"
            )
        if self.unroll < 1:
            raise errors.BadInput(f"runtime.unroll is {self.unroll}; it must be at least 1")
