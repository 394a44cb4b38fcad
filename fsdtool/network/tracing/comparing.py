"""Three runs of a model side by side: what counts examples, where they are in a tensor, and what the data decide.

The first run is on n examples, the second on fewer, the third on n of which the first is another.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fsdtool.network.tracing.recording import Event, Recording, record, tensors

FEWER = 2
FROM_EXAMPLES = "a number that is computed from the examples"
MOST_ROWS = 2**31  # no slice ends behind it but one of all that there are
NUMBERS = (bool, int, float, str, type(None))


class Untraceable(Exception):
    """The model does something that no Graph can hold; `reasons` lists each."""

    def __init__(self, reasons: list[str]):
        super().__init__("; ".join(reasons))
        self.reasons = reasons


class Refused(Exception):
    """A call has no place in a network; the message says why."""


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


@dataclass(frozen=True)
class Layout:
    """Where a tensor has the examples: dimension `dim` has `factor` entries of each, see network.operations.layout."""

    dim: int
    factor: int
    outer: bool

    @property
    def options(self) -> dict[str, Any]:
        """As an operation takes it."""
        return {"dim": self.dim, "factor": self.factor, "outer": self.outer}


FRONT = Layout(0, 1, True)


class Runs:
    """The recordings of `model` (eval mode) on the examples x (n, ...), n of at least 3.

    Raises Untraceable where the model fails on them, or calls other functions for others of them.
    """

    def __init__(self, model: nn.Module, x: Tensor):
        self.examples = len(x)
        self.first, fewer, changed = (_record(model, part) for part in (x, x[:FEWER], another(x)))
        for a, b, c in zip(self.first.events, fewer.events, changed.events, strict=False):
            if not (a.spelling == b.spelling == c.spelling and a.inside == b.inside == c.inside):
                raise Untraceable([f"{a.path or 'forward'}: what it calls depends on the examples"])
        if not len(self.first.events) == len(fewer.events) == len(changed.events):
            raise Untraceable(["forward: what it calls depends on the examples"])
        self._fewer, self._changed = fewer, changed

    def at(self, index: int) -> tuple[Event, Event, Event]:
        """One call in each run."""
        return self.first.events[index], self._fewer.events[index], self._changed.events[index]

    def counted(self, index: int) -> bool:
        """Whether the number of examples is in the shape of what came out of a call."""
        first, fewer, _ = (list(tensors(event.value)) for event in self.at(index))
        return len(first) != len(fewer) or any(a.shape != b.shape for a, b in zip(first, fewer, strict=True))

    def layouts(self, index: int) -> list[Layout | None]:
        """Where each tensor that came out of a call has the examples, None where none is in it."""
        a, b, c = (list(tensors(event.value)) for event in self.at(index))
        if not len(a) == len(b) == len(c):
            raise Refused("as many results as there are examples")
        return [self.layout(*triple) for triple in zip(a, b, c, strict=True)]

    def layout(self, a: Tensor, b: Tensor, c: Tensor) -> Layout | None:
        """Where the examples are in a tensor of the three runs.  Raises Refused where they are mixed."""
        dims = [dim for dim in range(a.dim()) if a.dim() == b.dim() and a.shape[dim] != b.shape[dim]]
        if not dims:
            if a.shape == b.shape and same(a, b) and same(a, c):
                return None
            raise Refused("an operation across the batch")
        dim = dims[0]
        factor = a.shape[dim] // self.examples
        if len(dims) > 1 or (a.shape[dim], b.shape[dim]) != (factor * self.examples, factor * FEWER) or not factor:
            raise Refused("an operation across the batch")
        if factor == 1:
            return Layout(dim, 1, True)
        other = (a != c).movedim(dim, 0).flatten(1).any(1) if a.dim() > 1 else a != c
        outer = other.unflatten(0, (self.examples, factor))[1:].any()
        return Layout(dim, factor, not outer)

    def refuse_data(self, index: int) -> None:
        """Raise Refused where the data decide a plain argument of a call."""
        first, _, changed = self.at(index)
        if list(_plain((first.arguments, first.keywords))) != list(_plain((changed.arguments, changed.keywords))):
            raise Refused(FROM_EXAMPLES)

    def refuse_fixed_rows(self, index: int, layout: Layout) -> None:
        """Raise Refused where a slice or split of a tensor at `layout` is of a fixed number of examples.

        It is all of the few, as of a model that takes them 64 at a time, and not of more.
        """
        first, fewer, _ = (_rows(event, layout.dim) for event in self.at(index))
        if first is not None and first == fewer and first <= MOST_ROWS:
            raise Refused("a fixed number of examples")

    def number(self, a: Any, b: Any, c: Any) -> Any:
        """What a plain argument is in the options of a step.  Raises Refused where the data decide it."""
        if isinstance(a, np.generic):
            a, b, c = (part.item() if isinstance(part, np.generic) else part for part in (a, b, c))
        if isinstance(a, NUMBERS) and a == b == c and type(a) is type(b):
            return a
        if (
            isinstance(a, int)
            and isinstance(b, int)
            and a == c
            and (a / self.examples == b / FEWER == a // self.examples)
        ):
            return {"batch": a // self.examples}
        if a is ... and b is ...:
            return {"ellipsis": True}
        if isinstance(a, torch.dtype) and a == b:
            return {"dtype": str(a).removeprefix("torch.")}
        if isinstance(a, torch.device):
            return {"device": True}
        if isinstance(a, torch.memory_format) and a == b:
            return {"memory_format": str(a).removeprefix("torch.")}
        if isinstance(a, NUMBERS):
            raise Refused(FROM_EXAMPLES)
        raise Refused(f"an argument of the type {type(a).__name__}")


def _rows(event: Event, dim: int) -> int | None:
    """Where a slice along `dim` ends, or how long the parts of a split are; None for what is none."""
    given = event.arguments[1:]
    if event.spelling == "Tensor.__getitem__":
        entries = given[0] if isinstance(given[0], tuple) else given
        before = itertools.takewhile(lambda entry: entry is not ..., (entry for entry in entries if entry is not None))
        entry = next(itertools.islice(before, dim, None), None)
        rows = entry.stop if isinstance(entry, slice) else None
    elif event.spelling.endswith(".split"):
        along = event.keywords.get("dim", given[1] if len(given) > 1 else 0)
        rows = given[0] if given and along == dim else None
    else:
        rows = None
    return rows if isinstance(rows, int) and rows >= 0 else None


def _plain(value: Any) -> Iterator[Any]:
    """The plain values among arguments, in order."""
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from _plain(part)
    elif isinstance(value, dict):
        yield from _plain(tuple(value.values()))
    elif isinstance(value, slice):
        yield from _plain((value.start, value.stop, value.step))
    elif isinstance(value, NUMBERS):
        yield value


def _record(model: nn.Module, x: Tensor) -> Recording:
    try:
        return record(model, x)
    except Exception as error:  # the user's code on the example
        raise Untraceable([f"it fails on {len(x)} examples: {first_line(error)}"]) from error


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same, NaN included; not if torch cannot compare them (those inside its vmap)."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    try:
        return torch.equal(a, b) or torch.allclose(a.double(), b.double(), rtol=0, atol=0, equal_nan=True)
    except RuntimeError:
        return False


def another(x: Tensor) -> Tensor:
    """The examples x (n, ...) with another in the first place: not equal to it in any entry, if they are numbers.

    No entry is larger than the largest of its place, which may be the last of a table.
    """
    changed = x.clone()
    if x.dtype == torch.bool:
        changed[0] = ~x[0]
    elif x.is_floating_point():
        changed[0] = x[0] * 0.5 + x.std(0, correction=0).clamp(min=0.1)
    else:
        changed[0] = torch.where(x[0] == x.max(), x.min(), x[0] + 1)
    return changed
