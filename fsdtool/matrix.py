"""The file of all influences, float32 (queries, training examples), in .npy or in HDF5 with the ids beside it.

It is written block by block under a temporary name and appears under its own when it is complete.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fsdtool.errors import FsdtoolError
from fsdtool.writer import encode_ids

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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    open_matrix = _npy if path.suffix == ".npy" else _hdf5
    try:
        with open_matrix(temporary, queries, ids, units) as matrix:

            def put(rows: slice, columns: slice, values: np.ndarray) -> None:
                matrix[rows, columns] = values

            yield put
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or error
        raise FsdtoolError(f"the matrix '{path}' cannot be written ({reason}); give another path") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _npy(path: Path, queries: Sequence[Any], ids: np.ndarray, units: str) -> Iterator[np.memmap]:
    matrix = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(len(queries), len(ids)))
    yield matrix
    matrix.flush()


@contextmanager
def _hdf5(path: Path, queries: Sequence[Any], ids: np.ndarray, units: str) -> Iterator[h5py.Dataset]:
    with h5py.File(path, "w") as file:
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
