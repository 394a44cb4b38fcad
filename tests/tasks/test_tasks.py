"""Each task against autograd and plain loops, and a task that only this file knows, used by every command."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys
from types import MappingProxyType

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import hessian, vmap

from fsdtool.cli import main, options
from fsdtool.data.formats.load import load_dataset
from fsdtool.errors import FsdtoolError
from fsdtool.fsd.drift import distances
from fsdtool.influence.scores import influence
from fsdtool.laftr.metrics import default_metric, metrics
from fsdtool.model.checkpoint import read_checkpoint
from fsdtool.summary.catalogue import open_catalogue
from fsdtool.summary.reader import Summary
from fsdtool.tasks import task as module
from fsdtool.tasks.task import Task, squared_error, stored_numbers, task_of, tasks
from tests.conftest import perceptron

N, OUTPUTS, DRAWS = 6, 4, 200_000


def outputs_and_targets(task: Task, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    outputs = 2 * torch.randn(N, OUTPUTS, generator=generator, dtype=dtype)
    targets = torch.randn(N, OUTPUTS, generator=generator)
    targets = (targets > 0).float() if task.has_labels else targets
    return outputs, torch.arange(N) % OUTPUTS if task.has_classes else targets


def dense_hessians(task: Task, outputs: Tensor, targets: Tensor) -> Tensor:
    """(n, O, O), by autograd of the loss of one example at a time."""
    return torch.stack(
        [hessian(lambda f, y=y: task.loss(f[None], y[None])[0])(f) for f, y in zip(outputs, targets, strict=True)]
    )


# Derivatives


@pytest.mark.parametrize("task", tasks().values(), ids=str)
def test_the_gradient_is_that_of_autograd_and_keeps_the_dtype(task):
    outputs, targets = outputs_and_targets(task)
    at = outputs.clone().requires_grad_()
    (expected,) = torch.autograd.grad(task.loss(at, targets).sum(), at)
    torch.testing.assert_close(task.loss_gradient(targets)(outputs), expected)
    assert task.loss_gradient(targets)(outputs.float()).dtype == torch.float32


def test_the_gradient_of_a_sure_label_is_not_lost_in_float32():
    f = torch.tensor([[20.0, 0.0]])
    assert float(task_of("classification").loss_gradient(torch.tensor([0]))(f)[0, 0]) == pytest.approx(
        -1 / (1 + math.exp(20)), rel=1e-6
    )


@pytest.mark.parametrize("task", tasks().values(), ids=str)
def test_products_and_the_sum_of_hessians_are_those_of_dense_ones(task):
    outputs, targets = outputs_and_targets(task)
    dense = dense_hessians(task, outputs, targets)
    v = torch.randn(3, N, OUTPUTS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(task.hessian_product(outputs, v), torch.einsum("nij,qnj->qni", dense, v))
    torch.testing.assert_close(task.hessian_product(outputs, v[0]), torch.einsum("nij,nj->ni", dense, v[0]))
    torch.testing.assert_close(task.hessian_sum(outputs), dense.sum(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("draw", ["curvature_draw", "gradient_draw"])
@pytest.mark.parametrize("task", tasks().values(), ids=str)
def test_draws_have_the_hessian_as_second_moment(task, draw, dtype):
    outputs, targets = outputs_and_targets(task, dtype)
    expected = dense_hessians(task, outputs[:1], targets[:1])[0].double()
    v = getattr(task, draw)(torch.Generator().manual_seed(2))(outputs[:1].expand(DRAWS, OUTPUTS)).double()
    products = v[:, :, None] * v[:, None, :]
    error = products.std(0) / DRAWS**0.5
    assert ((products.mean(0) - expected).abs() <= 5 * error + 1e-6).all()
    assert (v.mean(0).abs() <= 5 * v.std(0) / DRAWS**0.5 + 1e-6).all()


@pytest.mark.parametrize("task", tasks().values(), ids=str)
def test_the_default_metric_has_the_hessian_of_the_loss(task):
    outputs, targets = outputs_and_targets(task)
    rho = task.metrics[default_metric(task)]
    found = vmap(lambda f0: hessian(lambda f1: rho(f0[None], f1[None])[0])(f0 + 1e-9))(outputs)
    torch.testing.assert_close(found, dense_hessians(task, outputs, targets), rtol=1e-5, atol=1e-7)


# The constant answer


def test_the_constant_answer_is_the_best_of_its_kind():
    generator = np.random.default_rng(0)
    labels, values = generator.integers(0, 3, 50), generator.normal(size=(50, 2)).astype(np.float32)
    several = (values > 0.3).astype(np.float32)
    cases = ((labels, "classification", np.log), (values, "regression", np.array), (several, "multilabel", np.array))
    for targets, name, at in cases:
        task = task_of(name)
        constant = task.constant(targets, 3)
        outputs = torch.from_numpy(at(constant)).expand(50, -1)
        expected = task.loss(outputs, torch.from_numpy(targets)).numpy()
        np.testing.assert_allclose(task.constant_losses(constant, targets), expected, rtol=1e-6)
        for _ in range(20):
            other = outputs + torch.from_numpy(0.1 * generator.normal(size=len(constant)))
            assert task.loss(other, torch.from_numpy(targets)).mean() > expected.mean()


# The registry


def test_a_task_is_one_object_however_it_comes_by():
    for name, task in tasks().items():
        assert name == str(task) == task.name
        assert all(other is task for other in (task_of(name), task_of(task), copy.deepcopy(task)))
        assert pickle.loads(pickle.dumps(task)) is task


def test_an_unknown_task_is_told_which_there_are():
    with pytest.raises(FsdtoolError, match="no task 'ranking'; give one of binary, classification, "):
        task_of("ranking")


def test_a_task_that_does_not_answer_all_is_a_mistake(monkeypatch):
    monkeypatch.setattr(module, "REGISTERED", dict(module.REGISTERED))
    type("Other", (Task,), {"name": "other", "metrics": {"squared_error": squared_error}})
    with pytest.raises(TypeError, match="abstract"):
        task_of("other")


def test_the_command_line_offers_every_task_and_every_metric():
    assert [choice.value for choice in options.Task] == module.task_names() == list(tasks())
    assert [choice.value for choice in options.Metric] == list(metrics())


def test_tasks_are_known_without_torch_and_named_without_numpy():
    script = """
