"""Which targets are outliers, and how many: two components, right values and wrong ones.

A right target lies off its prediction f by a residual r of heavy tails, whose scale changes slowly with f; a wrong
one has the density g of one of the hypotheses of fsdtool.mislabel.regression.wrong_targets:

    p(r) = (1 - share) t_nu(r / s(f)) / s(f)  +  share g,     log s = sum_k theta_k B_k(rank of f)

with t_nu the density of a Student t and B_k five hat functions; theta has a Gaussian prior on the differences of
neighbours.  Share and theta follow by expectation maximization, theta by Fisher scoring.  Where targets are whole
numbers or have another step d, the first density is averaged over r - d/2 ... r + d/2, all that is rounded to r.

nu and the hypothesis are those of the greatest likelihood.  They are not known for sure, and no data tell whether the
last far residuals are tails or errors.  So the share has a range: from the least share under any nu and any
hypothesis to the greatest under any nu and those hypotheses that explain the targets about as well as the best, each
two standard errors farther.  Where the smallest nu is the likeliest, tails may be heavier still, and 2 and 1 count too.

The probability that a target is wrong is the second term over the sum, made to rise with |r| / s(f) by isotonic
regression, which keeps the sum: how far a target lies off, in units of what is usual there, is what ranks it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fsdtool.mislabel.regression.spreads import middle, robust_unit, step_of
from fsdtool.mislabel.regression.wrong_targets import kinds, student

TAILS = (3.0, 4.0, 6.0, 10.0)  # degrees of freedom
LIGHTEST = math.inf  # for the range alone: under normal residuals all that lies far off would be wrong
HEAVIER = (1.0, 2.0)  # for the range alone, where the heaviest of the tails is the likeliest
STEPS = 300
SETTLED = 1e-5  # change of the share in the last step
LEAST_SHARE, LARGEST_SHARE = 1e-3, 0.5  # the share that a fit begins with, and of all
FEW = 20.0  # right targets that are counted as seen beforehand: of shares that explain as much, the smaller one
AS_WELL = 7.0  # nats, by which a hypothesis may be worse than the best
KNOTS, STIFF = 5, 200.0  # of the scale: 1 / variance of the difference between neighbouring log-scales
NODES, WEIGHTS = np.polynomial.legendre.leggauss(5)
COARSE = 0.1  # of the scale: a smaller step of the targets is none
SAMPLE = 8192  # examples from which the components are told
WIDEST = 4.0  # of a log-scale in units of the robust spread: most residuals may be zero


@dataclass(frozen=True)
class Outliers:
    """probability (N,) of each target to be wrong, its distance (N,) |r| / s, and s (N,), the scale of right residuals.

    share: of wrong targets; between: its range.  settled: whether the share no longer changed when the steps ended.
    """

    probability: np.ndarray
    distance: np.ndarray
    scale: np.ndarray
    share: float
    between: tuple[float, float]
    settled: bool


def outliers(target: np.ndarray, residual: np.ndarray) -> Outliers:
    """The wrong ones among targets (N,) that lie `residual` (N,) off their predictions."""
    target, residual = target.astype(np.float64), residual.astype(np.float64)
    centred, unit = residual - middle(residual), robust_unit(residual)
    if not centred.any():
        zero = np.zeros(len(target))
        return Outliers(zero, zero, np.full(len(target), unit), 0.0, (0.0, 0.0), True)
    step = step_of(target)
    wrong = kinds(target, centred, step)
    hats = _hats(target - residual)
    rows = np.linspace(0, len(target) - 1, min(len(target), SAMPLE)).round().astype(int)
    fits, (kind, nu) = _fits(_Right(centred[rows], hats[rows], step, unit), {k: g[rows] for k, g in wrong.items()})
    best = fits[kind, nu]
    right = _Right(centred, hats, step, unit)
    scale = right.scale(best.theta)
    each = best.share * wrong[kind]
    each = each / (each + (1 - best.share) * right.density(scale, nu)[0] + 1e-300)
    distance = np.abs(centred) / scale
    probability = _rising(each, distance)
    low, high = _range(fits, best)
    if not middle(np.abs(centred)):
        low = 0.0  # most residuals are zero and show no scale: the others may be what is usual of them
    return Outliers(probability, distance, scale, best.share, (low, high), best.settled)


@dataclass(frozen=True)
class _Fit:
    share: float
    error: float  # standard error of the share
    theta: np.ndarray
    likelihood: float
    settled: bool


class _Right:
    """The density of right residuals (n,) whose log-scale, in `unit`, is linear in the hats (n, K)."""

    def __init__(self, residual: np.ndarray, hats: np.ndarray, step: float, unit: float):
        coarse = step > COARSE * unit
        self.hats, self.unit = hats, max(unit, step / 2 if coarse else 0.0)
        nodes, self.weights = (step / 2 * NODES, WEIGHTS / 2) if coarse else (np.zeros(1), np.ones(1))
        self.points = residual[:, None] + nodes  # (n, nodes)

    def scale(self, theta: np.ndarray) -> np.ndarray:
        """(n,)."""
        return self.unit * np.exp(self.hats @ theta)

    def density(self, scale: np.ndarray, nu: float) -> tuple[np.ndarray, np.ndarray]:
        """Densities (n,), and the derivatives (n,) of their logarithms by the log-scale."""
        z = self.points / scale[:, None]
        parts = student(z, nu) * self.weights / scale[:, None]
        slope = z**2 - 1 if math.isinf(nu) else (nu + 1) * z**2 / (nu + z**2) - 1
        density = parts.sum(1) + 1e-300
        return density, (parts * slope).sum(1) / density


def _fits(right: _Right, wrong: dict[str, np.ndarray]) -> tuple[dict[tuple[str, float], _Fit], tuple[str, float]]:
    """The fits by hypothesis and nu, given the density (n,) of wrong targets under each, and which is the likeliest."""
    fits: dict[tuple[str, float], _Fit] = {}
    for kind, density in wrong.items():
        found = None
        for nu in (*TAILS, LIGHTEST):
            found = fits[kind, nu] = _fit(right, density, nu, found)
    likeliest = max((key for key in fits if key[1] != LIGHTEST), key=lambda key: fits[key].likelihood)
    if likeliest[1] == TAILS[0]:
        for kind, density in wrong.items():
            fits |= {(kind, nu): _fit(right, density, nu, fits[kind, TAILS[0]]) for nu in HEAVIER}
    return fits, likeliest


def _fit(right: _Right, wrong: np.ndarray, nu: float, near: _Fit | None) -> _Fit:
    """Share and theta of greatest likelihood, given the density of wrong targets (n,), beginning with `near`."""
    hats, settled = right.hats, False
    theta, share = (np.zeros(hats.shape[1]), 0.05) if near is None else (near.theta, max(near.share, LEAST_SHARE))
    stiff = _stiffness(hats.shape[1])
    information = 2.0 if math.isinf(nu) else 2 * nu / (nu + 3)
    for _ in range(STEPS):
        density, slope = right.density(right.scale(theta), nu)
        before, share = share, _best_share(wrong, density, share)
        trust = (1 - share) * density / ((1 - share) * density + share * wrong)
        curvature = information * (hats.T * trust) @ hats + stiff
        move = np.linalg.solve(curvature, hats.T @ (trust * slope) - stiff @ theta).clip(-0.5, 0.5)
        theta = (theta + move).clip(-WIDEST, WIDEST)
        settled = abs(share - before) < SETTLED and float(np.abs(move).max()) < 100 * SETTLED
        if settled:
            break
    density, slope = right.density(right.scale(theta), nu)
    both = share * wrong + (1 - share) * density
    likelihood = np.log(both).sum() - 0.5 * theta @ stiff @ theta + FEW * math.log1p(-share)
    scores = np.column_stack([(wrong - density) / both, hats * ((1 - share) * density * slope / both)[:, None]])
    outer = scores.T @ scores
    outer[1:, 1:] += stiff
    error = float(np.linalg.pinv(outer, hermitian=True)[0, 0]) ** 0.5
    return _Fit(share, error, theta, float(likelihood), settled)


def _best_share(wrong: np.ndarray, density: np.ndarray, share: float) -> float:
    """Some steps of expectation maximization for the share alone."""
    ratio = density / wrong
    for _ in range(5):
        share = float((share / (share + (1 - share) * ratio)).sum()) / (len(wrong) + FEW)
        share = min(max(share, 1e-9), LARGEST_SHARE)
    return share


def _range(fits: dict[tuple[str, float], _Fit], best: _Fit) -> tuple[float, float]:
    likely = {kind for (kind, _), fit in fits.items() if fit.likelihood >= best.likelihood - AS_WELL}
    low = min(fit.share - 2 * fit.error for fit in fits.values())
    high = max(fit.share + 2 * fit.error for (kind, _), fit in fits.items() if kind in likely)
    return max(low, 0.0), min(high, LARGEST_SHARE)


def _hats(prediction: np.ndarray) -> np.ndarray:
    """Hat functions (N, KNOTS) of the ranks of predictions (N,)."""
    place = np.empty(len(prediction))
    place[np.argsort(prediction, kind="stable")] = np.linspace(0, KNOTS - 1, len(prediction))
    return np.maximum(1 - np.abs(place[:, None] - np.arange(KNOTS)), 0)


def _stiffness(knots: int) -> np.ndarray:
    differences = np.diff(np.eye(knots), axis=0)
    return STIFF * differences.T @ differences + 1e-3 * np.eye(knots)


def _rising(values: np.ndarray, by: np.ndarray) -> np.ndarray:
    """The values (N,) nearest to these that do not fall where `by` (N,) rises: pooling adjacent violators."""
    order = np.argsort(by, kind="stable")
    means: list[float] = []
    counts: list[int] = []
    for value in values[order].tolist():
        mean, count = value, 1
        while means and means[-1] >= mean:
            mean = (mean * count + means[-1] * counts[-1]) / (count + counts[-1])
            count += counts.pop()
            means.pop()
        means.append(mean)
        counts.append(count)
    found = np.empty(len(values))
    found[order] = np.repeat(means, counts)
    return found
