"""Does a model take some data as they are arranged?  If not, why, in the user's words."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from fsdtool.data.preprocessing import IMAGE_MODES
from fsdtool.data.source import DataSource
from fsdtool.errors import FsdtoolError, describe

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LAYERS = (nn.Linear, *CONVOLUTIONS)


def complaint_of(source: DataSource, model: nn.Module) -> str | None:
    """Why the model gives no row of outputs for each of the first two examples, or None if it does."""
    return _complaint(model, first_two(source))


def first_two(source: DataSource) -> Tensor:
    """The inputs (2, ...) of the first two examples, or of the only one."""
    return next(source.batches(2, indices=range(min(2, len(source))))).x


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
    elif isinstance(layer, CONVOLUTIONS) and x.ndim == layer.weight.ndim:
        wanted, found, what = layer.in_channels, x.shape[1], "channels"
    else:
        return None
    if wanted == found:
        return None
    hint = f"; `channels={wanted}` converts image files" if {wanted, found} <= set(IMAGE_MODES) else ""
    return f"its layer '{name}' takes {wanted} {what[: -1 if wanted == 1 else None]} and gets {found}{hint}"
