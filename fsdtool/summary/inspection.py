"""What `fsdtool inspect` shows: where a summary comes from, what it holds, and the bytes of every part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fsdtool.network.per_example_gradients import left_out
from fsdtool.network.trace import FULL
from fsdtool.statistics.fit import described
from fsdtool.summary.reader import Summary, load, part_sizes

OTHER = "other"
PARTS = {
    "identity": "what was summarized, by which command",
    "model/graph": "steps of the network",
    "model/shapes": "names and shapes of the state_dict",
    "model/names": "frozen, tied and computed parameters",
    "model/parameters": "weights of the reference checkpoint",
    "data": "class names",
    "statistics/input": "mean and covariance of the inputs, per component",
    "statistics/gates": "gate statistics, per component",
    "statistics": "the rest of the statistics: counts, output Hessians, a sample of outputs",
    "anchors": "projections and outputs of a sample of examples, for distances",
    "calibration": "what was measured of the summary's own error",
    "curvature": "eigenbases and eigenvalues, per weight",
    "evidence": "class Gaussians, which judge new labels",
    "records/gradients": "projected gradient factors, per example",
    "records/evidence": "evidence on labels, per example",
    "records/residual": "evidence on target values, per example",
    "records": "the rest of the records: ids, targets, outputs",
    OTHER: "not written by fsdtool",
}


def inspect_rows(path: Path) -> tuple[list[tuple[str, str]], list[dict[str, Any]]]:
    """Header lines, and one row per part: part, bytes, bytes_per_example (None for what does not grow), description."""
    summary = load(path)
    examples = summary.identity.examples
    stored = dict.fromkeys(PARTS, 0)
    for name, size in part_sizes(path).items():
        part = next((part for part in PARTS if name.startswith(f"{part}/") or name == part), OTHER)
        stored[part] += size
    rows = [_row(part, size, examples, PARTS[part]) for part, size in stored.items() if size]
    whole = Path(path).stat().st_size
    rows.append(_row("HDF5 structure", whole - sum(stored.values()), examples, "names, attributes, chunk indices"))
    return _header(summary, stored), [*rows, _row("total", whole, examples, "the file")]


def _row(part: str, size: int, examples: int, description: str) -> dict[str, Any]:
    per_example = size / examples if part.startswith(("records", "total")) else None
    return {"part": part, "bytes": size, "bytes_per_example": per_example, "description": description}


def _header(summary: Summary, stored: dict[str, int]) -> list[tuple[str, str]]:
    identity, statistics = summary.identity, summary.statistics
    network = "traced in full" if identity.mode == FULL else f"last layer '{identity.head}' only"
    components = len(statistics.names)
    each = (stored["statistics/gates"] + stored["statistics/input"]) // components
    lines = [
        ("written", f"{identity.created} by fsdtool {identity.tool_version}"),
        ("task", identity.task.name),
        ("model", f"{identity.model_spec} ({network}, {len(identity.graph.steps)} steps)"),
        ("checkpoint", f"{identity.checkpoint_name} (SHA-256 {identity.checkpoint_sha256[:16]}...)"),
        *(("earlier", f"{name} (SHA-256 {sha256[:16]}...)") for name, sha256 in identity.earlier),
        (
            "data",
            f"{identity.data_spec} ({identity.examples:,} examples, fingerprint {identity.fingerprint[:16]}...)",
        ),
        *([] if summary.fit is None else [("fit", described(summary.fit))]),
        ("components", f"{components} ({statistics.kind}), {each:,} bytes each"),
    ]
    if summary.curvature:
        directions = sum(sum(c.eigenvalues.shape) for c in summary.curvature)
        kept = f"{len(summary.curvature)} weights, {directions:,} directions"
        lines.append(("curvature", f"{summary.curvature[0].source}, {kept}"))
    still = [name for name in identity.graph.parameter_names() if name in identity.graph.frozen]
    if still:
        lines.append(("frozen", f"{len(still)} parameters: {', '.join(still[:3])}{', ...' if len(still) > 3 else ''}"))
    if summary.distance_calibration is not None:
        lines.append(("distance", str(summary.distance_calibration)))
    if summary.influence is not None:
        factor = f"multiplied by {summary.influence.scale:.3g}, themselves by {summary.influence.self_scale:.3g}"
        lines.append(("influence", f"values from records: {summary.influence}; {factor}"))
    shapes = {name: torch.empty(shape, device="meta") for name, shape in identity.shapes.items()}
    omitted = left_out(identity.graph, shapes)
    if omitted:
        few = ", ".join(omitted[:3]) + (", ..." if len(omitted) > 3 else "")
        lines.append(("not in influence", f"{len(omitted)} parameters of batch norm and the like: {few}"))
    if identity.reasons:
        lines.append(("not traced", "; ".join(identity.reasons[:3])))
    return lines
