"""What every estimator of wrong labels or wrong targets returns: scores of all examples, and a ranking of some.

An estimator scores all N examples; the caller's `Selection` decides which of them are ranked, how many are listed,
and above which score an example is flagged.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fsdtool.summary.catalogue import Catalogue

THRESHOLD = 0.5  # scores are probabilities: above it a label is more probably wrong than right
FEW_EXAMPLES = 100  # below so many examples the share of wrong labels or targets is not reliable
# What the two ends of the range of a share differ by, in words.
BY_LAYERS, NEAR_BOUNDARIES, BY_TAILS = "by single layers", "with those near class boundaries", "with other tails"
BY_INPUT = "by the input alone and by all layers"


class Doubt(enum.Enum):
    """Why the estimated share of wrong labels or targets is unreliable."""

    CONTRADICTED = "other evidence speaks against the share"
    AMBIGUOUS = "wrong labels and ambiguous examples near class boundaries look the same"


@dataclass(frozen=True)
class Selection:
    """Which examples are ranked and listed.

    top: list so many, flagged or not.  everything: list all.  With neither, the flagged ones are listed.  threshold: an
    example with a score above it is flagged.  mask: (N,) bool, the examples that are ranked and counted; None for all.
    """

    top: int | None = None
    everything: bool = False
    threshold: float = THRESHOLD
    mask: np.ndarray | None = None

    def ranking(self, score: np.ndarray, order: np.ndarray) -> Ranking:
        """The ranking of the scores (N,); order (N,) int64 holds all rows, most suspicious first."""
        if self.mask is not None:
            order = order[self.mask[order]]
        flagged = int((score[order] > self.threshold).sum())
        listed = len(order) if self.everything else flagged if self.top is None else self.top
        return Ranking(order[:listed], flagged, len(order), self.threshold)


@dataclass(frozen=True)
class Ranking:
    """order: (M,) int64, the rows that are listed, most suspicious first.

    flagged: how many of the `judged` examples (all N, or those of the selection's mask) score above `threshold`.
    """

    order: np.ndarray
    flagged: int
    judged: int
    threshold: float


@dataclass(frozen=True, kw_only=True)
class Suspects(ABC):
    """Examples ranked by how probably their label or target is wrong.

    ids: (N,) of the examples, which are of the data set `spec`.  given, suggested: (N,) the label (int64) or target
    value (float32) that each has, and the one that it probably should have.  score: (N,) float64, the probability that
    the given one is wrong.  layers, weights: names and weights (L,) of the layers, in sum 1.  noise_rate: estimated
    share of wrong labels or targets, None where there are too few examples to estimate it.  between: its range, where
    known; between_by: what the ends of the range differ by.  doubt: why the share is unreliable, None where it is not.
    """

    summary: Catalogue
    spec: str
    ids: np.ndarray
    given: np.ndarray
    suggested: np.ndarray
    score: np.ndarray
    ranking: Ranking
    layers: tuple[str, ...]
    weights: np.ndarray
    noise_rate: float | None
    between: tuple[float, float] | None
    between_by: str
    doubt: Doubt | None

    @abstractmethod
    def rows(self) -> Iterator[dict[str, Any]]:
        """One row for each example listed, most suspicious first."""

    @property
    def noise_matrix(self) -> np.ndarray | None:
        """Estimated examples (classes, classes) by given label and true class; None where there is no estimate."""
        return None

    @property
    def order(self) -> np.ndarray:
        """The rows listed (M,) int64, most suspicious first."""
        return self.ranking.order

    @property
    def examples(self) -> np.ndarray:
        """The examples (M,) int64 of what is listed."""
        return self.order

    @property
    def flagged(self) -> int:
        """How many of the judged examples score above the threshold."""
        return self.ranking.flagged

    @property
    def judged(self) -> int:
        """How many examples were ranked."""
        return self.ranking.judged

    @property
    def threshold(self) -> float:
        """The score above which an example is flagged."""
        return self.ranking.threshold

    @property
    def contradicted(self) -> bool:
        """Whether other evidence speaks against the share."""
        return self.doubt is Doubt.CONTRADICTED

    @property
    def ambiguous(self) -> bool:
        """Whether labels near class boundaries may be wrong, which the share leaves out."""
        return self.doubt is Doubt.AMBIGUOUS
