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

from fsdtool.cells import known_text, unescaped
from fsdtool.errors import FsdtoolError, describe, some

if TYPE_CHECKING:  # torch comes with it, and commands that read labels back start without
    from fsdtool.readers import Request

log = logging.getLogger("fsdtool")
TASKS = ("classification", "regression")
LEAVE_OUT = "give --skip-bad to leave such examples out"
# Labels in text, in any case, that say there is none: as spreadsheets, pandas and databases write them.
MISSING = ("", "na", "n/a", "<na>", "#na", "#n/a", "nan", "-nan", "nat", "null", "\\n", "none", "?")
MANY = 0.1  # the share of improper labels above which they are likelier a class than missing
LABEL_COLUMNS = ("label", "suggested_label", "suggested_target")  # of corrections; find-mislabeled writes the others


def as_targets(stored: np.ndarray, task: str, ids: np.ndarray, lenient: bool = False) -> np.ndarray:
    """Stored targets as (N,) int64 or (N, O) float32; raises FsdtoolError naming the first improper one.

    lenient: where some are improper, give all as float64 instead; each is found again when its example is read.
    """
    if stored.dtype.kind not in "buif":
        raise FsdtoolError(f"the targets have dtype {stored.dtype}; give numbers, or text for classes")
    if stored.ndim > 2 and stored.size == len(stored):
        stored = stored.reshape(-1)  # (N, 1, 1, 1)
    if task == "regression":
        return _regression_targets(stored, ids, lenient)
    y = stored[:, 0] if stored.ndim == 2 and stored.shape[1] == 1 else stored
    if y.ndim == 2:
        y = _from_one_hot(y, ids, lenient)
    if y.ndim != 1:
        raise FsdtoolError(f"the labels have shape {stored.shape}; give one class number per example")
    y = y.astype(np.float64) if y.dtype.kind in "bf" else y
    bad = np.flatnonzero(~((y >= 0) & (y == np.floor(y)) & (y < 2**31)))
    if len(bad) and not lenient:
        raise _no_class(y[bad[0]], ids[bad[0]], len(bad) / len(y))
    return y.astype(np.float64 if len(bad) else np.int64)


def _no_class(label: Any, name: Any, share: float) -> FsdtoolError:
    if np.isnan(label):
        return FsdtoolError(f"example {name} has no label (NaN); fill it in, or give --skip-bad to leave it out")
    remedy = "correct it, or give --skip-bad to leave it out"
    if share > MANY:
        remedy = f"number the classes from 0, or give --skip-bad to leave out {share:.0%} of the examples"
    if label != np.floor(label):
        remedy = "correct it, or use --task regression"
    return FsdtoolError(f"label {label:g} of example {name} is not a class number (0, 1, 2, ...); {remedy}")


def _regression_targets(stored: np.ndarray, ids: np.ndarray, lenient: bool) -> np.ndarray:
    with np.errstate(over="ignore"):  # what float32 cannot hold is named below
        y = stored.astype(np.float32)
    y = y[:, None] if y.ndim == 1 else y
    if y.ndim != 2:
        raise FsdtoolError(f"the targets have shape {stored.shape}; give one row of numbers per example")
    bad = np.flatnonzero(~np.isfinite(y).all(axis=1))
    if len(bad) and not lenient:
        raise FsdtoolError(
            f"the target of example {ids[bad[0]]} is NaN or infinite; fill it in, or give --skip-bad to leave it out"
        )
    return y


def _from_one_hot(stored: np.ndarray, ids: np.ndarray, lenient: bool) -> np.ndarray:
    proper = ((stored == 0) | (stored == 1)).all(axis=1) & (stored.sum(axis=1) == 1)
    absent = np.isnan(stored).any(axis=1) if lenient and stored.dtype.kind == "f" else np.zeros(len(stored), dtype=bool)
    improper = np.flatnonzero(~proper & ~absent)
    if len(improper):
        raise FsdtoolError(
            f"the labels have shape {stored.shape} and that of example {ids[improper[0]]} is not one-hot; "
            "give one class number per example (several classes for one example, or shares of them, are not supported)"
        )
    return np.where(absent, np.nan, stored.argmax(axis=1)) if absent.any() else stored.argmax(axis=1)


def is_missing(label: str | None, request: Request) -> bool:
    """Whether a label in text says that there is none: an empty one does, and the words of `--missing`."""
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
        remedy = "so have all the others; give another column by --y-key"
    if text and request.class_names is None and request.task == "classification":
        leave_out = "so have all the others: give another --y-key" if request.skip_bad else LEAVE_OUT
        remedy = f"{leave_out}, or --missing '' if it is the name of a class"
    return FsdtoolError(f"{where} has {found}; {remedy}")


