"""The SVM program as a bilevel problem: the same mathematics as its kernels, and its solutions."""

from __future__ import annotations

import warnings

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bilevel import BLOCC, DifferenceOfConvex, Exact, PBGDFree, Status
from bilevel.datasets import load_svm_dataset, split, with_quadratic_features
from bilevel.diagnostics import bias, lower_gap
from bilevel.errors import BiasWarning, InfeasibleError, OptionError, ProblemError, VariableError
from bilevel.problems.svm import (
    Evaluator,
    SVMResponse,
    relaxed_optimum,
    signed_rows,
    svm_problem,
    svm_program,
)
from bilevel.schedules import Geometric

FLOOR = 1e-4


def examples(seed, count, features=5, noise=1.5):
    """Two overlapping classes of one distribution, whatever the count."""
    rng = np.random.default_rng([seed, count])
    direction = np.random.default_rng(seed).standard_normal(features)
    x = rng.standard_normal((count, features))
    y = np.where(x @ direction + noise * rng.standard_normal(count) > 0.2, 1.0, -1.0)
    y[:2] = 1.0, -1.0
    return x, y


def data(seed, train=60, validation=30, **options):
    return examples(seed, train, **options), examples(seed, validation, **options)


def start(train, seed=0):
    x, y = train
    c = np.random.default_rng([seed, 9]).uniform(1.0, 5.0, len(y))
    return torch.from_numpy(c), torch.zeros(x.shape[1] + 1, dtype=torch.float64)


def moderate(program, seed):
    """A c inside the feasible set that tells the two responses apart."""
    c = np.random.default_rng([seed, 4]).uniform(0.2, 1.5, len(program.train_rows))
    return SVMResponse(program).project(c, margin=0.05)


def tight(program, seed):
    """A feasible c at which the follower cannot answer w = 0."""
    rng = np.random.default_rng([seed, 3])
    z = rng.standard_normal(program.train_rows.shape[1])
    slack = np.maximum(1 - program.train_rows @ z, program.floor)
    return slack + rng.uniform(0.05, 0.3, len(slack))


def difference_of_convex(first=12.0, thirds=12, **options):
    falling = Geometric(first, first / 3.0**thirds, steps=thirds)
    return BLOCC(penalty=falling, outer=DifferenceOfConvex(**options))


# The same program


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20)
def test_functions_agree_with_the_kernels(seed):
    parts = data(seed)
    problem, program = svm_problem(*parts), svm_program(*parts)
    rng = np.random.default_rng(seed)
    c, z = rng.uniform(FLOOR, 5.0, 60), rng.standard_normal(6)
    x, y = torch.from_numpy(c), torch.from_numpy(z)
    assert float(problem.upper_value(x, y)) == pytest.approx(program.upper_value(c, z), rel=1e-12)
    assert float(problem.lower_value(x, y)) == pytest.approx(program.lower_value(z), rel=1e-12)
    margins = problem.inequalities(x, y)
    assert max(0.0, float(margins.max())) == pytest.approx(program.violation(c, z), abs=1e-12)
    np.testing.assert_allclose(margins, 1 - c - program.train_rows @ z, atol=1e-12)


def test_data_sets_and_pairs_of_arrays_state_the_same_program():
    dataset = load_svm_dataset("breast_cancer")
    train, validation, _ = split(dataset, seed=0, train=100, validation=50)
    from_sets = svm_program(train, validation)
    from_pairs = svm_program(
        (train.features, train.labels), (validation.features.tolist(), validation.labels)
    )
    np.testing.assert_array_equal(from_sets.train_rows, from_pairs.train_rows)
    np.testing.assert_array_equal(from_sets.validation_rows, from_pairs.validation_rows)


