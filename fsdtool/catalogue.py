"""The catalogue of a summary file: what was summarized, its classes, and one record per training example.

This is all that commands about the training examples read, and it is read without torch, whose import takes longer
than most of their answers.  fsdtool.summary adds the network, the statistics and the curvature.

Reading follows no links and runs no code: what does not look as expected is a FsdtoolError.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from fsdtool import hdf5
from fsdtool.errors import FsdtoolError
from fsdtool.fit import Fit
from fsdtool.targets import TASKS

FORMAT = "fsdtool summary"
SCHEMA = 1
INTEGERS, FLOATS = "iu", "f"


@dataclass
class Catalogue:
    """An open summary file as far as its training examples go; records are read from the file in row ranges.

    examples: N.  outputs: O, the classes or target values of the network.  class_names: by label, None where they
    are not known.  data_spec: how the data was named.  records: None where the file was written without.  fit: of the
    training data, None in files of versions that did not measure it.
    """

    path: Path
    task: str
    examples: int
    outputs: int
    class_names: tuple[str, ...] | None
    data_spec: str
    records: Records | None
    fit: Fit | None

    def label_name(self, label: int) -> int | str:
        """The class name of a label where names are known, else the label."""
        known = self.class_names is not None and label < len(self.class_names)
        return self.class_names[label] if known else int(label)

    def target_name(self, target: np.ndarray) -> int | float | str:
        """A target as people read it: the class name, or the numbers of a regression."""
        if self.task == "classification":
            return self.label_name(int(target))
        return target.item() if target.size == 1 else " ".join(f"{v:.7g}" for v in target.tolist())


class Records:
    """The per-example part of a summary file: datasets by name, read in row ranges."""

    def __init__(self, group: h5py.Group, examples: int):
        self._group = group
        self.examples = examples
        for name in group:
            if name != "gradients" and len(self.dataset(name)) != examples:
                rows = len(self.dataset(name))
                raise hdf5.unusable(group, f"'records/{name}' has {rows} rows for {examples} examples")
        ids = self.dataset("id", (examples,), INTEGERS + hdf5.TEXT)
        self.ids = hdf5.strings(ids) if ids.dtype.kind == hdf5.TEXT else hdf5.read(ids)

    def __len__(self) -> int:
        return self.examples

    def __contains__(self, name: str) -> bool:
        return name in self._group

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """One record dataset, or some of its rows; floats as float32 or float16.  Raises FsdtoolError."""
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
        return tuple(str(layer) for layer in self.attribute(name, "layers"))

    def parameters(self) -> np.ndarray:
        """Parameters of the network before each layer of the evidence (L,), for each example."""
        return self.attribute("evidence", "parameters") / self.examples

    def attribute(self, name: str, key: str) -> np.ndarray:
        """An attribute of a record dataset that holds a list, as an array (n,)."""
        return np.atleast_1d(hdf5.Attributes(self.dataset(name)).get(key))

    def dataset(
        self, name: str, shape: tuple[int | None, ...] | None = None, kinds: str = hdf5.NUMBERS + hdf5.TEXT
    ) -> h5py.Dataset:
        """A record dataset of the given shape (None: any length) and kinds of dtype.  Raises FsdtoolError."""
        found = hdf5.dataset(self._group, name, shape, kinds)
        if not found.shape:
            raise hdf5.unusable(self._group, f"'records/{name}' has no rows")
        return found

    def check(self, task: str, outputs: int) -> None:
        """Raise FsdtoolError unless every dataset has the shape that the rest of the file asks for."""
        n = self.examples
        if task == "classification":
            _, kept = self.dataset("candidates", (n, None), INTEGERS).shape
            layers = len(self.layers("evidence"))
            self.dataset("evidence", (n, layers, kept), FLOATS)
            before = self.attribute("evidence", "parameters")
            if before.shape != (layers,) or before.dtype.kind not in INTEGERS or before.min() < 0:
                raise hdf5.unusable(self._group, "'records/evidence' has no count of parameters for each of its layers")
            self.dataset("prediction", (n,), INTEGERS)
            self.dataset("target", (n,), INTEGERS)
            self._check_classes("target", outputs)
            self._check_classes("candidates", outputs)
        else:
            self.dataset("target", (n, outputs), FLOATS)
            self._check_residuals(n, outputs)
        if "logits" in self:
            self.dataset("logits", (n, outputs), FLOATS)
        if "self_influence" in self:
            self.dataset("self_influence", (n,), FLOATS)
        self.dataset("loss", (n,), FLOATS)

    def _check_residuals(self, n: int, outputs: int) -> None:
        if "residual" not in self:
            return
        self.dataset("residual", (n, outputs), FLOATS)
        layers, weights = self.layers("residual"), self.attribute("residual", "weights")
        if weights.shape != (len(layers),) or weights.dtype.kind != FLOATS or not np.isfinite(weights).all():
            raise hdf5.unusable(self._group, "the weights of 'records/residual' do not fit its layers")

    def _check_classes(self, name: str, classes: int) -> None:
        values = self.read(name)
        if values.size and not 0 <= values.min() <= values.max() < classes:
            raise hdf5.unusable(self._group, f"'records/{name}' holds classes outside 0..{classes - 1}")


def open_catalogue(path: str | Path) -> Catalogue:
    """Open a summary for its records alone.  Raises FsdtoolError as `fsdtool.summary.load` does, for what is read."""
    with summary_file(path) as file:
        return read_catalogue(file)


@contextmanager
def summary_file(path: str | Path) -> Iterator[h5py.File]:
    """The file of a summary, of this schema and of honest size; it stays open, unless reading it fails.

    Raises FsdtoolError when it is missing or of another kind or schema, and for whatever damaged content raises.
    """
    file = hdf5.open_file(Path(path))
    try:
        with hdf5.damage_named(path):
            _check_schema(file)
            hdf5.check_size(file)
            yield file
    except FsdtoolError:
        file.close()
        raise


def read_catalogue(file: h5py.File) -> Catalogue:
    """The catalogue of an open file.  Raises FsdtoolError, or what damaged content raises."""
    data = hdf5.group(file, "data")
    task, examples = str(hdf5.Attributes(file)["task"]), int(hdf5.Attributes(data)["examples"])
    if task not in TASKS or examples < 1:
        raise hdf5.unusable(file, f"task '{task}' is not known, or it has no examples")
    steps = json.loads(bytes(hdf5.read(hdf5.dataset(hdf5.group(file, "model"), "graph"))))
    if not isinstance(steps, list) or not steps:
        raise hdf5.unusable(file, "its network is not a well-formed list of steps")
    outputs = int(steps[-1]["shape"][0])
    names = tuple(hdf5.strings(hdf5.dataset(data, "class_names", (None,))).tolist()) if "class_names" in data else None
    records = None
    if "records" in file:
        records = Records(hdf5.group(file, "records"), examples)
        records.check(task, outputs)
    spec = str(hdf5.Attributes(data)["spec"])
    return Catalogue(Path(file.filename), task, examples, outputs, names, spec, records, _read_fit(file, task, outputs))


def _read_fit(file: h5py.File, task: str, outputs: int) -> Fit | None:
    if "calibration" not in file or "fit" not in hdf5.group(file, "calibration"):
        return None
    group = hdf5.group(file, "calibration/fit")
    of_targets = outputs if task == "regression" else 0
    lengths = {"r_squared": of_targets, "constant": outputs}
    arrays = {name: hdf5.read(hdf5.dataset(group, name, (n,), FLOATS)) for name, n in lengths.items()}
    return Fit.read(task, hdf5.Attributes(group), arrays)


def _check_schema(file: h5py.File) -> None:
    attributes = hdf5.Attributes(file)
    try:
        schema, kind = attributes.get("schema"), attributes.get("format")
    except ValueError:  # not of the types that the tool writes
        schema = kind = None
    if str(kind) == FORMAT and str(schema) == str(SCHEMA):
        return
    found = f"a summary of schema {schema}" if str(kind) == FORMAT else "no fsdtool summary"
    raise FsdtoolError(f"'{file.filename}' holds {found}, this version reads schema {SCHEMA}; {hdf5.WRITE_AGAIN}")
