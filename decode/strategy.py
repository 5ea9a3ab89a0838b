"""What of a request is compiled? Its strategy; everything else about it is an array.

Requests of one strategy share batches. The strategies are combinations: how the next token is chosen (drawn, by
beams, by contrastive search), whose order the processors have, whether tokens are drafted ahead, and whether a
second opinion is weighed in.
"""

import dataclasses
from typing import Any, NamedTuple

from decode.settings import Settings
from model import errors
from model.cache import STATES
from model.config import RECURRENT, ModelConfig

GUIDE_SLOTS = 64  # a negative prompt that is longer than the prompt gets slots in steps of so many


@dataclasses.dataclass(frozen=True)
class Strategy:
    """What is compiled.

    Attributes:
        kind: "draw", "beam" or "contrastive", of `loop.STEPS`.
        preset: of `processors.PRESETS`.
        width: rows of one completion: its beams, or its candidates.
        groups: of beams.
        drafts: tokens proposed at a time.
        draft: who proposes: "model", "lookup" (the text so far) or "".
        guide: what is weighed against the model: "prompt" (the model on another prompt), "amateur" (another model),
            "early" (the model's own early layers) or "".
        early: those layers; layer 0 is the embedding.
        further: slots that the guide needs beyond those of the tokens.
    """

    kind: str = "draw"
    preset: str = "hf"
    width: int = 1
    groups: int = 1
    drafts: int = 0
    draft: str = ""
    guide: str = ""
    early: tuple[int, ...] = ()
    further: int = 0

    @property
    def second(self) -> bool:
        """Whether a second cache goes along for the guide."""
        return self.guide in ("prompt", "amateur")


class Models(NamedTuple):
    """One of something for the model itself, and for those who help it; None for who is not there."""

    main: Any
    guide: Any = None
    draft: Any = None


def of(settings: Settings, config: ModelConfig) -> Strategy:
    """The strategy that settings ask of a model."""
    s, kind, width = settings, "draw", 1
    if s.num_beams > 1:
        kind, width = "beam", s.num_beams
    if s.penalty_alpha:
        kind, width = "contrastive", 1 << (min(s.top_k, config.vocab_size) - 1).bit_length()
    draft = "model" if s.num_assistant_tokens else "lookup" if s.prompt_lookup_num_tokens else ""
    if config.family in RECURRENT:
        check_rollback(s.drafts)
    guide = ""
    early: tuple[int, ...] = ()
    if s.guidance_scale != 1:
        guide = "prompt"
    elif s.contrastive_beta:
        guide = "amateur"
    elif s.dola_layers is not None:
        guide, early = "early", _early(s.dola_layers, config)
    return Strategy(kind, s.preset, width, s.num_beam_groups, s.drafts, draft, guide, early)


def check_rollback(drafts: int) -> None:
    """Refuses more drafts than a recurrent model can take back."""
    if drafts >= STATES:
        raise errors.BadInput(
            f"{drafts} tokens are to be drafted, and a recurrent model can take back {STATES - 1}; draft fewer"
        )


def _early(layers: str | tuple[int, ...], config: ModelConfig) -> tuple[int, ...]:
    """The layers that DoLa may contrast with: every second one of the lower or the upper half, or those named.

    A tied head cannot read the first layers' states, so "low" begins at 2 there (Chuang et al. 2024, section 3).
    """
    count = config.layers
    if isinstance(layers, tuple):
        wrong = [i for i in layers if i >= count]
        if wrong:
            raise errors.BadInput(
                f"dola_layers has {wrong[0]}, and the model has {count} layers; name some of 0 to {count - 1}"
            )
        return tuple(sorted(set(layers)))
    if layers == "high":
        return tuple(range(max(count // 2, count - 20), count, 2))
    start = min(2, count - 1) if config.tied and count > 1 else 0
    return tuple(range(start, min(count // 2, 20), 2)) or (start,)
