"""When a run may say that it has converged, and what its history and counters tell (float64)."""

from __future__ import annotations

import dataclasses
import warnings
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from toys import coupled_toy, negative_toy, scalar

from bilevel import (
    BLOCC,
    PBGD,
    BilevelProblem,
    Box,
    Exact,
    L1Ball,
    MaxMin,
    PBGDFree,
    QuasiNewton,
    Status,
)
from bilevel.errors import BiasWarning
from bilevel.evaluation import Evaluation
from bilevel.outer.value_function import ValueFunction
from bilevel.problems.known_optima import KNOWN_OPTIMA
from bilevel.solvers.restarts import _Met, _Paths, _rank
from bilevel.stationarity import Stationarity


class TestScaleFreeResidual:
    @pytest.mark.parametrize("penalty", [1e2, 1e4, 1e6])
    def test_a_large_penalty_excuses_no_gradient(self, penalty):
        # φ'(x) = 2x + 10 = 0.3 at the start, where a loose tolerance ends the quasi-Newton steps.
        solver = PBGD(penalty=penalty, outer=QuasiNewton(tolerance=1.0))
        solution = solver.solve(negative_toy(), scalar(-4.85), scalar(-5.85), max_steps=1)
        assert solution.stationarity == pytest.approx(0.3, rel=1e-3)
        assert not solution.converged

    @pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e6])
    def test_scaling_both_objectives_changes_no_verdict(self, scale):
        toy = negative_toy()
        scaled = BilevelProblem(
            upper=lambda x, y: scale * toy.upper(x, y), lower=lambda x, y: scale * toy.lower(x, y)
        )
        solution = PBGD().solve(scaled, scalar(2.0), scalar(3.0))
        assert solution.converged
        assert float(solution.x) == pytest.approx(-5.0, abs=1e-3)

    def test_the_rule(self):
        found = Stationarity(residual=3e-6, size=2.0, resolution=1e-6)
        assert found.within(1e-6)
        assert not found.within(0.5e-6)


class TestFirstOrderResponses:
    def test_penalised_residuals_are_below_the_tolerance_where_a_run_has_converged(self):
        solver = PBGD(penalty=100.0, lower_lr=0.1, inner_steps=5, upper_lr=0.05)
        solution = solver.solve(negative_toy(), scalar(2.0), scalar(3.0), max_steps=5000)
        assert solution.converged
        last = solution.history.iloc[-1]
        assert last["stationarity"] <= 1e-6
        assert 100.0 * max(last["lower_residual"], last["original_residual"]) <= 1e-6

    def test_max_min_does_not_converge_while_the_constraint_is_violated(self):
        # The multiplier ascends so slowly that y settles at the minimiser of g, where c = 1.
        problem = BilevelProblem(
            upper=lambda x, y: ((x - 1) ** 2).sum() + (y**2).sum() * 0,
            lower=lambda x, y: ((y - 2) ** 2).sum() + 0 * x.sum(),
            lower_constraints=lambda x, y: y.reshape(1) - 1,
        )
        response = MaxMin(steps=50, lr=0.4, dual_lr=1e-9)
        solver = BLOCC(penalty=1.0, upper_lr=0.4, response=response)
        solution = solver.solve(problem, scalar(0.0), scalar(2.0), max_steps=200)
        assert float(solution.history["stationarity"].iloc[-1]) < 1e-6
        assert float(solution.history["lower_residual"].iloc[-1]) == pytest.approx(1.0, abs=1e-3)
        assert solution.steps == 200
        assert not solution.converged

    def test_max_min_converges_with_feasible_complementary_responses(self):
        response = MaxMin(steps=20, lr=0.1, dual_lr=0.5)
        solver = BLOCC(penalty=5.0, upper_lr=0.01, response=response)
        solution = solver.solve(
            coupled_toy(6.0, 0.0), scalar(1.1), scalar(1.1), max_steps=3000, tolerance=1e-6
        )
        assert solution.status is Status.CONVERGED
        assert solution.constraint_violation <= 1e-6


