"""The papers' toy problems, against their closed forms (float64)."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from toys import X_REF, coupled_toy, negative_toy, positive_toy, scalar, value_function_toy

from bilevel import (
    BLOCC,
    PBGD,
    BilevelProblem,
    Box,
    Exact,
    FirstOrder,
    MaxMin,
    PBGDFree,
    QuasiNewton,
    Status,
)
from bilevel.errors import BiasWarning
from bilevel.schedules import Geometric

START = (scalar(2.0), scalar(3.0))


class TestNegativeToy:
    @pytest.mark.parametrize(
        "solver",
        [
            PBGD(),
            PBGD(outer=QuasiNewton()),
            PBGD(penalty=15.0, response=Exact(), upper_lr=0.05),
            PBGD(penalty=15.0, lower_lr=0.1, inner_steps=10, upper_lr=0.05),
            PBGD(penalty=15.0, lower_lr=0.1, inner_steps=5, upper_lr=0.01, variant="joint"),
            BLOCC(),
        ],
        ids=["sqp", "quasi-newton", "exact", "gradient-descent", "joint", "blocc"],
    )
    def test_full_gradient_finds_the_optimum(self, solver):
        solution = solver.solve(negative_toy(), *START, max_steps=3000)
        assert solution.converged
        assert float(solution.x) == pytest.approx(-5.0, abs=1e-3)

    def test_perturbed_response_lags_by_the_closed_form(self):
        # y_γ = x - 1 - 5/γ whatever x is, and so is the fixed point of one tracked gradient step.
        solver = PBGD(penalty=15.0, lower_lr=0.1, inner_steps=1, upper_lr=0.02)
        solution = solver.solve(negative_toy(), *START, max_steps=5000, tolerance=1e-9)
        assert float(solution.y) == pytest.approx(float(solution.x) - 1 - 5 / 15, abs=1e-6)
        assert solution.lower_gap == pytest.approx((5 / 15) ** 2, abs=1e-9)

    def test_value_function_free_direction_stops_elsewhere_and_says_so(self):
        solver = PBGDFree(penalty=15.0, upper_lr=0.01, lower_lr=0.01, bias_every=300)
        with pytest.warns(BiasWarning, match="polish"):
            solution = solver.solve(negative_toy(Box(-20.0, 4.0)), *START, max_steps=3000)
        assert float(solution.x) == pytest.approx(0.0, abs=1e-5)
        assert float(solution.y) == pytest.approx(-1 - 5 / 15, abs=1e-5)
        assert solution.status is Status.BIASED
        assert not solution.converged
        # The omitted term: γ |∇ₓg(x, y_γ) - ∇ₓg(x, y_g)| = 10 for every γ.
        assert solution.history["bias"].dropna().iloc[-1] == pytest.approx(10.0, abs=1e-4)
        assert solution.stationarity == pytest.approx(10.0, abs=1e-4)

    def test_the_bias_is_warned_of_once_a_run_and_where_the_run_was_called(self):
        solver = PBGDFree(penalty=15.0, upper_lr=0.01, lower_lr=0.01, bias_every=300)
        with pytest.warns(BiasWarning) as caught:
            solution = solver.solve(negative_toy(Box(-20.0, 4.0)), *START, max_steps=3000)
        assert (solution.history["bias_ratio"].dropna() > 1).sum() > 1
        assert [warning.filename for warning in caught] == [__file__]

    def test_no_bias_is_warned_of_that_a_polish_will_remove(self):
        solver = PBGDFree(
            penalty=15.0, upper_lr=0.01, lower_lr=0.01, bias_every=300, polish=PBGD()
        )  # pytest would make an error of a warning
        solution = solver.solve(negative_toy(Box(-20.0, 4.0)), *START, max_steps=3000)
        assert solution.history["bias_ratio"].max() > 1
        assert float(solution.x) == pytest.approx(-5.0, abs=1e-3)

    def test_measuring_the_bias_on_batches_leaves_nothing_else_in_the_history(self):
        toy = negative_toy(Box(-20.0, 4.0))
        problem = BilevelProblem(
            upper=lambda x, y, batch: toy.upper(x, y),
            lower=lambda x, y, batch: toy.lower(x, y),
            upper_domain=toy.upper_domain,
        )
        options = {"penalty": 15.0, "upper_lr": 0.01, "lower_lr": 0.01}
        run = {"max_steps": 7, "upper_batches": [0], "lower_batches": [0]}
        plain = PBGDFree(**options).solve(problem, *START, **run).history
        with pytest.warns(BiasWarning, match="at step 4"):
            measured = PBGDFree(**options, bias_every=3).solve(problem, *START, **run).history
        assert measured["bias"].notna().tolist() == [step in (4, 7) for step in range(1, 8)]
        others = measured.drop(columns=["bias", "bias_ratio", "seconds"])
        pd.testing.assert_frame_equal(others, plain.drop(columns="seconds"))


class TestPositiveToy:
    start = (scalar(5.0), scalar(-9.9))
    optimum = (-6.167815, 6.199888)

    @pytest.mark.parametrize("inner_steps", [1, 2])
    def test_value_function_free_limit(self, inner_steps):
        solver = PBGDFree(penalty=16.0, upper_lr=0.2, lower_lr=0.2, inner_steps=inner_steps)
        solution = solver.solve(positive_toy(), *self.start, max_steps=6000)
        assert float(solution.x) == pytest.approx(-7.163917, abs=1e-4)
        assert float(solution.y) == pytest.approx(6.643452, abs=1e-3)
        # The limit solves ½ σ((x - x_ref)/2) + 0.02 x = 0, whatever the penalty.
        sigmoid = 1 / (1 + math.exp(-(float(solution.x) - X_REF) / 2))
        assert 0.5 * sigmoid + 0.02 * float(solution.x) == pytest.approx(0.0, abs=1e-5)
        assert solution.status is Status.BIASED

    def test_first_iterations_are_the_published_ones(self):
        # Printed by the authors' notebook after 100 outer steps.
        solver = PBGD(penalty=16.0, upper_lr=0.01, lower_lr=0.01, inner_steps=10)
        solution = solver.solve(positive_toy(), *self.start, max_steps=100)
        assert float(solution.x) == pytest.approx(4.39405, abs=1e-4)
        assert float(solution.y) == pytest.approx(-6.15738, abs=1e-4)

    @pytest.mark.parametrize(
        "solver",
        [
            PBGD(penalty=16.0),
            PBGD(penalty=16.0, outer=QuasiNewton()),
            PBGD(penalty=16.0, response=Exact(), outer=FirstOrder(lr=1.0)),
        ],
        ids=["sqp", "quasi-newton", "first-order"],
    )
    def test_minimiser_of_the_penalised_value(self, solver):
        solution = solver.solve(positive_toy(), *self.start, max_steps=3000, tolerance=1e-8)
        assert float(solution.x) == pytest.approx(-6.188557, abs=1e-5)
        assert float(solution.y) == pytest.approx(6.064593, abs=1e-5)

    def test_polish_reaches_the_optimum_with_fewer_gradients_than_the_full_method(self):
        growing = Geometric(16.0, 400.0, steps=100)
        full = PBGD(penalty=growing, upper_lr=0.2, lower_lr=1.0, inner_steps=10)
        free = PBGDFree(penalty=16.0, upper_lr=0.2, lower_lr=1.0, polish=full)
        options = {"max_steps": 2000, "tolerance": 1e-4}
        polished = free.solve(positive_toy(), *self.start, **options)
        alone = full.solve(positive_toy(), *self.start, **options)
        for solution in (polished, alone):
            assert solution.converged
            assert float(solution.x) == pytest.approx(self.optimum[0], abs=1e-2)
            assert float(solution.y) == pytest.approx(self.optimum[1], abs=1e-2)
        assert polished.gradient_evaluations < 0.8 * alone.gradient_evaluations
        assert set(polished.history["phase"]) == {"value-function-free", "polish"}
        assert polished.history["gradient_evaluations"].is_monotonic_increasing


class TestValueFunctionToy:
    """v(x) = 0 on [0, 3], so every method descends φ(x) = f(x, -x)."""

    minima = (0.3824, 1.2152, 2.8296)

    @pytest.mark.parametrize(("start", "minimum"), [(0.2, 0.3824), (1.3, 1.2152), (2.7, 2.8296)])
    def test_each_minimum_is_found_from_nearby(self, start, minimum):
        solution = PBGD().solve(value_function_toy(), scalar(start), scalar(-start))
        assert float(solution.x) == pytest.approx(minimum, abs=1e-3)
        assert float(solution.y) == pytest.approx(-minimum, abs=1e-3)
        assert abs(solution.lower_gap) < 1e-8

    def test_joint_steps_end_at_the_published_points(self):
        # γ = 10 with step 0.1/γ; the notes' ends for the corrected gradient are ±2e-3.
        solver = PBGD(penalty=10.0, upper_lr=0.01, lower_lr=0.1, inner_steps=1, variant="joint")
        ends = []
        for start in (0.2, 1.3, 2.9):
            solution = solver.solve(
                value_function_toy(), scalar(start), scalar(-start), max_steps=1500
            )
            ends.append((float(solution.x), float(solution.y)))
        np.testing.assert_allclose(
            ends, [(0.367, -0.334), (1.188, -1.213), (2.824, -2.830)], atol=2e-3
        )

    def test_restarts_find_the_global_minimum(self):
        solution = PBGD().solve(value_function_toy(), scalar(2.7), scalar(-2.7), restarts=6)
        assert float(solution.x) == pytest.approx(1.2152, abs=1e-3)
        assert solution.upper_value == pytest.approx(0.19991, abs=1e-4)


class TestCoupledToys:
    """y(x) = x with multiplier 2x; the minima of f(x, x)."""

    @pytest.mark.parametrize(
        ("frequency", "ridge", "start", "minimum", "value"),
        [
            (4.0, 1.0, 0.25, 0.30070, 2.654498),
            (4.0, 1.0, 1.2, 1.16269, 3.584997),
            (6.0, 0.0, 0.12, 0.14889, 2.968499),
            (6.0, 0.0, 0.95, 0.98622, 1.721879),
            (6.0, 0.0, 2.05, 2.01973, 2.156115),
            (6.0, 0.0, 2.95, 2.99077, 2.445735),
        ],
    )
    def test_blocc_finds_each_minimum_from_nearby(self, frequency, ridge, start, minimum, value):
        problem = coupled_toy(frequency, ridge)
        solver = BLOCC(penalty=Geometric(100.0, 1e6, steps=2))
        solution = solver.solve(problem, scalar(start), scalar(start))
        assert solution.converged
        assert float(solution.x) == pytest.approx(minimum, abs=1e-4)
        assert solution.upper_value == pytest.approx(value, abs=1e-4)

    @pytest.mark.parametrize(
        ("frequency", "ridge", "value"), [(4.0, 1.0, 2.654498), (6.0, 0.0, 1.721879)]
    )
    def test_restarts_find_the_global_minimum(self, frequency, ridge, value):
        problem = coupled_toy(frequency, ridge)
        solution = BLOCC().solve(problem, scalar(2.5), scalar(2.5), restarts=5)
        assert solution.upper_value == pytest.approx(value, abs=1e-4)

    @pytest.mark.parametrize("steps", [1, 50], ids=["single loop", "double loop"])
    def test_first_order_blocc_reaches_the_penalised_minimum(self, steps):
        # γ = 5 as published; the notes' runs end at 0.985 rather than 0.98622.
        solver = BLOCC(
            penalty=5.0, upper_lr=0.01, response=MaxMin(steps=steps, lr=0.1, dual_lr=0.5)
        )
        solution = solver.solve(
            coupled_toy(6.0, 0.0), scalar(1.1), scalar(1.1), max_steps=3000, tolerance=1e-7
        )
        assert float(solution.x) == pytest.approx(0.985, abs=2e-3)
        assert solution.constraint_violation < 1e-5

    def test_multiplier_is_the_closed_form(self):
        solver = BLOCC(penalty=5.0, upper_lr=0.01, response=Exact())
        problem = coupled_toy(6.0, 0.0)
        state = solver.init(problem, scalar(1.1), scalar(1.1))
        solver.step(problem, state)
        assert state.original is not None
        assert float(state.original.inequality_multipliers) == pytest.approx(2.2, abs=1e-9)

    def test_value_function_free_with_coupled_constraints_follows_the_partial_gradient(self):
        solver = PBGDFree(penalty=5.0, upper_lr=0.01, response=Exact())
        problem = coupled_toy(6.0, 0.0)
        state = solver.init(problem, scalar(1.1), scalar(1.1))
        solver.step(problem, state)
        x, y = scalar(1.1).requires_grad_(), state.y.detach()
        assert problem.upper is not None
        (slope,) = torch.autograd.grad(problem.upper(x, y), x)
        assert float(state.x) == pytest.approx(1.1 - 0.01 * float(slope), abs=1e-12)
