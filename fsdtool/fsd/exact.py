"""The exact distance over given data: the mean of rho(f(x; theta0), f(x; theta1)), every checkpoint on the same inputs.

Of a summary in last layer mode the whole network is run with its code (fsdtool.fsd.last_layer).
"""

from __future__ import annotations

import logging
import math

import torch

from fsdtool.data.repeatability import check_data
from fsdtool.data.source import DataSource
from fsdtool.errors import FsdtoolError
from fsdtool.fsd.weights import ComparedWeights
from fsdtool.laftr.metrics import measure
from fsdtool.network.traced import FULL
from fsdtool.summary.reader import Summary
from fsdtool.util.memory import BatchSize
from fsdtool.util.progress import Track

log = logging.getLogger("fsdtool")


def check_exact(summary: Summary, data: DataSource) -> None:
    """Raise FsdtoolError for data over which the summary's own network cannot be run."""
    if summary.identity.mode != FULL:
        raise FsdtoolError(
            f"'{summary.path}' holds the last layer only, and the exact distance needs the whole network; "
            "give `model` with its code, or leave `data` out"
        )
    expected = tuple(summary.identity.graph.input_shape)
    if tuple(data.input_shape) != expected:
        raise FsdtoolError(
            f"the data '{data.spec}' has inputs of shape {tuple(data.input_shape)}, "
            f"the summary was made from {expected}; give data of the same kind"
        )
    check_data(data)


def exact_distances(
    summary: Summary,
    weights: ComparedWeights,
    metric: str,
    data: DataSource,
    *,
    device: torch.device,
    batch_size: int,
    track: Track,
) -> list[float]:
    """Mean distance of each checkpoint over the data, in the metric's units."""
    graph, totals = summary.identity.graph, [0.0] * len(weights.others)
    with track("exact distance", len(data)) as advance, torch.no_grad():

        def of(rows: slice) -> list[float]:
            x = batch.x[rows].to(device)
            f0 = graph.run(weights.theta0, x)
            return [float(measure(metric, f0, graph.run(other, x), summary.task).sum()) for other in weights.others]

        size = BatchSize(batch_size)
        for batch in data.batches(batch_size):
            for sums in size.parts(len(batch.index), of):
                totals = [total + part for total, part in zip(totals, sums, strict=True)]
            advance(len(batch.index))
    means = [total / len(data) for total in totals]
    if not all(math.isfinite(mean) for mean in means):
        log.warning("an exact distance is not finite: a checkpoint's outputs overflow on this data")
    return means
