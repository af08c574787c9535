"""Eighteen small bilevel problems whose optima are known.

Definitions after the public library BOLIB, version 2 (Zhou, Zemkoho and Tin); the optimal values were
verified independently (lower level re-solved, upper level searched globally), which corrects the
library where it is wrong. In each, the lower level is convex in y with a unique solution. The starts
are the library's, and not always feasible.
"""

# ruff: noqa: E501
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bilevel.problem import BilevelProblem


@dataclass(frozen=True)
class KnownOptimum:
    """A problem, its customary start, and the objectives at its optimum."""

    name: str
    problem: BilevelProblem
    x0: Tensor
    y0: Tensor
    upper_value: float
    lower_value: float
    note: str = ""


KNOWN_OPTIMA: dict[str, KnownOptimum] = {}


def _add(
    name: str,
    *,
    x0: list[float],
    y0: list[float],
    upper_value: float,
    lower_value: float,
    note: str = "",
    **functions: Any,
) -> None:
    KNOWN_OPTIMA[name] = KnownOptimum(
        name,
        BilevelProblem(**functions),
        torch.tensor(x0, dtype=torch.float64),
        torch.tensor(y0, dtype=torch.float64),
        upper_value,
        lower_value,
        note,
    )


def _rows(*terms: Tensor) -> Tensor:
    return torch.cat([term.reshape(-1) for term in terms])


def _sq(v: Tensor) -> Tensor:
    return (v * v).sum()


def _vec(v: Tensor, *values: float) -> Tensor:
    return v.new_tensor(values)


def _portfolio_spread(y: Tensor) -> Tensor:
    """Squared Mahalanobis distance of ten assets' returns from their forecast."""
    i = torch.arange(1, 11, dtype=y.dtype)
    forecast = 1.15 + 0.05 * i / 10
    spread = 0.05 / 30 * torch.sqrt(20 * i * 11)
    return (((y - forecast) / spread) ** 2).sum()


_add(
    "AllendeStill2013",
    upper=lambda x, y: _sq(x - 1) + _sq(y),
    lower=lambda x, y: _sq(y) - 2 * (x * y).sum(),
    upper_constraints=lambda x, y: _rows(-x, -y, x[0] - 2),
    lower_constraints=lambda x, y: (y - 1) ** 2 - 0.25,
    x0=[0.0, 0.0],
    y0=[0.0, 0.0],
    upper_value=1.0,
    lower_value=-0.5,
)

_add(
    "Bard1988Ex2",
    upper=lambda x, y: (y[0] + y[2]) * (y[0] + y[2] - 200) + (y[1] + y[3]) * (y[1] + y[3] - 160),
    lower=lambda x, y: _sq(y - _vec(y, 4, 13, 35, 2)),
    upper_constraints=lambda x, y: _rows(x.sum() - 40, x - _vec(x, 10, 5, 15, 20), -x),
    lower_constraints=lambda x, y: _rows(
        0.4 * y[0] + 0.7 * y[1] - x[0],
        0.6 * y[0] + 0.3 * y[1] - x[1],
        0.4 * y[2] + 0.7 * y[3] - x[2],
        0.6 * y[2] + 0.3 * y[3] - x[3],
        y - _vec(y, 20, 20, 40, 40),
        -y,
    ),
    x0=[5.0, 5.0, 15.0, 15.0],
    y0=[0.0, 0.0, 0.0, 0.0],
    upper_value=-6600.0,
    lower_value=54.0,
)

_add(
    "CalamaiVicente1994b",
    upper=lambda x, y: 0.5 * _sq(x - 1) + 0.5 * _sq(y),
    lower=lambda x, y: 0.5 * _sq(y) - (y * x[:2]).sum(),
    lower_constraints=lambda x, y: _rows(
        x[:2] - y - 1, x[:2] + y - _vec(x, 1.5, 3.0), 1 - x[:2] - y
    ),
    x0=[1.0, 1.0, 1.0, 1.0],
    y0=[1.0, 1.0],
    upper_value=0.3125,
    lower_value=-0.4063,
)

