"""Newton's method for small programs: answers against closed forms and independent KKT checks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import cvxpy as cp
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bilevel.errors import (
    DomainError,
    InfeasibleError,
    NonFiniteError,
    OptionError,
    ProblemError,
    ResponseError,
    VariableError,
)
from bilevel.newton import Answer, Linearisation, solve

Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Constraints: values, Jacobian, and the Hessian of multipliers times values."""

    value: Callable[[Array], Array]
    jacobian: Callable[[Array], Array]
    hessian: Callable[[Array, Array], Array]


def affine(matrix: npt.ArrayLike, right: npt.ArrayLike) -> Rows:
    a, b = np.atleast_2d(np.asarray(matrix, float)), np.asarray(right, float)
    n = a.shape[1]
    return Rows(lambda z: a @ z - b, lambda z: a, lambda z, mu: np.zeros((n, n)))


class Smooth:
    """A program from callables; ``rows`` are the inequalities, ``equalities`` the equalities."""

    def __init__(
        self,
        n: int,
        objective: Callable[[Array], float],
        gradient: Callable[[Array], Array],
        curvature: Callable[[Array], Array],
        rows: Rows | None = None,
        equalities: Rows | None = None,
        lower: npt.ArrayLike = -np.inf,
        upper: npt.ArrayLike = np.inf,
    ) -> None:
        none = affine(np.zeros((0, n)), np.zeros(0))
        self.objective, self.gradient, self.curvature = objective, gradient, curvature
        self.rows, self.equalities = rows or none, equalities or none
        self.lower = np.broadcast_to(np.asarray(lower, float), (n,)).copy()
        self.upper = np.broadcast_to(np.asarray(upper, float), (n,)).copy()

    def evaluate(self, z: Array) -> Linearisation:
        return Linearisation(
            float(self.objective(z)),
            self.gradient(z),
            self.rows.value(z),
            self.rows.jacobian(z),
            self.equalities.value(z),
            self.equalities.jacobian(z),
        )

    def value(self, z: Array) -> tuple[float, Array, Array]:
        return float(self.objective(z)), self.rows.value(z), self.equalities.value(z)

    def hessian(self, z: Array, mu: Array, nu: Array) -> Array:
        curvature = self.curvature(z)
        if mu.size:
            curvature = curvature + self.rows.hessian(z, mu)
        return curvature + self.equalities.hessian(z, nu) if nu.size else curvature


def quadratic(
    p: npt.ArrayLike,
    q: npt.ArrayLike,
    a: npt.ArrayLike | None = None,
    b: npt.ArrayLike | None = None,
    e: npt.ArrayLike | None = None,
    f: npt.ArrayLike | None = None,
    lower: npt.ArrayLike = -np.inf,
    upper: npt.ArrayLike = np.inf,
) -> Smooth:
    matrix, linear = np.asarray(p, float), np.asarray(q, float)
    return Smooth(
        linear.size,
        lambda z: 0.5 * z @ matrix @ z + linear @ z,
        lambda z: matrix @ z + linear,
        lambda z: matrix,
        None if a is None else affine(a, b),
        None if e is None else affine(e, f),
        lower,
        upper,
    )


def scalar(
    objective: Callable[[float], float],
    gradient: Callable[[float], float],
    curvature: Callable[[float], float],
    rows: Rows | None = None,
) -> Smooth:
    return Smooth(
        1,
        lambda z: objective(z[0]),
        lambda z: np.array([gradient(z[0])]),
        lambda z: np.array([[curvature(z[0])]]),
        rows,
    )


def sphere(weights: npt.ArrayLike, radius: float = 1.0) -> Rows:
    w = np.asarray(weights, float)
    return Rows(
        lambda z: np.array([w @ (z * z) - radius]),
        lambda z: (2.0 * w * z)[None],
        lambda z, mu: 2.0 * mu[0] * np.diag(w),
    )


