"""Sums by true class and given label against slow loops, for listed candidates and for all classes."""

from __future__ import annotations

import numpy as np
import pytest

from fsdtool.mislabel.noise.label_pairs import AllPairs, Pairs

CLASSES = 5


def drawn(kept: int) -> tuple[np.ndarray, np.ndarray]:
    """Candidates (60, kept), the given label first and never the last class, and values of the same shape."""
    generator = np.random.default_rng(0)
    given = generator.integers(0, CLASSES - 1, 60)
    others = [generator.permutation(np.delete(np.arange(CLASSES), y))[: kept - 1] for y in given]
    return np.column_stack([given, others]), generator.normal(size=(60, kept)).astype(np.float32)


@pytest.mark.parametrize(("kept", "listed"), [(3, True), (CLASSES, True), (CLASSES, False)])
def test_sums_and_values_of_pairs_are_those_of_a_loop(kept, listed):
    candidates, values = drawn(kept)
    pairs = Pairs(candidates, CLASSES) if listed else AllPairs(candidates)
    ordered = pairs.ordered(values)
    by_class, by_cell = np.zeros(CLASSES), {}
    for row, numbers in zip(candidates.tolist(), values.tolist(), strict=True):
        for true, value in zip(row, numbers, strict=True):
            by_class[true] += value
            by_cell[true * CLASSES + row[0]] = by_cell.get(true * CLASSES + row[0], 0.0) + value
    assert pairs.cells.key.tolist() == sorted(by_cell)
    np.testing.assert_allclose(pairs.by_class(ordered), by_class, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(pairs.by_cell(ordered), [by_cell[key] for key in sorted(by_cell)], rtol=1e-4, atol=1e-5)
    of_cells = dict(zip(pairs.cells.key.tolist(), np.linspace(0, 1, len(by_cell)), strict=True))
    expected = [[of_cells[true * CLASSES + row[0]] for true in row] for row in candidates.tolist()]
    found = pairs.of_cells(np.array(list(of_cells.values()), np.float32))
    np.testing.assert_allclose(found, pairs.ordered(np.array(expected, np.float32)), rtol=1e-6)
    found = np.broadcast_to(pairs.of_classes(np.arange(CLASSES, dtype=np.float32)), candidates.shape)
    np.testing.assert_array_equal(found, pairs.ordered(candidates.astype(np.float32)))
