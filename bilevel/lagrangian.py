"""The lower level's Lagrangian at a response, from which v(x) and its gradient are read."""

from __future__ import annotations

from bilevel.calculus import Array, gradient
from bilevel.evaluation import Evaluation
from bilevel.state import Track


def lagrangian(evaluation: Evaluation, track: Track) -> tuple[float, Array]:
    """The lower Lagrangian's value and x-gradient at the y in the leaves and a track's multipliers.

    At a response its value is v(x), relaxed constraints included: μ is the weight there.
    """
    with evaluation.state.lower.frozen():
        total = evaluation.lower(through_x=True) + evaluation.lagrangian_terms(
            track.inequality_multipliers, track.equality_multipliers
        )
        return float(total.detach()), gradient(total, evaluation.state.upper.leaves)
