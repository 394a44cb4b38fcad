"""Does the same example give the same thing each time? Of the data when read twice, of the network in any batch.

*Data.*  Some examples, evenly spread from the first to the last, are read again, in the opposite order: what augments
at random, shuffles, or counts its calls gives something else.  An augmentation may leave an example alone (a flip, half
of the time), so many examples are compared, and few ones several times.  Only code does this: of files a few are read.

*Network.*  In eval mode some networks still draw numbers, and some look along the batch: batch norm without running
statistics, a recurrent layer that takes the first axis for time, a sum or softmax over it.  The same examples go in
together, in the opposite order, in two parts, and the first, middle and last alone.  Kernels round otherwise in batches
of another size; where outputs differ by little the comparison is made again in float64, in which rounding vanishes and
dependence stays.
"""

from __future__ import annotations

import copy
import math
import time

import numpy as np
import torch
from torch import Tensor, nn

from fsdtool.data.source import Batch, DataSource
from fsdtool.errors import DataError, ModelError, describe, some

READ_AGAIN = 128  # examples that a user's code gives
OF_FILES = 3
NUMBERS = 2**24  # inputs compared
COMPARISONS = 64  # at least; few examples are read several times
MOST_READINGS = 8
MOST_AGAIN = 2000  # examples, as many of them as are read twice within SECONDS
SECONDS = 0.2
ROUNDING = 1e-5  # of an example's largest value; several threads may add up in another order
TOGETHER = 32  # examples in one batch of the network
FEWEST = 8
TOGETHER_NUMBERS = 2**20
CLOSE = 1e-5  # of the outputs' scale, between batches of different sizes
FAR = 1e-3  # the same where there is no float64 to tell rounding from dependence
EXACT = 1e-9  # the same in float64


