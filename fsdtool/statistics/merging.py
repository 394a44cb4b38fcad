"""What a pass over the data adds up, so that batches, parts of the data and processes are one and the same addition.

An accumulator begins empty, takes batches (`update`), takes in another one of the same plan that saw other examples
(`merge`), and ends as what the summary keeps (`finalize`).  `state` is all that it has seen, as named float64 arrays;
an empty one of the same plan becomes the same again by `from_state`.  There are two kinds:
    sums               tensors to which batches add; merging adds, and the order of parts matters to rounding alone
    rows of examples   every example writes its own row; a row that comes again is written again, merging copies rows

A batch for which memory runs out comes again in halves.  So around each batch the pass enters `whole_or_nothing` of
every accumulator: when the batch fails on the way, the sums are as they were before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from fsdtool.errors import FsdtoolError

COPIED = 4096  # rows copied at once when parts are merged: few enough for features and records of any width

A = TypeVar("A", bound="Accumulator")
S = TypeVar("S", bound="Sums")
R = TypeVar("R", bound="ExampleRows")

State = dict[str, np.ndarray]


@dataclass(frozen=True)
class BatchView:
    """What the pass knows of a batch once the network has run on it.

    rows: the examples, consecutive rows of the data set.  x (batch, ...): as the data has them.  signal (batch, ...):
    what the graph took as input.  targets (batch,) int64 or (batch, O) float32.  logits (batch, O) float32.
    component (batch,) int64.
    """

    rows: slice
    x: Tensor
    signal: Tensor
    targets: Tensor
    logits: Tensor
    component: Tensor

    @property
    def inputs(self) -> Tensor:
        """The signal as vectors (batch, n)."""
        return self.signal.flatten(1)


class Accumulator(Protocol):
    """Anything that adds up over examples; what its `update` takes of a batch, each class says."""

    def update(self, *seen: Any, **more: Any) -> None:
        """Add the examples of a batch."""

    def merge(self: A, other: A) -> None:
        """Add what another one of the same plan saw, which are other examples."""

    def finalize(self, *needed: Any, **more: Any) -> Any:
        """What the summary keeps of all examples that were added."""

    def state(self) -> State:
        """All that was added, as named float64 arrays."""

    def from_state(self: A, state: Mapping[str, np.ndarray]) -> A:
        """This empty one, after it has taken over a `state`.  Raises FsdtoolError for that of another plan."""


class PassAccumulator(Accumulator, Protocol):
    """One that takes its part of every batch of the pass."""

    def update(self, batch: BatchView) -> None:
        """Add the examples of a batch."""

    def whole_or_nothing(self) -> AbstractContextManager[None]:
        """Around a batch: when it fails on the way, nothing of it stays that would count twice."""


class Sums:
    """Accumulators that are nothing but tensors, changed in place."""

    def tensors(self) -> dict[str, Tensor]:
        """Every sum by its name."""
        raise NotImplementedError

    def merge(self: S, other: S) -> None:
        """Add the sums over other examples."""
        for value, more in zip(self.tensors().values(), other.tensors().values(), strict=True):
            value += more.to(value.device)

    def state(self) -> State:
        """The sums as float64 arrays."""
        return {name: _array(value) for name, value in self.tensors().items()}

    def from_state(self: S, state: Mapping[str, np.ndarray]) -> S:
        """These sums, empty so far, as they were when `state` was asked for; the same object."""
        for name, value in self.tensors().items():
            value.copy_(torch.from_numpy(_checked(state, name, tuple(value.shape))))
        return self


class ExampleRows:
    """Accumulators of which every example has a row of its own.  seen (N,) bool: the rows that are written."""

    def __init__(self, examples: int):
        self.seen = torch.zeros(examples, dtype=torch.bool)

    def arrays(self) -> Mapping[str, Any]:
        """What is written, by name: (N, ...) each, to be read by slices of rows as numpy arrays."""
        raise NotImplementedError

    def write(self, name: str, rows: slice, values: np.ndarray) -> None:
        """Write the rows of one array, which a first write may create."""
        raise NotImplementedError

    def whole_or_nothing(self) -> AbstractContextManager[None]:
        """Nothing to undo: rows of a batch that failed are written again."""
        return nullcontext()

    def merge(self: R, other: R) -> None:
        """Copy the rows of other examples.  Raises FsdtoolError where both have seen the same example."""
        twice = (self.seen & other.seen).nonzero()[:, 0]
        if len(twice):
            raise FsdtoolError(f"{len(twice)} examples are in two parts, row {int(twice[0])} first; add each part once")
        for name, values in other.arrays().items():
            for rows in _runs(other.seen):
                self.write(name, rows, values[rows])
        self.seen |= other.seen

    def state(self) -> State:
        """The numbers of the rows that are written ('rows'), and their values."""
        found = {name: [values[rows] for rows in _runs(self.seen)] for name, values in self.arrays().items()}
        held = {name: np.concatenate(parts).astype(np.float64) for name, parts in found.items() if parts}
        return {"rows": self.seen.nonzero()[:, 0].double().numpy(), **held}

    def from_state(self: R, state: Mapping[str, np.ndarray]) -> R:
        """These rows, empty so far, as they were when `state` was asked for; the same object."""
        self.seen[torch.from_numpy(_checked(state, "rows")).long()] = True
        for name, values in state.items():
            start = 0
            for rows in _runs(self.seen) if name != "rows" else ():
                stop = start + rows.stop - rows.start
                self.write(name, rows, values[start:stop])
                start = stop
        return self


class RowTensors(ExampleRows):
    """Values of each example in tensors on the CPU."""

    def __init__(self, examples: int, like: Mapping[str, Tensor]):
        """like: by name a tensor (any number, ...) of the shape and dtype that an example has."""
        super().__init__(examples)
        self.values = {name: value.new_zeros(examples, *value.shape[1:]) for name, value in like.items()}

    def put(self, rows: slice, **values: Tensor) -> None:
        """The values (batch, ...) of some examples, by name."""
        for name, value in values.items():
            self.values[name][rows] = value.detach().to("cpu", self.values[name].dtype)
        self.seen[rows] = True

    def arrays(self) -> Mapping[str, Any]:
        """The tensors as numpy arrays."""
        return {name: value.numpy() for name, value in self.values.items()}

    def write(self, name: str, rows: slice, values: np.ndarray) -> None:
        """Values (rows, ...) of some examples."""
        self.values[name][rows] = torch.from_numpy(np.asarray(values)).to(self.values[name].dtype)


def joined(parts: Mapping[str, Mapping[str, np.ndarray]]) -> State:
    """The states of several accumulators as one: 'part/name'."""
    return {f"{part}/{name}": value for part, state in parts.items() for name, value in state.items()}


def part_of(state: Mapping[str, np.ndarray], part: str) -> State:
    """The state of one of the accumulators that were `joined`."""
    return {name.removeprefix(f"{part}/"): value for name, value in state.items() if name.startswith(f"{part}/")}


def _runs(seen: Tensor) -> Iterator[slice]:
    """The rows that are true, in order, as slices of consecutive rows, at most COPIED each."""
    edges = torch.diff(seen.int(), prepend=torch.zeros(1).int(), append=torch.zeros(1).int())
    for first, last in zip((edges == 1).nonzero()[:, 0].tolist(), (edges == -1).nonzero()[:, 0].tolist(), strict=True):
        for start in range(first, last, COPIED):
            yield slice(start, min(start + COPIED, last))


def _array(value: Tensor) -> np.ndarray:
    return value.detach().to("cpu", torch.float64, copy=True).numpy()


def _checked(state: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
    found = state.get(name)
    if found is None or (shape is not None and found.shape != shape):
        what = "lacks it" if found is None else f"has the shape {found.shape}"
        wanted = "" if shape is None else f" of shape {shape}"
        raise FsdtoolError(f"a part of another plan: '{name}'{wanted} is needed, and it {what}; make it by this plan")
    return found
