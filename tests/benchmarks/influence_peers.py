"""The tools of others on the same network, data and queries, each as its documentation has it.

Every function gives tau (Q, N), larger where training example i helps query q more, and raises Missing where its
package is not installed.  All come with the `bench` extra.
"""

from __future__ import annotations

import importlib
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from influence_methods import Problem
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

BATCH = 250


class Missing(Exception):
    """A package that is not installed, in one line."""


def package(name: str) -> ModuleType:
    """The package, quiet."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = importlib.import_module(name)
    except ImportError as error:
        raise Missing(f"{name} is not installed and left out ({error}); pip install -e '.[bench]'") from error
    warnings.filterwarnings("ignore", module=name.split(".")[0])
    return found


def training(problem: Problem) -> TensorDataset:
    """The training examples as pairs (x, y)."""
    return TensorDataset(problem.inputs, problem.targets)


def queries(problem: Problem) -> TensorDataset:
    """The queries as pairs (x, y)."""
    return TensorDataset(problem.queries, problem.query_targets)


def kronfluence_task() -> Any:
    """Cross-entropy as a kronfluence Task: the loss of a query is the measurement."""
    task = package("kronfluence.task")

    class Classification(task.Task):
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            x, y = batch
            logits = model(x)
            if sample:
                y = torch.multinomial(logits.detach().softmax(1), 1)[:, 0]
            return nn.functional.cross_entropy(logits, y, reduction="sum")

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return self.compute_train_loss(batch, model)

    return Classification()


def kronfluence_analyzer(model: nn.Module, folder: str) -> Any:
    """An Analyzer of every linear and convolution layer, writing into `folder`."""
    package("kronfluence")
    analyzer = package("kronfluence.analyzer")
    task = kronfluence_task()
    model = analyzer.prepare_model(model, task)
    options = {"cpu": True, "disable_tqdm": True, "log_level": logging.ERROR, "output_dir": folder}
    return analyzer.Analyzer(analysis_name="benchmark", model=model, task=task, **options)


def kronfluence(problem: Problem, *, damping: float | None = 1e-8) -> np.ndarray:
    """EKFAC (Grosse et al. 2023) with its defaults; damping None is its rule, a tenth of the mean eigenvalue."""
    arguments = package("kronfluence.arguments")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        analyzer = kronfluence_analyzer(problem.model(), folder)
        data = training(problem)
        analyzer.fit_all_factors(factors_name="ekfac", dataset=data, per_device_batch_size=BATCH)
        analyzer.compute_pairwise_scores(
            scores_name="scores",
            factors_name="ekfac",
            query_dataset=queries(problem),
            train_dataset=data,
            per_device_query_batch_size=BATCH,
            per_device_train_batch_size=BATCH,
            score_args=arguments.ScoreArguments(damping_factor=damping),
        )
        return analyzer.load_pairwise_scores("scores")["all_modules"].numpy()


def trak(problem: Problem) -> np.ndarray:
    """TRAK (Park et al. 2023) of the one checkpoint, 2,048 dimensions by its projector for processors without CUDA."""
    library = package("trak")
    model, state = problem.model(), problem.reference
    with tempfile.TemporaryDirectory() as folder:
        traker = library.TRAKer(
            model=model,
            task="image_classification",
            train_set_size=len(problem.inputs),
            save_dir=folder,
            device="cpu",
            use_half_precision=False,
            logging_level=logging.ERROR,
        )
        traker.load_checkpoint(state, model_id=0)
        for batch in DataLoader(training(problem), BATCH):
            traker.featurize(batch=batch, num_samples=len(batch[0]))
        traker.finalize_features()
        traker.start_scoring_checkpoint("queries", state, model_id=0, num_targets=len(problem.queries))
        for batch in DataLoader(queries(problem), BATCH):
            traker.score(batch=batch, num_samples=len(batch[0]))
        return np.asarray(traker.finalize_scores("queries")).T


def _dattri_task(problem: Problem) -> Any:
    task = package("dattri.task")
    model = problem.model()

    def loss(parameters: dict[str, Tensor], pair: tuple[Tensor, Tensor]) -> Tensor:
        x, y = pair if pair[1].dim() else (part.unsqueeze(0) for part in pair)  # it passes batches and examples
        return nn.functional.cross_entropy(torch.func.functional_call(model, parameters, (x,)), y)

    return task.AttributionTask(loss_func=loss, model=model, checkpoints=problem.reference)


def dattri(problem: Problem, name: str, **options: Any) -> np.ndarray:
    """An attributor of dattri by its class name, with the options given."""
    algorithm = package("dattri.algorithm.influence_function")
    torch.manual_seed(0)
    attributor = getattr(algorithm, name)(task=_dattri_task(problem), **options)
    data = DataLoader(training(problem), BATCH)
    attributor.cache(data)
    with torch.no_grad():
        return attributor.attribute(data, DataLoader(queries(problem), BATCH)).numpy().T


def captum(problem: Problem) -> np.ndarray:
    """TracInCP (Pruthi et al. 2020) of the one checkpoint, all layers."""
    library = package("captum.influence")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pt"
        torch.save(problem.reference, path)
        tracin = library.TracInCP(
            model=problem.model(),
            train_dataset=training(problem),
            checkpoints=[str(path)],
            checkpoints_load_func=_load,
            loss_fn=nn.CrossEntropyLoss(reduction="sum"),
            batch_size=BATCH,
            sample_wise_grads_per_batch=True,
        )
        return tracin.influence((problem.queries, problem.query_targets)).detach().numpy()


def _load(model: nn.Module, path: str) -> float:
    model.load_state_dict(torch.load(path, weights_only=True))
    return 1.0  # the learning rate of the checkpoint


PEERS: dict[str, Callable[[Problem], np.ndarray]] = {
    "kronfluence EKFAC": kronfluence,
    "kronfluence EKFAC, damping by its rule": lambda problem: kronfluence(problem, damping=None),
    "TRAK, one checkpoint": trak,
    # It takes roots of the Hessian's eigenvalues: negative ones that regularization does not outweigh give NaN.
    "dattri Arnoldi": lambda problem: dattri(problem, "IFAttributorArnoldi", regularization=1.0),
    "captum TracInCP": captum,
}
