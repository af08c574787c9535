"""Methods by name, with the optimisers of language models, and the run of one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bilevel.callbacks import Callback
from bilevel.distributed import initialized
from bilevel.errors import OptionError
from bilevel.options import check_count, check_positive
from bilevel.problems.llm.baselines import Scalarised
from bilevel.problems.llm.batches import TokenBatch, TokenLoader
from bilevel.problems.llm.model import TwoLevelModel, check_loaders
from bilevel.problems.llm.problem import finetuning_problem
from bilevel.solution import Solution
from bilevel.solvers import BOME, PBGD, PBGDFree
from bilevel.solvers.base import PenaltySolver

#: Bilevel solvers, then what they are compared with.
METHODS = ("pbgd-free", "pbgd", "bome", "alright", "sequential", "dpo", "sft")


@dataclass(frozen=True, kw_only=True)
class FineTuningOptions:
    r"""How a model is fine-tuned, by whichever method.

    Parameters
    ----------
    lr, head_lr
        Of the LoRA weights x and of the head y, constant; AdamW with β = (0.9, 0.95) and no decay.
    penalty
        γ of PBGD and PBGD-Free.
    inner_steps
        K of PBGD and BOME: steps on each response. PBGD-Free takes one.
    clip_norm
        Bound on the gradient's norm at each level.
    accumulate
        Micro-batches a step; loaders take the same option.
    seed
        Of ALRIGHT's draws.
    """

    lr: float = 1e-3
    head_lr: float = 1e-3
    penalty: float = 10.0
    inner_steps: int = 3
    clip_norm: float = 1.0
    accumulate: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("lr", "head_lr", "penalty", "clip_norm"):
            check_positive(name, getattr(self, name))
        check_count("inner_steps", self.inner_steps)

    def solvers(self, method: str) -> tuple[PenaltySolver, ...]:
        """The method's solvers: one, or of sequential training two, for half of the budget each.

        Raises
        ------
        OptionError
            A method of another name.
        """
        adam = partial(torch.optim.AdamW, betas=(0.9, 0.95), weight_decay=0.0)
        shared: dict[str, Any] = {
            "upper_optimizer": partial(adam, lr=self.lr),
            "lower_optimizer": partial(adam, lr=self.head_lr),
            "clip_norm": self.clip_norm,
            "accumulate": self.accumulate,
        }
        if method == "pbgd-free":
            return (PBGDFree(penalty=self.penalty, **shared),)
        if method == "pbgd":
            return (PBGD(penalty=self.penalty, inner_steps=self.inner_steps, **shared),)
        if method == "bome":
            return (BOME(inner_steps=self.inner_steps, **shared),)
        shares = {"alright": (0.5,), "sequential": (0.0, 1.0), "dpo": (1.0,), "sft": (0.0,)}
        if method not in shares:
            raise OptionError(f"method={method!r}, expected one of {', '.join(METHODS)}")
        return tuple(
            Scalarised(upper_share=share, seed=self.seed, **shared) for share in shares[method]
        )


def finetune(
    model: TwoLevelModel,
    solver: PenaltySolver,
    preferences: Iterable[TokenBatch],
    instructions: Iterable[TokenBatch],
    steps: int,
    *,
    beta: float = 0.1,
    callbacks: Sequence[Callback | Callable[..., Any]] = (),
    log_every: int | None = None,
    progress: bool | None = None,
    resume: str | Path | None = None,
) -> Solution:
    """Fine-tune a model in place by one solver.

    Parameters
    ----------
    model
        The model; x are its LoRA weights, y is its head.
    solver
        One of :meth:`FineTuningOptions.solvers`, or any other first-order solver.
    preferences, instructions
        Loaders, gone through again and again.
    steps
        Outer steps.
    beta
        β of DPO.
    callbacks, log_every, progress, resume
        Those of :meth:`~bilevel.solvers.base.PenaltySolver.solve`.

    Raises
    ------
    DatasetError
        Loaders in each other's place, or records that do not fit the model.
    OptionError
        Loaders that accumulate other numbers of batches than the solver.
    BilevelError
        As :meth:`~bilevel.solvers.base.PenaltySolver.solve`.
    """
    check_loaders(model, preferences, instructions)
    for name, loader in (("preferences", preferences), ("instructions", instructions)):
        if isinstance(loader, TokenLoader) and loader.accumulate != solver.accumulate:
            raise OptionError(
                f"{name}: the loader has accumulate={loader.accumulate} and the solver "
                f"{solver.accumulate}: give both the same"
            )
    # In several processes a parameter's gradients are its network's wrapper's; a head has none.
    head = model.weight.detach() if initialized() else model.weight
    solution = solver.solve(
        finetuning_problem(model, beta),
        model.lora,
        head,
        max_steps=steps,
        tolerance=0.0,
        upper_batches=preferences,
        lower_batches=instructions,
        callbacks=callbacks,
        log_every=log_every,
        progress=progress,
        resume=resume,
    )
    with torch.no_grad():
        model.weight.copy_(solution.y)
    return solution
