"""Targets: what is stored as labels becomes class numbers (N,) int64, or regression targets (N, O) float32.

Class numbers may be stored as integers, as integral floats, as text, or one-hot; anything that would have to be
guessed is refused and the first example that shows it is named.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fsdtool.errors import DataError, FsdtoolError, describe, some
from fsdtool.util.csv_cells import known_text, unescaped

if TYPE_CHECKING:  # torch comes with it, and commands that read labels back start without
    from fsdtool.data.readers import Request
    from fsdtool.tasks.task import Task

log = logging.getLogger("fsdtool")
LEAVE_OUT = "give `skip_bad=True` to leave such examples out"
# Labels in text, in any case, that say there is none: as spreadsheets, pandas and databases write them.
MISSING = ("", "na", "n/a", "<na>", "#na", "#n/a", "nan", "-nan", "nat", "null", "\\n", "none", "?")
LABEL_COLUMNS = ("label", "suggested_label", "suggested_target")  # of corrections; find-mislabeled writes the others


def is_missing(label: str | None, request: Request) -> bool:
    """Whether a label in text says that there is none: an empty one does, and the words of `missing`."""
    text = "" if label is None else label.strip()
    if request.missing is None:
        return text.lower() in MISSING and text not in (request.class_names or ())
    return text in ("", *request.missing)


def refuse_missing(label: str | None, where: str, request: Request, column: str = "label") -> FsdtoolError:
    """The error for a label that is missing; `where` names its row."""
    text = "" if label is None else label.strip()
    found, remedy = f"no '{column}'", f"fill it in, or {LEAVE_OUT}"
    if text:
        found = f"'{text}' for '{column}', which says that it is missing"
    if request.skip_bad:
        remedy = "so have all the others; give another column by `y_key`"
    if text and request.class_names is None and request.task.has_classes:
        leave_out = "so have all the others: give another `y_key`" if request.skip_bad else LEAVE_OUT
        remedy = f"{leave_out}, or `missing=''` if it is the name of a class"
    return DataError(f"{where} has {found}; {remedy}")


def numbered(
    labels: Sequence[str | None],
    request: Request,
    spec: str,
    place: Callable[[int], str] | None = None,
    column: str = "label",
) -> tuple[np.ndarray, list[str]]:
    """Class numbers for labels given as text, by the wanted class names or in sorted order; NaN for missing ones.

    place: words for where a label stands, in which column. Raises DataError for an unknown label, and for a
    missing one unless bad examples are to be skipped.
    """
    place = place or (lambda row: f"row {row} of '{spec}'")
    absent = [row for row, label in enumerate(labels) if is_missing(label, request)]
    if absent and not (request.skip_bad and len(absent) < len(labels)):
        raise refuse_missing(labels[absent[0]], place(absent[0]), request, column)
    words = sorted({f"'{label}'" for row in absent if (label := labels[row])})
    if words:
        log.warning(
            f"labels {some(words)} of '{spec}' are taken as missing (summarize `missing=''` makes them classes)"
        )
    present = dict(enumerate(labels))
    for row in absent:
        del present[row]
    order = request.class_names
    if order is None:
        order = sorted({label for label in present.values() if label is not None})
    number: dict[str | None, int] = {name: i for i, name in enumerate(order)}
    unknown = next((row for row, label in present.items() if label not in number), None)
    if unknown is not None:
        raise DataError(
            f"label '{labels[unknown]}' in {place(unknown)} is not a class name ({some(order)}); correct it"
        )
    if request.class_names is None:
        log.info(f"labels of '{spec}' are text, numbered in sorted order: {some(order, 10)}")
    found = np.full(len(labels), np.nan)
    found[list(present)] = [number[label] for label in present.values()]
    return (found if absent else found.astype(np.int64)), order


def read_labels(path: Path) -> dict[str, str]:
    """The labels that a CSV file gives by id: columns `id` and `label` (or `suggested_label`)."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return _label_rows(csv.reader(file, strict=True), path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"`labels` '{path}' is not a readable CSV file ({describe(error)}); mend it") from error


def _label_rows(lines: Any, path: Path) -> dict[str, str]:
    header = [name.strip() for name in next(lines, [])]
    column = next((name for name in LABEL_COLUMNS if name in header), None)
    if "id" not in header or column is None:
        raise DataError(
            f"`labels` '{path}' has columns {some(header, 12) or 'none'}; it needs id and label (or suggested_label)"
        )
    at = (header.index("id"), header.index(column))
    labels: dict[str, str] = {}
    for cells in lines:
        if not cells:
            continue
        if len(cells) != len(header):
            raise DataError(
                f"line {lines.line_num} of `labels` '{path}' has {len(cells)} cells, its header {len(header)}; mend it"
            )
        key, value = unescaped(cells[at[0]]), unescaped(cells[at[1]]).strip()
        if labels.setdefault(key, value) != value:
            raise DataError(f"`labels` '{path}' gives '{key}' the labels '{labels[key]}' and '{value}'; give one")
    return labels


def corrections(labels: dict[str, str], ids: np.ndarray, task: Task, class_names: list[str] | None) -> dict[int, Any]:
    """Row number to target, for labels given by id; raises DataError for an unknown id or an improper label."""
    if task.has_labels:
        raise DataError("`labels` gives one label for each example, and here each has several; correct the data")
    rows = {str(name): row for row, name in enumerate(ids.tolist())}
    labels = {known_text(key, rows): label for key, label in labels.items()}
    unknown = [key for key in labels if key not in rows]
    if unknown:
        raise DataError(f"`labels` has ids that the data does not have: {some(unknown)}; correct or remove them")
    names = {name: i for i, name in enumerate(class_names or ())}
    return {rows[key]: _corrected(key, label, task, names) for key, label in labels.items()}


def _corrected(key: str, label: str, task: Task, names: dict[str, int]) -> float:
    if known_text(label, names) in names:
        return names[known_text(label, names)]
    try:
        value = float(label)
    except ValueError:
        value = float("nan")
    # where classes have names, a number among them would be ambiguous
    target = None if names and task.has_classes else task.target_of(value)
    if target is not None:
        return target
    known = f"one of {some(list(names), 6)}" if names else "a class number" if task.has_classes else "a number"
    raise DataError(f"`labels` gives example {key} the label '{label}'; give {known}", example=key)
