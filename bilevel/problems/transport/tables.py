"""The tables that describe a network: read from CSV files, and validated cell by cell.

A message names a table's row by its index: the line of the file where the table was read from one.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from bilevel.errors import ProblemError

Array: TypeAlias = npt.NDArray[np.float64]
Mask: TypeAlias = npt.NDArray[np.bool_]
PathLike: TypeAlias = str | os.PathLike[str]

LINK_COLUMNS = ("i", "j", "d", "c")
PAIR_COLUMNS = ("o", "dest", "w", "u", "m")
POSITION_COLUMNS = ("x", "y")
_LARGEST_COORDINATE = 1e100


def read_tables(
    links: PathLike, demand: PathLike, positions: PathLike | None
) -> list[pd.DataFrame]:
    """Read a network's CSV files; nodes become integers if all of them are written so."""
    tables = [read_csv(links, LINK_COLUMNS), read_csv(demand, PAIR_COLUMNS)]
    node_columns = [["i", "j"], ["o", "dest"]]
    if positions is not None:
        tables.append(read_csv(positions, ("node", *POSITION_COLUMNS)))
        node_columns.append(["node"])
    labels = [table[columns] for table, columns in zip(tables, node_columns, strict=True)]
    if all(_is_integer(label) for table in labels for label in table.to_numpy().ravel()):
        for table, columns in zip(tables, node_columns, strict=True):
            table[columns] = table[columns].map(int)
    if positions is not None:
        tables[2] = tables[2].set_index("node")
    return tables


def validated_links(links: pd.DataFrame) -> pd.DataFrame:
    """Check the table of links and reduce it to its columns i, j, d, c."""
    _require_columns(links, "links", LINK_COLUMNS)
    tail, head = _labels(links, "links", "i"), _labels(links, "links", "j")
    _require_distinct(links, "links", "link", tail, head)
    return pd.DataFrame(
        {
            "i": tail,
            "j": head,
            "d": _costs(links, "links", "d", "a travel cost"),
            "c": _costs(links, "links", "c", "a construction cost"),
        }
    )


def validated_pairs(pairs: pd.DataFrame, nodes: Sequence[Hashable]) -> pd.DataFrame:
    """Check the table of pairs, reduce it to its columns, and leave out pairs without demand."""
    _require_columns(pairs, "demand", PAIR_COLUMNS)
    origin, destination = _labels(pairs, "demand", "o"), _labels(pairs, "demand", "dest")
    _require_distinct(pairs, "demand", "pair", origin, destination)
    for column, labels in (("o", origin), ("dest", destination)):
        _require_known(pairs, "demand", column, labels, nodes)
    table = pd.DataFrame(
        {
            "o": origin,
            "dest": destination,
            "w": _costs(pairs, "demand", "w", "a demand"),
            "u": _costs(pairs, "demand", "u", "the cost of an alternative"),
            "m": _costs(pairs, "demand", "m", "a fare"),
        }
    )
    table = table[table["w"] > 0].reset_index(drop=True)
    if table.empty:
        raise ProblemError(
            f"demand table: the demand w of each of its {len(pairs)} pairs is 0; "
            "at least one pair must have passengers"
        )
    return table


def validated_positions(positions: pd.DataFrame, nodes: Sequence[Hashable]) -> pd.DataFrame:
    """Check the table of positions, and order its rows as the nodes."""
    _require_columns(positions, "positions", POSITION_COLUMNS)
    labels = list(positions.index)
    named = positions.reset_index(drop=True)
    _require_known(named, "positions", "node", labels, nodes)
    row = {label: row for row, label in enumerate(labels)}
    repeated = [label for first, label in enumerate(labels) if row[label] != first]
    if repeated:
        raise ProblemError(f"positions table: node {repeated[0]!r} has two rows; keep one")
    missing = [node for node in nodes if node not in row]
    if missing:
        raise ProblemError(
            f"positions table: no row for node {missing[0]!r} ({len(missing)} of {len(nodes)} "
            "nodes have none); give the position of each node, or no positions at all"
        )
    order = [row[node] for node in nodes]
    columns = {name: _numbers(positions, "positions", name)[order] for name in POSITION_COLUMNS}
    if max(np.abs(each).max() for each in columns.values()) > _LARGEST_COORDINATE:
        raise ProblemError(
            f"positions table: a coordinate is beyond {_LARGEST_COORDINATE:g}; use another unit"
        )
    return pd.DataFrame(
        columns,
        index=pd.Index(list(nodes), name="node", tupleize_cols=False),
    )


