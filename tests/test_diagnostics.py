"""The diagnostics against closed forms and against independent computations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from toys import coupled_toy, negative_toy, positive_toy, scalar, value_function_toy

from bilevel import BLOCC, PBGD, Ball, BilevelProblem, Box, Exact, PBGDFree, Simplex
from bilevel.diagnostics import (
    Flatness,
    bias,
    check_hypergradient,
    fit_flatness,
    hypergradient,
    lower_gap,
    penalty_path,
    stationarity,
)
from bilevel.errors import (
    InfeasibleError,
    NotApplicableError,
    OptionError,
    ResponseError,
    VariableError,
)


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(found: torch.Tensor, expected, tolerance: float = 1e-9) -> None:
    expected = torch.as_tensor(np.asarray(expected), dtype=found.dtype).reshape(found.shape)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def projection_problem(w: torch.Tensor, **sets) -> BilevelProblem:
    """y_g(x) is the projection of x, and φ = <w, y_g>."""
    return BilevelProblem(
        upper=lambda x, y: torch.dot(w, y),
        lower=lambda x, y: 0.5 * ((y - x) ** 2).sum(),
        **sets,
    )


# Residuals --------------------------------------------------------------------------------------


def test_the_lower_gap_is_the_distance_in_objective_to_the_lower_minimum():
    assert lower_gap(negative_toy(), scalar(0.0), scalar(3.0)) == pytest.approx(16.0, abs=1e-10)


def test_the_lower_gap_is_measured_from_the_constrained_minimum():
    # v(x) = (x - 2x)², and g(1, 0.5) = 2.25
    gap = lower_gap(coupled_toy(4.0, 1.0), scalar(1.0), scalar(0.5))
    assert gap == pytest.approx(1.25, abs=1e-10)


def test_the_lower_gap_exists_without_an_upper_variable():
    problem = BilevelProblem(upper=lambda x, y: y.sum(), lower=lambda x, y: ((y - 1) ** 2).sum())
    assert lower_gap(problem, None, vector(3.0, 1.0)) == pytest.approx(4.0, abs=1e-10)


def test_stationarity_is_the_gradient_of_the_penalised_value():
    # F_γ = x² + 10x - 10 - 25/γ
    found = stationarity(negative_toy(), scalar(1.0), scalar(3.0), penalty=10.0)
    assert found == pytest.approx(12.0, abs=1e-9)
    assert stationarity(negative_toy(), scalar(-5.0), scalar(3.0), 10.0) < 1e-9


def test_stationarity_is_projected_on_the_upper_domain():
    # at x = 1.5 the gradient 13 leads out of [-8, 1.5] and is cut at the other end
    found = stationarity(negative_toy(Box(-8.0, 1.5)), scalar(1.5), scalar(0.0), penalty=10.0)
    assert found == pytest.approx(9.5, abs=1e-9)


def test_an_infeasible_lower_level_is_an_error_and_not_a_missing_value():
    problem = BilevelProblem(
        upper=lambda x, y: (x * y).sum(),
        lower=lambda x, y: (y**2).sum(),
        lower_constraints=lambda x, y: torch.cat([y - x, 1 + x - y]),
    )
    for measure in (
        lambda: lower_gap(problem, vector(0.0), vector(0.0)),
        lambda: stationarity(problem, vector(0.0), vector(0.0), 1.0),
        lambda: hypergradient(problem, vector(0.0), vector(0.0)),
    ):
        with pytest.raises(InfeasibleError, match="inequality"):
            measure()


def test_a_perturbed_response_that_does_not_exist_is_an_error_of_stationarity():
    problem = BilevelProblem(
        upper=lambda x, y: (x**2).sum() - (y**2).sum(), lower=lambda x, y: ((y - x) ** 2).sum()
    )
    with pytest.raises(ResponseError):
        stationarity(problem, vector(1.0), vector(1.0), penalty=0.5)


# Bias -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [1.0, 15.0, 1e3])
def test_at_the_wrong_answer_of_the_negative_toy_everything_is_omitted(penalty):
    found = bias(negative_toy(), scalar(0.0), scalar(-1.0 - 5.0 / penalty), penalty)
    assert found.omitted == pytest.approx(10.0, rel=1e-9)
    assert found.direction == 0.0
    assert found.ratio == math.inf


def test_the_bias_can_solve_for_the_perturbed_response_first():
    found = bias(negative_toy(), scalar(2.0), scalar(8.0), 15.0, solve=True)
    assert found.omitted == pytest.approx(10.0, rel=1e-9)
    assert found.ratio == pytest.approx(2.5, rel=1e-9)


def test_with_coupled_constraints_the_bias_is_in_the_multipliers():
    # both responses are y = x, and μ_γ - μ_g = -∂f/∂y / γ
    x = 1.3
    found = bias(coupled_toy(4.0, 1.0), scalar(x), scalar(0.0), 7.0, solve=True)
    assert found.omitted == pytest.approx(math.exp(2 - x) / (2 + math.cos(4 * x)), rel=1e-9)


def test_with_constraints_the_bias_needs_the_multipliers_of_a_solve():
    with pytest.raises(NotApplicableError, match="solve=True"):
        bias(coupled_toy(4.0, 1.0), scalar(1.0), scalar(1.0), 7.0)


def test_there_is_no_bias_where_f_is_flat_in_y():
    problem = BilevelProblem(
        upper=lambda x, y: ((x - 3) ** 2).sum(), lower=lambda x, y: ((y - x) ** 2).sum()
    )
    found = bias(problem, vector(1.0), vector(1.0), 10.0)
    assert found.omitted == found.ratio == 0.0
    assert found.direction == pytest.approx(4.0)


# Hypergradient ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["implicit", "finite-differences"])
def test_the_hypergradient_vanishes_at_the_positive_toys_optimum(method):
    found = hypergradient(positive_toy(), scalar(-6.167815), scalar(6.0), method)
    assert abs(float(found)) < 1e-6


def test_on_the_negative_toy_every_method_gives_the_closed_form():
    for method, penalty in (("implicit", None), ("finite-differences", None), ("penalty", 3.0)):
        found = hypergradient(negative_toy(), scalar(2.0), scalar(0.0), method, penalty)
        assert float(found) == pytest.approx(14.0, abs=1e-7)


@pytest.mark.parametrize("x", [-7.0, -2.0, 1.5])
def test_the_penalty_hypergradient_of_the_positive_toy_errs_as_the_inverse_penalty(x):
    check = check_hypergradient(positive_toy(), scalar(x), scalar(0.0))
    assert check.finite_difference_error < 1e-7
    assert -1.1 < check.exponent < -0.9
    assert check.penalty_errors[-1] < 1e-4
    assert f"{check.exponent:.2f}" in str(check)


@pytest.mark.parametrize(("frequency", "ridge"), [(4.0, 1.0), (6.0, 0.0)])
@pytest.mark.parametrize("x", [0.2, 1.3, 2.6])
def test_with_a_constraint_that_fixes_y_the_penalty_hypergradient_is_exact(frequency, ridge, x):
    check = check_hypergradient(coupled_toy(frequency, ridge), scalar(x), scalar(0.0))
    assert check.finite_difference_error < 1e-7
    assert max(check.penalty_errors) < 1e-10
    assert math.isnan(check.exponent)
    point = scalar(x).requires_grad_()
    coupled_toy(frequency, ridge).upper(point, point).backward()  # φ(x) = f(x, x)
    close(check.hypergradient, point.grad)


def test_a_lower_level_that_is_not_quadratic_errs_as_the_inverse_penalty():
    check = check_hypergradient(
        value_function_toy(), scalar(1.3), scalar(-1.3), penalties=(1e2, 1e3, 1e4)
    )
    assert check.finite_difference_error < 1e-7
    assert -1.1 < check.exponent < -0.9


def coupled_quadratic(seed: int):
    """A random coupled QP: its problem, x, and an oracle's hypergradient and margin."""
    rng = np.random.default_rng(seed)
    n, d, m, p = rng.integers(1, 4), rng.integers(2, 5), rng.integers(1, 5), rng.integers(0, 2)
    root, cross, q = rng.normal(size=(d, d)), rng.normal(size=(d, n)), rng.normal(size=d)
    quadratic = root @ root.T + np.eye(d)
    a, b, s = rng.normal(size=(m + p, d)), rng.normal(size=(m + p, n)), rng.normal(size=d)
    weights, x = rng.normal(size=n), rng.normal(size=n)
    slack = np.concatenate([rng.uniform(0.0, 1.0, size=m), np.zeros(p)])
    sides = a @ rng.normal(size=d) + b @ x + slack  # feasible at this x

    def torch_of(array):
        return torch.from_numpy(np.asarray(array, dtype=np.float64))

    tq, tc, tl, ta, tb, ts, tw, tr = map(torch_of, (quadratic, cross, q, a, b, s, weights, sides))
    problem = BilevelProblem(
        upper=lambda x, y: 0.5 * ((y - ts) ** 2).sum() + torch.dot(tw, x) * y.sum(),
        lower=lambda x, y: 0.5 * y @ tq @ y + y @ (tc @ x + tl),
        lower_constraints=lambda x, y: (ta @ y + tb @ x - tr)[:m],
        lower_equalities=lambda x, y: (ta @ y + tb @ x - tr)[m:],
    )
    # The oracle tries every set of active inequalities.
    for size in range(m + 1):
        for chosen in itertools.combinations(range(m), size):
            rows = [*chosen, *range(m, m + p)]
            if len(rows) > d:
                continue
            zero = np.zeros((len(rows), len(rows)))
            system = np.block([[quadratic, a[rows].T], [a[rows], zero]])
            moved = np.linalg.solve(system, -np.concatenate([cross, b[rows]]))
            found = np.linalg.solve(
                system, np.concatenate([-cross @ x - q, sides[rows] - b[rows] @ x])
            )
            y, multipliers = found[:d], found[d : d + size]
            idle = [i for i in range(m) if i not in chosen]
            gaps = sides[idle] - a[idle] @ y - b[idle] @ x
            margin = min(multipliers.min(initial=np.inf), gaps.min(initial=np.inf))
            if margin > 0:
                slope = weights * y.sum() + moved[:d].T @ (y - s + (weights @ x) * np.ones(d))
                return problem, torch_of(x), torch.zeros(int(d), dtype=torch.float64), slope, margin
    return None


