"""Function space distance of other checkpoints from the summarized one: E_x rho(f(x; theta0), f(x; theta1)).

Metrics rho of the outputs f0 and f1, p = softmax(f):
    kl             sum p0 (log p0 - log p1), in nats
    kl2            1/2 df^T (diag(p0) - p0 p0^T) df, its second order, in nats
    squared_error  1/2 |f1 - f0|^2
    probability    1/2 |p1 - p0|^2
Forms: *closed* is the exact expectation under the stochastic model (fully connected nets, kl2 and
squared_error); *sampled* pushes pseudo-samples through both networks under the reference's gates (every traced
network, every metric) and has a standard error.  All checkpoints are judged on the same pseudo-samples.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fsdtool.checkpoints import Checkpoint
from fsdtool.errors import FsdtoolError
from fsdtool.graph import Graph, Parameters
from fsdtool.matching import match_state
from fsdtool.memory import BatchSize
from fsdtool.moments import Statistics
from fsdtool.outputs import OutputCoupling
from fsdtool.progress import Track, silent
from fsdtool.propagate import closed_form
from fsdtool.simulate import INDEPENDENT, MOVING, Simulation
from fsdtool.sources import DataSource
from fsdtool.summary import Summary
from fsdtool.trace import FULL

log = logging.getLogger("fsdtool")

METRICS = ("kl", "kl2", "squared_error", "probability")
SIMULATED_UNITS = 2**28  # scalars of all steps simulated, by default, in all samples together
FEWEST_SAMPLES, MOST_SAMPLES = 4096, 65536


@dataclass(frozen=True)
class Distance:
    """One checkpoint's distance from the reference, in nats or units of the outputs squared.

    standard_error is None for the closed form; components (K,) the distance over each component's inputs;
    exact the mean over given data, or None.
    """

    checkpoint: str
    distance: float
    standard_error: float | None
    metric: str
    form: str
    components: tuple[float, ...]
    exact: float | None = None


@dataclass(frozen=True)
class Distances:
    """The distances of several checkpoints, in the order given, over the components of a summary."""

    found: list[Distance]
    names: tuple[str, ...]
    weights: tuple[float, ...]

    @property
    def distances(self) -> list[float]:
        return [d.distance for d in self.found]

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row per checkpoint."""
        for d in self.found:
            row = {
                "checkpoint": d.checkpoint,
                "distance": d.distance,
                "standard_error": d.standard_error,
                "metric": d.metric,
                "form": d.form,
            }
            yield row | ({"exact": d.exact} if d.exact is not None else {})

    def component_rows(self) -> Iterator[dict[str, Any]]:
        """One row per checkpoint and component: its weight pi and the distance over its inputs.

        The distance of a checkpoint is the sum of the contributions, weight times distance.
        """
        for d in self.found:
            for name, weight, part in zip(self.names, self.weights, d.components, strict=True):
                yield {
                    "checkpoint": d.checkpoint,
                    "component": name,
                    "weight": weight,
                    "distance": part,
                    "contribution": weight * part,
                    "metric": d.metric,
                    "form": d.form,
                }


def distances(
    summary: Summary,
    checkpoints: list[Checkpoint],
    *,
    metric: str | None = None,
    form: str = "auto",
    gates: str = MOVING,
    samples: int | None = None,
    seed: int = 0,
    reference: Checkpoint | None = None,
    data: DataSource | None = None,
    device: torch.device | None = None,
    batch_size: int = 256,
    track: Track = silent,
) -> Distances:
    """The distance of each checkpoint from the reference, over the training data as the summary models it.

    metric: by default kl for classification and squared_error for regression.  form: 'auto' is
    'sampled', and 'closed' for independent gates where it exists.  gates: 'moving', 'coupled' or 'independent', see
    `simulate`.  samples: by default 4096 to 65536, fewer for larger networks.  reference: the summarized checkpoint,
    for summaries without weights.  data: gives the exact mean over these examples as well.

    Raises FsdtoolError for a metric, form or checkpoint that does not fit the summary.
    """
    device = device or torch.device("cpu")
    metric = metric or default_metric(summary)
    check_metric(summary, metric)
    form = choose_form(summary, metric, form, gates)
    if data is not None:
        _check_data(summary, data)
    theta0 = _on(_reference(summary, reference), device)
    others = [_on(_matched(summary, checkpoint), device) for checkpoint in checkpoints]
    if summary.identity.mode != FULL:
        log.warning(
            f"only the last layer '{summary.identity.head}' is compared; a change of the layers before it is not seen"
        )
    if form == "closed":
        parts = _closed(summary, theta0, others, metric, device)
        errors: list[float | None] = [None] * len(others)
    else:
        samples = samples or default_samples(summary.identity.graph)
        parts, errors = _sampled(summary, theta0, others, metric, gates, samples, seed, device, track)
    exact = _exact(summary, theta0, others, metric, data, device, batch_size, track) if data is not None else None
    weight = summary.statistics.weight
    for checkpoint, part in zip(checkpoints, parts, strict=True):
        if not bool(torch.isfinite(part).all()):
            log.warning(f"the distance of {checkpoint.path} is not finite: its outputs overflow")
    return Distances(
        [
            Distance(
                checkpoint=checkpoint.path,
                distance=float(weight @ part),
                standard_error=error,
                metric=metric,
                form=form,
                components=tuple(part.tolist()),
                exact=None if exact is None else exact[i],
            )
            for i, (checkpoint, part, error) in enumerate(zip(checkpoints, parts, errors, strict=True))
        ],
        names=summary.statistics.names,
        weights=tuple(weight.tolist()),
    )


