"""Tensors that no example is in: of a size that may depend on how many there are."""

from __future__ import annotations

from fsdtool.network.functions.known import register

register("zeros", "ones", "full", "arange", "linspace", "eye", "zeros_like", "ones_like", "full_like")
register("new_zeros", "new_ones", "new_full", "new_tensor", "meshgrid")
