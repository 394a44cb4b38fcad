"""What each tensor of a recorded run means: a signal, a parameter, a constant, or nothing that is known.

A tensor is known by its identity and its version, which counts in-place writes: one that was written to under another
name (a view of it) means nothing that a step could say.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fsdtool.model.factory import canonical_names
from fsdtool.network.operations.calls import Parameter, Signal
from fsdtool.network.operations.function import LARGEST_CONSTANT
from fsdtool.network.tracing.building import Arranged, Builder, Fixed
from fsdtool.network.tracing.comparing import FRONT, Layout, Refused, Runs, same
from fsdtool.network.tracing.recording import Event, tensors

CLOSE = 1e-3  # of the largest value: between a step and the call that it was read from
OVERWRITES = "Tensor.__setitem__"
WITHOUT_GRADIENT = ("Tensor.detach", "torch.detach", "Tensor.data")


class Unknown:
    """The meaning of what came out of a call that was refused."""


class Meanings:
    """The tensors of `model` (eval mode) run on the examples x (n, ...), and the steps that they are, `built`.

    buffers: names of what is stored and not trained.
    """

    def __init__(self, model: nn.Module, x: Tensor):
        self.runs = Runs(model, x)
        self.built = Builder(x, model.state_dict())
        names = canonical_names(model)
        stored = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
        # A summary knows no dtypes of what is stored: tables of indices and flags are constants.
        stored = tuple((name, value) for name, value in stored if value.is_floating_point())
        self._stored = {id(value): names[name] for name, value in stored if name in names}
        self.buffers = {names[name] for name, _ in model.named_buffers(remove_duplicate=False) if name in names}
        self._places: dict[int, list[int]] = {}  # of a place in memory, the ids of what is stored there
        for _, value in stored:
            if id(value) in self._stored and value.layout == torch.strided:
                self._places.setdefault(value.untyped_storage().data_ptr(), []).append(id(value))
        self._known: dict[int, tuple[Any, int]] = {id(self.runs.first.x): (Signal(0), 0)}  # with the version then

    @property
    def result(self) -> Any:
        """What the tensor that the model returned means, None where nothing is known."""
        return self._known.get(id(self.runs.first.value), (None, 0))[0]

    def of(self, tensor: Tensor, event: Event) -> Any:
        """What a tensor means as an argument of a call, None for a constant.

        Raises Refused for one that was written to since under another name.
        """
        if id(tensor) in self._known:
            meaning, version = self._known[id(tensor)]
            if event.versions.get(id(tensor), version) != version:
                raise Refused("an in-place operation on a signal that is used elsewhere")
            return meaning
        if id(tensor) in self._stored:
            return Parameter(self._stored[id(tensor)], tuple(tensor.shape))
        return None

    def of_arguments(self, event: Event) -> list[Any]:
        """What the tensors among the arguments of a call mean."""
        return [self.of(tensor, event) for tensor in tensors((event.arguments, event.keywords))]

    def constant(self, index: int, tensor: Tensor) -> Fixed:
        """The step that gives a tensor among the arguments of the call at `index`, of which nothing is known.

        Raises Refused where it is another in other runs, or too large to keep.
        """
        first, *others = (list(tensors((event.arguments, event.keywords))) for event in self.runs.at(index))
        place = next(i for i, other in enumerate(first) if other is tensor)
        if not all(place < len(other) and same(tensor, other[place]) for other in others):
            raise Refused("a tensor that is computed where no call of torch is seen")
        if tensor.numel() > LARGEST_CONSTANT:
            raise Refused(f"a constant of {tensor.numel():,} numbers")
        try:
            return self.built.constant(tensor)
        except (TypeError, RuntimeError) as error:  # of a dtype or layout that numpy does not have
            raise Refused(f"a constant of the type {tensor.dtype}, {tensor.layout}") from error

    def settle(self, event: Event, tensor: Tensor, meaning: Any) -> None:
        """After a call the tensor means this.  Raises Refused where its step gives other values than the call did."""
        version = event.after[id(tensor)]
        if tensor._version == version and not _close(self.built.value(meaning.step), tensor):
            raise Refused("gives other values when it is run again")
        self._known[id(tensor)] = meaning, version

    def refuse_overwriting(self, event: Event) -> None:
        """Raise Refused where a call writes to what is stored, which then means nothing."""
        first = next(tensors(event.arguments[:1]), None)
        if first is None or event.after[id(first)] == event.versions[id(first)] or first.layout != torch.strided:
            return
        written = self._places.get(first.untyped_storage().data_ptr(), [])
        for key in written:
            self._known[key] = Unknown(), event.after[id(first)]
        if written:
            raise Refused("a weight or buffer that the model overwrites")

    def settle_view(self, event: Event, meanings: list[Any]) -> bool:
        """Whether what came out of a call is a parameter in another shape, which it then means."""
        value, found = event.value, [meaning for meaning in meanings if meaning is not None]
        if len(found) != 1 or not isinstance(found[0], Parameter) or not isinstance(value, Tensor):
            return False
        if event.spelling in WITHOUT_GRADIENT:
            return False
        stored = self.built.state[found[0].name]
        same_place = value.data_ptr() == stored.data_ptr() and value.numel() == stored.numel()
        whole = same_place and value.is_contiguous() and stored.is_contiguous() and value.dtype == stored.dtype
        if whole:
            self._known[id(value)] = Parameter(found[0].name, tuple(value.shape)), event.after[id(value)]
        return whole

    def stand_in(self, event: Event, tensor: Tensor, layout: Layout | None) -> None:
        """A tensor stands for itself where the examples are in it; else it is unknown."""
        meaning = Unknown() if layout is None else self.built.stand_in(tensor, layout)
        self._known[id(tensor)] = meaning, event.after[id(tensor)]


def changed(event: Event) -> Any:
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
