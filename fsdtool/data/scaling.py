"""The scale of the inputs, in words: what becomes of bytes, and whether mean and std are of their scale.

Only uint8 is scaled, to [0, 1], wherever it comes from. All other numbers are taken as they are: whole numbers of
0..255 may be pixels, which is said, but may as well be token ids.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import numpy as np

from fsdtool.data.preprocessing import Preprocessing
from fsdtool.data.readers import ItemReader, Reader
from fsdtool.errors import FsdtoolError

log = logging.getLogger("fsdtool")
LOOKED_AT, FEW = 64, 4  # examples in arrays, and where each is opened
BRIGHT = 127  # what bytes come up to; ages and small counts do not
SURELY_BYTES = 10  # no mean or std of inputs in [0, 1]


def scale_note(reader: Reader, count: int, preprocessing: Preprocessing, spec: str, can_set: bool) -> str:
    """What is done to the scale of the inputs, and the argument that changes it; nothing where they are no pixels.

    count: the number of examples. can_set: whether the user can set mean and std, or a summary has. Warns where these
    look like those of another scale.
    """
    if preprocessing.parts:  # each has a scale of its own
        return ""
    stored = _first(reader, count)
    if stored is None or not stored.size:
        return ""
    mean, std = preprocessing.mean or (), preprocessing.std or ()
    changeable = can_set and preprocessing.transform is None and not std
    if stored.dtype == np.uint8:
        if max((*mean, *std), default=0) > 1:
            _warn_of_bytes(mean, std, f"bytes of '{spec}' were scaled from 0..255 to 0..1", can_set)
        undo = f" (`std={1 / 255:.12f}` takes them as they are)" if changeable else ""
        return f"; bytes scaled from 0..255 to 0..1{undo}"
    if stored.dtype == np.uint16:
        return "; 16-bit inputs stay as they are" + (" (`std=65535` scales them to 0..1)" if changeable else "")
    low, high = float(stored.min()), float(stored.max())
    if low >= 0 and high <= 1 and max((*mean, *std), default=0) > SURELY_BYTES:
        _warn_of_bytes(mean, std, f"inputs of '{spec}' lie in 0..1", can_set)
    whole = stored.dtype.kind in "iu" or bool((stored == np.floor(stored)).all())
    if not (low >= 0 and BRIGHT < high <= 255 and (whole or stored.ndim > 2)):
        return ""
    if std and max(std) < 1 and max(std) * 255 > 2:
        asked = [f"`{name}={_listed(v * 255 for v in values)}`" for name, values in _given(mean, std)]
        log.warning(
            f"the std given would suit inputs of 0..1, but inputs of '{spec}' reach {high:g}"
            + (f"; give {' '.join(asked)}" if can_set else "; scale them as the summarized data")
        )
    if std or preprocessing.transform is not None:
        return ""
    remedy = "`std=255` scales them to 0..1" if can_set else "write them as uint8 if the summarized data were bytes"
    return f"; {'whole ' if whole else ''}numbers of 0..255 are taken as they are ({remedy})"


def _warn_of_bytes(mean: tuple[float, ...], std: tuple[float, ...], found: str, can_set: bool) -> None:
    """Warn that mean or std cannot be those of inputs in [0, 1]."""
    names = " and ".join(name for name, _ in _given(mean, std)) + " given"
    small = [(name, values) for name, values in _given(mean, std) if set(values) != {255.0} or mean]
    asked = [f"`{name}={_listed(v / 255 if max(values) > 1 else v for v in values)}`" for name, values in small]
    remedy = f"give {' '.join(asked)}" if asked else "leave `std` out"
    log.warning(f"the {names} would suit inputs of 0..255, but {found}" + (f"; {remedy}" if can_set else ""))


def _given(mean: tuple[float, ...], std: tuple[float, ...]) -> list[tuple[str, tuple[float, ...]]]:
    return [(name, values) for name, values in (("mean", mean), ("std", std)) if values]


def _listed(values: Iterable[float]) -> str:
    return ",".join(f"{value:.6g}" for value in values)


def _first(reader: Reader, count: int) -> np.ndarray | None:
    """The first inputs that can be read; what cannot is named when it is needed."""
    most = FEW if isinstance(reader, ItemReader) else LOOKED_AT
    for size in (min(count, most), 1):
        try:
            return np.asarray(reader.read(np.arange(size))[0])
        except FsdtoolError:
            continue
    return None
