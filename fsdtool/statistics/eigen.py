"""Leading eigenvectors of second moments E[x x^T], for vectors of any width.

Up to 1024 dimensions the matrix is accumulated and decomposed whole.  Of wider vectors an even sample of at most 4096
is kept, and a randomized decomposition (Halko, Martinsson, Tropp 2011) of it gives the leading directions: for a fully
connected layer on 25,088 features the whole matrix would take 2.5 GB.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fsdtool.errors import FsdtoolError

LARGEST = 1024  # dimensions decomposed whole
MOST_VECTORS = 4096  # kept of wider ones
LEADING = 512  # directions found of wider ones
# Numbers of the vectors kept and of the directions found, of which wider ones than 32,768 so have fewer: of a position
# embedding of 150,000 numbers they take 540 and 67 MB.
MOST_NUMBERS, LEADING_NUMBERS = 2**27, 2**24


@dataclass(frozen=True)
class Axis:
    """Eigenvalues (r,), largest first, and orthonormal eigenvectors (d, r) of a second moment with trace `total`."""

    values: Tensor
    vectors: Tensor
    total: float


class SecondMoment:
    """Accumulates the second moment of vectors (d,)."""

    def __init__(self, dimensions: int, device: torch.device | None = None):
        self.dimensions = dimensions
        self._matrix = torch.zeros(dimensions, dimensions, device=device) if dimensions <= LARGEST else None
        self._kept: list[Tensor] = []
        self._stride, self._seen, self._total = 1, 0, 0.0

    def update(self, x: Tensor) -> None:
        """Add vectors x (n, d)."""
        if self._matrix is not None:
            self._matrix += x.T @ x
            return
        self._total += float(x.square().sum(dtype=torch.float64))
        first = -self._seen % self._stride
        self._seen += len(x)
        self._kept.append(x[first :: self._stride].clone())
        most = min(MOST_VECTORS, MOST_NUMBERS // self.dimensions)
        if sum(len(part) for part in self._kept) > most:  # thin by half, evenly over all seen so far
            self._kept = [torch.cat(self._kept)[::2]]
            self._stride *= 2

    def axis(self, seed: int) -> Axis:
        """All eigenvectors, or the leading ones of wide vectors (randomized, by `seed`)."""
        if self._matrix is not None:
            values, vectors = symmetric_eigen(self._matrix)
            return Axis(values.flip(0), vectors.flip(1), float(values.sum()))
        rows = torch.cat(self._kept)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            _, singular, vectors = torch.svd_lowrank(
                rows, q=min(LEADING, LEADING_NUMBERS // self.dimensions, *rows.shape), niter=2
            )
        kept = float(rows.square().sum(dtype=torch.float64))
        scale = self._total / kept if kept > 0 else 1.0
        return Axis(singular.double().square() * scale, vectors, self._total)


def symmetric_eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (d,) float64, none negative, in ascending order, and eigenvectors (d, d) of a second moment.

    In float64 and without the coordinates that are always zero: on such matrices LAPACK may fail to converge. Raises
    FsdtoolError for a matrix that is not finite.
    """
    if not torch.isfinite(matrix).all():
        raise FsdtoolError(
            "activations or gradients are too large for the linear algebra in float32 (the matrix of their second "
            "moments is not finite); check the weights and the scale of the inputs (`mean`, `std`)"
        )
    live = matrix.diagonal() != 0
    values = torch.zeros(len(matrix), dtype=torch.float64, device=matrix.device)
    vectors = torch.eye(len(matrix), dtype=torch.float64, device=matrix.device)
    vectors = torch.cat([vectors[:, ~live], vectors[:, live]], 1)  # dead coordinates first: their eigenvalue is zero
    if live.any():
        found, inside = torch.linalg.eigh(matrix[live][:, live].double())
        dead = int((~live).sum())
        values[dead:] = found.clamp(min=0)
        vectors[:, dead:] = 0
        vectors[live, dead:] = inside
    return values, vectors.to(matrix.dtype)
