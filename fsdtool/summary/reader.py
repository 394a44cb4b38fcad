"""The summary file: one HDF5 file with all that the other commands need, readable with plain h5py.

Layout (`fsdtool docs summary-file` has it as a table): `/identity`, what was summarized; `/model/parameters/NAME`;
`/statistics` with one entry per component on each first axis; `/curvature/NAME` in the directions the records
keep; `/records` with one row per training example in the order of the data.  fsdtool.summary.writer writes it.

fsdtool.summary.catalogue reads what concerns the training examples alone; this module all, with torch.  Reading follows
no links and runs no code: what does not look as expected is a SummaryError.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor, nn

from fsdtool.curvature.ekfac import BlockCurvature
from fsdtool.curvature.sources import SOURCES
from fsdtool.data.preprocessing import Preprocessing
from fsdtool.laftr.penalty import Penalty
from fsdtool.network.graph import Graph
from fsdtool.network.operations.weighted import Block, VectorBlock
from fsdtool.network.per_example_gradients import blocks
from fsdtool.network.traced import FULL, LAST_LAYER
from fsdtool.statistics.anchors import Anchors
from fsdtool.statistics.component_laws import GateStatistics, OutputSample, Statistics
from fsdtool.statistics.distance_error import DistanceCalibration
from fsdtool.statistics.gaussian_inputs import GaussianInputs
from fsdtool.statistics.input_model import InputModel, input_models
from fsdtool.summary import hdf5
from fsdtool.summary.catalogue import (
    FLOATS,
    Catalogue,
    Records,
    read_catalogue,
    read_distance_calibration,
    summary_file,
)
from fsdtool.summary.identity import Identity, read_names, read_values
from fsdtool.summary.network_file import read_network


@dataclass
class Summary(Catalogue):
    """An open summary.  Small parts are in memory, records are read from the file in row ranges.

    `close` it, or use it as a context manager: `with load(path) as summary`.
    """

    identity: Identity
    statistics: Statistics
    curvature: list[BlockCurvature]
    parameters: dict[str, Tensor] | None
    anchors: Anchors | None = None
    distance_calibration: DistanceCalibration | None = None
    _penalties: dict[tuple[object, ...], Penalty] = field(default_factory=dict, repr=False, compare=False)

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
        others at each call, or exactly with form 'closed'.  Batch norm counts in eval form.
        metric: one of fsdtool.laftr.metrics.
        gates: 'coupled' or 'independent' gates of the reference (LAFTR), or 'own': both networks run as they are on the
        summary's pseudo-inputs, which sees that training moves the gates and served continual learning better.
        Raises FsdtoolError for a module that is not the network summarized, or a summary without weights.
        """
        device = next(model.parameters()).device
        settings = (metric, form, gates, seed, device)
        if settings not in self._penalties:
            identity = self.identity
            self._penalties[settings] = Penalty(
                identity.graph,
                self.parameters,
                self.statistics,
                self.anchors,
                identity.shapes,
                task=self.task,
                source=self.path,
                metric=metric,
                form=form,
                gates=gates,
                seed=seed,
                device=device,
            )
        return self._penalties[settings](model, batch)

    @property
    def preprocessing(self) -> Preprocessing:
        """What was done to the inputs of the summarized data."""
        return self.identity.preprocessing


def load(path: str | PathLike[str]) -> Summary:
    """Open a summary; its file stays open, for the records, until `close`.

    Raises SummaryError when it is missing, of another kind or schema, or damaged.
    """
    with summary_file(Path(path)) as file:
        catalogue = read_catalogue(file)
        identity = _read_identity(file, catalogue)
        statistics = _read_statistics(file, identity)
        curvature = _read_curvature(file, identity) if hdf5.has(file, "curvature") else []
        with_weights = hdf5.has(hdf5.group(file, "model"), "parameters")
        parameters = _read_parameters(file, identity) if with_weights else None
        if catalogue.records is not None:
            _check_factors(file, catalogue.records, curvature)
        return Summary(
            **vars(catalogue),
            identity=identity,
            statistics=statistics,
            curvature=curvature,
            parameters=parameters,
            anchors=_read_anchors(file, statistics, identity.graph) if hdf5.has(file, "anchors") else None,
            distance_calibration=read_distance_calibration(file, catalogue.task),
        )


def _read_identity(file: h5py.File, catalogue: Catalogue) -> Identity:
    graph, shapes = read_network(file)
    frozen = frozenset(read_names(file).texts("frozen"))
    values = read_values(file)
    identity = Identity(graph=replace(graph, frozen=frozen), shapes=shapes, class_names=catalogue.class_names, **values)
    if identity.mode not in (FULL, LAST_LAYER):
        raise hdf5.unusable(file, f"mode '{identity.mode}' is not known")
    return identity


def _read_statistics(file: h5py.File, identity: Identity) -> Statistics:
    group, graph = hdf5.group(file, "statistics"), identity.graph
    components = hdf5.dataset(group, "count", (None,)).shape[0]
    if not 1 <= components <= identity.examples:
        raise hdf5.unusable(group, f"{components} components are too many for {identity.examples} examples, or too few")
    count, n = tensor(group, "count", (components,), torch.float64), graph.steps[0].units
    if count.min() < 1 or count.sum() != identity.examples:
        raise hdf5.unusable(group, f"the components do not add up to {identity.examples} examples")
    names = tuple(hdf5.strings(hdf5.dataset(group, "names", (components,), hdf5.TEXT)).tolist())
    inputs = _read_input_model(hdf5.group(group, "input"), components, n)
    gates = {i: _read_gates(group, graph, i, components) for i in graph.indices("activation")}
    square = (components, graph.outputs, graph.outputs)
    hessian = tensor(group, "output_hessian", square) if hdf5.has(group, "output_hessian") else None
    outputs = _read_outputs(group, components, graph.outputs) if hdf5.has(group, "outputs") else None
    kind = hdf5.Attributes(group).text("kind")
    return Statistics(kind, names, count, inputs, gates, hessian, outputs, identity.task)


