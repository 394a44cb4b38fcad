"""What the pass keeps of each example: gradient records, features of evidence, outputs and losses.

They are accumulators of rows (fsdtool.statistics.merging).  Gradient records go to the summary and features to
temporary files while the network runs, since a batch's activations are not held longer than they must be; so these two
take part in the run, and their `update` ends the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fsdtool.curvature.ekfac import BlockCurvature
from fsdtool.fitting.finite import check_features, check_losses
from fsdtool.fitting.plan import Plan
from fsdtool.influence.gradient_records import factors
from fsdtool.mislabel.earlier_checkpoints import EarlierCheckpoint
from fsdtool.mislabel.features import FEATURES, INPUT, FeatureStore, observe, watch
from fsdtool.network.graph import Observer, Step
from fsdtool.network.per_example_gradients import blocks, capture
from fsdtool.network.traced import FULL, Network
from fsdtool.statistics.merging import BatchView, ExampleRows, RowTensors
from fsdtool.summary.writer import Writer
from fsdtool.tasks.task import Task


class GradientRecords(ExampleRows):
    """Writes the factors of each example's gradient in the directions of `curvatures`; without these there are none."""

    def __init__(
        self, network: Network, task: Task, writer: Writer, curvatures: Sequence[BlockCurvature], examples: int
    ):
        super().__init__(examples)
        self.graph, self.parameters, self.task, self.writer = network.graph, network.parameters, task, writer
        found = {block.weight: block for block in blocks(network.graph, network.parameters)}
        self.kept = [(found[c.weight], c, _reserve_factors(writer, c, examples)) for c in curvatures]

    def run(self, signal: Tensor, y: Tensor, rows: slice, observe: Observer) -> Tensor:
        """Logits (batch, O) of a batch, seen by `observe` on the way; its gradient factors go to the file."""
        if not self.kept:
            with torch.no_grad():
                return self.graph.run(self.parameters, signal, observe=observe)
        gradient_of = self.task.loss_gradient(y)
        logits, uses = capture(self.graph, self.parameters, signal, gradient_of, observe=observe)
        for block, c, datasets in self.kept:
            batch = factors(block, c, uses)
            for dataset, values in zip(datasets.values(), (batch.output, batch.input, batch.scale), strict=True):
                dataset[rows] = values.cpu().numpy()
        self.writer.check()
        return logits

    def update(self, batch: BatchView) -> None:
        """End a batch that `run` has written."""
        self.seen[batch.rows] = True

    def arrays(self) -> Mapping[str, Any]:
        """The datasets of the file, by weight and side: 'WEIGHT/output', 'WEIGHT/input', 'WEIGHT/scale'."""
        return {f"{c.weight}/{name}": dataset for _, c, found in self.kept for name, dataset in found.items()}

    def write(self, name: str, rows: slice, values: np.ndarray) -> None:
        """The rows of one dataset."""
        self.arrays()[name][rows] = values
        self.writer.check()

    def finalize(self) -> None:
        """Nothing is left to do: the file has them."""


def _reserve_factors(writer: Writer, c: BlockCurvature, examples: int) -> dict[str, Any]:
    name = f"records/gradients/{c.weight}"
    ks, ka = c.eigenvalues.shape
    output, inputs = "unit vector along U_S^T b (N, ks)", "unit vector along U_A^T [a; 1] (N, ka)"
    return {
        "output": writer.reserve(f"{name}/output", (examples, ks), "float16", output, compressed=False),
        "input": writer.reserve(f"{name}/input", (examples, ka), "float16", inputs, compressed=False),
        "scale": writer.reserve(
            f"{name}/scale", (examples,), "float32", "length of the projected gradient", "loss per weight"
        ),
    }


class EvidenceFeatures(ExampleRows):
    """Features of the layers that give evidence, of the network and of earlier checkpoints, kept in a store.

    ids (N,): of the data, for what is not finite.
    """

    def __init__(
        self, network: Network, plan: Plan, earlier: Sequence[EarlierCheckpoint], store: FeatureStore, ids: np.ndarray
    ):
        super().__init__(len(ids))
        self.network, self.earlier, self.store, self.ids, self.basis = network, earlier, store, ids, plan.basis
        self.numbers = plan.numbers
        self.watched, self.watched_before = dict(plan.watched), dict(plan.watched_before)
        self._rows = slice(0)
        self._observe = observe(self.watched, self._keep)

    def signal(self, x: Tensor, rows: slice) -> Tensor:
        """What the graph takes as input for x (batch, ...), the first of the features on these rows."""
        self._rows = rows
        signal = self.network.signal(x, watch(self.watched, self._keep) if self.watched else None)
        if not self.numbers:
            return signal
        flat = signal.flatten(1)
        features = flat if self.basis is None else flat @ self.basis.to(flat)
        self.store.put(INPUT if self.network.mode == FULL else FEATURES, rows, features)
        return signal

    def see(self, step: Step, inputs: list[Tensor], output: Tensor) -> None:
        """Keep the features of an activation step as the graph runs."""
        self._observe(step, inputs, output)

    def update(self, batch: BatchView) -> None:
        """Let the earlier checkpoints see a batch, and end it."""
        for other in self.earlier:
            other.see(batch.x, self.watched_before, self._keep)
        self.seen[batch.rows] = True

    def arrays(self) -> Mapping[str, Any]:
        """The features (N, D) float32 of each layer."""
        return {layer: self.store.get(layer) for layer in self.store.layers}

    def write(self, name: str, rows: slice, values: np.ndarray) -> None:
        """The rows of one layer, narrowed before."""
        self.store.put(name, rows, torch.from_numpy(values))

    def finalize(self) -> FeatureStore:
        """Where the features are."""
        return self.store

    def _keep(self, layer: str, features: Tensor) -> None:
        check_features(layer, features, self.ids[self._rows])
        self.store.put(layer, self._rows, features)


class ExampleOutputs(RowTensors):
    """Target, outputs and loss of each example: targets (N,) int64 or (N, O) float32, logits (N, O), losses (N,)."""

    def __init__(self, task: Task, outputs: int, ids: np.ndarray):
        target = torch.empty(0, dtype=torch.int64) if task.has_classes else torch.empty(0, outputs)
        super().__init__(len(ids), {"targets": target, "logits": torch.empty(0, outputs), "losses": torch.empty(0)})
        self.task, self.ids = task, ids

    def update(self, batch: BatchView) -> None:
        """Add a batch.  Raises FsdtoolError for a loss that is not finite."""
        losses = self.task.loss(batch.logits, batch.targets)
        self.put(batch.rows, targets=batch.targets, logits=batch.logits, losses=losses)
        check_losses(self.values["losses"][batch.rows], self.values["logits"][batch.rows], self.ids[batch.rows])

    def finalize(self) -> dict[str, Tensor]:
        """Each by its name."""
        return self.values
