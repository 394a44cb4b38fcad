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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fsdtool.curvature.ekfac import DAMPING_FACTOR, BlockCurvature
from fsdtool.curvature.gauss_newton import ConjugateGradients, GaussNewton
from fsdtool.curvature.simulated import simulated_curvature
from fsdtool.curvature.sources import MEASURED
from fsdtool.data.source import DataSource
from fsdtool.errors import FsdtoolError
from fsdtool.influence.bregman_response import Response, respond
from fsdtool.influence.data_gradients import Examples
from fsdtool.influence.gradient_records import self_influence as self_influence_of
from fsdtool.influence.matrix_file import Put, matrix_file
from fsdtool.influence.matrix_formats.matrix_format import format_of
from fsdtool.influence.queries import Asked, ask
from fsdtool.influence.query_solves import Solve, factors_of, preparation, solved_blocks
from fsdtool.influence.self_scores import SelfInfluence, gradient_records, recorded_self_influence, say_calibration
from fsdtool.influence.solvers import CG, KRONECKER, PBO, SOLVERS
from fsdtool.influence.top_k import TopK, largest
from fsdtool.influence.training_examples import Recorded, Scores, Streamed
from fsdtool.network.per_example_gradients import parameters_without_block
from fsdtool.summary.reader import Summary
from fsdtool.util.progress import Track, silent

log = logging.getLogger("fsdtool")

Ranked = tuple[Tensor, Tensor]  # rows (Q, K) of the examples, int64, and their values (Q, K)

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
    damping_factor: float = DAMPING_FACTOR,
    model: nn.Module | None = None,
    device: torch.device | None = None,
    batch_size: int = 256,
    track: Track = silent,
) -> Scored:
    """The `top` proponents and opponents of each query, or with `mean` of the queries' mean loss.

    misclassified: only queries whose prediction differs from their label.  matrix: a file, .npy or .h5, for all values,
    float32 (queries, N) in the order of the examples.  data: score these examples, with exact gradients, instead of
    the records; they are read once per block of queries.  solver: one of fsdtool.influence.solvers; 'pbo' needs `data`.
    among (N,) bool: only these training examples are ranked.  damping_factor: lambda of each weight, in mean
    eigenvalues of its curvature; the scale of values from records was calibrated with the default.  model: the
    reference model, for summaries in last layer mode.

    Raises FsdtoolError for a summary without weights, or without records where no data is given, and for queries, data
    or arguments that do not fit it.
    """
    device = device or torch.device("cpu")
    _check_arguments(summary, misclassified, solver, data, matrix)
    candidates, used = _candidates(summary, data, model, device, batch_size, damping_factor)
    explained = Examples(summary, queries, model=model, device=device, noun="query")
    explained.restrict(used)
    asked = ask(summary, explained, misclassified, batch_size)
    asked = asked.of_mean() if mean else asked
    whole = ConjugateGradients(_gauss_newton(summary, explained), used) if solver == CG else None
    plain = data is None and among is None and solver == KRONECKER and matrix is None and not mean
    screened = plain and len(candidates) >= SCREENED_FROM and explained.rank_one
    solve = factors_of(used) if screened else preparation(explained, used, in_basis=data is None, whole=whole)
    _say_coverage(explained, used)
    search = _Search(explained, asked, candidates, used, solve, top, mean, among, screened, batch_size)
    with matrix_file(matrix, asked.ids, candidates.ids, summary.task.units) as put:
        proponents, opponents = search.strongest(put, track)
    if whole is not None:
        whole.say()
    if solver == PBO:
        proponents, opponents = search.measured_again(summary, proponents, opponents, track)
    about = (candidates.ids, candidates.targets(), asked.labels, asked.predictions)
    return Scored(summary, asked.ids, proponents, opponents, *about)


def _check_arguments(
    summary: Summary, misclassified: bool, solver: str, data: DataSource | None, matrix: Path | None
) -> None:
    if misclassified and not summary.task.has_classes:
        raise FsdtoolError(
            f"'{summary.path}' is of a {summary.task}, which has no misclassified queries; leave `misclassified` out"
        )
    if solver not in SOLVERS:
        raise FsdtoolError(f"there is no solver '{solver}'; give one of {', '.join(SOLVERS)}")
    if solver == PBO and data is None:
        raise FsdtoolError('`solver="pbo"` needs the training data; give it by `data`')
    if solver == PBO and matrix is not None:
        raise FsdtoolError('`solver="pbo"` has no values for a whole matrix; leave `matrix` out')
    if matrix is not None:
        format_of(matrix)


