"""Which directions are kept, and blocks without curvature."""

from __future__ import annotations

import torch

from fsdtool.curvature.ekfac import BlockCurvature, allot
from fsdtool.statistics.eigen import Axis


def axes(rows: list[float], columns: list[float]) -> tuple[Axis, Axis]:
    values = (torch.tensor(side, dtype=torch.float64) for side in (rows, columns))
    return tuple(Axis(v, torch.eye(len(v)), float(v.sum())) for v in values)


def test_the_budget_goes_to_the_greatest_contributions():
    spectra = [axes([4, 1, 0], [3, 2, 1, 0]), axes([5, 0], [1, 0, 0])]
    assert allot(spectra, None) == [(3, 4), (2, 3)]
    gains = []
    for i, (rows, columns) in enumerate(spectra):
        product = torch.outer(rows.values, columns.values)
        contribution = product / (product + product.mean())
        for side in (0, 1):
            gains += [(float(g), i, side) for g in contribution.sum(1 - side)[1:]]
    gains.sort(key=lambda gain: -gain[0])
    for numbers in range(4, 13):
        widths = [[1, 1], [1, 1]]  # one direction of each side whatever it contributes
        for _, i, side in gains[: numbers - 4]:
            widths[i][side] += 1
        assert allot(spectra, numbers) == [tuple(width) for width in widths]
    assert allot(spectra, 0) == [(1, 1), (1, 1)]


def test_a_block_without_curvature_is_damped_by_one():
    flat = BlockCurvature("w", None, torch.eye(2), torch.eye(3), torch.zeros(3, 2), 0.0)
    assert torch.equal(flat.damped, torch.ones(3, 2))
    assert allot([axes([0, 0], [0, 0])], 2) == [(1, 1)]
    assert flat.to(torch.device("cpu")).weight == "w"
