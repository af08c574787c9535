"""Untuned BLOCC on eighteen small problems with verified optima (float64)."""

from __future__ import annotations

import pytest
import torch

from bilevel import BLOCC, BilevelProblem, Box
from bilevel.problems.known_optima import KNOWN_OPTIMA

#: From the customary start the solver ends in another local optimum of this one.
NEEDS_RESTARTS = {"Colson2002BIPA2"}


def is_solved(solution, known) -> bool:
    error = abs(solution.upper_value - known.upper_value) / max(1.0, abs(known.upper_value))
    return bool(
        error <= 1e-3 and solution.constraint_violation <= 1e-4 and abs(solution.lower_gap) <= 1e-4
    )


@pytest.mark.parametrize("name", sorted(set(KNOWN_OPTIMA) - NEEDS_RESTARTS))
def test_untuned_from_the_customary_start(name):
    known = KNOWN_OPTIMA[name]
    solution = BLOCC().solve(known.problem, known.x0, known.y0)
    assert is_solved(solution, known), str(solution)


@pytest.mark.parametrize("name", sorted(NEEDS_RESTARTS))
def test_restarts_leave_a_local_optimum(name):
    known = KNOWN_OPTIMA[name]
    solution = BLOCC().solve(known.problem, known.x0, known.y0, restarts=5)
    assert is_solved(solution, known), str(solution)
    assert any("best of 6 starts" in note for note in solution.notes)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(KNOWN_OPTIMA))
def test_restarts_solve_all(name):
    known = KNOWN_OPTIMA[name]
    solution = BLOCC().solve(known.problem, known.x0, known.y0, restarts=5)
    assert is_solved(solution, known), str(solution)


def test_restarts_reproduce_with_their_seed():
    known = KNOWN_OPTIMA["Colson2002BIPA2"]
    first, second = (
        BLOCC().solve(known.problem, known.x0, known.y0, restarts=2, seed=7) for _ in range(2)
    )
    assert torch.equal(first.x, second.x)
    assert first.upper_value == second.upper_value


def test_starts_are_left_as_they_were():
    known = KNOWN_OPTIMA["ClarkWesterberg1990a"]
    x0, y0 = known.x0.clone(), known.y0.clone()
    solution = BLOCC().solve(known.problem, x0, y0)
    assert torch.equal(x0, known.x0)
    assert torch.equal(y0, known.y0)
    assert x0.grad is None
    assert not solution.x.requires_grad


def test_single_precision_is_returned_as_it_was_given():
    known = KNOWN_OPTIMA["ClarkWesterberg1990a"]
    solution = BLOCC().solve(known.problem, known.x0.float(), known.y0.float())
    assert solution.x.dtype == torch.float32
    assert float(solution.x) == pytest.approx(1.0, abs=1e-6)
    assert solution.lower_gap < 1e-9


def test_domains_do_as_the_same_constraints():
    """ShimizuAiyoshi1981Ex2 with its bounds on y as a box, and x's order swapped into a dict."""
    known = KNOWN_OPTIMA["ShimizuAiyoshi1981Ex2"]
    problem = BilevelProblem(
        upper=lambda x, y: known.problem.upper(torch.stack([x["a"], x["b"]]), y),
        lower=lambda x, y: known.problem.lower(torch.stack([x["a"], x["b"]]), y),
        upper_constraints=lambda x, y: torch.stack(
            [30 - x["a"] - 2 * x["b"], x["a"] + x["b"] - 25]
        ),
        upper_domain={"b": Box(None, 15.0)},
        lower_domain=Box(0.0, 10.0),
    )
    x0 = {"a": known.x0[0], "b": known.x0[1]}
    solution = BLOCC().solve(problem, x0, known.y0)
    assert solution.upper_value == pytest.approx(225.0, abs=1e-2)
    assert float(solution.x["a"]) == pytest.approx(20.0, abs=1e-3)
    assert solution.constraint_violation < 1e-8
