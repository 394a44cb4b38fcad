"""Curvature of each weight in a Kronecker eigenbasis with corrected eigenvalues (EKFAC; George et al. 2018).

The Hessian of the FSD at theta0 is the Gauss-Newton matrix E[J^T H J].  With v ~ N(0, H) at the outputs, the gradients
G (d_out, d_in) of v^T f in a weight have E[vec G vec G^T] as their block of it.  Where they come from:
    simulated   pseudo-samples of the summary (fsdtool.curvature.simulated)
    measured    the training data (fsdtool.curvature.measured)
G = sum_p b_p [a_p; 1]^T, and the Kronecker factors are A = E[a a^T] (d_in, d_in) and S = E[b b^T] (d_out, d_out).
Their leading eigenvectors U_A (d_in, ka) and U_S (d_out, ks) come from one half of the gradients, from the other half
the eigenvalues E[(U_S^T G U_A)^2] (ks, ka) in that basis.

Damping: lambda = delta * (mean eigenvalue of the block), delta = 1, the mean from the exact trace E||G||_F^2.

A direction is worth keeping for what it is expected to contribute to an influence: E[g^2] / (E[g^2] + lambda) per
entry g of the projected gradient, summed over the other side, with E[g^2] from the Kronecker factors.  Every direction
kept costs one number per record, so the greatest contributions are taken until the budget is spent.  A vector of
parameters (a norm's, a position embedding) that would get one direction alone gets none: it is flat then, and records
leave it out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fsdtool.curvature.sources import SIMULATED
from fsdtool.network.per_example_gradients import (
    Block,
    LayerIO,
    VectorBlock,
    gradient,
    project,
    sampled_layer_io,
    squared_norms,
    vectors,
)
from fsdtool.statistics.eigen import Axis, SecondMoment
from fsdtool.statistics.merging import Sums

# delta.  With 1 the datamodeling score of `influence_lds.py` (tests/benchmarks) is .267, and .268 with the rule of
# kronfluence.
DAMPING_FACTOR = 1.0
SCALE_NUMBERS = 2  # that the scale of a vector's record takes in the budget of directions
POSITIONS = 16  # per example, for the eigenbases; neighbouring positions say nearly the same


@dataclass(frozen=True)
class BlockCurvature:
    """One block's curvature, kept in its leading directions.

    weight, bias: its weight and the bias that goes with it; of a vector its first parameter and None.  input_basis U_A
    (d_in, ka) and output_basis U_S (d_out, ks) orthonormal, eigenvalues (ks, ka), all float32; mean_eigenvalue the
    trace of the whole block over its size.  source: 'simulated' (pseudo-samples) or 'measured' (the training data).
    damping_factor: delta, in mean eigenvalues.  others: the rest of a vector's parameters.
    """

    weight: str
    bias: str | None
    input_basis: Tensor
    output_basis: Tensor
    eigenvalues: Tensor
    mean_eigenvalue: float
    source: str = SIMULATED
    damping_factor: float = DAMPING_FACTOR
    others: tuple[str, ...] = ()

    @property
    def recorded(self) -> bool:
        """Whether records hold gradients of it: a vector may have no direction."""
        return self.eigenvalues.numel() > 0

    @property
    def damping_value(self) -> float:
        """lambda, what damping adds to every eigenvalue.  A flat block gets 1: its gradients are zero."""
        return self.damping_factor * self.mean_eigenvalue or 1.0

    @property
    def damped(self) -> Tensor:
        """Eigenvalues plus damping (ks, ka)."""
        return self.eigenvalues + self.damping_value

    @property
    def damped_rest(self) -> float | None:
        """Mean eigenvalue outside the kept directions, plus damping; None where every direction is kept."""
        size, kept = len(self.output_basis) * len(self.input_basis), self.eigenvalues.numel()
        if size == kept:
            return None
        left = self.mean_eigenvalue * size - float(self.eigenvalues.sum(dtype=torch.float64))
        return max(left / (size - kept), 0.0) + self.damping_value

    def solve(self, g: Tensor, power: float = 1.0) -> Tensor:
        """(G + lambda)^-power g for gradients g (batch, d_out, d_in), with G flat outside the kept directions."""
        inside = self.output_basis.T @ g @ self.input_basis
        inverse, rest = self.damped**-power, self.damped_rest
        if rest is None:
            return self.output_basis @ (inside * inverse) @ self.input_basis.T
        outside = rest**-power
        return self.output_basis @ (inside * (inverse - outside)) @ self.input_basis.T + g * outside

    def quadratic(self, block: Block, uses: dict[int, LayerIO]) -> Tensor:
        """g^T (G + lambda)^-1 g (batch,) of the examples' gradients g."""
        rest, inverse = self.damped_rest, 1 / self.damped
        inside = inverse if rest is None else inverse - 1 / rest
        pair = vectors(block, uses)
        if pair is not None:  # g = b a^T, and all squares separate
            b, a = pair
            value = (((b @ self.output_basis).square() @ inside) * (a @ self.input_basis).square()).sum(1)
            return value if rest is None else value + b.square().sum(1) * a.square().sum(1) / rest
        value = (project(block, uses, self.output_basis, self.input_basis).square() * inside).sum((1, 2))
        return value if rest is None else value + gradient(block, uses).square().sum((1, 2)) / rest

    def to(self, target: torch.device | torch.dtype) -> BlockCurvature:
        """The same curvature with its tensors on a device, or of a dtype."""
        tensors = {name: getattr(self, name).to(target) for name in ("input_basis", "output_basis", "eigenvalues")}
        return replace(self, **tensors)


