"""LAFTR by samples, for every traced network: pseudo-inputs pushed forward under gates that the reference decides.

Draw inputs of a component, run the graph under the reference theta0 with simulated gates that a tape records, then
under other weights theta1 by that tape.  Under theta0 the gates are
    independent   draws of the recorded law (Dhawan et al., ICML 2023)
    coupled       within the batch of samples, unit i is open for the fraction mu_i with the largest simulated s0: the
                  probabilities are met, and the correlations come from the simulated signal
and under theta1
    fixed         those of theta0, so that a1 = a0 + m (s1 - s0): LAFTR, linear in the change of the signal
    moving        a1 = a0 + psi(s1) - psi(s0), where psi is the activation with its breaks b_j moved to where the
                  coupled gates of theta0 change, t_j.  To first order in s1 - s0 this is LAFTR, its gates still have
                  the recorded probabilities at theta0, and a unit that the change carries over its break switches.
                  The moved break stays between the samples of theta0 on either side; where none is on the other side,
                  it is b_j or the outermost sample, whichever is farther out.
A smooth activation has no pieces: its coupled slopes m and intercepts c are those at the simulated s0, brought to the
recorded E[m], E[m^2], E[c], E[m c], E[c^2], and psi(s) = phi(s) + (m - phi'(s0)) s.  (Three regressions with GELU and
with tanh, K of 1 and 16: the median |log ratio| to the exact distance is .069, with psi = phi and without E[m c] .092.)
A maximum keeps the position that theta0's took, or, moving, takes its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from fsdtool.network.activations import Pieces
from fsdtool.network.graph import GateRule, Graph, Parameters, Step
from fsdtool.network.operations.base import ACTIVATION, gated
from fsdtool.statistics.component_laws import GateStatistics, Statistics
from fsdtool.util.memory import BatchSize, undrawn

COUPLED, INDEPENDENT, MOVING = "coupled", "independent", "moving"
BATCH_UNITS = 2**25  # scalars of all steps held per batch of pseudo-samples
SMALLEST_BATCH = 64
FEWEST = 8  # pseudo-samples of a batch that memory has halved: gates of fewer have no ranks to speak of

T = TypeVar("T")


@dataclass
class Tape:
    """The gates of one run, for runs under other weights: by step, what a replay needs of each example.

    An activation holds its slope m and intercept c (None: zero), a maximum its position: what its operation replays.
    """

    held: dict[str, tuple[Tensor | None, ...]] = field(default_factory=dict)

    def replay(self, step: Step, s: Tensor) -> Tensor:
        """The output of a gate step for the signal s; linear in s."""
        return gated(step).replay(step, s, self.held[step.name])

    def select(self, rows: Tensor) -> Tape:
        """The gates of some of the examples."""
        return type(self)({name: tuple(_some(part, rows) for part in parts) for name, parts in self.held.items()})

    @classmethod
    def concatenate(cls, tapes: Sequence[Tape]) -> Tape:
        """The gates of several batches as of one."""
        columns = {name: zip(*(tape.held[name] for tape in tapes), strict=True) for name in tapes[0].held}
        return cls({name: tuple(_joined(parts) for parts in column) for name, column in columns.items()})


class MovingTape(Tape):
    """Gates that switch where the replayed signal passes their moved breaks t.

    A piecewise linear activation with slopes m_j holds the intercepts that continue a0 from the piece of theta0, and
    its breaks t_j; a smooth one holds a0, phi(s0), m - phi'(s0) and s0; a maximum nothing.
    """

    def replay(self, step: Step, s: Tensor) -> Tensor:
        """The output a0 + psi(s) - psi(s0) of a gate step; at s = s0 it is a0 without rounding."""
        operation = gated(step)
        if step.kind != ACTIVATION:
            return operation.replay(step, s, operation.hold(step, s.detach()))
        activation = step.activation()
        held = [part for part in self.held[step.name] if part is not None]  # all of them: see `record`
        if activation.pieces is None:
            a0, phi0, steeper, s0 = held
            return a0 + (activation.function(s) - phi0) + steeper * (s - s0)
        intercept, *breaks = held
        m, c = _moved(activation.pieces, s.detach(), breaks)
        return m * s + (c + intercept)

    def record(self, step: Step, s: Tensor, m: Tensor, c: Tensor | None, breaks: Sequence[Tensor]) -> None:
        """Hold what replays need, of the run that had the signal s, slopes m and intercepts c, and breaks (...)."""
        activation = step.activation()
        if activation.pieces is None:
            a0 = m * s if c is None else m * s + c
            self.held[step.name] = a0, activation.function(s), m - activation.gate(s)[0], s
            return
        each = [t.expand_as(s) for t in breaks]
        slope, intercept = _moved(activation.pieces, s, each)
        # a sample that lies on its break may have the piece above it
        rest = (m - slope) * s - intercept
        self.held[step.name] = (rest if c is None else rest + c, *each)


def _moved(pieces: Pieces, s: Tensor, breaks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Slope and intercept at s of the continuous function through 0 with the slopes of `pieces` and other breaks."""
    slope, intercept = torch.full_like(s, pieces.slopes[0]), torch.zeros_like(s)
    for t, before, after in zip(breaks, pieces.slopes, pieces.slopes[1:], strict=False):
        change = torch.gt(s, t, out=torch.empty_like(s)).mul_(after - before)
        slope += change
        intercept -= change * t
    return slope, intercept


