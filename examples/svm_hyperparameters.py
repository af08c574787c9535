"""Choose the error bounds of a support vector machine on real data, and judge the choice.

The leader sets a bound c_i on the margin violation of each training example and pays
sum_val exp(1 - margin) + |c|; the follower answers with the flattest hyperplane that keeps the
bounds. Three ways to solve it, on the same splits:

  blocc      the published first-order method (arXiv:2406.10148), with exact responses
  pbgd-free  the value-function-free method, which cannot solve this program: see its note
  dc         BLOCC with difference-of-convex steps, to the global optimum where that is certified

Each is judged twice: by the penalised response, from which published results were read off, and by
the exact response, which is what the follower does. Beside them, f* bounds the optimum from below,
and ordinary classifiers are tuned by cross-validation on the training and validation rows together.

    python examples/svm_hyperparameters.py --dataset breast_cancer
    BILEVEL_DATA=folder python examples/svm_hyperparameters.py --dataset diabetes --seeds 5
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from output import write_configuration, write_csv, write_json
from runs import make_folder, require_least
from tqdm import tqdm

from bilevel import BLOCC, DifferenceOfConvex, PBGDFree
from bilevel.callbacks import Callback
from bilevel.datasets import SVM_DATASETS, Split, load_svm_dataset, split, with_quadratic_features
from bilevel.diagnostics import bias
from bilevel.errors import BilevelError
from bilevel.estimators import BilevelSVC
from bilevel.extras import require
from bilevel.problems.svm import (
    Evaluator,
    relaxed_optimum,
    signed_rows,
    svm_problem,
    svm_program,
)
from bilevel.schedules import Geometric, penalty_at

SOLVERS = ("blocc", "pbgd-free", "dc")
#: Training and validation rows: those of the paper, and what the smaller data set affords.
SIZES = {"breast_cancer": (300, 100), "diabetes": (500, 150), "fourclass": (500, 150)}
GRID = np.logspace(-4, 2, 13)
DC_STEPS = 25


def main() -> None:
    args = parse_arguments()
    began = time.perf_counter()
    torch.set_num_threads(1)
    try:
        require("matplotlib", "plot")
        threads = require("threadpoolctl", "sklearn")
        load(args, args.seed)  # so that no folder is made for options that are refused
        for name in SOLVERS:
            make_solver(name, args, certified=True)
        make_folder(args.out)
        with threads.threadpool_limits(1):
            results, history = run_all(args)
    except BilevelError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    from svm_report import draw, table

    write_configuration(args.out, args)
    write_json(args.out / "summary.json", results)
    write_csv(args.out / "history.csv", history)
    draw(results, history, args.out)
    print(table(results))
    print(f"\n{time.perf_counter() - began:.0f} s; tables and figures are in {args.out}/")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option("--dataset", choices=SVM_DATASETS, default="breast_cancer", help="default: %(default)s")
    option("--solver", choices=(*SOLVERS, "all"), default="all", help="default: %(default)s")
    option("--seeds", type=int, default=10, help="number of random splits (default: %(default)s)")
    option("--seed", type=int, default=0, help="the first split's seed (default: %(default)s)")
    option("--train", type=int, help="training rows (default: 500, breast_cancer 300)")
    option("--validation", type=int, help="validation rows (default: 150, breast_cancer 100)")
    option("--penalty", type=float, default=12.0,
           help="the penalty γ; dc starts from it (default: %(default)s)")  # fmt: skip
    option("--upper-lr", type=float, default=0.01, help="step size in c (default: %(default)s)")
    option("--steps", type=int, default=80, help="first-order outer steps (default: %(default)s)")
    option("--quick", action="store_true", help="2 splits, 20 steps: under a minute")
    option("--out", type=Path, default=Path("results/svm_hyperparameters"),
           help="folder to write to (default: %(default)s)")  # fmt: skip
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.steps = min(args.seeds, 2), min(args.steps, 20)
    require_least(parser, args, seeds=1, seed=0, steps=1)
    train, validation = SIZES[args.dataset]
    args.train = train if args.train is None else args.train
    args.validation = validation if args.validation is None else args.validation
    return args


# Experiment -------------------------------------------------------------------------------------


def run_all(args: argparse.Namespace) -> tuple[dict, pd.DataFrame]:
    """Every solver and classifier on every split: final numbers, and the way there."""
    names = SOLVERS if args.solver == "all" else (args.solver,)
    seeds = list(range(args.seed, args.seed + args.seeds))
    results: dict = {"dataset": args.dataset, "seeds": seeds}
    history: list[dict] = []
    bar = tqdm(total=len(seeds) * (len(names) + 1), disable=None, leave=False, unit="run")
    for seed in seeds:
        data = load(args, seed)
        results["rows"] = {name: len(part.labels) for name, part in data._asdict().items()}
        program = svm_program(data.train, data.validation)
        bound, seconds = timed(lambda program=program: relaxed_optimum(program))
        append(results.setdefault("relaxed_optimum", {}), {
            "value": bound.value, "certified": bound.is_bilevel_optimum, "seconds": seconds,
            "test_accuracy": float(np.mean(rows_of(data.test) @ bound.z > 0)),
        })  # fmt: skip
        for name in names:
            bar.set_postfix_str(f"seed {seed}, {name}")
            solver = make_solver(name, args, certified=bound.is_bilevel_optimum)
            if seed == seeds[0]:  # so that no seed is billed for imports
                solve(data, solver, seed, max_steps=1)
            final, path = run(data, solver, seed, DC_STEPS if name == "dc" else args.steps)
            append(results.setdefault(name, {}), final)
            history += [{"solver": name, "seed": seed, **row} for row in path]
            bar.update()
        bar.set_postfix_str(f"seed {seed}, classifiers")
        for name, row in classifiers(data, seed).items():
            append(results.setdefault("classifiers", {}).setdefault(name, {}), row)
        bar.update()
    bar.close()
    return results, pd.DataFrame(history)


def load(args: argparse.Namespace, seed: int) -> Split:
    """The split; features as the paper has them, those of breast_cancer standardised."""
    dataset = load_svm_dataset(args.dataset)
    if args.dataset == "diabetes":
        dataset = with_quadratic_features(dataset)
    parts = split(dataset, seed, args.train, args.validation)
    if args.dataset != "breast_cancer":
        return parts
    mean, scale = parts.train.features.mean(axis=0), parts.train.features.std(axis=0)
    return Split(
        *(dataclasses.replace(part, features=(part.features - mean) / scale) for part in parts)
    )


def make_solver(name: str, args: argparse.Namespace, certified: bool) -> BLOCC | PBGDFree:
    if name == "blocc":
        return BLOCC(penalty=args.penalty, upper_lr=args.upper_lr)
    if name == "pbgd-free":
        return PBGDFree(penalty=args.penalty, upper_lr=args.upper_lr)
    # At f* the follower has no choice, so the penalty may vanish. Where that is not certified it
    # has to grow, or the follower would be forgotten.
    falling = Geometric(args.penalty, args.penalty / 3**12, steps=12)
    rising = Geometric(0.1, 1000.0, steps=15)
    return BLOCC(penalty=falling if certified else rising, outer=DifferenceOfConvex())


class Trace(Callback):
    """Every c on the way, with its penalty and the time."""

    def on_start(self, run) -> None:
        first = penalty_at(run.state.schedule, 0)
        self.points = [(0.0, run.state.upper.vector(), first)]

    def on_step(self, run) -> None:
        penalty = run.state.record["penalty"]
        self.points.append((run.seconds, run.state.upper.vector(), penalty))


def solve(data: Split, solver, seed: int, max_steps: int, callbacks=()):
    problem = svm_problem(data.train, data.validation)
    # A stream of its own, so that the start does not depend on how the split was drawn.
    c0 = np.random.RandomState(100 + seed).uniform(1.0, 5.0, len(data.train.labels))
    z0 = torch.zeros(data.train.features.shape[1] + 1, dtype=torch.float64)
    solution = solver.solve(
        problem, torch.from_numpy(c0), z0,
        max_steps=max_steps, progress=False, callbacks=callbacks,
    )  # fmt: skip
    return problem, solution


def run(data: Split, solver, seed: int, max_steps: int) -> tuple[dict, list[dict]]:
    """One solver on one split: final numbers of both responses, and those on the way."""
    trace = Trace()
    problem, solution = solve(data, solver, seed, max_steps, [trace])
    evaluate = Evaluator(svm_program(data.train, data.validation), rows_of(data.test))
    rows = []
    for step, (seconds, c, penalty) in enumerate(trace.points):
        measured = evaluate(c, penalty)
        rows += [
            {"response": name, "step": step, "seconds": seconds, **dataclasses.asdict(each)}
            for name, each in measured.items()
        ]
    final = {
        name: {**dataclasses.asdict(each), "seconds": solution.seconds}
        for name, each in measured.items()
    }
    final |= {"status": str(solution.status), "steps": solution.steps}
    if isinstance(solver, PBGDFree):
        final["bias"] = bias(problem, solution.x, solution.y, penalty, solve=True).ratio
    return final, rows


def classifiers(data: Split, seed: int) -> dict[str, dict]:
    """Ordinary tuning by 5-fold cross-validation on the training and validation rows."""
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import SVC, LinearSVC

    grid = {"C": GRID}
    models = {
        "GridSearchCV(LinearSVC)": GridSearchCV(LinearSVC(dual=False, random_state=seed), grid),
        "GridSearchCV(SVC linear)": GridSearchCV(SVC(kernel="linear"), grid),
        "BilevelSVC": BilevelSVC(),
    }
    features = np.vstack([data.train.features, data.validation.features])
    labels = np.concatenate([data.train.labels, data.validation.labels])
    found = {}
    for name, model in models.items():
        _, seconds = timed(lambda model=model: model.fit(features, labels))
        chosen = model.best_C_ if name == "BilevelSVC" else model.best_params_["C"]
        found[name] = {
            "test_accuracy": model.score(data.test.features, data.test.labels),
            "C": float(chosen),
            "seconds": seconds,
        }
    return found


def rows_of(part) -> np.ndarray:
    return signed_rows(part.features, part.labels)


def timed(function):
    began = time.perf_counter()
    return function(), time.perf_counter() - began


def append(lists: dict, row: dict) -> None:
    """Add a row to lists over seeds, in the row's own nesting."""
    for name, value in row.items():
        if isinstance(value, dict):
            append(lists.setdefault(name, {}), value)
        else:
            lists.setdefault(name, []).append(value)


if __name__ == "__main__":
    main()
