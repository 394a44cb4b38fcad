"""The gradient records of the pass, which go to the file batch by batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fsdtool.curvature.ekfac import BlockCurvature
from fsdtool.data.source import DataSource
from fsdtool.influence.gradient_records import factors
from fsdtool.network.graph import Graph, Observer, Parameters
from fsdtool.network.per_example_gradients import blocks, capture
from fsdtool.summary.writer import Writer


class GradientRecords:
    """Writes the factors of each example's gradient in the directions of `curvatures`; without these there are none."""

    def __init__(
        self,
        graph: Graph,
        parameters: Parameters,
        data: DataSource,
        writer: Writer,
        curvatures: list[BlockCurvature],
        device: torch.device,
    ):
        self.graph, self.parameters, self.task, self.writer = graph, parameters, data.task, writer
        found = {block.weight: block for block in blocks(graph, parameters)}
        self.kept = [(found[c.weight], c.to(device), _reserve_factors(writer, c, len(data))) for c in curvatures]

    def run(self, signal: Tensor, y: Tensor, rows: slice, observe: Observer) -> Tensor:
        """Logits of a batch, seen by `observe` on the way; its gradient factors go to the file."""
        if not self.kept:
            with torch.no_grad():
                return self.graph.run(self.parameters, signal, observe=observe)
        gradient_of = self.task.loss_gradient(y)
        logits, uses = capture(self.graph, self.parameters, signal, gradient_of, observe=observe)
        for block, c, datasets in self.kept:
            batch = factors(block, c, uses)
            for dataset, values in zip(datasets, (batch.output, batch.input, batch.scale), strict=True):
                dataset[rows] = values.cpu().numpy()
        self.writer.check()
        return logits


def _reserve_factors(writer: Writer, c: BlockCurvature, examples: int) -> tuple[Any, Any, Any]:
    name = f"records/gradients/{c.weight}"
    ks, ka = c.eigenvalues.shape
    output, inputs = "unit vector along S^T b (N, ks)", "unit vector along A^T [a; 1] (N, ka)"
    return (
        writer.reserve(f"{name}/output", (examples, ks), "float16", output, compressed=False),
        writer.reserve(f"{name}/input", (examples, ka), "float16", inputs, compressed=False),
        writer.reserve(f"{name}/scale", (examples,), "float32", "length of the projected gradient", "loss per weight"),
    )
