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

import torch
from torch import Tensor

RIGHT, WRONG = 4.0, 10.0  # degrees of freedom
STEPS = 300
MIDDLE = 0.99  # share of the values that a spread is sure of: what lies outside may be a slip of the decimal point


@dataclass(frozen=True)
class Outliers:
    """probability (N,) float64 of each residual to be wrong, share of wrong ones, and the scale s of the right ones."""

    probability: Tensor
    share: float
    scale: float


def outliers(residuals: Tensor, broad: float, unit: float) -> Outliers:
    """The two components of residuals (N,) around zero.  broad: spread of wrong ones; unit: a first guess of s."""
    z = residuals.double() / unit
    if not z.any():
        return Outliers(torch.zeros_like(z), 0.0, 0.0)
    other = _log_t(z, max(broad / unit, 1.0) * ((WRONG - 2) / WRONG) ** 0.5, WRONG)
    scale, share = 1.0, 0.05
    for _ in range(STEPS):
        wrong = torch.sigmoid(_logit(share) + other - _log_t(z, scale, RIGHT))
        share = min(max(float(wrong.mean()), 1e-9), 0.5)
        weight = (1 - wrong) * (RIGHT + 1) / (RIGHT + (z / scale).square())
        scale = max(float((weight * z.square()).sum() / (1 - wrong).sum().clamp(min=1e-9)) ** 0.5, 1e-6)
    order = z.abs().argsort(stable=True)
    probability = torch.empty_like(z)
    probability[order] = wrong[order].cummax(0).values
    return Outliers(probability, share, scale * unit)


def spread(values: Tensor) -> float:
    """Standard deviation of values (N,), the outermost of which count as if they were at the edge of the middle."""
    ordered = values.double().sort().values
    edge = round((1 - MIDDLE) / 2 * (len(ordered) - 1))
    return float(ordered.clamp(ordered[edge], ordered[len(ordered) - 1 - edge]).std(correction=0))


def _log_t(z: Tensor, scale: float, freedom: float) -> Tensor:
    constant = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(freedom * math.pi)
    return constant - math.log(scale) - (freedom + 1) / 2 * ((z / scale).square() / freedom).log1p()


def _logit(share: float) -> float:
    return math.log(share) - math.log1p(-share)
