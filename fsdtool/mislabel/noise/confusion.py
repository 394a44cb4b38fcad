"""How many labels are wrong, and which class is labelled as which, from evidence that has not memorised the labels.

The forward model of label noise (Patrini et al. 2017).  The evidence E_t of one layer on an example, itself left out,
gives its true class t the probability p_t = softmax(beta E + b)_t.  Its label y then has the probability
sum_t p_t M[t, y].  The inverse temperature beta, a bias b for each class and the confusion M of classes are fitted to
the labels by expectation maximization:
    r_i(t) ~ p_i(t) M[t, y_i]        M[t, c] ~ sum of r_i(t) over i with y_i = c
    b_t += log sum_i r_i(t) / p_i(t)        beta by a Newton step on sum r log p
The biases are needed since the models of some classes fit better than those of others: without them the difference
would be counted as wrong labels.

Which layers.  Evidence from weights that have memorised the labels would find none wrong.  A parameter can hold about
two bits of the labels (Cover 1965).  A layer counts as not memorising if all parameters before it together can hold at
most a tenth of the labels' entropy.  Two such layers are fitted, each for itself: the earliest one, often the input
itself, and the one with most information on the labels (they may be the same).  Their M are averaged with the squared
information as weights.  If no layer is that small, the earliest one that has information on the labels is fitted.

Many classes.  Then there are few wrong labels for each pair of classes.  The cells M[t, c], c != t, of a class are
shrunk towards their mean by a Dirichlet-multinomial prior; its concentration is the one that explains how the cells of
all classes spread.  So even noise becomes even, and the confusion of a few classes stays as it is.

Two phases.  Shrinking from the first step would lock the matrix to even noise, so phase 1 fits everything under a weak
prior.  Phase 2 fits the cells alone under the estimated prior, since a smaller beta would explain wrong labels among
many classes better than even noise does.
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

STEPS = 100  # at most, of each phase
LARGEST_STEP = 0.3  # relative change of the inverse temperature in one step
BITS = 2.0  # of the labels that a parameter can hold (Cover 1965)
BY_HEART = 0.1  # largest capacity, relative to the labels' entropy, of a layer treated as not memorising
FIRST_RATE = 0.1  # share of wrong labels that a fit starts with
LEAST_RATE = 1e-3  # of the even noise that is mixed into M
LEAST_INFORMATION = 0.1  # on the labels, relative to their entropy, of a layer that is fitted
NUMBERS = 2**19  # examples x candidates that are fitted, at most
TEMPERATURE_SAMPLE = 8192  # examples that the first inverse temperature is chosen on
BIAS_SMOOTHING = 1.0  # pseudo-examples of each class, so that small classes get little bias
LOOSE = 10.0  # concentration of the weak prior of phase 1: even wrong labels added to those of each class
SMOOTHING = 1e-3  # wrong labels added to each class
COARSE = np.logspace(-2, 2, 21)  # inverse temperatures tried first, for evidence whose margins have a deviation of 1
SETTLED = 1e-4  # of all examples: a step that moves fewer between the cells ends a phase


@dataclass(frozen=True)
class Noise:
    """Estimated number of examples for each pair of a true class and a given label that occurs.

    key: (M,) int64, ascending, true class x classes + given label.  count: (M,) float64, examples.  concentration: of
    the Dirichlet prior of each class's wrong labels; infinite where they are even.  layers: numbers of the layers that
    it was estimated from, empty where no single layer told the classes apart and all were added up.  believed: weight
    in [0, 1] of these counts in M; the rest of M is even noise.
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
    """noise: as estimated.  settled: whether its fits converged.  likelihood: mean log-likelihood of the labels under
    the fits, in nats, averaged over the layers used.
    """

    noise: Noise
    settled: bool
    likelihood: float


