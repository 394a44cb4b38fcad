"""Tables: which columns are numeric features, which the targets, and which the ids; shared by CSV and Parquet."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from fsdtool.data.images import EXTENSIONS
from fsdtool.data.inputs.keys import Named, named_inputs
from fsdtool.data.inputs.part import NUMBERS, WHOLE, Part
from fsdtool.data.readers import ROW_NUMBERS, Request
from fsdtool.data.targets import is_missing, numbered, refuse_missing
from fsdtool.errors import DataError, FsdtoolError, some
from fsdtool.tasks.classification import SeveralLabels

TARGET_COLUMNS = ("y", "target", "label")
TRUTH = {"true": 1.0, "false": 0.0}  # how tables write labels that are bools
ID_COLUMN = "id"
SPLIT_COLUMN = "split"
LONGEST = 40  # characters of a cell that an error quotes
PATH_EXAMPLE = "train/cat01.jpg"


_IS_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Columns:
    """Numbers of the columns of the features, the targets, the ids (None: row numbers) and the split (None: all).

    named: of several inputs, the argument and the key of each, columns joined by '+'; none of a single one.
    """

    names: list[str]
    features: list[int]
    targets: list[int]
    ids: int | None
    split: int | None
    named: Named = field(default_factory=list)

    def parts(self, whole: Sequence[bool]) -> tuple[Part, ...]:
        """Each of several inputs, where `whole` (features,) says which columns hold whole numbers."""
        found, start = [], 0
        for name, key in self.named:
            count = len(_joined(key, self.names))
            ids = all(whole[start : start + count])
            shape = () if ids and count == 1 else (count,)
            found.append(Part(key, name, shape, WHOLE if ids else NUMBERS))
            start += count
        return tuple(found)

    def note(self) -> str:
        """What was chosen, and the arguments that change it."""
        features = some([self.names[column] for column in self.features])
        targets = ", ".join(self.names[column] for column in self.targets)
        ids = "row numbers" if self.ids is None else f"'{self.names[self.ids]}'"
        every = "" if self.split is not None or SPLIT_COLUMN not in self.names else ", rows of every split (`split`)"
        return (
            f"{len(self.features)} features: {features} (`x_key`), target {targets} (`y_key`), "
            f"ids are {ids} (`id_key`){every}"
        )


def choose_columns(header: list[str], spec: str, request: Request) -> Columns:
    """The roles of the columns, by the user's keys, else by the usual names; every other column is a feature."""
    listed = some(header, 12) or "none"
    _check_header(header, spec, request)
    if "" in header or len(set(header)) < len(header):
        raise DataError(
            f"'{spec}' has columns without a name or twice the same ({listed}); name each (id for an index)"
        )
    targets = request.y_key.split(",") if request.y_key is not None else _usual_target(header, spec, listed)
    id_name = ID_COLUMN if request.id_key is None else request.id_key
    aside = {*targets, ID_COLUMN, id_name, SPLIT_COLUMN}
    features = [name for name in header if name not in aside]
    named = _several(header, request)
    if named:
        features = [name for _, key in named for name in _joined(key, header)]
    elif request.x_key is not None:
        features = request.x_key.split(",")
    needed = [*targets, *features, *([SPLIT_COLUMN] if request.split is not None else [])]
    if request.id_key not in (None, ROW_NUMBERS):
        needed.append(request.id_key)
    unknown = [name for name in needed if name not in header]
    if unknown:
        raise DataError(f"'{spec}' has no column '{unknown[0]}'; it has {listed}")
    if not features:
        roles = some([f"'{name}'" for name in header if name in aside])
        raise DataError(
            f"'{spec}' has no column for the inputs beside {roles}; add numbers, or the paths of image files as a "
            f"column 'path', relative to the folder of the table ({PATH_EXAMPLE})"
        )
    if len(targets) > 1 and request.task.has_classes:
        raise SeveralLabels(
            f"`y_key` names {len(targets)} columns ({some(targets)}); {request.task} takes one (for numbers give "
            '`task="regression"`, for labels 0 and 1 `task="multilabel"`)'
        )
    numbers = {name: column for column, name in enumerate(header)}
    return Columns(
        header,
        [numbers[name] for name in features],
        [numbers[name] for name in targets],
        numbers.get(id_name),
        numbers[SPLIT_COLUMN] if request.split is not None else None,
        named,
    )


