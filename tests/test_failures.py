"""A failing run names the function, the tensor and the step, and keeps what was good."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch
from careless import CONSTRAINED, SOLVERS, c, f, g, problem, refused, solve, vector
from torch import nn

from bilevel import BLOCC, PBGD, BilevelProblem, DifferenceOfConvex, MaxMin, PBGDFree, QuasiNewton
from bilevel.callbacks import Checkpoint
from bilevel.errors import (
    BilevelError,
    DependenceError,
    DivergenceError,
    InfeasibleError,
    NonFiniteError,
    NotApplicableError,
    ResponseError,
)
from bilevel.solution import Status

EVERY = {
    **SOLVERS,
    "QuasiNewton": BLOCC(outer=QuasiNewton()),
    "DifferenceOfConvex": BLOCC(penalty=10.0, outer=DifferenceOfConvex()),
    "exact, first order": PBGD(penalty=10.0, upper_lr=0.01),
}
LABELS = {"upper": "upper (f)", "lower": "lower (g)"}


def assert_usable(error: NonFiniteError | DivergenceError) -> None:
    """The error's state has finite variables to go on from, and the history led there."""
    state = error.state
    assert all(bool(torch.isfinite(leaf).all()) for leaf in state.upper.leaves + state.lower.leaves)
    assert all(leaf.requires_grad for leaf in state.upper.leaves + state.lower.leaves)
    assert isinstance(error.history, pd.DataFrame)
    assert list(error.history.get("step", [])) == list(range(1, state.step + 1))


# Not finite -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("solver", EVERY)
@pytest.mark.parametrize("name", LABELS)
def test_an_objective_that_is_not_finite_at_the_start_is_named(name, solver, value):
    loss = f if name == "upper" else g
    broken = problem(**{name: lambda x, y: loss(x, y) + value})
    x0, y0 = vector(0.0, 0.0), vector(0.0, 0.0)
    with refused(
        NonFiniteError, f"{LABELS[name]} is {value}", "in step 0", keeping=(x0, y0)
    ) as caught:
        solve(EVERY[solver], x0, y0, problem=broken)
    assert_usable(caught.value)
    assert torch.equal(caught.value.state.x.detach(), x0)
    assert torch.equal(caught.value.state.y.detach(), y0)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", LABELS)
def test_an_objective_that_ceases_to_be_finite_on_the_way_is_named_with_the_step(name, solver):
    loss = f if name == "upper" else g

    def cliff(x, y):  # no value beyond x = 0.5, and the solution is at 1.5
        return loss(x, y) + torch.where(x > 0.5, math.nan, 0.0).sum()

    with refused(NonFiniteError, f"{LABELS[name]} is nan", "smaller learning rate") as caught:
        solve(solver, problem=problem(**{name: cliff}), max_steps=300, log_every=1)
    assert f"in step {caught.value.state.step}" in str(caught.value)
    assert_usable(caught.value)


@pytest.mark.parametrize("solver", ["PBGD", "MaxMin", "SQP", "QuasiNewton", "exact, first order"])
@pytest.mark.parametrize("level", ["x", "y"])
@pytest.mark.parametrize("name", LABELS)
def test_a_gradient_that_is_not_finite_is_named_with_its_tensor(name, level, solver):
    def steep(loss):  # √ has a value at zero and no derivative
        return lambda x, y: (
            loss(x["w"], y["w"]) + (x if level == "x" else y)["b"].abs().sum().sqrt()
        )

    def smooth(loss):
        return lambda x, y: loss(x["w"], y["w"]) + (x["b"] ** 2 + y["b"] ** 2).sum()

    losses = {"upper": smooth(f), "lower": smooth(g)}
    losses[name] = steep(f if name == "upper" else g)
    start = {"w": vector(0.0, 0.0), "b": vector(0.0)}
    with refused(
        NonFiniteError,
        f"the gradient of {LABELS[name]} with respect to {level}['b'] is not finite",
        "in step 0",
        keeping=tuple(start.values()),
    ) as caught:
        solve(EVERY[solver], start, start, problem=BilevelProblem(**losses))
    assert_usable(caught.value)


