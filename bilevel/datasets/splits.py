"""Random splits that depend on their seed alone, never on an earlier call."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from bilevel.datasets.record import Dataset
from bilevel.errors import OptionError


class Split(NamedTuple):
    """Three disjoint parts of a data set.

    Attributes
    ----------
    train : Dataset
        Rows to fit the lower level.
    validation : Dataset
        Rows to fit the upper level.
    test : Dataset
        Rows to judge the result.
    """

    train: Dataset
    validation: Dataset
    test: Dataset


def split(dataset: Dataset, seed: int, train: int = 500, validation: int = 150) -> Split:
    """Permute the rows and cut them into training, validation and test rows.

    The permutation is ``numpy.random.RandomState(seed).permutation(n)``: the same seed gives the
    same split on every machine, in whatever order splits are made.

    Parameters
    ----------
    dataset
        The data set to split.
    seed
        Seed of the permutation, from 0 to 2**32 - 1.
    train
        The number of training rows, the first of the permutation. The default sizes are those of
        the experiments of BLOCC (arXiv:2406.10148).
    validation
        The number of validation rows, the next of the permutation. The rest are test rows.

    Returns
    -------
    Split
        Three data sets; ``train, validation, test = split(dataset, seed)``.

    Raises
    ------
    OptionError
        If a part would be empty, or the seed is out of range.
    """
    rows = len(dataset.labels)
    if train < 1 or validation < 1 or train + validation >= rows:
        raise OptionError(
            f"{dataset.name} has {rows} rows, which cannot be split into train={train}, "
            f"validation={validation} and at least one test row; choose positive sizes with "
            f"train + validation <= {rows - 1}"
        )
    if not 0 <= seed < 2**32:
        raise OptionError(f"seed={seed}; expected an integer from 0 to 2**32 - 1")
    # RandomState, since its stream is frozen: default_rng's may change between NumPy releases.
    order = np.random.RandomState(seed).permutation(rows)
    return Split(*map(dataset.subset, np.split(order, [train, train + validation])))
