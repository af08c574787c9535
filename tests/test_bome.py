"""BOME: its step by hand, its answer on a toy, what it refuses."""

from __future__ import annotations

import pytest
import torch
from networks import classification, losses, network
from toys import negative_toy, scalar

from bilevel import BOME, PBGD, BilevelProblem
from bilevel.callbacks import Checkpoint
from bilevel.errors import DependenceError, NotApplicableError, OptionError


def test_a_step_is_the_one_written_by_hand():
    solver = BOME(upper_lr=0.1, lower_lr=0.05, inner_steps=1, control=0.5)
    x, y, response = 2.0, 3.0, 3.0
    state = solver.init(negative_toy(), scalar(x), scalar(y))
    state.measuring = True
    penalties = []
    for _ in range(60):
        solver.step(negative_toy(), state)
        response -= 0.05 * 2 * (response - x + 1)
        slopes = 2 * x, 10.0
        at, there = 2 * (y - x + 1), 2 * (response - x + 1)
        gap = -at + there, at
        square = gap[0] ** 2 + gap[1] ** 2
        penalty = max(0.5 - (slopes[0] * gap[0] + slopes[1] * gap[1]) / square, 0.0)
        x, y = x - 0.1 * (slopes[0] + penalty * gap[0]), y - 0.05 * (slopes[1] + penalty * gap[1])
        assert float(state.x) == pytest.approx(x, rel=1e-12)
        assert float(state.y) == pytest.approx(y, rel=1e-12)
        assert state.record["penalty"] == pytest.approx(max(penalty, 1.2e-38), rel=1e-6)
        penalties.append(penalty)
    assert min(penalties) == 0.0 < max(penalties)


def test_the_toy_ends_at_its_optimum_where_value_function_free_does_not():
    solver = BOME(upper_lr=0.01, lower_lr=0.1, inner_steps=20)
    solution = solver.solve(negative_toy(), scalar(2.0), scalar(3.0), max_steps=800)
    assert float(solution.x) == pytest.approx(-5.0, abs=0.02)
    assert float(solution.y) == pytest.approx(-6.0, abs=0.3)
    assert solution.history["penalty"].iloc[-1] > 15


def test_features_are_computed_once_and_give_the_same_iterates():
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(12, 4, generator=generator), torch.randint(3, (12,), generator=generator)
    plain, shared = network(), network()
    batch = (batch[0].to(plain.head.weight.dtype), batch[1])
    calls = []

    def features(x, batch):
        calls.append(1)
        return shared.backbone(batch[0])

    problem = BilevelProblem(
        upper=lambda hidden, y, batch: losses(shared.head(hidden), batch[1])[0],
        lower=lambda hidden, y, batch: losses(shared.head(hidden), batch[1])[1],
        features=features,
    )
    solver = BOME(upper_lr=0.1, lower_lr=0.1, inner_steps=2)
    for net, stated in ((plain, classification(plain)), (shared, problem)):
        state = solver.init(stated, *net.levels())
        for _ in range(3):
            solver.step(stated, state, batch, batch)
    for one, other in zip(plain.parameters(), shared.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert len(calls) == 3


def test_refusals():
    with pytest.raises(OptionError, match="leave penalty= out"):
        BOME(penalty=3.0, upper_lr=0.1, lower_lr=0.1)
    with pytest.raises(OptionError, match="give lower_lr="):
        BOME(upper_lr=0.1)
    constrained = BilevelProblem(
        upper=lambda x, y: x * y,
        lower=lambda x, y: y**2,
        lower_constraints=lambda x, y: (y - x)[None],
    )
    with pytest.raises(NotApplicableError, match="use BLOCC"):
        BOME(upper_lr=0.1, lower_lr=0.1).init(constrained, scalar(0.0), scalar(0.0))


def test_an_upper_objective_without_x_is_followed_through_the_gap():
    """f = (y - 3)^2 / 2, g = (y - x)^2 / 2: x = y = 3, and f does not mention x."""
    problem = BilevelProblem(
        upper=lambda x, y: 0.5 * (y - 3.0) ** 2, lower=lambda x, y: 0.5 * (y - x) ** 2
    )
    solver = BOME(upper_lr=0.1, lower_lr=0.1, inner_steps=10)
    solution = solver.solve(problem, scalar(0.0), scalar(0.0), max_steps=2000)
    assert float(solution.x) == pytest.approx(3.0, abs=1e-2)
    assert float(solution.y) == pytest.approx(3.0, abs=1e-2)


def test_where_nothing_mentions_x_that_is_said():
    problem = BilevelProblem(upper=lambda x, y: y**2, lower=lambda x, y: (y - 1) ** 2)
    with pytest.raises(DependenceError, match="reaches x"):
        BOME(upper_lr=0.1, lower_lr=0.1).solve(problem, scalar(0.0), scalar(0.0), max_steps=3)


def test_without_a_penalty_the_run_goes_on_while_y_moves():
    """x starts at its optimum and λ at 0; y has all of its way to go."""
    problem = BilevelProblem(
        upper=lambda x, y: 0.5 * (y - 1.0) ** 2 + x**2,
        lower=lambda x, y: 0.5 * (y - 1.0) ** 2 + x**2,
    )
    solver = BOME(upper_lr=0.1, lower_lr=0.1, inner_steps=5, control=0.1)
    solution = solver.solve(problem, scalar(0.0), scalar(4.0), max_steps=2000)
    assert solution.steps > 10
    assert float(solution.y) == pytest.approx(1.0, abs=1e-4)


def test_the_penalty_is_kept_in_a_checkpoint(tmp_path):
    solver, file = BOME(upper_lr=0.01, lower_lr=0.1, inner_steps=5), tmp_path / "run.pt"
    start = (negative_toy(), scalar(2.0), scalar(3.0))
    whole = solver.solve(*start, max_steps=50, callbacks=[Checkpoint(file)])
    resumed = solver.solve(*start, max_steps=50, resume=file)
    assert whole.parts["penalty"] == resumed.parts["penalty"]
    assert resumed.stationarity == whole.stationarity


def test_an_empty_x_is_refused_where_y_moves_with_it():
    problem = BilevelProblem(upper=lambda x, y: y**2, lower=lambda x, y: (y - 1) ** 2)
    joint = PBGD(variant="joint", upper_lr=0.1, lower_lr=0.1)
    for solver in (BOME(upper_lr=0.1, lower_lr=0.1), joint):
        with pytest.raises(NotApplicableError, match="x is empty"):
            solver.init(problem, [], scalar(0.0))
