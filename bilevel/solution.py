"""What ``solve`` returns: the answer, its residuals, and how it was reached."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from bilevel.trees import Tree

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Status(enum.Enum):
    """Why a run ended; the value is the message."""

    CONVERGED = "converged: the residuals are below the tolerance"
    MAX_STEPS = (
        "the step limit was reached before the residuals fell below the tolerance; raise "
        "max_steps, or accept the residuals as they are"
    )
    STALLED = (
        "the outer step made no further progress, with residuals above the tolerance; try "
        "restarts=, another penalty, or a first-order outer step; where the constraints leave the "
        "follower no room at the answer, keep a margin by upper_constraints"
    )
    BIASED = (
        "the method's own direction vanished, but the gradient of the penalised value did not, so "
        "this point is not stationary; use PBGD or BLOCC, or PBGDFree(polish=PBGD(...))"
    )
    INFEASIBLE = (
        "the final point violates the constraints; try another start, restarts=, or check that a "
        "feasible point exists"
    )
    STOPPED = "a callback stopped the run"

    def __str__(self) -> str:
        return self.name.lower().replace("_", " ")


@dataclass(frozen=True)
class Solution:
    r"""A solution with the record to trust or distrust it by.

    The residuals are recomputed at the end, independently of the path that led there.

    Attributes
    ----------
    x, y : tree of tensors
        In the structures of the start. y is the perturbed response y_γ.
    y_original : tree of tensors, optional
        The original response y_g at x, a minimiser of g alone: where y_γ is good and y_g is not,
        f came down at the price of the lower level. From the re-solve that ``lower_gap`` rests on,
        or with data the tracked one; ``None`` where neither exists.
    upper_value, lower_value : float
        f(x, y) and g(x, y); with data, on the last batch.
    lower_gap : float
        Estimate of g(x, y) − v(x), from a tighter re-solve of the lower level where it is
        deterministic; from the tracked y_g with data; NaN where neither exists.
    constraint_violation : float
        Largest of 0, c, |h|, C and the distances to the domains.
    stationarity : float
        Norm of the projected gradient of the penalised value at x; with upper constraints, or after
        difference-of-convex steps, norm of the residual of the penalised problem's KKT system in
        (x, y). Without fresh responses the norm of the method's own last logged direction, which
        for PBGD-Free is a part of that gradient only.
    status : Status
        Why the run ended. Where fresh responses can be had (a deterministic problem, of a size for
        them), it has converged only if they confirm that

        .. math:: \text{stationarity} \le \text{tolerance} \cdot
            \bigl(1 + \|\nabla_x f\| + \gamma\|\nabla_x L_g(x, y_\gamma) - \nabla v(x)\|\bigr)
            + \varepsilon\gamma\bigl(\|\nabla_x L_g\| + \|\nabla v\|\bigr),

        that is, relative to the two terms that cancel, which stay bounded as γ grows, up to what
        the relative accuracy ε = 1e-10 of exact responses can tell. Elsewhere the method's own
        residuals decide.
    steps : int
        Outer steps.
    history : pandas.DataFrame
        One row a logged step.
    seconds : float
        Wall time of the run, verification included; with restarts, of all runs.
    gradient_evaluations : int
        Gradients of f, g or their sum that were taken; with restarts, in all runs.
    parts : dict
        The response, outer step and final penalty that were used.
    notes : list of str
        What a reader should know: which start was best, why a residual is not known.
    """

    x: Tree
    y: Tree
    upper_value: float
    lower_value: float
    lower_gap: float
    constraint_violation: float
    stationarity: float
    status: Status
    steps: int
    history: pd.DataFrame = field(repr=False)
    seconds: float
    gradient_evaluations: int
    parts: dict[str, Any]
    y_original: Tree | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def converged(self) -> bool:
        """Whether the residuals are below the tolerance."""
        return self.status is Status.CONVERGED

    @property
    def message(self) -> str:
        """The status as a sentence, and the parts that were used."""
        used = ", ".join(f"{name} {value}" for name, value in self.parts.items())
        return "; ".join([self.status.value, f"used {used}", *self.notes])

    def plot(self) -> Figure:
        """Draw the history: objectives, gap, violation and stationarity against steps."""
        from bilevel.plotting import plot_history

        return plot_history(self.history)

    def __str__(self) -> str:
        rows = [
            ("status", str(self.status)),
            ("upper value f(x, y)", f"{self.upper_value:.6g}"),
            ("lower value g(x, y)", f"{self.lower_value:.6g}"),
            ("lower gap g - v(x)", f"{self.lower_gap:.2e}"),
            ("constraint violation", f"{self.constraint_violation:.2e}"),
            ("stationarity", f"{self.stationarity:.2e}"),
            ("steps", f"{self.steps}"),
            ("gradient evaluations", f"{self.gradient_evaluations}"),
            ("seconds", f"{self.seconds:.2f}"),
            *((name, str(value)) for name, value in self.parts.items()),
        ]
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:<{width}}  {value}" for name, value in rows]
        if not self.converged:
            lines.append(self.status.value)
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])
