"""The kernels of the SVM hyperparameter program: exact, certified, and as published."""

from __future__ import annotations

import warnings

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from bilevel.datasets import load_svm_dataset, split, with_quadratic_features
from bilevel.errors import (
    InfeasibleError,
    OptionError,
    ProblemError,
    ResponseError,
    VariableError,
)
from bilevel.problems.svm import (
    KKTPoint,
    SVMProgram,
    SVMResponse,
    linearised_step,
    relaxed_optimum,
    signed_rows,
)


def random_program(seed, examples=60, features=5, noise=1.5, validation=30, rounded=False):
    """Two overlapping classes: not separable for the default sizes and noise."""
    rng = np.random.default_rng(seed)
    direction = rng.standard_normal(features)

    def rows(count):
        x = rng.standard_normal((count, features))
        x = np.round(x) if rounded else x
        y = np.where(x @ direction + noise * rng.standard_normal(count) > 0.2, 1.0, -1.0)
        y[:2] = 1.0, -1.0
        return signed_rows(x, y)

    return SVMProgram(rows(examples), rows(validation))


def tight_bounds(program, seed, spread=1.0):
    """A feasible c for which w is not zero: the slacks of a random hyperplane, loosened."""
    rng = np.random.default_rng([seed, 1])
    n, width = program.train_rows.shape
    z = rng.standard_normal(width)
    slack = np.maximum(1 - program.train_rows @ z, program.floor)
    return slack + spread * rng.uniform(0.05, 0.3, n)


def interval_bounds(program, seed):
    """A c that some intercept satisfies with w = 0."""
    return np.random.default_rng([seed, 2]).uniform(1.0, 5.0, len(program.train_rows))


def kkt_residual(program, c, point, leader_weight):
    z, mu = point
    rows, losses = program.validation_rows, np.exp(1 - program.validation_rows @ z)
    w = np.append(z[:-1], 0.0)
    slack = program.train_rows @ z - 1 + c
    return max(
        np.max(np.abs(w - leader_weight * losses @ rows - mu @ program.train_rows)),
        np.max(np.abs(slack * mu)),
        -np.min(slack),
        -np.min(mu),
    )


def clarabel(objective, constraints):
    """Solve as sharply as Clarabel can, which may be less than the tolerances that it is given."""
    options = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), 1e-12)
    problem = cp.Problem(cp.Minimize(objective), constraints)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Solution may be inaccurate")
        problem.solve(solver=cp.CLARABEL, **options)
    assert problem.status in (cp.OPTIMAL, cp.OPTIMAL_INACCURATE)


def clarabel_response(program, c, leader_weight):
    z = cp.Variable(program.train_rows.shape[1])
    objective = 0.5 * cp.sum_squares(z[:-1])
    if leader_weight:
        objective += leader_weight * cp.sum(cp.exp(1 - program.validation_rows @ z))
    margins = program.train_rows @ z >= 1 - c
    clarabel(objective, [margins])
    return KKTPoint(z.value, margins.dual_value)


def penalised_value(program, response, c, penalty):
    perturbed = response.perturbed(c, penalty).z
    joint = program.upper_value(c, perturbed) + penalty * program.lower_value(perturbed)
    return joint - penalty * program.lower_value(response.original(c).z)


# Responses