def test_eliminating_the_slacks_changes_neither_the_response_nor_its_multipliers():
    program = svm_program(*data(3))
    c = tight(program, 3)
    z, slack = cp.Variable(6), cp.Variable(60)
    bounds = slack <= c
    written = cp.Problem(
        cp.Minimize(0.5 * cp.sum_squares(z[:-1])),
        [1 - slack - program.train_rows @ z <= 0, slack >= 0, bounds],
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Solution may be inaccurate")
        options = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), 1e-12)
        written.solve(solver=cp.CLARABEL, **options)
    found = SVMResponse(program).original(c)
    assert np.max(found.mu) > 0.1
    np.testing.assert_allclose(found.z, z.value, atol=1e-6)
    np.testing.assert_allclose(found.mu, bounds.dual_value, atol=1e-5)


# Responses and directions


def penalised_value(program, c, penalty):
    kernel = SVMResponse(program)
    z, y = kernel.perturbed(c, penalty).z, kernel.original(c).z
    joint = program.upper_value(c, z) + penalty * program.lower_value(z)
    return joint - penalty * program.lower_value(y)


def direction(problem, c, z0, penalty, **options):
    """What one first-order step with a small step size descends along."""
    rate = 1e-6
    solver = BLOCC(penalty=penalty, upper_lr=rate, **options)
    solution = solver.solve(problem, c, z0, max_steps=1)
    return ((c - solution.x) / rate).numpy()


@pytest.mark.parametrize("penalty", [0.5, 12.0])
def test_outer_direction_is_the_gradient_of_the_penalised_value_by_finite_differences(penalty):
    parts = data(7, train=40, features=4)
    problem, program = svm_problem(*parts), svm_program(*parts)
    c, step = tight(program, 7), 1e-5
    numerical = [
        (
            penalised_value(program, c + step * unit, penalty)
            - penalised_value(program, c - step * unit, penalty)
        )
        / (2 * step)
        for unit in np.eye(40)[::3]
    ]
    found = direction(problem, torch.from_numpy(c), torch.zeros(5, dtype=torch.float64), penalty)
    assert np.max(np.abs(numerical - (c / np.linalg.norm(c))[::3])) > 0.1
    np.testing.assert_allclose(found[::3], numerical, atol=1e-4)


def test_own_response_agrees_with_the_generic_one():
    parts = data(11, train=40, features=4)
    problem = svm_problem(*parts)
    c = torch.from_numpy(tight(svm_program(*parts), 11))
    z0 = torch.zeros(5, dtype=torch.float64)
    own = direction(problem, c, z0, 12.0)
    generic = direction(problem, c, z0, 12.0, response=Exact())
    np.testing.assert_allclose(own, generic, atol=1e-4)


def test_published_method_follows_the_recursion_written_out():
    parts = data(13)
    program = svm_program(*parts)
    kernel, (c0, z0) = SVMResponse(program), start(parts[0], 13)
    c = 0.3 * c0.numpy() + 0.7
    solution = BLOCC(penalty=12.0, upper_lr=0.01).solve(
        svm_problem(*parts), torch.from_numpy(c), z0, max_steps=40
    )
    for _ in range(40):
        difference = kernel.original(c).mu - kernel.perturbed(c, 12.0).mu
        c = np.maximum(FLOOR, c - 0.01 * (c / np.linalg.norm(c) + 12.0 * difference))
    np.testing.assert_allclose(solution.x, c, atol=1e-8)
    np.testing.assert_allclose(solution.y, kernel.perturbed(c, 12.0).z, atol=1e-7)
    assert solution.constraint_violation <= 1e-12


def test_lower_gap_of_a_solution_is_that_of_its_penalised_response():
    parts = data(17)
    problem, program = svm_problem(*parts), svm_program(*parts)
    c = torch.from_numpy(moderate(program, 17))
    z0 = torch.zeros(6, dtype=torch.float64)
    solution = BLOCC(penalty=2.0, upper_lr=0.001).solve(problem, c, z0, max_steps=5)
    exact = SVMResponse(program).original(solution.x.numpy()).z
    expected = program.lower_value(solution.y.numpy()) - program.lower_value(exact)
    assert expected > 1e-3
    assert solution.lower_gap == pytest.approx(expected, rel=1e-6)
    assert lower_gap(problem, solution.x, solution.y) == pytest.approx(expected, rel=1e-6)


