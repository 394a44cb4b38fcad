"""Curvature measured on the training data: v drawn from the Hessian at each example's own outputs.

The eigenbases come from the first sample, the eigenvalues (fsdtool.curvature.ekfac) from the pass over all the data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fsdtool.curvature.ekfac import BlockCurvature, EigenvalueSums, eigenbases
from fsdtool.curvature.sources import MEASURED
from fsdtool.network.graph import Graph, Parameters
from fsdtool.network.per_example_gradients import LayerIO, blocks, capture
from fsdtool.statistics.merging import BatchView, State, joined, part_of
from fsdtool.statistics.sample import Sample
from fsdtool.tasks.task import Task
from fsdtool.util.memory import undrawn


@dataclass(frozen=True)
class DrawnGradients:
    """Gradients of v^T f for v drawn from the loss's Hessian at each example's own outputs."""

    graph: Graph
    parameters: Parameters
    task: Task
    generator: torch.Generator

    def __call__(self, signal: Tensor) -> dict[int, LayerIO]:
        """What each weight sees of them, for inputs (batch, *input_shape) of the graph."""
        return capture(self.graph, self.parameters, signal, self.task.curvature_draw(self.generator))[1]


def measured_sums(sample: Sample, draw: DrawnGradients, numbers: int, seed: int) -> list[EigenvalueSums]:
    """The `numbers` best directions of the sample's gradients, with the eigenvalues on that sample.

    Blocks that have none are not among them.
    """

    def batches() -> Iterator[tuple[dict[int, LayerIO], float]]:
        compute = undrawn(draw.generator, lambda rows: (draw(sample[rows].inputs), 1.0))
        return sample.batch_size.parts(len(sample), compute)

    found = blocks(sample.graph, sample.parameters)
    sums = eigenbases(found, batches(), numbers=numbers, seed=seed, device=sample.device)
    sums = [block_sums for block_sums in sums if block_sums.sum.numel()]
    for uses, weight in batches():
        for block_sums in sums:
            block_sums.update(uses, weight)
    return sums


class MeasuredEigenvalues:
    """Accumulates the eigenvalues of every weight over the data, in directions that are given."""

    def __init__(self, directions: Sequence[EigenvalueSums], draw: DrawnGradients):
        """directions: sums of any content, whose directions alone are taken."""
        self.draw, self.blocks = draw, {sums.block.weight: sums.empty() for sums in directions}

    @contextmanager
    def whole_or_nothing(self) -> Iterator[None]:
        """Around a batch: when it fails on the way, the sums are as they were before it."""
        with ExitStack() as stack:
            for sums in self.blocks.values():
                stack.enter_context(sums.whole_or_nothing())
            yield

    def update(self, batch: BatchView) -> None:
        """Add a gradient drawn of each example of a batch."""
        uses = self.draw(batch.signal)
        for sums in self.blocks.values():
            sums.update(uses)

    def merge(self, other: MeasuredEigenvalues) -> None:
        """Add the sums over other examples, in the same directions."""
        for weight, sums in self.blocks.items():
            sums.merge(other.blocks[weight])

    def state(self) -> State:
        """The sums of every weight, as float64 arrays."""
        return joined({weight: sums.state() for weight, sums in self.blocks.items()})

    def from_state(self, state: Mapping[str, np.ndarray]) -> MeasuredEigenvalues:
        """These sums, empty so far, as they were when `state` was asked for; the same object."""
        for weight, sums in self.blocks.items():
            sums.from_state(part_of(state, weight))
        return self

    def finalize(self) -> list[BlockCurvature]:
        """The curvature of every weight, in the order of the network."""
        return [sums.finalize(MEASURED) for sums in self.blocks.values()]
