"""Influence of training examples on predictions, from the summary's records or from the data streamed again.

tau(q, i) = (1/N) g_q^T (G + lambda)^-1 g_i, with G the curvature of the summary: the first-order estimate, in
the units of the loss (nats for cross-entropy), of how much the loss on query q would rise if training example
i were removed.  Positive: the example helps (a proponent).  Negative: it harms (an opponent).

The gradients of as many queries as memory allows are solved with G + lambda at once, then all training examples
pass by in chunks (fsdtool.influence.training_examples), so memory does not grow with either number.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fsdtool.curvature.ekfac import BlockCurvature, curvature
from fsdtool.curvature.gauss_newton import ConjugateGradients, GaussNewton
from fsdtool.curvature.sources import MEASURED
from fsdtool.data.source import DataSource
from fsdtool.errors import FsdtoolError
from fsdtool.influence.bregman_response import Response, respond
from fsdtool.influence.data_gradients import Examples, NewFit
from fsdtool.influence.matrix_file import matrix_file
from fsdtool.influence.query_solves import factors_of, preparation, solved_blocks
from fsdtool.influence.self_scores import SelfInfluence, gradient_records, recorded_self_influence, say_calibration
from fsdtool.influence.solvers import CG, KRONECKER, PBO
from fsdtool.influence.top_k import TopK, largest
from fsdtool.influence.training_examples import Recorded, Streamed
from fsdtool.network.per_example_gradients import left_out
from fsdtool.summary.reader import Summary
from fsdtool.util.progress import Track, silent

log = logging.getLogger("fsdtool")

SCREENED_FROM = 50_000  # records; below, a few products more cost less than choosing


@dataclass(frozen=True)
class Scored:
    """Queries, and per query the training examples with the strongest influence.

    queries: (Q,) their ids, or ['mean'].  proponents and opponents: (Q, K) rows of the examples, strongest
    first and in their order where they tie, and their values in the units of the loss.  ids (N,) and targets of the
    examples; labels and predictions (Q,) of the queries, None for their mean.
    """

    summary: Summary
    queries: list[Any]
    proponents: tuple[Tensor, Tensor]
    opponents: tuple[Tensor, Tensor]
    ids: np.ndarray
    targets: np.ndarray
    labels: list[Any]
    predictions: list[Any]

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row per query, kind and rank."""
        for q, query in enumerate(self.queries):
            for kind, (order, values) in (("proponent", self.proponents), ("opponent", self.opponents)):
                for rank, (i, value) in enumerate(zip(order[q].tolist(), values[q].tolist(), strict=True), 1):
                    if (value > 0) == (kind == "proponent") and value != 0:
                        yield {
                            "query_id": query,
                            "kind": kind,
                            "rank": rank,
                            "id": self.ids[i].item(),
                            "label": self.summary.target_name(self.targets[i]),
                            "loss_change_if_removed": value,
                            "query_label": self.labels[q],
                            "query_prediction": self.predictions[q],
                        }


@dataclass(frozen=True)
class _Asked:
    """The queries to explain: rows of their data, and what the rows of the answer say of each."""

    rows: np.ndarray
    ids: list[Any]
    labels: list[Any]
    predictions: list[Any]