@settings(max_examples=40)
@given(st.integers(0, 10_000))
def test_implicit_differentiation_agrees_with_an_active_set_oracle_and_finite_differences(seed):
    instance = coupled_quadratic(seed)
    assume(instance is not None)
    problem, x, y0, expected, margin = instance
    assume(margin > 1e-3)  # strict complementarity, with room for the differences' steps
    scale = 1.0 + float(np.abs(expected).max())
    implicit = hypergradient(problem, x, y0)
    close(implicit / scale, expected / scale, 1e-8)
    differences = hypergradient(problem, x, y0, "finite-differences")
    close(differences / scale, expected / scale, 1e-6)


def test_bounds_that_hold_the_response_stop_its_motion():
    w, x = vector(1.0, 2.0, 3.0), vector(-1.0, 0.5, 2.0)
    problem = projection_problem(w, lower_domain=Box(0.0, 1.0))
    for method in ("implicit", "finite-differences"):
        close(hypergradient(problem, x, torch.zeros(3).double(), method), [0.0, 2.0, 0.0], 1e-7)


def test_the_curvature_of_a_ball_enters_the_sensitivity():
    w, x = vector(1.0, -2.0), vector(3.0, 4.0)
    unit = np.array([0.6, 0.8])
    expected = (np.eye(2) - np.outer(unit, unit)) @ w.numpy() / 5.0
    problem = projection_problem(w, lower_domain=Ball(1.0))
    for method in ("implicit", "finite-differences"):
        close(hypergradient(problem, x, vector(0.1, 0.0), method), expected, 1e-7)


