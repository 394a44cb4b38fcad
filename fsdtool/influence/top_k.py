"""The strongest of many scores that come in chunks: the k largest and the k smallest of each query."""

from __future__ import annotations

import torch
from torch import Tensor


class TopK:
    """The k largest and k smallest scores of each query over chunks of examples, ties in the order of the examples."""

    def __init__(self, queries: int, k: int):
        self.k = k
        self.values = {sign: torch.empty(queries, 0) for sign in (1, -1)}
        self.rows = {sign: torch.empty(queries, 0, dtype=torch.int64) for sign in (1, -1)}

    def least(self, sign: int) -> Tensor | None:
        """The k-th largest of `sign` * score of each query so far (Q, 1); None before there are k."""
        return self.values[sign][:, -1:] if self.values[sign].shape[1] == self.k else None

    def update(self, scores: Tensor, start: int) -> None:
        """Take in the scores (Q, n) of the examples from row `start` on."""
        for sign in (1, -1):
            least = self.least(sign)
            if least is None:
                self._add(sign, sign * scores, torch.arange(start, start + scores.shape[1]).expand_as(scores))
                continue
            # An example that only ties with the k-th comes after it: what is not above for any query is left out.
            above = (scores > least if sign > 0 else scores < -least).any(0)
            if above.any():
                columns = above.nonzero()[:, 0]
                self._add(sign, sign * scores[:, columns], (start + columns).expand(len(scores), -1))

    def _add(self, sign: int, values: Tensor, rows: Tensor) -> None:
        values = torch.cat([self.values[sign], values], 1)
        order = largest(values, min(self.k, values.shape[1]))
        self.values[sign] = values.gather(1, order)
        self.rows[sign] = torch.cat([self.rows[sign], rows], 1).gather(1, order)

    def finalize(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(rows, values) of the proponents and of the opponents, strongest first."""
        return (self.rows[1], self.values[1]), (self.rows[-1], -self.values[-1])


def largest(values: Tensor, k: int) -> Tensor:
    """Columns (Q, k) of each row's k largest entries, largest first, ties in column order (unlike topk)."""
    least = values.topk(k, dim=1).values[:, -1:]
    above, tied = values > least, values == least
    chosen = above | (tied & (tied.cumsum(1) <= k - above.sum(1, keepdim=True)))
    columns = chosen.nonzero()[:, 1].view(len(values), k)
    order = values.gather(1, columns).sort(dim=1, descending=True, stable=True).indices
    return columns.gather(1, order)
