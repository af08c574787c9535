"""Domains: projections against their defining inequality, closed forms and a conic solver."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import pickle
from collections import namedtuple
from collections.abc import Callable

import cvxpy as cp
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from torch import Tensor

from bilevel.domains import (
    AffineSubspace,
    Ball,
    Box,
    Domain,
    L1Ball,
    NonNegative,
    Reals,
    Simplex,
    domains_of_leaves,
)
from bilevel.errors import DomainError, NotApplicableError, VariableError


@pytest.fixture(autouse=True)
def _double_precision():
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(previous)


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# Random sets, each with a residual and a sampler of members that do not use the code under test ---


@dataclasses.dataclass
class Case:
    domain: Domain
    residual: Callable[[Tensor], float]
    member: Callable[[], Tensor]


def _reals(shape, g):
    return Case(Reals(), lambda v: 0.0, lambda: 9 * torch.randn(shape, generator=g))


def _box(shape, g):
    low = torch.randn(shape, generator=g)
    high = low + torch.rand(shape, generator=g)
    return Case(
        Box(low, high),
        lambda v: float(torch.maximum(low - v, v - high).max()),
        lambda: low + (high - low) * torch.rand(shape, generator=g),
    )


def _one_sided_box(shape, g):
    high = torch.randn(shape, generator=g)
    return Case(
        Box(None, high),
        lambda v: float((v - high).max()),
        lambda: high - 9 * torch.rand(shape, generator=g),
    )


def _non_negative(shape, g):
    return Case(
        NonNegative(), lambda v: float(-v.min()), lambda: 9 * torch.rand(shape, generator=g)
    )


def _ball(shape, g):
    center, radius = torch.randn(shape, generator=g), 0.1 + float(torch.rand((), generator=g))

    def member():
        direction = torch.randn(shape, generator=g)
        return center + radius * torch.rand((), generator=g) * direction / direction.norm()

    return Case(Ball(radius, center), lambda v: float((v - center).norm()) - radius, member)


def _l1_ball(shape, g):
    center, radius = torch.randn(shape, generator=g), 0.1 + float(torch.rand((), generator=g))

    def member():
        direction = torch.randn(shape, generator=g)
        return center + radius * torch.rand((), generator=g) * direction / direction.abs().sum()

    return Case(L1Ball(radius, center), lambda v: float((v - center).abs().sum()) - radius, member)


def _simplex(shape, g):
    total = 0.1 + float(torch.rand((), generator=g))

    def member():
        weights = torch.rand(shape, generator=g) ** 4
        return total * weights / weights.sum()

    return Case(Simplex(total), lambda v: max(float(-v.min()), abs(float(v.sum()) - total)), member)


def _affine(shape, g):
    n = math.prod(shape)
    m = max(1, n // 2)
    A, inside = torch.randn(m, n, generator=g), torch.randn(n, generator=g)
    A = torch.cat([A, A[:1] / 3])  # a redundant row, up to rounding
    kernel = torch.from_numpy(scipy.linalg.null_space(A.numpy()))

    def member():
        return (inside + kernel @ torch.randn(kernel.shape[1], generator=g)).reshape(shape)

    b = A @ inside
    return Case(AffineSubspace(A, b), lambda v: float((A @ v.reshape(-1) - b).abs().max()), member)


CASES = {
    "reals": _reals,
    "box": _box,
    "one-sided box": _one_sided_box,
    "non-negative": _non_negative,
    "ball": _ball,
    "l1 ball": _l1_ball,
    "simplex": _simplex,
    "affine": _affine,
}
SHAPES = [(), (1,), (2,), (5,), (3, 4), (2, 1, 3)]
each_case = pytest.mark.parametrize("make", CASES.values(), ids=CASES.keys())


@st.composite
def settings_of_a_case(draw):
    """A generator, a shape and a scale of the points, from orders below to orders above the set."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    return generator, draw(st.sampled_from(SHAPES)), draw(st.sampled_from([1e-3, 1.0, 1e3]))


@each_case
@given(setting=settings_of_a_case())
@settings(max_examples=40, deadline=None)
def test_projection_is_in_the_set_and_idempotent(make, setting):
    g, shape, scale = setting
    case = make(shape, g)
    value = scale * torch.randn(shape, generator=g)
    projected = case.domain.project(value)
    assert projected.shape == value.shape
    assert case.residual(projected) <= 1e-12 * max(1.0, scale)
    rounding = 1e-14 * max(1.0, scale)
    torch.testing.assert_close(case.domain.project(projected), projected, rtol=0, atol=rounding)
    assert case.domain.distance(projected) <= rounding
    case.domain.validate(projected, "v")


