"""Dense derivatives of torch functions at leaf tensors, as NumPy arrays (small problems)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bilevel.errors import ResponseError
from bilevel.variables import flatten

Array = NDArray[np.float64]

#: Up to this many rows a loop of backward passes is faster than one batched pass.
_LOOP_ROWS = 8


def gradient_tensor(
    value: Tensor, leaves: Sequence[Tensor], *, create_graph: bool = False
) -> Tensor:
    """Gradient of a 0-d tensor as one vector; zero where it does not depend on a leaf."""
    if not leaves:  # an empty x
        return value.new_zeros(0)
    if not value.requires_grad:
        return torch.cat([torch.zeros_like(leaf).reshape(-1) for leaf in leaves])
    parts = torch.autograd.grad(
        value, leaves, retain_graph=True, create_graph=create_graph, allow_unused=True
    )
    return torch.cat(
        [
            torch.zeros_like(leaf).reshape(-1) if part is None else part.reshape(-1)
            for leaf, part in zip(leaves, parts, strict=True)
        ]
    )


def gradient(value: Tensor, leaves: Sequence[Tensor]) -> Array:
    """Gradient of a 0-d tensor at the leaves, one vector."""
    return flatten([gradient_tensor(value, leaves)])


def jacobian(values: Tensor, leaves: Sequence[Tensor]) -> Array:
    """Jacobian of a 1-d tensor at the leaves, one row an entry."""
    rows, columns = len(values), sum(leaf.numel() for leaf in leaves)
    if rows == 0 or not values.requires_grad:
        return np.zeros((rows, columns))
    if rows <= _LOOP_ROWS:
        return np.stack([gradient(value, leaves) for value in values])
    parts = torch.autograd.grad(
        values,
        leaves,
        torch.eye(rows, dtype=values.dtype, device=values.device),
        retain_graph=True,
        allow_unused=True,
        is_grads_batched=True,
    )
    blocks = [
        np.zeros((rows, leaf.numel()))
        if part is None
        else part.detach().reshape(rows, -1).to("cpu", torch.float64).numpy()
        for leaf, part in zip(leaves, parts, strict=True)
    ]
    return np.concatenate(blocks, axis=1)


def hessian(value: Tensor, leaves: Sequence[Tensor]) -> Array:
    """Symmetric matrix of second derivatives of a 0-d tensor at the leaves.

    Raises
    ------
    ResponseError
        an operation in the value has no second derivative.
    """
    try:
        first = gradient_tensor(value, leaves, create_graph=True)
        second = jacobian(first, leaves)
    except RuntimeError as error:
        if "not implemented" not in str(error) and "once_differentiable" not in str(error):
            raise
        raise ResponseError(
            f"second derivatives are needed here, and an operation in the problem's functions has "
            f"none ({error}): use first-order steps (lower_lr=..., upper_lr=...)"
        ) from error
    return 0.5 * (second + second.T)
