"""A data set opened for reading: one stream of batches, whatever it is stored as.

The rest of the tool sees `DataSource.batches`: row numbers, float32 inputs (B, *input_shape) and targets.
fsdtool.data.examples reads what is stored, fsdtool.data.pipeline makes inputs of it; here the two come together, in one
process or in several.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fsdtool.data.examples import StoredExamples
from fsdtool.data.inputs.part import Part
from fsdtool.data.pipeline import Pipeline, layouts
from fsdtool.data.preprocessing import Preprocessing
from fsdtool.errors import DataError, FsdtoolError, describe, some
from fsdtool.tasks.task import Task

log = logging.getLogger("fsdtool")


@dataclass
class Batch:
    """Some examples in the order asked for.

    index: (B,) int64, row numbers. x: (B, *input_shape) float32, finite. y: (B,) int64 class numbers, not
    negative, for classification; (B, O) float32, finite, for the others.
    """

    index: Tensor
    x: Tensor
    y: Tensor


class Fingerprint:
    """SHA-256 over prepared inputs, targets and ids in order, the same however they are cut into batches.

    ids: those of the whole data set. Labels that were overridden and any preprocessing show in what is digested.
    """

    def __init__(self, ids: np.ndarray) -> None:
        self._ids = ids
        self._x, self._y, self._names = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
        self._shapes: tuple[object, ...] | None = None

    def update(self, batch: Batch) -> None:
        """Take in the next batch."""
        self._shapes = (tuple(batch.x.shape[1:]), tuple(batch.y.shape[1:]), str(batch.y.dtype))
        self._x.update(batch.x.contiguous().numpy().data)
        self._y.update(batch.y.contiguous().numpy().data)
        names = self._ids[batch.index.numpy()].tolist()
        self._names.update("".join(f"{name}\n" for name in names).encode("utf-8", "surrogateescape"))

    def hexdigest(self) -> str:
        """64 hexadecimal digits."""
        parts = repr(self._shapes).encode() + self._x.digest() + self._y.digest() + self._names.digest()
        return hashlib.sha256(parts).hexdigest()


class DataSource:
    """A data set opened for reading, made by `load_dataset`: stored examples, and the pipeline that prepares them.

    examples: how they are read. pipeline: what is done to their inputs. `spec`, `task`, `ids`, `class_names`,
    `preprocessing` and `input_shape` (of one input as the model gets it) are theirs.
    Raises DataError for a preprocessing that does not fit the shape of the stored inputs.
    """

    def __init__(self, examples: StoredExamples, preprocessing: Preprocessing) -> None:
        self.examples = examples
        self.pipeline = Pipeline(preprocessing, examples.shape)

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def spec(self) -> str:
        return self.examples.spec

    @property
    def task(self) -> Task:
        return self.examples.task

    @property
    def ids(self) -> np.ndarray:
        return self.examples.ids

    @property
    def class_names(self) -> list[str] | None:
        return self.examples.class_names

    @property
    def preprocessing(self) -> Preprocessing:
        return self.pipeline.preprocessing

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.pipeline.input_shape

    @property
    def runs_code(self) -> bool:
        """Whether examples come from code, a data set's or a transform's, which may do anything; not from files."""
        return self.examples.come_from_code or self.preprocessing.transform is not None

    def layouts(self) -> list[str]:
        """The layouts that the stored shape allows, the likeliest first."""
        return layouts(self.examples.shape)

    def with_layout(self, name: str) -> DataSource:
        """The same data in the layout `name`; raises DataError where its shape does not allow that."""
        return DataSource(self.examples, replace(self.preprocessing, layout=name))

    def with_task(self, task: Task) -> DataSource:
        """The same data for another task, whose targets are stored alike."""
        return DataSource(self.examples.with_task(task), self.preprocessing)

    def handed_as(self, parts: tuple[Part, ...]) -> DataSource:
        """The same data, of which the model takes these parts."""
        return DataSource(self.examples, replace(self.preprocessing, parts=parts))

    def as_stored(self) -> DataSource:
        """The same data in its stored shape, without mean and std, for looking at it; uint8 is scaled to [0, 1]."""
        return DataSource(self.examples, replace(self.preprocessing, mean=None, std=None, layout="as is"))

    def only(self, wanted: np.ndarray) -> DataSource:
        """The examples at `wanted` (numbers, increasing) alone, with their ids."""
        return DataSource(self.examples.only(wanted), self.preprocessing)

    def with_ids(self, wanted: set[str]) -> DataSource:
        """The examples that have one of these ids, as text; raises DataError for ids that none has."""
        return self.only(self.examples.numbers_of(wanted))

    def without_bad(self, batch_size: int = 64, workers: int = 0) -> DataSource:
        """The examples that can be read, by reading each once; a warning counts and lists the others."""
        bad: dict[int, str] = {}
        chunks = self._chunks(np.arange(len(self)), batch_size)
        for rows, result in zip(chunks, self._results(chunks, workers), strict=True):
            if isinstance(result, FsdtoolError):
                bad |= {int(row): str(e) for row in rows if isinstance(e := self._result(row[None]), FsdtoolError)}
        if not bad:
            return self
        listed = some([str(self.ids[row]) for row in bad], 10)
        if len(bad) == len(self):
            raise DataError(f"none of the {len(self)} examples of '{self.spec}' can be read: {bad[0]}")
        first = next(iter(bad.values())).partition("; ")[0]
        log.warning(f"skipping {len(bad)} of {len(self)} examples of '{self.spec}': {listed} ({first})")
        return self.only(np.setdiff1d(np.arange(len(self)), list(bad)))

    def batches(
        self, batch_size: int, *, indices: Sequence[int] | np.ndarray | None = None, workers: int = 0
    ) -> Iterator[Batch]:
        """Every example in order, or those at `indices` in the order given, `batch_size` at a time.

        `workers` processes read examples that come one by one (images, a user's code); arrays need none.
        Raises FsdtoolError naming the first example that cannot be read, is not finite or has a wrong target.
        """
        rows = np.arange(len(self)) if indices is None else np.asarray(indices, dtype=np.int64)
        for result in self._results(self._chunks(rows, batch_size), workers):
            if isinstance(result, FsdtoolError):
                raise result
            yield result

    @staticmethod
    def _chunks(rows: np.ndarray, batch_size: int) -> list[np.ndarray]:
        return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]

    def _results(self, chunks: list[np.ndarray], workers: int) -> Iterator[Batch | FsdtoolError]:
        """The batch of each chunk of row numbers, or what is wrong with it."""
        if not workers or not self.examples.one_by_one:
            yield from map(self._result, chunks)
            return
        loader = DataLoader(
            _InWorker(self),
            sampler=chunks,
            batch_size=None,
            num_workers=workers,
            collate_fn=_unchanged,
            generator=torch.Generator(),  # the global one stays as the caller seeded it
        )
        try:
            yield from loader
        except (RuntimeError, ConnectionError, EOFError) as error:
            # Where it dies while it hands over a batch, the connection breaks before torch misses the process.
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            raise DataError(
                f"a process that reads '{self.spec}' died ({describe(error)}); it may have run out of memory: "
                f"give fewer than {workers} `workers`, or `workers=0` to see what the data set's own code does"
            ) from error

    def _result(self, numbers: np.ndarray) -> Batch | FsdtoolError:
        """The batch of the examples `numbers`. Errors are values: DataLoader would bury them in a traceback."""
        try:
            stored, targets = self.examples.read(numbers)
            x = self.pipeline(stored, self.ids[numbers])
            return Batch(torch.from_numpy(numbers.copy()), x, self.examples.targets(targets, numbers))
        except FsdtoolError as error:
            return error


class _InWorker(torch.utils.data.Dataset):
    """Batches by row numbers, for DataLoader."""

    def __init__(self, source: DataSource) -> None:
        self._source = source

    def __getitem__(self, rows: np.ndarray) -> Batch | FsdtoolError:
        return self._source._result(rows)


def _unchanged(result: Any) -> Any:
    return result
