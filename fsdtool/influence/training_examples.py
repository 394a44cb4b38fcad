"""The training examples that are scored against queries: from the summary's records, or streamed from the data.

A query is, per weight, a matrix Q = (G + lambda)^-1 G_q, and an example with gradient G_i scores <Q, G_i> / N.
Records hold G_i = b a^T in the kept directions, so Q is given in these (Q, ks, ka), and the scores are brought to the
scale of exact gradients (fsdtool.fitting.influence_calibration); of streamed examples G_i is exact
and Q is a whole matrix (Q, d_out, d_in).  Where G_i = b a^T the score is b^T Q a, else an inner product.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from fsdtool.curvature.ekfac import BlockCurvature
from fsdtool.data.source import Fingerprint
from fsdtool.influence.data_gradients import Examples
from fsdtool.influence.gradient_records import read_factors
from fsdtool.influence.screening import Screen
from fsdtool.influence.top_k import TopK
from fsdtool.network.per_example_gradients import LayerIO, gradient, vectors
from fsdtool.summary.catalogue import Records
from fsdtool.summary.reader import Summary
from fsdtool.util.memory import BatchSize

log = logging.getLogger("fsdtool")

CHUNK = 16384  # records scored at once
SCORES = 2**24  # held at once, over all queries
SCREENED = 2**20  # scores at once where they are screened: a few megabytes of products stay in the cache
PRODUCTS = 2**24  # numbers of an intermediate product held at once

Scores = Iterator[tuple[slice, Tensor]]


class Recorded:
    """The training examples as the records of the summary hold them; scores are multiplied by `scale`."""

    def __init__(self, records: Records, curvature: list[BlockCurvature], device: torch.device, scale: float = 1.0):
        self._records, self._curvature, self._device = records, curvature, device
        self._factor = scale / len(records)
        self.ids = records.ids

    def __len__(self) -> int:
        return len(self._records)

    def targets(self) -> np.ndarray:
        """Their labels (N,), or target values (N, O)."""
        return self._records.read("target")

    def scores(self, queries: list[Tensor]) -> Scores:
        """Rows of the examples, and their scores (Q, n) on the CPU, for queries (Q, ks, ka) per weight."""
        forms = [Bilinear(q) for q in queries]

        def of(rows: slice) -> tuple[slice, Tensor]:
            total = torch.zeros(())
            for c, form in zip(self._curvature, forms, strict=True):
                b, a = read_factors(self._records.read, c.weight, rows).part(slice(None))
                total = total + form(b.to(self._device), a.to(self._device))
            return rows, (total * self._factor).T.cpu()

        return BatchSize(min(CHUNK, max(SCORES // len(queries[0]), 256))).parts(len(self), of)

    def screened(self, queries: list[Tensor], best: TopK) -> Scores:
        """As `scores`, for queries as joined factors (Q, ks + ka); in full only what may be among the best."""
        shapes = [c.eigenvalues.shape for c in self._curvature]
        screen = Screen(self._curvature, [(q[:, :ks], q[:, ks:]) for q, (ks, _) in zip(queries, shapes, strict=True)])

        def of(rows: slice) -> tuple[slice, Tensor]:
            parts = [read_factors(self._records.read, c.weight, rows).part(slice(None)) for c in self._curvature]
            records = [(b.to(self._device), a.to(self._device)) for b, a in parts]
            return rows, screen.scores(records, best, self._factor).cpu()

        return BatchSize(min(CHUNK, max(SCREENED // len(queries[0]), 256))).parts(len(self), of)


class Streamed:
    """Examples read again from the data, with their exact gradients; N is that of the summary."""

    def __init__(self, summary: Summary, examples: Examples, curvature: list[BlockCurvature], batch_size: int):
        self._summary, self.examples, self._curvature = summary, examples, curvature
        self._batch_size = examples.largest_batch(batch_size)
        self._targets: np.ndarray | None = None
        self.ids = examples.ids

    def __len__(self) -> int:
        return len(self.examples)

    def targets(self) -> np.ndarray:
        """Their labels (N,), or target values (N, O): known once they have been scored."""
        assert self._targets is not None
        return self._targets

    def scores(self, queries: list[Tensor]) -> Scores:
        """Rows of the examples, and their scores (Q, n) on the CPU, for queries (Q, d_out, d_in) per weight."""
        forms = [Bilinear(q) for q in queries]

        def score(uses: dict[int, LayerIO]) -> Tensor:
            total = torch.zeros(())
            for block, form in zip(self.examples.blocks.values(), forms, strict=True):
                pair = vectors(block, uses)
                total = total + (form.inner(gradient(block, uses)) if pair is None else form(*pair))
            return total.T

        return self._stream(score)

    def selves(self) -> Scores:
        """Rows of the examples, and the influence (n,) of each on itself."""
        pairs = list(zip(self._curvature, self.examples.blocks.values(), strict=True))
        return self._stream(lambda uses: sum((c.quadratic(block, uses) for c, block in pairs), torch.zeros(())))

    def _stream(self, value_of: Callable[[dict[int, LayerIO]], Tensor]) -> Scores:
        """`value_of` each batch, examples last, over N."""
        fingerprint, targets, stop = Fingerprint(self.examples.ids), [], 0
        for seen in self.examples.batches(self._batch_size):
            values = value_of(seen.uses)
            self.examples.check_finite(values.T if values.dim() == 2 else values, seen.batch)
            if self._targets is None:
                fingerprint.update(seen.batch)
                targets.append(seen.batch.y.numpy())
            start, stop = stop, stop + len(seen.outputs)
            yield slice(start, stop), (values / self._summary.identity.examples).cpu()
        if self._targets is None:
            self._targets = np.concatenate(targets)
            self._compare(fingerprint.hexdigest())

    def _compare(self, fingerprint: str) -> None:
        if fingerprint != self._summary.identity.fingerprint:
            log.warning(
                f"'{self.examples.source.spec}' is not the data that was summarized; the values are those of removing "
                f"examples that had been among the {self._summary.identity.examples:,} summarized"
            )


class Bilinear:
    """b^T Q a of many queries Q (Q, r, c) and examples as matrix products: the wider side is summed over first."""

    def __init__(self, queries: Tensor):
        self.queries = queries
        count, rows, columns = queries.shape
        self._rows_last = rows <= columns
        order = (2, 0, 1) if self._rows_last else (1, 0, 2)
        self._matrix = queries.permute(order).reshape(max(rows, columns), -1)  # (wide, Q * narrow)
        self._count, self._narrow = count, min(rows, columns)

    def __call__(self, b: Tensor, a: Tensor) -> Tensor:
        """Values (n, Q) of the factors b (n, r), a (n, c)."""
        wide, narrow = (a, b) if self._rows_last else (b, a)
        most = max(PRODUCTS // self._matrix.shape[1], 1)
        parts = []
        for part in chunks(len(wide), most):
            product = (wide[part] @ self._matrix).view(-1, self._count, self._narrow)
            parts.append((product @ narrow[part, :, None])[:, :, 0])
        return torch.cat(parts)

    def inner(self, g: Tensor) -> Tensor:
        """Values (n, Q) of whole gradients g (n, r, c)."""
        return g.flatten(1) @ self.queries.flatten(1).T


def chunks(count: int, size: int) -> Iterator[slice]:
    """The ranges of `size` that make up `count`."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
