"""Seville's metro, built from the original workbook."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import ArrayLike

from bilevel.errors import MissingExtraError, ProblemError
from bilevel.problems.transport import nine_node, seville, seville_start
from bilevel.problems.transport.network import TransportNetwork

pytestmark = pytest.mark.real_data


@pytest.fixture(scope="module")
def network() -> TransportNetwork:
    return seville()


@pytest.fixture(scope="module")
def folder() -> Path:
    return Path(os.environ["BILEVEL_DATA"]) / "seville"


def derived(folder: Path, name: str) -> Iterator[pd.DataFrame]:
    """The table that was derived from the originals elsewhere, where the folder has it too."""
    if (folder / name).is_file():
        yield pd.read_csv(folder / name)


def projected(column: ArrayLike) -> float:
    """A random projection, which an error of any entry changes; derived tables gave those below."""
    values = np.asarray(column, dtype=np.float64)
    return float(np.random.RandomState(0).standard_normal(len(values)) @ values)


def test_the_program_has_the_size_that_the_paper_states(network: TransportNetwork) -> None:
    nodes, links, pairs = len(network.nodes), len(network.links), len(network.pairs)
    assert (nodes, links, pairs) == (24, 88, 552)
    assert links + pairs + links * pairs == 49_216
    assert links + pairs * nodes == 13_336


def test_the_links_equal_the_derived_table(network: TransportNetwork, folder: Path) -> None:
    assert projected(network.links["i"]) == pytest.approx(-136.35949128983384, abs=1e-12)
    assert projected(network.links["j"]) == pytest.approx(-51.823005082354896, abs=1e-12)
    assert projected(network.travel_cost) == pytest.approx(-3.0517211583046278, abs=1e-12)
    assert projected(network.construction_cost) == pytest.approx(-3.342062870148804, abs=1e-12)
    assert projected(seville_start(network)) == pytest.approx(21.94344285256258, abs=1e-12)
    for table in derived(folder, "seville_links.csv"):
        assert (network.links[["i", "j"]].to_numpy() == table[["i", "j"]].to_numpy()).all()
        np.testing.assert_allclose(network.travel_cost, table["d"], rtol=0, atol=1e-12)
        np.testing.assert_allclose(network.construction_cost, table["c"], rtol=0, atol=1e-12)
        np.testing.assert_allclose(seville_start(network), table["a0"], rtol=0, atol=1e-12)


def test_the_pairs_equal_the_derived_table(network: TransportNetwork, folder: Path) -> None:
    expected = {
        "o": -535.0002009218277, "dest": -433.78048994016683, "w": -106.51038603774805,
        "u": 11.34855380610766, "m": 1.3423324528928926,
    }  # fmt: skip
    for column, value in expected.items():
        assert projected(network.pairs[column]) == pytest.approx(value, abs=1e-12)
    for table in derived(folder, "seville_od.csv"):
        assert (network.pairs[["o", "dest"]].to_numpy() == table[["o", "dest"]].to_numpy()).all()
        for column in "wum":
            np.testing.assert_allclose(network.pairs[column], table[column], rtol=0, atol=1e-12)


def test_its_totals_are_those_of_the_published_instance(network: TransportNetwork) -> None:
    assert network.demand.sum() == pytest.approx(1465.085, abs=1e-9)
    assert network.demand @ network.fare == pytest.approx(4232.22, abs=5e-3)
    assert network.construction_cost @ seville_start(network) == pytest.approx(2012.1, abs=0.05)
    np.testing.assert_allclose(network.construction_cost / network.travel_cost, 1.09514, atol=5e-6)
    assert network.positions is not None
    np.testing.assert_allclose(
        network.positions.loc[1], [-5.99576976378, 37.35486867224], rtol=0, atol=1e-9
    )


def test_the_start_is_for_this_network_only() -> None:
    with pytest.raises(ProblemError, match="nine-node"):
        seville_start(nine_node())


def test_a_missing_reader_of_workbooks_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(MissingExtraError, match=r"bilevel\[transport\]"):
        seville()
