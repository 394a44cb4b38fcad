"""Self-influence: the influence of each training example on its own loss, as the records hold it.

tau(i, i) = (1/N) g_i^T (G + lambda)^-1 g_i, which needs no query, so it is computed once, by
`fsdtool summarize` from the gradient factors as the file holds them (fsdtool.influence.gradient_records), brought to
the scale of exact gradients (fsdtool.fitting.influence_calibration), and read without torch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fsdtool.errors import FsdtoolError
from fsdtool.summary.catalogue import Catalogue, Records

log = logging.getLogger("fsdtool")

ENOUGH = 0.8  # correlation with exact gradients, below which a warning stands


@dataclass(frozen=True)
class SelfInfluence:
    """Self-influence of each example (N,) float32, in their order, with their ids and targets.

    In the units of the loss: how much it would rise, to first order, if the example were removed.
    """

    catalogue: Catalogue
    values: np.ndarray
    ids: np.ndarray
    targets: np.ndarray
    among: np.ndarray | None = None

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row per example, or per one of `among` (N,) bool, strongest first and in their order where they tie."""
        order = np.argsort(-self.values, kind="stable")
        if self.among is not None:
            order = order[self.among[order]]
        for i in order.tolist():
            label = self.catalogue.target_name(self.targets[i])
            yield {"id": self.ids[i].item(), "label": label, "self_influence": float(self.values[i])}


def recorded_self_influence(catalogue: Catalogue, *, among: np.ndarray | None = None) -> SelfInfluence:
    """The self-influence of every training example, or of those `among` (N,) bool, from its record.

    Raises FsdtoolError for a summary without records, or with records that lack it, and for values that were too large.
    """
    records = gradient_records(catalogue)
    values = records.read("self_influence")
    broken = np.flatnonzero(~(values < np.finfo(np.float32).max))  # where `summarize` cut them
    if len(broken):
        raise FsdtoolError(
            f"the self-influence of example {records.ids[broken[0]]} is not finite ({len(broken)} of {len(values)}); "
            "check the weights, they may be too large for float32"
        )
    say_calibration(catalogue, "self-influence")
    return SelfInfluence(catalogue, values, records.ids, records.read("target"), among)


def gradient_records(catalogue: Catalogue) -> Records:
    """The records of a summary that has gradients among them.  Raises FsdtoolError for one that has none."""
    if catalogue.records is None or "gradients" not in catalogue.records:
        raise FsdtoolError(
            f"'{catalogue.path}' was written with `records=False`; give the training data by `data`, "
            "or write it again with records"
        )
    return catalogue.records


def say_calibration(catalogue: Catalogue, what: str) -> None:
    """Tell how values from records compare with exact gradients: a warning where they have little in common."""
    found = catalogue.influence
    if found is None:
        log.info(
            f"{what} from records, whose scale was not compared with exact gradients, which only `data` gives: "
            "values may be too small"
        )
        return
    correlation = found.self_correlation if what == "self-influence" else found.correlation
    of = f"of {found.examples} sampled examples" if what == "self-influence" else f"on {found.pairs:,} sampled pairs"
    said = f"{what} from records: correlation {correlation:.3f} with exact gradients {of}"
    if correlation >= ENOUGH:
        log.info(said)
    else:
        log.warning(f"{said}; trust the ranking less, take `data`, or summarize with a larger `record_bytes`")
