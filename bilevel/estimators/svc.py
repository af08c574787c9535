"""A linear classifier that chooses its soft-margin C by bilevel optimisation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import check_cv
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from bilevel.calculus import Array
from bilevel.errors import OptionError, ProblemError
from bilevel.estimators.folds import final_machines, fold_machines, signs
from bilevel.estimators.losses import LOG, SMOOTHED_ZERO_ONE, SQUARED_HINGE, MarginLoss
from bilevel.estimators.newton import NewtonResponse
from bilevel.estimators.selection import select
from bilevel.options import check_nonnegative, check_positive, check_share

_LOSSES = {"log_loss": LOG, "squared_hinge": SQUARED_HINGE}
_VALIDATION_LOSSES = {**_LOSSES, "smoothed_zero_one": SMOOTHED_ZERO_ONE}


class BilevelSVC(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    r"""Linear soft-margin classifier whose C minimises a cross-validation loss.

    With labels :math:`t_i = \pm 1` and margins :math:`m_i = t_i (w^\top x_i + b)`, the C is that of

    .. math::
        \min_{C} \; \frac1K \sum_{k=1}^K \frac{1}{|V_k|} \sum_{i \in V_k}
            \ell_{\mathrm{val}}\bigl(m_i(w_k, b_k)\bigr)
        \quad\text{subject to}\quad
        (w_k, b_k) = \operatorname*{arg\,min}_{w, b} \tfrac12 \|w\|^2
            + C \sum_{i \notin V_k} \ell(m_i),

    over the folds :math:`V_1, \dots, V_K`, and the classifier is then fitted to all examples. This
    is a bilevel problem: x is log C, y are the folds' classifiers, which Newton's method finds to
    rounding. :class:`~bilevel.PBGD` differentiates the validation loss through them, so that some
    ten values of C are tried where a grid search has to choose how many.

    C is comparable to that of ``LinearSVC`` (``loss="squared_hinge"``) and ``LogisticRegression``
    (``loss="log_loss"``), but the intercept is not penalised. More than two classes are told apart
    one versus the rest, with one C for all of them that minimises their mean loss.

    Put the features on a common scale first, as for every penalised linear model:
    ``make_pipeline(StandardScaler(), BilevelSVC())``. Data are dense, and a Newton step costs
    :math:`O(n d^2 + d^3)` a fold: d up to about a thousand features.

    Parameters
    ----------
    loss : {"log_loss", "squared_hinge"}, default="log_loss"
        What is minimised over the training examples, :math:`\ell(m) = \log(1 + e^{-m})` or
        :math:`\max(0, 1 - m)^2`.
    validation_loss : {"log_loss", "squared_hinge", "smoothed_zero_one"}, default="log_loss"
        What C is chosen by, :math:`\ell_{\mathrm{val}}`. The last, :math:`1 / (1 + e^{5 m})`,
        follows the number of mistakes: it is bounded, so outliers have little say in C.
    per_feature : bool, default=False
        A :math:`C_j` for every feature: the regulariser is :math:`\tfrac12 \sum_j w_j^2 / C_j`.
        The search begins at the best C that all have in common.
    shrinkage : float, default=1.0
        With ``per_feature``, adds :math:`(\rho / n) \sum_j (\log C_j - \overline{\log C})^2` to the
        validation loss. For the log loss this is a normal prior of variance :math:`1 / (2 \rho)` on
        the log penalties. Without shrinkage, penalties of many features overfit the folds.
    cv : int, splitter or iterable, default=5
        The folds, as in ``GridSearchCV``: an integer makes stratified, unshuffled ones.
    C_bounds : tuple of two floats, default=(1e-4, 1e4)
        The interval of C. The search begins at C = 1; on separable data the best C may be a bound.
    tol : float, default=1e-5
        The search ends where the validation loss changes by less than this for a unit change of
        log C, or by less than this share of it in an iteration.

    Attributes
    ----------
    best_C_ : float or ndarray of shape (n_features,)
        The chosen C, or each feature's.
    solution_ : bilevel.Solution
        The record of the selection: the validation loss ``upper_value`` (shrinkage included), its
        ``stationarity``, the folds' classifiers ``y``, time and evaluations.
    classes_ : ndarray of shape (n_classes,)
        The labels.
    coef_ : ndarray of shape (1, n_features) or (n_classes, n_features)
        w of the final classifier, a row for each class where there are more than two.
    intercept_ : ndarray of shape (1,) or (n_classes,)
        b of the final classifier.
    n_features_in_ : int
        Number of features seen in :meth:`fit`.
    feature_names_in_ : ndarray of shape (n_features,)
        Their names, where X has names of strings.

    Notes
    -----
    The validation loss need not be convex in log C; a local minimum is found. With the squared
    hinge its derivative jumps wherever an example reaches the margin, and the search often ends at
    such a kink.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> model = make_pipeline(StandardScaler(), BilevelSVC()).fit(X, y)
    >>> print(f"C = {model[-1].best_C_:.2f}, accuracy {model.score(X, y):.3f}")
    C = 0.63, accuracy 0.988
    """

    def __init__(
        self,
        *,
        loss: str = "log_loss",
        validation_loss: str = "log_loss",
        per_feature: bool = False,
        shrinkage: float = 1.0,
        cv: Any = 5,
        C_bounds: tuple[float, float] = (1e-4, 1e4),
        tol: float = 1e-5,
    ) -> None:
        self.loss = loss
        self.validation_loss = validation_loss
        self.per_feature = per_feature
        self.shrinkage = shrinkage
        self.cv = cv
        self.C_bounds = C_bounds
        self.tol = tol

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> BilevelSVC:
        """Choose C by cross-validation, and fit the classifier to all examples.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            The examples.
        y : array-like of shape (n_samples,)
            Their labels.
        sample_weight : array-like of shape (n_samples,), optional
            Weights of the examples, in training and in validation.

        Returns
        -------
        BilevelSVC
            The fitted classifier itself.

        Raises
        ------
        OptionError
            A hyperparameter is out of range.
        ProblemError
            There is one class only, or a fold trains without one of the classes.
        ResponseError
            The features are so badly scaled that a classifier cannot be fitted.
        """
        loss = _named("loss", self.loss, _LOSSES)
        validation_loss = _named("validation_loss", self.validation_loss, _VALIDATION_LOSSES)
        bounds = _checked_bounds(self.C_bounds)
        check_positive("tol", self.tol)
        check_share("tol", self.tol, below_one=True)
        if not isinstance(self.per_feature, bool | np.bool_):
            raise OptionError(f"per_feature={self.per_feature!r}, expected True or False")
        check_nonnegative("shrinkage", self.shrinkage)
        examples, targets = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        check_classification_targets(targets)
        weights: Array = _check_sample_weight(
            sample_weight, examples, dtype=np.float64, ensure_non_negative=True
        )
        self.classes_, codes = np.unique(targets, return_inverse=True)
        present = self.classes_[np.unique(codes[weights > 0])]
        if len(present) < 2:
            raise ProblemError(
                f"the examples of positive weight are of one class ({present.tolist()}), and a "
                "classifier needs at least two"
            )
        labels = signs(codes, len(self.classes_))
        # The intercept is free, so this changes nothing but the rounding.
        center = np.average(examples, axis=0, weights=weights)
        examples = examples - center
        machines = fold_machines(
            examples,
            labels,
            weights,
            list(check_cv(self.cv, targets, classifier=True).split(examples, targets)),
            loss,
            validation_loss,
            self.shrinkage / float(np.sum(weights)) if self.per_feature else 0.0,
        )
        self.solution_ = select(machines, bounds, self.tol, per_feature=self.per_feature)
        log_penalties = self.solution_.x.numpy()
        folds = self.solution_.y.numpy().reshape(-1, len(labels), machines.width)
        final, _ = NewtonResponse(final_machines(examples, labels, weights, loss)).solve(
            log_penalties, np.mean(folds, axis=0)
        )
        self.best_C_ = np.exp(-log_penalties) if self.per_feature else math.exp(-log_penalties[0])
        self.coef_ = final[:, :-1].copy()
        self.intercept_ = final[:, -1] - self.coef_ @ center
        return self

    def decision_function(self, X: ArrayLike) -> Array:
        """Distances to the hyperplanes, in units of the margin.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Examples.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_classes)
            Of two classes one column, positive for ``classes_[1]``. With ``loss="log_loss"`` these
            are estimates of the log-odds.
        """
        check_is_fitted(self)
        examples = validate_data(self, X, dtype=np.float64, reset=False)
        scores: Array = examples @ self.coef_.T + self.intercept_
        return scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The labels of examples.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Examples.

        Returns
        -------
        ndarray of shape (n_samples,)
            Entries of ``classes_``.
        """
        scores = self.decision_function(X)
        codes = (scores > 0).astype(np.intp) if scores.ndim == 1 else np.argmax(scores, axis=1)
        labels: NDArray[Any] = self.classes_[codes]
        return labels


def _named(option: str, value: Any, choices: Mapping[str, MarginLoss]) -> MarginLoss:
    if not isinstance(value, str) or value not in choices:
        raise OptionError(f"{option}={value!r}, expected one of {', '.join(map(repr, choices))}")
    return choices[value]


def _checked_bounds(bounds: Any) -> tuple[float, float]:
    try:
        least, most = map(float, bounds)
    except (TypeError, ValueError):
        least, most = math.nan, math.nan
    if not 0 < least < most < math.inf:
        raise OptionError(f"C_bounds={bounds!r}, expected two positive numbers, the smaller first")
    return least, most
