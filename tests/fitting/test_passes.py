"""Parts of a pass, in any order and of any size, add up to one pass over all the data."""

from __future__ import annotations

import itertools
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from torch import nn

from fsdtool.data.formats.load import load_dataset
from fsdtool.errors import FsdtoolError
from fsdtool.fitting.passes import Pass
from fsdtool.fitting.plan import Choices, first_sample, make_plan
from fsdtool.fitting.preparation import Given, prepare
from fsdtool.fitting.reader import Reader
from fsdtool.mislabel.features import FeatureStore
from fsdtool.model.checkpoint import Checkpoint
from fsdtool.summary.writer import Writer
from fsdtool.util.progress import silent
from tests.conftest import gaussian_classes, perceptron
from tests.fitting.test_run import images, small_convnet

EXAMPLES = 157
CUTS = [(157,), (60, 157), (1, 100, 157), (20, 21, 90, 120, 140, 150, 157)]


def wide() -> tuple[nn.Module, np.ndarray, np.ndarray]:
    x, y = gaussian_classes(EXAMPLES, 300, 3)
    return perceptron(300, 12, 8, 3, activation=nn.GELU), x, y


def convolutional() -> tuple[nn.Module, np.ndarray, np.ndarray]:
    return small_convnet(), *images(EXAMPLES)


def regression() -> tuple[nn.Module, np.ndarray, np.ndarray]:
    x, _ = gaussian_classes(EXAMPLES, 6, 3)
    return perceptron(6, 10, 2, activation=nn.Tanh), x, np.stack([x[:, 0], x[:, 1] * x[:, 2]], 1)


class Parts:
    """Passes of one plan, each over some of the examples."""

    def __init__(self, stack: ExitStack, folder, arrays, case, **choices):
        model, x, y = case()
        task = "regression" if y.ndim == 2 else "classification"
        data = load_dataset(str(arrays(x, y)), task=task)
        given = Given(model, Checkpoint("c.pt", "0", model.state_dict(), ()), data)
        prepared = prepare(given, gradients=True, device=torch.device("cpu"), workers=0)
        self.network, self.data = prepared.network, prepared.data
        self.stack, self.folder, self.made = stack, folder, 0
        self.reader = Reader(
            self.data,
            self.network.graph.outputs,
            torch.device("cpu"),
            batch_size=32,
            workers=0,
            seed=0,
            track=silent,
        )
        sample = first_sample(self.reader, self.network)
        self.plan, _ = make_plan(self.network, self.reader, sample, Choices(record_bytes=200, **choices), earlier=0)

    def empty(self) -> Pass:
        self.made += 1
        writer = self.stack.enter_context(Writer(self.folder / f"{id(self)} {self.made}.h5"))
        store = self.stack.enter_context(FeatureStore(len(self.data), 0))
        return Pass(self.network, self.reader, self.plan, store, writer)

    def over(self, rows: np.ndarray) -> Pass:
        """A pass over `rows`; drawn gradients are those of a pass that begins at the first example."""
        found = self.empty()
        self.reader.generator.manual_seed(int(rows[0]))
        found.run(rows)
        return found


@pytest.fixture
def parts(tmp_path, arrays):
    with ExitStack() as stack:
        yield lambda case, **choices: Parts(stack, tmp_path, arrays, case, **choices)


def close(found, expected, rtol: float = 1e-6) -> None:
    found, expected = (np.asarray(value, np.float64) for value in (found, expected))
    scale = np.abs(expected).max() if expected.size else 0
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * scale)


def assert_same_states(found: Pass, expected: Pass, leave: tuple[str, ...] = ()) -> None:
    for name, accumulator in expected.accumulators.items():
        wanted, got = accumulator.state(), found.accumulators[name].state()
        assert set(got) == set(wanted), name
        for key, value in wanted.items():
            assert value.dtype == np.float64
            if not key.startswith(leave):
                close(got[key], value, 1e-3 if name == "records" else 1e-6)  # these are float16


