"""Which dtypes the inputs have for the model: whole numbers, such as token ids, are found by asking it.

Several inputs are handed over as they are stored: whole numbers as int64, masks as bool.  Of a single one whole numbers
have always been taken as float32, and are where the model takes these as numbers.  A model that fails on them and runs
on int64, or that cuts off what is behind the point, takes ids.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from fsdtool.data.complaints import complaint_of, first_two
from fsdtool.data.inputs.handing import fitting_names, handing, readings
from fsdtool.data.inputs.part import UNUSED, WHOLE, Part, listed
from fsdtool.data.source import DataSource
from fsdtool.errors import DataError

log = logging.getLogger("fsdtool")
MOST_TRIED = 64  # combinations of dtypes
FRACTION = 0.4  # added to whole numbers: neither cutting off nor rounding lets it through


def fit_parts(source: DataSource, model: nn.Module) -> DataSource:
    """The source, of which the model takes several inputs: as they are stored, or else some whole ones as float32.

    Raises DataError where it takes none of these.
    """
    parts = fitting_names(model, source.preprocessing.parts)
    unused = [part for part in parts if part.dtype == UNUSED]
    if len(unused) == len(parts):
        raise DataError(
            f"the model's forward takes none of the inputs {listed(source.preprocessing.parts)}; name its arguments "
            "as `x_key=ARGUMENT=KEY,...`"
        )
    complaints = []
    for candidate in itertools.islice(itertools.product(*map(readings, parts)), MOST_TRIED):
        handed = source.handed_as(candidate)
        with handing(model, candidate):
            complaint = complaint_of(handed, model)
        if complaint is None:
            left = f", which takes no {', '.join(part.name for part in unused)}" if unused else ""
            if candidate != source.preprocessing.parts:
                log.info(f"the model{left} gets the inputs {listed([p for p in candidate if p.dtype != UNUSED])}")
            return handed
        complaints.append(complaint)
    last = " (the last part of an item is its target)" if all(part.key.isdigit() for part in parts) else ""
    raise DataError(
        f"the model does not take the inputs {listed(parts)}{last}: {complaints[0]}; give those it was trained with, "
        "in its order, by `x_key`"
    )


def as_whole_numbers(source: DataSource, model: nn.Module, taken: Mapping[str, DataSource]) -> DataSource | None:
    """The source with its single input as int64, where the model takes it for ids; None where they are numbers.

    taken: the layouts in which the model takes it as float32.
    """
    asked, rows = source.preprocessing, np.arange(min(2, len(source)))
    stored = source.examples.read(rows)[0]
    if asked.mean or asked.std or stored.dtype in (np.uint8, np.bool_) or not (stored == np.floor(stored)).all():
        return None
    if taken and stored.dtype.kind == "f" and not any(isinstance(m, nn.Embedding) for m in model.modules()):
        return None
    part = Part("", "", tuple(stored.shape[1:]), WHOLE)
    whole = DataSource(source.examples, asked).with_layout(asked.layout or "as is").handed_as((part,))
    if whole.input_shape != part.shape:
        return None
    with handing(model, whole.preprocessing.parts):
        if complaint_of(whole, model) is not None:
            return None
    if not all(_cuts_off(model, first_two(arranged)) for arranged in taken.values()):
        return None
    log.info(f"the model gets the inputs as whole numbers (int64), of which it takes {part.shape} for an example")
    return whole


def _cuts_off(model: nn.Module, x: Tensor) -> bool:
    """Whether the model sees nothing of the fractions of its inputs x (n, ...)."""
    x = x.to(next((p.device for p in model.parameters()), x.device))
    with torch.no_grad():
        try:
            return torch.equal(model(x.clone()).nan_to_num(), model(x + FRACTION).nan_to_num())
        except Exception:  # whatever a user's forward may raise
            return True
