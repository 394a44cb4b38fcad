"""Function space distance of other checkpoints from the summarized one: E_x rho(f(x; theta0), f(x; theta1)).

The metrics rho stand in fsdtool.laftr.metrics, the forms that an estimate takes in fsdtool.laftr.form_choice.  All
checkpoints are judged on the same examples or pseudo-samples.  Examples and, where there are no anchors, pseudo-samples
under the default gates were calibrated (fsdtool.laftr.distance_calibration): their distances are corrected and have a
model error.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from fsdtool.data.source import DataSource
from fsdtool.fsd.exact import check_exact, exact_distances
from fsdtool.fsd.last_layer import WholeNetwork
from fsdtool.fsd.result import Distance, Distances
from fsdtool.fsd.weights import Build, ComparedWeights, compared_weights
from fsdtool.laftr.distance_calibration import DOUBTFUL, UNKNOWN, DistanceCalibration
from fsdtool.laftr.distance_forms import Estimate, default_samples, in_closed_form, on_anchors, on_pseudo_samples
from fsdtool.laftr.form_choice import AUTO, CLOSED, EXAMPLES, NONE, choose_form
from fsdtool.laftr.gates.policy import DEFAULT
from fsdtool.laftr.metrics import check_metric, default_metric, measure
from fsdtool.model.checkpoint import Checkpoint
from fsdtool.network.traced import FULL
from fsdtool.summary.reader import Summary
from fsdtool.util.progress import Track, silent

log = logging.getLogger("fsdtool")


@dataclass(frozen=True)
class _Draw:
    """What decides the examples or pseudo-samples: samples None is the default number of them."""

    gates: str
    samples: int | None
    seed: int


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
    model: Build | None = None,
    device: torch.device | None = None,
    batch_size: int = 256,
    track: Track = silent,
) -> Distances:
    """The distance of each checkpoint from the reference, over the training data as the summary knows it.

    metric: by default the task's first, kl (nats) or squared_error (output units squared).  form: 'auto' is 'examples'
    where the summary has anchors and no gates are asked for, 'closed' for independent gates where it exists, else
    'sampled'.  gates: of pseudo-samples, one of fsdtool.laftr.gates, by default 'moving'.  samples: at most so many
    examples or pseudo-samples, by default 4096 to 65536, fewer for larger networks.  reference: the summarized
    checkpoint, for summaries without weights.  data: gives the exact mean over these examples as well.  model: builds
    the network for a checkpoint where that needs its code: for weights computed in a way of its own, and for exact
    distances of a summary in last layer mode; there it is the only distance of a checkpoint that moved before that
    layer.

    Raises FsdtoolError for a metric, form, gates or checkpoint that does not fit the summary, and for a distance that
    would not see what changed.
    """
    device = device or torch.device("cpu")
    metric = metric or default_metric(summary.task)
    check_metric(metric, summary.task, summary.path)
    graph, statistics, anchors = summary.identity.graph, summary.statistics, summary.anchors
    if data is not None and form == AUTO and gates is None and anchors is None and not statistics.drawn:
        form = NONE
    else:
        form = choose_form(form, metric, graph, statistics, anchors, gates, source=summary.path)
    if data is not None and (summary.identity.mode == FULL or model is None):
        check_exact(summary, data)
    whole = model is not None and data is not None
    weights = compared_weights(summary, checkpoints, reference=reference, model=model, whole=whole, device=device)
    draw = _Draw(gates or DEFAULT, samples, seed)
    found = _estimates(summary, weights, metric, form, draw, device, track)
    exact: Sequence[float | None] = [None] * len(checkpoints)
    if data is not None and summary.identity.mode == FULL:
        exact = exact_distances(summary, weights, metric, data, device=device, batch_size=batch_size, track=track)
    elif data is not None and model is not None:
        network = WholeNetwork(summary, model, reference, weights.theta0, device)
        exact = network.exact(checkpoints, partial(measure, metric, task=summary.task), data, batch_size, track)
    told = _told(summary, checkpoints, found, exact, weights.moved, metric, form, gates)
    return Distances(told, names=statistics.names, weights=tuple(statistics.weight.tolist()))


def _estimates(
    summary: Summary,
    weights: ComparedWeights,
    metric: str,
    form: str,
    draw: _Draw,
    device: torch.device,
    track: Track,
) -> list[Estimate]:
    """The distance of each checkpoint in the form chosen, before it is corrected."""
    graph = summary.identity.graph
    common = (graph, weights.theta0, weights.others, summary.statistics)
    if form == NONE:
        return [Estimate(math.nan, None, torch.empty(0))] * len(weights.others)
    if form == CLOSED:
        return in_closed_form(*common, metric, device)
    if form == EXAMPLES:
        assert summary.anchors is not None  # see choose_form
        kept = summary.anchors.evenly(draw.samples or len(summary.anchors))
        return on_anchors(*common, kept, metric, task=summary.task, device=device, track=track)
    by_metric = on_pseudo_samples(
        *common,
        [metric],
        gates=draw.gates,
        samples=draw.samples or default_samples(graph),
        seed=draw.seed,
        device=device,
        track=track,
    )
    return by_metric[metric]


def _told(
    summary: Summary,
    checkpoints: Sequence[Checkpoint],
    found: Sequence[Estimate],
    exact: Sequence[float | None],
    moved: Sequence[list[str]],
    metric: str,
    form: str,
    gates: str | None,
) -> list[Distance]:
    """The estimates corrected as calibrated, without those that do not see all that `moved`; says what is in doubt."""
    calibration = summary.distance_calibration
    if calibration is not None and (calibration.form != form or gates not in (None, DEFAULT)):
        calibration = None
    corrected = [
        _corrected(checkpoint.path, estimate, metric, form, calibration, known)
        for checkpoint, estimate, known in zip(checkpoints, found, exact, strict=True)
    ]
    unseen = [bool(names) or form == NONE for names in moved]
    _warn(summary, [d for d, hidden in zip(corrected, unseen, strict=True) if not hidden])
    return [_without_estimate(d) if hidden else d for d, hidden in zip(corrected, unseen, strict=True)]


def _without_estimate(d: Distance) -> Distance:
    return replace(d, distance=None, standard_error=None, model_error=None, components=())


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
        remedy = "; `data` gives the exact distance" if worst.exact is None else ""
        if remedy and summary.anchors is None:
            remedy += ", and a summary with records (without `records=False`) a closer one"
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
