"""LAFTR by samples, for every traced network: pseudo-inputs pushed forward under gates that the reference decides.

Draw inputs of a component, run the graph under the reference theta0 with gates that a policy draws
(fsdtool.laftr.gates) and a tape keeps, then under other weights theta1 by that tape.  A maximum has no law of its
positions: the simulated signal decides them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from fsdtool.laftr.gates.policy import GatePolicy, policy_of
from fsdtool.network.graph import GateRule, Graph, Parameters, Step
from fsdtool.network.operations.base import ACTIVATION, gated
from fsdtool.network.tape import Gates, Tape
from fsdtool.statistics.component_laws import GateStatistics, Statistics
from fsdtool.util.memory import BatchSize, undrawn

BATCH_UNITS = 2**25  # scalars of all steps held per batch of pseudo-samples
SMALLEST_BATCH = 64
FEWEST = 8  # pseudo-samples of a batch that memory has halved: gates of fewer have no ranks to speak of

T = TypeVar("T")


class Simulation:
    """Pseudo-samples of the summary's components on one graph under the reference weights.

    gates: a policy or its name.  The draws of one seed and device are always the same.
    Raises FsdtoolError for gates that do not exist.
    """

    def __init__(
        self,
        graph: Graph,
        reference: Parameters,
        statistics: Statistics,
        *,
        gates: str | GatePolicy = "coupled",
        seed: int = 0,
        device: torch.device | None = None,
    ):
        device = device or torch.device("cpu")
        self.graph = graph
        self.reference = reference
        self.statistics = statistics.to(device, torch.float32)
        self.policy = policy_of(gates)
        self.generator = torch.Generator(device).manual_seed(seed)
        self._index = {step.name: i for i, step in enumerate(graph.steps)}

    def inputs_and_gates(self, component: int, count: int) -> tuple[Tensor, GateRule, Tape]:
        """`count` inputs (count, ...) of a component, the rule that simulates gates, the tape it fills."""
        x = self.statistics.input.sample(component, count, self.generator).reshape(-1, *self.graph.input_shape)
        tape = self.policy.tape()
        return x, partial(self._gate, tape, component), tape

    def batches(self, samples: int, compute: Callable[[int, int], T]) -> Iterator[T]:
        """compute(component, count) of batches that draw about `samples` in all, in proportion to the weights pi.

        At least two of each component; a batch is as large as memory allows, since a coupled batch resolves
        gate probabilities to one over its size.  Where memory runs out the batch is drawn again, half as large; a
        compute that fails must leave nothing behind.
        """
        size = BatchSize(max(BATCH_UNITS // sum(step.units for step in self.graph.steps), SMALLEST_BATCH), FEWEST)
        for k, weight in enumerate(self.statistics.weight.tolist()):
            draw = undrawn(self.generator, partial(_of_length, compute, k))
            yield from size.parts(max(round(weight * samples), 2), draw, even=True)

    def forward(self, component: int, count: int) -> tuple[Tensor, Tensor, Tape]:
        """`count` pseudo-samples of a component: inputs (count, ...), logits (count, O), their gates."""
        x, gate, tape = self.inputs_and_gates(component, count)
        with torch.no_grad():
            return x, self.graph.run(self.reference, x, gate=gate), tape

    def _gate(self, tape: Tape, k: int, step: Step, s: Tensor) -> Tensor:
        """The output of a gate step for the signal s of pseudo-samples of component k; the tape keeps its gates."""
        operation = gated(step)
        if step.kind != ACTIVATION:
            positions = operation.hold(step, s.detach())
            tape.hold_maximum(step, positions)
            return operation.replay(step, s, positions)
        gates = self._draw_gates(step, s.detach(), self.statistics.gates[self._index[step.name]], k)
        tape.hold_activation(step, s.detach(), gates)
        return operation.replay(step, s, (gates.m, gates.c))

    def _draw_gates(self, step: Step, s: Tensor, law: GateStatistics, k: int) -> Gates:
        """Gates of an activation step with the recorded law for the signal s (n, ...) of component k."""
        flat = s.flatten(1)  # (n, U)
        if law.pieces is None:
            assert law.moments is not None
            m, c = self.policy.draw_slopes(step.activation(), flat, law.moments[k], self.generator)
            return Gates(m.reshape(s.shape), c.reshape(s.shape))
        assert law.probabilities is not None
        piece, moved = self.policy.draw_pieces(flat, law.probabilities[k], law.pieces.breaks, self.generator)
        breaks = [t.reshape(s.shape[1:]) for t in moved]
        if law.pieces.slopes == (0.0, 1.0):
            return Gates(piece.to(s.dtype).reshape(s.shape), None, breaks)
        m, c = law.pieces.gate(piece.long(), s.dtype)
        return Gates(m.reshape(s.shape), None if law.pieces.through_origin else c.reshape(s.shape), breaks)


def _of_length(compute: Callable[[int, int], T], component: int, rows: slice) -> T:
    return compute(component, rows.stop - rows.start)
