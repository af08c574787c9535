"""What a solver carries from step to step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bilevel.errors import CheckpointError
from bilevel.trees import Tree
from bilevel.variables import Level

if TYPE_CHECKING:
    from bilevel.outer.base import Outer
    from bilevel.responses.base import Response
    from bilevel.schedules import Schedule


@dataclass
class Track:
    """A lower-level response that is followed from step to step.

    The perturbed response y_γ lives in the lower level's leaves; the original response y_g holds
    its own ``values`` and is exchanged with them while it is worked on.

    Attributes
    ----------
    values
        the response's values, or ``None`` where they are the leaves themselves.
    inequality_multipliers, equality_multipliers
        μ and ν, where the lower level has constraints.
    optimizer, scheduler
        of a first-order response.
    memory
        what a problem's own response keeps from call to call, with ``state_dict`` and
        ``load_state_dict`` of tensors and numbers.
    """

    values: list[Tensor] | None = None
    inequality_multipliers: Tensor | None = None
    equality_multipliers: Tensor | None = None
    optimizer: torch.optim.Optimizer | None = None
    scheduler: Any = None
    memory: Any = None

    def state_dict(self) -> dict[str, Any]:
        """Everything as tensors and numbers."""
        return {
            "values": self.values,
            "inequality_multipliers": self.inequality_multipliers,
            "equality_multipliers": self.equality_multipliers,
            "optimizer": _state_of(self.optimizer),
            "scheduler": _state_of(self.scheduler),
            "memory": _state_of(self.memory),
        }

    def load_state_dict(self, saved: dict[str, Any], device: torch.device) -> None:
        """Restore what :meth:`state_dict` gave, on a device."""
        if self.values is not None:
            _copy_values(self.values, saved["values"])
        self.inequality_multipliers = _copied(saved["inequality_multipliers"], device)
        self.equality_multipliers = _copied(saved["equality_multipliers"], device)
        _load_into(self.optimizer, saved["optimizer"])
        _load_into(self.scheduler, saved["scheduler"])
        _load_into(self.memory, saved["memory"])


@dataclass
class State:
    """The state of a run: variables, responses, optimisers, and the last step's record.

    Attributes
    ----------
    upper, lower
        the two levels.
    response, outer, schedule
        the parts that the solver chose for this problem.
    perturbed, original
        the tracked responses y_γ and (where the method needs it) y_g.
    upper_optimizer, upper_scheduler
        of a first-order outer step.
    step
        outer steps taken.
    gradient_evaluations
        gradients of f or g taken so far.
    record
        values of the last step as 0-d tensors or floats, by name.
    measuring
        whether the coming step should also compute what only a log needs; ``solve`` sets it,
        and a loop of your own may.
    finished
        whether the outer step has nothing left to do.
    outer_state
        what the outer step, or the solver, carries (multipliers, stage, curvature), by name.
    """

    upper: Level
    lower: Level
    response: Response
    outer: Outer
    schedule: Schedule
    perturbed: Track = field(default_factory=Track)
    original: Track | None = None
    upper_optimizer: torch.optim.Optimizer | None = None
    upper_scheduler: Any = None
    step: int = 0
    gradient_evaluations: int = 0
    record: dict[str, Any] = field(default_factory=dict)
    measuring: bool = False
    finished: bool = False
    outer_state: dict[str, Any] = field(default_factory=dict)

    @property
    def x(self) -> Tree:
        """The upper variable, in the structure it was given; plain tensors without gradients."""
        return self.upper.view()

    @property
    def y(self) -> Tree:
        """The perturbed response y_γ, in the structure of y; plain tensors without gradients."""
        return self.lower.view()

    @contextmanager
    def at_original(self) -> Iterator[Track]:
        """Put the original response y_g into the lower level's leaves for a while."""
        track = self.original
        assert track is not None
        assert track.values is not None
        self.lower.swap(track.values)
        try:
            yield track
        finally:
            self.lower.swap(track.values)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later step depends on, as tensors, numbers, lists and dicts."""
        return {
            "x": [leaf.detach() for leaf in self.upper.leaves],
            "y": [leaf.detach() for leaf in self.lower.leaves],
            "perturbed": self.perturbed.state_dict(),
            "original": None if self.original is None else self.original.state_dict(),
            "upper_optimizer": _state_of(self.upper_optimizer),
            "upper_scheduler": _state_of(self.upper_scheduler),
            "step": self.step,
            "gradient_evaluations": self.gradient_evaluations,
            "finished": self.finished,
            "outer_state": self.outer_state,
            "record": {name: float(value) for name, value in self.record.items()},
            "parts": self.parts(),
            "optimizers": self.optimizers(),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave; the next step is then bit for bit the same.

        Raises
        ------
        CheckpointError
            the saved state belongs to another problem or solver.
        """
        for name in ("parts", "optimizers"):
            found, used = saved[name], getattr(self, name)()
            if found != used:
                raise CheckpointError(
                    f"the saved state was made by {found}, this solver uses {used}: resume with "
                    "the solver that began the run"
                )
        # All is compared before anything is changed: parameters would not come back.
        lower = self.perturbed
        for name, optimizer, scheduler, held in (
            ("upper_optimizer", self.upper_optimizer, self.upper_scheduler,
             saved["upper_optimizer"]),
            ("lower_optimizer", lower.optimizer, lower.scheduler, saved["perturbed"]["optimizer"]),
        ):  # fmt: skip
            if optimizer is not None:
                moved = set() if scheduler is None else {"momentum", "betas"}
                _check_hyperparameters(name, optimizer, held, moved)
        own = self.state_dict()
        for name in ("x", "y"):
            _check_alike(own[name], saved[name], name)
        if self.original is not None:
            _check_alike(own["original"]["values"], saved["original"]["values"], "y_g")
        self.upper.assign(saved["x"])
        self.lower.assign(saved["y"])
        device = self.lower.leaves[0].device
        self.perturbed.load_state_dict(saved["perturbed"], device)
        if self.original is not None:
            self.original.load_state_dict(saved["original"], device)
        _load_into(self.upper_optimizer, saved["upper_optimizer"])
        _load_into(self.upper_scheduler, saved["upper_scheduler"])
        self.step = saved["step"]
        self.gradient_evaluations = saved["gradient_evaluations"]
        self.finished = saved["finished"]
        self.outer_state = _copied(saved["outer_state"], device)
        self.record = dict(saved["record"])

    def parts(self) -> dict[str, str]:
        """The names of the response and the outer step in use."""
        return {"response": type(self.response).__name__, "outer": type(self.outer).__name__}

    def optimizers(self) -> dict[str, str | None]:
        """The names of the optimisers and schedulers in use."""
        parts = {
            "upper_optimizer": self.upper_optimizer,
            "upper_scheduler": self.upper_scheduler,
            "lower_optimizer": self.perturbed.optimizer,
            "lower_scheduler": self.perturbed.scheduler,
        }
        return {name: part and type(part).__name__ for name, part in parts.items()}


