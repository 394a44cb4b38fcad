"""What wrong target values may look like: their density under each of four hypotheses.

    other         the target of another example: the smoothed density of all targets
    any           any value in the range of the targets: uniform
    off, farther  near the prediction: a Student t_10 as wide as targets lie around the predictions of other examples,
                  or 1.4 times as wide

A density is at least a thousandth of its maximum, so that no target is too far off to be wrong.  The likelihood
decides between the hypotheses in fsdtool.mislabel.regression.outlier_mixture.
"""

from __future__ import annotations

import math

import numpy as np

from fsdtool.mislabel.regression.spreads import edges, robust_deviation, spread

FREEDOM = 10.0  # of the Student t
BREADTHS = {"off": 1.0, "farther": 1.4}
LEAST = 1e-3  # of the greatest density
BINS = 511  # of the smoothed density; odd, so that one bin is the centre of the kernel
SMOOTH = 0.2  # width of the smoothing kernel, relative to the breadth


def kinds(target: np.ndarray, residual: np.ndarray, step: float) -> dict[str, np.ndarray]:
    """Densities (N,) float64 by hypothesis of the targets (N,) with residuals (N,), if they were wrong.

    step: to which targets are rounded, 0 where they are not.
    """
    breadth = max(math.hypot(spread(target), spread(target - residual)), robust_deviation(residual))
    low, high = edges(target)
    found = {
        "other": _smoothed(target, low, high, max(SMOOTH * breadth, step / 2)),
        "any": np.full(len(target), 1 / max(high - low + step, breadth)),
    }
    for name, factor in BREADTHS.items():
        scale = factor * breadth * ((FREEDOM - 2) / FREEDOM) ** 0.5
        found[name] = student_density(residual / scale, FREEDOM) / scale
    return {name: np.maximum(density, LEAST * density.max()) for name, density in found.items()}


def student_density(z: np.ndarray, freedom: float) -> np.ndarray:
    """Density of a Student t at z, of z's shape; of a normal for infinite degrees of freedom.

    By hand, with math.lgamma: scipy.stats, which has it, takes twice as long to import as the whole command to run.
    """
    if math.isinf(freedom):
        return np.exp(-0.5 * z**2) / (2 * math.pi) ** 0.5
    constant = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(freedom * math.pi)
    return np.exp(constant - (freedom + 1) / 2 * np.log1p(z**2 / freedom))


def _smoothed(target: np.ndarray, low: float, high: float, width: float) -> np.ndarray:
    """Density (N,) of the targets (N,) at each of them, smoothed; targets beyond `low` or `high` are moved there."""
    grid = np.linspace(low - 4 * width, high + 4 * width, BINS + 1)
    inside = target.clip(low, high)
    count, _ = np.histogram(inside, grid)
    middles = (grid[1:] + grid[:-1]) / 2
    bell = student_density((middles - middles[BINS // 2]) / width, math.inf) / width
    return np.interp(inside, middles, np.convolve(count, bell, "same") / len(target))
