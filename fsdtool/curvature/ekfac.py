"""Curvature from the summary alone: a Kronecker eigenbasis with corrected eigenvalues per weight.

The Hessian of the FSD at theta0 is the Gauss-Newton matrix E[J^T H J].  Pseudo-samples of the summary
(coupled gates, fsdtool.laftr.closed_form) are pushed forward; v ~ N(0, H_k) at the output is pushed back through
the same gates, which gives pseudo-gradients G with E[vec G vec G^T] the Gauss-Newton block of a weight.
From one half of the samples come the eigenbases U_A of E[a a^T] and U_S of E[b b^T]; from the other half
the eigenvalues E[(U_S^T G U_A)^2] in that basis, which is what EKFAC (George et al. 2018) measures on real
gradients.

Rare components get more draws than their share, so a pseudo-sample of component k counts pi_k / n_k, n_k the number
drawn of it.

The same on gradients of the training data itself, v drawn from the Hessian at each example's own outputs, is the
*measured* curvature: eigenbases from the first sample, eigenvalues in the pass (fsdtool.fitting.passes).

Damping: lambda = delta * (mean eigenvalue of the block), delta = 1, the mean from the exact trace E||G||_F^2.

A direction is worth keeping for what it is expected to contribute to an influence: E[g^2] / (E[g^2] +
lambda) per entry of the projected gradient, summed over the other side, with E[g^2] from the Kronecker
factors.  Every direction kept costs one number per record, so the greatest contributions are taken until
the budget is spent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fsdtool.curvature.sources import SIMULATED
from fsdtool.laftr.sampling import Simulation
from fsdtool.network.graph import Graph, Parameters, is_convolutional
from fsdtool.network.operations import named
from fsdtool.network.operations.weighted import Weighted
from fsdtool.network.per_example_gradients import (
    Block,
    LayerIO,
    blocks,
    capture,
    gradient,
    project,
    sampled_layer_io,
    squared_norms,
    vectors,
)
from fsdtool.statistics.component_laws import Statistics
from fsdtool.statistics.eigen import Axis, SecondMoment, symmetric_eigen

DENSE_PRODUCTS = 2**34
DAMPING_FACTOR = 1.0
POSITIONS = 16  # per example, for the eigenbases; neighbouring positions say nearly the same


@dataclass(frozen=True)
class BlockCurvature:
    """One weight's curvature, kept in its leading directions.

    input_basis (columns, ka) and output_basis (rows, ks) orthonormal, eigenvalues (ks, ka) float32,
    mean_eigenvalue the trace of the whole block over its size.  source: 'simulated' (pseudo-samples) or 'measured'
    (the training data).  damping_factor: delta, in mean eigenvalues.
    """

    weight: str
    bias: str | None
    input_basis: Tensor
    output_basis: Tensor
    eigenvalues: Tensor
    mean_eigenvalue: float
    source: str = SIMULATED
    damping_factor: float = DAMPING_FACTOR

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
        """(G + lambda)^-power g for gradients g (batch, rows, columns), with G flat outside the kept directions."""
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


def default_samples(graph: Graph, examples: int) -> int:
    """Pseudo-samples for each half: fewer where each one passes over the positions of a convolution.

    No more of those than there are examples, but 256: the data would not tell the difference.  Fully connected nets
    take 8192, or as many as 2^34 multiplications push forward, but 1024.
    """
    if is_convolutional(graph):
        return min(1024, max(256, examples))
    dense = [step for step in graph.steps if isinstance(named(step.operation), Weighted)]
    products = sum(graph.steps[step.inputs[0]].units * step.units for step in dense)
    return min(8192, max(1024, DENSE_PRODUCTS // max(products, 1)))


def curvature(
    graph: Graph,
    parameters: Parameters,
    statistics: Statistics,
    *,
    seed: int,
    numbers: int | None = None,
    samples: int | None = None,
    device: torch.device | None = None,
) -> list[BlockCurvature]:
    """Curvature of every linear and convolution weight, in the `numbers` best directions (None: all).

    `samples` pseudo-samples give the eigenbases and as many others the eigenvalues.
    """
    found = simulated_sums(graph, parameters, statistics, seed=seed, numbers=numbers, samples=samples, device=device)
    return [sums.finalize(SIMULATED) for sums in found]


def simulated_sums(
    graph: Graph,
    parameters: Parameters,
    statistics: Statistics,
    *,
    seed: int,
    numbers: int | None = None,
    samples: int | None = None,
    device: torch.device | None = None,
) -> list[EigenvalueSums]:
    """The sums that `curvature` finalizes."""
    samples = samples or default_samples(graph, int(statistics.count.sum()))
    found = blocks(graph, parameters)
    simulation = Simulation(graph, parameters, statistics, seed=seed, device=device)
    sums = eigenbases(found, _pseudo_gradients(simulation, samples), numbers=numbers, seed=seed, device=device)
    for uses, weight in _pseudo_gradients(simulation, samples):
        for block_sums in sums:
            block_sums.update(uses, weight)
    return sums


def eigenbases(
    found: Sequence[Block],
    gradients: Iterable[tuple[dict[int, LayerIO], float]],
    *,
    numbers: int | None,
    seed: int,
    device: torch.device | None = None,
) -> list[EigenvalueSums]:
    """The `numbers` best directions of the `gradients`, as sums ready to take eigenvalues in them.

    They come in batches, with the weight of each of the batch's examples.
    """
    choice = torch.Generator().manual_seed(seed)
    sums = {block.weight: _FactorSums(block, device) for block in found}
    for uses, weight in gradients:
        for block in found:
            sums[block.weight].update(*sampled_layer_io(block, uses, POSITIONS, choice), weight)
    axes = [(sums[block.weight].rows.axis(seed), sums[block.weight].columns.axis(seed)) for block in found]
    return [
        EigenvalueSums(block, *pair, *widths)
        for block, pair, widths in zip(found, axes, allot(axes, numbers), strict=True)
    ]


def allot(axes: list[tuple[Axis, Axis]], numbers: int | None) -> list[tuple[int, int]]:
    """Leading directions (ks, ka) of each block's rows and columns to keep: `numbers` in all, at least one each."""
    if numbers is None:
        return [(len(rows.values), len(columns.values)) for rows, columns in axes]
    gains, owners = [], []
    for i, (rows, columns) in enumerate(axes):
        product = torch.outer(rows.values, columns.values)
        mean = rows.total * columns.total / (len(rows.vectors) * len(columns.vectors))
        contribution = product / (product + DAMPING_FACTOR * mean).clamp(min=torch.finfo(product.dtype).tiny)
        for side in (0, 1):
            gains.append(contribution.sum(1 - side))
            gains[-1][0] = torch.inf  # the first direction of every side is always kept
            owners.append(torch.full((len(gains[-1]),), 2 * i + side))
    order = torch.cat(gains).argsort(descending=True, stable=True).cpu()
    kept = torch.cat(owners)[order[: max(numbers, 2 * len(axes))]]
    counts = torch.bincount(kept, minlength=2 * len(axes)).view(-1, 2)
    return [(int(ks), int(ka)) for ks, ka in counts]


