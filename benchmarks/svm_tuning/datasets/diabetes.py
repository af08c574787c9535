from __future__ import annotations

from benchmark_utils import train_and_test
from benchopt import BaseDataset

from bilevel.datasets import load_svm_dataset, quadratic_features


class Dataset(BaseDataset):
    """Diabetes (LIBSVM), its 8 features or their 44 monomials of degree one and two."""

    name = "diabetes"
    requirements = ["pip::bilevel"]
    parameters = {"degree": [1, 2], "split": list(range(10))}
    parameter_template = "degree {degree}, split {split}"
    test_parameters = {"degree": [1], "split": [0]}

    def get_data(self):
        dataset = load_svm_dataset("diabetes")
        features = dataset.features
        if self.degree == 2:
            features = quadratic_features(features)[:, 1:]
        label = f"diabetes, {features.shape[1]}"
        return train_and_test(label, features, dataset.labels, self.split)
