"""Memory that runs out: the batch is halved, said, and the answer is that of the smaller batch."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import nn

from fsdtool import cli
from fsdtool.curvature import ekfac, simulated
from fsdtool.curvature.gauss_newton import GaussNewton
from fsdtool.data.formats.load import DataSource, load_dataset
from fsdtool.fitting import passes, recording
from fsdtool.fsd import drift as module
from fsdtool.fsd import exact as on_data
from fsdtool.influence import data_gradients, scores, screening, training_examples
from fsdtool.laftr import distance_forms, penalty, sampling
from fsdtool.model.checkpoint import read_checkpoint
from fsdtool.network.per_example_gradients import blocks
from fsdtool.network.tracing.trace import trace
from fsdtool.statistics import accumulators
from fsdtool.statistics.collector import StatisticsSums
from fsdtool.statistics.merging import BatchView
from fsdtool.statistics.mixture import Assignment, GatePattern
from fsdtool.summary.reader import load
from fsdtool.tasks.task import task_of
from fsdtool.util.memory import BatchSize, out_of_memory, undrawn
from tests.conftest import gaussian_classes, perceptron
from tests.fitting.test_run import assert_same_statistics, images, small_convnet

ERRORS = {
    "python": MemoryError(),
    "cpu": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
}


def failing(monkeypatch, owner, name: str, *, above: int, error: Exception, rows, first: int = 0) -> list[int]:
    """`owner.name` works, but from its call `first` on fails with `error` after its work on more than `above` rows."""
    original, sizes = getattr(owner, name), []

    def method(*arguments, **options):
        result = original(*arguments, **options)
        sizes.append(rows(*arguments))
        if len(sizes) > first and sizes[-1] > above:
            raise error
        return result

    monkeypatch.setattr(owner, name, method)
    return sizes


@pytest.mark.parametrize("kind", ERRORS)
def test_memory_that_runs_out_is_told_from_other_errors(kind):
    assert out_of_memory(ERRORS[kind])
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not out_of_memory(ValueError("out of memory"))


def test_parts_cover_every_row_once_and_in_order():
    seen: list[int] = []

    def compute(rows: slice) -> int:
        if rows.stop - rows.start > 3:
            raise MemoryError
        seen.extend(range(rows.start, rows.stop))
        return rows.stop - rows.start

    size = BatchSize(16)
    assert sum(size.parts(21, compute)) == 21
    assert seen == list(range(21))
    assert size.now == 2


def test_one_row_that_is_too_much_and_other_errors_are_raised():
    def compute(rows: slice) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        list(BatchSize(8).parts(10, compute))
    with pytest.raises(ZeroDivisionError):
        list(BatchSize(8).parts(10, lambda rows: 1 // 0))


# Each place in which a batch of the pass can stop: after the gates, the inputs or the outputs of it were added.
PLACES = {
    "gates": (accumulators.GateMoments, "update", lambda self, s, component: len(s)),
    "inputs": (accumulators.CentredMoments, "update", lambda self, x, component: len(x)),
    "outputs": (accumulators.OutputReservoir, "update", lambda self, logits, component: len(logits)),
    "records": (recording.GradientRecords, "run", lambda self, signal, *rest: len(signal)),
    "loss": (recording, "check_losses", lambda losses, *rest: len(losses)),
}


@pytest.mark.parametrize("components", [None, 3])
@pytest.mark.parametrize("place", PLACES)
def test_a_pass_that_ran_out_of_memory_gives_what_the_smaller_batch_gives(
    summarized, monkeypatch, caplog, place, components
):
    x, y = images(150)
    expected = summarized(small_convnet(), x, y, components=components, batch_size=10, name="small.h5")
    owner, name, rows = PLACES[place]
    sizes = failing(monkeypatch, owner, name, above=12, error=ERRORS["cpu"], rows=rows, first=2)
    with caplog.at_level(logging.WARNING, "fsdtool"):
        found = summarized(small_convnet(), x, y, components=components, batch_size=40)
    assert "out of memory with 40 examples at once; going on with 20" in caplog.text
    assert max(sizes) == 40
    assert_same_statistics(found, expected)
    assert found.identity.fingerprint == expected.identity.fingerprint
    assert torch.equal(found.statistics.outputs.component, expected.statistics.outputs.component)
    for record in ("target", "logits", "loss", "evidence"):
        a, b = found.records.read(record), expected.records.read(record)
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-2)


def eigenvalues_of(summary) -> torch.Tensor:
    return torch.cat([c.eigenvalues.flatten() for c in summary.curvature])


# Where the pass stops after it has drawn: at the second weight, where the sample has made 4 calls, or at the loss.
AFTER_DRAWS = {
    "eigenvalues": (ekfac.EigenvalueSums, "update", lambda sums, uses, *_: len(next(iter(uses.values())).input), 5),
    "loss": (recording, "check_losses", lambda losses, *_: len(losses), 0),
}


@pytest.mark.parametrize("place", AFTER_DRAWS)
def test_measured_curvature_draws_what_it_drew_before_memory_ran_out(summarized, monkeypatch, place):
    data, options = gaussian_classes(60, 4, 3), {"curvature": "measured", "batch_size": 40}
    original = passes.Pass.run

    def smaller(self):
        self.reader.batch_size.now = 10
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(passes.Pass, "run", smaller)
        expected = eigenvalues_of(summarized(perceptron(4, 8, 3), *data, **options))
    with monkeypatch.context() as patch:
        owner, name, rows, first = AFTER_DRAWS[place]
        sizes = failing(patch, owner, name, above=12, error=ERRORS["cpu"], rows=rows, first=first)
        found = eigenvalues_of(summarized(perceptron(4, 8, 3), *data, **options))
    assert max(sizes[first:]) == 40
    torch.testing.assert_close(found, expected)


def test_a_failed_attempt_draws_nothing():
    generator = torch.Generator().manual_seed(0)
    size = BatchSize(8)

    def compute(rows: slice) -> torch.Tensor:
        drawn = torch.rand(rows.stop - rows.start, generator=generator)
        if len(drawn) > 3:
            raise MemoryError
        return drawn

    found = torch.cat(list(size.parts(8, undrawn(generator, compute))))
    again = torch.Generator().manual_seed(0)
    assert torch.equal(found, torch.cat([torch.rand(2, generator=again) for _ in range(4)]))


def test_the_pass_goes_on_from_the_batch_that_failed(summarized, monkeypatch):
    seen = []
    original = recording.GradientRecords.run

    def run(self, signal, y, rows, observe):
        seen.append((rows.start, rows.stop))
        if rows.start >= 40 and len(signal) > 5:
            raise ERRORS["cuda"]
        return original(self, signal, y, rows, observe)

    monkeypatch.setattr(recording.GradientRecords, "run", run)
    summarized(perceptron(4, 8, 3), *gaussian_classes(60, 4, 3), batch_size=20)
    assert seen == [(0, 20), (20, 40), (40, 60), (40, 50), (40, 45), (45, 50), (50, 55), (55, 60)]


def test_memory_that_runs_out_while_reading_halves_what_is_read(summarized, monkeypatch, caplog):
    original = DataSource._result

    def read(self, rows):
        if len(rows) > 8 and rows[0] >= 20:
            raise MemoryError
        return original(self, rows)

    data = gaussian_classes(60, 4, 3)
    expected = summarized(perceptron(4, 8, 3), *data, batch_size=5, name="small.h5")
    monkeypatch.setattr(DataSource, "_result", read)
    with caplog.at_level(logging.WARNING, "fsdtool"):
        found = summarized(perceptron(4, 8, 3), *data, batch_size=20)
    assert "out of memory with 20 examples at once; going on with 10" in caplog.text
    assert_same_statistics(found, expected)
    assert found.identity.fingerprint == expected.identity.fingerprint


def test_a_network_that_not_even_one_example_fits_into_leaves_the_old_file(tmp_path, arrays, monkeypatch, capsys):
    def run(*arguments):
        raise ERRORS["cpu"]

    monkeypatch.setattr(recording.GradientRecords, "run", run)
    torch.save(perceptron(4, 8, 3).state_dict(), tmp_path / "n.pt")
    (tmp_path / "n.py").write_text(
        "from torch import nn\ndef f(): return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))\n"
    )
    (tmp_path / "s.h5").write_bytes(b"the old one")
    data = arrays(*gaussian_classes(60, 4, 3))
    command = f"summarize --model {tmp_path}/n.py:f --checkpoint {tmp_path}/n.pt --data {data} -o {tmp_path}/s.h5 -q"
    # state_dict names of the perceptron and of f agree
    assert cli.main([*command.split(), "--batch-size", "4"]) == 3
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == [
        "warning: out of memory with 4 examples at once; going on with 2",
        "warning: out of memory with 2 examples at once; going on with 1",
    ]
    assert lines[2:] == ["error: out of memory; give a smaller --batch-size or use a machine with more memory"]
    assert (tmp_path / "s.h5").read_bytes() == b"the old one"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("mean", [False, True])
def test_influence_that_ran_out_of_memory_gives_the_same_values(summarized, tmp_path, monkeypatch, caplog, mean):
    x, y = images(90)
    summary = summarized(small_convnet(), x, y)
    queries = load_dataset(summary.identity.data_spec)

    def matrix() -> np.ndarray:
        scores.influence(summary, queries, mean=mean, matrix=tmp_path / "m.npy", batch_size=32)
        return np.load(tmp_path / "m.npy")

    expected = matrix()
    failing(monkeypatch, data_gradients, "capture", above=10, error=ERRORS["cuda"], rows=lambda g, p, x, *rest: len(x))
    failing(
        monkeypatch,
        training_examples.Bilinear,
        "__call__",
        above=20,
        error=ERRORS["python"],
        rows=lambda form, b, a: len(b),
    )
    with caplog.at_level(logging.WARNING, "fsdtool"):
        found = matrix()
    assert "out of memory with 32 examples at once; going on with 16" in caplog.text
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())


def test_the_exact_distance_that_ran_out_of_memory_is_the_same(summarized, tmp_path, monkeypatch, caplog):
    network = perceptron(4, 8, 3)
    summary = summarized(network, *gaussian_classes(90, 4, 3))
    data = load_dataset(summary.identity.data_spec)
    with torch.no_grad():
        nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(network.parameters()) * 1.1, network.parameters())
    torch.save(network.state_dict(), tmp_path / "other.pt")
    others = [read_checkpoint(tmp_path / "other.pt")] * 2

    def exact() -> list[float | None]:
        return [
            d.exact
            for d in module.distances(
                summary, others, data=data, metric="squared_error", form="closed", batch_size=32
            ).found
        ]

    expected = exact()
    failing(monkeypatch, on_data, "measure", above=10, error=ERRORS["cuda"], rows=lambda metric, f0, *rest: len(f0))
    with caplog.at_level(logging.WARNING, "fsdtool"):
        assert exact() == pytest.approx(expected)
    assert "going on with 16" in caplog.text


# Each use of pseudo-samples, where it fails after its work on so many, and what it gives.
SIMULATED = {
    "distance": (distance_forms, "measure", lambda metric, f0, *rest: len(f0), lambda summary: distance(summary)),
    "curvature": (simulated, "capture", lambda g, p, x, *rest: len(x), lambda summary: eigenvalues(summary)),
    "whole matrix": (sampling.Simulation, "forward", lambda self, k, count: count, lambda summary: product(summary)),
    "penalty": (penalty.Penalty, "_draw_component", lambda self, k, count: count, lambda summary: drift(summary)),
}


def moved(summary) -> nn.Module:
    network = perceptron(4, 8, 3)
    network.load_state_dict({name: 1.1 * value for name, value in summary.parameters.items()})
    return network


def distance(summary) -> torch.Tensor:
    others = [dict(moved(summary).state_dict())]
    options = {"samples": 16 * 300, "seed": 0, "device": torch.device("cpu")}
    graph, statistics = summary.identity.graph, summary.statistics
    found = distance_forms.on_pseudo_samples(graph, summary.parameters, others, statistics, ["kl"], **options)
    return torch.tensor(found["kl"][0].distance)


def eigenvalues(summary) -> torch.Tensor:
    identity, of = summary.identity, summary.statistics
    found = simulated.simulated_curvature(identity.graph, summary.parameters, of, seed=0, samples=300)
    return torch.cat([c.eigenvalues.flatten() for c in found])


def product(summary) -> torch.Tensor:
    graph = summary.identity.graph
    matrix = GaussNewton(graph, summary.parameters, summary.statistics, blocks(graph, summary.parameters), samples=300)
    return torch.cat([draw.x.flatten() for draw in matrix.pool])


def drift(summary) -> torch.Tensor:
    return load(summary.path).penalty(moved(summary)).detach()  # a pool of its own


@pytest.mark.parametrize("use", SIMULATED)
def test_pseudo_samples_that_memory_does_not_hold_are_drawn_again_half_as_many(summarized, monkeypatch, caplog, use):
    owner, name, rows, answer = SIMULATED[use]
    summary = summarized(perceptron(4, 8, 3), *gaussian_classes(90, 4, 3), components=1)
    monkeypatch.setattr(sampling, "BATCH_UNITS", 1)
    monkeypatch.setattr(sampling, "SMALLEST_BATCH", 32)
    expected = answer(summary)
    monkeypatch.setattr(sampling, "SMALLEST_BATCH", 64)
    failing(monkeypatch, owner, name, above=40, error=ERRORS["cuda"], rows=rows)
    with caplog.at_level(logging.WARNING, "fsdtool"):
        found = answer(summary)
    assert "out of memory with" in caplog.text
    torch.testing.assert_close(found, expected)


def test_screened_records_that_memory_does_not_hold_are_read_again_in_halves(summarized, monkeypatch, caplog):
    summary = summarized(perceptron(4, 8, 3), *gaussian_classes(600, 4, 3))
    queries = load_dataset(summary.identity.data_spec)
    monkeypatch.setattr(scores, "SCREENED_FROM", 1)

    def listed() -> tuple[list[int], list[float]]:
        rows = list(scores.influence(summary, queries, top=3).rows())
        return [row["id"] for row in rows], [row["loss_change_if_removed"] for row in rows]

    ids, values = listed()
    failing(monkeypatch, screening._Weight, "bounds", above=200, error=ERRORS["cpu"], rows=lambda self, b, a: len(b))
    with caplog.at_level(logging.WARNING, "fsdtool"):
        found = listed()
    assert found == (ids, pytest.approx(values, rel=1e-5))
    assert "going on with 150" in caplog.text


@pytest.mark.parametrize("kind", ["class", "cluster"])
def test_of_a_batch_that_fails_nothing_stays_and_only_its_components_are_copied(kind):
    network = trace(perceptron(4, 6, 5).eval(), torch.zeros(2, 4))
    graph, parameters = network.graph, network.parameters
    pattern = GatePattern(graph, 0)
    x, y = torch.randn(40, 4, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 5
    centres = pattern.of(graph, parameters, x)[:5]
    names = tuple("abcde")
    assignment = Assignment(kind, names) if kind == "class" else Assignment(kind, names, pattern, centres)
    sums = StatisticsSums(graph, assignment, None, task_of("classification"))

    def batch(rows, fail=False):
        with sums.whole_or_nothing():
            sums.start(y[rows])
            with torch.no_grad():
                logits = graph.run(parameters, x[rows], observe=lambda step, given, output: sums.see(step, given))
            sums.update(BatchView(rows, x[rows], x[rows], y[rows], logits, sums.assign()))
            if fail:
                raise MemoryError

    batch(slice(0, 20))
    before = sums.finalize()
    for rows in (slice(20, 40), slice(20, 22)):
        with pytest.raises(MemoryError):
            batch(rows, fail=True)
        after = sums.finalize()
        assert torch.equal(after.count, before.count)
        assert torch.equal(after.input.core, before.input.core)
        assert torch.equal(after.output_hessian, before.output_hessian)
        assert torch.equal(after.outputs.values, before.outputs.values)
        for i in before.gates:
            assert torch.equal(after.gates[i].probabilities, before.gates[i].probabilities)
    fresh = StatisticsSums(graph, assignment, None, task_of("classification"))
    with fresh.whole_or_nothing():
        fresh.start(y[:2])
        if kind == "class":
            assert {len(copy) for copy in fresh._copies} == {2}