def _pseudo_gradients(simulation: Simulation, samples: int) -> Iterator[tuple[dict[int, LayerIO], float]]:
    """Batches of pseudo-gradients, and what each of a batch counts: pi_k / n_k, in units of its mean over all drawn."""
    share = simulation.statistics.weight.tolist()
    drawn = [0] * len(share)
    for k, count in simulation.batches(samples, lambda k, count: (k, count)):
        drawn[k] += count

    def gradients(k: int, count: int) -> tuple[dict[int, LayerIO], float]:
        x, gate, _ = simulation.inputs_and_gates(k, count)
        uses = capture(simulation.graph, simulation.reference, x, _draw_output(simulation, k), gate=gate)[1]
        return uses, share[k] / drawn[k] * sum(drawn)

    return simulation.batches(samples, gradients)


def _draw_output(simulation: Simulation, k: int) -> Callable[[Tensor], Tensor]:
    """The function that draws v ~ N(0, H_k), or a drawn gradient where H_k was too large to keep."""
    hessians, generator = simulation.statistics.output_hessian, simulation.generator
    drawn = simulation.statistics.task.gradient_draw(generator)

    def draw(logits: Tensor) -> Tensor:
        if hessians is None:
            return drawn(logits)
        values, vectors_ = symmetric_eigen(hessians[k])
        root = vectors_ * values.sqrt().to(logits.dtype)
        return torch.randn(logits.shape, generator=generator, device=logits.device) @ root.T

    return draw


