"""The combined evidence of all layers on labels, the weight of each layer, and the label noise, without clean labels.

Up to 32 classes, with enough examples of each, in five steps:
1. A mixture with one cloud per true class is fitted to each layer's evidence (fsdtool.mislabel.noise.unmixing).  It
   gives the share of wrong labels by that layer alone.
2. The log-likelihoods under the clouds are added up over the layers, weighted by how well the layers agree
   (fsdtool.mislabel.noise.layer_weights).  A mixture fitted to the sum gives one confusion of classes for all layers.
   It lies between that of early layers, which confuse unusual examples of a class with another class, and that of late
   ones, which have memorised wrong labels.
3. With that confusion fixed, the clouds of each layer are fitted once more.  Their log-likelihoods are the evidence
   that counts.  A layer that finds a smaller share of wrong labels than all layers together has memorised some of them,
   and its weight is reduced in the same proportion.
4. The share of wrong labels is the geometric mean of that of step 2 and of that which a mixture gives when it is fitted
   to the sum of the evidence of step 3.  Where fsdtool.mislabel.noise.confusion explains the labels better than the
   clouds do, its share is taken instead.
5. The confusion becomes the prior of the scores.  If it explains only part of the labels that the evidence is against,
   it is mixed with even noise, the more the less it explains: noise may depend on examples and not on classes.

With more classes or fewer examples, the evidence is added up without clouds and the noise is that of
fsdtool.mislabel.noise.confusion.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fsdtool.mislabel.noise.confusion import Estimate, Noise, estimate, forward
from fsdtool.mislabel.noise.layer_weights import combination, layer_weights, margins_of, weighted
from fsdtool.mislabel.noise.unmixing import Clouds, Unmixed, likelihood, shrunk, unmixed, unmixed_as

MOST_CLASSES = 32  # the records have the evidence of ten candidates for each example; clouds need that of all classes
LEAST_EXAMPLES = 20  # of each class, on average
SAMPLE = 16384  # examples that the clouds of all layers are fitted to
FEW = 4096  # of them, those that the clouds of one layer alone are fitted to
BLOCK = 65536  # examples whose log-likelihoods are computed at once
LEAST_RATE = 1e-3  # a smaller share of wrong labels is not distinguished from zero
EACH = 100.0  # pseudo-examples of each class, with the overall share of wrong labels, in the confusion of step 3
PRIOR = 10.0  # even wrong labels added to those of each class in the prior of the scores
WEAKEST = -1e4  # nats below the given label, the least evidence of a candidate


class Weighing(Protocol):
    """How the evidence of the layers is combined."""

    def combined(self, evidence: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """Combined evidence (N, T) float32 of evidence (N, L, T) on candidates (N, T).

        All evidence is relative to the given label, in column 0.
        """
        ...


@dataclass(frozen=True)
class PlainWeighing:
    """The layers' evidence as it is, times the factor (L,) of each layer."""

    factors: np.ndarray

    def combined(self, evidence: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        return weighted(evidence, self.factors)


@dataclass(frozen=True)
class CloudWeighing:
    """Log-likelihoods under the clouds (L,) of each layer, times its factor (L,).

    clouds: None for a layer whose evidence is all zero.
    """

    clouds: tuple[Clouds | None, ...]
    factors: np.ndarray
    classes: int

    def combined(self, evidence: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        total = np.zeros(candidates.shape, np.float32)
        for layer, (clouds, factor) in enumerate(zip(self.clouds, self.factors, strict=True)):
            if not factor or clouds is None:
                continue
            for start in range(0, len(total), BLOCK):
                rows = slice(start, start + BLOCK)
                dense = of_all_classes(evidence[rows, layer], candidates[rows], self.classes)
                total[rows] += np.float32(factor) * _relative(clouds.log_likelihood(dense), candidates[rows])
        return total


@dataclass(frozen=True)
class Verdict:
    """weighing: how the layers' evidence is combined.  weights: (L,) of the layers, in sum 1.  noise: in the labels.

    rates: (L,) the share of wrong labels by each layer alone, NaN for a layer whose evidence is all zero; None where it
    was not computed.  combined: (N, T) the combined evidence on the examples judged, None where it was not computed.
    """

    weighing: Weighing
    weights: np.ndarray
    noise: Noise
    rates: np.ndarray | None = None
    combined: np.ndarray | None = None

    def combined_evidence(self, evidence: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """Combined evidence (N, T) float32 on the examples judged, of which these are evidence and candidates."""
        return self.weighing.combined(evidence, candidates) if self.combined is None else self.combined

    def range_of_rates(self) -> tuple[float, float] | None:
        """The lowest and highest share of wrong labels by one layer alone, if these were computed."""
        return None if self.rates is None else (float(np.nanmin(self.rates)), float(np.nanmax(self.rates)))


def verdict(evidence: np.ndarray, candidates: np.ndarray, classes: int, parameters: np.ndarray) -> Verdict:
    """The verdict of evidence (N, L, T), in nats relative to the given label, on candidates (N, T), given label first.

    parameters: (L,) of the network before each layer, for each label that it learned
    (fsdtool.mislabel.noise.confusion).
    """
    rows = slice(None, None, -(-len(candidates) // SAMPLE))
    choices = candidates[rows].astype(np.int64)
    layers = _by_layer(evidence[rows], choices, classes) if _many(candidates[:, 0], classes) else []
    if all(x is None for x in layers):
        factors, weights = combination(evidence)
        noise = estimate(evidence, candidates, evidence.shape[1] - 1, classes, parameters)
        return Verdict(PlainWeighing(factors), weights, noise)
    few = slice(None, None, -(-len(choices) // FEW))
    some, of_some, given = evidence[rows][few].astype(np.float32), choices[few], choices[:, 0]
    # 1. Each layer by itself
    alone = [None if x is None else unmixed(x[few], given[few], classes) for x in layers]
    rates = np.array([np.nan if found is None else found.rate for found in alone])
    # 2. One confusion of classes for all layers
    first = _Sample(_under_clouds(alone, layers, choices), choices)
    together = first.unmixed(first.agreed, classes)
    # 3. Each layer with that confusion, and its weight
    confusion = shrunk(together.count, EACH, EACH)
    again = [None if x is None else unmixed_as(x, given, confusion) for x in layers]
    honest = np.nan_to_num(np.minimum((rates + LEAST_RATE) / (together.rate + LEAST_RATE), 1))
    last = _Sample(_under_clouds(again, layers, choices), choices)
    weights = last.weights(honest)
    combined = last.combined(weights)
    # 4. The share of wrong labels
    found = forward(some, of_some, evidence.shape[1] - 1, classes, parameters, patient=False)
    if _explains(found, some, of_some, alone):
        rate = found.noise.rate
    else:
        rate = math.sqrt(together.rate * last.unmixed(last.agreed, classes).rate)
    # 5. The noise, as a prior of the scores
    against = float((combined[:, 1:].max(1) > 0).mean())
    noise = _noise(together, rate, against, candidates[:, 0], found.noise.layers)
    clouds = tuple(None if found is None else found.clouds for found in again)
    weighing = CloudWeighing(clouds, last.factors(weights), classes)
    return Verdict(weighing, weights, noise, rates, combined if len(combined) == len(evidence) else None)


def _explains(found: Estimate, evidence: np.ndarray, candidates: np.ndarray, alone: list[Unmixed | None]) -> bool:
    """Whether the estimate `found` explains the labels of these examples better than the clouds of the same layers do.

    fsdtool.mislabel.noise.confusion has fewer parameters for a layer, and does not confuse unusual examples of a class
    with another class.  But it assumes class models that wrong labels have not mixed, and layers that tell the classes
    apart well.  Compared are mean log-likelihoods, with a penalty on the parameters that the clouds have more.
    """
    used = [(layer, one) for layer in found.noise.layers if (one := alone[layer]) is not None]
    if not found.settled or not used:
        return False
    given, classes = candidates[:, 0], found.noise.classes
    dense = (of_all_classes(evidence[:, layer], candidates, classes) for layer, _ in used)
    by_clouds = float(np.mean([likelihood(one, x, given) for (_, one), x in zip(used, dense, strict=True)]))
    # Parameters of the clouds (centres and shape), less those of the other model (one bias for each class).
    more = (classes - 1) * (classes - 2) + classes * (classes - 1) / 2
    return found.likelihood >= by_clouds - more / len(given)


def _by_layer(evidence: np.ndarray, candidates: np.ndarray, classes: int) -> list[np.ndarray | None]:
    """Evidence (n, classes) float32 of each layer for all classes, None for a layer whose evidence is all zero."""
    layers = evidence.astype(np.float32).swapaxes(0, 1)
    return [of_all_classes(values, candidates, classes) if values.any() else None for values in layers]


class _Sample:
    """Evidence (n, L, T) under the clouds of each layer, of a sample; agreed (L,): weights by how the layers agree."""

    def __init__(self, evidence: np.ndarray, candidates: np.ndarray):
        self._evidence, self._candidates = evidence, candidates
        margins = margins_of(evidence)
        self.agreed, self._spread = layer_weights(margins), np.maximum(margins.std(0), 1e-12)

    def weights(self, believed: np.ndarray) -> np.ndarray:
        """Weights (L,) float32 in sum 1: those by agreement, times how far each layer is believed (L,) in [0, 1]."""
        weights = self.agreed * believed
        return (weights / weights.sum() if weights.any() else self.agreed).astype(np.float32)

    def factors(self, weights: np.ndarray) -> np.ndarray:
        """Factors (L,) float32 that give the layers' evidence these weights, whatever the spread of its margins."""
        return (weights / self._spread).astype(np.float32)

    def combined(self, weights: np.ndarray) -> np.ndarray:
        """Combined evidence (n, T) of all layers."""
        return weighted(self._evidence, self.factors(weights))

    def unmixed(self, weights: np.ndarray, classes: int) -> Unmixed:
        """Clouds and confusion in the combined evidence of all layers under these weights (L,)."""
        dense = of_all_classes(self.combined(weights), self._candidates, classes)
        return unmixed(dense, self._candidates[:, 0], classes)


def _under_clouds(found: list[Unmixed | None], dense: list[np.ndarray | None], candidates: np.ndarray) -> np.ndarray:
    """Evidence (n, L, T) float32 under the clouds of each layer, from its evidence `dense` for all classes."""
    evidence = np.zeros((len(found), *candidates.T.shape), np.float32)
    for layer, (one, x) in enumerate(zip(found, dense, strict=True)):
        if one is not None and x is not None:
            evidence[layer] = _relative(one.clouds.log_likelihood(x), candidates).T
    return evidence.transpose(2, 0, 1)


def _noise(found: Unmixed, rate: float, against: float, given: np.ndarray, layers: tuple[int, ...]) -> Noise:
    """The noise in all labels `given` (N,): the confusion `found` in a sample, scaled to the share `rate`.

    against: share of the labels that the evidence is against.  layers: those that tell the classes apart.
    """
    classes = len(found.count)
    members = np.bincount(given, minlength=classes)
    right = np.diag(found.count.diagonal())
    count = right * (1 - rate) / max(1 - found.rate, 1e-12) + (found.count - right) * rate / max(found.rate, 1e-12)
    count = count * (members / np.maximum(count.sum(0), 1e-12))
    explained = min(max(found.rate, LEAST_RATE) / max(against, LEAST_RATE), 1.0)
    believed = explained**3 / (explained**3 + 1 - explained)
    return Noise(classes, np.arange(classes * classes), count.ravel(), PRIOR, layers, believed)


def verdict_by(
    weighing: Weighing,
    weights: np.ndarray,
    evidence: np.ndarray,
    candidates: np.ndarray,
    classes: int,
    parameters: np.ndarray,
) -> Verdict:
    """As `verdict` where the weights (L,) of the layers are known: the noise is that in their combined evidence."""
    if not _many(candidates[:, 0], classes):
        return Verdict(weighing, weights, estimate(evidence, candidates, evidence.shape[1] - 1, classes, parameters))
    rows = slice(None, None, -(-len(candidates) // SAMPLE))
    combined, choices = weighing.combined(evidence[rows], candidates[rows]), candidates[rows].astype(np.int64)
    found = unmixed(of_all_classes(combined, choices, classes), choices[:, 0], classes)
    against = float((combined[:, 1:].max(1) > 0).mean())
    noise = _noise(found, found.rate, against, candidates[:, 0], tuple(np.flatnonzero(weights).tolist()))
    return Verdict(weighing, weights, noise)


def _many(given: np.ndarray, classes: int) -> bool:
    """Whether clouds can be fitted: there are few enough classes, and enough of the labels (N,) for each."""
    return classes <= MOST_CLASSES and len(given) >= LEAST_EXAMPLES * classes and len(np.unique(given)) > 1


def of_all_classes(evidence: np.ndarray, candidates: np.ndarray, classes: int) -> np.ndarray:
    """Evidence (n, classes) float32 of one layer from that of candidates (n, T).

    Classes that are no candidates get the evidence of the example's weakest candidate.
    """
    evidence = evidence.astype(np.float32)
    dense = np.empty((classes, len(evidence)), np.float32)
    if candidates.shape[1] < classes:
        dense[:] = evidence.min(1)
    dense.reshape(-1)[_places(candidates)] = evidence
    return dense.T


def _places(candidates: np.ndarray) -> np.ndarray:
    """Flat indices (n, T) of the candidates in an array (classes, n)."""
    return candidates * np.int64(len(candidates)) + np.arange(len(candidates))[:, None]


def _relative(found: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Log-likelihoods (n, T) float32 of candidates from those of all classes (n, classes), less the given label's.

    A class without examples in the sample has no cloud.  As a candidate it gets the log-likelihood of the weakest
    class; where it is the given label, all candidates get 0.
    """
    of = found.T.reshape(-1).take(_places(candidates).T).T  # by candidate and then example in memory
    if np.isfinite(of).all():
        of -= of[:, :1].copy()
        return np.clip(of, WEAKEST, np.inf, out=of)
    known = np.isfinite(of[:, :1])
    of = np.where(np.isfinite(of), of, np.where(np.isfinite(found), found, np.inf).min(1, keepdims=True))
    return np.where(known, np.maximum(of - np.where(known, of[:, :1], 0), WEAKEST), 0).astype(np.float32)
