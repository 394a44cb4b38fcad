"""How many labels are wrong, and which class is taken for which, from evidence that has not memorised labels.

Given the evidence E_t of one layer on an example, itself left out, its true class is t with probability p_t =
softmax(u E)_t, and its label is y with probability sum_t p_t M[t, y]: the forward model of label noise (Patrini et
al. 2017).  The unit u and the confusion M of classes are fitted to the labels by expectation maximization
    r_i(t) ~ p_i(t) M[t, y_i]        M[t, c] ~ sum of r_i(t) over i with y_i = c
Evidence from what training has fitted to the labels would find nothing wrong, so the earliest layer is used that
says anything of the classes: the input itself, if it does.

Of many classes there are few wrong labels each.  The cells M[t, c], c != t, of a class are therefore drawn to their
mean by the Dirichlet-multinomial whose concentration, over all classes, explains how the cells spread: even noise
becomes even, and confusion of a few classes stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STEPS = 60
REFITTED = 5  # steps from one fit of the unit to the next
FIRST_RATE = 0.1
LEAST_INFORMATION = 0.1  # that a layer has on the labels, of their entropy
NUMBERS = 2**20  # examples x candidates that are fitted
OF_UNIT = 8192  # examples from which the unit is fitted
SMOOTHING = 1e-3  # wrong labels added to each class
COARSE = np.logspace(-2, 2, 21)
FINE = np.logspace(-0.1, 0.1, 5)
SETTLED = 1e-5  # of all examples, that a step moves between the cells


@dataclass(frozen=True)
class Noise:
    """Estimated examples by true class and given label, for the pairs that occur, in the order of `key`.

    key: (M,) int64, true class x classes + given label.  count: (M,) float64, examples.  concentration: of the
    Dirichlet prior of each class's wrong labels; infinite where they are even.  layer: the one it was estimated from,
    None for all together.
    """

    classes: int
    key: np.ndarray
    count: np.ndarray
    concentration: float
    layer: int | None

    @property
    def rate(self) -> float:
        """Share of wrong labels."""
        wrong = self.key // self.classes != self.key % self.classes
        return float(self.count[wrong].sum() / self.count.sum())

    def matrix(self) -> np.ndarray:
        """Estimated examples (classes, classes) float64 by given label (rows) and true class (columns)."""
        matrix = np.zeros((self.classes, self.classes))
        matrix[self.key % self.classes, self.key // self.classes] = self.count
        return matrix

    def log_confusion(self, candidates: np.ndarray) -> np.ndarray:
        """log M[t, y] (N, T) float32 for candidates t (N, T), the given label y in column 0."""
        wanted = candidates.astype(np.int64) * self.classes + candidates[:, :1]
        place = np.searchsorted(self.key, wanted).clip(max=len(self.key) - 1)
        count = np.where(self.key[place] == wanted, self.count[place], 0.0)
        found = _log_confusion(self.key, self.count, self.classes, self.concentration, wanted, count)
        return found.astype(np.float32)


def estimate(evidence: np.ndarray, candidates: np.ndarray, layers: int, classes: int) -> Noise:
    """The noise in labels, from the earliest of the first `layers` layers that knows the classes, or all together.

    evidence: (N, L, T), nats, relative to the given label in column 0.  candidates: (N, T) classes, the given label
    first.  Many examples are estimated on an even sample and scaled to all.
    """
    stride = -(-len(candidates) * candidates.shape[1] // NUMBERS)
    sample = candidates[::stride].astype(np.int64)
    given = sample[:, 0]
    frequency = np.bincount(given, minlength=classes) / len(given)
    entropy = -float(np.log(frequency[given]).mean())
    scaled = {layer: _scaled(evidence[::stride, layer]) for layer in range(layers)}
    fits = ((layer, _Fit(values, sample, classes)) for layer, values in scaled.items() if values.any())
    informed = ((layer, fit) for layer, fit in fits if entropy + fit.likelihood >= LEAST_INFORMATION * entropy)
    layer, fit = next(informed, (None, None))
    fit = fit or _Fit(sum(scaled.values(), np.zeros(sample.shape, np.float32)), sample, classes)
    share = np.bincount(candidates[:, 0], minlength=classes) / np.maximum(np.bincount(given, minlength=classes), 1)
    return Noise(classes, fit.key, fit.count * share[fit.key % classes], fit.concentration, layer)


class _Fit:
    """Expectation maximization on evidence (n, T) of candidates (n, T); `likelihood` is the mean log-likelihood."""

    def __init__(self, evidence: np.ndarray, candidates: np.ndarray, classes: int):
        self.key, cell = np.unique(candidates * classes + candidates[:, :1], return_inverse=True)
        self.evidence, self.cell = evidence, cell.reshape(candidates.shape)
        wrong = self.key // classes != self.key % classes
        self.count = np.where(wrong, FIRST_RATE / max(classes - 1, 1), 1 - FIRST_RATE)
        self.concentration = np.inf
        log_confusion = np.log(self.count).astype(np.float32)
        unit = self._best(COARSE, log_confusion)
        for step in range(STEPS):
            if step % REFITTED == 0:
                unit = self._best(unit * FINE, log_confusion)
            responsibility = softmax(np.float32(unit) * evidence + log_confusion[self.cell])
            before, self.count = self.count, np.bincount(self.cell.ravel(), responsibility.ravel(), len(self.key))
            self.concentration = _concentration(self.key, self.count, classes)
            found = _log_confusion(self.key, self.count, classes, self.concentration, self.key, self.count)
            log_confusion = found.astype(np.float32)
            if np.abs(self.count - before).sum() < SETTLED * len(evidence):
                break
        self.likelihood = self._likelihood(unit, log_confusion)

    def _best(self, units: np.ndarray, log_confusion: np.ndarray) -> float:
        return float(max(units, key=lambda unit: self._likelihood(unit, log_confusion)))

    def _likelihood(self, unit: float, log_confusion: np.ndarray) -> float:
        stride = -(-len(self.evidence) // OF_UNIT)
        return label_likelihood(self.evidence[::stride], log_confusion[self.cell[::stride]], unit)


def label_likelihood(evidence: np.ndarray, log_confusion: np.ndarray, unit: float) -> float:
    """Mean log-likelihood of the labels, for evidence E (n, T) and log M[t, y] (n, T), both float32, and unit u."""
    scaled = np.float32(unit) * evidence
    return float((_log_sum(scaled + log_confusion) - _log_sum(scaled)).mean(dtype=np.float64))


def softmax(values: np.ndarray) -> np.ndarray:
    """exp of values (n, T), in sum 1."""
    raised = np.exp(values - values.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


def _scaled(evidence: np.ndarray) -> np.ndarray:
    """Evidence (n, T) float32 with margins that spread by one."""
    values = evidence.astype(np.float32)
    return values / np.float32(max(values[:, 1:].max(1).std(dtype=np.float64), 1e-12))


def _log_sum(values: np.ndarray) -> np.ndarray:
    """log of the sum (n,) of exp of values (n, T)."""
    largest = values.max(1)
    return largest + np.log(np.exp(values - largest[:, None]).sum(1))


def _totals(key: np.ndarray, count: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Examples (classes,) of each true class, and the wrongly labelled of them."""
    true = key // classes
    wrong = np.where(true != key % classes, count, 0.0)
    return np.bincount(true, count, minlength=classes), np.bincount(true, wrong, minlength=classes)


