"""From the evidence on labels and the noise in them: the score of each label, and the share of wrong ones.

fsdtool.mislabel.noise.verdict adds up the evidence of the layers and estimates the noise;
fsdtool.mislabel.noise.posterior then gives for each example
    score       = the probability that its label is wrong
    confidence  = the probability of the suggested label among all classes other than the given one

The estimated share of wrong labels may itself be wrong: early layers may confuse two classes, late layers may have
memorised wrong labels, and wrong labels near a class boundary look right to every layer.  So the share comes with a
range, the lowest and highest share that a single layer gives, and with a `Doubt` in two cases.

Contradicted.  The scores add up to the estimated number of wrong labels.  If the combined evidence of the layers
favours the given label for half or more of that number, it contradicts the estimate.

Ambiguous.  Near class boundaries, wrong labels and ambiguous examples look the same.  Then noise between classes
explains few of the labels that the evidence is against, and the estimate counts few as wrong; the true share cannot be
known.  The range then ends at the share of labels whose own probability, by the evidence alone, is below 95 %.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from fsdtool.mislabel.noise.confusion import Noise, shares
from fsdtool.mislabel.noise.posterior import Posterior, posterior, unsupported
from fsdtool.mislabel.noise.verdict import Verdict
from fsdtool.mislabel.suspects import BY_LAYERS, FEW_EXAMPLES, NEAR_BOUNDARIES, Doubt

log = logging.getLogger("fsdtool")

# Of the labels counted as wrong, by their scores, the least share that the combined evidence must be against: it was
# .74 to 1.0 on eighteen sets whose estimate was about right, at most .28 on eight whose estimate was wrong, and .60 on
# two in between.
SUPPORTED = 0.5
# Of the labels that the combined evidence is against, the least share that noise between classes must explain: it
# explained .20 and more on twelve sets of clean labels, of such noise and of photographs, and at most .06 on eight
# whose labels are wrong near class boundaries.
EXPLAINED = 0.15
UNEXPLAINED = 0.03  # of all labels, left unexplained: a larger share is a warning
FEW_WRONG = 10.0  # with fewer labels counted as wrong there is no warning


@dataclass(frozen=True)
class JudgedLabels:
    """The labels of the examples `ids` (N,) of the data set `spec`, and the evidence of the layers on them.

    candidates: (N, T) int, classes, the given label first.  evidence: (N, L, T) float16, log-likelihood of each
    candidate less that of the given label, in nats.  layers: names (L,).  parameters: (L,) of the network before each
    layer, for each summarized example.
    """

    spec: str
    ids: np.ndarray
    candidates: np.ndarray
    evidence: np.ndarray
    layers: tuple[str, ...]
    parameters: np.ndarray


@dataclass(frozen=True)
class LabelScores:
    """posterior: of the judged labels.  weights: (L,) of the layers.  noise: None for too few labels to estimate it.

    between: the range of the share of wrong labels, where known; between_by: what its ends differ by.  doubt: why the
    share is unreliable.
    """

    posterior: Posterior
    weights: np.ndarray
    noise: Noise | None
    between: tuple[float, float] | None
    between_by: str
    doubt: Doubt | None


def score_labels(labels: JudgedLabels, verdict: Verdict, classes: int) -> LabelScores:
    """Scores of labels from the verdict on their own evidence."""
    warn_of_blind_layers(verdict.noise)
    combined = verdict.combined_evidence(labels.evidence, labels.candidates)
    found = posterior(combined, labels.candidates, verdict.noise)
    doubt = doubt_of(found.score, combined, verdict.noise)
    between, by = verdict.range_of_rates(), BY_LAYERS
    if doubt is not None:
        between = between or _range_by_layers(labels, classes)
    if doubt is Doubt.CONTRADICTED:
        assert between is not None
        warn_of_contradiction(verdict.noise, between, found.score, combined, "by one layer alone ")
    elif doubt is Doubt.AMBIGUOUS:
        assert between is not None
        low, high = between
        between, by = (low, max(high, unsupported(combined, found.inverse_temperature))), NEAR_BOUNDARIES
        warn_of_ambiguity(verdict.noise, between, combined)
    return LabelScores(found, verdict.weights, verdict.noise, between, by, doubt)


def score_few_labels(few: JudgedLabels, reference: JudgedLabels, verdict: Verdict, classes: int) -> LabelScores:
    """Scores of too `few` labels to estimate their noise: with the noise and the scale of the `reference` labels.

    verdict: the verdict on the reference.
    """
    warn_of_blind_layers(verdict.noise)
    combined = verdict.combined_evidence(reference.evidence, reference.candidates)
    like = posterior(combined, reference.candidates, verdict.noise)
    between, doubt = verdict.range_of_rates(), None
    if _contradicted(like.score, combined):
        between, doubt = between or _range_by_layers(reference, classes), Doubt.CONTRADICTED
        warn_of_contradiction(verdict.noise, between, like.score, combined, "by one layer alone ")
    of_few = verdict.weighing.combined(few.evidence, few.candidates)
    found = posterior(of_few, few.candidates, verdict.noise, like)
    return LabelScores(found, verdict.weights, None, between, BY_LAYERS, doubt)


def doubt_of(score: np.ndarray, combined: np.ndarray, noise: Noise) -> Doubt | None:
    """Why the share of wrong labels is unreliable, by the scores (N,) and the combined evidence (N, T)."""
    if _contradicted(score, combined):
        return Doubt.CONTRADICTED
    return Doubt.AMBIGUOUS if noise.rate < EXPLAINED * _share_against(combined) else None


def warn_of_blind_layers(noise: Noise) -> None:
    """Warn where the noise could not be estimated from any layer."""
    if not noise.layers:
        log.warning("no layer tells the classes apart; do not trust the estimated share of wrong labels")


def warn_of_contradiction(
    noise: Noise, between: tuple[float, float], score: np.ndarray, combined: np.ndarray, how: str
) -> None:
    """Warn that the combined evidence (N, T) contradicts the scores (N,).  how: words for what the range is by."""
    low, high = between
    log.warning(
        f"the estimated share of wrong labels ({noise.rate:.1%}) is contradicted by the layers together: "
        f"their evidence is for the given label of {1 - _supported(score, combined):.0%} of the labels counted as "
        f"wrong, and {how}the share is {low:.1%} to {high:.1%}; do not trust the flags, and see "
        "`margins`: labels with positive margins in most layers are the likelier ones"
    )


def warn_of_ambiguity(noise: Noise, between: tuple[float, float], combined: np.ndarray) -> None:
    """Warn that more labels may be wrong, where the combined evidence (N, T) is against many that stay unexplained."""
    against = _share_against(combined)
    if against - noise.rate <= UNEXPLAINED or len(combined) < FEW_EXAMPLES:
        return
    log.warning(
        f"the layers together are against {against:.1%} of the labels, and noise between classes explains "
        f"{noise.rate:.1%}: the others are ambiguous examples, or labels that are wrong near class boundaries, which "
        f"look the same; up to {between[1]:.1%} may be wrong. The order holds, the flags leave them out: see `top`"
    )


def _contradicted(score: np.ndarray, combined: np.ndarray) -> bool:
    """Whether the combined evidence (N, T) favours most of the labels that the scores (N,) count as wrong."""
    return float(score.sum()) >= FEW_WRONG and _supported(score, combined) < SUPPORTED


def _supported(score: np.ndarray, combined: np.ndarray) -> float:
    """Of the labels that the scores (N,) count as wrong, the share that the combined evidence (N, T) is against."""
    return float(score[_against(combined)].sum()) / max(float(score.sum()), 1e-12)


def _share_against(combined: np.ndarray) -> float:
    """The share of labels that the combined evidence (N, T) is against."""
    return float(_against(combined).mean())


def _against(combined: np.ndarray) -> np.ndarray:
    """Which labels (N,) bool have less combined evidence (N, T) than another class."""
    return combined[:, 1:].max(1) > 0


def _range_by_layers(labels: JudgedLabels, classes: int) -> tuple[float, float]:
    """The lowest and highest share of wrong labels that a single layer gives, the outputs left out."""
    found = shares(labels.evidence, labels.candidates, max(len(labels.layers) - 1, 1), classes)
    return float(found.min()), float(found.max())
