"""The file of all influences, float32 (queries, training examples), in the format of its suffix.

It is written block by block under a temporary name and appears under its own when it is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fsdtool.influence.matrix_formats.matrix_format import format_of
from fsdtool.util.atomic_files import replacing

Put = Callable[[slice, slice, np.ndarray], None]


@contextmanager
def matrix_file(path: Path | None, queries: Sequence[Any], ids: np.ndarray, units: str) -> Iterator[Put]:
    """Gives the function that writes a block `put(queries, examples, values)`; without a path it does nothing.

    queries: (Q,) their ids.  ids: (N,) those of the training examples.  units: of the values.
    Raises FsdtoolError for a suffix that no format has, and when the file cannot be written.
    """
    if path is None:
        yield lambda queries, examples, values: None
        return
    kind = format_of(path)
    with replacing(path, "the matrix") as sibling, kind.open(sibling, queries, ids, units) as matrix:

        def put(rows: slice, columns: slice, values: np.ndarray) -> None:
            matrix[rows, columns] = values

        yield put