@dataclass(frozen=True)
class _Search:
    """The strongest `top` of the candidates for each query, in blocks of as many queries as memory holds."""

    explained: Examples
    asked: Asked
    candidates: Recorded | Streamed
    used: list[BlockCurvature]
    solve: Solve
    top: int
    mean: bool
    among: np.ndarray | None
    screened: bool
    batch_size: int

    def strongest(self, put: Put, track: Track) -> tuple[Ranked, Ranked]:
        """Proponents and opponents; `put` is given all scores."""
        blocks = 1 if self.mean else -(-len(self.asked.rows) // self.solve.most)
        parts = []
        with track("influence", len(self.candidates) * blocks) as advance:
            for block, solved in solved_blocks(
                self.explained, self.asked.rows, self.used, self.solve, self.mean, self.batch_size
            ):
                best = TopK(block.stop - block.start, min(self.top, len(self.candidates)))
                for rows, scores in self._scores(solved, best):
                    _check_finite(scores, rows, self.candidates)
                    # A score of zero is neither a proponent's nor an opponent's.
                    ranked = scores if self.among is None else scores * torch.from_numpy(self.among[rows])
                    best.update(ranked, rows.start)
                    put(block, rows, scores.numpy())
                    advance(rows.stop - rows.start)
                parts.append(best.finalize())
        proponents, opponents = (_joined([part[kind] for part in parts]) for kind in (0, 1))
        return proponents, opponents

    def _scores(self, solved: list[Tensor], best: TopK) -> Scores:
        if self.screened and isinstance(self.candidates, Recorded):
            return self.candidates.screened(solved, best)
        return self.candidates.scores(solved)

    def measured_again(
        self, summary: Summary, proponents: Ranked, opponents: Ranked, track: Track
    ) -> tuple[Ranked, Ranked]:
        """The same examples ranked by the proximal Bregman response (fsdtool.influence.bregman_response)."""
        assert isinstance(self.candidates, Streamed)  # as `data` is given
        response = Response(_gauss_newton(summary, self.explained), self.used, summary.task, summary.identity.examples)
        shortlist = torch.cat([proponents[0], opponents[0]], 1)
        values = respond(
            response,
            self.explained,
            torch.from_numpy(self.asked.rows),
            self.candidates.examples,
            shortlist,
            mean=self.mean,
            batch_size=self.batch_size,
            track=track,
        )
        response.say()
        return _ranked_again(shortlist, values, proponents[0].shape[1])


def self_influence(
    summary: Summary,
    *,
    data: DataSource | None = None,
    among: np.ndarray | None = None,
    damping_factor: float = DAMPING_FACTOR,
    model: nn.Module | None = None,
    device: torch.device | None = None,
    batch_size: int = 256,
    track: Track = silent,
) -> SelfInfluence:
    """tau(i, i) of every training example, from its record, or of the examples of `data` with exact gradients.

    among, damping_factor, model: as for `influence`.

    Raises FsdtoolError for a summary without records where no data is given, and as `influence` does.
    """
    if data is None:
        found = recorded_self_influence(summary, among=among)
        if damping_factor == DAMPING_FACTOR:
            return found
        curvatures = _damped(summary.curvature, damping_factor)
        scale = 1.0 if summary.influence is None else summary.influence.self_scale
        values = self_influence_of(gradient_records(summary).read, curvatures, len(found.values), scale)
        return replace(found, values=values.numpy())
    streamed, _ = _streamed(summary, data, model, device or torch.device("cpu"), batch_size, damping_factor)
    parts = []
    with track("self-influence", len(streamed)) as advance:
        for rows, part in streamed.selves():
            _check_finite(part[None], rows, streamed)
            parts.append(part.numpy())
            advance(rows.stop - rows.start)
    return SelfInfluence(summary, np.concatenate(parts), streamed.ids, streamed.targets(), among)


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
    return simulated_curvature(identity.graph, parameters, summary.statistics, seed=identity.seed, device=device)


def _candidates(
    summary: Summary,
    data: DataSource | None,
    model: nn.Module | None,
    device: torch.device,
    batch_size: int,
    damping_factor: float,
) -> tuple[Recorded | Streamed, list[BlockCurvature]]:
    """What is scored, records or data, and the curvature that goes with it."""
    if data is not None:
        return _streamed(summary, data, model, device, batch_size, damping_factor)
    used = _damped([c.to(device) for c in summary.curvature], damping_factor)
    records = gradient_records(summary)
    say_calibration(summary, "values")
    return Recorded(records, used, device, 1.0 if summary.influence is None else summary.influence.scale), used


def _streamed(
    summary: Summary,
    data: DataSource,
    model: nn.Module | None,
    device: torch.device,
    batch_size: int,
    damping_factor: float,
) -> tuple[Streamed, list[BlockCurvature]]:
    examples = Examples(summary, data, model=model, device=device, noun="training")
    used = _damped(whole_curvature(summary, device), damping_factor)
    examples.restrict(used)
    return Streamed(summary, examples, used, batch_size), used


def _damped(curvatures: list[BlockCurvature], factor: float) -> list[BlockCurvature]:
    """The same curvatures with another damping.  Raises FsdtoolError for a factor that is not positive."""
    if not 0 < factor < float("inf"):
        raise FsdtoolError(f"`damping_factor` {factor:g} is no damping; give a positive number")
    return [replace(c, damping_factor=factor) for c in curvatures]


def _say_coverage(examples: Examples, used: list[BlockCurvature]) -> None:
    omitted = parameters_without_block(examples.graph, examples.blocks.values())
    without = f", without {len(omitted)} parameters such as '{omitted[0]}'" if omitted else ""
    still = [name for name in examples.graph.parameter_names() if name in examples.graph.frozen]
    without += f", without {len(still)} frozen ones such as '{still[0]}'" if still else ""
    log.info(f"curvature: {used[0].source}, {len(used)} weights{without}")


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
