"""Print the tables of each benchmark's latest run, and gather all reports as one site.

Written to results/benchmarks: a CSV file for each table, and html/index.html.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
from pathlib import Path

import pandas as pd
from benchopt.benchmark import Benchmark
from benchopt.plotting.generate_html import plot_benchmark_html_all
from benchopt.results import read_results

ROOT = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=ROOT.parent / "results" / "benchmarks", help="folder to fill"
    )
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    folders = sorted(each.parent for each in ROOT.glob("*/outputs") if any(each.glob("*.parquet")))
    if not folders:
        parser.error("no benchmark has been run yet: see benchmarks/README.md")
    latest = [show_tables(folder, out) for folder in folders]
    shutil.rmtree(out / "html", ignore_errors=True)
    os.chdir(out)  # benchopt writes its site to the current folder
    with contextlib.redirect_stdout(io.StringIO()):
        plot_benchmark_html_all(patterns=latest, benchmark_paths=folders, display=False)
    print(f"Tables: {out}/*.csv\nReport: {out / 'html' / 'index.html'}")


def show_tables(folder: Path, out: Path) -> str:
    """Print and save a benchmark's own tables; returns the name of the results' file."""
    benchmark = Benchmark(folder)
    (latest,) = benchmark.get_result_files()
    results = read_results(latest)
    setting = results.iloc[-1]
    print(
        f"\n{benchmark.pretty_name}: {latest.name}, {setting['system-processor']}, "
        f"{setting['system-cpus']} cores, OMP_NUM_THREADS={setting['env-OMP_NUM_THREADS']}, "
        f"seed {setting['base_seed']}"
    )
    custom = [plot for plot in benchmark.get_plots() if plot.type == "table" and not plot.options]
    for plot in custom:
        shown = plot.get_metadata(results)
        table = pd.DataFrame(plot.plot(results), columns=shown["columns"])
        table.to_csv(out / f"{folder.name}_{plot._get_name()}.csv", index=False)
        print(f"\n{shown['title']}\n{table.to_string(index=False)}")
    return latest.name


if __name__ == "__main__":
    main()