def assert_kkt(program: Smooth, answer: Answer, tolerance: float = 1e-9) -> None:
    """The optimality conditions from their definition, relative to the terms that cancel."""
    z, e = answer.z, program.evaluate(answer.z)
    lagrangian = (
        e.gradient
        + answer.mu @ e.inequality_jacobian
        + answer.nu @ e.equality_jacobian
        - answer.bound_mu
    )
    scale = max(
        np.abs(e.gradient).max(),
        (np.abs(answer.mu) @ np.abs(e.inequality_jacobian)).max(initial=0.0),
        (np.abs(answer.nu) @ np.abs(e.equality_jacobian)).max(initial=0.0),
        (np.abs(program.curvature(z)) @ np.abs(z)).max(),
        1e-300,
    )
    assert np.abs(lagrangian).max() <= tolerance * scale
    for values, jacobian in (
        (np.maximum(e.inequalities, 0.0), e.inequality_jacobian),
        (np.abs(e.equalities), e.equality_jacobian),
    ):
        sizes = np.abs(jacobian) @ np.abs(z) + np.abs(jacobian).max(axis=1, initial=0.0)
        assert np.all(values <= tolerance * sizes)
    assert np.all(answer.mu >= 0.0)
    assert np.all(answer.mu * -e.inequalities <= tolerance * scale * max(1.0, np.abs(z).max()))
    assert np.all((program.lower <= z) & (z <= program.upper))
    at_lower = np.isclose(z, program.lower, rtol=1e-12, atol=1e-12)
    at_upper = np.isclose(z, program.upper, rtol=1e-12, atol=1e-12)
    assert np.all(at_lower[answer.bound_mu > 0.0])
    assert np.all(at_upper[answer.bound_mu < 0.0])


