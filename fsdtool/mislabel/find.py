"""Which labels are probably wrong, from the evidence in the records, without any clean label.

From how the layers see the classes fsdtool.mislabel.noise.verdict adds their evidence up and tells how many labels are
wrong and as what, and from both fsdtool.mislabel.noise.posterior has for each example
    score       = the probability that its label is wrong
    confidence  = the probability of the suggested label among all classes other than the given one
By default a label is flagged when its score is above one half.

The estimate of how many are wrong may itself be wrong: early layers may take two classes for one another, late ones
have memorised wrong labels, and labels that are wrong where classes meet look right to all.  So it stands with the
range of what each layer alone says.  Where the combined evidence is for the given label of half of those counted as
wrong, by their scores, the estimate is contradicted, and a warning says so.

Where classes meet, wrong labels and ambiguous examples look the same.  Noise that follows classes then explains few of
the labels that the evidence is against, the estimate counts few as wrong, and nothing tells how many are.  The range
then ends at the share of labels that the evidence does not support with a probability of 95 %.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fsdtool.errors import FsdtoolError
from fsdtool.mislabel.noise.confusion import Noise, shares
from fsdtool.mislabel.noise.layer_weights import margins_of
from fsdtool.mislabel.noise.posterior import Posterior, posterior, unsupported
from fsdtool.mislabel.noise.verdict import Verdict, verdict
from fsdtool.summary.catalogue import Catalogue, Records

log = logging.getLogger("fsdtool")

THRESHOLD = 0.5
FEW_EXAMPLES = 100
# Of the labels counted as wrong, by their scores, that the combined evidence must be against: it was .74 to 1.0 on
# eighteen sets whose share was about right, and at most .28 on eight where it was made up; .60 on two in between.
SUPPORTED = 0.5
# Of the labels that the combined evidence is against, the share that noise between classes must explain: it explained
# .20 and more on twelve sets of clean labels, such noise and photographs, at most .06 on eight whose labels are wrong
# near class boundaries.
EXPLAINED = 0.15
UNEXPLAINED = 0.03  # of all labels, left unexplained, above which it is a warning
RENAMED = 0.5  # of the labels of a class that look wrong, above which it is said
FEW_WRONG = 10.0  # labels counted as wrong below which nothing is said


@dataclass(frozen=True)
class Mislabeled:
    """Scores of all examples (N,), their given and suggested labels, and the ranking.

    ids: (N,), and `spec` where the examples are from.  margins (N, L): each layer's evidence for the strongest other
    class minus that for the given label, in nats.  order (M,) holds the rows that were asked for, most suspicious
    first; flagged is how many of the judged examples (all, or those named) have a score above `threshold`; layers and
    weights (L,) say how much each layer counted.  noise: None where there are too few examples to tell.  between: the
    lowest and highest share of wrong labels by one layer alone, where known; near: whether it is instead by how many
    labels near class boundaries are wrong; ambiguous: whether the estimate leaves most of those out; contradicted:
    whether the layers together contradict the estimate.
    """

    summary: Catalogue
    spec: str
    ids: np.ndarray
    given: np.ndarray
    score: np.ndarray
    confidence: np.ndarray
    suggested: np.ndarray
    order: np.ndarray
    flagged: int
    judged: int
    layers: tuple[str, ...]
    weights: np.ndarray
    margins: np.ndarray
    threshold: float
    noise: Noise | None
    between: tuple[float, float] | None = None
    near: bool = False
    ambiguous: bool = False
    contradicted: bool = False

    @property
    def between_by(self) -> str:
        """What the ends of the range differ by, in words."""
        return "with those near class boundaries" if self.near else "by single layers"

    @property
    def noise_rate(self) -> float | None:
        """The estimated share of wrong labels."""
        return None if self.noise is None else self.noise.rate

    @property
    def noise_matrix(self) -> np.ndarray | None:
        """Estimated examples (classes, classes) float64 by given label (rows) and true class (columns)."""
        return None if self.noise is None else self.noise.matrix()

    @property
    def layer_columns(self) -> tuple[str, ...]:
        """Names of the columns with the margins of the layers."""
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

    candidates (N, T) int: classes, the given label first.  evidence (N, L, T) float16: by layer, in nats relative to
    the given label.  layers: (L,).  parameters: (L,) of the network before each layer, for each summarized example.
    """

    spec: str
    ids: np.ndarray
    candidates: np.ndarray
    evidence: np.ndarray
    layers: tuple[str, ...]
    parameters: np.ndarray


