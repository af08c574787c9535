"""Careless input is refused before anything runs: what is wrong is named, nothing is lost."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from careless import c, f, g, problem, refused, solve, vector
from torch import nn
from torch.utils.data import TensorDataset

from bilevel import (
    BLOCC,
    SQP,
    Ball,
    BilevelProblem,
    Box,
    Exact,
    PBGDFree,
    Simplex,
)
from bilevel.errors import (
    DomainError,
    NotApplicableError,
    ObjectiveError,
    OptionError,
    ProblemError,
    VariableError,
)

# Variables --------------------------------------------------------------------------------------

MODULE = nn.Linear(2, 1)

NOT_A_TREE = {
    "a module": (MODULE, "is a Linear", "pass dict({}.named_parameters())"),
    "a generator": (MODULE.parameters(), "is a generator", "dict(module.named_parameters())"),
    "named parameters": (list(MODULE.named_parameters()), "is a str", "dict(module.named"),
    "an integer tensor": (torch.tensor([1, 2]), "holds torch.int64 values", "{}.double()"),
    "a complex tensor": (torch.zeros(2, dtype=torch.complex64), "is complex", "view_as_real({})"),
    "an array": (np.zeros(2), "is a ndarray", "torch.as_tensor({})"),
    "a number": (1.0, "is a float", "torch.as_tensor({})"),
    "a string": ("start", "is a str", "a (nested) dict, list or tuple"),
    "a nested number": ([vector(1.0), {"b": 2.0}], "[1]['b'] is a float", "torch.Tensor"),
    "a meta tensor": (torch.zeros(2, device="meta"), "is on the meta device", "initialise"),
    "a sparse tensor": (vector(1.0, 0.0).to_sparse(), "torch.sparse_coo", "{}.to_dense()"),
    "NaN": (vector(0.0, math.nan), "holds NaN or infinite values at the start"),
    "infinity": ({"w": vector(math.inf)}, "['w'] holds NaN or infinite values"),
}


@pytest.mark.parametrize("level", ["x", "y"])
@pytest.mark.parametrize("kind", NOT_A_TREE)
def test_a_variable_that_is_no_tree_of_finite_tensors_is_named(kind, level):
    value, *words = NOT_A_TREE[kind]
    x0, y0 = (value, vector(0.0, 0.0)) if level == "x" else (vector(0.0, 0.0), value)
    with refused(VariableError, level, *(word.format(level) for word in words)):
        solve("PBGDFree", x0, y0)


def test_a_frozen_parameter_is_named():
    weight = nn.Parameter(vector(0.0, 0.0), requires_grad=False)
    with refused(VariableError, "y['w'] is a frozen parameter", keeping=(weight,)):
        solve(y0={"w": weight})


def test_a_parameter_given_twice_to_one_level_is_refused():
    weight = nn.Parameter(vector(0.0, 0.0))
    with refused(VariableError, "y names the same parameter twice", keeping=(weight,)):
        solve(y0=[weight, weight])


def test_a_parameter_given_to_both_levels_is_named_in_both():
    weight = nn.Parameter(vector(0.0, 0.0))
    with refused(
        VariableError, "x[0] and y['w'] are the same parameter", "one level", keeping=(weight,)
    ):
        solve("PBGD", [weight], {"w": weight})


@pytest.mark.parametrize("nothing", [(), {}, {"w": None}, torch.zeros(0)])
def test_an_empty_lower_variable_is_refused(nothing):
    with refused(VariableError, "y has no entries", "only x may be empty"):
        solve(y0=nothing)


def test_a_start_that_requires_gradients_stays_as_it_was():
    x0 = vector(0.0, 0.0).requires_grad_()
    scaled = 2 * x0  # part of the caller's own graph
    assert solve("PBGD", x0, scaled).steps == 20
    assert x0.grad is None
    assert x0.requires_grad
    assert torch.equal(x0.detach(), vector(0.0, 0.0))
    assert torch.equal(scaled.detach(), vector(0.0, 0.0))


def test_levels_of_different_precision_keep_their_own():
    solution = solve("PBGD", vector(0.0, 0.0).float())
    assert solution.x.dtype == torch.float32
    assert solution.y.dtype == torch.float64


def test_half_precision_is_solved_exactly_in_double():
    solution = solve("SQP", vector(0.0, 0.0).half(), vector(0.0, 0.0).half())
    assert solution.x.dtype == torch.float16
    assert solution.x.tolist() == [1.5, 1.5]


def test_exact_responses_name_functions_that_hold_single_precision():
    single = problem(lower=lambda x, y: (torch.eye(2) @ (y - x)).square().sum())
    x0, y0 = torch.zeros(2), torch.zeros(2)
    with refused(VariableError, "double precision", "x0.double()", keeping=(x0, y0)):
        solve("SQP", x0, y0, problem=single)


# Domains ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("domain", "words"),
    [
        (Box(1.0, 2.0), ("y lies outside its domain Box", "y[0] = 0 is below", "project(y)")),
        (Simplex(), ("y lies outside its domain Simplex", "sum to 0, expected 1")),
        (Box(vector(0.0, 0.0, 0.0)), ("Box.low has shape (3,)", "(2,)")),
        ({"a": Box(0.0, 1.0)}, ("the domain of y is a dict, but y is a single tensor",)),
        ((0.0, 1.0), ("the domain of y is a tuple, but y is a single tensor",)),
        (3.0, ("the domain of y is 3.0", "Box(0.0, 1.0)")),
        (Box, ("the domain of y is <class", "Box(0.0, 1.0)")),
    ],
    ids=["below", "simplex", "shape", "dict", "tuple", "number", "class"],
)
def test_a_lower_domain_that_does_not_fit_the_start_is_named(domain, words):
    y0 = vector(0.0, 0.0)
    with refused(DomainError, *words, keeping=(y0,)):
        solve(y0=y0, problem=problem(lower_domain=domain))


def test_a_start_outside_the_upper_domain_is_named():
    x0 = vector(3.0, 4.0)
    with refused(DomainError, "x lies outside its domain Ball", keeping=(x0,)):
        solve("SQP", x0, problem=problem(upper_domain=Ball(1.0)))


# Problems ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({}, ("needs both objectives, upper is missing",)),
        ({"upper": f}, ("lower is missing", "upper=f and lower=g")),
        ({"upper": f, "lower": g, "objectives": f}, ("upper and lower, or objectives",)),
        ({"upper": vector(1.0), "lower": g}, ("upper is a Tensor", "function of (x, y)")),
        ({"upper": f, "lower": "g"}, ("lower is a str", "function of (x, y)")),
        ({"upper": f, "lower": g, "lower_constraints": 1.0}, ("lower_constraints is a float",)),
        ({"upper": f, "lower": g, "features": vector(1.0)}, ("features is a Tensor",)),
        ({"upper": f, "lower": g, "lower_response": Exact}, ("lower_response is <class",)),
        ({"upper": f, "lower": g, "lower_response": f}, ("lower_response is <function",)),
    ],
    ids=lambda value: "+".join(value) or "nothing" if isinstance(value, dict) else "",
)
def test_a_problem_with_a_part_missing_or_of_the_wrong_kind_is_refused(parts, words):
    with refused(ProblemError, *words):
        BilevelProblem(**parts)


def test_something_else_in_the_place_of_the_problem_is_named():
    with refused(ProblemError, "the problem is a tuple", "BilevelProblem"):
        solve(problem=(f, g))


# What the functions return ----------------------------------------------------------------------

NOT_A_LOSS = {
    "shape (1,)": (lambda loss: loss.reshape(1), "shape (1,)", ".sum() or .mean()"),
    "shape (3,)": (lambda loss: loss.expand(3), "shape (3,)", ".sum() or .mean()"),
    "None": (lambda loss: None, "returned None", "return statement"),
    "a number": (lambda loss: loss.item(), "returned a float", "no .item()"),
    "an integer": (lambda loss: loss.long(), "torch.int64", ".long()"),
    "complex": (lambda loss: loss + 0j, "torch.complex128", "real tensor"),
    "an array": (lambda loss: loss.detach().numpy(), "returned a ndarray", "tensor"),
    "a pair": (lambda loss: (loss, loss), "returned a tuple", "0-d floating-point tensor"),
}


@pytest.mark.parametrize("solver", ["PBGDFree", "SQP"])
@pytest.mark.parametrize("kind", NOT_A_LOSS)
@pytest.mark.parametrize("name", ["upper", "lower"])
def test_an_objective_that_returns_no_scalar_is_named(name, kind, solver):
    spoil, *words = NOT_A_LOSS[kind]
    loss = f if name == "upper" else g
    y0 = vector(0.0, 0.0)
    with refused(ObjectiveError, f"{name} returned", *words, keeping=(y0,)):
        solve(solver, y0=y0, problem=problem(**{name: lambda x, y: spoil(loss(x, y))}))


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (lambda x, y: f(x, y), ("objectives returned a torch.float64 tensor", "pair (f, g)")),
        (lambda x, y: (f(x, y),), ("objectives returned a tuple", "pair (f, g)")),
        (lambda x, y: None, ("objectives returned None", "pair (f, g)")),
        (lambda x, y: (f(x, y), y), ("objectives, second value (g) returned", "shape (2,)")),
        (lambda x, y: (None, g(x, y)), ("objectives, first value (f) returned None",)),
    ],
    ids=["one value", "one-tuple", "nothing", "vector", "None first"],
)
def test_shared_objectives_that_return_no_pair_of_scalars_are_named(returned, words):
    with refused(ObjectiveError, *words):
        solve(problem=BilevelProblem(objectives=returned))


NO_VECTOR = {
    "0-d": (lambda values: values.sum(), "shape ()"),
    "2-d": (lambda values: values.reshape(1, -1), "shape (1, 2)"),
    "integers": (lambda values: values.long(), "torch.int64"),
    "booleans": (lambda values: values <= 0, "torch.bool"),
    "a list": (lambda values: list(values), "returned a list"),
    "None": (lambda values: None, "returned None"),
}


@pytest.mark.parametrize("solver", ["MaxMin", "SQP"])
@pytest.mark.parametrize("kind", NO_VECTOR)
@pytest.mark.parametrize("name", ["lower_constraints", "lower_equalities", "upper_constraints"])
def test_constraints_that_are_no_vector_are_named(name, kind, solver):
    spoil, found = NO_VECTOR[kind]
    with refused(ObjectiveError, f"{name} returned", found, "reshape(-1)"):
        solve(solver, problem=problem(**{name: lambda x, y: spoil(c(x, y))}))


@pytest.mark.parametrize("solver", ["MaxMin", "SQP"])
@pytest.mark.parametrize("name", ["lower_constraints", "lower_equalities", "upper_constraints"])
def test_constraints_whose_number_changes_are_named(name, solver):
    def only_some(x, y):
        values = torch.cat([c(x, y), -x - y - 0.7])
        return values[values > -1.2]

    x0, y0 = vector(0.0, 0.0), vector(0.0, 0.0)
    with refused(ObjectiveError, name, "return every constraint", keeping=(x0, y0)):
        solve(solver, x0, y0, problem=problem(**{name: only_some}))


@pytest.mark.parametrize("name", ["upper", "lower", "objectives", "lower_constraints"])
def test_a_function_of_the_wrong_signature_is_named_with_it(name):
    parts = {"objectives": ...} if name == "objectives" else {"upper": f, "lower": g}
    stated = BilevelProblem(**{**parts, name: lambda y: g(y, y)})
    with refused(ObjectiveError, f"{name}(y) cannot be called with 2", "(x, y, batch)"):
        solve("MaxMin", problem=stated)


@pytest.mark.parametrize("solver", ["PBGDFree", "PBGD", "SQP"])
@pytest.mark.parametrize("name", ["upper", "lower"])
def test_a_function_that_writes_into_its_variable_is_named(name, solver):
    loss = f if name == "upper" else g
    x0, y0 = vector(0.0, 0.0), vector(0.0, 0.0)
    with refused(ObjectiveError, f"{name} changes its variable in place", keeping=(x0, y0)):
        solve(solver, x0, y0, problem=problem(**{name: lambda x, y: loss(x.add_(1.0), y)}))


def test_features_that_are_no_tensors_are_named():
    stated = BilevelProblem(upper=f, lower=g, features=lambda x: {"z": 3.0})
    with refused(ObjectiveError, "features returned", "holds a float", "Return tensors"):
        solve(problem=stated)


class Mine(Exception):
    """An exception of the user's own."""