def _read_input_model(group: h5py.Group, components: int, n: int) -> InputModel:
    attributes = hdf5.Attributes(group)
    name = attributes.text("model") if "model" in attributes else GaussianInputs.name  # as older files have it
    if name not in input_models():
        raise hdf5.unusable(group, f"the input model '{name}' is not known")
    return input_models()[name].read(_Arrays(group), components, n)


@dataclass(frozen=True)
class _Arrays:
    """The arrays of an input model."""

    group: h5py.Group

    def has(self, name: str) -> bool:
        return hdf5.has(self.group, name)

    def tensor(self, name: str, shape: tuple[int | None, ...]) -> Tensor:
        return tensor(self.group, name, shape)


def _read_outputs(group: h5py.Group, components: int, outputs: int) -> OutputSample:
    values = tensor(group, "outputs/values", (None, outputs))
    component = tensor(group, "outputs/component", (len(values),), torch.int64)
    if len(torch.unique(component)) != components or component.min() < 0 or component.max() >= components:
        raise hdf5.unusable(group, f"the sample of outputs does not cover the {components} components")
    return OutputSample(values, component)


def _read_anchors(file: h5py.File, statistics: Statistics, graph: Graph) -> Anchors:
    n, outputs = graph.steps[0].units, graph.outputs
    group, components = hdf5.group(file, "anchors"), len(statistics.names)
    basis = None  # without a scale inputs are whole
    if hdf5.has(group, "scale"):
        basis = tensor(group, "basis", (n, None)) if hdf5.has(group, "basis") else statistics.gaussian.basis
    inputs = tensor(group, "inputs", (None, n if basis is None else basis.shape[1]))
    if basis is not None:
        inputs = inputs * tensor(group, "scale", (basis.shape[1],))
    component = tensor(group, "component", (len(inputs),), torch.int64)
    if not len(inputs) or component.min() < 0 or component.max() >= components:
        raise hdf5.unusable(group, f"the examples kept are not of the {components} components")
    alone = tensor(group, "alone", (len(inputs),)) > 0
    return Anchors(inputs, tensor(group, "outputs", (len(inputs), outputs)), component, alone, basis)


def _read_gates(group: h5py.Group, graph: Graph, index: int, components: int) -> GateStatistics:
    step = graph.steps[index]
    pieces, name = step.activation().pieces, f"gates/{step.name}"
    rows = len(pieces.breaks) if pieces else 5
    values = tensor(group, name, (components, rows, step.units))
    if pieces is None:
        return GateStatistics(None, moments=values)
    dtype = hdf5.dataset(group, name, kinds="u").dtype
    top = float(np.iinfo(dtype).max)
    return GateStatistics(pieces, probabilities=values / top)


def _read_curvature(file: h5py.File, identity: Identity) -> list[BlockCurvature]:
    """The blocks in the order of the network."""
    found = []
    for block in blocks_of(identity):
        if isinstance(block, VectorBlock) and not hdf5.has(file, f"curvature/{block.weight}"):
            continue  # it was not worth its bytes, or the summary is from before there were vectors
        found.append(_read_block(hdf5.group(file, f"curvature/{block.weight}"), block))
    return found


def blocks_of(identity: Identity) -> list[Block]:
    """The trained parameters that curvature may be of."""
    return blocks(identity.graph, {name: torch.empty(shape, device="meta") for name, shape in identity.shapes.items()})


def _read_block(group: h5py.Group, block: Block) -> BlockCurvature:
    attributes = hdf5.Attributes(group)
    weight, bias = attributes.text("weight"), attributes.text("bias") or None
    if (weight, bias) != (block.weight, block.bias):
        raise hdf5.unusable(group, f"the curvature of '{weight}' is of other parameters than the network's")
    inputs = tensor(group, "input_basis", (block.d_in, None))
    outputs = tensor(group, "output_basis", (block.d_out, None))
    eigenvalues = tensor(group, "eigenvalues", (outputs.shape[1], inputs.shape[1]))
    mean, source = attributes.number("mean_eigenvalue"), attributes.text("source")
    if mean < 0 or not eigenvalues.numel() or eigenvalues.min() < 0:
        raise hdf5.unusable(group, f"the curvature of '{weight}' has no or negative eigenvalues")
    if source not in SOURCES:
        raise hdf5.unusable(group, f"the curvature of '{weight}' is '{source}', which is not known")
    return BlockCurvature(weight, bias, inputs, outputs, eigenvalues, mean, source, others=block.others)


def _read_parameters(file: h5py.File, identity: Identity) -> dict[str, Tensor]:
    group, shapes = hdf5.group(file, "model/parameters"), identity.shapes
    return {name: tensor(group, name, shapes[name]) for name in identity.graph.parameter_names()}


def _check_factors(file: h5py.File, records: Records, curvature: list[BlockCurvature]) -> None:
    """Raise SummaryError unless the gradient factors of the records are in the directions of the curvature."""
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
