"""Training: optimisers, schedulers, clipping, accumulation, precision, memory, callbacks."""

from __future__ import annotations

import dataclasses
import gc
import sys
import weakref
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from networks import batches, classification, losses, network
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toys import coupled_toy, negative_toy, scalar

from bilevel import BLOCC, PBGD, BilevelProblem, Exact, MaxMin, PBGDFree, Status
from bilevel.callbacks import Callback, Checkpoint, EarlyStopping, TensorBoard
from bilevel.errors import BilevelError, ObjectiveError, OptionError

PENALTY = 5.0
RATES = {"upper_lr": 0.1, "lower_lr": 0.3}
STEPS = 12
UPPER, LOWER = batches(1), batches(2)


def train(solver, problem, net, *, steps=STEPS, upper=UPPER, lower=LOWER, **options):
    return solver.solve(
        problem, *net.levels(), max_steps=steps, tolerance=0.0, progress=False,
        upper_batches=upper, lower_batches=lower, **options,
    )  # fmt: skip


def distance(one, other):
    """Largest difference of two networks' parameters."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def by_hand(net, make_upper, make_lower, *, inner_steps=1, clip=None, scheduler=None):
    """PBGD-Free as one would write it without the library."""
    x, y = (list(level.values()) for level in net.levels())
    upper, lower = make_upper(x), make_lower(y)
    schedulers = [scheduler(each) for each in (upper, lower)] if scheduler else []

    def values(batch):
        return losses(net(batch[0]), batch[1])

    for upper_batch, lower_batch in zip(UPPER[:STEPS], LOWER[:STEPS], strict=True):
        for _ in range(inner_steps):
            net.zero_grad()
            (values(upper_batch)[0] / PENALTY + values(lower_batch)[1]).backward()
            if clip:
                nn.utils.clip_grad_norm_(y, clip)
            lower.step()
        net.zero_grad()
        values(upper_batch)[0].backward()
        if clip:
            nn.utils.clip_grad_norm_(x, clip)
        upper.step()
        for each in schedulers:
            each.step()
    return net


OPTIMIZERS = [
    partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True),
    partial(torch.optim.Adam, lr=0.02, amsgrad=True),
    partial(torch.optim.AdamW, lr=0.02, weight_decay=0.1),
    partial(torch.optim.NAdam, lr=0.02),
    partial(torch.optim.RAdam, lr=0.02),
    partial(torch.optim.Adamax, lr=0.02),
    partial(torch.optim.Adagrad, lr=0.02),
    partial(torch.optim.Adadelta),
    partial(torch.optim.RMSprop, lr=0.01),
    partial(torch.optim.Rprop, lr=0.01),
    partial(torch.optim.ASGD, lr=0.05),
    partial(torch.optim.Adafactor),
]


class TestOptimisers:
    @pytest.mark.parametrize("make", OPTIMIZERS, ids=lambda make: make.func.__name__)
    def test_any_optimiser_gives_the_iterates_of_a_loop_written_by_hand(self, make):
        net = network()
        solver = PBGDFree(
            penalty=PENALTY, inner_steps=2, upper_optimizer=make, lower_optimizer=make
        )
        train(solver, classification(net), net)
        assert distance(net, by_hand(network(), make, make, inner_steps=2)) < 1e-13
        assert distance(net, network()) > 1e-3

    def test_each_level_has_its_own_optimiser(self):
        net = network()
        make_upper, make_lower = OPTIMIZERS[0], OPTIMIZERS[1]
        solver = PBGDFree(penalty=PENALTY, upper_optimizer=make_upper, lower_optimizer=make_lower)
        train(solver, classification(net), net)
        assert distance(net, by_hand(network(), make_upper, make_lower)) < 1e-13

    def test_schedulers_step_once_an_outer_step(self):
        make = partial(torch.optim.SGD, lr=0.2)
        scheduler = partial(torch.optim.lr_scheduler.StepLR, step_size=3, gamma=0.5)
        solver = PBGDFree(
            penalty=PENALTY, inner_steps=3, upper_optimizer=make, lower_optimizer=make,
            upper_scheduler=scheduler, lower_scheduler=scheduler,
        )  # fmt: skip
        net = network()
        train(solver, classification(net), net)
        expected = by_hand(network(), make, make, inner_steps=3, scheduler=scheduler)
        assert distance(net, expected) < 1e-13

    def test_schedulers_step_for_both_responses(self):
        net = network()
        solver = PBGD(
            penalty=PENALTY, inner_steps=3,
            upper_lr=0.1, upper_scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=2),
            lower_lr=0.1, lower_scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=2),
        )  # fmt: skip
        state = solver.init(classification(net), *net.levels())
        for _ in range(4):
            solver.step(classification(net), state, UPPER[0], LOWER[0])
        for optimizer in (
            state.upper_optimizer, state.perturbed.optimizer, state.original.optimizer
        ):  # fmt: skip
            assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.1**2)

    def test_clipping_bounds_the_global_norm_at_each_level(self):
        net, bound = network(), 0.05
        sgd = partial(torch.optim.SGD, lr=0.5)
        solver = PBGDFree(penalty=PENALTY, upper_lr=0.5, lower_lr=0.5, clip_norm=bound)
        train(solver, classification(net), net)
        assert distance(net, by_hand(network(), sgd, sgd, clip=bound)) < 1e-13

        net = network()
        train(solver, classification(net), net, steps=1)
        for moved, start in zip(net.levels(), network().levels(), strict=True):
            step = torch.cat([(moved[name] - start[name]).detach().flatten() for name in moved])
            assert float(step.norm()) == pytest.approx(0.5 * bound, rel=1e-4)


METHODS = {
    "value-function-free": PBGDFree(penalty=PENALTY, inner_steps=2, **RATES),
    "alternating": PBGD(penalty=PENALTY, inner_steps=2, **RATES),
    "joint": PBGD(penalty=PENALTY, inner_steps=2, variant="joint", **RATES),
}
each_method = pytest.mark.parametrize("solver", METHODS.values(), ids=METHODS.keys())


class TestBatches:
    @pytest.mark.parametrize("count", [1, 2])
    def test_a_step_leaves_no_features_behind(self, count):
        """What they hold on a GPU must not wait for the garbage collector."""
        made = []

        def features(x, batch):
            made.append(torch.ones(3) * x)
            return made[-1]

        problem = BilevelProblem(
            features=features,
            upper=lambda h, y, batch: (h + y).square().sum(),
            lower=lambda h, y, batch: (h - y).square().sum(),
        )
        solver = PBGDFree(penalty=PENALTY, accumulate=count, **RATES)
        state = solver.init(problem, torch.ones(3), torch.zeros(3))
        batches = [torch.zeros(1)] * count if count > 1 else torch.zeros(1)
        gc.disable()
        try:
            solver.step(problem, state, batches, batches)
            kept = [weakref.ref(each) for each in made]
            made.clear()
            assert kept
            assert all(each() is None for each in kept)
        finally:
            gc.enable()

    @each_method
    def test_accumulated_micro_batches_are_the_full_batch(self, solver):
        def halved(full):
            return [(part, labels[rows])
                    for inputs, labels in full
                    for rows in (slice(0, 4), slice(4, 8))
                    for part in [inputs[rows]]]  # fmt: skip

        whole, parts = network(), network()
        full = train(solver, classification(whole), whole)
        options = {name: getattr(solver, name) for name in ("penalty", "inner_steps")}
        if isinstance(solver, PBGD):
            options["variant"] = solver.variant
        accumulating = type(solver)(accumulate=2, **options, **RATES)
        split = train(
            accumulating, classification(parts), parts, upper=halved(UPPER), lower=halved(LOWER)
        )
        assert distance(whole, parts) < 1e-12
        assert split.steps == full.steps == STEPS
        values = full.history.columns.intersection(["upper", "lower", "value"])
        assert {"upper", "lower"} <= set(values)
        pd.testing.assert_frame_equal(split.history[values], full.history[values], rtol=1e-9)

    def test_a_list_of_another_length_is_refused(self):
        net = network()
        solver = PBGDFree(penalty=PENALTY, accumulate=3, **RATES)
        state = solver.init(classification(net), *net.levels())
        with pytest.raises(ObjectiveError, match="accumulate=3"):
            solver.step(classification(net), state, UPPER[:2], LOWER[:3])

    def test_loaders_are_gone_through_again_and_again(self):
        seen = []

        class Recorder:
            def __iter__(self):
                seen.append("epoch")
                return iter(UPPER[:3])

        net = network()
        train(METHODS["value-function-free"], classification(net), net, steps=7, upper=Recorder())
        assert seen == ["epoch"] * 3

    def test_an_empty_loader_is_refused(self):
        net = network()
        with pytest.raises(OptionError, match="upper_batches yielded no batch"):
            train(METHODS["value-function-free"], classification(net), net, upper=[])


class TestSharedWork:
    @each_method
    def test_features_are_computed_once_a_step_and_give_the_same_iterates(self, solver):
        calls = 0
        plain, shared = network(), network()

        def features(x, batch):
            nonlocal calls
            calls += 1
            return shared.backbone(batch[0])

        problem = BilevelProblem(
            upper=lambda hidden, y, batch: losses(shared.head(hidden), batch[1])[0],
            lower=lambda hidden, y, batch: losses(shared.head(hidden), batch[1])[1],
            features=features,
        )
        train(solver, classification(plain), plain)
        state = solver.init(problem, *shared.levels())
        for upper_batch, lower_batch in zip(UPPER[:STEPS], LOWER[:STEPS], strict=True):
            solver.step(problem, state, upper_batch, lower_batch)
        assert distance(plain, shared) < 1e-13
        assert calls == 2 * STEPS  # once for each level's batch

    def test_only_what_the_outer_step_differentiates_keeps_its_graph(self):
        net, kept = network(), []

        def features(x, batch):
            hidden = net.backbone(batch[0])
            kept.append(hidden.requires_grad)
            return hidden

        problem = BilevelProblem(
            upper=lambda hidden, y, batch: losses(net.head(hidden), batch[1])[0],
            lower=lambda hidden, y, batch: losses(net.head(hidden), batch[1])[1],
            features=features,
        )
        solver = METHODS["value-function-free"]
        solver.step(problem, solver.init(problem, *net.levels()), UPPER[0], LOWER[0])
        assert kept == [True, False]  # f's, g's
        kept.clear()
        solver = dataclasses.replace(solver, accumulate=2)
        solver.step(problem, solver.init(problem, *net.levels()), UPPER[:2], LOWER[:2])
        assert kept == [False] * 4 + [True] * 2  # the response's, then the outer step's

    @each_method
    def test_features_of_micro_batches_give_the_same_iterates(self, solver):
        solver = dataclasses.replace(solver, accumulate=2)
        plain, shared = network(), network()
        problem = BilevelProblem(
            upper=lambda hidden, y, batch: losses(shared.head(hidden), batch[1])[0],
            lower=lambda hidden, y, batch: losses(shared.head(hidden), batch[1])[1],
            features=lambda x, batch: shared.backbone(batch[0]),
        )
        for net, stated in ((plain, classification(plain)), (shared, problem)):
            state = solver.init(stated, *net.levels())
            for _ in range(3):
                solver.step(stated, state, UPPER[:2], LOWER[:2])
        assert distance(plain, shared) < 1e-13

    @each_method
    def test_features_of_a_batch_that_both_levels_use_are_computed_once(self, solver):
        calls = 0
        net = network()

        def features(x, batch):
            nonlocal calls
            calls += 1
            return net.backbone(batch[0])

        problem = BilevelProblem(
            upper=lambda hidden, y, batch: losses(net.head(hidden), batch[1])[0],
            lower=lambda hidden, y, batch: losses(net.head(hidden), batch[1])[1],
            features=features,
        )
        plain = network()
        train(solver, classification(plain), plain, lower=UPPER)
        state = solver.init(problem, *net.levels())
        for batch in UPPER[:STEPS]:
            solver.step(problem, state, batch, batch)
        assert distance(plain, net) < 1e-13
        assert calls == STEPS

    @pytest.mark.parametrize(
        ("solver", "passes"),
        [
            (PBGDFree(penalty=PENALTY, inner_steps=1, **RATES), 2),
            (PBGDFree(penalty=PENALTY, inner_steps=3, **RATES), 4),
            (PBGD(penalty=PENALTY, inner_steps=2, **RATES), 6),
            (PBGD(penalty=PENALTY, inner_steps=2, variant="joint", **RATES), 4),
        ],
        ids=["free", "free-3", "alternating", "joint"],
    )
    def test_objectives_take_one_forward_pass_for_both_and_give_the_same_iterates(
        self, solver, passes
    ):
        calls = 0
        separate, joint = network(), network()

        def both(x, y, batch):
            nonlocal calls
            calls += 1
            (inputs, labels), (others, other_labels) = batch
            outputs = joint(torch.cat([inputs, others]))
            first, second = outputs.split([len(inputs), len(others)])
            return losses(first, labels)[0], losses(second, other_labels)[1]

        problem = BilevelProblem(objectives=both)
        train(solver, classification(separate), separate)
        state = solver.init(problem, *joint.levels())
        for upper_batch, lower_batch in zip(UPPER[:STEPS], LOWER[:STEPS], strict=True):
            solver.step(problem, state, upper_batch, lower_batch)
        assert distance(separate, joint) < 1e-13
        assert calls == passes * STEPS


class TestPrecision:
    def test_autocast_evaluates_in_bfloat16_and_learns_in_float32(self):
        net = network(dtype=torch.float32)
        seen = set()

        def predict(inputs):
            outputs = net(inputs.float())
            seen.add(outputs.dtype)
            return outputs

        # Labels that the inputs determine, so that there is something to learn.
        learnable = [(inputs, inputs[:, :3].argmax(1)) for inputs, _ in batches(3, 30, 64)]
        make = partial(torch.optim.Adam, lr=0.05)
        solver = PBGDFree(
            penalty=PENALTY, upper_optimizer=make, lower_optimizer=make, autocast=torch.bfloat16
        )
        state = solver.init(classification(predict), *net.levels())
        values = []
        for step in range(60):
            batch = learnable[step % 30]
            solver.step(classification(predict), state, batch, batch)
            values.append(float(state.record["upper"]))
        assert seen == {torch.bfloat16}
        assert all(p.dtype == torch.float32 for p in net.parameters())
        assert np.mean(values[-5:]) < 0.5 * values[0]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_a_solution_keeps_the_starts_dtypes(self, dtype):
        x0, y0 = torch.zeros(3, dtype=dtype), {"w": torch.ones(2, dtype=dtype)}
        solution = quadratic_run(PBGD(penalty=10.0, **RATES), x0, y0)
        assert solution.x.dtype == solution.y["w"].dtype == dtype


def quadratic_run(solver, x0, y0, **options):
    """f = |x - 1|² + |w|², g = |w - x₁|²."""
    problem = BilevelProblem(
        upper=lambda x, y: (x - 1).square().sum() + y["w"].square().sum(),
        lower=lambda x, y: (y["w"] - x[0]).square().sum(),
    )
    return solver.solve(problem, x0, y0, max_steps=20, progress=False, **options)


class TestVariables:
    def test_parameters_train_in_place(self):
        net = network()
        solution = train(METHODS["alternating"], classification(net), net)
        for found, level in zip((solution.x, solution.y), net.levels(), strict=True):
            assert found.keys() == level.keys()
            assert all(found[name] is parameter for name, parameter in level.items())
        assert all(p.requires_grad for p in net.parameters())
        assert distance(net, network()) > 1e-3

    def test_plain_tensors_are_never_changed(self):
        x0, y0 = torch.zeros(3), {"w": torch.ones(2)}
        solution = quadratic_run(PBGD(penalty=10.0, **RATES), x0, y0)
        assert torch.equal(x0, torch.zeros(3))
        assert torch.equal(y0["w"], torch.ones(2))
        assert not x0.requires_grad
        assert not solution.x.requires_grad
        assert solution.x is not x0
        assert not torch.equal(solution.x, x0)

    def test_a_solution_does_not_share_memory_with_the_state(self):
        problem = BilevelProblem(upper=lambda x, y: x**2 + y**2, lower=lambda x, y: (y - x) ** 2)
        kept = []
        solution = PBGDFree(penalty=10.0, **RATES).solve(
            problem, scalar(1.0), scalar(2.0), max_steps=5, progress=False,
            callbacks=[lambda record, state: kept.append(state)],
        )  # fmt: skip
        value = float(solution.x)
        with torch.no_grad():
            kept[-1].upper.leaves[0].fill_(99.0)
        assert float(solution.x) == value

    def test_parameters_are_solved_by_sqp_as_plain_tensors_are(self):
        problem, x0, y0 = coupled_toy(4, 1.0), scalar(1.0), scalar(0.5)
        plain = BLOCC().solve(problem, x0, y0, progress=False)
        x, y = nn.Parameter(x0.clone()), nn.Parameter(y0.clone())
        trained = BLOCC().solve(problem, x, y, progress=False)
        assert trained.parts["outer"] == "SQP"
        assert trained.x is x
        assert trained.y is y
        assert x.item() == plain.x.item() != x0.item()
        assert y.item() == plain.y.item()

    @pytest.mark.parametrize("empty", [(), None, {}])
    @pytest.mark.parametrize("method", ["value-function-free", "alternating"])
    def test_simple_bilevel_problems_choose_among_minimisers(self, empty, method):
        # g is least on y₁ + y₂ = 1, where f = |y|² picks the middle, up to the penalty's 1/γ.
        problem = BilevelProblem(
            upper=lambda x, y: y.square().sum(), lower=lambda x, y: (y.sum() - 1.0) ** 2
        )
        penalty = 50.0
        solver = type(METHODS[method])(penalty=penalty, upper_lr=0.1, lower_lr=0.2)
        y0 = torch.tensor([3.0, -1.0], dtype=torch.float64)
        solution = solver.solve(problem, empty, y0, max_steps=3000, progress=False)
        middle = torch.full((2,), 1 / (2 + 1 / penalty), dtype=torch.float64)
        assert solution.x == empty
        assert solution.converged
        assert torch.allclose(solution.y, middle, atol=1e-4)


class LiveStorages(TorchDispatchMode):
    """Storages of a given size that were made inside the mode and are still held by anything."""

    def __init__(self, entries: int) -> None:
        super().__init__()
        self.entries = entries
        self._made: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.numel() == self.entries:
                reference = StorageWeakRef(tensor.untyped_storage())
                self._made[reference.cdata] = reference
        return result

    def besides(self, tensors) -> int:
        gc.collect()
        known = {tensor.untyped_storage()._cdata for tensor in tensors if tensor is not None}
        alive = {cdata for cdata, made in self._made.items() if not made.expired()}
        return len(alive - known)


class TestMemory:
    @pytest.mark.parametrize(
        ("solver", "copies"),
        [
            (METHODS["value-function-free"], 0),
            (METHODS["alternating"], 1),
            (METHODS["joint"], 1),
        ],
        ids=METHODS.keys(),
    )
    @pytest.mark.parametrize("kind", [nn.Parameter, torch.clone], ids=["parameter", "tensor"])
    def test_pbgd_keeps_one_more_copy_of_y_and_pbgd_free_none(self, solver, copies, kind):
        entries = 12_347  # no other tensor has this size
        problem = BilevelProblem(
            upper=lambda x, y: (x * y.mean() - 1) ** 2, lower=lambda x, y: (y - x).square().mean()
        )
        x, y = torch.ones(()), kind(torch.zeros(entries))
        with LiveStorages(entries) as storages:
            state = solver.init(problem, x, y)
            for _ in range(3):
                solver.step(problem, state)
            leaf = state.lower.leaves[0]
            assert storages.besides([y, leaf, leaf.grad]) == copies

    @pytest.mark.parametrize(
        ("solver", "count"),
        [
            (PBGDFree(penalty=PENALTY, inner_steps=1, **RATES), 2000),
            (METHODS["alternating"], 300),
            (METHODS["joint"], 300),
            (BLOCC(penalty=PENALTY, upper_lr=0.01, response=MaxMin(steps=1, lr=0.1)), 300),
        ],
        ids=[*METHODS, "single-loop blocc"],
    )
    def test_memory_does_not_grow_with_the_steps(self, solver, count):
        constraints = (lambda x, y: y - 1.0 - x) if isinstance(solver, BLOCC) else None
        problem = BilevelProblem(
            upper=lambda x, y: (x**2).sum() + (y * x).sum() ** 2,
            lower=lambda x, y: (y - x).square().sum(),
            lower_constraints=constraints,
        )
        start = torch.tensor([1.0, -0.5])
        state = solver.init(problem, start, start)

        def held():
            gc.collect()
            kinds = [type(each) for each in gc.get_objects()]
            return sum(issubclass(kind, torch.Tensor) for kind in kinds), sys.getallocatedblocks()

        def steps(count):
            for _ in range(count):
                solver.step(problem, state)

        held()
        steps(20)
        tensors, blocks = held()
        steps(count)
        tensors_later, blocks_later = held()
        assert tensors_later == tensors
        assert blocks_later - blocks < 100  # fewer than one a step


TOY = BilevelProblem(upper=lambda x, y: x**2 + y**2, lower=lambda x, y: (y - x - 1) ** 2)


def run_toy(steps=100, **options):
    solver = PBGDFree(penalty=10.0, upper_lr=0.05, lower_lr=0.1)
    return solver.solve(
        TOY, scalar(1.0), scalar(2.0), max_steps=steps, tolerance=0.0, progress=False, **options
    )


class TestCallbacks:
    def test_a_user_function_stops_the_run(self):
        solution = run_toy(callbacks=[lambda record, state: record["step"] >= 7])
        assert solution.status is Status.STOPPED
        assert solution.steps == 7
        assert solution.history["step"].tolist() == list(range(1, 8))

    def test_every_callback_sees_a_step_at_which_one_of_them_stops(self):
        seen = []
        run_toy(callbacks=[lambda record, state: record["step"] >= 3,
                           lambda record, state: seen.append(record["step"])])  # fmt: skip
        assert seen == [1, 2, 3]

    def test_early_stopping_waits_for_its_patience(self):
        whole = run_toy(steps=400)
        solution = run_toy(steps=400, callbacks=[EarlyStopping(patience=5, min_delta=1e-3)])
        assert solution.status is Status.STOPPED
        assert solution.steps == first_pause(whole.history["upper"], 5, 1e-3) < 400

    def test_early_stopping_names_an_unknown_quantity(self):
        with pytest.raises(OptionError, match=r"monitors 'accuracy'.*upper"):
            run_toy(callbacks=[EarlyStopping(monitor="accuracy")])

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_tensorboard_gets_every_logged_quantity_once(self, tmp_path):
        accumulator = pytest.importorskip(
            "tensorboard.backend.event_processing.event_accumulator"
        ).EventAccumulator
        whole = run_toy(steps=30)
        board, path = TensorBoard(tmp_path / "board"), tmp_path / "run.pt"
        run_toy(steps=20, callbacks=[board, Checkpoint(path, every=15), StopsAt(20)])
        run_toy(steps=30, callbacks=[board], resume=path)
        events = accumulator(str(tmp_path / "board"))
        events.Reload()
        assert set(events.Tags()["scalars"]) == set(whole.history.columns) - {"step"}
        logged = events.Scalars("upper")
        assert [event.step for event in logged] == whole.history["step"].tolist()
        assert [event.value for event in logged] == pytest.approx(whole.history["upper"].tolist())

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_tensorboard_counts_the_steps_of_both_phases(self, tmp_path):
        accumulator = pytest.importorskip(
            "tensorboard.backend.event_processing.event_accumulator"
        ).EventAccumulator
        rates = {"penalty": 15.0, "upper_lr": 0.01, "lower_lr": 0.05}
        solution = PBGDFree(**rates, polish=PBGD(**rates)).solve(
            negative_toy(), scalar(2.0), scalar(3.0), max_steps=6,
            callbacks=[TensorBoard(tmp_path)], progress=False,
        )  # fmt: skip
        events = accumulator(str(tmp_path))
        events.Reload()
        steps = [event.step for event in events.Scalars("upper")]
        assert steps == solution.history["step"].tolist() == [*range(1, 13)]

    def test_an_exception_in_a_callback_reaches_the_caller_and_the_checkpoint_survives(
        self, tmp_path
    ):
        path = tmp_path / "run.pt"
        whole = run_toy(steps=40)
        with pytest.raises(ZeroDivisionError, match="a user's mistake"):
            run_toy(steps=40, callbacks=[Checkpoint(path, every=10), Mistaken(at=25)])
        resumed = run_toy(steps=40, resume=path)
        assert float(resumed.x) == float(whole.x)
        pd.testing.assert_frame_equal(
            resumed.history.drop(columns="seconds"), whole.history.drop(columns="seconds")
        )

    def test_callbacks_end_also_when_the_run_fails(self):
        ended = []

        class Ends(Callback):
            def on_end(self, run):
                ended.append(run.failed)

        with pytest.raises(ZeroDivisionError):
            run_toy(callbacks=[Ends(), Mistaken(at=3)])
        run_toy(steps=2, callbacks=[Ends()])
        assert ended == [True, False]

    def test_a_checkpoint_onto_a_directory_is_refused_at_the_start(self, tmp_path):
        with pytest.raises(OptionError, match="is a directory"):
            run_toy(callbacks=[Checkpoint(tmp_path)])

    def test_what_is_no_callback_is_refused(self):
        with pytest.raises(BilevelError, match="a callback is"):
            run_toy(callbacks=["print"])


class Mistaken(Callback):
    def __init__(self, at):
        self.at = at

    def on_log(self, run, record):
        if record["step"] == self.at:
            raise ZeroDivisionError("a user's mistake")


class StopsAt(Callback):
    """Fails the run, so that no checkpoint is written at its end."""

    def __init__(self, step):
        self.step = step

    def on_log(self, run, record):
        return record["step"] == self.step


def first_pause(values, patience, min_delta):
    """The first step with so many records in a row that improve by less on the best."""
    best, waited = float("inf"), 0
    for step, value in enumerate(values, start=1):
        if value < best - min_delta:
            best, waited = value, 0
        else:
            waited += 1
        if waited >= patience:
            return step
    raise AssertionError("never paused")


def test_early_stopping_by_a_quantity_that_should_rise():
    class Score(Callback):
        def on_log(self, run, record):
            record["score"] = -((record["step"] - 5) ** 2)

    patient = EarlyStopping("score", patience=3, mode="max")
    solution = PBGD(upper_lr=0.01, lower_lr=0.1).solve(
        negative_toy(), scalar(2.0), scalar(3.0), max_steps=50, tolerance=0.0, log_every=1,
        callbacks=[Score(), patient],
    )  # fmt: skip
    assert solution.status is Status.STOPPED
    assert solution.steps == 8


def test_exact_responses_on_batches_take_single_precision_and_notice_what_depends_on_nothing():
    def lower(x, y, batch):
        return (y - batch.to(y) * x).square().sum()

    problem = BilevelProblem(
        upper=lambda x, y, batch: (x - 1).square().sum() + y.square().sum(), lower=lower
    )
    solver = PBGD(penalty=10.0, response=Exact(), upper_lr=0.1)
    data = [torch.ones(2), torch.ones(2)]
    solution = solver.solve(
        problem, torch.zeros(2), torch.zeros(2), max_steps=200,
        upper_batches=data, lower_batches=data, progress=False,
    )  # fmt: skip
    # F_γ = (x - 1)² + γ/(1 + γ) x²
    assert solution.x.dtype == torch.float32
    assert solution.x.tolist() == pytest.approx([1 / (2 - 1 / 11)] * 2, abs=1e-6)
    without = BilevelProblem(
        upper=problem.upper, lower=lambda x, y, batch: (x * batch.to(x)).square().sum()
    )
    with pytest.raises(BilevelError, match="does not depend on y"):
        solver.solve(
            without, torch.zeros(2), torch.zeros(2), max_steps=2,
            upper_batches=data, lower_batches=data, progress=False,
        )  # fmt: skip
