"""Class models of a layer's features, and the log-likelihood of each example with the example itself left out.

In coordinates z in which the shrunk covariance of all classes is the identity, class c has its own mean mu_c and the
covariance (regularized discriminant analysis, Friedman 1989)
    Sigma_c = (1 - k_c) I + k_c S_c,        k_c = 0.12 n_c / (n_c + D / 4)
with S_c its own sample covariance; if that takes too much memory, k_c = 0.  Features have heavy tails: with
q_c = (z - mu_c)^T Sigma_c^-1 (z - mu_c) the log-likelihood is that of a Student t of D degrees of freedom, up to a
constant
    -(log det Sigma_c) / 2 - D log(1 + q_c / D)
Features are divided by their standard deviation within classes.  The covariance of all classes is shrunk towards the
identity by the oracle approximating shrinkage of Chen, Wiesel, Eldar, Hero (2010).

Leave-one-out in closed form.  An example has the sample weight w in its class y, whose weights sum to n_y.  With
d = z - mu_y, leaving it out moves the mean to mu_y - w d / (n_y - w) and subtracts g_c d d^T from Sigma_c, where
g_c = (1 - k_c) beta + [c = y] k_c w / (n_y - w) and beta = (1 - shrinkage) w n_y / (n_y - w) / (N - classes), N the sum
of all weights.  Scale, shrinkage and divisors are kept as they are.  By Sherman and Morrison, with P_c = Sigma_c^-1 and
e_c = d^T P_c d,
    c != y:  q_c + g_c ((z - mu_c)^T P_c d)^2 / (1 - g_c e_c)
    c == y:  (n_y / (n_y - w))^2 q_y / (1 - g_y e_y)
and log det Sigma_c grows by log(1 - g_c e_c).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from fsdtool.mislabel.discriminant import Discriminant, student_log_density
from fsdtool.mislabel.features import ROWS

OWN_SHARE = 0.12  # of S_c in Sigma_c, for large classes
RIVALS = 10  # strongest classes that are compared by their own covariances, beside the given label's
BANDS = 4  # row bands of a triangular factor; the zeros to their right are not multiplied
OWN_NUMBERS = 2**23  # most numbers K d max(d, K) held; above it all classes share the pooled covariance
LEAST_EIGENVALUE = 1e-8  # of the shrunk correlation matrix
WEAKEST = -1e4  # nats below the strongest class at which log-likelihoods are clipped: float16 ends at 65504


class ClassGaussians:
    """The models of all classes for one layer.

    features: (N, D) float32.  labels: (N,) int64.  sample_weight: (N,) float64, how much each example counts in its
    class.  own: whether classes have covariances of their own.
    """

    def __init__(self, features: np.ndarray, labels: Tensor, classes: int, sample_weight: Tensor, own: bool):
        self.features, self.labels, self.sample_weight = features, labels, sample_weight
        self.members = torch.bincount(labels, minlength=classes)
        self.count = torch.bincount(labels, weights=sample_weight, minlength=classes)
        sums = torch.zeros(classes, features.shape[1], dtype=torch.float64)
        for rows, x in self._blocks():
            sums.index_add_(0, labels[rows], x.double() * sample_weight[rows, None])
        means = sums / self.count.clamp(min=1e-12)[:, None]
        scatter = torch.zeros(features.shape[1], features.shape[1], dtype=torch.float64)
        near, root = means.float(), sample_weight.sqrt().float()
        for rows, x in self._blocks():
            d = (x - near[labels[rows]]) * root[rows, None]
            scatter += d.T @ d
        self.freedom = max(float(self.count.sum()) - int((self.members > 0).sum()), 1.0)
        variance = scatter.diagonal() / self.freedom
        # A feature that is constant up to the rounding of float32 is left out.
        self.live = variance > 1e-12 * (variance + means.square().amax(0))
        self.scale = variance[self.live].rsqrt()
        correlation = scatter[self.live][:, self.live] / self.freedom * torch.outer(self.scale, self.scale)
        self.shrinkage = oracle_shrinkage(correlation, self.freedom)
        shrunk = (1 - self.shrinkage) * correlation
        shrunk.diagonal().add_(self.shrinkage)
        self.root = _inverse_root(shrunk)
        self.middle = means.mean(0).float().double()  # subtracted first, so that float32 keeps the digits
        self.whiten = (self.scale[:, None] * self.root).float()  # z = (x - middle)[live] whiten
        self.centres = ((means - self.middle)[:, self.live] * self.scale) @ self.root
        size = len(self.scale)
        self.own = self._own_covariances() if own and classes * size * max(size, classes) <= OWN_NUMBERS else None

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, len(self.labels), ROWS):
            rows = slice(start, min(start + ROWS, len(self.labels)))
            yield rows, self._read(rows)

    def _read(self, rows: slice | np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(self.features[rows]))

    def _z(self, rows: slice | np.ndarray) -> Tensor:
        """Coordinates z (n, d) float32 of some examples."""
        x = self._read(rows) - self.middle.float()
        return (x if self.live.all() else x[:, self.live]) @ self.whiten

    def _own_covariances(self) -> list[_ClassCovariance]:
        size = len(self.scale)
        share = OWN_SHARE * self.count / (self.count + size / 4)
        found = []
        for c, k in enumerate(share.tolist()):
            scatter = torch.zeros(size, size)
            for rows in torch.from_numpy(np.flatnonzero(self.labels.numpy() == c)).split(ROWS):
                d = (self._z(rows.numpy()) - self.centres[c].float()) * self.sample_weight[rows, None].sqrt().float()
                scatter += d.T @ d
            covariance = k * scatter.double() / self.count[c].clamp(min=1e-12)
            covariance.diagonal().add_(1 - k)
            found.append(_ClassCovariance(c, covariance, self.centres, k))
        return found

    def log_likelihood(self, rows: slice) -> Tensor:
        """Leave-one-out log-likelihood (n, classes) float32 of the examples `rows`, in nats, at most 0."""
        y, w = self.labels[rows], self.sample_weight[rows, None]
        n = self.count[y][:, None]
        single = (
            self.members[y][:, None] == 1
        )  # without the example its class is empty, so its label gets no evidence either way
        rest = torch.where(single, 1.0, n - w)
        beta = (1 - self.shrinkage) * w * n / (rest * self.freedom)
        z, farther = self._z(rows), (n / rest).square()
        found = self._common(z, y, beta, farther)
        if self.own is not None:
            found = self._by_own_covariances(self.own, found, z, y, torch.cat([beta, w / rest, farther], 1))
        found[:, self.members == 0] = -torch.inf  # a class without examples has no model
        best_other = found.scatter(1, y[:, None], -torch.inf).max(1, keepdim=True).values
        return bounded(found.scatter(1, y[:, None], torch.where(single, best_other, found.gather(1, y[:, None]))))

    def _common(self, z: Tensor, y: Tensor, beta: Tensor, farther: Tensor) -> Tensor:
        """Log-likelihood (n, classes) float64 under the covariance of all classes, without terms equal for all classes.

        Distances between centres are computed for the labels of these examples only: all pairs of 10,000 classes would
        take 800 MB.
        """
        z, lengths = z.double(), self.centres.square().sum(1)
        q = (torch.linalg.vecdot(z, z)[:, None] + lengths - 2 * (z @ self.centres.T)).clamp(min=0)
        given = q.gather(1, y[:, None])
        present, place = y.unique(return_inverse=True)
        apart = (lengths[present, None] + lengths - 2 * (self.centres[present] @ self.centres.T)).clamp(min=0)[place]
        cross = (q + given - apart) / 2  # (z - centre_c) . (z - centre_y)
        left = (1 - beta * given).clamp(min=1e-6)
        return student_log_density(
            (q + beta * cross.square() / left).scatter(1, y[:, None], farther * given / left), z.shape[1]
        )

    def _by_own_covariances(
        self, own: list[_ClassCovariance], common: Tensor, z: Tensor, y: Tensor, leaving: Tensor
    ) -> Tensor:
        """The same under the classes' `own` covariances, for the given class and the strongest RIVALS.

        Classes that are no rivals keep their pooled log-likelihood `common`, shifted below the rivals.  leaving (n, 3):
        beta, w / (n_y - w) and (n_y / (n_y - w))^2 of each example.
        """
        rivals = common.topk(min(RIVALS, common.shape[1]), dim=1).indices
        is_rival = torch.zeros_like(common, dtype=torch.bool).scatter(1, rivals, True)
        found = torch.full_like(common, torch.inf)
        for c, of_class in enumerate(own):
            rows = (is_rival[:, c] | (y == c)).nonzero()[:, 0]
            every = len(rows) == len(z)
            found[rows, c] = of_class.log_likelihood(*((z, y, leaving) if every else (z[rows], y[rows], leaving[rows])))
        shift = (found - common).gather(1, rivals).amin(1, keepdim=True)
        return torch.where(torch.isinf(found), common + shift, found)

    def discriminant(self) -> Discriminant:
        """The means and the pooled covariance, for examples that are not in the data."""
        scale = torch.zeros(len(self.live), dtype=torch.float64)
        scale[self.live] = self.scale
        root = torch.zeros(len(self.live), len(self.scale))
        root[self.live] = self.root.float()
        return Discriminant(self.middle, scale.float(), root.half(), self.centres.float())


class _ClassCovariance:
    """Class c's covariance (d, d) as the inverse L^-1 of its Cholesky factor L.

    Stack L^-1 and (L^-1 (mu_y - mu_c))^T L^-1 for all y; multiply in row bands to skip the zero triangle.  So one
    product gives t = L^-1 (z - mu_c), (n, d), and t . L^-1 (mu_y - mu_c), (n, classes).
    """

    def __init__(self, c: int, covariance: Tensor, centres: Tensor, share: float):
        factor = torch.linalg.cholesky(covariance)
        identity = torch.eye(len(factor), dtype=factor.dtype)
        inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
        self.label, self.share = c, share
        apart = (centres - centres[c]) @ inverse.T
        whole = torch.cat([inverse, apart @ inverse])
        start = -(whole @ centres[c]).float()
        self.bands = [(rows, start[rows], whole[rows, : rows.stop].float()) for rows in _bands(*whole.shape)]
        self.apart_square = apart.square().sum(1).float()
        self.log_determinant = 2 * float(factor.diagonal().log().sum())

    def log_likelihood(self, z: Tensor, y: Tensor, leaving: Tensor) -> Tensor:
        """Leave-one-out log-likelihood (n,) float64 of examples z (n, d) labelled y (n,)."""
        beta, portion, farther = leaving.unbind(1)
        size = z.shape[1]
        found = z.new_empty(len(z), size + len(self.apart_square))
        for rows, start, band in self.bands:
            torch.addmm(start, z[:, : rows.stop], band.T, out=found[:, rows])
        q = torch.linalg.vecdot(found[:, :size], found[:, :size]).double()
        along = found[:, size:].gather(1, y[:, None])[:, 0].double()
        cross = q - along  # (z - mu_c)^T P_c (z - mu_y)
        e = (cross - along + self.apart_square[y]).clamp(min=0)
        given = y == self.label
        g = (1 - self.share) * beta + torch.where(given, self.share * portion, 0.0)
        left = (1 - g * e).clamp(min=1e-6)
        q = q + g * cross.square() / left
        q = torch.where(given, farther * e / left, q)
        return student_log_density(q, size) - (self.log_determinant + left.log()) / 2


def _bands(rows: int, columns: int) -> list[slice]:
    """Row bands of a matrix (rows, columns) whose upper part is lower triangular: columns past a band's end are zero.

    With four bands the product without those columns takes 5/8 of the time.
    """
    step = -(-columns // BANDS) or 1
    starts = list(range(0, columns, step)) or [0]
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], rows], strict=True)]


def _inverse_root(matrix: Tensor) -> Tensor:
    """R (d, d) with R^T matrix R = I; eigenvalues that rounding has left near or below zero are raised."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if not failed and float(factor.diagonal().square().amin() if len(factor) else 1) > LEAST_EIGENVALUE:
        identity = torch.eye(len(factor), dtype=factor.dtype)
        return torch.linalg.solve_triangular(factor, identity, upper=False).T
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    return vectors * eigenvalues.clamp(min=LEAST_EIGENVALUE).rsqrt()


def bounded(log_likelihood: Tensor) -> Tensor:
    """Log-likelihoods (n, classes) float32 less that of the strongest class, clipped to -10,000 and 0 nats."""
    strongest = log_likelihood.amax(1, keepdim=True).clamp(min=torch.finfo(log_likelihood.dtype).min)
    return (log_likelihood - strongest).clamp(min=WEAKEST).float()


def oracle_shrinkage(correlation: Tensor, n: float) -> float:
    """Weight of the identity in [0, 1] (Chen et al. 2010, equation 23)."""
    p = max(len(correlation), 1)
    trace, trace_square = float(correlation.trace()), float(correlation.square().sum())
    numerator = (1 - 2 / p) * trace_square + trace**2
    denominator = (n + 1 - 2 / p) * (trace_square - trace**2 / p)
    return min(1.0, numerator / denominator) if denominator > 0 else 1.0
