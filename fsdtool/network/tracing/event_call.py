"""A recorded call as the operations read it (fsdtool.network.operations.calls)."""

from __future__ import annotations

import operator
from typing import Any

from torch import Tensor

from fsdtool.network.operations.calls import Call, Computed, Parameter, Signal
from fsdtool.network.tracing.building import Arranged, Fixed
from fsdtool.network.tracing.comparing import FRONT, Layout, Refused
from fsdtool.network.tracing.meanings import Meanings, name_of
from fsdtool.network.tracing.recording import Event, tensors

_OPERATORS = {"Tensor.__getitem__": operator.getitem, "Tensor.__rsub__": operator.sub}


def target_of(event: Event) -> Any:
    """What operations know a function by: itself, or the name of a tensor's method."""
    if event.spelling in _OPERATORS:
        return _OPERATORS[event.spelling]
    place, _, name = event.spelling.partition(".")
    return name if place == "Tensor" else event.target


class EventCall(Call):
    """The call at `index`, with what the tensors in it mean.

    refused: why the operation did not take it.  Raises Refused for an argument that means nothing.
    """

    def __init__(self, meanings: Meanings, index: int):
        self._meanings, self._index = meanings, index
        self._event = event = meanings.runs.first.events[index]
        self.refused = ""
        self.module, self.value = event.module, event.value
        self.target = event.target if event.module is not None else target_of(event)
        arguments = self._meant(event.arguments)
        self.arguments = arguments[::-1] if event.spelling == "Tensor.__rsub__" else arguments
        self.keywords = {key: self._meant(value) for key, value in event.keywords.items()}
        self.before = next(tensors((event.arguments, event.keywords)), None)

    def _meant(self, argument: Any) -> Any:
        if isinstance(argument, Tensor):
            meaning = self._meanings.of(argument, self._event)
            return meaning if isinstance(meaning, (Signal, Parameter, Arranged)) else Computed(argument)
        if isinstance(argument, (tuple, list)):
            return type(argument)(map(self._meant, argument)) if type(argument) in (tuple, list) else tuple(argument)
        return argument

    @property
    def layout(self) -> Layout:
        """Where the first argument has the examples."""
        first = self.arguments[0] if self.arguments else self.keywords.get("input")
        return first.layout if isinstance(first, Arranged) else FRONT

    @property
    def signals(self) -> bool:
        """Whether an argument is a signal with one row for each example, and none is one without."""
        found = list(_flat((self.arguments, self.keywords)))
        return any(isinstance(part, Signal) for part in found) and not any(isinstance(part, Arranged) for part in found)

    def put_in_front(self) -> None:
        """Let every signal have one row for each example."""
        self.arguments = self._in_front(self.arguments)
        self.keywords = {key: self._in_front(value) for key, value in self.keywords.items()}

    def _in_front(self, argument: Any) -> Any:
        if isinstance(argument, tuple):
            return tuple(map(self._in_front, argument))
        return self._meanings.built.in_front(argument) if isinstance(argument, Arranged) else argument

    def add(
        self,
        operation: str,
        *sources: Signal,
        options: dict[str, Any] | None = None,
        parameters: dict[str, str] | None = None,
    ) -> Signal:
        inputs = [source.step for source in sources]
        found = self._meanings.built.add(name_of(self._event), operation, inputs, options, parameters)
        assert isinstance(found, Signal)
        return found

    def fixed(self, argument: Computed) -> Signal:
        meaning = self._meanings.of(argument.tensor, self._event)
        if meaning is None:
            meaning = self._meanings.constant(self._index, argument.tensor)
        if not isinstance(meaning, Fixed):
            raise Refused("a tensor of which nothing is known")
        return Signal(meaning.step)

    def refuse(self, what: str | None = None) -> None:
        self.refused = what or self.name

    def other(self) -> Any:
        self.refused = self.name

    def shape(self, source: Signal) -> tuple[int, ...]:
        return self._meanings.built.steps[source.step].shape

    def stored_shape(self, parameter: Parameter) -> tuple[int, ...]:
        return tuple(self._meanings.built.state[parameter.name].shape)

    def roles(self, *roles: str) -> dict[str, str]:
        found = {role: getattr(self.module, role) for role in roles if getattr(self.module, role) is not None}
        meant = {role: self._meanings.of(value, self._event) for role, value in found.items()}
        computed = [role for role, meaning in meant.items() if not isinstance(meaning, Parameter)]
        if computed:
            raise Refused(f"{computed[0]} that is computed, not stored")
        return {role: meaning.name for role, meaning in meant.items()}


def _flat(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from _flat(part)
    elif isinstance(value, dict):
        yield from _flat(tuple(value.values()))
    else:
        yield value
