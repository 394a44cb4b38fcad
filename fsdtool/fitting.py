"""Does the model take the data? The layout is found by asking it, and a misfit is told in the user's words."""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
from torch import Tensor, nn

from fsdtool.errors import FsdtoolError, describe
from fsdtool.preprocessing import IMAGE_MODES
from fsdtool.sources import DataSource

log = logging.getLogger("fsdtool")
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def fit_layout(source: DataSource, model: nn.Module) -> DataSource:
    """The source in the first layout that the model takes; one in its preprocessing is the only candidate.

    The model (in eval mode) takes a layout if it returns one row of outputs for each of the first two
    examples, a floating tensor (2, O). Raises FsdtoolError that names the numbers of channels or features
    where those differ, and quotes the model otherwise.
    """
    layouts = [source.preprocessing.layout] if source.preprocessing.layout else source.layouts()
    complaints = []
    for layout in layouts:
        try:
            arranged = source.with_layout(layout)
        except FsdtoolError as error:  # the mean has one value per channel of another layout
            complaints.append(str(error))
            continue
        batch = next(arranged.batches(2, indices=range(min(2, len(source)))))
        complaint = _complaint(model, batch.x)
        if complaint is None:
            if layout != "as is":
                log.info(f"the model takes the inputs as shape {arranged.input_shape} (layout: {layout}; --layout)")
            return arranged
        complaints.append(f"{complaint} (inputs of shape {arranged.input_shape}, layout: {layout})")
    others = f"; other layouts tried: {', '.join(layouts[1:])}" if len(layouts) > 1 else ""
    raise FsdtoolError(
        f"the model does not take the inputs: {complaints[0]}{others}; "
        "give the data set and the preprocessing it was trained with"
    )


def _complaint(model: nn.Module, x: Tensor) -> str | None:
    """Why `model(x)` is not one row of outputs per example, or None if it is."""
    device = next((p.device for p in model.parameters()), x.device)
    entered: list[tuple[str, nn.Module, Tensor]] = []
    hooks = [
        module.register_forward_pre_hook(functools.partial(_enter, entered, name))
        for name, module in model.named_modules()
        if isinstance(module, LAYERS)
    ]
    try:
        with torch.no_grad():
            output = model(x.to(device))
    except FsdtoolError:  # what the model returns
        raise
    except Exception as error:  # whatever a user's forward may raise
        return (_misfit(*entered[-1]) if entered else None) or describe(error)
    finally:
        for hook in hooks:
            hook.remove()
    if not isinstance(output, Tensor):
        return f"it returned a {type(output).__name__}, not a tensor of shape (examples, outputs)"
    if output.ndim != 2 or len(output) != len(x) or not output.is_floating_point():
        kind = str(output.dtype).removeprefix("torch.")
        return f"it returned {kind} of shape {tuple(output.shape)}, not floating ({len(x)}, outputs)"
    return None


def _enter(entered: list[tuple[str, nn.Module, Tensor]], name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
    if inputs and isinstance(inputs[0], Tensor):
        entered.append((name or type(module).__name__, module, inputs[0]))


def _misfit(name: str, layer: nn.Module, x: Tensor) -> str | None:
    """What the layer that failed wants and what it got, where the numbers of channels or features differ."""
    if isinstance(layer, nn.Linear):
        wanted, found, what = layer.in_features, x.shape[-1], "features"
    elif x.ndim == layer.weight.ndim:
        wanted, found, what = layer.in_channels, x.shape[1], "channels"
    else:
        return None
    if wanted == found:
        return None
    hint = f"; --channels {wanted} converts image files" if {wanted, found} <= set(IMAGE_MODES) else ""
    return f"its layer '{name}' takes {wanted} {what[: -1 if wanted == 1 else None]} and gets {found}{hint}"