def _some(part: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if part is None else part[rows]


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    return None if parts[0] is None else torch.cat([part for part in parts if part is not None])


class Simulation:
    """Pseudo-samples of the summary's components on one graph under the reference weights."""

    def __init__(
        self,
        graph: Graph,
        reference: Parameters,
        statistics: Statistics,
        *,
        gates: str = COUPLED,
        seed: int = 0,
        device: torch.device | None = None,
    ):
        device = device or torch.device("cpu")
        self.graph = graph
        self.reference = reference
        self.statistics = statistics.to(device, torch.float32)
        self.coupled, self.moving = gates in (COUPLED, MOVING), gates == MOVING
        self.generator = torch.Generator(device).manual_seed(seed)
        self._index = {step.name: i for i, step in enumerate(graph.steps)}

    def inputs_and_gates(self, component: int, count: int) -> tuple[Tensor, GateRule, Tape]:
        """`count` inputs (count, ...) of a component, the rule that simulates gates, the tape it fills."""
        x = self.statistics.input.sample(component, count, self.generator).reshape(-1, *self.graph.input_shape)
        tape = MovingTape() if self.moving else Tape()

        def gate(step: Step, s: Tensor) -> Tensor:
            operation = gated(step)
            if step.kind != ACTIVATION:  # no law of its gates is recorded: the simulated signal decides them
                held = operation.hold(step, s.detach())
                tape.held[step.name] = () if self.moving else held
                return operation.replay(step, s, held)
            statistics = self.statistics.gates[self._index[step.name]]
            m, c, breaks = self._gates(step, s.detach(), statistics, component)
            if isinstance(tape, MovingTape):
                tape.record(step, s.detach(), m, c, breaks)
            else:
                tape.held[step.name] = m, c
            return operation.replay(step, s, (m, c))

        return x, gate, tape

    def batches(self, samples: int, compute: Callable[[int, int], T]) -> Iterator[T]:
        """compute(component, count) of batches that draw about `samples` in all, in proportion to the weights pi.

        At least two of each component; a batch is as large as memory allows, since a coupled batch resolves
        gate probabilities to one over its size.  Where memory runs out the batch is drawn again, half as large; a
        compute that fails must leave nothing behind.
        """
        size = BatchSize(max(BATCH_UNITS // sum(step.units for step in self.graph.steps), SMALLEST_BATCH), FEWEST)
        for k, weight in enumerate(self.statistics.weight.tolist()):
            draw = undrawn(self.generator, partial(_of_length, compute, k))
            yield from size.parts(max(round(weight * samples), 2), draw, even=True)

    def forward(self, component: int, count: int) -> tuple[Tensor, Tensor, Tape]:
        """`count` pseudo-samples of a component: inputs (count, ...), logits (count, O), their gates."""
        x, gate, tape = self.inputs_and_gates(component, count)
        with torch.no_grad():
            return x, self.graph.run(self.reference, x, gate=gate), tape

    def _gates(
        self, step: Step, s: Tensor, gates: GateStatistics, k: int
    ) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """Slope, intercept (None: zero) and, of moving gates, breaks (each of one example's shape) for s (n, ...)."""
        flat = s.flatten(1)
        breaks: list[Tensor] = []
        if gates.pieces is None:
            assert gates.moments is not None
            moments = gates.moments[k]
            m, c = self._match(step, flat, moments) if self.coupled else self._draw_moments(flat, moments)
        else:
            assert gates.probabilities is not None
            probabilities = gates.probabilities[k]
            if self.coupled:
                piece, breaks = self._rank(flat, probabilities, gates.pieces.breaks if self.moving else ())
                breaks = [t.reshape(s.shape[1:]) for t in breaks]
            else:
                piece = self._draw(flat, probabilities)
            if gates.pieces.slopes == (0.0, 1.0):
                return piece.to(s.dtype).reshape(s.shape), None, breaks
            m, c = gates.pieces.gate(piece.long(), s.dtype)
            if gates.pieces.through_origin:
                return m.reshape(s.shape), None, breaks
        return m.reshape(s.shape), c.reshape(s.shape), breaks

    def _rank(self, s: Tensor, probabilities: Tensor, breaks: Sequence[float]) -> tuple[Tensor, list[Tensor]]:
        """Pieces (n, U), as floats, of s (n, U): each for its fraction of the samples, in the order of s.

        Fractions of a sample are rounded up or down at random, which keeps the probabilities unbiased.  The second
        result is where each of the activation's `breaks` has moved, (U,) each.
        """
        n = s.shape[0]
        above = probabilities.flip(0).cumsum(0).flip(0).clamp(0, 1)  # P(piece >= j + 1): (J - 1, U)
        rounding = torch.rand(s.shape[1], generator=self.generator, device=s.device)
        # One rounding for all pieces of a unit, so that the counts never increase with j.
        counts = (above * n + rounding).floor().long().clamp(max=n)
        ordered = _sort_samples(s)  # (U, n)
        piece = torch.zeros_like(s)
        holds = torch.empty_like(s)  # as numbers: casting a mask, or multiplying by one, is much slower
        thresholds, tied = [], torch.zeros_like(s[0], dtype=torch.bool)
        for count in counts:
            thresholds.append(_threshold(ordered, count))
            piece += torch.ge(s, thresholds[-1], out=holds)
            tied |= holds.sum(0) > count
        if tied.any():
            piece[:, tied] = self._untie(s[:, tied], [t[tied] for t in thresholds], counts[:, tied])
        return piece, [_break(ordered, count, b) for count, b in zip(counts, breaks, strict=False)]

    def _untie(self, s: Tensor, thresholds: list[Tensor], counts: Tensor) -> Tensor:
        """Pieces (n, U) where samples equal the threshold: which of those it takes is drawn once for all pieces."""
        draw = torch.rand(s.shape, generator=self.generator, device=s.device)
        piece = torch.zeros_like(s)
        for threshold, count in zip(thresholds, counts, strict=True):
            key = torch.where(s == threshold, draw, torch.where(s > threshold, 2.0, -1.0))
            piece += (key >= _threshold(_sort_samples(key), count)).to(s.dtype)
        return piece

    def _draw(self, s: Tensor, probabilities: Tensor) -> Tensor:
        """Pieces (n, U) drawn independently of everything."""
        uniform = torch.rand(s.shape, generator=self.generator, device=s.device)
        above = probabilities.flip(0).cumsum(0)  # P(piece >= J - 1), ..., P(piece >= 1)
        return sum((uniform < fraction).long() for fraction in above)

    def _match(self, step: Step, s: Tensor, moments: Tensor) -> tuple[Tensor, Tensor]:
        """Slope and intercept (n, U) at the simulated s, brought to the recorded first and second moments.

        m is shifted and scaled; of c the part along m, and the rest of it, are shifted and scaled each.
        """
        m, c = step.activation().gate(s)
        m_mean, m_square, c_mean, mc, c_square = moments
        m = _standardize(m, m_mean, m_square)
        variance, covariance = (m_square - m_mean * m_mean).clamp(min=0), mc - m_mean * c_mean
        along = _quotient(covariance, variance) * (m - m_mean)
        centred, found = c - c.mean(0), m - m.mean(0)
        rest = centred - _quotient((centred * found).mean(0), found.square().mean(0)) * found
        left = (c_square - c_mean * c_mean - _quotient(covariance, variance) * covariance).clamp(min=0)
        return m, c_mean + along + _standardize(rest, torch.zeros_like(left), left)

    def _draw_moments(self, s: Tensor, moments: Tensor) -> tuple[Tensor, Tensor]:
        """Slope and intercept drawn per unit with the recorded first and second moments."""
        m, m2, c, mc, c2 = moments
        u, v = (torch.randn(s.shape, generator=self.generator, device=s.device) for _ in range(2))
        sd = (m2 - m * m).clamp(min=0).sqrt()
        along = torch.where(sd > 0, (mc - m * c) / sd.clamp(min=1e-12), torch.zeros_like(sd))
        across = (c2 - c * c - along * along).clamp(min=0).sqrt()
        return m + sd * u, c + along * u + across * v


def _of_length(compute: Callable[[int, int], T], component: int, rows: slice) -> T:
    return compute(component, rows.stop - rows.start)


def _threshold(ordered: Tensor, count: Tensor) -> Tensor:
    """The count-th largest (U,) of the sorted samples (U, n); infinity for a count of zero."""
    n = ordered.shape[1]
    largest = ordered.gather(1, (n - count).clamp(max=n - 1)[:, None])[:, 0]
    return torch.where(count > 0, largest, torch.inf)


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


def _sort_samples(s: Tensor) -> Tensor:
    """s (n, U) sorted over the samples: (U, n).  numpy's vectorized sort is the faster one on the CPU."""
    if s.device.type == "cpu":
        return torch.from_numpy(np.sort(s.T.contiguous().numpy(), axis=1))
    return s.T.contiguous().sort(1).values


def _quotient(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and zero where b is nothing to speak of."""
    return torch.where(b > 1e-12, a / b.clamp(min=1e-12), torch.zeros_like(a))


def _standardize(value: Tensor, mean: Tensor, second: Tensor) -> Tensor:
    found, spread = value.mean(0), value.std(0, unbiased=False)
    target = (second - mean * mean).clamp(min=0).sqrt()
    return mean + (value - found) * torch.where(spread > 0, target / spread.clamp(min=1e-12), torch.zeros_like(spread))
