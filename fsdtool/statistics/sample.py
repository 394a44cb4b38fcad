"""Some training examples held on the device, with the network that they are shown to.

The first sample of a pass is one: it fixes what must be known before the pass, and what the summary gets wrong is
measured on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from fsdtool.network.graph import Graph, Parameters
from fsdtool.tasks.task import Task
from fsdtool.util.memory import BatchSize

T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """m examples: their rows (m,) int64 in the data set, on the CPU, inputs (m, *input_shape) of the graph, targets.

    targets: (m,) int64 or (m, O) float32.  parameters: those of the reference.  batch_size: how many are computed at
    once, shared with the pass.
    """

    graph: Graph
    parameters: Parameters
    task: Task
    rows: Tensor
    inputs: Tensor
    targets: Tensor
    batch_size: BatchSize

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, rows: slice | Tensor) -> Sample:
        """Some of them."""
        on_device, on_cpu = (rows, rows) if isinstance(rows, slice) else (rows.to(self.inputs.device), rows.cpu())
        inputs, targets = self.inputs[on_device], self.targets[on_device]
        return replace(self, rows=self.rows[on_cpu], inputs=inputs, targets=targets)

    @property
    def device(self) -> torch.device:
        return self.inputs.device

    @property
    def vectors(self) -> Tensor:
        """The inputs as vectors (m, n)."""
        return self.inputs.flatten(1)

    def evenly(self, count: int) -> Sample:
        """At most `count` of them, evenly spaced."""
        return self[even_rows(len(self), count)]

    def each(self, compute: Callable[[Sample], T]) -> Iterator[T]:
        """compute(part) batch by batch; one for which memory runs out comes again in halves."""
        return self.batch_size.parts(len(self), lambda rows: compute(self[rows]))

    def outputs(self, parameters: Parameters) -> Tensor:
        """Outputs (m, O) of the graph with these weights."""
        return torch.cat(list(self.each(lambda part: self.graph.run(parameters, part.inputs))))

    def losses(self) -> Tensor:
        """Losses (m,) under the reference."""
        with torch.no_grad():
            return torch.cat(
                list(self.each(lambda p: self.task.loss(self.graph.run(self.parameters, p.inputs), p.targets)))
            )


def even_rows(total: int, count: int) -> Tensor:
    """At most `count` of range(total), evenly spaced: int64, increasing."""
    return torch.linspace(0, total - 1, min(count, total), dtype=torch.float64).round().long().unique()
