"""Calibration of distances within a run of `summarize`, on the first sample, in the form that `fsd` takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fsdtool.fitting.passes import Pass, Sample, Seen
from fsdtool.laftr.distance_calibration import (
    DistanceCalibration,
    calibrate_anchors,
    calibrate_simulation,
    calibration_examples,
)
from fsdtool.laftr.distance_forms import default_samples, on_pseudo_samples
from fsdtool.mislabel.label_evidence import LabelEvidence
from fsdtool.mislabel.noise.layer_weights import combination, weighted
from fsdtool.mislabel.regression.target_residuals import TargetEvidence
from fsdtool.network.graph import Parameters
from fsdtool.statistics.mixture import Assignment

SIMULATED, SIMULATED_EACH = 2048, 64  # pseudo-samples, in all and at least of each component


def likely_labels(judged: LabelEvidence | TargetEvidence) -> Tensor | None:
    """(N,) int64: the label for which the layers together speak most; None for a regression."""
    if not isinstance(judged, LabelEvidence) or judged.candidates.shape[1] < 2:
        return None
    values = judged.evidence.numpy()
    best = torch.from_numpy(weighted(values, combination(values)[0])).argmax(1, keepdim=True)
    return judged.candidates.gather(1, best)[:, 0].long()


def calibrate_distance(
    run: Pass, sample: Sample, seen: Seen, assignment: Assignment, likely: Tensor | None
) -> DistanceCalibration:
    """Of distances on anchors, on a few examples of the first sample; without anchors of simulated ones, on all of it.

    The exact mean over heavy-tailed data needs many examples, and pseudo-samples stand for all data, not for those few.
    likely: (N,) labels that may be right where the given ones are wrong.
    """
    graph, reference, statistics = run.graph, run.parameters, seen.statistics
    few = sample if seen.anchors is None else run.few_of(sample, calibration_examples(len(run.data)))
    labels = None if likely is None else likely[few.rows].to(run.device)
    of = (graph, reference, few.signal, few.targets, labels, run.data.task, run.seed, run.batch_size)
    if seen.anchors is not None:
        return calibrate_anchors(*of, statistics=statistics, sample=run.anchors_of(few, assignment, seen))
    samples = min(default_samples(graph), max(SIMULATED, SIMULATED_EACH * len(statistics.names)))

    def estimate(others: Sequence[Parameters], metrics: Sequence[str]) -> dict[str, list[float]]:
        found = on_pseudo_samples(
            graph, reference, others, statistics, metrics, samples=samples, seed=run.seed, device=run.device
        )
        return {metric: [one.distance for one in each] for metric, each in found.items()}

    return calibrate_simulation(*of, estimate=estimate)