_add(
    "ClarkWesterberg1990a",
    upper=lambda x, y: (x[0] - 3) ** 2 + (y[0] - 2) ** 2,
    lower=lambda x, y: (y[0] - 5) ** 2,
    upper_constraints=lambda x, y: _rows(x - 8, -x),
    lower_constraints=lambda x, y: _rows(-2 * x + y - 1, x - 2 * y + 2, x + 2 * y - 14),
    x0=[1.0],
    y0=[1.0],
    upper_value=5.0,
    lower_value=4.0,
)

_add(
    "Colson2002BIPA2",
    upper=lambda x, y: (x[0] - 5) ** 2 + (2 * y[0] + 1) ** 2,
    lower=lambda x, y: (y[0] - 1) ** 2 - 1.5 * x[0] * y[0] + x[0] ** 3,
    upper_constraints=lambda x, y: -x,
    lower_constraints=lambda x, y: _rows(-3 * x + y + 3, x - 0.5 * y - 4, x + y - 7, -y),
    x0=[4.0],
    y0=[0.0],
    upper_value=17.0,
    lower_value=2.0,
)

_add(
    "Colson2002BIPA4",
    upper=lambda x, y: x[0] ** 2 + (y[0] - 10) ** 2,
    lower=lambda x, y: x[0] ** 3 + 2 * y[0] ** 3 + x[0] - 2 * y[0] - x[0] ** 2,
    upper_constraints=lambda x, y: _rows(x + 2 * y - 6, -x),
    lower_constraints=lambda x, y: _rows(-x + 2 * y - 3, -y),
    x0=[1.5],
    y0=[2.25],
    upper_value=88.79,
    lower_value=-0.77,
    note="lower objective is convex on y >= 0 only",
)

_add(
    "Dempe1992b",
    upper=lambda x, y: (x[0] - 3.5) ** 2 + (y[0] + 4) ** 2,
    lower=lambda x, y: (y[0] - 3) ** 2,
    lower_constraints=lambda x, y: _rows(y[0] ** 2 - x[0]),
    x0=[-1.0],
    y0=[-1.0],
    upper_value=28.25,
    lower_value=9.0,
    note="the start is infeasible for the lower level (needs x >= y^2); at the optimum x = 0 the feasible set is the single point y = 0 and no Slater point exists",
)

_add(
    "DeSilva1978",
    upper=lambda x, y: _sq(x - 1) + _sq(y) - 2,
    lower=lambda x, y: _sq(y - x),
    lower_constraints=lambda x, y: _rows(0.5 - y, y - 1.5),
    x0=[0.0, 0.0],
    y0=[1.0, 1.0],
    upper_value=-1.0,
    lower_value=0.0,
)

_add(
    "FloudasZlobec1998",
    upper=lambda x, y: x[0] ** 3 * y[0] + y[1],
    lower=lambda x, y: -y[1],
    upper_constraints=lambda x, y: _rows(-x, x - 1),
    lower_constraints=lambda x, y: _rows(
        -1 - y[0], -y[1], y[0] - 1, y[1] - 100, x[0] * y[0] - 10, y[0] ** 2 + x[0] * y[1] - 1
    ),
    x0=[1.0],
    y0=[1.0, 1.0],
    upper_value=1.0,
    lower_value=-1.0,
)

_add(
    "GumusFloudas2001Ex4",
    upper=lambda x, y: (x[0] - 3) ** 2 + (y[0] - 2) ** 2,
    lower=lambda x, y: (y[0] - 5) ** 2,
    upper_constraints=lambda x, y: _rows(-x, x - 8, -2 * x + y - 1, x - 2 * y + 2, x + 2 * y - 14),
    lower_constraints=lambda x, y: _rows(-y, y - 10),
    x0=[1.0],
    y0=[1.0],
    upper_value=9.0,
    lower_value=0.0,
)

_add(
    "HendersonQuandt1958",
    upper=lambda x, y: 0.5 * x[0] ** 2 + 0.5 * x[0] * y[0] - 95 * x[0],
    lower=lambda x, y: y[0] ** 2 + (0.5 * x[0] - 100) * y[0],
    upper_constraints=lambda x, y: _rows(x - 200, -x),
    lower_constraints=lambda x, y: -y,
    x0=[0.0],
    y0=[0.0],
    upper_value=-3266.67,
    lower_value=-711.11,
)

