"""An HDF5 file: `influence` (Q, N) float32, `query_id` (Q,) and `id` (N,), each with its description and units."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import h5py
import numpy as np

from fsdtool.influence.matrix_formats.matrix_format import MatrixFormat
from fsdtool.summary.writer import encode_ids
from fsdtool.util.atomic_files import Sibling, Sink

CHUNK = (64, 4096)  # a megabyte


class Hdf5(MatrixFormat):
    """Written block by block."""

    name = "h5"

    @contextmanager
    def open(self, sibling: Sibling, queries: Sequence[Any], ids: np.ndarray, units: str) -> Iterator[h5py.Dataset]:
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