def test_on_a_simplex_the_response_moves_within_its_face():
    w, x = vector(1.0, 2.0, 4.0), vector(0.6, 0.3, -2.0)
    problem = projection_problem(w, lower_domain=Simplex())
    for method in ("implicit", "finite-differences"):
        found = hypergradient(problem, x, vector(0.3, 0.3, 0.4), method)
        close(found, [-0.5, 0.5, 0.0], 1e-7)


def test_an_equality_counts_also_where_its_multiplier_is_zero():
    problem = projection_problem(vector(3.0), lower_equalities=lambda x, y: y - x)
    close(hypergradient(problem, vector(0.5), vector(0.0)), [3.0])


def test_a_constraint_stated_twice_changes_nothing():
    problem = projection_problem(
        vector(1.0, 5.0), lower_constraints=lambda x, y: torch.cat([y[:1] - 1, y[:1] - 1])
    )
    close(hypergradient(problem, vector(2.0, 3.0), vector(0.0, 0.0)), [0.0, 5.0])


@pytest.mark.parametrize(
    "sets",
    [
        {"lower_constraints": lambda x, y: y - 1},
        {"lower_domain": Box(high=1.0)},
    ],
    ids=["constraint", "bound"],
)
def test_a_kink_of_the_response_is_named(sets):
    problem = projection_problem(vector(1.0), **sets)
    with pytest.raises(NotApplicableError, match="strict complementarity"):
        hypergradient(problem, vector(1.0), vector(0.0))


