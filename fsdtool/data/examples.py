"""The examples of a data set as they are stored: how many, under which ids, with which targets, and their raw inputs.

What becomes of the inputs is not known here (fsdtool.data.pipeline).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fsdtool.data.readers import ItemReader, Reader
from fsdtool.errors import DataError, some
from fsdtool.tasks.classification import check_classes
from fsdtool.tasks.task import Task
from fsdtool.util.csv_cells import known_text


class StoredExamples:
    """Examples by their numbers 0 .. N-1.

    spec: the data as it was named. ids: (N,) int64 or fixed-width text, each once. class_names: the name of each class
    number, or None. relabelling: (classes,) int64, the number in `class_names` of each class number in the data (None:
    the same). corrected: targets by row of the reader that replace those of the data.
    """

    def __init__(
        self,
        *,
        spec: str,
        task: Task,
        reader: Reader,
        ids: np.ndarray,
        class_names: list[str] | None,
        relabelling: np.ndarray | None,
        corrected: Mapping[int, float],
    ) -> None:
        self.spec = spec
        self.task = task
        self.reader = reader
        self.ids = ids
        self.class_names = class_names
        self._relabelling = relabelling
        self._corrected = corrected
        self._rows = np.arange(len(ids))  # example -> row of the reader

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one stored input."""
        return self.reader.shape

    @property
    def one_by_one(self) -> bool:
        """Whether examples are read one by one (images, a user's code), so that several processes help."""
        return isinstance(self.reader, ItemReader)

    @property
    def come_from_code(self) -> bool:
        """Whether a data set's code makes them; else they are in files."""
        return self.one_by_one and not Path(self.spec).exists()

    def with_task(self, task: Task) -> StoredExamples:
        """The same examples for another task, whose targets are stored alike."""
        kept = copy.copy(self)
        kept.task = task
        return kept

    def only(self, wanted: np.ndarray) -> StoredExamples:
        """The examples at `wanted` (numbers, increasing) alone, with their ids."""
        kept = copy.copy(self)
        kept.ids, kept._rows = self.ids[wanted], self._rows[wanted]
        return kept

    def numbers_of(self, wanted: set[str]) -> np.ndarray:
        """The numbers of the examples that have one of these ids, as text; raises DataError for ids that none has."""
        names = [str(name) for name in self.ids.tolist()]
        known = set(names)
        wanted = {known_text(text, known) for text in wanted}
        unknown = sorted(wanted - known)
        if unknown or not wanted:
            found = f"has no example {some(unknown)}" if unknown else "is restricted to no ids at all"
            raise DataError(f"'{self.spec}' {found}; its ids are like {some(names)}; correct `ids`")
        return np.array([i for i, name in enumerate(names) if name in wanted])

    def read(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Stored inputs (B, *shape) of the examples `numbers` (B,), and their targets as the reader has them."""
        return self.reader.read(self._rows[numbers])

    def targets(self, stored: np.ndarray, numbers: np.ndarray) -> Tensor:
        """Targets of the task, (B,) int64 or (B, O) float32, from those that `read` gave; raises DataError."""
        ids = self.ids[numbers]
        y = torch.from_numpy(self.task.targets(stored, ids))
        if self._relabelling is not None:
            classes = len(self._relabelling)
            check_classes(y, ids, classes, f"the data names {classes} classes")
            y = torch.from_numpy(self._relabelling)[y]
        for i, row in enumerate(self._rows[numbers].tolist() if self._corrected else ()):
            if row in self._corrected:
                y[i] = self._corrected[row]
        return y
