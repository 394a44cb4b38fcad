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
from fsdtool.noise import noise_matrix
from fsdtool.summary import Summary

log = logging.getLogger("fsdtool")

THRESHOLD = 0.5
FEW_EXAMPLES = 100
CHUNK = 65536


@dataclass(frozen=True)
class Mislabeled:
    """Scores of all examples (N,), their given and suggested labels, and the ranking.

    ids: (N,), and `spec` where the examples are from.  margins (N, L): each layer's evidence for the strongest other
    class minus that for the given label, in nats.  order (M,) holds the rows that were asked for, most suspicious
    first; flagged is how many of the judged examples (all, or those named) have a score above `threshold`; layers and
    weights (L,) say how much each layer counted.
    noise_matrix (classes, classes) float64: estimated examples by given label (rows) and true class (columns);
    noise_rate: the share of them off the diagonal; both None where there are too few examples to tell.
    """

    summary: Summary
    spec: str
    ids: np.ndarray
    given: Tensor
    score: Tensor
    confidence: Tensor
    suggested: Tensor
    order: Tensor
    flagged: int
    judged: int
    layers: tuple[str, ...]
    weights: Tensor
    margins: Tensor
    threshold: float
    noise_rate: float | None
    noise_matrix: Tensor | None

    @property
    def layer_columns(self) -> tuple[str, ...]:
        """Names of the columns that hold the layers' margins."""
        return tuple(f"margin:{layer}" for layer in self.layers)

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row per example asked for, most suspicious first, with the margins of the layers."""
        columns = self.layer_columns
        for rank, i in enumerate(self.order.tolist(), 1):
            yield {
                "id": self.ids[i].item(),
                "given_label": self.summary.label_name(int(self.given[i])),
                "suggested_label": self.summary.label_name(int(self.suggested[i])),
                "score": float(self.score[i]),
                "confidence": float(self.confidence[i]),
                "rank": rank,
                **dict(zip(columns, self.margins[i].tolist(), strict=True)),
            }


@dataclass(frozen=True)
class Judged:
    """The evidence on the labels of the examples `ids` (N,) of the data `spec`.

    candidates (N, T) int64: classes, the given label first.  evidence (N, L, T): by layer, and combined (N, T) of all,
    in nats relative to the given label.  layers and weights: (L,).
    """

    spec: str
    ids: np.ndarray
    candidates: Tensor
    evidence: Tensor
    combined: Tensor
    layers: tuple[str, ...]
    weights: Tensor


def find_mislabeled(
    summary: Summary,
    *,
    top: int | None = None,
    everything: bool = False,
    threshold: float = THRESHOLD,
    among: np.ndarray | None = None,
) -> Mislabeled:
    """Rank the training examples by how probably their label is wrong.

    By default the flagged ones, with a score above `threshold`, are listed; `top` lists that many, `everything` all;
    `among` (N,) bool: of these alone.  Raises FsdtoolError for a summary without records, of a regression, or with
    fewer than two classes.
    """
    check_judges(summary)
    records = summary.records
    if len(records) < FEW_EXAMPLES:
        log.warning(
            f"{len(records)} examples are too few to weigh the layers well; trust the order more than the scores"
        )
    layers = tuple(str(name) for name in np.atleast_1d(records.attribute("evidence", "layers")))
    candidates = torch.from_numpy(records.read("candidates")).long()
    evidence = torch.from_numpy(records.read("evidence"))
    combined, weights = combine(evidence)
    judged = Judged(summary.identity.data_spec, records.ids, candidates, evidence, combined, layers, weights)
    return ranked(summary, judged, top=top, everything=everything, threshold=threshold, among=among)


def check_judges(summary: Summary) -> None:
    """Raise FsdtoolError for a summary that judges no labels."""
    if summary.task != "classification":
        raise FsdtoolError(
            f"'{summary.path}' is of a {summary.task}, and only class labels can be judged; "
            "give a summary of a classification"
        )
    if summary.records is None:
        raise FsdtoolError(f"'{summary.path}' was written with --no-records; write it again with records")
    if summary.records.read("candidates", slice(0, 1)).shape[1] < 2:
        raise FsdtoolError(
            f"'{summary.path}' is of a network with one class, so no label can be wrong; "
            "give a summary of two classes or more"
        )


def ranked(
    summary: Summary,
    judged: Judged,
    *,
    top: int | None,
    everything: bool,
    threshold: float,
    among: np.ndarray | None,
    noise: bool = True,
) -> Mislabeled:
    """Scores and ranking from the evidence; the options are those of `find_mislabeled`.

    noise: whether to estimate how many labels are wrong.
    """
    candidates, combined = judged.candidates, judged.combined
    best = combined[:, 1:].max(1)
    score = torch.sigmoid(best.values)
    order = best.values.argsort(descending=True, stable=True)
    if among is not None:
        order = order[torch.from_numpy(among)[order]]
    flagged = int((score[order] > threshold).sum())
    wrong = _noise(judged, summary.identity.graph.outputs) if noise else None
    return Mislabeled(
        summary=summary,
        spec=judged.spec,
        ids=judged.ids,
        given=candidates[:, 0],
        score=score,
        confidence=torch.softmax(combined[:, 1:], 1).amax(1),
        suggested=candidates.gather(1, best.indices[:, None] + 1)[:, 0],
        order=order if everything else order[: flagged if top is None else top],
        flagged=flagged,
        judged=len(order),
        layers=judged.layers,
        weights=judged.weights,
        margins=judged.evidence[:, :, 1:].amax(2),
        threshold=threshold,
        noise_rate=None if wrong is None else float(1 - wrong.diagonal().sum() / wrong.sum()),
        noise_matrix=wrong,
    )


def _noise(judged: Judged, classes: int) -> Tensor:
    views = _views(judged.evidence, judged.candidates, judged.layers, judged.combined)
    return noise_matrix(judged.candidates[:, 0], views, classes)


def _views(evidence: Tensor, candidates: Tensor, layers: tuple[str, ...], combined: Tensor) -> Tensor:
    """Classes (N, V) favoured by the two earliest layers that say anything, or by all layers together."""
    inner = [i for i, name in enumerate(layers) if name != OUTPUTS and evidence[:, i].any()][:2]
    favoured = [evidence[:, i] for i in inner] if len(inner) == 2 else [combined]
    return torch.cat([candidates.gather(1, values.argmax(1, keepdim=True)) for values in favoured], 1)