def find_mislabeled(
    summary: Catalogue,
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
    records = check_judges(summary)
    if len(records) < FEW_EXAMPLES:
        log.warning(
            f"{len(records)} examples are too few to weigh the layers well; trust the order more than the scores"
        )
    judged = Judged(
        spec=summary.data_spec,
        ids=records.ids,
        candidates=records.read("candidates"),
        evidence=records.read("evidence"),
        layers=records.layers("evidence"),
        parameters=records.parameters(),
    )
    said = verdict(judged.evidence, judged.candidates, summary.outputs, judged.parameters)
    return ranked(summary, judged, said, top=top, everything=everything, threshold=threshold, among=among)


def check_judges(summary: Catalogue) -> Records:
    """The records of a summary that judges labels.  Raises FsdtoolError for one that does not."""
    if not summary.task.has_classes:
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
    return summary.records


def ranked(
    summary: Catalogue,
    judged: Judged,
    said: Verdict,
    *,
    top: int | None,
    everything: bool,
    threshold: float,
    among: np.ndarray | None,
    like: Judged | None = None,
    found: Posterior | None = None,
) -> Mislabeled:
    """Scores and ranking from the evidence and the verdict on it; the options are those of `find_mislabeled`.

    like: other examples, of whom the verdict is, where these are too few to estimate how many labels are wrong.
    found: the scores, of labels that no layer has learned; the verdict then has the range of the share.
    """
    many, noise, new = judged if like is None else like, said.noise, found is not None
    if not noise.layers:
        log.warning("no layer tells the classes apart; do not trust the estimated share of wrong labels")
    combined = said.together
    if combined is None:
        combined = said.weighing.combined(many.evidence, many.candidates)
    found = posterior(combined, many.candidates, noise) if found is None else found
    between = None if said.rates is None else (float(np.nanmin(said.rates)), float(np.nanmax(said.rates)))
    contradicted = _contradicted(found.score, combined)
    if contradicted:
        between = between or _by_layer(many, summary.outputs)
        _warn(noise, between, found.score, combined, "" if new else "by one layer alone ")
    against = float((combined[:, 1:].max(1) > 0).mean())
    ambiguous = like is None and not contradicted and noise.rate < EXPLAINED * against
    if ambiguous and not new:
        low, high = between or _by_layer(many, summary.outputs)
        between = low, max(high, unsupported(combined, found.unit))
    if ambiguous and between is not None and against - noise.rate > UNEXPLAINED and len(combined) >= FEW_EXAMPLES:
        _warn_ambiguous(noise, between, against)
    if like is not None:
        combined = said.weighing.combined(judged.evidence, judged.candidates)
        found = posterior(combined, judged.candidates, noise, found)
    _announce(summary, judged.candidates[:, 0], found, threshold)
    order = np.argsort(-found.score, kind="stable")
    if among is not None:
        order = order[among[order]]
    flagged = int((found.score[order] > threshold).sum())
    return Mislabeled(
        summary=summary,
        spec=judged.spec,
        ids=judged.ids,
        given=judged.candidates[:, 0],
        score=found.score,
        confidence=found.confidence,
        suggested=found.suggested,
        order=order if everything else order[: flagged if top is None else top],
        flagged=flagged,
        judged=len(order),
        layers=judged.layers,
        weights=said.weights,
        margins=margins_of(judged.evidence),
        threshold=threshold,
        noise=noise if like is None else None,
        between=between,
        near=ambiguous or new,
        ambiguous=ambiguous,
        contradicted=contradicted,
    )


def _announce(summary: Catalogue, given: np.ndarray, found: Posterior, threshold: float) -> None:
    """Warn of classes of which most labels (N,) look wrong, or that no label names: a class may have been renamed."""
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


def _contradicted(score: np.ndarray, combined: np.ndarray) -> bool:
    """Whether the combined evidence (N, T) is for most of the labels that the scores (N,) count as wrong."""
    return float(score.sum()) >= FEW_WRONG and _supported(score, combined) < SUPPORTED


def _supported(score: np.ndarray, combined: np.ndarray) -> float:
    """The share of what the scores count as wrong that the combined evidence is against."""
    return float(score[combined[:, 1:].max(1) > 0].sum()) / max(float(score.sum()), 1e-12)


def _by_layer(judged: Judged, classes: int) -> tuple[float, float]:
    found = shares(judged.evidence, judged.candidates, max(len(judged.layers) - 1, 1), classes)
    return float(found.min()), float(found.max())


def _warn_ambiguous(noise: Noise, between: tuple[float, float], against: float) -> None:
    log.warning(
        f"the layers together are against {against:.1%} of the labels, and noise between classes explains "
        f"{noise.rate:.1%}: the others are ambiguous examples, or labels that are wrong near class boundaries, which "
        f"look the same; up to {between[1]:.1%} may be wrong. The order holds, the flags leave them out: see --top"
    )


def _warn(noise: Noise, between: tuple[float, float], score: np.ndarray, combined: np.ndarray, how: str) -> None:
    low, high = between
    log.warning(
        f"the estimated share of wrong labels ({noise.rate:.1%}) is contradicted by the layers together: "
        f"their evidence is for the given label of {1 - _supported(score, combined):.0%} of the labels counted as "
        f"wrong, and {how}the share is {low:.1%} to {high:.1%}; do not trust the flags, and see "
        "--by-layer: labels with positive margins in most layers are the likelier ones"
    )
