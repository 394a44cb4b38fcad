"""The summary file: one HDF5 file with all that the other commands need, readable with plain h5py.

Layout (the README has it as a table): attributes of `/`, `/model`, `/data`; `/model/parameters/NAME`;
`/statistics` with one entry per component on each first axis; `/curvature/NAME` in the directions the records
keep; `/records` with one row per training example in the order of the data.  fsdtool.writer writes it.

Reading follows no links and runs no code: what does not look as expected is a FsdtoolError.
"""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor, nn

from fsdtool import hdf5
from fsdtool.curvature import SIMULATED, BlockCurvature
from fsdtool.errors import FsdtoolError
from fsdtool.gradients import WEIGHTED
from fsdtool.graph import Graph
from fsdtool.moments import GateStatistics, InputStatistics, OutputSample, Statistics
from fsdtool.preprocessing import Preprocessing
from fsdtool.records import Factors
from fsdtool.targets import TASKS
from fsdtool.trace import FULL, LAST_LAYER

FORMAT = "fsdtool summary"
SCHEMA = 1
INTEGERS, FLOATS = "iu", "f"
# A graph may have this many units, or so many for each byte of the file: every gate takes bytes in it.
FEW_UNITS, UNITS_PER_BYTE = 2**24, 64
FEW_WEIGHTS = 2**26


@dataclass(frozen=True)
class Identity:
    """What was summarized: everything of the file that is neither statistics nor records."""

    task: str
    mode: str
    reasons: tuple[str, ...]
    graph: Graph
    shapes: dict[str, tuple[int, ...]]  # of every entry of the model's state_dict
    model_spec: str
    model_arguments: dict[str, str]
    head: str
    checkpoint_name: str
    checkpoint_sha256: str
    checkpoint_averaged: bool
    data_spec: str
    examples: int
    fingerprint: str
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None
    seed: int
    tool_version: str
    command_line: str
    created: str
    earlier: tuple[tuple[str, str], ...] = ()  # name and SHA-256 of checkpoints that gave evidence too


@dataclass
class Summary:
    """An open summary.  Small parts are in memory, records are read from the file in row ranges."""

    path: Path
    identity: Identity
    statistics: Statistics
    curvature: list[BlockCurvature]
    parameters: dict[str, Tensor] | None
    records: Records | None
    _penalties: dict[tuple[object, ...], Any] = field(default_factory=dict, repr=False, compare=False)

    def penalty(
        self,
        model: nn.Module,
        *,
        metric: str | None = None,
        form: str = "sampled",
        gates: str = "moving",
        batch: int = 128,
        seed: int = 0,
    ) -> Tensor:
        """The function space distance of a live module from the summarized checkpoint: a scalar with gradients.

        For training loops: `loss + strength * summary.penalty(model)`.  Over `batch` pseudo-samples of the summary,
        others at each call, or exactly with form 'closed'; metrics as in fsdtool.fsd.  Batch norm counts in eval form.
        gates: 'coupled' or 'independent' gates of the reference (LAFTR), or 'own': both networks run as they are on the
        summary's pseudo-inputs, which sees that training moves the gates and served continual learning better.
        Raises FsdtoolError for a module that is not the network summarized, or a summary without weights.
        """
        from fsdtool.penalty import Penalty

        device = next(model.parameters()).device
        settings = (metric, form, gates, seed, device)
        if settings not in self._penalties:
            self._penalties[settings] = Penalty(self, metric=metric, form=form, gates=gates, seed=seed, device=device)
        return self._penalties[settings](model, batch)

    @property
    def task(self) -> str:
        return self.identity.task

    @property
    def preprocessing(self) -> Preprocessing:
        return self.identity.preprocessing

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self.identity.class_names

    def label_name(self, label: int) -> int | str:
        """The class name of a label where names are known, else the label."""
        known = self.class_names is not None and label < len(self.class_names)
        return self.class_names[label] if known else int(label)