def test_value_function_free_steps_shrink_c_and_are_found_to_be_biased():
    parts = data(20)
    problem, (c0, z0) = svm_problem(*parts), start(parts[0], 20)
    solver = PBGDFree(penalty=12.0, upper_lr=0.05, bias_every=20)
    with pytest.warns(BiasWarning, match="omitted term"):
        solution = solver.solve(problem, c0, z0, max_steps=20)
    shrunk = c0 * (1 - 20 * 0.05 / torch.linalg.vector_norm(c0))
    torch.testing.assert_close(solution.x, shrunk)
    assert bias(problem, solution.x, solution.y, 12.0, solve=True).ratio > 10


# Difference-of-convex steps


@pytest.mark.parametrize("seed", range(3))
def test_falling_penalty_leads_to_the_certified_optimum(seed):
    parts = data(seed, train=100, noise=3.0)
    problem, program = svm_problem(*parts), svm_program(*parts)
    optimum = relaxed_optimum(program)
    assert optimum.is_bilevel_optimum
    solution = difference_of_convex().solve(problem, *start(parts[0], seed), max_steps=40)
    assert solution.status is Status.CONVERGED
    assert solution.constraint_violation <= 1e-6
    assert solution.upper_value == pytest.approx(optimum.value, rel=1e-6)
    answer = SVMResponse(program).original(solution.x.numpy()).z
    assert program.upper_value(solution.x.numpy(), answer) == pytest.approx(optimum.value, rel=1e-5)


@pytest.mark.parametrize("proximal", [0.0, 0.1])
def test_steps_at_a_fixed_penalty_descend_to_a_stationary_point(proximal):
    parts = data(23, train=40, noise=0.5)
    program, (c0, z0) = svm_program(*parts), start(parts[0], 23)
    path = [c0.numpy()]
    solver = BLOCC(penalty=3.0, outer=DifferenceOfConvex(proximal=proximal))
    solution = solver.solve(
        svm_problem(*parts),
        c0,
        z0,
        callbacks=[lambda record, state: path.append(state.x.numpy().copy())],
    )
    assert solution.status is Status.CONVERGED
    assert solution.stationarity <= 1e-6
    values = [penalised_value(program, c, 3.0) for c in path]
    assert values[0] - values[-1] > 1.0
    assert np.all(np.diff(values) <= 1e-5)


# Metrics


def test_metrics_judge_both_responses():
    parts = data(29)
    program, (features, labels) = svm_program(*parts), examples(29, 200)
    c, penalty = moderate(program, 29), 2.0
    found = Evaluator(program, signed_rows(features, labels))(c, penalty)
    kernel = SVMResponse(program)
    points = {"penalised": kernel.perturbed(c, penalty).z, "exact": kernel.original(c).z}
    value = program.lower_value(points["exact"])
    for name, z in points.items():
        metrics, (x, y) = found[name], parts[1]
        scores, margins = features @ z[:-1] + z[-1], y * (x @ z[:-1] + z[-1])
        assert metrics.test_accuracy == pytest.approx(np.mean(np.sign(scores) == labels))
        assert metrics.validation_accuracy == pytest.approx(np.mean(margins > 0))
        assert metrics.validation_loss == pytest.approx(np.mean(np.exp(1 - margins)))
        assert metrics.upper_value == pytest.approx(program.upper_value(c, z))
        assert metrics.lower_gap == pytest.approx(program.lower_value(z) - value, abs=1e-8)
        assert metrics.constraint_violation <= 1e-9
    assert found["penalised"].lower_gap > 1e-3
    assert found["penalised"].upper_value < found["exact"].upper_value


# Bad input


def test_an_infeasible_c_is_named_with_its_step_and_certificate():
    parts = data(31)
    problem, program = svm_problem(*parts), svm_program(*parts)
    c, z0 = torch.full((60,), 0.5, dtype=torch.float64), start(parts[0])[1]
    with pytest.raises(InfeasibleError, match=r"in step 0: .* outside the feasible set") as caught:
        BLOCC(penalty=12.0, upper_lr=0.01).solve(problem, c, z0)
    certificate = caught.value.certificate
    assert np.max(np.abs(certificate @ program.train_rows)) <= 1e-12
    assert certificate @ c.numpy() < np.sum(certificate)