def eigenbases(
    found: Sequence[Block],
    gradients: Iterable[tuple[dict[int, LayerIO], float]],
    *,
    numbers: int | None,
    seed: int,
    device: torch.device | None = None,
) -> list[EigenvalueSums]:
    """The directions of each block that `gradients` show to be best, as sums ready to take eigenvalues in them.

    gradients: batches, with what each of the batch's examples counts.  numbers: how many directions in all, of inputs
    and outputs together; None for all.
    """
    choice = torch.Generator().manual_seed(seed)
    sums = {block.weight: _FactorSums(block, device) for block in found}
    for uses, weight in gradients:
        for block in found:
            sums[block.weight].update(*sampled_layer_io(block, uses, POSITIONS, choice), weight)
    axes = [(sums[block.weight].s.axis(seed), sums[block.weight].a.axis(seed)) for block in found]
    kept = allot(axes, numbers, [i for i, block in enumerate(found) if isinstance(block, VectorBlock)])
    return [EigenvalueSums(block, *pair, *widths) for block, pair, widths in zip(found, axes, kept, strict=True)]


def allot(axes: list[tuple[Axis, Axis]], numbers: int | None, vectors: Sequence[int] = ()) -> list[tuple[int, int]]:
    """How many leading directions (ks, ka) of each block to keep: `numbers` in all, at least one of each side.

    axes: of each block those of S and of A.  numbers: None keeps all.  vectors: which blocks are vectors; of one that
    would get one direction none is kept, (0, 1), and what it would cost goes to the others.
    """
    if numbers is None:
        return [(len(s.values), len(a.values)) for s, a in axes]
    found = dict(enumerate(_greatest(axes, numbers - SCALE_NUMBERS * len(vectors))))
    dropped = [i for i in vectors if found[i][0] == 1]
    if not dropped:
        return list(found.values())
    rest = [i for i in found if i not in dropped]
    again = _greatest([axes[i] for i in rest], numbers - SCALE_NUMBERS * (len(vectors) - len(dropped)))
    return [dict(zip(rest, again, strict=True)).get(i, (0, 1)) for i in found]


def _greatest(axes: list[tuple[Axis, Axis]], numbers: int) -> list[tuple[int, int]]:
    """The directions (ks, ka) of each block that contribute most, `numbers` in all, at least one of each side."""
    gains, owners = [], []
    for i, (s, a) in enumerate(axes):
        product = torch.outer(s.values, a.values)
        mean = s.total * a.total / (len(s.vectors) * len(a.vectors))
        contribution = product / (product + DAMPING_FACTOR * mean).clamp(min=torch.finfo(product.dtype).tiny)
        for side in (0, 1):
            gains.append(contribution.sum(1 - side))
            gains[-1][0] = torch.inf  # the first direction of every side is always kept
            owners.append(torch.full((len(gains[-1]),), 2 * i + side))
    order = torch.cat(gains).argsort(descending=True, stable=True).cpu()
    kept = torch.cat(owners)[order[: max(numbers, 2 * len(axes))]]
    counts = torch.bincount(kept, minlength=2 * len(axes)).view(-1, 2)
    return [(int(ks), int(ka)) for ks, ka in counts]


