"""Regression: the loss is half the squared error, 1/2 |f - y|^2, its gradient f - y and its Hessian the identity."""

from __future__ import annotations

import math
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
    np = Later("numpy")  # the command line asks for the metrics' names alone


class Regression(Task):
    """Targets (n, O) float32, one number for each output."""

    name = "regression"
    units = "half squared error"
    quadratic = True
    metrics = MappingProxyType({"squared_error": squared_error})

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """1/2 |f - y|^2 (n,)."""
        return squared_error(targets, outputs)

    def loss_gradient(self, targets: Tensor) -> Callable[[Tensor], Tensor]:
        """f - y (n, O)."""
        return lambda outputs: outputs - targets

    def hessian_product(self, outputs: Tensor, v: Tensor) -> Tensor:
        """v (..., n, O) itself."""
        return v

    def hessian_sum(self, outputs: Tensor) -> Tensor:
        """n times the identity (O, O)."""
        return outputs.new_ones(outputs.shape[1]).diag() * len(outputs)

    def curvature_draw(self, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """Standard normal numbers (n, O) float32."""
        return lambda outputs: outputs.float().new_empty(outputs.shape).normal_(generator=generator)

    def prediction(self, outputs: Tensor) -> Tensor:
        """The outputs (n, O) themselves."""
        return outputs

    def targets(self, stored: np.ndarray, ids: np.ndarray, lenient: bool = False) -> np.ndarray:
        """Targets (N, O) float32.  Raises DataError for numbers that are not finite, unless lenient."""
        stored = stored_numbers(stored)
        with np.errstate(over="ignore"):  # what float32 cannot hold is named below
            y = stored.astype(np.float32)
        y = y[:, None] if y.ndim == 1 else y
        if y.ndim != 2:
            raise DataError(f"the targets have shape {stored.shape}; give one row of numbers per example")
        bad = np.flatnonzero(~np.isfinite(y).all(axis=1))
        if len(bad) and not lenient:
            raise DataError(
                f"the target of example {ids[bad[0]]} is NaN or infinite; "
                "fill it in, or give `skip_bad=True` to leave it out",
                example=ids[bad[0]],
            )
        return y

    def target_of(self, number: float) -> float | None:
        """The number, if it is finite."""
        return number if math.isfinite(number) else None

    def constant(self, targets: np.ndarray, outputs: int) -> np.ndarray:
        """The mean (O,) of each target."""
        return targets.mean(0, dtype=np.float64)

    def constant_losses(self, constant: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Half the squared distance (n,) of each target from the constant."""
        return 0.5 * ((targets.astype(np.float64) - constant) ** 2).sum(1)

    def right(self, outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Zeros (n,): a number may be close to its target, but is never right or wrong."""
        return np.zeros(len(targets))

    def centred(self, outputs: np.ndarray, constant: np.ndarray) -> np.ndarray:
        """Outputs (n, O) less the constant, the mean of the targets."""
        return outputs - constant

    def refit(self, outputs: np.ndarray, targets: np.ndarray) -> tuple[float, float, float]:
        """Mean losses of f (n, O) and of the best line u_o f_o + b_o of each output, and the median of the slopes."""
        targets = np.asarray(targets, np.float64)
        f, y = outputs - outputs.mean(0), targets - targets.mean(0)
        variance, together = (f**2).mean(0), (f * y).mean(0)
        slope = together / np.where(variance > 0, variance, np.inf)
        after = 0.5 * float(((y**2).mean(0) - slope * together).sum())
        return 0.5 * float(((outputs - targets) ** 2).mean(0).sum()), max(after, 0.0), float(np.median(slope))

    def describe(self, fit: FitNumbers) -> str:
        """R^2, of several outputs with the lowest, and the mean loss."""
        text = f"R^2 {np.mean(fit.r_squared):.3f}"
        if len(fit.r_squared) > 1:
            text += f" (lowest {min(fit.r_squared):.3f}, output {int(np.argmin(fit.r_squared))})"
        return f"{text}, mean loss {fit.mean_loss:.3g} (mean of the targets {fit.baseline_loss:.3g})"