def read_csv(path: PathLike, columns: Sequence[str]) -> pd.DataFrame:
    """Read a file's cells as strings, indexed by their line in the file."""
    path = Path(path)
    expected = f"expected a CSV file with the columns {', '.join(columns)}"
    try:
        # utf-8-sig drops the byte order mark that spreadsheet programs write.
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(row)]
    except FileNotFoundError as error:
        raise ProblemError(f"{path} does not exist; {expected}") from error
    except OSError as error:
        raise ProblemError(f"{path} cannot be read ({error}); {expected}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ProblemError(f"{path} is not a text file of CSV ({error}); {expected}") from error
    if not rows:
        raise ProblemError(f"{path} is empty; {expected}")
    (_, header), *body = rows
    _require_header(path, header, columns)
    for line, cells in body:
        if len(cells) != len(header):
            raise ProblemError(
                f"{path}, line {line} has {len(cells)} cells under a header of {len(header)}; "
                "write one cell a column, separated by commas, with a decimal point in numbers"
            )
    index = pd.Index([line for line, _ in body], name=f"{path.name} line", dtype="int64")
    return pd.DataFrame([cells for _, cells in body], columns=header, index=index, dtype=object)


def _require_header(path: Path, header: Sequence[str], columns: Sequence[str]) -> None:
    for delimiter, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if len(header) == 1 and delimiter in header[0]:
            raise ProblemError(
                f"{path} separates its columns by {name} (first line {header[0]!r}); "
                "separate them by commas"
            )
    missing = [column for column in columns if column not in header]
    if missing:
        raise ProblemError(
            f"{path} has no column {missing[0]!r} (its first line reads {', '.join(header)!r}); "
            f"the first line must name the columns {', '.join(columns)}"
        )
    repeated = [column for column in columns if header.count(column) > 1]
    if repeated:
        raise ProblemError(f"{path} has more than one column {repeated[0]!r}; keep one")


def _is_integer(label: str) -> bool:
    digits = label.removeprefix("-")
    return digits.isascii() and digits.isdigit() and str(int(label)) == label


def _require_columns(table: Any, name: str, columns: Sequence[str]) -> None:
    if not isinstance(table, pd.DataFrame):
        raise ProblemError(
            f"{name} table: found {type(table).__name__}, expected a pandas.DataFrame with the "
            f"columns {', '.join(columns)}"
        )
    for column in columns:
        found = list(table.columns).count(column)
        if found != 1:
            raise ProblemError(
                f"{name} table: {found or 'no'} column{'s' * (found > 1)} {column!r} among "
                f"{', '.join(map(str, table.columns))}; each of {', '.join(columns)} is needed once"
            )
    if table.empty:
        raise ProblemError(f"{name} table: it has no rows; give at least one")


def _labels(table: pd.DataFrame, name: str, column: str) -> list[Any]:
    labels = table[column].tolist()
    for row, label in enumerate(labels):
        # NaN is the one label that differs from itself.
        absent = label is None or label is pd.NA or label == "" or label != label
        if absent or not isinstance(label, Hashable):
            raise ProblemError(
                f"{_cell(table, name, row, column)}: {label!r} names no node; "
                "name one by an integer, a string or another hashable label"
            )
    return labels


def _costs(table: pd.DataFrame, name: str, column: str, meaning: str) -> Array:
    values = _numbers(table, name, column)
    negative = np.flatnonzero(values < 0)
    if negative.size:
        row = int(negative[0])
        raise ProblemError(
            f"{_cell(table, name, row, column)}: {values[row]} is negative; {meaning} is at least 0"
        )
    return values


def _numbers(table: pd.DataFrame, name: str, column: str) -> Array:
    cells = table[column]
    if cells.dtype.kind in "mM":
        raise ProblemError(f"{name} table, column {column}: {cells.dtype} cells are no numbers")
    values = pd.to_numeric(cells, errors="coerce")
    if values.dtype.kind not in "iuf":
        raise ProblemError(f"{name} table, column {column}: {values.dtype} cells are no numbers")
    array = values.to_numpy(dtype=np.float64, na_value=np.nan, copy=True)
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        row = int(bad[0])
        raise ProblemError(
            f"{_cell(table, name, row, column)}: {cells.iloc[row]!r} is not a finite number; "
            "write one, with a decimal point"
        )
    return array


def _require_distinct(
    table: pd.DataFrame, name: str, kind: str, first: list[Any], second: list[Any]
) -> None:
    seen: dict[tuple[Hashable, Hashable], int] = {}
    for row, ends in enumerate(zip(first, second, strict=True)):
        if ends[0] == ends[1]:
            raise ProblemError(
                f"{_row(table, name, row)}: the {kind} leads from node {ends[0]!r} to itself; "
                "remove it"
            )
        if ends in seen:
            raise ProblemError(
                f"{_row(table, name, row)}: the {kind} from {ends[0]!r} to {ends[1]!r} stands "
                f"already in {_position(table, seen[ends])}; keep one of them"
            )
        seen[ends] = row


def _require_known(
    table: pd.DataFrame, name: str, column: str, labels: list[Any], nodes: Sequence[Hashable]
) -> None:
    known = set(nodes)
    for row, label in enumerate(labels):
        if label not in known:
            similar = [node for node in nodes if str(node) == str(label)]
            hint = (
                f"the links name {similar[0]!r}, a {type(similar[0]).__name__}: use one type"
                if similar
                else "each must be an end of a link"
            )
            raise ProblemError(
                f"{_cell(table, name, row, column)}: node {label!r} is not in the network; {hint}"
            )


def _cell(table: pd.DataFrame, name: str, row: int, column: str) -> str:
    return f"{_row(table, name, row)}, column {column}"


def _row(table: pd.DataFrame, name: str, row: int) -> str:
    return f"{name} table, {_position(table, row)}"


def _position(table: pd.DataFrame, row: int) -> str:
    return f"{table.index.name or 'row'} {table.index[row]}"
