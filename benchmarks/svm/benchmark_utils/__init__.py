"""Splits of the data sets, as the objective takes them."""

from __future__ import annotations

from dataclasses import replace

from bilevel.datasets import Dataset, Split, load_svm_dataset, split
from bilevel.errors import BilevelError


def parts_of(name: str, seed: int, train: int, validation: int, prepare) -> dict:
    """Training, validation and test rows; where the data cannot be had, the reason."""
    try:
        dataset: Dataset = load_svm_dataset(name)
    except BilevelError as error:
        return {"parts": None, "seed": seed, "reason": str(error)}
    return {"parts": split(prepare(dataset), seed, train, validation), "seed": seed, "reason": ""}


def standardised(parts: Split) -> Split:
    """Features of mean 0 and deviation 1 on the training rows."""
    features = parts.train.features
    mean, scale = features.mean(axis=0), features.std(axis=0)
    return Split(*(replace(each, features=(each.features - mean) / scale) for each in parts))
