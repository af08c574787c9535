"""How time and memory of transport planning grow with the network: a table and a log-log figure.

Random planar networks with a demand between all pairs of nodes, on one thread. Measured of every
size, in a process of its own: one outer step of BLOCC (the median over a run with
difference-of-convex steps), that whole run, the exact assessment, and the peak of resident memory.

    python benchmarks/transport_scaling.py                         25, 50, 100 and 200 nodes: hours
    python benchmarks/transport_scaling.py --nodes 10 15 25 --steps 20
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

#: Quantity -> label.
CURVES = {
    "step_cpu_seconds": "outer step, CPU s",
    "blocc_cpu_seconds": "run of BLOCC, CPU s",
    "memory_gib": "peak memory beyond imports, GiB",
}


def main() -> None:
    args = parse_arguments()
    if args.measure is not None:
        print(json.dumps(measure(args.measure, args)))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for nodes in args.nodes:
        rows.append(in_own_process(nodes, args))
        table = pd.DataFrame(rows)
        table.to_csv(args.out / "scaling.csv", index=False)
        print(json.dumps(rows[-1]), file=sys.stderr)
    exponents = {name: exponent(table["nodes"], table[name]) for name in CURVES}
    print(
        f"\n{platform.processor() or platform.machine()}, one thread, seed {args.seed}, "
        f"{args.steps} steps, tolerance {args.tolerance:g}\n\n"
        f"{table.to_string(index=False, float_format='{:.3g}'.format)}\n"
    )
    for name, label in CURVES.items() if len(rows) > 1 else ():
        print(f"{label}: nodes^{exponents[name]:.2f}")
    draw(table, exponents, args.out)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option("--nodes", type=int, nargs="+", default=[25, 50, 100, 200], help="sizes")
    option("--steps", type=int, default=60, help="outer steps of a run (default: 60)")
    option("--tolerance", type=float, default=1e-7, help="of the responses (default: 1e-7)")
    option("--seed", type=int, default=0, help="of the networks (default: 0)")
    option("--out", type=Path, default=Path("results/transport_scaling"), help="folder to write to")
    option("--measure", type=int, metavar="NODES", help=argparse.SUPPRESS)
    return parser.parse_args()


def in_own_process(nodes: int, args: argparse.Namespace) -> dict:
    """So that the peak of memory is that of one size."""
    command = [sys.executable, __file__, "--measure", nodes, "--steps", args.steps]
    command += ["--tolerance", args.tolerance, "--seed", args.seed]
    finished = subprocess.run(
        list(map(str, command)),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(finished.stdout)


def measure(nodes: int, args: argparse.Namespace) -> dict:
    from bilevel import BLOCC, DifferenceOfConvex
    from bilevel.callbacks import Callback
    from bilevel.errors import ResponseError
    from bilevel.problems.transport import (
        assess,
        random_network,
        transport_problem,
        transport_start,
    )
    from bilevel.schedules import Geometric

    imported = peak()
    network = random_network(nodes, seed=args.seed)
    clocks = [(time.perf_counter(), time.process_time())]

    class Clock(Callback):
        def on_step(self, run):
            clocks.append((time.perf_counter(), time.process_time()))

    outer = DifferenceOfConvex(extrapolation=0.9)
    solution = BLOCC(penalty=Geometric(1.0, 500.0, steps=args.steps), outer=outer).solve(
        transport_problem(network, tolerance=args.tolerance),
        *transport_start(network),
        max_steps=args.steps,
        log_every=args.steps,  # a logged step has one more response
        callbacks=[Clock()],
    )
    wall, cpu = np.array(clocks).T
    row = {
        "nodes": nodes,
        "links": len(network.tail),
        "pairs": len(network.origin),
        "step_seconds": float(np.median(np.diff(wall))),
        "step_cpu_seconds": float(np.median(np.diff(cpu))),
        "blocc_seconds": time.perf_counter() - wall[0],
        "blocc_cpu_seconds": time.process_time() - cpu[0],
        "memory_gib": peak() - imported,
        "peak_gib": peak(),
        "planned_profit": -solution.upper_value,
    }
    began = time.process_time()
    try:
        capacity = solution.x.numpy()
        built = capacity > 1e-3 * network.demand.mean()  # less is below the responses' tolerance
        found = assess(network, np.where(built, capacity, 0.0))
    except ResponseError as error:
        print(f"{nodes} nodes, the assessment: {error}", file=sys.stderr)
        found = None
    return {
        **row,
        "true_profit": np.nan if found is None else found.profit,
        "trimmed_profit": np.nan if found is None else found.trimmed_profit,
        "assess_cpu_seconds": time.process_time() - began,
        "peak_with_assessment_gib": peak(),
    }


def peak() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def exponent(nodes: pd.Series, values: pd.Series) -> float:
    """Slope of the least-squares line through the logarithms."""
    return float(np.polyfit(np.log(nodes), np.log(values), 1)[0]) if len(nodes) > 1 else np.nan


def draw(table: pd.DataFrame, exponents: dict[str, float], folder: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(9.6, 3.2), layout="constrained")
    for axes, (name, label) in zip(figure.subplots(1, len(CURVES)), CURVES.items(), strict=True):
        axes.loglog(table["nodes"], table[name], "o", color="#2f7ed8")
        if len(table) > 1:
            fit = np.polyfit(np.log(table["nodes"]), np.log(table[name]), 1)
            line = np.exp(np.polyval(fit, np.log(table["nodes"])))
            axes.loglog(table["nodes"], line, color="0.5", linewidth=1)
        axes.set(xlabel="nodes", title=f"{label}\n$\\propto$ nodes$^{{{exponents[name]:.1f}}}$")
        axes.title.set_fontsize("medium")
        axes.set_xticks(table["nodes"], table["nodes"])
        axes.xaxis.set_minor_formatter(NullFormatter())
        low, high = axes.get_ylim()
        if high < 50 * low:
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    for kind in ("png", "svg"):
        figure.savefig(folder / f"scaling.{kind}", dpi=150)


if __name__ == "__main__":
    main()
