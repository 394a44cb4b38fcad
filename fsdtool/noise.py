"""How many labels are wrong, and which class is taken for which, from evidence that has not memorised labels.

Given the evidence E_t of one layer on an example, itself left out, its true class is t with probability p_t =
softmax(u E + b)_t, and its label is y with probability sum_t p_t M[t, y]: the forward model of label noise (Patrini et
al. 2017).  The unit u, the bias b of each class (the models of some classes fit better than those of others, which
would pass for wrong labels) and the confusion M of classes are fitted to the labels by expectation maximization
    r_i(t) ~ p_i(t) M[t, y_i]        M[t, c] ~ sum of r_i(t) over i with y_i = c
    b_t += log sum_i r_i(t) / p_i(t)        u by a step of Newton's on sum r log p

Evidence from what training has fitted to the labels would find nothing wrong.  A parameter can hold about two bits of
them (Cover 1965), so layers are used that have too few parameters before them, in all, to have learned a tenth of the
labels by heart.  Two such layers are fitted, each for itself: the earliest, often the input itself, and the one that
says most of the classes.  Their M are averaged, by the square of what they say.  If there is none, it is the earliest
layer that says anything.

Of many classes there are few wrong labels each.  The cells M[t, c], c != t, of a class are therefore drawn to their
mean by the Dirichlet-multinomial whose concentration, over all classes, explains how the cells spread: even noise
becomes even, and confusion of a few classes stays as it is.  They are fitted freely first: drawn together from the
start, uneven cells would never come apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STEPS = 100  # of the free fit, and of the drawn one
LARGEST_STEP = 0.3  # of the unit, relative
BITS = 2.0  # that a parameter can hold
BY_HEART = 0.1  # of what the labels say, that a layer may hold and still count as one that has not memorised
FIRST_RATE = 0.1
LEAST_INFORMATION = 0.1  # that a layer has on the labels, of their entropy
NUMBERS = 2**20  # examples x candidates that are fitted
OF_UNIT = 8192  # examples from which the unit is fitted
BIAS_SMOOTHING = 1.0  # examples added to each class, so that classes of few have little bias
SMOOTHING = 1e-3  # wrong labels added to each class
COARSE = np.logspace(-2, 2, 21)
SETTLED = 1e-4  # of all examples, that a step moves between the cells


@dataclass(frozen=True)
class Noise:
    """Estimated examples by true class and given label, for the pairs that occur, in the order of `key`.

    key: (M,) int64, true class x classes + given label.  count: (M,) float64, examples.  concentration: of the
    Dirichlet prior of each class's wrong labels; infinite where they are even.  layers: those it was estimated from,
    none where all were taken together.
    """

    classes: int
    key: np.ndarray
    count: np.ndarray
    concentration: float
    layers: tuple[int, ...]

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


def estimate(
    evidence: np.ndarray, candidates: np.ndarray, layers: int, classes: int, parameters: np.ndarray | None = None
) -> Noise:
    """The noise in labels, from those of the first `layers` layers that have not memorised them, or all together.

    evidence: (N, L, T), nats, relative to the given label in column 0.  candidates: (N, T) classes, the given label
    first.  parameters: (L,) of the network before each layer, for each label that it learned; without, only the first
    layer is sure not to have memorised.  Many examples are estimated on an even sample and scaled to all.
    """
    stride = -(-len(candidates) * candidates.shape[1] // NUMBERS)
    sample = candidates[::stride].astype(np.int64)
    given = sample[:, 0]
    frequency = np.bincount(given, minlength=classes) / len(given)
    entropy = -float(np.log(frequency[given]).mean())
    cells = np.unique(sample * classes + sample[:, :1], return_inverse=True)
    fits = [_Fit(_scaled(evidence[::stride, layer]), sample, classes, *cells) for layer in range(layers)]
    if parameters is None:
        parameters = np.where(np.arange(layers) > 0, np.inf, 0)
    information = np.array([entropy + fit.likelihood for fit in fits])
    chosen = _choice(information, BITS * np.log(2) * parameters[:layers], entropy)
    if chosen:
        used, say = [fits[layer] for layer in chosen], information[list(chosen)] ** 2
    else:
        together = sum((fit.evidence for fit in fits), np.zeros(sample.shape, np.float32))
        used, say = [_Fit(together, sample, classes, *cells)], None
    for fit in used:
        fit.run()
    key, count = cells[0], np.average([fit.count for fit in used], 0, say)
    share = np.bincount(candidates[:, 0], minlength=classes) / np.maximum(np.bincount(given, minlength=classes), 1)
    return Noise(classes, key, count * share[key % classes], _concentration(key, count, classes), chosen)


def _choice(information: np.ndarray, capacity: np.ndarray, entropy: float) -> tuple[int, ...]:
    """The layers to estimate from, by what each says of a label and can hold of it, in nats."""
    informed = np.flatnonzero(information >= LEAST_INFORMATION * entropy).tolist()
    naive = [i for i in informed if capacity[i] <= BY_HEART * entropy] or informed[:1]
    return tuple(sorted({naive[0], max(naive, key=lambda i: information[i])})) if naive else ()


class _Fit:
    """Expectation maximization on evidence (n, T) of candidates (n, T), whose `cell` (n, T) is a place in `key`.

    `likelihood` is the mean log-likelihood of the labels at the start, by the best unit; count holds what `run` finds.
    """

    def __init__(self, evidence: np.ndarray, candidates: np.ndarray, classes: int, key: np.ndarray, cell: np.ndarray):
        self.evidence, self.candidates, self.classes = evidence, candidates, classes
        self.key, self.cell = key, cell.reshape(candidates.shape)
        wrong = key // classes != key % classes
        self.confusion = np.where(wrong, FIRST_RATE / max(classes - 1, 1), 1 - FIRST_RATE).astype(np.float32)
        self.bias = np.zeros(classes, np.float32)
        self.count = np.zeros(len(key))
        stride = -(-len(evidence) // OF_UNIT)
        log_confusion = np.log(self.confusion)[self.cell[::stride]]
        self.likelihood, self.unit = max(
            (label_likelihood(evidence[::stride], log_confusion, unit), float(unit)) for unit in COARSE
        )

    def run(self) -> None:
        """Fit the unit, the biases and the confusion, whose cells are free at first and then drawn together."""
        for drawn in (False, True):
            for _ in range(STEPS):
                before = self.count
                self._step(drawn)
                if np.abs(self.count - before).sum() < SETTLED * len(self.evidence):
                    break

    def _step(self, drawn: bool) -> None:
        expected = softmax(np.float32(self.unit) * self.evidence + self.bias[self.candidates])
        responsibility = expected * self.confusion[self.cell]
        responsibility /= responsibility.sum(1, keepdims=True)
        self.count = np.bincount(self.cell.ravel(), responsibility.ravel(), len(self.key))
        concentration = _concentration(self.key, self.count, self.classes) if drawn else 0.0
        log_confusion = _log_confusion(self.key, self.count, self.classes, concentration, self.key, self.count)
        self.confusion = np.exp(log_confusion).astype(np.float32)
        self.bias += self._more_bias(responsibility, expected)
        self.unit *= 1 + self._more_unit(responsibility, expected)

    def _more_bias(self, responsibility: np.ndarray, expected: np.ndarray) -> np.ndarray:
        """What the bias (classes,) lacks: log of the examples that a class has over those that it is expected to."""
        of = self.candidates.ravel()
        has, should = (np.bincount(of, part.ravel(), self.classes) for part in (responsibility, expected))
        return np.log((has + BIAS_SMOOTHING) / (should + BIAS_SMOOTHING)).astype(np.float32)

    def _more_unit(self, responsibility: np.ndarray, expected: np.ndarray) -> float:
        """Newton's step of the unit, relative to it."""
        mean = np.einsum("nt,nt->n", expected, self.evidence)
        slope = np.einsum("nt,nt->", responsibility, self.evidence, dtype=np.float64) - mean.sum(dtype=np.float64)
        square = np.einsum("nt,nt,nt->", expected, self.evidence, self.evidence, dtype=np.float64)
        curvature = square - float((mean.astype(np.float64) ** 2).sum())
        return float(np.clip(slope / max(curvature * self.unit, 1e-12), -LARGEST_STEP, LARGEST_STEP))


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
    concentration = max(concentration, SMOOTHING)
    if np.isinf(concentration):
        drawn = wrong[true] / cells
    else:
        drawn = wrong[true] * (found + concentration / cells) / (wrong[true] + concentration)
    return np.log(np.where(true == wanted % classes, (total - wrong)[true], drawn) / total[true])
