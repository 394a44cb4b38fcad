"""What an input model answers: the interface, and the registry that finds a model by its name.

An input model knows what inputs of each component look like, well enough to draw others of the kind: numbers from a
Gaussian, or, as a model of token ids might, sequences from a chain.  A new model is a module of this package with a
subclass of `InputModel`; a summary holds its name, and finds the class by it.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from fsdtool.util.discovery import classes_of


@dataclass(frozen=True)
class Stored:
    """One array of a model as the summary file holds it, in the dtype of `values`."""

    values: Tensor
    description: str
    units: str = ""


class StoredArrays(Protocol):
    """The arrays of a model in a summary file."""

    def has(self, name: str) -> bool:
        """Whether there is an array of this name."""

    def tensor(self, name: str, shape: tuple[int | None, ...]) -> Tensor:
        """The array as float32.  Raises FsdtoolError where it is missing or of another shape (None: any length)."""


class InputModel(ABC):
    """The inputs of K components; `name` is in the summary file."""

    name: ClassVar[str]

    @abstractmethod
    def sample(self, k: int, count: int, generator: torch.Generator) -> Tensor:
        """`count` inputs (count, n) drawn for component k, each flattened; all draws come from the generator."""

    @abstractmethod
    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> InputModel:
        """The same model on a device, its floating numbers of a dtype (None: as they are)."""

    @abstractmethod
    def stored(self) -> dict[str, Stored]:
        """What the summary file keeps of the model, by name."""

    @classmethod
    @abstractmethod
    def read(cls, arrays: StoredArrays, components: int, n: int) -> InputModel:
        """The model of so many components and n input dimensions that `stored` has written."""


@functools.cache
def input_models() -> dict[str, type[InputModel]]:
    """Every model by its name."""
    return classes_of(f"{__package__}", InputModel)  # type: ignore[type-abstract]  # looks for classes below it