def test_constraints_that_part_as_x_moves_are_named():
    problem = projection_problem(
        vector(1.0), lower_constraints=lambda x, y: torch.cat([y, y + x - 1])
    )
    with pytest.raises(NotApplicableError, match="kink"):
        hypergradient(problem, vector(1.0), vector(0.0))


def test_a_lower_level_without_an_isolated_solution_is_named():
    problem = BilevelProblem(
        upper=lambda x, y: (y**2).sum(), lower=lambda x, y: (y.sum() - x.sum()) ** 2
    )
    with pytest.raises(NotApplicableError, match="not isolated"):
        hypergradient(problem, vector(1.0), vector(0.0, 0.0))


def test_the_hypergradient_has_the_structure_of_x():
    problem = BilevelProblem(
        upper=lambda x, y: (x["a"] * y).sum() + x["b"][0] ** 2,
        lower=lambda x, y: ((y - x["a"]) ** 2).sum(),
    )
    x = {"a": torch.ones(2, 3, dtype=torch.float64), "b": (scalar(4.0),)}
    found = hypergradient(problem, x, torch.zeros(2, 3, dtype=torch.float64))
    close(found["a"], np.full((2, 3), 2.0))
    close(found["b"][0], 8.0)


@pytest.mark.parametrize("method", ["implicit", "finite-differences", "penalty"])
def test_parameters_end_as_they_were(method):
    model, head = torch.nn.Linear(2, 1, dtype=torch.float64), torch.nn.Parameter(vector(1.0, 2.0))
    before = [each.detach().clone() for each in (*model.parameters(), head)]
    problem = BilevelProblem(
        upper=lambda x, y: model(y).sum() ** 2,
        lower=lambda x, y: ((y - model.weight[0]) ** 2).sum() + model(y).sum() ** 2,
    )
    x = dict(model.named_parameters())
    found = hypergradient(problem, x, head, method, 10.0 if method == "penalty" else None)
    assert set(found) == {"weight", "bias"}
    for each, value in zip((*model.parameters(), head), before, strict=True):
        assert torch.equal(each, value)
        assert each.requires_grad
        assert each.grad is None


def test_features_are_computed_anew_at_each_point_of_the_differences():
    problem = BilevelProblem(
        features=lambda x: x**2,
        upper=lambda z, y: (z * y).sum(),
        lower=lambda z, y: ((y - z) ** 2).sum(),
    )
    check = check_hypergradient(problem, vector(1.5), vector(0.0))  # φ = x⁴
    close(check.hypergradient, [4 * 1.5**3])
    assert check.finite_difference_error < 1e-8


