"""The catalogue of a summary file: what was summarized, its classes, and one record per training example.

This is all that commands about the training examples read, and it is read without torch, whose import takes longer
than most of their answers.  fsdtool.summary.reader adds the network, the statistics and the curvature.

Reading follows no links and runs no code: what does not look as expected is a SummaryError.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np

from fsdtool import __version__
from fsdtool.errors import SummaryError
from fsdtool.statistics.distance_error import DistanceCalibration
from fsdtool.statistics.fit import Fit
from fsdtool.summary import hdf5
from fsdtool.summary.identity import identity_part
from fsdtool.tasks.task import Task, task_of, tasks
from fsdtool.util.fields import is_whole

FORMAT = "fsdtool summary"
SCHEMA = 2  # rises with every change of what is read
INTEGERS, FLOATS = "iu", "f"
Opened = TypeVar("Opened", bound="Catalogue")


@dataclass(frozen=True)
class InfluenceCalibration:
    """How influence from records compares with that of exact gradients (fsdtool.fitting.influence_calibration).

    scale: what values of pairs from records are multiplied by, correlation: with those of exact gradients; self_scale
    and self_correlation: the same of an example's influence on itself.  All `pairs` of `examples` were compared.
    """

    scale: float
    correlation: float
    self_scale: float
    self_correlation: float
    examples: int
    pairs: int

    @property
    def sound(self) -> bool:
        """Whether all numbers are what such numbers can be."""
        scales, correlations = (self.scale, self.self_scale), (self.correlation, self.self_correlation)
        return all(0 < v < math.inf for v in scales) and all(abs(v) < 1.001 for v in correlations)

    def __str__(self) -> str:
        return f"correlation {self.correlation:.3f} with exact gradients on {self.pairs:,} sampled pairs"


@dataclass
class Catalogue:
    """An open summary file as far as its training examples go; records are read from the file in row ranges.

    A context manager, which closes the file at its end.

    examples: N.  outputs: O, the classes or target values of the network.  class_names: by label, None where they
    are not known.  data_spec: how the data was named.  records: None where the file was written without.  fit: of the
    training data, None in files of versions that did not measure it.  influence: how values from the records were
    calibrated, None where they were not.
    """

    path: Path
    task: Task
    examples: int
    outputs: int
    class_names: tuple[str, ...] | None
    data_spec: str
    records: Records | None
    fit: Fit | None
    influence: InfluenceCalibration | None
    file: h5py.File = field(repr=False, compare=False)

    def open_file(self) -> h5py.File:
        """The file, for what is read when it is needed.  Raises SummaryError after `close`."""
        if not self.file:
            raise SummaryError(f"'{self.path}' was closed; open it again", path=self.path)
        return self.file

    def close(self) -> None:
        """Close the file.  What is in memory stays usable; records can be read no more.  Closing again is no error."""
        self.file.close()

    def __enter__(self: Opened) -> Opened:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def label_name(self, label: int) -> int | str:
        """The class name of a label where names are known, else the label."""
        names = self.class_names
        return names[label] if names is not None and label < len(names) else int(label)

    def target_name(self, target: np.ndarray) -> int | float | str:
        """A target as people read it: the class name, the labels that are 1, or numbers."""
        if self.task.has_classes:
            return self.label_name(int(target))
        if self.task.has_labels:
            return ", ".join(str(self.label_name(label)) for label in np.flatnonzero(target).tolist()) or "none"
        return target.item() if target.size == 1 else " ".join(f"{v:.7g}" for v in target.tolist())


class Records:
    """The per-example part of a summary file: datasets by name, read in row ranges."""

    def __init__(self, group: h5py.Group, examples: int):
        self._group, self._path = group, group.file.filename
        self.examples = examples
        for name in hdf5.names(group):
            if name != "gradients" and len(self.dataset(name)) != examples:
                rows = len(self.dataset(name))
                raise hdf5.unusable(group, f"'records/{name}' has {rows} rows for {examples} examples")
        ids = self.dataset("id", (examples,), INTEGERS + hdf5.TEXT)
        self.ids = hdf5.strings(ids) if ids.dtype.kind == hdf5.TEXT else hdf5.read(ids)

    def __len__(self) -> int:
        return self.examples

    def __contains__(self, name: str) -> bool:
        return hdf5.has(self._open(), name)

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """One record dataset, or some of its rows; floats as float32 or float16.  Raises SummaryError."""
        values = hdf5.read(self.dataset(name), rows)
        if values.dtype != np.float64:
            return values
        with np.errstate(over="ignore"):
            narrow = values.astype(np.float32)
        if not np.isfinite(narrow).all():
            raise hdf5.unusable(self._group, f"'records/{name}' holds values too large for float32")
        return narrow

    def layers(self, name: str) -> tuple[str, ...]:
        """The layers that gave 'evidence' or told a 'residual'."""
        return hdf5.Attributes(self.dataset(name)).texts("layers")

    def parameters(self) -> np.ndarray:
        """Parameters of the network before each layer of the evidence (L,), for each example."""
        return self._of_layers("evidence", "parameters", INTEGERS) / self.examples

    def weights(self) -> np.ndarray:
        """The share (L,) of each layer in the residuals."""
        return self._of_layers("residual", "weights", FLOATS)

    def flip_rates(self, outputs: int) -> np.ndarray:
        """The shares (O, 2) of each label's true zeros and ones that are flipped, by the first layer."""
        found = hdf5.Attributes(self.dataset("residual")).numbers("rates", 2 * outputs, FLOATS)
        return found.reshape(outputs, 2).astype(np.float64)

    def _of_layers(self, name: str, key: str, kinds: str) -> np.ndarray:
        return hdf5.Attributes(self.dataset(name)).numbers(key, len(self.layers(name)), kinds)

    def dataset(
        self, name: str, shape: tuple[int | None, ...] | None = None, kinds: str = hdf5.NUMBERS + hdf5.TEXT
    ) -> h5py.Dataset:
        """A record dataset of the given shape (None: any length) and kinds of dtype.  Raises SummaryError."""
        found = hdf5.dataset(self._open(), name, shape, kinds)
        if not found.shape:
            raise hdf5.unusable(self._group, f"'records/{name}' has no rows")
        return found

    def _open(self) -> h5py.Group:
        if not self._group:
            raise SummaryError(f"'{self._path}' was closed; open it again", path=self._path)
        return self._group

    def check(self, task: Task, outputs: int) -> None:
        """Raise SummaryError unless every dataset has the shape that the rest of the file asks for."""
        n = self.examples
        if task.has_classes:
            _, kept = self.dataset("candidates", (n, None), INTEGERS).shape
            self.dataset("evidence", (n, len(self.layers("evidence")), kept), FLOATS)
            if self.parameters().min(initial=0) < 0:
                raise hdf5.unusable(self._group, "'records/evidence' has a negative count of parameters")
            self.dataset("prediction", (n,), INTEGERS)
            self.dataset("target", (n,), INTEGERS)
            self._check_classes("target", outputs)
            self._check_classes("candidates", outputs)
        else:
            self.dataset("target", (n, outputs), FLOATS)
            self.dataset("residual", (n, outputs), FLOATS)
            self.weights()
        if task.has_labels:
            self._check_classes("target", 2)
            if not ((rates := self.flip_rates(outputs)) >= 0).all() or (rates.sum(1) >= 1).any():
                raise hdf5.unusable(self._group, "'records/residual' has flip rates that are no shares")
        if "logits" in self:
            self.dataset("logits", (n, outputs), FLOATS)
        if "gradients" in self:
            self.dataset("self_influence", (n,), FLOATS)
        self.dataset("loss", (n,), FLOATS)

    def _check_classes(self, name: str, classes: int) -> None:
        values = self.read(name)
        if values.size and not 0 <= values.min() <= values.max() < classes:
            raise hdf5.unusable(self._group, f"'records/{name}' holds classes outside 0..{classes - 1}")


