"""The probability that a label is wrong: evidence on its class, and how often classes are taken for one another.

With the combined evidence E_t of all layers (fsdtool.mislabel.noise.layer_weights) and the confusion M
(fsdtool.mislabel.noise.confusion), the true class is t with probability in proportion to exp(u E_t) M[t, y].  The unit
u is that under which the labels are likeliest, sum_t softmax(u E)_t M[t, y].  The margin is the log-odds of the
strongest other class against y, and
    score = 1 / (1 + exp(-(0.8 margin - offset)))
Some labels are wrong because their example looks like another class, whatever classes are confused in general.  So
with p = softmax(u E) three in a thousand examples of t are taken to be labelled by what else they look like: M[t, y]
stands with 0.003 p_y / (1 - p_t) more.  The evidence of several layers is not independent, and counts less than it
says.  Layers that have memorised labels take sides with them; the offset makes up for it: the scores add up to the
number of labels that the noise says are wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fsdtool.mislabel.noise.confusion import Noise, likeliest, softmax

SAMPLE = 16384  # examples on which the unit is fitted
NEAR = 0.003
LEAST_ELSEWHERE = 1e-6
SLOPE = 0.8  # of the log-odds; those that fitted best were .53 to 1.7 on ten sets of digits, waves and photographs
COARSE = np.logspace(-2, 3, 26)
FINE = np.logspace(-0.2, 0.2, 9)
HALVINGS = 60
SURE = 0.95


@dataclass(frozen=True)
class Posterior:
    """score, suggested and confidence (N,) of each example, the unit of its evidence, and the offset.

    score: float64 in [0, 1].  suggested: int64, the likeliest class other than the given label.  confidence: its
    probability among these.
    """

    score: np.ndarray
    suggested: np.ndarray
    confidence: np.ndarray
    unit: float
    offset: float


def posterior(combined: np.ndarray, candidates: np.ndarray, noise: Noise, like: Posterior | None = None) -> Posterior:
    """What the combined evidence (N, T) says of the given labels, in column 0 of the candidates (N, T).

    like: whose unit and offset to take, where there are too few examples to find their own.
    """
    prior = noise.log_confusion(candidates)
    if like is None:
        stride = -(-len(combined) // SAMPLE)
        unit = _unit(np.asfortranarray(combined[::stride]), np.asfortranarray(prior[::stride]))
    else:
        unit = like.unit
    joint = combined * np.float32(unit) + _with_near(combined, unit, prior)
    best = joint[:, 1:].argmax(1)
    margin = SLOPE * (joint[:, 1:].max(1) - joint[:, 0]).astype(np.float64)
    offset = _offset(margin, noise.rate) if like is None else like.offset
    return Posterior(
        score=_logistic(margin - offset),
        suggested=np.take_along_axis(candidates, best[:, None] + 1, 1)[:, 0].astype(np.int64),
        confidence=softmax(joint[:, 1:].astype(np.float64)).max(1),
        unit=unit,
        offset=offset,
    )


def unsupported(combined: np.ndarray, unit: float) -> float:
    """The share of labels whose probability by the combined evidence (N, T) alone, in these units, is below .95."""
    return float((softmax(combined * np.float32(unit))[:, 0] < SURE).mean())


def _with_near(combined: np.ndarray, unit: float, prior: np.ndarray) -> np.ndarray:
    """log M (N, T) of candidates with the labels that are wrong because their examples lie near another class."""
    expected = softmax(combined * np.float32(unit))
    near = NEAR * expected[:, :1] / np.maximum(1 - expected, LEAST_ELSEWHERE)
    near[:, 0] = 0.0
    return np.log(np.exp(prior) + near)


def _unit(combined: np.ndarray, prior: np.ndarray) -> float:
    confusion = np.exp(prior)
    coarse, _ = likeliest(combined, confusion, COARSE)
    return likeliest(combined, confusion, coarse * FINE)[0]


def _offset(margin: np.ndarray, rate: float) -> float:
    """The offset under which the mean score is `rate`."""
    low, high = float(margin.min()) - 50, float(margin.max()) + 50
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if _logistic(margin - middle).mean() > rate:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _logistic(x: np.ndarray) -> np.ndarray:
    small = np.exp(-np.abs(x))  # so that scores near 0 still differ
    return np.where(x < 0, small, 1.0) / (1 + small)
