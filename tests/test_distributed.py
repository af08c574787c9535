"""Two processes under ``torchrun`` against one, and one against none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from distributed_worker import EVERY, PROBLEMS, QUICK, SGD, SLOW, Case, solve
from networks import network

from bilevel import PBGD, PBGDFree
from bilevel.distributed import gather, mean_values, rank, world_size
from bilevel.errors import NotApplicableError
from bilevel.variables import global_norm

WORKER = Path(__file__).with_name("distributed_worker.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def torchrun(mode, folder):
    """Every process's results."""
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         str(WORKER), mode, str(folder)],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    return [torch.load(folder / f"{mode}.rank{number}") for number in (0, 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def killed(folder):
    """The exit codes of two processes, one of which is killed at step 13."""
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), "killed", str(folder)],
            env={**ENVIRONMENT, "RANK": str(number), "WORLD_SIZE": "2"},
            stderr=subprocess.DEVNULL,
        )
        for number in (0, 1)
    ]
    return [process.wait(timeout=200) for process in processes]


@pytest.fixture(scope="module")
def quick(folder, killed):
    return torchrun("quick", folder)


@pytest.fixture(scope="module")
def slow(folder):
    return torchrun("slow", folder)


def assert_as_one_process(case, found):
    alone = solve(Case(case.problem, "none", case.solver))
    for outcome in found:
        two = outcome[str(case)]
        for level in ("x", "y"):
            for one, other in zip(alone[level], two[level], strict=True):
                torch.testing.assert_close(other, one, rtol=0, atol=1e-5)
        for name in ("upper", "lower", "stationarity", "lower_residual", "lower_gap"):
            if name in alone["history"]:
                assert two["history"][name] == pytest.approx(alone["history"][name], abs=1e-5)
        assert two["history"]["step"] == [*range(1, case.steps, EVERY), case.steps]
        for name in ("upper_value", "lower_value"):
            assert two[name] == pytest.approx(alone[name], abs=1e-5)
        if case.problem != "data of its own":  # there, one process alone solves for v(x) again
            assert two["lower_gap"] == pytest.approx(alone["lower_gap"], abs=1e-5, nan_ok=True)


class TestSameIterates:
    @pytest.mark.parametrize("case", QUICK, ids=str)
    def test_two_processes_give_the_iterates_of_one(self, quick, case):
        assert_as_one_process(case, quick)

    @pytest.mark.slow
    @pytest.mark.parametrize("case", SLOW, ids=str)
    def test_two_processes_give_the_iterates_of_one_in_every_combination(self, slow, case):
        assert_as_one_process(case, slow)

    def test_a_network_that_a_callback_evaluates_trains_alike(self, quick):
        alone = solve(Case("network", "none", "joint sgd"))
        for outcome in quick:
            for level in ("x", "y"):
                for one, other in zip(alone[level], outcome["evaluated"][level], strict=True):
                    torch.testing.assert_close(other, one, rtol=0, atol=1e-5)
            assert outcome["evaluated"]["gap"] == pytest.approx(alone["lower_gap"], abs=1e-5)

    def test_the_run_moves(self):
        moved = solve(Case("network", "none", "alternating adam"))
        upper = moved["history"]["upper"]
        assert max(upper) - min(upper) > 0.1


class TestAgreement:
    def test_all_stop_when_one_asks_for_it(self, quick):
        for outcome in quick:
            assert outcome["one stops"]["history"]["step"] == [1, 2, 3, 4, 5]
            assert outcome["one stops"]["status"] == "stopped"

    def test_a_network_without_a_wrapper_is_refused(self, quick):
        for outcome in quick:
            assert outcome["unwrapped"]["error"] == "VariableError"
            assert "y['weight'] differs between the processes" in outcome["unwrapped"]["message"]
            assert "DistributedDataParallel or fully_shard" in outcome["unwrapped"]["message"]


class TestResume:
    @pytest.mark.parametrize("wrapping", ["ddp", "fsdp apart"])
    def test_a_resumed_run_ends_bit_for_bit_where_the_whole_one_ends(self, quick, killed, wrapping):
        assert killed[1] == -9
        assert killed[0] > 0
        for outcome in quick:
            whole, resumed = (outcome[f"resumed {wrapping}"][k] for k in ("whole", "resumed"))
            for level in ("x", "y"):
                for one, other in zip(whole[level], resumed[level], strict=True):
                    assert torch.equal(one, other)
            assert resumed["history"] == whole["history"]

    def test_each_process_wrote_a_file_of_its_own(self, quick, folder):
        names = {path.name for path in folder.glob("*.checkpoint*")}
        expected = {f"{kind}.checkpoint.rank{r}" for kind in ("ddp", "fsdp apart") for r in (0, 1)}
        assert names == expected

    def test_what_is_logged_is_the_same_in_every_process(self, quick):
        first, second = (outcome["resumed ddp"]["whole"]["history"] for outcome in quick)
        assert first == second
        assert len(set(first["upper"])) == len(first["upper"]) > 1


@pytest.fixture
def process_group(tmp_path):
    """A group of this one process."""
    store = f"file://{tmp_path / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class TestOneProcess:
    @pytest.mark.parametrize("wrapping", ["ddp", "ddp apart", "fsdp", "fsdp apart"])
    @pytest.mark.parametrize("solver", ["free-1 sgd", "joint sgd"])
    def test_a_group_of_one_changes_nothing(self, process_group, wrapping, solver):
        case = Case("network", wrapping, solver)
        assert_as_one_process(case, [{str(case): solve(case)}])

    @pytest.mark.parametrize(
        ("solver", "what"),
        [
            (PBGD(), "Exact solves the lower level"),
            (PBGDFree(penalty=5.0, **SGD, bias_every=1), "the bias is measured"),
        ],
        ids=["exact response", "bias"],
    )
    def test_gradients_that_pass_by_a_wrapper_are_refused(self, process_group, solver, what):
        problem, x, y = PROBLEMS["data of its own"](network(), "ddp")
        with pytest.raises(NotApplicableError, match=f"{what}.*DDP.*fully_shard"):
            solver.solve(problem, x, y, max_steps=2, progress=False)

    def test_without_a_group_a_process_is_the_only_one(self):
        assert (rank(), world_size()) == (0, 1)
        assert gather("value") == ["value"]
        assert mean_values({"f": 1.5}) == {"f": 1.5}

    def test_the_norm_of_nothing_is_zero(self):
        assert float(global_norm([])) == 0.0