def check_data(source: DataSource, *, workers: int = 0) -> Batch:
    """Some examples, spread over the source.  Raises DataError where, read again, they are not what they were.

    workers: processes that read them.
    """
    most = min(READ_AGAIN if source.runs_code else TOGETHER, max(NUMBERS // math.prod(source.input_shape), OF_FILES))
    rows = spread(len(source), most)
    started = time.perf_counter()
    first = _read(source, rows, workers)
    each = (time.perf_counter() - started) / len(rows)
    if not source.runs_code:
        rows = rows[np.linspace(0, len(rows) - 1, OF_FILES).astype(int)]
        _compare(source, rows, _read(source, rows, workers), _rows_of(first, rows))
        return first
    for _ in range(min(max(-(-COMPARISONS // len(rows)), 1), MOST_READINGS)):
        _compare(source, rows, first, _rows_of(_read(source, rows[::-1].copy(), workers), rows))
    more = spread(len(source), min(MOST_AGAIN, NUMBERS // math.prod(source.input_shape), int(SECONDS / 2 / each)))
    if len(more) > len(rows):
        _compare(source, more, _read(source, more, workers), _rows_of(_read(source, more[::-1].copy(), workers), more))
    return first


def _read(source: DataSource, rows: np.ndarray, workers: int) -> Batch:
    parts = list(source.batches(TOGETHER, indices=rows, workers=workers))
    return Batch(*(torch.cat([getattr(part, name) for part in parts]) for name in ("index", "x", "y")))


def _rows_of(batch: Batch, rows: np.ndarray) -> Batch:
    """The examples `rows` of a batch, in this order."""
    place = {row: i for i, row in enumerate(batch.index.tolist())}
    chosen = [place[row] for row in rows.tolist()]
    return Batch(batch.index[chosen], batch.x[chosen], batch.y[chosen])


def _compare(source: DataSource, rows: np.ndarray, first: Batch, again: Batch) -> None:
    for what, one, other in (("inputs", first.x, again.x), ("targets", first.y, again.y)):
        one, other = (part.double().reshape(len(part), -1) for part in (one, other))
        apart = (one - other).abs().amax(1)
        differs = (apart > ROUNDING * one.abs().amax(1)).nonzero()[:, 0].tolist()
        if not differs:
            continue
        transform = source.preprocessing.transform
        remedy = (
            "it augments at random or shuffles; give it without, as the factory (path/file.py:FACTORY) of a data set "
            "with the transform of evaluation"
            if transform is None
            else f"it or `transform={transform}` changes examples at random; give the transform of evaluation"
        )
        example = source.ids[rows[differs[0]]]
        size = f"by {float(apart[differs[0]]):.2g}"
        raise DataError(
            f"'{source.spec}' gives other {what} of example {example} when read again ({size}): {remedy}",
            example=example,
        )


def spread(count: int, most: int) -> np.ndarray:
    """Up to `most` row numbers of `count`, evenly spread, with the first and the last."""
    return np.unique(np.linspace(0, count - 1, max(min(count, most), 1)).round().astype(np.int64))


def spread_inputs(x: Tensor) -> Tensor:
    """Some of the inputs x (n, *input_shape) for `check_outputs`, the first and last among them."""
    affordable = max(TOGETHER_NUMBERS // math.prod(x.shape[1:]), FEWEST)
    return x[spread(len(x), min(TOGETHER, affordable))]


def check_outputs(model: nn.Module, x: Tensor) -> None:
    """Raise ModelError unless the outputs for the inputs x (B, *input_shape) depend on each example alone."""
    stateless = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None
    ]
    if stateless:
        raise ModelError(
            f"the model has batch norm without running statistics ({some(stateless)}), so that its outputs depend on "
            "the batch; build it with track_running_stats=True and fill them with torch.optim.swa_utils.update_bn"
        )
    with torch.no_grad():
        try:
            together, again = model(x.clone()), model(x.clone())
        except Exception as error:  # whatever a user's forward may raise
            raise ModelError(
                f"the model takes the first two examples and fails on {len(x)} from all over the data "
                f"({describe(error)}); give the data it was trained on, encoded as they were then"
            ) from error
        if not torch.equal(together.nan_to_num(), again.nan_to_num()):
            raise ModelError(
                "the model's outputs differ from call to call in eval mode; let it draw random numbers only in "
                "training (F.dropout(x, training=self.training))"
            )
        difference = _dependence(model, x, together)
        if difference <= CLOSE:
            return
        if difference <= FAR:
            wide = _in_float64(model, x)
            if wide is None or wide <= EXACT:
                return
    raise ModelError(
        f"the model's outputs for an example depend on the others in its batch (by {difference:.2g} of their size); "
        "let it treat each example alone in eval mode: nothing may run along the first axis (recurrent layers take "
        "batch_first=True; sums, softmax and norms another dim)"
    )


def _dependence(model: nn.Module, x: Tensor, together: Tensor) -> float:
    """The largest difference of an example's outputs (B, O) in other batches, relative to the outputs' scale."""
    count, known = len(x), together.nan_to_num()
    scale = max(float(known.abs().max()), 1e-30)
    orders = [list(range(count))[::-1], list(range(count // 3)), list(range(count // 3, count))]
    orders += [[row] for row in sorted({0, count // 2, count - 1})]
    largest = 0.0
    for rows in filter(None, orders):
        try:
            found = model(x[rows].clone())
        except Exception as error:  # whatever a user's forward may raise
            raise ModelError(
                f"the model takes {count} examples at once and fails on {len(rows)} ({describe(error)}); "
                "let its forward take batches of any size"
            ) from error
        if found.shape != together[rows].shape:
            raise ModelError(
                f"the model returns shape {tuple(found.shape)} for a batch of {len(rows)}, and {tuple(together.shape)} "
                f"for {count}; keep the axis of the examples (squeeze(1), not squeeze())"
            )
        largest = max(largest, float((found.nan_to_num() - known[rows]).abs().max()) / scale)
    return largest


def _in_float64(model: nn.Module, x: Tensor) -> float | None:
    """`_dependence` of a copy of the model in float64; None where it has parts that only know float32."""
    try:
        wide, x = copy.deepcopy(model).double(), x.double()
        return _dependence(wide, x, wide(x.clone()))
    except Exception:  # whatever a user's forward may raise
        return None
