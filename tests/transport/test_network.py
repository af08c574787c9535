"""Networks: what they hold, where they come from, and what is said when a table is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, dijkstra

from bilevel.errors import OptionError, ProblemError
from bilevel.problems.transport import TransportNetwork, nine_node, random_network, three_node

LINKS = "i,j,d,c\n1,2,0.5,1\n2,1,0.5,1\n2,3,0,2\n"
DEMAND = "o,dest,w,u,m\n1,2,3,1.5,2\n1,3,1,2,0\n2,1,0,1,1\n"
POSITIONS = "node,x,y\n3,2,0\n1,0,0\n2,1,1\n"


def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    links = pd.DataFrame({"i": [1, 2, 2], "j": [2, 1, 3], "d": [0.5, 0.5, 0.0], "c": [1, 1, 2]})
    pairs = pd.DataFrame(
        {"o": [1, 1, 2], "dest": [2, 3, 1], "w": [3, 1, 0], "u": [1.5, 2, 1], "m": [2, 0, 1]}
    )
    return links, pairs


def write(folder: Path, links: str | bytes = LINKS, demand: str | bytes = DEMAND) -> list[Path]:
    paths = [folder / "links.csv", folder / "demand.csv"]
    for path, text in zip(paths, (links, demand), strict=True):
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return paths


def assert_same(first: TransportNetwork, second: TransportNetwork) -> None:
    assert first.nodes == second.nodes
    pd.testing.assert_frame_equal(first.links, second.links)
    pd.testing.assert_frame_equal(first.pairs, second.pairs)


class TestTables:
    def test_the_arrays_are_the_columns_with_nodes_as_indices(self) -> None:
        network = TransportNetwork(*tables())
        assert network.nodes == (1, 2, 3)
        np.testing.assert_array_equal(network.tail, [0, 1, 1])
        np.testing.assert_array_equal(network.head, [1, 0, 2])
        np.testing.assert_array_equal(network.travel_cost, [0.5, 0.5, 0.0])
        np.testing.assert_array_equal(network.construction_cost, [1, 1, 2])
        np.testing.assert_array_equal(network.alternative_cost, [1.5, 2])
        assert "3 nodes, 3 links, 2 pairs" in repr(network)

    def test_pairs_without_demand_are_left_out(self) -> None:
        network = TransportNetwork(*tables())
        np.testing.assert_array_equal(network.origin, [0, 0])
        np.testing.assert_array_equal(network.destination, [1, 2])
        np.testing.assert_array_equal(network.demand, [3, 1])
        np.testing.assert_array_equal(network.fare, [2, 0])

    def test_the_arrays_cannot_be_written_and_the_tables_are_copies(self) -> None:
        links, pairs = tables()
        network = TransportNetwork(links, pairs)
        links.loc[0, "d"] = 9.0
        assert network.links.loc[0, "d"] == 0.5
        with pytest.raises(ValueError, match="read-only"):
            network.demand[0] = 1.0

    def test_nodes_that_cannot_be_compared_keep_the_order_of_the_links(self) -> None:
        links = pd.DataFrame({"i": ["b", 1], "j": [1, "a"], "d": 1.0, "c": 1.0})
        pairs = pd.DataFrame({"o": ["b"], "dest": ["a"], "w": [1], "u": [1], "m": [1]})
        assert TransportNetwork(links, pairs).nodes == ("b", 1, "a")

    def test_positions_are_put_in_the_order_of_the_nodes(self) -> None:
        positions = pd.DataFrame({"x": [2.0, 0, 1], "y": [5.0, 3, 4]}, index=[3, 1, 2])
        network = TransportNetwork(*tables(), positions)
        assert network.positions is not None
        np.testing.assert_array_equal(network.positions.to_numpy(), [[0, 3], [1, 4], [2, 5]])


@pytest.mark.parametrize(
    ("table", "row", "column", "value", "message"),
    [
        ("links", 1, "d", -0.1, r"links table, row 1, column d: -0.1 is negative; a travel cost"),
        ("links", 2, "c", -5, r"row 2, column c: -5.0 is negative; a construction cost"),
        ("links", 0, "d", np.nan, r"row 0, column d: nan is not a finite number"),
        ("links", 0, "c", np.inf, r"row 0, column c: inf is not a finite number"),
        ("links", 0, "c", "cheap", r"row 0, column c: 'cheap' is not a finite number"),
        ("links", 0, "c", None, r"row 0, column c: (nan|None) is not a finite number"),
        ("links", 2, "j", 2, r"row 2: the link leads from node 2 to itself"),
        ("links", 1, "i", None, r"row 1, column i: (nan|None) names no node"),
        ("links", 1, "i", {1}, r"row 1, column i: \{1\} names no node"),
        ("demand", 0, "w", -3, r"demand table, row 0, column w: -3.0 is negative; a demand"),
        ("demand", 1, "u", -1, r"row 1, column u: -1.0 is negative"),
        ("demand", 1, "m", -1, r"row 1, column m: -1.0 is negative; a fare"),
        ("demand", 1, "m", np.nan, r"row 1, column m: nan is not a finite number"),
        ("demand", 1, "dest", 7, r"row 1, column dest: node 7 is not in the network"),
        ("demand", 1, "o", "1", r"row 1, column o: node '1' .* the links name 1, a int"),
        ("demand", 1, "dest", 1, r"row 1: the pair leads from node 1 to itself"),
        ("demand", 1, "dest", 2, r"row 1: the pair from 1 to 2 stands already in row 0"),
    ],
)
def test_a_wrong_cell_is_named_by_table_row_and_column(
    table: str, row: int, column: str, value: object, message: str
) -> None:
    links, pairs = tables()
    changed = {"links": links, "demand": pairs}[table].astype(object)
    changed.loc[row, column] = value
    with pytest.raises(ProblemError, match=message):
        TransportNetwork(*((changed, pairs) if table == "links" else (links, changed)))


class TestBadTables:
    def test_a_duplicate_link_names_both_rows(self) -> None:
        links, pairs = tables()
        with pytest.raises(ProblemError, match=r"row 3: the link from 1 to 2 .* already in row 0"):
            TransportNetwork(pd.concat([links, links.iloc[:1]], ignore_index=True), pairs)

    @pytest.mark.parametrize("column", ["o", "dest", "w", "u", "m"])
    def test_a_missing_column_is_named(self, column: str) -> None:
        links, pairs = tables()
        with pytest.raises(ProblemError, match=f"demand table: no column '{column}' among"):
            TransportNetwork(links, pairs.drop(columns=column))

    def test_a_repeated_column_is_named(self) -> None:
        links, pairs = tables()
        with pytest.raises(ProblemError, match="links table: 2 columns 'd'"):
            TransportNetwork(pd.concat([links, links[["d"]]], axis=1), pairs)

    def test_empty_tables(self) -> None:
        links, pairs = tables()
        with pytest.raises(ProblemError, match="links table: it has no rows"):
            TransportNetwork(links.iloc[:0], pairs)
        with pytest.raises(ProblemError, match="demand table: it has no rows"):
            TransportNetwork(links, pairs.iloc[:0])

    def test_no_demand_at_all(self) -> None:
        links, pairs = tables()
        with pytest.raises(ProblemError, match="each of its 3 pairs is 0"):
            TransportNetwork(links, pairs.assign(w=0.0))

    def test_something_that_is_no_table(self) -> None:
        with pytest.raises(ProblemError, match="links table: found dict, expected a pandas"):
            TransportNetwork({"i": [1]}, tables()[1])  # type: ignore[arg-type]

    def test_columns_that_hold_no_numbers(self) -> None:
        links, pairs = tables()
        with pytest.raises(ProblemError, match="links table, column d"):
            TransportNetwork(links.assign(d=[True, False, True]), pairs)

    def test_pairs_without_a_path_are_named_and_counted(self) -> None:
        links, pairs = tables()
        pairs = pairs.assign(o=[3, 3, 2], dest=[1, 2, 1])
        with pytest.raises(ProblemError, match=r"leads from 3 to 1 .2 of 2 pairs"):
            TransportNetwork(links, pairs)

    @pytest.mark.parametrize(
        ("index", "message"),
        [
            ([1, 2, 4], "node 4 is not in the network"),
            ([1, 2, 2], "node 2 has two rows"),
            ([1, 2], "no row for node 3"),
        ],
    )
    def test_positions_must_be_those_of_the_nodes(self, index: list[int], message: str) -> None:
        positions = pd.DataFrame({"x": 0.0, "y": 1.0}, index=index)
        with pytest.raises(ProblemError, match=message):
            TransportNetwork(*tables(), positions)


class TestCSV:
    def test_files_give_the_network_of_the_tables(self, tmp_path: Path) -> None:
        positions = tmp_path / "positions.csv"
        positions.write_text(POSITIONS)
        network = TransportNetwork.from_csv(*write(tmp_path), positions)
        assert_same(network, TransportNetwork(*tables()))
        assert network.positions is not None
        np.testing.assert_array_equal(network.positions["x"], [0, 1, 2])

    @pytest.mark.parametrize("end", ["\n", "\r\n"])
    def test_byte_order_mark_line_ends_blank_lines_and_spaces_do_not_matter(
        self, tmp_path: Path, end: str
    ) -> None:
        links = ("\ufeff" + LINKS.replace(",", " , ").replace("\n", "\n\n")).replace("\n", end)
        network = TransportNetwork.from_csv(*write(tmp_path, links))
        assert_same(network, TransportNetwork(*tables()))

    def test_nodes_are_strings_where_one_of_them_is_no_integer(self, tmp_path: Path) -> None:
        paths = write(tmp_path, LINKS + "x,1,1,1\n")
        assert TransportNetwork.from_csv(*paths).nodes == ("1", "2", "3", "x")
        paths = write(tmp_path, LINKS.replace("3", "03"), DEMAND.replace("1,3,", "1,03,"))
        assert TransportNetwork.from_csv(*paths).nodes == ("03", "1", "2")

    @pytest.mark.parametrize(
        ("links", "message"),
        [
            ("", r"links.csv is empty; expected a CSV file with the columns i, j, d, c"),
            ("\n\n", "is empty"),
            ("i,j,d,c\n", "links table: it has no rows"),
            ("i;j;d;c\n1;2;3;4\n", "separates its columns by semicolons"),
            ("i\tj\td\tc\n", "separates its columns by tabs"),
            ("1,2,0.5,1\n", "has no column 'i' .its first line reads '1, 2, 0.5, 1'"),
            ("i,j,d\n1,2,3\n", "has no column 'c'"),
            ("i,j,d,c,c\n1,2,3,4,5\n", "more than one column 'c'"),
            ("i,j,d,c\n1,2,0,5,1\n", "line 2 has 5 cells under a header of 4"),
            ("i,j,d,c\n\n1,2,,1\n", "links table, links.csv line 3, column d: '' is not a finite"),
            ("i,j,d,c\n1,2,1,1\n2,3,1,-2\n", "links.csv line 3, column c: -2.0 is negative"),
            ("i,j,d,c\n1,2,1,1\n1,,1,1\n", "links.csv line 3, column j: '' names no node"),
            (b"\x89PNG\r\n\x1a\n\x00\xff", "is not a text file of CSV"),
        ],
    )
    def test_a_wrong_file_is_named_with_its_line(
        self, tmp_path: Path, links: str | bytes, message: str
    ) -> None:
        with pytest.raises(ProblemError, match=message):
            TransportNetwork.from_csv(*write(tmp_path, links))

    def test_a_missing_file_and_a_folder(self, tmp_path: Path) -> None:
        links, demand = write(tmp_path)
        with pytest.raises(ProblemError, match=r"nowhere.csv does not exist"):
            TransportNetwork.from_csv(links, tmp_path / "nowhere.csv")
        with pytest.raises(ProblemError, match="cannot be read"):
            TransportNetwork.from_csv(tmp_path, demand)


class TestGraphs:
    def test_a_graph_and_back_is_the_same_network(self) -> None:
        network = nine_node()
        again = TransportNetwork.from_graph(network.to_graph(), network.pairs)
        assert again.name == "nine-node"
        order = ["i", "j"]
        pd.testing.assert_frame_equal(
            again.links.sort_values(order, ignore_index=True),
            network.links.sort_values(order, ignore_index=True),
        )
        assert again.positions is not None
        assert network.positions is not None
        pd.testing.assert_frame_equal(again.positions, network.positions)

    def test_an_undirected_edge_is_two_links(self) -> None:
        graph = nx.Graph()
        graph.add_edge("a", "b", time=1.0, price=2)
        graph.add_node("alone", lon=1, lat=2)
        graph.nodes["a"].update(lon=-6.0, lat=37.0)
        graph.nodes["b"].update(pos=(-5.0, 36.0))
        pairs = pd.DataFrame({"o": ["a"], "dest": ["b"], "w": [1], "u": [1], "m": [1]})
        network = TransportNetwork.from_graph(
            graph, pairs, travel_cost="time", construction_cost="price"
        )
        assert network.links.to_numpy().tolist() == [["a", "b", 1.0, 2.0], ["b", "a", 1.0, 2.0]]
        assert network.positions is not None
        np.testing.assert_array_equal(network.positions.to_numpy(), [[-6, 37], [-5, 36]])

    def test_nodes_may_be_tuples(self) -> None:
        graph = nx.grid_graph((2, 2))
        nx.set_edge_attributes(graph, 1.0, "travel_cost")
        nx.set_edge_attributes(graph, 1.0, "construction_cost")
        nx.set_node_attributes(graph, {node: node for node in graph}, "pos")
        pairs = pd.DataFrame({"o": [(0, 0)], "dest": [(1, 1)], "w": [1], "u": [1], "m": [1]})
        network = TransportNetwork.from_graph(graph, pairs)
        assert network.nodes == ((0, 0), (0, 1), (1, 0), (1, 1))
        assert network.positions is not None
        np.testing.assert_array_equal(network.positions.to_numpy(), network.nodes)

    def test_graphml_names_nodes_by_strings(self, tmp_path: Path) -> None:
        path = tmp_path / "network.graphml"
        nx.write_graphml(nine_node().to_graph(), path)
        demand = tmp_path / "demand.csv"
        nine_node().pairs.to_csv(demand, index=False)
        network = TransportNetwork.from_graphml(path, demand)
        assert network.nodes == tuple("123456789")
        np.testing.assert_array_equal(network.fare, nine_node().fare)
        with pytest.raises(ProblemError, match=r"node 1 is not .* the links name '1', a str"):
            TransportNetwork.from_graphml(path, nine_node().pairs)

    def test_wrong_graphs(self, tmp_path: Path) -> None:
        pairs = tables()[1]
        graph = nx.DiGraph([(1, 2, {"travel_cost": 1.0})])
        with pytest.raises(ProblemError, match="edge from 1 to 2 has no attribute 'construction_c"):
            TransportNetwork.from_graph(graph, pairs)
        graph.edges[1, 2]["construction_cost"] = "dear"
        with pytest.raises(ProblemError, match="edge 1 → 2, column c: 'dear' is not a finite"):
            TransportNetwork.from_graph(graph, pairs)
        with pytest.raises(ProblemError, match="parallel links are not supported"):
            TransportNetwork.from_graph(nx.MultiDiGraph(graph), pairs)
        with pytest.raises(ProblemError, match="links table: it has no rows"):
            TransportNetwork.from_graph(nx.DiGraph(), pairs)
        graph.nodes[1]["pos"] = "north"
        with pytest.raises(ProblemError, match="node 1 has pos='north'"):
            TransportNetwork.from_graph(nx.DiGraph(graph), pairs)
        path = tmp_path / "network.graphml"
        with pytest.raises(ProblemError, match="does not exist"):
            TransportNetwork.from_graphml(path, pairs)
        for text in ("", "no markup", "<html></html>"):
            path.write_text(text)
            with pytest.raises(ProblemError, match="is not a GraphML file"):
                TransportNetwork.from_graphml(path, pairs)


class TestInstances:
    def test_three_node_has_the_numbers_of_the_paper(self) -> None:
        links = three_node().links.set_index(["i", "j"])
        pairs = three_node().pairs.set_index(["o", "dest"])
        for a, b, d, c, m in ((1, 2, 1, 1, 2), (1, 3, 10, 10, 6), (2, 3, 2, 3, 1)):
            for ends in ((a, b), (b, a)):
                assert links.loc[ends].tolist() == [d, c]
                assert pairs.loc[ends].tolist() == [1, 3, m]
        assert len(links) == len(pairs) == 6

    def test_nine_node_has_the_numbers_of_the_paper(self) -> None:
        network = nine_node()
        assert len(network.links) == 30
        assert len(network.pairs) == 72
        assert network.demand.sum() == pytest.approx(104.4, abs=1e-12)
        assert network.demand @ network.fare == pytest.approx(443.25, abs=1e-12)
        assert network.alternative_cost.sum() == pytest.approx(126.7, abs=1e-12)
        assert network.travel_cost.sum() == pytest.approx(21.5, abs=1e-12)
        assert network.construction_cost.sum() == pytest.approx(76.0, abs=1e-12)
        pairs = network.pairs.set_index(["o", "dest"])
        assert pairs.loc[(3, 1)].tolist() == [3, 1.5, 2.5]
        assert pairs.loc[(8, 9)].tolist() == [0.4, 0.3, 7.5]
        links = network.links.set_index(["i", "j"])
        assert links.loc[(8, 6)].tolist() == [0.4, 2.8]

    def test_nine_node_is_drawn_without_crossings(self) -> None:
        network = nine_node()
        assert network.positions is not None
        points = network.positions.to_numpy()
        edges = [(i, j) for i, j in zip(network.tail, network.head, strict=True) if i < j]

        def left(a: int, b: int, c: int) -> bool:
            (ax, ay), (bx, by), (cx, cy) = points[[a, b, c]]
            return bool((bx - ax) * (cy - ay) > (by - ay) * (cx - ax))

        for a, b in edges:
            for c, d in edges:
                if len({a, b, c, d}) == 4:
                    assert left(a, b, c) == left(a, b, d) or left(c, d, a) == left(c, d, b)

    @settings(max_examples=15)
    @given(nodes=st.integers(3, 40), seed=st.integers(0, 2**32 - 1))
    def test_random_networks_are_connected_planar_and_hold_all_pairs(
        self, nodes: int, seed: int
    ) -> None:
        network = random_network(nodes, seed=seed)
        assert len(network.pairs) == nodes * (nodes - 1)
        graph = csr_array((network.travel_cost, (network.tail, network.head)), shape=(nodes, nodes))
        assert connected_components(graph, connection="strong")[0] == 1
        assert len(network.links) <= 2 * (3 * nodes - 3)
        assert network.demand.mean() == pytest.approx(2.65)
        np.testing.assert_allclose(network.construction_cost, 1.1 * network.travel_cost)
        shortest = dijkstra(graph)[network.origin, network.destination]
        surplus = (network.fare - shortest)[network.fare > 0.25]
        assert set(np.round(surplus, 9)) <= {-3.0, -1.0, 1.0, 3.0}

    def test_a_random_network_depends_on_its_seed_alone(self) -> None:
        assert_same(random_network(9, seed=4), random_network(9, seed=4))
        assert len(random_network(9, seed=5).links) > 0
        assert not np.array_equal(
            random_network(9, seed=4).demand, random_network(9, seed=5).demand
        )

    def test_random_networks_check_their_parameters(self) -> None:
        with pytest.raises(OptionError, match="nodes=2"):
            random_network(2, seed=0)
        with pytest.raises(OptionError, match="seed=-1"):
            random_network(5, seed=-1)


@pytest.mark.parametrize("graph", [None, three_node().links, 3])
def test_what_is_no_graph_is_named(graph: Any) -> None:
    with pytest.raises(ProblemError, match=r"graph: found \w+, expected a networkx.DiGraph"):
        TransportNetwork.from_graph(graph, three_node().pairs)
