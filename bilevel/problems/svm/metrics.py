"""What the two responses to the same c are worth: the penalised one and the exact one."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from bilevel.problems.svm.program import Array, KKTPoint, SVMProgram
from bilevel.problems.svm.response import SVMResponse


@dataclass(frozen=True)
class Metrics:
    r"""A hyperplane z as a classifier and as a follower's answer to c.

    Attributes
    ----------
    validation_loss : float
        The mean of :math:`e^{1 - y_i (w^\top x_i + b)}` over the validation examples.
    validation_accuracy, test_accuracy : float
        Shares of examples with a positive margin.
    upper_value : float
        f(c, z): the sum of the validation losses, and :math:`\|c\|_2`.
    lower_gap : float
        g(z) less the lower bound :math:`(1 - c)^\top \mu - \tfrac12 \|A_w^\top \mu\|^2` on v(c),
        proved by the multipliers of the exact response.
    constraint_violation : float
        The largest violation of a margin constraint.
    """

    validation_loss: float
    validation_accuracy: float
    test_accuracy: float
    upper_value: float
    lower_gap: float
    constraint_violation: float


@dataclass
class Evaluator:
    r"""Metrics of both responses along a sequence of c, each solved from the last.

    The responses differ where the penalty is finite: the exact one is the follower's optimum, the
    penalised one minimises :math:`F(z) / \gamma + g(z)` and owes its quality to F. A bilevel
    solution is worth what its exact response is worth.

    Parameters
    ----------
    program : SVMProgram
    test_rows : array of shape (k, d + 1)
        Signed test examples.
    """

    program: SVMProgram
    test_rows: Array
    _last: dict[str, KKTPoint] = field(default_factory=dict, repr=False)

    def __call__(self, c: Array, penalty: float) -> dict[str, Metrics]:
        """Metrics of the responses named ``penalised`` and ``exact``.

        Raises
        ------
        InfeasibleError, ResponseError
            As :meth:`SVMResponse.original`.
        """
        response = SVMResponse(self.program)
        self._last = {
            "penalised": response.perturbed(c, penalty, self._last.get("penalised")),
            "exact": response.original(c, self._last.get("exact")),
        }
        value = _dual_value(self.program, c, self._last["exact"].mu)
        return {name: self._metrics(c, point.z, value) for name, point in self._last.items()}

    def _metrics(self, c: Array, z: Array, value: float) -> Metrics:
        program = self.program
        return Metrics(
            validation_loss=program.validation_loss(z) / len(program.validation_rows),
            validation_accuracy=float(np.mean(program.validation_rows @ z > 0)),
            test_accuracy=float(np.mean(self.test_rows @ z > 0)),
            upper_value=program.upper_value(c, z),
            lower_gap=program.lower_value(z) - value,
            constraint_violation=program.violation(c, z),
        )


def _dual_value(program: SVMProgram, c: Array, mu: Array) -> float:
    w = mu @ program.train_rows[:, :-1]
    return float((1 - c) @ mu - 0.5 * w @ w)
