"""Does the network know the data? Its fit beside that of a constant answer, and a complaint where it is no better.

The constant answer is the class frequencies (their entropy is its mean loss, the largest class its accuracy) or the
mean of the targets.  A loss counts as better when its mean lies below the constant's by two standard errors of the
paired difference, so that a weak but honest network passes, and one on unequal classes whose accuracy is that of the
largest class.

A trained network can hardly be improved by a factor on its outputs and a shift of each: training has moved the last
layer's weights and biases until the loss was stationary in both.  Inputs in another scale than in training, or
probabilities in place of logits, leave the order of the outputs and break this.  With u and b fitted to the data,
    refitted loss = the mean loss of softmax(u f + b)        (regression: of the best line in each output)
the network is doubted where that is lower by a quarter of the constant's loss.  Where the classes that it gives agree
with the labels in another order, that order is named as the cause.

Only numpy is needed: commands that read a summary's fit do so without torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from fsdtool.fields import Fields

ARRAYS = ("r_squared", "constant")
FEWEST = 20  # examples below which nothing is doubted
ERRORS = 2.0  # standard errors that a difference counts from
SMALL_GAIN = 0.1  # of the constant's loss; a larger gain counts though heavy tails or few examples hide it
REFIT_GAIN = 0.25  # of the constant's loss; trained networks had .03 and less, one trained with another scale .5
LEAST_LOSS = 1e-12  # of the constant answer; data of one class or one target value leave nothing to know
ABOUT_ONE = 1.5  # factors nearer to one are no change of scale
REORDERED = 0.3  # of the examples, more that are right in another order of the classes
EACH = 10  # examples of each class given, on average, from which an order is found
RAREST = 1e-6  # frequency of a class that the training data do not have
OTHER_SPREAD = 5.0  # times the outputs' spread on the training data
NUMBERS = 2**18  # outputs to which factor and shifts are fitted
STEPS = 20  # of that fit
LARGEST_STEP = 0.5  # of the factor, relative


@dataclass(frozen=True)
class Fit:
    """How well a network fits some data, in the units of its loss, beside a constant answer.

    mean_loss, baseline_loss: of the network and the constant; loss_error: standard error of their difference.
    accuracy, baseline_accuracy, accuracy_error: the same of the share of right predictions; of a regression 0.
    r_squared: 1 - squared error / that of the constant, of each output of a regression.  output_spread: root mean
    square of the outputs, of each example (regression: of each output) centred.  refitted_loss, output_factor: after
    the best factor and shifts.  reordered_accuracy: with the classes in the order that fits best.  constant: the answer
    that the network is beside (O,), of the training data.
    """

    task: str
    examples: int
    mean_loss: float
    baseline_loss: float
    loss_error: float
    accuracy: float
    baseline_accuracy: float
    accuracy_error: float
    output_spread: float
    refitted_loss: float
    output_factor: float
    reordered_accuracy: float
    r_squared: tuple[float, ...]
    constant: tuple[float, ...]

    @property
    def loss_is_bad(self) -> bool:
        """Whether the mean loss is not clearly below the constant's; of good accuracy, whether it is above."""
        gain = self.baseline_loss - self.mean_loss
        least = 0.0 if self.accuracy_is_good else SMALL_GAIN * self.baseline_loss
        return gain <= ERRORS * self.loss_error and gain < least

    @property
    def accuracy_is_good(self) -> bool:
        """Whether clearly more is right than by the constant answer; never so of a regression."""
        return self.accuracy - self.baseline_accuracy > ERRORS * self.accuracy_error

    @property
    def could_be_good(self) -> bool:
        """Whether factor and shifts are what keeps the mean loss from being clearly below the constant's."""
        return self.refitted_loss < (1 - REFIT_GAIN) * self.baseline_loss

    def numbers(self) -> dict[str, float]:
        """All but the task and the arrays, by name."""
        return {name: value for name, value in asdict(self).items() if name not in ("task", *ARRAYS)}

    @classmethod
    def read(cls, task: str, numbers: Fields, arrays: Mapping[str, np.ndarray]) -> Fit:
        """From `numbers` and the two arrays.  Raises FsdtoolError for what is missing or no finite number."""
        names = [name for name in cls.__annotations__ if name not in ("task", *ARRAYS)]
        found = {name: numbers.number(name) for name in names} | {"examples": numbers.integer("examples")}
        return cls(task=task, **found, **{name: tuple(arrays[name].astype(float).tolist()) for name in ARRAYS})


