"""Runs that were interrupted: bit for bit the same after a SIGKILL, and no harm by bad files."""

from __future__ import annotations

import io
import random
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import batches, classification, network
from resume_worker import ADAM, CASES, deterministic, everything_at_once, loader, quadratic
from torch.utils.data import DataLoader, TensorDataset
from toys import coupled_toy, negative_toy, scalar

from bilevel import BLOCC, PBGD, BilevelProblem, MaxMin, PBGDFree, checkpoints
from bilevel.batches import BatchStream
from bilevel.callbacks import Callback, Checkpoint
from bilevel.diagnostics import Flatness
from bilevel.errors import CheckpointError
from bilevel.random_state import get_random_state, set_random_state

QUIET = {"tolerance": 0.0, "progress": False}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    worker = Path(__file__).with_name("resume_worker.py")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(worker), str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


class TestKilled:
    @pytest.mark.parametrize("name", CASES)
    def test_a_killed_and_resumed_run_ends_bit_for_bit_where_the_whole_one_ends(
        self, outcomes, name
    ):
        whole, resumed = (torch.load(outcomes / f"{name}.{kind}") for kind in ("whole", "resumed"))
        for level in ("x", "y"):
            for one, other in zip(whole[level], resumed[level], strict=True):
                assert torch.equal(one, other)
        pd.testing.assert_frame_equal(
            pd.DataFrame(whole["history"]), pd.DataFrame(resumed["history"]), check_exact=True
        )
        assert pd.Series(whole["end"]).equals(pd.Series(resumed["end"]))

    def test_a_write_that_was_killed_leaves_the_last_checkpoint_and_a_partial_file(self, outcomes):
        name = "killed while a checkpoint is written"
        assert (outcomes / f"{name}.checkpoint").is_file()
        # The resumed run wrote its own partial file and renamed it.
        assert not (outcomes / f"{name}.checkpoint.partial").exists()

    def test_the_cases_stop_for_different_reasons(self, outcomes):
        ends = {torch.load(outcomes / f"{name}.whole")["end"][0] for name in CASES}
        assert {"stopped", "max steps"} <= ends


class TestOwnLoop:
    def test_a_restored_state_makes_bit_for_bit_the_same_steps(self):
        def begin():
            net = network()
            solver = PBGD(
                penalty=3.0, inner_steps=2, upper_optimizer=ADAM, lower_optimizer=ADAM,
                upper_scheduler=lambda each: torch.optim.lr_scheduler.ExponentialLR(each, 0.9),
            )  # fmt: skip
            problem = classification(net)
            return net, solver, problem, solver.init(problem, *net.levels())

        def steps(run, data):
            _, solver, problem, state = run
            for upper, lower in data:
                solver.step(problem, state, upper, lower)

        data = list(zip(batches(1), batches(2), strict=True))
        whole = begin()
        steps(whole, data[:7])
        buffer = io.BytesIO()
        torch.save(whole[3].state_dict(), buffer)
        steps(whole, data[7:])
        resumed = begin()
        buffer.seek(0)
        resumed[3].load_state_dict(torch.load(buffer, weights_only=True))
        steps(resumed, data[7:])
        for one, other in zip(whole[0].parameters(), resumed[0].parameters(), strict=True):
            assert torch.equal(one, other)


