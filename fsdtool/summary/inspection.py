"""What `fsdtool inspect` shows: where a summary comes from, what it holds, and the bytes of every part.

It is read without torch, as plain data: that the network runs is checked by those who run it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import h5py

from fsdtool.curvature.sources import MEASURED
from fsdtool.statistics.fit import described
from fsdtool.summary import hdf5
from fsdtool.summary.catalogue import Catalogue, open_catalogue, read_distance_calibration
from fsdtool.summary.identity import read_names, read_values
from fsdtool.util.fields import Fields

FULL = "full"  # mode of a network that was traced whole
NOT_TRAINED = ("running_", "buffer")  # what the roles of parameters that are not trained begin with

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


SHOWN = (
    *("created", "tool_version", "model_spec", "mode", "head", "checkpoint_name", "checkpoint_sha256", "earlier"),
    *("fingerprint", "reasons"),
)


def inspect_rows(path: Path) -> tuple[list[tuple[str, str]], list[dict[str, Any]]]:
    """Header lines, and one row per part: part, bytes, bytes_per_example (None for what does not grow), description.

    Raises SummaryError for a file that is missing, damaged, or of another kind or schema.
    """
    with open_catalogue(path) as summary:
        stored = dict.fromkeys(PARTS, 0)
        for name, size in part_sizes(path).items():
            part = next((part for part in PARTS if name.startswith(f"{part}/") or name == part), OTHER)
            stored[part] += size
        rows = [_row(part, size, summary.examples, PARTS[part]) for part, size in stored.items() if size]
        whole = Path(path).stat().st_size
        structure = whole - sum(stored.values())
        rows.append(_row("HDF5 structure", structure, summary.examples, "names, attributes, chunk indices"))
        return _header(summary, stored), [*rows, _row("total", whole, summary.examples, "the file")]


def part_sizes(path: str | Path) -> dict[str, int]:
    """Stored bytes of every dataset, by its path in the file."""
    with contextlib.closing(hdf5.open_file(Path(path))) as file:
        return {name.lstrip("/"): hdf5.stored_bytes(dataset) for name, dataset in hdf5.walk(file)}


def _row(part: str, size: int, examples: int, description: str) -> dict[str, Any]:
    per_example = size / examples if part.startswith(("records", "total")) else None
    return {"part": part, "bytes": size, "bytes_per_example": per_example, "description": description}


def _header(summary: Catalogue, stored: dict[str, int]) -> list[tuple[str, str]]:
    """Where the summary comes from and what it holds, as labels and text."""
    file = summary.open_file()
    held = read_values(file, *SHOWN)
    steps, frozen = _steps(file), read_names(file).texts("frozen")
    trained = trained_parameters(steps, frozen)
    blocks = [hdf5.group(file, f"curvature/{name}") for name in trained if hdf5.has(file, f"curvature/{name}")]
    network = "traced in full" if held["mode"] == FULL else f"last layer '{held['head']}' only"
    lines = [
        ("written", f"{held['created']} by fsdtool {held['tool_version']}"),
        ("task", summary.task.name),
        ("model", f"{held['model_spec']} ({network}, {len(steps)} steps)"),
        ("checkpoint", f"{held['checkpoint_name']} (SHA-256 {held['checkpoint_sha256'][:16]}...)"),
        *(("earlier", f"{name} (SHA-256 {sha256[:16]}...)") for name, sha256 in held["earlier"]),
        ("data", f"{summary.data_spec} ({summary.examples:,} examples, fingerprint {held['fingerprint'][:16]}...)"),
        *([] if summary.fit is None else [("fit", described(summary.fit))]),
        ("components", _components(file, summary, stored)),
        *_curvature(blocks),
    ]
    read = dict.fromkeys(name for step in steps for name in step["parameters"].values())
    if still := [name for name in read if name in frozen]:
        lines.append(("frozen", f"{len(still)} parameters: {_few(still)}"))
    distance = read_distance_calibration(file, summary.task)
    if distance is not None:
        lines.append(("distance", str(distance)))
    if summary.influence is not None:
        factor = f"multiplied by {summary.influence.scale:.3g}, themselves by {summary.influence.self_scale:.3g}"
        lines.append(("influence", f"values from records: {summary.influence}; {factor}"))
    covered = {name for block in blocks for name in _names(block)}
    if omitted := [name for name in trained if blocks and name not in covered]:
        where = "influence" if hdf5.Attributes(blocks[0]).text("source") == MEASURED else "records"
        lines.append((f"not in {where}", f"{len(omitted)} parameters: {_few(omitted)}"))
    if held["reasons"]:
        lines.append(("not traced", "; ".join(held["reasons"][:3])))
    return lines


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _components(file: h5py.File, summary: Catalogue, stored: dict[str, int]) -> str:
    group = hdf5.group(file, "statistics")
    components = len(hdf5.dataset(group, "names", (None,), hdf5.TEXT))
    if not 1 <= components <= summary.examples:
        raise hdf5.unusable(group, f"{components} components are too many for {summary.examples} examples, or too few")
    each = (stored["statistics/gates"] + stored["statistics/input"]) // components
    return f"{components} ({hdf5.Attributes(group).text('kind')}), {each:,} bytes each"


def _curvature(blocks: Sequence[h5py.Group]) -> list[tuple[str, str]]:
    """Where the curvature is from, and how much of it is kept; nothing in a file without."""
    if not blocks:
        return []
    directions = sum(sum(hdf5.dataset(block, "eigenvalues", (None, None)).shape) for block in blocks)
    source = hdf5.Attributes(blocks[0]).text("source")
    return [("curvature", f"{source}, {len(blocks)} weights, {directions:,} directions")]


def _names(block: h5py.Group) -> set[str]:
    """The parameters that a curvature is of."""
    attributes = hdf5.Attributes(block)
    others = attributes.texts("others") if "others" in attributes else ()
    return {attributes.text("weight"), attributes.text("bias"), *others}


def _steps(file: h5py.File) -> list[dict[str, Any]]:
    """The steps of the network as plain data: its operation and the names of its parameters by role."""
    found = []
    for step in hdf5.json_in(file, "model/graph"):
        values = Fields(step, lambda what: hdf5.unusable(file, f"a step of its network: {what}"))
        found.append({"operation": values.text("operation"), "parameters": values.named_texts("parameters")})
    return found


def trained_parameters(steps: list[dict[str, Any]], frozen: Collection[str]) -> list[str]:
    """The trained parameters that steps as plain data read, in order of first use."""
    trained = (name for step in steps for role, name in step["parameters"].items() if not role.startswith(NOT_TRAINED))
    return [name for name in dict.fromkeys(trained) if name not in frozen]
