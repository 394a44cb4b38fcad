"""Evidence on target values: how far each lies from what the layers and the network predict, that example left out.

The target y of an example is predicted from the features phi of a layer by ridge regression, once for each of four
length scales: the features, standardized, beside random Fourier features of a Gaussian kernel (Rahimi, Recht 2007).
A memorised wrong target cannot hide behind its own fit: with the leverage h_i = w_i phi_i^T (Phi^T W Phi + lambda)^-1
phi_i the prediction of the fit without example i is off by

    r_i = (y_i - prediction_i) / (1 - h_i)

in closed form (Allen 1974), and lambda is the one with the least mean |r|.  Residuals are averaged over the length
scales with weights 1 / s^3, s the mean of the smallest 95 % of the |r|.  The network's own residual y - f(x) is one
more, the layer '(outputs)'.

Memorising.  The network was trained on y_i: leaving i out moves its outputs to f_i + V_i (f_i - y_i) (Nickl et al.
2023), so y_i - f_i is only the share rho = 1 - V of the residual without i.  The features of late layers have learned
y_i as well.  The input has not, so its residual r_0 holds a wrong value in full, and <r_0, r_l> in proportion to rho_l:

    rho_l = d_l / max(d_1, 1/4), at most 1, rho_0 = 1,    d_l = <r_0, r_l> / <r_0, r_0>

d_1, of the first hidden layer, is below 1 mostly because that layer predicts better than the input, which holds for
the later ones too.  The sum of all layers' residuals is that of least variance that shows a wrong value in full: of
weights w_l >= 0 in sum 1 for r_l / rho_l.  A layer that shows less than a fiftieth of a wrong value has no say.  Where
rho was taken too small that sum is too large; it is brought to the slope of r_0 on it.

Trust.  The regression is repeated with weights w_i = (nu + 1) / (nu + z_i^2), those of a Student t of nu = 3 degrees
of freedom, where z is the residual of all layers together over its robust spread: outliers lose their say.

Of more than 8192 examples an even sample is fitted; all others were left out of the fit to begin with.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fsdtool.mislabel.features import OUTPUTS, ROWS, FeatureStore
from fsdtool.mislabel.regression.spreads import NORMAL_SPREAD, robust_unit

SCALES = (0.25, 0.5, 1.0, 2.0)  # of the kernel, in typical distances between two examples
FREQUENCIES = 128
LINEAR = 0.3  # weight of the plain features beside those of the kernel
RIDGES = torch.logspace(-4, 3.5, 16, dtype=torch.float64)
FITS = 3
FREEDOM = 3.0
USUAL, POWER = 0.95, 3  # how the size of a prediction's residuals weighs it
SAMPLE = 8192
LEAST_LEFT = 1e-3  # of 1 - h: an example that alone decides its own prediction
LEAST_REFERENCE = 0.25  # of d_1: below it the first hidden layer counts as one that has memorised, too
LEAST_SHOWN = 0.02  # of rho
SLIP = 10.0  # robust spreads, from which on a residual says little of rho
ALIKE = 0.01  # added to the variances, since layers of nearly the same residuals would get any weights


@dataclass(frozen=True)
class TargetEvidence:
    """What the records keep of the evidence on target values.

    residuals (N, O) float32: target minus its prediction from all other examples, in units of the target.  layers:
    names (L,), the outputs last, and weights (L,): the share of each in the prediction.
    """

    layers: tuple[str, ...]
    weights: Tensor
    residuals: Tensor


def target_evidence(
    store: FeatureStore, targets: Tensor, outputs: Tensor, seed: int, fits: int = FITS
) -> TargetEvidence:
    """Leave-one-out residuals of the targets (N, O) under all layers and the network's own (N, O).

    The layers of the store count from the input on.  fits: how often the regressions are fitted.
    """
    y = targets.double()
    mean, spread = y.mean(0), y.std(0, correction=0).clamp(min=1e-30)
    y, own = (y - mean) / spread, (outputs.double() - mean) / spread
    rows = torch.linspace(0, len(y) - 1, min(len(y), SAMPLE)).round().long().unique()
    layers = [_Layer(store.get(name), rows, seed) for name in store.layers]
    trust = torch.ones(len(rows), dtype=torch.float64)
    for _ in range(fits):
        each = torch.stack([*(layer.fit(y[rows], trust) for layer in layers), (y - own)[rows]], 1)
        factors, weights = combination(each, trust)
        found = torch.einsum("nlo,lo->no", each, factors)
        trust = _trust(found)
    residuals = found
    if len(rows) < len(y):
        residuals = factors.sum(0) * y - factors[-1] * own
        for layer, factor in zip(layers, factors, strict=False):
            layer.subtract(residuals, factor)
        residuals[rows] = found
    return TargetEvidence((*store.layers, OUTPUTS), weights.float(), (residuals * spread).float())


def combination(residuals: Tensor, trust: Tensor) -> tuple[Tensor, Tensor]:
    """The factors (L, O) of residuals (n, L, O) in their sum, and the weight (L,) of each layer, in sum 1.

    The first residual is the input's, the last the network's.  trust (n,) weighs the examples.
    """
    centred = residuals - torch.einsum("n,nlo->lo", trust, residuals) / trust.sum()
    rho = shown(centred)  # (O, L)
    moments = torch.einsum("n,nlo,nmo->olm", trust, centred, centred)
    heard = (rho > LEAST_SHOWN).all(0)
    rho = rho.clamp(min=LEAST_SHOWN)
    moments = moments / (rho[:, :, None] * rho[:, None, :])
    sizes = moments[:, heard][:, :, heard].diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-30)  # (O,)
    weights = torch.zeros(len(heard), dtype=moments.dtype)
    weights[heard] = least_variance((moments / sizes[:, None, None]).mean(0)[heard][:, heard])
    factors = weights[:, None] / rho.T
    return factors * told(centred[:, 0], torch.einsum("nlo,lo->no", centred, factors)), weights


def shown(residuals: Tensor) -> Tensor:
    """The share rho (O, L) of a wrong value that each of the residuals (n, L, O) around zero shows."""
    first = residuals[:, 0]
    moments = torch.einsum("no,no,nlo->ol", _usual(first), first, residuals)
    slopes = moments / moments[:, :1].clamp(min=1e-30)
    reference = slopes[:, 1:2].clamp(LEAST_REFERENCE, 1) if residuals.shape[1] > 2 else 1.0
    rho = (slopes / reference).clamp(0, 1)
    rho[:, 0] = 1
    return rho


def told(first: Tensor, residuals: Tensor) -> Tensor:
    """The slope (O,) of the input's residuals (n, O) on those of all layers: below 1 where rho was taken too small."""
    weights = _usual(residuals)
    slopes = (weights * first * residuals).sum(0) / (weights * residuals.square()).sum(0).clamp(min=1e-30)
    return slopes.clamp(LEAST_REFERENCE, 1)


