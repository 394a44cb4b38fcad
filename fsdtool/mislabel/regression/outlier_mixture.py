"""Which targets are wrong, and how many: a mixture of two components, right targets and wrong ones.

The residual r of a right target at its prediction f has heavy tails, and its scale s changes slowly with f.  A wrong
target has the density g of one of the hypotheses of fsdtool.mislabel.regression.wrong_targets:

    p(r) = (1 - share) t_nu(r / s(f)) / s(f)  +  share g,     log s = sum_k theta_k B_k(rank of f)

with t_nu the density of a Student t and B_k five hat functions.  theta has a Gaussian prior on the differences of
neighbours.  Share and theta are fitted by expectation maximization, theta by Fisher scoring.  Where targets are
rounded to a step d (whole numbers, for example), the density of right targets is averaged over r - d/2 ... r + d/2.

nu and the hypothesis are those of the greatest likelihood.  The data do not determine them, nor whether the farthest
residuals are tails or errors.  So the share has a range.  It begins at the least share under any nu and hypothesis,
less two standard errors.  It ends at the greatest share under any nu and those hypotheses whose likelihood is close to
the best, plus two standard errors.  Where the smallest nu is the likeliest, tails may be heavier still, and nu = 2 and
1 are included.

The probability that a target is wrong is the second term over the sum.  Isotonic regression, which keeps the sum, then
makes it rise with |r| / s(f): the ranking follows the residual relative to the usual ones at that prediction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fsdtool.mislabel.regression.spreads import middle, robust_deviation, step_of
from fsdtool.mislabel.regression.wrong_targets import kinds, student_density

# The benchmark of wrong targets (tests/benchmarks/README.md) names the tables on which these values were chosen.
TAILS = (3.0, 4.0, 6.0, 10.0)  # nu that are tried
LIGHTEST = math.inf  # for the range alone: with normal residuals every far target would be wrong
HEAVIER = (1.0, 2.0)  # nu for the range alone, where the heaviest of the tails is the likeliest
STEPS = 300  # of a fit, at most
SETTLED = 1e-5  # change of the share below which a fit has converged
LEAST_SHARE, LARGEST_SHARE = 1e-3, 0.5  # least share that a fit starts with, largest share of any
FEW = 20.0  # prior pseudo-examples with right targets: among shares of equal likelihood the smaller one wins
AS_WELL = 7.0  # nats below the best likelihood, within which a hypothesis counts for the range
KNOTS, STIFF = 5, 200.0  # hat functions of the scale; 1 / prior variance of neighbouring log-scales' difference
NODES, WEIGHTS = np.polynomial.legendre.leggauss(5)
COARSE = 0.1  # of the scale: if targets are rounded to a smaller step, rounding is ignored
SAMPLE = 8192  # examples that the components are fitted to
WIDEST = 4.0  # bound of |theta|, needed where most residuals are zero


@dataclass(frozen=True)
class Outliers:
    """probability: (N,) float64, that a target is wrong.  distance: (N,) |r| / s, the residual relative to its scale.

    scale: (N,) s, the scale of right residuals, in units of the target.  share: of wrong targets; between: its range.
    settled: whether the fit converged.
    """

    probability: np.ndarray
    distance: np.ndarray
    scale: np.ndarray
    share: float
    between: tuple[float, float]
    settled: bool


def outliers(target: np.ndarray, residual: np.ndarray) -> Outliers:
    """Which of the targets (N,) are wrong, given their residuals (N,), target less prediction in the same units."""
    target, residual = target.astype(np.float64), residual.astype(np.float64)
    centred, base = residual - middle(residual), robust_deviation(residual)
    if not centred.any():
        zero = np.zeros(len(target))
        return Outliers(zero, zero, np.full(len(target), base), 0.0, (0.0, 0.0), True)
    step = step_of(target)
    wrong = kinds(target, centred, step)
    hats = _hats(target - residual)
    rows = np.linspace(0, len(target) - 1, min(len(target), SAMPLE)).round().astype(int)
    fits, (kind, nu) = _fits(_Right(centred[rows], hats[rows], step, base), {k: g[rows] for k, g in wrong.items()})
    best = fits[kind, nu]
    right = _Right(centred, hats, step, base)
    scale = right.scale(best.theta)
    each = best.share * wrong[kind]
    each = each / (each + (1 - best.share) * right.density(scale, nu)[0] + 1e-300)
    distance = np.abs(centred) / scale
    probability = _rising(each, distance)
    low, high = _range(fits, best)
    if not middle(np.abs(centred)):
        low = 0.0  # most residuals are zero, so the scale is unknown and the others may be right
    return Outliers(probability, distance, scale, best.share, (low, high), best.settled)


@dataclass(frozen=True)
class _Fit:
    share: float
    error: float  # standard error of the share
    theta: np.ndarray
    likelihood: float
    settled: bool


class _Right:
    """The density of right residuals (n,); their scale is base exp(hats theta), with hats (n, K).

    step: distance between neighbouring values of rounded targets.
    """

    def __init__(self, residual: np.ndarray, hats: np.ndarray, step: float, base: float):
        coarse = step > COARSE * base
        self.hats, self.base = hats, max(base, step / 2 if coarse else 0.0)
        nodes, self.weights = (step / 2 * NODES, WEIGHTS / 2) if coarse else (np.zeros(1), np.ones(1))
        self.points = residual[:, None] + nodes  # (n, nodes)

    def scale(self, theta: np.ndarray) -> np.ndarray:
        """The scale s (n,) for theta (K,)."""
        return self.base * np.exp(self.hats @ theta)

    def density(self, scale: np.ndarray, nu: float) -> tuple[np.ndarray, np.ndarray]:
        """Densities (n,) at this scale (n,), and the derivatives (n,) of their logarithms by the log-scale."""
        z = self.points / scale[:, None]
        parts = student_density(z, nu) * self.weights / scale[:, None]
        slope = z**2 - 1 if math.isinf(nu) else (nu + 1) * z**2 / (nu + z**2) - 1
        density = parts.sum(1) + 1e-300
        return density, (parts * slope).sum(1) / density


def _fits(right: _Right, wrong: dict[str, np.ndarray]) -> tuple[dict[tuple[str, float], _Fit], tuple[str, float]]:
    """The fits by hypothesis and nu, and the pair of the likeliest; wrong: density (n,) under each hypothesis."""
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
    """Share and theta of greatest likelihood, from the density of wrong targets (n,), starting at the fit `near`."""
    hats, settled = right.hats, False
    theta, share = (np.zeros(hats.shape[1]), 0.05) if near is None else (near.theta, max(near.share, LEAST_SHARE))
    stiff = _stiffness(hats.shape[1])
    information = 2.0 if math.isinf(nu) else 2 * nu / (nu + 3)
    for _ in range(STEPS):
        density, slope = right.density(right.scale(theta), nu)
        before, share = share, _best_share(wrong, density, share)
        is_right = (1 - share) * density / ((1 - share) * density + share * wrong)
        curvature = information * (hats.T * is_right) @ hats + stiff
        move = np.linalg.solve(curvature, hats.T @ (is_right * slope) - stiff @ theta).clip(-0.5, 0.5)
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
    """The range of the share over the fits, each with two standard errors."""
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
    """Precision (knots, knots) of the Gaussian prior on theta."""
    differences = np.diff(np.eye(knots), axis=0)
    return STIFF * differences.T @ differences + 1e-3 * np.eye(knots)


def _rising(values: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Isotonic regression: the values (N,) nearest to these that do not fall where `by` (N,) rises.

    Pool adjacent violators by hand: scipy.optimize, which has it, takes longer to import than the whole command to run.
    """
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
