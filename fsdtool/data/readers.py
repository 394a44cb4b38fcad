"""Readers: row numbers to what a data set stores, a batch at a time, so that nothing is held whole."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import h5py
import numpy as np
import torch
from torch import Tensor

from fsdtool.data.images import image_array, is_image
from fsdtool.data.inputs.items import several, split_item
from fsdtool.data.inputs.keys import named_inputs
from fsdtool.data.inputs.packing import packed_item, part_of, rows_of
from fsdtool.data.inputs.part import Part
from fsdtool.data.preprocessing import Preprocessing, load_transform
from fsdtool.errors import DataError, FsdtoolError, describe, some
from fsdtool.tasks.task import Task

TRIED = 100  # examples, in search of the first that can be read
log = logging.getLogger("fsdtool")
ROW_NUMBERS = "row"  # for `id_key`: ids are row numbers, whatever else the data has


class Reader(Protocol):
    """shape: of one stored input. `read`: rows (B,) to inputs (B, *shape) and targets (B, ...)."""

    shape: tuple[int, ...]

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass
class Found:
    """What a spec leads to: a reader, the ids, the class names that the data itself gives, and what was chosen.

    parts: of several inputs, which the reader gives as packed rows.
    """

    reader: Reader
    ids: np.ndarray
    class_names: list[str] | None
    note: str
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Request:
    """What the user said about the data, as `load_dataset` takes it."""

    task: Task
    x_key: str | None = None
    y_key: str | None = None
    id_key: str | None = None
    split: str | None = None
    class_names: list[str] | None = None
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    skip_bad: bool = False
    missing: tuple[str, ...] | None = None


class ArrayReader:
    """Rows of two arrays; `x` may be mapped, or a data set in an open HDF5 file, and is read slice by slice."""

    def __init__(self, x: np.ndarray | h5py.Dataset, y: np.ndarray) -> None:
        self._x, self._y = x, y
        self.shape = tuple(x.shape[1:])

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As Reader says.  Raises DataError where the file cannot be read there."""
        try:
            return rows_of(self._x, rows), self._y[rows]
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"the inputs of rows {rows.min()} to {rows.max()} cannot be read: {describe(error)}; "
                "the data file is damaged or needs a filter that is not installed"
            ) from error


