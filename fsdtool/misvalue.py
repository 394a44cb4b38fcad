"""Which target values of a regression are probably wrong, from the residuals in the records.

The residual of a target is what it lies off its prediction from all other examples (fsdtool.residuals); with the
model of fsdtool.outliers
    score             = the probability that the target is an outlier and no right value
    suggested_target  = that prediction, and standard_error the scale of what right targets lie off it
Where an example has several target values each is judged by itself, and the example by its most suspicious one.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fsdtool.catalogue import Catalogue
from fsdtool.errors import FsdtoolError
from fsdtool.outliers import STEPS, Outliers, middle, outliers, robust_unit, spread

log = logging.getLogger("fsdtool")

THRESHOLD = 0.5
FEW_EXAMPLES = 100


@dataclass(frozen=True)
class Misvalued:
    """Scores of all examples (N,), of each its most suspicious output (N,) int64, and the ranking.

    given, suggested (N,) float32: that output's target and its prediction; standard_error (O,) float64.  order (M,)
    holds the rows that were asked for, most suspicious first; flagged is how many of the judged examples (all, or
    those named) have a score above `threshold`; layers and weights (L,) say how much each layer counted;
    noise_rate: the estimated share of wrong target values.
    """

    summary: Catalogue
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
    noise_matrix: None = None

    @property
    def spec(self) -> str:
        """Where the examples are from."""
        return self.summary.data_spec

    @property
    def ids(self) -> np.ndarray:
        """(N,)."""
        return self.summary.records.ids

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row per example asked for, most suspicious first."""
        ids = self.summary.records.ids
        for rank, i in enumerate(self.order.tolist(), 1):
            yield {
                "id": ids[i].item(),
                "output": int(self.output[i]),
                "given_target": float(self.given[i]),
                "suggested_target": float(self.suggested[i]),
                "standard_error": float(self.standard_error[self.output[i]]),
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
    judged = [_judge(targets[:, o], residuals[:, o]) for o in range(targets.shape[1])]
    if not all(found.settled for found, _ in judged):
        log.warning(
            f"the share of wrong targets had not settled after {STEPS} steps, since wrong targets lie little farther "
            "off than right ones; take it as rough"
        )
    probability = np.stack([found.probability for found, _ in judged], 1)
    distance = np.stack([far for _, far in judged], 1)  # breaks ties: scores end at 1
    output = (probability + 1e-9 * distance / (1 + distance)).argmax(1)

    def of_output(values: np.ndarray) -> np.ndarray:
        return np.take_along_axis(values, output[:, None], 1)[:, 0]

    score, given = of_output(probability), of_output(targets)
    order = np.lexsort([-of_output(distance), -score])
    order = order if among is None else order[among[order]]
    flagged = int((score[order] > threshold).sum())
    return Misvalued(
        summary=summary,
        score=score,
        output=output,
        given=given,
        suggested=given - of_output(residuals),
        standard_error=np.array([found.scale for found, _ in judged]),
        order=order if everything else order[: flagged if top is None else top],
        flagged=flagged,
        judged=len(order),
        layers=records.layers("residual"),
        weights=records.weights(),
        threshold=threshold,
        noise_rate=sum(found.share for found, _ in judged) / len(judged),
    )


def _judge(target: np.ndarray, residual: np.ndarray) -> tuple[Outliers, np.ndarray]:
    """The outliers among the residuals (N,) of one output, and how many units (N,) each lies off the middle."""
    residual = residual.astype(np.float64)
    centred, unit = residual - middle(residual), robust_unit(residual)
    broad = math.hypot(spread(target), spread(target - residual))
    return outliers(centred, broad, unit), np.abs(centred) / unit