def _copied(held: Any, device: torch.device) -> Any:
    """Copies of tensors, in dicts and lists too, on a device: checkpoints are read into memory."""
    if isinstance(held, Tensor):
        return held.detach().to(device, copy=True)
    if isinstance(held, dict):
        return {name: _copied(each, device) for name, each in held.items()}
    return [_copied(each, device) for each in held] if isinstance(held, list) else held


def _state_of(part: Any) -> dict[str, Any] | None:
    return None if part is None else part.state_dict()


def _load_into(part: Any, saved: dict[str, Any] | None) -> None:
    if part is not None:
        part.load_state_dict(saved)


def _check_hyperparameters(
    name: str, optimizer: torch.optim.Optimizer, saved: dict[str, Any], moved: set[str]
) -> None:
    """Refuse another learning rate, momentum, ...: a saved optimiser would bring back its own.

    What a scheduler may have ``moved``, as ``OneCycleLR`` does momentum, is not compared.
    """
    for own, found in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        for key in own.keys() - {"params", "initial_lr"} - moved:
            # A scheduler moves lr, and keeps what it began with.
            before, now = (
                group.get("initial_lr", group["lr"]) if key == "lr" else group.get(key)
                for group in (found, own)
            )
            if before != now:
                raise CheckpointError(
                    f"the saved {name} has {key}={before}, and this solver's {now}: resume with "
                    "the options that began the run"
                )


def _check_alike(leaves: list[Tensor], saved: list[Tensor], name: str) -> None:
    own, found = ([(tuple(t.shape), t.dtype) for t in each] for each in (leaves, saved))
    if own != found:
        raise CheckpointError(f"the saved {name} has tensors {found}, this problem's has {own}")


@torch.no_grad()
def _copy_values(leaves: list[Tensor], saved: list[Tensor]) -> None:
    for leaf, value in zip(leaves, saved, strict=True):
        leaf.copy_(value)