@pytest.mark.parametrize("solver", CONSTRAINED)
@pytest.mark.parametrize(
    "label", ["lower_constraints (c)", "lower_equalities (h)", "upper_constraints (C)"]
)
def test_constraints_that_are_not_finite_are_named_with_the_entry(label, solver):
    broken = problem(**{label.split()[0]: lambda x, y: c(x, y) + vector(0.0, math.nan)})
    x0, y0 = vector(0.0, 0.0), vector(0.0, 0.0)
    with refused(
        NonFiniteError, f"entry 1 of {label} is nan", "in step 0", keeping=(x0, y0)
    ) as caught:
        solve(solver, x0, y0, problem=broken)
    assert_usable(caught.value)


def test_an_objective_that_is_not_finite_where_the_run_ends_is_no_solution():
    cliff = problem(upper=lambda x, y: f(x, y) + torch.where(x > 0.05, math.nan, 0.0).sum())
    with refused(NonFiniteError, "upper (f) is nan", "the last update, step 0") as caught:
        solve("PBGDFree", problem=cliff, max_steps=1)
    assert_usable(caught.value)


def test_constraints_that_are_not_finite_where_the_run_ends_are_not_called_feasible():
    cliff = problem(lower_constraints=lambda x, y: torch.where(x > 0.04, math.nan, y - 9.0))
    solution = solve("MaxMin", problem=cliff, max_steps=1)
    assert math.isnan(solution.constraint_violation)
    assert solution.status is Status.INFEASIBLE


def test_a_nan_from_a_batch_stops_the_run_at_that_batch():
    stated = BilevelProblem(upper=f, lower=lambda x, y, batch: g(x, y) + batch.sum())
    batches = [vector(0.0), vector(0.0), vector(math.nan), vector(0.0)]
    with refused(NonFiniteError, "lower (g) is nan", "in step 2", "check the batch") as caught:
        solve("PBGD", problem=stated, lower_batches=batches)
    assert_usable(caught.value)


def test_a_bare_step_keeps_the_last_good_state_too():
    solver, stated = SOLVERS["PBGD"], problem(upper=lambda x, y: f(x, y) * math.nan)
    state = solver.init(stated, vector(0.0, 0.0), vector(0.0, 0.0))
    with refused(NonFiniteError, "upper (f) is nan", "in step 0") as caught:
        solver.step(stated, state)
    assert caught.value.state is state
    assert caught.value.history is None
    solver.step(problem(), state)  # goes on from there
    assert state.step == 1


def test_an_update_that_overflows_is_not_passed_off_as_good():
    solver = PBGDFree(penalty=10.0, upper_lr=1e308, lower_lr=0.1)
    state = solver.init(problem(), vector(0.0, 0.0), vector(0.0, 0.0))
    solver.step(problem(), state)
    with refused(NonFiniteError, "x had become so in an earlier update", "Checkpoint"):
        solver.step(problem(), state)


# Diverging --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "solver",
    [
        PBGDFree(penalty=10.0, upper_lr=10.0, lower_lr=0.1),
        PBGDFree(penalty=10.0, upper_lr=0.1, lower_lr=10.0),
        PBGD(penalty=10.0, upper_lr=10.0, lower_lr=0.1),
        PBGD(penalty=10.0, upper_lr=10.0, lower_lr=0.1, variant="joint"),
        BLOCC(penalty=10.0, upper_lr=10.0, response=MaxMin(lr=0.1)),
        BLOCC(penalty=10.0, upper_lr=1e3),
    ],
    ids=["PBGDFree x", "PBGDFree y", "PBGD", "joint", "MaxMin", "exact"],
)
def test_a_run_that_diverges_is_stopped_with_its_history(solver):
    x0, y0 = vector(0.0, 0.0), vector(0.0, 0.0)
    with refused(
        DivergenceError, "grew beyond", "by step", "lower the learning rates", keeping=(x0, y0)
    ) as caught:
        solve(solver, x0, y0, max_steps=1000, log_every=1)
    assert_usable(caught.value)


def test_a_run_that_diverges_between_logged_steps_is_stopped_as_well():
    solver = PBGD(penalty=10.0, upper_lr=10.0, lower_lr=0.1)
    with refused(NonFiniteError, "is inf in step", "smaller learning rate"):
        solve(solver, max_steps=3000, log_every=3000)


