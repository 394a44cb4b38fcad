"""Which labels of the summarized data are probably wrong, from the evidence in the records alone.

Nothing here needs torch or a clean label.  fsdtool.mislabel.label_scores says how scores and the share of wrong labels
come about; by default a label is flagged when its score is above one half.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fsdtool.errors import FsdtoolError
from fsdtool.mislabel.label_scores import FEW_WRONG, JudgedLabels, LabelScores, score_labels
from fsdtool.mislabel.noise.confusion import Noise
from fsdtool.mislabel.noise.layer_weights import margins_of
from fsdtool.mislabel.noise.posterior import Posterior
from fsdtool.mislabel.noise.verdict import verdict
from fsdtool.mislabel.suspects import FEW_EXAMPLES, THRESHOLD, Selection, Suspects
from fsdtool.summary.catalogue import Catalogue, Records

log = logging.getLogger("fsdtool")

RENAMED = 0.5  # if a larger share of a class's labels looks wrong, a warning asks whether the class was renamed


@dataclass(frozen=True, kw_only=True)
class Mislabeled(Suspects):
    """Examples ranked by how probably their class label is wrong.

    confidence: (N,) float64, the probability of the suggested label among all classes but the given one.  margins:
    (N, L) float32, each layer's evidence for the strongest other class less that for the given label, in nats.
    noise: which classes are taken for which, None where there are too few examples to estimate it.
    """

    confidence: np.ndarray
    margins: np.ndarray
    noise: Noise | None

    @property
    def noise_matrix(self) -> np.ndarray | None:
        """Estimated examples (classes, classes) float64 by given label (rows) and true class (columns)."""
        return None if self.noise is None else self.noise.matrix()

    @property
    def layer_columns(self) -> tuple[str, ...]:
        """Names (L,) of the columns with the margins of the layers."""
        return tuple(f"margin:{layer}" for layer in self.layers)

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row for each example listed, most suspicious first, with the margins of the layers."""
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


def find_mislabeled(
    summary: Catalogue,
    *,
    top: int | None = None,
    everything: bool = False,
    threshold: float = THRESHOLD,
    mask: np.ndarray | None = None,
) -> Mislabeled:
    """Rank the summarized examples by how probably their label is wrong.

    By default the flagged ones, with a score above `threshold`, are listed; `top` lists that many, `everything` all;
    mask (N,) bool: rank and count these alone.  Raises FsdtoolError for a summary without records, of a regression, or
    with fewer than two classes.
    """
    records = label_records(summary)
    if len(records) < FEW_EXAMPLES:
        log.warning(
            f"{len(records)} examples are too few to weigh the layers well; trust the order more than the scores"
        )
    labels = recorded_labels(summary, records)
    found = verdict(labels.evidence, labels.candidates, summary.outputs, labels.parameters)
    scores = score_labels(labels, found, summary.outputs)
    return ranked(summary, labels, scores, Selection(top, everything, threshold, mask))


def label_records(summary: Catalogue) -> Records:
    """The records of a summary that has evidence on class labels.  Raises FsdtoolError for any other."""
    if summary.task.has_labels:
        raise FsdtoolError(
            f"'{summary.path}' is of a {summary.task}: only its summarized labels can be judged (in Python by "
            "find_label_errors), new ones not; summarize them with the others"
        )
    if not summary.task.has_classes:
        raise FsdtoolError(
            f"'{summary.path}' is of a {summary.task}, and only class labels can be judged; "
            "give a summary of a classification"
        )
    records = records_of(summary)
    if records.read("candidates", slice(0, 1)).shape[1] < 2:
        raise FsdtoolError(
            f"'{summary.path}' is of a network with one class, so no label can be wrong; "
            "give a summary of two classes or more"
        )
    return records


def records_of(summary: Catalogue) -> Records:
    """The records of a summary.  Raises FsdtoolError where it was written without."""
    if summary.records is None:
        raise FsdtoolError(f"'{summary.path}' was written with `records=False`; write it again with records")
    return summary.records


def recorded_labels(summary: Catalogue, records: Records, places: slice | list[int] = slice(None)) -> JudgedLabels:
    """The labels of the summarized data and the evidence of the layers at `places`, all by default."""
    layers = records.layers("evidence")
    return JudgedLabels(
        spec=summary.data_spec,
        ids=records.ids,
        candidates=records.read("candidates"),
        evidence=records.read("evidence")[:, places],
        layers=tuple(np.array(layers)[places].tolist()),
        parameters=records.parameters()[places],
    )


def ranked(summary: Catalogue, labels: JudgedLabels, scores: LabelScores, selection: Selection) -> Mislabeled:
    """The labels by their scores; equal scores stay in the order of the data."""
    found, given = scores.posterior, labels.candidates[:, 0]
    _warn_of_classes(summary, given, found, selection.threshold)
    return Mislabeled(
        summary=summary,
        spec=labels.spec,
        ids=labels.ids,
        given=given,
        suggested=found.suggested,
        score=found.score,
        confidence=found.confidence,
        ranking=selection.ranking(found.score, np.argsort(-found.score, kind="stable")),
        layers=labels.layers,
        weights=scores.weights,
        margins=margins_of(labels.evidence),
        noise=scores.noise,
        noise_rate=None if scores.noise is None else scores.noise.rate,
        between=scores.between,
        between_by=scores.between_by,
        doubt=scores.doubt,
    )


def _warn_of_classes(summary: Catalogue, given: np.ndarray, found: Posterior, threshold: float) -> None:
    """Warn of classes of which most labels (N,) look wrong, or that no label names: one may have been renamed."""
    members = np.bincount(given, minlength=summary.outputs)
    flagged = found.score > threshold
    wrong = np.bincount(given[flagged], minlength=summary.outputs)
    for label in np.flatnonzero((wrong > RENAMED * members) & (members >= FEW_WRONG)).tolist():
        looks = np.bincount(found.suggested[flagged & (given == label)], minlength=summary.outputs)
        other = int(looks.argmax())
        log.warning(
            f"{wrong[label]:,} of the {members[label]:,} examples labelled '{summary.label_name(label)}' look like "
            f"other classes, {looks[other]:,} like '{summary.label_name(other)}': was a class renamed or were two "
            "swapped? If all labels of a class were, nothing can tell"
        )
    absent = [str(summary.label_name(label)) for label in np.flatnonzero(members == 0).tolist()]
    if absent and members.sum() >= FEW_EXAMPLES:
        names = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
        log.warning(
            f"no example is labelled {names} ({len(absent)} of {summary.outputs} classes): if there should be some, "
            "they carry another label, which nothing can tell"
        )