class TestFinished:
    @pytest.mark.parametrize(("steps", "tolerance"), [(10, 0.0), (200, 2.0)])
    def test_a_finished_run_resumed_returns_its_result(self, tmp_path, steps, tolerance):
        solve, path = deterministic(), tmp_path / "run.pt"
        options = {"max_steps": steps, "tolerance": tolerance, "progress": False}
        whole = solve(callbacks=[Checkpoint(path)], **options)
        again = solve(resume=path, **options)
        assert again.status is whole.status
        assert again.steps == whole.steps
        assert torch.equal(again.x, whole.x)

    def test_a_finished_run_on_data_is_judged_on_the_same_batch(self, tmp_path):
        path = tmp_path / "run.pt"
        options = {"max_steps": 8, **QUIET}
        whole = everything_at_once()(callbacks=[Checkpoint(path)], **options)
        again = everything_at_once()(resume=path, **options)
        assert again.steps == 8
        assert again.upper_value == whole.upper_value

    def test_a_finished_run_on_a_loader_that_skips_is_judged_on_the_same_batch(self, tmp_path):
        class Skipping(list):
            first = 0

            def skip(self, count):
                self.first = count

            def __iter__(self):
                first, self.first = self.first, 0
                return iter(list.__getitem__(self, slice(first, None)))

        problem = BilevelProblem(
            upper=lambda x, y, batch: (y - batch).square().sum() + x.square().sum(),
            lower=lambda x, y, batch: (y - x * batch).square().sum(),
        )
        loaders = Skipping([torch.tensor(float(k)) for k in range(5)])

        def solve(**options):
            return PBGDFree(penalty=2.0, upper_lr=0.1, lower_lr=0.1).solve(
                problem, scalar(1.0), scalar(1.0), max_steps=8,
                upper_batches=loaders, lower_batches=loaders, **QUIET, **options,
            )  # fmt: skip

        path = tmp_path / "run.pt"
        whole = solve(callbacks=[Checkpoint(path)])
        again = solve(resume=path)
        assert again.upper_value == whole.upper_value
        assert again.steps == 8

    @pytest.mark.parametrize("changed", ["upper_lr", "lower_lr"])
    def test_another_learning_rate_is_refused(self, tmp_path, changed):
        path, rates = tmp_path / "run.pt", {"upper_lr": 0.1, "lower_lr": 0.2}
        start = (negative_toy(), scalar(2.0), scalar(3.0))
        PBGD(**rates).solve(*start, max_steps=5, callbacks=[Checkpoint(path)], **QUIET)
        with pytest.raises(CheckpointError, match=r"has lr=0\.[12], and this solver's 0\.3"):
            PBGD(**rates | {changed: 0.3}).solve(*start, max_steps=9, resume=path, **QUIET)

    def test_a_finished_run_goes_on_to_more_steps(self, tmp_path):
        solve, path = deterministic(), tmp_path / "run.pt"
        solve(max_steps=10, callbacks=[Checkpoint(path)], **QUIET)
        assert torch.equal(
            solve(max_steps=20, resume=path, **QUIET).x, solve(max_steps=20, **QUIET).x
        )


class Count(Callback):
    """Counts steps."""

    def __init__(self, steps=0):
        self.steps = steps

    def on_step(self, run):
        self.steps += 1

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, saved):
        self.steps = saved["steps"]


def test_callbacks_go_on_where_they_were(tmp_path):
    path, counts = tmp_path / "run.pt", [Count(), Count(), Count()]
    begun = [Count(), Count(100), Checkpoint(path)]
    deterministic()(max_steps=7, callbacks=begun, **QUIET)
    deterministic()(max_steps=9, callbacks=[*counts, Checkpoint(path)], resume=path, **QUIET)
    assert [count.steps for count in counts] == [9, 109, 2]
    deterministic()(max_steps=12, resume=path, **QUIET)  # nor must they still be there