# Levels that do not depend on what they are minimised over --------------------------------------

INDEPENDENT = {
    "of another variable": lambda x, y: (x**2).sum(),
    "detached": lambda x, y: g(x, y).detach(),
    "a copy": lambda x, y: torch.tensor(g(x, y).item()),
    "without gradients": torch.no_grad()(g),
}


@pytest.mark.parametrize("solver", EVERY)
@pytest.mark.parametrize("kind", INDEPENDENT)
def test_a_lower_objective_that_ignores_y_is_refused(kind, solver):
    x0, y0 = vector(0.0, 0.0), vector(0.0, 0.0)
    with refused(DependenceError, "does not depend on y", ".detach()", keeping=(x0, y0)):
        solve(EVERY[solver], x0, y0, problem=problem(lower=INDEPENDENT[kind]))


@pytest.mark.parametrize("solver", [name for name in EVERY if name != "PBGDFree"])
def test_an_upper_objective_that_ignores_both_variables_is_refused(solver):
    with refused(DependenceError, "upper (f) depends on neither x nor y", ".detach()"):
        solve(EVERY[solver], problem=problem(upper=lambda x, y: f(x, y).detach()))


@pytest.mark.parametrize("solver", [name for name in EVERY if name != "PBGDFree"])
def test_a_problem_in_which_nothing_depends_on_x_is_refused(solver):
    stated = problem(upper=lambda x, y: ((y - 2) ** 2).sum(), lower=lambda x, y: (y**2).sum())
    with refused(DependenceError, " x", ".detach()"):
        solve(EVERY[solver], problem=stated)


def test_pbgd_free_names_the_methods_for_an_upper_objective_without_x():
    stated = problem(upper=lambda x, y: ((y - 2) ** 2).sum())
    with refused(NotApplicableError, "f does not depend on x directly", "PBGD", "BLOCC"):
        solve("PBGDFree", problem=stated)


@pytest.mark.parametrize("solver", ["PBGD", "MaxMin", "SQP"])
def test_an_upper_objective_of_y_alone_is_fine(solver):
    stated = problem(upper=lambda x, y: ((y - 2) ** 2).sum())
    assert solve(solver, problem=stated).stationarity < 10.0


# Infeasible and unbounded -----------------------------------------------------------------------


def nowhere(x, y):
    return torch.cat([y - x + 1, x - y])  # y <= x - 1 and y >= x


@pytest.mark.parametrize(
    "solver",
    [
        PBGDFree(penalty=10.0, upper_lr=0.01),
        BLOCC(penalty=10.0, upper_lr=0.01),
        BLOCC(outer=QuasiNewton()),
        BLOCC(),
    ],
    ids=["PBGDFree", "first order", "QuasiNewton", "SQP"],
)
def test_a_lower_level_without_a_feasible_point_is_named_with_its_certificate(solver):
    x0, y0 = vector(0.0, 0.0), vector(0.0, 0.0)
    last = 6 if solver == BLOCC() else 0  # SQP relaxes the lower level, up to its last penalty
    with refused(
        InfeasibleError, f"in step {last}", "the lower level's y", "equality", "by 1",
        "Expected a feasible point", keeping=(x0, y0),
    ) as caught:  # fmt: skip
        solve(solver, x0, y0, problem=problem(lower_constraints=nowhere))
    assert caught.value.certificate.gap > 0


def test_infeasible_upper_constraints_are_no_fault_of_the_lower_level():
    impossible = problem(upper_constraints=lambda x, y: torch.cat([y - x + 1, x - y]))
    assert solve("SQP", problem=impossible).status is Status.INFEASIBLE


def test_first_order_steps_that_end_at_an_infeasible_point_say_so():
    solution = solve("MaxMin", problem=problem(lower_constraints=nowhere), max_steps=100)
    assert solution.status is Status.INFEASIBLE
    assert solution.constraint_violation > 0.1
    assert "feasible" in solution.message


UNBOUNDED = {
    "g": problem(lower=lambda x, y: (x * y).sum() - y.sum()),
    "f/γ + g": problem(upper=lambda x, y: f(x, y) - 1e4 * (y**2).sum()),
    "f + γ (g - v)": problem(upper=lambda x, y: -((x - 1) ** 4).sum() + (y**2).sum()),
}