def random_program(seed: int, n: int, m: int, p: int, rank: int, bounded: bool) -> Smooth:
    """A solvable convex quadratic program; duplicate rows and weakly active ones occur."""
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(rank, n))
    a, e, z = rng.normal(size=(m, n)), rng.normal(size=(p, n)), rng.normal(size=n)
    if m > 3 and rng.uniform() < 0.3:
        a[m // 2 :] = a[: m - m // 2]
    slack = rng.uniform(size=m) * (rng.uniform(size=m) < 0.5)
    near = rng.uniform(size=(2, n)) * (rng.uniform(size=(2, n)) < 0.7)
    lower = np.where(rng.uniform(size=n) < 0.5 * bounded, z - near[0], -np.inf)
    upper = np.where(rng.uniform(size=n) < 0.5 * bounded, z + near[1], np.inf)
    mu = rng.uniform(size=m) * (rng.uniform(size=m) < 0.5)
    reduced = np.isfinite(lower) * rng.uniform(size=n) - np.isfinite(upper) * rng.uniform(size=n)
    q = reduced - factor.T @ rng.normal(size=rank) - mu @ a - rng.normal(size=p) @ e
    unit = 10.0 ** rng.uniform(-6, 6) if rng.uniform() < 0.3 else 1.0
    return quadratic(unit * factor.T @ factor, unit * q, a, a @ z + slack, e, e @ z, lower, upper)


# Quadratic programs


@settings(max_examples=150)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 12),
    st.integers(0, 15),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
    st.booleans(),
)
def test_convex_quadratic_programs_meet_their_optimality_conditions_to_rounding(
    seed: int, n: int, m: int, equalities: float, rank: float, bounded: bool
) -> None:
    # rank 0 is a linear program, rank n strongly convex, between them are flat directions
    p = int(equalities * n / 2)
    program = random_program(seed, n, m, p, round(rank * n), bounded)
    answer = solve(program, np.random.default_rng(seed).normal(size=n))
    assert answer.regular
    if round(rank * n) == n:
        assert answer.iterations <= 2  # the second, if any, refines the first
        assert answer.interior_point_solves <= 1
    assert_kkt(program, answer, 1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_a_quadratic_program_agrees_with_cvxpy_in_solution_value_and_multipliers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, m, p = 8, 12, 2
    factor, a, e, z = (rng.normal(size=s) for s in ((n, n), (m, n), (p, n), n))
    matrix, q, b = (
        factor @ factor.T + np.eye(n),
        5.0 * rng.normal(size=n),
        a @ z + rng.uniform(size=m),
    )
    answer = solve(quadratic(matrix, q, a, b, e, e @ z), np.zeros(n))
    y = cp.Variable(n)
    constraints = [a @ y <= b, e @ y == e @ z]
    problem = cp.Problem(
        cp.Minimize(0.5 * cp.quad_form(y, cp.psd_wrap(matrix)) + q @ y), constraints
    )
    problem.solve(solver="CLARABEL", tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
    assert answer.objective == pytest.approx(problem.value, rel=1e-8)
    np.testing.assert_allclose(answer.z, y.value, atol=1e-6)
    np.testing.assert_allclose(answer.mu, constraints[0].dual_value, atol=1e-5)
    np.testing.assert_allclose(answer.nu, constraints[1].dual_value, atol=1e-5)


@pytest.mark.parametrize("condition", [1.0, 1e4, 1e8])
def test_a_large_ill_conditioned_quadratic_program_is_polished_to_rounding(
    condition: float,
) -> None:
    rng = np.random.default_rng(0)
    n, m = 120, 80
    basis = np.linalg.qr(rng.normal(size=(n, n)))[0]
    matrix = basis * np.geomspace(1.0, condition, n) @ basis.T
    a, z = rng.normal(size=(m, n)), rng.normal(size=n)
    b = a @ z + rng.uniform(size=m) * (rng.uniform(size=m) < 0.5)
    q = 10.0 * rng.normal(size=n)
    program = quadratic(0.5 * (matrix + matrix.T), q, a, b, lower=z - 1.0, upper=z + 0.5)
    assert_kkt(program, solve(program, np.zeros(n)), 1e-13)


def test_one_iteration_without_an_interior_point_solves_an_unconstrained_quadratic() -> None:
    answer = solve(quadratic([[3.0, 1.0], [1.0, 2.0]], [1.0, -1.0]), np.array([50.0, -7.0]))
    np.testing.assert_allclose(answer.z, [-0.6, 0.8], rtol=1e-13)
    assert (answer.iterations, answer.interior_point_solves) == (1, 0)


def test_equalities_alone_give_the_linear_system_s_solution() -> None:
    answer = solve(quadratic(np.eye(3), np.zeros(3), e=np.ones((1, 3)), f=[6.0]), np.zeros(3))
    np.testing.assert_allclose(answer.z, 2.0, rtol=1e-15)
    np.testing.assert_allclose(answer.nu, -2.0, rtol=1e-15)
    assert answer.interior_point_solves == 0


def test_bound_multipliers_are_the_reduced_gradient_and_name_their_bound_by_sign() -> None:
    program = quadratic(np.eye(3), [-3.0, 2.0, -0.5], lower=[0.0, 0.0, 0.0], upper=[1.0, 1.0, 1.0])
    answer = solve(program, np.full(3, 0.5))
    np.testing.assert_array_equal(answer.z[:2], [1.0, 0.0])  # exactly at the bounds
    assert answer.z[2] == pytest.approx(0.5, rel=1e-15)
    np.testing.assert_allclose(answer.bound_mu, [-2.0, 2.0, 0.0], rtol=1e-15)


def test_fixed_variables_keep_their_value_and_carry_the_gradient() -> None:
    program = quadratic(np.eye(2), [1.0, 1.0], lower=[3.0, -np.inf], upper=[3.0, np.inf])
    answer = solve(program, np.zeros(2))
    np.testing.assert_allclose(answer.z, [3.0, -1.0], rtol=1e-15)
    np.testing.assert_allclose(answer.bound_mu, [4.0, 0.0], atol=1e-15)


def test_redundant_rows_share_one_multiplier() -> None:
    a = np.array([[1.0, 1.0], [1.0, 1.0], [2.0, 2.0]])
    program = quadratic(np.eye(2), [-3.0, -1.0], a, [1.0, 1.0, 2.0])
    answer = solve(program, np.zeros(2))
    np.testing.assert_allclose(answer.z, [1.5, -0.5], rtol=1e-12)
    assert answer.mu @ [1.0, 1.0, 2.0] == pytest.approx(1.5, rel=1e-12)
    assert_kkt(program, answer, 1e-12)


def test_a_weakly_active_row_has_a_zero_multiplier() -> None:
    program = quadratic(np.eye(2), [-1.0, -2.0], [[1.0, 0.0], [1.0, 1.0]], [1.0, 3.0])
    answer = solve(program, np.array([5.0, -5.0]))
    np.testing.assert_allclose(answer.z, [1.0, 2.0], rtol=1e-12)
    np.testing.assert_allclose(answer.mu, 0.0, atol=1e-12)


def test_a_linear_program_ends_at_its_vertex() -> None:
    a = [[1.0, 2.0], [3.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]
    program = quadratic(np.zeros((2, 2)), [-1.0, -1.0], a, [4.0, 6.0, 0.0, 0.0])
    answer = solve(program, np.zeros(2))
    np.testing.assert_allclose(answer.z, [1.6, 1.2], rtol=1e-13)
    np.testing.assert_allclose(answer.mu, [0.4, 0.2, 0.0, 0.0], atol=1e-13)


def test_a_linear_program_with_a_face_of_solutions_ends_on_it() -> None:
    program = quadratic(np.zeros((2, 2)), [-1.0, -1.0], [[1.0, 1.0]], [1.0], lower=0.0)
    answer = solve(program, np.zeros(2))
    assert answer.z.sum() == pytest.approx(1.0, rel=1e-13)
    assert_kkt(program, answer, 1e-13)


@pytest.mark.parametrize("unit", [1e-8, 1e8])
def test_the_solution_does_not_depend_on_the_objective_s_unit(unit: float) -> None:
    program = quadratic(
        unit * np.diag([1.0, 4.0]), unit * np.array([-3.0, -1.0]), [[1.0, 1.0]], [1.0]
    )
    answer = solve(program, np.array([0.3, 0.1]))
    np.testing.assert_allclose(answer.z, [1.2, -0.2], rtol=1e-12)
    np.testing.assert_allclose(answer.mu, 1.8 * unit, rtol=1e-12)


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_the_solution_does_not_depend_on_a_constraint_s_unit(unit: float) -> None:
    program = quadratic(np.eye(2), [-3.0, -1.0], unit * np.ones((1, 2)), [unit])
    answer = solve(program, np.zeros(2))
    np.testing.assert_allclose(answer.z, [1.5, -0.5], rtol=1e-12)
    np.testing.assert_allclose(answer.mu, 1.5 / unit, rtol=1e-12)


# Warm starts


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(2, 10), st.integers(1, 10))
def test_a_warm_start_needs_one_linear_solve_while_the_active_set_stays(
    seed: int, n: int, m: int
) -> None:
    rng = np.random.default_rng(seed)
    factor, a = rng.normal(size=(n, n)), rng.normal(size=(m, n))
    matrix, q, b = factor @ factor.T + np.eye(n), rng.normal(size=n), rng.uniform(0.1, 1.0, m)
    first = solve(quadratic(matrix, q, a, b), np.zeros(n))
    moved = quadratic(matrix, q + 1e-7 * rng.normal(size=n), a, b)
    again = solve(moved, first.z, mu0=first.mu, nu0=first.nu)
    assert again.interior_point_solves == 0
    assert again.iterations == 1
    assert_kkt(moved, again, 1e-12)


def test_an_optimal_start_is_returned_as_it_is() -> None:
    program = quadratic(np.eye(2), [-3.0, -1.0], [[1.0, 1.0]], [1.0])
    first = solve(program, np.zeros(2))
    again = solve(program, first.z, mu0=first.mu)
    assert (again.iterations, again.interior_point_solves) == (0, 0)
    np.testing.assert_array_equal(again.z, first.z)


def test_a_warm_start_follows_a_change_of_the_active_set_without_an_interior_point() -> None:
    a = np.array([[1.0, 0.0], [0.0, 1.0]])
    first = solve(quadratic(np.eye(2), [-3.0, 1.0], a, [1.0, 1.0]), np.zeros(2))
    np.testing.assert_allclose(first.mu, [2.0, 0.0])
    other = quadratic(np.eye(2), [1.0, -3.0], a, [1.0, 1.0])
    answer = solve(other, first.z, mu0=first.mu)
    np.testing.assert_allclose(answer.z, [-1.0, 1.0], rtol=1e-14)
    np.testing.assert_allclose(answer.mu, [0.0, 2.0], atol=1e-14)
    assert answer.interior_point_solves == 0


# Nonlinear programs


@pytest.mark.parametrize("distance", [0.0, 1.0, 100.0])
def test_logistic_regression_with_a_ridge_has_a_vanishing_gradient(distance: float) -> None:
    rng = np.random.default_rng(0)
    data, labels = rng.normal(size=(60, 5)), rng.choice([-1.0, 1.0], 60)
    signed = data * labels[:, None]

    def probabilities(z: Array) -> Array:
        return 1.0 / (1.0 + np.exp(np.clip(signed @ z, -500.0, 500.0)))

    program = Smooth(
        5,
        lambda z: np.logaddexp(0.0, -signed @ z).sum() + 0.05 * z @ z,
        lambda z: 0.1 * z - signed.T @ probabilities(z),
        lambda z: (
            0.1 * np.eye(5) + (signed.T * (probabilities(z) * (1.0 - probabilities(z)))) @ signed
        ),
    )
    answer = solve(program, np.full(5, distance))
    assert np.abs(program.gradient(answer.z)).max() <= 1e-13
    assert answer.interior_point_solves == 0


@pytest.mark.parametrize("start", [0.0, 1.0, 300.0])
def test_a_linear_objective_over_an_ellipsoid_has_its_closed_form(start: float) -> None:
    w, q = np.array([1.0, 4.0, 9.0]), np.array([1.0, 2.0, 3.0])
    program = Smooth(3, lambda z: q @ z, lambda z: q, lambda z: np.zeros((3, 3)), sphere(w))
    answer = solve(program, np.full(3, start))
    norm = np.sqrt(q @ (q / w))
    np.testing.assert_allclose(answer.z, -q / w / norm, rtol=1e-12)
    np.testing.assert_allclose(answer.mu, 0.5 * norm, rtol=1e-12)


def test_the_projection_on_a_ball_and_a_halfspace_has_its_closed_form() -> None:
    target = np.array([2.0, 3.0])
    ball = sphere([1.0, 1.0], 4.0)
    rows = Rows(
        lambda z: np.append(ball.value(z), z[0] - 1.0),
        lambda z: np.vstack((ball.jacobian(z), [1.0, 0.0])),
        ball.hessian,
    )
    program = Smooth(
        2,
        lambda z: 0.5 * (z - target) @ (z - target),
        lambda z: z - target,
        lambda z: np.eye(2),
        rows,
    )
    answer = solve(program, np.zeros(2))
    np.testing.assert_allclose(answer.z, [1.0, np.sqrt(3.0)], rtol=1e-12)
    mu = (3.0 - np.sqrt(3.0)) / (2.0 * np.sqrt(3.0))
    np.testing.assert_allclose(answer.mu, [mu, 1.0 - 2.0 * mu], rtol=1e-12)


@pytest.mark.parametrize("angle", [0.3, 1.0, 2.0, 3.0])
def test_the_maratos_effect_does_not_slow_convergence(angle: float) -> None:
    # Nocedal and Wright, example 15.4: full steps raise both the objective and the violation.
    program = Smooth(
        2,
        lambda z: 2.0 * (z @ z - 1.0) - z[0],
        lambda z: 4.0 * z - np.array([1.0, 0.0]),
        lambda z: 4.0 * np.eye(2),
        equalities=sphere([1.0, 1.0]),
    )
    answer = solve(program, np.array([np.cos(angle), np.sin(angle)]), nu0=np.array([-1.5]))
    np.testing.assert_allclose(answer.z, [1.0, 0.0], atol=1e-10)
    np.testing.assert_allclose(answer.nu, -1.5, rtol=1e-10)
    assert answer.iterations <= 15


def test_rosenbrock_s_valley_is_followed_to_its_minimum() -> None:
    program = Smooth(
        2,
        lambda z: 100.0 * (z[1] - z[0] ** 2) ** 2 + (1.0 - z[0]) ** 2,
        lambda z: np.array(
            [
                -400.0 * z[0] * (z[1] - z[0] ** 2) - 2.0 * (1.0 - z[0]),
                200.0 * (z[1] - z[0] ** 2),
            ]
        ),
        lambda z: np.array(
            [[1200.0 * z[0] ** 2 - 400.0 * z[1] + 2.0, -400.0 * z[0]], [-400.0 * z[0], 200.0]]
        ),
    )
    answer = solve(program, np.array([-1.2, 1.0]))
    np.testing.assert_allclose(answer.z, 1.0, rtol=1e-12)
    assert answer.iterations <= 40


@pytest.mark.parametrize("start", [0.0, 0.1, -3.0])
def test_a_double_well_ends_in_a_well_even_from_its_ridge(start: float) -> None:
    well = scalar(
        lambda t: (t * t - 1.0) ** 2,
        lambda t: 4.0 * t * (t * t - 1.0),
        lambda t: 12.0 * t * t - 4.0,
    )
    answer = solve(well, np.array([start]))
    assert abs(answer.z[0]) == pytest.approx(1.0, rel=1e-12)


def test_a_constrained_maximum_is_left_for_a_minimum() -> None:
    # min -z1 over the circle; (-1, 0) is a stationary point, the maximum
    program = Smooth(
        2,
        lambda z: -z[0],
        lambda z: np.array([-1.0, 0.0]),
        lambda z: np.zeros((2, 2)),
        equalities=sphere([1.0, 1.0]),
    )
    answer = solve(program, np.array([-1.0, 0.0]))
    np.testing.assert_allclose(answer.z, [1.0, 0.0], atol=1e-10)


@pytest.mark.parametrize("seed", range(10))
def test_a_nonconvex_quadratic_in_a_box_ends_at_a_second_order_point(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 6
    factor, a = rng.normal(size=(n, n)), rng.normal(size=(3, n))
    matrix = factor + factor.T
    program = quadratic(matrix, rng.normal(size=n), a, [0.5, 0.5, 0.5], lower=-1.0, upper=1.0)
    answer = solve(program, np.zeros(n))
    assert_kkt(program, answer)
    normals = np.vstack((a[answer.mu > 0.0], np.eye(n)[answer.bound_mu != 0.0]))
    rank = len(normals)
    basis = np.linalg.svd(normals)[2][rank:].T if rank else np.eye(n)
    assert np.all(np.linalg.eigvalsh(basis.T @ matrix @ basis) >= -1e-9)


def test_an_objective_undefined_beyond_a_barrier_is_minimised_within() -> None:
    def log(t: float) -> float:
        return np.log(t) if t > 0.0 else np.nan

    barrier = scalar(lambda t: t - log(t), lambda t: 1.0 - 1.0 / t, lambda t: 1.0 / t**2)
    answer = solve(barrier, np.array([50.0]))  # the full Newton step lands below zero
    assert answer.z[0] == pytest.approx(1.0, rel=1e-12)


# Infeasible programs


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(1, 10), st.booleans())
def test_the_certificate_of_infeasible_affine_constraints_satisfies_farkas_lemma(
    seed: int, n: int, m: int, bounded: bool
) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(m, n)), rng.normal(size=m)
    combination = rng.uniform(0.1, 1.0, m)
    a = np.vstack((a, -combination @ a))  # combination @ a + last row = 0 <= a right side < 0
    b = np.append(b, -combination @ b - rng.uniform(0.1, 1.0))
    lower = np.where(rng.uniform(size=n) < 0.5 * bounded, rng.normal(size=n), -np.inf)
    program = quadratic(np.eye(n), rng.normal(size=n), a, b, lower=lower)
    with pytest.raises(InfeasibleError) as caught:
        solve(program, rng.normal(size=n))
    farkas = caught.value.certificate
    assert np.all(farkas.mu >= 0.0)
    assert farkas.mu.max() <= 1.0
    np.testing.assert_allclose(a.T @ farkas.mu, farkas.bound_mu, atol=1e-10)
    assert np.all(farkas.bound_mu >= 0.0)
    bounds = np.where(farkas.bound_mu > 0.0, lower, 0.0)
    # every y >= lower has mu.(A y) >= bound_mu.lower, but mu.b is less
    assert farkas.mu @ b - farkas.bound_mu @ bounds == pytest.approx(-farkas.gap, abs=1e-9)
    assert farkas.gap > 1e-3


def test_an_infeasible_program_s_message_names_the_violated_and_conflicting_rows() -> None:
    a = [[0.0, 1.0], [1.0, 0.0], [0.0, -1.0]]
    program = quadratic(np.eye(2), [0.0, 0.0], a, [5.0, 5.0, 5.0], [[1.0, 0.0]], [7.0])
    with pytest.raises(InfeasibleError, match=r"equality 0|inequality 1") as caught:
        solve(program, np.zeros(2))
    conflict = str(caught.value).split("In conflict:")[1]
    assert "inequality 1, equality 0" in conflict
    assert "inequality 2" not in conflict
    np.testing.assert_allclose(np.abs(caught.value.certificate.nu), 1.0)
    assert caught.value.certificate.gap == pytest.approx(2.0)


@pytest.mark.parametrize("start", [0.0, 1.0, 100.0])
def test_an_infeasible_curved_constraint_is_proved_at_its_least_violation(start: float) -> None:
    rows = Rows(
        lambda z: z * z + 1.0, lambda z: 2.0 * z[None], lambda z, mu: 2.0 * mu[0] * np.eye(1)
    )
    program = scalar(lambda t: (t - 1.0) ** 2, lambda t: 2.0 * (t - 1.0), lambda t: 2.0, rows)
    with pytest.raises(InfeasibleError, match="inequality 0 by 1") as caught:
        solve(program, np.array([start]))
    assert abs(caught.value.certificate.z[0]) <= 1e-6
    assert caught.value.certificate.gap == pytest.approx(1.0)


@pytest.mark.parametrize("start", [0.0, 1.0, 100.0])
def test_a_single_feasible_point_without_multipliers_is_found(start: float) -> None:
    rows = Rows(lambda z: z * z, lambda z: 2.0 * z[None], lambda z, mu: 2.0 * mu[0] * np.eye(1))
    program = scalar(lambda t: (t - 1.0) ** 2, lambda t: 2.0 * (t - 1.0), lambda t: 2.0, rows)
    answer = solve(program, np.array([start]))
    assert answer.violation <= 1e-12
    assert abs(answer.z[0]) <= 1e-6


@pytest.mark.parametrize("start", [(0.0, 0.0), (0.3, 1.0), (5.0, -4.0)])
def test_two_touching_balls_give_their_common_point(start: tuple[float, float]) -> None:
    centres = np.array([[1.0, 0.0], [-1.0, 0.0]])
    rows = Rows(
        lambda z: ((z - centres) ** 2).sum(axis=1) - 1.0,
        lambda z: 2.0 * (z - centres),
        lambda z, mu: 2.0 * mu.sum() * np.eye(2),
    )
    program = Smooth(
        2, lambda z: z[1], lambda z: np.array([0.0, 1.0]), lambda z: np.zeros((2, 2)), rows
    )
    answer = solve(program, np.array(start))
    assert answer.violation <= 1e-6
    np.testing.assert_allclose(answer.z, 0.0, atol=1e-4)


# Elastic constraints


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(1, 8))
def test_elastic_constraints_change_nothing_where_the_penalty_exceeds_the_multipliers(
    seed: int, n: int, m: int
) -> None:
    program = random_program(seed, n, m, n // 3, n, bounded=True)
    plain = solve(program, np.zeros(n))
    size = max(plain.mu.max(initial=0.0), np.abs(plain.nu).max(initial=0.0))
    elastic = solve(program, np.zeros(n), elastic=2.0 * size + 1e-3)
    np.testing.assert_allclose(elastic.z, plain.z, atol=1e-9 * max(1.0, np.abs(plain.z).max()))
    assert elastic.elastic_slack <= 1e-10
    assert plain.elastic_slack == 0.0


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(1, 8), st.floats(-1.0, 4.0))
def test_elastic_multipliers_stay_below_the_penalty_and_complement_the_violations(
    seed: int, n: int, m: int, exponent: float
) -> None:
    rng = np.random.default_rng(seed)
    a, b, factor = rng.normal(size=(m, n)), -rng.uniform(size=m), rng.normal(size=(n, n))
    a, b = np.vstack((a, -a)), np.concatenate((b, b))  # a y <= b < 0 and -a y <= b < 0
    rho = 10.0**exponent
    program = quadratic(factor @ factor.T + 0.1 * np.eye(n), rng.normal(size=n), a, b)
    answer = solve(program, rng.normal(size=n), elastic=rho)
    assert answer.mu.min() >= 0.0
    assert answer.mu.max() <= rho
    rows = a @ answer.z - b
    assert answer.elastic_slack == pytest.approx(np.maximum(rows, 0.0).sum(), rel=1e-12)
    assert answer.elastic_slack > 0.0
    reduced = program.gradient(answer.z) + answer.mu @ a
    scale = np.abs(program.gradient(answer.z)).max() + rho * np.abs(a).max()
    assert np.abs(reduced).max() <= 1e-11 * scale
    assert np.abs(answer.mu * np.minimum(rows, 0.0)).max() <= 1e-11 * scale
    assert np.abs((rho - answer.mu) * np.maximum(rows, 0.0)).max() <= 1e-11 * scale


