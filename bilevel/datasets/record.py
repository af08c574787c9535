"""What a data set for binary classification is."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from bilevel.errors import DatasetError

FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.intp]


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    r"""Rows :math:`x_i \in \mathbb{R}^d` with labels :math:`y_i \in \{-1, +1\}`, i = 1, …, n.

    Attributes
    ----------
    name : str
        The name under which it is loaded.
    features : numpy.ndarray
        Shape (n, d), float64, finite.
    labels : numpy.ndarray
        Shape (n,), float64, each -1 or +1.
    feature_names : tuple of str
        One name a column.
    source : str
        Where the numbers come from.

    Raises
    ------
    DatasetError
        If the shapes do not fit, a value is not finite, or a label is neither -1 nor +1.
    """

    name: str
    features: FloatArray
    labels: FloatArray
    feature_names: tuple[str, ...]
    source: str

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or 0 in self.features.shape:
            raise self._error(
                f"the features have shape {self.features.shape}", "give at least one row and column"
            )
        rows, columns = self.features.shape
        if self.labels.shape != (rows,):
            raise self._error(
                f"the labels have shape {self.labels.shape} for {rows} rows", "give one label a row"
            )
        if len(self.feature_names) != columns:
            raise self._error(
                f"there are {len(self.feature_names)} feature names for {columns} columns",
                "name each column",
            )
        bad = np.argwhere(~np.isfinite(self.features))
        if bad.size:
            row, column = bad[0]
            raise self._error(
                f"{len(bad)} of the features are not finite, the first in row {row + 1}, "
                f"feature {column + 1}: {self.features[row, column]}",
                "remove or impute them",
            )
        strange = np.setdiff1d(self.labels, [-1.0, 1.0])
        if strange.size:
            raise self._error(f"a label is {strange[0]}", "use the labels -1 and +1")

    def __repr__(self) -> str:
        rows, columns = self.features.shape
        return f"Dataset({self.name!r}, {rows} rows, {columns} features, source={self.source!r})"

    def subset(self, rows: IndexArray) -> Dataset:
        """Copy the given rows, in the given order."""
        return dataclasses.replace(self, features=self.features[rows], labels=self.labels[rows])

    def _error(self, found: str, remedy: str) -> DatasetError:
        return DatasetError(f"data set {self.name!r} from {self.source}: {found}; {remedy}")