def _several(header: list[str], request: Request) -> Named:
    """Several inputs: `x_key` as numbers=age+income,city=city; a list of columns without these signs is one input."""
    if request.x_key is not None and not set("=+") & set(request.x_key):
        return []
    return named_inputs(request.x_key, request.preprocessing.parts, header)


def _joined(key: str, header: Sequence[str]) -> list[str]:
    """The columns of one input."""
    return [key] if key in header else key.split("+")


def _check_header(header: list[str], spec: str, request: Request) -> None:
    """Refuse a first line that is data: paths of images, or mostly numbers that do not rise as numbered columns do."""
    values = [float(name) for name in header if _IS_NUMBER.fullmatch(name)]
    rising = all(a < b for a, b in itertools.pairwise(values))
    named = set(header) & {*TARGET_COLUMNS, *(request.y_key or "").split(",")}
    numeric = len(values) > len(header) / 2 and not (rising and named)
    if (numeric and len(values) > 1 and not _counted(values)) or any(n.lower().endswith(EXTENSIONS) for n in header):
        raise DataError(
            f"the first line of '{spec}' is data ({some(header)}), not the names of the columns; "
            "write a line of names above it"
        )


def _counted(values: list[float]) -> bool:
    """Whether these are the numbers of columns: 0, 1, 2, ... or 1, 2, 3, ..."""
    return values[0] in (0, 1) and values == [values[0] + i for i in range(len(values))]


def _usual_target(header: list[str], spec: str, listed: str) -> list[str]:
    targets = [name for name in TARGET_COLUMNS if name in header]
    if len(targets) != 1:
        raise DataError(f"cannot tell which column of '{spec}' is the target; give `y_key` one of: {listed}")
    return targets


def text_targets(
    rows: Sequence[Sequence[str | None]], columns: Columns, spec: str, request: Request, place: Callable[[int], str]
) -> tuple[np.ndarray, list[str] | None]:
    """Targets given as text (N, O): numbers where all that are there are, else class numbers and their names.

    Several labels have the names of their columns.

    Missing ones become NaN where bad examples are to be skipped; else the first is refused, at its `place`.
    """
    try:
        numbers = np.array([[_number(cell, request) for cell in row] for row in rows])
    except ValueError:
        name = columns.names[columns.targets[0]]
        if not request.task.has_classes:
            raise DataError(f"the target '{name}' of '{spec}' is text; give numbers for {request.task}") from None
        return numbered([row[0] for row in rows], request, spec, place, columns.names[columns.targets[0]])
    absent = np.argwhere(np.isnan(numbers))
    if len(absent) and not (request.skip_bad and len(absent) < numbers.size):
        row, column = absent[0]
        raise refuse_missing(rows[row][column], place(row), request, columns.names[columns.targets[column]])
    return numbers, [columns.names[column] for column in columns.targets] if request.task.has_labels else None


def _number(cell: str | None, request: Request) -> float:
    if cell is None or is_missing(cell, request):
        return math.nan
    truth = TRUTH.get(cell.strip().lower()) if request.task.has_labels else None
    return float(cell) if truth is None else truth


def text_ids(cells: list[str]) -> np.ndarray:
    """Ids (N,): int64 if every one is a number that reads back the same (007 stays text), else text."""
    if all(re.fullmatch(r"0|-?[1-9]\d{0,17}", cell) for cell in cells):
        return np.array([int(cell) for cell in cells], dtype=np.int64)
    return np.array(cells, dtype=str)


def refuse_text(value: str, column: str, where: str, x_key: str | None = None) -> FsdtoolError:
    """The error for a feature that is no number; `x_key` names the columns asked for."""
    remedy = (
        "features must be numbers: encode or fill it in, name the columns to use by `x_key`, "
        f"or give `id_key={column}` if it names the examples"
    )
    if x_key is not None and column in x_key.split(","):
        remedy = (
            "a column of `x_key` must hold numbers, or paths of images with their endings such as 'img/a.jpg': "
            "leave it out of `x_key`, or write the paths into a column 'path'"
        )
    elif value.strip().lower().endswith(EXTENSIONS):
        remedy = f"give `x_key={column}` to read these images, relative to the folder of the table"
    elif value.lstrip().startswith(("[", "(")):
        remedy = "write each number of such a list into a column of its own, or all as arrays in a .npz file"
    shown = value if len(value) <= LONGEST else value[:LONGEST] + "..."
    return DataError(f"{where} has '{shown}' in column '{column}'; {remedy}")