def test_inconsistent_elastic_equalities_split_the_penalty_by_sign() -> None:
    program = quadratic(np.eye(2), [-3.0, -1.0], e=[[1.0, 1.0], [1.0, 1.0]], f=[1.0, 5.0])
    answer = solve(program, np.zeros(2), elastic=10.0)
    np.testing.assert_allclose(answer.nu, [10.0, -10.0], rtol=1e-14)
    np.testing.assert_allclose(answer.z, [3.0, 1.0], rtol=1e-13)
    assert answer.elastic_slack == pytest.approx(4.0, rel=1e-13)
    assert answer.objective == pytest.approx(-5.0, rel=1e-13)


def test_an_elastic_curved_constraint_minimises_the_penalised_objective() -> None:
    # (t - 1)^2 + rho t^2 with t^2 <= 0 relaxed
    rows = Rows(lambda z: z * z, lambda z: 2.0 * z[None], lambda z, mu: 2.0 * mu[0] * np.eye(1))
    program = scalar(lambda t: (t - 1.0) ** 2, lambda t: 2.0 * (t - 1.0), lambda t: 2.0, rows)
    answer = solve(program, np.array([1.0]), elastic=99.0)
    assert answer.z[0] == pytest.approx(0.01, rel=1e-10)
    assert answer.mu[0] == pytest.approx(99.0, rel=1e-14)
    assert answer.elastic_slack == pytest.approx(1e-4, rel=1e-9)


