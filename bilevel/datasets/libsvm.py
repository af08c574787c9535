"""Files in LIBSVM's format: a row is ``label index:value index:value ...``, indices from 1."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np

from bilevel.datasets.record import Dataset
from bilevel.errors import DatasetError
from bilevel.extras import require


def load_libsvm(
    path: str | os.PathLike[str], *, name: str | None = None, features: int | None = None
) -> Dataset:
    """Read a file of labelled sparse rows; a feature absent from a row is zero there.

    Parameters
    ----------
    path
        The file; its labels are -1 and +1.
    name
        The data set's name; the file's name without its ending if not given.
    features
        The number of columns; the largest index in the file if not given.

    Returns
    -------
    Dataset
        The rows, dense, in the order of the file.

    Raises
    ------
    DatasetError
        If the file cannot be read, is malformed or empty, or holds a value that is not finite, an
        index that does not fit, a label other than -1 and +1, or only one of the two classes.
    MissingExtraError
        If scikit-learn, whose parser this is, is not installed.
    """
    path = Path(path)
    parse = require("sklearn.datasets", "sklearn").load_svmlight_file
    try:
        rows, labels = parse(str(path), n_features=features, dtype=np.float64, zero_based=False)
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path} cannot be read ({error}); check the file") from error
    except (ValueError, OverflowError) as error:
        raise DatasetError(
            f"{path} is not in LIBSVM's format ({error}); "
            "each row must read 'label index:value index:value ...' with indices from 1"
            + (f" to {features}" if features is not None else "")
        ) from error
    if len(labels) == 0:
        raise DatasetError(f"{path} holds no rows; it was perhaps cut off: fetch it anew")
    columns = rows.shape[1]
    dataset = Dataset(
        name=name or path.stem,
        features=rows.toarray(),
        labels=labels,
        feature_names=tuple(f"x{column}" for column in range(1, columns + 1)),
        source=str(path),
    )
    if np.ptp(labels) == 0:
        raise DatasetError(
            f"{path} holds one class only: each of its {len(labels)} labels is {labels[0]:+.0f}; "
            "a classifier needs rows of both"
        )
    return dataset
