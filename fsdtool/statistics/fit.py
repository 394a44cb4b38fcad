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

from fsdtool.tasks.task import Task
from fsdtool.util.fields import Fields

ARRAYS = ("r_squared", "constant")
FEWEST = 20  # examples below which nothing is doubted
ERRORS = 2.0  # standard errors that a difference counts from
SMALL_GAIN = 0.1  # of the constant's loss; a larger gain counts though heavy tails or few examples hide it
REFIT_GAIN = 0.25  # of the constant's loss; trained networks had .03 and less, one trained with another scale .5
LEAST_LOSS = 1e-12  # of the constant answer; data of one class or one target value leave nothing to know
ABOUT_ONE = 1.5  # factors nearer to one are no change of scale
REORDERED = 0.3  # of the examples, more that are right in another order of the classes
OTHER_SPREAD = 5.0  # times the outputs' spread on the training data
NUMBERS = 2**18  # outputs to which factor and shifts are fitted


@dataclass(frozen=True)
class Fit:
    """How well a network fits some data, in the units of its loss, beside a constant answer.

    mean_loss, baseline_loss: of the network and the constant; loss_error: standard error of their difference.
    accuracy, baseline_accuracy, accuracy_error: the same of the share of right predictions; 0 without classes.
    r_squared: 1 - squared error / that of the constant, of each output of a regression.  output_spread: root mean
    square of the outputs, of each example (regression: of each output) centred.  refitted_loss, output_factor: after
    the best factor and shifts.  reordered_accuracy: with the classes in the order that fits best.  constant: the answer
    that the network is beside (O,), of the training data.
    """

    task: Task
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
        """Whether clearly more is right than by the constant answer; never so without classes."""
        return self.accuracy - self.baseline_accuracy > ERRORS * self.accuracy_error

    @property
    def could_be_good(self) -> bool:
        """Whether factor and shifts are what keeps the mean loss from being clearly below the constant's."""
        return self.refitted_loss < (1 - REFIT_GAIN) * self.baseline_loss

    def numbers(self) -> dict[str, float]:
        """All but the task and the arrays, by name."""
        return {name: value for name, value in asdict(self).items() if name not in ("task", *ARRAYS)}

    @classmethod
    def read(cls, task: Task, numbers: Fields, arrays: Mapping[str, np.ndarray]) -> Fit:
        """From `numbers` and the two arrays.  Raises FsdtoolError for what is missing or no finite number."""
        return cls(
            task=task,
            examples=numbers.integer("examples"),
            mean_loss=numbers.number("mean_loss"),
            baseline_loss=numbers.number("baseline_loss"),
            loss_error=numbers.number("loss_error"),
            accuracy=numbers.number("accuracy"),
            baseline_accuracy=numbers.number("baseline_accuracy"),
            accuracy_error=numbers.number("accuracy_error"),
            output_spread=numbers.number("output_spread"),
            refitted_loss=numbers.number("refitted_loss"),
            output_factor=numbers.number("output_factor"),
            reordered_accuracy=numbers.number("reordered_accuracy"),
            r_squared=tuple(arrays["r_squared"].astype(float).tolist()),
            constant=tuple(arrays["constant"].astype(float).tolist()),
        )