def test_variables_of_other_shapes_are_refused_with_what_they_should_be():
    parts = data(0)
    problem, (c0, z0) = svm_problem(*parts), start(parts[0])
    solver = BLOCC(penalty=12.0, upper_lr=0.01)
    with pytest.raises(VariableError, match=r"x is \(59,\).*\(60,\): one error bound"):
        solver.solve(problem, c0[:-1], z0)
    with pytest.raises(VariableError, match=r"y is dict.*\(6,\): the weights"):
        solver.solve(problem, c0, {"w": z0[:-1], "b": z0[-1:]})


@pytest.mark.parametrize(
    ("option", "message"),
    [({"margin": 0.0}, "margin=0.0"), ({"tolerance": -1.0}, "tolerance=-1"), ({"floor": 0}, "flo")],
)
def test_options_out_of_range_are_refused_with_their_value(option, message):
    with pytest.raises(OptionError, match=message):
        svm_problem(*data(0), **option)


def test_labels_of_another_kind_are_refused():
    (x, y), validation = data(0)
    with pytest.raises(ProblemError, match="expected -1 and"):
        svm_problem((x, (y + 1) / 2), validation)


# The published experiment


def experiment(name, seed):
    dataset = load_svm_dataset(name)
    dataset = with_quadratic_features(dataset) if name == "diabetes" else dataset
    train, validation, test = split(dataset, seed)
    c = np.random.RandomState(100 + seed).uniform(1.0, 5.0, 500)
    z = torch.zeros(train.features.shape[1] + 1, dtype=torch.float64)
    program = svm_program(train, validation)
    test_rows = signed_rows(test.features, test.labels)
    return svm_problem(train, validation), program, test_rows, torch.from_numpy(c), z


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "penalised", "exact"),
    [
        # Validation loss and test accuracy of the two responses; means over five seeds.
        ("diabetes", (1.848, 0.754), (2.690, 0.642)),
        ("fourclass", (2.055, 0.756), (2.693, 0.647)),
    ],
)
def test_published_method_gives_the_known_means_on_real_data(name, penalised, exact):
    means = np.zeros((2, 2))
    for seed in range(5):
        problem, program, test_rows, c, z = experiment(name, seed)
        solver = BLOCC(penalty=12.0, upper_lr=0.01)
        solution = solver.solve(problem, c, z, max_steps=80, progress=False)
        assert solution.constraint_violation <= 1e-6
        found = Evaluator(program, test_rows)(solution.x.numpy(), 12.0)
        for row, response in zip(means, ("penalised", "exact"), strict=True):
            metrics = found[response]
            assert metrics.constraint_violation <= 1e-6
            row += np.array([metrics.validation_loss, metrics.test_accuracy]) / 5
    np.testing.assert_allclose(means, (penalised, exact), rtol=0.01)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "optima"),
    [
        ("diabetes", (257.822, 235.384, 192.114, 173.404, 208.285)),
        ("fourclass", (312.207, 324.968, 328.716, 307.963, 344.686)),
    ],
)
def test_falling_penalty_reaches_the_global_optimum_on_real_data(name, optima):
    for seed in (1, 3):
        problem, program, test_rows, c, z = experiment(name, seed)
        certified = relaxed_optimum(program)
        assert certified.is_bilevel_optimum
        assert certified.value == pytest.approx(optima[seed], abs=1e-3)
        solution = difference_of_convex().solve(problem, c, z, max_steps=40, progress=False)
        assert solution.status is Status.CONVERGED
        assert solution.stationarity <= 1e-6
        exact = Evaluator(program, test_rows)(solution.x.numpy(), 12.0)["exact"]
        assert exact.upper_value == pytest.approx(certified.value, rel=1e-6)
        assert exact.constraint_violation <= 1e-6
