"""What is done entry by entry, and choices between entries."""

from __future__ import annotations

from fsdtool.network.functions.known import register, register_as

register("add", "sub", "subtract", "rsub", "neg", "negative", "abs", "absolute", "sign", "square", "sqrt", "rsqrt")
register("reciprocal", "exp", "expm1", "log", "log1p", "log2", "sin", "cos", "tan", "tanh", "sigmoid", "logit", "erf")
register("relu", "relu6", "gelu", "silu", "mish", "elu", "celu", "selu", "leaky_relu", "prelu", "softplus", "softsign")
register("hardtanh", "hardsigmoid", "hardswish", "hardshrink", "softshrink", "tanhshrink", "logsigmoid", "threshold")
register("glu", "clamp", "clip", "clamp_min", "clamp_max", "maximum", "minimum", "where", "masked_fill", "nan_to_num")
register("floor", "ceil", "round", "trunc", "frac", "isnan", "isfinite", "isinf", "logical_and", "logical_or")
register("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__and__", "__or__", "__invert__")
register("logical_not", "logical_xor", "bitwise_and", "bitwise_or", "bitwise_not", "eq", "ne", "lt", "le", "gt", "ge")
register("float", "half", "double", "long", "int", "bool", "to", "type_as", "clone", "contiguous", "detach", "dropout")

register_as("data", lambda x: x.detach())