import sys
from fsdtool.tasks.task import task_names, tasks
print(task_names(), "numpy" in sys.modules)
print(list(tasks()), "torch" in sys.modules)
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert found == f"{module.task_names()} False\n{module.task_names()} False\n"


# A new task: sides of planes, each 0 or 1, which no module of the package knows


@pytest.fixture
def sides(monkeypatch) -> str:
    """The name of a task whose targets (n, O) are 0 or 1, each by a logit of its own."""
    monkeypatch.setattr(module, "REGISTERED", dict(module.REGISTERED))

    def sides_kl(f0: Tensor, f1: Tensor) -> Tensor:
        p, log = f0.sigmoid(), torch.nn.functional.logsigmoid
        return (p * (log(f0) - log(f1)) + (1 - p) * (log(-f0) - log(-f1))).sum(1).clamp(min=0)

    class Sides(Task):
        name = "sides"
        units = "nats"
        metrics = MappingProxyType({"sides_kl": sides_kl, "squared_error": squared_error})

        def loss(self, outputs, targets):
            return torch.nn.functional.softplus(torch.where(targets > 0, -outputs, outputs)).sum(1)

        def loss_gradient(self, targets):
            return lambda outputs: outputs.sigmoid() - targets

        def hessian_product(self, outputs, v):
            return outputs.sigmoid() * (-outputs).sigmoid() * v

        def hessian_sum(self, outputs):
            return (outputs.sigmoid() * (-outputs).sigmoid()).sum(0).diag()

        def curvature_draw(self, generator):
            def draw(outputs):
                root = (outputs.sigmoid() * (-outputs).sigmoid()).sqrt()
                return root * torch.randn(outputs.shape, generator=generator)

            return draw

        def prediction(self, outputs):
            return outputs.sigmoid()

        def targets(self, stored, ids, lenient=False):
            y = stored_numbers(stored).astype(np.float32)
            bad = np.flatnonzero(~((y == 0) | (y == 1)).all(1))
            if len(bad) and not lenient:
                raise FsdtoolError(f"the labels of example {ids[bad[0]]} are not all 0 or 1; correct them")
            return y

        def target_of(self, number):
            return number if number in (0, 1) else None

        def constant(self, targets, outputs):
            return targets.mean(0, dtype=np.float64)

        def constant_losses(self, constant, targets):
            p = np.clip(np.where(targets > 0, constant, 1 - constant), 1e-6, 1)
            return -np.log(p).sum(1)

        def right(self, outputs, targets):
            return np.zeros(len(targets))

        def centred(self, outputs, constant):
            return outputs

        def refit(self, outputs, targets):
            mean = float(np.logaddexp(0, np.where(targets > 0, -outputs, outputs)).sum(1).mean())
            return mean, mean, 1.0

        def describe(self, fit):
            return f"mean loss {fit.mean_loss:.3g} nats (frequencies {fit.baseline_loss:.3g})"

    return Sides.name


