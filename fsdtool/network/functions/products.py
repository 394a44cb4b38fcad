"""Products, quotients and powers of signals, and attention, which is made of them."""

from __future__ import annotations

from fsdtool.network.functions.known import register

register("mul", "multiply", "div", "divide", "true_divide", "matmul", "bmm", "baddbmm", "addmm", "mm", "mv", "dot")
register("einsum", "tensordot", "outer", "addcmul", "addcdiv", "lerp", "pow", "__rpow__", "__rdiv__", "__rsub__")
register("floor_divide", "remainder", "cosine_similarity", "cdist", "bilinear")
register("softmax", "log_softmax", "softmin", "scaled_dot_product_attention")