@pytest.mark.parametrize("seed", range(4))
def test_original_response_agrees_with_clarabel(seed):
    program = random_program(seed)
    c = tight_bounds(program, seed)
    found, expected = SVMResponse(program).original(c), clarabel_response(program, c, 0.0)
    assert np.linalg.norm(found.z[:-1]) > 0.1
    np.testing.assert_allclose(found.z, expected.z, atol=1e-6)
    np.testing.assert_allclose(found.mu, expected.mu, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("penalty", [0.5, 12.0])
@pytest.mark.parametrize("bounds", [tight_bounds, interval_bounds])
def test_perturbed_response_agrees_with_clarabel(bounds, penalty):
    program = random_program(5)
    c = bounds(program, 5)
    found = SVMResponse(program).perturbed(c, penalty)
    expected = clarabel_response(program, c, 1 / penalty)
    np.testing.assert_allclose(found.z, expected.z, atol=1e-6)
    np.testing.assert_allclose(found.mu, expected.mu, rtol=1e-5, atol=1e-5)


@given(
    seed=st.integers(0, 10_000),
    examples=st.integers(4, 80),
    features=st.integers(1, 12),
    penalty=st.sampled_from([0.1, 1.0, 12.0, 100.0]),
    rounded=st.booleans(),  # repeated examples, and more binding margins than variables
)
def test_both_responses_satisfy_their_optimality_conditions(
    seed, examples, features, penalty, rounded
):
    program = random_program(seed, examples, features, rounded=rounded)
    response = SVMResponse(program)
    for c in (tight_bounds(program, seed), interval_bounds(program, seed)):
        original = response.original(c)
        size = max(1.0, np.max(original.mu))
        assert kkt_residual(program, c, original, 0.0) <= 1e-8 * size
        perturbed = response.perturbed(c, penalty)
        size = max(1.0, np.max(perturbed.mu))
        assert kkt_residual(program, c, perturbed, 1 / penalty) <= 1e-8 * size


def test_a_warm_start_leads_to_the_same_response_along_a_path_of_c():
    program = random_program(7, examples=100, features=8)
    response = SVMResponse(program)
    start, end = tight_bounds(program, 7), tight_bounds(program, 7, spread=3.0)
    original = perturbed = None
    for t in np.linspace(0.0, 1.0, 20):
        c = (1 - t) * start + t * end
        original = response.original(c, original)
        perturbed = response.perturbed(c, 12.0, perturbed)
        np.testing.assert_allclose(original.z, response.original(c).z, atol=1e-7)
        np.testing.assert_allclose(perturbed.z, response.perturbed(c, 12.0).z, atol=1e-7)


@pytest.mark.parametrize("seed", range(4))
def test_without_a_binding_margin_the_leader_chooses_the_intercept(seed):
    program = random_program(seed)
    c = interval_bounds(program, seed)
    z, mu = SVMResponse(program).original(c)
    assert not z[:-1].any()
    assert not mu.any()
    labels = program.train_rows[:, -1]
    lowest, highest = np.max((1 - c)[labels > 0]), np.min((c - 1)[labels < 0])

    def loss(intercept):
        return program.validation_loss(np.append(np.zeros(len(z) - 1), intercept))

    best = minimize_scalar(loss, bounds=(lowest, highest), method="bounded").fun
    assert lowest <= z[-1] <= highest
    assert program.validation_loss(z) <= best + 1e-9


@pytest.mark.parametrize("penalty", [0.3, 12.0])
def test_multipliers_give_the_gradient_of_the_penalised_objective(penalty):
    program = random_program(11, examples=40, features=4)
    response = SVMResponse(program)
    c = tight_bounds(program, 11)
    difference = response.original(c).mu - response.perturbed(c, penalty).mu
    gradient = c / np.linalg.norm(c) + penalty * difference
    step = 1e-5
    numerical = [
        (
            penalised_value(program, response, c + step * unit, penalty)
            - penalised_value(program, response, c - step * unit, penalty)
        )
        / (2 * step)
        for unit in np.eye(len(c))[::3]
    ]
    assert np.max(np.abs(penalty * difference)) > 0.1
    np.testing.assert_allclose(gradient[::3], numerical, rtol=1e-5, atol=1e-5)


def test_a_constant_feature_beside_the_intercept_changes_no_prediction():
    program = random_program(13)

    def widened(rows):
        return np.column_stack([rows[:, -1], rows])

    wide = SVMProgram(widened(program.train_rows), widened(program.validation_rows))
    c = tight_bounds(program, 13)
    for leader_weight in (0.0, 1 / 12):
        narrow, found = (
            SVMResponse(p).perturbed(c, 1 / leader_weight)
            if leader_weight
            else SVMResponse(p).original(c)
            for p in (program, wide)
        )
        np.testing.assert_allclose(found.z, np.append(0.0, narrow.z), atol=1e-8)
    relaxed, expected = relaxed_optimum(wide), relaxed_optimum(program)
    assert relaxed.value == pytest.approx(expected.value, rel=1e-9)
    np.testing.assert_allclose(relaxed.z, np.append(0.0, expected.z), atol=1e-6)
    assert relaxed.is_bilevel_optimum == expected.is_bilevel_optimum


# Feasibility


@pytest.mark.parametrize("depth", [1e-8, 1e-5, 1e-2, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_an_infeasible_c_raises_with_a_farkas_certificate(seed, depth):
    program = random_program(seed)
    response = SVMResponse(program)
    outside = response.project(np.full(60, program.floor)) - depth
    for ask in (response.original, lambda c: response.perturbed(c, 12.0)):
        with pytest.raises(InfeasibleError, match="outside the feasible set") as caught:
            ask(outside)
        certificate = caught.value.certificate
        assert np.min(certificate) >= 0
        assert np.max(np.abs(certificate @ program.train_rows)) <= 1e-14
        assert certificate @ outside <= np.sum(certificate) - 0.9 * depth


def test_projection_is_the_nearest_c_that_is_feasible():
    program = random_program(17)
    response = SVMResponse(program)
    c = np.random.default_rng(17).uniform(0.0, 1.0, 60)
    for margin in (0.0, 0.1):
        found = response.project(c, margin)
        z, nearest = cp.Variable(program.train_rows.shape[1]), cp.Variable(60)
        clarabel(cp.sum_squares(nearest - c), [program.train_rows @ z >= 1 - nearest + margin])
        np.testing.assert_allclose(found, nearest.value, atol=1e-6)
        np.testing.assert_allclose(response.project(found, margin), found, atol=1e-9)
    inside = interval_bounds(program, 17)
    np.testing.assert_array_equal(response.project(inside, 1e-7), inside)


def test_losses_beyond_double_precision_are_named():
    # Only w >= 900 separates the training examples; validation then loses exp(900).
    train = signed_rows([[1e-3], [-1e-3]], [1.0, -1.0])
    program = SVMProgram(train, signed_rows([[1.0], [-1.0]], [-1.0, 1.0]))
    with pytest.raises(ResponseError, match="exceed what double precision"):
        SVMResponse(program).perturbed(np.array([0.1, 0.1]), 12.0)


# Difference-of-convex step


@pytest.mark.parametrize("proximal", [0.0, 0.5])
def test_linearised_step_agrees_with_clarabel(proximal):
    program = random_program(19, examples=40)
    center = tight_bounds(program, 19)
    penalty, mu = 3.0, SVMResponse(program).original(center).mu
    c, z = linearised_step(program, center, penalty, mu, proximal=proximal, tolerance=1e-10)
    c_var, z_var = cp.Variable(40), cp.Variable(len(z))
    clarabel(
        cp.norm(c_var)
        + cp.sum(cp.exp(1 - program.validation_rows @ z_var))
        + penalty * (0.5 * cp.sum_squares(z_var[:-1]) + mu @ c_var)
        + 0.5 * proximal * cp.sum_squares(c_var - center),
        [c_var + program.train_rows @ z_var >= 1, c_var >= program.floor],
    )
    assert np.max(mu) > 0.1
    np.testing.assert_allclose(z, z_var.value, atol=1e-6)
    np.testing.assert_allclose(c, c_var.value, atol=1e-6)
    assert program.violation(c, z) <= 1e-12


def test_linearised_steps_at_a_fixed_penalty_descend_on_the_penalised_objective():
    program = random_program(23)
    response = SVMResponse(program)
    c, penalty = interval_bounds(program, 23), 12.0
    values = [penalised_value(program, response, c, penalty)]
    for _ in range(5):
        c = linearised_step(program, c, penalty, response.original(c).mu)[0]
        c = response.project(c, margin=1e-7)
        values.append(penalised_value(program, response, c, penalty))
    assert values[0] - values[1] > 1.0
    assert np.all(np.diff(values) <= 1e-5)


# Relaxation


def test_relaxed_optimum_agrees_with_clarabel_and_bounds_every_response():
    program = random_program(29)
    relaxed = relaxed_optimum(program)
    z = cp.Variable(program.train_rows.shape[1])
    slack = cp.maximum(1 - program.train_rows @ z, program.floor)
    loss = cp.sum(cp.exp(1 - program.validation_rows @ z))
    clarabel(loss + cp.norm(slack), [])
    np.testing.assert_allclose(relaxed.z, z.value, atol=1e-5)
    response = SVMResponse(program)
    for seed in range(5):
        c = tight_bounds(program, seed)
        assert relaxed.value <= program.upper_value(c, response.original(c).z)


@pytest.mark.parametrize("seed", range(3))
def test_where_the_certificate_holds_the_follower_answers_with_the_relaxed_optimum(seed):
    program = random_program(seed, examples=100, noise=3.0)
    relaxed = relaxed_optimum(program)
    assert relaxed.is_bilevel_optimum
    response = SVMResponse(program)
    c = response.project(relaxed.c, margin=1e-7)
    z = response.original(c).z
    np.testing.assert_allclose(z, relaxed.z, atol=1e-4)
    assert program.upper_value(c, z) == pytest.approx(relaxed.value, rel=1e-5)


def test_on_separable_data_the_relaxation_is_a_bound_only():
    program = random_program(3, examples=20, features=10, noise=0.0)
    relaxed = relaxed_optimum(program)
    assert not relaxed.is_bilevel_optimum
    assert program.upper_value(relaxed.c, relaxed.z) == relaxed.value


# The published experiment


def experiment(name, seed):
    dataset = load_svm_dataset(name)
    parts = split(with_quadratic_features(dataset) if name == "diabetes" else dataset, seed)
    train, validation, test = (signed_rows(part.features, part.labels) for part in parts)
    c = np.random.RandomState(100 + seed).uniform(1.0, 5.0, 500)
    return SVMProgram(train, validation), test, c


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "penalised", "exact"),
    [
        # Validation loss, validation accuracy, test accuracy, upper value; means over five seeds.
        ("diabetes", (1.848, 0.7973, 0.7542, 348.3), (2.690, 0.629, 0.642, 474.7)),
        ("fourclass", (2.055, 0.7347, 0.7557, 379.4), (2.693, 0.631, 0.647, 475.1)),
    ],
)
def test_first_order_blocc_gives_the_known_means_on_real_data(name, penalised, exact):
    means = np.zeros((2, 4))
    for seed in range(5):
        program, test, c = experiment(name, seed)
        response = SVMResponse(program)
        original = perturbed = None
        for _ in range(80):
            original = response.original(c, original)
            perturbed = response.perturbed(c, 12.0, perturbed)
            for point in (original, perturbed):
                assert program.violation(c, point.z) <= 1e-6
            direction = c / np.linalg.norm(c) + 12.0 * (original.mu - perturbed.mu)
            last, c = c, np.maximum(program.floor, c - 0.01 * direction)
        for row, (z, _) in zip(means, (perturbed, original), strict=True):
            validation = program.validation_rows
            row += (
                program.validation_loss(z) / len(validation) / 5,
                np.mean(validation @ z > 0) / 5,
                np.mean(test @ z > 0) / 5,
                program.upper_value(last, z) / 5,
            )
    np.testing.assert_allclose(means, (penalised, exact), rtol=0.01)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "optima"),
    [
        ("diabetes", (257.822, 235.384, 192.114, 173.404, 208.285)),
        ("fourclass", (312.207, 324.968, 328.716, 307.963, 344.686)),
    ],
)
def test_linearised_steps_with_falling_penalty_reach_the_certified_optimum(name, optima):
    for seed in (2, 4):
        optimum = optima[seed]
        program, _, c = experiment(name, seed)
        relaxed = relaxed_optimum(program)
        assert relaxed.is_bilevel_optimum
        assert relaxed.value == pytest.approx(optimum, abs=1e-3)
        response = SVMResponse(program)
        original = response.original(c)
        for step in range(10):
            c, _ = linearised_step(program, c, 12.0 / 3**step, original.mu)
            c = response.project(c, margin=1e-7)
            original = response.original(c, original)
        assert program.upper_value(c, original.z) == pytest.approx(optimum, rel=1e-3)
        assert program.violation(c, original.z) <= 1e-6


