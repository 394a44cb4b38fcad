"""True classes behind noisy labels: a mixture model of one layer's evidence, with one cloud for each true class.

Where many labels of a class are wrong in the same way, the model of that class (fsdtool.mislabel.class_gaussians) mixes
two true classes, and its evidence is weak for both.  But the evidence e in R^C of a layer for all C classes still forms
one cloud for each true class: under a shared covariance, log-likelihoods are linear in the features, and the class
means span the same space however labels are mixed.  The clouds are Student t distributions of nu degrees of freedom
with one common shape:

    true class t with probability pi_t,   e ~ t_nu(centre_t, shape),   given label y with probability M[t, y]

They are fitted by expectation maximization (Dempster, Laird, Rubin 1977; for Student t Liu, Rubin 1995), starting from
the given labels.  The log-likelihoods of an example under the clouds are evidence on its true class.

There are two kinds of fit.  `unmixed` estimates the confusion M together with the clouds.  Where the layer separates
the classes it gives the share of wrong labels, whatever their structure; where classes overlap, it takes unusual
examples of one class for examples of another.  `unmixed_as` takes a known confusion, that of all layers, and fits the
clouds alone.  An example then belongs to class t with the tempered probability (likelihood^0.3 pi M)_t / sum: without
tempering, clouds would drift to clusters within the classes.

No example is left out here.  It influences its own log-likelihoods through the cloud centres only, which are means
over whole classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FREEDOM = 5.0, 10.0  # nu of `unmixed` and of `unmixed_as`
TEMPER = 0.3  # power of the likelihood in `unmixed_as`
STEPS = 60, 8  # of `unmixed`, at most, and of `unmixed_as`
SETTLED = 1e-4  # of all examples: a step that moves fewer between right and wrong is the last
FIRST_RATE = 0.1  # share of wrong labels at the start
LOOSE = 10.0  # even wrong labels added to those of each class
EMPTY = 1e-3  # pseudo-examples of each class at the mean of all examples, so that no centre is undefined
RIDGE = 1e-6  # least variance of the shape in any direction, relative to the mean variance
LARGEST = 1e3  # nats at which evidence is clipped


@dataclass(frozen=True)
class Clouds:
    """One cloud for each class that has examples, in one layer's evidence.

    present: (c,) int64, classes with examples.  whiten: (c - 1, c - 1) float32; the shape is the
    identity in coordinates whiten^T x.  centres: (c, c - 1) float32, in these coordinates.  freedom: nu.
    """

    classes: int
    present: np.ndarray
    whiten: np.ndarray
    centres: np.ndarray
    freedom: float

    def log_likelihood(self, evidence: np.ndarray) -> np.ndarray:
        """Log-likelihoods (n, classes) float32 from evidence (n, classes), -inf for absent classes."""
        found = np.full((self.classes, len(evidence)), -np.inf, np.float32)
        z = self.whiten.T @ coordinates(evidence, self.present)
        found[self.present] = student_log_density(squares(z, self.centres), len(z), self.freedom)
        return found.T


@dataclass(frozen=True)
class Unmixed:
    """clouds: as fitted.  count: (classes, classes) float64, examples by true class (rows) and given label."""

    clouds: Clouds
    count: np.ndarray

    @property
    def rate(self) -> float:
        """Share of wrong labels."""
        return 1 - float(np.trace(self.count) / self.count.sum())


def likelihood(found: Unmixed, evidence: np.ndarray, given: np.ndarray) -> float:
    """Mean log-likelihood, in nats, of the labels `given` (n,) under a fit, from evidence (n, classes)."""
    confusion, share = shrunk(found.count, LOOSE), found.count.sum(1) / found.count.sum()
    joint = found.clouds.log_likelihood(evidence) + np.log(share + 1e-12)
    expected = np.exp(joint - joint.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    return float(np.log(np.einsum("nt,nt->n", expected, confusion[:, given].T) + 1e-30).mean())


def unmixed(evidence: np.ndarray, given: np.ndarray, classes: int) -> Unmixed:
    """Clouds and confusion from evidence (n, classes) for the labels `given` (n,)."""
    return _fit(evidence, given, classes, None)


def unmixed_as(evidence: np.ndarray, given: np.ndarray, confusion: np.ndarray) -> Unmixed:
    """Clouds from evidence (n, classes), where class t is labelled y with probability `confusion` (t, y)."""
    return _fit(evidence, given, len(confusion), confusion)


def coordinates(evidence: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Coordinates (c - 1, n) float32 of evidence (n, classes), its mean over the `present` classes (c,) removed."""
    x = evidence.T.astype(np.float32, "C")[present]
    return _basis(len(present)).T @ np.clip(x, -LARGEST, LARGEST, out=x)


