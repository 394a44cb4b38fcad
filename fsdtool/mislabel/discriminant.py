"""Class means and their common covariance: the class models for examples that they were not fitted to.

In coordinates z = ((x - middle) scale) root, in which the covariance is the identity, class c has the log-likelihood
of a Student t of D degrees of freedom around its centre e_c, up to a constant
    -D log(1 + |z - e_c|^2 / D)
There is no leave-one-out term, since the example is in no class.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Discriminant:
    """The class models of one layer with D features.

    middle: (D,) float64, subtracted from the features.  scale: (D,) float32, one over their standard deviation within
    classes, 0 for constant features.  root: (D, d) float16.  centres: (classes, d) float32.
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
        return student_log_density(q, z.shape[1])


def student_log_density(q: Tensor, freedom: int) -> Tensor:
    """Student-t log-density at squared distances q, with nu = d = `freedom`, without its constant; of q's shape."""
    return -freedom * torch.log1p(q / max(freedom, 1))
