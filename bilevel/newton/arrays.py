"""Array types, and the norm that every residual is measured in."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.linalg import blas

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]


def largest(values: Array) -> float:
    """The maximum norm of a vector (zero if it is empty)."""
    return abs(float(values[blas.idamax(values)])) if values.size else 0.0
