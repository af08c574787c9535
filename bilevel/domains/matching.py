"""Which domain belongs to which tensor of a variable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from torch import Tensor

from bilevel.domains.base import Domain
from bilevel.domains.boxes import Reals
from bilevel.errors import DomainError
from bilevel.trees import Tree, named_leaves

DomainTree: TypeAlias = Domain | Mapping[str, "DomainTree"] | Sequence["DomainTree"] | None


def domains_of_leaves(domain: DomainTree, tree: Tree, name: str = "variable") -> list[Domain]:
    """The domain of each tensor of a variable, in the order of :func:`bilevel.trees.named_leaves`.

    Parameters
    ----------
    domain : Domain, None, or a (nested) dict, list or tuple of them
        Follows the structure of ``tree``. A single domain holds for each tensor below it by
        itself; ``None``, or a key left out of a dict, means no restriction.
    tree : tree of tensors
        The variable.
    name : str
        What the caller calls the variable, for messages.

    Raises
    ------
    DomainError
        If ``domain`` names a part that the variable lacks, or is of another structure.
    VariableError
        If a leaf of the variable is not a floating-point tensor.
    """
    if domain is None or isinstance(domain, Domain):
        each = Reals() if domain is None else domain
        return [each] * len(named_leaves(tree, name))
    if isinstance(domain, Mapping):
        return _domains_of_mapping(domain, tree, name)
    if isinstance(domain, list | tuple):
        return _domains_of_sequence(domain, tree, name)
    raise DomainError(
        f"the domain of {name} is {domain!r}; expected a Domain such as Box(0.0, 1.0), None, or a "
        "dict, list or tuple of them"
    )


def _domains_of_mapping(domain: Mapping[str, DomainTree], tree: Tree, name: str) -> list[Domain]:
    if not isinstance(tree, Mapping):
        raise DomainError(f"the domain of {name} is a dict, but {name} is {_kind(tree)}")
    for key in domain:
        if key not in tree:
            raise DomainError(
                f"the domain of {name} names {key!r}, which {name} lacks; "
                f"it has {', '.join(map(repr, tree)) or 'no keys'}"
            )
    return [
        found
        for key, sub in tree.items()
        for found in domains_of_leaves(domain.get(key), sub, f"{name}[{key!r}]")
    ]


def _domains_of_sequence(domain: Sequence[DomainTree], tree: Tree, name: str) -> list[Domain]:
    if isinstance(tree, Tensor | str | bytes) or not isinstance(tree, Sequence):
        raise DomainError(
            f"the domain of {name} is a {type(domain).__name__}, but {name} is {_kind(tree)}"
        )
    if len(domain) != len(tree):
        raise DomainError(
            f"the domain of {name} has {len(domain)} parts and {name} has {len(tree)}; "
            "give None for a part without restriction"
        )
    return [
        found
        for i, (part, sub) in enumerate(zip(domain, tree, strict=True))
        for found in domains_of_leaves(part, sub, f"{name}[{i}]")
    ]


def _kind(tree: Tree) -> str:
    return "a single tensor" if isinstance(tree, Tensor) else f"a {type(tree).__name__}"
