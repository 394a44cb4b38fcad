"""The loops over the data: the first sample, and the one pass that accumulates, watches and records.

The first sample fixes what must be known before the pass: the basis of the input covariance, the centres of clusters,
and from the sample's own statistics the curvature in whose bases gradients are recorded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from fsdtool.curvature.ekfac import BlockCurvature, EigenvalueSums, eigenbases
from fsdtool.data.source import Batch, DataSource, Fingerprint
from fsdtool.fitting.budget import StatisticsPlan
from fsdtool.fitting.finite import check_features, check_losses, check_outputs
from fsdtool.fitting.recording import GradientRecords
from fsdtool.mislabel.earlier_checkpoints import EarlierCheckpoint, layers_each
from fsdtool.mislabel.features import FEATURES, INPUT, MOST_LAYERS, FeatureStore, Keep, choose_layers, observe, watch
from fsdtool.network.graph import Observer, Step
from fsdtool.network.per_example_gradients import LayerIO, blocks, capture
from fsdtool.network.trace import FULL, Network
from fsdtool.statistics.accumulators import principal_basis
from fsdtool.statistics.anchors import AnchorRows, Anchors, even_rows, stored
from fsdtool.statistics.collector import StatisticsSums
from fsdtool.statistics.component_laws import Statistics
from fsdtool.statistics.mixture import Assignment, GatePattern, k_means
from fsdtool.summary.writer import Writer
from fsdtool.util.memory import BatchSize, undrawn
from fsdtool.util.progress import Track

log = logging.getLogger("fsdtool")
T = TypeVar("T")

FIRST_SAMPLE = 2048
SAMPLE_UNITS = 2**26  # scalars of input held for the first sample
BATCH_UNITS = 2**27  # scalars of all steps held per batch when the batch size is left to the tool


@dataclass(frozen=True)
class Sample:
    """The first sample: the rows it took, what the graph takes as input (m, n), and the targets."""

    rows: Tensor
    signal: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Seen:
    """What the pass leaves behind: statistics, anchors, and per example targets, logits (N, O) and loss (N,)."""

    statistics: Statistics
    present: Tensor  # (components of the assignment,) bool: which have examples
    anchors: Anchors | None
    targets: Tensor
    logits: Tensor
    losses: Tensor
    fingerprint: str


class Pass:
    """The loops over the data: which network, where, in what batches."""

    def __init__(
        self,
        network: Network,
        data: DataSource,
        device: torch.device,
        batch_size: int,
        workers: int,
        seed: int,
        track: Track,
    ):
        self.network, self.data, self.device, self.seed, self.track = network, data, device, seed, track
        self.batch_size, self.workers = BatchSize(batch_size), workers
        self.graph, self.parameters = network.graph, network.parameters
        self.outputs = self.graph.outputs
        self._generator = torch.Generator(device).manual_seed(seed)

    def each(
        self, label: str, compute: Callable[[Batch, Tensor, Tensor], T], rows: np.ndarray | None = None
    ) -> Iterator[T]:
        """compute(batch, x, y) for every batch, or those of `rows`: labels checked, x and y on the device.

        A batch for which memory runs out comes again in halves, so compute must leave nothing behind when it fails.
        """
        rows = np.arange(len(self.data)) if rows is None else rows
        with self.track(label, len(rows)) as advance:
            for batch in self._read(rows):
                self.data.task.check_targets(batch.y, self.data.ids[batch.index.numpy()], self.outputs)

                def part(rows: slice, batch: Batch = batch) -> T:
                    batch = Batch(batch.index[rows], batch.x[rows], batch.y[rows])
                    x, y = (v.to(self.device, non_blocking=True) for v in (batch.x, batch.y))
                    return compute(batch, x, y)

                yield from self.batch_size.parts(len(batch.index), undrawn(self._generator, part))
                advance(len(batch.index))

    def _read(self, rows: np.ndarray) -> Iterator[Batch]:
        """The examples `rows` in batches, smaller ones after memory ran out while reading."""
        done = 0
        while done < len(rows):
            size = self.batch_size.now
            try:
                for batch in self.data.batches(size, workers=self.workers, indices=rows[done:]):
                    yield batch
                    done += len(batch.index)
            except Exception as error:
                if not self.batch_size.halved_after(error, min(size, len(rows) - done)):
                    raise

    def first_sample(self) -> Sample:
        """Up to 2048 examples, evenly spaced over the data; fewer of large inputs."""
        most = min(FIRST_SAMPLE, max(SAMPLE_UNITS // self.graph.steps[0].units, 64), len(self.data))
        rows = torch.linspace(0, len(self.data) - 1, most).round().long().unique()
        parts = self.each("first sample", lambda _, x, y: (self.network.signal(x).flatten(1), y), rows.numpy())
        signals, targets = zip(*parts, strict=True)
        return Sample(rows, torch.cat(signals), torch.cat(targets))

    def choose_components(self, sample: Sample, plan: StatisticsPlan) -> Assignment:
        """The mixture."""
        if plan.kind == "class":
            names = self.data.class_names or [str(c) for c in range(self.outputs)]
            return Assignment(plan.kind, tuple(names))
        if plan.kind == "all":
            return Assignment("all", ("all",))
        pattern = GatePattern(self.graph, self.seed)
        parts = self._parts(sample, lambda rows, signal, _: pattern.of(self.graph, self.parameters, signal))
        centres = k_means(torch.cat(list(parts)), plan.count, self.seed)
        return Assignment(plan.kind, tuple(f"cluster {i}" for i in range(len(centres))), pattern, centres)

    def choose_basis(self, sample: Sample, assignment: Assignment, rank: int) -> Tensor | None:
        """The directions in which the input covariance is resolved (None: all)."""
        signal = sample.signal
        groups = sample.targets if assignment.kind == "class" else torch.zeros(len(signal), dtype=torch.int64)
        return principal_basis(signal, groups.to(signal.device), rank, self.seed)

    def sums(self, assignment: Assignment, basis: Tensor | None, plan: StatisticsPlan) -> StatisticsSums:
        """Empty sums of statistics."""
        return StatisticsSums(self.graph, assignment, basis, self.data.task, self.device, sampled=plan.sampled)

    def sample_statistics(self, sample: Sample, sums: StatisticsSums) -> Statistics:
        """Statistics of the first sample alone, for a curvature known before the pass."""

        def see(rows: Tensor, signal: Tensor, targets: Tensor) -> None:
            with sums.whole_or_nothing(), torch.no_grad():
                sums.start(targets)
                logits = self.graph.run(
                    self.parameters, signal, observe=lambda step, inputs, output: sums.see(step, inputs)
                )
                check_outputs(logits, self.data.ids[rows.numpy()], self.graph, self.parameters, signal)
                sums.finish(signal.flatten(1), logits)

        for _ in self._parts(sample, see):
            pass
        return sums.finalize()

    def few_of(self, sample: Sample, count: int) -> Sample:
        """At most `count` examples of the first sample, evenly spaced."""
        rows = even_rows(len(sample.rows), count)
        chosen = rows.to(sample.signal.device)
        return Sample(sample.rows[rows], sample.signal[chosen], sample.targets[chosen])

    def anchors_of(self, sample: Sample, assignment: Assignment, seen: Seen) -> Anchors:
        """What the file would keep of these examples as anchors, to its rounding."""
        assert seen.anchors is not None
        basis = seen.anchors.basis
        found = AnchorRows(len(sample.rows), len(sample.rows), basis, sample.signal, self.outputs)
        done = 0
        for signal, logits, component in self._parts(sample, partial(self._component_of, assignment)):
            found.update(slice(done, done + len(signal)), signal.flatten(1), logits, component)
            done += len(signal)
        anchors = found.finalize(seen.present, seen.statistics.gaussian)
        if basis is None:
            return anchors
        inputs, scale = stored(anchors.inputs)
        return replace(anchors, inputs=inputs.float() * scale)

    def _component_of(
        self, assignment: Assignment, rows: Tensor, signal: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            logits = self.graph.run(self.parameters, signal)
        pattern = assignment.pattern if assignment.needs_pattern else None
        patterns = None if pattern is None else pattern.of(self.graph, self.parameters, signal)
        return signal, logits, assignment.assign(targets, patterns)

    def measured_bases(self, sample: Sample, numbers: int) -> list[EigenvalueSums]:
        """The `numbers` best directions of the first sample's gradients, with eigenvalues on that sample."""
        found = blocks(self.graph, self.parameters)
        sums = eigenbases(found, self._drawn(sample), numbers=numbers, seed=self.seed, device=self.device)
        for uses, weight in self._drawn(sample):
            for block_sums in sums:
                block_sums.update(uses, weight)
        return sums

    def _drawn(self, sample: Sample) -> Iterator[tuple[dict[int, LayerIO], float]]:
        return self._parts(sample, lambda rows, signal, targets: (self.drawn_gradients(signal), 1.0))

    def drawn_gradients(self, signal: Tensor) -> dict[int, LayerIO]:
        """What each weight sees for a gradient drawn from the loss's Hessian at each example's own outputs."""
        draw = self.data.task.curvature_draw(self._generator)
        return capture(self.graph, self.parameters, signal, draw)[1]

    def whole(
        self,
        sums: StatisticsSums,
        store: FeatureStore,
        writer: Writer,
        curvatures: list[BlockCurvature],
        measured: list[EigenvalueSums] | None = None,
        earlier: Sequence[EarlierCheckpoint] = (),
        anchors: AnchorRows | None = None,
    ) -> Seen:
        """The pass: statistics, evidence features, outputs and losses, and the gradient records in `curvatures`.

        measured: sums of eigenvalues to be taken from these examples.  earlier: checkpoints that give evidence too.
        anchors: to be filled.
        """
        gradient_records = GradientRecords(self.graph, self.parameters, self.data, writer, curvatures, self.device)
        watched = self._watched_layers()
        of_earlier = self._watched_layers(layers_each(len(earlier)))
        fingerprint = Fingerprint(self.data.ids)
        logits = torch.empty(len(self.data), self.outputs)
        losses = torch.empty(len(self.data))
        targets: list[Tensor] = []

        def see(batch: Batch, x: Tensor, y: Tensor) -> tuple[Batch, dict[int, LayerIO]]:
            rows = slice(int(batch.index[0]), int(batch.index[-1]) + 1)

            def keep(layer: str, features: Tensor) -> None:
                check_features(layer, features, self.data.ids[rows])
                store.put(layer, rows, features)

            with sums.whole_or_nothing():
                signal = self.network.signal(x, watch(watched, keep) if watched else None)
                self._put_input(store, rows, signal.flatten(1), sums.basis)
                sums.start(y)
                found = gradient_records.run(signal, y, rows, self._observer(sums, watched, keep))
                check_outputs(found, self.data.ids[batch.index.numpy()], self.graph, self.parameters, signal)
                uses = self.drawn_gradients(signal) if measured else {}
                for other in earlier:
                    other.see(x, of_earlier, keep)
                sums.finish(signal.flatten(1), found)
                if anchors is not None:
                    anchors.update(rows, signal.flatten(1), found, sums.component)
                logits[rows], losses[rows] = found.cpu(), self.data.task.loss(found, y).cpu()
                check_losses(losses[rows], logits[rows], self.data.ids[rows])
            return batch, uses

        for batch, uses in self.each("summarizing", see):
            for block_sums in measured or ():  # here, where a batch comes once: `see` may fail and come again in halves
                block_sums.update(uses)
            fingerprint.update(batch)
            targets.append(batch.y)
        present, statistics = (sums.inputs.count > 0).cpu(), sums.finalize()
        anchored = None if anchors is None else anchors.finalize(present, statistics.gaussian)
        return Seen(statistics, present, anchored, torch.cat(targets), logits, losses, fingerprint.hexdigest())

    def _observer(self, sums: StatisticsSums, watched: dict[str, bool], keep: Keep) -> Observer:
        evidence = observe(watched, keep)

        def see(step: Step, inputs: list[Tensor], output: Tensor) -> None:
            if step.kind == "activation":
                sums.see(step, inputs)
                evidence(step, inputs, output)

        return see

    def _parts(self, sample: Sample, compute: Callable[[Tensor, Tensor, Tensor], T]) -> Iterator[T]:
        """compute(rows, signal in the graph's input shape, targets) for the first sample, batch by batch."""

        def part(rows: slice) -> T:
            signal = sample.signal[rows].reshape(-1, *self.graph.input_shape)
            return compute(sample.rows[rows], signal, sample.targets[rows])

        return self.batch_size.parts(len(sample.signal), undrawn(self._generator, part))

    def _put_input(self, store: FeatureStore, rows: slice, flat: Tensor, basis: Tensor | None) -> None:
        features = flat if basis is None else flat @ basis.to(flat)
        store.put(INPUT if self.network.mode == FULL else FEATURES, rows, features)

    def _watched_layers(self, most: int = MOST_LAYERS) -> dict[str, bool]:
        """The layers that give evidence, at most so many, and (in full mode) whether their channels come last."""
        layers = self.network.evidence_layers()
        return {name: layers[name] for name in choose_layers(list(layers), most)}


def auto_batch(network: Network) -> int:
    held = sum(step.units for step in network.graph.steps)
    if network.mode != FULL:  # the graph is one layer, the model around it is not
        held = max(held, 2**22)
    return min(1000, max(8, BATCH_UNITS // held))