class _FactorSums:
    """Second moments of inputs [a; 1] and of output gradients b over examples and positions."""

    def __init__(self, block: Block, device: torch.device | None):
        self.rows = SecondMoment(block.d_out, device)
        self.columns = SecondMoment(block.d_in, device)

    def update(self, b: Tensor, a: Tensor, weight: float) -> None:
        self.rows.update(b * weight**0.5)
        self.columns.update(a * weight**0.5)


class EigenvalueSums:
    """Second moments of the gradients projected on the kept directions, and of the gradients' lengths."""

    def __init__(self, block: Block, rows: Axis, columns: Axis, ks: int, ka: int):
        self.block, self.axes = block, (rows, columns)
        self.rows = rows.vectors[:, :ks].contiguous()
        self.columns = columns.vectors[:, :ka].contiguous()
        self.restart()

    def restart(self) -> None:
        """Forget what was added, but not the directions."""
        self.sum = torch.zeros(self.rows.shape[1], self.columns.shape[1], device=self.rows.device)
        self.trace = torch.zeros((), dtype=torch.float64, device=self.rows.device)
        self.count = 0.0

    def update(self, uses: dict[int, LayerIO], weight: float = 1.0) -> None:
        """Add the gradients of a batch, each with this weight."""
        pair = vectors(self.block, uses)
        if pair is not None:  # (s^T b)^2 (a^T u)^2 separates
            b, a = pair
            examples, squares = len(b), (b @ self.rows).square().T @ (a @ self.columns).square()
        else:
            projected = project(self.block, uses, self.rows, self.columns)
            examples, squares = len(projected), projected.square().sum(0)
        self.sum += weight * squares
        complete = self.sum.numel() == self.block.size  # then the squares say the length
        lengths = squares if complete else squared_norms(self.block, uses)
        self.trace += weight * lengths.sum(dtype=torch.float64)
        self.count += weight * examples

    def finalize(self, source: str) -> BlockCurvature:
        """Eigenvalues in the kept directions, and the mean of all."""
        mean = float(self.trace) / self.count / self.block.size
        eigenvalues = self.sum / self.count
        return BlockCurvature(self.block.weight, self.block.bias, self.columns, self.rows, eigenvalues, mean, source)

    def complete(self, source: str) -> BlockCurvature:
        """As `finalize`, in every direction that was found.

        Outside the kept ones the eigenvalues are products of the Kronecker factors', scaled to the rest of the trace.
        """
        kept, (rows, columns) = self.finalize(source), self.axes
        ks, ka = kept.eigenvalues.shape
        products = torch.outer(rows.values, columns.values)
        inside = float(kept.eigenvalues.sum(dtype=torch.float64))
        left = max(kept.mean_eigenvalue * self.block.size - inside, 0.0)
        outside = rows.total * columns.total - float(products[:ks, :ka].sum())
        eigenvalues = (products * (left / outside) if outside > 0 else torch.zeros_like(products)).to(self.sum)
        eigenvalues[:ks, :ka] = kept.eigenvalues
        return replace(kept, input_basis=columns.vectors, output_basis=rows.vectors, eigenvalues=eigenvalues)
