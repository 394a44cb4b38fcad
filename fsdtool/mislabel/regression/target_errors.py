"""Which target values of a regression are probably wrong, from the residuals in the records.

The residual of a target is what it lies off its prediction from all other examples
(fsdtool.mislabel.regression.target_residuals); with the model of fsdtool.mislabel.regression.outlier_mixture
    score             = the probability that the target is an outlier and no right value
    suggested_target  = that prediction, and standard_error the scale of what right targets like it lie off it
Where an example has several target values each is judged by itself, and the example by its most suspicious one.

How many are wrong depends on tails that nobody knows, so the share stands with its range.  Where the range is wide
the residuals of right and of wrong targets overlap, and a warning says that the share is not to be trusted.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fsdtool.errors import FsdtoolError
from fsdtool.mislabel.regression.outlier_mixture import STEPS, outliers
from fsdtool.summary.catalogue import Catalogue

log = logging.getLogger("fsdtool")

THRESHOLD = 0.5
FEW_EXAMPLES = 100
WIDE = 0.1  # between the ends of the range, from which on the share is not to be trusted


@dataclass(frozen=True)
class Misvalued:
    """Scores of all examples `ids` (N,), of each its most suspicious output (N,) int64, and the ranking.

    given, suggested, standard_error (N,): that output's target, its prediction, and the scale of what right targets
    lie off that.  order (M,) holds the rows that were asked for, most suspicious first; flagged is how many of the
    judged examples (all, or those named) have a score above `threshold`; layers and weights (L,) say how much each
    layer counted.  noise_rate: the estimated share of wrong target values; between: the lowest and highest share that
    other tails or other kinds of wrong targets give; contradicted: whether these are too far apart to trust it.
    """

    summary: Catalogue
    ids: np.ndarray
    score: np.ndarray
    output: np.ndarray
    given: np.ndarray
    suggested: np.ndarray
    standard_error: np.ndarray
    order: np.ndarray
    flagged: int
    judged: int
    layers: tuple[str, ...]
    weights: np.ndarray
    threshold: float
    noise_rate: float
    between: tuple[float, float]
    contradicted: bool
    between_by: str = "with other tails"
    ambiguous: bool = False
    noise_matrix: None = None

    @property
    def spec(self) -> str:
        """Where the examples are from."""
        return self.summary.data_spec

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row per example asked for, most suspicious first."""
        for rank, i in enumerate(self.order.tolist(), 1):
            yield {
                "id": self.ids[i].item(),
                "output": int(self.output[i]),
                "given_target": float(self.given[i]),
                "suggested_target": float(self.suggested[i]),
                "standard_error": float(self.standard_error[i]),
                "score": float(self.score[i]),
                "rank": rank,
            }


def find_misvalued(
    summary: Catalogue,
    *,
    top: int | None = None,
    everything: bool = False,
    threshold: float = THRESHOLD,
    among: np.ndarray | None = None,
) -> Misvalued:
    """Rank the training examples of a regression by how probably a target value of theirs is wrong.

    By default the flagged ones, with a score above `threshold`, are listed; `top` lists that many, `everything` all;
    `among` (N,) bool: of these alone.  Raises FsdtoolError for a summary without records, or of another task.
    """
    if not summary.task.quadratic:
        raise FsdtoolError(
            f"'{summary.path}' is of a {summary.task}, and only class labels and target values can be judged; "
            "give a summary of a classification or a regression"
        )
    records = summary.records
    if records is None:
        raise FsdtoolError(f"'{summary.path}' was written with --no-records; write it again with records")
    if len(records) < FEW_EXAMPLES:
        log.warning(
            f"{len(records)} examples are too few to predict targets well; trust the order more than the scores"
        )
    targets, residuals = records.read("target"), records.read("residual")
    judged = [outliers(targets[:, o], residuals[:, o]) for o in range(targets.shape[1])]
    if not all(found.settled for found in judged):
        log.warning(
            f"the share of wrong targets had not settled after {STEPS} steps, since wrong targets lie little farther "
            "off than right ones; take it as rough"
        )
    rate = sum(found.share for found in judged) / len(judged)
    low, high = np.mean([found.between for found in judged], 0).tolist()
    unsure = high - low > WIDE
    if unsure:
        log.warning(
            f"the share of wrong targets cannot be told: {rate:.1%} is the likeliest, but it may be {low:.1%} to "
            f"{high:.1%}, since right targets lie off by almost as much as wrong ones would; trust the order more than "
            "the flags"
        )
    probability = np.stack([found.probability for found in judged], 1)
    distance = np.stack([found.distance for found in judged], 1)  # breaks ties: scores are the same over stretches
    output = (probability + 1e-9 * distance / (1 + distance)).argmax(1)

    def of_output(values: np.ndarray) -> np.ndarray:
        return np.take_along_axis(values, output[:, None], 1)[:, 0]

    score, given = of_output(probability), of_output(targets)
    order = np.lexsort([-of_output(distance), -score])
    order = order if among is None else order[among[order]]
    flagged = int((score[order] > threshold).sum())
    return Misvalued(
        summary=summary,
        ids=records.ids,
        score=score,
        output=output,
        given=given,
        suggested=given - of_output(residuals),
        standard_error=of_output(np.stack([found.scale for found in judged], 1)),
        order=order if everything else order[: flagged if top is None else top],
        flagged=flagged,
        judged=len(order),
        layers=records.layers("residual"),
        weights=records.weights(),
        threshold=threshold,
        noise_rate=rate,
        between=(low, high),
        contradicted=unsure,
    )
