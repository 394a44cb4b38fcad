"""The part `/evidence` of a summary: the class models for examples that are not in the summarized data.

`factor` and `weight` (L,) say how the layers' evidence is added up (fsdtool.mislabel.noise.layer_weights), `members`
(classes,) how many examples each class had, and `layers/LAYER` holds the discriminant of a layer
(fsdtool.mislabel.discriminant).  The last layer is the network's outputs, which need none.  Layers of earlier
checkpoints (fsdtool.mislabel.earlier_checkpoints) are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import h5py
import numpy as np
import torch
from torch import Tensor

from fsdtool.mislabel.discriminant import Discriminant
from fsdtool.mislabel.features import OUTPUTS
from fsdtool.mislabel.label_evidence import LabelEvidence
from fsdtool.mislabel.noise.layer_weights import combination
from fsdtool.summary import hdf5
from fsdtool.summary.reader import Summary, tensor
from fsdtool.summary.writer import Writer


@dataclass(frozen=True)
class ClassModels:
    """layers: names (L,), the outputs last.  discriminants: (L - 1,) of all layers but the last, in that order.

    members: (classes,) int64, examples of each class.  factors, weights: (L,) float32, by which the layers' evidence is
    added up, and their weights in sum 1.
    """

    layers: tuple[str, ...]
    discriminants: tuple[Discriminant, ...]
    members: Tensor
    factors: np.ndarray
    weights: np.ndarray


def write_class_models(writer: Writer, labelled: LabelEvidence, recorded: Tensor, earlier: Sequence[str] = ()) -> None:
    """Write `/evidence`, with the factors that follow from the evidence in the records, `recorded` (N, L, T) float16.

    Layers of the `earlier` checkpoints of these names are left out: the file has no weights to run them with.
    """
    others = tuple(f"@{name}" for name in earlier)
    kept = [i for i, layer in enumerate(labelled.layers) if not layer.endswith(others)]
    factors, weights = combination(recorded[:, kept].numpy())
    layers = [labelled.layers[i] for i in kept]
    description = "factors of the layers' evidence in the combined evidence (L,)"
    writer.put("evidence/factor", factors, description, layers=layers)
    writer.put("evidence/weight", weights, "weights of the layers (L,)", layers=layers)
    writer.put("evidence/members", labelled.members, "examples of each class (classes,)", "examples")
    for i in kept[:-1]:
        name, found = f"evidence/layers/{labelled.layers[i]}", labelled.discriminants[i]
        writer.put(f"{name}/middle", found.middle, "taken off the features of the layer (D,)")
        writer.put(f"{name}/scale", found.scale, "one over their deviation within classes (D,)")
        writer.put(f"{name}/root", found.root, "R; the coordinates are ((x - middle) scale) R (D, d)")
        writer.put(f"{name}/centres", found.centres, "class means in these coordinates (classes, d)")


def read_class_models(summary: Summary) -> ClassModels:
    """The class models of a classification.  Raises FsdtoolError where the file has none or damaged ones."""
    return _read(hdf5.group(summary.open_file(), "evidence"), summary.identity.graph.outputs)


def _read(group: h5py.Group, classes: int) -> ClassModels:
    layers = hdf5.Attributes(hdf5.dataset(group, "factor", (None,))).texts("layers")
    factors, weights = (tensor(group, name, (len(layers),)).numpy() for name in ("factor", "weight"))
    members = tensor(group, "members", (classes,), torch.int64)
    if layers[-1:] != (OUTPUTS,) or min(members.min(), factors.min(), weights.min()) < 0 or not members.any():
        raise hdf5.unusable(group, "its layers do not end with the outputs, or a count or factor is negative")
    found = tuple(_read_layer(hdf5.group(group, f"layers/{layer}"), classes) for layer in layers[:-1])
    return ClassModels(layers, found, members, factors, weights)


def _read_layer(group: h5py.Group, classes: int) -> Discriminant:
    middle = tensor(group, "middle", (None,), torch.float64)
    root = tensor(group, "root", (len(middle), None), torch.float16)
    centres = tensor(group, "centres", (classes, root.shape[1]))
    return Discriminant(middle, tensor(group, "scale", (len(middle),)), root, centres)
