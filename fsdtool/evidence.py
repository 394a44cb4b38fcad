"""Evidence on labels: how well each class explains what a layer did on an example, that example left out.

The features of a layer are its activations and gate slopes, averaged over positions per channel.  A class c
is a Gaussian with its own mean and a covariance shared by all classes; the evidence for c is the
log-likelihood, up to a constant of the example.  Features are scaled by their within-class deviation and the
covariance is shrunk towards the identity by the oracle approximating shrinkage of Chen, Wiesel, Eldar, Hero
(2010).

Trust.  Wrong labels pollute the class they name, and where one class is taken for another they do so together.
The Gaussians are therefore fitted twice: an example counts in its class with weight w, at first 1 and
then the probability of its label under the evidence just found (a softmax over the combined evidence of all layers).

Leave-one-out in closed form.  With d = x - mu_y and n_y the sum of the weights of class y, taking x out moves
the mean to mu_y - w d / (n_y - w) and takes beta d d^T off the shrunk covariance, beta = (1 - shrinkage)
w n_y / (n_y - w) / (N - classes), N the sum of all weights; scale, shrinkage and divisor stay.  With P the
precision and q_c = (x - mu_c)^T P (x - mu_c) (Sherman, Morrison)
    c != y:  q_c + beta ((x - mu_c)^T P d)^2 / (1 - beta q_y)
    c == y:  (n_y / (n_y - w))^2 q_y / (1 - beta q_y)
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fsdtool.activations import Activation
from fsdtool.agreement import combine
from fsdtool.errors import FsdtoolError
from fsdtool.files import reserve

INPUT, FEATURES, OUTPUTS = "(input)", "(features)", "(outputs)"  # no module can have these names
MOST_LAYERS = 12
MOST_FEATURES = 512
MOST_CANDIDATES = 10
FITS = 2  # of the Gaussians, each with the trust in the labels that the last one left
LEAST_TRUST = 1e-3
ROWS = 8192  # examples read at once from the stored features
SCORES = 2**23  # numbers held at once: examples x layers x classes
WEAKEST = -1e4  # log-likelihood, in nats, below the strongest class: float16 ends at 65504


@dataclass(frozen=True)
class LabelEvidence:
    """What the records keep of the evidence.

    layers: names (L,).  candidates (N, T) int32: classes, the given label first, then those with most
    evidence.  evidence (N, L, T) float32: log-likelihood of each candidate minus that of the given label, in
    nats; the first column is 0, and positive values speak against the given label.
    """

    layers: tuple[str, ...]
    candidates: Tensor
    evidence: Tensor


class FeatureStore:
    """Features of every evidence layer for all examples, in files of a temporary folder; a context manager.

    Layers wider than 512 features are projected on as many random directions of +-1 (seeded).
    """

    def __init__(self, examples: int, seed: int):
        self._folder = tempfile.TemporaryDirectory(prefix="fsdtool-")
        self._examples, self._seed = examples, seed
        self._arrays: dict[str, np.memmap] = {}
        self._projections: dict[str, Tensor] = {}

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self._arrays.clear()
        self._folder.cleanup()

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(self._arrays)

    def put(self, layer: str, rows: slice, features: Tensor) -> None:
        """Features (batch, D) of the examples `rows`."""
        width = features.shape[1]
        if width > MOST_FEATURES:
            if layer not in self._projections:
                generator = torch.Generator().manual_seed(self._seed)
                signs = torch.randint(0, 2, (width, MOST_FEATURES), generator=generator, dtype=torch.int8)
                self._projections[layer] = ((signs * 2 - 1).float() / width**0.5).to(features.device)
            features = features @ self._projections[layer]
        if layer not in self._arrays:
            self._arrays[layer] = self._array(features.shape[1])
        self._arrays[layer][rows] = features.cpu().numpy()

    def _array(self, width: int) -> np.memmap:
        path, shape = Path(self._folder.name) / f"{len(self._arrays)}.f32", (self._examples, width)
        size = 4 * self._examples * width
        try:
            with open(path, "w+b") as file:
                reserve(file, size)
                return np.memmap(file, dtype=np.float32, mode="w+", shape=shape)
        except OSError as error:
            raise FsdtoolError(
                f"the temporary folder '{path.parent.parent}' has no room for {size:,} bytes ({error.strerror}); "
                "free some, or set TMPDIR to another folder"
            ) from error

    def get(self, layer: str) -> np.ndarray:
        """Features (N, D) float32 of one layer."""
        return self._arrays[layer]


def choose_layers(names: list[str], most: int = MOST_LAYERS) -> list[str]:
    """At most so many of the layers, evenly spaced from the first to the last; a single one is the middle."""
    if len(names) <= most:
        return names
    if most == 1:
        return [names[len(names) // 2]]
    return [names[round(i * (len(names) - 1) / (most - 1))] for i in range(most)]


def layer_features(activation: Activation, s: Tensor, a: Tensor, channels_last: bool) -> Tensor:
    """Mean output and mean slope per channel (batch, 2 C) of a layer with pre-activations s and outputs a."""
    m, _ = activation.gate(s)
    return torch.cat([pool(a, channels_last), pool(m, channels_last)], 1)


def pool(value: Tensor, channels_last: bool) -> Tensor:
    """Mean over positions (batch, C) of a signal (batch, C, ...) or (batch, ..., C)."""
    if value.dim() == 2:
        return value
    return value.flatten(1, -2).mean(1) if channels_last else value.flatten(2).mean(2)


def evidence(store: FeatureStore, labels: Tensor, logits: Tensor, fits: int = FITS) -> LabelEvidence:
    """Evidence for the labels (N,) int64: leave-one-out by layer, and last the network's own log p.

    logits: (N, classes).  fits: how often the class Gaussians are fitted.
    """
    found = _fit(store, labels, logits, torch.ones(len(labels), dtype=torch.float64))
    for _ in range(fits - 1 if logits.shape[1] > 1 else 0):
        combined = combine(found.evidence)[0]
        trust = torch.softmax(combined.double(), 1)[:, 0].clamp(min=LEAST_TRUST)
        found = _fit(store, labels, logits, trust)
    return found


def _fit(store: FeatureStore, labels: Tensor, logits: Tensor, trust: Tensor) -> LabelEvidence:
    """The evidence under Gaussians to which each example contributes with its trust (N,) float64."""
    examples, classes = logits.shape
    kept = min(classes, MOST_CANDIDATES)
    layers = [_ClassGaussians(store.get(layer), labels, classes, trust) for layer in store.layers]
    candidates = torch.empty(examples, kept, dtype=torch.int32)
    values = torch.empty(examples, len(layers) + 1, kept)
    step = min(ROWS, max(SCORES // (classes * (len(layers) + 1)), 1))
    for start in range(0, examples, step):
        rows = slice(start, min(start + step, examples))
        outputs = _bounded(torch.log_softmax(logits[rows].double(), 1))
        scores = torch.stack([*(layer.log_likelihood(rows) for layer in layers), outputs], 1)
        own = labels[rows, None]
        against = scores - scores.gather(2, own[:, None].expand(-1, scores.shape[1], 1))  # (n, L, classes)
        spread = against.abs().mean(2, keepdim=True).clamp(min=1e-12)  # every layer has the same say
        strength = (against / spread).sum(1).scatter(1, own, torch.inf)  # (n, classes)
        chosen = strength.topk(kept, dim=1).indices
        candidates[rows] = chosen.int()
        values[rows] = against.gather(2, chosen[:, None].expand(-1, scores.shape[1], -1))
    return LabelEvidence((*store.layers, OUTPUTS), candidates, values)


class _ClassGaussians:
    """Class means in coordinates z in which the shrunk within-class covariance is the identity."""

    def __init__(self, features: np.ndarray, labels: Tensor, classes: int, trust: Tensor):
        self.features, self.labels, self.trust = features, labels, trust
        self.members = torch.bincount(labels, minlength=classes)
        self.count = torch.bincount(labels, weights=trust, minlength=classes)
        sums = torch.zeros(classes, features.shape[1], dtype=torch.float64)
        for rows, x in self._blocks():
            sums.index_add_(0, labels[rows], x * trust[rows, None])
        means = sums / self.count.clamp(min=1e-12)[:, None]
        scatter = torch.zeros(features.shape[1], features.shape[1], dtype=torch.float64)
        for rows, x in self._blocks():
            d = ((x - means[labels[rows]]) * trust[rows, None].sqrt()).float()
            scatter += d.T @ d
        self.freedom = max(float(self.count.sum()) - int((self.members > 0).sum()), 1.0)
        variance = scatter.diagonal() / self.freedom
        # A feature that is constant up to the rounding of float32 says nothing.
        self.live = variance > 1e-12 * (variance + means.square().amax(0))
        scale = variance[self.live].rsqrt()
        correlation = scatter[self.live][:, self.live] / self.freedom * torch.outer(scale, scale)
        self.shrinkage = _oracle_shrinkage(correlation, self.freedom)
        shrunk = (1 - self.shrinkage) * correlation
        shrunk.diagonal().add_(self.shrinkage)
        # rounding may leave the smallest eigenvalues of a singular, unshrunk matrix below zero
        eigenvalues, vectors = torch.linalg.eigh(shrunk)
        root = vectors * eigenvalues.clamp(min=1e-8).rsqrt()
        self.middle = means.mean(0)
        self.whiten = scale[:, None] * root  # z = (x - middle) whiten
        self.centres = (means - self.middle)[:, self.live] @ self.whiten

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, len(self.labels), ROWS):
            rows = slice(start, min(start + ROWS, len(self.labels)))
            yield rows, torch.from_numpy(np.asarray(self.features[rows])).double()

    def log_likelihood(self, rows: slice) -> Tensor:
        """Leave-one-out log-likelihood (n, classes), the strongest class at 0, of some examples; float32."""
        y, w = self.labels[rows], self.trust[rows, None]
        x = torch.from_numpy(np.asarray(self.features[rows])).double() - self.middle
        z = (x[:, self.live].float() @ self.whiten.float()).double()
        squares = z.square().sum(1, keepdim=True) + self.centres.square().sum(1)
        q = (squares - 2 * z @ self.centres.T).clamp(min=0)
        own = q.gather(1, y[:, None])
        # between the centres, of the labels at hand alone: of 10,000 classes all pairs would take 800 MB
        lengths = self.centres.square().sum(1)
        apart = (lengths[y, None] + lengths - 2 * self.centres[y] @ self.centres.T).clamp(min=0)  # (n, classes)
        cross = (q + own - apart) / 2  # (z - centre_c) . (z - centre_y)
        n = self.count[y][:, None]
        single = self.members[y][:, None] == 1  # nothing is left of the class: no evidence either way
        rest = torch.where(single, 1.0, n - w)
        beta = (1 - self.shrinkage) * w * n / (rest * self.freedom)
        denominator = (1 - beta * own).clamp(min=1e-6)
        left_out = q + beta * cross.square() / denominator
        alone = (n / rest).square() * own / denominator
        left_out = left_out.scatter(1, y[:, None], alone)
        left_out[:, self.members == 0] = torch.inf  # a class without examples explains nothing
        log_likelihood = -0.5 * left_out
        best_other = log_likelihood.scatter(1, y[:, None], -torch.inf).max(1, keepdim=True).values
        own_evidence = torch.where(single, best_other, log_likelihood.gather(1, y[:, None]))
        return _bounded(log_likelihood.scatter(1, y[:, None], own_evidence))


def _bounded(log_likelihood: Tensor) -> Tensor:
    """Log-likelihoods (n, classes) less that of the strongest class, from -10000 up to 0; float32."""
    strongest = log_likelihood.amax(1, keepdim=True).clamp(min=torch.finfo(log_likelihood.dtype).min)
    return (log_likelihood - strongest).clamp(min=WEAKEST).float()


def _oracle_shrinkage(correlation: Tensor, n: float) -> float:
    """Weight of the identity in [0, 1] (Chen et al. 2010, equation 23)."""
    p = max(len(correlation), 1)
    trace, trace_square = float(correlation.trace()), float(correlation.square().sum())
    numerator = (1 - 2 / p) * trace_square + trace**2
    denominator = (n + 1 - 2 / p) * (trace_square - trace**2 / p)
    return min(1.0, numerator / denominator) if denominator > 0 else 1.0
