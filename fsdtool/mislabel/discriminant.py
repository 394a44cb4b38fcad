"""Class means and their common covariance, for examples that were not there when they were fitted.

In coordinates z = ((x - middle) scale) root, in which the covariance is the identity, class c has the log-likelihood
of a Student t of D degrees of freedom around its centre e_c, up to a constant
    -D log(1 + |z - e_c|^2 / D)
There is no leave-one-out term: the example is in no class.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Discriminant:
    """How likely the D features of a layer are under each class.

    middle: (D,) float64.  scale: (D,) float32, 0 for features that say nothing.  root: (D, d) float16.
    centres: (classes, d) float32.
    """

    middle: Tensor
    scale: Tensor
    root: Tensor
    centres: Tensor

    def log_likelihood(self, features: Tensor) -> Tensor:
        """Log-likelihood (n, classes) float64 of features (n, D), in nats, up to a constant of each example."""
        z = ((features.double() - self.middle) * self.scale) @ self.root.double()
        centres = self.centres.double()
        q = (z.square().sum(1, keepdim=True) + centres.square().sum(1) - 2 * z @ centres.T).clamp(min=0)
        return student(q, z.shape[1])


def student(q: Tensor, freedom: int) -> Tensor:
    """Log-density at squared distances q of a Student t of as many degrees of freedom as dimensions, but a constant."""
    return -freedom * torch.log1p(q / max(freedom, 1))
