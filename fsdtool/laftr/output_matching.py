"""Simulated outputs moved to the recorded law of the reference's outputs, for divergences.

Networks are overconfident on training data, and KL is dominated by small margins: on Gaussian inputs the margins are
too small.  So simulated outputs are matched to recorded quantiles.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDING = 1e-6  # relative, of float32 outputs: less than this is no spread


class OutputCoupling:
    """Simulated outputs f0 (n, O) of a component, moved to the recorded law of the reference's outputs.

    The sample whose margin has rank r of n takes a recorded output f0'
    (R, O) from the r-th of n equal parts of the record, in the order of their margins.  Another checkpoint's change
    df = f1 - f0 follows by its regression on f0 over the samples: df' = df + (f0' - f0) A, shrunk by RIDGE times the
    mean variance of f0, and at least by SHIFT times the mean square of f0' - f0: samples that hardly differ, as those
    of a component with one example, tell nothing of outputs far from theirs.

    The margin is the largest output over the second, or, where `one_class`, that of the class that the record
    favours on average.
    """

    RIDGE = 0.3
    SHIFT = 0.01

    def __init__(self, f0: Tensor, recorded: Tensor, *, one_class: bool, generator: torch.Generator):
        n, outputs = f0.shape
        label = int(recorded.mean(0).argmax()) if one_class else None
        parts = torch.arange(n, device=f0.device) + torch.rand(n, generator=generator, device=f0.device)
        places = (parts * (len(recorded) / n)).long().clamp(max=len(recorded) - 1)
        self.f0 = torch.empty_like(f0)
        self.f0[margin(f0, label).argsort()] = recorded[margin(recorded, label).argsort()[places]]
        self._simulated, self._shift = f0, (self.f0 - f0).double()
        wide = f0.double()
        d = wide - wide.mean(0)
        rounding = ROUNDING**2 * float(wide.square().sum())
        least = (self.SHIFT * float(self._shift.square().sum()) + rounding) / outputs
        self._regression = _ridge(d, max(float(d.square().sum()) / outputs * self.RIDGE, least))

    def other(self, f1: Tensor) -> Tensor:
        """The outputs (n, O) beside `f0` of a checkpoint that simulated f1 (n, O); differentiable in f1."""
        df = (f1 - self._simulated).double()
        few = len(df) < df.shape[1]  # then (n, n) is smaller than (O, O)
        moved = (self._shift @ self._regression) @ df if few else self._shift @ (self._regression @ df)
        return self.f0 + (df + moved).to(f1.dtype)


def _ridge(d: Tensor, penalty: float) -> Tensor:
    """(d^T d + penalty)^-1 d^T (O, n) of d (n, O), by the smaller of the two matrices that give it."""
    n, outputs = d.shape
    small = d.T @ d if outputs <= n else d @ d.T
    small.diagonal().add_(max(penalty, 1e-30))
    return torch.linalg.solve(small, d.T) if outputs <= n else torch.linalg.solve(small, d).T


def margin(f: Tensor, label: int | None) -> Tensor:
    """Margin (n,) of outputs f (n, O): class `label` over the best other, or (None) the largest over the second."""
    if f.shape[1] == 1:
        return f[:, 0]
    if label is None:
        first, second = f.topk(2, 1).values.unbind(1)
        return first - second
    return f[:, label] - torch.cat([f[:, :label], f[:, label + 1 :]], 1).amax(1)