def _usual(residuals: Tensor) -> Tensor:
    """Weights (n, O) of residuals (n, O) in a moment: a wrong value counts, a slip of the decimal point does not."""
    units = NORMAL_SPREAD * residuals.abs().median(0).values.clamp(min=1e-30)
    return 1 / (1 + (residuals / (SLIP * units)).square())


def least_variance(moments: Tensor) -> Tensor:
    """The weights (L,) >= 0 in sum 1 whose sum has the least variance, given the second moments (L, L).

    A weight below zero is set to zero, the most negative one first, and the others are solved for again.
    """
    moments = moments + torch.diag(ALIKE * moments.diagonal() + 1e-12)
    kept = torch.arange(len(moments))
    while True:
        found = torch.linalg.solve(moments[kept][:, kept], torch.ones(len(kept), dtype=moments.dtype))
        if found.min() >= 0:
            break
        kept = kept[torch.arange(len(kept)) != found.argmin()]
    weights = torch.zeros(len(moments), dtype=moments.dtype)
    weights[kept] = found / found.sum()
    return weights


def weighted(residuals: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (N, O) of residuals (N, L, O) under the weights (L,), in sum 1, that their sizes give."""
    usual = residuals.abs().sort(0).values[: max(int(USUAL * len(residuals)), 1)]
    size = usual.mean(0)  # (L, O)
    weights = (size / size.mean(0).clamp(min=1e-12)).mean(1).clamp(min=1e-6) ** -POWER
    weights = weights / weights.sum()
    return torch.einsum("nlo,l->no", residuals, weights), weights


def _trust(residuals: Tensor) -> Tensor:
    units = torch.tensor([robust_unit(column.numpy()) for column in residuals.T], dtype=torch.float64)
    z = (residuals - residuals.median(0).values) / units
    return (FREEDOM + 1) / (FREEDOM + z.abs().amax(1).square())


class _Layer:
    """The regressions on one layer's features, one for each length scale."""

    def __init__(self, features: np.ndarray, rows: Tensor, seed: int):
        self.features, self.rows = features, rows.numpy()
        x = torch.from_numpy(features[self.rows]).double()
        self.mean, deviation = x.mean(0), x.std(0, correction=0)
        self.live = deviation > 1e-6 * (deviation + self.mean.abs())
        self.deviation = deviation[self.live]
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(len(self.deviation), FREQUENCIES, generator=generator, dtype=torch.float64)
        distance = (2 * max(len(self.deviation), 1)) ** 0.5  # typical of two examples, in standardized features
        self.frequencies = [drawn / (scale * distance) for scale in SCALES]

    def fit(self, y: Tensor, trust: Tensor) -> Tensor:
        """Leave-one-out residuals (n, O) of the targets y (n, O) of the sample, each with its trust (n,)."""
        z = self._standard(self.features[self.rows])
        self.ridges = [_Ridge(_expand(z, frequencies), y, trust) for frequencies in self.frequencies]
        found, self.weights = weighted(torch.stack([ridge.residuals for ridge in self.ridges], 1))
        return found

    def subtract(self, y: Tensor, weight: Tensor) -> None:
        """Take `weight` (O,) times the predictions of all examples, as if none had been fitted, from y (N, O)."""
        for start in range(0, len(y), ROWS):
            block = slice(start, start + ROWS)
            z = self._standard(self.features[block])
            for share, ridge, frequencies in zip(self.weights.tolist(), self.ridges, self.frequencies, strict=True):
                y[block] -= weight * share * ridge.predict(_expand(z, frequencies))

    def _standard(self, features: np.ndarray) -> Tensor:
        return (torch.from_numpy(np.asarray(features)).double() - self.mean)[:, self.live] / self.deviation


def _expand(z: Tensor, frequencies: Tensor) -> Tensor:
    """Regressors (n, 2 F + D) from standardized features z (n, D)."""
    phase = z @ frequencies
    kernel = torch.cat([phase.cos(), phase.sin()], 1) / FREQUENCIES**0.5
    return torch.cat([kernel, LINEAR * z / max(z.shape[1], 1) ** 0.5], 1)


class _Ridge:
    """A weighted ridge regression with an unpenalized constant, its lambda chosen by leave-one-out."""

    def __init__(self, phi: Tensor, y: Tensor, weights: Tensor):
        total = weights.sum()
        self.middle, self.constant = weights @ phi / total, weights @ y / total
        phi, y = phi - self.middle, y - self.constant
        values, vectors = torch.linalg.eigh((phi * weights[:, None]).T @ phi)
        values, turned = values.clamp(min=0), phi @ vectors
        moments = turned.T @ (weights[:, None] * y)
        best = torch.inf
        for ridge in RIDGES:
            inverse = 1 / (values + ridge)
            leverage = weights * (turned.square() @ inverse + 1 / total)
            left_out = (y - turned @ (inverse[:, None] * moments)) / (1 - leverage).clamp(min=LEAST_LEFT)[:, None]
            size = float(left_out.abs().mean())
            if size < best:
                best, self.residuals, self.slope = size, left_out, vectors @ (inverse[:, None] * moments)

    def predict(self, phi: Tensor) -> Tensor:
        """Predictions (n, O) for examples that were not fitted."""
        return self.constant + (phi - self.middle) @ self.slope
