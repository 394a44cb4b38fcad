"""How many bytes the statistics take in the file, and how they are made to fit a budget.

Each component has the law of its gates, mean and covariance of its inputs, a mean output Hessian and some outputs; all
share the basis of the input covariance.  Sizes are those before compression.  Over the budget, in this order:
    1. gate probabilities take 8 bits instead of 16
    2. the input covariance is resolved in half, then in a quarter of the directions (unless their number was asked for)
    3. there are fewer components: clusters instead of classes
The sample of outputs takes an eighth of the budget at most, but holds at least two outputs of each component.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from fsdtool.network.graph import Graph, Step, is_convolutional
from fsdtool.statistics.accumulators import OutputMoments, OutputReservoir
from fsdtool.tasks.task import Task

log = logging.getLogger("fsdtool")

LARGEST_FULL_INPUT = 256  # dimensions up to which the whole input covariance is kept
INPUT_RANK = {True: 256, False: 64}  # of the covariance of larger inputs: convolutional, fully connected
SAMPLE_SHARE = 8  # the sample of outputs takes at most this fraction (an eighth) of the budget
OUTPUT_BYTES, COMPONENT_BYTES = 2, 4  # of each number of the sample, and of the component of each output


@dataclass(frozen=True)
class StatisticsPlan:
    """How statistics are kept: `count` components of a `kind` ('class', 'cluster' or 'all').

    bits: of a gate probability.  rank: directions of the input covariance.  sampled: numbers that the sample of outputs
    may hold.  anchor_rank: directions that anchors keep, even where the budget leaves fewer to `rank`.  numbers:
    whether the inputs are numbers, of which moments are kept.
    """

    kind: str
    count: int
    bits: int
    rank: int
    sampled: int
    anchor_rank: int
    numbers: bool = True

    def size(self, graph: Graph, task: Task, components: int | None = None) -> int:
        """Bytes of the statistics of so many components (None: `count`)."""
        count, outputs = components or self.count, graph.outputs
        inputs = graph.steps[0].units if self.numbers else 0
        core = self.rank**2 if self.numbers else 0
        gates = sum(gate_bytes(graph.steps[i], self.bits) for i in graph.indices("activation"))
        hessian = 4 * outputs**2 if OutputMoments.keeps(task, outputs) else 0
        basis = 2 * inputs * self.rank if self.rank < inputs else 0
        sample = 0
        if not task.quadratic:
            vectors = count * max(self.sampled // (count * outputs), 2)
            sample = vectors * (OUTPUT_BYTES * outputs + COMPONENT_BYTES)
        return count * (gates + 4 * (2 * inputs + core) + hessian) + basis + sample


def plan_statistics(
    graph: Graph,
    task: Task,
    budget: int,
    components: int | None = None,
    rank: int | None = None,
    numbers: bool = True,
) -> StatisticsPlan:
    """The best plan whose statistics take at most `budget` bytes, or the smallest, which a warning says.

    components: None is one per class, or one where there are none.  rank: directions of the input covariance,
    None to choose.  numbers: whether the inputs are numbers, not ids.
    """
    classes = components is None and task.has_classes
    wanted = graph.outputs if classes else components or 1
    kind = "class" if classes else "cluster" if wanted > 1 else "all"
    if kind == "cluster" and not graph.indices("activation"):
        log.warning("the traced part has no activation layer to cluster by; using one component")
        kind, wanted = "all", 1
    most = min(rank or _usual_rank(graph), graph.steps[0].units)
    sampled = min(OutputReservoir.NUMBERS, budget // (SAMPLE_SHARE * OUTPUT_BYTES))
    best = StatisticsPlan(kind, wanted, 16, most, sampled, most, numbers)
    tried = [best, replace(best, bits=8)]
    parts = (2, 4) if rank is None and numbers else ()
    tried += [replace(best, bits=8, rank=max(most // part, 1)) for part in parts]
    plan = next((plan for plan in tried if plan.size(graph, task) <= budget), None)
    if plan is None:
        plan = _fewer(tried[-1], graph, task, budget)
    if plan.rank < most:
        log.info(
            f"the input covariance is resolved in {plan.rank} directions instead of {most}, "
            f"to keep the statistics within {budget:,} bytes (`statistics_budget`, `input_rank`)"
        )
    return plan


def _fewer(plan: StatisticsPlan, graph: Graph, task: Task, budget: int) -> StatisticsPlan:
    """The plan with as many components as the budget holds, at least one."""
    low, high = 1, plan.count  # `high` are too many
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if plan.size(graph, task, middle) <= budget else (low, middle)
    if not graph.indices("activation"):
        low = 1
    fewer = replace(plan, kind="cluster" if low > 1 else "all", count=low)
    needed, size = plan.size(graph, task), fewer.size(graph, task)
    if plan.count > 1:
        log.warning(
            f"{plan.count} components need {needed:,} bytes of statistics, over the budget of {budget:,}; "
            f"using {low} (raise `statistics_budget` for more)"
        )
    if size > budget:
        log.warning(f"statistics take {size:,} bytes, over the budget of {budget:,}, with a single component")
    return fewer


def gate_bytes(step: Step, bits: int) -> int:
    """Bytes that one component's statistics of an activation step take in the file, before compression."""
    pieces = step.activation().pieces
    return step.units * (len(pieces.breaks) * bits // 8 if pieces else 5 * 4)


def _usual_rank(graph: Graph) -> int:
    inputs = graph.steps[0].units
    if inputs <= LARGEST_FULL_INPUT:
        return inputs
    return INPUT_RANK[is_convolutional(graph)]
