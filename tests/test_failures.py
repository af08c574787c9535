"""Runs that fail: the error names the function, the tensor and the step, and keeps what was good."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch
from careless import CONSTRAINED, SOLVERS, c, f, g, problem, refused, solve, vector
from torch import nn

from bilevel import BLOCC, PBGD, DifferenceOfConvex, Exact, MaxMin, PBGDFree, QuasiNewton, Status
from bilevel.callbacks import Checkpoint
from bilevel.errors import (
    BilevelError,
    DependenceError,
    DivergenceError,
    InfeasibleError,
    NonFiniteError,
    NotApplicableError,
    ResponseError,
)

EXACT = {
    **SOLVERS,
    "QuasiNewton": BLOCC(outer=QuasiNewton()),
    "DifferenceOfConvex": BLOCC(penalty=10.0, outer=DifferenceOfConvex()),
    "first order, exact": PBGD(penalty=10.0, upper_lr=0.01),
}


def assert_usable(error: NonFiniteError | DivergenceError) -> None:
    """The error's state has finite variables that the problem can go on from."""
    for leaf in error.state.upper.leaves + error.state.lower.leaves:
        assert bool(torch.isfinite(leaf).all())
        assert leaf.requires_grad
    assert error.state.x.shape == error.state.y.shape == (2,)
    assert isinstance(error.history, pd.DataFrame)
    assert len(error.history) == error.state.step


# Not a number -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("solver", EXACT)
@pytest.mark.parametrize("name", ["upper", "lower"])
def test_an_objective_that_is_not_finite_at_the_start_is_named(name, solver, value):
    loss, label = (f, "upper (f)") if name == "upper" else (g, "lower (g)")
    broken = problem(**{name: lambda x, y: loss(x, y) + value})
    x0, y0 = vector(0.0, 0.0), vector(0.0, 0.0)
    with refused(NonFiniteError, f"{label} is {value}", "step 0", keeping=(x0, y0)) as caught:
        solve(EXACT[solver], x0, y0, problem=broken)
    assert_usable(caught.value)


@pytest.mark.parametrize("solver", EXACT)
@pytest.mark.parametrize("name", ["upper", "lower"])
def test_an_objective_that_ends_being_finite_on_the_way_is_named_with_the_step(name, solver):
    loss, label = (f, "upper (f)") if name == "upper" else (g, "lower (g)")
    # Defined up to y = 0.5, and the solution is at 1.5.
    broken = problem(**{name: lambda x, y: loss(x, y) + 0.1 * torch.sqrt(0.5 - y).sum()})
    x0, y0 = vector(0.0, 0.0), vector(0.0, 0.0)
    with refused(NonFiniteError, label, "step", "smaller learning rate", keeping=(x0, y0)) as caught:
        solve(EXACT[solver], x0, y0, problem=broken, max_steps=200)
    assert f"step {caught.value.state.step}" in str(caught.value)
    assert_usable(caught.value)


@pytest.mark.parametrize("solver", ["PBGD", "MaxMin", "SQP", "QuasiNewton", "first order, exact"])
@pytest.mark.parametrize("level", ["x", "y"])
@pytest.mark.parametrize("name", ["upper", "lower"])
def test_a_gradient_that_is_not_finite_is_named_with_its_tensor(name, level, solver):
    loss, label = (f, "upper (f)") if name == "upper" else (g, "lower (g)")

    def steep(x, y):  # √ has a value at zero and no derivative
        return loss(x, y) + 0.1 * (x if level == "x" else y["w"]).abs().sum().sqrt()

    def on_tree(function):
        return lambda x, y: function(x, y["w"]) if function in (f, g) else function(x, y)

    ...


@pytest.mark.parametrize("solver", CONSTRAINED)
@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("lower_constraints", "lower_constraints (c)"),
        ("lower_equalities", "lower_equalities (h)"),
        ("upper_constraints", "upper_constraints (C)"),
    ],
)
def test_constraints_that_are_not_finite_are_named_with_the_entry(name, label, solver):
    broken = problem(**{name: lambda x, y: c(x, y) + vector(0.0, math.nan)})
    x0, y0 = vector(0.0, 0.0), vector(0.0, 0.0)
    with refused(
        NonFiniteError, f"entry 1 of {label} is nan", "step 0", keeping=(x0, y0)
    ) as caught:
        solve(solver, x0, y0, problem=broken)
    assert_usable(caught.value)