def numbered(
    labels: Sequence[str | None],
    request: Request,
    spec: str,
    place: Callable[[int], str] | None = None,
    column: str = "label",
) -> tuple[np.ndarray, list[str]]:
    """Class numbers for labels given as text, by the wanted class names or in sorted order; NaN for missing ones.

    place: words for where a label stands, in which column. Raises FsdtoolError for an unknown label, and for a
    missing one unless bad examples are to be skipped.
    """
    place = place or (lambda row: f"row {row} of '{spec}'")
    absent = [row for row, label in enumerate(labels) if is_missing(label, request)]
    if absent and not (request.skip_bad and len(absent) < len(labels)):
        raise refuse_missing(labels[absent[0]], place(absent[0]), request, column)
    words = sorted({f"'{label}'" for row in absent if (label := labels[row])})
    if words:
        log.warning(
            f"labels {some(words)} of '{spec}' are taken as missing (summarize --missing '' makes them classes)"
        )
    present = dict.fromkeys(range(len(labels)))
    for row in absent:
        del present[row]
    order = request.class_names if request.class_names is not None else sorted({labels[row] for row in present})
    number = {name: i for i, name in enumerate(order)}
    unknown = next((row for row in present if labels[row] not in number), None)
    if unknown is not None:
        raise FsdtoolError(
            f"label '{labels[unknown]}' in {place(unknown)} is not a class name ({some(order)}); correct it"
        )
    if request.class_names is None:
        log.info(f"labels of '{spec}' are text, numbered in sorted order: {some(order, 10)}")
    found = np.full(len(labels), np.nan)
    found[list(present)] = [number[labels[row]] for row in present]
    return (found if absent else found.astype(np.int64)), order


def read_labels(path: Path) -> dict[str, str]:
    """The labels that a CSV file gives by id: columns `id` and `label` (or `suggested_label`)."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return _label_rows(csv.reader(file, strict=True), path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FsdtoolError(f"--labels '{path}' is not a readable CSV file ({describe(error)}); mend it") from error


def _label_rows(lines: Any, path: Path) -> dict[str, str]:
    header = [name.strip() for name in next(lines, [])]
    column = next((name for name in LABEL_COLUMNS if name in header), None)
    if "id" not in header or column is None:
        raise FsdtoolError(
            f"--labels '{path}' has columns {some(header, 12) or 'none'}; it needs id and label (or suggested_label)"
        )
    at, labels = (header.index("id"), header.index(column)), {}
    for cells in lines:
        if not cells:
            continue
        if len(cells) != len(header):
            raise FsdtoolError(
                f"line {lines.line_num} of --labels '{path}' has {len(cells)} cells, its header {len(header)}; mend it"
            )
        key, value = unescaped(cells[at[0]]), unescaped(cells[at[1]]).strip()
        if labels.setdefault(key, value) != value:
            raise FsdtoolError(f"--labels '{path}' gives '{key}' the labels '{labels[key]}' and '{value}'; give one")
    return labels


def corrections(labels: dict[str, str], ids: np.ndarray, task: str, class_names: list[str] | None) -> dict[int, Any]:
    """Row number to target, for labels given by id; raises FsdtoolError for an unknown id or an improper label."""
    rows = {str(name): row for row, name in enumerate(ids.tolist())}
    labels = {known_text(key, rows): label for key, label in labels.items()}
    unknown = [key for key in labels if key not in rows]
    if unknown:
        raise FsdtoolError(f"--labels has ids that the data does not have: {some(unknown)}; correct or remove them")
    names = {name: i for i, name in enumerate(class_names or ())}
    return {rows[key]: _corrected(key, label, task, names) for key, label in labels.items()}


def _corrected(key: str, label: str, task: str, names: dict[str, int]) -> float:
    if known_text(label, names) in names:
        return names[known_text(label, names)]
    try:
        value = float(label)
    except ValueError:
        value = float("nan")
    if task == "regression" and np.isfinite(value):
        return value
    # where classes have names, a number among them would be ambiguous
    if task == "classification" and not names and value >= 0 and value.is_integer():
        return int(value)
    known = f"one of {some(list(names), 6)}" if names else "a number" if task == "regression" else "a class number"
    raise FsdtoolError(f"--labels gives example {key} the label '{label}'; give {known}")
