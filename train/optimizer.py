"""How does a gradient become an update? What a config may ask for, checked, and the optax transformation it means.

Clipping comes first, then the optimiser, then decay and the learning rate, whose factors go by rule.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import optax

import model
from model import errors
from model.config import ModelConfig, Runtime
from train import paths, schedules, transforms

# What each optimiser reads besides what all read, and its defaults.
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"b1": 0.9, "b2": 0.95, "eps": 1e-8},
    "adafactor": {},
    "lion": {"b1": 0.9, "b2": 0.99},
    "muon": {"momentum": 0.95, "nesterov": True, "b1": 0.9, "b2": 0.95, "eps": 1e-8},
    "sgd": {"momentum": 0.9, "nesterov": False},
    "schedule_free": {"b1": 0.9, "b2": 0.95, "eps": 1e-8},
}
OWN = ("b1", "b2", "eps", "momentum", "nesterov")
NO_MOMENT = ("adafactor", "schedule_free")
MOMENTS = ("float32", "bfloat16")
# The largest b2 with which a second moment may be bfloat16. Its 8 bits round changes by less than 2^-8 away, so it
# stalls where `(1 - b2) |g^2 / v - 1| < 2^-8`: here within 8 % of g^2, 4 % of an update. At b2 = 0.999 it could rise
# only where g^2 is some times v, and never fall: it would lose 0.1 % a step, and rounding takes back at least 0.2 %.
BFLOAT16_B2 = 0.95


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An optimiser, its learning rate, and which parameters they are for.

    A setting that the chosen optimiser or schedule does not read is None, and refused when it is given.

    Attributes:
        name: `adamw` (Loshchilov & Hutter 2019), `adafactor` (Shazeer & Stern 2018, without momentum, relative to each
            matrix's size), `lion` (Chen et al. 2023), `muon` (Jordan et al. 2024, for the matrices of the layers; AdamW
            for the rest), `sgd`, or `schedule_free` (Defazio et al. 2024, on AdamW).
        learning_rate: the highest, reached at the end of warm-up.
        schedule: how it falls from there: `cosine` (unless another is asked for), `linear`, `inverse_sqrt` (Vaswani et
            al. 2017), `wsd` (Hu et al. 2024: only over the last `decay_fraction` of all steps, linearly) or not at all
            (`constant`, which schedule_free demands).
        warmup_steps: steps of linear rise before it.
        end_fraction: of the highest learning rate, at the last step; for cosine, linear and wsd.
        decay_fraction: of all steps, the last ones that wsd falls over; 0.1 unless given.
        weight_decay: per step and per unit of learning rate, whichever the optimiser.
        b1, b2: decay of the first and second moment, of adamw and of muon's AdamW. In lion b1 mixes the update and b2
            is its moment's; in schedule_free b1 says how far the trained weights are drawn to their average.
        eps: floor of AdamW's denominator.
        momentum, nesterov: of sgd and muon.
        moments_dtype: of first moments.
        second_moments_dtype: of adamw's second moments; bfloat16 needs a `b2` of at most BFLOAT16_B2.
        clip_norm: gradients longer than this are shortened to it; None leaves them.
        decay_rules: pairs of a regex and a number that multiplies `weight_decay`, for the parameters whose path it is
            found in, such as `stack/layers/attention/query/weight`. The first that matches wins, one must match.
        rate_rules: likewise, what multiplies the learning rate (and with it, decay); none is all 1.
        frozen: regexes of parameters that are not trained.
        ema_decay: per step, of an average of the weights that is used in place of the trained ones; 0 is none.
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    schedule: str | None = None
    warmup_steps: int = 0
    end_fraction: float = 0.1
    decay_fraction: float | None = None
    weight_decay: float = 0.1
    b1: float | None = None
    b2: float | None = None
    eps: float | None = None
    momentum: float | None = None
    nesterov: bool | None = None
    moments_dtype: str = "float32"
    second_moments_dtype: str = "float32"
    clip_norm: float | None = 1.0
    decay_rules: tuple[tuple[Any, ...], ...] = paths.DECAY
    rate_rules: tuple[tuple[Any, ...], ...] = ()
    frozen: tuple[str, ...] = ()
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        self._choice("name", OPTIMIZERS)
        self._resolve()
        self._choice("schedule", schedules.SCHEDULES)
        self._choice("moments_dtype", MOMENTS)
        self._choice("second_moments_dtype", MOMENTS)
        rate_holds = 0 < self.learning_rate < math.inf
        self._check(rate_holds, "learning_rate", "above 0 and finite")
        self._check(self.warmup_steps >= 0, "warmup_steps", "at least 0")
        self._check(0 <= self.end_fraction <= 1, "end_fraction", "between 0 and 1")
        if self.decay_fraction is not None:
            self._check(0 < self.decay_fraction <= 1, "decay_fraction", "above 0 and at most 1")
        self._check(0 <= self.weight_decay < math.inf, "weight_decay", "at least 0 and finite")
        for name in ("b1", "b2", "momentum", "ema_decay"):
            self._check(0 <= (getattr(self, name) or 0) < 1, name, "at least 0 and below 1")
        self._check(self.eps is None or self.eps > 0, "eps", "above 0")
        self._check(self.clip_norm is None or self.clip_norm > 0, "clip_norm", "above 0, or None")
        self._check_together()
        for name in ("decay_rules", "rate_rules"):
            for rule in getattr(self, name):
                self._check_rule(name, rule)
        for pattern in self.frozen:
            self._check_pattern("frozen", pattern)

    def _choice(self, name: str, known: Any) -> None:
        value = getattr(self, name)
        if value not in known:
            raise errors.BadInput(
                f"optimizer.{name} is {value!r}{errors.nearest(str(value), known)}; known: {', '.join(known)}"
            )

    def _check(self, holds: bool, name: str, wanted: str) -> None:
        if not holds:
            raise errors.BadInput(f"optimizer.{name} is {getattr(self, name)}; it must be {wanted}")

    def _resolve(self) -> None:
        """Fills in the defaults of what is read, and refuses what is not."""
        own = OPTIMIZERS[self.name]
        defaults: dict[str, Any] = dict(own)
        if self.schedule is None:
            defaults["schedule"] = "constant" if self.name == "schedule_free" else "cosine"
        if self.schedule == "wsd":
            defaults["decay_fraction"] = 0.1
        for name in OWN:
            if getattr(self, name) is not None and name not in own:
                reads = ", ".join(own) or "none of these"
                raise errors.BadInput(
                    f"optimizer.{name} is {getattr(self, name)}, which {self.name} does not read "
                    f"(it reads {reads}); remove it"
                )
        if self.decay_fraction is not None and self.schedule != "wsd":
            raise errors.BadInput(
                f"optimizer.decay_fraction is {self.decay_fraction}, which only the schedule wsd reads; remove it"
            )
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    def _check_together(self) -> None:
        if self.moments_dtype != "float32" and self.name in NO_MOMENT:
            raise errors.BadInput(
                f"optimizer.moments_dtype is {self.moments_dtype!r}, but {self.name} keeps no first moment; remove it"
            )
        self._check_second_moments()
        if self.name != "schedule_free":
            return
        self._check(self.b1 != 0, "b1", "above 0 for schedule_free, whose average it weighs")
        if self.schedule != "constant":
            raise errors.BadInput(
                f"optimizer.schedule is {self.schedule!r}, and schedule_free replaces a falling rate; "
                "remove it or set it to 'constant'"
            )
        if self.ema_decay:
            raise errors.BadInput(
                f"optimizer.ema_decay is {self.ema_decay}, and schedule_free keeps an average already; remove it"
            )

    def _check_second_moments(self) -> None:
        """Refuses bfloat16 where it could not follow the gradients, and where there is none to choose."""
        given = f"optimizer.second_moments_dtype is {self.second_moments_dtype!r}"
        if self.second_moments_dtype == "float32":
            return
        if self.name != "adamw":
            raise errors.BadInput(
                f"{given}, which adamw alone reads, and not {self.name}; remove it"
            )
        if self.b2 is not None and self.b2 > BFLOAT16_B2:
            raise errors.BadInput(
                f"{given} and optimizer.b2 is {self.b2}: a change of {1 - self.b2:.2g} per step is lost in the 8 bits "
                f"of bfloat16; lower b2 to {BFLOAT16_B2}, or keep float32"
            )

    def _check_rule(self, name: str, rule: tuple[Any, ...]) -> None:
        number = rule[1] if len(rule) == 2 else None
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise errors.BadInput(
                f"optimizer.{name} has {rule!r}; it must be a pair of a regex and a number"
            )
        if not 0 <= number < math.inf:
            raise errors.BadInput(
                f"optimizer.{name} has {rule!r}; its number must be at least 0 and finite"
            )
        self._check_pattern(name, rule[0])

    def _check_pattern(self, name: str, pattern: Any) -> None:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise errors.BadInput(
                f"optimizer.{name} has {pattern!r}, which is no regex ({error}); correct it"
            ) from error


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate of each step, counted from 0.

    From `learning_rate / (warmup_steps + 1)` at step 0 it rises by as much each step, to
    `learning_rate` at step `warmup_steps`; from there it falls as the schedule says, to
    `end_fraction * learning_rate` at the last step, `steps - 1`, if at all.

    Raises:
        BadInput: when warm-up, or wsd's decline, does not fit into `steps`.
    """
    warmup = config.warmup_steps
    if warmup >= steps:
        raise errors.BadInput(
            f"optimizer.warmup_steps={warmup} does not end within {steps} steps of training; "
            "lower it or train longer"
        )
    span = schedules.Span(
        peak=config.learning_rate,
        warmup=warmup,
        length=max(steps - 1 - warmup, 1),
        end_fraction=config.end_fraction,
        decay=max(round((config.decay_fraction or 0) * steps), 1),
    )
    return schedules.with_warmup(str(config.schedule), span)