def test_the_check_exposes_a_wrong_response_of_the_problem():
    class Wrong(Exact):
        def update(self, problem, state, track, weight, evaluations):
            super().update(problem, state, track, weight, evaluations)
            if weight == 0.0:
                state.lower.assign_vector(state.lower.vector() + 1e-3)

    good = positive_toy()
    problem = BilevelProblem(upper=good.upper, lower=good.lower, lower_response=Wrong())
    check = check_hypergradient(problem, scalar(-2.0), scalar(0.0))
    assert check.finite_difference_error < 1e-7
    assert check.exponent > 0.0
    assert check.penalty_errors[-1] > 1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "adjoint"}, "'adjoint', expected one of 'implicit'"),
        ({"method": "penalty"}, "give a penalty"),
        ({"penalty": 3.0}, "only there"),
        ({"method": "penalty", "penalty": -1.0}, r"-1.0, expected a positive"),
    ],
)
def test_options_of_the_hypergradient_are_validated(options, message):
    with pytest.raises(OptionError, match=message):
        hypergradient(negative_toy(), scalar(1.0), scalar(1.0), **options)


def test_the_rate_is_fitted_after_the_active_set_has_settled():
    # at γ = 2 the perturbed response is still held by the bound that y_g does not touch
    problem = BilevelProblem(
        upper=lambda x, y: (x**2 + 3.0 * (y + 2.0) ** 2).sum(),
        lower=lambda x, y: ((y - x) ** 2).sum(),
        lower_domain=Box(0.0, 10.0),
    )
    check = check_hypergradient(problem, vector(1.0), vector(0.0), (2.0, 1e3, 1e4, 1e5))
    assert check.exponent == pytest.approx(-1.0, abs=0.01)


def test_single_precision_is_enough_for_single_precision_answers():
    check = check_hypergradient(
        positive_toy(), torch.tensor(-2.0), torch.tensor(0.0), penalties=(1.0, 10.0)
    )
    close(check.hypergradient, hypergradient(positive_toy(), scalar(-2.0), scalar(0.0)), 1e-4)
    assert check.hypergradient.dtype == torch.float32
    assert check.finite_difference_error < 1e-2


def test_one_penalty_is_not_a_rate():
    with pytest.raises(OptionError, match="at least two"):
        check_hypergradient(negative_toy(), scalar(1.0), scalar(1.0), penalties=(1.0, 1.0))


def test_stochastic_objectives_are_refused_with_the_way_out():
    problem = BilevelProblem(
        upper=lambda x, y, batch: (x * y * batch).sum(), lower=lambda x, y, batch: (y**2).sum()
    )
    with pytest.raises(NotApplicableError, match="fix one"):
        lower_gap(problem, vector(1.0), vector(1.0))


def test_gradients_in_an_empty_x_are_refused():
    for measure in (
        lambda: hypergradient(negative_toy(), None, scalar(1.0)),
        lambda: check_hypergradient(negative_toy(), None, scalar(1.0)),
        lambda: bias(negative_toy(), None, scalar(1.0), 2.0),
        lambda: stationarity(negative_toy(), None, scalar(1.0), 2.0),
    ):
        with pytest.raises(NotApplicableError, match="x is empty"):
            measure()


def test_an_empty_y_is_refused():
    with pytest.raises(VariableError, match="y is empty"):
        lower_gap(negative_toy(), scalar(1.0), None)


def test_a_lower_level_beyond_dense_second_derivatives_is_refused():
    problem = projection_problem(torch.ones(1001, dtype=torch.float64))
    x = torch.zeros(1001, dtype=torch.float64)
    with pytest.raises(NotApplicableError, match="1001 entries"):
        hypergradient(problem, x, x)


# Flatness ---------------------------------------------------------------------------------------