def _concentration(key: np.ndarray, count: np.ndarray, classes: int) -> float:
    """The Dirichlet concentration whose multinomial cells spread as the wrong labels do, by its second moment."""
    cells = max(classes - 1, 1)
    wrong = _totals(key, count, classes)[1]
    squares = float((count[key // classes != key % classes] ** 2).sum())
    spread = (squares - float((wrong**2).sum()) / cells) / max(1 - 1 / cells, 1e-12)
    if spread <= wrong.sum():
        return np.inf
    return max(float((wrong**2).sum()) - spread, 1e-6) / (spread - float(wrong.sum()))


def _log_confusion(
    key: np.ndarray, count: np.ndarray, classes: int, concentration: float, wanted: np.ndarray, found: np.ndarray
) -> np.ndarray:
    """log M of the `wanted` keys, whose counts are `found`."""
    total, wrong = _totals(key, count, classes)
    wrong = wrong + SMOOTHING
    total = total + 2 * SMOOTHING
    true, cells = wanted // classes, max(classes - 1, 1)
    if np.isinf(concentration):
        drawn = wrong[true] / cells
    else:
        drawn = wrong[true] * (found + concentration / cells) / (wrong[true] + concentration)
    return np.log(np.where(true == wanted % classes, (total - wrong)[true], drawn) / total[true])
