from __future__ import annotations

from benchmark_utils import train_and_test
from benchopt import BaseDataset

from bilevel.datasets import load_svm_dataset, with_noise_features


class Dataset(BaseDataset):
    """Breast cancer (Wisconsin), as it is or with columns of noise."""

    name = "breast cancer"
    requirements = ["pip::bilevel"]
    parameters = {"noise": [0, 60], "split": list(range(10))}
    parameter_template = "{noise} noise columns, split {split}"
    test_parameters = {"noise": [0], "split": [0]}

    def get_data(self):
        dataset, label = load_svm_dataset("breast_cancer"), "breast cancer, 30"
        if self.noise:
            dataset = with_noise_features(dataset, self.noise, seed=self.get_seed())
            label += f" + {self.noise} noise"
        return train_and_test(label, dataset.features, dataset.labels, self.split)
