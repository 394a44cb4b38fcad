"""Targets: what is stored as labels becomes class numbers (N,) int64, or regression targets (N, O) float32.

Class numbers may be stored as integers, as integral floats, as text, or one-hot; anything that would have to be
guessed is refused and the first example that shows it is named.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fsdtool.errors import FsdtoolError, describe, some

log = logging.getLogger("fsdtool")
TASKS = ("classification", "regression")
LABEL_COLUMNS = ("label", "suggested_label", "suggested_target")  # of corrections; find-mislabeled writes the others


def as_targets(stored: np.ndarray, task: str, ids: np.ndarray) -> np.ndarray:
    """Stored targets as (N,) int64 or (N, O) float32; raises FsdtoolError naming the first improper one."""
    if stored.dtype.kind not in "buif":
        raise FsdtoolError(f"the targets have dtype {stored.dtype}; give numbers")
    if task == "regression":
        return _regression_targets(stored, ids)
    y = stored[:, 0] if stored.ndim == 2 and stored.shape[1] == 1 else stored
    if y.ndim == 2:
        y = _from_one_hot(y, ids)
    if y.ndim != 1:
        raise FsdtoolError(f"the labels have shape {stored.shape}; give one class number per example")
    bad = np.flatnonzero(~((y >= 0) & (y == np.floor(y)) & (y < 2**31)))
    if len(bad):
        raise FsdtoolError(
            f"label {y[bad[0]]} of example {ids[bad[0]]} is not a class number (0, 1, 2, ...); "
            "correct it, or use --task regression"
        )
    return y.astype(np.int64)


def _regression_targets(stored: np.ndarray, ids: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # what float32 cannot hold is named below
        y = stored.astype(np.float32)
    y = y[:, None] if y.ndim == 1 else y
    if y.ndim != 2:
        raise FsdtoolError(f"the targets have shape {stored.shape}; give one row of numbers per example")
    bad = np.flatnonzero(~np.isfinite(y).all(axis=1))
    if len(bad):
        raise FsdtoolError(f"the target of example {ids[bad[0]]} is NaN or infinite; remove the example")
    return y


def _from_one_hot(stored: np.ndarray, ids: np.ndarray) -> np.ndarray:
    proper = ((stored == 0) | (stored == 1)).all(axis=1) & (stored.sum(axis=1) == 1)
    if not proper.all():
        raise FsdtoolError(
            f"the labels have shape {stored.shape} and that of example {ids[np.argmin(proper)]} is not one-hot; "
            "give one class number per example"
        )
    return stored.argmax(axis=1)


def numbered(names: Sequence[str], wanted: list[str] | None, spec: str) -> tuple[np.ndarray, list[str]]:
    """Class numbers for labels given as text, by the wanted class names or in sorted order."""
    order = wanted if wanted is not None else sorted(set(names))
    number = {name: i for i, name in enumerate(order)}
    unknown = next((row for row, name in enumerate(names) if name not in number), None)
    if unknown is not None:
        raise FsdtoolError(
            f"label '{names[unknown]}' in row {unknown} of '{spec}' is not a class name ({some(order)}); correct it"
        )
    if wanted is None:
        log.info(f"labels of '{spec}' are text, numbered in sorted order: {some(order, 10)}")
    return np.array([number[name] for name in names], dtype=np.int64), order


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
        key, value = cells[at[0]], cells[at[1]].strip()
        if labels.setdefault(key, value) != value:
            raise FsdtoolError(f"--labels '{path}' gives '{key}' the labels '{labels[key]}' and '{value}'; give one")
    return labels


def corrections(labels: dict[str, str], ids: np.ndarray, task: str, class_names: list[str] | None) -> dict[int, Any]:
    """Row number to target, for labels given by id; raises FsdtoolError for an unknown id or an improper label."""
    rows = {str(name): row for row, name in enumerate(ids.tolist())}
    unknown = [key for key in labels if key not in rows]
    if unknown:
        raise FsdtoolError(f"--labels has ids that the data does not have: {some(unknown)}; correct or remove them")
    names = {name: i for i, name in enumerate(class_names or ())}
    return {rows[key]: _corrected(key, label, task, names) for key, label in labels.items()}


def _corrected(key: str, label: str, task: str, names: dict[str, int]) -> float:
    if label in names:
        return names[label]
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
