"""Evidence on labels: how well each class explains the features of an example in a layer, the example left out.

The features of each layer (fsdtool.mislabel.features) are modelled class by class (fsdtool.mislabel.class_gaussians).
The evidence for a class is its log-likelihood, up to a constant of the example.  The network's outputs give log p.

Sample weights.  Wrong labels pollute the class that they name, and where one class is labelled as another they do so
together.  The models are therefore fitted twice.  An example counts in its class with the weight w = 1, and then with
w = 1 - q^2, where q is the probability that its label is wrong by the evidence of the first fit
(fsdtool.mislabel.noise.posterior).  With w = 1 - q the models would lose the unusual examples of their class, and more
right labels would look wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fsdtool.mislabel.class_gaussians import ClassGaussians, bounded
from fsdtool.mislabel.discriminant import Discriminant
from fsdtool.mislabel.features import OUTPUTS, ROWS, FeatureStore
from fsdtool.mislabel.noise.confusion import estimate
from fsdtool.mislabel.noise.layer_weights import combination, weighted
from fsdtool.mislabel.noise.posterior import posterior

MOST_CANDIDATES = 10  # classes that the records keep for each example
LEAST_SAMPLE_WEIGHT = 1e-3
SCORES = 2**23  # numbers held at once: examples x layers x classes


@dataclass(frozen=True)
class LabelEvidence:
    """What the records keep of the evidence.

    layers: names (L,), the outputs last.  candidates: (N, T) int32, classes, the given label first, then those with
    most evidence.  evidence: (N, L, T) float32, log-likelihood of each candidate less that of the given label, in nats;
    column 0 is zero, and positive values speak against the given label.  discriminants: (L - 1,) for new examples, of
    all layers but the outputs.  members: (classes,) int64, examples of each class.  parameters: (L,) int64, of the
    network before each layer.
    """

    layers: tuple[str, ...]
    candidates: Tensor
    evidence: Tensor
    discriminants: tuple[Discriminant, ...]
    members: Tensor
    parameters: np.ndarray


def evidence(
    store: FeatureStore, labels: Tensor, logits: Tensor, parameters: Sequence[int], *, equal_weights: bool = False
) -> LabelEvidence:
    """Evidence on the labels (N,) int64: leave-one-out log-likelihoods by layer, and last the network's own log p.

    logits: (N, classes).  parameters: (L,) of the network before each layer of the store, and last all of them.
    equal_weights: fit once, with all sample weights 1 and one covariance for all classes.
    """
    classes = logits.shape[1]
    before = np.asarray(parameters, np.int64)
    found = _fit(store, labels, logits, before, torch.ones(len(labels), dtype=torch.float64), own=False)
    if equal_weights or classes < 2:
        return found
    values, candidates = found.evidence.numpy(), found.candidates.numpy()
    noise = estimate(values, candidates, len(found.layers) - 1, classes, before / len(labels))
    judged = posterior(weighted(values, combination(values)[0]), candidates, noise)
    sample_weight = (1 - torch.from_numpy(judged.score).square()).clamp(min=LEAST_SAMPLE_WEIGHT)
    return _fit(store, labels, logits, before, sample_weight, own=True)


def _fit(
    store: FeatureStore, labels: Tensor, logits: Tensor, parameters: np.ndarray, sample_weight: Tensor, own: bool
) -> LabelEvidence:
    """The evidence under class models in which each example counts with its sample_weight (N,) float64."""
    examples, classes = logits.shape
    kept = min(classes, MOST_CANDIDATES)
    layers = [ClassGaussians(store.get(layer), labels, classes, sample_weight, own) for layer in store.layers]
    candidates = torch.empty(examples, kept, dtype=torch.int32)
    values = torch.empty(examples, len(layers) + 1, kept)
    step = min(ROWS, max(SCORES // (classes * (len(layers) + 1)), 1))
    for start in range(0, examples, step):
        rows = slice(start, min(start + step, examples))
        outputs = bounded(torch.log_softmax(logits[rows].double(), 1))
        scores = torch.stack([*(layer.log_likelihood(rows) for layer in layers), outputs], 1)
        candidates[rows], values[rows] = strongest(scores, labels[rows], kept)
    discriminants = tuple(layer.discriminant() for layer in layers)
    members = torch.bincount(labels, minlength=classes)
    return LabelEvidence((*store.layers, OUTPUTS), candidates, values, discriminants, members, parameters)


def strongest(scores: Tensor, labels: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """Candidates (n, kept) int32, the given label first, and their evidence (n, L, kept) relative to it.

    scores: (n, L, classes) float32, log-likelihoods in nats.  labels: (n,) int64.  The candidates are the classes with
    the largest sum over layers, each layer divided by its mean absolute evidence on the example.
    """
    own = labels[:, None]
    against = scores - scores.gather(2, own[:, None].expand(-1, scores.shape[1], 1))  # (n, L, classes)
    spread = against.abs().mean(2, keepdim=True).clamp(min=1e-12)  # normalise so that each layer contributes equally
    strength = (against / spread).sum(1).scatter(1, own, torch.inf)  # (n, classes)
    chosen = strength.topk(kept, dim=1).indices
    return chosen.int(), against.gather(2, chosen[:, None].expand(-1, scores.shape[1], -1))
