"""From what is stored to what the model takes: a list of steps, each with one job.

    as_float    the dtype and scale: uint8 becomes [0, 1], other numbers stay as they are, all float32 and finite
    Subtract    the mean is taken off, one number or one per channel
    Divide      the standard deviation is divided out, likewise
    Arrange     the dimensions in the layout that the model takes, which fsdtool.data.layout finds by asking it

A transform, the size and the channels of images come before: they are applied where examples are read
(fsdtool.data.readers), since images of different sizes are no array yet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fsdtool.data.inputs.packing import check_whole
from fsdtool.data.inputs.part import WHOLE
from fsdtool.data.preprocessing import Preprocessing
from fsdtool.data.readers import channels_last
from fsdtool.errors import DataError


def layouts(shape: tuple[int, ...]) -> list[str]:
    """The layouts that the shape of a stored input allows, the likeliest first."""
    if len(shape) == 3:
        last = channels_last(shape)
        return ["channels first", "as is", "flat"] if last else ["as is", "channels first", "flat"]
    if len(shape) == 2:
        return ["one channel", "as is", "flat"]
    return ["as is"] if len(shape) == 1 else ["as is", "flat"]


class Pipeline:
    """Stored inputs (B, *shape) to inputs of the model (B, *input_shape), float32.

    preprocessing: what was asked for; its layout, or else the likeliest, is taken.
    Raises DataError for a layout that the shape does not allow, and for a mean or std of another length than 1 and the
    number of channels.
    """

    def __init__(self, preprocessing: Preprocessing, shape: tuple[int, ...]) -> None:
        allowed = layouts(shape)
        layout = preprocessing.layout or allowed[0]
        if layout not in allowed:
            raise DataError(f"inputs of shape {shape} have no layout '{layout}'; it can be {' or '.join(allowed)}")
        axis, channels = _channels(shape, layout)
        _check_lengths(preprocessing, shape, channels)
        self.preprocessing = preprocessing
        self._steps: list[Callable[[Tensor], Tensor]] = []
        if preprocessing.mean is not None:
            self._steps.append(Subtract(preprocessing.mean, axis))
        if preprocessing.std is not None:
            self._steps.append(Divide(preprocessing.std, axis))
        self._steps.append(Arrange(layout))
        empty = torch.empty(1, *shape, device="meta")
        self.input_shape = tuple(Arrange(layout)(empty).shape[1:])

    def __call__(self, stored: np.ndarray, ids: np.ndarray) -> Tensor:
        """The inputs of the examples `ids` (B,), never sharing memory with `stored`; raises DataError."""
        self._check_whole(stored, ids)
        x = as_float(stored, ids)
        for step in self._steps:
            x = step(x)
        return x

    def _check_whole(self, stored: np.ndarray, ids: np.ndarray) -> None:
        start, parts = 0, self.preprocessing.parts
        for part in parts:
            if part.dtype == WHOLE:
                check_whole(stored if len(parts) == 1 else stored[:, start : start + part.size], ids, part.key)
            start += part.size


def as_float(stored: np.ndarray, ids: np.ndarray) -> Tensor:
    """Float32 in memory of its own, uint8 scaled to [0, 1].  Raises DataError for an example that is not finite."""
    if stored.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(stored)).to(torch.float32).div_(255)
    with np.errstate(over="ignore"):
        x = torch.from_numpy(np.array(stored, dtype=np.float32))
    finite = torch.isfinite(x).flatten(1).all(dim=1)
    if not finite.all():
        name = ids[int(finite.logical_not().nonzero()[0])]
        raise DataError(
            f"the inputs of example {name} hold NaN or infinity; remove it or fill in the value", example=name
        )
    return x


@dataclass(frozen=True)
class Subtract:
    """x - values, in place; `axis` is that of the channels."""

    values: tuple[float, ...]
    axis: int

    def __call__(self, x: Tensor) -> Tensor:
        return x.sub_(_along(self.values, self.axis, x.ndim))


@dataclass(frozen=True)
class Divide:
    """x / values, in place; `axis` is that of the channels."""

    values: tuple[float, ...]
    axis: int

    def __call__(self, x: Tensor) -> Tensor:
        return x.div_(_along(self.values, self.axis, x.ndim))


@dataclass(frozen=True)
class Arrange:
    """The dimensions in another order or number; `layout` is one of LAYOUTS of fsdtool.data.preprocessing."""

    layout: str

    def __call__(self, x: Tensor) -> Tensor:
        if self.layout == "channels first":
            return x.permute(0, 3, 1, 2).contiguous()  # (B, H, W, C) -> (B, C, H, W)
        if self.layout == "one channel":
            return x.unsqueeze(1)  # (B, H, W) -> (B, 1, H, W)
        return x.flatten(1) if self.layout == "flat" else x


def _along(values: tuple[float, ...], axis: int, dimensions: int) -> Tensor:
    """The values along one axis of as many dimensions."""
    shape = [1] * dimensions
    shape[axis] = -1
    return torch.tensor(values).view(shape)


def _channels(shape: tuple[int, ...], layout: str) -> tuple[int, int]:
    """The axis of the channels in a batch as it is stored, and how many there are."""
    last = layout == "channels first" or (len(shape) == 3 and channels_last(shape))
    axis = len(shape) if last else 1
    has_channels = len(shape) != 2 or layout == "as is"  # (H, W) is one channel
    return axis, (1, *shape)[axis] if has_channels else 1


def _check_lengths(preprocessing: Preprocessing, shape: tuple[int, ...], channels: int) -> None:
    for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
        if values is not None and len(values) not in (1, channels):
            raise DataError(
                f"the {name} has {len(values)} values for inputs of shape {shape}; "
                + ("give 1" if channels == 1 else f"give 1 or {channels}, one per channel")
            )