def squares(z: np.ndarray, centres: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Squared distances (c, n) of z (d, n) from the centres (c, d)."""
    q = np.matmul(-2 * centres, z, out=out)
    q += np.einsum("dn,dn->n", z, z)
    q += np.einsum("cd,cd->c", centres, centres)[:, None]
    return np.clip(q, 0, np.inf, out=q)


def student_log_density(q: np.ndarray, dimensions: int, freedom: float, out: np.ndarray | None = None) -> np.ndarray:
    """Log-density of a Student t at squared distances q, up to a constant."""
    density = np.multiply(q, np.float32(1 / freedom), out=out)
    np.log1p(density, out=density)
    density *= np.float32(-(freedom + dimensions) / 2)
    return density


def shrunk(count: np.ndarray, cells: float, each: float = 0.0) -> np.ndarray:
    """M (classes, classes), rows t of sum 1, from the examples `count` by true class (rows) and given label.

    cells: pseudo-examples with wrong labels, spread evenly over the wrong labels of each class.  each: pseudo-examples
    of each class with the overall share of wrong labels.
    """
    classes = len(count)
    total, right = count.sum(1), count.diagonal()
    overall = 1 - right.sum() / max(total.sum(), 1e-12)
    wrong = ((total - right + each * overall + 1e-3) / (total + each + 2e-3))[:, None]
    shares = count + cells / max(classes - 1, 1)
    np.fill_diagonal(shares, 0.0)
    confusion = wrong * shares / np.maximum(shares.sum(1, keepdims=True), 1e-12)
    np.fill_diagonal(confusion, 1 - wrong[:, 0])
    return confusion


def _basis(count: int) -> np.ndarray:
    """An orthonormal basis (count, count - 1) float32 of the vectors whose sum is 0."""
    columns = np.eye(count)[:, : count - 1]
    return np.linalg.qr(np.concatenate([np.ones((count, 1)), columns], 1))[0][:, 1:].astype(np.float32)


def _fit(evidence: np.ndarray, given: np.ndarray, classes: int, known: np.ndarray | None) -> Unmixed:
    """Clouds, with the confusion estimated or `known` (t, y)."""
    present = np.flatnonzero(np.bincount(given, minlength=classes))
    own = (present[:, None] == given).astype(np.float32)
    form = int(known is not None)
    freedom, steps, temper = FREEDOM[form], STEPS[form], (1.0, TEMPER)[form]
    x = coordinates(evidence, present)
    d, n = x.shape
    confusion = _first(len(present)) if known is None else known[np.ix_(present, present)]
    belongs, sample_weight = own.copy(), np.ones(n, np.float32)
    rate, count = np.inf, np.diag(own.sum(1)).astype(np.float64)
    # Arrays are (classes, n): sums over the last axis of few classes are slow.  They are allocated once.
    q, z, work = np.empty_like(belongs), np.empty_like(x), np.empty_like(belongs)
    for _ in range(steps):
        centres, whiten = _moments(x, belongs, sample_weight, work)
        squares(np.matmul(whiten.T, x, out=z), centres, out=q)
        student_log_density(q, d, freedom, out=belongs)
        belongs -= belongs.max(0)
        if temper != 1:
            belongs *= np.float32(temper)
        np.exp(belongs, out=belongs)
        prior = np.maximum(count.sum(1, keepdims=True) / n, 1e-12) * (confusion + 1e-12)
        belongs *= np.matmul(prior.astype(np.float32), own, out=work)  # faster than prior[:, label]
        belongs /= belongs.sum(0)
        sample_weight = np.float32(freedom + d) / (np.float32(freedom) + np.einsum("cn,cn->n", belongs, q))
        count = (belongs @ own.T).astype(np.float64)
        before, rate = rate, 1 - np.trace(count) / n
        if known is None:
            confusion = shrunk(count, LOOSE)
            if abs(rate - before) < SETTLED:
                break
    whole = np.zeros((classes, classes))
    whole[np.ix_(present, present)] = count
    return Unmixed(Clouds(classes, present, whiten, centres, freedom), whole)


def _first(classes: int) -> np.ndarray:
    """The confusion (classes, classes) at the start: even noise."""
    confusion = np.full((classes, classes), FIRST_RATE / max(classes - 1, 1))
    np.fill_diagonal(confusion, 1 - FIRST_RATE)
    return confusion


def _moments(
    x: np.ndarray, belongs: np.ndarray, sample_weight: np.ndarray, work: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Centres (c, d) of the clouds in whitened coordinates, and the matrix (d, d) that whitens.

    x: (d, n) coordinates.  belongs: (c, n) class probabilities.  sample_weight: (n,) of the Student t.  work: (c, n),
    memory to use.
    """
    parts = np.multiply(belongs, sample_weight, out=work)
    total = parts.sum(1).astype(np.float64)
    sums = (parts @ x.T).astype(np.float64)
    # A class that has lost all of its examples gets the mean of all examples as its centre.
    centres = (sums + EMPTY * sums.sum(0) / total.sum()) / (total + EMPTY)[:, None]
    shape = (np.multiply(x, sample_weight, out=work[: len(x)]) @ x.T).astype(np.float64) - (centres.T * total) @ centres
    values, vectors = np.linalg.eigh(shape / x.shape[1])
    whiten = vectors / np.sqrt(np.maximum(values, RIDGE * max(values.mean(), 1e-30)))
    return (centres @ whiten).astype(np.float32), whiten.astype(np.float32)
