"""Multilabel classification: each output is the logit of a label of its own, which is 0 or 1.

The loss of an example is the sum over its labels of the binary cross-entropy of p = sigmoid(f), in nats.  (Torch's
BCEWithLogitsLoss takes the mean over labels, which is this over O.)  With the signs s = 1 - 2 y:
    loss  sum log(1 + exp(s f))        g = p - y = s sigmoid(s f)        H = diag(h),  h = p (1 - p)

The metrics of two outputs, p0 and p1 their probabilities and df = f1 - f0:
    kl             sum p0 log(p0 / p1) + (1 - p0) log((1 - p0) / (1 - p1)), in nats
    kl2            1/2 sum h(f0) df^2, its second order, in nats
    squared_error  1/2 |df|^2
    probability    1/2 |p1 - p0|^2
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import TYPE_CHECKING

from fsdtool.errors import DataError
from fsdtool.tasks.task import FitNumbers, Task, squared_error, stored_numbers
from fsdtool.util.lazy import Later

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor
else:
    np = Later("numpy")

RAREST = 1e-6  # least frequency of a label, or of its absence, in the constant answer
STEPS = 20  # of `refit`
LARGEST_STEP = 0.5  # relative change of the factor, and half that of a shift, in one step of `refit`


def kl(f0: Tensor, f1: Tensor) -> Tensor:
    """Sum of the KL divergences (n,) of the labels, with outputs (n, O)."""
    p = f0.sigmoid()
    each = p * (_softplus(-f1) - _softplus(-f0)) + (1 - p) * (_softplus(f1) - _softplus(f0))
    total = each.sum(1)
    return total + (-total).clamp(min=0).detach()  # what rounding makes negative is 0, and keeps its gradient


def kl2(f0: Tensor, f1: Tensor) -> Tensor:
    """Second-order KL divergence (n,) of outputs (n, O), by the Hessian at f0."""
    return 0.5 * (_variance(f0) * (f1 - f0).square()).sum(1)


def probability(f0: Tensor, f1: Tensor) -> Tensor:
    """Half the squared distance (n,) of the probabilities of outputs (n, O)."""
    return squared_error(f0.sigmoid(), f1.sigmoid())


class Multilabel(Task):
    """Targets (n, O) float32, 0 or 1 for each output."""

    name = "multilabel"
    units = "nats"
    noun = "label"
    has_labels = True
    probabilities = ("sigmoid",)
    metrics = MappingProxyType({"kl": kl, "kl2": kl2, "squared_error": squared_error, "probability": probability})

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Sum over the labels of the binary cross-entropy (n,)."""
        return _softplus(_signs(targets, outputs) * outputs).sum(1)

    def loss_gradient(self, targets: Tensor) -> Callable[[Tensor], Tensor]:
        """p - y (n, O), as a product: where a label is nearly certain, 1 - p is 0 in float32."""

        def gradient(outputs: Tensor) -> Tensor:
            signs = _signs(targets, outputs)
            return signs * (signs * outputs).sigmoid()

        return gradient

    def hessian_product(self, outputs: Tensor, v: Tensor) -> Tensor:
        """p (1 - p) v (..., n, O)."""
        return _variance(outputs) * v

    def hessian_sum(self, outputs: Tensor) -> Tensor:
        """diag(sum p (1 - p)) (O, O)."""
        return _variance(outputs).sum(0).diag()

    def curvature_draw(self, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """sqrt(p (1 - p)) z (n, O) of standard normal z (n, O) float32."""

        def draw(outputs: Tensor) -> Tensor:
            z = outputs.float().new_empty(outputs.shape).normal_(generator=generator)
            return _variance(outputs).sqrt() * z

        return draw

    def gradient_draw(self, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """p - y (n, O) with each label y drawn from p."""

        def draw(outputs: Tensor) -> Tensor:
            p = outputs.sigmoid()
            return p - p.bernoulli(generator=generator)

        return draw

    def prediction(self, outputs: Tensor) -> Tensor:
        """1 (n, O) where a logit is positive, else 0."""
        return (outputs > 0).to(outputs.dtype)

    def targets(self, stored: np.ndarray, ids: np.ndarray, lenient: bool = False) -> np.ndarray:
        """Labels (N, O) float32.  Raises DataError for others than 0 and 1, unless lenient."""
        stored = stored_numbers(stored)
        y = stored[:, None] if stored.ndim == 1 else stored
        if y.ndim != 2:
            raise DataError(f"the labels have shape {stored.shape}; give one row of 0 and 1 per example")
        y = y.astype(np.float32)
        bad = np.argwhere((y != 0) & (y != 1))
        if len(bad) and not lenient:
            row, label = bad[0]
            raise DataError(
                f"label {label} of example {ids[row]} is {stored.reshape(y.shape)[row, label]:g}, and labels are 0 or "
                '1; correct it, give `skip_bad=True` to leave it out, or `task="regression"` where the targets are '
                "numbers",
                example=ids[row],
            )
        return y

    def target_of(self, number: float) -> float | None:
        """None: one number is no target of an example with several labels."""
        return None

    def check_targets(
        self,
        targets: Tensor,
        ids: np.ndarray,
        outputs: int,
        source: str = "the data",
        remedy: str = "each label needs an output",
    ) -> None:
        """Raise DataError unless there is a label for each of the `outputs`."""
        if targets.shape[1] != outputs:
            count = targets.shape[1]
            raise DataError(f"{source} has {count} labels per example, the model {outputs} outputs; {remedy}")

    def constant(self, targets: np.ndarray, outputs: int) -> np.ndarray:
        """The logit (O,) of each label's frequency."""
        p = targets.mean(0, dtype=np.float64).clip(RAREST, 1 - RAREST)
        return np.log(p / (1 - p))

    def constant_losses(self, constant: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Loss (n,) of the labels under their frequencies, in nats."""
        return np.logaddexp(0, np.where(targets > 0, -constant, constant)).sum(1)

    def right(self, outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """The share (n,) of an example's labels that its logits have the sign of."""
        return ((outputs > 0) == (targets > 0)).mean(1)

    def centred(self, outputs: np.ndarray, constant: np.ndarray) -> np.ndarray:
        """Outputs (n, O) less the constant answer."""
        return outputs - constant

    def refit(self, outputs: np.ndarray, targets: np.ndarray) -> tuple[float, float, float]:
        """Mean losses of f (n, O) and of the best u f + b, and the factor u: one for all labels, a shift for each.

        u starts from the best of a grid.  Then b and u are updated in turn by Newton steps.
        """
        targets = np.asarray(targets, np.float64)
        scale = float(outputs.std()) or 1.0
        shift = np.zeros(outputs.shape[1])

        def mean_loss(factor: float) -> float:
            z = factor * outputs + shift
            return float(np.logaddexp(0, np.where(targets > 0, -z, z)).sum(1).mean())

        def residuals(factor: float) -> tuple[np.ndarray, np.ndarray]:
            p = 0.5 + 0.5 * np.tanh((factor * outputs + shift) / 2)
            return targets - p, p * (1 - p)

        before = mean_loss(1.0)
        found = min((mean_loss(u), u) for u in (1.0, *np.logspace(-3, 3, 13) / scale))
        factor = found[1]
        for _ in range(STEPS):
            off, variance = residuals(factor)
            shift += (off.sum(0) / (variance.sum(0) + 1)).clip(-2 * LARGEST_STEP, 2 * LARGEST_STEP)
            off, variance = residuals(factor)
            found = min(found, (mean_loss(factor), factor))
            slope, curvature = float((off * outputs).sum()), float((variance * outputs**2).sum())
            factor *= 1 + float(np.clip(slope / max(curvature * factor, 1e-12), -LARGEST_STEP, LARGEST_STEP))
        return before, *found

    def describe(self, fit: FitNumbers) -> str:
        """Mean accuracy of the labels, and mean loss of an example and of a label."""
        labels = max(len(fit.constant), 1)
        over = f"{labels} labels" if labels > 1 else "1 label"
        return (
            f"accuracy {fit.accuracy:.3f} per label (the more frequent value of each {fit.baseline_accuracy:.3f}), "
            f"mean loss {fit.mean_loss:.3g} nats over {over}, {fit.mean_loss / labels:.3g} each "
            f"(label frequencies {fit.baseline_loss:.3g})"
        )


def _signs(targets: Tensor, outputs: Tensor) -> Tensor:
    """1 - 2 y (n, O): -1 where the label is 1."""
    return (1 - 2 * targets).to(outputs.dtype)


def _softplus(z: Tensor) -> Tensor:
    return z.logaddexp(z.new_zeros(()))


def _variance(outputs: Tensor) -> Tensor:
    """p (1 - p) (n, O), which keeps its digits where p is nearly 1."""
    return outputs.sigmoid() * (-outputs).sigmoid()