@settings(max_examples=10)
@given(
    c=st.floats(0.1, 10.0),
    alpha=st.sampled_from([1.0, 1.1, 1.25, 1.5, 1.8, 2.0]),
    delta=st.one_of(st.just(0.0), st.floats(0.01, 1.0)),
    reach=st.sampled_from([1e-3, 1.0, 50.0]),
)
def test_the_fit_recovers_the_constants_of_its_envelope(c, alpha, delta, reach):
    d = reach * np.linspace(0.02, 1.0, 25)
    height = c * reach**alpha  # δ in units of the largest c dᵅ, so that neither term drowns
    fit = fit_flatness(d, c * d**alpha + delta * height)
    assert fit.alpha == pytest.approx(alpha, abs=1e-9)
    assert fit.c == pytest.approx(c, rel=1e-5)
    assert fit.delta == pytest.approx(delta * height, abs=1e-5 * height)


def test_points_below_the_envelope_do_not_move_it():
    d = np.linspace(0.01, 2.0, 100)
    e = 0.7 * d**1.4 + 0.05
    e[1::2] *= np.random.default_rng(0).uniform(0.3, 1.0, 50)
    fit = fit_flatness(d, e)
    assert (fit.alpha, fit.c, fit.delta) == pytest.approx((1.4, 0.7, 0.05), abs=0.02)
    assert fit.omitted_order == pytest.approx(0.05 ** (0.4 / 1.4), rel=0.1)
    assert fit.suggested_penalty == pytest.approx(0.05 ** (-0.6 / 1.4), rel=0.1)
    assert fit.flat
    assert "not measured" in str(fit)


@settings(max_examples=10)
@given(
    st.lists(
        st.tuples(st.floats(1e-6, 1e3), st.floats(0.0, 1e3)),
        min_size=3,
        max_size=20,
        unique_by=lambda pair: pair[0],
    )
)
def test_no_point_lies_above_the_fit(pairs):
    d, e = np.transpose(pairs)
    fit = fit_flatness(d, e)
    assert (fit.bound(d) >= e - 1e-6 * max(e.max(), 1e-300)).all()
    assert min(fit.c, fit.delta) >= 0.0


def test_an_objective_that_ignores_y_is_as_flat_as_can_be():
    fit = fit_flatness([0.1, 0.2, 0.3], [0.0, 0.0, 0.0])
    assert (fit.c, fit.alpha, fit.delta) == (0.0, 2.0, 0.0)


def test_two_distances_do_not_determine_the_constants():
    with pytest.raises(NotApplicableError, match="2 distinct positive distances"):
        fit_flatness([0.0, 0.1, 0.1, 0.2], [0.0, 1.0, 1.0, 2.0])


@pytest.mark.parametrize(
    ("d", "e", "message"),
    [
        ([0.1, math.nan, 0.3], [1.0, 1.0, 1.0], "distances"),
        ([0.1, 0.2, 0.3], [1.0, -1.0, 1.0], "differences"),
        ([0.1, 0.2, 0.3], [1.0, 1.0], "3 distances and 2 differences"),
    ],
)
def test_points_of_a_fit_are_validated(d, e, message):
    with pytest.raises(OptionError, match=message):
        fit_flatness(d, e)


def test_along_a_run_a_linear_objective_is_not_flat():
    # f = 10y + x²: |f(y_g) - f(y)| = 10 |y_g - y| whatever the penalty
    flatness = Flatness(every=20)
    PBGDFree(penalty=15.0, upper_lr=0.01, lower_lr=0.01).solve(
        negative_toy(), scalar(2.0), scalar(3.0), max_steps=60, callbacks=[flatness]
    )
    points = flatness.points
    assert list(points["step"].unique()) == [20, 40, 60]
    np.testing.assert_allclose(points["distance"], 5.0 / points["penalty"], rtol=1e-9)
    np.testing.assert_allclose(points["slope"], 10.0, rtol=1e-9)
    fit = flatness.fit()
    assert (fit.c, fit.alpha) == pytest.approx((10.0, 1.0), rel=1e-6)
    assert fit.delta == pytest.approx(0.0, abs=1e-6)
    assert not fit.flat
    assert math.isnan(fit.suggested_penalty)
    assert fit.largest_omitted == pytest.approx(10.0, rel=1e-9)
    assert "not flat" in str(fit)


