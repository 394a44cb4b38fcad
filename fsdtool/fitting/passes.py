"""The one pass over the data: every batch goes through the network once, and every accumulator takes its part of it.

The reader brings the batches, the plan says what is accumulated, and what becomes of the data is in the accumulators:
    measured     eigenvalues of a curvature that is measured on the data
    features     what layers made of each example, from which evidence on labels is drawn
    statistics   the mixture: inputs, gates and outputs of each component
    anchors      examples that are kept to measure distances on
    records      the factors of each example's gradient, in the file
    outputs      target, outputs and loss of each example
Two passes of one plan over different examples merge accumulator by accumulator.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fsdtool.curvature.ekfac import BlockCurvature
from fsdtool.curvature.measured import DrawnGradients, MeasuredEigenvalues
from fsdtool.data.source import Batch, Fingerprint
from fsdtool.fitting.finite import check_outputs
from fsdtool.fitting.plan import Plan
from fsdtool.fitting.reader import Reader
from fsdtool.fitting.recording import EvidenceFeatures, ExampleOutputs, GradientRecords
from fsdtool.mislabel.earlier_checkpoints import EarlierCheckpoint
from fsdtool.mislabel.features import FeatureStore
from fsdtool.network.graph import Step
from fsdtool.network.traced import Network
from fsdtool.statistics.anchors import AnchorRows, Anchors
from fsdtool.statistics.component_laws import Statistics
from fsdtool.statistics.merging import BatchView, PassAccumulator
from fsdtool.summary.writer import Writer


@dataclass(frozen=True)
class Seen:
    """What the pass leaves behind, beside the records in the file and the features in their store.

    present (components of the assignment,) bool: which have examples.  targets (N,) int64 or (N, O) float32, logits
    (N, O) and losses (N,) float32.  curvature: of the records, or measured; empty where there is none.
    """

    statistics: Statistics
    present: Tensor
    anchors: Anchors | None
    targets: Tensor
    logits: Tensor
    losses: Tensor
    curvature: Sequence[BlockCurvature]
    fingerprint: str


class Pass:
    """One pass under a plan.  store and writer take the features and the gradient records."""

    def __init__(
        self,
        network: Network,
        reader: Reader,
        plan: Plan,
        store: FeatureStore,
        writer: Writer,
        earlier: Sequence[EarlierCheckpoint] = (),
    ):
        graph, data = network.graph, reader.data
        self.network, self.reader, self.plan = network, reader, plan
        self.features = EvidenceFeatures(network, plan, earlier, store, data.ids)
        self.statistics = plan.sums(graph, data.task, reader.device)
        directions = [c.to(reader.device) for c in plan.directions]
        self.records = GradientRecords(network, data.task, writer, directions, len(data))
        self.outputs = ExampleOutputs(data.task, graph.outputs, data.ids)
        self.anchors = None if plan.anchors is None else AnchorRows(plan.anchors, graph.outputs)
        self.measured = None
        if plan.measured:
            draw = DrawnGradients(graph, network.parameters, data.task, reader.generator)
            self.measured = MeasuredEigenvalues(plan.measured, draw)
        self.fingerprint = Fingerprint(data.ids)

    @property
    def accumulators(self) -> dict[str, PassAccumulator]:
        """All that there are, by name, in the order in which they take a batch."""
        found: dict[str, PassAccumulator | None] = {
            "measured": self.measured,
            "features": self.features,
            "statistics": self.statistics,
            "anchors": self.anchors,
            "records": self.records,
            "outputs": self.outputs,
        }
        return {name: accumulator for name, accumulator in found.items() if accumulator is not None}

    def run(self, rows: np.ndarray | None = None) -> None:
        """Add all examples, or consecutive `rows` (n,) of a part."""
        for batch in self.reader.each("summarizing", self._add, rows):
            self.fingerprint.update(batch)  # here, where a batch comes once: `_add` may fail and come again in halves

    def finalize(self) -> Seen:
        """What was seen."""
        present, statistics = (self.statistics.inputs.count > 0).cpu(), self.statistics.finalize()
        anchors = None if self.anchors is None else self.anchors.finalize(present, statistics.input)
        curvature = self.plan.directions if self.measured is None else self.measured.finalize()
        return Seen(
            statistics=statistics,
            present=present,
            anchors=anchors,
            **self.outputs.finalize(),
            curvature=curvature,
            fingerprint=self.fingerprint.hexdigest(),
        )

    def _add(self, batch: Batch, x: Tensor, y: Tensor) -> Batch:
        accumulators = self.accumulators.values()
        with ExitStack() as stack:
            for accumulator in accumulators:
                stack.enter_context(accumulator.whole_or_nothing())
            view = self._view(batch, x, y)
            for accumulator in accumulators:
                accumulator.update(view)
        return batch

    def _view(self, batch: Batch, x: Tensor, y: Tensor) -> BatchView:
        """Run the network on a batch; statistics of gates, features and gradient factors are taken on the way."""
        rows = slice(int(batch.index[0]), int(batch.index[-1]) + 1)
        signal = self.features.signal(x, rows)
        self.statistics.start(y)
        logits = self.records.run(signal, y, rows, self._observe)
        ids = self.reader.data.ids[batch.index.numpy()]
        check_outputs(logits, ids, self.network.graph, self.network.parameters, signal)
        return BatchView(rows, x, signal, y, logits, self.statistics.assign())

    def _observe(self, step: Step, inputs: list[Tensor], output: Tensor) -> None:
        self.statistics.see(step, inputs)  # activations alone
        self.features.see(step, inputs, output)
