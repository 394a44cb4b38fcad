"""Evidence on several labels of an example: each label less its prediction from all other examples.

Labels are predicted as the targets of a regression are (fsdtool.mislabel.regression.target_residuals): by ridge
regressions on the features of each layer, shared by all labels, and by the network's own probabilities.  With 5 % of
the labels flipped their average precision was .98 to .99 on digits and .63 to .66 on synthetic labels; that of the
network's loss was .96 to .97 and .56 to .66, that of class models of each label by itself (as a classification has
them) .98 to .99 and .55 to .57 (tests/benchmarks/mislabel_multilabel.py).

Late layers have memorised flipped labels in part, and contradict them less; the input has not.  So how often labels
are flipped is taken from the input's predictions (fsdtool.mislabel.multilabel.flips).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fsdtool.mislabel.features import FeatureStore
from fsdtool.mislabel.multilabel.flips import flips
from fsdtool.mislabel.regression.target_residuals import target_evidence

FITS = 1  # rounds of regressions: with sample weights, as of wrong targets, the average precision fell by up to .03


@dataclass(frozen=True)
class LabelResiduals:
    """What the records keep of the evidence on several labels.

    layers: names (L,), the outputs last.  weights: (L,) float32, the share of each in the prediction.  residuals:
    (N, O) float32, label less its prediction from all other examples.  rates: (O, 2) float32, the share of each label's
    true zeros and true ones that are flipped, by the first of the layers.
    """

    layers: tuple[str, ...]
    weights: Tensor
    residuals: Tensor
    rates: np.ndarray


def label_residuals(store: FeatureStore, labels: Tensor, logits: Tensor, seed: int) -> LabelResiduals:
    """Evidence on labels (N, O), 0 or 1, by all layers and the network's outputs (N, O).

    store: features of the layers, the input first.  seed: of the random features.
    """
    found = target_evidence(store, labels, logits.sigmoid(), seed, FITS)
    given = labels[found.rows].numpy()
    rates = flips(given, given - found.first.numpy()).rates.astype(np.float32)
    return LabelResiduals(found.layers, found.weights, found.residuals, rates)
