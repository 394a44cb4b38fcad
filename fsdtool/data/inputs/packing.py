"""Several inputs of an example packed into one row of float32 numbers, one after the other.

float32 holds whole numbers up to 2^24 exactly; larger ones are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import h5py
import numpy as np

from fsdtool.data.inputs.part import NUMBERS, TRUTH, WHOLE, Part
from fsdtool.errors import DataError, describe

MOST_WHOLE = 2**24


def part_of(key: str, name: str, shape: tuple[int, ...], dtype: np.dtype) -> Part:
    """The input stored with this dtype, one example of this shape.

    Bytes are pixels, which are scaled to [0, 1], where an example has two dimensions or more; else whole numbers.
    """
    kind = NUMBERS
    if dtype.kind == "b":
        kind = TRUTH
    elif dtype.kind in "iu" and not is_pixels(dtype, len(shape)):
        kind = WHOLE
    return Part(key, name, shape, kind)


def is_pixels(dtype: np.dtype, dimensions: int) -> bool:
    """Whether examples of so many dimensions, stored with this dtype, are scaled from 0..255 to [0, 1]."""
    return dtype == np.uint8 and dimensions > 1


def packed(arrays: Sequence[np.ndarray], parts: Sequence[Part], ids: np.ndarray) -> np.ndarray:
    """The rows (B, sum of sizes) float32 of the examples `ids` (B,), of an array (B, *shape) for each part.

    Raises DataError for whole numbers that float32 does not hold, and inputs of another shape.
    """
    columns = []
    for stored, part in zip(arrays, parts, strict=True):
        if stored.shape[1:] != part.shape:
            raise DataError(
                f"example {ids[0]} has '{part.key}' of shape {stored.shape[1:]}, the first of {part.shape}; "
                "make them alike (pad texts to one length)",
                example=ids[0],
            )
        if part.dtype == WHOLE:
            check_whole(stored, ids, part.key)
        with np.errstate(over="ignore"):
            numbers = stored.astype(np.float32).reshape(len(stored), -1)
        columns.append(numbers / np.float32(255) if is_pixels(stored.dtype, len(part.shape)) else numbers)
    return np.concatenate(columns, axis=1)


def check_whole(stored: np.ndarray, ids: np.ndarray, key: str = "") -> None:
    """Raise DataError unless the inputs (B, ...) of the examples `ids` (B,) are whole and float32 holds them."""
    if stored.dtype.kind in "bu" and stored.dtype.itemsize < 3:
        return
    good = (np.abs(stored) <= MOST_WHOLE) & (stored == np.floor(stored))
    if good.all():
        return
    row, *place = np.argwhere(~good)[0].tolist()
    value, where = stored[(row, *place)], f" in '{key}'" if key else ""
    limit = f"whole numbers up to {MOST_WHOLE:,} are handed to a network exactly"
    raise DataError(
        f"example {ids[row]} has {value}{where}, and its network takes whole numbers; {limit}: correct it",
        example=ids[row],
    )


class ArraysReader:
    """Rows of several arrays, packed; each may be mapped, or a data set in an open HDF5 file."""

    def __init__(
        self, arrays: Sequence[np.ndarray | h5py.Dataset], parts: Sequence[Part], y: np.ndarray, ids: np.ndarray
    ):
        self._arrays, self._parts, self._y, self._ids = arrays, parts, y, ids
        self.shape: tuple[int, ...] = (sum(part.size for part in parts),)

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As fsdtool.data.readers.Reader says.  Raises DataError where a file cannot be read there."""
        try:
            return packed([rows_of(x, rows) for x in self._arrays], self._parts, self._ids[rows]), self._y[rows]
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"the inputs of rows {rows.min()} to {rows.max()} cannot be read: {describe(error)}; "
                "the data file is damaged or needs a filter that is not installed"
            ) from error


def rows_of(x: np.ndarray | h5py.Dataset, rows: np.ndarray) -> np.ndarray:
    """Rows of an array, in the order given; HDF5 selects rows in increasing order, each once."""
    first = int(rows[0])
    if np.array_equal(rows, np.arange(first, first + len(rows))):
        return x[first : first + len(rows)]
    unique, position = np.unique(rows, return_inverse=True)
    return x[unique][position]


def packed_item(values: Mapping[str, np.ndarray], parts: Sequence[Part], identifier: Any) -> np.ndarray:
    """The row (sum of sizes,) of one example, given by the keys of the parts."""
    return packed([values[part.key][None] for part in parts], parts, np.array([identifier]))[0]
