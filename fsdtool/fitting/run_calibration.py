"""Calibration of distances within a run of `summarize`, on the first sample, in the form that `fsd` takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fsdtool.fitting.passes import Seen
from fsdtool.fitting.plan import Plan
from fsdtool.laftr.distance_calibration import (
    DistanceCalibration,
    calibrate_anchors,
    calibrate_simulation,
    calibration_examples,
    no_estimate,
)
from fsdtool.laftr.distance_forms import default_samples, on_pseudo_samples
from fsdtool.mislabel.label_evidence import LabelEvidence
from fsdtool.mislabel.multilabel.label_residuals import LabelResiduals
from fsdtool.mislabel.noise.layer_weights import combination, weighted
from fsdtool.mislabel.regression.target_residuals import TargetEvidence
from fsdtool.network.graph import Parameters
from fsdtool.statistics.anchors import AnchorPlan, AnchorRows, Anchors, stored
from fsdtool.statistics.merging import BatchView
from fsdtool.statistics.sample import Sample

SIMULATED, SIMULATED_EACH = 2048, 64  # pseudo-samples, in all and at least of each component


def likely_labels(judged: LabelEvidence | LabelResiduals | TargetEvidence | None) -> Tensor | None:
    """(N,) int64: the class for which the layers together speak most; None without classes."""
    if not isinstance(judged, LabelEvidence) or judged.candidates.shape[1] < 2:
        return None
    values = judged.evidence.numpy()
    best = torch.from_numpy(weighted(values, combination(values)[0])).argmax(1, keepdim=True)
    return judged.candidates.gather(1, best)[:, 0].long()


def calibrate_distance(plan: Plan, sample: Sample, seen: Seen, likely: Tensor | None) -> DistanceCalibration:
    """Of distances on anchors, on a few examples of the first sample; without anchors of simulated ones, on all of it.

    The exact mean over heavy-tailed data needs many examples, and pseudo-samples stand for all data, not for those few.
    likely: (N,) labels that may be right where the given ones are wrong.
    """
    statistics, seed = seen.statistics, plan.seed
    few = sample if seen.anchors is None else sample.evenly(calibration_examples(len(seen.losses)))
    labels = None if likely is None else likely[few.rows].to(few.device)
    if seen.anchors is None and not statistics.drawn:
        return no_estimate(tuple(few.task.metrics))
    if seen.anchors is not None:
        anchors = anchors_of(few, plan, seen, seen.anchors.basis)
        return calibrate_anchors(few, labels, statistics=statistics, anchors=anchors, seed=seed)
    samples = min(default_samples(few.graph), max(SIMULATED, SIMULATED_EACH * len(statistics.names)))

    def estimate(others: Sequence[Parameters], metrics: Sequence[str]) -> dict[str, list[float]]:
        found = on_pseudo_samples(
            few.graph, few.parameters, others, statistics, metrics, samples=samples, seed=seed, device=few.device
        )
        return {metric: [one.distance for one in each] for metric, each in found.items()}

    return calibrate_simulation(few, labels, estimate=estimate, seed=seed)


def anchors_of(few: Sample, plan: Plan, seen: Seen, basis: Tensor | None) -> Anchors:
    """What the file would keep of these examples as anchors in the `basis` (n, r), to its rounding."""
    found = AnchorRows(AnchorPlan.of(len(few), len(few), basis, few.vectors), few.graph.outputs)

    def view(rows: slice) -> BatchView:
        part = few[rows]
        with torch.no_grad():
            logits = few.graph.run(few.parameters, part.inputs)
        component = plan.assignment.of(few.graph, few.parameters, part.inputs, part.targets)
        return BatchView(rows, part.inputs, part.inputs, part.targets, logits, component)

    for batch in few.batch_size.parts(len(few), view):
        found.update(batch)
    anchors = found.finalize(seen.present, seen.statistics.input)
    if basis is None:
        return anchors
    inputs, scale = stored(anchors.inputs)
    return replace(anchors, inputs=inputs.float() * scale)
