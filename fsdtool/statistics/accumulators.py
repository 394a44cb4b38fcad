"""What is added up of each component: moments of the inputs, gates of each step, output Hessians, some outputs.

They are accumulators (fsdtool.statistics.merging).  All sums are float64; means and covariances are kept centred and
merged by the pairwise update of Chan, Golub, LeVeque (1983), so that parts added equal the whole to rounding.  K
components, n input dimensions, U units of a step, O outputs.  What the sums become is in
fsdtool.statistics.component_laws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fsdtool.errors import FsdtoolError
from fsdtool.network.activations import Activation
from fsdtool.network.graph import Step
from fsdtool.statistics.component_laws import GateStatistics, OutputSample
from fsdtool.statistics.gaussian_inputs import GaussianInputs
from fsdtool.statistics.merging import State, Sums
from fsdtool.tasks.task import Task

MOMENTS = ("m", "m^2", "c", "m c", "c^2")


class CentredMoments(Sums):
    """Count, mean and centred second moments of vectors, per component, in an optional orthonormal basis.

    basis (n, r): the second moments (K, r, r) are those of the coordinates in it; beside them the squares (K, n) of
    every coordinate are summed.
    """

    def __init__(
        self,
        components: int,
        dimensions: int,
        basis: Tensor | None = None,
        device: torch.device | None = None,
    ):
        self.basis = basis.double().to(device) if basis is not None else None
        rank = dimensions if basis is None else basis.shape[1]
        zeros = partial(torch.zeros, dtype=torch.float64, device=device)
        self.count = zeros(components)
        self.mean = zeros(components, dimensions)
        # Centred sums: of projected outer products, and of squares per coordinate.
        self.core = zeros(components, rank, rank)
        self.squares = zeros(components, dimensions)

    def _project(self, d: Tensor) -> Tensor:
        return d if self.basis is None else d @ self.basis

    def update(self, x: Tensor, component: Tensor) -> None:
        """Add the vectors x (batch, n) of the components `component` (batch,)."""
        for k in component.unique().tolist():
            part = x[component == k].double()
            mean = part.mean(0)
            d = part - mean
            projected = self._project(d)
            self._add(k, float(part.shape[0]), mean, projected.T @ projected, (d * d).sum(0))

    def tensors(self) -> dict[str, Tensor]:
        """Count (K,), mean (K, n), centred sums core (K, r, r) and squares (K, n)."""
        return {"count": self.count, "mean": self.mean, "core": self.core, "squares": self.squares}

    def merge(self, other: CentredMoments) -> None:
        """Add the sums of other examples.  Raises FsdtoolError when the two use different bases."""
        same = self.basis is other.basis or (
            self.basis is not None and other.basis is not None and torch.equal(self.basis, other.basis)
        )
        if not same or self.mean.shape != other.mean.shape:
            raise FsdtoolError(
                "moments over different bases or shapes cannot be merged; accumulate both with one basis"
            )
        for k in other.count.nonzero()[:, 0].tolist():
            self._add(k, float(other.count[k]), other.mean[k], other.core[k], other.squares[k])

    def _add(self, k: int, count: float, mean: Tensor, core: Tensor, squares: Tensor) -> None:
        before = float(self.count[k])
        total = before + count
        delta = mean - self.mean[k]
        weight = before * count / total
        projected = self._project(delta)
        self.core[k] += core + weight * torch.outer(projected, projected)
        self.squares[k] += squares + weight * delta * delta
        self.mean[k] += delta * (count / total)
        self.count[k] = total

    def finalize(self) -> GaussianInputs:
        """The Gaussian of each component that has examples, in order (covariances divided by the count)."""
        present = self.count > 0
        count = self.count[present]
        core = self.core[present] / count[:, None, None]
        diagonal = torch.zeros_like(self.mean[present])
        if self.basis is not None:
            inside = torch.stack([((self.basis @ c) * self.basis).sum(1) for c in core])  # (K, n)
            diagonal = (self.squares[present] / count[:, None] - inside).clamp(min=0)
        return GaussianInputs(self.mean[present], self.basis, core, diagonal)


class GateMoments(Sums):
    """Sums of one activation step's gates per component and unit.

    Of a piecewise linear activation of J pieces sums (K, J - 1, U) count the examples in pieces 1 .. J - 1; of a smooth
    one sums (K, 5, U) are those of m, m^2, c, m c, c^2, where phi(s) = m s + c.
    """

    def __init__(self, step: Step, components: int, device: torch.device | None = None):
        self.activation: Activation = step.activation()
        rows = len(self.activation.pieces.breaks) if self.activation.pieces else len(MOMENTS)
        self.count = torch.zeros(components, dtype=torch.float64, device=device)
        self.sums = torch.zeros(components, rows, step.units, dtype=torch.float64, device=device)

    def update(self, s: Tensor, component: Tensor) -> None:
        """Add the pre-activations s (batch, ...) of the components `component` (batch,)."""
        self.count += torch.bincount(component, minlength=len(self.count)).to(self.count)
        s = s.flatten(1)
        pieces = self.activation.pieces
        if pieces is not None:  # P(piece j) is the difference of P(above its two breaks)
            for j in range(len(pieces.breaks)):  # counts below 2^24 are exact in float32
                counts = torch.zeros(self.sums.shape[0], s.shape[1], dtype=s.dtype, device=s.device)
                counts.index_add_(0, component, pieces.above(s, j))
                self.sums[:, j] += counts
                if j:
                    self.sums[:, j - 1] -= counts
            return
        m, c = (part.double() for part in self.activation.gate(s))
        for row, value in enumerate((m, m * m, c, m * c, c * c)):
            self.sums[:, row].index_add_(0, component, value)

    def tensors(self) -> dict[str, Tensor]:
        """Count (K,) and sums (K, J - 1 or 5, U)."""
        return {"count": self.count, "sums": self.sums}

    def finalize(self) -> GateStatistics:
        """Means over each component that has examples, in component order."""
        present = self.count > 0
        means = self.sums[present] / self.count[present][:, None, None]
        pieces = self.activation.pieces
        return GateStatistics(pieces, probabilities=means) if pieces else GateStatistics(None, moments=means)


class OutputReservoir:
    """An even sample of the outputs of each component: every 2^t-th of them, t such that they stay few.

    Merged parts are as even a sample, but not the one of a single pass: which outputs are kept depends on the order.
    """

    NUMBERS = 2**17  # kept in all, where nothing else is said

    def __init__(self, components: int, outputs: int, numbers: int | None = None):
        self.most = max((self.NUMBERS if numbers is None else numbers) // (components * outputs), 2)
        self.kept = [torch.empty(0, outputs) for _ in range(components)]
        self.stride, self.seen = [1] * components, [0] * components

    def update(self, logits: Tensor, component: Tensor) -> None:
        """Add the logits (batch, O) of the components `component` (batch,)."""
        logits = logits.detach().float().cpu()
        component = component.cpu()
        for k in component.unique().tolist():
            part = logits[component == k]
            self.kept[k] = torch.cat([self.kept[k], part[-self.seen[k] % self.stride[k] :: self.stride[k]]])
            self.seen[k] += len(part)
            self._thin(k)

    def merge(self, other: OutputReservoir) -> None:
        """Add a sample of other examples, at the coarser of the two strides."""
        for k, theirs in enumerate(other.kept):
            stride = max(self.stride[k], other.stride[k])
            ours = self.kept[k][:: stride // self.stride[k]]
            self.kept[k] = torch.cat([ours, theirs[:: stride // other.stride[k]]])
            self.stride[k], self.seen[k] = stride, self.seen[k] + other.seen[k]
            self._thin(k)

    def copy(self) -> OutputReservoir:
        """The same sample, to come back to after updates; no output is copied."""
        other = copy(self)
        other.kept, other.stride, other.seen = list(self.kept), list(self.stride), list(self.seen)
        return other

    def state(self) -> State:
        """Stride and number seen (K,) of each component, the outputs kept (R, O) and the component (R,) of each."""
        held = _numbered(self.kept)
        found = {"stride": self.stride, "seen": self.seen, "values": held.values, "component": held.component}
        return {name: np.asarray(value, np.float64) for name, value in found.items()}

    def from_state(self, state: Mapping[str, np.ndarray]) -> OutputReservoir:
        """This empty sample as it was when `state` was asked for; the same object."""
        values, component = torch.from_numpy(state["values"]).float(), torch.from_numpy(state["component"])
        self.kept = [values[component == k] for k in range(len(self.kept))]
        self.stride, self.seen = (state[name].astype(int).tolist() for name in ("stride", "seen"))
        return self

    def _thin(self, k: int) -> None:
        while len(self.kept[k]) > self.most:
            self.kept[k] = self.kept[k][::2]
            self.stride[k] *= 2

    def finalize(self) -> OutputSample:
        """The sample, its components numbered among those that have examples."""
        return _numbered([kept for kept in self.kept if len(kept)])


def _numbered(kept: Sequence[Tensor]) -> OutputSample:
    """The outputs kept (R_k, O) of each component, as one sample."""
    number = torch.arange(len(kept)).repeat_interleave(torch.tensor([len(part) for part in kept]))
    return OutputSample(torch.cat(list(kept)), number)


class OutputMoments(Sums):
    """Sums (K, O, O) of the Hessian of a task's loss at the outputs."""

    LARGEST = 256  # outputs; beyond, K O^2 numbers would outgrow everything else in the file

    def __init__(self, components: int, outputs: int, task: Task, device: torch.device | None = None):
        self.task, self.kept = task, self.keeps(task, outputs)
        size = outputs if self.kept else 0
        self.count = torch.zeros(components, dtype=torch.float64, device=device)
        self.sums = torch.zeros(components, size, size, dtype=torch.float64, device=device)

    @classmethod
    def keeps(cls, task: Task, outputs: int) -> bool:
        """Whether the Hessian of so many outputs is kept: always where it is the same everywhere."""
        return task.quadratic or outputs <= cls.LARGEST

    def update(self, logits: Tensor, component: Tensor) -> None:
        """Add the logits (batch, O) of the components `component` (batch,)."""
        self.count += torch.bincount(component, minlength=len(self.count)).to(self.count)
        if not self.kept:
            return
        for k in component.unique().tolist():
            self.sums[k] += self.task.hessian_sum(logits[component == k].double())

    def tensors(self) -> dict[str, Tensor]:
        """Count (K,) and sums (K, O, O), or (K, 0, 0) of too many outputs."""
        return {"count": self.count, "sums": self.sums}

    def finalize(self) -> Tensor | None:
        """Mean Hessian (K, O, O) of each component that has examples, or None when O is above `LARGEST`."""
        present = self.count > 0
        return self.sums[present] / self.count[present][:, None, None] if self.kept else None


def principal_basis(x: Tensor, component: Tensor, rank: int, seed: int) -> Tensor | None:
    """Leading `rank` directions (n, rank) of the scatter of x (batch, n) within components; None for all n.

    The basis only decides what the covariance is resolved in; the moments inside it are exact whatever
    sample gave it.
    """
    if rank >= x.shape[1]:
        return None
    d = x.double().clone()
    for k in component.unique().tolist():
        members = component == k
        if members.sum() > 1:
            d[members] -= d[members].mean(0)
    rank = min(rank, *d.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _, _, basis = torch.svd_lowrank(d, q=min(rank + 16, *d.shape), niter=3)
    return basis[:, :rank].contiguous()


def names_present(names: Sequence[str], count: Tensor) -> tuple[str, ...]:
    """The names of the components that have examples, as `finalize` keeps them."""
    return tuple(name for name, n in zip(names, count.tolist(), strict=True) if n)