@each_case
@given(setting=settings_of_a_case())
@settings(max_examples=40, deadline=None)
def test_projection_satisfies_the_variational_inequality(make, setting):
    # <v - Pv, w - Pv> <= 0 for every member w: with Pv in the set, this defines the projection
    g, shape, scale = setting
    case = make(shape, g)
    value = scale * torch.randn(shape, generator=g)
    projected = case.domain.project(value)
    for _ in range(5):
        normal, chord = value - projected, case.member() - projected
        inner = float((normal * chord).sum())
        assert inner <= 1e-11 * float(normal.norm() * (1 + chord.norm())) + 1e-13


@each_case
@given(setting=settings_of_a_case())
@settings(max_examples=40, deadline=None)
def test_projection_is_non_expansive_and_keeps_members(make, setting):
    g, shape, scale = setting
    case = make(shape, g)
    one, other = (scale * torch.randn(shape, generator=g) for _ in range(2))
    moved = case.domain.project(one) - case.domain.project(other)
    assert float(moved.norm()) <= float((one - other).norm()) + 1e-12
    member = case.member()
    torch.testing.assert_close(case.domain.project(member), member, rtol=0, atol=1e-12)


@each_case
@given(setting=settings_of_a_case())
@settings(max_examples=15, deadline=None)
def test_projection_in_place_equals_projection_and_leaves_the_argument_alone(make, setting):
    g, shape, scale = setting
    domain = make(shape, g).domain
    value = (scale * torch.randn(shape, generator=g)).requires_grad_()
    before = value.detach().clone()
    projected = domain.project(value)
    torch.testing.assert_close(value.detach(), before, rtol=0, atol=0)
    if not isinstance(domain, Reals):
        assert not projected.requires_grad
        assert projected.data_ptr() != value.data_ptr()
    assert domain.distance(value) == pytest.approx(
        float((before - projected.detach()).abs().max()), abs=1e-15
    )
    domain.project_(value)
    torch.testing.assert_close(value.detach(), projected.detach(), rtol=0, atol=0)


@each_case
@given(setting=settings_of_a_case())
@settings(max_examples=25, deadline=None)
def test_bounds_and_constraints_hold_exactly_in_the_set(make, setting):
    g, shape, scale = setting
    case = make(shape, g)
    if isinstance(case.domain, L1Ball):
        return

    def violation(value: Tensor) -> float:
        low, high = case.domain.bounds(value)
        assert low.shape == high.shape == value.shape
        inequalities, equalities = case.domain.constraints(value)
        worst = [torch.maximum(low - value, value - high).max()]
        worst += [] if inequalities is None else [inequalities.max()]
        worst += [] if equalities is None else [equalities.abs().max()]
        return float(torch.stack(worst).max())

    assert violation(case.member()) <= 1e-10
    value = scale * torch.randn(shape, generator=g)
    assert violation(case.domain.project(value)) <= 1e-10 * max(1.0, scale)
    if case.domain.distance(value) > 1e-3:
        assert violation(value) > 1e-7


