"""Gaussian inputs: component k has mean m_k and covariance B C_k B^T + diag(d_k).

B (n, r) is an orthonormal basis shared by the components, C_k the exact covariance inside it, d_k what B C_k B^T lacks
of the exact variance of each coordinate (zero where it lacks nothing: a basis of other directions than C_k's own can
give a coordinate too much).  With B the identity (small inputs) C_k is the whole covariance.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fsdtool.statistics.eigen import symmetric_eigen
from fsdtool.statistics.input_model import InputModel, Stored, StoredArrays


@dataclass(frozen=True)
class GaussianInputs(InputModel):
    """The Gaussian of each component's inputs.

    mean (K, n), basis (n, r) or None for the identity, core (K, r, r), diagonal (K, n); float32 or float64.
    """

    name = "gaussian"

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

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> GaussianInputs:
        basis = None if self.basis is None else self.basis.to(device=device, dtype=dtype or self.basis.dtype)
        mean, core, diagonal = (
            part.to(device=device, dtype=dtype or part.dtype) for part in (self.mean, self.core, self.diagonal)
        )
        return GaussianInputs(mean, basis, core, diagonal)

    def stored(self) -> dict[str, Stored]:
        """Mean, basis (where there is one), core and diagonal."""
        parts = {"mean": Stored(self.mean.float(), "mean input (K, n)", "input units")}
        if self.basis is not None:
            parts["basis"] = Stored(self.basis.half(), "orthonormal basis B (n, r) shared by the components")
        parts["core"] = Stored(self.core.float(), "covariance within B (K, r, r)", "input units squared")
        parts["diagonal"] = Stored(self.diagonal.float(), "variance outside B (K, n)", "input units squared")
        return parts

    @classmethod
    def read(cls, arrays: StoredArrays, components: int, n: int) -> GaussianInputs:
        basis = arrays.tensor("basis", (n, None)) if arrays.has("basis") else None
        rank = n if basis is None else basis.shape[1]
        mean = arrays.tensor("mean", (components, n))
        core = arrays.tensor("core", (components, rank, rank))
        return cls(mean, basis, core, arrays.tensor("diagonal", (components, n)))

    def _root(self, k: int) -> Tensor:
        """R (r, r) with R R^T = core; float64, as LAPACK's float32 may not converge on a singular matrix."""
        if k not in self._roots:
            values, vectors = symmetric_eigen(self.core[k])
            self._roots[k] = vectors * values.sqrt().to(self.core.dtype)
        return self._roots[k]
