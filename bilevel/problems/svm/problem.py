"""The program as a :class:`~bilevel.BilevelProblem`, with its kernels as the lower response."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bilevel.datasets import Dataset
from bilevel.domains import Box
from bilevel.errors import OptionError, VariableError
from bilevel.evaluation import Evaluation
from bilevel.problem import BilevelProblem
from bilevel.problems.svm.linearised import linearised_step
from bilevel.problems.svm.program import Array, KKTPoint, SVMProgram, signed_rows
from bilevel.problems.svm.response import SVMResponse
from bilevel.responses.base import Response
from bilevel.state import State, Track

#: With a proximal term c is not a closed form of z, and f rises from its floor by c / |c| only.
_PROXIMAL_TOLERANCE = 1e-12

Examples: TypeAlias = Dataset | tuple[npt.ArrayLike, npt.ArrayLike]


def svm_program(train: Examples, validation: Examples, *, floor: float = 1e-4) -> SVMProgram:
    """The program's data: what the kernels and the certificate take.

    Parameters
    ----------
    train, validation : Dataset or (features, labels)
        Features of shape (n, d), labels -1 and +1 of shape (n,).
    floor : float
        Smallest admissible entry of c.

    Raises
    ------
    ProblemError, OptionError
        As :func:`signed_rows` and :class:`SVMProgram`.
    """
    return SVMProgram(_rows(train), _rows(validation), floor)


def svm_problem(
    train: Examples,
    validation: Examples,
    *,
    floor: float = 1e-4,
    tolerance: float = 1e-9,
    margin: float = 1e-7,
) -> BilevelProblem:
    r"""Choose each training example's error bound, judged on validation data.

    .. math::
        \min_{c \ge c_{\min}} \; f(c, z) &= \sum_{i \in \mathrm{val}} e^{1 - y_i (w^\top x_i + b)}
        + \|c\|_2 \qquad\text{subject to}\\
        z = (w, b) &\in \arg\min_{w, b} \; g(z) = \tfrac12 \|w\|^2
        \quad\text{s.t.}\quad 1 - c_i - y_i (w^\top x_i + b) \le 0 \quad (i \in \mathrm{train}).

    The source gives the follower slacks, :math:`1 - \xi_i \le y_i(w^\top x_i + b)` and
    :math:`0 \le \xi_i \le c_i`. Its objective does not charge for them, so the largest that are
    allowed, :math:`\xi = c`, exclude no (w, b), and they are eliminated.

    x is c, a float64 tensor of shape (n,); y is z = (w, b), one of shape (d + 1,). The problem
    brings its own exact response, so that the published method is

    >>> BLOCC(penalty=12.0, upper_lr=0.01).solve(problem, c0, z0, max_steps=80)  # doctest: +SKIP

    and the run to the global optimum, where that is known to exist (see :func:`relaxed_optimum`),

    >>> falling = Geometric(12.0, 12.0 / 3**12, steps=12)
    >>> BLOCC(penalty=falling, outer=DifferenceOfConvex()).solve(problem, c0, z0)  # doctest: +SKIP

    Every :math:`c \ge 1` is a feasible start: w = 0 answers it.

    Parameters
    ----------
    train, validation : Dataset or (features, labels)
        Features of shape (n, d), labels -1 and +1 of shape (n,).
    floor : float
        :math:`c_{\min}`.
    tolerance : float
        Of the responses, see :class:`SVMResponse`.
    margin : float
        How far inside the feasible set a difference-of-convex step ends. The step itself leads to
        its boundary, where the follower's multipliers are unbounded.

    Raises
    ------
    ProblemError, OptionError
        As :func:`signed_rows`, :class:`SVMProgram` and :class:`SVMResponse`.
    VariableError
        When it is evaluated where x or y has another shape.

    Notes
    -----
    Source: Jiang et al. 2024, arXiv:2406.10148, its experiment with support vector machines. As a
    way to choose a classifier it has a flaw: c has more entries than there are validation examples
    to fit it to, so that the better the program is solved, the more it overfits.
    """
    program = svm_program(train, validation, floor=floor)
    rows = torch.from_numpy(program.train_rows.copy())
    validation_rows = torch.from_numpy(program.validation_rows.copy())

    def upper(c: Tensor, z: Tensor) -> Tensor:
        _require_shape("x", c, rows.shape[:1], "one error bound for each training example")
        _require_shape("y", z, rows.shape[1:], "the weights, then the intercept")
        norm: Tensor = torch.linalg.vector_norm(c)
        return torch.exp(1 - validation_rows @ z).sum() + norm

    def lower(c: Tensor, z: Tensor) -> Tensor:
        w = z[:-1]
        return 0.5 * torch.dot(w, w)

    def margins(c: Tensor, z: Tensor) -> Tensor:
        return 1 - c - rows @ z

    return BilevelProblem(
        upper=upper,
        lower=lower,
        lower_constraints=margins,
        upper_domain=Box(floor, None),
        lower_response=ExactSVMResponse(SVMResponse(program, tolerance), margin),
    )


@dataclass(frozen=True)
class ExactSVMResponse(Response):
    """The program's kernels as the solvers' response: exact, and warm-started.

    Parameters
    ----------
    kernel : SVMResponse
    margin : float
        See :func:`svm_problem`.

    Raises
    ------
    OptionError
        ``margin`` is not positive.
    """

    kernel: SVMResponse
    margin: float = 1e-7
    exact = True

    def __post_init__(self) -> None:
        if not 0 < self.margin < np.inf:
            raise OptionError(f"margin={self.margin!r}, expected a positive number, such as 1e-7")

    def update(
        self,
        problem: BilevelProblem,
        state: State,
        track: Track,
        weight: float,
        evaluations: list[Evaluation],
    ) -> None:
        """Solve at the current c, from the track's last response where it has one.

        Raises
        ------
        InfeasibleError
            No hyperplane satisfies the constraints; see :meth:`SVMResponse.original`.
        ResponseError
            c is on the boundary of the feasible set.
        """
        c, mu, warm = state.upper.vector(), track.inequality_multipliers, None
        if mu is not None:
            warm = KKTPoint(state.lower.vector(), mu.cpu().numpy())
        if weight > 0:
            point = self.kernel.perturbed(c, 1 / weight, warm)
        else:
            point = self.kernel.original(c, warm)
        state.lower.assign_vector(point.z)
        like = state.lower.leaves[0]
        track.inequality_multipliers = torch.from_numpy(point.mu).to(like.device)
        state.gradient_evaluations += 1

    def linearised_step(
        self,
        problem: BilevelProblem,
        state: State,
        penalty: float,
        slope: Array,
        proximal: float,
    ) -> bool:
        """Solve the difference-of-convex subproblem and step back from the boundary."""
        c, z = linearised_step(
            self.kernel.program,
            state.upper.vector(),
            penalty,
            -slope,
            proximal=proximal,
            tolerance=_PROXIMAL_TOLERANCE if proximal else self.kernel.tolerance,
        )
        state.upper.assign_vector(self.kernel.project(c, self.margin))
        state.lower.assign_vector(z)
        return True


def _rows(examples: Examples) -> Array:
    if isinstance(examples, Dataset):
        return signed_rows(examples.features, examples.labels)
    return signed_rows(*examples)


def _require_shape(name: str, value: Tensor, expected: torch.Size, meaning: str) -> None:
    if not isinstance(value, Tensor) or value.shape != expected:
        found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise VariableError(
            f"{name} is {found}; this program takes one tensor of shape {tuple(expected)}: "
            f"{meaning}"
        )
