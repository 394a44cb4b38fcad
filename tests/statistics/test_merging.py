"""Rows of examples: every example writes its own, parts copy theirs, and runs of any length are found."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fsdtool.errors import FsdtoolError
from fsdtool.statistics import merging
from fsdtool.statistics.merging import RowTensors, joined, part_of

EXAMPLES = 23


def rows_of(*runs: tuple[int, int]) -> RowTensors:
    """Labels and squares of the rows in these runs."""
    found = RowTensors(EXAMPLES, {"label": torch.empty(0, dtype=torch.int64), "square": torch.empty(0, 2)})
    for start, stop in runs:
        i = torch.arange(start, stop)
        found.put(slice(start, stop), label=i, square=torch.stack([i, i * i], 1))
    return found


@pytest.mark.parametrize("most", [1, 4, 4096])
def test_parts_fill_each_others_gaps(most, monkeypatch):
    monkeypatch.setattr(merging, "COPIED", most)
    total = rows_of((3, 9), (20, 23))
    total.merge(rows_of((0, 3), (9, 20)))
    assert total.seen.all()
    assert total.values["label"].tolist() == list(range(EXAMPLES))
    assert total.values["square"][:, 1].tolist() == [i * i for i in range(EXAMPLES)]


def test_a_row_that_comes_again_in_the_same_pass_is_written_again():
    found = rows_of((0, 5), (2, 8))
    assert int(found.seen.sum()) == 8
    assert found.values["label"][:8].tolist() == list(range(8))


def test_a_row_in_two_parts_is_refused():
    with pytest.raises(FsdtoolError, match="2 examples are in two parts, row 4 first"):
        rows_of((0, 6)).merge(rows_of((4, 9)))


@pytest.mark.parametrize("runs", [(), ((0, 23),), ((1, 2), (4, 9), (22, 23))], ids=str)
def test_rows_come_back_from_their_state(runs):
    found = rows_of(*runs)
    state = found.state()
    assert all(value.dtype == np.float64 for value in state.values())
    again = rows_of().from_state(state)
    assert torch.equal(again.seen, found.seen)
    for name, value in found.values.items():
        assert again.values[name].dtype == value.dtype
        assert torch.equal(again.values[name], value)


def test_a_state_without_its_rows_is_refused():
    with pytest.raises(FsdtoolError, match="'rows' is needed, and it lacks it"):
        rows_of().from_state({"label": np.zeros(3)})


def test_states_of_several_are_told_apart_by_their_names():
    parts = {"a": {"x": np.zeros(1)}, "a/b": {"x": np.ones(1)}, "c": {}}
    assert part_of(joined(parts), "a/b") == {"x": np.ones(1)}
    assert set(part_of(joined(parts), "a")) == {"x", "b/x"}
    assert part_of(joined(parts), "c") == {}
