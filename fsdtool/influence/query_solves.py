"""Queries solved: their gradients G_q become (G + lambda)^-1 G_q, of as many at once as memory allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fsdtool.curvature.ekfac import BlockCurvature
from fsdtool.curvature.gauss_newton import ConjugateGradients
from fsdtool.influence.data_gradients import Examples
from fsdtool.influence.training_examples import chunks
from fsdtool.network.per_example_gradients import Block, LayerIO, gradient, project, vectors

QUERY_NUMBERS = 2**26  # held by the solved gradients of a block of queries
FACTOR_COPIES = 16  # of a query's factors that screening holds, and a share of its scores
CG_VECTORS = 6  # per query that conjugate gradients hold

Form = Callable[[Block, dict[int, LayerIO], BlockCurvature], Tensor]


@dataclass(frozen=True)
class Solve:
    """How queries are solved: `form` a batch's gradients, `finish` (G + lambda)^-1 of as many as fit into memory.

    numbers: held for each query.
    """

    form: Form
    finish: Callable[[list[Tensor]], list[Tensor]]
    numbers: int

    @property
    def most(self) -> int:
        """How many queries are held at once."""
        return max(QUERY_NUMBERS // self.numbers, 1)


def preparation(
    examples: Examples, used: list[BlockCurvature], *, in_basis: bool, whole: ConjugateGradients | None
) -> Solve:
    """How queries are solved by the Kronecker curvature or with the `whole` matrix, `in_basis` for the records."""

    def project_all(vectors: list[Tensor]) -> list[Tensor]:
        return [c.output_basis.T @ v @ c.input_basis for c, v in zip(used, vectors, strict=True)]

    size = sum(block.size for block in examples.blocks.values())
    if whole is not None:
        solve = whole.solve
        finish = (lambda g: project_all(solve(g))) if in_basis else solve
        return Solve(_whole_gradient, finish, CG_VECTORS * size)
    if in_basis:
        numbers = sum(c.eigenvalues.numel() for c in used)
        return Solve(_projected_gradient, lambda g: [v / c.damped for v, c in zip(g, used, strict=True)], numbers)
    return Solve(_whole_gradient, lambda g: [c.solve(v) for v, c in zip(g, used, strict=True)], size)


def factors_of(used: list[BlockCurvature]) -> Solve:
    """Queries as joined factors (Q, ks + ka) in the kept directions, for gradients of rank one.

    The inverse is left to the screening.
    """

    def form(block: Block, uses: dict[int, LayerIO], c: BlockCurvature) -> Tensor:
        pair = vectors(block, uses)
        assert pair is not None
        b, a = pair
        return torch.cat([b @ c.output_basis, a @ c.input_basis], 1)

    return Solve(form, list, FACTOR_COPIES * sum(sum(c.eigenvalues.shape) for c in used))


def _whole_gradient(block: Block, uses: dict[int, LayerIO], c: BlockCurvature) -> Tensor:
    return gradient(block, uses)


def _projected_gradient(block: Block, uses: dict[int, LayerIO], c: BlockCurvature) -> Tensor:
    return project(block, uses, c.output_basis, c.input_basis)


def solved_blocks(
    examples: Examples, rows: np.ndarray, used: list[BlockCurvature], solve: Solve, mean: bool, batch_size: int
) -> Iterator[tuple[slice, list[Tensor]]]:
    """Ranges of queries, and their solved gradients per weight; with `mean` one query, their mean."""
    for block in [slice(0, len(rows))] if mean else chunks(len(rows), solve.most):
        parts: list[list[Tensor]] = []
        for seen in examples.batches(min(batch_size, solve.most), rows[block]):
            formed = [solve.form(b, seen.uses, c) for b, c in zip(examples.blocks.values(), used, strict=True)]
            for values in formed:
                examples.check_finite(values, seen.batch)
            parts = _add(parts, formed) if mean else [*parts, formed]
        if mean:
            yield slice(0, 1), solve.finish([total / len(rows) for total in parts[0]])
        else:
            yield block, solve.finish([torch.cat(values) for values in zip(*parts, strict=True)])


def _add(parts: list[list[Tensor]], values: list[Tensor]) -> list[list[Tensor]]:
    summed = [value.sum(0, keepdim=True) for value in values]
    return [[a + b for a, b in zip(parts[0], summed, strict=True)] if parts else summed]
