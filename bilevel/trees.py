"""Trees of tensors: one tensor, or (nested) dicts, lists, tuples of them; ``None`` is empty."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from bilevel.errors import VariableError
from bilevel.options import described

Tree: TypeAlias = Any


def named_leaves(tree: Tree, name: str) -> list[tuple[str, Tensor]]:
    """The tree's tensors, depth first, each with the expression that reaches it: ``x['w'][0]``.

    Raises
    ------
    VariableError
        a leaf is not a tensor of floating-point numbers.
    """
    if tree is None:
        return []
    if isinstance(tree, Tensor):
        _check_tensor(tree, name)
        return [(name, tree)]
    if isinstance(tree, Mapping):
        return [pair for key, sub in tree.items() for pair in named_leaves(sub, f"{name}[{key!r}]")]
    if isinstance(tree, Sequence) and not isinstance(tree, str | bytes):
        return [pair for i, sub in enumerate(tree) for pair in named_leaves(sub, f"{name}[{i}]")]
    raise VariableError(
        f"{name} is a {type(tree).__name__}; a variable is a torch.Tensor, or a (nested) dict, "
        "list or tuple of them" + _hint(tree, name)
    )


def _check_tensor(tensor: Tensor, name: str) -> None:
    if tensor.is_complex():
        raise VariableError(f"{name} is complex; split it: pass torch.view_as_real({name})")
    if not tensor.is_floating_point():
        raise VariableError(
            f"{name} holds {tensor.dtype} values; a level's variable must be floating point: "
            f"pass {name}.double() or {name}.float()"
        )
    if tensor.is_meta:
        raise VariableError(
            f"{name} is on the meta device, so it has no values to start from: initialise it with "
            "to_empty(device=...) and its own initialisation"
        )
    if tensor.layout != torch.strided:
        raise VariableError(f"{name} has layout {tensor.layout}: pass {name}.to_dense()")


def _hint(tree: Tree, name: str) -> str:
    if isinstance(tree, torch.nn.Module):
        return f": pass dict({name}.named_parameters())"
    if hasattr(tree, "__next__"):
        return ": a generator is used up after one pass, pass dict(module.named_parameters())"
    if isinstance(tree, int | float) or hasattr(tree, "__array__"):
        return f": pass torch.as_tensor({name})"
    if isinstance(tree, str):
        return ": of named parameters, pass dict(module.named_parameters())"
    return ""


def rebuild(tree: Tree, leaves: Sequence[Any]) -> Tree:
    """A tree of the same structure with other leaves."""
    iterator = iter(leaves)
    return tree_map(lambda _: next(iterator), tree)


def tree_map(function: Callable[[Tensor], Any], tree: Tree) -> Tree:
    """Apply a function to every tensor of a tree, keeping the structure."""
    if tree is None:
        return None
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        return {key: tree_map(function, sub) for key, sub in tree.items()}
    if not isinstance(tree, Sequence) or isinstance(tree, str | bytes):
        raise VariableError(f"it holds {described(tree)}")
    parts = [tree_map(function, sub) for sub in tree]
    if hasattr(tree, "_fields"):  # a namedtuple takes its fields one by one
        return type(tree)(*parts)
    return tuple(parts) if isinstance(tree, tuple) else parts
