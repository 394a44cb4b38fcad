"""Writing a summary file, so that a crash at any moment leaves the old file or none.

The file grows beside its destination under a temporary name and is renamed when it is complete.  Every
dataset says what it holds (`description`) and in what (`units`), and is chunked and compressed; but not what is smaller
than the index of its chunks, and not weights and gradient factors, which are nearly noise: compression saves a tenth of
them and takes as long as computing them.  The same content gives the same bytes.

Attributes are for people: h5py gives their text as str.  Of these the tool reads numbers alone: text of variable
length lies in a heap of the file, which a stranger's damage can make endless.  What it reads is in datasets, or in
attributes of fixed length, which h5py gives as bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from torch import Tensor

from fsdtool.curvature.ekfac import BlockCurvature
from fsdtool.network.graph import Graph
from fsdtool.statistics.anchors import Anchors, stored
from fsdtool.statistics.component_laws import Statistics
from fsdtool.statistics.distance_error import DistanceCalibration
from fsdtool.statistics.fit import Fit
from fsdtool.summary.catalogue import FORMAT, SCHEMA, InfluenceCalibration
from fsdtool.summary.identity import JSON_PARTS, NAMES, Identity, written_values
from fsdtool.util.atomic_files import Sibling, Sink, cannot_write

CHUNK_BYTES = 2**18
INDEX_BYTES = 2**11  # that HDF5 takes for the index of a dataset's chunks, more than compression saves on so few


class Writer:
    """Writes into a temporary sibling, renamed to `path` by `commit`.  Use as a context manager."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self._sibling = Sibling(path)
        except OSError as error:
            raise cannot_write("the summary", path, error) from error
        self._sink = Sink(self._sibling.file)
        self.file = h5py.File(self._sink, "w")

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self.file.close()
        finally:
            self._sibling.discard()

    def commit(self) -> int:
        """Put the file in place; its size in bytes.  Raises FsdtoolError when it could not be written wholly."""
        self.file.close()
        self.check()
        try:
            size = self._sibling.path.stat().st_size
            self._sibling.put_in_place()
        except OSError as error:
            raise cannot_write("the summary", self.path, error) from error
        return size

    def check(self) -> None:
        """Raise FsdtoolError when something could not be written: a full disk, a limit on file sizes."""
        if self._sink.error is not None:
            raise cannot_write("the summary", self.path, self._sink.error)

    def put(self, name: str, values: np.ndarray | Tensor, description: str, units: str = "", **attributes: Any) -> None:
        """One dataset, compressed, with its description and units."""
        values = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
        dataset = self.reserve(name, values.shape, values.dtype, description, units, **attributes)
        if values.size:
            dataset[...] = values

    def reserve(
        self,
        name: str,
        shape: Sequence[int],
        dtype: Any,
        description: str,
        units: str = "",
        compressed: bool = True,
        **attributes: Any,
    ) -> h5py.Dataset:
        """An empty dataset to be filled in row ranges."""
        self.check()
        options: dict[str, Any] = {}
        row = int(np.prod(shape[1:])) * np.dtype(dtype).itemsize
        if len(shape) and shape[0] * row > INDEX_BYTES:
            rows = min(max(CHUNK_BYTES // row, 1), shape[0])
            chunks = (rows, *shape[1:])
            options = {"chunks": chunks}
            options |= {"compression": "gzip", "compression_opts": 1, "shuffle": True} if compressed else {}
        dataset = self.file.create_dataset(name, shape=tuple(shape), dtype=dtype, **options)
        _attributes(dataset, description=description, units=units, **attributes)
        return dataset

    def write_identity(self, identity: Identity) -> None:
        """`/identity`, the same as attributes of `/`, `/model` and `/data`, and the network's steps and shapes."""
        parts = {
            name: {k: _readable(v) if isinstance(v, str) else v for k, v in written_values(identity, name).items()}
            for name in JSON_PARTS
        }
        self.put("identity", _json(parts), "what was summarized, JSON as UTF-8 bytes")
        for name, values in parts.items():
            plain = {k: json.dumps(v) if isinstance(v, (dict, list, tuple)) else v for k, v in values.items()}
            _attributes(self.file.require_group(name), **plain)
        self.file.attrs["format"], self.file.attrs["schema"] = _bytes(FORMAT), SCHEMA
        steps = _json(identity.graph.to_json())
        self.put("model/graph", steps, "steps of the network, JSON as UTF-8 bytes")
        shapes = _json(identity.shapes)
        self.put("model/shapes", shapes, "shape of every entry of the state_dict, JSON as UTF-8 bytes")
        kinds = {"frozen": sorted(identity.graph.frozen)} | written_values(identity, NAMES)
        described = (
            "names of parameters that are frozen, tied, computed, or unseen in last layer mode, JSON as UTF-8 bytes"
        )
        self.put("model/names", _json(kinds), described)
        if identity.class_names:
            self.put("data/class_names", _fixed(identity.class_names), "class names by label, UTF-8")

    def write_parameters(self, parameters: dict[str, Tensor]) -> None:
        """The weights that the graph reads."""
        group = self.file.require_group("model/parameters")
        for name, value in parameters.items():
            dataset = group.create_dataset(name, data=value.detach().cpu().numpy())
            _attributes(dataset, description="parameter or buffer of the reference checkpoint", units="")

    def write_fit(self, fit: Fit) -> None:
        """`/calibration/fit`: numbers as attributes, and two arrays."""
        group = self.file.require_group("calibration/fit")
        description = "how well the network fits the training data, beside a constant answer"
        _attributes(group, description=description, units=fit.task.units, **fit.numbers())
        constant = "the constant answer: class frequencies, or the mean of each target (O,)"
        self.put("calibration/fit/constant", np.array(fit.constant), constant)
        self.put("calibration/fit/r_squared", np.array(fit.r_squared), "of each output of a regression (O,)")

    def write_statistics(self, statistics: Statistics, graph: Graph, gate_bits: int) -> None:
        """`/statistics`: probabilities in `gate_bits` (8 or 16) bit fixed point, moments in float32."""
        self.file.create_group("statistics").attrs["kind"] = _bytes(statistics.kind)
        self.put("statistics/names", _fixed(statistics.names), "component names, UTF-8")
        count = statistics.count.long()
        self.put("statistics/count", count, "training examples of each component (K,)", "examples")
        self._write_input(statistics)
        for i, gates in statistics.gates.items():
            name = f"statistics/gates/{graph.steps[i].name}"
            if gates.pieces is None:
                assert gates.moments is not None
                means = "means of m, m^2, c, m c, c^2, where phi(s) = m s + c (K, 5, U)"
                self.put(name, gates.moments.float(), means, encoding="moments")
                continue
            assert gates.probabilities is not None
            top = 2**gate_bits - 1
            fixed = (gates.probabilities.clamp(0, 1) * top).round().cpu().numpy().astype(f"uint{gate_bits}")
            description = "probability of the activation's pieces 1 .. J-1 (K, J-1, U); ReLU: of the open gate"
            self.put(name, fixed, description, f"1/{top}", encoding="probabilities")
        if statistics.output_hessian is not None:
            hessian = statistics.output_hessian.float()
            self.put("statistics/output_hessian", hessian, "mean Hessian of the loss at the outputs (K, O, O)")
        if statistics.outputs is not None:
            sample = statistics.outputs
            values = sample.values.half().clamp(-65504, 65504)
            self.put("statistics/outputs/values", values, "outputs of the reference on some examples (R, O)")
            self.put("statistics/outputs/component", sample.component.int(), "component of each (R,)")

    def _write_input(self, statistics: Statistics) -> None:
        for name, part in statistics.input.stored().items():
            self.put(f"statistics/input/{name}", part.values, part.description, part.units)
        self.file.require_group("statistics/input").attrs["model"] = _bytes(statistics.input.name)

    def write_anchors(self, anchors: Anchors, statistics: Statistics) -> None:
        """`/anchors`: float16 of scaled projections, or float32 of whole inputs where there is no basis."""
        inputs = anchors.inputs
        if anchors.basis is not None:
            inputs, scale = stored(inputs)
            self.put("anchors/scale", scale, "what each coefficient is divided by (r,)", "input units")
        kept = "projections B^T (x - mean of its component) of a sample of examples (R, r), or x without a basis"
        self.put("anchors/inputs", inputs, kept, "input units")
        shared = statistics.gaussian.basis if statistics.drawn else None
        if anchors.basis is not None and (shared is None or shared.shape != anchors.basis.shape):
            self.put("anchors/basis", anchors.basis.half(), "directions of the projections (n, r)")
        self.put("anchors/outputs", anchors.outputs, "outputs of the reference on them (R, O)")
        self.put("anchors/component", anchors.component.int(), "component of each (R,)")
        self.put("anchors/alone", anchors.alone.byte(), "1: stands for itself alone, 0: for others too (R,)")

    def write_distance_calibration(self, found: DistanceCalibration) -> None:
        """`/calibration/distance`: of the form that `fsd` takes by default."""
        metrics = list(found.error)
        held = {"form": _bytes(found.form), "changes": found.changes, "examples": found.examples}
        correction = np.array([found.correction[name] for name in metrics])
        error = np.array([found.error[name] for name in metrics])
        self.put("calibration/distance/correction", correction, "factor on distances, by metric (M,)", metrics=metrics)
        description = "relative error of a corrected distance over changes of the weights, by metric (M,)"
        self.put("calibration/distance/error", error, description, metrics=metrics)
        _attributes(self.file["calibration/distance"], **held)

    def write_curvature(self, curvatures: Sequence[BlockCurvature]) -> None:
        """`/curvature`: the eigenbasis and spectrum of each weight in the kept directions."""
        for c in curvatures:
            name = f"curvature/{c.weight}"
            self.put(f"{name}/input_basis", c.input_basis, "directions U_A of the input [a; 1] (d_in, ka)")
            self.put(f"{name}/output_basis", c.output_basis, "directions U_S of the output gradient (d_out, ks)")
            self.put(f"{name}/eigenvalues", c.eigenvalues, "E[(U_S^T G U_A)^2] (ks, ka)", "loss^2 per weight^2")
            names = {"weight": c.weight, "bias": c.bias or "", "source": c.source}
            self.file[name].attrs["mean_eigenvalue"] = c.mean_eigenvalue
            if c.others:
                self.file[name].attrs["others"] = _fixed(c.others)
            for key, text in names.items():
                self.file[name].attrs[key] = _bytes(text)

    def write_influence_calibration(self, found: InfluenceCalibration) -> None:
        """`/calibration/influence`: values from records against those of exact gradients."""
        description = "scale: what influence from records is multiplied by to agree with that of exact gradients"
        group = self.file.require_group("calibration/influence")
        _attributes(group, description=description, units="", **asdict(found))


def encode_ids(ids: np.ndarray) -> np.ndarray:
    """Ids as the file stores them: int64, or UTF-8 bytes."""
    return ids.astype(np.int64) if np.issubdtype(ids.dtype, np.integer) else _fixed([str(i) for i in ids])


def _attributes(target: h5py.HLObject, **values: Any) -> None:
    """Attributes for people; a list of texts, which the tool reads back, is of fixed length."""
    for key, value in values.items():
        if isinstance(value, str):
            value = _readable(value).replace("\0", "\\x00")  # NUL cannot be in text of variable length
        target.attrs[key] = _fixed(value) if isinstance(value, list) else value


def _json(value: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)


def _fixed(texts: Sequence[str]) -> np.ndarray:
    """UTF-8 strings as a fixed-width array: readable everywhere, and no object type to trust."""
    return np.array([_bytes(text) for text in texts], dtype="S")


def _bytes(text: str) -> np.bytes_:
    return np.bytes_(_readable(text).encode())


def _readable(text: str) -> str:
    """The text with bytes that are no UTF-8, as a file name may hold, escaped."""
    return text.encode("utf-8", "backslashreplace").decode()
