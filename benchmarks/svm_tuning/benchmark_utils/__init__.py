"""Training and test rows, and the pipeline that every method is used in."""

from __future__ import annotations

import time
import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

MOST_TRAINING_ROWS = 650


def train_and_test(label, features, labels, seed):
    """Three quarters of the rows, at most 650, to tune and fit on; the others to judge by."""
    order = np.random.RandomState(seed).permutation(len(labels))
    train, test = np.split(order, [min(MOST_TRAINING_ROWS, 3 * len(labels) // 4)])
    return {
        "label": label,
        "seed": seed,
        "train": (features[train], labels[train]),
        "test": (features[test], labels[test]),
    }


def fitted(classifier, features, labels):
    """The classifier on standardised features, and the processor's seconds to tune and fit it."""
    pipeline = make_pipeline(StandardScaler(), classifier)
    began = time.process_time()
    with warnings.catch_warnings():
        # Some values of a grid are beyond what liblinear and lbfgs solve; that is part of a grid.
        warnings.simplefilter("ignore", ConvergenceWarning)
        pipeline.fit(features, labels)
    return pipeline, time.process_time() - began
