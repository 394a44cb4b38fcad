"""Data sets: a spec names arrays, a table, images or a user's own code, and all become one `DataSource`.

Nothing is downloaded, no pickled or object array is read, and no link out of an HDF5 file is followed.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fsdtool.data.examples import StoredExamples
from fsdtool.data.inputs.part import Part, listed
from fsdtool.data.preprocessing import Preprocessing
from fsdtool.data.readers import Found, ItemReader, Request, TransformedReader
from fsdtool.data.registry import find_source, offered
from fsdtool.data.scaling import scale_note
from fsdtool.data.source import DataSource
from fsdtool.data.targets import corrections, read_labels
from fsdtool.errors import DataError, FsdtoolError, some
from fsdtool.tasks.classification import SeveralLabels
from fsdtool.tasks.task import Task, task_of

log = logging.getLogger("fsdtool")
FEW_ITEMS = 16  # of which the targets are looked at, to tell several labels from one-hot rows


def load_dataset(
    spec: str,
    *,
    task: str | Task | None = None,
    preprocessing: Preprocessing | None = None,
    x_key: str | None = None,
    y_key: str | None = None,
    id_key: str | None = None,
    split: str | None = None,
    labels: Path | None = None,
    ids: set[str] | None = None,
    skip_bad: bool = False,
    workers: int = 0,
    class_names: Sequence[str] | None = None,
    missing: Sequence[str] | None = None,
    prepared: bool = False,
) -> DataSource:
    """Open the data set that `spec` names; `fsdtool docs data` lists the kinds. One note says what was chosen in it.

    `x_key`, `y_key` and `id_key` name the arrays (columns of a table, separated by commas) where the usual names do
    not lead to one of each; the id key 'row' numbers the rows. Several inputs are named as fsdtool.data.inputs.keys
    says. `split` chooses among several. `labels` is a CSV file of targets by id that replace those of the data. `ids`
    keeps these examples alone. `skip_bad` reads everything once (by `workers` processes) and leaves out what cannot be
    read. `class_names` fixes the number of each class: names that the data has as labels are numbered by it and not in
    sorted order. `missing` are the labels in text that mean none, beside the empty one (default: MISSING of
    `fsdtool.data.targets`). `prepared`: the preprocessing is that of a summary, and no note asks to change it.
    Raises FsdtoolError for a spec that cannot be opened, an empty data set, inputs and targets of different length,
    ids that are not unique, or targets that do not fit the task; by default that is of classes, or of several labels
    where the targets are rows of 0 and 1.
    """
    preprocessing = preprocessing or Preprocessing()
    wanted = None if class_names is None else [str(name) for name in class_names]
    words = None if missing is None else tuple(missing)
    request = Request(
        task_of(task or "classification"), x_key, y_key, id_key, split, wanted, preprocessing, skip_bad, words
    )
    found, task = (_open(spec, request), request.task) if task is not None else _open_by_targets(spec, request)
    reader = found.reader
    preprocessing = replace(preprocessing, parts=_agreed(found.parts, preprocessing.parts, spec, prepared))
    if preprocessing.transform is not None and not isinstance(reader, ItemReader):
        reader = TransformedReader(reader, preprocessing.transform, found.ids)
    log.info(f"'{spec}': {found.note}{scale_note(reader, len(found.ids), preprocessing, spec, not prepared)}")
    _check_shape(reader.shape, len(found.ids), spec)
    _check_unique(found.ids, spec)
    names, relabelling = _relabelling(found.class_names, wanted, spec, task)
    corrected = {} if labels is None else corrections(read_labels(labels), found.ids, task, names)
    examples = StoredExamples(
        spec=spec,
        task=task,
        reader=reader,
        ids=found.ids,
        class_names=names if task.has_classes or task.has_labels else None,
        relabelling=relabelling if task.has_classes else None,
        corrected=corrected,
    )
    source = DataSource(examples, preprocessing)
    if labels is not None:
        log.info(f"'{spec}': the labels of {len(corrected)} examples are those of '{labels}' (`labels`)")
    source = source if ids is None else source.with_ids(ids)
    return source.without_bad(workers=workers) if skip_bad else source


def _check_shape(shape: tuple[int, ...], examples: int, spec: str) -> None:
    if 0 in shape or not shape:
        raise DataError(
            f"the inputs of '{spec}' have shape {(examples, *shape)}; "
            "give at least one number per example, in two or more dimensions"
        )


def _open_by_targets(spec: str, request: Request) -> tuple[Found, Task]:
    """The data and their task: classes, as asked for, or several labels where the targets are rows of 0 and 1.

    A network may be trained on such targets as numbers; a note says how to choose that.
    """
    try:
        found = _open(spec, request)
        if isinstance(found.reader, ItemReader) and math.prod(found.reader.target_shape) > 1:
            _look_at_targets(found.reader, found.ids, request.task)
        return found, request.task
    except SeveralLabels as several:
        multilabel = replace(request, task=task_of("multilabel"))
        try:
            found = _open(spec, multilabel)
        except FsdtoolError:
            raise several from None
        log.info(
            f"the targets of '{spec}' are rows of 0 and 1: several labels for each example (`task=\"multilabel\"`; if "
            'they are numbers, give `task="regression"`)'
        )
        return found, multilabel.task


def _look_at_targets(reader: ItemReader, ids: np.ndarray, task: Task) -> None:
    """Raise SeveralLabels if a few examples have them; whatever else is wrong with one is told when it is read."""
    found = []
    for row in np.unique(np.linspace(0, len(ids) - 1, FEW_ITEMS).round().astype(np.int64)):
        with contextlib.suppress(FsdtoolError):
            found.append(reader.read(row[None])[1])
    try:
        task.targets(np.concatenate(found), ids)
    except SeveralLabels:
        raise
    except (FsdtoolError, ValueError):
        return


def _open(spec: str, request: Request) -> Found:
    source, path = find_source(spec), Path(spec)
    if source is None:
        problem = "is of an unknown kind" if path.exists() else "does not exist"
        raise DataError(f"the data '{spec}' {problem}; give {offered()}")
    images = request.preprocessing
    if not source.holds_images and (images.image_size is not None or images.channels is not None):
        argument = "image_size" if images.image_size is not None else "channels"
        raise DataError(f"`{argument}` is for images, and '{spec}' holds arrays; leave it out")
    if source.suffixes and not path.stat().st_size:
        raise DataError(f"'{spec}' is damaged or not a {path.suffix} file: it has no bytes; write it again")
    return source.opens(spec, request)


def _agreed(found: tuple[Part, ...], asked: tuple[Part, ...], spec: str, prepared: bool) -> tuple[Part, ...]:
    """How the inputs are handed over: as the data have them, or as a network takes them that was summarized."""
    if not prepared:
        return found
    packed = asked if any(part.key or part.name for part in asked) else ()
    if [part.size for part in found] != [part.size for part in packed]:
        own, other = (listed(parts) or "one input" for parts in (found, packed))
        raise DataError(f"'{spec}' has {own}, the summarized data {other}; give data of the same kind (`x_key`)")
    return asked


def _check_unique(ids: np.ndarray, spec: str) -> None:
    names, count = np.unique(ids, return_counts=True)
    twice = names[count > 1]
    if len(twice):
        raise DataError(
            f"{len(twice)} ids of '{spec}' stand for more than one example ({some([str(n) for n in twice.tolist()])}); "
            "make them unique, or give `id_key=row` for row numbers"
        )


def _relabelling(
    found: list[str] | None, wanted: list[str] | None, spec: str, task: Task
) -> tuple[list[str] | None, np.ndarray | None]:
    """The class names to use, and the number among them of each class that the data numbers itself.

    Raises DataError for names that are not wanted, and for labels of several in another order.
    """
    if wanted is None or found is None or found == wanted:
        return wanted or found, None
    unknown = [name for name in found if name not in wanted]
    if unknown:
        raise DataError(
            f"'{spec}' has classes that are not among the class names {some(wanted)}: {some(unknown)}; "
            "rename or remove them"
        )
    if task.has_labels:
        raise DataError(f"'{spec}' has its labels in another order than {some(wanted)}; give `y_key` in that")
    return wanted, np.array([wanted.index(name) for name in found], dtype=np.int64)
