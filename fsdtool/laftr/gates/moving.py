"""Moving gates: coupled under theta0, and under theta1 they switch where the signal passes a break.

    a1 = a0 + psi(s1) - psi(s0)

psi is the activation with its breaks b_j moved to where the coupled gates of theta0 change, t_j.  To first order in
s1 - s0 this is LAFTR, the gates still have the recorded probabilities at theta0, and a unit that the change of the
weights carries over its break switches.  The moved break lies halfway between the samples of theta0 on either side;
where none is on the other side, it is b_j or the outermost sample, whichever is farther out.  A smooth activation has
psi(s) = phi(s) + (m - phi'(s0)) s, with the coupled slopes m.  (Three regressions with GELU and with tanh, K of 1 and
16: the median |log ratio| to the exact distance is .069, with psi = phi and without E[m c] .092.)  A maximum takes its
own position.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fsdtool.laftr.gates.coupled import Coupled, rank
from fsdtool.network.activations import Pieces
from fsdtool.network.operations.base import ACTIVATION, Step, gated
from fsdtool.network.tape import Gates, Held, Tape


class MovingTape(Tape):
    """Gates that switch where the replayed signal passes their moved breaks t.

    A piecewise linear activation with slopes m_j holds the intercepts that continue a0 from the piece of theta0, and
    its breaks t_j; a smooth one holds a0, phi(s0), m - phi'(s0) and s0; a maximum nothing.
    """

    def hold_activation(self, step: Step, s: Tensor, gates: Gates) -> None:
        activation, m, c = step.activation(), gates.m, gates.c
        if activation.pieces is None:
            a0 = m * s if c is None else m * s + c
            self.held[step.name] = a0, activation.function(s), m - activation.gate(s)[0], s
            return
        each = [t.expand_as(s) for t in gates.breaks]
        slope, intercept = _moved(activation.pieces, s, each)
        # a sample that lies on its break may have the piece above it
        rest = (m - slope) * s - intercept
        self.held[step.name] = (rest if c is None else rest + c, *each)

    def hold_maximum(self, step: Step, positions: Held) -> None:
        self.held[step.name] = ()

    def replay(self, step: Step, s: Tensor) -> Tensor:
        """The output a0 + psi(s) - psi(s0) of a gate step; at s = s0 it is a0 without rounding."""
        operation = gated(step)
        if step.kind != ACTIVATION:
            return operation.replay(step, s, operation.hold(step, s.detach()))
        activation = step.activation()
        held = [part for part in self.held[step.name] if part is not None]  # all of them: see `hold_activation`
        if activation.pieces is None:
            a0, phi0, steeper, s0 = held
            return a0 + (activation.function(s) - phi0) + steeper * (s - s0)
        intercept, *breaks = held
        m, c = _moved(activation.pieces, s.detach(), breaks)
        return m * s + (c + intercept)


class Moving(Coupled):
    """Coupled gates with the breaks between them."""

    name = "moving"
    tape = MovingTape

    def draw_pieces(
        self, s: Tensor, probabilities: Tensor, breaks: Sequence[float], generator: torch.Generator
    ) -> tuple[Tensor, Sequence[Tensor]]:
        ranked = rank(s, probabilities, generator)
        moved = [_break(ranked.ordered, count, b) for count, b in zip(ranked.counts, breaks, strict=True)]
        return ranked.piece, moved


def _moved(pieces: Pieces, s: Tensor, breaks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Slope and intercept at s of the continuous function through 0 with the slopes of `pieces` and other breaks."""
    slope, intercept = torch.full_like(s, pieces.slopes[0]), torch.zeros_like(s)
    for t, before, after in zip(breaks, pieces.slopes, pieces.slopes[1:], strict=False):
        change = torch.gt(s, t, out=torch.empty_like(s)).mul_(after - before)
        slope += change
        intercept -= change * t
    return slope, intercept


def _break(ordered: Tensor, count: Tensor, original: float) -> Tensor:
    """Break (U,) halfway between the count-th largest of the sorted samples (U, n) and the next.

    With no sample on one side: `original` or the outermost sample, whichever is farther out.
    """
    n = ordered.shape[1]
    inner = count.clamp(1, max(n - 1, 1))
    over = ordered.gather(1, (n - inner)[:, None])[:, 0]
    under = ordered.gather(1, (n - inner - 1).clamp(min=0)[:, None])[:, 0]
    middle = (over + under) / 2
    closed = ordered[:, -1].clamp(min=original)
    opened = ordered[:, 0].clamp(max=original)
    return torch.where(count == 0, closed, torch.where(count == n, opened, middle))
