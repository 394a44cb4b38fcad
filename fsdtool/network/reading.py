"""From the recordings of a model to the steps of a Graph.

Each call is read by its operation (fsdtool.network.operations); where there is none, or it refuses, as the function of
torch that was called, run as it is.  What is refused is listed with its path, and the reading goes on behind a step
that stands in, so that all refusals are known at once.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from fsdtool.model.factory import canonical_names
from fsdtool.network import functions
from fsdtool.network.arguments import Arguments
from fsdtool.network.building import Arranged, Builder, Fixed
from fsdtool.network.comparing import FRONT, Layout, Refused, Runs, first_line
from fsdtool.network.event_call import EventCall, target_of
from fsdtool.network.operations.base import Operation, reader
from fsdtool.network.operations.calls import Parameter, Parts, Signal
from fsdtool.network.recording import Event, tensors

CLOSE = 1e-3  # of the largest value: between a step and the call that it was read from
OVERWRITES = "Tensor.__setitem__"
DECISIONS = {f"Tensor.{name}" for name in ("__bool__", "__int__", "__float__", "__index__", "item", "tolist", "numpy")}


class Unknown:
    """The meaning of what came out of a call that was refused."""


class Reader:
    """Reads what `model` (eval mode) does with the examples x (n, ...), see fsdtool.network.comparing.

    After `read()`, `unsupported` lists what was refused; if nothing, `built.graph(result)` is the network.  `doubts`
    are calls that were run as they are though their operation refused them, `decisions` where the model looked at
    values.
    """

    def __init__(self, model: nn.Module, x: Tensor):
        self.unsupported: list[str] = []
        self.doubts: list[str] = []
        self.decisions: list[str] = []
        self.runs = Runs(model, x)
        self.built = Builder(x, model.state_dict())
        names = canonical_names(model)
        stored = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
        self._stored = {id(value): names[name] for name, value in stored if name in names}
        self.buffers = {names[name] for name, _ in model.named_buffers(remove_duplicate=False) if name in names}
        first = self.runs.first.x
        self._meanings: dict[int, tuple[Any, int]] = {id(first): (Signal(0), 0)}  # and the tensor's version then

    def read(self) -> Any:
        """Read every call.  Returns what the tensor that the model returned means, None where nothing is known."""
        index, events = 0, self.runs.first.events
        while index < len(events):
            event = events[index]
            if event.module is not None:
                index += event.inside if self._read_module(event) else 0
            elif event.spelling in DECISIONS:
                self._note_decision(event)
            elif event.spelling == OVERWRITES or any(True for _ in tensors(event.value)):
                try:
                    self._read_function(index, event)
                except Refused as refused:
                    self._refuse(index, event, str(refused))
            index += 1
        return self._meanings.get(id(self.runs.first.value), (None, 0))[0]

    def _note_decision(self, event: Event) -> None:
        meanings = self._meanings_of(event)
        if any(isinstance(m, (Signal, Arranged)) or (isinstance(m, Fixed) and m.of_examples) for m in meanings):
            self.decisions.append(f"{event.path or 'forward'}: {event.spelling.partition('.')[2].strip('_')}")

    def meaning(self, tensor: Tensor, event: Event) -> Any:
        """What a tensor means as an argument of a call, None for a constant.

        Raises Refused for one that was written to since under another name.
        """
        if id(tensor) in self._meanings:
            meaning, version = self._meanings[id(tensor)]
            if event.versions.get(id(tensor), version) != version:
                raise Refused("an in-place operation on a signal that is used elsewhere")
            return meaning
        if id(tensor) in self._stored:
            return Parameter(self._stored[id(tensor)], tuple(tensor.shape))
        return None

    def _meanings_of(self, event: Event) -> list[Any]:
        """What the tensors among the arguments mean."""
        return [self.meaning(tensor, event) for tensor in tensors((event.arguments, event.keywords))]

    def _read_module(self, event: Event) -> bool:
        """Whether the module is an operation, of which nothing inside is to be read."""
        operation = reader(event.target)
        if operation is None:
            return False
        try:
            return self._read_operation(event, operation)
        except Refused:
            return False  # what it calls will say more

    def _read_function(self, index: int, event: Event) -> None:
        meanings = self._meanings_of(event)
        if all(meaning is None for meaning in meanings) and not self.runs.counted(index):
            return  # a constant
        if any(isinstance(meaning, Unknown) for meaning in meanings):
            self._stand_in(index, event)
            return
        if self._is_view(event, meanings):
            return
        operation, why = reader(target_of(event)), ""
        if operation is not None:
            try:
                if self._read_operation(event, operation):
                    return
            except Refused as refused:
                why = str(refused)
                self.doubts += [_said(event, why)] if why else []
        self._run_as_it_is(index, event, why)

    def _read_operation(self, event: Event, operation: type[Operation]) -> bool:
        """Read a call by its operation; False where that has no such call."""
        call = EventCall(self, event)
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
        if isinstance(found, Parts):
            found = [call.add("slice", found.source, options=options) for options in found.slices]
        values = list(found) if isinstance(found, (list, tuple)) else [found]
        for tensor, meaning in zip(tensors(event.value), values, strict=False):
            moved = layout != FRONT and operation.entrywise and isinstance(meaning, Signal)
            self._settle(event, tensor, self.built.arranged(meaning, layout) if moved else meaning)
        return True

    def _run_as_it_is(self, index: int, event: Event, why: str) -> None:
        """Read a call as its function; `why` its operation refused it."""
        spelt, overwrites = event.spelling, event.spelling == OVERWRITES
        if spelt.endswith("_") and not spelt.endswith("__"):  # in place
            spelt = spelt[:-1]
        if not functions.is_known(spelt):
            raise Refused(why)
        arguments = Arguments(self, index)
        layouts = [self._layout(event)] if overwrites else self.runs.layouts(index)
        for item, (tensor, layout) in enumerate(zip(tensors(_changed(event)), layouts, strict=True)):
            options = arguments.options(spelt, layout, item if isinstance(event.value, (tuple, list)) else None)
            name = name_of(event)
            step = self.built.add(name, "function", arguments.inputs, options, arguments.roles, layout)
            if isinstance(step, Fixed):
                step = replace(step, of_examples=arguments.of_examples)
            self._settle(event, tensor, step)

    def _layout(self, event: Event) -> Layout | None:
        """Where the first argument has the examples."""
        return layout_of(self.meaning(event.arguments[0], event))

    def _is_view(self, event: Event, meanings: list[Any]) -> bool:
        """Whether what came out is a parameter in another shape."""
        value, found = event.value, [meaning for meaning in meanings if meaning is not None]
        if len(found) != 1 or not isinstance(found[0], Parameter) or not isinstance(value, Tensor):
            return False
        stored = self.built.state[found[0].name]
        same_place = value.data_ptr() == stored.data_ptr() and value.numel() == stored.numel()
        whole = same_place and value.is_contiguous() and stored.is_contiguous() and value.dtype == stored.dtype
        if whole:
            self._meanings[id(value)] = Parameter(found[0].name, tuple(value.shape)), event.after[id(value)]
        return whole

    def _settle(self, event: Event, tensor: Tensor, meaning: Any) -> None:
        """From now on the tensor means this.  Raises Refused where the step gives other values than the call did."""
        version = event.after[id(tensor)]
        if tensor._version == version and not _close(self.built.value(meaning.step), tensor):
            raise Refused("gives other values when it is run again")
        self._meanings[id(tensor)] = meaning, version

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
        for tensor, layout in zip_longest(list(tensors(_changed(event))), layouts):
            if tensor is not None:
                meaning = Unknown() if layout is None else self.built.stand_in(tensor, layout)
                self._meanings[id(tensor)] = meaning, event.after[id(tensor)]


def _said(event: Event, why: str) -> str:
    """A call and what is wrong with it: `encoder.0: sort (an operation across the batch)`."""
    name = event.spelling.rpartition(".")[2].strip("_")
    return f"{event.path or 'forward'}: {name}" + (f" ({why})" if why and why != name else "")


def _changed(event: Event) -> Any:
    """What a call made, or wrote to."""
    return event.arguments[:1] if event.spelling == OVERWRITES else event.value


def name_of(event: Event) -> str:
    """The module's path, or that of the module it is called in and the function's name."""
    if event.module is not None:
        return event.path or "forward"
    name = event.spelling.partition(".")[2].strip("_")
    return f"{event.path}.{name}" if event.path else name


def layout_of(meaning: Any) -> Layout | None:
    """Where what this means has the examples."""
    if isinstance(meaning, Arranged):
        return meaning.layout
    return FRONT if isinstance(meaning, Signal) else None


def _close(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    found, expected = found.double(), expected.double()
    finite = expected[torch.isfinite(expected)].abs()
    scale = float(finite.max()) if finite.numel() else 1.0
    return torch.allclose(found, expected, rtol=CLOSE, atol=CLOSE * scale, equal_nan=True)
