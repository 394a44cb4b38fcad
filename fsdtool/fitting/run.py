"""From a model, a checkpoint and a data set to a summary file.

The network is traced; a first sample fixes the mixture, the input basis and the curvature; one pass over the data
(fsdtool.fitting.passes) accumulates statistics and label evidence and writes each example's gradient factors as it
goes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import torch
from torch import nn

from fsdtool import __version__
from fsdtool.curvature.ekfac import BlockCurvature
from fsdtool.curvature.sources import MEASURED, SIMULATED
from fsdtool.data.layout import fit_layout
from fsdtool.data.repeatability import check_data, check_outputs, spread_inputs
from fsdtool.data.source import DataSource
from fsdtool.errors import FsdtoolError
from fsdtool.fitting.budget import plan_statistics
from fsdtool.fitting.passes import Pass, Sample, Seen, auto_batch
from fsdtool.fitting.record_curvature import fix_curvature
from fsdtool.fitting.run_calibration import calibrate_distance, likely_labels
from fsdtool.fsd.last_layer import digests
from fsdtool.influence.gradient_records import bytes_per_example, self_influence
from fsdtool.laftr.distance_calibration import DistanceCalibration
from fsdtool.mislabel.class_model_file import write_class_models
from fsdtool.mislabel.earlier_checkpoints import check_distinct, earlier_networks, parameters_before
from fsdtool.mislabel.features import OUTPUTS, FeatureStore
from fsdtool.mislabel.label_evidence import LabelEvidence, evidence
from fsdtool.mislabel.regression.target_residuals import TargetEvidence, target_evidence
from fsdtool.model.checkpoint import Checkpoint, apply_checkpoint, tensors_of, tied_names, with_plain_weights
from fsdtool.model.computed_weights import computed_weights
from fsdtool.network.frozen import check_trained, frozen_names
from fsdtool.network.logits import answer_with, say_link
from fsdtool.network.per_example_gradients import left_out
from fsdtool.network.trace import FULL, Network, trace
from fsdtool.statistics.accumulators import OutputMoments
from fsdtool.statistics.anchors import ANCHORS_SHARE, AnchorRows, anchor_count
from fsdtool.statistics.component_laws import Statistics
from fsdtool.statistics.fit import described, doubt, training_fit
from fsdtool.summary.catalogue import InfluenceCalibration
from fsdtool.summary.reader import Identity
from fsdtool.summary.writer import Writer, encode_ids
from fsdtool.tasks.task import Task
from fsdtool.util.progress import Track, silent

log = logging.getLogger("fsdtool")

MEGABYTE = 10**6
BIG_FILE = 20 * MEGABYTE  # from which on the weights' part is said


@dataclass(frozen=True)
class Report:
    """What `summarize` did, for people."""

    output: Path
    examples: int
    network: str
    layers: int
    components: str
    statistics_bytes: int
    curvature: str
    record_bytes: int
    influence: InfluenceCalibration | None
    distance: DistanceCalibration
    file_bytes: int
    seconds: float
    fit: str

    def rows(self) -> list[tuple[str, str]]:
        """Name and value of each line."""
        return [
            ("examples", f"{self.examples:,}"),
            ("fit", self.fit),
            ("network", self.network),
            ("activation layers", str(self.layers)),
            ("components", self.components),
            ("statistics", f"{self.statistics_bytes:,} bytes"),
            ("curvature", self.curvature),
            ("gradient records", f"{self.record_bytes:,} bytes per example" if self.record_bytes else "none"),
            *([] if self.influence is None else [("influence", f"values from records: {self.influence}")]),
            ("distance", str(self.distance)),
            ("file", f"{self.file_bytes:,} bytes"),
            ("seconds", f"{self.seconds:.1f}"),
        ]


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
    curvature: str = SIMULATED,
    input_rank: int | None = None,
    keep_weights: bool = True,
    frozen: Sequence[str] = (),
    output_name: str = "",
    command_line: str = "",
    track: Track = silent,
) -> Report:
    """Summarize `data` under `model` with `checkpoint` and write the file `output`.

    earlier: other checkpoints of the same training, which add evidence on labels
    (fsdtool.mislabel.earlier_checkpoints).
    components: None is one per class, or one where there are none; an integer is that many clusters of gate
    patterns.  record_bytes: gradient factors per example.  statistics_budget: bytes that all statistics may
    take (fsdtool.fitting.budget).  curvature: 'simulated' from the statistics, or
    'measured' on the data in the same pass, which costs a second backward pass and is kept without records too.
    input_rank: directions in which the input covariance is resolved.  frozen: patterns of parameters that influence
    leaves out, beside those without requires_grad.  output_name: which of the model's outputs is meant.  Raises
    FsdtoolError for any fault of the input, before or while reading it.
    """
    started = time.perf_counter()
    check_distinct([*earlier, checkpoint])
    if earlier and not records:
        count = "1 earlier checkpoint adds" if len(earlier) == 1 else f"{len(earlier)} earlier checkpoints add"
        raise FsdtoolError(f"{count} evidence on labels, which --no-records leaves out; give the last checkpoint alone")
    device = device or torch.device("cpu")
    computed = computed_weights(model.eval())
    earlier = [with_plain_weights(model, other) for other in earlier] if computed else earlier
    for note in apply_checkpoint(model, checkpoint):
        log.info(note)
    still = frozen_names(model, frozen)
    answer = answer_with(model, output_name)
    data = fit_layout(data, model, workers=workers)
    answer.say()
    together = spread_inputs(check_data(data, workers=workers).x)
    check_outputs(model, together)
    network = trace(model, together, task=data.task, output=output_name).to(device)
    network = replace(network, graph=replace(network.graph, frozen=still))
    say_link(network.link)
    if records or curvature == MEASURED:
        check_trained(network)
    trajectory = earlier_networks(model, network, earlier)
    _say_coverage(network)
    run = Pass(network, data, device, batch_size or auto_batch(network), workers, seed, track)
    sample = run.first_sample()
    of_statistics = statistics_budget - statistics_budget // ANCHORS_SHARE * records
    plan = plan_statistics(network.graph, data.task, of_statistics, components, input_rank)
    assignment = run.choose_components(sample, plan)
    basis = run.choose_basis(sample, assignment, plan.rank)
    sums = run.sums(assignment, basis, plan)
    with track("curvature", None):
        found, measured, calibrated = fix_curvature(
            run, sample, run.sums(assignment, basis, plan), curvature, records, record_bytes
        )
    with Writer(output) as writer, FeatureStore(len(data), seed) as store:
        anchors = None
        if records:
            own = plan.rank < plan.anchor_rank
            of_anchors = run.choose_basis(sample, assignment, plan.anchor_rank) if own else basis
            anchors = _anchor_rows(network, sample, len(data), of_anchors, statistics_budget)
        seen = run.whole(sums, store, writer, found if records else [], measured, trajectory, anchors)
        if measured:
            found = [sums.finalize(MEASURED) for sums in measured]
        fit = training_fit(data.task, *(part.numpy() for part in (seen.losses, seen.logits, seen.targets)))
        if fault := doubt(fit):
            log.warning(fault)
        statistics = seen.statistics
        _say_small_components(statistics)
        identity = Identity(
            task=data.task,
            mode=network.mode,
            reasons=network.reasons,
            graph=network.graph,
            shapes={name: tuple(value.shape) for name, value in tensors_of(model).items()},
            model_spec=model_spec,
            model_arguments=model_arguments or {},
            head=network.head,
            checkpoint_name=Path(checkpoint.path).name,
            checkpoint_sha256=checkpoint.sha256,
            checkpoint_averaged=checkpoint.averaged,
            data_spec=data.spec,
            examples=len(data),
            fingerprint=seen.fingerprint,
            preprocessing=data.preprocessing,
            class_names=tuple(data.class_names) if data.class_names else None,
            seed=seed,
            tool_version=__version__,
            command_line=command_line,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            earlier=tuple((other.name, other.sha256) for other in trajectory),
            tied=tied_names(model),
            computed=computed,
            digests={} if network.mode == FULL else digests(model, network.parameters),
            checkpoint_key=checkpoint.key,
            output=output_name,
        )
        writer.write_identity(identity)
        if keep_weights:
            writer.write_parameters(network.parameters)
        writer.write_statistics(statistics, network.graph, plan.bits)
        writer.write_curvature(found)
        writer.write_fit(fit)
        likely = None
        if calibrated is not None:
            writer.write_influence_calibration(calibrated)
        if seen.anchors is not None:  # where there are records
            writer.write_anchors(seen.anchors, statistics)
            found_evidence: LabelEvidence | TargetEvidence
            with track("evidence", None):
                if data.task.has_classes:
                    before = [parameters_before(network, trajectory, layer) for layer in (*store.layers, OUTPUTS)]
                    found_evidence = evidence(store, seen.targets, seen.logits, before)
                else:
                    found_evidence = target_evidence(store, seen.targets, data.task.prediction(seen.logits), seed)
            _write_outputs(writer, data, seen, found_evidence, [other.name for other in trajectory])
            _write_self_influence(writer, found, len(data), data.task, calibrated)
            likely = likely_labels(found_evidence)
        with track("calibration", None):
            distance = calibrate_distance(run, sample, seen, assignment, likely)
        writer.write_distance_calibration(distance)
        size = writer.commit()
    if keep_weights:
        _say_weights(network, size)
    return Report(
        output=output,
        examples=len(data),
        network=_describe(network),
        layers=len(network.evidence_layers()),
        components=f"{len(statistics.names)} ({statistics.kind})",
        statistics_bytes=plan.size(network.graph, data.task, len(statistics.names)),
        curvature=curvature if found else "none",
        record_bytes=bytes_per_example(found) if records else 0,
        influence=calibrated,
        distance=distance,
        file_bytes=size,
        seconds=time.perf_counter() - started,
        fit=described(fit),
    )


def _anchor_rows(
    network: Network, sample: Sample, examples: int, basis: torch.Tensor | None, budget: int
) -> AnchorRows:
    graph, dimensions = network.graph, sample.signal.shape[1] if basis is None else basis.shape[1]
    count = anchor_count(graph, examples, dimensions + graph.outputs, budget)
    return AnchorRows(examples, count, basis, sample.signal, graph.outputs)


def _write_outputs(
    writer: Writer, data: DataSource, seen: Seen, judged: LabelEvidence | TargetEvidence, earlier: Sequence[str]
) -> None:
    classification = isinstance(judged, LabelEvidence)
    writer.put("records/id", encode_ids(data.ids), "stable id of the example")
    target = seen.targets.int() if classification else seen.targets
    writer.put("records/target", target, "given label" if classification else "target values (N, O)")
    writer.put(
        "records/loss",
        seen.losses,
        "loss at the reference checkpoint",
        data.task.units,
    )
    if classification:
        writer.put("records/prediction", data.task.prediction(seen.logits).int(), "class with the largest logit")
    if not classification or seen.logits.shape[1] <= OutputMoments.LARGEST:
        writer.put("records/logits", seen.logits.half().clamp(-65504, 65504), "outputs of the network (N, O)")
    if isinstance(judged, LabelEvidence):
        writer.put("records/candidates", judged.candidates, "classes with evidence, the given label first (N, T)")
        values = judged.evidence.clamp(-65504, 65504).half()
        description = "log-likelihood of each candidate minus that of the given label (N, L, T)"
        held = {"layers": list(judged.layers), "parameters": judged.parameters}
        writer.put("records/evidence", values, description, "nats", **held)
        if values.shape[2] > 1:
            write_class_models(writer, judged, values, earlier)
    else:
        description = "target minus its prediction from all other examples (N, O)"
        shares = {"layers": list(judged.layers), "weights": judged.weights.numpy()}
        writer.put("records/residual", judged.residuals, description, "target units", **shares)


def _write_self_influence(
    writer: Writer, found: list[BlockCurvature], examples: int, task: Task, calibrated: InfluenceCalibration | None
) -> None:
    """From the factors as the file holds them: measured eigenvalues are known only after the pass that wrote these."""
    if not found:
        return
    records = writer.file["records"]
    scale = 1.0 if calibrated is None else calibrated.self_scale
    values = self_influence(lambda name, rows: records[name][rows], found, examples, scale)
    description = "first-order rise of the example's loss if it were removed (N,)"
    writer.put("records/self_influence", values, description, task.units)


def _describe(network: Network) -> str:
    if network.mode == FULL:
        return f"traced in full ({len(network.graph.steps)} steps)"
    return f"last layer '{network.head}' only"


def _say_coverage(network: Network) -> None:
    if network.mode != FULL:
        shown = "; ".join(network.reasons[:3]) + (
            f" and {len(network.reasons) - 3} more" if len(network.reasons) > 3 else ""
        )
        log.warning(
            f"not traced in full ({shown}): function space distance and influence use the last linear layer "
            f"'{network.head}' alone; evidence on labels comes from {len(network.hooked)} hooked activation layers"
        )
    still = [name for name in network.graph.parameter_names() if name in network.graph.frozen]
    if still:
        log.info(f"influence leaves out {len(still)} frozen parameters, '{still[0]}' first")
    omitted = left_out(network.graph, network.parameters)
    if omitted:
        log.info(f"influence leaves out {len(omitted)} parameters of batch norm and the like, '{omitted[0]}' first")


def _say_weights(network: Network, size: int) -> None:
    """Tell what the weights cost where they are most of a big file of `size` bytes."""
    weights = sum(value.numel() * value.element_size() for value in network.parameters.values())
    if size >= BIG_FILE and weights > size / 2:
        log.info(
            f"the weights take {weights / MEGABYTE:,.0f} of the file's {size / MEGABYTE:,.0f} MB; "
            "--no-weights leaves them out: find-mislabeled does not need them, fsd and influence do"
        )


def _say_small_components(statistics: Statistics) -> None:
    if statistics.kind != "class":
        return
    single = [name for name, n in zip(statistics.names, statistics.count.tolist(), strict=True) if n == 1]
    if single:
        count = "1 class has" if len(single) == 1 else f"{len(single)} classes have"
        log.warning(
            f"{count} a single example ({', '.join(single[:5])}): "
            "the statistics are that example's, and its label cannot be judged"
        )
