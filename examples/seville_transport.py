"""Plan a transport network: which links to build, and with what capacity, for the largest profit.

Passengers answer a plan with routes and with the choice between the network and another mode of
travel. They pay a fare for each trip; each unit of a link's capacity costs the operator. The plan
is found by BLOCC (arXiv:2406.10148, section 4.3) with difference-of-convex steps along a rising
penalty, trimmed to what is used, and polished by a local search on link tolls. Whatever is
reported of a plan is the passengers' exact answer to it, from an independent solver.

  python examples/seville_transport.py                      the paper's nine-node network
  python examples/seville_transport.py --network seville    Seville's metro: 24 stations, 552 pairs
  python examples/seville_transport.py --network random:50  a random city of 50 nodes

Your own network, as tables or as a graph:

  python examples/seville_transport.py --network folder     of links.csv, demand.csv, nodes.csv
  python examples/seville_transport.py --links links.csv --demand demand.csv --positions nodes.csv
  python examples/seville_transport.py --graph network.graphml --demand demand.csv

links.csv:   i, j, d, c        a directed link from i to j, travel cost, construction cost
demand.csv:  o, dest, w, u, m  a pair, its demand, cost of the alternative mode, fare
nodes.csv:   node, x, y        for the map only, and may be missing
The GraphML's edges have the attributes travel_cost and construction_cost.

--ceiling and --least-share hold for all links or pairs, or, given as CSV, for those in the file:

ceilings.csv:  i, j, ceiling
shares.csv:    o, dest, share
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import networkx
import numpy as np
import pandas as pd
import torch
from output import write_configuration, write_json
from runs import file_or_name, make_folder, parse, require_least, require_same_run

from bilevel.errors import BilevelError, OptionError
from bilevel.extras import require
from bilevel.problems.transport import (
    PlanLimits,
    TransportNetwork,
    TrueProfit,
    nine_node,
    plan_network,
    random_network,
    seville,
    seville_start,
    three_node,
    transport_start,
)
from bilevel.problems.transport.planning import check_options
from bilevel.problems.transport.stages import NEGLIGIBLE
from bilevel.problems.transport.tables import read_csv

NETWORKS = {"three-node": three_node, "nine-node": nine_node, "seville": seville}
QUICK = {"steps": 30, "first_penalties": [0.1], "polish": 2}


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(1)
    try:
        run(args)
    except (BilevelError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; --resume goes on from the last checkpoint")


def run(args: argparse.Namespace) -> None:
    began = time.perf_counter()
    require("matplotlib", "plot")
    network = read_network(args)
    limits = PlanLimits(
        ceiling=read_limit(args.ceiling, network.links, ("i", "j", "ceiling"), np.inf),
        budget=args.budget,
        least_share=read_limit(args.least_share, network.pairs, ("o", "dest", "share"), 0.0),
    )
    start = read_start(args, network)
    # All that may be refused comes before anything is written or removed.
    limits.of(network)
    check_options(args.steps, args.first_penalties, args.polish, args.seed)
    transport_start(network, start)
    prepare_folder(args)
    plan = plan_network(
        network, limits, start=start, steps=args.steps, first_penalties=args.first_penalties,
        trim=not args.no_trim, polish=args.polish, seed=args.seed,
        callbacks=[TrueProfit(network)],
        checkpoints=args.out / "checkpoints", resume=args.resume,
    )  # fmt: skip
    from transport_report import draw, history, pairs, summary, table

    write_json(args.out / "summary.json", summary(plan))
    history(plan).to_csv(args.out / "history.csv", index=False)
    plan.assessment.plan.to_csv(args.out / "plan.csv", index=False)
    pairs(plan).to_csv(args.out / "pairs.csv", index=False)
    networkx.write_graphml(plan.assessment.to_graph(), args.out / "plan.graphml")
    draw(plan, args.out)
    print(table(plan))
    if not plan.assessment.capacity.any():
        print("\nNo link pays for itself within the limits: the plan is to build none.")
    if plan.violation > NEGLIGIBLE:
        print(
            f"\nNo plan within the limits was found: this one breaks them by {plan.violation:.2g}."
        )
    elif args.polish > 0 and plan.search is None:
        print("\nThe polish was left out: it found no plan within the limits.")
    print(f"\n{time.perf_counter() - began:.0f} s; plan, tables and figures are in {args.out}/")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = parser.add_argument_group("the network")
    source = data.add_mutually_exclusive_group()
    source.add_argument("--network", metavar="NAME", type=network_name, default="nine-node",
                        help="three-node, nine-node (default), seville, random:N; or a "
                        "folder")  # fmt: skip
    source.add_argument("--links", type=Path, metavar="CSV", help="the candidate links")
    source.add_argument("--graph", type=Path, metavar="GRAPHML", help="the candidate links")
    data.add_argument("--demand", type=Path, metavar="CSV", help="the pairs and their demand")
    data.add_argument("--positions", type=Path, metavar="CSV", help="the nodes' coordinates")

    limit = parser.add_argument_group("what the plan has to respect").add_argument
    limit("--ceiling", type=number_or_file, metavar="CAPACITY", help="largest capacity of a link")
    limit("--budget", type=float, help="largest construction cost of all links together")
    limit("--least-share", type=number_or_file, metavar="SHARE",
          help="least share of each pair's demand that is to travel by the network")  # fmt: skip

    option = parser.add_argument_group("how it is sought").add_argument
    option("--start", metavar="START", default="even",
           help="capacities to start from: even (a quarter of all demand, spread evenly over the "
           "links), random (of the same mean), published (of seville), or a number "
           "(default: %(default)s)")  # fmt: skip
    option("--steps", type=int, default=100, help="outer steps of a run (default: %(default)s)")
    option("--first-penalties", type=float, nargs="+", default=[0.1, 0.3], metavar="PENALTY",
           help="a run from each of these, in units of the mean fare; the best is kept "
           "(default: 0.1 0.3)")  # fmt: skip
    option("--no-trim", action="store_true", help="keep capacity that nobody uses")
    option("--polish", type=int, default=20, metavar="ROUNDS",
           help="rounds of the search on tolls; 0 for none (default: %(default)s)")  # fmt: skip
    option("--seed", type=int, default=0,
           help="of random networks, starts and the search (default: %(default)s)")  # fmt: skip
    option("--quick", action="store_true", help="one short run, 2 rounds: under a minute")
    option("--resume", action="store_true", help="go on with an interrupted run's checkpoints")
    option("--out", type=Path, default=Path("results/seville_transport"),
           help="folder to write to (default: %(default)s)")  # fmt: skip
    args = parse(parser, QUICK)
    require_least(parser, args, steps=1, polish=0, seed=0)
    tables = args.links or args.graph
    if bool(tables) != bool(args.demand):
        parser.error("--demand goes with --links or --graph, and each of these with --demand")
    if args.positions and not args.links:
        parser.error("--positions goes with --links; a graph's nodes have attributes x and y")
    args.name = args.links.stem if args.links else None
    if isinstance(args.network, Path):
        folder, positions = args.network, args.network / "nodes.csv"
        args.links, args.demand = folder / "links.csv", folder / "demand.csv"
        args.positions = positions if positions.exists() else None
        args.network, args.name = str(folder.resolve()), folder.resolve().name
    return args


def network_name(text: str) -> str | Path:
    kind, _, size = text.partition(":")
    if text in NETWORKS or (kind == "random" and size.isdecimal()):
        return text
    place = file_or_name(text)
    if isinstance(place, Path) and place.is_dir():
        return place
    raise argparse.ArgumentTypeError(
        f"{text!r} is none of {', '.join(NETWORKS)}, random:N, nor a folder"
    )


def number_or_file(text: str) -> float | Path:
    try:
        return float(text)
    except ValueError:
        return Path(text)


def read_network(args: argparse.Namespace) -> TransportNetwork:
    if args.links:
        return TransportNetwork.from_csv(args.links, args.demand, args.positions, name=args.name)
    if args.graph:
        return TransportNetwork.from_graphml(args.graph, args.demand)
    if args.network in NETWORKS:
        return NETWORKS[args.network]()
    return random_network(int(args.network.partition(":")[2]), seed=args.seed)


def read_limit(
    given: float | Path | None, table: pd.DataFrame, columns: tuple[str, str, str], default: float
) -> np.ndarray | float | None:
    """A limit of all links or pairs, or of each by a file; those that it leaves out have none."""
    if not isinstance(given, Path):
        return given
    *ends, column = columns
    rows = read_csv(given, columns)
    names = [tuple(map(str, pair)) for pair in zip(*(table[end] for end in ends), strict=True)]
    place = {pair: number for number, pair in enumerate(names)}
    values, seen = np.full(len(table), default), set()
    for line, cells in rows.iterrows():
        pair = tuple(cells[end] for end in ends)
        where = f"{given}, line {line}"
        if pair not in place:
            kind = "link" if ends[0] == "i" else "pair with a demand"
            raise OptionError(f"{where}: no {kind} leads from {pair[0]!r} to {pair[1]!r}")
        if pair in seen:
            raise OptionError(f"{where}: {pair[0]!r} to {pair[1]!r} stands in an earlier line")
        seen.add(pair)
        try:
            value = float(cells[column])
        except ValueError:
            value = np.nan
        if not (value > 0 if column == "ceiling" else 0 <= value < 1):
            expected = "a number above 0" if column == "ceiling" else "a share in [0, 1)"
            raise OptionError(f"{where}: {column} is {cells[column]!r}, expected {expected}")
        values[place[pair]] = value
    return values


def read_start(args: argparse.Namespace, network: TransportNetwork) -> np.ndarray:
    even = transport_start(network)[0].numpy()
    if args.start == "even":
        return even
    if args.start == "random":
        return even * np.random.default_rng(args.seed).uniform(0.0, 2.0, len(even))
    if args.start == "published":
        if network.name != "seville":
            raise OptionError("--start published is for --network seville; give a number, or even")
        return seville_start(network)
    try:
        number = float(args.start)
    except ValueError:
        number = np.nan
    if not 0 <= number < np.inf:
        raise OptionError(f"--start {args.start}: expected even, random, published or a number")
    return np.full(len(even), number)


def prepare_folder(args: argparse.Namespace) -> None:
    """Write the configuration, or compare it with that of the run that is resumed."""
    folder = args.out / "checkpoints"
    if args.resume:
        if not any(folder.glob("blocc-*.pt")):
            raise OptionError(f"--resume: there are no checkpoints in {folder}; leave it out")
        require_same_run(args.out, args, free={"polish", "no_trim"})
    make_folder(folder)
    write_configuration(args.out, args)


if __name__ == "__main__":
    main()
