"""Tensors that no example is in: of a size that may depend on how many there are."""

from __future__ import annotations

import torch
from torch import Tensor

from fsdtool.network.functions.known import register, register_as

register("zeros", "ones", "full", "arange", "linspace", "eye", "zeros_like", "ones_like", "full_like")
register("new_zeros", "new_ones", "new_full", "new_tensor", "meshgrid")

# What is never written to holds anything in the model; here it is zero.
register_as("empty", torch.zeros, place="torch")
register_as("empty_like", torch.zeros_like, place="torch")
register_as("new_empty", Tensor.new_zeros)
