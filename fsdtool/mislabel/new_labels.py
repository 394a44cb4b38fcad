"""Which labels of new data are probably wrong, by the summary of other data.

The new examples run through the summarized network (fsdtool.mislabel.layer_observer).  No layer has memorised their
labels, and neither have the outputs.  The labels themselves therefore tell how much each layer counts: by how well its
evidence predicts them (fsdtool.mislabel.noise.stacking).  That is not possible in three cases:
    fewer than 100 new examples   noise of the summarized data; the outputs have half of the weight, the other layers
                                  share the rest as on the summarized data
    outputs were not recorded     weights as above, noise of the new labels
    the data is not new           many outputs equal recorded ones: the weights are those on the summarized data
"""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import nn

from fsdtool.data.source import DataSource
from fsdtool.errors import FsdtoolError
from fsdtool.influence.data_gradients import Examples, NewFit
from fsdtool.mislabel.class_model_file import ClassModels, read_class_models
from fsdtool.mislabel.find import Mislabeled, label_records, ranked, recorded_labels
from fsdtool.mislabel.label_evidence import MOST_CANDIDATES
from fsdtool.mislabel.label_scores import (
    JudgedLabels,
    LabelScores,
    doubt_of,
    score_few_labels,
    score_labels,
    warn_of_ambiguity,
    warn_of_blind_layers,
    warn_of_contradiction,
)
from fsdtool.mislabel.layer_observer import LayerObserver
from fsdtool.mislabel.noise.confusion import estimate
from fsdtool.mislabel.noise.stacking import scored, share_range, stacked
from fsdtool.mislabel.noise.verdict import PlainWeighing, verdict_by
from fsdtool.mislabel.suspects import FEW_EXAMPLES, NEAR_BOUNDARIES, THRESHOLD, Doubt, Selection
from fsdtool.summary import hdf5
from fsdtool.summary.catalogue import Records
from fsdtool.summary.reader import Summary
from fsdtool.util.progress import Track, silent

log = logging.getLogger("fsdtool")

KNOWN = 0.1  # if a larger share of the examples is in the summarized data, its network has learned their labels


def score_new_labels(
    summary: Summary,
    data: DataSource,
    *,
    top: int | None = None,
    everything: bool = False,
    threshold: float = THRESHOLD,
    mask: np.ndarray | None = None,
    model: nn.Module | None = None,
    device: torch.device | None = None,
    batch_size: int = 256,
    track: Track = silent,
) -> Mislabeled:
    """Rank the examples of `data`, which is not the summarized data, by how probably their label is wrong.

    top, everything, threshold, mask (N,) bool: as for `find_mislabeled`.  model: needed for a summary in last layer
    mode.  How many labels are wrong is estimated for 100 examples or more.  Raises FsdtoolError for a summary that
    has no evidence on labels or cannot run its network, and for data that the network does not take.
    """
    records, models = label_records(summary), read_class_models(summary)
    places = _places(summary, records, models)
    examples = Examples(summary, data, model=model, device=device or torch.device("cpu"), noun="new")
    labels, logits = _observed(summary, examples, models, records.parameters()[places], batch_size, track)
    if len(labels.ids) < FEW_EXAMPLES:
        log.info(
            f"too few examples ({len(labels.ids)}) to estimate how many labels are wrong: "
            "they are judged as those of the summarized data"
        )
        scores = _scores_of_few(summary, models, labels, recorded_labels(summary, records, places))
    else:
        scores = _scores(summary, records, models, labels, logits)
    return ranked(summary, labels, scores, Selection(top, everything, threshold, mask))


def _observed(
    summary: Summary,
    examples: Examples,
    models: ClassModels,
    parameters: np.ndarray,
    batch_size: int,
    track: Track,
) -> tuple[JudgedLabels, np.ndarray]:
    """The labels of the examples with the evidence on them, and the outputs (n, O) float16.

    Only what a record would keep of an example is held.
    """
    observer, fit = LayerObserver(summary, examples, models), NewFit(summary, "new")
    kept = min(summary.identity.graph.outputs, MOST_CANDIDATES)
    candidates = torch.empty(len(examples), kept, dtype=torch.int64)
    evidence = torch.empty(len(examples), len(models.layers), kept, dtype=torch.float16)
    logits = torch.empty(len(examples), summary.outputs, dtype=torch.float16)
    with track("judging", len(examples)) as advance:
        for batch, outputs, found, values in examples.parts(batch_size, None, observer.evidence):
            fit.update(batch, outputs)
            candidates[batch.index], evidence[batch.index] = found.long(), values
            logits[batch.index] = outputs.half().clamp(-65504, 65504)
            advance(len(batch.index))
    fit.say()
    spec, ids = examples.source.spec, examples.ids
    return JudgedLabels(spec, ids, candidates.numpy(), evidence.numpy(), models.layers, parameters), logits.numpy()