CASES = [
    pytest.param(wide, {}, id="projected"),
    pytest.param(wide, {"components": 5, "statistics_budget": 100_000}, id="clusters"),
    pytest.param(convolutional, {}, id="convolutions"),
    pytest.param(regression, {}, id="regression"),
    pytest.param(convolutional, {"records": False}, id="without records"),
]


@pytest.mark.parametrize(("case", "choices"), CASES)
@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_parts_add_up_to_one_pass(parts, case, choices, cuts):
    made = parts(case, **choices)
    whole = made.over(np.arange(EXAMPLES))
    pieces = [made.over(np.arange(*edges)) for edges in itertools.pairwise((0, *cuts))]
    order = np.random.default_rng(len(cuts)).permutation(len(pieces))
    total = made.empty()
    for i in order:
        for name, accumulator in total.accumulators.items():
            accumulator.merge(pieces[i].accumulators[name])
    # which outputs are kept as a sample depends on the order; how many, hardly
    assert_same_states(total, whole, leave=("sample/",))
    found, expected = total.finalize(), whole.finalize()
    for name in ("targets", "present"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    for name in ("logits", "losses"):
        close(getattr(found, name), getattr(expected, name))
    if expected.anchors is not None:
        for name in ("inputs", "outputs", "component", "alone"):
            close(getattr(found.anchors, name), getattr(expected.anchors, name))
    assert total.features.store.layers == whole.features.store.layers


def test_measured_curvature_adds_up(parts):
    made = parts(convolutional, curvature="measured")
    # the same draws, batch by batch, whatever passes take them
    pieces = [made.over(np.arange(*edges)) for edges in itertools.pairwise((0, 50, 100, 157))]
    one, other = made.empty(), made.empty()
    for piece in pieces:
        one.measured.merge(piece.measured)
    for piece in reversed(pieces):
        other.measured.merge(piece.measured)
    for a, b in zip(one.measured.finalize(), other.measured.finalize(), strict=True):
        close(a.eigenvalues, b.eigenvalues)
        assert a.mean_eigenvalue == pytest.approx(b.mean_eigenvalue, rel=1e-12)
    assert float(next(iter(one.measured.blocks.values())).count) == EXAMPLES


@pytest.mark.parametrize("choices", [{}, {"components": 4}, {"curvature": "measured"}], ids=str)
def test_an_empty_pass_becomes_the_same_by_its_state(parts, choices):
    made = parts(convolutional, **choices)
    part, rest = made.over(np.arange(70)), made.over(np.arange(70, EXAMPLES))
    again = made.empty()
    for name, accumulator in again.accumulators.items():
        assert accumulator.from_state(part.accumulators[name].state()) is accumulator
    assert_same_states(again, part)
    for name, accumulator in again.accumulators.items():
        accumulator.merge(rest.accumulators[name])
        part.accumulators[name].merge(rest.accumulators[name])
    assert_same_states(again, part)
    assert torch.equal(again.finalize().losses, part.finalize().losses)


def test_a_part_that_comes_twice_is_refused(parts):
    made = parts(regression)
    one, other = made.over(np.arange(100)), made.over(np.arange(99, EXAMPLES))
    with pytest.raises(FsdtoolError, match="1 examples are in two parts, row 99 first"):
        one.outputs.merge(other.outputs)


def test_a_state_of_another_plan_is_refused(parts):
    one, other = parts(convolutional), parts(convolutional, components=1)
    state = one.over(np.arange(50)).statistics.state()
    with pytest.raises(FsdtoolError, match=r"'count' of shape \(1,\) is needed, and it has the shape \(3,\)"):
        other.empty().statistics.from_state(state)
    del state["inputs/mean"]
    with pytest.raises(FsdtoolError, match=r"'mean' of shape .* is needed, and it lacks it"):
        one.empty().statistics.from_state(state)
