"""How many labels are wrong, and which class is taken for which, from evidence that has not memorised labels.

Given the evidence E_t of one layer on an example, itself left out, its true class is t with probability p_t =
softmax(u E + b)_t, and its label is y with probability sum_t p_t M[t, y]: the forward model of label noise (Patrini et
al. 2017).  The unit u, the bias b of each class (the models of some classes fit better than those of others, which
would pass for wrong labels) and the confusion M of classes are fitted to the labels by expectation maximization
    r_i(t) ~ p_i(t) M[t, y_i]        M[t, c] ~ sum of r_i(t) over i with y_i = c
    b_t += log sum_i r_i(t) / p_i(t)        u by a step of Newton's on sum r log p

Evidence from what training has fitted to the labels would find nothing wrong.  A parameter can hold about two bits of
them (Cover 1965), so layers are used that have too few parameters before them, in all, to have learned a tenth of the
labels by heart.  Two of them are fitted, each for itself, and their M averaged by the square of what they say: the
earliest, often the input itself, and the one that says most of the classes (which may be the same).  If there is none,
it is the earliest layer that says anything.

Of many classes there are few wrong labels each.  The cells M[t, c], c != t, of a class are therefore drawn to their
mean by the Dirichlet-multinomial whose concentration, over all classes, explains how the cells spread: even noise
becomes even, and confusion of a few classes stays as it is.  First all is fitted with a small concentration: drawn
together from the start, uneven cells would never come apart.  Then the cells alone: evidence of a smaller unit would
explain wrong labels among many classes better than even noise does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import islice

import numpy as np

from fsdtool.mislabel.noise.label_pairs import AllPairs, Cells, Pairs

log = logging.getLogger("fsdtool")

STEPS = 100  # of either phase
LARGEST_STEP = 0.3  # of the unit, relative
BITS = 2.0  # that a parameter can hold
BY_HEART = 0.1  # of what the labels say, that a layer may hold and still count as one that has not memorised
FIRST_RATE = 0.1
LEAST_RATE = 1e-3  # of even noise
LEAST_INFORMATION = 0.1  # that a layer has on the labels, of their entropy
NUMBERS = 2**19  # examples x candidates that are fitted
OF_UNIT = 8192  # examples from which the unit is fitted
BIAS_SMOOTHING = 1.0  # examples added to each class, so that classes of few have little bias
LOOSE = 10.0  # concentration of the first phase: even wrong labels added to those of each class
SMOOTHING = 1e-3  # wrong labels added to each class
COARSE = np.logspace(-2, 2, 21)
SETTLED = 1e-4  # of all examples, that a step moves between the cells


@dataclass(frozen=True)
class Noise:
    """Estimated examples by true class and given label, for the pairs that occur, in the order of `key`.

    key: (M,) int64, true class x classes + given label.  count: (M,) float64, examples.  concentration: of the
    Dirichlet prior of each class's wrong labels; infinite where they are even.  layers: those it was estimated from,
    none where all were taken together.  believed: how far the cells are, in M; the rest of M is even noise.
    """

    classes: int
    key: np.ndarray
    count: np.ndarray
    concentration: float
    layers: tuple[int, ...]
    believed: float = 1.0

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
        true = candidates.astype(np.int64)
        wanted = true * self.classes + true[:, :1]
        if wanted.size <= self.classes**2:
            return self._log_confusion(wanted)
        every = self._log_confusion(np.arange(self.classes**2))
        return every.take(wanted.T).T  # by candidate in memory

    def _log_confusion(self, wanted: np.ndarray) -> np.ndarray:
        """log M[t, y] float32 of pairs with these keys."""
        true = wanted // self.classes
        right = true == wanted % self.classes
        place = np.searchsorted(self.key, wanted).clip(max=len(self.key) - 1)
        count = np.where(self.key[place] == wanted, self.count[place], 0.0)
        totals = Cells(self.key, self.classes).totals(self.count)
        values = _confusion(*totals, self.concentration, true, right, count)
        if self.believed < 1:
            rate = max(self.rate, LEAST_RATE)
            even = np.where(right, 1 - rate, rate / max(self.classes - 1, 1))
            values = self.believed * values + (1 - self.believed) * even
        return np.log(values).astype(np.float32)


@dataclass(frozen=True)
class Estimate:
    """noise; whether its fits settled; likelihood: of the labels under them, in nats, a mean over the layers used."""

    noise: Noise
    settled: bool
    likelihood: float


def estimate(
    evidence: np.ndarray, candidates: np.ndarray, layers: int, classes: int, parameters: np.ndarray | None = None
) -> Noise:
    """The noise that `forward` finds, with a warning where it had not settled."""
    found = forward(evidence, candidates, layers, classes, parameters)
    if not found.settled:
        log.warning(
            f"the share of wrong labels had not settled after {STEPS} steps, since the layers that it is estimated "
            "from tell the classes badly apart; take it as rough"
        )
    return found.noise


def forward(
    evidence: np.ndarray,
    candidates: np.ndarray,
    layers: int,
    classes: int,
    parameters: np.ndarray | None = None,
    *,
    patient: bool = True,
) -> Estimate:
    """The noise in labels, from those of the first `layers` layers that have not memorised them, or all together.

    evidence: (N, L, T), nats, relative to the given label in column 0.  candidates: (N, T) classes, the given label
    first.  parameters: (L,) of the network before each layer, for each label that it learned; without, only the first
    layer is sure not to have memorised.  Many examples are estimated on an even sample and scaled to all.  patient:
    fit on what does not settle; otherwise the fits end there, and what was found is of no use.
    """
    pairs = _sampled(candidates, classes)
    fits = _Fits(evidence, pairs)
    given = pairs.given
    frequency = np.bincount(given, minlength=classes) / len(given)
    entropy = -float(np.log(frequency[given]).mean())
    if parameters is None:
        parameters = np.where(np.arange(layers) > 0, np.inf, 0)
    chosen = _choice(lambda layer: entropy + fits[layer].likelihood, BITS * np.log(2) * parameters[:layers], entropy)
    if chosen:
        used = [fits[layer] for layer in chosen]
        say = np.array([entropy + fit.likelihood for fit in used]) ** 2
    else:
        none = np.zeros((len(given), candidates.shape[1]), np.float32)
        used, say = [_Fit(sum((fits[layer].evidence for layer in range(layers)), none), pairs)], None
    settled = True
    for fit in used:
        settled = (settled or patient) and fit.run(patient) and settled
    cells, count = pairs.cells, np.average([fit.count for fit in used], 0, say)
    share = np.bincount(candidates[:, 0], minlength=classes) / np.maximum(np.bincount(given, minlength=classes), 1)
    noise = Noise(classes, cells.key, count * share[cells.key % classes], cells.concentration(count), chosen)
    return Estimate(noise, settled, float(np.average([fit.reached() for fit in used], 0, say)))


def shares(evidence: np.ndarray, candidates: np.ndarray, layers: int, classes: int) -> np.ndarray:
    """The share of wrong labels (layers,) by each of the first `layers` layers alone, memorised or not."""
    fits, found = _Fits(evidence, _sampled(candidates, classes)), []
    for layer in range(layers):
        fit = fits[layer]
        fit.run()
        found.append(fit.count[~fit.cells.right].sum() / len(fit.evidence))
    return np.array(found)


def _sampled(candidates: np.ndarray, classes: int) -> Pairs:
    """The pairs of an even sample of many examples."""
    sample = candidates[:: -(-len(candidates) * candidates.shape[1] // NUMBERS)].astype(np.int64)
    return AllPairs(sample) if candidates.shape[1] == classes else Pairs(sample, classes)


class _Fits(dict):
    """The fit of each layer on the same sample, once it is asked for; still to be run."""

    def __init__(self, evidence: np.ndarray, pairs: Pairs):
        super().__init__()
        self._evidence, self._pairs = evidence[:: -(-len(evidence) * evidence.shape[2] // NUMBERS)], pairs

    def __missing__(self, layer: int) -> _Fit:
        self[layer] = _Fit(self._pairs.ordered(_scaled(self._evidence[:, layer])), self._pairs)
        return self[layer]


def _choice(information: Callable[[int], float], capacity: np.ndarray, entropy: float) -> tuple[int, ...]:
    """The layers to estimate from, by what each says of a label and can hold of it, in nats."""
    small = capacity <= BY_HEART * entropy
    naive = [i for i in np.flatnonzero(small).tolist() if information(i) > LEAST_INFORMATION * entropy]
    if not naive:
        others = (i for i in np.flatnonzero(~small).tolist() if information(i) > LEAST_INFORMATION * entropy)
        naive = list(islice(others, 1))
    return tuple(sorted({naive[0], max(naive, key=information)})) if naive else ()


class _Fit:
    """Expectation maximization on evidence (n, T) of the candidates of `pairs`.

    `likelihood` is the mean log-likelihood of the labels at the start, by the best unit; count holds what `run` finds.
    """

    def __init__(self, evidence: np.ndarray, pairs: Pairs):
        self.evidence, self.pairs, self.cells = evidence, pairs, pairs.cells
        first = np.where(self.cells.right, 1 - FIRST_RATE, FIRST_RATE / max(self.cells.classes - 1, 1))
        self.confusion = first.astype(np.float32)
        self.bias = np.zeros(self.cells.classes, np.float32)
        self.count = np.zeros(len(self.cells.key))
        stride = -(-len(evidence) // OF_UNIT)
        self.unit, self.likelihood = likeliest(evidence[::stride], pairs.of_cells(self.confusion)[::stride], COARSE)

    def run(self, patient: bool = True) -> bool:
        """Fit the unit, the biases and the confusion with loose cells, then the confusion alone, drawn together.

        Whether both phases settled within their steps.  patient: whether to go on where the first did not.
        """
        settled = self._phase(drawn=False)
        return (settled or patient) and self._phase(drawn=True) and settled

    def _phase(self, drawn: bool) -> bool:
        for step in range(STEPS):
            before = self.count
            self._step(drawn)
            # The first step counts by the confusion that the phase before has left.
            if step and np.abs(self.count - before).sum() < SETTLED * len(self.evidence):
                return True
        return False

    def reached(self) -> float:
        """Mean log-likelihood of the labels under what was fitted."""
        likelihood = (self._expected() * self.pairs.of_cells(self.confusion)).sum(1)
        return float(np.log(likelihood + 1e-30).mean(dtype=np.float64))

    def _expected(self) -> np.ndarray:
        """Probabilities (n, T) of the candidates by the evidence."""
        return softmax(np.float32(self.unit) * self.evidence + self.pairs.of_classes(self.bias))

    def _step(self, drawn: bool) -> None:
        cells, expected = self.cells, self._expected()
        responsibility = expected * self.pairs.of_cells(self.confusion)
        responsibility /= responsibility.sum(1, keepdims=True)
        self.count = self.pairs.by_cell(responsibility)
        concentration = cells.concentration(self.count) if drawn else LOOSE
        totals = cells.totals(self.count)
        self.confusion = _confusion(*totals, concentration, cells.true, cells.right, self.count).astype(np.float32)
        if not drawn:
            self.bias += self._more_bias(responsibility, expected)
            self.unit *= 1 + self._more_unit(responsibility, expected)

    def _more_bias(self, responsibility: np.ndarray, expected: np.ndarray) -> np.ndarray:
        """What the bias (classes,) lacks: log of the examples that a class has over those that it is expected to."""
        has, should = self.pairs.by_class(responsibility), self.pairs.by_class(expected)
        return np.log((has + BIAS_SMOOTHING) / (should + BIAS_SMOOTHING)).astype(np.float32)

    def _more_unit(self, responsibility: np.ndarray, expected: np.ndarray) -> float:
        """Newton's step of the unit, relative to it."""
        first = expected * self.evidence
        mean = first.sum(1)
        slope = float(np.vdot(responsibility.T, self.evidence.T)) - mean.sum(dtype=np.float64)
        curvature = float(np.vdot(first.T, self.evidence.T)) - float((mean.astype(np.float64) ** 2).sum())
        return float(np.clip(slope / max(curvature * self.unit, 1e-12), -LARGEST_STEP, LARGEST_STEP))


