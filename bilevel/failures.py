"""What a failed step leaves behind: its cause by name, and the last good variables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor

from bilevel.distributed import own_shard, world_size
from bilevel.errors import InfeasibleError, NonFiniteError, ObjectiveError, ResponseError
from bilevel.evaluation import Evaluation
from bilevel.problem import BilevelProblem
from bilevel.state import State


@contextmanager
def accounted(
    problem: BilevelProblem, state: State, evaluations: list[Evaluation]
) -> Iterator[None]:
    """Make a step such that a failure names its cause and keeps the last good variables.

    First-order steps are checked before each update, so their variables are good as they are. Exact
    responses try points, so there the variables return to where the step began.

    Raises
    ------
    NonFiniteError
        naming the function, the tensor and the step; its ``state`` holds the last good variables.
    ObjectiveError
        if the number of constraints depends on the point.
    InfeasibleError, ResponseError
        of a response, with the step.
    """
    before = _copies(state) if state.response.exact else []
    try:
        yield
    except NonFiniteError as error:
        cause = _cause(problem, state, evaluations)
        _restore(before)
        found = str(error) if error.state is not None else f"in step {state.step}: {error}"
        if cause is not None and not found.startswith(cause):
            found = f"{cause}, {found}" if error.state is None else f"{cause}: {found}"
        raise NonFiniteError(f"{found.rstrip('.')}. {_remedy(state)}", state) from error
    except (RuntimeError, ValueError, IndexError) as error:
        counts = _constraint_counts(problem, state)
        _restore(before)
        _require_equal(counts + _constraint_counts(problem, state), error)
        if isinstance(error, InfeasibleError | ResponseError):
            error.args = (f"in step {state.step}: {error}",)
        raise
    except BaseException:
        _restore(before)
        raise


def _copies(state: State) -> list[tuple[Tensor, Tensor]]:
    original = state.original.values if state.original is not None else None
    tensors = [*state.upper.leaves, *state.lower.leaves, *(original or [])]
    return [(tensor, tensor.detach().clone()) for tensor in tensors]


@torch.no_grad()
def _restore(copies: list[tuple[Tensor, Tensor]]) -> None:
    for tensor, copy in copies:
        tensor.copy_(copy)


def _remedy(state: State) -> str:
    lost = [
        name
        for level in (state.upper, state.lower)
        for name, leaf in zip(level.names, level.leaves, strict=True)
        if not bool(torch.isfinite(own_shard(leaf.detach())).all())
    ]
    if lost:
        return (
            f"{', '.join(lost[:4])} had become so in an earlier update, which overflowed or was "
            "not checked (outside the CPU only logged steps are): lower the learning rate, find "
            "the step with log_every=1, and resume from a Checkpoint"
        )
    return (
        "Try a smaller learning rate or penalty, domains that keep the variables where the "
        "functions are defined, or check the batch. The last good variables are in the error's "
        ".state"
    )


# Causes -----------------------------------------------------------------------------------------


def _cause(problem: BilevelProblem, state: State, evaluations: list[Evaluation]) -> str | None:
    """The function or gradient that is not finite where the step failed, if it shows again."""
    if world_size() > 1:  # the other processes would not take part in a network's backward pass
        return None
    for at in _points(state):
        for each in evaluations:
            fresh = Evaluation(problem, state, each.upper_batch, each.lower_batch)
            # The step's own error says more than a failed diagnosis.
            with at(), suppress(Exception):
                found = _not_finite(problem, state, fresh)
                if found is not None:
                    return found
    return None


@torch.enable_grad()
def _not_finite(problem: BilevelProblem, state: State, evaluation: Evaluation) -> str | None:
    values = {
        **_constraints(problem, state),
        "upper (f)": evaluation.upper(through_x=True),
        "lower (g)": evaluation.lower(through_x=True),
    }
    for name, value in values.items():
        bad = torch.nonzero(~torch.isfinite(value.detach()))
        if len(bad):
            entry = f"entry {int(bad[0])} of " if value.ndim else ""
            return f"{entry}{name} is {float(value.detach()[tuple(bad[0])])}"
    leaves = state.upper.leaves + state.lower.leaves
    labels = state.upper.names + state.lower.names
    for name, value in values.items():
        if value.requires_grad:
            slopes = torch.autograd.grad(value.sum(), leaves, retain_graph=True, allow_unused=True)
            for label, slope in zip(labels, slopes, strict=True):
                if slope is not None and not bool(torch.isfinite(slope).all()):
                    return f"the gradient of {name} with respect to {label} is not finite"
    return None


def _require_equal(counts: list[tuple[str, int]], error: Exception) -> None:
    for name, count in counts:
        others = {other for kind, other in counts if kind == name and other != count}
        if others:
            raise ObjectiveError(
                f"{name} returned {count} entries at one point and {others.pop()} at another: "
                "return every constraint at every (x, y), also those that hold"
            ) from error


def _constraint_counts(problem: BilevelProblem, state: State) -> list[tuple[str, int]]:
    """The number of constraints of each kind at (x, y_γ) and (x, y_g)."""
    found: list[tuple[str, int]] = []
    for at in _points(state):
        with torch.no_grad(), at(), suppress(Exception):
            found += [(name, len(value)) for name, value in _constraints(problem, state).items()]
    return found


def _constraints(problem: BilevelProblem, state: State) -> dict[str, Tensor]:
    x, y = state.upper.tree, state.lower.tree
    values = {
        "lower_constraints (c)": problem.inequalities(x, y),
        "lower_equalities (h)": problem.equalities(x, y),
        "upper_constraints (C)": problem.upper_inequalities(x, y),
    }
    return {name: value for name, value in values.items() if value is not None}


def _points(state: State) -> list[Callable[[], AbstractContextManager[Any]]]:
    """Contexts that put y_γ, and where it is followed y_g, into the lower level's leaves."""
    return [nullcontext] if state.original is None else [nullcontext, state.at_original]
