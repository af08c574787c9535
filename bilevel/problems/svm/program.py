"""The program: what is minimised at either level, and over which data."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from bilevel.errors import OptionError, ProblemError

Array: TypeAlias = npt.NDArray[np.float64]


class KKTPoint(NamedTuple):
    """A hyperplane with its multipliers.

    Attributes
    ----------
    z : array of shape (d + 1,)
        (w, b).
    mu : array of shape (n,)
        Multipliers of the margin constraints.
    """

    z: Array
    mu: Array


@dataclasses.dataclass(frozen=True, eq=False)
class SVMProgram:
    r"""Choose how far each training margin may be violated, judged on validation data.

    .. math::
        \min_{c \ge c_{\min}} \; f(c, z) &= \sum_{i \in \mathrm{val}} e^{1 - v_i^\top z} + \|c\|_2
        \qquad\text{subject to}\\
        z = (w, b) &\in \arg\min_{w, b} \; g(z) = \tfrac12 \|w\|^2
        \quad\text{s.t.}\quad 1 - c_i - a_i^\top z \le 0 \quad (i \in \mathrm{train}).

    The rows :math:`a_i = y_i (x_i, 1)` and :math:`v_i = y_i (x_i, 1)` are *signed examples*: a row
    times z is the example's margin. The source writes the lower level with slacks,
    :math:`1 - \xi_i \le a_i^\top z,\ 0 \le \xi_i \le c_i`. As g does not charge for
    :math:`\xi`, the largest allowed slack :math:`\xi = c` admits every z that any other slack
    admits, so :math:`\xi` is eliminated without changing the set of optimal z, nor the
    multipliers (those of :math:`\xi \le c` equal those of the margins).

    Only the weights w enter g: of two z that differ in b alone, the follower prefers neither.

    Parameters
    ----------
    train_rows : array of shape (n, d + 1)
        Signed training examples; :func:`signed_rows` makes them from features and labels.
    validation_rows : array of shape (m, d + 1)
        Signed validation examples.
    floor : float
        Smallest admissible entry of c.

    Raises
    ------
    ProblemError
        The rows are not finite matrices of equal width, their last column is not a label in
        {-1, +1}, or a class is missing from the training rows.
    OptionError
        ``floor`` is not positive.

    Notes
    -----
    Source: Jiang et al. 2024, arXiv:2406.10148, its experiment with support vector machines.
    """

    train_rows: Array
    validation_rows: Array
    floor: float = 1e-4

    def __post_init__(self) -> None:
        if not 0 < self.floor < np.inf:
            raise OptionError(f"floor={self.floor!r}; expected a positive number, such as 1e-4")
        for name in ("train_rows", "validation_rows"):
            rows = np.array(getattr(self, name), dtype=np.float64)
            _check_rows(name, rows)
            rows.setflags(write=False)
            object.__setattr__(self, name, rows)
        if self.train_rows.shape[1] != self.validation_rows.shape[1]:
            raise ProblemError(
                f"train_rows have {self.train_rows.shape[1]} columns and validation_rows "
                f"{self.validation_rows.shape[1]}; both need the same features"
            )
        if np.all(self.train_rows[:, -1] == self.train_rows[0, -1]):
            raise ProblemError(
                f"every training label is {self.train_rows[0, -1]:+.0f}: the intercept is then "
                "unbounded; train on examples of both classes"
            )

    @cached_property
    def lower_weights(self) -> Array:
        """The diagonal of the Hessian of g: one for each weight, zero for the intercept."""
        weights = np.ones(self.train_rows.shape[1])
        weights[-1] = 0.0
        return weights

    def upper_value(self, c: Array, z: Array) -> float:
        """f(c, z)."""
        return self.validation_loss(z) + float(np.linalg.norm(c))

    def lower_value(self, z: Array) -> float:
        """g(z)."""
        return 0.5 * float(z[:-1] @ z[:-1])

    def violation(self, c: Array, z: Array) -> float:
        """The largest violation of a margin constraint, zero where all hold."""
        return max(0.0, float(np.max(1 - c - self.train_rows @ z)))

    def validation_loss(self, z: Array) -> float:
        """The sum of exponential losses over the validation rows."""
        return float(np.sum(np.exp(1 - self.validation_rows @ z)))


def signed_rows(features: npt.ArrayLike, labels: npt.ArrayLike) -> Array:
    """Rows y_i (x_i, 1), whose product with (w, b) is the margin of example i.

    Parameters
    ----------
    features : array of shape (n, d)
    labels : array of shape (n,)
        Each -1 or +1.

    Raises
    ------
    ProblemError
        The shapes do not fit, or a label is neither -1 nor +1.
    """
    x = np.asarray(features, dtype=np.float64)
    y = np.asarray(labels, dtype=np.float64)
    if x.ndim != 2 or y.shape != x.shape[:1]:
        raise ProblemError(
            f"features have shape {x.shape} and labels {y.shape}; expected (n, d) and (n,)"
        )
    if not np.all(np.abs(y) == 1):
        raise ProblemError(
            f"labels are {np.unique(y)[:5]}; expected -1 and +1 (for classes 0 and 1: 2 * y - 1)"
        )
    return y[:, None] * np.column_stack([x, np.ones(len(y))])


def _check_rows(name: str, rows: Array) -> None:
    if rows.ndim != 2 or rows.shape[0] == 0 or rows.shape[1] < 2:
        raise ProblemError(f"{name} has shape {rows.shape}; expected (examples, features + 1)")
    if not np.all(np.isfinite(rows)):
        raise ProblemError(f"{name} holds NaN or infinite entries; remove or impute them")
    if not np.all(np.abs(rows[:, -1]) == 1):
        raise ProblemError(
            f"the last column of {name} must hold the labels -1 and +1; make the rows with "
            "signed_rows(features, labels)"
        )
