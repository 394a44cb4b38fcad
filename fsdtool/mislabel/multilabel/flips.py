"""How many labels are flipped and which, from predictions of each label that were made without the example itself.

A label is 0 or 1.  Its true value is 1 with the probability pi = 1 / (1 + exp(-(a s + b))), s its prediction from all
other examples.  Then it is flipped: a true 0 is given as 1 with the probability e_0, a true 1 as 0 with e_1.  So

    P(given 1 | s) = e_0 + (1 - e_0 - e_1) pi

runs from the floor e_0 to the ceiling 1 - e_1, and the log-odds of a flip are

    log e_0 / (1 - e_1) - (a s + b)  of a given 1,      log e_1 / (1 - e_0) + a s + b  of a given 0.

How often labels are flipped shows in how often the surest predictions
are contradicted.  a, b, e_0 and e_1 are fitted to each label by expectation maximization, a and b by Newton steps.  A
label with few ones tells little of its own e: these are drawn towards those of all labels together.

Layers that have memorised flipped labels in part contradict them less surely, and e comes out too small.  So e is at
least what other predictions, which have memorised nothing, gave (`least`).  With this e, a and b are fitted once more,
and an offset is added to the log-odds of a flip: the one under which the probabilities add up to as many flipped labels
as either fit counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# With these values .036 to .042 came out of .05, .048 to .065 of .053 to .064 where only ones were flipped, and .000 of
# right labels (tests/benchmarks/mislabel_multilabel.py).
STEPS = 100  # of expectation maximization
SETTLED = 1e-5  # change of every flip rate below which it has converged
START = 0.02  # flip rates at first
LARGEST = 0.45  # flip rate: at .5 a label says nothing
SHARED = 100.0  # pseudo-examples of each label and true value with the flip rate of all labels
RIGHT = 20.0  # pseudo-examples of each true value, over all labels, that are not flipped
RIDGE = 1.0  # prior precision of a and b, of standardized predictions
LARGEST_MOVE = 1.0  # of a and b in one step
SAMPLE = 8192  # examples that the model is fitted to
SMALLEST = 1e-12  # flip rate
HALVINGS = 60  # of the interval of the offset: below the rounding of float64


@dataclass(frozen=True)
class Flips:
    """probability: (N, O) float64, that a label is flipped.  prediction: (N, O), the probability pi that it is 1.

    rates: (O, 2) the shares e_0 and e_1 of true zeros and ones that are flipped.  share: of all labels.  between: the
    smaller and the larger of the two shares that were estimated.
    """

    probability: np.ndarray
    prediction: np.ndarray
    rates: np.ndarray
    share: float
    between: tuple[float, float]


def flips(given: np.ndarray, prediction: np.ndarray, least: np.ndarray | None = None) -> Flips:
    """Which of the labels (N, O), 0 or 1, are flipped, by their predictions (N, O) from other examples.

    least: flip rates (O, 2) by predictions that have memorised nothing.
    """
    ones = given > 0.5
    s = prediction - prediction.mean(0)
    s = s / np.maximum(s.std(0), 1e-12)
    even = np.linspace(0, len(s) - 1, min(len(s), SAMPLE)).round().astype(int)
    line, rates = _fit(s[even], ones[even], None)
    z = line[0] * s + line[1]
    found = _logistic(_log_odds(z, ones, rates))
    share = float(found.mean())
    if least is None:
        return Flips(found, _logistic(z), rates, share, (share, share))
    true = np.clip((ones.mean(0) - least[:, 0]) / (1 - least.sum(1)), 0, 1)  # frequency of true ones
    other = float((least[:, 0] * (1 - true) + least[:, 1] * true).mean())
    rates = np.maximum(rates, least)
    line, _ = _fit(s[even], ones[even], rates)
    z = line[0] * s + line[1]
    found = _with_mean(_log_odds(z, ones, rates), max(share, other))
    return Flips(found, _logistic(z), rates, max(share, other), (min(share, other), max(share, other)))


def _fit(s: np.ndarray, ones: np.ndarray, fixed: np.ndarray | None) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """a and b (O,) and flip rates (O, 2) of labels `ones` (n, O) with predictions s (n, O); fixed: known rates."""
    slope, offset = np.ones(s.shape[1]), np.zeros(s.shape[1])
    rates = np.full((s.shape[1], 2), START) if fixed is None else fixed
    for _ in range(STEPS):
        wrong = _logistic(_log_odds(slope * s + offset, ones, rates))
        true = np.where(ones, 1 - wrong, wrong)  # (n, O), the probability that the true value is 1
        before = np.stack([slope, offset, *rates.T])
        if fixed is None:
            count = np.stack([(1 - true).sum(0), true.sum(0)], 1)
            moved = np.stack([np.where(ones, wrong, 0).sum(0), np.where(ones, 0, wrong).sum(0)], 1)
            shared = moved.sum(0) / (count.sum(0) + RIGHT)
            rates = ((moved + SHARED * shared) / (count + SHARED)).clip(SMALLEST, LARGEST)
        slope, offset = _newton(s, true, slope, offset)
        if np.abs(np.stack([slope, offset, *rates.T]) - before).max() < SETTLED:
            break
    return (slope, offset), rates


def _log_odds(z: np.ndarray, ones: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """The log-odds (n, O) that labels are flipped, z (n, O) those that their true values are 1."""
    zeros_flipped, ones_flipped = rates.T
    return np.where(
        ones, np.log(zeros_flipped / (1 - ones_flipped)) - z, np.log(ones_flipped / (1 - zeros_flipped)) + z
    )


def _newton(s: np.ndarray, true: np.ndarray, slope: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slopes and offsets (O,) after a Newton step of the logistic regressions of `true` on s (n, O)."""
    pi = _logistic(slope * s + offset)
    off, weight = true - pi, pi * (1 - pi)
    of_slope, of_offset = (off * s).sum(0) - RIDGE * slope, off.sum(0) - RIDGE * offset
    aa, ab, bb = (weight * s * s).sum(0) + RIDGE, (weight * s).sum(0), weight.sum(0) + RIDGE
    determinant = np.maximum(aa * bb - ab * ab, 1e-12)
    up = ((bb * of_slope - ab * of_offset) / determinant).clip(-LARGEST_MOVE, LARGEST_MOVE)
    along = ((aa * of_offset - ab * of_slope) / determinant).clip(-LARGEST_MOVE, LARGEST_MOVE)
    return np.maximum(slope + up, 0.0), offset + along


def _with_mean(odds: np.ndarray, mean: float) -> np.ndarray:
    """The probabilities (n, O) of log-odds with one offset, under which their mean is `mean`."""
    low, high = float(odds.min()) - 50, float(odds.max()) + 50
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _logistic(odds - middle).mean() > mean else (low, middle)
    return _logistic(odds - (low + high) / 2)


def _logistic(z: np.ndarray) -> np.ndarray:
    small = np.exp(-np.abs(z))  # no overflow, and small probabilities keep their digits
    return np.where(z < 0, small, 1.0) / (1 + small)
