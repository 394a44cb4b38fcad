"""The file of all influences, float32 (queries, training examples), in .npy or in HDF5 with the ids beside it.

It is written block by block under a temporary name and appears under its own when it is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fsdtool.summary.writer import encode_ids
from fsdtool.util.atomic_files import Sibling, Sink, replacing, reserve

SUFFIXES = (".npy", ".h5")
CHUNK = (64, 4096)  # of an HDF5 dataset: a megabyte

Put = Callable[[slice, slice, np.ndarray], None]


@contextmanager
def matrix_file(path: Path | None, queries: Sequence[Any], ids: np.ndarray, units: str) -> Iterator[Put]:
    """Gives the function that writes a block `put(queries, examples, values)`; without a path it does nothing.

    Raises FsdtoolError when the file cannot be written.
    """
    if path is None:
        yield lambda queries, examples, values: None
        return
    open_matrix = _npy if path.suffix == ".npy" else _hdf5
    with replacing(path, "the matrix") as sibling, open_matrix(sibling, queries, ids, units) as matrix:

        def put(rows: slice, columns: slice, values: np.ndarray) -> None:
            matrix[rows, columns] = values

        yield put


@contextmanager
def _npy(sibling: Sibling, queries: Sequence[Any], ids: np.ndarray, units: str) -> Iterator[np.memmap]:
    shape = len(queries), len(ids)
    # A float32 takes 4 bytes; the header of a .npy file of two dimensions takes 128.
    reserve(sibling.file, 4 * shape[0] * shape[1] + 128)
    matrix = np.lib.format.open_memmap(sibling.path, mode="w+", dtype=np.float32, shape=shape)
    reserve(sibling.file, sibling.path.stat().st_size)
    yield matrix
    matrix.flush()


@contextmanager
def _hdf5(sibling: Sibling, queries: Sequence[Any], ids: np.ndarray, units: str) -> Iterator[h5py.Dataset]:
    sink = Sink(sibling.file)
    with h5py.File(sink, "w") as file:
        asked = file.create_dataset("query_id", data=encode_ids(np.asarray(queries)))
        asked.attrs.update(description="ids of the queries (Q,)", units="")
        examples = file.create_dataset("id", data=encode_ids(np.asarray(ids)))
        examples.attrs.update(description="ids of the training examples (N,)", units="")
        shape = (len(queries), len(ids))
        chunks = tuple(min(most, max(n, 1)) for most, n in zip(CHUNK, shape, strict=True))
        matrix = file.create_dataset("influence", shape=shape, dtype=np.float32, chunks=chunks)
        matrix.attrs.update(
            description="estimated rise of the loss on the query if the training example were removed (Q, N)",
            units=units,
        )
        yield matrix
    if sink.error is not None:
        raise sink.error
