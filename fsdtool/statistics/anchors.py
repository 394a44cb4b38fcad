"""Anchors: a sample of training examples, each kept by its projection and its outputs, to measure distances on.

B (n, r) holds leading directions of the inputs, m_k is the mean input of the example's component, c = B^T (x - m_k) the
projection of an example x, and f' are its outputs under the reference theta0.  The example is kept as c and f', and
rebuilt as
    x~ = m_k + B c
A distance is the mean over anchors of rho(f', f' + f(x~; theta1) - f(x~; theta0)).  Both networks run as they are.
Inputs of few dimensions have no basis: they are kept whole, and then only the choice of the sample is an estimate.

Where there are more examples than can be kept, most anchors are evenly spaced.  An eighth are the examples farthest
out, by the sum of squares of their standardized coefficients: in heavy-tailed data a few examples make up most of a
distance.  These stand for themselves alone, the evenly spaced ones for all the rest.

A classifier recognises examples that it has memorised by what the projection drops.  So before anything is measured
each x~ is moved, along the variance D that the projection dropped, until its largest outputs are as recorded, by
Gauss-Newton steps
    x~ + D J^T (J D J^T + eps)^-1 (g' - g(x~))   with g the largest outputs, each less the mean of all, and J = dg/dx.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fsdtool.network.graph import Graph, Parameters
from fsdtool.statistics.component_laws import Statistics
from fsdtool.statistics.gaussian_inputs import GaussianInputs
from fsdtool.statistics.input_model import InputModel
from fsdtool.statistics.merging import BatchView, RowTensors, State, joined, part_of
from fsdtool.statistics.sample import even_rows
from fsdtool.tasks.task import Task
from fsdtool.util.memory import BatchSize

FEWEST_KEPT, MOST_KEPT = 512, 8192  # anchors, as far as the budget allows
FEWEST_STORED = 64  # whatever the budget
ALONE = 8  # one in so many anchors is there because it lies far out
ANCHORS_SHARE = 4  # one part in so many of the budget of statistics is the most that anchors take
KEPT_UNITS = 2**30  # scalars of all steps for all anchors together, which bounds the time of a distance
BATCH_UNITS = 2**25  # scalars of all steps held per batch
MET_OUTPUTS, STEPS, RIDGE = 2, 2, 1e-3  # of the Gauss-Newton steps
FEWEST = 5  # anchors that a component needs for a distance of its own, unless they are all of its examples
# Of projected ones: of 64 clusters of 1,500 images of CIFAR-10N those of fewer were off by up to 2.9 times (KL).
FEWEST_PROJECTED = 24


@dataclass(frozen=True)
class Anchors:
    """R examples as they are kept.

    inputs: projections c (R, r), or whole (R, n).  outputs (R, O) of the reference.  component (R,) int64.  alone (R,)
    bool: which stand for themselves alone.  basis (n, r), or None where inputs are whole.
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


