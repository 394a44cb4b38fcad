"""Influence of training examples on predictions, from the summary's records alone.

tau(q, i) = (1/N) g_q^T (G + lambda)^-1 g_i, with G the curvature of the summary: the first-order estimate, in
the units of the loss (nats for cross-entropy), of how much the loss on query q would rise if training example
i were removed.  Positive: the example helps (a proponent).  Negative: it harms (an opponent).

With the query's gradient exact in the kept directions, Q = S^T G_q A / (eigenvalues + damping), and a
record's factors b and a, a weight contributes b^T Q a.  Records are read in chunks, so memory does not grow
with N.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fsdtool.datasets import Batch, DataSource, check_labels, fit_layout
from fsdtool.errors import FsdtoolError
from fsdtool.files import Sibling, cannot_write, reserve
from fsdtool.gradients import blocks, capture, project
from fsdtool.losses import loss_gradient
from fsdtool.memory import BatchSize
from fsdtool.progress import Track, silent
from fsdtool.summary import Records, Summary
from fsdtool.trace import FULL, LAST_LAYER, Network

CHUNK = 16384  # records scored at once


@dataclass(frozen=True)
class Scored:
    """Queries, and per query the training examples with the strongest influence.

    queries: (Q,) their ids, or ['mean'].  proponents and opponents: (Q, K) rows of the records, strongest
    first and in record order where they tie, and their values in the units of the loss.
    """

    summary: Summary
    queries: list[Any]
    proponents: tuple[Tensor, Tensor]
    opponents: tuple[Tensor, Tensor]

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row per query, kind and rank."""
        records = self.summary.records
        labels = records.read("target")
        for q, query in enumerate(self.queries):
            for kind, (order, values) in (("proponent", self.proponents), ("opponent", self.opponents)):
                for rank, (i, value) in enumerate(zip(order[q].tolist(), values[q].tolist(), strict=True), 1):
                    if (value > 0) == (kind == "proponent") and value != 0:
                        yield {
                            "query_id": query,
                            "kind": kind,
                            "rank": rank,
                            "id": records.ids[i].item(),
                            "label": _label(self.summary, labels[i]),
                            "loss_change_if_removed": value,
                        }


