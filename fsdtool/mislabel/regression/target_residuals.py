"""Evidence on target values: the residuals of predictions from each layer, with the example itself left out.

The target y of an example is predicted from the features phi of a layer by ridge regression, once for each of four
length scales.  The regressors are the standardized features and random Fourier features of a Gaussian kernel (Rahimi,
Recht 2007).  A memorised wrong target cannot hide behind its own fit: with the leverage
h_i = w_i phi_i^T (Phi^T W Phi + lambda)^-1 phi_i the residual of the fit without example i is, in closed form
(Allen 1974),

    r_i = (y_i - prediction_i) / (1 - h_i)

and lambda is the one with the least mean |r|.  Residuals are averaged over the length scales with weights 1 / s^3, s
the mean of the smallest 95 % of the |r|.  The network's own residual y - f(x) is one more, the layer '(outputs)'.

Memorised targets.  The network was trained on y_i: leaving i out moves its outputs to f_i + V_i (f_i - y_i) (Nickl et
al. 2023), so y_i - f_i is only the share rho = 1 - V of the residual without i.  The features of late layers have
learned y_i as well.  The input has not, so its residual r_0 shows a wrong value in full, and <r_0, r_l> is
proportional to rho_l:

    rho_l = d_l / max(d_1, 1/4), at most 1, rho_0 = 1,    d_l = <r_0, r_l> / <r_0, r_0>

d_1, of the first hidden layer, is below 1 mostly because that layer predicts better than the input, which is true of
the later layers too; so it is divided out.

Combination.  The residuals r_l / rho_l each show a wrong value in full.  Their weighted mean, with weights w_l >= 0 in
sum 1, is the one of least variance.  A layer with rho below a fiftieth is left out.  Where rho was estimated too small
the mean is too large; it is multiplied by the slope of r_0 on it.

Sample weights.  The regressions are repeated with the weights w_i = (nu + 1) / (nu + z_i^2) of a Student t of nu = 3
degrees of freedom, where z is the combined residual over its robust deviation: outliers lose their influence.

If there are more than 8192 examples, an even sample is fitted; no other example was in the fit in the first place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fsdtool.mislabel.features import OUTPUTS, ROWS, FeatureStore
from fsdtool.mislabel.regression.spreads import NORMAL_SPREAD, robust_deviation

# The benchmark of wrong targets (tests/benchmarks/README.md) names the tables on which these values were chosen.
SCALES = (0.25, 0.5, 1.0, 2.0)  # length scales of the kernel, in typical distances between two examples
FREQUENCIES = 128  # random Fourier features: so many cosines and as many sines
LINEAR = 0.3  # weight of the plain features beside those of the kernel
RIDGES = torch.logspace(-4, 3.5, 16, dtype=torch.float64)  # lambdas that are tried
FITS = 3  # rounds of regressions and sample weights
FREEDOM = 3.0  # nu of the sample weights
USUAL, POWER = 0.95, 3  # share of the residuals in s, and its power in the weight of a length scale
SAMPLE = 8192  # examples that are fitted
LEAST_LEFT = 1e-3  # least 1 - h, for an example that determines its own prediction alone
LEAST_REFERENCE = 0.25  # least d_1 that is divided out: below it the first hidden layer has memorised targets, too
LEAST_SHOWN = 0.02  # least rho of a layer that is used
SLIP = 10.0  # robust deviations beyond which a residual has little weight in rho
ALIKE = 0.01  # relative ridge on the variances: weights of layers with nearly equal residuals would be arbitrary


@dataclass(frozen=True)
class TargetEvidence:
    """What the records keep of the evidence on target values.

    layers: names (L,), the outputs last.  weights: (L,) float32, the share of each in the prediction.  residuals:
    (N, O) float32, target less its prediction from all other examples, in units of the target.  rows: (n,) int64, the
    examples that were fitted; first: (n, O), their residuals by the first layer alone.
    """

    layers: tuple[str, ...]
    weights: Tensor
    residuals: Tensor
    rows: Tensor
    first: Tensor


def target_evidence(
    store: FeatureStore, targets: Tensor, outputs: Tensor, seed: int, fits: int = FITS
) -> TargetEvidence:
    """Leave-one-out residuals of the targets (N, O), by all layers and the network's outputs (N, O).

    store: features of the layers, the input first.  seed: of the random Fourier features.  fits: rounds of regressions.
    """
    y = targets.double()
    mean, spread = y.mean(0), y.std(0, correction=0).clamp(min=1e-30)
    y, own = (y - mean) / spread, (outputs.double() - mean) / spread
    rows = torch.linspace(0, len(y) - 1, min(len(y), SAMPLE)).round().long().unique()
    layers = [_Layer(store.get(name), rows, seed) for name in store.layers]
    sample_weight = torch.ones(len(rows), dtype=torch.float64)
    for _ in range(fits):
        each = torch.stack([*(layer.fit(y[rows], sample_weight) for layer in layers), (y - own)[rows]], 1)
        factors, weights = layer_factors(each, sample_weight)
        found = torch.einsum("nlo,lo->no", each, factors)
        sample_weight = _sample_weights(found)
    residuals = found
    if len(rows) < len(y):
        residuals = factors.sum(0) * y - factors[-1] * own
        for layer, factor in zip(layers, factors, strict=False):
            layer.subtract(residuals, factor)
        residuals[rows] = found
    return TargetEvidence(
        (*store.layers, OUTPUTS), weights.float(), (residuals * spread).float(), rows, each[:, 0] * spread
    )


def layer_factors(residuals: Tensor, sample_weight: Tensor) -> tuple[Tensor, Tensor]:
    """The factors (L, O) by which residuals (n, L, O) are added up, and the weights (L,) of the layers, in sum 1.

    The first residual is the input's, the last the network's.  sample_weight: (n,).
    """
    centred = residuals - torch.einsum("n,nlo->lo", sample_weight, residuals) / sample_weight.sum()
    rho = share_shown(centred)  # (O, L)
    moments = torch.einsum("n,nlo,nmo->olm", sample_weight, centred, centred)
    used = (rho > LEAST_SHOWN).all(0)
    rho = rho.clamp(min=LEAST_SHOWN)
    moments = moments / (rho[:, :, None] * rho[:, None, :])
    sizes = moments[:, used][:, :, used].diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-30)  # (O,)
    weights = torch.zeros(len(used), dtype=moments.dtype)
    weights[used] = least_variance((moments / sizes[:, None, None]).mean(0)[used][:, used])
    factors = weights[:, None] / rho.T
    return factors * slope_to_input(centred[:, 0], torch.einsum("nlo,lo->no", centred, factors)), weights


def share_shown(residuals: Tensor) -> Tensor:
    """The share rho (O, L) of a wrong value that each of the residuals (n, L, O) around zero shows."""
    first = residuals[:, 0]
    moments = torch.einsum("no,no,nlo->ol", _moment_weights(first), first, residuals)
    slopes = moments / moments[:, :1].clamp(min=1e-30)
    reference = slopes[:, 1:2].clamp(LEAST_REFERENCE, 1) if residuals.shape[1] > 2 else 1.0
    rho = (slopes / reference).clamp(0, 1)
    rho[:, 0] = 1
    return rho


def slope_to_input(first: Tensor, residuals: Tensor) -> Tensor:
    """The slope (O,) of the input's residuals `first` (n, O) on the combined ones: below 1 where rho was too small."""
    weights = _moment_weights(residuals)
    slopes = (weights * first * residuals).sum(0) / (weights * residuals.square()).sum(0).clamp(min=1e-30)
    return slopes.clamp(LEAST_REFERENCE, 1)


