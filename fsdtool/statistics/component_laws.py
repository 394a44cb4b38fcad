"""What a summary knows of each component: a model of its inputs, the law of its gates, some of its outputs.

K components, n input dimensions, U units of a step, O outputs.  Input models are fsdtool.statistics.input_model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from fsdtool.errors import FsdtoolError
from fsdtool.network.activations import Pieces
from fsdtool.statistics.gaussian_inputs import GaussianInputs
from fsdtool.statistics.input_model import InputModel
from fsdtool.statistics.no_inputs import NoInputs
from fsdtool.tasks.task import Task, task_of


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
    input: InputModel
    gates: dict[int, GateStatistics]
    output_hessian: Tensor | None
    outputs: OutputSample | None = None
    task: Task = field(default_factory=partial(task_of, "classification"))

    @property
    def weight(self) -> Tensor:
        """Mixture weights pi (K,), float64."""
        return self.count.double() / self.count.sum()

    @property
    def drawn(self) -> bool:
        """Whether there is an input model to draw pseudo-inputs from."""
        return not isinstance(self.input, NoInputs)

    @property
    def gaussian(self) -> GaussianInputs:
        """The input model where it is Gaussian, for what rests on means and covariances.

        Raises FsdtoolError for another.
        """
        if not isinstance(self.input, GaussianInputs):
            raise FsdtoolError(f"the inputs are drawn by the model '{self.input.name}', and this needs Gaussian ones")
        return self.input

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Statistics:
        """The same statistics with every tensor on `device` and of `dtype`."""

        def move(value: Tensor) -> Tensor:
            return value.to(device=device, dtype=dtype or value.dtype)

        def move_any(value: Tensor | None) -> Tensor | None:
            return None if value is None else move(value)

        inputs = self.input.to(device, dtype)
        gates = {
            i: GateStatistics(law.pieces, move_any(law.probabilities), move_any(law.moments))
            for i, law in self.gates.items()
        }
        outputs = None
        if self.outputs is not None:
            outputs = OutputSample(move(self.outputs.values), self.outputs.component.to(device=device))
        hessian = move_any(self.output_hessian)
        return Statistics(self.kind, self.names, self.count, inputs, gates, hessian, outputs, self.task)