class TestUpperConstraints:
    """min (x - a)² + y² s.t. y <= 0.5, y = x: x = 0.5 with multiplier 2(a - 0.5) - 1."""

    @staticmethod
    def problem(a: float) -> BilevelProblem:
        return BilevelProblem(
            upper=lambda x, y: (x - a) ** 2 + y**2,
            lower=lambda x, y: (y - x) ** 2,
            upper_constraints=lambda x, y: y.reshape(1) - 0.5,
        )

    def test_a_large_multiplier_adds_no_constant_to_f(self):
        problem = self.problem(1e6)
        solver = PBGD(penalty=1e3, response=Exact(), upper_lr=0.02)
        state = solver.init(problem, scalar(0.5), scalar(0.5))
        state.outer_state["upper_multipliers"] = torch.tensor([2e6], dtype=torch.float64)
        plain = float(problem.upper(scalar(0.5), scalar(0.5)))
        with torch.no_grad():
            assert float(Evaluation(problem, state).upper()) == pytest.approx(plain, rel=1e-15)

    def test_a_run_converges_only_once_the_multiplier_has(self):
        solver = PBGD(penalty=1e3, response=Exact(), upper_lr=0.02)
        solution = solver.solve(self.problem(2.0), scalar(0.0), scalar(0.0), max_steps=2000)
        assert solution.history["upper_residual"].iloc[-1] <= 1e-6
        assert solution.constraint_violation <= 1e-6
        # f alone is reported, without the augmented Lagrangian's term.
        x, y = float(solution.x), float(solution.y)
        assert solution.upper_value == pytest.approx((x - 2) ** 2 + y**2, rel=1e-14)


@pytest.mark.parametrize("constant", [0.0, 1e3, 1e6, 1e8])
def test_a_constant_in_f_stalls_no_response(constant):
    known = KNOWN_OPTIMA["FloudasZlobec1998"]
    upper = known.problem.upper
    problem = dataclasses.replace(known.problem, upper=lambda x, y: upper(x, y) + constant)
    x0 = torch.tensor([0.02412008447398406], dtype=torch.float64)
    y0 = torch.tensor([1.0, 100.0], dtype=torch.float64)
    solver = BLOCC(penalty=7.7268, upper_lr=1e-9, response=Exact(elastic=1e3))
    state = solver.init(problem, x0, y0)
    solver.step(problem, state)
    # At y_γ: y₀² + x y₁ = 1 holds, and f/γ + g presses y₁ up to it: y₁ = (1 - y₀²)/x.
    assert float(state.y[1]) == pytest.approx(1.0 / float(x0), rel=1e-6)
    assert BLOCC().solve(problem, known.x0, known.y0).converged


def test_violation_is_logged_at_the_x_of_the_other_columns():
    # y = x binds c = y - x <= 0: the response at x keeps it, and would break it at the next x.
    problem = BilevelProblem(
        upper=lambda x, y: (x + 5) ** 2 + y**2,
        lower=lambda x, y: (y - 9) ** 2,
        lower_constraints=lambda x, y: (y - x).reshape(1),
    )
    solver = BLOCC(penalty=10.0, response=Exact(), upper_lr=0.01)
    solution = solver.solve(problem, scalar(2.0), scalar(0.0), max_steps=5, tolerance=0.0)
    assert solution.history["violation"].max() <= 1e-9


def test_a_penalty_function_that_still_grows_has_not_settled():
    growing = PBGD(penalty=lambda step: 10.0 * (1 + step) ** 0.5)
    assert growing.solve(negative_toy(), scalar(1.0), scalar(0.0), max_steps=4).steps == 4
    ended = PBGD(penalty=lambda step: min(10.0 * (1 + step), 50.0))
    solution = ended.solve(negative_toy(), scalar(1.0), scalar(0.0), max_steps=100)
    assert solution.converged
    assert 5 <= solution.steps < 20


def test_a_tolerance_of_zero_is_never_met():
    # Of a simple bilevel problem, whose gradient vanishes where it starts, as that of some batch.
    problem = BilevelProblem(upper=lambda x, y: 0.0 * y, lower=lambda x, y: y**2)
    solver = PBGDFree(penalty=1.0, lower_lr=0.1)
    solution = solver.solve(problem, (), scalar(0.0), max_steps=3, tolerance=0.0)
    assert solution.steps == 3
    assert not solution.converged


