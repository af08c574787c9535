"""The quasi-Newton outer step's first trial point and its tolerances."""

from __future__ import annotations

import pytest
import torch

from bilevel import PBGD, BilevelProblem, Box, QuasiNewton
from bilevel.errors import OptionError


def scaled_problem(factor, visited):
    """f = factor·(x - 3)² at y = x, whose value is factor·(x - 3)² as well."""

    def upper(x, y):
        visited.append(float(x.detach()))
        return factor * ((y - 3.0) ** 2).sum()

    return BilevelProblem(
        upper=upper, lower=lambda x, y: ((y - x) ** 2).sum(), upper_domain=Box(-100.0, 100.0)
    )


@pytest.mark.parametrize("factor", [1e-4, 1.0, 1e4])
def test_the_first_trial_point_is_at_distance_one_whatever_the_scale_of_f(factor):
    visited: list[float] = []
    start = torch.zeros(1, dtype=torch.float64)
    found = PBGD(penalty=1e6 * max(factor, 1.0), outer=QuasiNewton(tolerance=1e-9 * factor)).solve(
        scaled_problem(factor, visited), start, start
    )
    assert next(x for x in visited if x != 0.0) == pytest.approx(1.0)
    assert float(found.x) == pytest.approx(3.0, abs=1e-5)


def test_a_value_tolerance_ends_the_search_early():
    start = torch.zeros(1, dtype=torch.float64)
    ends = []
    for share in (0.0, 0.5):
        problem = BilevelProblem(
            upper=lambda x, y: ((y - 3.0) ** 4).sum() + 1.0,
            lower=lambda x, y: ((y - x) ** 2).sum(),
            upper_domain=Box(-100.0, 100.0),
        )
        outer = QuasiNewton(value_tolerance=share)
        ends.append(PBGD(penalty=1e5, outer=outer).solve(problem, start, start).upper_value)
    assert ends[0] == pytest.approx(1.0, abs=1e-6)
    assert 1.0 + 1e-4 < ends[1] < 50.0


@pytest.mark.parametrize("share", [-1e-3, 1.0, float("nan")])
def test_a_value_tolerance_is_a_share(share):
    with pytest.raises(OptionError, match="value_tolerance="):
        QuasiNewton(value_tolerance=share)
