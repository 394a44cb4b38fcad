"""New labels judged by an old summary: evidence on examples that are not in the summarized data.

The examples are streamed through the summary's network, observed at the layers that gave evidence in the pass.  Each
layer's discriminant says how well every class explains them, and the network's outputs add their log p.  No layer has
memorised the new labels, the outputs neither, so the layers are weighed by how well they foretell them
(fsdtool.mislabel.noise.stacking).  Of too few labels to tell, the outputs have half of the weight, and the other layers
what they had on the summarized data.  So too where many of the examples are in the summarized data after all, which
their outputs tell: then the weights are those found there.  Only what a record would keep of an example is held.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from fsdtool.data.source import Batch, DataSource
from fsdtool.errors import FsdtoolError
from fsdtool.influence.data_gradients import Examples, NewFit
from fsdtool.mislabel.class_gaussians import bounded
from fsdtool.mislabel.class_model_file import Judges, read_judges
from fsdtool.mislabel.features import FEATURES, INPUT, Narrowing, observe, watch
from fsdtool.mislabel.find import FEW_EXAMPLES, THRESHOLD, Judged, Mislabeled, check_judges, ranked
from fsdtool.mislabel.label_evidence import MOST_CANDIDATES, SCORES, strongest
from fsdtool.mislabel.noise.confusion import estimate
from fsdtool.mislabel.noise.stacking import between, scored, stacked
from fsdtool.mislabel.noise.verdict import Plain, Verdict, verdict_by
from fsdtool.network import activations
from fsdtool.network.trace import FULL, Network
from fsdtool.summary import hdf5
from fsdtool.summary.catalogue import Records
from fsdtool.summary.reader import Summary
from fsdtool.util.progress import Track, silent

log = logging.getLogger("fsdtool")

KNOWN = 0.1  # share of examples that are in the summarized data, above which the outputs are not believed


def judge(
    summary: Summary,
    data: DataSource,
    *,
    top: int | None = None,
    everything: bool = False,
    threshold: float = THRESHOLD,
    among: np.ndarray | None = None,
    model: nn.Module | None = None,
    device: torch.device | None = None,
    batch_size: int = 256,
    track: Track = silent,
) -> Mislabeled:
    """Rank the examples of `data`, which is not the summarized data, by how probably their label is wrong.

    top, everything, threshold, among (N,) bool: as for `find_mislabeled`.  model: needed for a summary in last layer
    mode.  How many labels are wrong is estimated for 100 examples or more.  Raises FsdtoolError for a summary that
    judges no labels or cannot run its network, and data that the network does not take.
    """
    records = check_judges(summary)
    judges = read_judges(summary)
    places = _places(summary, records, judges)
    examples = Examples(summary, data, model=model, device=device or torch.device("cpu"), noun="new")
    witness = _Witness(summary, examples, judges)
    kept = min(summary.identity.graph.outputs, MOST_CANDIDATES)
    candidates = torch.empty(len(examples), kept, dtype=torch.int64)
    evidence = torch.empty(len(examples), len(judges.layers), kept, dtype=torch.float16)
    logits = torch.empty(len(examples), summary.outputs, dtype=torch.float16)
    fit = NewFit(summary, "new")
    with track("judging", len(examples)) as advance:
        for batch, outputs, found, values in examples.parts(batch_size, None, witness.of):
            fit.update(batch, outputs)
            candidates[batch.index], evidence[batch.index] = found.long(), values
            logits[batch.index] = outputs.half().clamp(-65504, 65504)
            advance(len(batch.index))
    fit.say()
    judged = Judged(
        spec=data.spec,
        ids=examples.ids,
        candidates=candidates.numpy(),
        evidence=evidence.numpy(),
        layers=judges.layers,
        parameters=records.parameters()[places],
    )
    like, many, classes, new = None, judged, summary.outputs, False
    if len(examples) < FEW_EXAMPLES:
        log.info(
            f"too few examples ({len(examples)}) to estimate how many labels are wrong: "
            "they are judged as those of the summarized data"
        )
        like = many = _summarized(summary, records, judges, places)
        factors, weights = _half_outputs(judges)
    elif "logits" not in records:  # whether the examples are new cannot be told
        factors, weights = _half_outputs(judges)
    elif (known := _known(records, logits.numpy())) > KNOWN:
        log.warning(
            f"{known:.0%} of the examples are in the summarized data, whose labels the network has learned: the layers "
            "are weighed as there; judge new examples by themselves, and those of the data without --data"
        )
        factors, weights = judges.factors, judges.weights
    else:
        factors, weights = stacked(judged.evidence, classes)
        new = True
    weighing = Plain(factors)
    rank = partial(ranked, summary, judged, top=top, everything=everything, threshold=threshold, among=among)
    if not new:
        said = verdict_by(weighing, weights, many.evidence, many.candidates, classes, many.parameters)
        return rank(said, like=like)
    combined = weighing.combined(judged.evidence, judged.candidates)
    noise = estimate(combined[:, None], judged.candidates, 1, classes)
    said = Verdict(weighing, weights, noise, np.array(between(combined, noise)))
    return rank(said, found=scored(combined, judged.candidates, noise))


def _known(records: Records, logits: np.ndarray) -> float:
    """The share of examples with outputs (n, O) float16 that are those of a summarized example."""
    row = np.dtype((np.void, logits.dtype.itemsize * logits.shape[1]))
    recorded = np.ascontiguousarray(records.read("logits")).view(row)[:, 0]
    return float(np.isin(np.ascontiguousarray(logits).view(row)[:, 0], recorded).mean())


def _half_outputs(judges: Judges) -> tuple[np.ndarray, np.ndarray]:
    """Factors and weights (L,) of the summarized data, but that the outputs, last, have half of the weight."""
    spread = judges.weights / np.maximum(judges.factors, 1e-12)  # of the margins
    weights = judges.weights.copy()
    others = float(weights[:-1].sum())
    if weights[-1] < others:
        weights[-1] = others
        known = judges.factors[-1] > 0
        spread[-1] = spread[-1] if known else spread[:-1].max()
    weights = weights / weights.sum()
    return (weights / np.maximum(spread, 1e-12)).astype(np.float32), weights


def _summarized(summary: Summary, records: Records, judges: Judges, places: list[int]) -> Judged:
    """The summarized examples under the layers that judge new ones."""
    return Judged(
        spec=summary.data_spec,
        ids=records.ids,
        candidates=records.read("candidates"),
        evidence=records.read("evidence")[:, places],
        layers=judges.layers,
        parameters=records.parameters()[places],
    )


def _places(summary: Summary, records: Records, judges: Judges) -> list[int]:
    """Where the layers that judge are among those of the records."""
    layers = records.layers("evidence")
    missing = [layer for layer in judges.layers if layer not in layers]
    if missing:
        raise FsdtoolError(f"'{summary.path}': its records have no layer '{missing[0]}'; {hdf5.WRITE_AGAIN}")
    return [layers.index(layer) for layer in judges.layers]


class _Witness:
    """What the layers say about a batch."""

    def __init__(self, summary: Summary, examples: Examples, judges: Judges):
        self.summary, self.examples, self.judges = summary, examples, judges
        self.network = _observed(examples.network, judges.layers, summary)
        basis = summary.statistics.input.basis
        self.basis = None if basis is None else basis.to(examples.device)
        layers = self.network.evidence_layers()
        self.watched = {name: last for name, last in layers.items() if name in judges.layers}
        self.narrow = Narrowing(summary.identity.seed)

    def of(self, batch: Batch) -> tuple[Batch, Tensor, Tensor, Tensor]:
        """The batch, its outputs (n, O), its candidates (n, T) and their evidence (n, L, T) float16."""
        features, outputs = self._observe(batch)
        self._check_finite(batch, torch.cat([outputs, *(f.sum(1, keepdim=True) for f in features.values())], 1))
        parts = list(self._parts(batch, features, outputs))
        return batch, outputs, torch.cat([found for found, _ in parts]), torch.cat([values for _, values in parts])

    def _parts(self, batch: Batch, features: dict[str, Tensor], outputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Candidates and evidence of some examples at a time: of many classes there are many scores."""
        classes = outputs.shape[1]
        step = max(SCORES // (classes * len(self.judges.layers)), 1)
        for start in range(0, len(outputs), step):
            rows = slice(start, start + step)
            inner = [self._log_likelihood(i, features[layer][rows]) for i, layer in enumerate(self.judges.layers[:-1])]
            scores = torch.stack([*inner, bounded(torch.log_softmax(outputs[rows].double(), 1))], 1)
            found, values = strongest(scores, batch.y[rows], min(classes, MOST_CANDIDATES))
            yield found, values.half()

    def _log_likelihood(self, i: int, features: Tensor) -> Tensor:
        """Log-likelihoods (n, classes) float32 by layer i, the strongest class at 0."""
        found = self.judges.discriminants[i]
        if features.shape[1] != len(found.middle):
            raise FsdtoolError(
                f"'{self.summary.path}': layer '{self.judges.layers[i]}' has {features.shape[1]} features, "
                f"the file {len(found.middle)}; {hdf5.WRITE_AGAIN}"
            )
        # a class without examples explains nothing
        return bounded(found.log_likelihood(features).masked_fill(self.judges.members == 0, -torch.inf))

    def _observe(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """Features (n, D) by layer and outputs (n, classes) of a batch, on the CPU."""
        features: dict[str, Tensor] = {}

        def keep(layer: str, values: Tensor) -> None:
            features[layer] = self.narrow(values).cpu()

        with torch.no_grad():
            signal = self.network.signal(batch.x.to(self.examples.device), watch(self.watched, keep))
            flat = signal.flatten(1)
            keep(INPUT if self.network.mode == FULL else FEATURES, flat if self.basis is None else flat @ self.basis)
            outputs = self.network.graph.run(self.network.parameters, signal, observe=observe(self.watched, keep)).cpu()
        missing = [layer for layer in self.judges.layers[:-1] if layer not in features]
        if missing:
            raise FsdtoolError(f"'{self.summary.path}': the network has no layer '{missing[0]}'; {hdf5.WRITE_AGAIN}")
        return features, outputs

    def _check_finite(self, batch: Batch, values: Tensor) -> None:
        broken = (~torch.isfinite(values).all(1)).nonzero()[:, 0].tolist()
        if broken:
            raise FsdtoolError(
                f"the activations or outputs for example {self.examples.ids[int(batch.index[broken[0]])]} "
                "are not finite: its inputs are far outside those of training; correct or remove it"
            )


def _observed(network: Network, layers: tuple[str, ...], summary: Summary) -> Network:
    """The network with the layers hooked that gave evidence; in full mode the graph is observed instead.

    Raises FsdtoolError where the model has other layers.
    """
    if network.mode == FULL:
        return network
    hooked = tuple(layer for layer in layers[:-1] if layer != FEATURES)
    assert network.model is not None
    modules = dict(network.model.named_modules())
    missing = [name for name in hooked if type(modules.get(name)) not in activations.MODULES]
    if missing:
        raise FsdtoolError(
            f"the model has no activation layer '{missing[0]}', and that of '{summary.path}' has; "
            "give the model that was summarized"
        )
    return replace(network, hooked=hooked)