@dataclass(frozen=True)
class SelfInfluence:
    """Influence of each training example on its own loss (N,), in record order; among: the rows (N,) to be listed."""

    summary: Summary
    values: Tensor
    among: np.ndarray | None = None

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row per example, strongest first."""
        records = self.summary.records
        labels = records.read("target")
        order = self.values.argsort(descending=True, stable=True)
        if self.among is not None:
            order = order[torch.from_numpy(self.among)[order]]
        for i in order.tolist():
            label = _label(self.summary, labels[i])
            yield {"id": records.ids[i].item(), "label": label, "self_influence": float(self.values[i])}


def influence(
    summary: Summary,
    queries: DataSource,
    *,
    top: int = 10,
    mean: bool = False,
    misclassified: bool = False,
    matrix: Path | None = None,
    model: nn.Module | None = None,
    device: torch.device | None = None,
    batch_size: int = 256,
    among: np.ndarray | None = None,
    track: Track = silent,
) -> Scored:
    """The `top` proponents and opponents of each query, or with `mean` of the queries' mean loss.

    misclassified: only queries whose prediction differs from their label.  matrix: where to write the whole
    float32 (queries, N) matrix in record order, as .npy.  model: the reference model, for summaries in last
    layer mode.  among (N,) bool: only these training examples are ranked.  Raises FsdtoolError for a summary without
    records or weights and for queries that do not fit it.
    """
    records = _records(summary)
    device = device or torch.device("cpu")
    network = network_of(summary, model).to(device)
    if misclassified and summary.task != "classification":
        raise FsdtoolError(
            f"'{summary.path}' is of a regression, which has no misclassified queries; leave --misclassified out"
        )
    queries = _fitting(network, queries)
    ids, gradients = _query_gradients(summary, network, queries, misclassified, mean, device, batch_size)
    if not ids:
        which = "misclassified queries" if misclassified else "queries"
        raise FsdtoolError(f"there are no {which} in '{queries.spec}', so nothing to explain; give others")
    best = _Best(len(ids), min(top, len(records)))
    with (
        _matrix_file(matrix, (len(ids), len(records))) as output,
        track("influence", len(records)) as advance,
    ):

        def score(rows: slice) -> tuple[slice, Tensor]:
            return rows, _scores(summary, records, gradients, rows, device).cpu()

        for rows, scores in BatchSize(CHUNK).parts(len(records), score):  # scores (Q, n)
            # A score of zero is neither a proponent's nor an opponent's.
            ranked = scores if among is None else scores * torch.from_numpy(among[rows])
            best.update(ranked, rows.start)
            if output is not None:
                output[:, rows] = scores.numpy()
            advance(rows.stop - rows.start)
    return Scored(summary, ids, *best.finalize())


def self_influence(summary: Summary, *, among: np.ndarray | None = None, track: Track = silent) -> SelfInfluence:
    """tau(i, i) of every training example, from its record; `among` (N,) bool are to be listed (None: all).

    Raises FsdtoolError for a summary without records.
    """
    records = _records(summary)
    values = torch.zeros(len(records))
    with track("self-influence", len(records)) as advance:
        for rows in _chunks(len(records)):
            for c in summary.curvature:
                b, a = records.factors(c.weight, rows).part(slice(None))
                values[rows] += (b.square() @ c.damped.reciprocal() * a.square()).sum(1)
            advance(rows.stop - rows.start)
    return SelfInfluence(summary, values / len(records), among)


def network_of(summary: Summary, model: nn.Module | None = None) -> Network:
    """The reference network as the summary holds it; in last layer mode `model` computes its features.

    Raises FsdtoolError when the summary has no weights, or needs a model that is not given.
    """
    identity = summary.identity
    if summary.parameters is None:
        raise FsdtoolError(f"'{summary.path}' was written with --no-weights; write it again with weights")
    if identity.mode == LAST_LAYER and model is None:
        raise FsdtoolError(
            f"'{summary.path}' holds only the last layer '{identity.head}' of {identity.model_spec}; "
            "give --model and --checkpoint to compute the features of the queries"
        )
    used = model if identity.mode != FULL else None
    return Network(identity.graph, summary.parameters, identity.mode, identity.reasons, used, identity.head)


def _records(summary: Summary) -> Records:
    if summary.records is None or not summary.curvature:
        raise FsdtoolError(f"'{summary.path}' was written with --no-records; write it again with records")
    return summary.records


def _label(summary: Summary, target: np.ndarray) -> Any:
    if summary.task == "classification":
        return summary.label_name(int(target))
    return target.item() if target.size == 1 else " ".join(f"{v:.7g}" for v in target.tolist())


def _chunks(count: int) -> Iterator[slice]:
    for start in range(0, count, CHUNK):
        yield slice(start, min(start + CHUNK, count))


def _fitting(network: Network, queries: DataSource) -> DataSource:
    """The queries, known to be inputs that the network takes."""
    if network.mode != FULL:
        return fit_layout(queries, network.model)
    found, expected = tuple(queries.input_shape), tuple(network.graph.input_shape)
    if found != expected:
        raise FsdtoolError(
            f"the queries '{queries.spec}' have inputs of shape {found}, "
            f"the summary was made from {expected}; give data of the same kind"
        )
    return queries


def _query_gradients(
    summary: Summary,
    network: Network,
    queries: DataSource,
    misclassified: bool,
    mean: bool,
    device: torch.device,
    batch_size: int,
) -> tuple[list[Any], list[Tensor]]:
    """Ids, and per weight the preconditioned gradients Q (queries, ks, ka), with `mean` of one query."""
    graph = network.graph
    found = {block.weight: block for block in blocks(graph, network.parameters)}
    curvatures = [c.to(device) for c in summary.curvature]
    parts: list[list[Tensor]] = [[] for _ in curvatures]
    ids: list[Any] = []

    def of(rows: slice) -> tuple[list[Any], list[Tensor]]:
        x, y = batch.x[rows].to(device), batch.y[rows].to(device)
        logits, uses = capture(graph, network.parameters, network.signal(x), loss_gradient(summary.task, y))
        keep = (logits.argmax(1) != y).cpu() if misclassified else torch.ones(len(y), dtype=torch.bool)
        kept = [queries.ids[i].item() for i in batch.index[rows][keep].tolist()]
        gradients = []
        for c in curvatures:
            g = project(found[c.weight], uses, c.output_basis, c.input_basis)[keep.to(device)] / c.damped
            _check_finite(g, kept)
            gradients.append(g.sum(0, keepdim=True) if mean else g)
        return kept, gradients

    size = BatchSize(batch_size)
    for batch in queries.batches(batch_size):
        _check_queries(summary, network, queries, batch)
        for kept, gradients in size.parts(len(batch.index), of):
            ids += kept
            for part, g in zip(parts, gradients, strict=True):
                part.append(g)
    gradients = [torch.cat(part) for part in parts] if ids else []
    if mean and ids:
        return ["mean"], [g.sum(0, keepdim=True) / len(ids) for g in gradients]
    return ids, gradients


def _check_queries(summary: Summary, network: Network, queries: DataSource, batch: Batch) -> None:
    if summary.task == "classification":
        check_labels(batch.y, batch.index, queries.ids, network.graph.outputs)
    elif batch.y.shape[1] != network.graph.outputs:
        raise FsdtoolError(
            f"the queries have {batch.y.shape[1]} target values, the model {network.graph.outputs} outputs; "
            "give data of the same kind"
        )


def _check_finite(g: Tensor, ids: list[Any]) -> None:
    """`ids` are those of the queries that g (queries, ks, ka) is of."""
    broken = (~torch.isfinite(g).flatten(1).all(1)).nonzero()[:, 0].tolist()
    if broken:
        raise FsdtoolError(
            f"the gradient of query {ids[broken[0]]} is not finite: "
            "its inputs are far outside those of training; correct or remove it"
        )


def _scores(summary: Summary, records: Records, gradients: list[Tensor], rows: slice, device: torch.device) -> Tensor:
    """tau (Q, n) of all queries with the records `rows`."""
    total = torch.zeros(len(gradients[0]), rows.stop - rows.start, device=device)
    for c, q in zip(summary.curvature, gradients, strict=True):
        b, a = (v.to(device) for v in records.factors(c.weight, rows).part(slice(None)))
        for i, matrix in enumerate(q):  # b^T Q a: through the narrower side first
            total[i] += ((b @ matrix) * a).sum(1) if matrix.shape[0] < matrix.shape[1] else ((a @ matrix.T) * b).sum(1)
    return total / len(records)


class _Best:
    """The k largest and k smallest scores of each query over chunks of records, ties in record order."""

    def __init__(self, queries: int, k: int):
        self.k = k
        self.values = {sign: torch.empty(queries, 0) for sign in (1, -1)}
        self.rows = {sign: torch.empty(queries, 0, dtype=torch.int64) for sign in (1, -1)}

    def update(self, scores: Tensor, start: int) -> None:
        rows = torch.arange(start, start + scores.shape[1]).expand_as(scores)
        for sign in (1, -1):
            values = torch.cat([self.values[sign], sign * scores], 1)
            order = _largest(values, min(self.k, values.shape[1]))
            self.values[sign] = values.gather(1, order)
            self.rows[sign] = torch.cat([self.rows[sign], rows], 1).gather(1, order)

    def finalize(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(rows, values) of the proponents and of the opponents, strongest first."""
        return (self.rows[1], self.values[1]), (self.rows[-1], -self.values[-1])