def influence(
    summary: Summary,
    queries: DataSource,
    *,
    top: int = 10,
    mean: bool = False,
    misclassified: bool = False,
    matrix: Path | None = None,
    data: DataSource | None = None,
    among: np.ndarray | None = None,
    solver: str = KRONECKER,
    model: nn.Module | None = None,
    device: torch.device | None = None,
    batch_size: int = 256,
    track: Track = silent,
) -> Scored:
    """The `top` proponents and opponents of each query, or with `mean` of the queries' mean loss.

    misclassified: only queries whose prediction differs from their label.  matrix: where to write the whole
    float32 (queries, N) matrix in the order of the examples, as .npy or .h5.  data: score these examples, with exact
    gradients, instead of the records; they are read once per block of queries.  solver: 'kronecker'; 'cg' for the
    whole matrix with the layers' cross terms; 'pbo' measures the `top` of each kind again by the proximal Bregman
    response (fsdtool.influence.bregman_response), which needs `data` and solves one problem per example listed.  among
    (N,) bool: only these training examples are ranked.  model: the reference model, for summaries in last layer mode.

    Raises FsdtoolError for a summary without weights, or without records where no data is given, and for queries or
    data that do not fit it.
    """
    device = device or torch.device("cpu")
    if misclassified and not summary.task.has_classes:
        raise FsdtoolError(
            f"'{summary.path}' is of a {summary.task}, which has no misclassified queries; leave `misclassified` out"
        )
    if solver == PBO and data is None:
        raise FsdtoolError('`solver="pbo"` needs the training data; give it by `data`')
    if solver == PBO and matrix is not None:
        raise FsdtoolError('`solver="pbo"` has no values for a whole matrix; leave `matrix` out')
    candidates, used = _candidates(summary, data, model, device, batch_size)
    explained = Examples(summary, queries, model=model, device=device, noun="query")
    asked = _ask(summary, explained, misclassified, batch_size)
    gradients = ConjugateGradients(_gauss_newton(summary, explained), used) if solver == CG else None
    plain = data is None and among is None and solver == KRONECKER and matrix is None and not mean
    screened = plain and len(candidates) >= SCREENED_FROM and explained.rank_one
    solve = factors_of(used) if screened else preparation(explained, used, in_basis=data is None, whole=gradients)
    _say_coverage(explained, used)
    ids = ["mean"] if mean else asked.ids
    parts = []
    with (
        matrix_file(matrix, ids, candidates.ids, summary.task.units) as put,
        track("influence", len(candidates) * (1 if mean else -(-len(asked.rows) // solve.most))) as advance,
    ):
        for block, solved in solved_blocks(explained, asked.rows, used, solve, mean, batch_size):
            best = TopK(block.stop - block.start, min(top, len(candidates)))
            if screened and isinstance(candidates, Recorded):
                scored = candidates.screened(solved, best)
            else:
                scored = candidates.scores(solved)
            for rows, scores in scored:
                _check_finite(scores, rows, candidates)
                # A score of zero is neither a proponent's nor an opponent's.
                best.update(scores if among is None else scores * torch.from_numpy(among[rows]), rows.start)
                put(block, rows, scores.numpy())
                advance(rows.stop - rows.start)
            parts.append(best.finalize())
    if gradients is not None:
        gradients.say()
    proponents, opponents = (_joined([part[kind] for part in parts]) for kind in (0, 1))
    if solver == PBO:
        assert isinstance(candidates, Streamed)  # as `data` is given
        response = Response(_gauss_newton(summary, explained), used, summary.task, summary.identity.examples)
        shortlist = torch.cat([proponents[0], opponents[0]], 1)
        rows_asked, training = torch.from_numpy(asked.rows), candidates.examples
        values = respond(
            response, explained, rows_asked, training, shortlist, mean=mean, batch_size=batch_size, track=track
        )
        proponents, opponents = _ranked_again(shortlist, values, proponents[0].shape[1])
        response.say()
    none = [None]
    labels, predictions = (none, none) if mean else (asked.labels, asked.predictions)
    return Scored(summary, ids, proponents, opponents, candidates.ids, candidates.targets(), labels, predictions)


def self_influence(
    summary: Summary,
    *,
    data: DataSource | None = None,
    among: np.ndarray | None = None,
    model: nn.Module | None = None,
    device: torch.device | None = None,
    batch_size: int = 256,
    track: Track = silent,
) -> SelfInfluence:
    """tau(i, i) of every training example, from its record, or of the examples of `data` with exact gradients.

    Raises FsdtoolError for a summary without records where no data is given, and as `influence` does.
    """
    if data is None:
        return recorded_self_influence(summary, among=among)
    streamed, _ = _streamed(summary, data, model, device or torch.device("cpu"), batch_size)
    values = []
    with track("self-influence", len(streamed)) as advance:
        for rows, found in streamed.selves():
            _check_finite(found[None], rows, streamed)
            values.append(found.numpy())
            advance(rows.stop - rows.start)
    return SelfInfluence(summary, np.concatenate(values), streamed.ids, streamed.targets(), among)


def _check_finite(scores: Tensor, rows: slice, candidates: Recorded | Streamed) -> None:
    """Raise FsdtoolError for a score (Q, n) of the training examples `rows` that is no number."""
    broken = (~torch.isfinite(scores).all(0)).nonzero()[:, 0].tolist()
    if broken:
        raise FsdtoolError(
            f"the influence of example {candidates.ids[rows.start + broken[0]]} is not finite "
            f"({len(broken)} of {scores.shape[1]} in its batch); check the weights, they may be too large for float32"
        )


def whole_curvature(summary: Summary, device: torch.device | None = None) -> list[BlockCurvature]:
    """The curvature for exact gradients: that of the file if it was measured, else in every direction from statistics.

    A measured one is cut to the directions of the records, which the flat rest makes up for.
    """
    device = device or torch.device("cpu")
    if summary.curvature and summary.curvature[0].source == MEASURED:
        return [c.to(device) for c in summary.curvature]
    identity = summary.identity
    assert summary.parameters is not None
    parameters = {name: value.to(device) for name, value in summary.parameters.items()}
    return curvature(identity.graph, parameters, summary.statistics, seed=identity.seed, device=device)


def _candidates(
    summary: Summary, data: DataSource | None, model: nn.Module | None, device: torch.device, batch_size: int
) -> tuple[Recorded | Streamed, list[BlockCurvature]]:
    """What is scored, records or data, and the curvature that goes with it."""
    if data is not None:
        return _streamed(summary, data, model, device, batch_size)
    used = [c.to(device) for c in summary.curvature]
    records = gradient_records(summary)
    say_calibration(summary, "values")
    return Recorded(records, used, device, 1.0 if summary.influence is None else summary.influence.scale), used


def _streamed(
    summary: Summary, data: DataSource, model: nn.Module | None, device: torch.device, batch_size: int
) -> tuple[Streamed, list[BlockCurvature]]:
    examples = Examples(summary, data, model=model, device=device, noun="training")
    used = whole_curvature(summary, device)
    return Streamed(summary, examples, used, batch_size), used


def _say_coverage(examples: Examples, used: list[BlockCurvature]) -> None:
    omitted = left_out(examples.graph, examples.parameters)
    without = f", without {len(omitted)} parameters such as '{omitted[0]}'" if omitted else ""
    still = [name for name in examples.graph.parameter_names() if name in examples.graph.frozen]
    without += f", without {len(still)} frozen ones such as '{still[0]}'" if still else ""
    log.info(f"curvature: {used[0].source}, {len(used)} weights{without}")


def _ask(summary: Summary, examples: Examples, misclassified: bool, batch_size: int) -> _Asked:
    """The queries, chosen in a pass that computes their outputs alone."""
    asked = _Asked(np.empty(0, dtype=np.int64), [], [], [])
    rows, fit = [], NewFit(summary, "query")
    for batch, outputs in examples.outputs(batch_size):
        fit.update(batch, outputs)
        found = summary.task.prediction(outputs)
        keep = (found != batch.y).nonzero()[:, 0] if misclassified else torch.arange(len(batch.y))
        rows.append(batch.index[keep].numpy())
        asked.ids.extend(examples.ids[i].item() for i in rows[-1].tolist())
        asked.labels.extend(summary.target_name(y) for y in batch.y[keep].numpy())
        asked.predictions.extend(summary.target_name(y) for y in found[keep].numpy())
    fit.say()
    if not asked.ids:
        which = "misclassified queries" if misclassified else "queries"
        raise FsdtoolError(f"there are no {which} in '{examples.source.spec}', so nothing to explain; give others")
    return _Asked(np.concatenate(rows), asked.ids, asked.labels, asked.predictions)


def _joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The rows and values of all blocks of queries."""
    rows, values = zip(*parts, strict=True)
    return torch.cat(rows), torch.cat(values)


def _ranked_again(shortlist: Tensor, values: Tensor, k: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The k largest and the k smallest of the shortlist (Q, 2k) by new values; an example on it twice counts once."""
    second = (shortlist[:, :, None] == shortlist[:, None, :]).tril(-1).any(2)
    ranked = []
    for sign in (1, -1):
        signed = (sign * values).masked_fill(second, -torch.inf)
        order = largest(signed, k)
        ranked.append((shortlist.gather(1, order), sign * signed.gather(1, order)))
    return ranked[0], ranked[1]


def _gauss_newton(summary: Summary, examples: Examples) -> GaussNewton:
    return GaussNewton(
        examples.graph,
        examples.parameters,
        summary.statistics,
        list(examples.blocks.values()),
        seed=summary.identity.seed,
        device=examples.device,
    )