class TestRestarts:
    def test_counts_are_the_totals_of_all_starts(self):
        problem, start = coupled_toy(6.0, 0.0), (scalar(2.5), scalar(2.5))
        counted = []

        def count(record, state):
            if state.finished:
                counted.append(state.gradient_evaluations)

        solution = BLOCC().solve(problem, *start, restarts=3, callbacks=[count])
        alone = BLOCC().solve(problem, *start)
        assert len(counted) >= 2
        assert solution.gradient_evaluations >= sum(counted) > alone.gradient_evaluations
        assert solution.seconds > solution.history["seconds"].iloc[-1]

    def test_a_run_that_meets_an_earlier_one_ends_there(self):
        # One basin: after the first step every start is at the minimiser for the first penalty.
        solution = BLOCC().solve(negative_toy(), scalar(2.0), scalar(3.0), restarts=4)
        assert solution.notes[-1] == (
            "best of 5 starts: 1 feasible, 4 ended on the path of an earlier one"
        )
        assert float(solution.x) == pytest.approx(-5.0, abs=1e-3)

    def test_first_order_runs_do_not_end_where_paths_cross(self):
        solver = PBGD(penalty=15.0, lower_lr=0.1, inner_steps=10, upper_lr=0.05)
        solution = solver.solve(negative_toy(), scalar(2.0), scalar(3.0), restarts=2, max_steps=60)
        assert "path" not in solution.notes[-1]

    def test_runs_that_share_x_and_y_but_not_the_original_response_go_on(self):
        paths, run = _Paths(), SimpleNamespace(records=[])
        points = [(0.0, 1.0, 1.0), (0.0, 1.0, -1.0), (1e-5, 1.0, 1.0), (1e-8, 1.0, 1.0)]
        for index, (x, y, original) in enumerate(points):
            run.state = BLOCC().init(negative_toy(), scalar(x), scalar(y))
            run.state.original.values = [scalar(original)]
            paths.on_start(run)
            if index < 3:
                paths.on_log(run, {})
            else:
                with pytest.raises(_Met):
                    paths.on_log(run, {})
        assert paths.meetings == 1

    def test_a_constant_penalty_keeps_starts_apart_that_a_growing_one_leads_together(self):
        # The leader caps three plants, the follower dispatches them at least cost. At γ = 1 there
        # is one solution; at the end, also x = (1.85, 4, 4) with f = 11.83875 next to f = 12.
        cost, emission = (torch.tensor(v).double() for v in ([1.0, 2.0, 4.0], [3.0, 1.5, 0.2]))
        problem = BilevelProblem(
            upper=lambda x, y: emission @ y + 0.5 * ((4 - x) ** 2).sum(),
            lower=lambda x, y: cost @ y + 0.5 * (y**2).sum(),
            lower_constraints=lambda x, y: torch.cat([y - x, -y]),
            lower_equalities=lambda x, y: (y.sum() - 5).reshape(1),
            upper_domain=Box(0.0, 4.0),
        )
        start = torch.full((3,), 3.0).double(), torch.full((3,), 5 / 3).double()
        growing = BLOCC().solve(problem, *start, restarts=3)
        assert "3 ended on the path" in growing.notes[-1]
        assert growing.upper_value == pytest.approx(12.0, abs=1e-4)
        constant = BLOCC(penalty=1e6).solve(problem, *start, restarts=3)
        assert constant.upper_value == pytest.approx(11.83875, abs=1e-5)
        assert constant.lower_gap <= 1e-9


class TestNoSlaterPoint:
    """Dempe1992b: min (x - 3.5)² + (y + 4)² with y = min{√x, 3}; x = 0, where the multiplier of
    y² <= x is infinite."""

    known = KNOWN_OPTIMA["Dempe1992b"]

    @pytest.mark.parametrize("x", [1e-2, 1e-6, 1e-10, 1e-13])
    def test_curvature_of_the_value_function_towards_the_singularity(self, x):
        # v = (√x - 3)², so v'' = 3/2 x^(-3/2).
        x0, y0 = scalar(x).reshape(1), scalar(x**0.5).reshape(1)
        state = BLOCC().init(self.known.problem, x0, y0)
        found = ValueFunction(self.known.problem, state).hessian()
        assert float(found[0, 0]) == pytest.approx(1.5 * x**-1.5, rel=1e-5)

    def test_descents_end_where_they_crawl(self):
        solution = BLOCC().solve(self.known.problem, self.known.x0, self.known.y0)
        assert solution.upper_value == pytest.approx(28.25, rel=1e-6)
        assert solution.gradient_evaluations < 1300