class FitSums:
    """The fit of data that comes in batches, beside the constant answer of the training data.

    constant: (O,) class frequencies, or target means.
    """

    def __init__(self, task: str, constant: np.ndarray):
        self.task, self.constant = task, np.asarray(constant, np.float64)
        self._log = np.log(np.maximum(self.constant, RAREST)) if task == "classification" else None
        self._differences: list[np.ndarray] = []  # (n, 4): loss, the constant's, right, the constant's right
        self._squares = np.zeros((3, len(self.constant)))  # errors of the network, of the constant, outputs

    def update(self, losses: np.ndarray, outputs: np.ndarray, targets: np.ndarray) -> None:
        """Examples: losses (n,), outputs (n, O), targets (n,) class numbers or (n, O) numbers."""
        outputs = np.asarray(outputs, np.float64)
        if self.task == "classification":
            constant = -self._log[targets]
            right, usual = outputs.argmax(1) == targets, targets == self.constant.argmax()
            centred = outputs - outputs.mean(1, keepdims=True)
        else:
            targets = np.asarray(targets, np.float64)
            squares = (targets - self.constant) ** 2
            constant, right, usual = 0.5 * squares.sum(1), np.zeros(len(outputs)), np.zeros(len(outputs))
            self._squares[0] += ((outputs - targets) ** 2).sum(0)
            self._squares[1] += squares.sum(0)
            centred = outputs - self.constant
        self._squares[2] += (centred**2).sum(0)
        self._differences.append(np.stack([np.asarray(losses, np.float64), constant, right, usual], 1))

    def finalize(self, outputs: np.ndarray | None = None, targets: np.ndarray | None = None) -> Fit:
        """The fit of what was seen; outputs (N, O) and targets of all of it, where factor and order are wanted."""
        seen = np.concatenate(self._differences)
        n, means = len(seen), seen.mean(0)
        root = math.sqrt(max(n - 1, 1))
        errors, of_constant, spread = self._squares
        r_squared = 1 - errors / np.where(of_constant > 0, of_constant, np.inf)
        reordered, refitted, factor = float(means[2]), float(means[0]), 1.0
        if outputs is not None:
            stride = max(-(-outputs.size // NUMBERS), 1)
            some, wanted = np.asarray(outputs[::stride], np.float64), targets[::stride]
            before, after, factor = _refit(some, wanted) if self.task == "classification" else _lines(some, wanted)
            refitted = max(refitted - (before - after), 0.0)
            if self.task == "classification":
                reordered = max(reordered, _reordered(outputs.argmax(1), targets, len(self.constant)))
        return Fit(
            task=self.task,
            examples=n,
            mean_loss=float(means[0]),
            baseline_loss=float(means[1]),
            loss_error=float((seen[:, 0] - seen[:, 1]).std()) / root,
            accuracy=float(means[2]),
            baseline_accuracy=float(means[3]),
            accuracy_error=float((seen[:, 2] - seen[:, 3]).std()) / root,
            output_spread=math.sqrt(float(spread.mean()) / n),
            refitted_loss=refitted,
            output_factor=factor,
            reordered_accuracy=reordered,
            r_squared=tuple(r_squared.tolist()) if self.task != "classification" else (),
            constant=tuple(self.constant.tolist()),
        )


def training_fit(task: str, losses: np.ndarray, outputs: np.ndarray, targets: np.ndarray) -> Fit:
    """The fit of all training examples: losses (N,), outputs (N, O), targets (N,) class numbers or (N, O)."""
    classes = outputs.shape[1]
    known = task == "classification"
    constant = np.bincount(targets, minlength=classes) / len(targets) if known else targets.mean(0, dtype=np.float64)
    sums = FitSums(task, constant)
    step = max(NUMBERS // classes, 1)
    for start in range(0, len(targets), step):
        rows = slice(start, start + step)
        sums.update(losses[rows], outputs[rows], targets[rows])
    return sums.finalize(outputs, targets)


def _refit(outputs: np.ndarray, labels: np.ndarray) -> tuple[float, float, float]:
    """Mean cross-entropy of outputs f (n, O), of the best u f + b, and u.

    The factor starts from the best of a grid; then b and u move in turn, b by the log of how often a class occurs over
    how often it is expected, u by Newton's step.
    """
    f = outputs - outputs.mean(1, keepdims=True)
    rows, scale = np.arange(len(f)), float(f.std()) or 1.0
    shift = np.zeros(f.shape[1])
    frequency = np.bincount(labels, minlength=f.shape[1])

    def log_p(factor: float) -> tuple[np.ndarray, float]:
        z = factor * f + shift
        z -= z.max(1, keepdims=True)
        z -= np.log(np.exp(z).sum(1, keepdims=True))
        return z, -float(z[rows, labels].mean())

    before = log_p(1.0)[1]
    best, factor = min((log_p(u)[1], u) for u in (1.0, *np.logspace(-3, 3, 13) / scale))
    found = best, factor
    for _ in range(STEPS):
        shift += np.log((frequency + 1) / (np.exp(log_p(factor)[0]).sum(0) + 1))
        z, loss = log_p(factor)
        found = min(found, (loss, factor))
        p = np.exp(z)
        mean = (p * f).sum(1)
        slope = float(f[rows, labels].mean() - mean.mean())
        curvature = float(((p * f**2).sum(1) - mean**2).mean())
        factor *= 1 + float(np.clip(slope / max(curvature * factor, 1e-12), -LARGEST_STEP, LARGEST_STEP))
    return before, *found


def _lines(outputs: np.ndarray, targets: np.ndarray) -> tuple[float, float, float]:
    """Mean loss of outputs (n, O), that of the best line of the targets in each output, and the median slope."""
    targets = np.asarray(targets, np.float64)
    f, y = outputs - outputs.mean(0), targets - targets.mean(0)
    variance, together = (f**2).mean(0), (f * y).mean(0)
    slope = together / np.where(variance > 0, variance, np.inf)
    after = 0.5 * float(((y**2).mean(0) - slope * together).sum())
    return 0.5 * float(((outputs - targets) ** 2).mean(0).sum()), max(after, 0.0), float(np.median(slope))


def _reordered(predictions: np.ndarray, labels: np.ndarray, classes: int) -> float:
    """Share of right predictions if each class given stands for its commonest label; 0 where two have the same."""
    pair, count = np.unique(predictions.astype(np.int64) * classes + labels, return_counts=True)
    given, first = np.unique(pair // classes, return_index=True)
    best = np.maximum.reduceat(count, first)
    stands_for = [int(pair[part][count[part].argmax()] % classes) for part in _parts(first, len(pair))]
    common = best >= 0.01 * len(labels)
    named = [label for label, often in zip(stands_for, common, strict=True) if often]
    if len(set(named)) < len(named) or len(named) < 2 or len(labels) < EACH * len(given):
        return 0.0
    return float(best.sum()) / len(labels)


def _parts(first: np.ndarray, count: int) -> list[slice]:
    return [slice(a, b) for a, b in zip(first.tolist(), [*first.tolist()[1:], count], strict=True)]


# Words


def described(fit: Fit) -> str:
    """One line: the fit beside that of the constant answer."""
    if fit.task == "classification":
        return (
            f"accuracy {fit.accuracy:.3f} (largest class {fit.baseline_accuracy:.3f}), "
            f"mean loss {fit.mean_loss:.3g} nats (class frequencies {fit.baseline_loss:.3g})"
        )
    text = f"R^2 {np.mean(fit.r_squared):.3f}"
    if len(fit.r_squared) > 1:
        text += f" (lowest {min(fit.r_squared):.3f}, output {int(np.argmin(fit.r_squared))})"
    return f"{text}, mean loss {fit.mean_loss:.3g} (mean of the targets {fit.baseline_loss:.3g})"


def doubt(fit: Fit) -> str | None:
    """What is wrong with the fit of the training data and what may cause it; None where nothing is."""
    if fit.examples < FEWEST or fit.baseline_loss <= LEAST_LOSS:
        return None
    found, classification = described(fit), fit.task == "classification"
    if fit.reordered_accuracy > max(fit.accuracy + REORDERED, 0.5):
        return (
            f"the network's classes are in another order than the labels: {found}; in the order that fits best its "
            f"accuracy would be {fit.reordered_accuracy:.3f}; number the labels as in training"
        )
    if fit.loss_is_bad and not fit.could_be_good:
        what = "R^2 and mean loss are not"
        if classification:
            what = "the mean loss is not" if fit.accuracy_is_good else "neither accuracy nor mean loss is"
        return (
            f"the network does not know its training data, {what} better than a constant answer's: {found}; "
            f"{_causes(classification)}"
        )
    if not (fit.loss_is_bad or fit.mean_loss - fit.refitted_loss > REFIT_GAIN * fit.baseline_loss):
        return None
    better = f"with its outputs times {fit.output_factor:.2g} and shifted it would be {fit.refitted_loss:.2g}"
    if not classification:
        return (
            f"the network's outputs follow the targets, but not in their units: {found}; {better}; "
            "give the targets as they were in training, where they may have been scaled"
        )
    accuracy = "the accuracy is good, but " if fit.accuracy_is_good else ""
    loss = "worse than that of the class frequencies" if fit.loss_is_bad else "far from what these outputs can reach"
    return f"{accuracy}the mean loss is {loss}: {found}; {better}; {_causes_of_loss(fit.output_factor)}"


def doubt_new(fit: Fit, training: Fit, noun: str) -> str | None:
    """The same of the `noun` data that the network was not trained on: there a sure and wrong prediction may be."""
    if fit.examples < FEWEST:
        return None
    classification = fit.task == "classification"
    ratio = fit.output_spread / max(training.output_spread, 1e-30)
    if classification and not 1 / OTHER_SPREAD <= ratio <= OTHER_SPREAD:
        return (
            f"the network's outputs on the {noun} data are {ratio:.2g} times as large as on the training data; "
            "give inputs in the same scale (bytes are divided by 255, other numbers are taken as they are)"
        )
    if fit.loss_is_bad and not fit.accuracy_is_good:
        return (
            f"the network does not know the {noun} data: {described(fit)}; unless they were chosen for that, "
            f"{_causes(classification)}"
        )
    return None


def _causes(classification: bool) -> str:
    targets = "the order of the labels" if classification else "the units of the targets"
    return (
        f"check the preprocessing (--mean, --std, --transform; pixels 0..255 or 0..1), {targets}, --layout, "
        "the checkpoint, and that the network returns the outputs that were trained"
    )


def _causes_of_loss(factor: float) -> str:
    if factor < 1 / ABOUT_ONE:
        return (
            "the network is far too sure: check the scale of the inputs (--std 255 where pixels 0..255 go into a "
            "network trained on 0..1; --mean, --std), and whether the labels are those of training"
        )
    if factor > ABOUT_ONE:
        return (
            "the network is far too unsure: check the scale of the inputs (--std 0.00392157 where bytes, which are "
            "divided by 255, go into a network trained on 0..255), and that it returns logits, not probabilities"
        )
    return "check the preprocessing, and whether the classes had other weights or frequencies in training"