@pytest.mark.parametrize(
    ("solver", "name"),
    [
        ("SQP", "g"),
        ("SQP", "f + γ (g - v)"),
        ("exact, first order", "g"),
        ("exact, first order", "f/γ + g"),
        ("QuasiNewton", "g"),
        ("QuasiNewton", "f/γ + g"),
        ("DifferenceOfConvex", "g"),
        ("DifferenceOfConvex", "f + γ (g - v)"),
    ],
)
def test_the_objective_that_is_unbounded_is_named(solver, name):
    with refused(
        ResponseError, "in step 0", f"minimising {name} over", "unbounded below",
        "Bound the variables",
    ):  # fmt: skip
        solve(EVERY[solver], problem=UNBOUNDED[name])


# Nothing is lost --------------------------------------------------------------------------------


class Late(Exception):
    """An exception of the user's own, some way into the run."""


def failing(name: str, kind: str, limit: float) -> BilevelProblem:
    """Fine up to x = limit, then the function called ``name`` fails."""
    loss = f if name == "upper" else g

    def fails(x, y):
        if bool((x > limit).any()):
            if kind == "raises":
                raise Late
            return loss(x, y) * math.nan
        return loss(x, y)

    return problem(**{name: fails})


@pytest.mark.parametrize("kind", ["raises", "NaN"])
@pytest.mark.parametrize("solver", EVERY)
@pytest.mark.parametrize("name", LABELS)
def test_parameters_keep_their_last_good_values_and_flags(name, solver, kind):
    x, y = nn.Parameter(vector(0.0, 0.0)), nn.Parameter(vector(0.0, 0.0))
    with pytest.raises((Late, NonFiniteError, ResponseError)):
        solve(EVERY[solver], x, y, problem=failing(name, kind, 0.2), max_steps=500)
    for parameter in (x, y):
        assert bool(torch.isfinite(parameter).all())
        assert parameter.requires_grad
        assert parameter.grad is None


@pytest.mark.parametrize("solver", ["SQP", "QuasiNewton", "DifferenceOfConvex"])
@pytest.mark.parametrize("name", LABELS)
def test_a_step_that_tries_points_goes_back_to_where_it_began(name, solver):
    x, y = nn.Parameter(vector(0.0, 0.0)), nn.Parameter(vector(0.0, 0.0))
    with pytest.raises(Late):
        solve(EVERY[solver], x, y, problem=failing(name, "raises", 0.2))
    assert x.tolist() == [0.0, 0.0]
    assert y.tolist() == [0.0, 0.0]


def test_the_last_checkpoint_before_a_failure_can_be_resumed(tmp_path):
    path = tmp_path / "run.ckpt"
    with refused(NonFiniteError, "upper (f) is nan") as caught:
        solve(
            "PBGD",
            problem=failing("upper", "NaN", 0.2),
            callbacks=[Checkpoint(path, every=1)],
            max_steps=500,
            log_every=1,
        )
    resumed = solve("PBGD", resume=path, max_steps=caught.value.state.step + 1, log_every=1)
    assert list(resumed.history["step"]) == list(range(1, caught.value.state.step + 2))


def test_a_run_whose_functions_have_no_second_derivatives_still_ends_with_a_solution():
    def attention(x, y):
        keys = y.sum() + torch.arange(8.0, dtype=y.dtype) * torch.ones(1, 1, 4, 8, dtype=y.dtype)
        return g(x, y) + nn.functional.scaled_dot_product_attention(keys, keys, keys).mean() ** 2

    assert solve("PBGD", problem=problem(lower=attention)).steps == 20
    with refused(ResponseError, "second derivatives are needed", "first-order steps"):
        solve("SQP", problem=problem(lower=attention))


def test_every_message_says_more_than_what_broke():
    for solver in EVERY.values():
        with pytest.raises(BilevelError) as caught:
            solve(solver, problem=problem(upper=lambda x, y: f(x, y) * math.nan))
        assert "Try" in str(caught.value)
        assert ".state" in str(caught.value)
