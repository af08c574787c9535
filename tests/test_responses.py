"""Exact, CVXPY and own responses, and the outer steps that rest on them (float64)."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
import torch
from quadratics import random_quadratic
from toys import coupled_toy, positive_toy, scalar

from bilevel import (
    BLOCC,
    PBGD,
    SQP,
    Ball,
    BilevelProblem,
    Box,
    CvxpyResponse,
    DifferenceOfConvex,
    Exact,
    L1Ball,
    QuasiNewton,
    Simplex,
)
from bilevel.errors import InfeasibleError, NotApplicableError, OptionError, ResponseError
from bilevel.schedules import Constant, Geometric


def respond(problem, x, y, response, penalty=10.0):
    """The state of a first-order BLOCC after its responses at x; x hardly moves."""
    solver = BLOCC(penalty=penalty, response=response, upper_lr=1e-12)
    state = solver.init(problem, x, y)
    return solver.step(problem, state)


def quadratic_in_cvxpy(instance):
    n, d = len(instance.x_star), len(instance.y_star)
    x, y = cp.Parameter(n), cp.Variable(d)
    lower = 0.5 * cp.quad_form(y, cp.psd_wrap(instance.Q)) + y @ (instance.R @ x + instance.q)
    return CvxpyResponse(
        lower=lower,
        upper=0.5 * cp.sum_squares(y - instance.b),
        parameters=[x],
        variables=[y],
        inequalities=[instance.A @ y + instance.B @ x <= instance.e],
        solver=cp.CLARABEL,
        solver_options={"tol_gap_abs": 1e-11, "tol_gap_rel": 1e-11, "tol_feas": 1e-11},
    )


@pytest.mark.parametrize("seed", range(3))
def test_cvxpy_and_exact_responses_agree_with_multipliers(seed):
    instance = random_quadratic(seed, 3, 5, 4)
    x, y = torch.from_numpy(instance.x_star), torch.zeros(5, dtype=torch.float64)
    exact = respond(instance.problem, x, y, Exact())
    other = respond(instance.problem, x, y, quadratic_in_cvxpy(instance))
    np.testing.assert_allclose(exact.original.values[0], instance.y_star, atol=1e-9)
    np.testing.assert_allclose(exact.original.inequality_multipliers, instance.mu_star, atol=1e-9)
    np.testing.assert_allclose(other.original.values[0], instance.y_star, atol=1e-6)
    np.testing.assert_allclose(other.original.inequality_multipliers, instance.mu_star, atol=1e-5)
    np.testing.assert_allclose(other.y, exact.y, atol=1e-6)


def test_cvxpy_equality_multiplier_has_the_sign_of_left_minus_right():
    # g = ½ y², h = y - x: y = x and ν = -x, so ∇v = -ν = x.
    problem = BilevelProblem(
        upper=lambda x, y: ((x - 1) ** 2 + y**2).sum(),
        lower=lambda x, y: 0.5 * (y**2).sum(),
        lower_equalities=lambda x, y: y - x,
    )
    x, y = cp.Parameter(1), cp.Variable(1)
    response = CvxpyResponse(
        lower=0.5 * cp.sum_squares(y),
        upper=cp.sum_squares(y),
        parameters=[x],
        variables=[y],
        equalities=[y == x],
    )
    start = torch.tensor([0.7], dtype=torch.float64)
    for solver in (BLOCC(response=response), BLOCC(response=response, outer=QuasiNewton())):
        solution = solver.solve(problem, start, start)
        assert float(solution.x) == pytest.approx(0.5, abs=1e-5)
    state = respond(problem, start, start, response)
    assert float(state.original.equality_multipliers) == pytest.approx(-0.7, abs=1e-7)


def test_cvxpy_response_solves_a_problem_with_sqp():
    instance = random_quadratic(0, 2, 3, 2)
    solver = BLOCC(response=quadratic_in_cvxpy(instance), outer=QuasiNewton(tolerance=1e-6),
                   penalty=Geometric(1e2, 1e4, steps=1))  # fmt: skip
    start = torch.from_numpy(instance.x_star + 0.01)
    solution = solver.solve(instance.problem, start, torch.zeros(3, dtype=torch.float64))
    np.testing.assert_allclose(solution.x, instance.x_star, atol=1e-3)


def test_cvxpy_response_names_what_does_not_fit():
    x, y = cp.Parameter(2), cp.Variable(1)
    response = CvxpyResponse(lower=cp.sum_squares(y), parameters=[x], variables=[y])
    problem = BilevelProblem(
        upper=lambda x, y: (x**2 + y**2).sum(), lower=lambda x, y: ((y - x) ** 2).sum()
    )
    start = torch.ones(1, dtype=torch.float64)
    with pytest.raises(OptionError, match=r"parameters of shapes \[\(2,\)\].*x have \[\(1,\)\]"):
        PBGD(response=response).solve(problem, start, start)
    fits = CvxpyResponse(lower=cp.sum_squares(y), parameters=[cp.Parameter(1)], variables=[y])
    with pytest.raises(NotApplicableError, match="upper="):
        PBGD(response=fits, upper_lr=0.1).solve(problem, start, start)


def test_cvxpy_infeasibility_is_named():
    y = cp.Variable(1)
    x = cp.Parameter(1)
    response = CvxpyResponse(
        lower=cp.sum_squares(y), upper=cp.sum_squares(y), parameters=[x], variables=[y],
        inequalities=[y <= x, -y <= x],
    )  # fmt: skip
    problem = BilevelProblem(
        upper=lambda x, y: (x**2 + y**2).sum(),
        lower=lambda x, y: (y**2).sum(),
        lower_constraints=lambda x, y: torch.cat([y - x, -y - x]),
    )
    start = torch.full((1,), -1.0, dtype=torch.float64)
    with pytest.raises(InfeasibleError, match="no feasible point"):
        BLOCC(response=response, upper_lr=0.1).solve(problem, start, start)


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        (Simplex(), [0.0, 0.35, 0.65]),
        (Box(0.0, 0.5), [0.0, 0.5, 0.5]),
        (Ball(1.0), np.array([-1.0, 0.6, 0.9]) / np.sqrt(1.0 + 0.36 + 0.81)),
    ],
    ids=["simplex", "box", "ball"],
)
def test_exact_response_keeps_the_lower_domain(domain, expected):
    target = torch.tensor([-1.0, 0.6, 0.9], dtype=torch.float64)
    problem = BilevelProblem(
        upper=lambda x, y: ((x - 1) ** 2).sum() + (y**2).sum(),
        lower=lambda x, y: ((y - target - 0 * x) ** 2).sum(),
        lower_domain=domain,
    )
    start = torch.full((3,), 1 / 3, dtype=torch.float64)
    state = respond(problem, torch.zeros(1, dtype=torch.float64), start, Exact())
    np.testing.assert_allclose(state.original.values[0], expected, atol=1e-9)


def test_own_response_takes_part_unchanged():
    """A problem that knows its response in closed form: y = x with multiplier 2x."""

    class Closed(Exact):
        calls = 0

        def update(self, problem, state, track, weight, evaluations):
            type(self).calls += 1
            super().update(problem, state, track, weight, evaluations)

    toy = coupled_toy(6.0, 0.0)
    problem = BilevelProblem(
        upper=toy.upper,
        lower=toy.lower,
        lower_constraints=toy.lower_constraints,
        upper_domain=toy.upper_domain,
        lower_response=Closed(),
    )
    solution = BLOCC().solve(problem, scalar(1.1), scalar(1.1))
    assert float(solution.x) == pytest.approx(0.98622, abs=1e-4)
    assert Closed.calls > 0
    assert solution.parts["response"] == "Closed"


def test_difference_of_convex_steps_descend_to_the_global_optimum_of_a_convex_program():
    # f = (x - 2)² + y², g = ½ y² s.t. y >= 1 - x: jointly convex; y = max(0, 1 - x), optimum x = 2.
    problem = BilevelProblem(
        upper=lambda x, y: ((x - 2) ** 2).sum() + (y**2).sum(),
        lower=lambda x, y: 0.5 * (y**2).sum(),
        lower_constraints=lambda x, y: 1 - x - y,
    )
    start = torch.full((1,), -3.0, dtype=torch.float64)
    solver = BLOCC(penalty=5.0, outer=DifferenceOfConvex())
    solution = solver.solve(problem, start, torch.full((1,), 4.0, dtype=torch.float64))
    assert float(solution.x) == pytest.approx(2.0, abs=1e-6)
    assert solution.converged
    assert solution.history["upper"].is_monotonic_decreasing


def test_difference_of_convex_step_is_the_closed_form():
    # f = (x - 1)², g = (y - x)²: v = 0, so the step with ρ minimises f + ρ/2 (x - x_k)².
    problem = BilevelProblem(
        upper=lambda x, y: (x - 1) ** 2 + 0 * y, lower=lambda x, y: (y - x) ** 2
    )
    solver = PBGD(penalty=3.0, outer=DifferenceOfConvex(proximal=2.0))
    state = solver.init(problem, scalar(0.0), scalar(0.0))
    solver.step(problem, state)
    assert float(state.x) == pytest.approx(0.5, abs=1e-9)
    solver.step(problem, state)
    assert float(state.x) == pytest.approx(0.75, abs=1e-9)


def test_quasi_newton_keeps_a_box_and_refuses_what_it_cannot_keep():
    start = (scalar(1.0), scalar(1.0))
    toy = positive_toy()
    boxed = BilevelProblem(upper=toy.upper, lower=toy.lower, upper_domain=Box(-2.0, 2.0))
    solution = PBGD(outer=QuasiNewton()).solve(boxed, *start)
    assert float(solution.x) == pytest.approx(-2.0, abs=1e-9)
    assert solution.stationarity < 1e-6
    ball = BilevelProblem(upper=toy.upper, lower=toy.lower, upper_domain=Ball(2.0))
    with pytest.raises(NotApplicableError, match=r"boxes only.*Ball"):
        PBGD(outer=QuasiNewton()).solve(ball, *start)


def test_sqp_keeps_a_ball_and_a_simplex_of_x():
    problem = BilevelProblem(
        upper=lambda x, y: ((x - 3) ** 2).sum() + (y**2).sum(),
        lower=lambda x, y: ((y - x) ** 2).sum(),
        upper_domain=Ball(1.0),
    )
    start = torch.zeros(2, dtype=torch.float64)
    solution = PBGD(outer=SQP()).solve(problem, start, start)
    np.testing.assert_allclose(solution.x, [2**-0.5, 2**-0.5], atol=1e-5)
    assert solution.converged


def test_upper_constraints_under_first_order_steps_meet_their_multiplier():
    # min (x - 2)² + y² s.t. y <= 0.5, y = x: x = 0.5 with multiplier 2(2 - 0.5) - 2·0.5 = 2.
    problem = BilevelProblem(
        upper=lambda x, y: ((x - 2) ** 2).sum() + (y**2).sum(),
        lower=lambda x, y: ((y - x) ** 2).sum(),
        upper_constraints=lambda x, y: y - 0.5,
    )
    start = torch.zeros(1, dtype=torch.float64)
    solver = PBGD(penalty=Constant(1e3), response=Exact(), upper_lr=0.02)
    solution = solver.solve(problem, start, start, max_steps=2000, tolerance=1e-8)
    assert float(solution.x) == pytest.approx(0.5, abs=2e-3)
    assert solution.constraint_violation < 1e-5


@pytest.mark.parametrize("outer", [SQP(), QuasiNewton(), DifferenceOfConvex()])
@pytest.mark.parametrize("curved", [False, True], ids=["linear", "curved"])
def test_features_follow_x_within_an_outer_step(outer, curved):
    matrix = torch.tensor([[1.0, 0.5], [-0.3, 2.0], [0.2, 0.1]], dtype=torch.float64)

    def features(x):
        return matrix @ (torch.exp(0.3 * x) if curved else x)

    def upper(h, y):
        return (h - 1).square().sum() + (y - 0.5).square().sum()

    def lower(h, y):
        return (y - h).square().sum() + 0.1 * y.square().sum()

    plain = BilevelProblem(
        upper=lambda x, y: upper(features(x), y), lower=lambda x, y: lower(features(x), y)
    )
    shared = BilevelProblem(upper=upper, lower=lower, features=features)
    start = torch.zeros(2, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    solver = PBGD(outer=outer, penalty=10.0)
    expected, found = (solver.solve(each, *start, max_steps=30) for each in (plain, shared))
    torch.testing.assert_close(found.x, expected.x, rtol=0.0, atol=1e-9)
    assert found.upper_value == pytest.approx(expected.upper_value, abs=1e-9)
    assert found.lower_gap == pytest.approx(expected.lower_gap, abs=1e-9)
    assert float(expected.x.abs().min()) > 0.1  # both moved away from the start


def test_constraints_that_only_cvxpy_or_only_the_problem_has_are_refused():
    x, y = cp.Parameter(1), cp.Variable(1)
    stated = {"lower": cp.sum_squares(y - 2 * x), "parameters": [x], "variables": [y]}
    both = {
        "upper": lambda x, y: ((x - 1) ** 2 + y**2).sum(),
        "lower": lambda x, y: ((y - 2 * x) ** 2).sum(),
    }
    coupled = BilevelProblem(**both, lower_constraints=lambda x, y: y - x)
    start = torch.ones(1, dtype=torch.float64)
    for problem, response, words in (
        # By its domain CVXPY would keep the constraint, and ∇v would lose its multiplier.
        (coupled, CvxpyResponse(**stated, domain=[y <= x]), "0 entries, and .*_constraints 1"),
        (
            BilevelProblem(**both),
            CvxpyResponse(**stated, inequalities=[y <= x]),
            "1 entries, and the problem's lower_constraints 0",
        ),
        (
            BilevelProblem(**both),
            CvxpyResponse(**stated, equalities=[y == x]),
            "1 entries, and the problem's lower_equalities 0",
        ),
    ):
        with pytest.raises(OptionError, match=words):
            BLOCC(response=response, outer=QuasiNewton()).solve(problem, start, start)


class Coupled(Exact):
    """y = x with multiplier 2x (and 2x + f's pull at weight w), of the coupled toy."""

    def start(self, problem, state, track):
        track.memory = {"calls": 0}

    def update(self, problem, state, track, weight, evaluations):
        track.memory["calls"] += 1
        super().update(problem, state, track, weight, evaluations)


class Forgetful(Exact):
    """Leaves no multipliers."""

    def update(self, problem, state, track, weight, evaluations):
        super().update(problem, state, track, weight, evaluations)
        track.inequality_multipliers = None


def coupled_with(response):
    toy = coupled_toy(6.0, 0.0)
    return BilevelProblem(
        upper=toy.upper,
        lower=toy.lower,
        lower_constraints=toy.lower_constraints,
        upper_domain=toy.upper_domain,
        lower_response=response,
    )


def test_an_own_response_is_started_wherever_it_is_used():
    solver = BLOCC(outer=QuasiNewton(), penalty=1e4)
    solution = solver.solve(coupled_with(Coupled()), scalar(1.1), scalar(1.1))
    assert solution.lower_gap == pytest.approx(0.0, abs=1e-6)
    assert solution.stationarity < 1e-3
    assert not [note for note in solution.notes if "verified" in note]


def test_a_response_without_multipliers_is_refused_where_the_gradient_rests_on_them():
    solver = BLOCC(outer=QuasiNewton(), penalty=1e4)
    with pytest.raises(ResponseError, match=r"Forgetful left no multipliers of lower_constraints"):
        solver.solve(coupled_with(Forgetful()), scalar(1.1), scalar(1.1))


class Linearising(Exact):
    """An own response whose difference-of-convex step must not be taken for another's."""

    def linearised_step(self, problem, state, penalty, slope, proximal):
        raise AssertionError


def test_difference_of_convex_steps_are_those_of_the_response_in_use():
    problem = BilevelProblem(
        upper=lambda x, y: (x - 1) ** 2 + y**2,
        lower=lambda x, y: (y - x) ** 2,
        lower_response=Linearising(),
    )
    solver = PBGD(penalty=3.0, outer=DifferenceOfConvex(), response=Exact())
    # F_γ = (x - 1)² + γ/(1 + γ) x²
    found = solver.solve(problem, scalar(0.0), scalar(0.0))
    assert float(found.x) == pytest.approx(1 / 1.75, abs=1e-6)


@pytest.mark.parametrize("extrapolation", [0.0, 0.5])
def test_difference_of_convex_steps_log_the_gap_where_they_end(extrapolation):
    # g - v = (y - x)² for every x.
    problem = BilevelProblem(
        upper=lambda x, y: (x - 1) ** 2 + y**2, lower=lambda x, y: (y - x) ** 2 + x**2
    )
    seen = []
    solver = PBGD(penalty=3.0, outer=DifferenceOfConvex(extrapolation=extrapolation))
    solution = solver.solve(
        problem, scalar(-3.0), scalar(0.0), max_steps=4, tolerance=0.0,
        callbacks=[lambda record, state: seen.append(float((state.y - state.x) ** 2))],
    )  # fmt: skip
    np.testing.assert_allclose(solution.history["lower_gap"], seen, atol=1e-10)
    assert solution.history["lower_gap"].iloc[-1] == pytest.approx(solution.lower_gap, abs=1e-10)


def test_where_no_fresh_response_is_to_be_had_the_gap_is_against_the_tracked_one():
    problem = BilevelProblem(
        upper=lambda x, y: (x - 1).square().sum() + y.square().sum(),
        lower=lambda x, y: (y - x).square().sum(),
        lower_domain=L1Ball(5.0),
    )
    solver = PBGD(penalty=3.0, upper_lr=0.1, lower_lr=0.1, inner_steps=20)
    start = torch.zeros(2, dtype=torch.float64)
    solution = solver.solve(problem, start, start, max_steps=300)
    # y_γ = γx/(1 + γ), so that g - v = (x/4)² in each of two entries, with x = 1/(1 + .75).
    assert solution.lower_gap == pytest.approx(2 * (1 / 1.75 / 4) ** 2, rel=1e-3)
    assert solution.y_original is not None
    assert any("no fresh response verifies it" in note for note in solution.notes)


class Idle(Exact):
    """Says that it took the difference-of-convex step, and did not."""

    def linearised_step(self, problem, state, penalty, slope, proximal):
        return True


def test_difference_of_convex_steps_that_solve_nothing_are_found_out():
    problem = BilevelProblem(
        upper=lambda x, y: (y - 1).square().sum() + 0.1 * x.square().sum(),
        lower=lambda x, y: (y - x).square().sum(),
        lower_response=Idle(),
    )
    start = torch.full((2,), 5.0, dtype=torch.float64)
    solution = PBGD(penalty=10.0, outer=DifferenceOfConvex()).solve(problem, start, start)
    # At x = y = 5 the gradient in (x, y) of f + γ(g - v) is (1, 8) in each of two entries.
    assert solution.stationarity == pytest.approx(130**0.5, rel=1e-6)
    assert not solution.converged


def test_quasi_newton_steps_refuse_batches():
    problem = BilevelProblem(
        upper=lambda x, y, batch: (x - 1) ** 2 + (y - batch) ** 2,
        lower=lambda x, y, batch: (y - x * batch) ** 2,
    )
    solver = PBGD(outer=QuasiNewton(), response=Exact(), penalty=1e3)
    with pytest.raises(NotApplicableError, match="QuasiNewton is for problems without data"):
        solver.solve(
            problem, scalar(0.0), scalar(0.0),
            upper_batches=[torch.tensor(1.0)], lower_batches=[torch.tensor(1.0)],
        )  # fmt: skip


@pytest.mark.parametrize(
    ("f", "g", "x"),
    [
        # at y = x the first is x - log x
        (lambda x, y: x - torch.log(x) + (y - x) ** 2, lambda x, y: (y - x) ** 2, 1.0),
        (lambda x, y: (x - 2) ** 2 + 0 * y, lambda x, y: (y - torch.log(x)) ** 2, 2.0),
        (lambda x, y: (y - 1) ** 2 + 0 * x, lambda x, y: (y - torch.log(x)) ** 2, float(np.e)),
    ],
)
def test_sqp_backs_off_from_points_where_a_function_is_not_defined(f, g, x):
    solution = PBGD().solve(BilevelProblem(upper=f, lower=g), scalar(3.0), scalar(3.0))
    assert float(solution.x) == pytest.approx(x, abs=1e-4)
    assert solution.lower_gap == pytest.approx(0.0, abs=1e-8)


@pytest.mark.parametrize("outer", [QuasiNewton(max_iterations=3), SQP(max_iterations=3)])
def test_an_outer_step_that_meets_its_iteration_limit_goes_on_in_the_next(outer):
    def banana(x, y):
        return 100 * (y - x**2) ** 2 + (1 - x) ** 2

    problem = BilevelProblem(
        upper=lambda x, y: banana(x[0], x[1]) + (y - x[0]) ** 2, lower=lambda x, y: (y - x[0]) ** 2
    )
    start = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    solution = PBGD(penalty=1.0, outer=outer).solve(problem, start, scalar(0.0), tolerance=1e-5)
    assert solution.steps > 1
    torch.testing.assert_close(solution.x, torch.ones(2, dtype=torch.float64), atol=1e-4, rtol=0)


def test_newton_iterations_of_all_programs_are_counted(monkeypatch):
    from bilevel import newton
    from bilevel.outer import difference_of_convex, penalised

    hidden = []

    def counting(*args, **options):
        answer = newton.solve(*args, **options)
        hidden.append(answer.iterations)
        return answer

    problem = BilevelProblem(
        upper=lambda x, y: (x - 2) ** 2 + y**4, lower=lambda x, y: (y - x) ** 2 + 0.1 * y**4
    )
    for module, outer in ((penalised, SQP()), (difference_of_convex, DifferenceOfConvex())):
        monkeypatch.setattr(module, "solve", counting)
        hidden.clear()
        solution = PBGD(outer=outer, penalty=2.0).solve(problem, scalar(0.5), scalar(0.5))
        assert sum(hidden) > 0
        assert solution.gradient_evaluations > sum(hidden)