_add(
    "LamparielloSagratella2017Ex32",
    upper=lambda x, y: x[0] ** 2 + y[0] ** 2,
    lower=lambda x, y: (x[0] + y[0] - 1) ** 2,
    x0=[1.0],
    y0=[1.0],
    upper_value=0.5,
    lower_value=0.0,
)

_add(
    "MuuQuy2003Ex1",
    upper=lambda x, y: _sq(y) + x[0] ** 2 - 4 * x[0],
    lower=lambda x, y: (
        y[0] ** 2 + 0.5 * y[1] ** 2 + y[0] * y[1] + (1 - 3 * x[0]) * y[0] + (1 + x[0]) * y[1]
    ),
    upper_constraints=lambda x, y: _rows(-x, x - 2),
    lower_constraints=lambda x, y: _rows(2 * y[0] + y[1] - 2 * x[0] - 1, -y),
    x0=[2.0],
    y0=[0.0, 0.0],
    upper_value=-2.0769,
    lower_value=-0.5868,
)

_add(
    "RobustPortfolioP1",
    upper=lambda x, y: -x[10],
    lower=lambda x, y: (x[:10] * y).sum() - x[10],
    upper_constraints=lambda x, y: _rows(
        x[10] - (x[:10] * y).sum(), -x[:10], x[:10].sum() - 1, 1 - x[:10].sum()
    ),
    lower_constraints=lambda x, y: _rows(_portfolio_spread(y) - 2.25, -y),
    x0=[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
    y0=[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
    upper_value=-1.15,
    lower_value=0.0,
    note="worst-case return over an ellipsoid; a robust problem with one semi-infinite constraint. The MATLAB table prints +1.15.",
)

_add(
    "SahinCiric1998Ex2",
    upper=lambda x, y: (x[0] - 3) ** 2 + (y[0] - 2) ** 2,
    lower=lambda x, y: (y[0] - 5) ** 2,
    upper_constraints=lambda x, y: _rows(x - 8, -x),
    lower_constraints=lambda x, y: _rows(-2 * x + y - 1, x - 2 * y + 2, x + 2 * y - 14),
    x0=[1.0],
    y0=[1.0],
    upper_value=5.0,
    lower_value=4.0,
    note="same model as ClarkWesterberg1990a",
)

_add(
    "ShimizuAiyoshi1981Ex2",
    upper=lambda x, y: (x[0] - 30) ** 2 + (x[1] - 20) ** 2 - 20 * y[0] + 20 * y[1],
    lower=lambda x, y: _sq(x - y),
    upper_constraints=lambda x, y: _rows(30 - x[0] - 2 * x[1], x.sum() - 25, x[1] - 15),
    lower_constraints=lambda x, y: _rows(y - 10, -y),
    x0=[1.0, 1.0],
    y0=[1.0, 1.0],
    upper_value=225.0,
    lower_value=100.0,
)

_add(
    "SinhaMaloDeb2014TP3",
    upper=lambda x, y: -(x[0] ** 2) - 3 * x[1] ** 2 - 4 * y[0] + y[1] ** 2,
    lower=lambda x, y: 2 * x[0] ** 2 + y[0] ** 2 - 5 * y[1],
    upper_constraints=lambda x, y: _rows(-x, x[0] ** 2 + 2 * x[1] - 4),
    lower_constraints=lambda x, y: _rows(
        -y, 4 + 4 * y[1] - 3 * y[0] - x[1], 2 * x[0] + 2 * y[0] - y[1] - x[0] ** 2 - x[1] ** 2 - 3
    ),
    x0=[1.0, 1.0],
    y0=[1.0, 1.0],
    upper_value=-18.679,
    lower_value=-1.016,
)

_add(
    "SinhaMaloDeb2014TP8",
    upper=lambda x, y: (2 * x.sum() - 3 * y.sum() - 60) ** 2,
    lower=lambda x, y: _sq(y - x + 20),
    upper_constraints=lambda x, y: _rows(-x, x - 50, x[0] + x[1] + y[0] - 2 * y[1] - 40),
    lower_constraints=lambda x, y: _rows(2 * y - x + 10, y - 20, -y - 10),
    x0=[1.0, 1.0],
    y0=[1.0, 1.0],
    upper_value=0.0,
    lower_value=100.0,
)
