"""Linear classifiers trained side by side on parts of one data set, and how they are judged."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from bilevel.calculus import Array
from bilevel.estimators.losses import MarginLoss


@dataclass(frozen=True, eq=False)
class Machines:
    r"""The objectives of m linear classifiers with common penalties.

    Row j of y is :math:`(w_j, b_j)`, the weights and the intercept of classifier j, and its margin
    on example i is :math:`m_{ji} = t_{ji}\,(w_j^\top x_i + b_j)` with labels
    :math:`t_{ji} = \pm 1`. With the logarithms λ of the penalties, one for all features or one a
    feature,

    .. math::
        g(\lambda, y) &= \sum_j \Bigl[ \sum_i a_{ji}\, \ell(m_{ji})
            + \frac{1}{2 s_j} \sum_k e^{\lambda_k} w_{jk}^2 \Bigr], \\
        f(\lambda, y) &= \sum_{j, i} b_{ji}\, \ell_{\mathrm{val}}(m_{ji})
            + \rho \sum_k (\lambda_k - \bar\lambda)^2.

    The weights :math:`a_j` are those of the examples that j is trained on, divided by their sum
    :math:`s_j`, so that j minimises :math:`\tfrac12 \|w\|^2 + C \sum_i \ell(m_i)` with
    :math:`C = e^{-\lambda}` where one penalty is shared.

    Attributes
    ----------
    rows : array of shape (n, d + 1)
        The examples, with a last column of ones.
    labels : array of shape (m, n)
        t, entries -1 and +1.
    training, validation : array of shape (m, n)
        a and b.
    sizes : array of shape (m,)
        s.
    loss, validation_loss : MarginLoss
        What the classifiers minimise, and what they are judged by.
    shrinkage : float
        ρ.
    """

    rows: Array
    labels: Array
    training: Array
    validation: Array
    sizes: Array
    loss: MarginLoss
    validation_loss: MarginLoss
    shrinkage: float = 0.0

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def width(self) -> int:
        """Entries of one classifier: a weight for each feature, and the intercept."""
        return int(self.rows.shape[1])

    # As the library sees them -------------------------------------------------------------------

    def upper(self, log_penalties: Tensor, y: Tensor) -> Tensor:
        """f, a 0-d tensor."""
        losses = torch.vdot(
            self._validation.reshape(-1),
            self.validation_loss.value(self._margins(y)).reshape(-1),
        )
        if self.shrinkage == 0.0:
            return losses
        deviation = log_penalties - log_penalties.mean()
        return losses + self.shrinkage * torch.dot(deviation, deviation)

    def lower(self, log_penalties: Tensor, y: Tensor) -> Tensor:
        """g, a 0-d tensor."""
        losses = torch.vdot(
            self._training.reshape(-1), self.loss.value(self._margins(y)).reshape(-1)
        )
        squares = torch.mv(y[:, :-1].square().T, self._inverse_sizes)
        return losses + 0.5 * (log_penalties.exp() * squares).sum()

    def _margins(self, y: Tensor) -> Tensor:
        return self._labels * (y @ self._columns)

    @cached_property
    def _columns(self) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.rows.T))

    @cached_property
    def _labels(self) -> Tensor:
        return torch.from_numpy(self.labels)

    @cached_property
    def _training(self) -> Tensor:
        return torch.from_numpy(self.training)

    @cached_property
    def _validation(self) -> Tensor:
        return torch.from_numpy(self.validation)

    @cached_property
    def _inverse_sizes(self) -> Tensor:
        return torch.from_numpy(1.0 / self.sizes)

    # As Newton's method sees them ---------------------------------------------------------------

    @cached_property
    def column_sizes(self) -> Array:
        """The mean absolute entry of each column over each classifier's training examples."""
        sizes: Array = self.training @ np.abs(self.rows)
        return np.where(sizes > 0.0, sizes, 1.0)

    def penalties(self, log_penalties: Array) -> Array:
        r"""The diagonal :math:`e^{\lambda} / s_j` of each regulariser, zero for the intercept."""
        diagonal = np.zeros((len(self), self.width))
        diagonal[:, :-1] = np.exp(log_penalties) / self.sizes[:, None]
        return diagonal

    def margins(self, y: Array) -> Array:
        """m, shape (m, n)."""
        margins: Array = self.labels * (y @ self.rows.T)
        return margins
