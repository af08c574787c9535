"""Pretraining as a simple bilevel problem, solved by ``PBGDFree`` as it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bilevel.callbacks import Callback, Record, Settings
from bilevel.errors import OptionError
from bilevel.optimizers import has_fused_steps
from bilevel.options import check_count, check_nonnegative, check_positive, check_share
from bilevel.problem import BilevelProblem
from bilevel.problems.speech.codes import CodeMonitor
from bilevel.problems.speech.inputs import naming_utterances
from bilevel.problems.speech.losses import PretrainingLosses
from bilevel.solution import Solution
from bilevel.solvers import PBGDFree

#: The penalty while only the anchor labels are learnt.
_ANCHOR_ONLY = 1e12


def pretraining_problem(losses: nn.Module) -> BilevelProblem:
    r"""BiRQ's program (arXiv:2509.15430, equation 8): among the minimisers of G, the least F.

    .. math:: \min_\theta F(\theta) \quad\text{s.t.}\quad \theta \in \argmin_{\theta'} G(\theta')

    x is empty and y is θ, so the penalised problem :math:`\min_\theta F + \gamma (G - \min G)`
    needs no second response: min G is a constant.

    Parameters
    ----------
    losses
        A :class:`PretrainingLosses`, or its wrapper under DDP.
    """
    return BilevelProblem(objectives=lambda x, y, batch: losses(batch))


@dataclass(frozen=True, kw_only=True)
class PretrainingOptions:
    r"""How a model is pretrained.

    Parameters
    ----------
    steps
        Optimiser steps.
    lr, warmup, final
        Peak learning rate, the share of the steps in which it rises from 0, and the share of the
        peak that a cosine leaves at the end.
    weight_decay, betas, clip_norm
        Of AdamW (the decay is of matrices, not of biases or norms), and the bound on the gradient's
        norm.
    penalty
        :math:`\gamma = w_2 / w_1`; 24 in the paper.
    anchor_share
        Share of the steps, at the beginning, that learn the anchor labels alone: the features of an
        untrained encoder make enhanced labels of noise.
    accumulate
        Micro-batches a step.
    autocast
        ``torch.bfloat16`` for mixed precision: projections, codes, losses and norms stay in single
        precision, the hidden states that enhanced labels quantise do not.
    """

    steps: int
    lr: float = 1e-3
    warmup: float = 0.05
    final: float = 0.1
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    clip_norm: float = 5.0
    penalty: float = 24.0
    anchor_share: float = 0.0
    accumulate: int = 1
    autocast: torch.dtype | None = None

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_positive("lr", self.lr)
        check_positive("penalty", self.penalty)
        check_positive("clip_norm", self.clip_norm)
        check_nonnegative("weight_decay", self.weight_decay)
        for name in ("warmup", "final", "anchor_share"):
            check_share(name, getattr(self, name))
        check_count("accumulate", self.accumulate)
        try:
            first, second = self.betas
            for name, beta in (("betas[0]", first), ("betas[1]", second)):
                check_share(name, beta, below_one=True)
        except (TypeError, ValueError) as error:
            raise OptionError(f"betas={self.betas!r}, expected two shares in [0, 1)") from error
        if self.autocast not in (None, torch.bfloat16):
            raise OptionError(f"autocast={self.autocast!r}, expected torch.bfloat16 or None")

    def solver(self) -> PBGDFree:
        """The solver of these options."""
        return PBGDFree(
            penalty=_after(self.penalty, round(self.anchor_share * self.steps)),
            lower_optimizer=partial(adamw, options=self),
            lower_scheduler=partial(
                torch.optim.lr_scheduler.LambdaLR, lr_lambda=self.learning_rate_factor
            ),
            clip_norm=self.clip_norm,
            accumulate=self.accumulate,
            autocast=self.autocast,
        )

    def learning_rate_factor(self, step: int) -> float:
        """Learning rate over its peak: linear warm-up, then a cosine."""
        rise = max(1, round(self.warmup * self.steps))
        if step < rise:
            return (step + 1) / rise
        share = min(1.0, (step - rise) / max(1, self.steps - rise))
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * share))


def pretrain(
    losses: PretrainingLosses,
    batches: Iterable[Any],
    options: PretrainingOptions,
    *,
    wrapper: nn.Module | None = None,
    monitor: CodeMonitor | None = None,
    callbacks: Sequence[Callback | Callable[[Record, Any], Any]] = (),
    log_every: int | None = None,
    progress: bool | None = None,
    resume: str | Path | None = None,
) -> Solution:
    """Train ``losses.model`` in place; it is to be calibrated afterwards, see its ``calibrate``.

    Parameters
    ----------
    losses
        The objectives and the model.
    batches
        A loader of speech batches or of :class:`SpeechInputs`, gone through again and again.
    options
        Steps, rates, penalty.
    wrapper
        ``DistributedDataParallel(losses)``, in several processes.
    monitor
        A guard other than the default one.
    callbacks, log_every, progress, resume
        Those of :meth:`~bilevel.solvers.base.PenaltySolver.solve`; the columns ``upper`` and
        ``lower`` of its history are F and G. A run resumed from a checkpoint ends bit for bit where
        the uninterrupted one ends.

    Returns
    -------
    Solution
        The run's record.

    Raises
    ------
    NonFiniteError
        A loss or a gradient is not finite; the message names utterances of the batch.
    CheckpointError
        The checkpoint is of another run, model or method, or of other options.
    """
    losses.train()
    losses.model.enhanced_projection.forget_calibration()
    monitor = monitor or CodeMonitor(losses.statistics)
    with naming_utterances(losses):
        return options.solver().solve(
            pretraining_problem(wrapper or losses),
            (),
            dict(losses.named_parameters()),
            max_steps=options.steps,
            tolerance=0.0,
            lower_batches=batches,
            callbacks=[Settings(settings_of(losses, options)), monitor, *callbacks],
            log_every=log_every,
            progress=progress,
            resume=resume,
        )


def settings_of(losses: PretrainingLosses, options: PretrainingOptions) -> dict[str, Any]:
    """What a run is to be resumed with: its options, model and method."""
    return {
        **asdict(options), "autocast": str(options.autocast), "method": losses.method,
        "model": asdict(losses.model.options),
    }  # fmt: skip


def adamw(leaves: Iterable[Tensor], options: PretrainingOptions) -> torch.optim.Optimizer:
    """AdamW that decays matrices and leaves biases and norms alone."""
    leaves = list(leaves)
    groups: list[dict[str, Any]] = [
        {"params": [leaf for leaf in leaves if leaf.ndim > 1]},
        {"params": [leaf for leaf in leaves if leaf.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=options.lr,
        betas=options.betas,
        weight_decay=options.weight_decay,
        fused=has_fused_steps(leaves[0]),
    )


def _after(penalty: float, steps: int) -> float | Callable[[int], float]:
    if steps == 0:
        return penalty
    return lambda step: _ANCHOR_ONLY if step < steps else penalty
