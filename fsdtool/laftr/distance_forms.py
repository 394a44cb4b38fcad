"""The forms of a function space distance: on anchors, on pseudo-samples, and closed.

Each takes the reference theta0 and several others theta1 and gives for each one the distance over every component,
their mean by the components' weights pi, and the standard error of that mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fsdtool.laftr.closed_form import closed_form
from fsdtool.laftr.gates.policy import DEFAULT
from fsdtool.laftr.metrics import SQUARED_ERROR, measure
from fsdtool.laftr.output_matching import OutputCoupling
from fsdtool.laftr.sampling import Simulation
from fsdtool.network.graph import Graph, Parameters
from fsdtool.statistics.anchors import FEWEST, FEWEST_PROJECTED, AnchoredOutputs, Anchors
from fsdtool.statistics.component_laws import Statistics
from fsdtool.tasks.task import Task
from fsdtool.util.progress import Track, silent

SIMULATED_UNITS = 2**28  # scalars of all steps simulated, by default, in all samples together
FEWEST_SAMPLES, MOST_SAMPLES = 4096, 65536
GROUPS = 4, 16  # independent parts of the pseudo-samples, whose spread is the standard error
FEW, FEW_PAIRS = 2, 10  # degrees of freedom within components, below which all examples together give the variance
GROUP_SAMPLES = 256  # pseudo-samples of each component in a part, where there are enough for more than the fewest parts


@dataclass(frozen=True)
class Estimate:
    """The distance, its standard error (None: there is no sampling), and (K,) that over each component.

    A component that too few examples speak for is not a number, and not a part of the distance where none does.
    """

    distance: float
    standard_error: float | None
    components: Tensor


def default_samples(graph: Graph) -> int:
    """Examples or pseudo-samples by default: 2^28 / (scalars of all steps), clipped to [4096, 65536].

    KL is heavy-tailed: the variance of its mean still falls at 65,536 samples.
    """
    affordable = SIMULATED_UNITS // sum(step.units for step in graph.steps)
    return min(max(affordable, FEWEST_SAMPLES), MOST_SAMPLES)


def on_anchors(
    graph: Graph,
    reference: Parameters,
    others: Sequence[Parameters],
    statistics: Statistics,
    anchors: Anchors,
    metric: str,
    *,
    task: Task,
    device: torch.device,
    track: Track = silent,
) -> list[Estimate]:
    """Distances over anchors, each component by its weight among all examples.

    The standard error is that of a sample without replacement from each component: zero when all examples are kept.
    """
    outputs = AnchoredOutputs(graph, reference, statistics, anchors, task=task, device=device)
    rho = torch.empty(len(others), len(anchors), dtype=torch.float64)
    with track("examples", len(anchors)) as advance, torch.no_grad():
        for rows, x, simulated, recorded in outputs.batches():
            for i, other in enumerate(others):
                moved = outputs.other(other, x, simulated, recorded)
                rho[i, rows] = measure(metric, recorded, moved, task).cpu()
            advance(len(x))
    count = statistics.count.double().cpu()
    found = [_stratified(values, anchors.component.cpu(), anchors.alone.cpu(), count) for values in rho]
    if anchors.basis is None:
        return found
    few = torch.bincount(anchors.component.cpu(), minlength=len(count)) < FEWEST_PROJECTED
    return [replace(one, components=torch.where(few, torch.nan, one.components)) for one in found]


def _stratified(rho: Tensor, component: Tensor, alone: Tensor, count: Tensor) -> Estimate:
    """The mean of rho (R,) of examples of components (R,) that have `count` (K,) examples each.

    Strata are the components' shared examples, and those that stand for themselves alone (R,).
    """
    size = len(count)
    stratum = component + size * alone.long()
    n = torch.bincount(stratum, minlength=2 * size).double()
    population = torch.cat([(count - n[size:]).clamp(min=0), n[size:]])
    mean = torch.zeros(2 * size).double().index_add_(0, stratum, rho) / n.clamp(min=1)
    squares = torch.zeros(2 * size).double().index_add_(0, stratum, (rho - mean[stratum]).square())
    freedom = (n[:size] - 1).clamp(min=0).sum()
    shared = rho[~alone]
    whole = shared.var() if len(shared) > 1 else shared.new_tensor(float(shared.square().sum()))
    pooled = squares[:size].sum() / freedom if freedom >= FEW_PAIRS else whole
    variance = torch.where(n > FEW, squares / (n - 1).clamp(min=1), pooled)
    seen = torch.where(n > 0, population, 0)
    weight = seen / seen.sum()
    sampling = variance / n.clamp(min=1) * (1 - n / population.clamp(min=1)).clamp(min=0)
    known = (n[:size] >= FEWEST) | (n[:size] >= population[:size])
    of_component = (seen * mean).reshape(2, size).sum(0) / seen.reshape(2, size).sum(0).clamp(min=1)
    return Estimate(
        float(weight @ mean), float((weight.square() @ sampling).sqrt()), torch.where(known, of_component, torch.nan)
    )


def on_pseudo_samples(
    graph: Graph,
    reference: Parameters,
    others: Sequence[Parameters],
    statistics: Statistics,
    metrics: Sequence[str],
    *,
    gates: str = DEFAULT,
    samples: int,
    seed: int,
    device: torch.device,
    track: Track = silent,
) -> dict[str, list[Estimate]]:
    """Distances over pseudo-samples of all components, by metric.

    Coupled gates tie the samples of a batch to one another, so that their spread says little of the error: the samples
    are drawn in independent groups, and the standard error is that of the groups' means.
    """
    simulation = Simulation(graph, reference, statistics, gates=gates, seed=seed, device=device)
    weight, size = statistics.weight, len(statistics.names)
    groups = min(max(samples // (GROUP_SAMPLES * size), GROUPS[0]), GROUPS[1])
    count = torch.zeros(groups, 1, 1, size).double()
    total = torch.zeros(groups, len(metrics), len(others), size).double()

    def measured(k: int, n: int) -> tuple[int, Tensor]:
        """Distances (metrics, others, n) of pseudo-samples of component k."""
        x, f0, tape = simulation.forward(k, n)
        law = _recorded_law(simulation, k, f0) if set(metrics) - {SQUARED_ERROR} else None
        rho = torch.empty(len(metrics), len(others), len(x), dtype=torch.float64)
        for i, other in enumerate(others):
            f1 = graph.run(other, x, gate=tape.replay)
            recorded = (f0, f1) if law is None else (law.f0, law.other(f1))
            for j, metric in enumerate(metrics):
                before, after = (f0, f1) if metric == SQUARED_ERROR else recorded
                rho[j, i] = measure(metric, before, after, statistics.task).cpu()
        return k, rho

    with track("pseudo-samples", samples) as advance, torch.no_grad():
        for group in range(groups):
            for k, rho in simulation.batches(max(samples // groups, 1), measured):
                total[group, ..., k] += rho.sum(-1)
                count[group, ..., k] += rho.shape[-1]
                advance(rho.shape[-1])
    means = total.sum(0) / count.sum(0)  # (metrics, others, K)
    errors = ((total / count) @ weight).std(0) / groups**0.5
    return {
        metric: [Estimate(float(weight @ mean), float(e), mean) for mean, e in zip(means[j], errors[j], strict=True)]
        for j, metric in enumerate(metrics)
    }


def _recorded_law(simulation: Simulation, k: int, f0: Tensor) -> OutputCoupling | None:
    """The coupling of simulated outputs to recorded ones, for metrics that look at more than their difference."""
    statistics = simulation.statistics
    if statistics.outputs is None:
        return None
    recorded = statistics.outputs.of(k)
    return OutputCoupling(f0, recorded, one_class=statistics.kind == "class", generator=simulation.generator)


def in_closed_form(
    graph: Graph,
    reference: Parameters,
    others: Sequence[Parameters],
    statistics: Statistics,
    metric: str,
    device: torch.device,
) -> list[Estimate]:
    """The exact expectations under the stochastic model, in float64."""
    statistics = statistics.to(device, torch.float64)
    hessian = output_hessian(statistics, metric, graph.outputs)
    wide = [{name: value.double() for name, value in theta.items()} for theta in (reference, *others)]
    found = [closed_form(graph, wide[0], other, statistics, hessian).cpu() for other in wide[1:]]
    return [Estimate(float(statistics.weight.cpu() @ part), None, part) for part in found]


def output_hessian(statistics: Statistics, metric: str, outputs: int) -> Tensor:
    """H (K, O, O) of each component: the identity for squared_error, the stored mean Hessian for kl2."""
    if metric == "kl2":
        assert statistics.output_hessian is not None
        return statistics.output_hessian
    mean = statistics.gaussian.mean
    return torch.eye(outputs, dtype=mean.dtype, device=mean.device).expand(len(mean), -1, -1)
