"""Function space distance of other checkpoints from the summarized one: E_x rho(f(x; theta0), f(x; theta1)).

The metrics rho stand in fsdtool.laftr.metrics.  Forms:
    examples  the mean over the anchors that the summary keeps (fsdtool.statistics.anchors), every metric and network
    sampled   pseudo-samples of the components pushed through both networks under the reference's gates, where a
    summary has
              no anchors or where asked for; every metric and network
    closed    the exact expectation under the stochastic model: fully connected nets, kl2 and squared_error
All checkpoints are judged on the same examples or pseudo-samples.  Examples and, where there are no anchors,
pseudo-samples under moving gates were calibrated (fsdtool.laftr.distance_calibration): their distances are corrected
and have a model error.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fsdtool.data.repeatability import check_data
from fsdtool.data.source import DataSource
from fsdtool.errors import FsdtoolError
from fsdtool.fsd.last_layer import WholeNetwork, changed, check_seen
from fsdtool.laftr.distance_calibration import DOUBTFUL, UNKNOWN, DistanceCalibration
from fsdtool.laftr.distance_forms import (
    Estimate,
    default_samples,
    in_closed_form,
    on_anchors,
    on_pseudo_samples,
)
from fsdtool.laftr.form_choice import AUTO, CLOSED, EXAMPLES, choose_form
from fsdtool.laftr.gates import policy
from fsdtool.laftr.metrics import check_metric, default_metric, measure
from fsdtool.model.checkpoint import Checkpoint, with_plain_weights
from fsdtool.model.computed_weights import has_sources, plain_state
from fsdtool.model.state_dict_names import match_state
from fsdtool.network.graph import Parameters
from fsdtool.network.trace import FULL
from fsdtool.summary.reader import Summary
from fsdtool.util.memory import BatchSize
from fsdtool.util.progress import Track, silent

log = logging.getLogger("fsdtool")


@dataclass(frozen=True)
class Distance:
    """One checkpoint's distance from the reference, in nats or units of the outputs squared.

    standard_error: of the choice of examples or pseudo-samples, None for the closed form.  model_error: the relative
    error to expect in all, None where it was not calibrated.  components (K,): the distance over each component's
    inputs, not a number where too few examples speak for it.  exact: the mean over given data, or None.  distance is
    None, and components are empty, where the checkpoint moved before the only layer that the summary holds.
    """

    checkpoint: str
    distance: float | None
    standard_error: float | None
    model_error: float | None
    metric: str
    form: str
    components: tuple[float, ...]
    exact: float | None = None

    @property
    def best(self) -> float:
        """Exact where data were given, else as estimated."""
        if self.exact is not None:
            return self.exact
        assert self.distance is not None  # what cannot be estimated is refused without data
        return self.distance


@dataclass(frozen=True)
class Distances:
    """The distances of several checkpoints, in the order given, over the components of a summary."""

    found: list[Distance]
    names: tuple[str, ...]
    weights: tuple[float, ...]

    @property
    def distances(self) -> list[float]:
        """Of each checkpoint: exact where data were given, else as estimated."""
        return [d.best for d in self.found]

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row per checkpoint."""
        for d in self.found:
            row = {
                "checkpoint": d.checkpoint,
                "distance": d.distance,
                "standard_error": d.standard_error,
                "model_error": d.model_error,
                "metric": d.metric,
                "form": d.form,
            }
            yield row | ({"exact": d.exact} if d.exact is not None else {})

    def component_rows(self) -> Iterator[dict[str, Any]]:
        """One row per checkpoint and component: its weight pi and the distance over its inputs.

        The distance of a checkpoint is the sum of the contributions, weight times distance; both are None for a
        component that too few examples speak for.
        """
        for d in self.found:
            for name, weight, part in zip(self.names, self.weights, d.components, strict=True):
                known = not math.isnan(part)
                yield {
                    "checkpoint": d.checkpoint,
                    "component": name,
                    "weight": weight,
                    "distance": part if known else None,
                    "contribution": weight * part if known else None,
                    "metric": d.metric,
                    "form": d.form,
                }


