"""What the layers say of labels together, how far each is trusted, and how many labels are wrong, without clean ones.

Evidence of each layer is unmixed (fsdtool.mislabel.noise.unmixing): first by itself, which gives each layer's share of
wrong labels, then with the confusion of classes that all layers together have.  A layer counts with the weight by which
it agrees with the others (fsdtool.mislabel.noise.layer_weights), less where it sees a smaller share of wrong labels
than all together do: it has memorised some of them.  What is added up are the log-likelihoods under the clouds, each in
units of the spread of its margins.

The confusion is that of the evidence of all layers unmixed once more, memorised or not; so it lies between what early
layers say, which take unusual examples of one class for another's, and late ones, which have learned wrong labels by
heart.  It is a prior of the scores in so far as it explains the labels that the evidence is against: those that it
leaves unexplained are taken for even noise, the more so the less it explains.  Under noise that follows examples and
not classes little is explained, and the prior is even.  How many labels are wrong follows from the same clouds, or
from fsdtool.mislabel.noise.confusion where that explains the labels better and does not find fewer than each layer
alone.

Of more classes, or too few examples, the layers are added up as they are and the noise is that of
fsdtool.mislabel.noise.confusion.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fsdtool.mislabel.noise.confusion import Estimate, Noise, estimate, forward
from fsdtool.mislabel.noise.layer_weights import combination, layer_weights, margins_of, weighted
from fsdtool.mislabel.noise.unmixing import Clouds, Unmixed, drawn, likelihood, unmixed, unmixed_as

MOST_CLASSES = 32  # whose evidence is unmixed: of each example the records have that of ten
LEAST_EXAMPLES = 20  # of each class, in the mean
SAMPLE = 16384  # examples that are fitted
FEW = 4096  # of them, on which each layer is unmixed by itself
BLOCK = 65536
LEAST_RATE = 1e-3  # share of wrong labels that is not told from none
EACH = 100.0  # examples of each class that are added, wrong as often as all are, to unmix by
PRIOR = 10.0  # even wrong labels added to those of each class in the prior
WEAKEST = -1e4


class Weighing(Protocol):
    """How the evidence of the layers is added up."""

    def combined(self, evidence: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """(N, T) float32 for evidence (N, L, T) on candidates (N, T), relative to the given label in column 0."""
        ...


@dataclass(frozen=True)
class Plain:
    """Evidence of each layer times its factor (L,)."""

    factors: np.ndarray

    def combined(self, evidence: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        return weighted(evidence, self.factors)


@dataclass(frozen=True)
class Recast:
    """Log-likelihoods under the clouds of each layer (None where it says nothing), times its factor (L,)."""

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
    """weighing of the layers, and their weights (L,) in sum 1; the noise in labels, by all layers.

    rates: the share of wrong labels by each layer alone (L,), NaN of one that says nothing, or by other estimates; None
    where there are none.  together: the evidence (N, T) of all layers on the examples judged, where it is at hand.
    """

    weighing: Weighing
    weights: np.ndarray
    noise: Noise
    rates: np.ndarray | None = None
    together: np.ndarray | None = None


def verdict(evidence: np.ndarray, candidates: np.ndarray, classes: int, parameters: np.ndarray) -> Verdict:
    """What evidence (N, L, T) in nats, relative to the given label, says on candidates (N, T), the given label first.

    parameters: (L,) of the network before each layer, for each label that it learned
    (fsdtool.mislabel.noise.confusion).
    """
    rows = slice(None, None, -(-len(candidates) // SAMPLE))
    choices = candidates[rows].astype(np.int64)
    given = choices[:, 0]
    layers = _by_layer(evidence[rows], choices, classes) if _many(candidates[:, 0], classes) else []
    if all(x is None for x in layers):
        factors, weights = combination(evidence)
        noise = estimate(evidence, candidates, evidence.shape[1] - 1, classes, parameters)
        return Verdict(Plain(factors), weights, noise)
    few = slice(None, None, -(-len(given) // FEW))
    some, of_some = evidence[rows][few].astype(np.float32), choices[few]
    alone = [None if x is None else unmixed(x[few], given[few], classes) for x in layers]
    rates = np.array([np.nan if found is None else found.rate for found in alone])
    first = _Sample(_under_clouds(alone, layers, choices), choices)
    together = first.unmixed(first.agreed, classes)
    confusion = drawn(together.count, EACH, EACH)
    again = [None if x is None else unmixed_as(x, given, confusion) for x in layers]
    honest = np.nan_to_num(np.minimum((rates + LEAST_RATE) / (together.rate + LEAST_RATE), 1))
    last = _Sample(_under_clouds(again, layers, choices), choices)
    weights = last.weights(honest)
    combined = last.combined(weights)
    against = float((combined[:, 1:].max(1) > 0).mean())
    found = forward(some, of_some, evidence.shape[1] - 1, classes, parameters, patient=False)
    if _explains(found, some, of_some, alone):
        rate = found.noise.rate
    else:
        rate = math.sqrt(together.rate * last.unmixed(last.agreed, classes).rate)
    noise = _noise(together, rate, against, candidates[:, 0], found.noise.layers)
    clouds = tuple(None if found is None else found.clouds for found in again)
    weighing = Recast(clouds, last.factors(weights), classes)
    return Verdict(weighing, weights, noise, rates, combined if len(combined) == len(evidence) else None)


def _explains(found: Estimate, evidence: np.ndarray, candidates: np.ndarray, alone: list[Unmixed | None]) -> bool:
    """Whether fsdtool.mislabel.noise.confusion explains the labels, of these examples, better than the clouds of the
    layers it is from.

    Its model of a layer has fewer parameters, and does not take unusual examples of a class for another's.  But it
    knows nothing of labels that are wrong in the same way, nor of layers that tell the classes badly apart.
    """
    used = [(layer, one) for layer in found.noise.layers if (one := alone[layer]) is not None]
    if not found.settled or not used:
        return False
    given, classes = candidates[:, 0], found.noise.classes
    dense = (of_all_classes(evidence[:, layer], candidates, classes) for layer, _ in used)
    by_clouds = float(np.mean([likelihood(one, x, given) for (_, one), x in zip(used, dense, strict=True)]))
    more = (classes - 1) * (classes - 2) + classes * (classes - 1) / 2  # parameters: centres and shape, less biases
    return found.likelihood >= by_clouds - more / len(given)


def _by_layer(evidence: np.ndarray, candidates: np.ndarray, classes: int) -> list[np.ndarray | None]:
    """Evidence (n, classes) of each layer for all classes, None of one that says nothing."""
    layers = evidence.astype(np.float32).swapaxes(0, 1)
    return [of_all_classes(values, candidates, classes) if values.any() else None for values in layers]


class _Sample:
    """Layers of a sample by their clouds; agreed (L,): their weights by how they agree."""

    def __init__(self, evidence: np.ndarray, candidates: np.ndarray):
        self._evidence, self._candidates = evidence, candidates
        margins = margins_of(evidence)
        self.agreed, self._spread = layer_weights(margins), np.maximum(margins.std(0), 1e-12)

    def weights(self, believed: np.ndarray) -> np.ndarray:
        """Weights (L,) float32 in sum 1: as agreed, times how far each layer is to be believed (L,)."""
        weights = self.agreed * believed
        return (weights / weights.sum() if weights.any() else self.agreed).astype(np.float32)

    def factors(self, weights: np.ndarray) -> np.ndarray:
        """Factors (L,) float32 of the layers' evidence under these weights."""
        return (weights / self._spread).astype(np.float32)

    def combined(self, weights: np.ndarray) -> np.ndarray:
        """Evidence (n, T) of all layers."""
        return weighted(self._evidence, self.factors(weights))

    def unmixed(self, weights: np.ndarray, classes: int) -> Unmixed:
        """Clouds and confusion in the evidence of all layers."""
        dense = of_all_classes(self.combined(weights), self._candidates, classes)
        return unmixed(dense, self._candidates[:, 0], classes)


