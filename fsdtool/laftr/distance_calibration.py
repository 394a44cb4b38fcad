"""How far off a summary's distances are: measured on the first sample, while the data is at hand.

A dozen changes of the weights, each measured exactly on the sample and from what the summary keeps: noise of three
sizes, rounding, pruning, and steps of gradient descent on part of the sample as it is labelled, as it may be rightly
labelled, and on permuted labels.  With z = log(exact / estimate) over the changes,
    correction = exp(mean z)     where the ratios agree, else 1
    error = the root mean square of z, or, corrected, of its spread and a third of the correction
for each metric.  The relative error to expect of a distance d with standard error s is sqrt(error^2 + (s / d)^2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fsdtool.laftr.form_choice import EXAMPLES, NONE, SAMPLED
from fsdtool.laftr.metrics import measure
from fsdtool.network.graph import Parameters
from fsdtool.statistics.anchors import AnchoredOutputs, Anchors
from fsdtool.statistics.component_laws import Statistics
from fsdtool.statistics.distance_error import UNKNOWN, DistanceCalibration
from fsdtool.statistics.sample import Sample

MOST_EXAMPLES, SHARE = 1024, 0.05  # measured on: at most so many, and at most this share of the data
FEWEST_EXAMPLES = 128
FEWEST_CHANGES = 3  # that could be compared
LEAST_CORRECTION = 0.1  # mean log ratio from which on distances are corrected
# Changes of other kinds than those measured are off by more.  Of the checkpoints of another CIFAR-10N case (rows 4,000
# on, labels `random1`) eight of ten lay within twice the error with 1.25; nine of ten need 1.7.
UNSEEN = 1.7
DOUBTFUL = 0.25  # relative error from which on a distance is doubtful
STEP, STEPS = 0.015, 4  # of gradient descent: the share of each weight's norm that a step changes


def calibration_examples(examples: int) -> int:
    """How many examples of so many are measured on."""
    return min(MOST_EXAMPLES, max(int(SHARE * examples), FEWEST_EXAMPLES))


def calibrate_anchors(
    examples: Sample, likely: Tensor | None, *, statistics: Statistics, anchors: Anchors, seed: int
) -> DistanceCalibration:
    """The error of distances on anchors, of which `anchors` are those of the `examples`.

    likely: (m,) int64 labels that may be right where the given ones are wrong (None: unknown).
    """
    task = examples.task
    names = tuple(task.metrics)
    if anchors.basis is None:
        return DistanceCalibration(EXAMPLES, 0, 0, dict.fromkeys(names, 1.0), dict.fromkeys(names, 0.0))
    graph, reference = examples.graph, examples.parameters
    outputs = AnchoredOutputs(graph, reference, statistics, anchors, task=task, device=examples.device)
    batches = list(outputs.batches())

    def estimate(others: Sequence[Parameters]) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {name: [] for name in names}
        for other in others:
            with torch.no_grad():
                moved = torch.cat([outputs.other(other, *batch[1:]) for batch in batches])
            for name in names:
                found[name].append(float(measure(name, outputs.anchors.outputs, moved, task).mean()))
        return found

    return _calibrate(EXAMPLES, examples, likely, seed, estimate)


def no_estimate(metrics: Sequence[str]) -> DistanceCalibration:
    """Of a summary that neither keeps examples nor can simulate any."""
    return DistanceCalibration(NONE, 0, 0, dict.fromkeys(metrics, 1.0), dict.fromkeys(metrics, UNKNOWN))


def calibrate_simulation(
    examples: Sample,
    likely: Tensor | None,
    *,
    estimate: Callable[[Sequence[Parameters], Sequence[str]], dict[str, list[float]]],
    seed: int,
) -> DistanceCalibration:
    """The error of distances on pseudo-samples; estimate(others, metrics) gives the summary's own, by metric.

    likely: as in `calibrate_anchors`.
    """

    def by_metric(others: Sequence[Parameters]) -> dict[str, list[float]]:
        return estimate(others, tuple(examples.task.metrics))

    return _calibrate(SAMPLED, examples, likely, seed, by_metric)


def _calibrate(
    form: str,
    examples: Sample,
    likely: Tensor | None,
    seed: int,
    estimate: Callable[[Sequence[Parameters]], dict[str, list[float]]],
) -> DistanceCalibration:
    """estimate(others) gives by metric what the summary says of each."""
    others = list(changes(examples, likely, seed))
    exact: dict[str, list[float]] = {name: [] for name in examples.task.metrics}
    with torch.no_grad():
        before = examples.outputs(examples.parameters)
        for other in others:
            after = examples.outputs(other)
            for name, values in exact.items():
                values.append(float(measure(name, before, after, examples.task).mean()))
    found = estimate(others)
    fitted = {name: _fit(np.asarray(values), np.asarray(found[name])) for name, values in exact.items()}
    correction, error = ({name: pair[i] for name, pair in fitted.items()} for i in (0, 1))
    return DistanceCalibration(form, len(others), len(examples), correction, error)


def _fit(exact: np.ndarray, estimate: np.ndarray) -> tuple[float, float]:
    """Correction and relative error of estimates (changes,)."""
    usable = np.isfinite(exact) & (exact > 0)
    failed = usable & ~(np.isfinite(estimate) & (estimate > 0))
    if usable.sum() < FEWEST_CHANGES or failed.any():
        return 1.0, UNKNOWN
    z = np.log(exact[usable] / estimate[usable])
    mean, spread = float(z.mean()), float(z.std(ddof=1))
    if abs(mean) < LEAST_CORRECTION or abs(mean) < 2 * spread:
        return 1.0, UNSEEN * float(np.sqrt(np.square(z).mean()))
    return math.exp(mean), UNSEEN * math.hypot(spread, mean / 3)


# The changes


def changes(examples: Sample, likely: Tensor | None, seed: int) -> Iterator[dict[str, Tensor]]:
    """Weights of networks that might come after the reference: damaged, or trained on."""
    generator = torch.Generator().manual_seed(seed)
    reference = examples.parameters
    weights = list(replace(examples.graph, frozen=frozenset()).weight_uses())  # other checkpoints may differ in all

    def changed(change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        return {**reference, **{name: change(reference[name]) for name in weights}}

    for size in (0.02, 0.1, 0.3):
        yield changed(partial(_noisy, size=size, generator=generator))
    for bits in (6, 4):
        yield changed(partial(_rounded, bits=bits))
    for share in (0.3, 0.6):
        yield changed(partial(_pruned, share=share))
    part = examples[: (len(examples) + 1) // 2]
    yield from _descent(part, weights)
    order = torch.randperm(len(part), generator=generator).to(part.device)
    yield from _descent(replace(part, targets=part.targets[order]), weights)
    if likely is not None:
        yield from _descent(replace(examples, targets=likely), weights)


def _descent(examples: Sample, weights: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Weights after one and after STEPS steps of gradient descent, each moving a weight by a share of its norm."""
    current = {name: value.detach().clone() for name, value in examples.parameters.items()}
    for step in range(1, STEPS + 1):
        for name in weights:
            current[name].requires_grad_(True)

        def slopes_of(part: Sample, current: dict[str, Tensor] = current) -> tuple[Tensor, ...]:
            total = part.task.loss(part.graph.run(current, part.inputs), part.targets).sum()
            return torch.autograd.grad(total, [current[name] for name in weights])

        slopes = [sum(parts) for parts in zip(*examples.each(slopes_of), strict=True)]
        for name, slope in zip(weights, slopes, strict=True):
            w = current[name].detach()
            current[name] = w - STEP * w.norm() * slope / slope.norm().clamp(min=1e-30)
        if step in (1, STEPS):
            yield dict(current)


def _spread(w: Tensor) -> Tensor:
    return w.std() if w.numel() > 1 else w.abs().sum()


def _noisy(w: Tensor, size: float, generator: torch.Generator) -> Tensor:
    return w + size * _spread(w) * torch.randn(w.shape, generator=generator).to(w)


def _rounded(w: Tensor, bits: int) -> Tensor:
    step = (w.abs().max() / (2 ** (bits - 1) - 1)).clamp(min=1e-30)
    return (w / step).round() * step


def _pruned(w: Tensor, share: float) -> Tensor:
    smallest = w.abs().flatten().sort().values[int(share * (w.numel() - 1))]
    return torch.where(w.abs() > smallest, w, torch.zeros_like(w))
