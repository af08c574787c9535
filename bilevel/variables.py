"""The variable of one level: leaf tensors, updated in place, and the set they live in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bilevel.distributed import (
    gathering_modules,
    initialized,
    is_wrapped,
    own_shard,
    share_start,
)
from bilevel.domains import DomainTree, Reals, domains_of_leaves
from bilevel.domains.sharding import is_sharded, whole
from bilevel.errors import VariableError
from bilevel.trees import Tree, named_leaves, rebuild


class Level:
    """One level's variable as leaf tensors that gradients are taken at.

    Plain tensors are copied once, so the caller's stay as they are; ``nn.Parameter`` leaves are
    used themselves, so a network trains in place.

    Attributes
    ----------
    tree
        the variable as the problem's functions receive it.
    leaves
        its tensors, each requiring gradients.
    names
        the expression that reaches each leaf, for messages.
    domains
        the set of each leaf.
    """

    def __init__(self, name: str, tree: Tree, domain: DomainTree = None) -> None:
        pairs = named_leaves(tree, name)
        self.name = name
        self.names = [label for label, _ in pairs]
        for label, leaf in pairs:
            if not bool(torch.isfinite(own_shard(leaf)).all()):
                raise VariableError(f"{label} holds NaN or infinite values at the start")
            if isinstance(leaf, nn.Parameter) and not leaf.requires_grad:
                raise VariableError(
                    f"{label} is a frozen parameter (requires_grad=False); leave it out of {name} "
                    "or call requires_grad_()"
                )
        self.leaves: list[Tensor] = [
            leaf if isinstance(leaf, nn.Parameter) else leaf.detach().clone().requires_grad_()
            for _, leaf in pairs
        ]
        if len({id(leaf) for leaf in self.leaves}) < len(self.leaves):
            raise VariableError(f"{name} names the same parameter twice")
        self.dtypes = [leaf.dtype for leaf in self.leaves]
        share_start(self.leaves)
        self._gathering = gathering_modules(self.leaves)
        self.tree = rebuild(tree, self.leaves)
        self.domains = domains_of_leaves(domain, tree, name) if pairs else []
        self.bounded = any(not isinstance(each, Reals) for each in self.domains)
        for label, leaf, each in zip(self.names, self.leaves, self.domains, strict=True):
            each.validate(leaf.detach(), label)

    @property
    def size(self) -> int:
        """Number of scalar entries."""
        return sum(leaf.numel() for leaf in self.leaves)

    @property
    def wrapped(self) -> bool:
        """Whether a network's wrapper (DDP, ``fully_shard``) may have to see its gradients."""
        return initialized() and any(map(is_wrapped, self.leaves))

    def view(self) -> Tree:
        """The current values: parameters themselves, plain tensors detached but not copied."""
        return rebuild(
            self.tree,
            [leaf if isinstance(leaf, nn.Parameter) else leaf.detach() for leaf in self.leaves],
        )

    def result(self) -> Tree:
        """The variable for the caller: parameters themselves, copies of plain tensors."""
        return rebuild(
            self.tree,
            [
                leaf if isinstance(leaf, nn.Parameter) else leaf.detach().to(dtype, copy=True)
                for leaf, dtype in zip(self.leaves, self.dtypes, strict=True)
            ],
        )

    def shaped(self, values: Sequence[Tensor]) -> Tree:
        """Other values of the leaves for the caller, in the variable's structure and precision."""
        return rebuild(
            self.tree, [v.to(dtype) for v, dtype in zip(values, self.dtypes, strict=True)]
        )

    def to_double(self) -> bool:
        """Work in double precision, as second derivatives and large penalties ask for.

        Results are returned in the original precision. Returns whether anything changed.
        """
        for name, leaf in zip(self.names, self.leaves, strict=True):
            if isinstance(leaf, nn.Parameter) and leaf.dtype != torch.float64:
                raise VariableError(
                    f"{name} is a {leaf.dtype} parameter, and exact responses need double "
                    "precision: call module.double(), or use first-order steps (upper_lr=..., "
                    "lower_lr=...)"
                )
        before = self.leaves
        self.leaves = [
            leaf if leaf.dtype == torch.float64 else leaf.detach().double().requires_grad_()
            for leaf in before
        ]
        self.tree = rebuild(self.tree, self.leaves)
        return any(old is not new for old, new in zip(before, self.leaves, strict=True))

    # Values -------------------------------------------------------------------------------------

    def values(self) -> list[Tensor]:
        """A copy of the leaves' values."""
        return [leaf.detach().clone() for leaf in self.leaves]

    @torch.no_grad()
    def assign(self, values: Sequence[Tensor]) -> None:
        """Copy values into the leaves."""
        self._reshard()
        for leaf, value in zip(self.leaves, values, strict=True):
            leaf.copy_(value)

    @torch.no_grad()
    def swap(self, values: Sequence[Tensor]) -> None:
        """Exchange the leaves' values with another set, one leaf of extra memory at a time."""
        self._reshard()
        for leaf, value in zip(self.leaves, values, strict=True):
            held = leaf.clone()
            leaf.copy_(value)
            value.copy_(held)

    def _reshard(self) -> None:
        for module in self._gathering:
            module.reshard()

    @torch.no_grad()
    def project(self) -> None:
        """Move the leaves to the nearest points of their domains."""
        if self.bounded:
            for leaf, domain in zip(self.leaves, self.domains, strict=True):
                domain.project_(leaf)

    def vector(self) -> NDArray[np.float64]:
        """All entries as one float64 NumPy vector."""
        return flatten(self.leaves)

    def assign_vector(self, vector: NDArray[np.float64]) -> None:
        """Copy a vector in the layout of :meth:`vector` into the leaves."""
        self.assign(unflatten(vector, self.leaves))

    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Entrywise bounds implied by the domains, in the layout of :meth:`vector`."""
        pairs = [
            domain.bounds(leaf.detach())
            for leaf, domain in zip(self.leaves, self.domains, strict=True)
        ]
        return flatten([low for low, _ in pairs]), flatten([high for _, high in pairs])

    # Gradients ----------------------------------------------------------------------------------

    def clear_gradients(self) -> None:
        """Drop the leaves' gradients."""
        for leaf in self.leaves:
            leaf.grad = None

    def gradients(self) -> list[Tensor]:
        """The gradients of the leaves that have one."""
        return [leaf.grad for leaf in self.leaves if leaf.grad is not None]

    def clip_gradients(self, bound: float) -> None:
        """Scale the gradients, if need be, so that their global norm keeps the bound."""
        norm = global_norm(self.gradients())
        torch.nn.utils.clip_grads_with_norm_(self.leaves, bound, norm)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Keep gradients from flowing into this level.

        In a process group a network's parameters stay as they are: DDP and ``fully_shard`` fix in
        advance which of them take part in a backward pass, so their gradients are computed there,
        and to be dropped.
        """
        leaves = self.leaves
        if initialized():
            leaves = [leaf for leaf in leaves if not is_wrapped(leaf)]
        for leaf in leaves:
            leaf.requires_grad_(False)
        try:
            yield
        finally:
            for leaf in leaves:
                leaf.requires_grad_(True)

    @torch.no_grad()
    def projected_gradient_norm(self) -> Tensor:
        r"""The residual :math:`\|v - \Pi(v - \nabla)\|` of stationarity over the domain."""
        residuals = []
        for leaf, domain in zip(self.leaves, self.domains, strict=True):
            if leaf.grad is None:
                continue
            if isinstance(domain, Reals):
                residuals.append(leaf.grad)
            else:
                residuals.append(leaf - domain.project(leaf - leaf.grad))
        return global_norm(residuals)


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of all the entries together, a 0-d tensor."""
    # Sharded and plain tensors do not mix in one operation.
    kinds = [[each for each in tensors if is_sharded(each) == kind] for kind in (False, True)]
    norms = [_stacked_norm(each) for each in kinds if each]
    if not norms:
        return torch.zeros(())
    return norms[0] if len(norms) == 1 else torch.hypot(norms[0], norms[1].to(norms[0]))


def _stacked_norm(tensors: list[Tensor]) -> Tensor:
    norms = torch._foreach_norm(tensors)
    total = torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))
    return whole(total)


def flatten(tensors: Sequence[Tensor]) -> NDArray[np.float64]:
    """Tensors as one float64 NumPy vector."""
    if not tensors:
        return np.zeros(0)
    parts = [tensor.detach().reshape(-1).to("cpu", torch.float64).numpy() for tensor in tensors]
    return parts[0].copy() if len(parts) == 1 else np.concatenate(parts)


def unflatten(vector: NDArray[np.float64], like: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of :func:`flatten`, in the shapes and dtypes of ``like``."""
    out, start = [], 0
    for tensor in like:
        part = torch.from_numpy(vector[start : start + tensor.numel()])
        out.append(part.reshape(tensor.shape).to(tensor.device, tensor.dtype))
        start += tensor.numel()
    return out
