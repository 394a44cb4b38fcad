"""Attention with all its weights in one function, as nn.MultiheadAttention calls it."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F

from fsdtool.network.operations.base import Operation
from fsdtool.network.operations.calls import Call, Computed, Parameter, Signal

ARGUMENTS = (
    "key", "value", "embed_dim_to_check", "num_heads", "in_proj_weight", "in_proj_bias", "bias_k", "bias_v",
    "add_zero_attn", "dropout_p", "out_proj_weight", "out_proj_bias", "training", "key_padding_mask",
    "need_weights", "attn_mask", "use_separate_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight",
    "static_k", "static_v", "average_attn_weights", "is_causal",
)  # fmt: skip
WITHOUT = ("bias_k", "bias_v", "add_zero_attn", "use_separate_proj_weight", "static_k", "static_v")


class MultiheadAttention(Operation):
    """Self-attention of a sequence (tokens, batch, E): a dense layer to queries, keys and values, and one behind.

    Masks are those of tokens and of padding.  It becomes those steps, so that its weights have curvature.
    """

    spellings = (F.multi_head_attention_forward,)
    entrywise = True  # of a sequence that comes before the batch

    @classmethod
    def read(cls, call: Call) -> Any:
        given = call.given(ARGUMENTS)
        present = [name for name in WITHOUT if given.get(name) not in (None, False)]
        if given["key"] != call.source or given["value"] != call.source:
            return call.refuse("attention to another sequence")
        if present:
            return call.refuse(f"attention with {present[0]}")
        x, heads = call.source, given["num_heads"]
        tokens, width = call.shape(x)
        packed = _dense(call, x, given["in_proj_weight"], given["in_proj_bias"])
        parts = [
            call.add("slice", packed, options={"dim": 2, "start": i * width, "length": width, "squeeze": False})
            for i in range(3)
        ]
        split = [call.add("reshape", part, options={"shape": (tokens, heads, width // heads)}) for part in parts]
        q, k, v = (call.add("permute", part, options={"dims": (0, 2, 1, 3)}) for part in split)
        masks = _masks(call, given["key_padding_mask"], given["attn_mask"], tokens)
        mixed = call.run("F.scaled_dot_product_attention", q, k, v, *masks)
        back = call.add("permute", mixed, options={"dims": (0, 2, 1, 3)})
        joined = call.add("reshape", back, options={"shape": (tokens, width)})
        return _dense(call, joined, given["out_proj_weight"], given["out_proj_bias"])


def _masks(call: Call, padding: Signal | Computed | None, attention: Computed | None, tokens: int) -> list[Signal]:
    """The sum of both, one for each example (batch, T) and one of tokens (T, T), as one; none if there are none.

    They are added to the products of queries and keys: nn.MultiheadAttention makes numbers of flags.
    """
    found = [] if attention is None else [call.fixed(attention)]
    if isinstance(padding, Signal):
        each = call.add("reshape", padding, options={"shape": (1, 1, tokens)})
        found = [call.run("Tensor.add", each, *found)] if found else [each]
    elif padding is not None:
        raise ValueError("a padding mask in which no example is")
    return found


def _dense(call: Call, x: Signal, weight: Parameter, bias: Parameter | None) -> Signal:
    roles = {"weight": weight.name} | ({"bias": bias.name} if bias is not None else {})
    return call.add("linear", x, parameters=roles)
