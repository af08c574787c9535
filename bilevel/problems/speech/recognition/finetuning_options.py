"""How a recogniser is fine-tuned."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bilevel.errors import OptionError
from bilevel.optimizers import has_fused_steps
from bilevel.options import check_count, check_nonnegative, check_positive, check_share
from bilevel.problems.speech.recognition.augmentation import SpecAugment
from bilevel.solvers import PBGDFree


@dataclass(frozen=True, kw_only=True)
class FineTuningOptions:
    """AdamW with a rate for the output layer and one for the encoder, in three stages.

    Both rates rise linearly, stay, and fall exponentially.

    Parameters
    ----------
    head_lr, encoder_lr
        Rates in the middle stage.
    warmup, hold
        Shares of the steps that the first two stages take.
    final
        What is left of the rates at the end, as a share.
    frozen_steps
        First steps, in which the encoder's rate is 0.
    weight_decay, clip_norm
        Of AdamW, and the bound on the gradient's norm.
    augment
        Applied to the features; ``None`` trains on them as they are.
    autocast
        ``torch.bfloat16`` for mixed precision; the loss stays in single precision.
    """

    head_lr: float = 1e-3
    encoder_lr: float = 2e-4
    warmup: float = 0.1
    hold: float = 0.4
    final: float = 0.05
    frozen_steps: int = 0
    weight_decay: float = 0.01
    clip_norm: float = 5.0
    augment: SpecAugment | None = field(default_factory=SpecAugment)
    autocast: torch.dtype | None = None

    def __post_init__(self) -> None:
        for name in ("head_lr", "encoder_lr", "final", "clip_norm"):
            check_positive(name, getattr(self, name))
        for name in ("warmup", "hold", "final"):
            check_share(name, getattr(self, name))
        if self.warmup + self.hold > 1:
            raise OptionError(
                f"warmup={self.warmup} and hold={self.hold}, expected shares of the steps that "
                "add up to at most 1"
            )
        check_count("frozen_steps", self.frozen_steps, least=0)
        check_nonnegative("weight_decay", self.weight_decay)
        if self.autocast not in (None, torch.bfloat16):
            raise OptionError(
                f"autocast={self.autocast}, expected torch.bfloat16 or None: float16 would need "
                "its loss scaled"
            )

    def solver(self, head: nn.Module, steps: int) -> PBGDFree:
        """The solver of a run of so many steps; ``head`` is the output layer."""

        def head_rate(step: int) -> float:
            return self.learning_rate_factor(step, steps)

        def encoder_rate(step: int) -> float:
            return 0.0 if step < self.frozen_steps else head_rate(step)

        rates: list[Callable[[int], float]] = [head_rate, encoder_rate]
        return PBGDFree(
            penalty=1.0,  # f is zero
            lower_optimizer=partial(_adamw, head=head, options=self),
            lower_scheduler=partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=rates),
            clip_norm=self.clip_norm,
            autocast=self.autocast,
        )

    def learning_rate_factor(self, step: int, steps: int) -> float:
        """Factor of both rates in a step, counted from 0, of a run of so many."""
        done = (step + 1) / steps
        if done < self.warmup:
            return done / self.warmup
        rest = 1.0 - self.warmup - self.hold
        if done <= self.warmup + self.hold or rest <= 0:
            return 1.0
        return float(self.final ** ((done - self.warmup - self.hold) / rest))


def _adamw(
    leaves: Iterable[Tensor], head: nn.Module, options: FineTuningOptions
) -> torch.optim.Optimizer:
    """AdamW of two groups: the output layer, and the encoder."""
    outputs = {id(each) for each in head.parameters()}
    groups: tuple[list[Tensor], list[Tensor]] = ([], [])
    for leaf in leaves:
        groups[id(leaf) not in outputs].append(leaf)
    rates = (options.head_lr, options.encoder_lr)
    with_rates: list[dict[str, Any]] = [
        {"params": group, "lr": lr} for group, lr in zip(groups, rates, strict=True)
    ]
    fused = has_fused_steps(groups[0][0])
    return torch.optim.AdamW(with_rates, weight_decay=options.weight_decay, fused=fused)
