"""The loss of an example and its gradient at the outputs.

Classification: cross-entropy in nats, gradient p - e_y.  Regression: 1/2 |f - y|^2, gradient f - y.  The
Hessian is diag(p) - p p^T, or the identity.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

UNITS = {"classification": "nats", "regression": "half squared error"}


def loss(task: str, outputs: Tensor, targets: Tensor) -> Tensor:
    """Loss (batch,) of outputs (batch, O) for targets (batch,) int64 or (batch, O)."""
    if task == "classification":
        return F.cross_entropy(outputs, targets, reduction="none")
    return 0.5 * (outputs - targets).square().sum(1)


def loss_gradient(task: str, targets: Tensor) -> Callable[[Tensor], Tensor]:
    """The function from outputs (batch, O) to the gradient of each example's loss at them."""

    def gradient(outputs: Tensor) -> Tensor:
        if task == "classification":
            # In float64: of a label that the network is sure of, 1 - p is less than float32 can tell from 0.
            p = torch.softmax(outputs.double(), 1)
            return (p - F.one_hot(targets, outputs.shape[1])).to(outputs.dtype)
        return outputs - targets

    return gradient


def curvature_draw(task: str, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """The function from outputs (batch, O) to draws v (batch, O) with E[v v^T] the Hessian of the loss at each."""

    def draw(outputs: Tensor) -> Tensor:
        z = torch.randn(outputs.shape, generator=generator, device=outputs.device)
        if task != "classification":
            return z
        p = torch.softmax(outputs, 1)
        return p.sqrt() * z - p * (p.sqrt() * z).sum(1, keepdim=True)

    return draw