def build(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, then the optimiser; the state records the `learning_rate` last used.

    Raises:
        BadInput: when it is initialised with parameters that the rules do not fit.
    """
    clip = (
        optax.identity()
        if config.clip_norm is None
        else optax.clip_by_global_norm(config.clip_norm)
    )
    inner = transforms.frozen(optax.chain(clip, *_steps(config, steps)), config.frozen)
    if config.name == "schedule_free":
        inner = transforms.averaged(inner, transforms.interpolated, config.frozen)
    elif config.ema_decay:
        inner = transforms.averaged(inner, transforms.ema(config.ema_decay), config.frozen)

    def init(params: Any) -> Any:
        check(config, params)
        return inner.init(params)

    return optax.GradientTransformation(init, inner.update)


def check(config: OptimizerConfig, params: Any) -> None:
    """Refuses rules that do not fit parameters, which may be abstract: one without a rule, or a rule without one.

    Nobody asked for the rules that come with it: an adapter may have nothing for one of them.
    """
    spare = config.decay_rules == paths.DECAY
    paths.by_rule(config.decay_rules, params, "optimizer.decay_rules: ", spare=spare)
    if config.rate_rules:
        paths.by_rule(config.rate_rules, params, "optimizer.rate_rules: ")
    paths.found(config.frozen, params, "optimizer.frozen: ")


def check_model(config: OptimizerConfig, described: ModelConfig) -> None:
    """`check` with the parameters of a model that is not built; the rules that come with it fit any."""
    if (config.decay_rules, config.rate_rules, config.frozen) == (paths.DECAY, (), ()):
        return
    net = model.build(described, Runtime(scan=True))
    check(config, jax.eval_shape(functools.partial(model.init, net), key=jax.random.key(0)))


def _steps(config: OptimizerConfig, steps: int) -> Sequence[optax.GradientTransformation]:
    """What the optimiser itself does to clipped gradients, one after the other."""
    own = {name: getattr(config, name) for name in OPTIMIZERS[config.name]}
    dtype = config.moments_dtype
    decay = transforms.decay_weights(config.weight_decay, config.decay_rules)
    rate = schedule(config, steps)
    scale = transforms.scale_by_schedule(rate, config.rate_rules)
    if config.name == "schedule_free":
        return [transforms.schedule_free(rate, **own, after=optax.chain(decay, scale))]
    makers = {
        "adamw": lambda: transforms.adam(
            **own, dtype=dtype, second_dtype=config.second_moments_dtype
        ),
        "adafactor": transforms.adafactor,
        "lion": lambda: optax.scale_by_lion(**own, mu_dtype=dtype),
        "muon": lambda: transforms.muon(**own, dtype=dtype),
        "sgd": lambda: transforms.sgd(**own, dtype=dtype),
    }
    return [makers[config.name](), decay, scale]
