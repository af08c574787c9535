"""What every lower-level response solver is asked to do."""

from __future__ import annotations

from abc import ABC, abstractmethod

from bilevel.calculus import Array
from bilevel.evaluation import Evaluation
from bilevel.problem import BilevelProblem
from bilevel.state import State, Track


class Response(ABC):
    r"""Solves the lower level at a fixed x, from where it stood last.

    Asked with ``weight`` w, it moves the lower level's leaves towards

    .. math:: \operatorname*{arg\,min}_{y \in Y} \{\, w f(x, y) + g(x, y) :
        c(x, y) \le 0,\; h(x, y) = 0 \,\}

    and leaves the multipliers of c and h, at the scale of this objective, in the track. w = 0 gives
    the original response y_g, w = 1/γ the perturbed response y_γ.
    """

    #: Whether one call ends at the response itself (to solver accuracy) rather than nearer to it.
    exact: bool = False

    def start(self, problem: BilevelProblem, state: State, track: Track) -> None:
        """Prepare a track: optimiser, multipliers. Called once before the first ``update``."""
        return None

    @abstractmethod
    def update(
        self,
        problem: BilevelProblem,
        state: State,
        track: Track,
        weight: float,
        evaluations: list[Evaluation],
    ) -> None:
        """Move the lower level's leaves and the track's multipliers, in place.

        ``evaluations`` holds the step's micro-batches (one entry without accumulation).
        """

    def linearised_step(
        self,
        problem: BilevelProblem,
        state: State,
        penalty: float,
        slope: Array,
        proximal: float,
    ) -> bool:
        r"""Solve the difference-of-convex subproblem, where the problem knows how.

        .. math:: \min_{x, y}\; f + \gamma\,[g - \langle s, x \rangle]
            + \tfrac{\rho}{2}\|x - x_k\|^2 \quad\text{s.t. all constraints}

        Returns
        -------
            Whether it did, with the solution in both levels' leaves.
        """
        return False


def fresh_track(response: Response, problem: BilevelProblem, state: State) -> Track:
    """A track that owes nothing to a run, ready for the response's first ``update``."""
    track = Track()
    response.start(problem, state, track)
    return track


def residual_name(weight: float) -> str:
    """The column of the history that holds the residual of a response of this weight."""
    return "lower_residual" if weight > 0.0 else "original_residual"
