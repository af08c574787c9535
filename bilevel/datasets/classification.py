"""Real data sets for the selection of a classifier's hyperparameters."""

from __future__ import annotations

import dataclasses

import numpy as np

from bilevel.datasets.libsvm import load_libsvm
from bilevel.datasets.record import Dataset
from bilevel.datasets.remote import fetch, upstream_url
from bilevel.errors import OptionError
from bilevel.extras import require

_LIBSVM_FILES = {"diabetes": ("svm/diabete.txt", 8), "fourclass": ("svm/fourclass.txt", 2)}

SVM_DATASETS = ("breast_cancer", *_LIBSVM_FILES)
"""The names that :func:`load_svm_dataset` takes."""


def load_svm_dataset(name: str) -> Dataset:
    """Load a real data set with two classes.

    ============== ===== ========= ========= ===========================================
    name            rows  features  rows +1   source
    ============== ===== ========= ========= ===========================================
    breast_cancer    569        30       357  scikit-learn; +1 is benign, features raw
    diabetes         768         8       500  LIBSVM file, features scaled to [-1, 1]
    fourclass        862         2       307  LIBSVM file, features scaled to [-1, 1]
    ============== ===== ========= ========= ===========================================

    The LIBSVM files are those of the published experiments of BLOCC (arXiv:2406.10148). They are
    read from the folder named by the environment variable ``BILEVEL_DATA``, else downloaded once.

    Parameters
    ----------
    name
        One of :data:`SVM_DATASETS`.

    Returns
    -------
    Dataset
        The rows in the order of the source.

    Raises
    ------
    DatasetError
        If a file is missing, damaged or malformed; see :func:`bilevel.datasets.fetch`.
    MissingExtraError
        If scikit-learn or pooch is needed and not installed.
    OptionError
        If the name is unknown.
    """
    if name == "breast_cancer":
        return _breast_cancer()
    if name in _LIBSVM_FILES:
        file, features = _LIBSVM_FILES[name]
        dataset = load_libsvm(fetch(file), name=name, features=features)
        return dataclasses.replace(dataset, source=upstream_url(file))
    raise OptionError(f"no data set {name!r}; choose one of {', '.join(SVM_DATASETS)}")


def _breast_cancer() -> Dataset:
    bunch = require("sklearn.datasets", "sklearn").load_breast_cancer()
    return Dataset(
        name="breast_cancer",
        features=np.asarray(bunch.data, dtype=np.float64),
        labels=np.where(bunch.target == 1, 1.0, -1.0),
        feature_names=tuple(map(str, bunch.feature_names)),
        source="scikit-learn: Breast Cancer Wisconsin (Diagnostic)",
    )