class TestStreams:
    @pytest.mark.parametrize("drawn", [0, 1, 5, 6, 7, 12])
    @pytest.mark.parametrize("generator", [None, 3])
    def test_a_restored_stream_goes_on_with_the_next_batch(self, drawn, generator):
        def stream():
            own = None if generator is None else torch.Generator().manual_seed(generator)
            data = TensorDataset(torch.arange(30))
            return BatchStream(DataLoader(data, 5, shuffle=True, generator=own), "upper_batches")

        torch.manual_seed(4)
        whole = stream()
        before = [whole.next()[0].tolist() for _ in range(drawn)]
        saved, random_state = whole.state_dict(), get_random_state()
        after = [whole.next()[0].tolist() for _ in range(9)]

        torch.manual_seed(5)
        restored = stream()
        restored.load_state_dict(saved)
        set_random_state(random_state)
        assert [restored.next()[0].tolist() for _ in range(9)] == after
        if 0 < drawn <= 6:  # an epoch shows every number once
            epoch = [*before, *after[: 6 - drawn]]
            assert sorted(number for batch in epoch for number in batch) == list(range(30))

    def test_restoring_leaves_the_global_generators_alone(self):
        stream = BatchStream(loader(1, shuffle=True), "upper_batches")
        stream.next()
        saved = stream.state_dict()
        torch.manual_seed(6)
        expected = torch.rand(3)
        torch.manual_seed(6)
        stream.load_state_dict(saved)
        assert torch.equal(torch.rand(3), expected)

    def test_a_shorter_loader_is_refused(self):
        stream = BatchStream(batches(1, count=4), "upper_batches")
        for _ in range(3):
            stream.next()
        other = BatchStream(batches(1, count=2), "upper_batches")
        with pytest.raises(CheckpointError, match="upper_batches ends after 2"):
            other.load_state_dict(stream.state_dict())

    def test_a_loader_without_the_generator_is_refused(self):
        own = BatchStream(loader(1, generator=torch.Generator()), "lower_batches")
        with pytest.raises(CheckpointError, match="lower_batches had 1 random generators"):
            BatchStream(loader(1), "lower_batches").load_state_dict(own.state_dict())

    def test_random_states_restore_every_global_generator(self):
        def draw():
            return torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()  # noqa: NPY002

        state = get_random_state()
        first = draw()
        assert draw() != first
        set_random_state(state)
        assert draw() == first


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint of a run with parameters, optimisers and batches."""
    path = tmp_path / "run.pt"
    resume(network(seed=1), callbacks=[Checkpoint(path)])
    return path


FREE = {"penalty": 3.0, "upper_optimizer": ADAM, "lower_optimizer": ADAM}


def resume(net, solver=None, upper=None, **options):
    return (solver or PBGDFree(**FREE)).solve(
        classification(net), *net.levels(), max_steps=5, **QUIET,
        upper_batches=upper or batches(1), lower_batches=batches(2), **options,
    )  # fmt: skip


def refused(path, match, **options):
    """What resuming raises; the parameters must come through unchanged, and the file too."""
    net, content = network(seed=2, **options.pop("network", {})), path.read_bytes()
    before = [parameter.detach().clone() for parameter in net.parameters()]
    with pytest.raises(CheckpointError, match=match) as caught:
        resume(net, resume=path, **options)
    assert str(path) in str(caught.value)
    for parameter, value in zip(net.parameters(), before, strict=True):
        assert torch.equal(parameter, value)
    assert path.read_bytes() == content


class TestFiles:
    def test_a_partial_file_left_behind_does_no_harm(self, checkpoint):
        partial = checkpoint.with_name(checkpoint.name + ".partial")
        partial.write_bytes(checkpoint.read_bytes()[:200])
        first = resume(network(seed=2), resume=checkpoint, callbacks=[Checkpoint(checkpoint)])
        assert first.steps == 5
        assert not partial.exists()

    def test_a_file_that_cannot_be_written_is_named_and_the_old_one_stays(
        self, checkpoint, monkeypatch
    ):
        with pytest.raises(CheckpointError, match=r"run\.pt.*cannot be written: .*Errno"):
            checkpoints.save(checkpoint / "below a file", {})
        content = checkpoint.read_bytes()

        def fail(*arguments):
            raise RuntimeError("unexpected pos 64 vs 0")

        monkeypatch.setattr(torch, "save", fail)
        with pytest.raises(CheckpointError, match=r"run\.pt cannot be written: unexpected pos"):
            checkpoints.save(checkpoint, {})
        assert checkpoint.read_bytes() == content

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"no checkpoint at .*nowhere\.pt"):
            resume(network(), resume=tmp_path / "nowhere.pt")

    def test_a_truncated_file_is_refused(self, checkpoint):
        checkpoint.write_bytes(checkpoint.read_bytes()[:-300])
        refused(checkpoint, "cannot be read as a checkpoint")

    @given(content=st.binary(max_size=300))
    def test_bytes_of_any_kind_are_refused(self, tmp_path_factory, content):
        path = tmp_path_factory.mktemp("noise") / "noise.pt"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
            checkpoints.load(path)

    @pytest.mark.parametrize("content", [{"model": torch.ones(2)}, [1, 2], torch.ones(3)])
    def test_a_foreign_torch_file_is_refused(self, tmp_path, content):
        path = tmp_path / "foreign.pt"
        torch.save(content, path)
        refused(path, "not a checkpoint of a bilevel run")

    def test_a_file_that_would_execute_code_is_refused(self, tmp_path):
        path = tmp_path / "code.pt"
        torch.save({"format": checkpoints.FORMAT, "state": Executed(tmp_path / "ran")}, path)
        refused(path, "cannot be read as a checkpoint")
        assert not (tmp_path / "ran").exists()

    def test_another_format_is_refused(self, checkpoint):
        content = torch.load(checkpoint, weights_only=True)
        torch.save({**content, "format": 99}, checkpoint)
        refused(checkpoint, "format 99")


class Executed:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class TestOtherRuns:
    def test_a_checkpoint_of_the_polishing_solver_alone_is_refused(self, tmp_path):
        path, start = tmp_path / "alone.pt", (scalar(2.0), scalar(3.0))
        polish = PBGD(penalty=4.0, upper_lr=0.01, lower_lr=0.1)
        polish.solve(negative_toy(), *start, max_steps=3, callbacks=[Checkpoint(path)])
        solver = PBGDFree(penalty=4.0, upper_lr=0.01, lower_lr=0.1, polish=polish)
        with pytest.raises(CheckpointError, match="written by PBGD alone"):
            solver.solve(negative_toy(), *start, resume=path)

    def test_another_solver_is_refused(self, checkpoint):
        refused(checkpoint, "PBGDFree.*PBGD", solver=PBGD(**FREE))

    def test_another_optimiser_is_refused(self, checkpoint):
        solver = PBGDFree(penalty=3.0, upper_lr=0.1, lower_optimizer=ADAM)
        refused(checkpoint, "Adam.*SGD", solver=solver)

    def test_a_scheduler_that_was_not_there_is_refused(self, checkpoint):
        scheduler = lambda each: torch.optim.lr_scheduler.ExponentialLR(each, 0.9)  # noqa: E731
        refused(checkpoint, "ExponentialLR", solver=PBGDFree(**FREE, upper_scheduler=scheduler))

    def test_other_shapes_are_refused(self, checkpoint):
        content = torch.load(checkpoint, weights_only=True)
        content["state"]["y"][0] = torch.zeros(2, 2, dtype=torch.float64)
        torch.save(content, checkpoint)
        refused(checkpoint, r"the saved y.*\(2, 2\)")

    def test_another_dtype_is_refused(self, checkpoint):
        refused(checkpoint, r"the saved x.*float64.*float32", network={"dtype": torch.float32})

    def test_a_shorter_loader_is_refused(self, checkpoint):
        refused(checkpoint, "upper_batches ends after 3", upper=batches(1, count=3))

    @pytest.mark.parametrize("missing", ["solver", "streams", "state", "random"])
    def test_a_checkpoint_of_another_kind_of_run_is_refused(self, checkpoint, missing):
        content = torch.load(checkpoint, weights_only=True)
        del content[missing]
        torch.save(content, checkpoint)
        refused(checkpoint, f"of another kind of run.*{missing}")

    def test_other_groups_of_parameters_are_refused(self, checkpoint):
        def grouped(leaves):
            return torch.optim.Adam([{"params": [leaf]} for leaf in leaves], lr=0.02)

        solver = PBGDFree(penalty=3.0, upper_optimizer=ADAM, lower_optimizer=grouped)
        refused(checkpoint, "of another kind of run", solver=solver)

    def test_a_run_without_batches_is_told_from_one_with_them(self, tmp_path, checkpoint):
        problem, x0, y0 = quadratic()
        with pytest.raises(CheckpointError, match=r"upper_batches.*none"):
            PBGDFree(**FREE).solve(problem, x0, y0, resume=checkpoint, progress=False)

    def test_another_response_is_refused(self, tmp_path):
        path = tmp_path / "run.pt"
        start = (coupled_toy(4, 1.0), scalar(1.0), scalar(0.5))
        first = BLOCC(penalty=5.0, upper_lr=0.01, response=MaxMin(lr=0.1, steps=1))
        first.solve(*start, max_steps=3, callbacks=[Checkpoint(path)], **QUIET)
        with pytest.raises(CheckpointError, match=r"MaxMin.*Exact"):
            BLOCC(penalty=5.0, upper_lr=0.01).solve(*start, resume=path, **QUIET)


class TestSeveralProcesses:
    """The files of two processes, one of which was killed before it replaced its own."""

    @pytest.fixture
    def as_rank(self, monkeypatch):
        def play(rank, everyones_steps):
            monkeypatch.setattr(checkpoints, "world_size", lambda: 2)
            monkeypatch.setattr(checkpoints, "rank", lambda: rank)
            monkeypatch.setattr(checkpoints, "gather", lambda value: everyones_steps)

        return play

    @staticmethod
    def content(step):
        return {"solver": "PBGD", "state": {"step": step}}

    def test_the_one_behind_takes_its_complete_new_file(self, tmp_path, as_rank):
        path = tmp_path / "run.pt"
        as_rank(1, [])
        checkpoints.save(path, self.content(10))
        (tmp_path / "run.pt.rank1").rename(tmp_path / "old")
        checkpoints.save(path, self.content(20))
        (tmp_path / "run.pt.rank1").rename(tmp_path / "run.pt.rank1.partial")
        (tmp_path / "old").rename(tmp_path / "run.pt.rank1")
        as_rank(1, [20, 10])
        assert checkpoints.load(path)["state"]["step"] == 20
        as_rank(1, [10, 10])  # nobody replaced the old file: the new one may be incomplete
        assert checkpoints.load(path)["state"]["step"] == 10

    def test_files_of_different_steps_are_refused(self, tmp_path, as_rank):
        path = tmp_path / "run.pt"
        as_rank(0, [])
        checkpoints.save(path, self.content(10))
        as_rank(0, [10, 20])
        with pytest.raises(CheckpointError, match=r"run\.pt\.rank0\.partial"):
            checkpoints.load(path)

    @pytest.mark.parametrize(("everyones", "found"), [([False, True], True), ([False] * 2, False)])
    def test_there_is_a_checkpoint_where_any_process_has_its_file(
        self, tmp_path, as_rank, everyones, found
    ):
        as_rank(0, everyones)
        assert checkpoints.exists(tmp_path / "run.pt") is found

    def test_another_number_of_processes_is_refused(self, tmp_path, as_rank, monkeypatch):
        alone, both = tmp_path / "alone.pt", tmp_path / "both.pt"
        checkpoints.save(alone, self.content(10))
        as_rank(0, [])
        monkeypatch.setattr(checkpoints, "gather", lambda value: [value, value])
        checkpoints.save(both, self.content(10))
        assert checkpoints.exists(alone)
        with pytest.raises(CheckpointError, match=r"alone\.pt was written by another .* are 2"):
            checkpoints.load(alone)
        monkeypatch.setattr(checkpoints, "world_size", lambda: 3)
        with pytest.raises(CheckpointError, match=r"both\.pt.* by 2 processes, and here are 3"):
            checkpoints.load(both)
        monkeypatch.undo()
        assert checkpoints.exists(both)
        with pytest.raises(CheckpointError, match=r"both\.pt was written by another .* are 1"):
            checkpoints.load(both)

    def test_files_without_a_step_are_refused(self, tmp_path, as_rank):
        as_rank(0, [])
        checkpoints.save(tmp_path / "run.pt", {"weights": 1.0})
        with pytest.raises(CheckpointError, match="format, processes, weights has no step"):
            checkpoints.load(tmp_path / "run.pt")

    def test_a_run_that_nobody_saved_is_refused_by_all(self, tmp_path, as_rank):
        as_rank(0, [-1, -1])
        with pytest.raises(CheckpointError, match=r"no checkpoint at .*run\.pt\.rank0"):
            checkpoints.load(tmp_path / "run.pt")


def test_a_scheduler_that_moves_momentum_can_be_resumed(tmp_path):
    path, (problem, x0, y0) = tmp_path / "run.pt", quadratic()

    def solve(max_steps, **options):
        cycle = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.02, total_steps=20)
        solver = PBGD(
            penalty=4.0, upper_optimizer=partial(torch.optim.SGD, lr=0.01, momentum=0.9),
            upper_scheduler=cycle, lower_lr=0.1,
        )  # fmt: skip
        return solver.solve(problem, x0, y0, max_steps=max_steps, **options, **QUIET)

    solve(7, callbacks=[Checkpoint(path)])
    assert torch.equal(solve(15, resume=path).x, solve(15).x)


def test_a_finished_run_on_data_keeps_its_residuals_when_it_is_resumed(tmp_path):
    path = tmp_path / "run.pt"
    problem = BilevelProblem(
        upper=lambda x, y, batch: (y - batch).square().sum() + x.square().sum(),
        lower=lambda x, y, batch: (y - x * batch).square().sum(),
    )
    data = [torch.tensor(float(k)) for k in range(5)]

    def solve(**options):
        return PBGD(penalty=2.0, upper_lr=0.1, lower_lr=0.1).solve(
            problem, scalar(1.0), scalar(1.0), max_steps=8,
            upper_batches=data, lower_batches=data, **QUIET, **options,
        )  # fmt: skip

    whole = solve(callbacks=[Checkpoint(path)])
    again = solve(resume=path)
    for name in ("stationarity", "lower_gap", "upper_value"):
        assert getattr(again, name) == getattr(whole, name) != 0.0


def test_a_checkpoint_holds_what_callbacks_named_after_it_made_of_its_step(tmp_path):
    path = tmp_path / "run.pt"

    class Kill(Callback):
        def on_step(self, run):
            if run.state.step == 3:
                raise KeyboardInterrupt

    callbacks = [Checkpoint(path, every=2), Count(), Kill()]
    with pytest.raises(KeyboardInterrupt):
        deterministic()(max_steps=6, log_every=2, callbacks=callbacks, **QUIET)
    assert checkpoints.load(path)["callbacks"]["Count"] == [{"steps": 2}]


def test_one_snapshot_of_a_state_can_be_taken_up_twice():
    toy = coupled_toy(6.0, 0.0)
    problem = BilevelProblem(
        upper=toy.upper,
        lower=toy.lower,
        lower_constraints=toy.lower_constraints,
        upper_constraints=lambda x, y: (x - 0.9).reshape(1),
    )
    solver = BLOCC(penalty=20.0, response=MaxMin(lr=0.1, steps=3), upper_lr=0.01)
    state = solver.init(problem, scalar(1.0), scalar(1.0))
    solver.step(problem, state)
    buffer = io.BytesIO()
    torch.save(state.state_dict(), buffer)
    buffer.seek(0)
    snapshot = torch.load(buffer, weights_only=True)
    ends = []
    for _ in range(2):
        other = solver.init(problem, scalar(0.0), scalar(0.0))
        other.load_state_dict(snapshot)
        for _ in range(5):
            solver.step(problem, other)
        multipliers = other.perturbed.inequality_multipliers, other.outer_state["upper_multipliers"]
        ends.append([float(each) for each in (other.x, *multipliers)])
    assert ends[0] == ends[1]


def test_the_points_of_a_flatness_measurement_are_kept(tmp_path):
    path, (problem, x0, y0) = tmp_path / "run.pt", quadratic()
    smooth = BilevelProblem(
        upper=lambda x, y: (x - 1).square().sum() + (y["w"] - 2).square().sum(),
        lower=problem.lower,
    )

    def solve(flatness, max_steps, **options):
        solver = PBGDFree(penalty=4.0, upper_lr=0.01, lower_lr=0.1)
        options.setdefault("callbacks", []).append(flatness)
        solver.solve(smooth, x0, y0, max_steps=max_steps, **options, **QUIET)
        return flatness.points

    solve(Flatness(every=2), 4, callbacks=[Checkpoint(path)])
    resumed = solve(Flatness(every=2), 8, resume=path)
    pd.testing.assert_frame_equal(resumed, solve(Flatness(every=2), 8))
