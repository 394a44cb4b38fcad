"""Sums, means and extremes along dimensions, in order too, and pools."""

from __future__ import annotations

from fsdtool.network.functions.known import register

register("sum", "mean", "prod", "amax", "amin", "max", "min", "cumsum", "cumprod", "argmax", "argmin", "any", "all")
register("topk", "sort", "argsort", "median", "nansum", "count_nonzero", "diff")
register("avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
register("max_pool1d", "max_pool2d", "max_pool3d", "lp_pool1d", "lp_pool2d")
