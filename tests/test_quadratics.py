"""Quadratic bilevel problems with coupled constraints, against their known optimum (float64)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quadratics import random_quadratic

from bilevel import BLOCC, PBGD, Exact, MaxMin, QuasiNewton
from bilevel.schedules import Geometric

shapes = st.tuples(st.integers(1, 6), st.integers(1, 8), st.integers(0, 6))


def near(instance, seed, scale=0.05):
    rng = np.random.default_rng(seed + 1)
    x0 = instance.x_star + scale * rng.standard_normal(len(instance.x_star)) / len(instance.x_star)
    return torch.from_numpy(x0), torch.zeros(len(instance.y_star), dtype=torch.float64)


@settings(max_examples=15)
@given(seed=st.integers(0, 10_000), shape=shapes)
def test_sqp_finds_the_optimum(seed, shape):
    instance = random_quadratic(seed, *shape)
    solver = BLOCC(penalty=Geometric(1e4, 1e6, steps=1))
    solution = solver.solve(instance.problem, *near(instance, seed, 0.01))
    value = 0.5 * np.sum((instance.x_star - instance.a) ** 2) + 0.5 * np.sum(
        (instance.y_star - instance.b) ** 2
    )
    # φ is piecewise quadratic: from a start nearby either this minimum or a better one is found.
    found_it = np.abs(solution.x.numpy() - instance.x_star).max() < 1e-4
    assert found_it or solution.upper_value < value - 1e-6
    assert solution.converged
    assert solution.constraint_violation < 1e-7
    assert solution.lower_gap < 1e-7


@settings(max_examples=10)
@given(seed=st.integers(0, 10_000), shape=shapes)
def test_penalty_hypergradient_tends_to_the_implicit_one_like_one_over_the_penalty(seed, shape):
    instance = random_quadratic(seed, *shape)
    problem = instance.problem
    x0 = torch.from_numpy(instance.x_star)
    y0 = torch.from_numpy(instance.y_star)
    exact = instance.hypergradient(instance.x_star, instance.y_star)
    np.testing.assert_allclose(exact, 0.0, atol=1e-10)
    errors = []
    for penalty in (1e3, 1e4, 1e5):
        solver = BLOCC(penalty=penalty, response=Exact(), upper_lr=1e-3)
        state = solver.init(problem, x0, y0)
        solver.step(problem, state)
        direction = (instance.x_star - state.x.detach().numpy()) / 1e-3
        errors.append(np.linalg.norm(direction - exact))
    scale = np.linalg.norm(instance.y_star - instance.b)
    if errors[0] > 1e-6 * scale:  # otherwise f does not press on the response
        assert errors[1] == pytest.approx(errors[0] / 10, rel=0.2)
        assert errors[2] == pytest.approx(errors[0] / 100, rel=0.3)


def test_a_path_where_more_constraints_meet_than_y_has_entries_ends_in_a_verified_point():
    instance = random_quadratic(3739, 5, 1, 6)
    zero = torch.zeros(5, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    solution = BLOCC().solve(instance.problem, *zero)
    assert solution.constraint_violation < 1e-9
    assert abs(solution.lower_gap) < 1e-9
    assert solution.upper_value < float(instance.problem.upper_value(*zero))


@pytest.mark.parametrize("constraints", [0, 3])
@pytest.mark.parametrize("seed", range(3))
def test_quasi_newton_and_sqp_agree(seed, constraints):
    instance = random_quadratic(seed, 4, 6, constraints)
    start = near(instance, seed, 0.01)
    penalty = Geometric(1e4, 1e6, steps=1)
    first = BLOCC(penalty=penalty, outer=QuasiNewton()).solve(instance.problem, *start)
    second = BLOCC(penalty=penalty).solve(instance.problem, *start)
    np.testing.assert_allclose(first.x, instance.x_star, atol=1e-4)
    np.testing.assert_allclose(second.x, instance.x_star, atol=1e-4)


@pytest.mark.parametrize("primal_steps", [1, 10], ids=["single", "accelerated"])
def test_max_min_tends_to_the_exact_response_and_multipliers(primal_steps):
    instance = random_quadratic(1, 3, 5, 4)
    problem = instance.problem
    x, y = torch.from_numpy(instance.x_star), torch.zeros(5, dtype=torch.float64)
    response = MaxMin(
        steps=3000 // primal_steps,
        lr=0.2,
        dual_lr=0.3,
        primal_steps=primal_steps,
        accelerated=primal_steps > 1,
    )
    solver = BLOCC(penalty=10.0, response=response, upper_lr=1e-9)
    state = solver.init(problem, x, y)
    solver.step(problem, state)
    assert state.original is not None
    np.testing.assert_allclose(state.original.values[0], instance.y_star, atol=1e-5)
    np.testing.assert_allclose(state.original.inequality_multipliers, instance.mu_star, atol=1e-5)


def test_first_order_methods_reach_the_optimum_of_an_unconstrained_problem():
    instance = random_quadratic(0, 3, 4, 0)
    solver = PBGD(
        penalty=Geometric(10.0, 1e4, steps=100), upper_lr=0.2, lower_lr=0.4, inner_steps=10
    )
    solution = solver.solve(instance.problem, *near(instance, 0), max_steps=500, tolerance=1e-5)
    np.testing.assert_allclose(solution.x, instance.x_star, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(50, 100, 50), (100, 200, 100)])
def test_largest_sizes(shape):
    instance = random_quadratic(3, *shape)
    solution = BLOCC().solve(instance.problem, *near(instance, 3, 0.01))
    np.testing.assert_allclose(solution.x, instance.x_star, atol=1e-4)
    assert solution.constraint_violation < 1e-7
