"""Which of the labels of a multilabel summary are probably wrong, from the residuals in the records.

Each of an example's O labels is judged by itself, so that N examples have N O rows.  With the model of
fsdtool.mislabel.multilabel.flips
    score       = the probability that the label is flipped
    confidence  = the probability of the suggested value by the layers alone, however rarely labels are flipped
Nothing here needs torch or a right label.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fsdtool.errors import FsdtoolError
from fsdtool.mislabel.find import records_of
from fsdtool.mislabel.multilabel.flips import flips
from fsdtool.mislabel.suspects import BY_INPUT, FEW_EXAMPLES, THRESHOLD, Selection, Suspects
from fsdtool.summary.catalogue import Catalogue

log = logging.getLogger("fsdtool")


@dataclass(frozen=True, kw_only=True)
class LabelErrors(Suspects):
    """Labels ranked by how probably they are wrong; N below is that of the labels, O for each example.

    label: (N,) int64, which of its example's labels each is.  confidence: (N,) float64, the probability of the
    suggested value by the layers alone.
    """

    label: np.ndarray
    confidence: np.ndarray

    @property
    def examples(self) -> np.ndarray:
        """The examples (M,) int64 of the labels listed."""
        return self.order // self.summary.outputs

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row for each label listed, most suspicious first."""
        for rank, i in enumerate(self.order.tolist(), 1):
            yield {
                "id": self.ids[i].item(),
                "label": self.summary.label_name(int(self.label[i])),
                "given_label": int(self.given[i]),
                "suggested_label": int(self.suggested[i]),
                "score": float(self.score[i]),
                "confidence": float(self.confidence[i]),
                "rank": rank,
            }


def find_label_errors(
    summary: Catalogue,
    *,
    top: int | None = None,
    everything: bool = False,
    threshold: float = THRESHOLD,
    mask: np.ndarray | None = None,
) -> LabelErrors:
    """Rank the labels of the summarized examples by how probably they are wrong.

    By default the flagged ones, with a score above `threshold`, are listed; `top` lists that many, `everything` all;
    mask: bool of the examples, rank and count the labels of these alone.  Raises FsdtoolError for a summary without
    records, or of another task.
    """
    if not summary.task.has_labels:
        raise FsdtoolError(f"'{summary.path}' is of a {summary.task}, which has no several labels of an example")
    records = records_of(summary)
    if len(records) < FEW_EXAMPLES:
        log.warning(f"{len(records)} examples are too few to predict labels well; trust the order more than the scores")
    labels, residuals = records.read("target"), records.read("residual").astype(np.float64)
    outputs = labels.shape[1]
    found = flips(labels, labels - residuals, records.flip_rates(outputs))
    given = (labels > 0.5).astype(np.int64).ravel()
    score = found.probability.ravel()
    of_one = found.prediction.ravel()
    selection = Selection(top, everything, threshold, None if mask is None else np.repeat(mask, outputs))
    return LabelErrors(
        summary=summary,
        spec=summary.data_spec,
        ids=np.repeat(records.ids, outputs),
        given=given,
        suggested=1 - given,
        score=score,
        ranking=selection.ranking(score, np.argsort(-score, kind="stable")),
        layers=records.layers("residual"),
        weights=records.weights(),
        noise_rate=found.share,
        between=found.between,
        between_by=BY_INPUT,
        doubt=None,
        label=np.tile(np.arange(outputs), len(records)),
        confidence=np.where(given == 1, 1 - of_one, of_one),
    )
