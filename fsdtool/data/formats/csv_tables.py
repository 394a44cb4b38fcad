"""CSV files: tables of numeric features, or lists of image files with their labels.

A table is read once, a block at a time, into float32 rows of a temporary file without a name, which is mapped:
memory holds the targets and ids alone. Separators are commas, semicolons, tabs or bars, whichever the header has.
"""

from __future__ import annotations

import array
import csv
import math
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fsdtool.data.formats.image_files import PATH_COLUMNS, is_image_path, open_image_list
from fsdtool.data.formats.table_columns import Columns, choose_columns, refuse_text, text_ids, text_targets
from fsdtool.data.readers import ROW_NUMBERS, ArrayReader, Found, Request
from fsdtool.data.targets import MISSING
from fsdtool.errors import DataError, describe

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
BLOCK = 2**16  # numbers converted at once


def open_csv(spec: str, request: Request) -> Found:
    """Open a CSV file: as a list of images where it has a column of their paths, else as a table of numbers."""
    path = Path(spec)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            separator = _separator(file.readline())
            file.seek(0)
            lines = csv.reader(file, delimiter=separator, strict=True)
            header = [name.strip() for name in next(lines, [])]
            found = _open(lines, header, path, request)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"'{path}' is not a UTF-8 CSV table ({describe(error)}); write it again") from error
    except OSError as error:
        raise DataError(
            f"'{path}' cannot be read into {tempfile.gettempdir()} ({describe(error)}); make room there or set TMPDIR"
        ) from error
    if separator != ",":
        found.note += f", separated by {SEPARATORS[separator]}s"
    return found


def _open(lines: Any, header: list[str], path: Path, request: Request) -> Found:
    listed = request.x_key or next((name for name in PATH_COLUMNS if name in header), None)
    if listed in header:
        first = next(lines, None)
        lines = _Rest(first, lines)
        if first and len(first) == len(header) and is_image_path(first[header.index(listed)]):
            columns = choose_columns(header, str(path), replace(request, x_key=listed))
            return _image_list(lines, columns, path, request)
    return _table(lines, choose_columns(header, str(path), request), path, request)


class _Labels:
    """The targets and ids of a table's rows, as text, gathered while the rows are read."""

    def __init__(self, columns: Columns, path: Path, request: Request) -> None:
        self._columns, self._path, self._request = columns, path, request
        self._targets: list[list[str]] = []
        self._ids: list[str] = []
        self._lines = array.array("q")  # where each row ends in the file

    def __len__(self) -> int:
        return len(self._targets)

    def add(self, cells: list[str], line: int) -> None:
        """Take in the cells of the next row, which ends on this line of the file."""
        self._targets.append([cells[column].strip() for column in self._columns.targets])
        self._ids += [] if self._columns.ids is None else [cells[self._columns.ids]]
        self._lines.append(line)

    def ids(self) -> np.ndarray | None:
        """The ids (N,) of the table's column, None where it has none.  Raises DataError for a table without rows."""
        _check_any(self._targets, self._columns, self._path, self._request)
        return None if self._columns.ids is None else text_ids(self._ids)

    def targets(self, ids: np.ndarray) -> tuple[np.ndarray, list[str] | None]:
        """Targets (N,) or (N, O) of the task, and the class names where they are text; `ids` are for messages."""
        spec, request = str(self._path), self._request
        found, names = text_targets(
            self._targets, self._columns, spec, request, lambda row: f"line {self._lines[row]} of '{spec}'"
        )
        return request.task.targets(found, ids, request.skip_bad), names


def _table(lines: Any, columns: Columns, path: Path, request: Request) -> Found:
    labels = _Labels(columns, path, request)
    with tempfile.TemporaryFile() as file:
        block = array.array("d")
        for where, cells in _rows(lines, columns, path, request):
            block.extend(_number(cells[column], columns.names[column], where, request) for column in columns.features)
            labels.add(cells, lines.line_num)
            if len(block) >= BLOCK:
                block = _spill(block, file)
        _spill(block, file)
        ids = labels.ids()
        file.flush()
        x = np.memmap(file, dtype=np.float32, mode="c", shape=(len(labels), len(columns.features)))
    ids = np.arange(len(labels)) if ids is None else ids
    targets, names = labels.targets(ids)
    parts = columns.parts(_whole(x)) if columns.named else ()
    return Found(ArrayReader(x, targets), ids, names, columns.note(), parts)


def _whole(x: np.ndarray) -> list[bool]:
    """Which columns of x (N, n) hold whole numbers."""
    whole = np.ones(x.shape[1], bool)
    for start in range(0, len(x), BLOCK):
        part = x[start : start + BLOCK]
        whole &= (part == np.floor(part)).all(0)
    return [bool(column) for column in whole]


def _image_list(lines: Any, columns: Columns, path: Path, request: Request) -> Found:
    labels, files = _Labels(columns, path, request), []
    for _, cells in _rows(lines, columns, path, request):
        files.append(cells[columns.features[0]].strip())
        labels.add(cells, lines.line_num)
    ids = labels.ids()
    ids = np.array(files, dtype=str) if ids is None else ids
    if request.id_key == ROW_NUMBERS:
        ids = np.arange(len(files))
    targets, names = labels.targets(ids)
    return open_image_list(path.parent, files, targets, ids, names, columns.names[columns.features[0]], request)


def _rows(lines: Any, columns: Columns, path: Path, request: Request) -> Iterator[tuple[str, list[str]]]:
    """The rows of the wanted split, each with words for where it stands."""
    for cells in lines:
        if not cells:
            continue
        where = f"line {lines.line_num} of '{path}'"
        if len(cells) != len(columns.names):
            raise DataError(f"{where} has {len(cells)} cells, its header {len(columns.names)}; mend it")
        if columns.split is None or cells[columns.split].strip() == request.split:
            yield where, cells


def _number(cell: str, column: str, where: str, request: Request) -> float:
    missing = cell.strip().lower() in MISSING
    if missing and request.skip_bad:
        return math.nan
    try:
        value = math.nan if missing else float(cell)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise refuse_text(cell, column, where, request.x_key)
    return value


def _spill(block: array.array, file: Any) -> array.array:
    with np.errstate(over="ignore"):  # what float32 cannot hold is named when its example is read
        np.frombuffer(block, dtype=np.float64).astype(np.float32).tofile(file)
    return array.array("d")


def _check_any(y: list[Any], columns: Columns, path: Path, request: Request) -> None:
    if not y:
        found = "no rows" if columns.split is None else f"no rows whose split is '{request.split}'"
        raise DataError(f"'{path}' is empty: it has a header and {found}; give at least one example")


def _separator(line: str) -> str:
    """The separator that cuts the header into most names; commas where there is a choice."""
    return max(SEPARATORS, key=lambda separator: len(next(csv.reader([line], delimiter=separator), [])))


class _Rest:
    """A csv reader from which the first row was taken, with that row put back."""

    def __init__(self, first: list[str] | None, lines: Any) -> None:
        self._first, self._lines = first, lines

    @property
    def line_num(self) -> int:
        """How many lines of the file were read."""
        return self._lines.line_num

    def __iter__(self) -> Iterator[list[str]]:
        if self._first is not None:
            yield self._first
        yield from self._lines
