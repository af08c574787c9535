"""What a solution says of itself."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch
from toys import coupled_toy, negative_toy, positive_toy, scalar

from bilevel import BLOCC, PBGD, BilevelProblem, Exact, PBGDFree, Status
from bilevel.plotting import plot_history


def test_printed_table_holds_status_values_residuals_and_parts():
    solution = BLOCC().solve(coupled_toy(6.0, 0.0), scalar(1.1), scalar(1.1))
    text = str(solution)
    for line in ("status", "converged", "upper value f(x, y)", "lower gap g - v(x)", "SQP"):
        assert line in text
    assert "used solver BLOCC, response Exact, outer SQP" in solution.message


def test_status_texts_are_the_messages():
    assert Status.CONVERGED.value.startswith("converged")
    solution = PBGD(penalty=10.0, upper_lr=1e-3, lower_lr=1e-3).solve(
        positive_toy(), scalar(1.0), scalar(1.0), max_steps=5
    )
    assert solution.status is Status.MAX_STEPS
    assert "max_steps" in solution.message
    assert not solution.converged


def test_history_has_one_row_a_logged_step():
    solver = PBGD(penalty=10.0, upper_lr=1e-3, lower_lr=1e-3)
    solution = solver.solve(
        negative_toy(), scalar(1.0), scalar(1.0), max_steps=20, log_every=5, tolerance=0.0
    )
    assert list(solution.history["step"]) == [1, 6, 11, 16, 20]
    assert isinstance(solution.history, pd.DataFrame)
    for column in ("upper", "lower", "lower_gap", "violation", "stationarity", "seconds"):
        assert solution.history[column].notna().all()


def test_residuals_are_recomputed_at_the_answer_not_read_from_the_path():
    # One inner step leaves y far from the response; the gap must be that of the returned point.
    solver = PBGD(penalty=10.0, upper_lr=1e-6, lower_lr=1e-3)
    solution = solver.solve(negative_toy(), scalar(1.0), scalar(3.0), max_steps=3)
    x, y = float(solution.x), float(solution.y)
    assert solution.lower_gap == pytest.approx((y - x + 1) ** 2, rel=1e-9)
    assert solution.upper_value == pytest.approx(10 * y + x**2, rel=1e-12)
    # Full gradient of the penalised value there: φ'(x) = 2x + 10.
    assert solution.stationarity == pytest.approx(2 * x + 10, rel=1e-6)


def test_violation_is_the_largest_over_constraints_and_domains():
    problem = BilevelProblem(
        upper=lambda x, y: (x**2).sum() + (y**2).sum(),
        lower=lambda x, y: ((y - x) ** 2).sum(),
        lower_constraints=lambda x, y: torch.cat([y - 10, 0.5 - x]),
        upper_constraints=lambda x, y: y - 100,
    )
    start = torch.full((1,), -2.0, dtype=torch.float64)
    solution = PBGDFree(penalty=1.0, response=Exact(elastic=10.0), upper_lr=1e-9).solve(
        problem, start, start, max_steps=1
    )
    assert solution.constraint_violation == pytest.approx(2.5, abs=1e-6)
    assert solution.status is Status.INFEASIBLE


def test_gap_is_unknown_where_nothing_measures_it():
    solver = PBGDFree(penalty=10.0, upper_lr=0.1, lower_lr=0.1)
    batches = [torch.ones(3)] * 2
    problem = BilevelProblem(
        upper=lambda x, y, b: ((x - b) ** 2).mean() + (y**2).mean(),
        lower=lambda x, y, b: ((y - x * b) ** 2).mean(),
    )
    solution = solver.solve(
        problem, torch.zeros(3), torch.zeros(3), max_steps=4, upper_batches=batches,
        lower_batches=batches,
    )  # fmt: skip
    assert math.isnan(solution.lower_gap)


def test_plot_draws_a_panel_for_each_quantity_that_varies():
    solver = PBGD(penalty=10.0, upper_lr=1e-2, lower_lr=1e-1)
    solution = solver.solve(negative_toy(), scalar(1.0), scalar(1.0), max_steps=30)
    labels = [axes.get_ylabel() for axes in solution.plot().axes]
    assert labels == [
        "upper value $f(x, y)$",
        "lower value $g(x, y)$",
        "lower gap $g(x, y) - v(x)$",
        "stationarity",
    ]
    assert plot_history(solution.history.head(1)).axes


def test_empty_upper_variable_is_simple_bilevel():
    """Among the minimisers of g (the line y₀ + y₁ = 1) the one with the least f = |y - (1, 1)|²."""
    problem = BilevelProblem(
        upper=lambda x, y: ((y - 1) ** 2 * torch.tensor([1.0, 3.0], dtype=torch.float64)).sum(),
        lower=lambda x, y: (y.sum() - 1) ** 2,
    )
    start = torch.tensor([3.0, -4.0], dtype=torch.float64)
    expected = torch.tensor([0.25, 0.75], dtype=torch.float64)
    for x0 in (None, (), {}):
        solution = PBGD().solve(problem, x0, start)
        torch.testing.assert_close(solution.y, expected, atol=1e-5, rtol=0)
        assert solution.x == x0
    single = PBGDFree(penalty=100.0, lower_lr=0.3).solve(
        problem, None, start, max_steps=4000, tolerance=1e-7, log_every=100
    )
    torch.testing.assert_close(single.y, expected, atol=1e-2, rtol=0)
