"""A data set opened for reading: one stream of batches, whatever it is stored as.

The rest of the tool sees `DataSource.batches`: row numbers, float32 inputs (B, *input_shape) and targets.
What is stored becomes an input in fixed steps: images get their channels and size; uint8 is scaled to [0, 1]; the
mean is taken off and the standard deviation divided out, where given; the dimensions are put in the layout that
the model takes, which `fsdtool.data.layout` finds by asking it. A transform replaces all but the last step.
"""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fsdtool.data.preprocessing import Preprocessing
from fsdtool.data.readers import ItemReader, Reader, channels_last
from fsdtool.errors import DataError, FsdtoolError, describe, some
from fsdtool.tasks.classification import check_classes
from fsdtool.tasks.task import Task
from fsdtool.util.csv_cells import known_text

log = logging.getLogger("fsdtool")


@dataclass
class Batch:
    """Some examples in the order asked for.

    index: (B,) int64, row numbers. x: (B, *input_shape) float32, finite. y: (B,) int64 class numbers, not
    negative, for classification; (B, O) float32, finite, for regression.
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
    """A data set opened for reading, made by `load_dataset`.

    spec: as given. ids: (N,) int64 or fixed-width text, each once. class_names: the name of each class number,
    or None. preprocessing: what is done to the inputs. input_shape: the shape of one input as the model gets it.
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
        preprocessing: Preprocessing,
        corrected: dict[int, float] | None = None,
    ) -> None:
        self.spec = spec
        self.task = task
        self.ids = ids
        self.class_names = class_names
        self._reader = reader
        self._rows = np.arange(len(ids))  # example -> row of the reader
        self._relabelling = relabelling  # class number in the data -> class number in class_names
        self._corrected = corrected or {}  # row of the reader -> target
        self._prepare(preprocessing)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def runs_code(self) -> bool:
        """Whether examples come from code, a data set's or a transform's, which may do anything; not from files."""
        code = isinstance(self._reader, ItemReader) and not Path(self.spec).exists()
        return code or self.preprocessing.transform is not None

    def layouts(self) -> list[str]:
        """The layouts that the stored shape allows, the likeliest first."""
        shape = self._reader.shape
        if len(shape) == 3:
            last = channels_last(shape)
            return ["channels first", "as is", "flat"] if last else ["as is", "channels first", "flat"]
        if len(shape) == 2:
            return ["one channel", "as is", "flat"]
        return ["as is"] if len(shape) == 1 else ["as is", "flat"]

    def with_layout(self, name: str) -> DataSource:
        """The same data in the layout `name`; raises FsdtoolError where its shape does not allow that."""
        source = copy.copy(self)
        source._prepare(replace(self.preprocessing, layout=name))
        return source

    def as_stored(self) -> DataSource:
        """The same data in its stored shape, without mean and std, for looking at it; uint8 is scaled to [0, 1]."""
        source = copy.copy(self)
        source._prepare(replace(self.preprocessing, mean=None, std=None, layout="as is"))
        return source

    def only(self, wanted: np.ndarray) -> DataSource:
        """The examples at `wanted` (numbers, increasing) alone, with their ids."""
        source = copy.copy(self)
        source.ids, source._rows = self.ids[wanted], self._rows[wanted]
        return source

    def with_ids(self, wanted: set[str]) -> DataSource:
        """The examples that have one of these ids, as text; raises FsdtoolError for ids that none has."""
        names = [str(name) for name in self.ids.tolist()]
        known = set(names)
        wanted = {known_text(text, known) for text in wanted}
        unknown = sorted(wanted - known)
        if unknown or not wanted:
            found = f"has no example {some(unknown)}" if unknown else "is restricted to no ids at all"
            raise DataError(f"'{self.spec}' {found}; its ids are like {some(names)}; correct `ids`")
        return self.only(np.array([i for i, name in enumerate(names) if name in wanted]))

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
        if not workers or not isinstance(self._reader, ItemReader):
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

    def _prepare(self, preprocessing: Preprocessing) -> None:
        allowed, shape = self.layouts(), self._reader.shape
        self._layout = preprocessing.layout or allowed[0]
        if self._layout not in allowed:
            raise DataError(
                f"inputs of shape {shape} have no layout '{self._layout}'; it can be {' or '.join(allowed)}"
            )
        last = self._layout == "channels first" or (len(shape) == 3 and channels_last(shape))
        self._channel_axis = len(shape) if last else 1  # of a batch as it is stored
        has_channels = len(shape) != 2 or self._layout == "as is"  # (H, W) is one channel
        channels = (1, *shape)[self._channel_axis] if has_channels else 1
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            if values is not None and len(values) not in (1, channels):
                raise DataError(
                    f"the {name} has {len(values)} values for inputs of shape {shape}; "
                    + ("give 1" if channels == 1 else f"give 1 or {channels}, one per channel")
                )
        self.preprocessing = preprocessing
        self.input_shape = tuple(self._arranged(torch.empty(1, *shape, device="meta")).shape[1:])

    def _result(self, rows: np.ndarray) -> Batch | FsdtoolError:
        """The batch of the examples `rows`. Errors are values: DataLoader would bury them in a traceback."""
        try:
            stored, y = self._reader.read(self._rows[rows])
            ids = self.ids[rows]
            return Batch(torch.from_numpy(rows.copy()), self._inputs(stored, ids), self._labels(y, rows))
        except FsdtoolError as error:
            return error

    def _inputs(self, stored: np.ndarray, ids: np.ndarray) -> Tensor:
        """Stored (B, *shape) to float32 (B, *input_shape), never sharing memory with the stored array."""
        if stored.dtype == np.uint8:
            x = torch.from_numpy(np.ascontiguousarray(stored)).to(torch.float32).div_(255)
        else:
            with np.errstate(over="ignore"):
                x = torch.from_numpy(np.array(stored, dtype=np.float32))
            finite = torch.isfinite(x).flatten(1).all(dim=1)
            if not finite.all():
                row = int(finite.logical_not().nonzero()[0])
                raise DataError(
                    f"the inputs of example {ids[row]} hold NaN or infinity; remove it or fill in the value",
                    example=ids[row],
                )
        per_channel = [1] * x.ndim
        per_channel[self._channel_axis] = -1
        if self.preprocessing.mean is not None:
            x -= torch.tensor(self.preprocessing.mean).view(per_channel)
        if self.preprocessing.std is not None:
            x /= torch.tensor(self.preprocessing.std).view(per_channel)
        return self._arranged(x)

    def _arranged(self, x: Tensor) -> Tensor:
        if self._layout == "channels first":
            return x.permute(0, 3, 1, 2).contiguous()  # (B, H, W, C) -> (B, C, H, W)
        if self._layout == "one channel":
            return x.unsqueeze(1)  # (B, H, W) -> (B, 1, H, W)
        return x.flatten(1) if self._layout == "flat" else x

    def _labels(self, stored: np.ndarray, rows: np.ndarray) -> Tensor:
        ids = self.ids[rows]
        y = torch.from_numpy(self.task.targets(stored, ids))
        if self._relabelling is not None:
            classes = len(self._relabelling)
            check_classes(y, ids, classes, f"the data names {classes} classes")
            y = torch.from_numpy(self._relabelling)[y]
        for i, row in enumerate(self._rows[rows].tolist() if self._corrected else ()):
            if row in self._corrected:
                y[i] = self._corrected[row]
        return y


class _InWorker(torch.utils.data.Dataset):
    """Batches by row numbers, for DataLoader."""

    def __init__(self, source: DataSource) -> None:
        self._source = source

    def __getitem__(self, rows: np.ndarray) -> Batch | FsdtoolError:
        return self._source._result(rows)


def _unchanged(result: Any) -> Any:
    return result