def distances(
    summary: Summary,
    checkpoints: list[Checkpoint],
    *,
    metric: str | None = None,
    form: str = AUTO,
    gates: str | None = None,
    samples: int | None = None,
    seed: int = 0,
    reference: Checkpoint | None = None,
    data: DataSource | None = None,
    model: Callable[[Checkpoint], nn.Module] | None = None,
    device: torch.device | None = None,
    batch_size: int = 256,
    track: Track = silent,
) -> Distances:
    """The distance of each checkpoint from the reference, over the training data as the summary knows it.

    metric: by default the task's first, kl or squared_error.  form: 'auto' is 'examples' where the summary has
    anchors and no gates are asked for, else 'sampled', and 'closed' for independent gates where it exists.
    gates: of pseudo-samples, 'moving' (the default), 'coupled' or 'independent', see `simulate`.  samples: examples or
    pseudo-samples, by default 4096 to 65536, fewer for larger networks.  reference: the summarized checkpoint, for
    summaries without weights.  data: gives the exact mean over these examples as well.  model: builds the network
    for a checkpoint, where that needs its code: for weights that it computes in a way of its own, and for exact
    distances of a summary in last layer mode (fsdtool.fsd.last_layer); of a checkpoint that moved before the last layer
    the exact distance is the only one.

    Raises FsdtoolError for a metric, form or checkpoint that does not fit the summary, and for a distance that would
    not see what changed.
    """
    device = device or torch.device("cpu")
    metric = metric or default_metric(summary.task)
    check_metric(metric, summary.task, summary.path)
    graph, statistics = summary.identity.graph, summary.statistics
    form = choose_form(form, metric, graph, statistics, summary.anchors, gates, source=summary.path)
    if data is not None and (summary.identity.mode == FULL or model is None):
        _check_data(summary, data)
    theta0 = _on(_reference(summary, reference, model), device)
    states = [_matched(summary, checkpoint, model) for checkpoint in checkpoints]
    others = [_on(_used(summary, state, c), device) for state, c in zip(states, checkpoints, strict=True)]
    unseen = [[] if summary.identity.mode == FULL else changed(summary, state) for state in states]
    for checkpoint, moved in zip(checkpoints, unseen, strict=True):
        check_seen(summary, checkpoint, moved, whole=model is not None and data is not None)
    calibration = summary.distance_calibration
    if calibration is not None and (calibration.form != form or gates not in (None, policy.DEFAULT)):
        calibration = None
    common = (graph, theta0, others, statistics)
    if form == CLOSED:
        found = in_closed_form(*common, metric, device)
    elif form == EXAMPLES:
        assert summary.anchors is not None  # see choose_form
        kept = summary.anchors.evenly(samples or len(summary.anchors))
        found = on_anchors(*common, kept, metric, task=summary.task, device=device, track=track)
    else:
        by_metric = on_pseudo_samples(
            *common,
            [metric],
            gates=gates or policy.DEFAULT,
            samples=samples or default_samples(graph),
            seed=seed,
            device=device,
            track=track,
        )
        found = by_metric[metric]
    exact = None
    if data is not None and summary.identity.mode == FULL:
        exact = _exact(summary, theta0, others, metric, data, device, batch_size, track)
    elif data is not None and model is not None:
        network = WholeNetwork(summary, model, reference, theta0, device)
        exact = network.exact(checkpoints, partial(measure, metric), data, batch_size, track)
    corrected = [
        _corrected(checkpoint.path, estimate, metric, form, calibration, None if exact is None else exact[i])
        for i, (checkpoint, estimate) in enumerate(zip(checkpoints, found, strict=True))
    ]
    _warn(summary, [d for d, moved in zip(corrected, unseen, strict=True) if not moved])
    corrected = [
        replace(d, distance=None, standard_error=None, model_error=None, components=()) if moved else d
        for d, moved in zip(corrected, unseen, strict=True)
    ]
    return Distances(corrected, names=statistics.names, weights=tuple(statistics.weight.tolist()))


def _corrected(
    path: str, found: Estimate, metric: str, form: str, calibration: DistanceCalibration | None, exact: float | None
) -> Distance:
    if calibration is not None and not math.isfinite(found.distance):
        calibration = None  # its outputs overflow: nothing is known of the error
    factor = 1.0 if calibration is None else calibration.correction[metric]
    distance = factor * found.distance
    error = None if found.standard_error is None else factor * found.standard_error
    return Distance(
        checkpoint=path,
        distance=distance,
        standard_error=error,
        model_error=None if calibration is None else calibration.model_error(metric, distance, error),
        metric=metric,
        form=form,
        components=tuple((factor * found.components).tolist()),
        exact=exact,
    )