def estimate(
    evidence: np.ndarray, candidates: np.ndarray, layers: int, classes: int, parameters: np.ndarray | None = None
) -> Noise:
    """The noise that `forward` finds in evidence (N, L, T) on candidates (N, T); a warning if it has not converged.

    layers, classes, parameters: as for `forward`.
    """
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
    """The noise in labels, from those of the first `layers` layers that have not memorised them.

    evidence: (N, L, T), nats, relative to the given label in column 0.  candidates: (N, T) classes, the given label
    first.  parameters: (L,) of the network before each layer, for each label that it learned; without, only the first
    layer counts as not memorising.  A large number of examples is estimated on an even sample and scaled to all.
    patient: whether to go on after a phase that has not converged; otherwise all fits end there, and what was found
    cannot be used.
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
        information_weight = np.array([entropy + fit.likelihood for fit in used]) ** 2
    else:
        none = np.zeros((len(given), candidates.shape[1]), np.float32)
        used = [_Fit(sum((fits[layer].evidence for layer in range(layers)), none), pairs)]
        information_weight = None
    settled = True
    for fit in used:
        settled = (settled or patient) and fit.run(patient) and settled
    cells, count = pairs.cells, np.average([fit.count for fit in used], 0, information_weight)
    share = np.bincount(candidates[:, 0], minlength=classes) / np.maximum(np.bincount(given, minlength=classes), 1)
    noise = Noise(classes, cells.key, count * share[cells.key % classes], cells.concentration(count), chosen)
    return Estimate(noise, settled, float(np.average([fit.reached() for fit in used], 0, information_weight)))


def shares(evidence: np.ndarray, candidates: np.ndarray, layers: int, classes: int) -> np.ndarray:
    """The share of wrong labels (layers,) float64 by each of the first `layers` layers alone, memorised or not.

    evidence: (N, L, T) and candidates: (N, T), as for `forward`.
    """
    fits, found = _Fits(evidence, _sampled(candidates, classes)), []
    for layer in range(layers):
        fit = fits[layer]
        fit.run()
        found.append(fit.count[~fit.cells.right].sum() / len(fit.evidence))
    return np.array(found)


def _sampled(candidates: np.ndarray, classes: int) -> Pairs:
    """The pairs of the examples (N, T), or of an even sample of them if there are many."""
    sample = candidates[:: -(-len(candidates) * candidates.shape[1] // NUMBERS)].astype(np.int64)
    return AllPairs(sample) if candidates.shape[1] == classes else Pairs(sample, classes)


class _Fits(dict):
    """The fit of each layer on the same sample, made at the first look-up and not yet run."""

    def __init__(self, evidence: np.ndarray, pairs: Pairs):
        super().__init__()
        self._evidence, self._pairs = evidence[:: -(-len(evidence) * evidence.shape[2] // NUMBERS)], pairs

    def __missing__(self, layer: int) -> _Fit:
        self[layer] = _Fit(self._pairs.ordered(_scaled(self._evidence[:, layer])), self._pairs)
        return self[layer]


def _choice(information: Callable[[int], float], capacity: np.ndarray, entropy: float) -> tuple[int, ...]:
    """The layers to estimate from, by the information that each has on a label and its capacity (L,), in nats."""
    small = capacity <= BY_HEART * entropy
    naive = [i for i in np.flatnonzero(small).tolist() if information(i) > LEAST_INFORMATION * entropy]
    if not naive:
        others = (i for i in np.flatnonzero(~small).tolist() if information(i) > LEAST_INFORMATION * entropy)
        naive = list(islice(others, 1))
    return tuple(sorted({naive[0], max(naive, key=information)})) if naive else ()


class _Fit:
    """Expectation maximization on evidence (n, T) of the candidates of `pairs`.

    likelihood: mean log-likelihood of the labels at the start, with the best inverse temperature.  count: (M,) examples
    of each pair, after `run`.
    """

    def __init__(self, evidence: np.ndarray, pairs: Pairs):
        self.evidence, self.pairs, self.cells = evidence, pairs, pairs.cells
        first = np.where(self.cells.right, 1 - FIRST_RATE, FIRST_RATE / max(self.cells.classes - 1, 1))
        self.confusion = first.astype(np.float32)
        self.bias = np.zeros(self.cells.classes, np.float32)
        self.count = np.zeros(len(self.cells.key))
        stride = -(-len(evidence) // TEMPERATURE_SAMPLE)
        self.inverse_temperature, self.likelihood = likeliest(
            evidence[::stride], pairs.of_cells(self.confusion)[::stride], COARSE
        )

    def run(self, patient: bool = True) -> bool:
        """Both phases; whether both converged within their steps.  patient: go on where the first has not."""
        settled = self._phase(shrunk=False)
        return (settled or patient) and self._phase(shrunk=True) and settled

    def _phase(self, shrunk: bool) -> bool:
        for step in range(STEPS):
            before = self.count
            self._step(shrunk)
            # The first step of phase 2 still counts by the confusion of phase 1, so it may not end the phase.
            if step and np.abs(self.count - before).sum() < SETTLED * len(self.evidence):
                return True
        return False

    def reached(self) -> float:
        """Mean log-likelihood of the labels under what was fitted."""
        likelihood = (self._expected() * self.pairs.of_cells(self.confusion)).sum(1)
        return float(np.log(likelihood + 1e-30).mean(dtype=np.float64))

    def _expected(self) -> np.ndarray:
        """Probabilities (n, T) of the candidates by the evidence."""
        return softmax(np.float32(self.inverse_temperature) * self.evidence + self.pairs.of_classes(self.bias))

    def _step(self, shrunk: bool) -> None:
        cells, expected = self.cells, self._expected()
        responsibility = expected * self.pairs.of_cells(self.confusion)
        responsibility /= responsibility.sum(1, keepdims=True)
        self.count = self.pairs.by_cell(responsibility)
        concentration = cells.concentration(self.count) if shrunk else LOOSE
        totals = cells.totals(self.count)
        self.confusion = _confusion(*totals, concentration, cells.true, cells.right, self.count).astype(np.float32)
        if not shrunk:
            self.bias += self._bias_step(responsibility, expected)
            self.inverse_temperature *= 1 + self._temperature_step(responsibility, expected)

    def _bias_step(self, responsibility: np.ndarray, expected: np.ndarray) -> np.ndarray:
        """What to add to the bias (classes,): log of the examples that a class has over those expected by p."""
        has, should = self.pairs.by_class(responsibility), self.pairs.by_class(expected)
        return np.log((has + BIAS_SMOOTHING) / (should + BIAS_SMOOTHING)).astype(np.float32)

    def _temperature_step(self, responsibility: np.ndarray, expected: np.ndarray) -> float:
        """The Newton step of the inverse temperature, relative to it."""
        first = expected * self.evidence
        mean = first.sum(1)
        slope = float(np.vdot(responsibility.T, self.evidence.T)) - mean.sum(dtype=np.float64)
        curvature = float(np.vdot(first.T, self.evidence.T)) - float((mean.astype(np.float64) ** 2).sum())
        return float(np.clip(slope / max(curvature * self.inverse_temperature, 1e-12), -LARGEST_STEP, LARGEST_STEP))


def likeliest(evidence: np.ndarray, confusion: np.ndarray, inverse_temperatures: np.ndarray) -> tuple[float, float]:
    """The inverse temperature beta under which the labels are likeliest, and their mean log-likelihood in nats.

    evidence: E (n, T) and confusion: M[t, y] (n, T), float32.  inverse_temperatures: those to choose from, ascending;
    every fourth is tried, then the neighbours of the best until none is better.
    """
    below = evidence - evidence.max(1, keepdims=True)

    @cache
    def likelihood(place: int) -> float:
        if not 0 <= place < len(inverse_temperatures):
            return -np.inf
        expected = np.exp(np.float32(inverse_temperatures[place]) * below)
        return float(np.log((expected * confusion).sum(1) / expected.sum(1)).mean(dtype=np.float64))

    best = max(range(0, len(inverse_temperatures), 4), key=likelihood)
    while (other := max(best, best - 1, best + 1, key=likelihood)) != best:
        best = other
    return float(inverse_temperatures[best]), likelihood(best)


def softmax(values: np.ndarray) -> np.ndarray:
    """exp of values (n, T), normalised so that each row sums to 1."""
    raised = values - values.max(1, keepdims=True)
    np.exp(raised, out=raised)
    raised /= raised.sum(1, keepdims=True)
    return raised


def _scaled(evidence: np.ndarray) -> np.ndarray:
    """Evidence (n, T) float32, scaled so that its margins have a standard deviation of 1."""
    values = np.asfortranarray(evidence, np.float32)
    return values / np.float32(max(values[:, 1:].max(1).std(dtype=np.float64), 1e-12))


def _confusion(
    total: np.ndarray, wrong: np.ndarray, concentration: float, true: np.ndarray, right: np.ndarray, count: np.ndarray
) -> np.ndarray:
    """M of cells with these true classes, right or wrong labels and counts of examples, given `Cells.totals`.

    The wrong labels of a class are shrunk towards their mean by a Dirichlet prior of this concentration.
    """
    wrong, total = wrong + SMOOTHING, total + 2 * SMOOTHING
    each = 1 / max(len(total) - 1, 1)
    if np.isinf(concentration):
        shrunk = wrong[true] * each
    else:
        concentration = max(concentration, SMOOTHING)
        shrunk = wrong[true] * (count + concentration * each) / (wrong[true] + concentration)
    return np.where(right, (total - wrong)[true], shrunk) / total[true]
