"""What moves, repeats, picks or overwrites entries."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fsdtool.network.functions.known import register, register_as

register("reshape", "reshape_as", "flatten", "unflatten", "squeeze", "unsqueeze", "permute")
register("transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "roll", "flip", "rot90", "expand")
register("expand_as", "repeat", "repeat_interleave", "tile", "broadcast_to", "cat", "concat", "concatenate", "stack")
register("hstack", "vstack", "chunk", "split", "tensor_split", "unbind", "narrow", "select", "index_select", "gather")
register("take_along_dim", "unfold", "fold", "tril", "triu", "diagonal", "diag", "diag_embed", "pad", "__getitem__")
register("scatter", "scatter_add", "index_add", "index_fill", "masked_select", "pixel_shuffle", "pixel_unshuffle")
register("channel_shuffle", "interpolate", "upsample", "grid_sample", "affine_grid", "embedding", "one_hot")
register("embedding_bag")

register_as("view", lambda x, *shape: x.reshape(*shape))  # the strides may be others than the model's
register_as("view_as", lambda x, other: x.reshape(other.shape))
register_as("T", lambda x: x.T)
register_as("mT", lambda x: x.mT)


def overwritten(x: Tensor, index: Any, value: Any) -> Tensor:
    """A copy of x with x[index] = value."""
    x = x.clone()
    x[index] = value
    return x


register_as("__setitem__", overwritten)
