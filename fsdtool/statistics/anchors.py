"""Anchors: a sample of training examples, each kept by its projection and its outputs, to measure distances on.

With B a basis (n, r) of leading directions of the inputs, m_k the mean input of its component, c = B^T (x - m_k) the
projection of an example x and f' its outputs under the reference theta0, what is left of the example is
    x~ = m_k + B c
and a distance is the mean over anchors of rho(f', f' + f(x~; theta1) - f(x~; theta0)).  Both networks run as they are.
Inputs of few dimensions have no basis: they are kept whole, and then only the choice of the sample is an estimate.

Of more examples than can be kept, most anchors are evenly spaced, and an eighth are those that lie farthest out, by
the sum of squares of their standardized coefficients: in heavy-tailed data a few examples make up most of a distance.
Those stand for themselves alone, the others for all the rest.

A classifier that has memorised examples knows them by what the projection leaves out.  So its x~ are moved, before
anything is measured, within the variance D of what was left out, until the margins of the recorded outputs are met:
Gauss-Newton steps
    x~ + D J^T (J D J^T + eps)^-1 (g' - g(x~))   with g the largest outputs, each less the mean of all, and J = dg/dx.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fsdtool.network.graph import Graph, Parameters
from fsdtool.statistics.component_laws import Statistics
from fsdtool.statistics.gaussian_inputs import GaussianInputs
from fsdtool.tasks.task import Task
from fsdtool.util.memory import BatchSize

FEWEST_KEPT, MOST_KEPT = 512, 8192
FEWEST_STORED = 64  # whatever the budget
ALONE = 8  # one in so many anchors is there because it lies far out
ANCHORS_SHARE = 4  # one part in so many of the budget of statistics is the most that anchors take
KEPT_UNITS = 2**30  # scalars of all steps for all anchors together, which bounds the time of a distance
BATCH_UNITS = 2**25  # scalars of all steps held per batch
MET_OUTPUTS, STEPS, RIDGE = 2, 2, 1e-3  # of the Gauss-Newton steps
FEWEST = 5  # anchors of a component to speak for it, unless they are all of its examples
# Of projected ones: of 64 clusters of 1,500 images of CIFAR-10N those of fewer were off by up to 2.9 times (KL).
FEWEST_PROJECTED = 24


@dataclass(frozen=True)
class Anchors:
    """inputs (R, r) projections c, or (R, n) whole; outputs (R, O) of the reference; component (R,) int64.

    alone: (R,) bool, which stand for themselves alone.  basis: (n, r), or None where inputs are whole.
    """

    inputs: Tensor
    outputs: Tensor
    component: Tensor
    alone: Tensor
    basis: Tensor | None

    def __len__(self) -> int:
        return len(self.inputs)

    def to(self, device: torch.device) -> Anchors:
        """The same on a device, in float32."""
        inputs, outputs = self.inputs.to(device, torch.float32), self.outputs.to(device, torch.float32)
        basis = None if self.basis is None else self.basis.to(device, torch.float32)
        return Anchors(inputs, outputs, self.component.to(device), self.alone.to(device), basis)

    def evenly(self, count: int) -> Anchors:
        """At most `count` of those that stand for others too, evenly spaced, and all that stand alone."""
        shared = (~self.alone).nonzero()[:, 0]
        if len(shared) <= count:
            return self
        rows = torch.cat([shared[even_rows(len(shared), count)], self.alone.nonzero()[:, 0]])
        return Anchors(self.inputs[rows], self.outputs[rows], self.component[rows], self.alone[rows], self.basis)


def even_rows(total: int, count: int) -> Tensor:
    """At most `count` of range(total), evenly spaced: int64, increasing."""
    return torch.linspace(0, total - 1, min(count, total), dtype=torch.float64).round().long().unique()


def anchor_count(graph: Graph, examples: int, numbers_each: int, budget: int) -> int:
    """How many anchors of `numbers_each` float32 fit a quarter of `budget` bytes and the time of a distance."""
    affordable = max(KEPT_UNITS // sum(step.units for step in graph.steps), FEWEST_KEPT)
    return min(examples, MOST_KEPT, affordable, max(budget // ANCHORS_SHARE // (4 * numbers_each), FEWEST_STORED))


class AnchorRows:
    """Fills anchors as the examples of a pass come by."""

    def __init__(self, examples: int, count: int, basis: Tensor | None, sample: Tensor, outputs: int):
        """`count` of so many examples; sample (m, n): some inputs, which say how far out others lie."""
        self.most_alone = count // ALONE if count < examples else 0
        self.rows = even_rows(examples, count - self.most_alone)
        self.basis = basis
        self.centre = sample.mean(0)
        coefficients = self._project(sample)
        spread = coefficients.std(0, unbiased=False)
        # Below this, what varies is rounding.
        least = 1e-6 * (self.centre.abs() if basis is None else spread.max())
        self.precision = torch.where(spread > least, 1 / spread.clamp(min=1e-30), 0)
        self.inputs = torch.zeros(len(self.rows), coefficients.shape[1])
        self.outputs = torch.zeros(len(self.rows), outputs)
        self.component = torch.zeros(len(self.rows), dtype=torch.int64)
        # Those farthest out so far: distance, row, inputs, outputs, component.
        self._far = [torch.empty(0), torch.empty(0).long(), self.inputs[:0], self.outputs[:0], self.component[:0]]

    def update(self, rows: slice, x: Tensor, logits: Tensor, component: Tensor) -> None:
        """Take the anchors among the examples `rows`: inputs x (batch, n), logits (batch, O), component (batch,)."""
        coefficients = self._project(x)
        first, last = np.searchsorted(self.rows.numpy(), (rows.start, rows.stop))
        chosen = (self.rows[first:last] - rows.start).to(x.device)
        self.inputs[first:last] = coefficients[chosen].cpu()
        self.outputs[first:last] = logits[chosen].detach().float().cpu()
        self.component[first:last] = component[chosen].cpu()
        if self.most_alone:
            self._keep_far(rows, coefficients, logits.detach().float(), component)

    def _keep_far(self, rows: slice, coefficients: Tensor, logits: Tensor, component: Tensor) -> None:
        deviation = coefficients if self.basis is not None else coefficients - self.centre.to(coefficients)
        distance = (deviation * self.precision.to(coefficients)).square().sum(1)
        far = distance.topk(min(self.most_alone, len(distance))).indices
        row = torch.arange(rows.start, rows.stop, device=far.device)
        batch = [part[far].cpu() for part in (distance, row, coefficients, logits, component)]
        again = ~torch.isin(self._far[1], batch[1])  # a batch may come twice, when memory ran out
        joined = [torch.cat([held[again], new]) for held, new in zip(self._far, batch, strict=True)]
        best = joined[0].argsort(descending=True, stable=True)[: self.most_alone]
        self._far = [part[best] for part in joined]

    def _project(self, x: Tensor) -> Tensor:
        """Coefficients (batch, r) of x (batch, n) less the centre; x itself without a basis."""
        return x.float() if self.basis is None else ((x - self.centre.to(x)) @ self.basis.to(x)).float()

    def finalize(self, present: Tensor, statistics: GaussianInputs) -> Anchors:
        """The anchors, their components numbered among those `present` (K,) bool, which `statistics` describe."""
        number = present.cpu().long().cumsum(0) - 1
        _, far, *parts = self._far
        shared = ~torch.isin(self.rows, far)
        inputs, outputs, component = (
            torch.cat([even[shared], alone])
            for even, alone in zip((self.inputs, self.outputs, self.component), parts, strict=True)
        )
        alone = torch.cat([torch.zeros(int(shared.sum()), dtype=torch.bool), torch.ones(len(far), dtype=torch.bool)])
        component = number[component]
        if self.basis is not None:
            away = (self.centre.double().cpu() - statistics.mean.double().cpu()) @ self.basis.double().cpu()  # (K, r)
            inputs = (inputs.double() + away[component]).float()
        return Anchors(inputs, outputs, component, alone, None if self.basis is None else self.basis.cpu())


def stored(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Projections (R, r) as float16 and the scale (r,) float32 of each, as a file has them."""
    scale = inputs.square().mean(0).sqrt().clamp(min=1e-30)
    return (inputs / scale).clamp(-65504, 65504).half(), scale


