"""The objectives on one step's batches, with x's features computed once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from bilevel.distributed import initialized
from bilevel.errors import ObjectiveError, ResponseError
from bilevel.problem import BilevelProblem
from bilevel.state import State
from bilevel.trees import tree_map


class Evaluation:
    """f, g and their gradients at the state's current (x, y), on one pair of batches.

    x's features are computed once for each x. For the objectives in ``graph_of``, those that the
    outer step differentiates in x, that is with their graph, which then serves both levels; for
    others without, and anew if a gradient through them is asked for after all.

    Where a first-order outer step keeps upper constraints, f comes with the augmented Lagrangian's
    term, unless ``augmented`` is false; what is recorded for the history is f alone.
    """

    def __init__(
        self,
        problem: BilevelProblem,
        state: State,
        upper_batch: Any = None,
        lower_batch: Any = None,
        autocast: torch.dtype | None = None,
        *,
        augmented: bool = True,
        graph_of: Collection[str] = ("upper", "lower"),
    ) -> None:
        self.problem = problem
        self.state = state
        self.upper_batch = upper_batch
        self.lower_batch = lower_batch
        self._autocast = autocast
        self._augmented = augmented
        self._graph_of = {*graph_of, "both"} if graph_of else set()
        self._features: dict[str, Any] = {}
        self._features_of: list[int] = []
        self._f_alone: Tensor | None = None
        # What all micro-batches of the step recorded; they do not hold one another, lest features
        # stay in memory until the garbage collector comes by.
        self._recorded: dict[str, dict[int, Tensor]] = {}
        self._number, self._count = 0, 1
        #: Whether f was seen to depend on x or y, and g on y.
        self.upper_depends = self.lower_depends = False

    def upper(self, *, through_x: bool = False) -> Tensor:
        """f, with a graph into x only if ``through_x``."""
        with self._calling("upper"):
            if self.problem.objectives is not None:
                return self._both(through_x)[0]
            x = self._x("upper", self.upper_batch, through_x)
            f = self.problem.upper_value(x, self.state.lower.tree, self.upper_batch)
            return self._with_upper_constraints(f)

    def lower(self, *, through_x: bool = False) -> Tensor:
        """g, with a graph into x only if ``through_x``."""
        with self._calling("lower"):
            if self.problem.objectives is not None:
                return self._both(through_x)[1]
            x = self._x("lower", self.lower_batch, through_x)
            g = self.problem.lower_value(x, self.state.lower.tree, self.lower_batch)
            return self._noted(g, through_x)

    @property
    def keeps_features(self) -> bool:
        """Whether x's features outlive a backward pass, so that its graph must be retained.

        In a process group they are computed anew, see :meth:`losses`.
        """
        return bool(self._graph_of) and self.problem.features is not None and not initialized()

    def pair(self, *, through_x: bool = False) -> tuple[Tensor, Tensor]:
        """(f, g), from one forward pass where the problem shares its work."""
        if self.problem.objectives is not None:
            with self._calling("objectives"):
                f, g = self._both(through_x)
        else:
            f, g = self.upper(through_x=through_x), self.lower(through_x=through_x)
        self.record_upper()
        self.record("lower", g)
        return f, g

    def losses(
        self,
        upper_weight: float,
        lower_weight: float,
        mu: Tensor | None = None,
        nu: Tensor | None = None,
        *,
        through_x: bool = False,
    ) -> Iterator[Tensor]:
        r"""Terms of :math:`w_f f + w_g (g + \langle \mu, c \rangle + \langle \nu, h \rangle)`.

        Usually one term. In a process group f and g are two, each to be differentiated before the
        next is asked for: DDP averages what one backward pass after one forward pass gives. With
        :math:`w_f = 0` f is not evaluated.
        """
        if upper_weight == 0.0:
            yield self._lower_term(self.lower(through_x=through_x), lower_weight, mu, nu)
            return
        shared = self.problem.objectives is not None or self.problem.features is not None
        if shared or not initialized():
            f, g = self.pair(through_x=through_x)
            yield upper_weight * f + self._lower_term(g, lower_weight, mu, nu)
            return
        f = self.upper(through_x=through_x)
        self.record_upper()
        if f.requires_grad:
            yield upper_weight * f
        g = self.lower(through_x=through_x)
        self.record("lower", g)
        loss = self._lower_term(g, lower_weight, mu, nu)
        if loss.requires_grad:
            yield loss

    def record(self, name: str, value: Tensor) -> None:
        """Put a value into the step's record: once all micro-batches have one, their mean."""
        values = self._recorded.setdefault(name, {})
        values[self._number] = value.detach()
        if self._number == self._count - 1:
            found = [*values.values()]
            self.state.record[name] = found[0] if len(found) == 1 else torch.stack(found).mean()

    def record_upper(self) -> None:
        """Record f, as it was evaluated last."""
        assert self._f_alone is not None
        self.record("upper", self._f_alone)

    def _lower_term(self, g: Tensor, weight: float, mu: Tensor | None, nu: Tensor | None) -> Tensor:
        if mu is not None or nu is not None:
            g = g + self.lagrangian_terms(mu, nu)
        return g if weight == 1.0 else weight * g

    def lagrangian_terms(self, mu: Tensor | None, nu: Tensor | None) -> Tensor | float:
        """⟨μ, c(x, y)⟩ + ⟨ν, h(x, y)⟩; entries of μ, ν beyond those belong to the lower domain."""
        total: Tensor | float = 0.0
        x, y = self.state.upper.tree, self.state.lower.tree
        for name, multipliers, values in (
            ("lower_constraints", mu, self.problem.inequalities(x, y)),
            ("lower_equalities", nu, self.problem.equalities(x, y)),
        ):
            if values is None or not len(values):
                continue
            if multipliers is None:
                raise ResponseError(
                    f"{type(self.state.response).__name__} left no multipliers of {name} in its "
                    "track, and the gradient of the value function rests on them: see Response"
                )
            own = multipliers[: len(values)]
            require_same_length(name, values, own)
            total = total + torch.dot(own, values)
        return total

    def _both(self, through_x: bool) -> tuple[Tensor, Tensor]:
        batch = self.lower_batch
        if self.upper_batch is not None:
            batch = self.upper_batch if batch is None else (self.upper_batch, batch)
        x = self._x("both", batch, through_x)
        f, g = self.problem.both_values(x, self.state.lower.tree, batch)
        return self._with_upper_constraints(f), self._noted(g, through_x)

    def _noted(self, g: Tensor, through_x: bool) -> Tensor:
        self.lower_depends = self.lower_depends or (g.requires_grad and not through_x)
        return g

    def _x(self, key: str, batch: Any, through_x: bool) -> Any:
        if self.problem.features is None:
            return self.state.upper.tree
        versions = [leaf._version for leaf in self.state.upper.leaves]
        if versions != self._features_of:  # x has moved, as within SQP's outer step
            self._features.clear()
            self._features_of = versions
        if self.upper_batch is self.lower_batch:
            key = "both"
        shared = key in self._graph_of
        if key in self._features and (shared or not through_x):
            held = self._features[key]
        else:
            held = self._computed(batch, with_graph=shared or through_x)
            if shared or not through_x:
                self._features[key] = held
        if through_x and initialized():  # one backward pass after one forward pass, see losses()
            self._features.pop(key, None)
        return held if through_x else tree_map(torch.Tensor.detach, held)

    def _computed(self, batch: Any, with_graph: bool) -> Any:
        # The lower-level update comes first and switches x's gradients off.
        with torch.set_grad_enabled(with_graph):
            for leaf in self.state.upper.leaves if with_graph else ():
                leaf.requires_grad_(True)
            return self.problem.features_of(self.state.upper.tree, batch)

    def _with_upper_constraints(self, f: Tensor) -> Tensor:
        """f plus (ρ/2)‖[C + σ/ρ]₊‖² − ‖σ‖²/2ρ, the augmented Lagrangian of the upper constraints.

        Without its last term, a constant, large multipliers would drown f in rounding.
        """
        self.upper_depends = self.upper_depends or f.requires_grad
        self._f_alone = f.detach()
        multipliers = self.state.outer_state.get("upper_multipliers")
        if multipliers is None or not self._augmented:
            return f
        values = self.problem.upper_inequalities(self.state.upper.tree, self.state.lower.tree)
        assert values is not None
        require_same_length("upper_constraints", values, multipliers)
        rho: float = self.state.outer_state["upper_constraint_penalty"]
        excess = (values + multipliers / rho).clamp_min(0.0)
        term = rho * torch.dot(excess, excess) - torch.dot(multipliers, multipliers) / rho
        return f + 0.5 * term

    @contextmanager
    def _calling(self, name: str) -> Iterator[None]:
        """Refuse a function that writes into a variable; torch lets it where that is frozen."""
        leaves = self.state.upper.leaves + self.state.lower.leaves
        before = [leaf._version for leaf in leaves]
        with self._context():
            yield
        for leaf, version in zip(leaves, before, strict=True):
            if leaf._version != version:
                raise ObjectiveError(
                    f"{name} changes its variable in place, so the point it was given is lost: "
                    "write x = x + d in the place of x += d, or work on x.clone()"
                )

    def _context(self) -> AbstractContextManager[Any]:
        if self._autocast is None:
            return nullcontext()
        leaves = self.state.lower.leaves or self.state.upper.leaves
        return torch.autocast(leaves[0].device.type, dtype=self._autocast)


def require_same_length(name: str, values: Tensor, multipliers: Tensor) -> None:
    """Refuse constraints whose number changes along a run."""
    if len(values) != len(multipliers):
        raise ObjectiveError(
            f"{name} returned {len(values)} entries, and another number of them earlier in the "
            "run: return every constraint at every (x, y), also those that hold"
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
    return as_micro_batches(make(*pair) for pair in zip(uppers, lowers, strict=True))


def as_micro_batches(evaluations: Iterable[Evaluation]) -> list[Evaluation]:
    """Make them parts of one step."""
    found = list(evaluations)
    for number, each in enumerate(found):
        each._number, each._count, each._recorded = number, len(found), found[0]._recorded
    return found
