"""What a format of the matrix of all influences does, and how a format is found by its suffix.

Nothing here imports h5py or torch: the command line asks for the suffixes.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from fsdtool.errors import FsdtoolError
from fsdtool.util.discovery import classes_of, module_names

if TYPE_CHECKING:
    import numpy as np

    from fsdtool.util.atomic_files import Sibling


class Matrix(Protocol):
    """An open matrix (queries, examples): a block of it is assigned."""

    def __setitem__(self, block: tuple[slice, slice], values: np.ndarray) -> None: ...


class MatrixFormat(ABC):
    """One format; `name` is its suffix without the dot, and the name of its module."""

    name: ClassVar[str]

    @abstractmethod
    def open(
        self, sibling: Sibling, queries: Sequence[Any], ids: np.ndarray, units: str
    ) -> AbstractContextManager[Matrix]:
        """A float32 matrix (Q, N) in the temporary file `sibling`, complete when the context ends.

        queries: (Q,) their ids.  ids: (N,) those of the training examples.  units: of the values.
        """


def suffixes() -> tuple[str, ...]:
    """The suffixes of all formats, with the dot: .npy, the plainest, first."""
    names = [name for name in module_names(f"{__package__}") if name != Path(__file__).stem]
    return tuple(f".{name}" for name in reversed(names))


@functools.cache
def _formats() -> dict[str, MatrixFormat]:
    kinds = classes_of(f"{__package__}", MatrixFormat)  # type: ignore[type-abstract]  # looks for classes below it
    return {f".{name}": kind() for name, kind in kinds.items()}


def format_of(path: Path) -> MatrixFormat:
    """The format of a file's suffix.  Raises FsdtoolError that lists those there are."""
    found = _formats().get(path.suffix)
    if found is None:
        raise FsdtoolError(f"`matrix` '{path}' does not end in {' or '.join(suffixes())}; give a name that does")
    return found
