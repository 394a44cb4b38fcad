"""The curvature in whose directions gradients are recorded, fixed on the first sample, and what records lose by it."""

from __future__ import annotations

from fsdtool.curvature.ekfac import BlockCurvature, EigenvalueSums, simulated_sums
from fsdtool.curvature.sources import MEASURED, SIMULATED
from fsdtool.fitting.influence_calibration import calibrate_influence
from fsdtool.fitting.passes import Pass, Sample
from fsdtool.influence.gradient_records import numbers_within
from fsdtool.network.per_example_gradients import blocks
from fsdtool.statistics.collector import StatisticsSums
from fsdtool.summary.catalogue import InfluenceCalibration


def fix_curvature(
    run: Pass,
    sample: Sample,
    sums_of_sample: StatisticsSums,
    curvature: str,
    records: bool,
    record_bytes: int,
) -> tuple[list[BlockCurvature], list[EigenvalueSums] | None, InfluenceCalibration | None]:
    """The curvature of the records, the sums of a measured one (else None), and how far the records are off.

    sums_of_sample: empty, for the statistics of the first sample.  curvature: 'simulated' or 'measured'.  records:
    whether there will be any; without them a simulated curvature is not needed, and nothing is calibrated.
    """
    if not records and curvature != MEASURED:
        return [], None, None
    numbers = numbers_within(record_bytes, len(blocks(run.graph, run.parameters)))
    if curvature == MEASURED:
        sums = run.measured_bases(sample, numbers)
        found = exact = [block_sums.finalize(MEASURED) for block_sums in sums]  # for the form of the records alone
        for block_sums in sums:
            block_sums.restart()
    else:
        early = run.sample_statistics(sample, sums_of_sample)
        sums = simulated_sums(run.graph, run.parameters, early, seed=run.seed, numbers=numbers, device=run.device)
        found = [block_sums.finalize(SIMULATED) for block_sums in sums]
        exact = [block_sums.complete(SIMULATED) for block_sums in sums]
    calibrated = None
    if records:
        calibrated = calibrate_influence(
            run.graph, run.parameters, run.data.task, sample.signal, sample.targets, found, exact, run.batch_size
        )
    return found, sums if curvature == MEASURED else None, calibrated