# Programs without an answer


@pytest.mark.parametrize(
    "program",
    [
        quadratic(np.zeros((2, 2)), [-1.0, -2.0], [[1.0, -1.0]], [1.0]),
        quadratic(np.diag([1.0, 0.0]), [0.0, -1.0]),
        quadratic(np.diag([1.0, -1.0]), [1.0, 1.0]),
        quadratic(np.diag([1.0, -1.0]), [0.0, 0.0], lower=[-1.0, 0.0]),
    ],
    ids=["linear", "flat direction", "concave", "concave from its saddle"],
)
def test_a_program_unbounded_below_says_so(program: Smooth) -> None:
    with pytest.raises(ResponseError, match="unbounded below"):
        solve(program, np.zeros(2))


def test_a_minimum_that_is_not_attained_in_time_raises_with_the_residuals() -> None:
    quartic = scalar(lambda t: t**4, lambda t: 4.0 * t**3, lambda t: 12.0 * t**2)
    with pytest.raises(
        ResponseError, match=r"max_iterations.*after 3 iterations: stationarity"
    ) as e:
        solve(quartic, np.array([1.0]), max_iterations=3)
    assert "expected at most 1.00e-10" in str(e.value)


def test_a_wrong_gradient_is_suspected_when_no_step_descends() -> None:
    wrong = scalar(lambda t: 0.5 * t * t, lambda t: -t, lambda t: 1.0)
    with pytest.raises(ResponseError, match="derivatives match"):
        solve(wrong, np.array([1.0]))


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("gradient", "gradient of the objective"),
        ("inequalities", "inequality constraints"),
        ("inequality_jacobian", "Jacobian of the inequality constraints"),
        ("equalities", "equality constraints"),
        ("equality_jacobian", "Jacobian of the equality constraints"),
    ],
)
def test_a_value_that_is_not_finite_is_named_with_its_index(part: str, name: str) -> None:
    class Broken(Smooth):
        def evaluate(self, z: Array) -> Linearisation:
            evaluation = super().evaluate(z)
            array = getattr(evaluation, part).copy()
            array.flat[0] = np.nan
            return dataclasses.replace(evaluation, **{part: array})

    plain = quadratic(np.eye(2), [1.0, 1.0], [[1.0, 0.0]], [0.0], [[0.0, 1.0]], [0.0])
    broken = Broken(
        2, plain.objective, plain.gradient, plain.curvature, plain.rows, plain.equalities
    )
    with pytest.raises(NonFiniteError, match=f"^The {name} is NaN.*index"):
        solve(broken, np.zeros(2))


