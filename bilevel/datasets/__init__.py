"""Real data: read from a local folder, or downloaded once and verified."""

from bilevel.datasets.classification import SVM_DATASETS, load_svm_dataset
from bilevel.datasets.expansion import (
    quadratic_features,
    with_noise_features,
    with_quadratic_features,
)
from bilevel.datasets.libsvm import load_libsvm
from bilevel.datasets.record import Dataset
from bilevel.datasets.remote import fetch
from bilevel.datasets.splits import Split, split

__all__ = [
    "SVM_DATASETS",
    "Dataset",
    "Split",
    "fetch",
    "load_libsvm",
    "load_svm_dataset",
    "quadratic_features",
    "split",
    "with_noise_features",
    "with_quadratic_features",
]
