"""The weight of each layer's evidence on labels, by how well the layers agree, without any clean label.

The margin of a layer on an example is its evidence for the strongest other class less that for the given label.  Early
layers keep seeing the true class when the outputs have memorised a wrong label.  If layers are independent given the
truth, their rank-normalised margins have correlations lambda_l lambda_m off the diagonal (the spectral meta-learner of
Parisi et al. 2014).  The loadings lambda are fitted, and a layer gets the weight lambda / (1 - lambda^2), loading over
uniqueness: a layer that has memorised labels agrees with no other one and gets almost none.

The combined evidence is the weighted sum over layers, each divided by the standard deviation of its margins.  Its
inverse temperature is fitted in fsdtool.mislabel.noise.posterior.
"""

from __future__ import annotations

import logging
from functools import cache
from statistics import NormalDist

import numpy as np

log = logging.getLogger("fsdtool")

LARGEST_LOADING = 0.97  # a loading near one (a Heywood case) would give one layer all the weight
SAMPLE = 65536  # examples that the loadings are fitted to, and that are added up at once
STEPS = 2000  # of the fit of the loadings, which converges in dozens unless they are near their bounds
QUANTILES = 4096  # of the normal distribution; ranks in between are interpolated


def combination(evidence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factors (L,) float32 by which the layers' evidence is added up, and their weights (L,) float32 in sum 1.

    evidence: (N, L, T), nats, relative to the given label in column 0.
    """
    margins = margins_of(evidence)
    weights = layer_weights(margins)
    return (weights / np.maximum(margins.std(0), 1e-12)).astype(np.float32), weights


def weighted(evidence: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """The sum (N, T) float32 over layers of evidence (N, L, T) times factors (L,)."""
    parts = [np.einsum("nlt,l->nt", part, factors, dtype=np.float32) for part in _parts(evidence)]
    return np.concatenate(parts)


def margins_of(evidence: np.ndarray) -> np.ndarray:
    """Margins (N, L) float32 of evidence (N, L, T): for the strongest other class less that for the given label."""
    return np.concatenate([_strongest(part) for part in _parts(evidence)])


def layer_weights(margins: np.ndarray) -> np.ndarray:
    """Weights (L,) float32 of layers with margins (N, L): loading over uniqueness, at least 0, in sum 1."""
    sample = margins[:: -(-len(margins) // SAMPLE)]
    examples, layers = sample.shape
    live = (sample != sample[:1]).any(0)
    if examples < 3 or live.sum() < 3:  # fewer than three layers determine no loadings
        return (live / max(live.sum(), 1)).astype(np.float32)
    normal = np.stack([_normal_scores(sample[:, i]) for i in np.flatnonzero(live)])
    loadings = np.zeros(layers)
    loadings[live] = _one_factor(np.corrcoef(normal))
    weights = loadings / (1 - loadings**2)
    return (weights / weights.sum() if weights.any() else live / live.sum()).astype(np.float32)


def _strongest(evidence: np.ndarray) -> np.ndarray:
    """The largest (n, L) float32 of evidence (n, L, T) outside column 0."""
    others = evidence[:, :, 1:].astype(np.float32)
    found = others[:, :, 0].copy()
    for place in range(1, others.shape[2]):  # several times faster than a maximum along the last axis
        np.maximum(found, others[:, :, place], out=found)
    return found


def _parts(evidence: np.ndarray) -> list[np.ndarray]:
    return [evidence[start : start + SAMPLE] for start in range(0, len(evidence), SAMPLE)]


def _normal_scores(values: np.ndarray) -> np.ndarray:
    """Normal quantiles (N,) float64 of the ranks of values (N,); ties share their mean rank."""
    order = np.argsort(values)
    ascending = values[order]
    starts = np.flatnonzero(np.r_[True, ascending[1:] != ascending[:-1]])
    ends = np.r_[starts[1:], len(values)]
    knots = (np.arange(min(len(values), QUANTILES)) + 0.5) / min(len(values), QUANTILES)
    normal = np.interp((starts + ends) / (2 * len(values)), knots, _quantiles(len(knots)))
    found = np.empty(len(values))
    found[order] = normal if len(starts) == len(values) else np.repeat(normal, ends - starts)
    return found


@cache
def _quantiles(count: int) -> np.ndarray:
    """So many normal quantiles (count,), of evenly spaced probabilities.

    From the standard library: scipy.special, which has them for arrays, takes .2 s to import.
    """
    return np.array([NormalDist().inv_cdf((i + 0.5) / count) for i in range(count)])


def _one_factor(correlation: np.ndarray) -> np.ndarray:
    """Loadings (L,) of the rank-one matrix closest to the correlations off the diagonal, in [0, 0.97]."""
    communality = np.full(len(correlation), 0.5)
    reduced = correlation.copy()
    for _ in range(STEPS):
        np.fill_diagonal(reduced, communality)
        values, vectors = np.linalg.eigh(reduced)
        loadings = vectors[:, -1] * max(values[-1], 0.0) ** 0.5
        loadings = loadings if loadings.sum() >= 0 else -loadings
        updated = np.minimum(loadings**2, LARGEST_LOADING**2)
        if np.abs(updated - communality).max() < 1e-6:
            break
        communality = updated
    else:
        log.warning(f"the weights of the layers had not settled after {STEPS} steps; take the ranking as rough")
    return loadings.clip(0, LARGEST_LOADING)
