"""Checkpoints that hold something else than a network's weights, told by their names, with what to do instead."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fsdtool.errors import ModelError, some
from fsdtool.model.pickle_stand_ins import named_class
from fsdtool.model.weight_files import needs_code

_ADAPTER = re.compile(r"(^|\.)lora_(A|B|embedding_A|embedding_B|magnitude_vector|down|up)(\.|$)")
_QUANTIZED = re.compile(
    r"(_packed_params|(^|\.)(qweight|qzeros|SCB)|\.(nested_)?(absmax|quant_map)|\.quant_state)(\W|$)"
)
_WEIGHT = ("weight", "bias", "running_mean", "running_var", "weight_v", "weight_g", "weight_orig")


def refuse_foreign(content: Mapping[object, object], tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise ModelError for adapters, quantized weights, optimizers, and weights that no plain tensor holds."""
    names = [str(key) for key in content]
    if adapted := [name for name in names if _ADAPTER.search(name)]:
        raise ModelError(
            f"the checkpoint '{path}' is of an adapter such as LoRA ({some(adapted)}); merge the adapter into "
            "the network (in peft: merge_and_unload()) and save its state_dict",
            path=path,
        )
    if packed := [name for name in names if _QUANTIZED.search(name)]:
        raise ModelError(
            f"the checkpoint '{path}' is of a quantized network ({some(packed)}); give the one before it was quantized",
            path=path,
        )
    if not tensors and "param_groups" in content:
        raise ModelError(
            f"the checkpoint '{path}' is the state of an optimizer, without the network's weights; give the file that "
            "torch.save(model.state_dict(), path) wrote",
            path=path,
        )
    if not tensors and any(isinstance(value, list) and str(key).endswith(_WEIGHT) for key, value in content.items()):
        raise ModelError(
            f"the checkpoint '{path}' holds lists of numbers under its names ({some(names)}); make tensors of them "
            "with torch.tensor and save these",
            path=path,
        )
    for key, value in content.items():
        if str(key).rpartition(".")[2] in _WEIGHT and (code := named_class(value)) and str(key) not in tensors:
            raise needs_code(path, code)
