"""The bilevel program: its form, its responses' optimality, and its hypergradient."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bilevel import BLOCC, DifferenceOfConvex, Exact, Status
from bilevel.callbacks import Checkpoint
from bilevel.errors import DomainError, OptionError, ProblemError, VariableError
from bilevel.evaluation import Evaluation
from bilevel.problems.transport import (
    PlanLimits,
    TransportNetwork,
    nine_node,
    seville,
    seville_start,
    three_node,
    transport_problem,
    transport_start,
)
from bilevel.schedules import Geometric
from bilevel.stationarity import fresh_stationarity
from bilevel.verification import fresh_value, verifying_response

GROUPINGS = ("destinations", "pairs")


def state_at(network: TransportNetwork, capacity: np.ndarray, penalty: float, grouping: str):
    problem = transport_problem(network, commodities=grouping)
    start = transport_start(network, capacity, commodities=grouping)
    solver = BLOCC(penalty=penalty, upper_lr=1e-3)
    state = solver.init(problem, *start)
    evaluation = Evaluation(problem, state)
    solver.respond(problem, state, penalty, [evaluation])
    return problem, solver, state, evaluation


@pytest.mark.real_data
def test_seville_by_pairs_has_the_variables_and_constraints_of_the_source() -> None:
    network = seville()
    problem = transport_problem(network, commodities="pairs")
    a, y = transport_start(network, seville_start(network), commodities="pairs")
    assert len(a) + y["share"].numel() + y["flow"].numel() == 49_216
    constraints = (problem.inequalities(a, y), problem.equalities(a, y))
    assert sum(len(each) for each in constraints) == 13_336


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("weight", [0.0, 0.25])
def test_a_response_and_its_multipliers_satisfy_the_optimality_conditions(
    grouping: str, weight: float
) -> None:
    network = nine_node()
    capacity = np.random.default_rng(0).uniform(1.0, 9.0, 30)
    problem, _, state, _ = state_at(network, capacity, 4.0, grouping)
    track, y = state.perturbed, {name: leaf.clone() for name, leaf in state.y.items()}
    if weight == 0:
        with state.at_original() as track:
            y = {name: leaf.clone() for name, leaf in state.y.items()}
    a = state.x
    for leaf in y.values():
        leaf.requires_grad_()
    c, h = problem.inequalities(a, y), problem.equalities(a, y)
    assert float(h.detach().abs().max()) < 1e-9
    assert float(c.detach().max()) < 1e-8
    mu, nu = track.inequality_multipliers, track.equality_multipliers
    assert float(mu.min()) >= 0.0
    assert float((mu * c.detach()).abs().max()) < 1e-6
    f, g = problem.upper_value(a, y, None), problem.lower_value(a, y, None)
    (weight * f + g + torch.dot(mu, c) + torch.dot(nu, h)).backward()
    assert float(y["share"].grad.abs().max()) < 1e-5
    assert float(y["flow"].grad.min()) > -1e-6
    assert float((y["flow"].detach() * y["flow"].grad).abs().max()) < 1e-6


def test_both_groupings_give_the_same_response() -> None:
    capacity = np.random.default_rng(2).uniform(1.0, 9.0, 30)
    values, shares = [], []
    for grouping in GROUPINGS:
        _, _, state, evaluation = state_at(nine_node(), capacity, 4.0, grouping)
        values.append([each.item() for each in evaluation.pair()])
        shares.append(state.y["share"].numpy())
    np.testing.assert_allclose(*values, rtol=1e-7)
    np.testing.assert_allclose(*shares, atol=1e-7)


def test_the_direction_is_the_gradient_of_the_penalised_value() -> None:
    network, penalty = nine_node(), 5.0
    capacity = np.random.default_rng(3).uniform(2.0, 9.0, 30)

    def at(a: np.ndarray) -> tuple[float, np.ndarray]:
        problem, solver, state, evaluation = state_at(network, a, penalty, "destinations")
        state.upper.clear_gradients()
        solver.outer_gradient(problem, state, penalty, [evaluation])
        f, g = (each.item() for each in evaluation.pair())
        with state.at_original():
            v = evaluation.lower().item()
        return f + penalty * (g - v), state.upper.leaves[0].grad.numpy()

    gradient = at(capacity)[1]
    for link in (2, 11, 25):
        step = np.zeros(30)
        step[link] = 1e-3
        slope = (at(capacity + step)[0] - at(capacity - step)[0]) / 2e-3
        assert gradient[link] == pytest.approx(slope, abs=2e-3)


def test_the_general_response_agrees() -> None:
    network = three_node()
    a, y = transport_start(network, [0.7, 0.6, 0.5, 0.4, 0.3, 0.35])
    found = []
    for response in (None, Exact()):
        solver = BLOCC(penalty=3.0, upper_lr=1e-9, response=response)
        found.append(solver.solve(transport_problem(network), a, y, max_steps=1))
    assert found[1].upper_value == pytest.approx(found[0].upper_value, abs=1e-6)
    assert found[1].lower_value == pytest.approx(found[0].lower_value, abs=1e-6)


def test_a_run_at_one_penalty_converges_to_a_stationary_point() -> None:
    network = three_node()
    solver = BLOCC(penalty=20.0, outer=DifferenceOfConvex(extrapolation=0.5))
    # Multipliers of the least capacities are as accurate as the tolerance is small beside them.
    problem = transport_problem(network, PlanLimits(floor=1e-3))
    solution = solver.solve(problem, *transport_start(network, 0.1))
    assert solution.status is Status.CONVERGED
    assert solution.stationarity < 1e-4
    assert solution.constraint_violation < 1e-9
    assert 0.0 <= solution.lower_gap < 1e-2


def test_extrapolated_steps_go_on_bit_for_bit(tmp_path: Path) -> None:
    network = three_node()
    problem, start = transport_problem(network), transport_start(network, 0.3)
    solver = BLOCC(
        penalty=Geometric(1.0, 50.0, steps=12), outer=DifferenceOfConvex(extrapolation=0.9)
    )
    whole = solver.solve(problem, *start, max_steps=12)
    file = tmp_path / "half.pt"
    solver.solve(problem, *start, max_steps=6, callbacks=[Checkpoint(file)])
    resumed = solver.solve(problem, *start, max_steps=12, resume=file)
    assert torch.equal(whole.x, resumed.x)
    assert torch.equal(whole.y["flow"], resumed.y["flow"])


def test_upper_limits_are_constraints_of_the_problem() -> None:
    network = three_node()
    limits = PlanLimits(budget=20.0, least_share=[0.1, 0, 0, 0, 0, 0])
    problem = transport_problem(network, limits)
    a, y = transport_start(network, 1.0)
    exceeded = problem.upper_inequalities(a, y)
    spent = float(network.construction_cost.sum()) - 20.0
    np.testing.assert_allclose(exceeded.numpy(), [spent, 0.1 - 0.5])


def test_variables_of_another_form_are_refused() -> None:
    network = three_node()
    problem = transport_problem(network)
    a, y = transport_start(network, 1.0)
    solver = BLOCC(outer=DifferenceOfConvex())
    with pytest.raises(DomainError, match="does not broadcast"):
        solver.solve(problem, torch.ones(5, dtype=torch.float64), y)
    with pytest.raises(DomainError, match="the domain of y is a dict"):
        solver.solve(problem, a, y["flow"])
    with pytest.raises(VariableError, match="see transport_start"):
        solver.solve(problem, a, {**y, "flow": y["flow"][:, :2]})
    with pytest.raises(DomainError):
        solver.solve(problem, -a, y)
    for capacity in (-1.0, np.nan, "many", [1.0, 2.0]):
        with pytest.raises(ProblemError, match="capacity"):
            transport_start(network, capacity)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="commodities='origins'"):
        transport_problem(network, commodities="origins")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="extrapolation=1"):
        DifferenceOfConvex(extrapolation=1)


def test_the_residual_in_capacities_and_flows_is_at_most_what_the_last_step_leaves() -> None:
    # 72 conservation rows and some 250 flows at zero: far more multipliers than are determined.
    network = nine_node()
    problem = transport_problem(network)
    outer = DifferenceOfConvex(extrapolation=0.9)
    solver = BLOCC(penalty=Geometric(0.3, 500.0, steps=40), outer=outer)
    state = solver.init(problem, *transport_start(network))
    for _ in range(40):
        solver.step(problem, state)
    response = verifying_response(problem, state)
    assert response is not None
    slope = fresh_value(problem, state, response).gradient
    found = fresh_stationarity(problem, state, response, 500.0, slope)
    left = outer.stationarity(problem, state, 500.0, slope)
    assert left is not None
    assert 0.0 < found.residual <= left.residual * (1 + 1e-6)
