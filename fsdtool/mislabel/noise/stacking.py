"""How much each layer counts for labels that no layer has learned, and the scores of such labels.

Weights.  On the summarized data the outputs may have memorised the labels, so layers are weighted by how well they
agree (fsdtool.mislabel.noise.verdict).  No layer has seen new labels, which therefore can be predicted from the layers
(stacking, Wolpert 1992).  The inverse temperatures beta_l >= 0 of the layers and the share rho of wrong labels, spread
evenly over the other classes, maximize the likelihood of the labels

    sum_i log sum_t p_it M[t, y_i],  p_i = softmax(sum_l beta_l E_l),  M[t, y] = rho / (classes - 1) or 1 - rho.

The outputs get LEAST_OUTPUTS of the weight at least: labels near a class boundary are the hardest to judge and too few
to count in that likelihood, and the outputs know the boundary best.

Scores.  The confusion M is fitted to the combined evidence of all layers (fsdtool.mislabel.noise.confusion).  A wrong
label is of one of two kinds.  It follows the confusion of classes, M with its share rho; or its example looks like the
class of the label.  With p = softmax of the combined evidence the label y of an example has the likelihood

    (1 - r1 - r2) p_y + sum_{t != y} p_t (r1 M[t, y] / rho + r2 p_y / (1 - p_t)),

whose shares r1 and r2 are fitted by expectation maximization.  The score is the part of the second term.  If r1 is
small beside the share of labels that the evidence is against, then M has taken errors of the layers for confusion: r1
is reduced to zero, and the second kind alone ranks the labels.

Range of the share.  Labels drawn at random from p would be distributed like the given ones, so nothing tells how many
labels near class boundaries are wrong.  The range depends on the labels that the combined evidence is against and rho
does not explain.  Its upper end counts half of them as wrong, as if labels and layers were wrong equally often.  Its
lower end subtracts a sixth of them, errors of the layers that were taken for noise between classes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fsdtool.mislabel.noise.confusion import Noise, softmax
from fsdtool.mislabel.noise.layer_weights import margins_of
from fsdtool.mislabel.noise.posterior import Posterior

SAMPLE = 16384  # examples that weights and shares are fitted to
STEPS = 100  # of L-BFGS, at most
FIRST = 0.1  # inverse temperature of a layer at the start, per deviation of its margins; that of the outputs is 1
FIRST_RATE = 0.05  # share of wrong labels that the fits start with
LEAST_RATE = 1e-4  # of the noise, where it is divided by
LEAST_WEIGHT = 1e-3  # a smaller weight of a layer is set to zero
LEAST_OUTPUTS = 0.45  # weight of the outputs
ROUNDS = 300  # of expectation maximization
LEAST_NEAR = 3e-3  # r2 in the scores
# r1, relative to the share that the evidence is against and the noise leaves unexplained, below which r1 is set to
# zero.  With networks of clean labels it was .00 to .04 without noise between classes and .07 to .39 with it, on six
# sets of digits, letters and soils.
FAINT = 1 / 30
MISSED = 1 / 2  # of the labels left unexplained, those counted as wrong at the upper end of the range
# Of the same number, the labels subtracted at the lower end: the estimate was too high by at most .13 of it on nine
# sets of digits, tables and photographs under clean labels, uniform noise and pairs.
MISTAKEN = 1 / 6


def stacked(evidence: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors (L,) float32 by which the layers' evidence is added up, and their weights (L,) float32 in sum 1.

    evidence: (N, L, T), nats, relative to the given label in column 0; the outputs are the last layer.
    """
    sample = evidence[:: -(-len(evidence) // SAMPLE)]
    spread = np.maximum(margins_of(sample).std(0), 1e-6)
    scaled = torch.from_numpy(sample.astype(np.float32) / spread[:, None]).double()
    start = torch.full((len(spread) + 1,), FIRST, dtype=torch.float64)
    start[-2] = max(float(spread[-1]), FIRST)
    start[-1] = FIRST_RATE / (1 - FIRST_RATE)
    logs = start.log().requires_grad_()
    optimizer = torch.optim.LBFGS([logs], max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -_likelihood(scaled, logs[:-1].exp(), torch.sigmoid(logs[-1]), classes)
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    beta = logs[:-1].detach().exp().numpy()
    beta[beta < LEAST_WEIGHT * beta.sum()] = 0.0
    total = beta.sum()
    if beta[-1] < LEAST_OUTPUTS * total:
        beta[:-1] *= (1 - LEAST_OUTPUTS) * total / (total - beta[-1])
        beta[-1] = LEAST_OUTPUTS * total
    return (beta / spread).astype(np.float32), (beta / beta.sum()).astype(np.float32)


def _likelihood(evidence: Tensor, inverse_temperatures: Tensor, rate: Tensor, classes: int) -> Tensor:
    """Mean log-likelihood of the labels in column 0 of evidence (n, L, T), a share `rate` of which is wrong."""
    p = torch.softmax(torch.einsum("nlt,l->nt", evidence, inverse_temperatures), 1)[:, 0]
    return torch.log(p * (1 - rate) + (1 - p) * rate / max(classes - 1, 1)).mean()


def scored(combined: np.ndarray, candidates: np.ndarray, noise: Noise) -> Posterior:
    """Scores of new labels from the combined evidence (N, T), in nats, on candidates (N, T).

    noise: the confusion of classes, fitted to the same evidence.
    """
    own, confused, near = _parts(combined, candidates, noise)
    shares = _shares(own, confused, near)
    shares[1] *= np.clip(shares[1] / max(FAINT * _unexplained(combined, noise), 1e-12) - 1, 0, 1)
    wrong = shares[1] * confused + max(shares[2], LEAST_NEAR) * near
    total = wrong.sum(1)
    best = wrong.argmax(1)
    return Posterior(
        score=total / (total + shares[0] * own),
        suggested=np.take_along_axis(candidates, best[:, None] + 1, 1)[:, 0].astype(np.int64),
        confidence=wrong.max(1) / np.maximum(total, 1e-300),
        inverse_temperature=1.0,
        offset=0.0,
    )


def share_range(combined: np.ndarray, noise: Noise) -> tuple[float, float]:
    """The range of the share of wrong labels, by the combined evidence (N, T) and the noise fitted to it."""
    if not noise.layers:  # the evidence does not tell the classes apart
        return 0.0, 1.0
    unexplained = _unexplained(combined, noise)
    return max(noise.rate - MISTAKEN * unexplained, 0.0), noise.rate + MISSED * unexplained


def _unexplained(combined: np.ndarray, noise: Noise) -> float:
    """The share of labels that the combined evidence (N, T) is against, less those that the noise says are wrong."""
    return max(float((combined[:, 1:].max(1) > 0).mean()) - noise.rate, 0.0)


def _parts(combined: np.ndarray, candidates: np.ndarray, noise: Noise) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Likelihoods of the label: if it is right (N,), or by confusion or likeness with each other class (N, T - 1)."""
    p = softmax(combined.astype(np.float64)).clip(1e-12, 1 - 1e-9)
    own, others = p[:, :1], p[:, 1:]
    confusion = np.exp(noise.log_confusion(candidates)[:, 1:].astype(np.float64))
    return own[:, 0], others * confusion / max(noise.rate, LEAST_RATE), others * own / (1 - others)


def _shares(own: np.ndarray, confused: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Shares (3,) of the labels that are right (1 - r1 - r2), wrong by confusion (r1) or by likeness (r2)."""
    parts = np.stack([own, confused.sum(1), near.sum(1)], 1)
    sample = parts[:: -(-len(parts) // SAMPLE)]
    shares = np.array([1 - FIRST_RATE, FIRST_RATE / 2, FIRST_RATE / 2])
    for _ in range(ROUNDS):
        belongs = sample * shares
        shares = (belongs / belongs.sum(1, keepdims=True)).mean(0)
    return shares
