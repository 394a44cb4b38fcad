"""Products, quotients and powers of signals, and attention, which is made of them."""

from __future__ import annotations

import functools

import torch

from fsdtool.network.functions.known import register, register_as

register("mul", "multiply", "div", "divide", "true_divide", "matmul", "bmm", "baddbmm", "addmm", "mm", "mv", "dot")
register("einsum", "tensordot", "outer", "addcmul", "addcdiv", "lerp", "pow", "__rpow__", "__rdiv__", "__rsub__")
register("__rmod__", "vdot", "inner")
register("remainder", "cosine_similarity", "cdist", "bilinear")
register("softmax", "log_softmax", "softmin", "scaled_dot_product_attention", "multi_head_attention_forward")

_floor_divide = functools.partial(torch.div, rounding_mode="floor")  # torch.floor_divide has no derivative
register_as("floor_divide", _floor_divide, place="torch")
register_as("floor_divide", _floor_divide)
register_as("__floordiv__", _floor_divide)
register_as("__rfloordiv__", lambda x, y: torch.div(y, x, rounding_mode="floor"))
