"""Parquet tables: numeric features read by row group, so that memory holds one group, the targets and the ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fsdtool.errors import FsdtoolError, describe
from fsdtool.readers import Found, Request
from fsdtool.tables import Columns, choose_columns, refuse_text, text_ids, text_targets
from fsdtool.targets import as_targets


def open_parquet(path: Path, request: Request) -> Found:
    """Open a Parquet file; needs the extra `fsdtool[parquet]`."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise FsdtoolError(f"'{path}' needs pyarrow ({error}); pip install 'fsdtool[parquet]'") from error
    try:
        return _open(ParquetFile(path), path, request)
    except (ArrowException, OSError) as error:
        raise FsdtoolError(f"'{path}' is damaged or not a Parquet file ({describe(error)}); write it again") from error


class ParquetReader:
    """Rows of a Parquet file's feature columns; the row group read last is kept."""

    def __init__(self, file: Any, names: list[str], y: np.ndarray, rows: np.ndarray, path: Path, skip_bad: bool):
        self._file, self._names, self._y, self._path = file, names, y, path
        self._rows, self._skip_bad = rows, skip_bad  # rows (N,): where each example stands in the file
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        self._starts = np.cumsum([0, *sizes])
        self._held: tuple[int, np.ndarray] = (-1, np.empty(0))
        self.shape = (len(names),)

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        stored = self._rows[rows]
        groups = np.searchsorted(self._starts, stored, side="right") - 1
        x = np.empty((len(rows), len(self._names)), dtype=np.float32)
        for group in np.unique(groups):
            here = groups == group
            x[here] = self._group(int(group))[stored[here] - self._starts[group]]
        return x, self._y[rows]

    def _group(self, group: int) -> np.ndarray:
        if self._held[0] != group:
            try:
                table = self._file.read_row_group(group, columns=self._names)
            except Exception as error:  # arrow raises many kinds for a damaged page
                raise FsdtoolError(
                    f"row group {group} of '{self._path}' cannot be read: {describe(error)}; write it again"
                ) from error
            columns = [self._numbers(table[name], name, int(self._starts[group])) for name in self._names]
            self._held = (group, np.column_stack(columns))
        return self._held[1]

    def _numbers(self, column: Any, name: str, start: int) -> np.ndarray:
        with np.errstate(over="ignore"):  # what float32 cannot hold is named with its example
            values = np.asarray(column.to_numpy(), dtype=np.float64).astype(np.float32)
        missing = np.flatnonzero(np.isnan(values))
        if len(missing) and not self._skip_bad:
            raise refuse_text("", name, f"row {start + int(missing[0])} of '{self._path}'")
        return values


def _open(file: Any, path: Path, request: Request) -> Found:
    columns = choose_columns(file.schema_arrow.names, str(path), request)
    _check_types(file.schema_arrow, columns, path)
    rows = np.arange(file.metadata.num_rows)
    if columns.split is not None:
        rows = np.flatnonzero(np.array(_whole(file, columns, [columns.split])[0]) == request.split)
    if not len(rows):
        raise FsdtoolError(f"'{path}' is empty: it has no rows to read; give at least one example")
    y = _whole(file, columns, columns.targets)
    for column, values in zip(columns.targets, y, strict=True):
        if None in values:
            raise FsdtoolError(f"row {values.index(None)} of '{path}' has no '{columns.names[column]}'; fill it in")
    targets, names = text_targets([[str(values[i]) for values in y] for i in rows], columns, str(path), request)
    ids = rows if columns.split is None else np.arange(len(rows))
    if columns.ids is not None:
        stored = _whole(file, columns, [columns.ids])[0]
        ids = text_ids([str(stored[i]) for i in rows])
    features = [columns.names[column] for column in columns.features]
    converted = as_targets(targets, request.task, ids)
    reader = ParquetReader(file, features, converted, rows, path, request.skip_bad)
    return Found(reader, ids, names, f"{columns.note()}, {file.num_row_groups} row groups")


def _whole(file: Any, columns: Columns, wanted: list[int]) -> list[list[Any]]:
    names = [columns.names[column] for column in wanted]
    table = file.read(columns=names)
    return [[_plain(value) for value in table[name].to_pylist()] for name in names]


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else value


def _check_types(schema: Any, columns: Columns, path: Path) -> None:
    from pyarrow import types

    for column in columns.features:
        kind = schema.field(column).type
        number = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_decimal(kind)
        if not number:
            raise refuse_text(str(kind), columns.names[column], f"'{path}'")
