"""Classification: the loss is the cross-entropy of p = softmax(f), in nats.

With e_y the row of class y in the identity:
    loss  -log p_y        g = p - e_y        H = diag(p) - p p^T = R R^T,  R = diag(sqrt p) - p sqrt(p)^T

The metrics of two outputs, p0 and p1 their probabilities and df = f1 - f0:
    kl             sum p0 (log p0 - log p1), in nats
    kl2            1/2 df^T H(f0) df, its second order, in nats
    squared_error  1/2 |df|^2
    probability    1/2 |p1 - p0|^2
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fsdtool.errors import DataError
from fsdtool.tasks.task import FitNumbers, Task, squared_error, stored_numbers
from fsdtool.util.lazy import Later

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor
else:
    np = Later("numpy")  # the command line asks for the metrics' names alone

MANY = 0.1  # if a larger share of the labels is no class number, they are another numbering rather than missing labels
RAREST = 1e-6  # least frequency of a class in the constant answer: absent classes have no infinite loss
STEPS = 20  # of `refit`
LARGEST_STEP = 0.5  # relative change of the factor in one step of `refit`
EACH = 10  # examples for each predicted class, on average, that `reordered` needs
COMMON = 0.01  # share of the examples above which `reordered` asks that a label stands for one class alone


def hessian_product(outputs: Tensor, v: Tensor) -> Tensor:
    """(diag(p) - p p^T) v (..., n, O) of v (..., n, O) at outputs (n, O)."""
    p = outputs.softmax(1)
    return p * (v - (p * v).sum(-1, keepdim=True))


def kl(f0: Tensor, f1: Tensor) -> Tensor:
    """KL divergence (n,) of outputs (n, O)."""
    log0, log1 = f0.log_softmax(1), f1.log_softmax(1)
    return (log0.exp() * (log0 - log1)).sum(1).clamp(min=0)


def kl2(f0: Tensor, f1: Tensor) -> Tensor:
    """Second-order KL divergence (n,) of outputs (n, O), by the Hessian at f0."""
    df = f1 - f0
    return 0.5 * (df * hessian_product(f0, df)).sum(1).clamp(min=0)


def probability(f0: Tensor, f1: Tensor) -> Tensor:
    """Half the squared distance (n,) of the probabilities of outputs (n, O)."""
    return squared_error(f0.softmax(1), f1.softmax(1))


class SeveralLabels(DataError):
    """Targets are no classes, and may be several labels of each example: `task="multilabel"`."""


class Classification(Task):
    """Targets (n,) int64, class numbers from 0; a class is an output."""

    name = "classification"
    units = "nats"
    noun = "label"
    has_classes = True
    probabilities = ("log_softmax", "softmax", "sigmoid")
    metrics = MappingProxyType({"kl": kl, "kl2": kl2, "squared_error": squared_error, "probability": probability})

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """-log p_y (n,)."""
        return -outputs.log_softmax(1).gather(1, targets[:, None])[:, 0]

    def loss_gradient(self, targets: Tensor) -> Callable[[Tensor], Tensor]:
        """p - e_y (n, O), computed in float64: where a label is nearly certain, 1 - p_y is 0 in float32."""
        return lambda outputs: _less_label(outputs.double().softmax(1), targets).to(outputs.dtype)

    def hessian_product(self, outputs: Tensor, v: Tensor) -> Tensor:
        """(diag(p) - p p^T) v (..., n, O)."""
        return hessian_product(outputs, v)

    def hessian_sum(self, outputs: Tensor) -> Tensor:
        """diag(sum p) - P^T P (O, O), P (n, O) the probabilities."""
        p = outputs.softmax(1)
        return p.sum(0).diag() - p.T @ p

    def curvature_draw(self, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """R z (n, O) of standard normal z (n, O) float32."""

        def draw(outputs: Tensor) -> Tensor:
            z = outputs.float().new_empty(outputs.shape).normal_(generator=generator)
            p = outputs.softmax(1)
            return p.sqrt() * z - p * (p.sqrt() * z).sum(1, keepdim=True)

        return draw

    def gradient_draw(self, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """p - e_y (n, O) with y drawn from p."""

        def draw(outputs: Tensor) -> Tensor:
            p = outputs.softmax(1)
            return _less_label(p, p.multinomial(1, generator=generator)[:, 0])

        return draw

    def prediction(self, outputs: Tensor) -> Tensor:
        """The class with the largest output (n,)."""
        return outputs.argmax(1)

    def targets(self, stored: np.ndarray, ids: np.ndarray, lenient: bool = False) -> np.ndarray:
        """Class numbers (N,) int64 from integers, integral floats or one-hot rows.

        Raises DataError for anything else; lenient: then float64, in which improper labels stay as they are.
        """
        stored = stored_numbers(stored)
        y = stored[:, 0] if stored.ndim == 2 and stored.shape[1] == 1 else stored
        if y.ndim == 2:
            y = _from_one_hot(y, ids, lenient)
        if y.ndim != 1:
            raise DataError(f"the labels have shape {stored.shape}; give one class number per example")
        y = y.astype(np.float64) if y.dtype.kind in "bf" else y
        bad = np.flatnonzero(~((y >= 0) & (y == np.floor(y)) & (y < 2**31)))
        if len(bad) and not lenient:
            raise _no_class(y[bad[0]], ids[bad[0]], len(bad) / len(y))
        return y.astype(np.float64 if len(bad) else np.int64)

    def target_of(self, number: float) -> float | None:
        """The class of this number, if it can be one."""
        return int(number) if number >= 0 and number.is_integer() else None

    def check_targets(self, targets: Tensor, ids: np.ndarray, outputs: int, source: str = "", remedy: str = "") -> None:
        """Raise DataError for a label of the targets (n,) that is none of the model's outputs."""
        check_classes(targets, ids, outputs, f"the model has {outputs} outputs")

    def constant(self, targets: np.ndarray, outputs: int) -> np.ndarray:
        """The frequency (O,) of each class."""
        return np.bincount(targets, minlength=outputs) / len(targets)

    def constant_losses(self, constant: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """-log of the frequency (n,) of each label, in nats."""
        return -np.log(np.maximum(constant, RAREST))[targets]

    def right(self, outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Whether (n,) bool the largest output is that of the label."""
        return outputs.argmax(1) == targets

    def centred(self, outputs: np.ndarray, constant: np.ndarray) -> np.ndarray:
        """Outputs (n, O) less their mean over the classes, on which no probability depends."""
        return outputs - outputs.mean(1, keepdims=True)

    def refit(self, outputs: np.ndarray, targets: np.ndarray) -> tuple[float, float, float]:
        """Mean losses of softmax(f) and of the best softmax(u f + b), in nats, and the factor u.

        u starts from the best of a grid.  Then b and u are updated in turn: b by the log of how often a class occurs
        over how often it is predicted, u by a Newton step.
        """
        f = outputs - outputs.mean(1, keepdims=True)
        rows, scale = np.arange(len(f)), float(f.std()) or 1.0
        shift = np.zeros(f.shape[1])
        frequency = np.bincount(targets, minlength=f.shape[1])

        def log_p(factor: float) -> tuple[np.ndarray, float]:
            z = factor * f + shift
            z -= z.max(1, keepdims=True)
            z -= np.log(np.exp(z).sum(1, keepdims=True))
            return z, -float(z[rows, targets].mean())

        before = log_p(1.0)[1]
        best, factor = min((log_p(u)[1], u) for u in (1.0, *np.logspace(-3, 3, 13) / scale))
        found = best, factor
        for _ in range(STEPS):
            shift += np.log((frequency + 1) / (np.exp(log_p(factor)[0]).sum(0) + 1))
            z, loss = log_p(factor)
            found = min(found, (loss, factor))
            p = np.exp(z)
            mean = (p * f).sum(1)
            slope = float(f[rows, targets].mean() - mean.mean())
            curvature = float(((p * f**2).sum(1) - mean**2).mean())
            factor *= 1 + float(np.clip(slope / max(curvature * factor, 1e-12), -LARGEST_STEP, LARGEST_STEP))
        return before, *found

    def reordered(self, outputs: np.ndarray, targets: np.ndarray) -> float:
        """Share of right answers of outputs (n, O) if each predicted class stands for its most frequent label.

        0 where two classes stand for the same label, or there are too few examples to tell.
        """
        classes = outputs.shape[1]
        pair, count = np.unique(outputs.argmax(1).astype(np.int64) * classes + targets, return_counts=True)
        given, first = np.unique(pair // classes, return_index=True)
        best = np.maximum.reduceat(count, first)
        stands_for = [int(pair[part][count[part].argmax()] % classes) for part in _parts(first, len(pair))]
        common = best >= COMMON * len(targets)
        named = [label for label, often in zip(stands_for, common, strict=True) if often]
        if len(set(named)) < len(named) or len(named) < 2 or len(targets) < EACH * len(given):
            return 0.0
        return float(best.sum()) / len(targets)

    def describe(self, fit: FitNumbers) -> str:
        """Accuracy and mean loss."""
        return (
            f"accuracy {fit.accuracy:.3f} (largest class {fit.baseline_accuracy:.3f}), "
            f"mean loss {fit.mean_loss:.3g} nats (class frequencies {fit.baseline_loss:.3g})"
        )


def _less_label(p: Tensor, y: Tensor) -> Tensor:
    """p - e_y (n, O)."""
    return p.scatter_add(1, y[:, None], p.new_full((len(p), 1), -1.0))


def check_classes(y: Tensor, ids: np.ndarray, count: int, limit: str) -> None:
    """Raise DataError naming the first of the examples `ids` (n,) whose label y (n,) is not below `count`.

    limit: words for where that many classes come from.
    """
    outside = (y >= count).nonzero()
    if len(outside):
        row = int(outside[0])
        raise DataError(
            f"label {int(y[row])} of example {ids[row]} is out of range: {limit} (0..{count - 1}); "
            "correct the label or give the model that knows this class",
            example=ids[row],
        )


def _no_class(label: Any, name: Any, share: float) -> DataError:
    """The error for an improper label of an example, of a share of improper labels."""
    if np.isnan(label):
        return DataError(
            f"example {name} has no label (NaN); fill it in, or give `skip_bad=True` to leave it out", example=name
        )
    remedy = "correct it, or give `skip_bad=True` to leave it out"
    if share > MANY:
        remedy = f"number the classes from 0, or give `skip_bad=True` to leave out {share:.0%} of the examples"
    if label != np.floor(label):
        remedy = 'correct it, or use `task="regression"`'
    return DataError(f"label {label:g} of example {name} is not a class number (0, 1, 2, ...); {remedy}", example=name)


def _from_one_hot(stored: np.ndarray, ids: np.ndarray, lenient: bool) -> np.ndarray:
    """Class numbers (N,) from one-hot rows (N, C); lenient: rows with NaN become NaN."""
    proper = ((stored == 0) | (stored == 1)).all(axis=1) & (stored.sum(axis=1) == 1)
    absent = np.isnan(stored).any(axis=1) if lenient and stored.dtype.kind == "f" else np.zeros(len(stored), dtype=bool)
    improper = np.flatnonzero(~proper & ~absent)
    if len(improper):
        message = (
            f"the labels have shape {stored.shape} and that of example {ids[improper[0]]} is not one-hot; "
            "give one class number per example"
        )
        if ((stored == 0) | (stored == 1) | (stored != stored)).all():
            raise SeveralLabels(f'{message}, or `task="multilabel"` where an example may have several labels')
        raise DataError(f"{message} (shares of classes are not supported)", example=ids[improper[0]])
    return np.where(absent, np.nan, stored.argmax(axis=1)) if absent.any() else stored.argmax(axis=1)


def _parts(first: np.ndarray, count: int) -> list[slice]:
    """The slices that begin at `first` and together cover `count` elements."""
    return [slice(a, b) for a, b in zip(first.tolist(), [*first.tolist()[1:], count], strict=True)]
