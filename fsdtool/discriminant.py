"""Class Gaussians in a compact form, for examples that were not there when they were fitted.

With one covariance for all classes, the log-likelihood of class c on features x is, up to a constant of the
example, linear in x.  In coordinates z = (x - middle) W in which the covariance is the identity, with e_c the mean
of class c and e their mean,
    z . (e_c - e) - (|e_c|^2 - |e|^2) / 2
and the e_c - e span at most as many directions as there are classes.  So min(classes, D) columns are all that is
kept of the D x D matrix W.  There is no leave-one-out term: the example is in no class.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Discriminant:
    """Linear scores of the classes on the D features of a layer.

    middle: (D,) float64.  directions: (D, r) float32, columns B in units in which the centres are at most 1.
    centres: (classes, r) float16.  offset: (classes,) float64, nats.
    """

    middle: Tensor
    directions: Tensor
    centres: Tensor
    offset: Tensor

    def log_likelihood(self, features: Tensor) -> Tensor:
        """Log-likelihood (n, classes) float64 of features (n, D), in nats, up to a constant of each example."""
        z = (features.double() - self.middle) @ self.directions.double()
        return z @ self.centres.double().T - self.offset


def discriminant(middle: Tensor, live: Tensor, whiten: Tensor, centres: Tensor, present: Tensor) -> Discriminant:
    """The compact form of Gaussians with means `centres` (classes, d) in z = (x - middle)[live] whiten.

    middle: (D,).  live: (D,) bool, d of them.  whiten: (d, d).  present: (classes,) bool; for a class that is not, the
    scores mean nothing.
    """
    mean = centres[present].mean(0)
    apart = torch.where(present[:, None], centres - mean, 0.0)  # (classes, d)
    basis = torch.linalg.qr(apart.T).Q if len(apart) < apart.shape[1] else torch.eye(apart.shape[1]).to(apart)
    coordinates = apart @ basis  # (classes, r)
    unit = coordinates.abs().amax(0)
    unit = torch.where(unit > 0, unit, 1.0)
    kept = (coordinates / unit).half()
    directions = torch.zeros(len(live), basis.shape[1])
    directions[live] = (whiten @ basis * unit).float()
    # from the centres as they are kept, so that rounding moves a class and does not tilt its score
    rounded = kept.double() * unit
    offset = rounded @ (mean @ basis) + rounded.square().sum(1) / 2
    return Discriminant(middle.double(), directions, kept, offset)
