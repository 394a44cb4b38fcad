"""One step of kronfluence as a process: python kronfluence_steps.py FACTORY fit|self|queries FOLDER

FOLDER holds net.pt, train.npz and queries.npz; factors and scores go to FOLDER/kronfluence.  Called by
influence_cost.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import influence_nets
import numpy as np
import torch
from influence_peers import kronfluence_analyzer
from torch.utils.data import TensorDataset

BATCH = 500


def pairs(path: Path) -> TensorDataset:
    """The examples of an .npz file."""
    with np.load(path) as file:
        return TensorDataset(torch.from_numpy(file["x"]), torch.from_numpy(file["y"]))


def main(factory: str, step: str, folder: Path) -> None:
    model = getattr(influence_nets, factory)()
    model.load_state_dict(torch.load(folder / "net.pt", weights_only=True))
    analyzer = kronfluence_analyzer(model.eval(), str(folder / "kronfluence"))
    data = pairs(folder / "train.npz")
    if step == "fit":
        analyzer.fit_all_factors(factors_name="ekfac", dataset=data, per_device_batch_size=BATCH)
    elif step == "self":
        analyzer.compute_self_scores(
            scores_name="self", factors_name="ekfac", train_dataset=data, per_device_train_batch_size=BATCH
        )
    else:
        analyzer.compute_pairwise_scores(
            scores_name="pairs",
            factors_name="ekfac",
            query_dataset=pairs(folder / "queries.npz"),
            train_dataset=data,
            per_device_query_batch_size=100,
            per_device_train_batch_size=BATCH,
        )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
