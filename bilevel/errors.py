"""Named errors: each says what was found, what was expected, and what to try."""

from __future__ import annotations

from typing import Any


class BilevelError(Exception):
    """Base of every error that this library raises on purpose."""


class BiasWarning(UserWarning):
    """PBGD-Free's omitted term outweighs the direction that it follows."""


class OptionError(BilevelError, ValueError):
    """A hyperparameter is out of range or of the wrong kind."""


class ProblemError(BilevelError, ValueError):
    """The problem's definition is incomplete or contradictory."""


class VariableError(BilevelError, ValueError):
    """A variable is not a tree of finite floating-point tensors, or its structure changed."""


class DomainError(BilevelError, ValueError):
    """A domain is empty, does not fit its variable, or does not contain the start."""


class ObjectiveError(BilevelError, ValueError):
    """An objective or constraint returned something that is not the tensor it should be."""


class DependenceError(ObjectiveError):
    """An objective does not depend on the variable it should be minimised over."""


class NotApplicableError(BilevelError, ValueError):
    """The method cannot solve a problem of this form; the message names one that can."""


class ResponseError(BilevelError, RuntimeError):
    """A lower-level solver stopped before it reached its tolerance."""


class InfeasibleError(BilevelError, ValueError):
    """The lower level has no feasible point at the current x.

    Attributes
    ----------
    certificate
        multipliers proving infeasibility (a Farkas vector), where the solver gave one.
    """

    def __init__(self, message: str, certificate: Any = None) -> None:
        super().__init__(message)
        self.certificate = certificate


class _StoppedRun(BilevelError, RuntimeError):
    def __init__(self, message: str, state: Any = None, history: Any = None) -> None:
        super().__init__(message)
        self.state = state
        self.history = history


class NonFiniteError(_StoppedRun):
    """A value or gradient became NaN or infinite; the message names it and the step.

    Attributes
    ----------
    state
        the state with the last good variables: ``error.state.x``, ``error.state.y``.
    history
        the records logged so far, a ``pandas.DataFrame`` (``None`` inside a bare step).
    """


class DivergenceError(_StoppedRun):
    """The iterates ran away.

    Attributes
    ----------
    state
        the state that ran away.
    history
        the records that show how, a ``pandas.DataFrame``.
    """


class CheckpointError(BilevelError, ValueError):
    """A checkpoint is missing, damaged, or of another solver, variables or number of processes."""


class DatasetError(BilevelError, RuntimeError):
    """A data set could not be found, downloaded, verified or parsed."""


class MissingExtraError(BilevelError, ImportError):
    """An optional dependency is not installed; the message says which extra brings it."""