def open_catalogue(path: str | Path) -> Catalogue:
    """Open a summary for its records alone.  Raises SummaryError as `fsdtool.summary.reader.load` does, for what is
    read.
    """
    with summary_file(path) as file:
        return read_catalogue(file)


@contextmanager
def summary_file(path: str | Path) -> Iterator[h5py.File]:
    """The file of a summary, once its schema and the size it claims are checked; it stays open, unless reading fails.

    Raises SummaryError when it is missing, damaged, or of another kind or schema.
    """
    file = hdf5.open_file(Path(path))
    try:
        _check_schema(file)
        hdf5.check_size(file)
        yield file
    except BaseException:
        file.close()
        raise


def read_catalogue(file: h5py.File) -> Catalogue:
    """The catalogue of an open file.  Raises SummaryError."""
    root, data = identity_part(file, "/"), identity_part(file, "data")
    name, examples = root.text("task"), data.integer("examples")
    if name not in tasks() or examples < 1:
        raise hdf5.unusable(file, f"task '{name}' is not known, or it has no examples")
    task = task_of(name)
    outputs = _outputs(file, hdf5.json_in(file, "model/graph"))
    names = None
    if hdf5.has(hdf5.group(file, "data"), "class_names"):
        names = tuple(hdf5.strings(hdf5.dataset(file, "data/class_names", (None,), hdf5.TEXT)).tolist())
    records = None
    if hdf5.has(file, "records"):
        records = Records(hdf5.group(file, "records"), examples)
        records.check(task, outputs)
    spec, fit, influence = data.text("spec"), _read_fit(file, task, outputs), _read_influence_calibration(file)
    return Catalogue(Path(file.filename), task, examples, outputs, names, spec, records, fit, influence, file)


