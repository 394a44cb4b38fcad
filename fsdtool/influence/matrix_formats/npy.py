"""A .npy file: the matrix alone, float32 in the order of queries and examples, as numpy.load reads it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from fsdtool.influence.matrix_formats.matrix_format import MatrixFormat
from fsdtool.util.atomic_files import Sibling, reserve

HEADER_BYTES = 128  # of a .npy file of two dimensions


class Npy(MatrixFormat):
    """Written through a memory map, with its whole room on the disk reserved first."""

    name = "npy"

    @contextmanager
    def open(self, sibling: Sibling, queries: Sequence[Any], ids: np.ndarray, units: str) -> Iterator[np.memmap]:
        shape = len(queries), len(ids)
        reserve(sibling.file, np.dtype(np.float32).itemsize * shape[0] * shape[1] + HEADER_BYTES)
        matrix = np.lib.format.open_memmap(sibling.path, mode="w+", dtype=np.float32, shape=shape)
        reserve(sibling.file, sibling.path.stat().st_size)
        yield matrix
        matrix.flush()