def sides_case(count: int = 120) -> tuple[torch.nn.Module, np.ndarray, np.ndarray]:
    """A network trained a little on three labels, each of a side of a plane."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(count, 5)).astype(np.float32)
    y = (x @ generator.normal(size=(5, 3)) > 0).astype(np.float32)
    network = perceptron(5, 16, 3)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(
            network(torch.from_numpy(x)), torch.from_numpy(y)
        ).backward()
        optimizer.step()
    return network, x, y


@pytest.fixture
def sides_summary(sides, summarized) -> Summary:
    network, x, y = sides_case()
    y[5] = 1 - y[5]  # one example with all labels wrong
    return summarized(network, x, y, task=sides, curvature="measured")


def test_a_new_task_is_summarized_and_read_again(sides, sides_summary):
    task = task_of(sides)
    assert sides_summary.task is sides_summary.identity.task is task
    assert sides_summary.fit.mean_loss < 0.5 * sides_summary.fit.baseline_loss
    with open_catalogue(sides_summary.path) as catalogue:
        assert catalogue.task is task
        assert catalogue.target_name(catalogue.records.read("target")[0]).count(" ") == 2
    p = torch.sigmoid(torch.from_numpy(sides_summary.records.read("logits").astype(np.float32)))
    expected = torch.diag((p * (1 - p)).mean(0))
    torch.testing.assert_close(sides_summary.statistics.output_hessian[0].float(), expected, rtol=1e-2, atol=1e-3)


def test_distances_and_penalties_of_a_new_task_are_in_its_metric(sides_summary, tmp_path):
    network, x, y = sides_case()
    with torch.no_grad():
        for p in network.parameters():
            p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3))
    torch.save(network.state_dict(), tmp_path / "other.pt")
    np.savez(tmp_path / "d.npz", x=x, y=y)
    other, data = read_checkpoint(tmp_path / "other.pt"), load_dataset(str(tmp_path / "d.npz"), task="sides")
    (found,) = distances(sides_summary, [other], data=data).found
    reference = perceptron(5, 16, 3)
    reference.load_state_dict(sides_summary.parameters)
    with torch.no_grad():
        f0, f1 = reference(torch.from_numpy(x)), network(torch.from_numpy(x))
    expected = float(sides_summary.task.metrics["sides_kl"](f0.double(), f1.double()).mean())
    assert found.metric == "sides_kl"
    assert found.exact == pytest.approx(expected, rel=1e-4)
    assert found.distance == pytest.approx(expected, rel=1e-3)  # all examples are kept
    assert float(sides_summary.penalty(network, batch=256).detach()) == pytest.approx(expected, rel=1)
    with pytest.raises(FsdtoolError, match=r"'kl' is for binary, classification and multilabel, and .* is of a sides"):
        distances(sides_summary, [other], metric="kl")


@pytest.mark.parametrize("solver", ["kronecker", "cg", "pbo"])
def test_influence_of_a_new_task_finds_the_example_itself(sides_summary, tmp_path, solver):
    _, x, y = sides_case()
    y[5] = 1 - y[5]
    for name, rows in (("q", slice(4, 7)), ("d", slice(None))):
        np.savez(tmp_path / f"{name}.npz", x=x[rows], y=y[rows])
    queries, data = (load_dataset(str(tmp_path / f"{name}.npz"), task="sides") for name in ("q", "d"))
    found = influence(sides_summary, queries, top=1, solver=solver, data=data)
    assert int(found.proponents[0][1, 0]) == 5


def test_a_new_task_is_inspected_and_its_targets_are_not_judged_as_if_they_were_others(sides_summary, capsys):
    path = str(sides_summary.path)
    assert main(["inspect", path]) == 0
    assert "sides" in capsys.readouterr().err
    assert main(["find-mislabeled", path, "-q"]) == 2
    assert "is of a sides, and only class labels and target values can be judged" in capsys.readouterr().err


def test_improper_targets_of_a_new_task_are_refused_by_it(sides, tmp_path):
    np.savez(tmp_path / "d.npz", x=np.zeros((3, 2)), y=np.array([[0, 1], [1, 2], [0, 0]]))
    with pytest.raises(FsdtoolError, match="the labels of example 1 are not all 0 or 1"):
        load_dataset(str(tmp_path / "d.npz"), task=sides)
