"""What is fixed before the pass, from a first sample of the data: the plan that all parts of a pass share.

The mixture with the centres of its clusters, the basis of the input covariance, how statistics are kept, which examples
become anchors, which layers give evidence, and from the sample's own statistics the directions of the curvature in
which gradients are recorded.  Accumulators of the same plan can be merged (fsdtool.statistics.merging).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fsdtool.curvature.ekfac import BlockCurvature, EigenvalueSums
from fsdtool.curvature.measured import DrawnGradients
from fsdtool.curvature.sources import MEASURED, SIMULATED
from fsdtool.errors import FsdtoolError
from fsdtool.fitting.budget import StatisticsPlan, plan_statistics
from fsdtool.fitting.influence_calibration import calibrate_influence
from fsdtool.fitting.reader import Reader
from fsdtool.fitting.record_curvature import RecordCurvature, measured_directions, simulated_directions
from fsdtool.influence.gradient_records import numbers_within
from fsdtool.mislabel.earlier_checkpoints import layers_each
from fsdtool.mislabel.features import MOST_LAYERS, choose_layers
from fsdtool.network.graph import Graph
from fsdtool.network.per_example_gradients import VectorBlock, blocks
from fsdtool.network.traced import Network
from fsdtool.network.whole_inputs import takes_whole_numbers
from fsdtool.statistics.accumulators import principal_basis
from fsdtool.statistics.anchors import ANCHORS_SHARE, AnchorPlan, anchor_count
from fsdtool.statistics.collector import StatisticsSums
from fsdtool.statistics.mixture import Assignment, GatePattern, k_means
from fsdtool.statistics.sample import Sample
from fsdtool.summary.catalogue import InfluenceCalibration
from fsdtool.tasks.task import Task

log = logging.getLogger("fsdtool")

FIRST_SAMPLE = 2048
SAMPLE_UNITS = 2**26  # scalars of input held for the first sample


@dataclass(frozen=True)
class Choices:
    """What the caller asked for that the plan depends on, as in fsdtool.fitting.run.summarize."""

    seed: int = 0
    components: int | None = None
    records: bool = True
    record_bytes: int = 1024
    statistics_budget: int = 32 * 10**6
    curvature: str | None = None
    input_rank: int | None = None


@dataclass(frozen=True)
class Plan:
    """What all parts of a pass share.

    basis (n, r) float64, in which the input covariance is resolved (None: all directions).  anchors: None without
    records.  directions: of the gradient records, one curvature for each weight; none without records.  measured: of a
    curvature that the pass measures, else none.  watched: the layers that give evidence, and whether their channels
    come last; watched_before: those of each earlier checkpoint.  numbers: whether the inputs are numbers, not ids.
    """

    seed: int
    statistics: StatisticsPlan
    assignment: Assignment
    basis: Tensor | None
    anchors: AnchorPlan | None
    directions: Sequence[BlockCurvature]
    measured: Sequence[EigenvalueSums]
    watched: Mapping[str, bool]
    watched_before: Mapping[str, bool]
    numbers: bool = True

    def sums(self, graph: Graph, task: Task, device: torch.device) -> StatisticsSums:
        """Empty sums for the statistics."""
        sampled = self.statistics.sampled
        return StatisticsSums(graph, self.assignment, self.basis, task, device, sampled=sampled, numbers=self.numbers)


def first_sample(reader: Reader, network: Network) -> Sample:
    """Up to 2048 examples, evenly spaced over the data; fewer of large inputs."""
    graph, total = network.graph, len(reader.data)
    most = min(FIRST_SAMPLE, max(SAMPLE_UNITS // graph.steps[0].units, 64), total)
    rows = torch.linspace(0, total - 1, most).round().long().unique()
    parts = reader.each("first sample", lambda _, x, y: (network.signal(x).flatten(1), y), rows.numpy())
    signals, targets = zip(*parts, strict=True)
    inputs = torch.cat(signals).reshape(-1, *graph.input_shape)
    return Sample(graph, network.parameters, reader.data.task, rows, inputs, torch.cat(targets), reader.batch_size)


def make_plan(
    network: Network, reader: Reader, sample: Sample, choices: Choices, earlier: int
) -> tuple[Plan, InfluenceCalibration | None]:
    """The plan, and how far influence from its records is off (None without records).

    earlier: how many earlier checkpoints give evidence too.
    """
    graph, data, budget = network.graph, reader.data, choices.statistics_budget
    of_statistics = budget - budget // ANCHORS_SHARE * choices.records
    numbers = not takes_whole_numbers(graph, network.parameters, sample.inputs[:1])
    choices = choices if numbers else _of_ids(choices)
    statistics = plan_statistics(graph, data.task, of_statistics, choices.components, choices.input_rank, numbers)
    assignment = _components(sample, statistics, data.class_names, choices.seed)
    basis = _basis(sample, assignment, statistics.rank, choices.seed) if numbers else None
    with reader.track("curvature", None):
        draw = DrawnGradients(graph, network.parameters, data.task, reader.generator)
        empty = StatisticsSums(
            graph, assignment, basis, data.task, reader.device, sampled=statistics.sampled, numbers=numbers
        )
        found = _directions(sample, draw, empty, choices, data.ids)
        calibrated = calibrate_influence(sample, found.kept, found.exact) if choices.records else None
    anchors = None
    if choices.records:
        own = numbers and statistics.rank < statistics.anchor_rank
        of_anchors = _basis(sample, assignment, statistics.anchor_rank, choices.seed) if own else basis
        anchors = _anchors(sample, len(data), of_anchors, budget, numbers)
    plan = Plan(
        seed=choices.seed,
        statistics=statistics,
        assignment=assignment,
        basis=basis,
        anchors=anchors,
        directions=[c for c in found.kept if c.recorded] if choices.records else (),
        measured=found.measured,
        watched=watched_layers(network),
        watched_before=watched_layers(network, layers_each(earlier)),
        numbers=numbers,
    )
    return plan, calibrated


def watched_layers(network: Network, most: int = MOST_LAYERS) -> dict[str, bool]:
    """The layers that give evidence, at most so many, and (in full mode) whether their channels come last."""
    layers = network.evidence_layers()
    return {name: layers[name] for name in choose_layers(list(layers), most)}


def _of_ids(choices: Choices) -> Choices:
    """The choices where the network takes ids.  Raises FsdtoolError where they need inputs that are drawn."""
    if choices.curvature == SIMULATED:
        raise FsdtoolError(
            "the network takes whole numbers (token ids, categories), of which none can be simulated; give "
            f'`curvature="{MEASURED}"`, or leave it out'
        )
    log.info(
        "the network takes whole numbers (token ids, categories): none are simulated, so that distances are over kept "
        "examples and the curvature is measured (`curvature`)"
    )
    return replace(choices, curvature=MEASURED if choices.records else None)


def _components(sample: Sample, plan: StatisticsPlan, class_names: Sequence[str] | None, seed: int) -> Assignment:
    """The mixture; clusters are found on the sample."""
    graph, parameters = sample.graph, sample.parameters
    if plan.kind == "class":
        return Assignment(plan.kind, tuple(class_names or [str(c) for c in range(graph.outputs)]))
    if plan.kind == "all":
        return Assignment("all", ("all",))
    pattern = GatePattern(graph, seed)
    patterns = torch.cat(list(sample.each(lambda part: pattern.of(graph, parameters, part.inputs))))
    centres = k_means(patterns, plan.count, seed)
    return Assignment(plan.kind, tuple(f"cluster {i}" for i in range(len(centres))), pattern, centres)


def _basis(sample: Sample, assignment: Assignment, rank: int, seed: int) -> Tensor | None:
    """The `rank` directions (n, rank) of the inputs that vary most within classes; None for all."""
    groups = sample.targets if assignment.kind == "class" else torch.zeros(len(sample), dtype=torch.int64)
    return principal_basis(sample.vectors, groups.to(sample.device), rank, seed)


def _directions(
    sample: Sample, draw: DrawnGradients, empty: StatisticsSums, choices: Choices, ids: np.ndarray
) -> RecordCurvature:
    """Those of the records, which a measured curvature has without records too."""
    found = blocks(sample.graph, sample.parameters)
    matrices = sum(not isinstance(block, VectorBlock) for block in found)
    numbers = numbers_within(choices.record_bytes, matrices)
    if choices.curvature == MEASURED:
        return measured_directions(sample, draw, numbers, choices.seed)
    if choices.records:
        return simulated_directions(sample, empty, ids, numbers, choices.seed)
    return RecordCurvature((), (), ())


def _anchors(sample: Sample, examples: int, basis: Tensor | None, budget: int, numbers: bool) -> AnchorPlan:
    dimensions = sample.vectors.shape[1] if basis is None else basis.shape[1]
    count = anchor_count(sample.graph, examples, dimensions + sample.graph.outputs, budget)
    return AnchorPlan.of(examples, count, basis, sample.vectors, numbers=numbers)