@each_case
@given(setting=settings_of_a_case())
@settings(max_examples=15, deadline=None)
def test_samples_are_members_and_repeat_with_their_seed(make, setting):
    g, shape, scale = setting
    case = make(shape, g)
    value = scale * torch.randn(shape, generator=g)
    points = [case.domain.sample(value, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert case.residual(points[0]) <= 1e-12 * max(1.0, scale)
    assert points[0].shape == value.shape
    torch.testing.assert_close(points[0], points[1], rtol=0, atol=0)
    if isinstance(case.domain, Reals):
        assert not torch.equal(points[0], points[2])


# Closed forms and an independent solver -----------------------------------------------------------


@pytest.mark.parametrize(
    ("domain", "value", "expected"),
    [
        (Reals(), [-2.0, 3.0], [-2.0, 3.0]),
        (Box(0.0, 1.0), [-2.0, 3.0], [0.0, 1.0]),
        (Box(high=1), [-2.0, 3.0], [-2.0, 1.0]),
        (Box(-math.inf, tensor(1.0, math.inf)), [2.0, 3.0], [1.0, 3.0]),
        (Box(tensor(0.5, 5.0), 5.0), [9.0, 9.0], [5.0, 5.0]),
        (NonNegative(), [-2.0, 3.0], [0.0, 3.0]),
        (Ball(1.0), [3.0, 4.0], [0.6, 0.8]),
        (Ball(2.0, tensor(1.0, 0.0)), [4.0, 0.0], [3.0, 0.0]),
        (Ball(1.0), [3e200, 4e200], [0.6, 0.8]),
        (Ball(1e-250), [3e-200, 4e-200], [6e-251, 8e-251]),
        (Ball(1.0, 5.0), [5.0, 5.0], [5.0, 5.0]),
        (L1Ball(1.0), [3.0, 4.0], [0.0, 1.0]),
        (L1Ball(5.0), [3.0, -4.0], [2.0, -3.0]),
        (L1Ball(1.0, tensor(1.0, 1.0)), [1.0, -7.0], [1.0, 0.0]),
        (Simplex(), [2.0, 0.0], [1.0, 0.0]),
        (Simplex(), [0.3, 0.3], [0.5, 0.5]),
        (Simplex(3.0), [2.0, 2.0], [1.5, 1.5]),
        (Simplex(), [-1.0, -1.2, -9.0], [0.6, 0.4, 0.0]),
        (Simplex(1e-3), [1e15, 1e15], [5e-4, 5e-4]),
        (AffineSubspace(torch.ones(1, 2), tensor(1.0)), [0.0, 0.0], [0.5, 0.5]),
        (AffineSubspace(torch.tensor([[2, 0]]), torch.tensor([6])), [1.0, 1.0], [3.0, 1.0]),
    ],
    ids=repr,
)
def test_projection_closed_forms(domain, value, expected):
    torch.testing.assert_close(
        domain.project(tensor(*value)), tensor(*expected), rtol=1e-15, atol=0
    )


@pytest.mark.parametrize("kind", ["simplex", "l1 ball", "ball", "affine", "box"])
def test_projection_agrees_with_a_conic_solver(kind):
    rng = np.random.default_rng(5)
    value, A = 3 * rng.normal(size=12), rng.normal(size=(4, 12))
    b = A @ rng.normal(size=12)
    w = cp.Variable(12)
    domain, constraints = {
        "simplex": (Simplex(2.5), [w >= 0, cp.sum(w) == 2.5]),
        "l1 ball": (L1Ball(2.5, 0.5), [cp.norm1(w - 0.5) <= 2.5]),
        "ball": (Ball(2.5, 0.5), [cp.norm2(w - 0.5) <= 2.5]),
        "affine": (AffineSubspace(torch.from_numpy(A), torch.from_numpy(b)), [A @ w == b]),
        "box": (Box(-0.5, None), [w >= -0.5]),
    }[kind]
    cp.Problem(cp.Minimize(cp.sum_squares(w - value)), constraints).solve(solver=cp.CLARABEL)
    projected = domain.project(torch.from_numpy(value)).numpy()
    np.testing.assert_allclose(projected, w.value, atol=1e-6)


def test_simplex_projection_in_single_precision_keeps_the_total_over_many_small_entries():
    g = torch.Generator().manual_seed(0)
    value = -0.5 + 1e-6 * torch.rand(200_000, generator=g, dtype=torch.float32)
    value[0] = 0.0
    projected = Simplex().project(value)
    assert float(projected.double().sum()) == pytest.approx(1.0, abs=2e-6)
    torch.testing.assert_close(
        projected.double(), Simplex().project(value.double()), rtol=1e-7, atol=1e-9
    )


def test_simplex_projection_in_half_precision_rounds_only_its_result():
    value = torch.linspace(-1, 1, 5000).to(torch.bfloat16)
    exact = Simplex(900.0).project(value.double())
    projected = Simplex(900.0).project(value)
    torch.testing.assert_close(projected.double(), exact, rtol=0.004, atol=1e-6)


def test_affine_projection_from_afar_in_single_precision_ends_in_the_subspace():
    g = torch.Generator().manual_seed(0)
    A = torch.randn(5, 6, generator=g)
    domain = AffineSubspace(A, A @ torch.ones(6))
    far = (1e6 * (A.mT @ torch.ones(5))).float()  # normal to the subspace: its projection is near 0
    projected = domain.project(far)
    assert float((A @ projected.double() - A @ torch.ones(6)).abs().max()) < 2e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "domain",
    [
        Box(0.1, tensor(*range(1, 51))),
        Box(-1e300, 0.3),
        Ball(0.3, 0.1),
        L1Ball(0.3, 0.1),
        Simplex(0.3),
        AffineSubspace(torch.arange(100.0).reshape(2, 50).sin(), tensor(1.0, 2.0)),
    ],
    ids=["box", "huge box", "ball", "l1 ball", "simplex", "affine"],
)
def test_projection_works_in_the_variables_precision(domain, dtype):
    value = torch.linspace(-3, 3, 50).to(dtype)
    projected = domain.project(value)
    assert projected.dtype == dtype
    domain.validate(projected, "v")
    exact = domain.project(value.double())
    torch.testing.assert_close(projected.double(), exact, rtol=0, atol=8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize(
    "domain",
    [
        Box(0.0, 1.0),
        Box(tensor(0.0, 0.0, 0.0), None),
        Ball(9.0),
        Ball(0.1),
        L1Ball(0.1),
        Simplex(),
        AffineSubspace(torch.ones(1, 3), tensor(1.0)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_projection_does_not_hide_a_failure(domain, bad):
    projected = domain.project(tensor(0.1, bad, 0.2))
    if math.isnan(bad):
        assert bool(projected.isnan().any())
    elif not isinstance(domain, Box):
        assert not bool(projected.isfinite().all())


def test_empty_tensors_belong_to_sets_without_a_total():
    empty = torch.zeros(0, 3)
    for domain in (Reals(), Box(0.0, 1.0), Ball(1.0), L1Ball(1.0)):
        assert domain.project(empty).shape == (0, 3)
        assert domain.distance(empty) == 0.0
        domain.validate(empty, "x")
    with pytest.raises(DomainError, match="no entries"):
        Simplex().validate(empty, "x")
    with pytest.raises(DomainError, match="no entries"):
        Simplex().project(empty)


# Bounds, constraints ------------------------------------------------------------------------------


def test_bounds_are_the_entrywise_part():
    value = torch.zeros(2, 2)
    domain = Box(torch.tensor([[0.0, -1.0], [0.0, -1.0]]), 3)
    low, high = domain.bounds(value)
    assert low.tolist() == [[0.0, -1.0], [0.0, -1.0]]
    assert high.tolist() == [[3.0, 3.0], [3.0, 3.0]]
    low[0, 0] = 7.0  # the caller's own tensor
    assert domain.bounds(value)[0][0, 0] == 0.0
    assert [float(each[0, 0]) for each in NonNegative().bounds(value)] == [0.0, math.inf]
    assert [float(each[0, 0]) for each in Simplex(2.0).bounds(value)] == [0.0, math.inf]
    assert [float(each[0, 0]) for each in Ball(1.0).bounds(value)] == [-math.inf, math.inf]


def test_constraints_have_the_values_and_gradients_of_their_formulas():
    value = tensor(1.0, 2.0, 3.0).requires_grad_()
    inequality, none = Ball(2.0, tensor(1.0, 1.0, 1.0)).constraints(value)
    assert none is None
    assert inequality.tolist() == [1.0]  # 0 + 1 + 4 - 4
    (gradient,) = torch.autograd.grad(inequality.sum(), value)
    assert gradient.tolist() == [0.0, 2.0, 4.0]

    none, equality = Simplex(2.0).constraints(value)
    assert none is None
    assert equality.tolist() == [4.0]
    (gradient,) = torch.autograd.grad(equality.sum(), value)
    assert gradient.tolist() == [1.0, 1.0, 1.0]

    A, b = torch.tensor([[1.0, 0.0, 2.0], [0.0, 5.0, 0.0]]), tensor(1.0, 2.0)
    none, equality = AffineSubspace(A, b).constraints(value)
    assert none is None
    assert equality.tolist() == [6.0, 8.0]
    jacobian = torch.autograd.functional.jacobian(
        lambda v: AffineSubspace(A, b).constraints(v)[1], value
    )
    torch.testing.assert_close(jacobian, A, rtol=0, atol=0)

    assert Box(0.0, 1.0).constraints(value) == (None, None)
    assert Reals().constraints(value) == (None, None)


def test_affine_constraints_keep_independent_rows_in_their_order():
    g = torch.Generator().manual_seed(0)
    A, value = torch.randn(6, 8, generator=g), torch.randn(8, generator=g)
    equalities = AffineSubspace(A, torch.arange(6.0)).constraints(value)[1]
    torch.testing.assert_close(equalities, A @ value - torch.arange(6.0))


def test_l1_ball_sends_methods_that_need_constraints_to_a_first_order_solver():
    with pytest.raises(NotApplicableError, match="first-order solver"):
        L1Ball(1.0).constraints(tensor(0.0))


def test_affine_subspace_drops_redundant_rows_whatever_their_units():
    A = torch.tensor([[1.0, 1.0, 0.0], [1e9, 1e9, 0.0], [0.0, 0.0, 1e-15], [0.0, 0.0, 0.0]])
    domain = AffineSubspace(A, tensor(2.0, 2e9, 3e-15, 0.0))
    torch.testing.assert_close(domain.project(tensor(0.0, 0.0, 0.0)), tensor(1.0, 1.0, 3.0))
    equalities = domain.constraints(tensor(0.0, 0.0, 0.0))[1]
    assert equalities.shape == (2,)


@pytest.mark.parametrize("row", [(0.1, 5.4), (0.2, 4.3), (0.2, 8.9), (0.4, 5.3)])
def test_affine_subspace_takes_rows_equal_up_to_rounding_as_one(row):
    row, value = tensor(*row), tensor(-3.0, 8.0)
    domain = AffineSubspace(torch.stack([row, row / 7]), tensor(1.0, 1 / 7))
    assert domain.constraints(value)[1].shape == (1,)
    expected = value - row * (row @ value - 1) / (row @ row)
    torch.testing.assert_close(domain.project(value), expected, rtol=0, atol=1e-14)


def test_affine_subspace_accepts_data_rounded_to_single_precision():
    g = torch.Generator().manual_seed(1)
    A = torch.randn(3, 8, generator=g)
    A = torch.cat([A, A.sum(0, keepdim=True) / 3]).float()
    domain = AffineSubspace(A, (A.double() @ torch.ones(8)).float())
    assert domain.constraints(torch.zeros(8))[1].shape == (3,)
    assert float(domain.project(torch.zeros(8)).abs().max()) < 10


# Samples ------------------------------------------------------------------------------------------


def test_samples_of_a_bounded_box_are_uniform():
    low, high = tensor(-3.0, 0.0), tensor(1.0, 1e-3)
    points = Box(low, high).sample(torch.zeros(20_000, 2), torch.Generator().manual_seed(0))
    relative = (points - low) / (high - low)
    assert bool(((relative >= 0) & (relative <= 1)).all())
    assert relative.mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.01)
    assert relative.var(0).tolist() == pytest.approx([1 / 12, 1 / 12], abs=0.003)


def test_samples_of_open_entries_scatter_around_the_value_at_its_scale():
    box = Box(tensor(-1.0, -math.inf), tensor(1.0, math.inf))
    value = tensor(0.0, 100.0).expand(20_000, 2)
    points = box.sample(value, torch.Generator().manual_seed(0))
    assert float(points[:, 0].abs().max()) <= 1.0
    assert float(points[:, 0].var()) == pytest.approx(1 / 3, abs=0.01)
    assert float(points[:, 1].mean()) == pytest.approx(100.0, abs=3.0)
    assert float(points[:, 1].std()) == pytest.approx(100.0, abs=3.0)


# A start outside, constants that do not fit -------------------------------------------------------


@pytest.mark.parametrize(
    ("domain", "value", "message"),
    [
        (Box(0.0, 3.0), [[1.0, 2.0], [4.0, 0.0]], r"x\[1, 0\] = 4 is above the upper bound 3"),
        (Box(tensor(0.0, 2.5)), [[1.0, 2.0]], r"x\[0, 1\] = 2 is below the lower bound 2.5"),
        (NonNegative(), [1e9, -1e-2], r"x\[1\] = -0.01 is below the lower bound 0"),
        (Ball(1.0), [3.0, 4.0], r"distance from the center is 5, above the radius 1"),
        (L1Ball(1.0), [3.0, 4.0], r"distance from the center is 7, above the radius 1"),
        (Simplex(), [1.5, -0.5], r"x\[1\] = -0.5 is below the lower bound 0"),
        (Simplex(), [0.5, 0.75], r"entries sum to 1.25, expected 1"),
        (
            AffineSubspace(torch.eye(2), tensor(1.0, 2.0)),
            [1.0, 3.0],
            r"row 1 of A gives 3, expected b\[1\] = 2",
        ),
        (Box(0.0, 1.0), [0.5, math.nan], r"x\[1\] is nan"),
        (Ball(1.0), [math.inf, 0.0], r"x\[0\] is inf"),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, Domain) else None,
)
def test_a_start_outside_is_named(domain, value, message):
    with pytest.raises(DomainError, match=message) as raised:
        domain.validate(torch.tensor(value), "x")
    if "finite" not in str(raised.value):
        assert "domain.project(x)" in str(raised.value)


def test_a_scalar_start_outside_is_named_without_an_index():
    with pytest.raises(DomainError, match="x = 2 is above the upper bound 1"):
        Box(0.0, 1.0).validate(torch.tensor(2.0), "x")


@pytest.mark.parametrize(
    ("domain", "inside", "outside"),
    [
        (Box(0.0, 1.0), [1 + 5e-7, 0.0], [1 + 2e-6, 0.0]),
        (Box(0.0, 1.0), [0.0, -5e-7], [0.0, -2e-6]),
        (Ball(1.0), [1 + 5e-7, 0.0], [1 + 2e-6, 0.0]),
        (Ball(1e-3, 1e3), [1e3, 1e3 + 1.5e-3], [1e3, 1e3 + 5e-3]),
        (L1Ball(1.0), [1 + 5e-7, 0.0], [1 + 2e-6, 0.0]),
        (Simplex(1e3), [1e3 + 5e-4, 0.0], [1e3 + 2e-3, 0.0]),
        (AffineSubspace(torch.eye(2), tensor(1.0, 0.0)), [1 + 5e-7, 0.0], [1 + 5e-6, 0.0]),
    ],
    ids=repr,
)
def test_a_start_may_be_outside_by_rounding_only(domain, inside, outside):
    domain.validate(tensor(*inside), "x")
    with pytest.raises(DomainError):
        domain.validate(tensor(*outside), "x")


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        (Box(tensor(0.0, 0.0)), r"Box.low has shape \(2,\).*shape \(3,\)"),
        (Box(None, torch.ones(2, 3)), r"Box.high has shape \(2, 3\).*shape \(3,\)"),
        (Ball(1.0, tensor(0.0, 0.0)), r"Ball.center has shape \(2,\)"),
        (L1Ball(1.0, tensor(0.0, 0.0)), r"L1Ball.center has shape \(2,\)"),
        (AffineSubspace(torch.ones(1, 2), tensor(1.0)), r"2 columns.*3 entries"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("action", ["project", "project_", "validate"])
def test_constants_that_do_not_fit_the_variable_are_named(domain, message, action):
    value = torch.zeros(3)
    arguments = (value, "x") if action == "validate" else (value,)
    with pytest.raises(DomainError, match=message):
        getattr(domain, action)(*arguments)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Box(1.0, 0.5), r"low = 1, high = 0.5"),
        (lambda: Box(0.1 + 1e-12, 0.1), r"Box is empty"),
        (lambda: Box(tensor(0.0, 3.0), tensor(1.0, 2.0)), r"low\[1\] = 3, high\[1\] = 2"),
        (lambda: Box(torch.zeros(2, 1), tensor(1.0, -1.0)), r"low\[0, 1\] = 0, high\[0, 1\] = -1"),
        (lambda: Box(math.inf), r"low = inf"),
        (lambda: Box(None, tensor(0.0, -math.inf)), r"high\[1\] = -inf"),
        (lambda: Box(math.nan), r"Box.low is nan"),
        (lambda: Box(0.0, tensor(1.0, math.nan)), r"Box.high holds NaN at \[1\]"),
        (lambda: Box(torch.zeros(2), torch.ones(3)), r"shape \(2,\) and Box.high \(3,\)"),
        (lambda: Box([0.0, 1.0]), r"Box.low is \[0.0, 1.0\].*torch.tensor"),
        (lambda: Box("0"), r"Box.low is '0'"),
        (lambda: Ball(0.0), r"Ball.radius is 0.0, expected a positive"),
        (lambda: Ball(-1.0), r"Ball.radius is -1.0"),
        (lambda: Ball(math.inf), r"Ball.radius is inf"),
        (lambda: Ball(math.nan), r"Ball.radius is nan"),
        (lambda: Ball(None), r"Ball.radius is None"),
        (lambda: Ball(1.0, math.nan), r"Ball.center is nan"),
        (lambda: Ball(1.0, tensor(math.inf)), r"Ball.center is .*inf.*finite"),
        (lambda: L1Ball(-2.0), r"L1Ball.radius is -2.0"),
        (lambda: L1Ball(1.0, "0"), r"L1Ball.center is '0'"),
        (lambda: Simplex(0.0), r"Simplex.total is 0.0"),
        (lambda: Simplex(-1.0), r"Simplex.total is -1.0"),
        (lambda: Simplex(tensor(1.0, 2.0)), r"Simplex.total is tensor"),
        (lambda: AffineSubspace([[1.0]], tensor(1.0)), r"AffineSubspace.A is \[\[1.0\]\]"),
        (lambda: AffineSubspace(torch.ones(3), tensor(1.0)), r"A has shape \(3,\).*2 dim"),
        (lambda: AffineSubspace(torch.eye(2), torch.ones(2, 1)), r"b has shape \(2, 1\)"),
        (lambda: AffineSubspace(torch.eye(2), tensor(1.0)), r"\(2, 2\) and b \(1,\)"),
        (lambda: AffineSubspace(torch.ones(0, 2), torch.ones(0)), r"m, n >= 1"),
        (lambda: AffineSubspace(torch.eye(1), tensor(math.nan)), r"b holds NaN"),
        (lambda: AffineSubspace(torch.eye(2) / 0, tensor(1.0, 1.0)), r"A holds NaN"),
        (
            lambda: AffineSubspace(torch.tensor([[1.0, 1.0], [2.0, 2.0]]), tensor(1.0, 3.0)),
            r"empty: row [01] contradicts",
        ),
        (lambda: AffineSubspace(torch.zeros(1, 2), tensor(1.0)), r"row 0 contradicts"),
    ],
)
def test_a_bad_constant_is_named_where_it_is_given(build, message):
    with pytest.raises(DomainError, match=message):
        build()


# Domains as records -------------------------------------------------------------------------------


def test_constants_are_converted_once_for_each_dtype():
    domain = Ball(1.0, tensor(1.0, 2.0))
    value = torch.zeros(2, dtype=torch.float32)
    domain.project(value)
    moved = dict(domain._moved)
    domain.project(value)
    assert len(moved) == 1
    assert all(domain._moved[key] is each for key, each in moved.items())


def test_a_domain_keeps_its_own_constants():
    low = torch.zeros(2, requires_grad=True)
    domain = Box(low, 1.0)
    with torch.no_grad():
        low += 5
    assert domain.project(tensor(-1.0, 2.0)).tolist() == [0.0, 1.0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        domain.high = 2.0


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        (Reals(), Reals(), NonNegative()),
        (Box(0, 1), Box(0.0, 1.0), Box(0, 2)),
        (Box(tensor(0.0, 1.0)), Box(tensor(0.0, 1.0)), Box(tensor(0.0, 2.0))),
        (Box(0.0), Box(0.0, math.inf), Box(tensor(0.0, 0.0))),
        (NonNegative(), NonNegative(), Box(0.0)),
        (Ball(1.0), Ball(1.0), L1Ball(1.0)),
        (Simplex(), Simplex(1), Simplex(2)),
    ],
    ids=repr,
)
def test_domains_compare_by_their_constants_and_can_be_copied(one, same, other):
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert copy.deepcopy(one) == one
    assert pickle.loads(pickle.dumps(one)) == one


def test_a_pickled_affine_subspace_projects_as_before():
    domain = AffineSubspace(torch.ones(1, 2), tensor(1.0))
    value = tensor(3.0, 1.0)
    again = pickle.loads(pickle.dumps(domain))
    assert again.project(value).tolist() == domain.project(value).tolist()
    assert again.project(value).tolist() == pytest.approx([1.5, -0.5])
    assert dataclasses.replace(Box(0.0, 1.0), high=2.0) == Box(0.0, 2.0)


# Trees of domains ---------------------------------------------------------------------------------

Pair = namedtuple("Pair", ["first", "second"])


@pytest.mark.parametrize(
    ("domain", "tree", "expected"),
    [
        (None, torch.zeros(2), [Reals()]),
        (Simplex(), torch.zeros(2), [Simplex()]),
        (Simplex(), {"w": torch.zeros(2), "u": [torch.zeros(1)]}, [Simplex(), Simplex()]),
        ({"lam": NonNegative()}, {"w": torch.zeros(2), "lam": torch.zeros(1)}, [Reals(), Box(0)]),
        (
            {"b": Ball(1.0), "a": None},
            {"a": torch.zeros(1), "b": torch.zeros(1)},
            [Reals(), Ball(1)],
        ),
        (
            {"net": {"bias": Ball(2.0)}},
            {"c": torch.zeros(1), "net": {"weight": torch.zeros(1), "bias": torch.zeros(1)}},
            [Reals(), Reals(), Ball(2.0)],
        ),
        (
            {"net": Ball(2.0)},
            {"c": torch.zeros(1), "net": {"weight": torch.zeros(1), "bias": torch.zeros(1)}},
            [Reals(), Ball(2.0), Ball(2.0)],
        ),
        ([None, Simplex()], (torch.zeros(1), torch.zeros(2)), [Reals(), Simplex()]),
        (
            Pair(Ball(1.0), [Ball(2.0), None]),
            Pair(torch.zeros(1), (torch.zeros(1), torch.zeros(1))),
            [Ball(1.0), Ball(2.0), Reals()],
        ),
        (Ball(1.0), (), []),
        (None, None, []),
    ],
)
def test_each_leaf_finds_its_domain_in_the_order_of_the_variable(domain, tree, expected):
    found = domains_of_leaves(domain, tree)
    assert [Box(0) if each == NonNegative() else each for each in found] == expected


@pytest.mark.parametrize(
    ("domain", "tree", "message"),
    [
        ({"lamb": Box(0)}, {"lam": torch.zeros(1)}, r"names 'lamb', which x lacks; it has 'lam'"),
        (
            {"a": {"c": Box(0)}},
            {"a": {"b": torch.zeros(1)}},
            r"names 'c', which x\['a'\] lacks; it has 'b'",
        ),
        ({"a": Box(0)}, torch.zeros(1), r"domain of x is a dict, but x is a single tensor"),
        ({"a": Box(0)}, [torch.zeros(1)], r"domain of x is a dict, but x is a list"),
        ([Box(0)], {"a": torch.zeros(1)}, r"domain of x is a list, but x is a dict"),
        ([Box(0)], torch.zeros(1), r"domain of x is a list, but x is a single tensor"),
        ([Box(0)], [torch.zeros(1)] * 2, r"has 1 parts and x has 2.*give None"),
        (0.5, torch.zeros(1), r"domain of x is 0.5; expected a Domain"),
        ([Box], [torch.zeros(1)], r"domain of x\[0\] is <class.*expected a Domain"),
    ],
)
def test_a_tree_of_domains_that_does_not_fit_its_variable_is_named(domain, tree, message):
    with pytest.raises(DomainError, match=message):
        domains_of_leaves(domain, tree, "x")


def test_a_leaf_that_is_no_tensor_is_named():
    with pytest.raises(VariableError, match=r"x\['a'\] is a float"):
        domains_of_leaves(Box(0), {"a": 1.0}, "x")


# Sharded tensors ----------------------------------------------------------------------------------


def _check_sharded(process: int, store: str) -> None:
    import torch.distributed as dist
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=process, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    value = torch.linspace(-1, 2, 21, dtype=torch.float64).reshape(7, 3)  # shards of 4 and 3 rows
    for domain in (
        Box(0.0, 0.5),
        Box(torch.linspace(-1, 0, 21, dtype=torch.float64).reshape(7, 3), 1.0),
        Ball(1.0, 0.1),
        L1Ball(1.0),
        Simplex(),
        AffineSubspace(torch.ones(1, 21, dtype=torch.float64), tensor(1.0)),
    ):
        sharded = distribute_tensor(value.clone(), mesh, [Shard(0)])
        assert abs(domain.distance(sharded) - domain.distance(value)) < 1e-14
        domain.project_(sharded)
        assert float((sharded.full_tensor() - domain.project(value)).abs().max()) < 1e-14
        domain.validate(sharded, "x")
    dist.barrier()
    os._exit(0)  # gloo's threads can abort an interpreter that winds down in the ordinary way


@pytest.mark.slow  # two processes that each import torch
def test_a_tensor_sharded_over_processes_is_projected_as_a_whole(tmp_path):
    torch.multiprocessing.spawn(_check_sharded, args=(str(tmp_path / "store"),), nprocs=2)
