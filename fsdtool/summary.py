"""The summary file: one HDF5 file with all that the other commands need, readable with plain h5py.

Layout (the README has it as a table): attributes of `/`, `/model`, `/data`; `/model/parameters/NAME`;
`/statistics` with one entry per component on each first axis; `/curvature/NAME` in the directions the records
keep; `/records` with one row per training example in the order of the data.  fsdtool.writer writes it.

fsdtool.catalogue reads what concerns the training examples alone; this module all, with torch.  Reading follows no
links and runs no code: what does not look as expected is a FsdtoolError.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor, nn

from fsdtool import hdf5
from fsdtool.anchors import Anchors
from fsdtool.catalogue import FLOATS, Catalogue, Records, read_catalogue, summary_file
from fsdtool.curvature import SIMULATED, BlockCurvature
from fsdtool.distance_calibration import DistanceCalibration
from fsdtool.graph import Graph
from fsdtool.metrics import metrics_of
from fsdtool.moments import GateStatistics, InputStatistics, OutputSample, Statistics
from fsdtool.preprocessing import Preprocessing
from fsdtool.trace import FULL, LAST_LAYER

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
    tied: dict[str, str] = field(default_factory=dict)  # names of tensors that have an earlier name too: that name
    computed: dict[str, str] = field(default_factory=dict)  # weights that the model's code computes: how
    digests: dict[str, str] = field(default_factory=dict)  # in last layer mode, of each tensor outside that layer
    checkpoint_key: str = ""  # where in the checkpoint's file the weights stood, if that was asked for
    output: str = ""  # which of the model's outputs was asked for


@dataclass
class Summary(Catalogue):
    """An open summary.  Small parts are in memory, records are read from the file in row ranges."""

    identity: Identity
    statistics: Statistics
    curvature: list[BlockCurvature]
    parameters: dict[str, Tensor] | None
    anchors: Anchors | None = None
    distance_calibration: DistanceCalibration | None = None
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
    def preprocessing(self) -> Preprocessing:
        return self.identity.preprocessing


def load(path: str | Path) -> Summary:
    """Open a summary.  Raises FsdtoolError when it is missing, of another kind or schema, or damaged."""
    with summary_file(path) as file:
        catalogue = read_catalogue(file)
        identity = _read_identity(file, catalogue)
        statistics = _read_statistics(file, identity)
        curvature = _read_curvature(file, identity) if "curvature" in file else []
        parameters = _read_parameters(file, identity) if "parameters" in file["model"] else None
        if catalogue.records is not None:
            _check_factors(file, catalogue.records, curvature)
        return Summary(
            **vars(catalogue),
            identity=identity,
            statistics=statistics,
            curvature=curvature,
            parameters=parameters,
            anchors=_read_anchors(file, statistics, identity.graph.outputs) if "anchors" in file else None,
            distance_calibration=_read_distance_calibration(file, catalogue.task),
        )


def part_sizes(path: str | Path) -> dict[str, tuple[int, str]]:
    """Stored bytes and description of every dataset, by its path in the file."""
    with hdf5.damage_named(path), contextlib.closing(hdf5.open_file(Path(path))) as file:
        return {
            name.lstrip("/"): (dataset.id.get_storage_size(), str(hdf5.Attributes(dataset).get("description", "")))
            for name, dataset in hdf5.walk(file)
        }


def _read_identity(file: h5py.File, catalogue: Catalogue) -> Identity:
    model_group = hdf5.group(file, "model")
    root, model, data = (hdf5.Attributes(holder) for holder in (file, model_group, hdf5.group(file, "data")))
    shapes = json.loads(bytes(hdf5.read(hdf5.dataset(model_group, "shapes"))))
    graph = Graph.from_json(json.loads(bytes(hdf5.read(hdf5.dataset(model_group, "graph")))))
    more = json.loads(bytes(hdf5.read(hdf5.dataset(model_group, "names")))) if "names" in model_group else {}
    whole = isinstance(more, dict) and isinstance(more.get("frozen", []), list)
    if not whole or not all(isinstance(more.get(kind, {}), dict) for kind in ("tied", "computed", "digests")):
        raise hdf5.unusable(model_group, "'names' does not hold frozen, tied and computed parameters and digests")
    identity = Identity(
        task=catalogue.task,
        mode=str(model["mode"]),
        reasons=tuple(str(reason) for reason in json.loads(model["reasons"])),
        graph=replace(graph, frozen=frozenset(str(name) for name in more.get("frozen", []))),
        shapes={str(name): tuple(int(n) for n in shape) for name, shape in shapes.items()},
        model_spec=str(model["spec"]),
        model_arguments=dict(json.loads(model["arguments"])),
        head=str(model["head"]),
        checkpoint_name=str(model["checkpoint"]),
        checkpoint_sha256=str(model["checkpoint_sha256"]),
        checkpoint_averaged=bool(model.get("checkpoint_averaged", False)),
        data_spec=str(data["spec"]),
        examples=catalogue.examples,
        fingerprint=str(data["fingerprint"]),
        preprocessing=Preprocessing.from_json(json.loads(data["preprocessing"])),
        class_names=catalogue.class_names,
        seed=int(root["seed"]),
        tool_version=str(root["tool_version"]),
        command_line=str(root["command_line"]),
        created=str(root["created"]),
        earlier=tuple((str(name), str(sha256)) for name, sha256 in json.loads(model.get("earlier", "[]"))),
        **{kind: _texts(more.get(kind, {})) for kind in ("tied", "computed", "digests")},
        checkpoint_key=str(model.get("checkpoint_key", "")),
        output=str(model.get("output", "")),
    )
    if identity.mode not in (FULL, LAST_LAYER):
        raise hdf5.unusable(file, f"mode '{identity.mode}' is not known")
    _check_runs(identity, Path(file.filename).stat().st_size)
    return identity


def _texts(mapping: dict[Any, Any]) -> dict[str, str]:
    return {str(key): str(value) for key, value in mapping.items()}


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
    components = hdf5.dataset(group, "count", (None,)).shape[0]
    if not 1 <= components <= identity.examples:
        raise hdf5.unusable(group, f"{components} components are too many for {identity.examples} examples, or too few")
    count, n = tensor(group, "count", (components,), torch.float64), graph.steps[0].units
    if count.min() < 1 or count.sum() != identity.examples:
        raise hdf5.unusable(group, f"the components do not add up to {identity.examples} examples")
    names = tuple(hdf5.strings(hdf5.dataset(group, "names", (components,))).tolist())
    basis = tensor(group, "input/basis", (n, None)) if "basis" in hdf5.group(group, "input") else None
    rank = n if basis is None else basis.shape[1]
    gaussian = InputStatistics(
        tensor(group, "input/mean", (components, n)),
        basis,
        tensor(group, "input/core", (components, rank, rank)),
        tensor(group, "input/diagonal", (components, n)),
    )
    gates = {i: _read_gates(group, graph, i, components) for i in graph.indices("activation")}
    square = (components, graph.outputs, graph.outputs)
    hessian = tensor(group, "output_hessian", square) if "output_hessian" in group else None
    outputs = _read_outputs(group, components, graph.outputs) if "outputs" in group else None
    return Statistics(str(hdf5.Attributes(group)["kind"]), names, count, gaussian, gates, hessian, outputs)


def _read_outputs(group: h5py.Group, components: int, outputs: int) -> OutputSample:
    values = tensor(group, "outputs/values", (None, outputs))
    component = tensor(group, "outputs/component", (len(values),), torch.int64)
    if len(torch.unique(component)) != components or component.min() < 0 or component.max() >= components:
        raise hdf5.unusable(group, f"the sample of outputs does not cover the {components} components")
    return OutputSample(values, component)


def _read_anchors(file: h5py.File, statistics: Statistics, outputs: int) -> Anchors:
    group, basis, components = hdf5.group(file, "anchors"), statistics.input.basis, len(statistics.names)
    inputs = tensor(group, "inputs", (None, statistics.input.core.shape[1]))
    if basis is not None:
        inputs = inputs * tensor(group, "scale", (basis.shape[1],))
    component = tensor(group, "component", (len(inputs),), torch.int64)
    if not len(inputs) or component.min() < 0 or component.max() >= components:
        raise hdf5.unusable(group, f"the examples kept are not of the {components} components")
    return Anchors(inputs, tensor(group, "outputs", (len(inputs), outputs)), component)


def _read_distance_calibration(file: h5py.File, task: str) -> DistanceCalibration | None:
    if "calibration" not in file or "distance" not in file["calibration"]:
        return None
    group, metrics = hdf5.group(file, "calibration/distance"), metrics_of(task)
    held = hdf5.Attributes(group)
    correction, error = (tensor(group, name, (len(metrics),), torch.float64) for name in ("correction", "error"))
    if correction.min() <= 0 or error.min() < 0:
        raise hdf5.unusable(group, "a correction that is not positive, or a negative error")
    return DistanceCalibration(
        str(held["form"]),
        int(held["changes"]),
        int(held["examples"]),
        dict(zip(metrics, correction.tolist(), strict=True)),
        dict(zip(metrics, error.tolist(), strict=True)),
    )


def _read_gates(group: h5py.Group, graph: Graph, index: int, components: int) -> GateStatistics:
    step = graph.steps[index]
    pieces, name = step.activation().pieces, f"gates/{step.name}"
    rows = len(pieces.breaks) if pieces else 5
    values = tensor(group, name, (components, rows, step.units))
    if pieces is None:
        return GateStatistics(None, moments=values)
    top = float(np.iinfo(hdf5.dataset(group, name).dtype).max)
    return GateStatistics(pieces, probabilities=values / top)


def _read_curvature(file: h5py.File, identity: Identity) -> list[BlockCurvature]:
    """The blocks in the order of the network."""
    found = []
    for weight, (_, bias) in identity.graph.weight_uses().items():
        group = hdf5.group(file, f"curvature/{weight}")
        block = _read_block(group, identity.shapes)
        if (block.weight, block.bias) != (weight, bias):
            raise hdf5.unusable(group, f"the curvature of '{weight}' is of other parameters than the network's")
        found.append(block)
    return found


def _read_block(group: h5py.Group, shapes: dict[str, tuple[int, ...]]) -> BlockCurvature:
    attributes = hdf5.Attributes(group)
    weight, bias = str(attributes["weight"]), str(attributes["bias"]) or None
    rows, columns = shapes[weight][0], int(np.prod(shapes[weight][1:])) + (bias is not None)
    inputs = tensor(group, "input_basis", (columns, None))
    outputs = tensor(group, "output_basis", (rows, None))
    eigenvalues = tensor(group, "eigenvalues", (outputs.shape[1], inputs.shape[1]))
    mean = float(attributes["mean_eigenvalue"])
    if not (mean >= 0 and eigenvalues.min() >= 0):
        raise hdf5.unusable(group, f"the curvature of '{weight}' has negative eigenvalues")
    source = str(attributes.get("source", SIMULATED))
    return BlockCurvature(weight, bias, inputs, outputs, eigenvalues, mean, source)


def _read_parameters(file: h5py.File, identity: Identity) -> dict[str, Tensor]:
    group, shapes = hdf5.group(file, "model/parameters"), identity.shapes
    return {name: tensor(group, name, shapes[name]) for name in identity.graph.parameter_names()}


def _check_factors(file: h5py.File, records: Records, curvature: list[BlockCurvature]) -> None:
    """Raise FsdtoolError unless the gradient factors of the records are in the directions of the curvature."""
    n = records.examples
    if "gradients" in records and not curvature:
        raise hdf5.unusable(file, "'/curvature' is missing")
    for c in curvature:
        ks, ka = c.eigenvalues.shape
        records.dataset(f"gradients/{c.weight}/output", (n, ks), FLOATS)
        records.dataset(f"gradients/{c.weight}/input", (n, ka), FLOATS)
        records.dataset(f"gradients/{c.weight}/scale", (n,), FLOATS)


def tensor(parent: h5py.Group, name: str, shape: Sequence[int | None], dtype: torch.dtype = torch.float32) -> Tensor:
    """A finite dataset of numbers of the given shape (None: any length) as a tensor."""
    source = hdf5.dataset(parent, name, shape, hdf5.NUMBERS)
    values = torch.from_numpy(np.ascontiguousarray(hdf5.read(source))).reshape(source.shape).to(dtype)
    if dtype.is_floating_point and not torch.isfinite(values).all():
        raise hdf5.unusable(parent, f"'{source.name}' holds values too large for {dtype}")
    return values