class AnchoredOutputs:
    """Anchors, ready to be pushed through a graph: inputs x~ and what the reference makes of them."""

    def __init__(
        self,
        graph: Graph,
        reference: Parameters,
        statistics: Statistics,
        anchors: Anchors,
        *,
        task: Task,
        device: torch.device,
    ):
        self.graph, self.reference = graph, reference
        self.anchors = anchors.to(device)
        self.inputs = statistics.to(device, torch.float32).gaussian
        self.meet = task.has_classes and anchors.basis is not None and graph.outputs > 1

    def batches(self) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Rows of anchors, with their inputs x~ (batch, ...), outputs f(x~; theta0) and recorded ones (batch, O)."""
        size = BatchSize(max(BATCH_UNITS // sum(step.units for step in self.graph.steps), 64))
        yield from size.parts(len(self.anchors), self._batch)

    def other(self, parameters: Parameters, x: Tensor, simulated: Tensor, recorded: Tensor) -> Tensor:
        """Outputs (batch, O) beside the recorded ones of a network with other weights."""
        return recorded + (self.graph.run(parameters, x) - simulated)

    def _batch(self, rows: slice) -> tuple[slice, Tensor, Tensor, Tensor]:
        anchors, shape = self.anchors, (-1, *self.graph.input_shape)
        x = expand(self.inputs.mean, anchors.basis, anchors.inputs[rows], anchors.component[rows]).reshape(shape)
        recorded = anchors.outputs[rows]
        with torch.no_grad():
            simulated = self.graph.run(self.reference, x)
        if self.meet:
            variance = self.inputs.diagonal[anchors.component[rows]].reshape(x.shape)
            moved = met(self.graph, self.reference, x, recorded, variance)
            with torch.no_grad():
                after = self.graph.run(self.reference, moved)
            nearer = (after - recorded).square().sum(1) < (simulated - recorded).square().sum(1)
            x = torch.where(nearer.reshape(-1, *[1] * (x.dim() - 1)), moved, x)
            simulated = torch.where(nearer[:, None], after, simulated)
        return rows, x, simulated, recorded


def expand(mean: Tensor, basis: Tensor | None, coefficients: Tensor, component: Tensor) -> Tensor:
    """x~ (batch, n) of coefficients (batch, r) and components (batch,) with these means (K, n)."""
    return coefficients if basis is None else mean[component] + coefficients @ basis.T


def met(graph: Graph, parameters: Parameters, x: Tensor, recorded: Tensor, variance: Tensor) -> Tensor:
    """x (batch, ...) moved within `variance` (batch, ...) until the largest `recorded` outputs (batch, O) are met."""
    largest = recorded.topk(min(MET_OUTPUTS, recorded.shape[1] - 1), 1).indices  # (batch, m)
    wanted = _centred(recorded).gather(1, largest)
    identity = torch.eye(largest.shape[1], device=x.device)
    for _ in range(STEPS):
        x = x.detach().requires_grad_(True)
        with torch.enable_grad():
            found = _centred(graph.run(parameters, x)).gather(1, largest)
            slopes = [torch.autograd.grad(g.sum(), x, retain_graph=True)[0] for g in found.unbind(1)]
        j = torch.stack(slopes, 1).flatten(2)  # (batch, m, n)
        dj = j * variance.flatten(1)[:, None]
        gram = j @ dj.transpose(1, 2)  # (batch, m, m)
        scale = gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        gap = (wanted - found.detach())[:, :, None]
        weight = torch.linalg.solve_ex(gram + (RIDGE * scale + 1e-12) * identity, gap).result
        x = x + (dj.transpose(1, 2) @ weight).reshape(x.shape)
    return x.detach()


def _centred(f: Tensor) -> Tensor:
    return f - f.mean(1, keepdim=True)