class _FactorSums:
    """The Kronecker factors S and A of one weight, summed over examples and positions."""

    def __init__(self, block: Block, device: torch.device | None):
        self.s = SecondMoment(block.d_out, device)
        self.a = SecondMoment(block.d_in, device)

    def update(self, b: Tensor, a: Tensor, weight: float) -> None:
        self.s.update(b * weight**0.5)
        self.a.update(a * weight**0.5)


class EigenvalueSums(Sums):
    """Second moments (ks, ka) of the gradients projected on the kept directions, and of the gradients' lengths.

    axes: all directions found of S and of A.  u_s (d_out, ks), u_a (d_in, ka): those kept.  Every gradient has a
    weight; `count` is the sum of these.
    """

    def __init__(self, block: Block, s: Axis, a: Axis, ks: int, ka: int):
        self.block, self.axes = block, (s, a)
        self.u_s, self.u_a = s.vectors[:, :ks].contiguous(), a.vectors[:, :ka].contiguous()
        self.sum = torch.zeros(ks, ka, device=self.u_s.device)  # float32, as the file keeps them
        self.trace, self.count = (torch.zeros((), dtype=torch.float64, device=self.u_s.device) for _ in range(2))

    def empty(self) -> EigenvalueSums:
        """The same directions, to which no gradient has been added."""
        return EigenvalueSums(self.block, *self.axes, *self.sum.shape)

    def tensors(self) -> dict[str, Tensor]:
        """Squares (ks, ka), trace () and count ()."""
        return {"sum": self.sum, "trace": self.trace, "count": self.count}

    def update(self, uses: dict[int, LayerIO], weight: float = 1.0) -> None:
        """Add the gradients of a batch, each with this weight."""
        pair = vectors(self.block, uses)
        if pair is not None:  # (U_S^T b)^2 (a^T U_A)^2 separates
            b, a = pair
            examples, squares = len(b), (b @ self.u_s).square().T @ (a @ self.u_a).square()
        else:
            projected = project(self.block, uses, self.u_s, self.u_a)
            examples, squares = len(projected), projected.square().sum(0)
        complete = self.sum.numel() == self.block.size  # then the squares say the length
        lengths = squares if complete else squared_norms(self.block, uses)
        self.sum += weight * squares
        self.trace += weight * lengths.sum(dtype=torch.float64)
        self.count += weight * examples

    @contextmanager
    def whole_or_nothing(self) -> Iterator[None]:
        """Around a batch: when it fails on the way, the sums are as they were before it."""
        before = [value.clone() for value in self.tensors().values()]
        try:
            yield
        except BaseException:
            for value, copy in zip(self.tensors().values(), before, strict=True):
                value.copy_(copy)
            raise

    def finalize(self, source: str) -> BlockCurvature:
        """Eigenvalues in the kept directions, and the mean of all."""
        count = float(self.count)
        mean, eigenvalues = float(self.trace) / count / self.block.size, self.sum / count
        bias, others = self.block.bias, self.block.others
        return BlockCurvature(self.block.weight, bias, self.u_a, self.u_s, eigenvalues, mean, source, others=others)

    def complete(self, source: str) -> BlockCurvature:
        """As `finalize`, in every direction that was found.

        Outside the kept ones the eigenvalues are products of the Kronecker factors', scaled to the rest of the trace.
        """
        kept, (s, a) = self.finalize(source), self.axes
        ks, ka = kept.eigenvalues.shape
        products = torch.outer(s.values, a.values)
        inside = float(kept.eigenvalues.sum(dtype=torch.float64))
        left = max(kept.mean_eigenvalue * self.block.size - inside, 0.0)
        outside = s.total * a.total - float(products[:ks, :ka].sum())
        eigenvalues = (products * (left / outside) if outside > 0 else torch.zeros_like(products)).to(self.u_s)
        eigenvalues[:ks, :ka] = kept.eigenvalues
        return replace(kept, input_basis=a.vectors, output_basis=s.vectors, eigenvalues=eigenvalues)
