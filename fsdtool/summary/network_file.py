"""The network in a summary file, read from `/model`: its steps, and the shapes of the checkpoint it came from.

Whoever made the file made up the steps, their options and the shapes: a network counts when its steps run and give the
shapes that they say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import h5py
import torch
from torch import Tensor

from fsdtool.errors import SummaryError
from fsdtool.network.graph import Graph, Step
from fsdtool.network.operations.base import FUNCTION
from fsdtool.summary import hdf5
from fsdtool.util.fields import is_whole

# A graph may have this many units, or so many for each byte of the file: every gate takes bytes in it.
FEW_UNITS, UNITS_PER_BYTE = 2**24, 64
FEW_WEIGHTS = 2**26
# A function may make so many numbers for each that it says or reads, and a few; an argument may be of each dimension.
GROWTH, FEW_NUMBERS, MOST_DIMENSIONS = 64, 2**20, 3
LARGEST_SHAPE = 2**48  # numbers in one entry of a state_dict, far beyond any
# What torch raises on steps whose options or shapes do not fit together.
MISFIT = (
    *(RuntimeError, TypeError, ValueError, LookupError, ArithmeticError),
    *(AttributeError, AssertionError, MemoryError),
)


def read_network(file: h5py.File) -> tuple[Graph, dict[str, tuple[int, ...]]]:
    """The network, and the shape of every entry of the state_dict.  Raises SummaryError for what cannot run."""
    graph, shapes = Graph.from_json(hdf5.json_in(file, "model/graph")), _read_shapes(file)
    _check_runs(file, graph, shapes)
    return graph, shapes


def _read_shapes(file: h5py.File) -> dict[str, tuple[int, ...]]:
    shapes = hdf5.json_in(file, "model/shapes")
    well_formed = isinstance(shapes, dict) and all(
        isinstance(shape, list) and all(is_whole(n) and n >= 0 for n in shape) and math.prod(shape) <= LARGEST_SHAPE
        for shape in shapes.values()
    )
    if not well_formed:
        raise hdf5.unusable(file, "'/model/shapes' is not a shape for each name")
    return {name: tuple(shape) for name, shape in shapes.items()}


def _check_runs(file: h5py.File, graph: Graph, named: dict[str, tuple[int, ...]]) -> None:
    """Check that the steps fit together, and that the size they claim fits the size of the file.

    A batch of no examples is run first, which has every shape and takes no memory, then inputs of zeros.  Where a
    function of torch refuses no examples, the zeros alone say whether the network runs.
    """
    steps = graph.steps
    if len({step.name for step in steps}) < len(steps):
        raise hdf5.unusable(file, "two steps have the same name")
    read = {j for step in steps for j in step.inputs}
    if read != set(range(len(steps) - 1)):
        raise hdf5.unusable(file, "the output of a step of its network is never used")
    units, size = sum(step.units for step in steps), Path(file.filename).stat().st_size
    if units > FEW_UNITS + UNITS_PER_BYTE * size:
        raise hdf5.unusable(file, f"its network has {units:,} units, too many for a file of {size:,} bytes")
    unknown = [name for name in graph.parameter_names() if name not in named]
    if unknown:
        raise hdf5.unusable(file, f"'/model/shapes' has none for '{unknown[0]}', which its network reads")
    shapes = {name: named[name] for name in graph.parameter_names()}
    # Weights may be left out of a file, so their number is no fault; but then they are not made up either.
    affordable = sum(math.prod(shape) for shape in shapes.values()) <= FEW_WEIGHTS

    parameters = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    few = 2 if graph.indices(FUNCTION) else 1  # a function may count examples: of one, a wrong number may go unseen
    for examples in (0, few) if affordable else (0,):
        signals = [torch.zeros(examples, *graph.input_shape)]
        for step in steps[1:]:
            try:
                signals.append(_try(file, step, [signals[j] for j in step.inputs], parameters))
            except SummaryError:
                if examples or step.kind != FUNCTION or not affordable:
                    raise
                break
        if len(signals) == len(steps) and len(signals[-1]) != examples:
            raise hdf5.unusable(file, f"its network gives {len(signals[-1])} rows of outputs for {examples} examples")


def _check_growth(step: Step, inputs: list[Tensor], parameters: dict[str, Tensor]) -> None:
    """Raise ValueError for a function that makes far more numbers than the step says, before it takes their memory.

    Only what its arguments let one suspect is computed without memory: torch's first such call takes a second.
    """
    if step.kind != FUNCTION:
        return
    given = [value for key in ("arguments", "keywords") for value in _numbers(step.options.get(key))]
    most = GROWTH * (step.units + sum(value.numel() for value in inputs) + FEW_NUMBERS)
    if math.prod(max(1.0, abs(value)) for value in given) ** MOST_DIMENSIONS <= most:
        return
    with torch.device("meta"):
        made = step.apply([value.to("meta") for value in inputs], {k: v.to("meta") for k, v in parameters.items()})
    if made.numel() > most:
        raise ValueError(f"it makes {made.numel():,} numbers")


def _numbers(value: object) -> list[float]:
    """The numbers in JSON values."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [number for part in value for number in _numbers(part)]
    return [float(value)] if isinstance(value, (int, float)) else []


def _try(file: h5py.File, step: Step, inputs: list[Tensor], parameters: dict[str, Tensor]) -> Tensor:
    """The output of a step, the options of which the file made up.  Raises SummaryError where it does not fit."""
    try:
        with torch.no_grad():
            _check_growth(step, inputs, parameters)
            output = step.apply(inputs, parameters)
    except MISFIT as error:
        raise hdf5.unusable(
            file, f"step '{step.name}' of its network does not run ({hdf5.first_line(error)})"
        ) from error
    try:
        shape = step.shape_of(output) if isinstance(output, Tensor) else type(output).__name__
    except MISFIT as error:
        raise hdf5.unusable(file, f"step '{step.name}' of its network has no shape ({error})") from error
    if shape != step.shape:
        raise hdf5.unusable(file, f"step '{step.name}' of its network gives shape {shape}, not {step.shape}")
    return output