def quadratics(a: float, b: float) -> BilevelProblem:
    return BilevelProblem(
        upper=lambda x, y: 0.5 * a * (y - 3.0) ** 2 + 0.5 * (x - 1.0) ** 2,
        lower=lambda x, y: 0.5 * b * (y - x) ** 2,
    )


def test_on_quadratics_one_penalty_fits_the_exponent_two_and_hides_the_bias():
    # with G = a (x - 3): d = |G| / (γb + a), and the difference is (γb + a/2) d²
    a, b, penalty = 2.0, 0.5, 10.0
    flatness = Flatness(every=1, factors=(1.0,))
    PBGD(penalty=penalty, upper_lr=0.05, lower_lr=0.5, inner_steps=5).solve(
        quadratics(a, b), scalar(-2.0), scalar(0.0), max_steps=20, callbacks=[flatness]
    )
    fit = flatness.fit()
    assert fit.alpha == pytest.approx(2.0, abs=1e-9)
    assert fit.c == pytest.approx(penalty * b + a / 2, rel=1e-6)
    assert fit.delta == pytest.approx(0.0, abs=1e-6)
    assert fit.largest_omitted > 1.0


def test_on_quadratics_several_penalties_at_one_point_fit_the_exponent_one():
    # the difference is |G| d - a d²/2, concave in d
    a, b = 2.0, 0.5
    flatness = Flatness(every=1, factors=(1.0, 4.0, 16.0, 64.0, 256.0))
    PBGD(penalty=10.0, upper_lr=0.05, lower_lr=0.5, inner_steps=5).solve(
        quadratics(a, b), scalar(-2.0), scalar(0.0), max_steps=1, callbacks=[flatness]
    )
    points = flatness.points
    slope, d = points["slope"], points["distance"]
    np.testing.assert_allclose(points["difference"], slope * d - a * d**2 / 2, rtol=1e-6)
    assert flatness.fit().alpha == 1.0


def test_the_least_delta_is_what_a_given_exponent_leaves_over():
    flatness = Flatness(every=10, factors=(0.5, 1.0))
    PBGDFree(penalty=10.0, upper_lr=0.01, lower_lr=0.01).solve(
        negative_toy(), scalar(2.0), scalar(3.0), max_steps=20, callbacks=[flatness]
    )
    # d = 1 and 0.5, differences 10 and 5
    np.testing.assert_allclose(flatness.delta(c=4.0, alpha=2.0), [6.0, 6.0], rtol=1e-9)
    assert list(flatness.delta(c=4.0, alpha=2.0).index) == [(0, 10), (0, 20)]
    np.testing.assert_allclose(flatness.delta(c=20.0, alpha=1.0), 0.0)


@pytest.mark.parametrize(
    "solver",
    [
        PBGDFree(penalty=16.0, upper_lr=0.5, lower_lr=0.5),
        PBGD(penalty=16.0, upper_lr=0.5, lower_lr=0.5, inner_steps=3),
        BLOCC(),
    ],
    ids=["PBGDFree", "PBGD", "BLOCC"],
)
def test_measuring_flatness_leaves_the_run_as_it_is(solver):
    start = scalar(5.0), scalar(-9.9)
    plain = solver.solve(positive_toy(), *start, max_steps=8)
    flatness = Flatness(every=1)
    watched = solver.solve(positive_toy(), *start, max_steps=8, callbacks=[flatness])
    assert len(flatness.points) == 5 * watched.steps
    assert torch.equal(plain.x, watched.x)
    assert torch.equal(plain.y, watched.y)
    timeless = [name for name in plain.history if name != "seconds"]
    assert plain.history[timeless].equals(watched.history[timeless])


