"""Losses of a margin, with the derivatives that Newton's method needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bilevel.calculus import Array

#: Steepness τ of the smoothed 0/1 loss.
STEEPNESS = 5.0


class Derivatives(NamedTuple):
    """A loss and its first two derivatives, at an array of margins.

    Where the loss is concave, the curvature is zero instead of negative, and where the slope has a
    kink it is an element of the generalised derivative: a Newton step then remains a descent step.
    """

    value: Array
    slope: Array
    curvature: Array


@dataclass(frozen=True)
class MarginLoss:
    r"""A loss :math:`\ell(m)` of the margin :math:`m = t\,(w^\top x + b)`, entry by entry.

    Attributes
    ----------
    value
        The loss of a torch tensor.
    derivatives
        The loss of a NumPy array, with its derivatives.
    """

    value: Callable[[Tensor], Tensor]
    derivatives: Callable[[Array], Derivatives]


def _log(margin: Array) -> Derivatives:
    small = np.exp(-np.abs(margin))
    share = 1.0 / (1.0 + small)
    return Derivatives(
        np.log1p(small) + np.maximum(-margin, 0.0),
        -np.where(margin > 0.0, small, 1.0) * share,
        small * share**2,
    )


def _squared_hinge(margin: Array) -> Derivatives:
    shortfall = np.maximum(1.0 - margin, 0.0)
    return Derivatives(shortfall**2, -2.0 * shortfall, np.where(shortfall > 0.0, 2.0, 0.0))


def _smoothed_zero_one(margin: Array) -> Derivatives:
    _, slope, curvature = _log(
        STEEPNESS * margin
    )  # of the log loss, whose slope is -1 / (1 + exp(m))
    return Derivatives(
        -slope,
        -STEEPNESS * curvature,
        STEEPNESS**2 * curvature * np.maximum(1.0 + 2.0 * slope, 0.0),
    )


#: log(1 + exp(-m)), the negative log-likelihood of the label.
LOG = MarginLoss(lambda margin: torch.nn.functional.softplus(-margin, threshold=50.0), _log)

#: max(0, 1 - m)².
SQUARED_HINGE = MarginLoss(lambda margin: (1.0 - margin).clamp_min(0.0).square(), _squared_hinge)

#: 1 / (1 + exp(τ m)): the mistakes, with a step of finite steepness τ.
SMOOTHED_ZERO_ONE = MarginLoss(
    lambda margin: torch.sigmoid(-STEEPNESS * margin), _smoothed_zero_one
)
