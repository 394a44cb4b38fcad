"""How far to trust each layer on labels that no layer has learned: by how well it foretells them.

On the summarized data the outputs may have memorised the labels, and layers are weighed by how they agree
(fsdtool.mislabel.noise.verdict).  New labels no layer has seen, so that they are themselves the measure: the
units u_l >= 0 and the share rho of wrong labels, which fall evenly on the other classes, are those under which the
labels are likeliest,

    sum_i log sum_t p_it M[t, y_i],  p_i = softmax(sum_l u_l E_l),  M[t, y] = rho / (classes - 1) or 1 - rho.

So the outputs count by their worth out of sample (stacking, Wolpert 1992).  They have LEAST_OUTPUTS of the weight at
least: the labels that are hardest to judge, near a boundary, are few, and the outputs know that boundary best.

Then the confusion M is fitted to the layers together as to one layer that has not memorised
(fsdtool.mislabel.noise.confusion).  Among new labels few are wrong, and of those some are confused as classes are (M,
with rate rho), others are of examples that look like that class next.  With p = softmax of the layers together the
label y of an example has the likelihood

    (1 - r1 - r2) p_y + sum_{t != y} p_t (r1 M[t, y] / rho + r2 p_y / (1 - p_t)),

whose shares r1 and r2 are fitted by expectation maximization; the score is the part of the sum in it.  An r1 that is
faint beside the labels that the layers are against is of their own errors, which M has taken for confusion, and falls
to zero: then the order is that of the labels near others.

How many labels are wrong where classes meet, nothing tells: labels drawn anew from p would be distributed as before.
So the share rho stands with a range, by the labels that the layers together are against and rho leaves out.  It ends
where half of them are wrong: there labels would be wrong as often as the layers.  It begins where a sixth of them,
the layers' own errors, has been taken for noise between classes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fsdtool.mislabel.noise.confusion import Noise, softmax
from fsdtool.mislabel.noise.layer_weights import margins_of
from fsdtool.mislabel.noise.posterior import Posterior

SAMPLE = 16384
STEPS = 100
FIRST = 0.1  # unit of a layer at the start, in spreads of its margins; that of the outputs is 1
FIRST_RATE = 0.05
LEAST_RATE = 1e-4
LEAST_WEIGHT = 1e-3
LEAST_OUTPUTS = 0.45  # weight of the outputs
ROUNDS = 300  # of expectation maximization
LEAST_NEAR = 3e-3  # share of labels near others, in the scores
# Confused labels to those left unexplained: on networks of clean labels they were .00 to .04 without noise between
# classes, .07 to .39 with it, on six sets of digits, letters and soils.
FAINT = 1 / 30
MISSED = 1 / 2  # of the labels that are left unexplained, at most
# Of the same, taken for noise: the share was too high by at most .13 of them on nine sets of digits, tables and
# photographs under clean labels, uniform noise and pairs.
MISTAKEN = 1 / 6


def stacked(evidence: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors (L,) float32 for evidence (N, L, T), relative to the given label in column 0, and weights in sum 1.

    The outputs are the last layer.
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
    units = logs[:-1].detach().exp().numpy()
    units[units < LEAST_WEIGHT * units.sum()] = 0.0
    total = units.sum()
    if units[-1] < LEAST_OUTPUTS * total:
        units[:-1] *= (1 - LEAST_OUTPUTS) * total / (total - units[-1])
        units[-1] = LEAST_OUTPUTS * total
    return (units / spread).astype(np.float32), (units / units.sum()).astype(np.float32)


def _likelihood(evidence: Tensor, units: Tensor, rate: Tensor, classes: int) -> Tensor:
    """Mean log-likelihood of the labels in column 0 of evidence (n, L, T)."""
    p = torch.softmax(torch.einsum("nlt,l->nt", evidence, units), 1)[:, 0]
    return torch.log(p * (1 - rate) + (1 - p) * rate / max(classes - 1, 1)).mean()


def scored(combined: np.ndarray, candidates: np.ndarray, noise: Noise) -> Posterior:
    """Scores of new labels from the combined evidence (N, T) on candidates (N, T), in nats.

    noise: the confusion of classes.
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
        unit=1.0,
        offset=0.0,
    )


def between(combined: np.ndarray, noise: Noise) -> tuple[float, float]:
    """The least and the largest share of wrong labels, by the combined evidence (N, T) and the noise found in it."""
    if not noise.layers:  # nothing is known
        return 0.0, 1.0
    unexplained = _unexplained(combined, noise)
    return max(noise.rate - MISTAKEN * unexplained, 0.0), noise.rate + MISSED * unexplained


def _unexplained(combined: np.ndarray, noise: Noise) -> float:
    """The share of labels that the combined evidence (N, T) is against, less those that the noise says are wrong."""
    return max(float((combined[:, 1:].max(1) > 0).mean()) - noise.rate, 0.0)


def _parts(combined: np.ndarray, candidates: np.ndarray, noise: Noise) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What makes the label likely: that it is right (N,), taken for another class or near one (N, T - 1 each)."""
    p = softmax(combined.astype(np.float64)).clip(1e-12, 1 - 1e-9)
    own, others = p[:, :1], p[:, 1:]
    confusion = np.exp(noise.log_confusion(candidates)[:, 1:].astype(np.float64))
    return own[:, 0], others * confusion / max(noise.rate, LEAST_RATE), others * own / (1 - others)


def _shares(own: np.ndarray, confused: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Shares (3,) of the labels that are right, of another class, or near one, from `_parts`."""
    parts = np.stack([own, confused.sum(1), near.sum(1)], 1)
    sample = parts[:: -(-len(parts) // SAMPLE)]
    shares = np.array([1 - FIRST_RATE, FIRST_RATE / 2, FIRST_RATE / 2])
    for _ in range(ROUNDS):
        belongs = sample * shares
        shares = (belongs / belongs.sum(1, keepdims=True)).mean(0)
    return shares