class TestOriginalResponse:
    def test_it_is_the_minimiser_of_g_where_y_is_the_perturbed_one(self):
        # y_g = x - 1 and y_γ = x - 1 - 5/γ.
        solver = PBGD(penalty=10.0, response=Exact(), upper_lr=0.05)
        solution = solver.solve(negative_toy(), scalar(2.0), scalar(3.0), max_steps=5)
        x = float(solution.x)
        assert float(solution.y) == pytest.approx(x - 1.5, abs=1e-9)
        assert float(solution.y_original) == pytest.approx(x - 1.0, abs=1e-9)
        assert solution.y_original.dtype == scalar(0.0).dtype

    def test_with_data_it_is_the_tracked_one(self):
        problem = BilevelProblem(
            upper=lambda x, y, b: ((y["w"] - b) ** 2).mean() + (x**2).sum(),
            lower=lambda x, y, b: ((y["w"] - x) ** 2).sum(),
        )
        batches = [torch.ones(1, dtype=torch.float64)]
        solver = PBGD(penalty=2.0, upper_lr=1e-6, lower_lr=0.25, inner_steps=30)
        solution = solver.solve(
            problem, scalar(3.0), {"w": scalar(0.0)}, max_steps=5,
            upper_batches=batches, lower_batches=batches,
        )  # fmt: skip
        assert float(solution.y_original["w"]) == pytest.approx(3.0, abs=1e-4)
        assert float(solution.y["w"]) == pytest.approx((3.0 + 0.5) / 1.5, abs=1e-4)


class TestBiasAlongARun:
    def test_a_problem_without_bias_has_none_while_x_moves(self):
        # g's solution and the perturbed one are both y = x; x moves by .05 · 2x in each step.
        problem = BilevelProblem(upper=lambda x, y: x**2, lower=lambda x, y: (y - x) ** 2)
        solver = PBGDFree(penalty=100.0, upper_lr=0.05, response=Exact(), bias_every=1)
        with warnings.catch_warnings():
            warnings.simplefilter("error", BiasWarning)
            solution = solver.solve(problem, scalar(2.0), scalar(0.0), max_steps=5)
        assert solution.history["bias"].max() < 1e-8
        assert float(solution.x) == pytest.approx(2.0 * 0.9**5)

    def test_it_is_measured_at_the_first_logged_step_of_every_so_many(self):
        solver = PBGDFree(penalty=15.0, upper_lr=0.01, response=Exact(), bias_every=3)
        with pytest.warns(BiasWarning):
            solution = solver.solve(
                negative_toy(), scalar(2.0), scalar(1.0), max_steps=12, log_every=2
            )
        measured = solution.history.dropna(subset=["bias"])
        assert measured["step"].tolist() == [1, 5, 7, 11]
        assert measured["bias"].tolist() == pytest.approx([10.0] * 4, rel=1e-6)

    def test_a_measurement_that_fails_ends_no_run(self):
        problem = BilevelProblem(
            upper=lambda x, y: (x - 1).square().sum() + y.square().sum(),
            lower=lambda x, y: (y - x).square().sum(),
            lower_domain=L1Ball(5.0),
        )
        start = torch.zeros(2, dtype=torch.float64)
        solver = PBGDFree(penalty=3.0, upper_lr=0.1, lower_lr=0.1, bias_every=2)
        with pytest.warns(BiasWarning, match="the bias is not known at step 3") as caught:
            solution = solver.solve(problem, start, start, max_steps=8)
        assert len([each for each in caught if each.category is BiasWarning]) == 1
        assert solution.steps == 8
        assert solution.history["bias_ratio"].isna().all()


def test_at_a_penalty_that_leaves_gaps_restarts_keep_the_least_penalised_value():
    def ended(upper, gap, violation=0.0):
        history = pd.DataFrame({"penalty": [10.0]})
        return SimpleNamespace(
            upper_value=upper, lower_gap=gap, lower_value=0.0, constraint_violation=violation,
            history=history,
        )  # fmt: skip

    infeasible, unknown = ended(-9.0, 0.0, violation=0.1), ended(1.0, float("nan"))
    near, low, verified = ended(5.0, 0.1), ended(0.0, 0.2), ended(7.0, 1e-6)
    order = sorted([infeasible, near, unknown, low, verified], key=_rank)
    assert order == [verified, unknown, low, near, infeasible]
