"""How a recogniser is fine-tuned."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from bilevel.errors import OptionError
from bilevel.options import check_count, check_positive
from bilevel.problems.speech.recognition.augmentation import SpecAugment


@dataclass(frozen=True, kw_only=True)
class FineTuningOptions:
    """AdamW with a rate for the output layer and one for the encoder, in three stages.

    Both rates rise linearly, stay, and fall exponentially.

    Parameters
    ----------
    head_lr, encoder_lr
        Rates in the middle stage.
    warm_up, hold
        Shares of the steps that the first two stages take.
    final
        What is left of the rates at the end, as a share.
    frozen_steps
        First steps, in which only the output layer is trained.
    weight_decay
        Of AdamW.
    max_norm
        Longer gradients are clipped to this norm.
    augment
        Applied to the features; ``None`` trains on them as they are.
    precision
        Type of autocast, such as ``torch.bfloat16``; ``None`` computes in the weights' own. The
        loss is in float32 either way.
    """

    head_lr: float = 1e-3
    encoder_lr: float = 2e-4
    warm_up: float = 0.1
    hold: float = 0.4
    final: float = 0.05
    frozen_steps: int = 0
    weight_decay: float = 0.01
    max_norm: float = 5.0
    augment: SpecAugment | None = field(default_factory=SpecAugment)
    precision: torch.dtype | None = None

    def __post_init__(self) -> None:
        for name in ("head_lr", "encoder_lr", "final", "max_norm"):
            check_positive(name, getattr(self, name))
        check_count("frozen_steps", self.frozen_steps, least=0)
        if not (self.warm_up >= 0 and self.hold >= 0 and self.warm_up + self.hold <= 1):
            raise OptionError(
                f"warm_up={self.warm_up!r} and hold={self.hold!r}, expected shares of the steps "
                "that add up to at most 1"
            )
        if not self.weight_decay >= 0:
            raise OptionError(f"weight_decay={self.weight_decay!r}, expected a number >= 0")
        if self.precision not in (None, torch.bfloat16):
            raise OptionError(
                f"precision={self.precision}, expected torch.bfloat16 or None: float16 would need "
                "its loss scaled"
            )

    def rate(self, step: int, steps: int) -> float:
        """Factor of both rates in a step, counted from 0."""
        done = (step + 1) / steps
        if done < self.warm_up:
            return done / self.warm_up
        rest = 1.0 - self.warm_up - self.hold
        if done <= self.warm_up + self.hold or rest <= 0:
            return 1.0
        return float(self.final ** ((done - self.warm_up - self.hold) / rest))