class Records:
    """The per-example part of a summary file: datasets by name, read in row ranges."""

    def __init__(self, group: h5py.Group, examples: int):
        self._group = group
        self.examples = examples
        for name in group:
            if name != "gradients" and len(self._dataset(name)) != examples:
                rows = len(self._dataset(name))
                raise hdf5.unusable(group, f"'records/{name}' has {rows} rows for {examples} examples")
        ids = self._dataset("id", (examples,), INTEGERS + hdf5.TEXT)
        self.ids = hdf5.strings(ids) if ids.dtype.kind == hdf5.TEXT else hdf5.read(ids)

    def __len__(self) -> int:
        return self.examples

    def __contains__(self, name: str) -> bool:
        return name in self._group

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """One record dataset, or some of its rows.  Raises FsdtoolError for what cannot be used."""
        return hdf5.read(self._dataset(name), rows)

    def attribute(self, name: str, key: str) -> Any:
        """An attribute of a record dataset."""
        return hdf5.Attributes(self._dataset(name)).get(key)

    def factors(self, weight: str, rows: slice = slice(None)) -> Factors:
        """Gradient factors of some examples for one weight."""
        parts = (self._dataset(f"gradients/{weight}/{name}") for name in ("output", "input", "scale"))
        return Factors(*(torch.from_numpy(hdf5.read(part, rows)) for part in parts))

    def check(self, identity: Identity, curvature: list[BlockCurvature]) -> None:
        """Raise FsdtoolError unless every dataset has the shape that the rest of the file asks for."""
        n, outputs = self.examples, identity.graph.outputs
        if identity.task == "classification":
            _, kept = self._dataset("candidates", (n, None), INTEGERS).shape
            layers = len(np.atleast_1d(self.attribute("evidence", "layers")))
            self._dataset("evidence", (n, layers, kept), FLOATS)
            self._dataset("prediction", (n,), INTEGERS)
            self._dataset("target", (n,), INTEGERS)
            self._check_classes("target", outputs)
            self._check_classes("candidates", outputs)
        else:
            self._dataset("target", (n, outputs), FLOATS)
            if "residual" in self:
                self._dataset("residual", (n, outputs), FLOATS)
                layers, weights = (np.atleast_1d(self.attribute("residual", key)) for key in ("layers", "weights"))
                if layers.shape != weights.shape or weights.dtype.kind != FLOATS or not np.isfinite(weights).all():
                    raise hdf5.unusable(self._group, "the weights of 'records/residual' do not fit its layers")
        if "logits" in self:
            self._dataset("logits", (n, outputs), FLOATS)
        self._dataset("loss", (n,), FLOATS)
        for c in curvature:
            ks, ka = c.eigenvalues.shape
            self._dataset(f"gradients/{c.weight}/output", (n, ks), FLOATS)
            self._dataset(f"gradients/{c.weight}/input", (n, ka), FLOATS)
            self._dataset(f"gradients/{c.weight}/scale", (n,), FLOATS)

    def _check_classes(self, name: str, classes: int) -> None:
        values = self.read(name)
        if values.size and not 0 <= values.min() <= values.max() < classes:
            raise hdf5.unusable(self._group, f"'records/{name}' holds classes outside 0..{classes - 1}")

    def _dataset(
        self, name: str, shape: tuple[int | None, ...] | None = None, kinds: str = hdf5.NUMBERS + hdf5.TEXT
    ) -> h5py.Dataset:
        found = hdf5.dataset(self._group, name, shape, kinds)
        if not found.shape:
            raise hdf5.unusable(self._group, f"'records/{name}' has no rows")
        return found


def load(path: str | Path) -> Summary:
    """Open a summary.  Raises FsdtoolError when it is missing, of another kind or schema, or damaged."""
    path = Path(path)
    file = hdf5.open_file(path)
    try:
        with hdf5.damage_named(path):
            _check_schema(file)
            hdf5.check_size(file)
            identity = _read_identity(file)
            statistics = _read_statistics(file, identity)
            curvature = _read_curvature(file, identity) if "curvature" in file else []
            parameters = _read_parameters(file, identity) if "parameters" in file["model"] else None
            records = None
            if "records" in file:
                records = Records(hdf5.group(file, "records"), identity.examples)
                records.check(identity, curvature)
    except FsdtoolError:
        file.close()
        raise
    return Summary(path, identity, statistics, curvature, parameters, records)


