"""Piecewise linear functions of torch, each with its lines."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from fsdtool.network.activations.gates import Pieces, register, register_module

register("relu", F.relu, nn.ReLU, pieces=lambda: Pieces((0.0,), (0.0, 1.0), (0.0, 0.0)), aliases=["relu_"])
register("relu6", F.relu6, nn.ReLU6, pieces=lambda: Pieces((0.0, 6.0), (0.0, 1.0, 0.0), (0.0, 0.0, 6.0)))
register(
    "leaky_relu",
    F.leaky_relu,
    nn.LeakyReLU,
    defaults={"negative_slope": 0.01},
    pieces=lambda negative_slope: Pieces((0.0,), (negative_slope, 1.0), (0.0, 0.0)),
)


def _middle_slope(module: nn.Module) -> dict[str, object]:
    """In eval mode the slope is the middle of its range."""
    assert isinstance(module, nn.RReLU)
    return {"negative_slope": (module.lower + module.upper) / 2}


register_module(nn.RReLU, "leaky_relu", _middle_slope)
register(
    "hardtanh",
    F.hardtanh,
    nn.Hardtanh,
    defaults={"min_val": -1.0, "max_val": 1.0},
    pieces=lambda min_val, max_val: Pieces((min_val, max_val), (0.0, 1.0, 0.0), (min_val, 0.0, max_val)),
)
register(
    "hardsigmoid",
    F.hardsigmoid,
    nn.Hardsigmoid,
    pieces=lambda: Pieces((-3.0, 3.0), (0.0, 1 / 6, 0.0), (0.0, 0.5, 1.0)),
)
register("abs", torch.abs, pieces=lambda: Pieces((0.0,), (-1.0, 1.0), (0.0, 0.0)), aliases=["absolute"])