def _warn(summary: Summary, found: Sequence[Distance]) -> None:
    """Say what of the distances is in doubt."""
    for d in found:
        if d.distance is not None and not math.isfinite(d.distance):
            log.warning(f"the distance of {d.checkpoint} is not finite: its outputs overflow")
    moved = [d for d in found if d.distance is not None and d.distance > 0]
    errors = [(d.model_error, d) for d in moved if d.model_error is not None]
    doubtful = [(error, d) for error, d in errors if not error <= DOUBTFUL]
    if doubtful:
        error, worst = max(doubtful, key=lambda pair: pair[0])
        off = f"{error:.0%} of itself" if error < UNKNOWN else "an unknown factor"
        remedy = "; --data gives the exact distance" if worst.exact is None else ""
        if remedy and summary.anchors is None:
            remedy += ", and a summary with records (without --no-records) a closer one"
        log.warning(
            f"{len(doubtful)} of {len(found)} distances are in doubt: that of {worst.checkpoint} may be off by "
            f"{off} (model_error){remedy}"
        )
    unknown = [i for i, part in enumerate(found[0].components) if math.isnan(part)] if found else []
    if unknown and all(d.distance is not None and math.isfinite(d.distance) for d in found):
        share = float(summary.statistics.weight[unknown].sum())
        names = ", ".join(summary.statistics.names[i] for i in unknown[:3]) + (", ..." if len(unknown) > 3 else "")
        log.info(
            f"{len(unknown)} of {len(summary.statistics.names)} components ({names}; {share:.1%} of the data) have too "
            "few examples kept for a distance of their own"
        )


def _check_data(summary: Summary, data: DataSource) -> None:
    if summary.identity.mode != FULL:
        raise FsdtoolError(
            f"'{summary.path}' holds the last layer only, and the exact distance needs the whole network; "
            "give --model with its code, or leave --data out"
        )
    expected = tuple(summary.identity.graph.input_shape)
    if tuple(data.input_shape) != expected:
        raise FsdtoolError(
            f"the data '{data.spec}' has inputs of shape {tuple(data.input_shape)}, "
            f"the summary was made from {expected}; give data of the same kind"
        )
    check_data(data)


def _reference(
    summary: Summary, reference: Checkpoint | None, model: Callable[[Checkpoint], nn.Module] | None
) -> dict[str, Tensor]:
    if reference is not None:
        expected = summary.identity.checkpoint_sha256
        if reference.sha256 != expected:
            raise FsdtoolError(
                f"{reference.path} is not the summarized checkpoint: its SHA-256 is {reference.sha256[:12]}, "
                f"that of the summary {expected[:12]}; give the one that was summarized"
            )
        return _used(summary, _matched(summary, reference, model), reference)
    if summary.parameters is None:
        raise FsdtoolError(
            f"'{summary.path}' was written with --no-weights; give the summarized checkpoint by --reference"
        )
    return summary.parameters


def _matched(
    summary: Summary, checkpoint: Checkpoint, model: Callable[[Checkpoint], nn.Module] | None
) -> dict[str, Tensor]:
    """The checkpoint's tensors under the summary's names, computed weights plain."""
    identity = summary.identity
    notes: list[str] = []
    if model is not None:
        checkpoint = with_plain_weights(model(checkpoint), checkpoint)
    state = checkpoint.state
    if not has_sources(identity.shapes):
        state, notes = plain_state(state, identity.computed, source=checkpoint.path)
    state, more = match_state(state, identity.shapes, source=checkpoint.path, tied=identity.tied)
    for note in notes + more:
        log.info(note)
    return state


def _used(summary: Summary, state: Parameters, checkpoint: Checkpoint) -> dict[str, Tensor]:
    used = {name: state[name] for name in summary.identity.graph.parameter_names()}
    integer = next((name for name, value in used.items() if not value.is_floating_point()), None)
    if integer is not None:
        raise FsdtoolError(
            f"{checkpoint.path} holds {used[integer].dtype} values for '{integer}'; give one that is not quantized"
        )
    return used


def _on(parameters: Parameters, device: torch.device) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in parameters.items()}


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