def default_samples(graph: Graph) -> int:
    """Pseudo-samples by default: as many as 2^28 simulated scalars allow, from 4096 to 65536.

    Divergences have heavy tails: on a small network thousands of samples cost little and are still felt.
    """
    affordable = SIMULATED_UNITS // sum(step.units for step in graph.steps)
    return min(max(affordable, FEWEST_SAMPLES), MOST_SAMPLES)


def measure(metric: str, f0: Tensor, f1: Tensor) -> Tensor:
    """rho(f0, f1) of each example (batch,) float64 for outputs (batch, O).

    In float64, since the terms of a small divergence cancel.
    """
    f0, f1 = f0.double(), f1.double()
    if metric == "squared_error":
        return 0.5 * (f1 - f0).square().sum(1)
    log0, log1 = torch.log_softmax(f0, 1), torch.log_softmax(f1, 1)
    p0 = log0.exp()
    if metric == "kl":
        return (p0 * (log0 - log1)).sum(1)
    if metric == "probability":
        return 0.5 * (log1.exp() - p0).square().sum(1)
    df = f1 - f0
    return 0.5 * ((p0 * df.square()).sum(1) - (p0 * df).sum(1).square())


def default_metric(summary: Summary) -> str:
    """kl for classification, squared_error for regression."""
    return "kl" if summary.task == "classification" else "squared_error"


def check_metric(summary: Summary, metric: str) -> None:
    """Raise FsdtoolError for a metric that does not exist or does not fit the summary's task."""
    if metric not in METRICS:
        raise FsdtoolError(f"there is no metric '{metric}'; give one of {', '.join(METRICS)}")
    if summary.task == "regression" and metric != "squared_error":
        raise FsdtoolError(
            f"the metric '{metric}' compares class probabilities and '{summary.path}' is of a regression; "
            "use squared_error"
        )


def _check_data(summary: Summary, data: DataSource) -> None:
    if summary.identity.mode != FULL:
        raise FsdtoolError(
            f"'{summary.path}' holds the last layer only, and the exact distance needs the whole network; "
            "leave --data out"
        )
    expected = tuple(summary.identity.graph.input_shape)
    if tuple(data.input_shape) != expected:
        raise FsdtoolError(
            f"the data '{data.spec}' has inputs of shape {tuple(data.input_shape)}, "
            f"the summary was made from {expected}; give data of the same kind"
        )


def choose_form(summary: Summary, metric: str, form: str, gates: str = MOVING) -> str:
    """'closed' or 'sampled'.  Raises FsdtoolError where there is no closed form.

    'auto' takes the closed form for independent gates where it exists: there it is exact.  Other gates are sampled;
    they came closer to the true distances, in Spearman correlation and in ratio, on every data set measured.
    """
    obstacles = []
    if not summary.identity.graph.is_chain():
        obstacles.append("the network is not a plain chain of fully connected layers")
    if metric not in ("kl2", "squared_error"):
        obstacles.append(f"the metric is {metric}, and it knows kl2 and squared_error")
    if metric == "kl2" and summary.statistics.output_hessian is None:
        obstacles.append("the summary has no output Hessian (too many outputs)")
    if form == "closed" and obstacles:
        raise FsdtoolError(f"there is no closed form: {'; '.join(obstacles)}; use --form sampled")
    if form == "auto":
        return "closed" if gates == INDEPENDENT and not obstacles else "sampled"
    return form


def _reference(summary: Summary, reference: Checkpoint | None) -> dict[str, Tensor]:
    if reference is not None:
        expected = summary.identity.checkpoint_sha256
        if reference.sha256 != expected:
            raise FsdtoolError(
                f"{reference.path} is not the summarized checkpoint: its SHA-256 is {reference.sha256[:12]}, "
                f"that of the summary {expected[:12]}; give the one that was summarized"
            )
        return _matched(summary, reference)
    if summary.parameters is None:
        raise FsdtoolError(
            f"'{summary.path}' was written with --no-weights; give the summarized checkpoint by --reference"
        )
    return summary.parameters


