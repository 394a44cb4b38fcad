"""The probability that a label is wrong, from the combined evidence and the confusion of classes.

With the combined evidence E_t of all layers (fsdtool.mislabel.noise.layer_weights) and the confusion M
(fsdtool.mislabel.noise.confusion), the true class is t with probability proportional to exp(beta E_t) M[t, y].  The
inverse temperature beta is the one under which the labels are likeliest, sum_t softmax(beta E)_t M[t, y].  The margin
is the log-odds of the strongest other class against the given label y, and
    score = 1 / (1 + exp(-(0.8 margin - offset)))
The slope of 0.8 is below 1 because the evidence of several layers is not independent, so that their sum is too sure.
Layers that have memorised labels favour the given ones.  The offset corrects for that: it is chosen so that the scores
add up to the number of labels that the noise estimate counts as wrong.

Some labels are wrong because their example looks like another class, whichever classes are confused in general.  So
three in a thousand examples of class t are taken to be labelled as a class that they look like: with
p = softmax(beta E), 0.003 p_y / (1 - p_t) is added to M[t, y].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fsdtool.mislabel.noise.confusion import Noise, likeliest, softmax

SAMPLE = 16384  # examples on which the inverse temperature is chosen
NEAR = 0.003  # share of the examples of a class that are labelled as a class that they look like
LEAST_ELSEWHERE = 1e-6  # of 1 - p_t, so that the division by it stays finite
SLOPE = 0.8  # of the log-odds; the best slopes were .53 to 1.7 on ten sets of digits, waves and photographs
COARSE = np.logspace(-2, 3, 26)  # inverse temperatures tried first
FINE = np.logspace(-0.2, 0.2, 9)  # and then, times the best of them
HALVINGS = 60  # of the interval of the offset: below the rounding of float64
SURE = 0.95  # probability above which the evidence supports a label


@dataclass(frozen=True)
class Posterior:
    """score: (N,) float64 in [0, 1], the probability that the label is wrong.

    suggested: (N,) int64, the likeliest class other than the given label.  confidence: (N,) float64, its probability
    among these classes.  inverse_temperature: of the evidence.  offset: of the log-odds.
    """

    score: np.ndarray
    suggested: np.ndarray
    confidence: np.ndarray
    inverse_temperature: float
    offset: float


def posterior(combined: np.ndarray, candidates: np.ndarray, noise: Noise, like: Posterior | None = None) -> Posterior:
    """Scores by the combined evidence (N, T) of the given labels, in column 0 of the candidates (N, T).

    like: whose inverse temperature and offset to take, where there are too few examples to fit their own.
    """
    prior = noise.log_confusion(candidates)
    if like is None:
        stride = -(-len(combined) // SAMPLE)
        beta = _inverse_temperature(np.asfortranarray(combined[::stride]), np.asfortranarray(prior[::stride]))
    else:
        beta = like.inverse_temperature
    joint = combined * np.float32(beta) + _with_near(combined, beta, prior)
    best = joint[:, 1:].argmax(1)
    margin = SLOPE * (joint[:, 1:].max(1) - joint[:, 0]).astype(np.float64)
    offset = _offset(margin, noise.rate) if like is None else like.offset
    return Posterior(
        score=_logistic(margin - offset),
        suggested=np.take_along_axis(candidates, best[:, None] + 1, 1)[:, 0].astype(np.int64),
        confidence=softmax(joint[:, 1:].astype(np.float64)).max(1),
        inverse_temperature=beta,
        offset=offset,
    )


def unsupported(combined: np.ndarray, inverse_temperature: float) -> float:
    """The share of labels whose probability by the combined evidence (N, T) alone is below .95."""
    return float((softmax(combined * np.float32(inverse_temperature))[:, 0] < SURE).mean())


def _with_near(combined: np.ndarray, beta: float, prior: np.ndarray) -> np.ndarray:
    """log M (N, T) of candidates, with the labels added that are wrong because their example looks like another class.

    prior: (N, T), log M without them.
    """
    expected = softmax(combined * np.float32(beta))
    near = NEAR * expected[:, :1] / np.maximum(1 - expected, LEAST_ELSEWHERE)
    near[:, 0] = 0.0
    return np.log(np.exp(prior) + near)


def _inverse_temperature(combined: np.ndarray, prior: np.ndarray) -> float:
    confusion = np.exp(prior)
    coarse, _ = likeliest(combined, confusion, COARSE)
    return likeliest(combined, confusion, coarse * FINE)[0]


def _offset(margin: np.ndarray, rate: float) -> float:
    """The offset under which the mean score of margins (N,) is `rate`.

    A bisection by hand: scipy.optimize, which has one, takes longer to import than the whole command to run.
    """
    low, high = float(margin.min()) - 50, float(margin.max()) + 50
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if _logistic(margin - middle).mean() > rate:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _logistic(x: np.ndarray) -> np.ndarray:
    small = np.exp(-np.abs(x))  # no overflow, and scores near 0 keep their digits
    return np.where(x < 0, small, 1.0) / (1 + small)
