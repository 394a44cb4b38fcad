"""Batches of a data set, on the device, smaller ones after memory ran out: the one loop over the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from fsdtool.data.source import Batch, DataSource
from fsdtool.network.traced import FULL, Network
from fsdtool.util.memory import BatchSize, undrawn
from fsdtool.util.progress import Track

T = TypeVar("T")

BATCH_UNITS = 2**27  # scalars of all steps held per batch when the batch size is left to the tool


class Reader:
    """Reads `data` for a network of so many `outputs`.

    batch_size: how many examples are computed at once, which halves when memory runs out.  generator: what computations
    on a batch may draw from; it is put back where a batch fails, so that the halves draw the same.
    """

    def __init__(
        self,
        data: DataSource,
        outputs: int,
        device: torch.device,
        *,
        batch_size: int,
        workers: int,
        seed: int,
        track: Track,
    ):
        self.data, self.outputs, self.device, self.workers, self.track = data, outputs, device, workers, track
        self.batch_size = BatchSize(batch_size)
        self.generator = torch.Generator(device).manual_seed(seed)

    def each(
        self, label: str, compute: Callable[[Batch, Tensor, Tensor], T], rows: np.ndarray | None = None
    ) -> Iterator[T]:
        """compute(batch, x, y) for every batch, or those of `rows`: labels checked, x and y on the device.

        label: what is shown while it goes on.  A batch for which memory runs out comes again in halves, so compute must
        leave nothing behind when it fails.
        """
        rows = np.arange(len(self.data)) if rows is None else rows
        with self.track(label, len(rows)) as advance:
            for batch in self._read(rows):
                self.data.task.check_targets(batch.y, self.data.ids[batch.index.numpy()], self.outputs)

                def part(rows: slice, batch: Batch = batch) -> T:
                    batch = Batch(batch.index[rows], batch.x[rows], batch.y[rows])
                    x, y = (v.to(self.device, non_blocking=True) for v in (batch.x, batch.y))
                    return compute(batch, x, y)

                yield from self.batch_size.parts(len(batch.index), undrawn(self.generator, part))
                advance(len(batch.index))

    def _read(self, rows: np.ndarray) -> Iterator[Batch]:
        """The examples `rows` in batches, smaller ones after memory ran out while reading."""
        done = 0
        while done < len(rows):
            size = self.batch_size.now
            try:
                for batch in self.data.batches(size, workers=self.workers, indices=rows[done:]):
                    yield batch
                    done += len(batch.index)
            except Exception as error:
                if not self.batch_size.halved_after(error, min(size, len(rows) - done)):
                    raise


def auto_batch(network: Network) -> int:
    """How many examples are computed at once where the caller does not say."""
    held = sum(step.units for step in network.graph.steps)
    if network.mode != FULL:  # the graph is one layer, the model around it is not
        held = max(held, 2**22)
    return min(1000, max(8, BATCH_UNITS // held))