def likeliest(evidence: np.ndarray, confusion: np.ndarray, units: np.ndarray) -> tuple[float, float]:
    """Of ascending units u that under which the labels are likeliest, for evidence E (n, T) and M[t, y] (n, T) float32.

    And their mean log-likelihood, in nats.  Every fourth unit is tried, then those beside the best.
    """
    below = evidence - evidence.max(1, keepdims=True)

    @cache
    def likelihood(place: int) -> float:
        if not 0 <= place < len(units):
            return -np.inf
        expected = np.exp(np.float32(units[place]) * below)
        return float(np.log((expected * confusion).sum(1) / expected.sum(1)).mean(dtype=np.float64))

    best = max(range(0, len(units), 4), key=likelihood)
    while (other := max(best, best - 1, best + 1, key=likelihood)) != best:
        best = other
    return float(units[best]), likelihood(best)


def softmax(values: np.ndarray) -> np.ndarray:
    """exp of values (n, T), in sum 1."""
    raised = values - values.max(1, keepdims=True)
    np.exp(raised, out=raised)
    raised /= raised.sum(1, keepdims=True)
    return raised


def _scaled(evidence: np.ndarray) -> np.ndarray:
    """Evidence (n, T) float32 with margins that spread by one."""
    values = np.asfortranarray(evidence, np.float32)
    return values / np.float32(max(values[:, 1:].max(1).std(dtype=np.float64), 1e-12))


def _confusion(
    total: np.ndarray, wrong: np.ndarray, concentration: float, true: np.ndarray, right: np.ndarray, count: np.ndarray
) -> np.ndarray:
    """M of cells with these true classes, right or wrong labels and counts of examples, given `Cells.totals`."""
    wrong, total = wrong + SMOOTHING, total + 2 * SMOOTHING
    each = 1 / max(len(total) - 1, 1)
    if np.isinf(concentration):
        drawn = wrong[true] * each
    else:
        concentration = max(concentration, SMOOTHING)
        drawn = wrong[true] * (count + concentration * each) / (wrong[true] + concentration)
    return np.where(right, (total - wrong)[true], drawn) / total[true]
