"""More columns for a data set: products of its features, or pure noise."""

from __future__ import annotations

import dataclasses

import numpy as np

from bilevel.datasets.record import Dataset, FloatArray
from bilevel.options import check_count


def quadratic_features(features: FloatArray) -> FloatArray:
    r"""Expand each row to the monomials of degree at most two.

    .. math::
        x \mapsto \bigl(1,\; x_1, \dots, x_d,\; x_1^2, \dots, x_d^2,\;
        (x_i x_j)_{i<j}\bigr) \in \mathbb{R}^{(d+1)(d+2)/2}

    with the products in lexicographic order: the 45 features of the diabetes experiment of BLOCC
    (arXiv:2406.10148) from its 8. The constant column is part of it; an SVM with a bias does not
    need it.

    Parameters
    ----------
    features
        Shape (n, d).

    Returns
    -------
    numpy.ndarray
        Shape (n, (d + 1)(d + 2) / 2).
    """
    rows, columns = features.shape
    first, second = np.triu_indices(columns, k=1)
    products = features[:, first] * features[:, second]
    return np.hstack([np.ones((rows, 1)), features, features**2, products])


def with_quadratic_features(dataset: Dataset) -> Dataset:
    """Replace a data set's features by their :func:`quadratic_features`."""
    names = dataset.feature_names
    products = zip(*np.triu_indices(len(names), k=1), strict=True)
    return dataclasses.replace(
        dataset,
        features=quadratic_features(dataset.features),
        feature_names=(
            "1",
            *names,
            *(f"{name}^2" for name in names),
            *(f"{names[i]}*{names[j]}" for i, j in products),
        ),
    )


def with_noise_features(dataset: Dataset, count: int, seed: int) -> Dataset:
    """Append columns of independent standard normal numbers, which tell nothing of the labels.

    Parameters
    ----------
    dataset
        The data set to extend.
    count
        The number of noise columns, at least 1.
    seed
        Seed of the numbers.

    Returns
    -------
    Dataset
        The data set with ``count`` more features.

    Raises
    ------
    OptionError
        If ``count`` is not positive.
    """
    check_count("count", count)
    check_count("seed", seed, least=0)
    noise = np.random.default_rng(seed).standard_normal((len(dataset.labels), count))
    return dataclasses.replace(
        dataset,
        features=np.hstack([dataset.features, noise]),
        feature_names=(*dataset.feature_names, *(f"noise{k}" for k in range(1, count + 1))),
    )
