"""What a summary knows of each component: the Gaussian of its inputs, the law of its gates, some of its outputs.

K components, n input dimensions, U units of a step, O outputs.

Inputs of component k are modelled as Gaussian with mean m_k and covariance B C_k B^T + diag(d_k): B (n, r)
is an orthonormal basis shared by the components, C_k the exact covariance inside it, d_k what B C_k B^T lacks
of the exact variance of each coordinate (zero where it lacks nothing: a basis of other directions than C_k's
own can give a coordinate too much).  With B the identity (small inputs) C_k is the whole covariance.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from fsdtool.network.activations import Pieces
from fsdtool.statistics.eigen import symmetric_eigen
from fsdtool.tasks.task import Task, task_of


@dataclass(frozen=True)
class InputStatistics:
    """The Gaussian of each component's inputs.

    mean (K, n), basis (n, r) or None for the identity, core (K, r, r), diagonal (K, n); float32 or float64.
    """

    mean: Tensor
    basis: Tensor | None
    core: Tensor
    diagonal: Tensor
    _roots: dict[int, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def covariance(self, k: int) -> Tensor:
        """The dense covariance (n, n) of component k: for small inputs and tests."""
        inside = self.core[k] if self.basis is None else self.basis @ self.core[k] @ self.basis.T
        return inside + torch.diag(self.diagonal[k])

    def sample(self, k: int, count: int, generator: torch.Generator) -> Tensor:
        """`count` inputs (count, n) drawn from component k's Gaussian."""
        mean, root = self.mean[k], self._root(k)
        draw = torch.randn(count, len(root), generator=generator, dtype=mean.dtype, device=mean.device) @ root.T
        if self.basis is None:
            return mean + draw
        noise = torch.randn(count, mean.shape[0], generator=generator, dtype=mean.dtype, device=mean.device)
        return mean + draw @ self.basis.T + noise * self.diagonal[k].sqrt()

    def _root(self, k: int) -> Tensor:
        """R (r, r) with R R^T = core; float64, as LAPACK's float32 may not converge on a singular matrix."""
        if k not in self._roots:
            values, vectors = symmetric_eigen(self.core[k])
            self._roots[k] = vectors * values.sqrt().to(self.core.dtype)
        return self._roots[k]


@dataclass(frozen=True)
class GateStatistics:
    """The law of one activation step's gates, per component and unit.

    Piecewise linear: `probabilities` (K, J - 1, U), the probability of pieces 1 .. J - 1 (for ReLU the gate
    probability, J = 2).  Smooth: `moments` (K, 5, U), the means of m, m^2, c, m c, c^2.
    """

    pieces: Pieces | None
    probabilities: Tensor | None = None
    moments: Tensor | None = None

    def expectations(self, k: int) -> Tensor:
        """E[m], E[m^2], E[c], E[m c], E[c^2] of component k: (5, U)."""
        if self.pieces is None:
            assert self.moments is not None
            return self.moments[k]
        assert self.probabilities is not None
        p = self.probabilities[k]
        p = torch.cat([(1 - p.sum(0, keepdim=True)).clamp(min=0), p])  # (J, U)
        m = torch.tensor(self.pieces.slopes, dtype=p.dtype, device=p.device)
        c = torch.tensor(self.pieces.intercepts, dtype=p.dtype, device=p.device)
        return torch.stack([m, m * m, c, m * c, c * c]) @ p


@dataclass(frozen=True)
class OutputSample:
    """Outputs of the reference on some training examples: `values` (R, O), `component` (R,) int64."""

    values: Tensor
    component: Tensor

    def of(self, k: int) -> Tensor:
        """The outputs (R_k, O) kept of component k."""
        return self.values[self.component == k]


@dataclass(frozen=True)
class Statistics:
    """What LAFTR keeps of the training data, one entry per component on each first axis.

    `kind` is 'class', 'cluster' or 'all'; `names` (K,) what each component is; `count` (K,) its examples;
    `gates` maps the index of an activation step to its GateStatistics; `output_hessian` (K, O, O) is the
    mean Hessian of the `task`'s loss (None when O is too large to keep it: then it is taken from simulated outputs);
    `outputs` a sample of the reference's outputs (None where the loss is quadratic: their differences say all).
    """

    kind: str
    names: tuple[str, ...]
    count: Tensor
    input: InputStatistics
    gates: dict[int, GateStatistics]
    output_hessian: Tensor | None
    outputs: OutputSample | None = None
    task: Task = field(default_factory=partial(task_of, "classification"))

    @property
    def weight(self) -> Tensor:
        """Mixture weights pi (K,), float64."""
        return self.count.double() / self.count.sum()

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Statistics:
        """The same statistics with every tensor on `device` and of `dtype`."""

        def move(value: Tensor) -> Tensor:
            return value.to(device=device, dtype=dtype or value.dtype)

        def move_any(value: Tensor | None) -> Tensor | None:
            return None if value is None else move(value)

        given = self.input
        inputs = InputStatistics(move(given.mean), move_any(given.basis), move(given.core), move(given.diagonal))
        gates = {
            i: GateStatistics(law.pieces, move_any(law.probabilities), move_any(law.moments))
            for i, law in self.gates.items()
        }
        outputs = None
        if self.outputs is not None:
            outputs = OutputSample(move(self.outputs.values), self.outputs.component.to(device=device))
        hessian = move_any(self.output_hessian)
        return Statistics(self.kind, self.names, self.count, inputs, gates, hessian, outputs, self.task)
