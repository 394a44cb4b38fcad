"""The function space distance of a live module from the summarized checkpoint, as a term of a training loss.

Sampled form: a pool of pseudo-samples is drawn from all components, with the gates and outputs of the reference on
them; each call takes the next few, pushes them through the module's current weights under the same gates and
measures.  After four passes over the pool a new one is drawn, so a training run sees the whole model of the data at
the cost of little more than a forward and a backward pass per call.  Divergences are measured at the simulated
outputs, not at recorded ones as the command does: their scale goes into the strength of the penalty.  Closed form:
the exact expectation at each call.

Gates are 'moving' by default: at the reference they are those of LAFTR, and they switch when training
carries a unit over its break.  'coupled' and 'independent' ones stay where they are; they do not see that training
moves the gates on the old data, and far from the reference a penalty loses much by that.  With 'own' gates both
networks run on the pseudo-inputs as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from fsdtool.errors import FsdtoolError
from fsdtool.laftr.closed_form import closed_form
from fsdtool.laftr.distance_forms import output_hessian
from fsdtool.laftr.form_choice import CLOSED, choose_form
from fsdtool.laftr.gates.policy import DEFAULT, policies
from fsdtool.laftr.metrics import check_metric, default_metric, measure
from fsdtool.laftr.sampling import Simulation
from fsdtool.model.computed_weights import plain_values
from fsdtool.model.state_dict_names import match_state
from fsdtool.network.graph import Graph, Parameters
from fsdtool.network.tape import Tape
from fsdtool.statistics.anchors import Anchors
from fsdtool.statistics.component_laws import Statistics
from fsdtool.tasks.task import Task

POOL_BYTES = 2**28  # held by the gates of a pool
LARGEST_POOL = 4096
OWN = "own"
PASSES = 4  # over a pool before the next one is drawn


class Penalty:
    """One summary's distance for live modules, with its pool of pseudo-samples.

    graph, statistics, anchors, parameters (of the reference, None where the summary has none) and shapes (of every
    entry of the model's state_dict) are those of the summary `source`.

    Raises FsdtoolError for a metric, form or kind of gates that does not exist or does not fit the summary, or a
    summary without weights.
    """

    def __init__(
        self,
        graph: Graph,
        parameters: Parameters | None,
        statistics: Statistics,
        anchors: Anchors | None,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        task: Task,
        source: str | Path,
        metric: str | None,
        form: str,
        gates: str,
        seed: int,
        device: torch.device,
    ):
        self.metric, self._task = metric or default_metric(task), task
        check_metric(self.metric, task, source)
        self.form = choose_form(form, self.metric, graph, statistics, anchors, gates, source=source)
        known = (*policies(), OWN)
        if gates not in known:
            raise FsdtoolError(f"there are no gates '{gates}'; give one of {', '.join(known)}")
        self._own = gates == OWN
        if parameters is None:
            raise FsdtoolError(f"'{source}' was written with `keep_weights=False`; write it again with weights")
        self._shapes, self._graph = shapes, graph
        self._reference = {name: value.to(device) for name, value in parameters.items()}
        self._statistics: Statistics = statistics.to(device, torch.float32)
        closed = self.form == CLOSED
        self._hessian = output_hessian(self._statistics, self.metric, graph.outputs) if closed else None
        policy = DEFAULT if self._own else gates  # of their own gates nothing is drawn
        self._simulation = Simulation(graph, self._reference, statistics, gates=policy, seed=seed, device=device)
        self._pool: tuple[Tensor, Tensor, Tape | None] | None = None
        self._order = torch.empty(0, dtype=torch.int64)

    def __call__(self, model: nn.Module, batch: int) -> Tensor:
        """The distance of the module's current weights over `batch` pseudo-samples: a scalar with gradients."""
        parameters = self._live(model)
        if self._hessian is not None:
            each = closed_form(self._graph, self._reference, parameters, self._statistics, self._hessian)
            return self._statistics.weight.to(each) @ each
        x, f0, tape = self._next(batch)
        f1 = self._graph.run(parameters, x, gate=None if tape is None else tape.replay)
        return measure(self.metric, f0, f1, self._task).mean().to(x.dtype)

    def _live(self, model: nn.Module) -> Mapping[str, Tensor]:
        """The module's own tensors by the names of the summary: not copies, so that gradients reach them."""
        state = model.state_dict(keep_vars=True)
        state |= plain_values(model, gradients=True)
        if any(name not in state for name in self._reference):
            state, _ = match_state(state, self._shapes, source=type(model).__name__)
        for name, value in self._reference.items():
            if state[name].shape != value.shape or state[name].device != value.device:
                raise FsdtoolError(
                    f"the module's '{name}' is {tuple(state[name].shape)} on {state[name].device}, the summary's "
                    f"{tuple(value.shape)} on {value.device}; give the network that was summarized, on that device"
                )
        return state

    def _next(self, batch: int) -> tuple[Tensor, Tensor, Tape | None]:
        if self._pool is None or len(self._order) < batch:
            self._pool = self._draw(batch)
        chosen, self._order = self._order[:batch], self._order[batch:]
        x, f0, tape = self._pool
        return x[chosen], f0[chosen], None if tape is None else tape.select(chosen)

    def _draw(self, batch: int) -> tuple[Tensor, Tensor, Tape | None]:
        """A new pool: pseudo-samples of all components, and the random order to take them in."""
        held = sum(self._graph.steps[i].units for i in self._graph.indices("activation", "maximum"))
        count = max(min(POOL_BYTES // (4 * max(held, 1)), LARGEST_POOL), batch)
        drawn = self._simulation.batches(count, self._draw_component)
        x, f0, tapes = zip(*drawn, strict=True)
        pool = torch.cat(x), torch.cat(f0), None if self._own else type(tapes[0]).concatenate(tapes)
        generator = self._simulation.generator
        total = len(pool[0])
        passes = max(PASSES, -(-batch // total))
        orders = [torch.randperm(total, generator=generator, device=generator.device) for _ in range(passes)]
        self._order = torch.cat(orders)
        return pool

    def _draw_component(self, k: int, count: int) -> tuple[Tensor, Tensor, Tape | None]:
        """`count` pseudo-samples of component k: inputs, outputs of the reference, the tape of its gates."""
        if not self._own:
            return self._simulation.forward(k, count)
        x, _, _ = self._simulation.inputs_and_gates(k, count)
        with torch.no_grad():
            return x, self._graph.run(self._reference, x), None