class FitSums:
    """The fit of data that comes in batches, beside the constant answer of the training data: an accumulator.

    constant: (O,) class frequencies, or target means.  What is added up are counts and means of
    (loss, the constant's, right, the constant's right, and both differences) with squared deviations from these means,
    and the squares of errors of the network, errors of the constant and outputs (3, O).
    """

    def __init__(self, task: Task, constant: np.ndarray):
        self.task, self.constant = task, np.asarray(constant, np.float64)
        self._count, self._means, self._deviations = np.zeros(()), np.zeros(6), np.zeros(6)
        self._squares = np.zeros((3, len(self.constant)))

    def update(self, losses: np.ndarray, outputs: np.ndarray, targets: np.ndarray) -> None:
        """Examples: losses (n,), outputs (n, O), targets (n,) class numbers or (n, O) numbers."""
        task, outputs = self.task, np.asarray(outputs, np.float64)
        if task.quadratic:
            self._squares[0] += ((outputs - targets) ** 2).sum(0)
            self._squares[1] += ((targets - self.constant) ** 2).sum(0)
        self._squares[2] += (task.centred(outputs, self.constant) ** 2).sum(0)
        right, usual = task.right(outputs, targets), task.right(self.constant[None], targets)
        losses, constant = np.asarray(losses, np.float64), task.constant_losses(self.constant, targets)
        each = np.stack([losses, constant, right, usual, losses - constant, right.astype(np.float64) - usual])
        means = each.mean(1)
        self._add(float(len(losses)), means, np.square(each - means[:, None]).sum(1))

    def merge(self, other: FitSums) -> None:
        """Add what was seen of other examples, beside the same constant."""
        self._squares += other._squares
        if other._count:
            self._add(float(other._count), other._means, other._deviations)

    def state(self) -> dict[str, np.ndarray]:
        """All that was added, as named float64 arrays."""
        return {name: value.copy() for name, value in self._arrays().items()}

    def from_state(self, state: Mapping[str, np.ndarray]) -> FitSums:
        """These sums, empty so far, as they were when `state` was asked for; the same object."""
        for name, value in self._arrays().items():
            value[...] = state[name]
        return self

    def _arrays(self) -> dict[str, np.ndarray]:
        held = {"count": self._count, "means": self._means}
        return held | {"deviations": self._deviations, "squares": self._squares}

    def _add(self, count: float, means: np.ndarray, deviations: np.ndarray) -> None:
        """Chan, Golub, LeVeque (1983), as in fsdtool.statistics.accumulators."""
        total = float(self._count) + count
        delta = means - self._means
        self._deviations += deviations + float(self._count) * count / total * delta**2
        self._means += delta * (count / total)
        self._count[...] = total

    def finalize(self, outputs: np.ndarray | None = None, targets: np.ndarray | None = None) -> Fit:
        """The fit of what was seen; outputs (N, O) and targets of all of it, where factor and order are wanted."""
        n, means = int(self._count), self._means
        spreads = np.sqrt(self._deviations / n) / math.sqrt(max(n - 1, 1))  # standard errors of the means
        errors, of_constant, spread = self._squares
        r_squared = 1 - errors / np.where(of_constant > 0, of_constant, np.inf)
        reordered, refitted, factor = float(means[2]), float(means[0]), 1.0
        if outputs is not None and targets is not None:
            stride = max(-(-outputs.size // NUMBERS), 1)
            some, wanted = np.asarray(outputs[::stride], np.float64), targets[::stride]
            before, after, factor = self.task.refit(some, wanted)
            refitted = max(refitted - (before - after), 0.0)
            reordered = max(reordered, self.task.reordered(outputs, targets))
        return Fit(
            task=self.task,
            examples=n,
            mean_loss=float(means[0]),
            baseline_loss=float(means[1]),
            loss_error=float(spreads[4]),
            accuracy=float(means[2]),
            baseline_accuracy=float(means[3]),
            accuracy_error=float(spreads[5]),
            output_spread=math.sqrt(float(spread.mean()) / n),
            refitted_loss=refitted,
            output_factor=factor,
            reordered_accuracy=reordered,
            r_squared=tuple(r_squared.tolist()) if self.task.quadratic else (),
            constant=tuple(self.constant.tolist()),
        )


def training_fit(task: Task, losses: np.ndarray, outputs: np.ndarray, targets: np.ndarray) -> Fit:
    """The fit of all training examples: losses (N,), outputs (N, O), targets (N,) class numbers or (N, O)."""
    classes = outputs.shape[1]
    sums = FitSums(task, task.constant(targets, classes))
    step = max(NUMBERS // classes, 1)
    for start in range(0, len(targets), step):
        rows = slice(start, start + step)
        sums.update(losses[rows], outputs[rows], targets[rows])
    return sums.finalize(outputs, targets)


# Words


def described(fit: Fit) -> str:
    """One line: the fit beside that of the constant answer."""
    return fit.task.describe(fit)


def doubt(fit: Fit) -> str | None:
    """What is wrong with the fit of the training data and what may cause it; None where nothing is."""
    if fit.examples < FEWEST or fit.baseline_loss <= LEAST_LOSS:
        return None
    found, task = described(fit), fit.task
    if fit.reordered_accuracy > max(fit.accuracy + REORDERED, 0.5):
        return (
            f"the network's classes are in another order than the labels: {found}; in the order that fits best its "
            f"accuracy would be {fit.reordered_accuracy:.3f}; number the labels as in training"
        )
    if fit.loss_is_bad and not fit.could_be_good:
        what = "R^2 and mean loss are not" if task.quadratic else "the mean loss is not"
        if task.has_classes and not fit.accuracy_is_good:
            what = "neither accuracy nor mean loss is"
        return (
            f"the network does not know its training data, {what} better than a constant answer's: {found}; "
            f"{_causes(task)}"
        )
    if not (fit.loss_is_bad or fit.mean_loss - fit.refitted_loss > REFIT_GAIN * fit.baseline_loss):
        return None
    better = f"with its outputs times {fit.output_factor:.2g} and shifted it would be {fit.refitted_loss:.2g}"
    if task.quadratic:
        return (
            f"the network's outputs follow the targets, but not in their units: {found}; {better}; "
            "give the targets as they were in training, where they may have been scaled"
        )
    accuracy = "the accuracy is good, but " if fit.accuracy_is_good else ""
    constant = f"that of the {'class' if task.has_classes else 'label'} frequencies"
    loss = f"worse than {constant}" if fit.loss_is_bad else "far from what these outputs can reach"
    return f"{accuracy}the mean loss is {loss}: {found}; {better}; {_causes_of_loss(fit.output_factor)}"


def doubt_new(fit: Fit, training: Fit, noun: str) -> str | None:
    """The same of the `noun` data that the network was not trained on: there a sure and wrong prediction may be."""
    if fit.examples < FEWEST:
        return None
    ratio = fit.output_spread / max(training.output_spread, 1e-30)
    if not fit.task.quadratic and not 1 / OTHER_SPREAD <= ratio <= OTHER_SPREAD:
        return (
            f"the network's outputs on the {noun} data are {ratio:.2g} times as large as on the training data; "
            "give inputs in the same scale (bytes are divided by 255, other numbers are taken as they are)"
        )
    if fit.loss_is_bad and not fit.accuracy_is_good:
        return (
            f"the network does not know the {noun} data: {described(fit)}; unless they were chosen for that, "
            f"{_causes(fit.task)}"
        )
    return None


def _causes(task: Task) -> str:
    targets = "the units of the targets" if task.quadratic else "the order of the labels"
    return (
        f"check the preprocessing (`mean`, `std`, `transform`; pixels 0..255 or 0..1), {targets}, `layout`, "
        "the checkpoint, and that the network returns the outputs that were trained"
    )


def _causes_of_loss(factor: float) -> str:
    if factor < 1 / ABOUT_ONE:
        return (
            "the network is far too sure: check the scale of the inputs (`std=255` where pixels 0..255 go into a "
            "network trained on 0..1; `mean`, `std`), and whether the labels are those of training"
        )
    if factor > ABOUT_ONE:
        return (
            "the network is far too unsure: check the scale of the inputs (`std=0.00392157` where bytes, which are "
            "divided by 255, go into a network trained on 0..255), and that it returns logits, not probabilities"
        )
    return "check the preprocessing, and whether the classes had other weights or frequencies in training"