def _scores(
    summary: Summary, records: Records, models: ClassModels, labels: JudgedLabels, logits: np.ndarray
) -> LabelScores:
    """Scores of labels that are enough to estimate their noise.  logits: (n, O) float16."""
    if "logits" not in records:  # so nothing tells whether the examples are new
        return _scores_by_weights(labels, *_half_outputs(models), summary.outputs)
    if (known := _known(records, logits)) > KNOWN:
        log.warning(
            f"{known:.0%} of the examples are in the summarized data, whose labels the network has learned: the layers "
            "are weighed as there; judge new examples by themselves, and those of the data without `data`"
        )
        return _scores_by_weights(labels, models.factors, models.weights, summary.outputs)
    return _scores_by_stacking(labels, summary.outputs)


def _scores_by_weights(labels: JudgedLabels, factors: np.ndarray, weights: np.ndarray, classes: int) -> LabelScores:
    """Scores where it is known how much each layer counts: the noise is that in the labels' combined evidence."""
    verdict = verdict_by(
        PlainWeighing(factors), weights, labels.evidence, labels.candidates, classes, labels.parameters
    )
    return score_labels(labels, verdict, classes)


def _scores_of_few(summary: Summary, models: ClassModels, labels: JudgedLabels, recorded: JudgedLabels) -> LabelScores:
    """Scores of too few labels to estimate their noise: with that of the summarized data."""
    factors, weights = _half_outputs(models)
    classes = summary.outputs
    verdict = verdict_by(
        PlainWeighing(factors), weights, recorded.evidence, recorded.candidates, classes, recorded.parameters
    )
    return score_few_labels(labels, recorded, verdict, classes)


def _scores_by_stacking(labels: JudgedLabels, classes: int) -> LabelScores:
    """Scores of labels that no layer has learned: layers count by how well they predict the labels."""
    factors, weights = stacked(labels.evidence, classes)
    combined = PlainWeighing(factors).combined(labels.evidence, labels.candidates)
    noise = estimate(combined[:, None], labels.candidates, 1, classes)
    warn_of_blind_layers(noise)
    found, ends = scored(combined, labels.candidates, noise), share_range(combined, noise)
    doubt = doubt_of(found.score, combined, noise)
    if doubt is Doubt.CONTRADICTED:
        warn_of_contradiction(noise, ends, found.score, combined, "")
    elif doubt is Doubt.AMBIGUOUS:
        warn_of_ambiguity(noise, ends, combined)
    return LabelScores(found, weights, noise, ends, NEAR_BOUNDARIES, doubt)


def _known(records: Records, logits: np.ndarray) -> float:
    """The share of examples with outputs (n, O) float16 that are those of a summarized example."""
    row = np.dtype((np.void, logits.dtype.itemsize * logits.shape[1]))
    recorded = np.ascontiguousarray(records.read("logits")).view(row)[:, 0]
    return float(np.isin(np.ascontiguousarray(logits).view(row)[:, 0], recorded).mean())


def _half_outputs(models: ClassModels) -> tuple[np.ndarray, np.ndarray]:
    """Factors and weights (L,) of the summarized data, with the outputs, last, raised to half of the weight."""
    spread = models.weights / np.maximum(models.factors, 1e-12)  # of the margins
    weights = models.weights.copy()
    others = float(weights[:-1].sum())
    if weights[-1] < others:
        weights[-1] = others
        known = models.factors[-1] > 0
        spread[-1] = spread[-1] if known else spread[:-1].max()
    weights = weights / weights.sum()
    return (weights / np.maximum(spread, 1e-12)).astype(np.float32), weights


def _places(summary: Summary, records: Records, models: ClassModels) -> list[int]:
    """Which layers (L,) of the records are those that have class models."""
    layers = records.layers("evidence")
    missing = [layer for layer in models.layers if layer not in layers]
    if missing:
        raise FsdtoolError(f"'{summary.path}': its records have no layer '{missing[0]}'; {hdf5.WRITE_AGAIN}")
    return [layers.index(layer) for layer in models.layers]
