"""How far two outputs lie apart: the metrics rho of function space distance, p = softmax(f).

kl             sum p0 (log p0 - log p1), in nats
kl2            1/2 df^T (diag(p0) - p0 p0^T) df, its second order, in nats
squared_error  1/2 |f1 - f0|^2
probability    1/2 |p1 - p0|^2
"""

from __future__ import annotations

import torch
from torch import Tensor

from fsdtool.errors import FsdtoolError

METRICS = ("kl", "kl2", "squared_error", "probability")


def measure(metric: str, f0: Tensor, f1: Tensor) -> Tensor:
    """rho(f0, f1) of each example (batch,) float64 for outputs (batch, O).

    In float64, since the terms of a small divergence cancel; what rounding makes negative is 0.
    """
    f0, f1 = f0.double(), f1.double()
    if metric == "squared_error":
        return 0.5 * (f1 - f0).square().sum(1)
    log0, log1 = torch.log_softmax(f0, 1), torch.log_softmax(f1, 1)
    p0 = log0.exp()
    if metric == "kl":
        return (p0 * (log0 - log1)).sum(1).clamp(min=0)
    if metric == "probability":
        return 0.5 * (log1.exp() - p0).square().sum(1)
    df = f1 - f0
    return 0.5 * ((p0 * df.square()).sum(1) - (p0 * df).sum(1).square()).clamp(min=0)


def metrics_of(task: str) -> tuple[str, ...]:
    """The metrics that fit a task, its default first."""
    return METRICS if task == "classification" else ("squared_error",)


def check_metric(metric: str, task: str, path: object) -> None:
    """Raise FsdtoolError for a metric that does not exist or does not fit the task of the summary `path`."""
    if metric not in METRICS:
        raise FsdtoolError(f"there is no metric '{metric}'; give one of {', '.join(METRICS)}")
    if metric not in metrics_of(task):
        raise FsdtoolError(
            f"the metric '{metric}' compares class probabilities and '{path}' is of a regression; use squared_error"
        )
