"""How many labels are wrong, and which class is taken for which, from three views of the unknown true class.

The views of an example are its given label and the classes that the two earliest layers favour, itself left
out.  Early layers have not memorised labels, so given the true class t the views are taken as independent,
each with its own confusion matrix T_v[t, view] (Dawid, Skene 1979).  Expectation maximization alternates
    r_i(t) ~ pi_t prod_v T_v[t, v_i]        T_v[t, c] ~ 0.1 + sum of r_i(t) over i with v_i = c
and the noise matrix counts given labels against r.  Where both layers fail on the same examples (images that
early layers cannot tell apart), views are not independent and the rate comes out too high: an upper bound.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

STEPS = 40
SMOOTHING = 0.1  # examples added to each cell of a confusion matrix
NUMBERS = 2**24  # responsibilities held at once


def noise_matrix(given: Tensor, views: Tensor, classes: int) -> Tensor:
    """Estimated examples (classes, classes) float64 by given label (rows) and true class (columns).

    given: (N,) int64.  views: (N, V) int64, classes favoured by evidence that has not seen the given label.
    Many examples of many classes are estimated on an even sample and scaled to all.
    """
    stride = -(-len(given) // max(NUMBERS // classes, 1))
    seen = torch.cat([views, given[:, None]], 1)[::stride]
    patterns, counts = seen.unique(dim=0, return_counts=True)  # examples alike in all views share one row
    votes = sum(F.one_hot(view, classes) for view in patterns.T) + 0.5 * F.one_hot(patterns[:, -1], classes)
    responsibility = torch.softmax(3 * votes.double(), 1) * counts[:, None]
    for _ in range(STEPS):
        log_joint = responsibility.sum(0).clamp(min=1e-12).log().expand(len(patterns), -1)
        for view in patterns.T:
            log_joint = log_joint + _confusion(responsibility, view, classes).log()[view]
        responsibility = torch.softmax(log_joint, 1) * counts[:, None]
    matrix = responsibility.new_zeros(classes, classes).index_add_(0, patterns[:, -1], responsibility)
    sampled = torch.bincount(seen[:, -1], minlength=classes).clamp(min=1)
    return matrix * (torch.bincount(given, minlength=classes) / sampled)[:, None]


def _confusion(responsibility: Tensor, view: Tensor, classes: int) -> Tensor:
    """Probability of each view (rows) given each true class (columns), from weights (U, classes)."""
    counts = responsibility.new_zeros(classes, classes).index_add_(0, view, responsibility) + SMOOTHING
    return counts / counts.sum(0)
