"""The arguments of a call as the options of a step that runs its function (fsdtool.network.operations.function)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fsdtool.network.operations.calls import Parameter, Signal
from fsdtool.network.operations.function import BUFFER, MOST_ROLES, PARAMETER
from fsdtool.network.tracing.building import Arranged, Fixed
from fsdtool.network.tracing.comparing import FRONT, Layout, Refused
from fsdtool.network.tracing.meanings import Meanings


class Arguments:
    """The arguments of the call at `index`: what it reads, by step, its parameters by role, the rest as plain values.

    Raises Refused for one that a step cannot hold.
    """

    def __init__(self, meanings: Meanings, index: int):
        self._meanings, self._index, self._event = meanings, index, meanings.runs.first.events[index]
        self._inputs: list[int] = []
        self._examples: tuple[int, int, int] | None = None
        self.roles: dict[str, str] = {}
        self.of_examples = False  # whether examples are in an argument
        a, b, c = self._calls = meanings.runs.at(index)
        if a.keywords.get("out") is not None:
            raise Refused("a result that is written into a tensor given")
        self._positional = self._each(a.arguments, b.arguments, c.arguments)
        self._named = {
            key: False if key == "inplace" else self._encoded(value, b.keywords[key], c.keywords[key])
            for key, value in a.keywords.items()
        }
        if self._examples is None:
            self._examples = self._position(0), 0, 1

    @property
    def inputs(self) -> list[int]:
        """The steps that the function reads; one of them has the examples."""
        return self._inputs

    def options(self, function: str, layout: Layout | None, item: int | None) -> dict[str, Any]:
        """The options of the step that runs `function`, or of that which takes one of its results.

        layout: where the examples are in the result.
        """
        found = {"function": function, "arguments": self._positional, "keywords": self._named}
        if function.endswith((".view", ".reshape")):  # of no examples, -1 could be any number
            found |= {"arguments": (self._positional[0], self._shape()), "keywords": {}}
        result = None if layout is None else (layout.dim, layout.factor)
        return {**found, "examples": self._examples, "result": result} | ({} if item is None else {"item": item})

    def _shape(self) -> tuple[Any, ...]:
        """That of the result."""
        return self._each(*(tuple(event.value.shape) for event in self._calls))

    def _each(self, a: Any, b: Any, c: Any) -> tuple[Any, ...]:
        if len(a) != len(b) or len(a) != len(c):
            raise Refused("as many arguments as there are examples")
        return tuple(self._encoded(*parts) for parts in zip(a, b, c, strict=True))

    def _encoded(self, a: Any, b: Any, c: Any) -> Any:
        if isinstance(a, Tensor):
            return self._tensor(a)
        if isinstance(a, slice):
            return {"slice": self._each(*((part.start, part.stop, part.step) for part in (a, b, c)))}
        if isinstance(a, tuple):
            return {"tuple": self._each(a, b, c)}
        if isinstance(a, list):
            return self._each(a, b, c)
        if isinstance(a, Mapping):
            raise Refused("an argument that is a dict")
        return self._meanings.runs.number(a, b, c)

    def _tensor(self, a: Tensor) -> dict[str, Any]:
        meaning = self._meanings.of(a, self._event)
        if isinstance(meaning, Parameter):
            return self._parameter(meaning)
        if meaning is None:
            meaning = self._meanings.constant(self._index, a)
        self.of_examples |= not isinstance(meaning, Fixed) or meaning.of_examples
        position = self._position(meaning.step)
        if self._examples is None and isinstance(meaning, (Signal, Arranged)):
            layout = meaning.layout if isinstance(meaning, Arranged) else FRONT
            self._examples = position, layout.dim, layout.factor
        return {"input": position}

    def _parameter(self, meaning: Parameter) -> dict[str, Any]:
        kind = BUFFER if meaning.name in self._meanings.buffers else PARAMETER
        role = f"{kind}{len(self.roles)}"
        if len(self.roles) == MOST_ROLES:
            raise Refused(f"a function of more than {MOST_ROLES} parameters")
        self.roles[role] = meaning.name
        stored = tuple(self._meanings.built.state[meaning.name].shape)
        return {"parameter": role} if meaning.shape == stored else {"parameter": role, "shape": meaning.shape}

    def _position(self, step: int) -> int:
        if step not in self._inputs:
            self._inputs.append(step)
        return self._inputs.index(step)
