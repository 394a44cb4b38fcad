"""Which labels are probably wrong, from the evidence in the records, without any clean label.

The layers' evidence is combined as fsdtool.agreement says; with its margin, the combined evidence for the
strongest other class minus that for the given label,
    score       = 1 / (1 + exp(-margin)): the probability of the suggested label against the given one
    confidence  = probability of the suggested label among all classes other than the given one
and by default a label is flagged when its score is above one half: the evidence favours another class.  How
many labels are wrong, and as what, is estimated apart from the scores, see fsdtool.noise.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fsdtool.agreement import combine
from fsdtool.errors import FsdtoolError
from fsdtool.evidence import OUTPUTS
from fsdtool.misvalue import Misvalued, find_misvalued
from fsdtool.noise import noise_matrix
from fsdtool.summary import Summary

log = logging.getLogger("fsdtool")

THRESHOLD = 0.5
FEW_EXAMPLES = 100
CHUNK = 65536


@dataclass(frozen=True)
class Mislabeled:
    """Scores of all examples (N,), their suggested labels, and the ranking.

    order (M,) holds the rows that were asked for, most suspicious first; flagged is how many of the judged examples
    (all, or those named) have a score above `threshold`; layers and weights (L,) say how much each layer counted.
    noise_matrix (classes, classes) float64: estimated examples by given label (rows) and true class (columns);
    noise_rate: the share of them off the diagonal.
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
    threshold: float
    noise_rate: float
    noise_matrix: Tensor

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
    summary: Summary,
    *,
    top: int | None = None,
    everything: bool = False,
    threshold: float = THRESHOLD,
    among: np.ndarray | None = None,
) -> Mislabeled | Misvalued:
    """Rank the training examples by how probably their label, or of a regression a target value, is wrong.

    By default the flagged ones, with a score above `threshold`, are listed; `top` lists that many, `everything` all;
    `among` (N,) bool: of these alone.  Raises FsdtoolError for a summary without records, or with fewer than two
    classes.
    """
    records = summary.records
    if summary.task != "classification":
        return find_misvalued(summary, top=top, everything=everything, threshold=threshold, among=among)
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
    candidates = torch.from_numpy(records.read("candidates")).long()
    evidence = torch.from_numpy(records.read("evidence"))
    combined, weights = combine(evidence)
    best = combined[:, 1:].max(1)
    score = torch.sigmoid(best.values)
    order = best.values.argsort(descending=True, stable=True)
    if among is not None:
        order = order[torch.from_numpy(among)[order]]
    flagged = int((score[order] > threshold).sum())
    views = _views(evidence, candidates, layers, combined)
    noise = noise_matrix(candidates[:, 0], views, summary.identity.graph.outputs)
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
        threshold=threshold,
        noise_rate=float(1 - noise.diagonal().sum() / noise.sum()),
        noise_matrix=noise,
    )


def _views(evidence: Tensor, candidates: Tensor, layers: tuple[str, ...], combined: Tensor) -> Tensor:
    """Classes (N, V) favoured by the two earliest layers that say anything, or by all layers together."""
    inner = [i for i, name in enumerate(layers) if name != OUTPUTS and evidence[:, i].any()][:2]
    favoured = [evidence[:, i] for i in inner] if len(inner) == 2 else [combined]
    return torch.cat([candidates.gather(1, values.argmax(1, keepdim=True)) for values in favoured], 1)
