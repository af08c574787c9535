"""Nonsense hyperparameters are refused where they are given, with the offending value."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from careless import SOLVERS, c, problem, refused, solve, vector
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from bilevel import (
    BLOCC,
    PBGD,
    SQP,
    Ball,
    BilevelProblem,
    DifferenceOfConvex,
    Exact,
    FirstOrder,
    GradientDescent,
    MaxMin,
    PBGDFree,
    QuasiNewton,
)
from bilevel.callbacks import Checkpoint, EarlyStopping
from bilevel.errors import CheckpointError, NotApplicableError, OptionError, VariableError
from bilevel.schedules import Geometric, Linear

# Solvers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "10", [1, 10], True, Geometric])
def test_a_penalty_that_is_no_positive_number_or_schedule_is_refused(value):
    with refused(OptionError, "penalty=", repr(value), "expected a positive"):
        PBGD(penalty=value)


@pytest.mark.parametrize("value", [-1.0, 0.0, math.nan, None, "much"])
def test_a_penalty_schedule_is_checked_in_every_step(value):
    solver = PBGD(penalty=lambda step: 1.0 if step < 3 else value, upper_lr=0.1, lower_lr=0.1)
    with refused(OptionError, f"the penalty schedule gave {value!r} at step 3"):
        solve(solver)


def test_a_penalty_function_without_an_argument_is_refused():
    with refused(OptionError, "a callable step -> penalty"):
        PBGD(penalty=lambda: 1.0)


@pytest.mark.parametrize("arguments", [(-1, 2, 3), (1, math.nan, 3), (1, 2, 0), (1, 2, 1.5)])
@pytest.mark.parametrize("schedule", [Linear, Geometric])
def test_a_schedule_of_nonsense_is_refused(schedule, arguments):
    with refused(OptionError, "a penalty schedule's"):
        schedule(*arguments)


@pytest.mark.parametrize("value", [-1.0, 0, math.nan, math.inf, "0.1", True])
@pytest.mark.parametrize("name", ["upper_lr", "lower_lr", "clip_norm"])
def test_a_step_size_that_is_not_positive_is_refused(name, value):
    with refused(OptionError, f"{name}={value!r}", "a positive finite number"):
        PBGD(**{name: value})


@pytest.mark.parametrize("value", [0, -1, 1.5, "2", True])
@pytest.mark.parametrize("name", ["inner_steps", "accumulate", "bias_every"])
def test_a_count_that_is_no_positive_integer_is_refused(name, value):
    with refused(OptionError, f"{name}={value!r}", "an integer >= 1"):
        PBGDFree(**{name: value})


def test_numbers_of_numpy_are_numbers():
    solver = PBGD(penalty=np.float32(10), upper_lr=np.float64(0.1), lower_lr=0.1,
                  inner_steps=np.int64(2))  # fmt: skip
    assert solve(solver, max_steps=np.int64(3), tolerance=np.float32(0)).steps == 3


@pytest.mark.parametrize("value", ["bf16", True, torch.float64, torch.float16])
def test_an_autocast_type_that_is_none_is_refused(value):
    with refused(OptionError, f"autocast={value!r}", "torch.bfloat16"):
        PBGD(autocast=value)


@pytest.mark.parametrize("value", ["jont", None, 1])
def test_an_unknown_variant_is_refused_with_the_known_ones(value):
    with refused(OptionError, f"variant={value!r}", "'alternating' or 'joint'"):
        PBGD(variant=value)


def test_the_joint_variant_asks_for_its_step_size():
    with refused(OptionError, "variant='joint'", "lower_lr="):
        PBGD(variant="joint", upper_lr=0.1)


@pytest.mark.parametrize("value", ["pbgd", PBGD, PBGDFree()], ids=["name", "class", "PBGDFree"])
def test_a_polish_without_the_full_gradient_is_refused(value):
    with refused(OptionError, f"polish={value!r}", "PBGD(...) or BLOCC(...)"):
        PBGDFree(polish=value)


def test_a_polish_that_could_not_take_over_is_refused_before_the_first_step():
    def called(x, y, batch):
        raise AssertionError

    problem = BilevelProblem(upper=called, lower=called)
    solver = PBGDFree(upper_lr=0.1, lower_lr=0.1, polish=PBGD())
    with refused(OptionError, "polish=PBGD(...) cannot take over", "give lower_lr="):
        solver.solve(problem, torch.zeros(2), torch.zeros(2), upper_batches=[1], lower_batches=[1])


@pytest.mark.parametrize(
    ("polish", "stated", "error", "words"),
    [
        (PBGD(lower_lr=0.1), {}, OptionError, ("needs a learning rate", "upper_lr=")),
        (
            PBGD(outer=QuasiNewton()),
            {"upper_constraints": lambda x, y: x - 9},
            NotApplicableError,
            ("QuasiNewton takes no upper_constraints",),
        ),
        (
            PBGD(outer=QuasiNewton()),
            {"upper_domain": Ball(3.0)},
            NotApplicableError,
            ("QuasiNewton",),
        ),
    ],
)
def test_a_polish_that_would_fail_at_its_start_is_refused_before_the_first_step(
    polish, stated, error, words
):
    solver = PBGDFree(upper_lr=0.1, lower_lr=0.1, polish=polish)

    def fail(record, state):
        raise AssertionError

    with refused(error, "polish=PBGD(...) cannot take over", *words):
        solve(solver, problem=problem(**stated), callbacks=[fail])


def test_a_polish_in_double_precision_is_refused_for_parameters_of_single():
    x, y = (nn.Parameter(torch.zeros(2)) for _ in "xy")
    solver = PBGDFree(upper_lr=0.1, lower_lr=0.1, polish=PBGD())
    with refused(VariableError, "polish=PBGD(...) cannot take over", "double()", keeping=(x, y)):
        solve(solver, x, y)


def test_pbgd_free_follows_no_original_response():
    state = SOLVERS["PBGDFree"].init(problem(), vector(0.0, 0.0), vector(0.0, 0.0))
    assert state.original is None


# Parts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"response": "exact"}, ("response is a str", "Exact()")),
        ({"response": Exact}, ("response is the class Exact", "Exact()")),
        ({"outer": SQP}, ("outer is the class SQP", "SQP()")),
        ({"outer": PBGD()}, ("outer is a PBGD", "SQP()")),
        ({"upper_lr": 0.1, "upper_optimizer": Adam}, ("upper_lr or upper_optimizer, not both",)),
        ({"lower_lr": 0.1, "lower_optimizer": Adam}, ("lower_lr or lower_optimizer, not both",)),
        ({"response": Exact(), "lower_lr": 0.1}, ("lower_lr would have no effect beside",)),
        ({"response": Exact(), "inner_steps": 2}, ("inner_steps would have no effect beside",)),
        ({"outer": SQP(), "upper_lr": 0.1}, ("upper_lr would have no effect beside outer=SQP",)),
        ({"upper_optimizer": "adam"}, ("upper_optimizer is a str", "functools.partial")),
        (
            {"lower_optimizer": SGD([torch.zeros(1)], lr=0.1)},
            ("lower_optimizer is a SGD", "functools.partial"),
        ),
        ({"upper_scheduler": "cosine"}, ("upper_scheduler is a str", "StepLR")),
        ({"lower_scheduler": StepLR}, ("lower_scheduler is the class StepLR", "step_size=")),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_a_part_of_the_wrong_kind_or_without_effect_is_refused(options, words):
    with refused(OptionError, *words):
        PBGD(**options)


@pytest.mark.parametrize("level", ["upper", "lower"])
@pytest.mark.parametrize(
    ("factory", "words"),
    [
        (lambda leaves: None, ("made None", "torch.optim.Optimizer")),
        (lambda leaves: SGD([torch.zeros(1)], lr=0.1), ("leaves out {}", "never move")),
        (torch.optim.LBFGS, ("made a LBFGS", "closure")),
    ],
    ids=["nothing", "other tensors", "closure"],
)
def test_an_optimiser_that_could_not_move_the_variable_is_named(factory, words, level):
    options = {"upper_lr": 0.1, "lower_lr": 0.1, f"{level}_optimizer": factory}
    del options[f"{level}_lr"]
    named = [word.format("x" if level == "upper" else "y") for word in words]
    with refused(OptionError, f"{level}_optimizer {named[0]}", *named[1:]):
        solve(PBGD(**options))


@pytest.mark.parametrize("level", ["upper", "lower"])
@pytest.mark.parametrize("factory", [lambda optimizer: None, ReduceLROnPlateau])
def test_a_scheduler_that_does_not_go_by_steps_is_named(factory, level):
    solver = PBGD(upper_lr=0.1, lower_lr=0.1, **{f"{level}_scheduler": factory})
    with refused(OptionError, f"{level}_scheduler made", "StepLR"):
        solve(solver)


def test_optimisers_and_schedulers_made_from_the_leaves_are_taken():
    solver = PBGD(
        upper_optimizer=Adam,
        lower_optimizer=partial(SGD, lr=0.1, momentum=0.9),
        upper_scheduler=partial(StepLR, step_size=5),
        lower_scheduler=lambda optimizer: StepLR(optimizer, 5),
    )
    assert solve(solver).steps == 20


@pytest.mark.parametrize(
    ("part", "options", "found"),
    [
        (GradientDescent, {"steps": 0, "lr": 0.1}, "steps=0"),
        (GradientDescent, {"lr": -0.1}, "lr=-0.1"),
        (GradientDescent, {"lr": 0.1, "clip_norm": -1.0}, "clip_norm=-1.0"),
        (GradientDescent, {"optimizer": "adam"}, "is a str"),
        (GradientDescent, {}, "needs a learning rate"),
        (MaxMin, {"steps": 0, "lr": 0.1}, "steps=0"),
        (MaxMin, {"lr": 0.1, "primal_steps": 1.5}, "primal_steps=1.5"),
        (MaxMin, {"lr": 0.1, "dual_lr": -1.0}, "dual_lr=-1.0"),
        (MaxMin, {}, "need a step size"),
        (Exact, {"tolerance": -1.0}, "tolerance=-1.0"),
        (Exact, {"elastic": 0.0}, "elastic=0.0"),
        (SQP, {"max_iterations": 0}, "max_iterations=0"),
        (QuasiNewton, {"tolerance": -1.0}, "tolerance=-1.0"),
    ],
)
def test_a_part_refuses_nonsense_itself(part, options, found):
    with refused(OptionError, found):
        part(**options)


@pytest.mark.parametrize("solver", [PBGD(lower_lr=0.1), PBGDFree(inner_steps=2, upper_lr=0.1)])
def test_first_order_steps_ask_for_their_learning_rate(solver):
    with refused(OptionError, "needs a learning rate", "_lr="):
        solve(solver)


# Methods and problems that do not fit -----------------------------------------------------------


@pytest.mark.parametrize(
    ("solver", "parts", "words"),
    [
        (PBGD(upper_lr=0.1), {"lower_constraints": c}, ("PBGD takes", "use BLOCC")),
        (
            PBGD(lower_lr=0.1, outer=SQP()),
            {},
            ("SQP needs exact responses and GradientDescent", "Exact()"),
        ),
        (
            PBGDFree(upper_lr=0.1, lower_optimizer=torch.optim.Adam),
            {"lower_constraints": c},
            ("plain primal-dual steps", "lower_lr="),
        ),
        (
            PBGDFree(upper_lr=0.1),
            {"upper": lambda x, y: ((y - 2) ** 2).sum()},
            ("f does not depend on x directly", "Use PBGD"),
        ),
        (PBGDFree(outer=SQP()), {}, ("SQP compares", "upper_lr=", "use PBGD")),
        (PBGDFree(outer=QuasiNewton()), {}, ("QuasiNewton compares", "upper_lr=", "use PBGD")),
    ],
    ids=[
        "PBGD constrained",
        "SQP approximate",
        "optimiser constrained",
        "PBGDFree without x",
        "PBGDFree with SQP",
        "PBGDFree with quasi-Newton",
    ],
)
def test_a_method_that_does_not_fit_the_problem_names_one_that_does(solver, parts, words):
    with refused(NotApplicableError, *words):
        solve(solver, problem=problem(**parts))


def test_quasi_newton_names_the_domain_that_it_cannot_keep():
    ball = problem(upper_domain=Ball(1.0))
    with refused(NotApplicableError, "x lives in Ball", "use SQP()"):
        solve(BLOCC(outer=QuasiNewton()), problem=ball)


def test_quasi_newton_says_that_it_has_nothing_to_move():
    with refused(NotApplicableError, "x is empty", "use SQP()"):
        BLOCC(outer=QuasiNewton()).solve(
            problem(upper=lambda x, y: (y**2).sum(), lower=lambda x, y: y.sum()), None, vector(1.0)
        )


def test_a_large_lower_level_asks_for_its_step_size():
    large = problem(lower=lambda x, y: (y**2).sum(), upper=lambda x, y: (x**2).sum() + y.sum())
    with refused(OptionError, "y has 2000 entries", "lower_lr="):
        solve(BLOCC(upper_lr=0.1), y0=torch.zeros(2000), problem=large)


# solve() ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("max_steps", 0, "an integer >= 1"),
        ("max_steps", 1e3, "an integer >= 1"),
        ("max_steps", True, "an integer >= 1"),
        ("tolerance", -1e-3, "a number >= 0"),
        ("tolerance", math.nan, "a number >= 0"),
        ("tolerance", "small", "a number >= 0"),
        ("restarts", -1, "an integer >= 0"),
        ("restarts", 1.5, "an integer >= 0"),
        ("seed", None, "an integer >= 0"),
        ("seed", "a", "an integer >= 0"),
        ("log_every", 0, "an integer >= 1"),
        ("log_every", 1.5, "an integer >= 1"),
        ("resume", 3, "the path of a checkpoint"),
        ("callbacks", None, "a list"),
        ("callbacks", print, "a list"),
    ],
)
def test_an_option_of_solve_that_makes_no_sense_is_refused(option, value, expected):
    x0, y0 = vector(0.0, 0.0), vector(0.0, 0.0)
    with refused(OptionError, f"{option}={value!r}", expected, keeping=(x0, y0)):
        solve("PBGD", x0, y0, **{option: value})


@pytest.mark.parametrize("value", ["a", 3, EarlyStopping, lambda record: True])
def test_what_is_no_callback_is_named(value):
    with refused(OptionError, "a callback is", "(record, state)"):
        solve(callbacks=[value])


def test_early_stopping_names_the_columns_that_it_could_monitor():
    with refused(OptionError, "monitors 'loss'", "upper, lower"):
        solve(callbacks=[EarlyStopping("loss")])


@pytest.mark.parametrize("value", [0, 1.5, "a"])
def test_callbacks_refuse_nonsense_counts(value):
    with refused(OptionError, f"patience={value!r}"):
        EarlyStopping(patience=value)

    with refused(OptionError, f"every={value!r}"):
        Checkpoint("run.ckpt", every=value)


@pytest.mark.parametrize("outer", [SQP(), QuasiNewton(), DifferenceOfConvex()])
def test_outer_steps_that_compare_values_refuse_micro_batches(outer):
    with refused(NotApplicableError, "accumulate=2", type(outer).__name__, "upper_lr="):
        solve(PBGD(outer=outer, accumulate=2))


@pytest.mark.parametrize("options", [{}, {"upper_lr": 0.1, "response": Exact()}])
def test_exact_responses_refuse_low_precision(options):
    with refused(NotApplicableError, "autocast=torch.bfloat16", "Exact", "double precision"):
        solve(PBGD(autocast=torch.bfloat16, **options))


def test_restarts_refuse_parameters_that_train_in_place():
    weight = nn.Parameter(vector(0.0, 0.0))
    with refused(OptionError, "restarts=", "plain tensors", keeping=(weight,)):
        solve(y0=weight, restarts=2)


def test_a_checkpoint_that_is_missing_is_named(tmp_path):
    with refused(CheckpointError, "no checkpoint at", "leave resume= out"):
        solve(resume=tmp_path / "none")


def test_a_checkpoint_that_is_damaged_is_named(tmp_path):
    path = tmp_path / "run.ckpt"
    path.write_bytes(b"junk")
    with refused(CheckpointError, "run.ckpt cannot be read as a checkpoint"):
        solve(resume=path)


def test_early_stopping_goes_down_or_up():
    with pytest.raises(OptionError, match="expected 'min' or 'max'"):
        EarlyStopping(mode="up")


def test_restarts_of_a_resumed_run_are_refused(tmp_path):
    path = tmp_path / "run.pt"
    solve("SQP", callbacks=[Checkpoint(path)])
    with refused(OptionError, "resume=", "restarts=2"):
        solve("SQP", restarts=2, resume=path)


@pytest.mark.parametrize(
    "solver",
    [
        PBGD(clip_norm=1.0),
        PBGD(clip_norm=1.0, outer=QuasiNewton()),
        BLOCC(clip_norm=1.0, response=MaxMin(lr=0.1), outer=FirstOrder(lr=0.1)),
    ],
)
def test_a_bound_on_gradients_that_no_step_would_keep_is_refused(solver):
    with refused(OptionError, "clip_norm=1.0 would have no effect", "FirstOrder(clip_norm=...)"):
        solve(solver)


def test_a_bound_on_gradients_is_taken_by_the_level_that_makes_first_order_steps():
    x0 = vector(0.0, 0.0)
    # ∇f = -2 in both entries, so the step is along (1, 1)/√2 with norm .1 · 1e-3.
    solver = PBGDFree(penalty=10.0, response=Exact(), upper_lr=0.1, clip_norm=1e-3)
    moved = solve(solver, x0, max_steps=1).x
    np.testing.assert_allclose(moved, np.full(2, 1e-4 / math.sqrt(2)), rtol=1e-5)


def test_parts_say_what_a_share_or_a_number_is():
    with refused(OptionError, "extrapolation='0.5'", "a share in [0, 1)"):
        DifferenceOfConvex(extrapolation="0.5")
    with refused(OptionError, "value_tolerance='a'", "a share in [0, 1)"):
        QuasiNewton(value_tolerance="a")
    with refused(OptionError, "min_delta=-1", "a finite number >= 0"):
        EarlyStopping(min_delta=-1)
