"""Parquet tables: numeric features read by row group, so that memory holds one group, the targets and the ids.

The features are columns of numbers, or one column of lists of numbers. Where all are uint8 they stay bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fsdtool.data.formats.table_columns import Columns, choose_columns, refuse_text, text_ids, text_targets
from fsdtool.data.inputs.part import Part
from fsdtool.data.readers import Found, Request
from fsdtool.errors import DataError, describe


def open_parquet(spec: str, request: Request) -> Found:
    """Open a Parquet file; needs the extra `fsdtool[parquet]`."""
    path = Path(spec)
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise DataError(f"'{path}' needs pyarrow ({error}); pip install 'fsdtool[parquet]'") from error
    try:
        return _open(ParquetFile(path), path, request)
    except (ArrowException, OSError) as error:
        raise DataError(f"'{path}' is damaged or not a Parquet file ({describe(error)}); write it again") from error


BLOCK = 1024  # rows read at once in search of a list


class ParquetReader:
    """Rows of a Parquet file's feature columns; the row group read last is kept."""

    def __init__(self, file: Any, names: list[str], y: np.ndarray, rows: np.ndarray, path: Path, skip_bad: bool):
        self._file, self._names, self._y, self._path = file, names, y, path
        self._rows, self._skip_bad = rows, skip_bad  # rows (N,): where each example stands in the file
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        self._starts = np.cumsum([0, *sizes])
        self._held: tuple[int, np.ndarray] = (-1, np.empty(0))
        kinds = [file.schema_arrow.field(name).type for name in names]
        self._lists = is_list(kinds[0])
        self._bytes = {str(kind.value_type if self._lists else kind) for kind in kinds} == {"uint8"}
        self.shape: tuple[int, ...] = (len(names),)
        if self._lists:
            self.shape = self._list_shape()

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inputs (B, *shape) float32 or uint8, and targets (B, ...).  Raises DataError for a damaged row group."""
        stored = self._rows[rows]
        groups = np.searchsorted(self._starts, stored, side="right") - 1
        x = np.empty((len(rows), *self.shape), dtype=np.float32)
        for group in np.unique(groups):
            here = groups == group
            x[here] = self._group(int(group))[stored[here] - self._starts[group]]
        if self._bytes and not np.isnan(x).any():  # examples with missing values are refused as they are
            return x.astype(np.uint8), self._y[rows]
        return x, self._y[rows]

    def _group(self, group: int) -> np.ndarray:
        if self._held[0] != group:
            try:
                table = self._file.read_row_group(group, columns=self._names)
            except Exception as error:  # arrow raises many kinds for a damaged page
                raise DataError(
                    f"row group {group} of '{self._path}' cannot be read: {describe(error)}; write it again"
                ) from error
            start = int(self._starts[group])
            if self._lists:
                self._held = (group, self._vectors(table[self._names[0]], start))
            else:
                columns = [self._numbers(table[name], name, start) for name in self._names]
                self._held = (group, np.column_stack(columns))
        return self._held[1]

    def _list_shape(self) -> tuple[int, ...]:
        """The length of the first list that is there."""
        for batch in self._file.iter_batches(batch_size=BLOCK, columns=self._names):
            lengths = [len(value) for value in batch.column(0) if value.is_valid]
            if lengths and lengths[0]:
                return (lengths[0],)
        raise DataError(f"column '{self._names[0]}' of '{self._path}' holds no numbers; give at least one example")

    def _vectors(self, column: Any, start: int) -> np.ndarray:
        """Lists of one length as rows; NaN where a list or a number in it is missing and may be."""
        found = np.full((len(column), *self.shape), np.nan, dtype=np.float32)
        for row, value in enumerate(column):
            where = f"row {start + row} of '{self._path}'"
            numbers = self._numbers(value.values, self._names[0], 0, where) if value.is_valid else np.empty(0)
            if numbers.shape == self.shape:
                found[row] = numbers
            elif not (self._skip_bad and not len(numbers)):
                raise DataError(
                    f"{where} has {len(numbers)} numbers in column '{self._names[0]}', the first row has "
                    f"{self.shape[0]}; make them alike" + ("" if len(numbers) else ", or give `skip_bad=True`")
                )
        return found

    def _numbers(self, column: Any, name: str, start: int, where: str = "") -> np.ndarray:
        options = {"zero_copy_only": False} if self._lists else {}
        with np.errstate(over="ignore"):  # what float32 cannot hold is named with its example
            values = np.asarray(column.to_numpy(**options), dtype=np.float64).astype(np.float32)
        missing = np.flatnonzero(np.isnan(values))
        if len(missing) and not self._skip_bad:
            raise refuse_text("", name, where or f"row {start + int(missing[0])} of '{self._path}'")
        return values


def _open(file: Any, path: Path, request: Request) -> Found:
    columns = choose_columns(file.schema_arrow.names, str(path), request)
    _check_types(file.schema_arrow, columns, path)
    rows = np.arange(file.metadata.num_rows)
    if columns.split is not None:
        rows = np.flatnonzero(np.array(_whole(file, columns, [columns.split])[0]) == request.split)
    if not len(rows):
        raise DataError(f"'{path}' is empty: it has no rows to read; give at least one example")
    y = _whole(file, columns, columns.targets)
    cells = [[None if values[i] is None else str(values[i]) for values in y] for i in rows]
    targets, names = text_targets(cells, columns, str(path), request, lambda row: f"row {rows[row]} of '{path}'")
    ids = rows if columns.split is None else np.arange(len(rows))
    if columns.ids is not None:
        stored = _whole(file, columns, [columns.ids])[0]
        ids = text_ids([str(stored[i]) for i in rows])
    features = [columns.names[column] for column in columns.features]
    converted = request.task.targets(targets, ids, request.skip_bad)
    reader = ParquetReader(file, features, converted, rows, path, request.skip_bad)
    parts: tuple[Part, ...] = ()
    if columns.named:
        whole = [str(file.schema_arrow.field(name).type).startswith(("int", "uint")) for name in features]
        parts = columns.parts(whole)
    groups = f"{file.num_row_groups} row group{'s' if file.num_row_groups > 1 else ''}"
    return Found(reader, ids, names, f"{columns.note()}, {groups}", parts)


def _whole(file: Any, columns: Columns, wanted: list[int]) -> list[list[Any]]:
    names = [columns.names[column] for column in wanted]
    table = file.read(columns=names)
    return [[_plain(value) for value in table[name].to_pylist()] for name in names]


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else value


def is_list(kind: Any) -> bool:
    """Whether an arrow type is that of lists."""
    from pyarrow import types

    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _is_number(kind: Any) -> bool:
    from pyarrow import types

    return types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_decimal(kind)


def _check_types(schema: Any, columns: Columns, path: Path) -> None:
    kinds = {columns.names[column]: schema.field(column).type for column in columns.features}
    for name, kind in kinds.items():
        if is_list(kind) and _is_number(kind.value_type):
            if len(kinds) > 1:
                raise DataError(f"'{path}' has lists in column '{name}' and other inputs; give `x_key={name}` alone")
        elif not _is_number(kind):
            if str(kind).startswith(("struct", "binary", "list", "large_list", "fixed_size")):
                raise DataError(
                    f"'{path}' has {kind} in column '{name}', not numbers; write it as a .npz file, or load it with "
                    "Hugging Face datasets and give the folder that save_to_disk writes"
                )
            raise refuse_text(str(kind), name, f"'{path}'")
