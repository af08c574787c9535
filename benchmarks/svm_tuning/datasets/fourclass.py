from __future__ import annotations

from benchmark_utils import train_and_test
from benchopt import BaseDataset
from sklearn.preprocessing import PolynomialFeatures

from bilevel.datasets import load_svm_dataset


class Dataset(BaseDataset):
    """Fourclass (LIBSVM), its 2 features or their 27 monomials up to degree six."""

    name = "fourclass"
    requirements = ["pip::bilevel"]
    parameters = {"degree": [1, 6], "split": list(range(10))}
    parameter_template = "degree {degree}, split {split}"
    test_parameters = {"degree": [1], "split": [0]}

    def get_data(self):
        dataset = load_svm_dataset("fourclass")
        expansion = PolynomialFeatures(self.degree, include_bias=False)
        features = expansion.fit_transform(dataset.features)
        label = f"fourclass, {features.shape[1]}"
        return train_and_test(label, features, dataset.labels, self.split)
