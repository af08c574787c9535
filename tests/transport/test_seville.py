"""Seville's metro, built from the original workbook."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

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


def derived(folder: Path, name: str) -> pd.DataFrame:
    if not (folder / name).is_file():
        pytest.skip(f"{name}, a table derived from the originals, is not in BILEVEL_DATA")
    return pd.read_csv(folder / name)


def test_the_program_has_the_size_that_the_paper_states(network: TransportNetwork) -> None:
    nodes, links, pairs = len(network.nodes), len(network.links), len(network.pairs)
    assert (nodes, links, pairs) == (24, 88, 552)
    assert links + pairs + links * pairs == 49_216
    assert links + pairs * nodes == 13_336


def test_the_links_equal_the_derived_table(network: TransportNetwork, folder: Path) -> None:
    table = derived(folder, "seville_links.csv")
    assert (network.links[["i", "j"]].to_numpy() == table[["i", "j"]].to_numpy()).all()
    np.testing.assert_allclose(network.travel_cost, table["d"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(network.construction_cost, table["c"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(seville_start(network), table["a0"], rtol=0, atol=1e-12)


def test_the_pairs_equal_the_derived_table(network: TransportNetwork, folder: Path) -> None:
    table = derived(folder, "seville_od.csv")
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