class TransformedReader:
    """The inputs of another reader after a transform; each goes in as a tensor, channels first where it is an image."""

    def __init__(self, reader: Reader, transform: str, ids: np.ndarray) -> None:
        self._reader, self._transform, self._ids = reader, transform, ids
        self.shape = self.read(np.arange(1))[0].shape[1:]

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As Reader says.  Raises DataError where the transform fails, or gives inputs of several shapes or types."""
        stored, y = self._reader.read(rows)
        if stored.ndim == 4 and channels_last(stored.shape[1:]):
            stored = stored.transpose(0, 3, 1, 2)
        transform, found = load_transform(self._transform), []
        for row, x in zip(rows, stored, strict=True):
            try:
                found.append(_plain_array(transform(torch.from_numpy(np.array(x)))))
            except Exception as error:  # whatever a user's code may raise
                raise DataError(
                    f"`transform={self._transform}` fails on example {self._ids[row]}: {describe(error)}; correct it",
                    example=self._ids[row],
                ) from error
        _check_alike(found, found[0].shape, found[0].dtype, self._ids[rows])
        return np.stack(found), y


class ItemReader:
    """Items (x, y) of a map-style data set, one by one; several inputs as packed rows, whose parts are `parts`.

    `reopen` makes the data set again in a worker process, where a user's class cannot be unpickled.
    """

    def __init__(self, reopen: Callable[[], Any], dataset: Any, ids: np.ndarray, request: Request) -> None:
        self._reopen, self._dataset = reopen, dataset
        self._ids, self._task, self._preprocessing = ids, request.task, request.preprocessing
        self._y_key = request.y_key
        self._wanted = named_inputs(request.x_key, request.preprocessing.parts)
        if request.x_key is not None and not self._wanted:
            self._wanted = [("", request.x_key)]
        self.parts: tuple[Part, ...] = ()
        self._pictures = False  # whether the examples are images
        first = self._first_readable()
        self.shape, self._dtype, self.target_shape = first[0].shape, first[0].dtype, first[1].shape

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_dataset": None}

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As Reader says.  Raises DataError for an item that cannot be read or is not like the first."""
        xs, ys = zip(*(self._item(int(row)) for row in rows), strict=True)
        if self._pictures and len({x.dtype for x in xs} | {self._dtype}) > 1:
            xs = [_unit(x, self.shape) for x in xs]  # 16-bit pictures among others
            _check_alike(xs, self.shape, np.dtype(np.float32), self._ids[rows])
        else:
            _check_alike(xs, self.shape, self._dtype, self._ids[rows])
        for row, y in zip(rows, ys, strict=True):
            if y.shape != self.target_shape:
                raise DataError(
                    f"example {self._ids[row]} has a target of shape {y.shape}, the first of {self.target_shape}; "
                    "make them alike",
                    example=self._ids[row],
                )
        return np.stack(xs), np.stack(ys)

    def _first_readable(self) -> tuple[np.ndarray, np.ndarray]:
        """The first item that is not damaged; a damaged one is named when it is read, or skipped."""
        for row in range(min(len(self._ids), TRIED)):
            try:
                return self._item(row)
            except FsdtoolError as error:
                log.debug(error)
        return self._item(0)

    def _item(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        if self._dataset is None:
            self._dataset = self._reopen()
        try:
            item = self._dataset[row]
            pair = split_item(item, self._y_key)
            if pair is None:
                raise DataError(
                    f"example {self._ids[row]} is {_in_words(item)}, not a pair (x, y); "
                    "wrap the data set in one whose __getitem__ returns (x, y), or a dict with a label (`y_key`)",
                    example=self._ids[row],
                )
            return self._inputs(pair[0], self._ids[row]), self._target(pair[1], row)
        except FsdtoolError:
            raise
        except Exception as error:  # a damaged image, or whatever a user's code may raise
            raise DataError(
                f"example {self._ids[row]} cannot be read: {describe(error)}; "
                "repair or remove it, or give `skip_bad=True`",
                example=self._ids[row],
            ) from error

    def _inputs(self, x: Any, identifier: Any) -> np.ndarray:
        """A single input as it is stored, several as one row."""
        found = several(x, self._wanted, identifier)
        if not found or (len(found) == 1 and not (self._wanted and found[0][1])):
            return self._as_array(found[0][2] if found else x)
        if self._preprocessing.transform is not None:
            raise TypeError("`transform` is for one input, and this has several")
        pictures, self._pictures = self._pictures, False  # of each part on its own
        values = {key: self._as_array(value) for key, _, value in found}
        self._pictures = pictures
        if not self.parts:
            self.parts = tuple(part_of(key, name, values[key].shape, values[key].dtype) for key, name, _ in found)
        missing = [part.key for part in self.parts if part.key not in values]
        if missing:
            raise TypeError(f"it has no input '{missing[0]}', and the first has")
        return packed_item(values, self.parts, identifier)

    def _target(self, y: Any, row: int) -> np.ndarray:
        found = np.asarray(np.nan if y is None else y)
        if found.dtype.kind not in "buif":
            raise DataError(
                f"example {self._ids[row]} has a target that is {_in_words(y)}; give a number "
                "(for classes their numbers, and the names as a list 'classes' of the data set)",
                example=self._ids[row],
            )
        return found

    def _as_array(self, x: Any) -> np.ndarray:
        asked = self._preprocessing
        if asked.transform is not None:
            return _plain_array(load_transform(asked.transform)(x))
        if is_image(x):
            self._pictures = True
            return image_array(x, asked.image_size, asked.channels)
        if self._pictures:
            raise TypeError(f"it is {_in_words(x)}, and others are images")
        for argument, value in (("image_size", asked.image_size), ("channels", asked.channels)):
            if value is not None:
                raise TypeError(f"`{argument}` is for images, and this is a {type(x).__name__}")
        return _plain_array(x)


def channels_last(shape: tuple[int, ...]) -> bool:
    """Whether (H, W, C) is the likelier reading of three dimensions."""
    return shape[2] in (1, 3, 4) and shape[0] not in (1, 3, 4)


def _unit(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A picture as float32 in [0, 1], and a grey one in as many channels as the first picture has."""
    grey = x.ndim == 2 and len(shape) == 3 and shape[2] in (1, 3) and x.dtype != np.uint8
    x = np.repeat(x[..., None], shape[2], axis=2) if grey else x
    return x.astype(np.float32) / np.float32(255) if x.dtype == np.uint8 else x


def _in_words(value: Any) -> str:
    """What a value is: 'a tuple of 3 parts', 'a dict with the keys x, y', 'a Tensor of shape (4,)'."""
    kind = type(value).__name__
    if isinstance(value, Mapping):
        return f"a {kind} with the keys {some([str(key) for key in value])}"
    if isinstance(value, (tuple, list)):
        return f"a {kind} of {len(value)} parts"
    shape = getattr(value, "shape", None)
    return f"a {kind} of shape {tuple(shape)}" if isinstance(shape, tuple) else f"a {kind}"


def _plain_array(x: Any) -> np.ndarray:
    if is_image(x):
        return image_array(x, None, None)
    if isinstance(x, Tensor):
        x = x.detach().cpu()
        x = (x.float() if x.dtype == torch.bfloat16 else x).numpy()
    values = np.asarray(x)
    if values.dtype.kind not in "buif":
        raise TypeError(f"its inputs have dtype {values.dtype}, not numbers")
    return values


def _check_alike(xs: Any, shape: tuple[int, ...], dtype: np.dtype, ids: np.ndarray) -> None:
    for name, x in zip(ids, xs, strict=True):
        if (x.shape, x.dtype) != (shape, dtype):
            raise DataError(
                f"example {name} has inputs {x.shape} {x.dtype}, the first has {shape} {dtype}; "
                "make them alike (images by `image_size` and `channels`)",
                example=name,
            )
