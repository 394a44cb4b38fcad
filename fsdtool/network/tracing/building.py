"""The steps of a Graph while they are found, each with its value on a few examples.

A step is run as soon as it is added, on the values of those that it reads: so its shape is known, and whether it does
what the model did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fsdtool.network.graph import Graph, Parameters, Step
from fsdtool.network.operations.calls import Signal
from fsdtool.network.operations.function import packed
from fsdtool.network.tracing.comparing import FRONT, Layout, Refused, first_line


@dataclass(frozen=True)
class Arranged:
    """A value of each example, but not one row for each: the step that computes it as the model does."""

    step: int
    layout: Layout


@dataclass(frozen=True)
class Fixed:
    """A value in which no example is: of parameters and constants, or of examples and the same for all."""

    step: int
    of_examples: bool = False


Value = Signal | Arranged | Fixed


class Builder:
    """The steps of a network with parameters `state`, of which the first is the input x (n, ...)."""

    def __init__(self, x: Tensor, state: Parameters):
        self.steps = [Step("input", "input", shape=tuple(x.shape[1:]))]
        self.state = state
        self._values = [x]
        self._stand_ins: set[int] = set()
        self._taken = {"input"}
        self._constants: dict[int, tuple[Tensor, Fixed]] = {}  # by the tensor's id
        self._fronts: dict[int, Signal] = {}  # of a step with the examples elsewhere, the one with them in front

    def add(
        self,
        name: str,
        operation: str,
        inputs: Sequence[int],
        options: dict[str, Any] | None = None,
        parameters: dict[str, str] | None = None,
        layout: Layout | None = FRONT,
    ) -> Value:
        """A new step whose value has the examples at `layout` (None: there are none in it).

        Raises Refused where it cannot be run.
        """
        if name in self._taken:
            name = f"{name}.{len(self.steps)}"
        step = Step(name, operation, tuple(inputs), options or {}, parameters or {})
        try:
            with torch.no_grad():
                value = step.apply([self._values[j] for j in inputs], self.state)
        except Exception as error:  # torch's complaint about arguments that no Graph can hold
            raise Refused(first_line(error)) from error
        if not value.numel():
            raise Refused("a tensor without entries")
        self._taken.add(name)
        self.steps.append(replace(step, shape=step.shape_of(value)))
        self._values.append(value)
        return with_layout(len(self.steps) - 1, layout)

    def stand_in(self, value: Tensor, layout: Layout | None) -> Value:
        """A step in the place of one that was refused, so that what follows is still looked at."""
        self._stand_ins.add(len(self.steps))
        self.steps.append(Step("", "identity", (0,), shape=tuple(value.shape[1:])))
        self._values.append(value)
        return with_layout(len(self.steps) - 1, layout)

    def constant(self, value: Tensor) -> Fixed:
        """A step that gives this tensor."""
        key = id(value)
        if key not in self._constants:
            found = self.add("constant", "constant", [0], packed(value), layout=None)
            assert isinstance(found, Fixed)
            self._constants[key] = value, found
        return self._constants[key][1]

    def value(self, step: int) -> Tensor:
        """What a step gives for the examples."""
        return self._values[step]

    def in_front(self, source: Arranged) -> Signal:
        """The same value with one row for each example."""
        if source.step not in self._fronts:
            name = f"{self.steps[source.step].name}.batch_first"
            found = self.add(name, "batch_first", [source.step], source.layout.options)
            assert isinstance(found, Signal)
            self._fronts[source.step] = found
        return self._fronts[source.step]

    def arranged(self, source: Signal, layout: Layout) -> Value:
        """The same value with the examples at `layout`."""
        if layout == FRONT:
            return source
        name = f"{self.steps[source.step].name}.batch_at"
        found = self.add(name, "batch_at", [source.step], layout.options, layout=layout)
        self._fronts[found.step] = source
        return found

    def is_whole(self, result: Any) -> bool:
        """Whether `result` is a value that depends on no stand-in."""
        return isinstance(result, (Signal, Arranged, Fixed)) and not self._needed(result.step) & self._stand_ins

    def _needed(self, step: int) -> set[int]:
        """The steps that this one depends on, itself and the input among them."""
        needed, keep = [step], {0}
        while needed:
            i = needed.pop()
            keep.add(i)
            needed.extend(j for j in self.steps[i].inputs if j not in keep)
        return keep

    def graph(self, result: Signal) -> Graph:
        """The steps that `result` depends on, in order."""
        place = {old: new for new, old in enumerate(sorted(self._needed(result.step)))}
        kept = [self.steps[i] for i in place]
        return Graph(tuple(replace(step, inputs=tuple(place[j] for j in step.inputs)) for step in kept))


def with_layout(step: int, layout: Layout | None) -> Value:
    """A step's value as what it means."""
    if layout is None:
        return Fixed(step)
    return Signal(step) if layout == FRONT else Arranged(step, layout)
