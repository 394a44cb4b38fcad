"""The queries to explain: which examples of their data, and what the rows of the answer say of each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from fsdtool.errors import FsdtoolError
from fsdtool.influence.data_gradients import Examples, NewFit
from fsdtool.summary.reader import Summary


@dataclass(frozen=True)
class Asked:
    """rows (q,) int64 of the queries in their data; ids, labels and predictions (Q,) of the answers.

    An answer is for each query, or one for the mean loss of all.
    """

    rows: np.ndarray
    ids: list[Any]
    labels: list[Any]
    predictions: list[Any]

    def of_mean(self) -> Asked:
        """The same queries with one answer, for their mean loss."""
        return replace(self, ids=["mean"], labels=[None], predictions=[None])


def ask(summary: Summary, examples: Examples, misclassified: bool, batch_size: int) -> Asked:
    """The queries, or the `misclassified` ones, chosen in a pass that computes their outputs alone.

    Tells how well the network fits them.  Raises FsdtoolError where there are none.
    """
    asked = Asked(np.empty(0, dtype=np.int64), [], [], [])
    rows, fit = [], NewFit(summary, "query")
    for batch, outputs in examples.outputs(batch_size):
        fit.update(batch, outputs)
        found = summary.task.prediction(outputs)
        keep = (found != batch.y).nonzero()[:, 0] if misclassified else torch.arange(len(batch.y))
        rows.append(batch.index[keep].numpy())
        asked.ids.extend(examples.ids[i].item() for i in rows[-1].tolist())
        asked.labels.extend(summary.target_name(y) for y in batch.y[keep].numpy())
        asked.predictions.extend(summary.target_name(y) for y in found[keep].numpy())
    fit.say()
    if not asked.ids:
        which = "misclassified queries" if misclassified else "queries"
        raise FsdtoolError(f"there are no {which} in '{examples.source.spec}', so nothing to explain; give others")
    return Asked(np.concatenate(rows), asked.ids, asked.labels, asked.predictions)
