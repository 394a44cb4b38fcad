"""How far to trust a layer's evidence on labels, from how the layers agree, without any clean label.

The margin of a layer on an example is its evidence for the strongest other class minus that for the given
label.  Early layers keep seeing the true class when the outputs have memorised a wrong label; which layers to
trust follows from how they agree.  Rank-normalised margins of layers that are independent given the truth
have correlations lambda_l lambda_m off the diagonal (the spectral meta-learner of Parisi et al. 2014); the
loadings lambda are fitted and a layer is weighted by lambda / (1 - lambda^2), loading over uniqueness.

The combined evidence is the weighted sum over layers, each scaled by the spread of its margins, in the unit
under which a softmax over classes best predicts the given labels.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_LOADING = 0.97  # a loading near one (a Heywood case) would give one layer all the weight
SAMPLE = 65536  # examples on which the unit of the evidence is fitted


def combine(evidence: Tensor) -> tuple[Tensor, Tensor]:
    """Combined evidence (N, T) of all layers for each candidate, and the weights (L,) of the layers.

    evidence: (N, L, T), nats, relative to the given label in column 0.
    """
    factors, weights = combination(evidence)
    return weighted(evidence, factors), weights


def combination(evidence: Tensor) -> tuple[Tensor, Tensor]:
    """Factors (L,) by which the layers' evidence (N, L, T) is added up, unit included, and their weights (L,)."""
    margins = evidence[:, :, 1:].amax(2).float()
    weights = layer_weights(margins)
    scale = weights / margins.std(0, correction=0).clamp(min=1e-12)
    return scale * _temperature(weighted(evidence, scale)), weights


def weighted(evidence: Tensor, factors: Tensor) -> Tensor:
    """The sum (N, T) float32 over layers of evidence (N, L, T) times factors (L,)."""
    return torch.cat([torch.einsum("nlt,l->nt", part.float(), factors) for part in evidence.split(SAMPLE)])


def layer_weights(margins: Tensor) -> Tensor:
    """Weights (L,) of layers with margins (N, L): loading over uniqueness, at least 0, in sum 1."""
    examples, layers = margins.shape
    live = (margins != margins[:1]).any(0)
    if examples < 3 or int(live.sum()) < 3:  # fewer than three layers determine no loadings
        return live.float() / live.sum().clamp(min=1)
    normal = torch.stack([_normal_scores(margins[:, i]) for i in live.nonzero()[:, 0].tolist()], 1)
    loadings = torch.zeros(layers, dtype=torch.float64)
    loadings[live] = _one_factor(torch.corrcoef(normal.T))
    weights = (loadings / (1 - loadings.square())).float()
    return weights / weights.sum() if weights.any() else live.float() / live.sum()


def _normal_scores(values: Tensor) -> Tensor:
    """Normal quantiles (N,) float64 of the ranks of values (N,); ties share their mean rank."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    middle = counts.double().cumsum(0) - counts.double() / 2
    return torch.special.ndtri(middle / len(values))[inverse]


def _one_factor(correlation: Tensor) -> Tensor:
    """Loadings (L,) of the rank-one matrix closest to the correlations off the diagonal, in [0, 0.97]."""
    communality = torch.full((len(correlation),), 0.5, dtype=correlation.dtype)
    for _ in range(200):
        reduced = correlation.clone()
        reduced.diagonal().copy_(communality)
        values, vectors = torch.linalg.eigh(reduced)
        loadings = vectors[:, -1] * values[-1].clamp(min=0).sqrt()
        loadings = loadings * (1.0 if loadings.sum() >= 0 else -1.0)
        updated = loadings.square().clamp(max=LARGEST_LOADING**2)
        if float((updated - communality).abs().max()) < 1e-6:
            break
        communality = updated
    return loadings.clamp(0, LARGEST_LOADING)


def _temperature(combined: Tensor) -> float:
    """The factor on the evidence (N, T) under which a softmax best predicts the given label (column 0)."""
    sample = combined[:: max(len(combined) // SAMPLE, 1)].double()
    grid = torch.logspace(-2, 3, 101, dtype=torch.float64)
    likelihood = torch.stack([torch.log_softmax(t * sample, 1)[:, 0].mean() for t in grid])
    return float(grid[likelihood.argmax()])