def _moment_weights(residuals: Tensor) -> Tensor:
    """Weights (n, O) of residuals (n, O) in moments: small for the farthest ones, which would dominate them."""
    deviations = NORMAL_SPREAD * residuals.abs().median(0).values.clamp(min=1e-30)
    return 1 / (1 + (residuals / (SLIP * deviations)).square())


def least_variance(moments: Tensor) -> Tensor:
    """The weights (L,) >= 0 in sum 1 with which residuals of these second moments (L, L) have the least variance.

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


def mean_over_scales(residuals: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted mean (N, O) of residuals (N, S, O) over the length scales, and the weights (S,) in sum 1."""
    usual = residuals.abs().sort(0).values[: max(int(USUAL * len(residuals)), 1)]
    size = usual.mean(0)  # (S, O)
    weights = (size / size.mean(0).clamp(min=1e-12)).mean(1).clamp(min=1e-6) ** -POWER
    weights = weights / weights.sum()
    return torch.einsum("nlo,l->no", residuals, weights), weights


def _sample_weights(residuals: Tensor) -> Tensor:
    """Weights (n,) of a Student t, by the largest of the combined residuals (n, O) of each example."""
    deviations = torch.tensor([robust_deviation(column.numpy()) for column in residuals.T], dtype=torch.float64)
    z = (residuals - residuals.median(0).values) / deviations
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

    def fit(self, y: Tensor, sample_weight: Tensor) -> Tensor:
        """Leave-one-out residuals (n, O) of the targets y (n, O) of the sample, with these weights (n,)."""
        z = self._standard(self.features[self.rows])
        self.ridges = [_Ridge(_expand(z, frequencies), y, sample_weight) for frequencies in self.frequencies]
        found, self.weights = mean_over_scales(torch.stack([ridge.residuals for ridge in self.ridges], 1))
        return found

    def subtract(self, y: Tensor, weight: Tensor) -> None:
        """Subtract `weight` (O,) times the predictions for all examples, leverages ignored, from y (N, O)."""
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
