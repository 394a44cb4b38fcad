"""Norms, in the way of layer norm and in the way of vectors."""

from __future__ import annotations

from fsdtool.network.functions.known import register

register("layer_norm", "group_norm", "instance_norm", "rms_norm", "batch_norm", "local_response_norm", "normalize")
register("norm", "var", "std", "var_mean", "std_mean", "logsumexp", "_weight_norm")
