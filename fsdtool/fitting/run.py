"""From a model, a checkpoint and a data set to a summary file: prepare, plan, pass, calibrate, write.

The network is traced (fsdtool.fitting.preparation); a first sample fixes the mixture, the input basis and the curvature
(fsdtool.fitting.plan); one pass over the data accumulates statistics and features and writes each example's gradient
factors as it goes (fsdtool.fitting.passes); calibrations measure what the summary gets wrong, and all of it is written
(fsdtool.fitting.contents).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fsdtool.curvature.sources import MEASURED
from fsdtool.data.source import DataSource
from fsdtool.fitting.contents import Findings, write_summary
from fsdtool.fitting.outcome import Report, coverage, say_small_components, say_weights
from fsdtool.fitting.passes import Pass, Seen
from fsdtool.fitting.plan import Choices, Plan, first_sample, make_plan
from fsdtool.fitting.preparation import Given, Prepared, prepare
from fsdtool.fitting.reader import Reader, auto_batch
from fsdtool.fitting.run_calibration import calibrate_distance, likely_labels
from fsdtool.influence.gradient_records import bytes_per_example
from fsdtool.mislabel.earlier_checkpoints import parameters_before
from fsdtool.mislabel.features import OUTPUTS, FeatureStore
from fsdtool.mislabel.label_evidence import LabelEvidence, evidence
from fsdtool.mislabel.multilabel.label_residuals import LabelResiduals, label_residuals
from fsdtool.mislabel.regression.target_residuals import TargetEvidence, target_evidence
from fsdtool.model.checkpoint import Checkpoint
from fsdtool.statistics.fit import described, doubt, training_fit
from fsdtool.statistics.sample import Sample
from fsdtool.summary.catalogue import InfluenceCalibration
from fsdtool.summary.writer import Writer
from fsdtool.util.progress import Track, silent

log = logging.getLogger("fsdtool")


@dataclass(frozen=True)
class Resources:
    """What a run works with.  batch_size: examples computed at once (None: chosen).  workers: processes that read."""

    device: torch.device
    batch_size: int | None
    workers: int
    track: Track


def summarize(
    *,
    model: nn.Module,
    checkpoint: Checkpoint,
    earlier: Sequence[Checkpoint] = (),
    data: DataSource,
    output: Path,
    model_spec: str = "",
    model_arguments: dict[str, str] | None = None,
    components: int | None = None,
    device: torch.device | None = None,
    batch_size: int | None = None,
    workers: int = 0,
    seed: int = 0,
    records: bool = True,
    record_bytes: int = 1024,
    statistics_budget: int = 32 * 10**6,
    curvature: str | None = None,
    input_rank: int | None = None,
    keep_weights: bool = True,
    frozen: Sequence[str] = (),
    output_name: str = "",
    command_line: str = "",
    track: Track = silent,
) -> Report:
    """Summarize `data` under `model` with `checkpoint` and write the file `output`.

    earlier: other checkpoints of the same training, which add evidence on labels
    (fsdtool.mislabel.earlier_checkpoints).  components: None is one per class, or one where there are none; an integer
    is that many clusters of gate patterns.  record_bytes: gradient factors per example.  statistics_budget: bytes that
    all statistics may take (fsdtool.fitting.budget).  curvature: 'simulated' from the statistics, or 'measured' on the
    data in the same pass, which costs a second backward pass and is kept without records too; None is simulated, but
    measured where the network takes whole numbers, which are not simulated.  input_rank: directions
    in which the input covariance is resolved.  frozen: patterns of parameters that influence leaves out, beside those
    without requires_grad.  output_name: which of the model's outputs is meant.  Raises FsdtoolError for any fault of
    the input, before or while reading it.
    """
    arguments = model_arguments or {}
    given = Given(model, checkpoint, data, earlier, frozen, output_name, model_spec, arguments, command_line)
    choices = Choices(seed, components, records, record_bytes, statistics_budget, curvature, input_rank)
    resources = Resources(device or torch.device("cpu"), batch_size, workers, track)
    return _summarize(given, choices, resources, output, keep_weights)


def _summarize(given: Given, choices: Choices, resources: Resources, output: Path, keep_weights: bool) -> Report:
    started = time.perf_counter()
    given.check(choices.records)
    gradients = choices.records or choices.curvature == MEASURED
    prepared = prepare(given, gradients=gradients, device=resources.device, workers=resources.workers)
    network, data = prepared.network, prepared.data
    reader = Reader(
        data,
        network.graph.outputs,
        resources.device,
        batch_size=resources.batch_size or auto_batch(network),
        workers=resources.workers,
        seed=choices.seed,
        track=resources.track,
    )
    sample = first_sample(reader, network)
    plan, influence = make_plan(network, reader, sample, choices, len(prepared.earlier))
    with Writer(output) as writer, FeatureStore(len(data), choices.seed) as store:
        whole = Pass(network, reader, plan, store, writer, prepared.earlier)
        whole.run()
        seen = whole.finalize()
        found = _findings(prepared, plan, sample, seen, store, influence, resources.track)
        write_summary(writer, given, prepared, plan, seen, found, keep_weights=keep_weights)
        size = writer.commit()
    if keep_weights:
        say_weights(network, size)
    return _report(output, prepared, plan, seen, found, size, time.perf_counter() - started)


def _findings(
    prepared: Prepared,
    plan: Plan,
    sample: Sample,
    seen: Seen,
    store: FeatureStore,
    influence: InfluenceCalibration | None,
    track: Track,
) -> Findings:
    """How well the network knows the data, what its layers say of the labels, and how far off distances are."""
    task = prepared.data.task
    fit = training_fit(task, *(part.numpy() for part in (seen.losses, seen.logits, seen.targets)))
    if fault := doubt(fit):
        log.warning(fault)
    say_small_components(seen.statistics)
    judged: LabelEvidence | LabelResiduals | TargetEvidence | None = None
    if seen.anchors is not None:  # where there are records
        with track("evidence", None):
            if task.has_classes:
                layers = (*store.layers, OUTPUTS)
                before = [parameters_before(prepared.network, prepared.earlier, layer) for layer in layers]
                judged = evidence(store, seen.targets, seen.logits, before)
            elif task.has_labels:
                judged = label_residuals(store, seen.targets, seen.logits, plan.seed)
            else:
                judged = target_evidence(store, seen.targets, task.prediction(seen.logits), plan.seed)
    likely = likely_labels(judged)
    with track("calibration", None):
        distance = calibrate_distance(plan, sample, seen, likely)
    return Findings(fit, judged, influence, distance)


def _report(
    output: Path, prepared: Prepared, plan: Plan, seen: Seen, found: Findings, size: int, seconds: float
) -> Report:
    network, data, curvature, names = prepared.network, prepared.data, seen.curvature, seen.statistics.names
    return Report(
        output=output,
        examples=len(data),
        network=coverage(network),
        layers=len(network.evidence_layers()) - len(network.graph.embeddings()),
        components=f"{len(names)} ({seen.statistics.kind})",
        statistics_bytes=plan.statistics.size(network.graph, data.task, len(names)),
        curvature=curvature[0].source if curvature else "none",
        record_bytes=bytes_per_example(curvature) if seen.anchors is not None else 0,
        influence=found.influence,
        distance=found.distance,
        file_bytes=size,
        seconds=seconds,
        fit=described(found.fit),
    )