def _read_fit(file: h5py.File, task: Task, outputs: int) -> Fit | None:
    if not hdf5.has(file, "calibration") or not hdf5.has(hdf5.group(file, "calibration"), "fit"):
        return None
    group = hdf5.group(file, "calibration/fit")
    of_targets = outputs if task.quadratic else 0
    lengths = {"r_squared": of_targets, "constant": outputs}
    arrays = {name: hdf5.read(hdf5.dataset(group, name, (n,), FLOATS)) for name, n in lengths.items()}
    return Fit.read(task, hdf5.Attributes(group), arrays)


def _outputs(file: h5py.File, steps: Any) -> int:
    """The width of the last of a network's steps."""
    last = steps[-1] if isinstance(steps, list) and steps else None
    shape = last.get("shape") if isinstance(last, dict) else None
    if not (isinstance(shape, list) and len(shape) == 1 and is_whole(shape[0]) and shape[0] > 0):
        raise hdf5.unusable(file, "its network is not a well-formed list of steps")
    return shape[0]


def _read_influence_calibration(file: h5py.File) -> InfluenceCalibration | None:
    if not hdf5.has(file, "calibration") or not hdf5.has(hdf5.group(file, "calibration"), "influence"):
        return None
    group = hdf5.group(file, "calibration/influence")
    attributes = hdf5.Attributes(group)
    found = InfluenceCalibration(
        scale=attributes.number("scale"),
        correlation=attributes.number("correlation"),
        self_scale=attributes.number("self_scale"),
        self_correlation=attributes.number("self_correlation"),
        examples=attributes.integer("examples"),
        pairs=attributes.integer("pairs"),
    )
    if not found.sound:
        raise hdf5.unusable(group, f"a scale of {found.scale:g} or {found.self_scale:g} cannot be")
    return found


def read_distance_calibration(file: h5py.File, task: Task) -> DistanceCalibration | None:
    """What was measured of the error of distances; None in a file that holds nothing of it."""
    if not hdf5.has(file, "calibration") or not hdf5.has(hdf5.group(file, "calibration"), "distance"):
        return None
    group, metrics = hdf5.group(file, "calibration/distance"), tuple(task.metrics)
    held = hdf5.Attributes(group)
    correction, error = (
        hdf5.read(hdf5.dataset(group, name, (len(metrics),), hdf5.NUMBERS)) for name in ("correction", "error")
    )
    if correction.min() <= 0 or error.min() < 0:
        raise hdf5.unusable(group, "a correction that is not positive, or a negative error")
    return DistanceCalibration(
        held.text("form"),
        held.integer("changes"),
        held.integer("examples"),
        dict(zip(metrics, correction.astype(float).tolist(), strict=True)),
        dict(zip(metrics, error.astype(float).tolist(), strict=True)),
    )


def _check_schema(file: h5py.File) -> None:
    """Raise SummaryError unless this version reads the file: the one message for files of other versions."""
    attributes = hdf5.Attributes(file)
    kind = attributes.get("format") if "format" in attributes else None
    schema = attributes.get("schema") if "schema" in attributes else None
    if not isinstance(kind, str) or kind != FORMAT:
        raise SummaryError(
            f"'{file.filename}' is no fsdtool summary; give a file that 'fsdtool summarize' wrote", path=file.filename
        )
    if is_whole(schema) and schema == SCHEMA:
        return
    newer = schema is not None and is_whole(schema) and schema > SCHEMA
    remedy = "update fsdtool, or write" if newer else "write"
    raise SummaryError(
        f"'{file.filename}' is a summary of schema {schema!r:.20}, and fsdtool {__version__} reads schema {SCHEMA}; "
        f"{remedy} it again with 'fsdtool summarize'",
        path=file.filename,
    )
