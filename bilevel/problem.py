"""The problem to be solved, and checked calls of its functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bilevel.domains import DomainTree
from bilevel.errors import ObjectiveError, ProblemError, VariableError
from bilevel.options import accepts, described
from bilevel.trees import Tree, tree_map

if TYPE_CHECKING:
    from bilevel.responses.base import Response

Objective = Callable[..., Tensor]
Constraint = Callable[[Tree, Tree], Tensor]


@dataclass(frozen=True, kw_only=True)
class BilevelProblem:
    r"""A bilevel problem in its optimistic form.

    .. math::
        \min_{x \in X,\, y}\; f(x, y) \quad\text{subject to}\quad C(x, y) \le 0,\quad
        y \in \operatorname*{arg\,min}_{y' \in Y}
        \{\, g(x, y') : c(x, y') \le 0,\; h(x, y') = 0 \,\}

    x and y are trees of tensors: one tensor, or (nested) dicts, lists, tuples of them. x may be
    empty (``None`` or ``()``): then a minimiser of g with the least f is sought (*simple bilevel*).

    Parameters
    ----------
    upper : callable
        f(x, y), or f(x, y, batch) with data; returns a 0-d tensor.
    lower : callable
        g(x, y), or g(x, y, batch) with data; returns a 0-d tensor.
    objectives : callable, optional
        Instead of the two: (x, y[, batch]) -> (f, g) from one shared forward pass. With batches for
        both levels, ``batch`` is the pair (upper batch, lower batch).
    features : callable, optional
        What the objectives need of x: (x[, batch]) -> any tree of tensors, computed once in a step
        and shared by the lower-level and the upper-level update, between which x does not move.
        ``upper`` and ``lower`` then receive it in the place of x.
    lower_constraints, lower_equalities : callable, optional
        c(x, y) and h(x, y): 1-d tensors, feasible where :math:`c \le 0` and :math:`h = 0`. They
        may depend on x ("coupled").
    upper_constraints : callable, optional
        C(x, y): a 1-d tensor, feasible where :math:`C \le 0`; may depend on y.
    upper_domain, lower_domain : Domain or tree of Domains, optional
        X and Y, sets with a cheap projection; the whole space where not given.
    lower_response : Response, optional
        The problem's own solver for its lower level, where it knows a fast one.

    Raises
    ------
    ProblemError
        If an objective is missing, given twice, or something is not callable.
    """

    upper: Objective | None = None
    lower: Objective | None = None
    objectives: Callable[..., tuple[Tensor, Tensor]] | None = None
    features: Callable[..., Any] | None = None
    lower_constraints: Constraint | None = None
    lower_equalities: Constraint | None = None
    upper_constraints: Constraint | None = None
    upper_domain: DomainTree = None
    lower_domain: DomainTree = None
    lower_response: Response | None = None

    def __post_init__(self) -> None:
        if self.objectives is None and (self.upper is None or self.lower is None):
            missing = "upper" if self.upper is None else "lower"
            raise ProblemError(
                f"BilevelProblem needs both objectives, {missing} is missing: give upper=f and "
                "lower=g, or objectives=(x, y) -> (f, g)"
            )
        if self.objectives is not None and (self.upper or self.lower):
            raise ProblemError("give upper and lower, or objectives, not both")
        for name in (
            "upper", "lower", "objectives", "features", "lower_constraints", "lower_equalities",
            "upper_constraints",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise ProblemError(
                    f"{name} is a {type(value).__name__}, expected a function of (x, y)"
                )
        response = self.lower_response
        if isinstance(response, type) or not (response is None or hasattr(response, "update")):
            raise ProblemError(
                f"lower_response is {response!r}, expected an instance of a Response, such as "
                "CvxpyResponse(...)"
            )

    @property
    def constrained(self) -> bool:
        """Whether the lower level has constraints beyond its domain."""
        return self.lower_constraints is not None or self.lower_equalities is not None

    @property
    def uses_batches(self) -> bool:
        """Whether an objective requires a third argument, the batch."""
        functions = (self.upper, self.lower, self.objectives)
        return any(_required_arguments(function) >= 3 for function in functions if function)

    # Checked calls ------------------------------------------------------------------------------

    def upper_value(self, x: Tree, y: Tree, batch: Any = None) -> Tensor:
        """f(x, y), a 0-d tensor."""
        if self.objectives is not None:
            return self.both_values(x, y, batch)[0]
        assert self.upper is not None
        return _scalar(_call(self.upper, "upper", x, y, batch), "upper")

    def lower_value(self, x: Tree, y: Tree, batch: Any = None) -> Tensor:
        """g(x, y), a 0-d tensor."""
        if self.objectives is not None:
            return self.both_values(x, y, batch)[1]
        assert self.lower is not None
        return _scalar(_call(self.lower, "lower", x, y, batch), "lower")

    def both_values(self, x: Tree, y: Tree, batch: Any = None) -> tuple[Tensor, Tensor]:
        """f and g from one call of ``objectives``."""
        assert self.objectives is not None
        pair = _call(self.objectives, "objectives", x, y, batch)
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ObjectiveError(
                f"objectives returned {_describe(pair)}, expected the pair (f, g) of 0-d tensors"
            )
        return _scalar(pair[0], "objectives, first value (f)"), _scalar(
            pair[1], "objectives, second value (g)"
        )

    def features_of(self, x: Tree, batch: Any = None) -> Any:
        """``features`` at x, a tree of tensors."""
        assert self.features is not None
        features = _call(self.features, "features", x, batch)
        try:
            return tree_map(lambda tensor: tensor, features)
        except VariableError as error:
            raise ObjectiveError(
                f"features returned what is no tree of tensors: {error}. Return tensors alone; "
                "what does not depend on x, the objectives can hold themselves"
            ) from error

    def inequalities(self, x: Tree, y: Tree) -> Tensor | None:
        """c(x, y), a 1-d tensor, or ``None`` without such constraints."""
        return _vector(self.lower_constraints, "lower_constraints", x, y)

    def equalities(self, x: Tree, y: Tree) -> Tensor | None:
        """h(x, y), a 1-d tensor, or ``None`` without such constraints."""
        return _vector(self.lower_equalities, "lower_equalities", x, y)

    def upper_inequalities(self, x: Tree, y: Tree) -> Tensor | None:
        """C(x, y), a 1-d tensor, or ``None`` without such constraints."""
        return _vector(self.upper_constraints, "upper_constraints", x, y)


def _required_arguments(function: Callable[..., Any]) -> int:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return 2
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is p.empty for p in parameters)


def _call(function: Callable[..., Any], name: str, *arguments: Any) -> Any:
    """Call a function of the problem; a batch comes last and is left out where it is ``None``."""
    given = arguments if arguments[-1] is not None else arguments[:-1]
    try:
        return function(*given)
    except TypeError as error:
        if accepts(function, len(given)):
            raise
        raise ObjectiveError(_misfit(function, name, len(given), len(arguments))) from error
    except RuntimeError as error:
        if "leaf Variable that requires grad" not in str(error):
            raise
        raise ObjectiveError(
            f"{name} changes its variable in place: write x = x + d in the place of x += d or "
            "x.add_(d), or work on x.clone()"
        ) from error


def _misfit(function: Callable[..., Any], name: str, given: int, most: int) -> str:
    if given < most and accepts(function, most):
        return (
            f"{name} takes a batch as its last argument and none was given: pass upper_batches= "
            "and lower_batches= to solve(), or the batches to step()"
        )
    if given == most > 2 and accepts(function, given - 1):
        return (
            f"{name} was given a batch and takes none: let it take one as its last argument, or "
            "pass no batches for this level"
        )
    return (
        f"{name}{inspect.signature(function)} cannot be called with {given} positional arguments: "
        "objectives take (x, y) or (x, y, batch), constraints (x, y), features (x) or (x, batch)"
    )


def _scalar(value: Any, name: str) -> Tensor:
    if isinstance(value, Tensor) and value.ndim == 0 and value.is_floating_point():
        return value
    raise ObjectiveError(
        f"{name} returned {_describe(value)}, expected a 0-d floating-point tensor: "
        f"{_remedy(value)}"
    )


def _remedy(value: Any) -> str:
    if value is None:
        return "does the function end without a return statement?"
    if isinstance(value, Tensor) and value.ndim > 0:
        return "reduce it with .sum() or .mean()"
    return "keep what it computes from x and y a real tensor (no .item(), float(), .long(), ...)"


def _vector(function: Constraint | None, name: str, x: Tree, y: Tree) -> Tensor | None:
    if function is None:
        return None
    value = _call(function, name, x, y)
    if not isinstance(value, Tensor) or value.ndim != 1 or not value.is_floating_point():
        raise ObjectiveError(
            f"{name} returned {_describe(value)}, expected a 1-d floating-point tensor with one "
            "entry a constraint: use torch.cat or reshape(-1)"
        )
    return value


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    return described(value)
