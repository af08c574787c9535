"""BilevelSVC against scikit-learn's classifiers, finite differences and a fine grid."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, scale

from bilevel import PBGD, Exact
from bilevel.errors import OptionError, ProblemError, ResponseError
from bilevel.estimators import BilevelSVC
from bilevel.estimators.folds import fold_machines, signs
from bilevel.estimators.losses import LOG, SMOOTHED_ZERO_ONE, SQUARED_HINGE
from bilevel.estimators.newton import NewtonResponse
from bilevel.estimators.selection import selection_problem
from bilevel.evaluation import Evaluation

LOSSES = {"log_loss": LOG, "squared_hinge": SQUARED_HINGE, "smoothed_zero_one": SMOOTHED_ZERO_ONE}
VALIDATION = {
    "log_loss": lambda m: np.logaddexp(0, -m),
    "squared_hinge": lambda m: np.maximum(1 - m, 0) ** 2,
    "smoothed_zero_one": lambda m: 1 / (1 + np.exp(5 * m)),
}


@pytest.fixture(scope="module")
def cancer():
    """Ten features of breast cancer, standardised, with every tenth label wrong."""
    features, labels = load_breast_cancer(return_X_y=True)
    labels[::10] = 1 - labels[::10]
    return scale(features[:300, :10]), labels[:300]


@pytest.fixture(scope="module")
def iris():
    features, codes = load_iris(return_X_y=True)
    return scale(features), np.array(["setosa", "versicolor", "virginica"])[codes]


def machines_of(
    data, loss="log_loss", validation_loss="log_loss", shrinkage=0.0, folds=5, folds_by=None
):
    features, targets = data
    classes, codes = np.unique(targets, return_inverse=True)
    return fold_machines(
        features, signs(codes, len(classes)), np.ones(len(codes)),
        list(StratifiedKFold(folds).split(features, codes if folds_by is None else folds_by)),
        LOSSES[loss], LOSSES[validation_loss], shrinkage,
    )  # fmt: skip


def fold_loss(machines, log_penalties):
    """The k-fold loss with exact responses, by torch alone."""
    log_penalties = np.asarray(log_penalties, dtype=np.float64)
    y, _ = NewtonResponse(machines).solve(log_penalties, np.zeros((len(machines), machines.width)))
    return float(machines.upper(torch.from_numpy(log_penalties), torch.from_numpy(y)))


def slope_in_log_c(loss, c, step=1e-3):
    return (loss(c * np.exp(step)) - loss(c * np.exp(-step))) / (2 * step)


# scikit-learn's contract -------------------------------------------------------------------------


def test_every_check_of_scikit_learn_passes_and_none_is_skipped():
    program = (
        "from sklearn.utils.estimator_checks import check_estimator\n"
        "from bilevel.estimators import BilevelSVC\n"
        "results = check_estimator(BilevelSVC(), on_skip=None)\n"
        "assert len(results) > 50\n"
        "print({each['check_name']: each['status'] for each in results "
        "if each['status'] != 'passed'})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "SCIPY_ARRAY_API": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "{}"


def test_works_in_a_pipeline_under_a_grid_search_and_with_named_labels(iris):
    features, names = iris
    pipeline = make_pipeline(StandardScaler(), BilevelSVC(cv=3))
    assert cross_val_score(pipeline, features, names, cv=3).mean() > 0.9
    search = GridSearchCV(
        pipeline, {"bilevelsvc__validation_loss": ["log_loss", "squared_hinge"]}, cv=2
    )
    assert set(search.fit(features, names).predict(features)) == set(names)


def test_a_clone_and_a_pickled_copy_are_the_same_classifier(cancer):
    features, labels = cancer
    model = BilevelSVC(validation_loss="smoothed_zero_one", C_bounds=(1e-3, 1e3), cv=3)
    assert clone(model).get_params() == model.get_params()
    model.fit(features, labels)
    copy = pickle.loads(pickle.dumps(model))
    assert copy.best_C_ == model.best_C_
    assert copy.solution_.upper_value == model.solution_.upper_value
    np.testing.assert_array_equal(
        copy.decision_function(features), model.decision_function(features)
    )


# The chosen C ------------------------------------------------------------------------------------


@pytest.mark.parametrize("validation_loss", list(VALIDATION))
def test_the_chosen_c_is_a_stationary_minimum_of_scikit_learns_k_fold_loss(cancer, validation_loss):
    features, labels = cancer

    def k_fold_loss(c):
        means = []
        for train, held_out in StratifiedKFold(5).split(features, labels):
            reference = LogisticRegression(C=c, solver="newton-cholesky", tol=1e-12)
            margins = reference.fit(features[train], labels[train]).decision_function(
                features[held_out]
            ) * (2 * labels[held_out] - 1)
            means.append(VALIDATION[validation_loss](margins).mean())
        return np.mean(means)

    model = BilevelSVC(validation_loss=validation_loss).fit(features, labels)
    best = model.best_C_
    assert 1e-3 < best < 1e3
    assert abs(slope_in_log_c(k_fold_loss, best)) < 1e-4
    assert k_fold_loss(best) < min(k_fold_loss(best * 1.5), k_fold_loss(best / 1.5))
    assert model.solution_.upper_value == pytest.approx(k_fold_loss(best), rel=1e-5)


@pytest.mark.parametrize("loss", ["log_loss", "squared_hinge"])
@pytest.mark.parametrize("validation_loss", list(VALIDATION))
def test_no_c_of_a_fine_grid_is_better(cancer, loss, validation_loss):
    model = BilevelSVC(loss=loss, validation_loss=validation_loss).fit(*cancer)
    machines = machines_of(cancer, loss, validation_loss)
    grid = np.arange(-9.2, 9.3, 0.2)
    losses = [fold_loss(machines, [each]) for each in grid]
    best = fold_loss(machines, [-np.log(model.best_C_)])
    assert best <= min(losses) + 1e-5 * best


def test_one_c_for_three_classes_minimises_their_mean_loss(iris):
    features, names = iris
    model = BilevelSVC().fit(features, names)
    assert model.coef_.shape == (3, 4)
    assert model.decision_function(features).shape == (150, 3)

    def mean_loss(c):
        total = 0.0
        for name in model.classes_:
            machines = machines_of((features, names == name), folds_by=names)
            total += fold_loss(machines, [-np.log(c)]) / 3
        return total

    assert abs(slope_in_log_c(mean_loss, model.best_C_)) < 1e-4
    assert model.solution_.upper_value == pytest.approx(mean_loss(model.best_C_), rel=1e-5)


def test_on_labels_without_information_the_least_c_is_chosen():
    generator = np.random.default_rng(0)
    features, labels = generator.standard_normal((200, 20)), generator.integers(0, 2, 200)
    model = BilevelSVC(C_bounds=(1e-3, 1e2)).fit(features, labels)
    assert model.best_C_ == pytest.approx(1e-3)


def test_the_start_is_moved_into_bounds_that_exclude_one(cancer):
    model = BilevelSVC(C_bounds=(1e2, 1e3)).fit(*cancer)
    assert model.best_C_ == pytest.approx(1e2)


def test_an_offset_of_the_features_changes_nothing(cancer):
    features, labels = cancer
    model, shifted = (BilevelSVC().fit(features + offset, labels) for offset in (0.0, 1e4))
    assert shifted.best_C_ == pytest.approx(model.best_C_, rel=1e-4)
    np.testing.assert_allclose(shifted.coef_, model.coef_, rtol=1e-4)


def test_weights_count_in_training_and_in_validation(cancer):
    features, labels = cancer
    rows = np.arange(len(labels))
    kept = rows % 3 != 0
    folds = [(rows[rows % 2 == k], rows[rows % 2 != k]) for k in (0, 1)]
    renumbered = np.cumsum(kept) - 1
    fewer = [tuple(renumbered[part[kept[part]]] for part in fold) for fold in folds]
    weights = np.where(kept, 2.0, 0.0)
    weighted = BilevelSVC(cv=folds, C_bounds=(1e-2, 1e2)).fit(features, labels, weights)
    removed = BilevelSVC(cv=fewer, C_bounds=(1e-2, 1e2)).fit(features[kept], labels[kept])
    # Twice the weight is half the C.
    assert 2 * weighted.best_C_ == pytest.approx(removed.best_C_, rel=1e-2)
    np.testing.assert_allclose(weighted.coef_, removed.coef_, rtol=1e-2)


# The final classifier ----------------------------------------------------------------------------


def test_the_final_classifier_is_logistic_regression_with_the_chosen_c(cancer):
    features, labels = cancer
    model = BilevelSVC().fit(features, labels)
    reference = LogisticRegression(C=model.best_C_, solver="newton-cholesky", tol=1e-12)
    reference.fit(features, labels)
    np.testing.assert_allclose(model.coef_, reference.coef_, rtol=1e-6)
    np.testing.assert_allclose(model.intercept_, reference.intercept_, rtol=1e-6)


def test_a_penalty_a_feature_is_a_scale_a_feature(cancer):
    features, labels = cancer
    model = BilevelSVC(per_feature=True, shrinkage=0.1).fit(features, labels)
    assert model.best_C_.shape == (10,)
    assert model.best_C_.max() > 2 * model.best_C_.min()
    root = np.sqrt(model.best_C_)
    reference = LogisticRegression(C=1.0, solver="newton-cholesky", tol=1e-12)
    reference.fit(features * root, labels)
    np.testing.assert_allclose(model.coef_, reference.coef_ * root, rtol=1e-6)


def test_strong_shrinkage_gives_all_features_the_shared_penalty(cancer):
    shared = BilevelSVC(tol=1e-7).fit(*cancer)
    shrunk = BilevelSVC(tol=1e-7, per_feature=True, shrinkage=1e5).fit(*cancer)
    np.testing.assert_allclose(shrunk.best_C_, shared.best_C_, rtol=1e-3)
    free = BilevelSVC(per_feature=True, shrinkage=0.0).fit(*cancer)
    assert free.solution_.upper_value < shared.solution_.upper_value - 1e-3


# Hypergradients and responses --------------------------------------------------------------------


@pytest.mark.parametrize("validation_loss", list(VALIDATION))
def test_the_gradient_per_feature_is_that_of_finite_differences(cancer, validation_loss):
    machines = machines_of(cancer, "log_loss", validation_loss, shrinkage=0.01)
    point = np.linspace(-2.0, 3.0, 10)
    step = 1e-4
    expected = [
        (fold_loss(machines, point + step * unit) - fold_loss(machines, point - step * unit))
        / (2 * step)
        for unit in np.eye(10)
    ]
    problem = selection_problem(NewtonResponse(machines), (1e-4, 1e4))
    solver = PBGD(penalty=1e5)
    state = solver.init(problem, torch.from_numpy(point), torch.zeros(5, 11, dtype=torch.float64))
    solver.respond(problem, state, 1e5, evaluations := [Evaluation(problem, state)])
    solver.outer_gradient(problem, state, 1e5, evaluations)
    found = state.upper.leaves[0].grad.numpy()
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert np.linalg.norm(expected) > 1e-2


@pytest.mark.parametrize("loss", ["log_loss", "squared_hinge"])
@pytest.mark.parametrize("validation_loss", list(VALIDATION))
@pytest.mark.parametrize("weight", [0.0, 1e-5, 1e-1])
def test_responses_are_exact_from_any_start(cancer, loss, validation_loss, weight):
    machines = machines_of(cancer, loss, validation_loss)
    response = NewtonResponse(machines)
    generator = np.random.default_rng(0)
    for log_c in (-6.0, 0.0, 6.0):
        log_penalty = torch.tensor([-log_c], dtype=torch.float64)
        start = 10.0 * generator.standard_normal((5, 11))
        y = torch.from_numpy(response.solve(log_penalty.numpy(), start, weight)[0])
        y.requires_grad_()
        (weight * machines.upper(log_penalty, y) + machines.lower(log_penalty, y)).backward()
        assert float(y.grad.abs().max()) < 1e-10


def test_responses_agree_with_the_librarys_exact_response(cancer):
    machines = machines_of(cancer, folds=3)
    problem = selection_problem(NewtonResponse(machines), (1e-4, 1e4))
    x, y = torch.zeros(1, dtype=torch.float64), torch.zeros(3, 11, dtype=torch.float64)
    answers = []
    for response in (None, Exact()):
        solver = PBGD(penalty=10.0, response=response)
        state = solver.init(problem, x, y)
        solver.respond(problem, state, 10.0, [Evaluation(problem, state)])
        answers.append((state.y, state.original.values[0]))
    for own, exact in zip(*answers, strict=True):
        torch.testing.assert_close(own, exact, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", list(LOSSES))
@given(margin=st.floats(-60.0, 60.0).filter(lambda margin: abs(margin - 1.0) > 1e-6))
def test_derivatives_of_the_losses_are_those_of_autograd(name, margin):
    loss = LOSSES[name]
    at = torch.tensor(margin, dtype=torch.float64, requires_grad=True)
    value = loss.value(at)
    (slope,) = torch.autograd.grad(value, at, create_graph=True)
    curvature = torch.autograd.grad(slope, at)[0] if slope.requires_grad else torch.zeros(())
    found = loss.derivatives(np.array([margin]))
    assert found.value[0] == pytest.approx(VALIDATION[name](margin), rel=1e-12, abs=1e-300)
    assert found.value[0] == pytest.approx(value.item(), rel=1e-12, abs=1e-15)
    assert found.slope[0] == pytest.approx(slope.item(), rel=1e-9, abs=1e-12)
    assert found.curvature[0] == pytest.approx(max(curvature.item(), 0.0), rel=1e-9, abs=1e-12)


# Bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"loss": "hinge"}, "loss='hinge', expected one of 'log_loss', 'squared_hinge'"),
        ({"loss": None}, "loss=None"),
        ({"validation_loss": "accuracy"}, "validation_loss='accuracy'.*'smoothed_zero_one'"),
        ({"shrinkage": -1.0}, "shrinkage=-1.0"),
        ({"shrinkage": "strong"}, "shrinkage='strong'"),
        ({"C_bounds": (0.0, 1.0)}, r"C_bounds=\(0.0, 1.0\)"),
        ({"C_bounds": (10.0, 1.0)}, "the smaller first"),
        ({"C_bounds": 1.0}, "C_bounds=1.0, expected two positive numbers"),
        ({"tol": 0.0}, "tol=0.0"),
        ({"tol": None}, "tol=None"),
    ],
)
def test_a_bad_hyperparameter_is_named_in_fit_and_not_before(cancer, options, found):
    model = BilevelSVC(**options)
    with pytest.raises(OptionError, match=found):
        model.fit(*cancer)


def test_one_class_is_refused(cancer):
    features, labels = cancer
    with pytest.raises(ProblemError, match=r"one class \(\[1\]\)"):
        BilevelSVC().fit(features, np.ones_like(labels))
    with pytest.raises(ProblemError, match=r"one class \(\[0\]\)"):
        BilevelSVC().fit(features, labels, sample_weight=1.0 - labels)


def test_a_fold_that_lacks_a_class_is_named(cancer):
    features, labels = cancer
    order = np.argsort(labels)
    with pytest.raises(ProblemError, match=r"fold 1 of 2 trains without .* class.*stratified"):
        BilevelSVC(cv=KFold(2)).fit(features[order][-260:], labels[order][-260:])


def test_a_fold_that_validates_on_nothing_is_named(cancer):
    features, labels = cancer
    rows = np.arange(len(labels))
    with pytest.raises(ProblemError, match="fold 2 of 2 has no validation example"):
        BilevelSVC(cv=[(rows, rows), (rows, rows[:0])]).fit(features, labels)


def test_features_that_leave_double_precision_are_refused():
    features, labels = load_breast_cancer(return_X_y=True)
    with pytest.raises(ResponseError, match="StandardScaler"):
        BilevelSVC().fit(1e6 * scale(features), labels)


def test_folds_with_repeated_rows_count_them_as_often():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((20, 3))
    labels = np.where(rng.random(20) < 0.5, -1.0, 1.0)[None]
    weights = rng.random(20) + 0.5
    train, held_out = rng.integers(0, 20, 30), rng.integers(0, 20, 12)
    loss = LOG
    repeated = fold_machines(features, labels, weights, [(train, held_out)], loss, loss)
    counts = [np.bincount(rows, minlength=20) for rows in (train, held_out)]
    np.testing.assert_allclose(
        repeated.training[0], weights * counts[0] / weights[train].sum(), rtol=1e-12
    )
    np.testing.assert_allclose(
        repeated.validation[0], weights * counts[1] / weights[held_out].sum(), rtol=1e-12
    )
    assert repeated.sizes[0] == pytest.approx(weights[train].sum())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"tol": 1.0}, "tol=1.0, expected a share"), ({"per_feature": "no"}, "per_feature='no'")],
)
def test_options_are_refused_by_their_own_names(options, message):
    features = np.random.default_rng(0).standard_normal((20, 2))
    with pytest.raises(OptionError, match=message):
        BilevelSVC(**options).fit(features, features[:, 0] > 0)
