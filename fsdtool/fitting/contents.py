"""What a run of `summarize` writes, in one place: identity, weights, statistics, curvature, calibration, records."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from fsdtool import __version__
from fsdtool.data.source import DataSource
from fsdtool.fitting.passes import Seen
from fsdtool.fitting.plan import Plan
from fsdtool.fitting.preparation import Given, Prepared
from fsdtool.fsd.last_layer import digests
from fsdtool.influence.gradient_records import self_influence
from fsdtool.mislabel.class_model_file import write_class_models
from fsdtool.mislabel.label_evidence import LabelEvidence
from fsdtool.mislabel.multilabel.label_residuals import LabelResiduals
from fsdtool.mislabel.regression.target_residuals import TargetEvidence
from fsdtool.model.checkpoint import tensors_of, tied_names
from fsdtool.network.traced import FULL
from fsdtool.statistics.accumulators import OutputMoments
from fsdtool.statistics.distance_error import DistanceCalibration
from fsdtool.statistics.fit import Fit
from fsdtool.summary.catalogue import InfluenceCalibration
from fsdtool.summary.identity import Identity
from fsdtool.summary.writer import Writer, encode_ids
from fsdtool.tasks.task import Task

LARGEST_HALF = 65504  # of float16


@dataclass(frozen=True)
class Findings:
    """What was made of the pass.  evidence, influence: None without records."""

    fit: Fit
    evidence: LabelEvidence | LabelResiduals | TargetEvidence | None
    influence: InfluenceCalibration | None
    distance: DistanceCalibration


def write_summary(
    writer: Writer, given: Given, prepared: Prepared, plan: Plan, seen: Seen, found: Findings, *, keep_weights: bool
) -> None:
    """Everything but the gradient factors, which the pass has written."""
    network, data = prepared.network, prepared.data
    writer.write_identity(identity_of(given, prepared, seen.fingerprint, plan.seed))
    if keep_weights:
        writer.write_parameters(network.parameters)
    writer.write_statistics(seen.statistics, network.graph, plan.statistics.bits)
    writer.write_curvature(seen.curvature)
    writer.write_fit(found.fit)
    writer.write_distance_calibration(found.distance)
    if found.influence is not None:
        writer.write_influence_calibration(found.influence)
    if seen.anchors is not None:  # where there are records
        writer.write_anchors(seen.anchors, seen.statistics)
    if found.evidence is not None:
        _write_examples(writer, data, seen)
        names = [other.name for other in prepared.earlier]
        if isinstance(found.evidence, LabelEvidence):
            _write_label_evidence(writer, found.evidence, names)
        else:
            _write_residuals(writer, found.evidence)
        _write_self_influence(writer, seen, data.task, found.influence)


def identity_of(given: Given, prepared: Prepared, fingerprint: str, seed: int) -> Identity:
    """What was summarized, and how."""
    model, checkpoint, network, data = given.model, given.checkpoint, prepared.network, prepared.data
    return Identity(
        task=data.task,
        mode=network.mode,
        reasons=network.reasons,
        graph=network.graph,
        shapes={name: tuple(value.shape) for name, value in tensors_of(model).items()},
        model_spec=given.model_spec,
        model_arguments=dict(given.model_arguments),
        head=network.head,
        checkpoint_name=Path(checkpoint.path).name,
        checkpoint_sha256=checkpoint.sha256,
        checkpoint_averaged=checkpoint.averaged,
        data_spec=data.spec,
        examples=len(data),
        fingerprint=fingerprint,
        preprocessing=data.preprocessing,
        class_names=tuple(data.class_names) if data.class_names else None,
        seed=seed,
        tool_version=__version__,
        command_line=given.command_line,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        earlier=tuple((other.name, other.sha256) for other in prepared.earlier),
        tied=tied_names(model),
        computed=prepared.computed,
        digests={} if network.mode == FULL else digests(model, network.parameters),
        checkpoint_key=checkpoint.key,
        output=given.output_name,
    )


def _write_examples(writer: Writer, data: DataSource, seen: Seen) -> None:
    """Ids, targets, losses and, where they are not too many, outputs."""
    task, classes = data.task, data.task.has_classes
    writer.put("records/id", encode_ids(data.ids), "stable id of the example")
    target = seen.targets.int() if classes else seen.targets
    writer.put("records/target", target, "given label" if classes else "target values (N, O)")
    writer.put("records/loss", seen.losses, "loss at the reference checkpoint", task.units)
    if classes:
        writer.put("records/prediction", task.prediction(seen.logits).int(), "class with the largest logit")
    if not classes or seen.logits.shape[1] <= OutputMoments.LARGEST:
        logits = seen.logits.half().clamp(-LARGEST_HALF, LARGEST_HALF)
        writer.put("records/logits", logits, "outputs of the network (N, O)")


def _write_label_evidence(writer: Writer, evidence: LabelEvidence, earlier: list[str]) -> None:
    """The evidence on the classes that are likeliest, and the class models for new examples."""
    writer.put("records/candidates", evidence.candidates, "classes with evidence, the given label first (N, T)")
    values = evidence.evidence.clamp(-LARGEST_HALF, LARGEST_HALF).half()
    description = "log-likelihood of each candidate minus that of the given label (N, L, T)"
    held = {"layers": list(evidence.layers), "parameters": evidence.parameters}
    writer.put("records/evidence", values, description, "nats", **held)
    if values.shape[2] > 1:
        write_class_models(writer, evidence, values, earlier)


def _write_residuals(writer: Writer, evidence: LabelResiduals | TargetEvidence) -> None:
    """What each target, or label, is off from its prediction."""
    held = {"layers": list(evidence.layers), "weights": evidence.weights.numpy()}
    what, units = "target", "target units"
    if isinstance(evidence, LabelResiduals):
        what, units, held["rates"] = "label", "", evidence.rates.ravel()
    description = f"{what} minus its prediction from all other examples (N, O)"
    writer.put("records/residual", evidence.residuals, description, units, **held)


def _write_self_influence(writer: Writer, seen: Seen, task: Task, calibrated: InfluenceCalibration | None) -> None:
    """From the factors as the file holds them: measured eigenvalues are known only after the pass that wrote these."""
    if not seen.curvature:
        return
    records = writer.file["records"]
    scale = 1.0 if calibrated is None else calibrated.self_scale
    values = self_influence(lambda name, rows: records[name][rows], seen.curvature, len(seen.losses), scale)
    description = "first-order rise of the example's loss if it were removed (N,)"
    writer.put("records/self_influence", values, description, task.units)
