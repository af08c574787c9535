"""The objectives on one step's batches, with x's features computed once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from bilevel.errors import DependenceError, NonFiniteError, ObjectiveError
from bilevel.problem import BilevelProblem
from bilevel.state import State
from bilevel.trees import tree_map
from bilevel.variables import Level


class Evaluation:
    """f, g and their gradients at the state's current (x, y), on one pair of batches.

    x must not move while an evaluation is in use: that is what lets its features be shared.
    """

    def __init__(
        self,
        problem: BilevelProblem,
        state: State,
        upper_batch: Any = None,
        lower_batch: Any = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.problem = problem
        self.state = state
        self.upper_batch = upper_batch
        self.lower_batch = lower_batch
        self._autocast = autocast
        self._features: dict[str, Any] = {}

    def upper(self, *, through_x: bool = False) -> Tensor:
        """f, with a graph into x only if ``through_x``; upper constraints enter as a penalty."""
        with self._context():
            if self.problem.objectives is not None:
                return self._both(through_x)[0]
            x = self._x("upper", self.upper_batch, through_x)
            f = self.problem.upper_value(x, self.state.lower.tree, self.upper_batch)
            return self._with_upper_constraints(f)

    def lower(self, *, through_x: bool = False) -> Tensor:
        """g, with a graph into x only if ``through_x``."""
        with self._context():
            if self.problem.objectives is not None:
                return self._both(through_x)[1]
            x = self._x("lower", self.lower_batch, through_x)
            return self.problem.lower_value(x, self.state.lower.tree, self.lower_batch)

    def pair(self, *, through_x: bool = False) -> tuple[Tensor, Tensor]:
        """(f, g), from one forward pass where the problem shares its work."""
        if self.problem.objectives is not None:
            with self._context():
                f, g = self._both(through_x)
        else:
            f, g = self.upper(through_x=through_x), self.lower(through_x=through_x)
        self.state.record["upper"], self.state.record["lower"] = f.detach(), g.detach()
        return f, g

    def lagrangian_terms(self, mu: Tensor | None, nu: Tensor | None) -> Tensor | float:
        """⟨μ, c(x, y)⟩ + ⟨ν, h(x, y)⟩; entries of μ, ν beyond those belong to the lower domain."""
        total: Tensor | float = 0.0
        x, y = self.state.upper.tree, self.state.lower.tree
        if mu is not None and (c := self.problem.inequalities(x, y)) is not None:
            total = total + torch.dot(mu[: len(c)], c)
        if nu is not None and (h := self.problem.equalities(x, y)) is not None:
            total = total + torch.dot(nu[: len(h)], h)
        return total

    def _both(self, through_x: bool) -> tuple[Tensor, Tensor]:
        batch = self.lower_batch
        if self.upper_batch is not None:
            batch = self.upper_batch if batch is None else (self.upper_batch, batch)
        x = self._x("both", batch, through_x)
        f, g = self.problem.both_values(x, self.state.lower.tree, batch)
        return self._with_upper_constraints(f), g

    def _x(self, key: str, batch: Any, through_x: bool) -> Any:
        features = self.problem.features
        if features is None:
            return self.state.upper.tree
        if key not in self._features:
            x = self.state.upper.tree
            # The lower-level update comes first and x stays, so this graph serves the upper update.
            with torch.enable_grad():
                for leaf in self.state.upper.leaves:
                    leaf.requires_grad_(True)
                self._features[key] = features(x) if batch is None else features(x, batch)
        held = self._features[key]
        return held if through_x else tree_map(torch.Tensor.detach, held)

    def _with_upper_constraints(self, f: Tensor) -> Tensor:
        """f plus the augmented Lagrangian's term (ρ/2)‖[C + σ/ρ]₊‖² of the upper constraints."""
        multipliers = self.state.outer_state.get("upper_multipliers")
        if multipliers is None:
            return f
        values = self.problem.upper_inequalities(self.state.upper.tree, self.state.lower.tree)
        assert values is not None
        rho: float = self.state.outer_state["upper_constraint_penalty"]
        excess = (values + multipliers / rho).clamp_min(0.0)
        return f + 0.5 * rho * torch.dot(excess, excess)

    def _context(self) -> AbstractContextManager[Any]:
        if self._autocast is None:
            return nullcontext()
        leaves = self.state.lower.leaves or self.state.upper.leaves
        return torch.autocast(leaves[0].device.type, dtype=self._autocast)


def backward(
    loss: Tensor, level: Level, state: State, source: str, *, retain_graph: bool = False
) -> None:
    """Accumulate the gradients of a loss at a level's leaves, refusing what cannot be used.

    Raises
    ------
    DependenceError
        the loss does not depend on the level.
    NonFiniteError
        the loss or a gradient is NaN or infinite; checked in every step on the CPU,
        where it costs no synchronisation, and when a step is measured on other devices.
    """
    if not loss.requires_grad:
        raise DependenceError(
            f"{source} does not depend on {level.name}: its gradient there is identically zero. "
            "Check that the function uses the variable it is given, without .detach(), .item(), "
            "torch.no_grad() or a copy"
        )
    check = loss.device.type == "cpu" or state.measuring
    if check and not bool(torch.isfinite(loss.detach())):
        raise NonFiniteError(
            f"{source} is {loss.item()} at step {state.step}, before the update of {level.name}; "
            f"try a smaller learning rate or penalty, or check the batch. The state before this "
            "step is in the error's .state",
            state,
        )
    loss.backward(retain_graph=retain_graph)  # type: ignore[no-untyped-call]
    state.gradient_evaluations += 1
    if check:
        _check_gradients(level, state, source)


def require_gradients(level: Level, source: str) -> None:
    """Refuse a level none of whose leaves received a gradient."""
    if not level.gradients():
        raise DependenceError(
            f"{source} does not depend on {level.name}: none of {', '.join(level.names[:4])} "
            "received a gradient"
        )


def _check_gradients(level: Level, state: State, source: str) -> None:
    gradients = level.gradients()
    if not gradients:
        return
    finite = torch.isfinite(torch.stack(torch._foreach_norm(gradients)))
    if bool(finite.all()):
        return
    for name, leaf in zip(level.names, level.leaves, strict=True):
        if leaf.grad is not None and not bool(torch.isfinite(leaf.grad).all()):
            raise NonFiniteError(
                f"the gradient of {source} with respect to {name} is not finite at step "
                f"{state.step}; try a smaller learning rate or gradient clipping. The state "
                "before this step is in the error's .state",
                state,
            )


def accumulate(
    batches: tuple[Any, Any],
    count: int,
    make: Callable[[Any, Any], Evaluation],
) -> list[Evaluation]:
    """One evaluation a micro-batch: batches are lists of ``count`` where ``count`` > 1."""
    if count == 1:
        return [make(*batches)]
    for name, batch in zip(("upper_batch", "lower_batch"), batches, strict=True):
        if batch is not None and (not isinstance(batch, list) or len(batch) != count):
            raise ObjectiveError(
                f"{name} must be a list of accumulate={count} micro-batches, got "
                f"{type(batch).__name__}"
            )
    uppers, lowers = ([None] * count if batch is None else batch for batch in batches)
    return [make(upper, lower) for upper, lower in zip(uppers, lowers, strict=True)]
