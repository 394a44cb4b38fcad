"""A sample of examples: parts of it, even ones, and what the network makes of them, whatever memory there is."""

from __future__ import annotations

import pytest
import torch

from fsdtool.network.tracing.trace import trace
from fsdtool.statistics.sample import Sample, even_rows
from fsdtool.tasks.task import task_of
from fsdtool.util.memory import BatchSize
from tests.conftest import gaussian_classes, perceptron


@pytest.fixture
def sample() -> Sample:
    """20 examples, every third of a data set."""
    x, y = (torch.from_numpy(part) for part in gaussian_classes(20, 4, 3))
    network = trace(perceptron(4, 6, 3).eval(), x[:2])
    task = task_of("classification")
    return Sample(network.graph, network.parameters, task, 3 * torch.arange(20), x, y, BatchSize(7))


@pytest.mark.parametrize("rows", [slice(5, 9), torch.tensor([8, 0, 3])], ids=["slice", "rows"])
def test_a_part_has_rows_inputs_and_targets_of_the_same_examples(sample, rows):
    part = sample[rows]
    chosen = torch.arange(20)[rows]
    assert torch.equal(part.rows, 3 * chosen)
    assert torch.equal(part.inputs, sample.inputs[chosen])
    assert torch.equal(part.targets, sample.targets[chosen])
    assert part.batch_size is sample.batch_size


@pytest.mark.parametrize(("total", "count"), [(20, 7), (20, 20), (3, 10), (1, 1)])
def test_even_rows_are_spread_from_the_first_to_the_last(total, count):
    rows = even_rows(total, count)
    assert len(rows) == min(total, count)
    assert (int(rows[0]), int(rows[-1])) == (0, total - 1)
    gaps = rows.diff()
    assert not len(gaps) or int(gaps.max() - gaps.min()) <= 1


def test_outputs_and_losses_do_not_depend_on_batches(sample):
    with torch.no_grad():
        outputs = sample.graph.run(sample.parameters, sample.inputs)
        torch.testing.assert_close(sample.outputs(sample.parameters), outputs)
    losses = torch.nn.functional.cross_entropy(outputs, sample.targets, reduction="none")
    torch.testing.assert_close(sample.losses(), losses)


def test_memory_that_runs_out_halves_the_parts(sample):
    seen = []

    def compute(part: Sample) -> None:
        if len(part) > 4:
            raise MemoryError
        seen.extend(part.rows.tolist())

    list(sample.each(compute))
    assert seen == sample.rows.tolist()
    assert sample.batch_size.now == 3
