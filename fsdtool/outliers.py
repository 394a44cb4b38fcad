"""Which residuals are outliers, and how many: two components, right values and wrong ones.

A right target lies off its prediction by a residual r of heavy tails, a wrong one by as much as any other target would:

    p(r) = (1 - share) t_4(r / s) / s  +  share t_10(r / b) / b

with t_nu the density of a Student t.  b, the spread of targets around predictions that are not theirs, is known; s
and the share follow by expectation maximization.  The probability that r is wrong is the second term over the sum,
raised to be no smaller than that of any smaller |r|.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

RIGHT, WRONG = 4.0, 10.0  # degrees of freedom
STEPS = 300
SETTLED = 0.01 / STEPS  # change of the share in the last step: as many again would move it by a hundredth
NORMAL_SPREAD = 1.4826  # standard deviation of a normal over its median absolute deviation
LEAST_UNIT = 0.01  # of the root mean square, where more than half of the residuals are all the same
MIDDLE = 0.99  # share of the values that a spread is sure of: what lies outside may be a slip of the decimal point


@dataclass(frozen=True)
class Outliers:
    """probability (N,) float64 of each residual to be wrong, share of wrong ones, and the scale s of the right ones.

    settled: whether the share no longer changed when the steps ended.
    """

    probability: np.ndarray
    share: float
    scale: float
    settled: bool


def outliers(residuals: np.ndarray, broad: float, unit: float) -> Outliers:
    """The two components of residuals (N,) around zero.  broad: spread of wrong ones; unit: a first guess of s."""
    z = residuals.astype(np.float64) / unit
    if not z.any():
        return Outliers(np.zeros_like(z), 0.0, 0.0, True)
    other = _log_t(z, max(broad / unit, 1.0) * ((WRONG - 2) / WRONG) ** 0.5, WRONG)
    scale, share = 1.0, 0.05
    for _ in range(STEPS):
        before = share
        wrong = 0.5 * (1 + np.tanh(0.5 * (_logit(share) + other - _log_t(z, scale, RIGHT))))
        share = min(max(float(wrong.mean()), 1e-9), 0.5)
        weight = (1 - wrong) * (RIGHT + 1) / (RIGHT + (z / scale) ** 2)
        scale = max(float((weight * z**2).sum() / max((1 - wrong).sum(), 1e-9)) ** 0.5, 1e-6)
    order = np.argsort(np.abs(z), kind="stable")
    probability = np.empty_like(z)
    probability[order] = np.maximum.accumulate(wrong[order])
    return Outliers(probability, share, scale * unit, abs(share - before) <= SETTLED)


def middle(values: np.ndarray) -> float:
    """The median of values (N,), the lower one of two."""
    return float(np.quantile(values, 0.5, method="lower"))


def robust_unit(residuals: np.ndarray) -> float:
    """The robust spread of residuals (N,) around their median; positive."""
    centred = residuals.astype(np.float64) - middle(residuals)
    return max(NORMAL_SPREAD * middle(np.abs(centred)), LEAST_UNIT * float((centred**2).mean()) ** 0.5, 1e-30)


def spread(values: np.ndarray) -> float:
    """Standard deviation of values (N,), the outermost of which count as if they were at the edge of the middle."""
    ordered = np.sort(values.astype(np.float64))
    edge = round((1 - MIDDLE) / 2 * (len(ordered) - 1))
    return float(ordered.clip(ordered[edge], ordered[len(ordered) - 1 - edge]).std())


def _log_t(z: np.ndarray, scale: float, freedom: float) -> np.ndarray:
    constant = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(freedom * math.pi)
    return constant - math.log(scale) - (freedom + 1) / 2 * np.log1p((z / scale) ** 2 / freedom)


def _logit(share: float) -> float:
    return math.log(share) - math.log1p(-share)
