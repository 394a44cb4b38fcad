"""What wrong target values may look like: their density under each of four hypotheses.

    other         the target of another example: the density of all targets, smoothed
    any           any value in the range of the targets, each as likely
    off, farther  anything around the prediction: a Student t_10 as broad as targets lie around predictions that are
                  not theirs, and 1.4 times as broad

None falls below a thousandth of its greatest value, so that no target lies too far off to be wrong.  Which one holds
is not known beforehand; fsdtool.mislabel.regression.outlier_mixture asks the likelihood.
"""

from __future__ import annotations

import math

import numpy as np

from fsdtool.mislabel.regression.spreads import edges, robust_unit, spread

FREEDOM = 10.0
BREADTHS = {"off": 1.0, "farther": 1.4}
LEAST = 1e-3  # of the greatest density
BINS = 511  # odd, so that the middle one is the middle
SMOOTH = 0.2  # of the breadth


def kinds(target: np.ndarray, residual: np.ndarray, step: float) -> dict[str, np.ndarray]:
    """Densities (N,) of the targets (N,) that lie `residual` (N,) off their predictions, were they wrong.

    step: the distance between neighbouring values that targets may have, 0 where they may have any.
    """
    breadth = max(math.hypot(spread(target), spread(target - residual)), robust_unit(residual))
    low, high = edges(target)
    found = {
        "other": _smoothed(target, low, high, max(SMOOTH * breadth, step / 2)),
        "any": np.full(len(target), 1 / max(high - low + step, breadth)),
    }
    for name, factor in BREADTHS.items():
        scale = factor * breadth * ((FREEDOM - 2) / FREEDOM) ** 0.5
        found[name] = student(residual / scale, FREEDOM) / scale
    return {name: np.maximum(density, LEAST * density.max()) for name, density in found.items()}


def student(z: np.ndarray, freedom: float) -> np.ndarray:
    """Density of a Student t at z, of a normal for infinite degrees of freedom."""
    if math.isinf(freedom):
        return np.exp(-0.5 * z**2) / (2 * math.pi) ** 0.5
    constant = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(freedom * math.pi)
    return np.exp(constant - (freedom + 1) / 2 * np.log1p(z**2 / freedom))


def _smoothed(target: np.ndarray, low: float, high: float, width: float) -> np.ndarray:
    """Density of the targets (N,) at each of them; what lies below `low` or above `high` counts as if it were there."""
    grid = np.linspace(low - 4 * width, high + 4 * width, BINS + 1)
    inside = target.clip(low, high)
    count, _ = np.histogram(inside, grid)
    middles = (grid[1:] + grid[:-1]) / 2
    bell = student((middles - middles[BINS // 2]) / width, math.inf) / width
    return np.interp(inside, middles, np.convolve(count, bell, "same") / len(target))
