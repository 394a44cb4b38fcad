"""Exact top-k of very many records, by a low-rank upper bound on their scores.

For a query and a record of rank one, g_q = b_q a_q^T and g_i = b_i a_i^T, a weight contributes

    (b_q * b_i)^T D (a_q * a_i),  D = 1 / (eigenvalues + lambda)  (ks, ka).

D is nearly of low rank: with weights w_s, w_a (roots of the mean eigenvalues) the matrix w_s D w_a = U Sigma V^T is
cut after r terms, which are r products of (n, ks) (ks, Q) and (n, ka) (ka, Q) instead of one of (n, ks) (ks, ka Q).
What is left out is at most sigma_(r+1) |b_q * b_i / w_s| |a_q * a_i / w_a|, known for the price of one more term.  Only
where that bound does not rule a record out of the k strongest is the score computed in full.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fsdtool.curvature.ekfac import BlockCurvature
from fsdtool.influence.top_k import TopK

RANK = 4
PAIRS = 2**16  # scored in full at once
ROUNDING = 1e-5  # of the sums, relative to what they add up

Pairs = Sequence[tuple[Tensor, Tensor]]


class Screen:
    """Queries as factors b (Q, ks), a (Q, ka) per weight, ready to meet chunks of records."""

    def __init__(self, curvature: list[BlockCurvature], queries: Pairs):
        self._weights = [_Weight(c, b, a) for c, (b, a) in zip(curvature, queries, strict=True)]

    def scores(self, records: Pairs, best: TopK, scale: float) -> Tensor:
        """Scores (Q, n) of records b (n, ks), a (n, ka) per weight, times `scale`.

        In full for every record that can be among the k strongest of a query, so far in `best`; for the
        others a value that is too weak as well.
        """
        about, error = torch.zeros(()), torch.zeros(())
        for weight, (b, a) in zip(self._weights, records, strict=True):
            value, bound = weight.bounds(b, a)
            about, error = about + value, error + bound
        about, error = (about * scale).T.contiguous(), (error * scale).T  # (Q, n)
        possible = torch.zeros_like(about, dtype=torch.bool)
        for sign in (1, -1):
            possible |= sign * about + error >= self._least(sign * about - error, best, sign)
        q, i = possible.nonzero().unbind(1)
        for part in torch.arange(len(q)).split(PAIRS):
            full = sum(w.full(q[part], b, a, i[part]) for w, (b, a) in zip(self._weights, records, strict=True))
            about[q[part], i[part]] = full * scale
        return about

    def _least(self, lower: Tensor, best: TopK, sign: int) -> Tensor:
        """What a record must reach (Q, 1): the k-th so far, or the k-th of what those of this chunk have at least."""
        known = best.least(sign)
        if known is None:
            return lower.topk(best.k, 1).values[:, -1:] if best.k <= lower.shape[1] else lower.new_tensor(-torch.inf)
        return known.to(lower)


class _Weight:
    """One weight's part: the cut form of D and the whole."""

    def __init__(self, c: BlockCurvature, b: Tensor, a: Tensor):
        self.inverse, self.b, self.a = c.damped.reciprocal(), b, a
        rows, columns = (_root_mean(c.eigenvalues, axis) for axis in (1, 0))
        u, sigma, v = torch.linalg.svd(self.inverse * rows[:, None] * columns, full_matrices=False)
        self.rank = min(RANK, len(sigma))
        self.left_out = float(sigma[self.rank]) if self.rank < len(sigma) else 0.0
        self.left_out += ROUNDING * float(sigma[0])
        left, right = u[:, : self.rank] * sigma[: self.rank], v[: self.rank].T
        # (ks, r Q) and (ka, r Q)
        self.output = (left[:, :, None] * (b / rows).T[:, None]).flatten(1)
        self.input = (right[:, :, None] * (a / columns).T[:, None]).flatten(1)
        self.output_square, self.input_square = (b / rows).square().T, (a / columns).square().T

    def bounds(self, b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """About the contributions (n, Q) of records, and how far these may be off."""
        product = (b @ self.output).mul_(a @ self.input)
        about = product.view(len(b), self.rank, -1).sum(1)
        length = ((b.square() @ self.output_square) * (a.square() @ self.input_square)).sqrt()
        return about, self.left_out * length

    def full(self, q: Tensor, b: Tensor, a: Tensor, i: Tensor) -> Tensor:
        """The contributions (p,) of pairs of query q and record i."""
        return (((self.b[q] * b[i]) @ self.inverse) * (self.a[q] * a[i])).sum(1)


def _root_mean(eigenvalues: Tensor, axis: int) -> Tensor:
    means = eigenvalues.mean(axis)
    return means.clamp(min=float(means.max()) * 1e-6 or 1.0).sqrt()
