"""Which labels are probably wrong, from the evidence in the records, without any clean label.

The margin of a layer on an example is its evidence for the strongest other class minus that for the given
label.  Early layers keep seeing the true class when the outputs have memorised a wrong label; which layers to
trust follows from how they agree.  Rank-normalised margins of layers that are independent given the truth
have correlations lambda_l lambda_m off the diagonal (the spectral meta-learner of Parisi et al. 2014); the
loadings lambda are fitted and a layer is weighted by lambda / (1 - lambda^2), loading over uniqueness.

The combined evidence for a class is the weighted sum over layers, each scaled by the spread of its margins.
Its unit is set by the temperature under which the evidence best predicts the given labels; then
    score       = 1 / (1 + exp(-margin)): the probability of the suggested label against the given one
    confidence  = probability of the suggested label among all classes other than the given one
and a label is flagged when its score is above one half: the evidence favours another class.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fsdtool.errors import FsdtoolError
from fsdtool.summary import Summary

log = logging.getLogger("fsdtool")

LARGEST_LOADING = 0.97  # a loading near one (a Heywood case) would give one layer all the weight
FEW_EXAMPLES = 100
CHUNK = 65536


@dataclass(frozen=True)
class Mislabeled:
    """Scores of all examples (N,), their suggested labels, and the ranking.

    order (M,) holds the rows that were asked for, most suspicious first; flagged is how many of the judged examples
    (all, or those named) have a score above one half; layers and weights (L,) say how much each layer counted.
    """

    summary: Summary
    score: Tensor
    confidence: Tensor
    suggested: Tensor
    order: Tensor
    flagged: int
    judged: int
    layers: tuple[str, ...]
    weights: Tensor

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row per example asked for, most suspicious first."""
        records = self.summary.records
        given = records.read("target")
        for rank, i in enumerate(self.order.tolist(), 1):
            yield {
                "id": records.ids[i].item(),
                "given_label": self.summary.label_name(int(given[i])),
                "suggested_label": self.summary.label_name(int(self.suggested[i])),
                "score": float(self.score[i]),
                "confidence": float(self.confidence[i]),
                "rank": rank,
            }


def find_mislabeled(
    summary: Summary, *, top: int | None = None, everything: bool = False, among: np.ndarray | None = None
) -> Mislabeled:
    """Rank the training examples by how probably their label is wrong.

    By default the flagged ones are listed; `top` lists that many, `everything` all; `among` (N,) bool: of these
    alone.  Raises FsdtoolError for a summary without records, of a regression, or with fewer than two classes.
    """
    records = summary.records
    if summary.task != "classification":
        raise FsdtoolError(
            f"'{summary.path}' is of a {summary.task}, and only class labels can be judged; "
            "give a summary of a classification"
        )
    if records is None:
        raise FsdtoolError(f"'{summary.path}' was written with --no-records; write it again with records")
    if records.read("candidates", slice(0, 1)).shape[1] < 2:
        raise FsdtoolError(
            f"'{summary.path}' is of a network with one class, so no label can be wrong; "
            "give a summary of two classes or more"
        )
    if len(records) < FEW_EXAMPLES:
        log.warning(
            f"{len(records)} examples are too few to weigh the layers well; trust the order more than the scores"
        )
    layers = tuple(str(name) for name in np.atleast_1d(records.attribute("evidence", "layers")))
    margins = torch.cat([evidence[:, :, 1:].amax(2) for _, evidence in _chunks(summary)])  # (N, L)
    weights = layer_weights(margins)
    scale = weights / margins.std(0, correction=0).clamp(min=1e-12)
    parts = [(candidates, (evidence * scale[:, None]).sum(1)) for candidates, evidence in _chunks(summary)]
    candidates, combined = (torch.cat(part) for part in zip(*parts, strict=True))  # (N, T) each
    combined = combined * _temperature(combined)
    best = combined[:, 1:].max(1)
    score = torch.sigmoid(best.values)
    order = best.values.argsort(descending=True, stable=True)
    if among is not None:
        order = order[torch.from_numpy(among)[order]]
    flagged = int((score[order] > 0.5).sum())
    return Mislabeled(
        summary=summary,
        score=score,
        confidence=torch.softmax(combined[:, 1:], 1).amax(1),
        suggested=candidates.gather(1, best.indices[:, None] + 1)[:, 0],
        order=order if everything else order[: flagged if top is None else top],
        flagged=flagged,
        judged=len(order),
        layers=layers,
        weights=weights,
    )


def layer_weights(margins: Tensor) -> Tensor:
    """Weights (L,) of layers with margins (N, L): loading over uniqueness, at least 0, in sum 1."""
    examples, layers = margins.shape
    live = (margins != margins[:1]).any(0)
    if examples < 3 or int(live.sum()) < 3:  # fewer than three layers determine no loadings
        return live.float() / live.sum().clamp(min=1)
    normal = torch.stack([_normal_scores(margins[:, i]) for i in live.nonzero()[:, 0].tolist()], 1)
    loadings = torch.zeros(layers, dtype=torch.float64)
    loadings[live] = _one_factor(torch.corrcoef(normal.T))
    weights = (loadings / (1 - loadings.square())).float()
    return weights / weights.sum() if weights.any() else live.float() / live.sum()


def _normal_scores(values: Tensor) -> Tensor:
    """Normal quantiles (N,) float64 of the ranks of values (N,); ties share their mean rank."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    middle = counts.double().cumsum(0) - counts.double() / 2
    return torch.special.ndtri(middle / len(values))[inverse]


def _one_factor(correlation: Tensor) -> Tensor:
    """Loadings (L,) of the rank-one matrix closest to the correlations off the diagonal, in [0, 0.97]."""
    communality = torch.full((len(correlation),), 0.5, dtype=correlation.dtype)
    for _ in range(200):
        reduced = correlation.clone()
        reduced.diagonal().copy_(communality)
        values, vectors = torch.linalg.eigh(reduced)
        loadings = vectors[:, -1] * values[-1].clamp(min=0).sqrt()
        loadings = loadings * (1.0 if loadings.sum() >= 0 else -1.0)
        updated = loadings.square().clamp(max=LARGEST_LOADING**2)
        if float((updated - communality).abs().max()) < 1e-6:
            break
        communality = updated
    return loadings.clamp(0, LARGEST_LOADING)


def _chunks(summary: Summary) -> Iterator[tuple[Tensor, Tensor]]:
    """Candidates (n, T) int64 and evidence (n, L, T) float32, some rows at a time."""
    records = summary.records
    for start in range(0, len(records), CHUNK):
        rows = slice(start, min(start + CHUNK, len(records)))
        candidates = torch.from_numpy(records.read("candidates", rows)).long()
        yield candidates, torch.from_numpy(records.read("evidence", rows)).float()


def _temperature(combined: Tensor) -> float:
    """The factor on the evidence (N, T) under which a softmax best predicts the given label (column 0)."""
    sample = combined[:: max(len(combined) // CHUNK, 1)].double()
    grid = torch.logspace(-2, 3, 101, dtype=torch.float64)
    likelihood = torch.stack([torch.log_softmax(t * sample, 1)[:, 0].mean() for t in grid])
    return float(grid[likelihood.argmax()])