def anchor_count(graph: Graph, examples: int, numbers_each: int, budget: int) -> int:
    """How many anchors of `numbers_each` float32 fit a quarter of `budget` bytes and the time of a distance."""
    affordable = max(KEPT_UNITS // sum(step.units for step in graph.steps), FEWEST_KEPT)
    return min(examples, MOST_KEPT, affordable, max(budget // ANCHORS_SHARE // (4 * numbers_each), FEWEST_STORED))


@dataclass(frozen=True)
class AnchorPlan:
    """Which examples become anchors, fixed before the pass.

    rows (R,) int64: those evenly spaced.  most_alone: how many of the others that lie farthest out.  basis (n, r), or
    None to keep inputs whole.  centre (n,) and precision (r,), one over the spread of each coefficient, say how far out
    an example lies.
    """

    rows: Tensor
    most_alone: int
    basis: Tensor | None
    centre: Tensor
    precision: Tensor

    @classmethod
    def of(cls, examples: int, count: int, basis: Tensor | None, sample: Tensor, *, numbers: bool = True) -> AnchorPlan:
        """`count` of so many examples; sample (m, n): some inputs, which say how far out others lie.

        numbers: whether the inputs are such; of ids none lies farther out than others.
        """
        most_alone = count // ALONE if numbers and count < examples else 0
        centre = sample.mean(0)
        plan = cls(even_rows(examples, count - most_alone), most_alone, basis, centre, centre)
        spread = plan.coefficients(sample).std(0, unbiased=False)
        # Below this, what varies is rounding.
        least = 1e-6 * (centre.abs() if basis is None else spread.max())
        return replace(plan, precision=torch.where(spread > least, 1 / spread.clamp(min=1e-30), 0))

    def coefficients(self, x: Tensor) -> Tensor:
        """Coefficients (batch, r) float32 of x (batch, n) less the centre; x itself without a basis."""
        return x.float() if self.basis is None else ((x - self.centre.to(x)) @ self.basis.to(x)).float()

    def distance(self, coefficients: Tensor) -> Tensor:
        """How far out (batch,) examples with these coefficients (batch, r) lie: the sum of squared deviations."""
        deviation = coefficients if self.basis is not None else coefficients - self.centre.to(coefficients)
        return (deviation * self.precision.to(coefficients)).square().sum(1)


class AnchorRows:
    """The anchors among the examples of a pass: rows that are evenly spaced, and the farthest out so far.

    outputs: number of outputs O of the network.
    """

    def __init__(self, plan: AnchorPlan, outputs: int):
        self.plan = plan
        like = {
            "inputs": torch.empty(0, len(plan.precision)),
            "outputs": torch.empty(0, outputs),
            "component": torch.empty(0, dtype=torch.int64),
        }
        self._even = RowTensors(len(plan.rows), like)
        self._far = {"distance": torch.empty(0), "row": torch.empty(0, dtype=torch.int64)} | like

    def whole_or_nothing(self) -> AbstractContextManager[None]:
        """Nothing to undo: a batch that comes again is known by its rows."""
        return nullcontext()

    def update(self, batch: BatchView) -> None:
        """Take the anchors among the examples of a batch."""
        rows, coefficients = batch.rows, self.plan.coefficients(batch.inputs)
        found = {"inputs": coefficients, "outputs": batch.logits.detach().float(), "component": batch.component}
        first, last = np.searchsorted(self.plan.rows.numpy(), (rows.start, rows.stop)).tolist()
        chosen = (self.plan.rows[first:last] - rows.start).to(coefficients.device)
        self._even.put(slice(first, last), **{name: value[chosen] for name, value in found.items()})
        if self.plan.most_alone:
            distance = self.plan.distance(coefficients)
            far = distance.topk(min(self.plan.most_alone, len(distance))).indices
            row = torch.arange(rows.start, rows.stop, device=far.device)
            self._keep_far({"distance": distance, "row": row} | found, far)

    def _keep_far(self, batch: Mapping[str, Tensor], far: Tensor) -> None:
        new = {name: value[far].cpu() for name, value in batch.items()}
        again = ~torch.isin(self._far["row"], new["row"])  # a batch may come twice, when memory ran out
        joint = {name: torch.cat([held[again], new[name]]) for name, held in self._far.items()}
        best = joint["distance"].argsort(descending=True, stable=True)[: self.plan.most_alone]
        self._far = {name: value[best] for name, value in joint.items()}

    def merge(self, other: AnchorRows) -> None:
        """Take in the anchors among other examples, the farthest out of both."""
        self._even.merge(other._even)
        joint = {name: torch.cat([held, other._far[name]]) for name, held in self._far.items()}
        in_order = joint["row"].argsort()
        best = in_order[joint["distance"][in_order].argsort(descending=True, stable=True)[: self.plan.most_alone]]
        self._far = {name: value[best] for name, value in joint.items()}

    def state(self) -> State:
        """The evenly spaced anchors that were seen, by their position among `rows`, and those farthest out."""
        far = {name: value.double().numpy() for name, value in self._far.items()}
        return joined({"even": self._even.state(), "far": far})

    def from_state(self, state: Mapping[str, np.ndarray]) -> AnchorRows:
        """These anchors, empty so far, as they were when `state` was asked for; the same object."""
        self._even.from_state(part_of(state, "even"))
        far = part_of(state, "far")
        self._far = {name: torch.from_numpy(far[name]).to(value.dtype) for name, value in self._far.items()}
        return self

    def finalize(self, present: Tensor, inputs_of: InputModel) -> Anchors:
        """The anchors, their components numbered among those `present` (K,) bool, which `inputs_of` describes."""
        plan, far, even = self.plan, self._far, self._even.values
        number = present.cpu().long().cumsum(0) - 1
        shared = ~torch.isin(plan.rows, far["row"])
        inputs, outputs, component = (torch.cat([value[shared], far[name]]) for name, value in even.items())
        alone = torch.arange(len(component)) >= len(component) - len(far["row"])
        component = number[component]
        if plan.basis is None:
            return Anchors(inputs, outputs, component, alone, None)
        assert isinstance(inputs_of, GaussianInputs)  # there is a basis
        centres = plan.centre.double().cpu() - inputs_of.mean.double().cpu()
        away = centres @ plan.basis.double().cpu()  # (K, r)
        inputs = (inputs.double() + away[component]).float()
        return Anchors(inputs, outputs, component, alone, plan.basis.cpu())


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
        self.inputs = None if anchors.basis is None else statistics.to(device, torch.float32).gaussian
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
        x, component = anchors.inputs[rows], anchors.component[rows]
        if self.inputs is not None and anchors.basis is not None:
            x = expand(self.inputs.mean, anchors.basis, x, component)
        x = x.reshape(shape)
        recorded = anchors.outputs[rows]
        with torch.no_grad():
            simulated = self.graph.run(self.reference, x)
        if self.meet and self.inputs is not None:
            variance = self.inputs.diagonal[component].reshape(x.shape)
            moved = met(self.graph, self.reference, x, recorded, variance)
            with torch.no_grad():
                after = self.graph.run(self.reference, moved)
            nearer = (after - recorded).square().sum(1) < (simulated - recorded).square().sum(1)
            x = torch.where(nearer.reshape(-1, *[1] * (x.dim() - 1)), moved, x)
            simulated = torch.where(nearer[:, None], after, simulated)
        return rows, x, simulated, recorded


def expand(mean: Tensor, basis: Tensor, coefficients: Tensor, component: Tensor) -> Tensor:
    """x~ (batch, n) of coefficients (batch, r) and components (batch,) with these means (K, n)."""
    return mean[component] + coefficients @ basis.T


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
