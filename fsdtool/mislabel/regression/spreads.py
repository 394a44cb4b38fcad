"""Middles and spreads of numbers some of which are wrong by any amount."""

from __future__ import annotations

import numpy as np

NORMAL_SPREAD = 1.4826  # standard deviation of a normal over its median absolute deviation
LEAST_UNIT = 0.01  # of the spread, where more than half of the residuals are all the same
MIDDLE = 0.99  # share of the values that a spread is sure of: what lies outside may be a slip of the decimal point


def middle(values: np.ndarray) -> float:
    """The median of values (N,), the lower one of two."""
    return float(np.quantile(values, 0.5, method="lower"))


def edges(values: np.ndarray) -> tuple[float, float]:
    """The least and the greatest value of the middle of values (N,)."""
    ordered = np.sort(values.astype(np.float64))
    edge = round((1 - MIDDLE) / 2 * (len(ordered) - 1))
    return float(ordered[edge]), float(ordered[len(ordered) - 1 - edge])


def spread(values: np.ndarray) -> float:
    """Standard deviation of values (N,), the outermost of which count as if they were at the edge of the middle."""
    return float(values.astype(np.float64).clip(*edges(values)).std())


def robust_unit(residuals: np.ndarray) -> float:
    """The robust spread of residuals (N,) around their median; positive."""
    centred = residuals.astype(np.float64) - middle(residuals)
    least = spread(centred) or float(np.abs(centred).max())
    return max(NORMAL_SPREAD * middle(np.abs(centred)), LEAST_UNIT * least, 1e-30)


def step_of(values: np.ndarray) -> float:
    """The median distance from a value to the next other one, of values (N,) that occur more than once.

    0 where fewer than half of them do: they may be any number.
    """
    distinct, count = np.unique(values, return_counts=True)
    distinct, count = distinct[count > 1], count[count > 1]
    if len(distinct) < 2 or count.sum() < len(values) / 2:
        return 0.0
    gaps = np.concatenate([[np.inf], np.diff(distinct), [np.inf]])
    return middle(np.repeat(np.minimum(gaps[1:], gaps[:-1]), count))