@pytest.mark.parametrize("solver", ["PBGDFree", "MaxMin", "SQP"])
@pytest.mark.parametrize("own", [Mine, TypeError, RuntimeError, ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("name", ["upper", "lower"])
def test_an_exception_of_the_users_function_passes_as_it_is(name, own, solver):
    raised = own("mine")

    def broken(x, y):
        raise raised

    with pytest.raises(own) as caught:
        solve(solver, problem=problem(**{name: broken}))
    assert caught.value is raised
    assert str(raised) == "mine"


def test_a_solve_with_gradients_switched_off_says_so():
    with torch.no_grad(), refused(OptionError, "gradients are switched off", "no_grad"):
        solve()


# Batches ----------------------------------------------------------------------------------------

BATCHES = [vector(1.0), vector(2.0)]


def with_data() -> BilevelProblem:
    return BilevelProblem(
        upper=lambda x, y, batch: f(x, y) + 0 * batch.sum(),
        lower=lambda x, y, batch: g(x, y) + 0 * batch.sum(),
    )


@pytest.mark.parametrize(
    ("missing", "given"), [("upper", "lower"), ("lower", "upper")], ids=["upper", "lower"]
)
def test_a_missing_loader_is_named(missing, given):
    with refused(ObjectiveError, f"{missing} takes a batch", f"{missing}_batches="):
        solve(problem=with_data(), **{f"{given}_batches": BATCHES})


@pytest.mark.parametrize("level", ["upper", "lower"])
def test_batches_for_a_function_without_data_are_refused(level):
    with refused(ObjectiveError, f"{level} was given a batch and takes none"):
        solve(**{f"{level}_batches": BATCHES})


@pytest.mark.parametrize(
    ("loader", "words"),
    [
        (iter(BATCHES), ("upper_batches is an iterator", "one pass", "DataLoader")),
        ((batch for batch in BATCHES), ("upper_batches is an iterator", "one pass")),
        ([], ("upper_batches yielded no batch",)),
        (3, ("upper_batches is a int", "loader")),
        ("data", ("upper_batches is a str", "loader")),
        ({"a": BATCHES}, ("upper_batches is a dict", "loader")),
        (lambda: BATCHES, ("upper_batches is a function", "loader")),
        (TensorDataset(vector(1.0)), ("upper_batches is a TensorDataset", "loader")),
    ],
    ids=["iterator", "generator", "empty", "number", "string", "dict", "function", "dataset"],
)
def test_what_is_no_loader_of_batches_is_named(loader, words):
    with refused(OptionError, *words):
        solve(problem=with_data(), upper_batches=loader, lower_batches=BATCHES)


class UsedUp:
    """Yields its batches once, whoever asks."""

    def __init__(self) -> None:
        self.iterator = iter(BATCHES)

    def __iter__(self):
        return self.iterator


def test_a_loader_that_is_used_up_is_named():
    with refused(OptionError, "upper_batches yielded no batch in a whole epoch"):
        solve(problem=with_data(), upper_batches=UsedUp(), lower_batches=BATCHES)


def test_a_stochastic_lower_level_asks_for_first_order_steps():
    with refused(OptionError, "it is stochastic", "lower_lr="):
        solve(BLOCC(), problem=with_data(), upper_batches=BATCHES, lower_batches=BATCHES)


def test_sqp_on_batches_names_what_works():
    solver = BLOCC(response=Exact(), outer=SQP())
    with refused(NotApplicableError, "SQP is for problems without data", "first-order steps"):
        solve(solver, problem=with_data(), upper_batches=BATCHES, lower_batches=BATCHES)


@pytest.mark.parametrize(
    "batches", [vector(1.0), tuple(BATCHES), [*BATCHES, *BATCHES]], ids=["one", "tuple", "four"]
)
def test_accumulation_asks_for_its_list_of_micro_batches(batches):
    solver = PBGDFree(upper_lr=0.1, lower_lr=0.1, accumulate=2)
    state = solver.init(with_data(), vector(0.0, 0.0), vector(0.0, 0.0))
    with refused(ObjectiveError, "upper_batch must be a list of accumulate=2 micro-batches"):
        solver.step(with_data(), state, batches, BATCHES)


def test_accumulated_runs_are_verified_on_one_micro_batch():
    solver = PBGDFree(upper_lr=0.1, lower_lr=0.1, accumulate=2)
    solution = solve(solver, problem=with_data(), upper_batches=BATCHES, lower_batches=BATCHES)
    assert solution.upper_value == pytest.approx(f(solution.x, solution.y).item())
