"""Which target values of a regression are probably wrong, from the residuals in the records.

The residual of a target is its difference from the value predicted from all other examples
(fsdtool.mislabel.regression.target_residuals).  With the mixture model of fsdtool.mislabel.regression.outlier_mixture
    score             = the probability that the target is wrong, not a tail value of the right targets
    suggested_target  = the predicted value; standard_error: the scale of the residuals of right targets like it
Where an example has several target values each is judged by itself, and the example by its most suspicious one.

How many targets are wrong depends on the tails of right ones, which are not known, so the share comes with a range.
Where the range is wide, residuals of right and of wrong targets overlap, and a warning says that the share is not
reliable.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fsdtool.errors import FsdtoolError
from fsdtool.mislabel.find import records_of
from fsdtool.mislabel.regression.outlier_mixture import STEPS, Outliers, outliers
from fsdtool.mislabel.suspects import BY_TAILS, FEW_EXAMPLES, THRESHOLD, Doubt, Selection, Suspects
from fsdtool.summary.catalogue import Catalogue

log = logging.getLogger("fsdtool")

WIDE = 0.1  # if the ends of the range differ by more, the share is not reliable


@dataclass(frozen=True, kw_only=True)
class TargetErrors(Suspects):
    """Examples ranked by how probably their most suspicious target value is wrong.

    output: (N,) int64, which of the example's target values that is; given and suggested are of it.  standard_error:
    (N,) float64, the scale of the residuals of right targets with predictions like its own, in units of the target.
    """

    output: np.ndarray
    standard_error: np.ndarray

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row for each example listed, most suspicious first."""
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


def find_target_errors(
    summary: Catalogue,
    *,
    top: int | None = None,
    everything: bool = False,
    threshold: float = THRESHOLD,
    mask: np.ndarray | None = None,
) -> TargetErrors:
    """Rank the summarized examples of a regression by how probably a target value of theirs is wrong.

    By default the flagged ones, with a score above `threshold`, are listed; `top` lists that many, `everything` all;
    mask (N,) bool: rank and count these alone.  Raises FsdtoolError for a summary without records, or of another task.
    """
    if not summary.task.quadratic:
        raise FsdtoolError(
            f"'{summary.path}' is of a {summary.task}, and only class labels and target values can be judged; "
            "give a summary of a classification or a regression"
        )
    records = records_of(summary)
    if len(records) < FEW_EXAMPLES:
        log.warning(
            f"{len(records)} examples are too few to predict targets well; trust the order more than the scores"
        )
    targets, residuals = records.read("target"), records.read("residual")
    by_output = [outliers(targets[:, o], residuals[:, o]) for o in range(targets.shape[1])]
    noise_rate, between, doubt = _share(by_output)
    probability = np.stack([found.probability for found in by_output], 1)  # (N, O)
    distance = np.stack([found.distance for found in by_output], 1)
    # The probability is constant over intervals of the distance, which therefore breaks its ties.
    output = (probability + 1e-9 * distance / (1 + distance)).argmax(1)

    def of_output(values: np.ndarray) -> np.ndarray:
        return np.take_along_axis(values, output[:, None], 1)[:, 0]

    score, given = of_output(probability), of_output(targets)
    order = np.lexsort([-of_output(distance), -score])
    return TargetErrors(
        summary=summary,
        spec=summary.data_spec,
        ids=records.ids,
        given=given,
        suggested=given - of_output(residuals),
        score=score,
        ranking=Selection(top, everything, threshold, mask).ranking(score, order),
        layers=records.layers("residual"),
        weights=records.weights(),
        noise_rate=noise_rate,
        between=between,
        between_by=BY_TAILS,
        doubt=doubt,
        output=output,
        standard_error=of_output(np.stack([found.scale for found in by_output], 1)),
    )


def _share(by_output: list[Outliers]) -> tuple[float, tuple[float, float], Doubt | None]:
    """The share of wrong targets, its range, and whether it is in doubt; all are means over the outputs."""
    if not all(found.settled for found in by_output):
        log.warning(
            f"the share of wrong targets had not settled after {STEPS} steps, since wrong targets lie little farther "
            "off than right ones; take it as rough"
        )
    share = sum(found.share for found in by_output) / len(by_output)
    low, high = np.mean([found.between for found in by_output], 0).tolist()
    if high - low <= WIDE:
        return share, (low, high), None
    log.warning(
        f"the share of wrong targets cannot be told: {share:.1%} is the likeliest, but it may be {low:.1%} to "
        f"{high:.1%}, since right targets lie off by almost as much as wrong ones would; trust the order more than "
        "the flags"
    )
    return share, (low, high), Doubt.CONTRADICTED
