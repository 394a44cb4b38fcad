"""Locations and deviations of numbers some of which are wrong by any amount."""

from __future__ import annotations

import numpy as np

NORMAL_SPREAD = 1.4826  # standard deviation of a normal over its median absolute deviation
LEAST_DEVIATION = 0.01  # of the winsorised deviation, for residuals more than half of which are equal
MIDDLE = 0.99  # central mass kept when the deviation is winsorised


def middle(values: np.ndarray) -> float:
    """The median of values (N,); of an even number, the lower of the two middle ones."""
    return float(np.quantile(values, 0.5, method="lower"))


def edges(values: np.ndarray) -> tuple[float, float]:
    """The least and the greatest of the central 99 % of values (N,)."""
    ordered = np.sort(values.astype(np.float64))
    edge = round((1 - MIDDLE) / 2 * (len(ordered) - 1))
    return float(ordered[edge]), float(ordered[len(ordered) - 1 - edge])


def spread(values: np.ndarray) -> float:
    """Winsorised standard deviation of values (N,): those outside the central 99 % are moved to its edges."""
    return float(values.astype(np.float64).clip(*edges(values)).std())


def robust_deviation(residuals: np.ndarray) -> float:
    """Robust standard deviation of residuals (N,), from their median absolute deviation; positive."""
    centred = residuals.astype(np.float64) - middle(residuals)
    least = spread(centred) or float(np.abs(centred).max())
    return max(NORMAL_SPREAD * middle(np.abs(centred)), LEAST_DEVIATION * least, 1e-30)


def step_of(values: np.ndarray) -> float:
    """The step to which values (N,) are rounded; 0 where they are not.

    Among values that occur more than once, the median distance to the nearest other one.  If fewer than half of the
    examples have such a value, the values are not rounded.
    """
    distinct, count = np.unique(values, return_counts=True)
    distinct, count = distinct[count > 1], count[count > 1]
    if len(distinct) < 2 or count.sum() < len(values) / 2:
        return 0.0
    gaps = np.concatenate([[np.inf], np.diff(distinct), [np.inf]])
    return middle(np.repeat(np.minimum(gaps[1:], gaps[:-1]), count))
