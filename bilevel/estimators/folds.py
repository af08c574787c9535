"""The classifiers of a cross-validation, and those that are fitted to all examples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bilevel.calculus import Array
from bilevel.errors import ProblemError
from bilevel.estimators.losses import MarginLoss
from bilevel.estimators.machines import Machines

#: The rows to train on and the rows to judge by, as scikit-learn's splitters give them.
Fold = tuple[NDArray[np.intp], NDArray[np.intp]]


def signs(codes: NDArray[np.intp], classes: int) -> Array:
    """Labels -1 and +1 of one-vs-rest problems, one row each; of two classes one problem."""
    sought = np.arange(classes) if classes > 2 else np.array([1])
    return np.where(codes == sought[:, None], 1.0, -1.0)


def fold_machines(
    features: Array,
    labels: Array,
    weights: Array,
    folds: Sequence[Fold],
    loss: MarginLoss,
    validation_loss: MarginLoss,
    shrinkage: float = 0.0,
) -> Machines:
    """One classifier for each fold and row of labels; f is their mean validation loss.

    Parameters
    ----------
    features : array of shape (n, d)
    labels : array of shape (c, n)
        As :func:`signs` gives them.
    weights : array of shape (n,)
        The examples' weights.
    folds : sequence
        Training and validation rows of each fold.
    loss, validation_loss : MarginLoss
        What the classifiers minimise, and what they are judged by.
    shrinkage : float
        Weight of the squared deviations of the log penalties in f.

    Raises
    ------
    ProblemError
        A fold trains without one of the classes, or validates on nothing.
    """
    training, validation = np.zeros((2, len(folds), len(labels), len(weights)))
    for k, (train, held_out) in enumerate(folds):
        _check_fold(f"fold {k + 1} of {len(folds)}", labels, weights, train, held_out)
        # A splitter may draw rows more than once.
        taken, judged = (np.bincount(rows, minlength=len(weights)) for rows in (train, held_out))
        training[k] = weights * taken
        validation[k] = weights * judged / np.sum(weights * judged)
    sizes = np.sum(training, axis=-1, keepdims=True)
    machines = len(folds) * len(labels)
    return Machines(
        rows=_with_intercept(features),
        labels=np.tile(labels, (len(folds), 1)),
        training=(training / sizes).reshape(machines, -1),
        validation=(validation / machines).reshape(machines, -1),
        sizes=sizes.reshape(-1),
        loss=loss,
        validation_loss=validation_loss,
        shrinkage=shrinkage,
    )


def final_machines(features: Array, labels: Array, weights: Array, loss: MarginLoss) -> Machines:
    """One classifier for each row of labels, trained on all examples and judged by none."""
    size = float(np.sum(weights))
    training = np.tile(weights / size, (len(labels), 1))
    return Machines(
        rows=_with_intercept(features),
        labels=labels,
        training=training,
        validation=np.zeros_like(training),
        sizes=np.full(len(labels), size),
        loss=loss,
        validation_loss=loss,
    )


def _with_intercept(features: Array) -> Array:
    return np.column_stack([features, np.ones(len(features))])


def _check_fold(
    name: str,
    labels: Array,
    weights: Array,
    train: NDArray[np.intp],
    held_out: NDArray[np.intp],
) -> None:
    seen = labels[:, train][:, weights[train] > 0]
    complete = np.any(seen > 0, axis=1) & np.any(seen < 0, axis=1)
    if not np.all(complete):
        raise ProblemError(
            f"{name} trains without any example of some class: give every class at least two "
            "examples of positive weight, and a cv= that is stratified by class"
        )
    if not np.sum(weights[held_out]) > 0:
        raise ProblemError(
            f"{name} has no validation example of positive weight: use fewer folds in cv="
        )