def part_sizes(path: str | Path) -> dict[str, tuple[int, str]]:
    """Stored bytes and description of every dataset, by its path in the file."""
    with hdf5.damage_named(path), contextlib.closing(hdf5.open_file(Path(path))) as file:
        return {
            name.lstrip("/"): (dataset.id.get_storage_size(), str(hdf5.Attributes(dataset).get("description", "")))
            for name, dataset in hdf5.walk(file)
        }


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


def _read_identity(file: h5py.File) -> Identity:
    model_group, data_group = hdf5.group(file, "model"), hdf5.group(file, "data")
    root, model, data = (hdf5.Attributes(holder) for holder in (file, model_group, data_group))
    named = "class_names" in data_group
    shapes = json.loads(bytes(hdf5.read(hdf5.dataset(model_group, "shapes"))))
    identity = Identity(
        task=str(root["task"]),
        mode=str(model["mode"]),
        reasons=tuple(str(reason) for reason in json.loads(model["reasons"])),
        graph=Graph.from_json(json.loads(bytes(hdf5.read(hdf5.dataset(model_group, "graph"))))),
        shapes={str(name): tuple(int(n) for n in shape) for name, shape in shapes.items()},
        model_spec=str(model["spec"]),
        model_arguments=dict(json.loads(model["arguments"])),
        head=str(model["head"]),
        checkpoint_name=str(model["checkpoint"]),
        checkpoint_sha256=str(model["checkpoint_sha256"]),
        checkpoint_averaged=bool(model.get("checkpoint_averaged", False)),
        data_spec=str(data["spec"]),
        examples=int(data["examples"]),
        fingerprint=str(data["fingerprint"]),
        preprocessing=Preprocessing.from_json(json.loads(data["preprocessing"])),
        class_names=tuple(hdf5.strings(hdf5.dataset(data_group, "class_names")).tolist()) if named else None,
        seed=int(root["seed"]),
        tool_version=str(root["tool_version"]),
        command_line=str(root["command_line"]),
        created=str(root["created"]),
        earlier=tuple((str(name), str(sha256)) for name, sha256 in json.loads(model.get("earlier", "[]"))),
    )
    if identity.task not in TASKS or identity.mode not in (FULL, LAST_LAYER) or identity.examples < 1:
        raise hdf5.unusable(
            file, f"task '{identity.task}' or mode '{identity.mode}' is not known, or it has no examples"
        )
    _check_runs(identity, Path(file.filename).stat().st_size)
    return identity


def _check_runs(identity: Identity, file_size: int) -> None:
    """Do the steps fit together, and are they of honest size?

    A batch of no examples is run first, which has every shape and takes no memory, then an input of zeros.
    """
    graph, steps = identity.graph, identity.graph.steps
    if len({step.name for step in steps}) < len(steps):
        raise ValueError("two steps have the same name")
    read = {j for step in steps for j in step.inputs}
    if read != set(range(len(steps) - 1)):
        raise ValueError("the output of a step is never used")
    units = sum(step.units for step in steps)
    if units > FEW_UNITS + UNITS_PER_BYTE * file_size:
        raise ValueError(f"its network has {units:,} units, too many for a file of {file_size:,} bytes")
    shapes = {name: identity.shapes[name] for name in graph.parameter_names()}
    # Weights may be left out of a file, so their number is no fault; but then they are not made up either.
    affordable = sum(math.prod(shape) for shape in shapes.values()) <= FEW_WEIGHTS

    def observe(step: Any, inputs: list[Tensor], output: Tensor) -> None:
        if tuple(output.shape[1:]) != step.shape:
            raise ValueError(f"step '{step.name}' gives shape {tuple(output.shape[1:])}, not {step.shape}")

    with torch.no_grad():
        parameters = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
        for examples in (0, 1) if affordable else (0,):
            graph.run(parameters, torch.zeros(examples, *graph.input_shape), observe=observe)