def _largest(values: Tensor, k: int) -> Tensor:
    """Columns (Q, k) of each row's k largest entries, largest first, ties in column order (unlike topk)."""
    least = values.topk(k, dim=1).values[:, -1:]
    above, tied = values > least, values == least
    chosen = above | (tied & (tied.cumsum(1) <= k - above.sum(1, keepdim=True)))
    columns = chosen.nonzero()[:, 1].view(len(values), k)
    order = values.gather(1, columns).sort(dim=1, descending=True, stable=True).indices
    return columns.gather(1, order)


@contextmanager
def _matrix_file(path: Path | None, shape: tuple[int, int]) -> Iterator[np.memmap | None]:
    """A float32 array in a .npy file, which appears at `path` when it is complete; None without a path."""
    if path is None:
        yield None
        return
    try:
        sibling = Sibling(path)
    except OSError as error:
        raise cannot_write("the matrix", path, error) from error
    try:
        # A float32 takes 4 bytes; the header of a .npy file of two dimensions takes 128.
        reserve(sibling.file, 4 * shape[0] * shape[1] + 128)
        matrix = np.lib.format.open_memmap(sibling.path, mode="w+", dtype=np.float32, shape=shape)
        reserve(sibling.file, sibling.path.stat().st_size)
        yield matrix
        matrix.flush()
        sibling.put_in_place()
    except OSError as error:
        raise cannot_write("the matrix", path, error) from error
    finally:
        sibling.discard()