# Bad input


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        ([[1.0, np.nan]], [[1.0, 1.0]], "NaN or infinite"),
        ([[1.0, 2.0], [1.0, -1.0]], [[1.0, 1.0]], "last column"),
        ([[1.0, 1.0], [1.0, -1.0]], [[1.0, 1.0, 1.0]], "2 columns and validation_rows 3"),
        ([[1.0, 1.0], [2.0, 1.0]], [[1.0, 1.0]], r"every training label is \+1"),
        ([1.0, 1.0], [[1.0, 1.0]], r"shape \(2,\)"),
    ],
)
def test_rows_that_make_no_program_are_refused(train, validation, message):
    with pytest.raises(ProblemError, match=message):
        SVMProgram(np.array(train), np.array(validation))


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        ([[1.0], [2.0]], [0.0, 1.0], "expected -1 and"),
        ([[1.0], [2.0]], [1.0], r"labels \(1,\)"),
        ([1.0, 2.0], [1.0, -1.0], r"features have shape \(2,\)"),
    ],
)
def test_features_and_labels_that_do_not_fit_are_refused(features, labels, message):
    with pytest.raises(ProblemError, match=message):
        signed_rows(features, labels)


def test_a_bad_c_is_refused_with_its_shape():
    response = SVMResponse(random_program(0))
    with pytest.raises(VariableError, match=r"shape \(3,\)"):
        response.original(np.ones(3))
    with pytest.raises(VariableError, match="60 entries that are not finite"):
        response.perturbed(np.full(60, np.inf), 12.0)


def test_options_out_of_range_are_refused_with_their_value():
    program = random_program(0)
    ones = np.ones(60)
    with pytest.raises(OptionError, match="floor=0"):
        SVMProgram(program.train_rows, program.validation_rows, floor=0)
    with pytest.raises(OptionError, match="tolerance=-1"):
        SVMResponse(program, tolerance=-1)
    with pytest.raises(OptionError, match="penalty=0"):
        SVMResponse(program).perturbed(ones, 0)
    with pytest.raises(OptionError, match="proximal=-2"):
        linearised_step(program, ones, 1.0, ones, proximal=-2)
    with pytest.raises(OptionError, match="mu has the entry -1"):
        linearised_step(program, ones, 1.0, -ones)
