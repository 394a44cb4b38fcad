"""A network as an ordered list of steps, each affine, linear, an activation or a maximum.

The steps are plain data (names, numbers, parameter names), so a summary file can hold them and run them
without the user's code.  What a step does is said by its operation (fsdtool.network.operations); the graph runs them in
order and knows none by name.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fsdtool.errors import FsdtoolError
from fsdtool.network import operations
from fsdtool.network.operations.base import ACTIVATION, AFFINE, INPUT, Gated, Options, Parameters, Step
from fsdtool.network.operations.weighted import Parametric, Weighted
from fsdtool.util.fields import is_whole

GateRule = Callable[[Step, Tensor], Tensor]
Observer = Callable[[Step, list[Tensor], Tensor], Tensor | None]

LARGEST_SHAPE = 2**48  # scalars of a signal, far beyond any


@dataclass(frozen=True)
class Graph:
    """The steps of a network in order: step 0 is the input, the last gives the logits (batch, O).

    frozen: names of parameters that training left alone, and of which influence and curvature are not.
    """

    steps: tuple[Step, ...]
    frozen: frozenset[str] = frozenset()

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.steps[0].shape

    @property
    def outputs(self) -> int:
        """Number of outputs O (classes, or regression targets)."""
        return self.steps[-1].shape[0]

    def indices(self, *kinds: str) -> list[int]:
        """Positions of the steps of these kinds."""
        return [i for i, step in enumerate(self.steps) if step.kind in kinds]

    def embeddings(self) -> list[int]:
        """Positions of the steps that look up vectors of each example's whole numbers."""
        names = [(i, str(step.options.get("function", step.operation))) for i, step in enumerate(self.steps)]
        found = [i for i, name in names if name.rpartition(".")[2] == "embedding"]
        return [i for i in found if self.steps[i].options.get("result", ()) is not None]

    def weight_uses(self) -> dict[str, tuple[list[int], str | None]]:
        """Each trained weight of a weighted step, in order of first use: its steps, and the trained bias they share."""
        uses: dict[str, list[int]] = {}
        for i, step in enumerate(self.steps):
            if isinstance(step.definition, Weighted) and step.parameters["weight"] not in self.frozen:
                uses.setdefault(step.parameters["weight"], []).append(i)
        biases = {weight: {self.steps[i].parameters.get("bias") for i in steps} for weight, steps in uses.items()}
        shared = {weight: found.pop() if len(found) == 1 else None for weight, found in biases.items()}
        return {w: (steps, None if shared[w] in self.frozen else shared[w]) for w, steps in uses.items()}

    def vector_uses(self) -> dict[str, tuple[int, ...]]:
        """Each trained parameter whose gradients are vectors, in order of first use, and its steps.

        Not one of weighted steps' weights and the biases that go with them, nor one that a step uses in another way.
        """
        matrices = self.weight_uses()
        others = {name for weight, (_, bias) in matrices.items() for name in (weight, bias)} | self.frozen
        uses: dict[str, list[int]] = {}
        for i, step in enumerate(self.steps):
            vectors = step.definition.vector_roles(step) if isinstance(step.definition, Parametric) else ()
            for role, name in step.parameters.items():
                if role in vectors:
                    uses.setdefault(name, []).append(i)
                else:
                    others.add(name)
        return {name: tuple(dict.fromkeys(steps)) for name, steps in uses.items() if name not in others}

    def parameter_names(self) -> list[str]:
        """Every parameter and buffer that a step reads, in order of first use."""
        return list(dict.fromkeys(name for step in self.steps for name in step.parameters.values()))

    def run(
        self,
        parameters: Parameters,
        x: Tensor,
        *,
        gate: GateRule | None = None,
        observe: Observer | None = None,
    ) -> Tensor:
        """Logits (batch, O) of inputs x (batch, *input_shape).

        `gate(step, s)`, when given, stands in for activations and maxima: it returns the step's output for
        the incoming signal s.  `observe(step, inputs, output)` sees every step as it runs, and replaces the
        output by what it returns unless that is None.

        Raises FsdtoolError for whole numbers that a step has no entry for.
        """
        last_use = self._last_use()
        values: dict[int, Tensor] = {}
        for i, step in enumerate(self.steps):
            inputs = [values[j] for j in step.inputs]
            if step.kind == INPUT:
                # On CPUs this makes convolutions over few channels and max pooling several times faster.
                output = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
            elif gate is not None and isinstance(step.definition, Gated):
                output = gate(step, inputs[0])
            else:
                output = _applied(step, inputs, parameters)
            if x.dtype == torch.float64 and output.dtype == torch.float32:  # of a constant, or of zeros that are made
                output = output.double()
            if observe is not None:
                replaced = observe(step, inputs, output)
                output = output if replaced is None else replaced
            values[i] = output
            for j in step.inputs:
                if last_use[j] == i:
                    values.pop(j, None)
        return values[len(self.steps) - 1]

    def _last_use(self) -> dict[int, int]:
        return {j: i for i, step in enumerate(self.steps) for j in step.inputs}

    def channels_last(self, index: int) -> bool:
        """Whether step `index` has its channels last: it follows a Linear, not a convolution."""
        while index:
            step = self.steps[index]
            if step.definition.channels_last is not None:
                return step.definition.channels_last
            index = step.inputs[0]
        return len(self.input_shape) == 1

    def is_chain(self) -> bool:
        """Whether the net is fully connected: vectors through affine maps and pointwise steps, one after the other."""
        return all(
            (step.kind in (INPUT, ACTIVATION) or step.definition.has_vector_map) and (i == 0 or step.inputs == (i - 1,))
            for i, step in enumerate(self.steps)
        ) and all(len(self.steps[i].shape) == 1 for i in self.indices(AFFINE, ACTIVATION))

    def to_json(self) -> list[dict[str, Any]]:
        """The steps as JSON values."""
        return [asdict(step) for step in self.steps]

    @classmethod
    def from_json(cls, steps: list[dict[str, Any]]) -> Graph:
        """The inverse of `to_json`.  Raises FsdtoolError when the steps are not a well-formed network."""
        try:
            built = tuple(
                Step(
                    name=str(step["name"]),
                    operation=step["operation"],
                    inputs=tuple(step["inputs"]),
                    options=_tuples(step["options"]),
                    parameters={str(role): str(name) for role, name in step["parameters"].items()},
                    shape=tuple(step["shape"]),
                )
                for step in steps
            )
            known = operations.names()
            well_formed = all(
                step.operation in known
                and all(is_whole(n) and n > 0 for n in step.shape)
                and math.prod(step.shape) <= LARGEST_SHAPE
                and all(is_whole(j) and 0 <= j < i for j in step.inputs)
                and bool(step.inputs) == (i > 0)
                and (step.kind == INPUT) == (i == 0)
                and step.definition.accepts(step.options)
                for i, step in enumerate(built)
            )
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError, zlib.error) as error:
            raise FsdtoolError(
                f"the network in the summary cannot be read ({error!r}); write the summary again"
            ) from error
        if not built or not well_formed or len(built[-1].shape) != 1:
            raise FsdtoolError("the network in the summary is not a well-formed list of steps; write the summary again")
        return cls(built)


def _applied(step: Step, inputs: list[Tensor], parameters: Parameters) -> Tensor:
    """The output of a step.  Raises FsdtoolError for whole numbers that it has no entry for."""
    try:
        return step.apply(inputs, parameters)
    except IndexError as error:
        whole = [x for x in inputs if x.numel() and not x.is_floating_point()]
        found = f" (they are {int(whole[0].min())} to {int(whole[0].max())})" if whole else ""
        rows = [len(parameters[name]) for name in step.parameters.values()]
        known = f", which has {rows[0]:,} entries" if rows else ""
        raise FsdtoolError(
            f"the data hold whole numbers that are out of range for '{step.name}'{known}{found}; encode them as they "
            "were in training"
        ) from error


def is_convolutional(graph: Graph) -> bool:
    """Whether a step applies its weight at each position of a grid."""
    return any(operations.named(step.operation).over_positions for step in graph.steps)


def _tuples(options: Options) -> Options:
    """JSON turns tuples into lists; torch's functions want them back."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