def _read_statistics(file: h5py.File, identity: Identity) -> Statistics:
    group, graph = hdf5.group(file, "statistics"), identity.graph
    names, n = tuple(hdf5.strings(hdf5.dataset(group, "names")).tolist()), graph.steps[0].units
    components = len(names)
    count = hdf5.array(group, "count", (components,), torch.float64)
    if not components or count.min() < 1 or count.sum() != identity.examples:
        raise hdf5.unusable(group, f"the components do not add up to {identity.examples} examples")
    basis = hdf5.array(group, "input/basis", (n, None)) if "basis" in hdf5.group(group, "input") else None
    rank = n if basis is None else basis.shape[1]
    gaussian = InputStatistics(
        hdf5.array(group, "input/mean", (components, n)),
        basis,
        hdf5.array(group, "input/core", (components, rank, rank)),
        hdf5.array(group, "input/diagonal", (components, n)),
    )
    gates = {i: _read_gates(group, graph, i, components) for i in graph.indices("activation")}
    square = (components, graph.outputs, graph.outputs)
    hessian = hdf5.array(group, "output_hessian", square) if "output_hessian" in group else None
    outputs = _read_outputs(group, components, graph.outputs) if "outputs" in group else None
    return Statistics(str(hdf5.Attributes(group)["kind"]), names, count, gaussian, gates, hessian, outputs)


def _read_outputs(group: h5py.Group, components: int, outputs: int) -> OutputSample:
    values = hdf5.array(group, "outputs/values", (None, outputs))
    component = hdf5.array(group, "outputs/component", (len(values),), torch.int64)
    if len(torch.unique(component)) != components or component.min() < 0 or component.max() >= components:
        raise hdf5.unusable(group, f"the sample of outputs does not cover the {components} components")
    return OutputSample(values, component)


def _read_gates(group: h5py.Group, graph: Graph, index: int, components: int) -> GateStatistics:
    step = graph.steps[index]
    pieces, name = step.activation().pieces, f"gates/{step.name}"
    rows = len(pieces.breaks) if pieces else 5
    values = hdf5.array(group, name, (components, rows, step.units))
    if pieces is None:
        return GateStatistics(None, moments=values)
    top = float(np.iinfo(hdf5.dataset(group, name).dtype).max)
    return GateStatistics(pieces, probabilities=values / top)


def _read_curvature(file: h5py.File, identity: Identity) -> list[BlockCurvature]:
    """The blocks in the order of the network."""
    steps = [step for step in identity.graph.steps if step.operation in WEIGHTED]
    return [
        _read_block(hdf5.group(file, f"curvature/{weight}"), identity.shapes)
        for weight in dict.fromkeys(step.parameters["weight"] for step in steps)
    ]


def _read_block(group: h5py.Group, shapes: dict[str, tuple[int, ...]]) -> BlockCurvature:
    attributes = hdf5.Attributes(group)
    weight, bias = str(attributes["weight"]), str(attributes["bias"]) or None
    rows, columns = shapes[weight][0], int(np.prod(shapes[weight][1:])) + (bias is not None)
    inputs = hdf5.array(group, "input_basis", (columns, None))
    outputs = hdf5.array(group, "output_basis", (rows, None))
    eigenvalues = hdf5.array(group, "eigenvalues", (outputs.shape[1], inputs.shape[1]))
    mean = float(attributes["mean_eigenvalue"])
    if not (mean >= 0 and eigenvalues.min() >= 0):
        raise hdf5.unusable(group, f"the curvature of '{weight}' has negative eigenvalues")
    source = str(attributes.get("source", SIMULATED))
    return BlockCurvature(weight, bias, inputs, outputs, eigenvalues, mean, source)


def _read_parameters(file: h5py.File, identity: Identity) -> dict[str, Tensor]:
    group, shapes = hdf5.group(file, "model/parameters"), identity.shapes
    return {name: hdf5.array(group, name, shapes[name]) for name in identity.graph.parameter_names()}
