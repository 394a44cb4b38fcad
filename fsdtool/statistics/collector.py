"""The statistics of a pass: inputs, gates and outputs of every component, accumulated together.

Per batch: `start` with the labels, `see` at each activation step as the graph runs, `assign` for the component of each
example, `update` with inputs and logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from fsdtool.errors import FsdtoolError
from fsdtool.network.graph import Graph, Step
from fsdtool.statistics.accumulators import CentredMoments, GateMoments, OutputMoments, OutputReservoir, names_present
from fsdtool.statistics.component_laws import Statistics
from fsdtool.statistics.merging import Accumulator, BatchView, State, joined, part_of
from fsdtool.statistics.mixture import Assignment
from fsdtool.statistics.no_inputs import ExampleCounts
from fsdtool.tasks.task import Task


class StatisticsSums:
    """Accumulates the Statistics of one graph over the components of an assignment.

    basis: as in fsdtool.statistics.accumulators.  sampled: numbers that the sample of outputs may hold (None: the
    usual).  numbers: whether the inputs are numbers, which have moments.
    """

    def __init__(
        self,
        graph: Graph,
        assignment: Assignment,
        basis: Tensor | None,
        task: Task,
        device: torch.device | None = None,
        sampled: int | None = None,
        numbers: bool = True,
    ):
        count = len(assignment)
        self.graph, self.assignment, self.basis = graph, assignment, basis
        self.inputs: CentredMoments | ExampleCounts = (
            CentredMoments(count, graph.steps[0].units, basis, device)
            if numbers
            else ExampleCounts(count, graph.steps[0].units, device)
        )
        self.gates = {
            graph.steps[i].name: GateMoments(graph.steps[i], count, device) for i in graph.indices("activation")
        }
        self.outputs = OutputMoments(count, graph.outputs, task, device)
        self.sample = None if task.quadratic else OutputReservoir(count, graph.outputs, sampled)
        self._labels = torch.empty(0)  # of the batch, as are the next three
        self._component: Tensor | None = None
        self._patterns: list[Tensor] = []
        self._pending: list[tuple[str, Tensor]] = []
        self._copies: list[Tensor] = []
        self._copied: Tensor | None = None

    @contextmanager
    def whole_or_nothing(self) -> Iterator[None]:
        """Around a batch: when it fails on the way, the sums are as they were before it.

        Only what the batch will change is copied: the components of its examples, as soon as they are known.  The
        copies' memory is used again from batch to batch, so putting them back needs none.
        """
        sample = None if self.sample is None else self.sample.copy()
        self._copied = torch.empty(0, dtype=torch.int64)
        try:
            yield
        except BaseException:
            if len(self._copied):
                for copy, value in zip(self._copies, self._tensors(), strict=True):
                    value[self._copied] = copy[: len(self._copied)]
            self.sample = sample
            raise
        finally:
            self._copied = None

    def _copy(self, component: Tensor) -> None:
        """Keep the sums of these components, of which nothing has been changed yet."""
        if self._copied is None:
            return
        rows, sums = component.unique(), self._tensors()
        if not self._copies or len(self._copies[0]) < len(rows):
            self._copies = []  # the smaller ones go first
            self._copies = [torch.empty_like(value[: len(rows)]) for value in sums]
        for copy, value in zip(self._copies, sums, strict=True):
            torch.index_select(value, 0, rows, out=copy[: len(rows)])
        self._copied = rows

    def start(self, labels: Tensor) -> None:
        """Begin a batch of examples with these labels (batch,) int64 or targets (batch, O)."""
        self._labels = labels
        self._component = None if self.assignment.kind == "cluster" else self.assignment.assign(labels)
        self._patterns, self._pending = [], []
        if self._component is not None:
            self._copy(self._component)

    def see(self, step: Step, inputs: list[Tensor]) -> None:
        """Take in a step's input; only activation steps count.

        Clusters are known only after the last activation, so until then pre-activations wait.
        """
        if step.kind != "activation":
            return
        s = inputs[0].detach()
        if self._component is None:
            assert self.assignment.pattern is not None  # of clusters, the only ones that wait
            self._patterns.append(self.assignment.pattern.slopes(step, s))
            self._pending.append((step.name, s))
        else:
            self._update(step.name, s, self._component)

    def assign(self) -> Tensor:
        """Component (batch,) int64 of each example of the batch, all activation steps of which were seen."""
        if self._component is None:
            self._component = self.assignment.assign(self._labels, torch.cat(self._patterns, 1))
            self._copy(self._component)
            for name, s in self._pending:
                self._update(name, s, self._component)
        self._patterns, self._pending = [], []
        return self._component

    def update(self, batch: BatchView) -> None:
        """End the batch."""
        self.inputs.update(batch.inputs, batch.component)
        self.outputs.update(batch.logits, batch.component)
        if self.sample is not None:
            self.sample.update(batch.logits, batch.component)

    def merge(self, other: StatisticsSums) -> None:
        """Add the sums over other examples, under the same assignment and basis."""
        theirs = other._parts()
        for name, part in self._parts().items():
            part.merge(theirs[name])

    def state(self) -> State:
        """The state of every part: 'inputs/mean', 'gates/LAYER/sums' and so on."""
        return joined({name: part.state() for name, part in self._parts().items()})

    def from_state(self, state: Mapping[str, np.ndarray]) -> StatisticsSums:
        """These sums, empty so far, as they were when `state` was asked for; the same object."""
        for name, part in self._parts().items():
            part.from_state(part_of(state, name))
        return self

    def finalize(self) -> Statistics:
        """The statistics of the components that have examples, on the CPU.

        Raises FsdtoolError naming the layer whose activations were too large to be added.
        """
        for name, gates in self.gates.items():
            if not bool(torch.isfinite(gates.sums).all()):
                raise FsdtoolError(
                    f"the activations of layer '{name}' are not finite; check the weights and the preprocessing"
                )
        count = self.inputs.count
        return Statistics(
            self.assignment.kind,
            names_present(self.assignment.names, count),
            count[count > 0],
            self.inputs.finalize(),
            {i: self.gates[self.graph.steps[i].name].finalize() for i in self.graph.indices("activation")},
            self.outputs.finalize(),
            None if self.sample is None else self.sample.finalize(),
            self.outputs.task,
        ).to(torch.device("cpu"))

    def _sums(self) -> dict[str, CentredMoments | ExampleCounts | OutputMoments | GateMoments]:
        return {
            "inputs": self.inputs,
            "outputs": self.outputs,
            **{f"gates/{name}": gates for name, gates in self.gates.items()},
        }

    def _parts(self) -> dict[str, Accumulator]:
        found: dict[str, Accumulator] = {**self._sums()}
        return found if self.sample is None else found | {"sample": self.sample}

    def _tensors(self) -> list[Tensor]:
        """Every sum, all changed in place; components are the first axis of each."""
        return [value for part in self._sums().values() for value in part.tensors().values()]

    def _update(self, name: str, s: Tensor, component: Tensor) -> None:
        with torch.no_grad():
            self.gates[name].update(s, component)