def test_responses_that_do_not_exist_are_counted_and_not_fitted():
    problem = BilevelProblem(
        upper=lambda x, y: (x - 2.0) ** 2 - y**2, lower=lambda x, y: (y - x) ** 2
    )
    flatness = Flatness(every=1, factors=(0.25, 1.0, 2.0, 4.0))  # f/γ + g needs γ > 1
    PBGDFree(penalty=2.0, upper_lr=0.1, lower_lr=0.1).solve(
        problem, scalar(1.0), scalar(1.0), max_steps=3, callbacks=[flatness]
    )
    fit = flatness.fit()
    assert fit.failures == 3
    assert len(fit.distances) == 9
    assert "3 not measured" in str(fit)


def test_options_of_flatness_are_validated():
    with pytest.raises(OptionError, match="every=0"):
        Flatness(every=0)
    with pytest.raises(OptionError, match=r"factors=\(0.0,\)"):
        Flatness(every=1, factors=(0.0,))


# Penalty path -----------------------------------------------------------------------------------


def test_the_penalty_path_of_the_negative_toy_is_the_closed_form():
    penalties = np.array([1.0, 10.0, 100.0])
    path = penalty_path(negative_toy(), scalar(2.0), scalar(3.0), penalties)
    table = path.table
    np.testing.assert_allclose(table["upper_value"], -35 - 50 / penalties, rtol=1e-9)
    np.testing.assert_allclose(table["lower_gap"], 25 / penalties**2, rtol=1e-6)
    np.testing.assert_allclose(table["penalised_value"], -35 - 25 / penalties, rtol=1e-6)
    assert math.isnan(table["distance"].iloc[0])
    assert table["distance"].iloc[1:].max() < 1e-6
    assert [float(each.x) for each in path.solutions] == pytest.approx([-5.0] * 3)
    assert "converged" in str(path)


def test_along_the_path_f_and_the_penalised_value_rise_and_the_gap_falls():
    path = penalty_path(positive_toy(), scalar(5.0), scalar(-9.9), [1.0, 10.0, 100.0, 1e3])
    table = path.table
    assert (table["upper_value"].diff().dropna() > 0).all()
    assert (table["penalised_value"].diff().dropna() > 0).all()
    assert (table["penalised_value"] < 1.272181).all()  # the optimum, from below
    orders = np.log10(table["lower_gap"]).diff().dropna()
    assert orders.iloc[-1] == pytest.approx(-2.0, abs=0.02)


def test_a_named_solver_walks_the_path_with_its_own_options():
    solver = PBGD(upper_lr=0.2, response=Exact())
    path = penalty_path(
        negative_toy(), scalar(2.0), scalar(3.0), [10.0, 20.0], solver, max_steps=200
    )
    assert [each.parts["solver"] for each in path.solutions] == ["PBGD", "PBGD"]
    assert [each.parts["penalty"] for each in path.solutions] == ["10", "20"]
    assert path.solutions[1].steps < path.solutions[0].steps  # warm-started


@pytest.mark.parametrize("penalties", [[], [1.0, -2.0]])
def test_penalties_of_a_path_are_validated(penalties):
    with pytest.raises(OptionError, match=r"empty|-2\.0"):
        penalty_path(negative_toy(), scalar(1.0), scalar(1.0), penalties)


# Figures ----------------------------------------------------------------------------------------


def test_the_path_is_drawn_against_the_logarithm_of_the_penalty():
    pytest.importorskip("matplotlib")
    path = penalty_path(negative_toy(), scalar(2.0), scalar(3.0), [1.0, 10.0])
    values, gaps = path.plot().axes
    assert {axes.get_xscale() for axes in (values, gaps)} == {"log"}
    assert gaps.get_yscale() == "log"
    np.testing.assert_allclose(gaps.lines[0].get_ydata(), path.table["lower_gap"])


def test_the_flatness_figure_shows_the_points_under_their_envelope():
    pytest.importorskip("matplotlib")
    d = np.linspace(0.1, 1.0, 10)
    fit = fit_flatness(d, 2 * d**1.5)
    (axes,) = fit.plot().axes
    points, envelope = axes.lines
    np.testing.assert_allclose(points.get_ydata(), 2 * d**1.5)
    np.testing.assert_allclose(envelope.get_ydata(), fit.bound(envelope.get_xdata()))