def test_an_infinite_objective_at_the_start_is_named() -> None:
    with pytest.raises(NonFiniteError, match="objective is NaN or infinite at z"):
        solve(scalar(lambda t: np.inf, lambda t: 1.0, lambda t: 1.0), np.zeros(1))


def test_a_hessian_that_is_not_finite_is_named() -> None:
    with pytest.raises(NonFiniteError, match="Hessian"):
        solve(scalar(lambda t: t * t, lambda t: 2.0 * t, lambda t: np.nan), np.ones(1))


PLAIN = quadratic(np.eye(2), [1.0, 1.0], [[1.0, 0.0]], [0.0])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"tolerance": 0.0}, OptionError, "tolerance is 0.0"),
        ({"max_iterations": 0}, OptionError, "max_iterations is 0"),
        ({"elastic": -1.0}, OptionError, "elastic is -1.0"),
        ({"elastic": np.inf}, OptionError, "elastic is inf"),
        ({"z0": np.zeros(3)}, VariableError, r"z0 has shape \(3,\)"),
        ({"z0": np.array([0.0, np.nan])}, NonFiniteError, "z0 has NaN"),
        ({"mu0": np.zeros(2)}, VariableError, r"mu0 has shape \(2,\); expected \(1,\)"),
        ({"nu0": np.zeros(1)}, VariableError, r"nu0 has shape \(1,\); expected \(0,\)"),
        ({"mu0": np.array([np.inf])}, NonFiniteError, "mu0"),
    ],
)
def test_bad_arguments_are_named(
    arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        solve(PLAIN, **{"z0": np.zeros(2), **arguments})  # type: ignore[arg-type]


def test_crossed_bounds_are_named() -> None:
    program = quadratic(np.eye(2), [1.0, 1.0], lower=[0.0, 2.0], upper=[1.0, 1.0])
    with pytest.raises(DomainError, match=r"lower\[1\] = 2.0 and upper\[1\] = 1.0"):
        solve(program, np.zeros(2))


def test_arrays_of_the_wrong_shape_are_named() -> None:
    wrong = Smooth(2, lambda z: 0.0, lambda z: np.zeros(3), lambda z: np.eye(2))
    with pytest.raises(ProblemError, match=r"gradient of shape \(3,\); expected \(2,\)"):
        solve(wrong, np.zeros(2))
    wrong = Smooth(2, lambda z: z @ z, lambda z: 2.0 * z, lambda z: z[None])
    with pytest.raises(ProblemError, match=r"hessian\(\) returned shape \(1, 2\)"):
        solve(wrong, np.ones(2))
