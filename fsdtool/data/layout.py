"""Does the model take the data? The layout is found by asking it, and a misfit is told in the user's words.

A fully connected network takes an image in any order of its numbers, and knows it in one: there its loss decides.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fsdtool.data.complaints import complaint_of
from fsdtool.data.model_inputs import as_whole_numbers, fit_parts
from fsdtool.data.repeatability import spread
from fsdtool.data.source import DataSource
from fsdtool.errors import DataError, FsdtoolError
from fsdtool.network.logits import zero_first

log = logging.getLogger("fsdtool")
COMPARED = 256  # examples on which layouts are compared
ERRORS = 3.0  # standard errors that another layout must be better by
FITS = 0.9  # of the loss of a constant answer: a network that knows the data stays below it
HALVED = 0.5  # of the first layout's loss
MORE_RIGHT = 5  # examples that only another layout gets right, on balance
LEAD = 0.1  # of accuracy


def fit_layout(source: DataSource, model: nn.Module, *, workers: int = 0) -> DataSource:
    """The source in the layout that the model takes; one in its preprocessing is the only candidate.

    The model (in eval mode, with its weights) takes a layout if it returns one row of outputs for each of the first
    two examples, a floating tensor (2, O). Where it takes several, its loss on a few hundred examples, read by
    `workers` processes, decides: the first stays unless another is clearly better. Raises DataError that names the
    numbers of channels or features where those differ, and quotes the model otherwise.
    """
    if source.preprocessing.parts:
        return fit_parts(source, model)
    layouts = [source.preprocessing.layout] if source.preprocessing.layout else source.layouts()
    complaints, taken = [], {}
    for layout in layouts:
        try:
            arranged = source.with_layout(layout)
        except FsdtoolError as error:  # the mean has one value per channel of another layout
            complaints.append(str(error))
            continue
        complaint = complaint_of(arranged, model)
        if complaint is None:
            taken[layout] = arranged
        else:
            complaints.append(f"{complaint} (inputs of shape {arranged.input_shape}, layout: {layout})")
    whole = as_whole_numbers(source, model, taken)
    if whole is not None:
        return whole
    if taken:
        layout, why = _best_layout(taken, model, workers)
        if layout != "as is" or why:
            log.info(
                f"the model takes the inputs as shape {taken[layout].input_shape} (layout: {layout}{why}; `layout`)"
            )
        return taken[layout]
    others = f"; other layouts tried: {', '.join(layouts[1:])}" if len(layouts) > 1 else ""
    raise DataError(
        f"the model does not take the inputs: {complaints[0]}{others}; "
        "give the data set and the preprocessing it was trained with"
    )


@dataclass(frozen=True)
class _Fit:
    """Losses (n,) of the model and of the best constant answer, in words what they come to, and which are right."""

    losses: Tensor
    constant: Tensor
    words: str
    right: Tensor | None


def _best_layout(taken: dict[str, DataSource], model: nn.Module, workers: int) -> tuple[str, str]:
    """The layout in which the model knows the data best, and how the others compare, where they do.

    To replace the first it must fit itself, and be better by more than chance among few examples (`_overrules`).
    """
    first = next(iter(taken))
    if len(taken) == 1:
        return first, ""
    answers = {layout: _fit(source, model, workers) for layout, source in taken.items()}
    fits = {layout: fit for layout, fit in answers.items() if fit is not None}
    if len(fits) < len(taken):
        return first, ""
    best = min(fits, key=lambda layout: float(fits[layout].losses.mean()))
    others = {layout: fit for layout, fit in fits.items() if not torch.equal(fit.losses, fits[best].losses)}
    if not others:  # the model flattens its inputs itself
        return first, ""
    if best != first and not _overrules(fits[best], fits[first]):
        log.warning(
            f"the model takes several layouts of the inputs and knows the data in none clearly best: {first} "
            f"({fits[first].words}) is used, not {best} ({fits[best].words}); `layout` chooses"
        )
        return first, ""
    compared = ", ".join(f"{layout} would give {fit.words}" for layout, fit in others.items())
    return best, f", {fits[best].words}; {compared}"


def _overrules(best: _Fit, first: _Fit) -> bool:
    """Whether a layout fits the data, and so much better than the first that this is no chance.

    Losses differ by three standard errors; of classes some more are right, a tenth of all unless the loss is halved;
    a loss of regression is halved.
    """
    fits = _clearly_lower(best.losses, best.constant) and best.losses.mean() < FITS * best.constant.mean()
    if not fits or not _clearly_lower(best.losses, first.losses):
        return False
    halved = bool(best.losses.mean() < HALVED * first.losses.mean())
    if best.right is None or first.right is None:
        return halved
    more = int(best.right.sum() - first.right.sum())
    return more >= MORE_RIGHT and (halved or more >= LEAD * len(best.right))


def _clearly_lower(losses: Tensor, others: Tensor) -> bool:
    apart = losses - others
    return float(apart.mean() + ERRORS * apart.std(correction=0) / max(len(apart) - 1, 1) ** 0.5) < 0


def _fit(source: DataSource, model: nn.Module, workers: int) -> _Fit | None:
    """How the model answers a few hundred examples; None for targets that do not fit."""
    rows = spread(len(source), COMPARED)
    batches = list(source.batches(64, indices=rows, workers=workers))
    y = torch.cat([batch.y for batch in batches])
    with torch.no_grad():
        outputs = torch.cat([model(batch.x) for batch in batches]).double()
    task = source.task
    outputs = zero_first(outputs) if task.has_classes else outputs
    count = outputs.shape[1]
    try:
        task.check_targets(y, source.ids[rows], count)
    except FsdtoolError:
        return None
    losses, targets = task.loss(outputs, y), y.numpy()
    constant = torch.from_numpy(task.constant_losses(task.constant(targets, count), targets))
    if not task.has_classes:
        return _Fit(losses, constant, f"mean loss {float(losses.mean()):.3g}", None)
    right = torch.from_numpy(task.right(outputs.numpy(), targets))
    return _Fit(losses, constant, f"accuracy {float(right.double().mean()):.3f}", right)