def _matched(summary: Summary, checkpoint: Checkpoint) -> dict[str, Tensor]:
    state, notes = match_state(checkpoint.state, summary.identity.shapes, source=checkpoint.path)
    for note in notes:
        log.info(note)
    used = {name: state[name] for name in summary.identity.graph.parameter_names()}
    integer = next((name for name, value in used.items() if not value.is_floating_point()), None)
    if integer is not None:
        raise FsdtoolError(
            f"{checkpoint.path} holds {used[integer].dtype} values for '{integer}'; give one that is not quantized"
        )
    return used


def _on(parameters: Parameters, device: torch.device) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in parameters.items()}


def _closed(
    summary: Summary, theta0: Parameters, others: list[dict[str, Tensor]], metric: str, device: torch.device
) -> list[Tensor]:
    """Distances (K,) of each checkpoint in float64."""
    statistics = summary.statistics.to(device, torch.float64)
    hessian = output_hessian(statistics, metric, summary.identity.graph.outputs)
    wide = [{name: value.double() for name, value in theta.items()} for theta in (theta0, *others)]
    graph = summary.identity.graph
    return [closed_form(graph, wide[0], other, statistics, hessian).cpu() for other in wide[1:]]


def output_hessian(statistics: Statistics, metric: str, outputs: int) -> Tensor:
    """H (K, O, O) of each component: the identity for squared_error, the stored mean Hessian for kl2."""
    if metric == "kl2":
        return statistics.output_hessian
    mean = statistics.input.mean
    return torch.eye(outputs, dtype=mean.dtype, device=mean.device).expand(len(mean), -1, -1)


def _sampled(
    summary: Summary,
    theta0: Parameters,
    others: list[dict[str, Tensor]],
    metric: str,
    gates: str,
    samples: int,
    seed: int,
    device: torch.device,
    track: Track,
) -> tuple[list[Tensor], list[float | None]]:
    """Distances (K,) and standard error of each checkpoint."""
    graph, statistics = summary.identity.graph, summary.statistics
    simulation = Simulation(graph, theta0, statistics, gates=gates, seed=seed, device=device)
    shape = len(others), len(statistics.names)
    count, total, squares = torch.zeros(shape[1]), torch.zeros(*shape).double(), torch.zeros(*shape).double()

    def measured(k: int, n: int) -> tuple[int, Tensor]:
        """Distances (K, n) of pseudo-samples of component k."""
        x, f0, tape = simulation.draw(k, n)
        law = _recorded_law(simulation, metric, k, f0)
        found = []
        for other in others:
            f1 = graph.run(other, x, gate=tape.replay)
            found.append(measure(metric, f0, f1) if law is None else measure(metric, law.f0, law.other(f1)))
        return k, torch.stack(found).cpu()

    with track("pseudo-samples", samples) as advance, torch.no_grad():
        for k, rho in simulation.each(samples, measured):
            total[:, k] += rho.sum(1)
            squares[:, k] += rho.square().sum(1)
            count[k] += rho.shape[1]
            advance(rho.shape[1])
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0) / (count - 1).clamp(min=1)
    error = (variance @ statistics.weight.square()).sqrt()
    return list(mean), error.tolist()


def _recorded_law(simulation: Simulation, metric: str, k: int, f0: Tensor) -> OutputCoupling | None:
    """The coupling of simulated outputs to recorded ones, for metrics that look at more than their difference."""
    statistics = simulation.statistics
    if metric == "squared_error" or statistics.outputs is None:
        return None
    recorded = statistics.outputs.of(k)
    return OutputCoupling(f0, recorded, one_class=statistics.kind == "class", generator=simulation.generator)


def _exact(
    summary: Summary,
    theta0: Parameters,
    others: list[dict[str, Tensor]],
    metric: str,
    data: DataSource,
    device: torch.device,
    batch_size: int,
    track: Track,
) -> list[float]:
    """Mean distance of each checkpoint over the data."""
    graph, totals = summary.identity.graph, [0.0] * len(others)
    with track("exact distance", len(data)) as advance, torch.no_grad():

        def of(rows: slice) -> list[float]:
            x = batch.x[rows].to(device)
            f0 = graph.run(theta0, x)
            return [float(measure(metric, f0, graph.run(other, x)).sum()) for other in others]

        size = BatchSize(batch_size)
        for batch in data.batches(batch_size):
            for sums in size.parts(len(batch.index), of):
                totals = [total + part for total, part in zip(totals, sums, strict=True)]
            advance(len(batch.index))
    means = [total / len(data) for total in totals]
    if not all(math.isfinite(mean) for mean in means):
        log.warning("an exact distance is not finite: a checkpoint's outputs overflow on this data")
    return means
