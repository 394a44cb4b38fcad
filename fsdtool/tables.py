"""Tables: which columns are numeric features, which the targets, and which the ids; shared by CSV and Parquet."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from fsdtool.errors import FsdtoolError, some
from fsdtool.readers import ROW_NUMBERS, Request
from fsdtool.targets import numbered

TARGET_COLUMNS = ("y", "target", "label")
ID_COLUMN = "id"
SPLIT_COLUMN = "split"


@dataclass(frozen=True)
class Columns:
    """Numbers of the columns of the features, the targets, the ids (None: row numbers) and the split (None: all)."""

    names: list[str]
    features: list[int]
    targets: list[int]
    ids: int | None
    split: int | None

    def note(self) -> str:
        """What was chosen, and the flags that change it."""
        features = some([self.names[column] for column in self.features])
        targets = ", ".join(self.names[column] for column in self.targets)
        ids = "row numbers" if self.ids is None else f"'{self.names[self.ids]}'"
        every = "" if self.split is not None or SPLIT_COLUMN not in self.names else ", rows of every split (--split)"
        return (
            f"{len(self.features)} features: {features} (--x-key), target {targets} (--y-key), "
            f"ids are {ids} (--id-key){every}"
        )


def choose_columns(header: list[str], spec: str, request: Request) -> Columns:
    """The roles of the columns, by the user's keys, else by the usual names; every other column is a feature."""
    listed = some(header, 12) or "none"
    if "" in header or len(set(header)) < len(header):
        raise FsdtoolError(
            f"'{spec}' has columns without a name or twice the same ({listed}); name each (id for an index)"
        )
    targets = request.y_key.split(",") if request.y_key is not None else _usual_target(header, spec, listed)
    id_name = ID_COLUMN if request.id_key is None else request.id_key
    aside = {*targets, ID_COLUMN, id_name, SPLIT_COLUMN}
    features = [name for name in header if name not in aside]
    if request.x_key is not None:
        features = request.x_key.split(",")
    needed = [*targets, *features, *([SPLIT_COLUMN] if request.split is not None else [])]
    if request.id_key not in (None, ROW_NUMBERS):
        needed.append(request.id_key)
    unknown = [name for name in needed if name not in header]
    if unknown or not features:
        raise FsdtoolError(f"'{spec}' has no column '{unknown[0] if unknown else 'x'}'; it has {listed}")
    if len(targets) > 1 and request.task == "classification":
        raise FsdtoolError(f"--y-key names {len(targets)} columns ({some(targets)}); classification takes one")
    numbers = {name: column for column, name in enumerate(header)}
    return Columns(
        header,
        [numbers[name] for name in features],
        [numbers[name] for name in targets],
        numbers.get(id_name),
        numbers[SPLIT_COLUMN] if request.split is not None else None,
    )


def _usual_target(header: list[str], spec: str, listed: str) -> list[str]:
    targets = [name for name in TARGET_COLUMNS if name in header]
    if len(targets) != 1:
        raise FsdtoolError(f"cannot tell which column of '{spec}' is the target; give --y-key one of: {listed}")
    return targets


def text_targets(
    rows: list[list[str]], columns: Columns, spec: str, request: Request
) -> tuple[np.ndarray, list[str] | None]:
    """Targets given as text (N, O): numbers where all are, else class numbers and their names."""
    try:
        return np.array([[float(cell) for cell in row] for row in rows]), None
    except ValueError:
        if request.task == "regression":
            name = columns.names[columns.targets[0]]
            raise FsdtoolError(f"the target '{name}' of '{spec}' is text; give numbers for regression") from None
    return numbered([row[0] for row in rows], request.class_names, spec)


def text_ids(cells: list[str]) -> np.ndarray:
    """Ids (N,): int64 if every one is a number that reads back the same (007 stays text), else text."""
    if all(re.fullmatch(r"0|-?[1-9]\d{0,17}", cell) for cell in cells):
        return np.array([int(cell) for cell in cells], dtype=np.int64)
    return np.array(cells, dtype=str)


def refuse_text(value: str, column: str, where: str) -> FsdtoolError:
    """The error for a feature that is no number."""
    return FsdtoolError(
        f"{where} has '{value}' in column '{column}'; features must be numbers: "
        "encode or fill it in, name the columns to use by --x-key, "
        f"or give --id-key {column} if it names the examples"
    )
