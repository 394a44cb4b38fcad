"""From the recordings of a model to the steps of a Graph.

Each call is read by its operation (fsdtool.network.operations); where there is none, or it refuses, as the function of
torch that was called, run as it is.  What is refused is listed with its path, and the reading goes on behind a step
that stands in, so that all refusals are known at once.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import zip_longest
from typing import Any

from torch import Tensor, nn

from fsdtool.network import functions
from fsdtool.network.operations.base import Operation, reader
from fsdtool.network.operations.calls import Signal
from fsdtool.network.tracing.arguments import Arguments
from fsdtool.network.tracing.building import Arranged, Fixed
from fsdtool.network.tracing.comparing import FRONT, Refused, first_line
from fsdtool.network.tracing.event_call import EventCall, target_of
from fsdtool.network.tracing.meanings import OVERWRITES, Meanings, Unknown, changed, layout_of, name_of
from fsdtool.network.tracing.recording import Event, tensors

DECISIONS = {f"Tensor.{name}" for name in ("__bool__", "__int__", "__float__", "__index__", "item", "tolist", "numpy")}


class Reader:
    """Reads what `model` (eval mode) does with the examples x (n, ...), see fsdtool.network.tracing.comparing.

    After `read()`, `unsupported` lists what was refused; if nothing, `built.graph(result)` is the network.  `doubts`
    are calls that were run as they are though their operation refused them, `decisions` where the model looked at
    values.
    """

    def __init__(self, model: nn.Module, x: Tensor):
        self.unsupported: list[str] = []
        self.doubts: list[str] = []
        self.decisions: list[str] = []
        self.meanings = Meanings(model, x)
        self.built, self.runs = self.meanings.built, self.meanings.runs

    def read(self) -> Any:
        """Read every call.  Returns what the tensor that the model returned means, None where nothing is known."""
        index, events = 0, self.runs.first.events
        while index < len(events):
            event = events[index]
            if event.module is not None:
                index += event.inside if self._read_module(index, event) else 0
            else:
                try:
                    if event.spelling in DECISIONS:
                        self._note_decision(event)
                    elif event.spelling == OVERWRITES or any(True for _ in tensors(event.value)):
                        self._read_function(index, event)
                except Refused as refused:
                    self._refuse(index, event, str(refused))
            index += 1
        return self.meanings.result

    def _note_decision(self, event: Event) -> None:
        meanings = self.meanings.of_arguments(event)
        by_data = (Signal, Arranged, Unknown)
        if any(isinstance(m, by_data) or (isinstance(m, Fixed) and m.of_examples) for m in meanings):
            self.decisions.append(f"{event.path or 'forward'}: {event.spelling.partition('.')[2].strip('_')}")

    def _read_module(self, index: int, event: Event) -> bool:
        """Whether the module is an operation, of which nothing inside is to be read."""
        operation = reader(event.target)
        if operation is None:
            return False
        try:
            return self._read_operation(index, event, operation)
        except Refused:
            return False  # what it calls will say more

    def _read_function(self, index: int, event: Event) -> None:
        meanings = self.meanings.of_arguments(event)
        if event.spelling != OVERWRITES:
            self.meanings.refuse_overwriting(event)
        if all(meaning is None for meaning in meanings) and not self.runs.counted(index):
            return  # a constant
        if any(isinstance(meaning, Unknown) for meaning in meanings):
            self._stand_in(index, event)
            return
        if self.meanings.settle_view(event, meanings):
            return
        operation, why = reader(target_of(event)), ""
        if operation is not None:
            self.runs.refuse_data(index)
            try:
                if self._read_operation(index, event, operation):
                    return
            except Refused as refused:
                why = str(refused)
                self.doubts += [_said(event, why)] if why else []
        self._run_as_it_is(index, event, why)

    def _read_operation(self, index: int, event: Event, operation: type[Operation]) -> bool:
        """Read a call by its operation; False where that has no such call."""
        call = EventCall(self.meanings, index)
        layout = call.layout
        if layout != FRONT and operation.entrywise:
            call.put_in_front()
        if not call.signals or (operation.first_is_signal and call.first is None):
            return False
        try:
            found = operation.read(call)
        except (TypeError, AttributeError, LookupError, ValueError) as error:  # arguments that it does not expect
            raise Refused(first_line(error)) from error
        if found is None:
            raise Refused(call.refused)
        values = list(found) if isinstance(found, (list, tuple)) else [found]
        for tensor, meaning in zip(tensors(event.value), values, strict=False):
            moved = layout != FRONT and operation.entrywise and isinstance(meaning, Signal)
            self.meanings.settle(event, tensor, self.built.arranged(meaning, layout) if moved else meaning)
        return True

    def _run_as_it_is(self, index: int, event: Event, why: str) -> None:
        """Read a call as its function; `why` its operation refused it."""
        spelt, overwrites = event.spelling, event.spelling == OVERWRITES
        if spelt.endswith("_") and not spelt.endswith("__"):  # in place
            spelt = spelt[:-1]
        if not functions.is_known(spelt):
            raise Refused(why)
        arguments = Arguments(self.meanings, index)
        given = layout_of(self.meanings.of(event.arguments[0], event)) if event.arguments else None
        layouts = [given] if overwrites else self.runs.layouts(index)
        if given is not None:
            self.runs.refuse_fixed_rows(index, given)
        for item, (tensor, layout) in enumerate(zip(tensors(changed(event)), layouts, strict=True)):
            options = arguments.options(spelt, layout, item if isinstance(event.value, (tuple, list)) else None)
            name = name_of(event)
            step = self.built.add(name, "function", arguments.inputs, options, arguments.roles, layout)
            if isinstance(step, Fixed):
                step = replace(step, of_examples=arguments.of_examples)
            self.meanings.settle(event, tensor, step)

    def _refuse(self, index: int, event: Event, why: str) -> None:
        """List a call, and let what came out stand for itself."""
        said = _said(event, why)
        if said not in self.unsupported:
            self.unsupported.append(said)
        self._stand_in(index, event)

    def _stand_in(self, index: int, event: Event) -> None:
        """Let what came out stand for itself where the examples are in it; else it is unknown."""
        try:
            layouts = self.runs.layouts(index)
        except Refused:
            layouts = []
        for tensor, layout in zip_longest(list(tensors(changed(event))), layouts):
            if tensor is not None:
                self.meanings.stand_in(event, tensor, layout)


def _said(event: Event, why: str) -> str:
    """A call and what is wrong with it: `encoder.0: sort (an operation across the batch)`."""
    name = event.spelling.rpartition(".")[2].strip("_")
    return f"{event.path or 'forward'}: {name}" + (f" ({why})" if why and why != name else "")
