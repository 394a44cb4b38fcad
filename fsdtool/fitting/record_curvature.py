"""The directions in which gradients are recorded, fixed on the first sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fsdtool.curvature.ekfac import BlockCurvature, EigenvalueSums
from fsdtool.curvature.measured import DrawnGradients, measured_sums
from fsdtool.curvature.simulated import simulated_sums
from fsdtool.curvature.sources import MEASURED, SIMULATED
from fsdtool.errors import FsdtoolError
from fsdtool.fitting.finite import check_outputs
from fsdtool.statistics.collector import StatisticsSums
from fsdtool.statistics.component_laws import Statistics
from fsdtool.statistics.merging import BatchView
from fsdtool.statistics.sample import Sample


@dataclass(frozen=True)
class RecordCurvature:
    """Curvature of every weight: `kept` in the directions of the records, `exact` in every direction known.

    measured: the sums whose directions the pass measures the eigenvalues in; none of a simulated curvature.
    """

    kept: Sequence[BlockCurvature]
    exact: Sequence[BlockCurvature]
    measured: Sequence[EigenvalueSums]


def measured_directions(sample: Sample, draw: DrawnGradients, numbers: int, seed: int) -> RecordCurvature:
    """The `numbers` best directions of gradients that are drawn at the sample's own outputs."""
    sums = measured_sums(sample, draw, numbers, seed)
    found = [block_sums.finalize(MEASURED) for block_sums in sums]  # for the form of the records alone
    return RecordCurvature(found, found, sums)


def simulated_directions(
    sample: Sample, empty: StatisticsSums, ids: np.ndarray, numbers: int, seed: int
) -> RecordCurvature:
    """The `numbers` best directions of pseudo-samples of the sample's statistics.

    empty: sums for these statistics.  ids (N,): of all data, for outputs that are not finite.  Raises FsdtoolError
    where the simulated gradients are not finite.
    """
    early = sample_statistics(sample, empty, ids)
    try:
        sums = simulated_sums(sample.graph, sample.parameters, early, seed=seed, numbers=numbers, device=sample.device)
    except FsdtoolError as error:
        raise FsdtoolError(f'{error}, or give `curvature="measured"`, which simulates nothing') from error
    kept, exact = (
        [take(block_sums, SIMULATED) for block_sums in sums]
        for take in (EigenvalueSums.finalize, EigenvalueSums.complete)
    )
    return RecordCurvature(kept, exact, ())


def sample_statistics(sample: Sample, empty: StatisticsSums, ids: np.ndarray) -> Statistics:
    """Statistics of the sample alone, by sums that are empty."""
    graph, parameters = sample.graph, sample.parameters

    def see(part: Sample) -> None:
        with empty.whole_or_nothing(), torch.no_grad():
            empty.start(part.targets)
            logits = graph.run(parameters, part.inputs, observe=lambda step, inputs, output: empty.see(step, inputs))
            check_outputs(logits, ids[part.rows.numpy()], graph, parameters, part.inputs)
            no_rows = slice(0)
            empty.update(BatchView(no_rows, part.inputs, part.inputs, part.targets, logits, empty.assign()))

    for _ in sample.each(see):
        pass
    return empty.finalize()
