"""What mislabel_accuracy.py compares fsdtool with.

Each method takes a case and how many stages of its training are over, and yields verdicts.  A method without a
cut-off of its own flags nothing; one without an idea of the right label suggests none.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mislabel_cases import FOLDS, Case
from torch import Tensor, nn

NEIGHBOURS = 10


@dataclass(frozen=True)
class Verdict:
    """What one method says of every label.

    score (n,), higher is more suspicious; flagged (n,) bool, suggested (n,) int64 and the rate of wrong labels where
    the method gives them.  between: the lowest and highest rate that it thinks possible.  probable: whether the score
    is the probability that the label is wrong.  evidence: gives the score (n,) by the same evidence without a prior.
    """

    method: str
    score: Tensor
    flagged: Tensor | None = None
    suggested: Tensor | None = None
    rate: float | None = None
    between: tuple[float, float] | None = None
    probable: bool = False
    evidence: Callable[[], Tensor] | None = None


def loss(case: Case, stages: int) -> Iterator[Verdict]:
    """Cross-entropy of the given label."""
    f = case.outputs(case.trajectory(stages)[-1])
    yield Verdict("loss", nn.functional.cross_entropy(f, case.given, reduction="none"))


def margin(case: Case, stages: int) -> Iterator[Verdict]:
    """Logit of the strongest other class minus that of the given one; flagged where the network says the other."""
    f = case.outputs(case.trajectory(stages)[-1])
    given = case.given[:, None]
    best = f.scatter(1, given, -torch.inf).max(1)
    score = best.values - f.gather(1, given)[:, 0]
    yield Verdict("margin", score, score > 0, best.indices, float((score > 0).double().mean()))


def aum(case: Case, stages: int) -> Iterator[Verdict]:
    """Minus the area under the margin over all epochs, as the training log has it (Pleiss et al. 2020)."""
    margins = case.margins(stages)
    yield Verdict(f"AUM, log of {margins.shape[1]} epochs", -margins.mean(1))


def residual(case: Case, stages: int) -> Iterator[Verdict]:
    """Distance of the prediction from the given target."""
    f = case.outputs(case.trajectory(stages)[-1])
    yield Verdict("absolute residual", (f - case.given).abs()[:, 0])


def cleanlab_in_sample(case: Case, stages: int) -> Iterator[Verdict]:
    """Confident learning on what the checkpoint says of its own training data."""
    yield _cleanlab(case, "cleanlab, in-sample", case.outputs(case.trajectory(stages)[-1]))


def cleanlab_folds(case: Case, stages: int) -> Iterator[Verdict]:
    """Confident learning as it is meant: on what networks say that were trained without the example."""
    yield _cleanlab(case, f"cleanlab, {FOLDS} retrainings", case.out_of_sample(stages))


def _cleanlab(case: Case, name: str, outputs: Tensor) -> Verdict:
    if not case.classification:
        from cleanlab.regression.rank import get_label_quality_scores as quality

        given, predicted = (part[:, 0].double().numpy() for part in (case.given, outputs))
        return Verdict(name, torch.from_numpy(1 - quality(given, predicted)))
    from cleanlab.count import num_label_issues
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    given, probabilities = case.given.numpy(), torch.softmax(outputs.double(), 1).numpy()
    flagged = find_label_issues(given, probabilities, n_jobs=1)
    return Verdict(
        name,
        torch.from_numpy(1 - get_label_quality_scores(given, probabilities, method="self_confidence")),
        torch.from_numpy(flagged),
        torch.from_numpy(probabilities.argmax(1)),
        num_label_issues(given, probabilities) / len(given),
    )


def neighbours(case: Case, stages: int) -> Iterator[Verdict]:
    """Share of an example's nearest neighbours with another label, by the cosine of what enters the last layer.

    Flagged where another label has the most votes (Zhu et al. 2022, SimiFeat-V).
    """
    from sklearn.neighbors import NearestNeighbors

    x = nn.functional.normalize(_penultimate(case, stages)).numpy()
    nearest = (
        NearestNeighbors(n_neighbors=NEIGHBOURS + 1, algorithm="brute").fit(x).kneighbors(x, return_distance=False)
    )
    own = nearest == np.arange(len(x))[:, None]
    own[~own.any(1), -1] = True  # among duplicates an example may not be its own neighbour
    others = torch.from_numpy(nearest[~own].reshape(len(x), NEIGHBOURS))
    votes = nn.functional.one_hot(case.given[others], int(case.given.max()) + 1).sum(1)  # (n, classes)
    given = votes.gather(1, case.given[:, None])[:, 0]
    flagged = votes.amax(1) > given
    score = 1 - given.double() / NEIGHBOURS
    yield Verdict(f"{NEIGHBOURS} nearest neighbours", score, flagged, votes.argmax(1), float(flagged.double().mean()))


def _penultimate(case: Case, stages: int) -> Tensor:
    """What enters the last layer (n, width)."""
    model = case.model(case.trajectory(stages)[-1])
    with torch.no_grad():
        return torch.cat([model[:-1](part) for part in case.inputs.split(500)])


def tracin(case: Case, stages: int) -> Iterator[Verdict]:
    """Self-influence along the training: squared gradients of the last layer, summed over its checkpoints."""
    from captum.influence import TracInCPFast

    states = case.trajectory(stages)
    model = case.model(states[-1])
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / f"{i}.pt") for i in range(len(states))]
        for state, path in zip(states, paths, strict=True):
            torch.save(state, path)

        def restore(model: nn.Module, path: str) -> float:
            model.load_state_dict(torch.load(path, weights_only=True))
            return 1.0  # the learning rate, which weights a checkpoint

        data = torch.utils.data.TensorDataset(case.inputs, case.given)
        found = TracInCPFast(
            model, model[-1], data, paths, restore, nn.CrossEntropyLoss(reduction="sum"), batch_size=500
        )
        name = f"TracIn, {len(states)} checkpoint{'s' if len(states) > 1 else ''}"
        yield Verdict(name, found.self_influence(show_progress=False).detach())


def kronfluence(case: Case, stages: int) -> Iterator[Verdict]:
    """EKFAC self-influence by kronfluence, its defaults.  Of the convolutional net it takes too long on a processor."""
    if case.inputs.dim() > 2:
        return
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.task import Task

    classification = case.classification

    class Training(Task):
        def compute_train_loss(self, batch: list[Tensor], model: nn.Module, sample: bool = False) -> Tensor:
            f, y = model(batch[0]), batch[1]
            if classification:
                y = torch.distributions.Categorical(logits=f.detach()).sample() if sample else y
                return nn.functional.cross_entropy(f, y, reduction="sum")
            y = torch.normal(f.detach(), 1.0) if sample else y
            return 0.5 * (f - y).square().sum()

        def compute_measurement(self, batch: list[Tensor], model: nn.Module) -> Tensor:
            return self.compute_train_loss(batch, model)

    data = torch.utils.data.TensorDataset(case.inputs, case.given)
    task = Training()
    model = prepare_model(case.model(case.trajectory(stages)[-1]), task)
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer("case", model, task, cpu=True, output_dir=folder, disable_tqdm=True)
        analyzer.fit_all_factors("factors", data, per_device_batch_size=500)
        analyzer.compute_self_scores("self", "factors", data, per_device_train_batch_size=500)
        yield Verdict("EKFAC self-influence", analyzer.load_self_scores("self")["all_modules"].float())