def _under_clouds(found: list[Unmixed | None], dense: list[np.ndarray | None], candidates: np.ndarray) -> np.ndarray:
    """Evidence (n, L, T) float32 under the clouds of each layer, from that for all classes."""
    evidence = np.zeros((len(found), *candidates.T.shape), np.float32)
    for layer, (one, x) in enumerate(zip(found, dense, strict=True)):
        if one is not None and x is not None:
            evidence[layer] = _relative(one.clouds.log_likelihood(x), candidates).T
    return evidence.transpose(2, 0, 1)


def _noise(found: Unmixed, rate: float, against: float, given: np.ndarray, layers: tuple[int, ...]) -> Noise:
    """The noise in all labels `given` (N,) at this rate, in cells as in a sample; the evidence is against a share.

    layers: that tell the classes apart.
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
    """The same where it is known how the layers are to be weighed: the noise is that in their evidence together."""
    if not _many(candidates[:, 0], classes):
        return Verdict(weighing, weights, estimate(evidence, candidates, evidence.shape[1] - 1, classes, parameters))
    rows = slice(None, None, -(-len(candidates) // SAMPLE))
    combined, choices = weighing.combined(evidence[rows], candidates[rows]), candidates[rows].astype(np.int64)
    found = unmixed(of_all_classes(combined, choices, classes), choices[:, 0], classes)
    against = float((combined[:, 1:].max(1) > 0).mean())
    noise = _noise(found, found.rate, against, candidates[:, 0], tuple(np.flatnonzero(weights).tolist()))
    return Verdict(weighing, weights, noise)


def _many(given: np.ndarray, classes: int) -> bool:
    """Whether labels (N,) are enough, of few enough classes, that their evidence can be unmixed."""
    return classes <= MOST_CLASSES and len(given) >= LEAST_EXAMPLES * classes and len(np.unique(given)) > 1


def of_all_classes(evidence: np.ndarray, candidates: np.ndarray, classes: int) -> np.ndarray:
    """Evidence (n, classes) of one layer from that of candidates (n, T); other classes have that of the weakest."""
    evidence = evidence.astype(np.float32)
    dense = np.empty((classes, len(evidence)), np.float32)
    if candidates.shape[1] < classes:
        dense[:] = evidence.min(1)
    dense.reshape(-1)[_places(candidates)] = evidence
    return dense.T


def _places(candidates: np.ndarray) -> np.ndarray:
    """Where values of candidates (n, T) are in those of all classes, by class and then example in memory."""
    return candidates * np.int64(len(candidates)) + np.arange(len(candidates))[:, None]


def _relative(found: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Log-likelihoods (n, T) float32 of candidates from those of all classes (n, classes), less the given label's.

    A class without examples in the sample has no cloud.  It has what the weakest class has; for labels of it there is
    no evidence either way.
    """
    of = found.T.reshape(-1).take(_places(candidates).T).T  # by candidate and then example in memory
    if np.isfinite(of).all():
        of -= of[:, :1].copy()
        return np.clip(of, WEAKEST, np.inf, out=of)
    known = np.isfinite(of[:, :1])
    of = np.where(np.isfinite(of), of, np.where(np.isfinite(found), found, np.inf).min(1, keepdims=True))
    return np.where(known, np.maximum(of - np.where(known, of[:, :1], 0), WEAKEST), 0).astype(np.float32)
