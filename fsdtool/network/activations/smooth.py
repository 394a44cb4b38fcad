"""Smooth functions of torch, whose gates are their slopes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from fsdtool.network.activations.gates import register

register("gelu", F.gelu, nn.GELU, defaults={"approximate": "none"})
register("silu", F.silu, nn.SiLU)
register("mish", F.mish, nn.Mish)
register("elu", F.elu, nn.ELU, defaults={"alpha": 1.0})
register("celu", F.celu, nn.CELU, defaults={"alpha": 1.0})
register("selu", F.selu, nn.SELU)
register("tanh", torch.tanh, nn.Tanh, aliases=["tanh_"])
register("sigmoid", torch.sigmoid, nn.Sigmoid, aliases=["sigmoid_"])
register("logsigmoid", F.logsigmoid, nn.LogSigmoid, aliases=["log_sigmoid"])
register("softplus", F.softplus, nn.Softplus, defaults={"beta": 1.0, "threshold": 20.0})
register("softsign", F.softsign, nn.Softsign)
register("tanhshrink", F.tanhshrink, nn.Tanhshrink)
register("hardswish", F.hardswish, nn.Hardswish)
register("sin", torch.sin)
register("cos", torch.cos)
register("exp", torch.exp)
register("square", torch.square)
