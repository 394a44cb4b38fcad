"""Coupled gates: in a batch of samples unit i is open for the fraction mu_i with the largest simulated signal s0.

The recorded probabilities are met exactly, and the correlations between gates come from the simulated signal.  A smooth
activation has no pieces: its slopes m and intercepts c are those at s0, brought to the recorded E[m], E[m^2], E[c],
E[m c], E[c^2].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fsdtool.laftr.gates.policy import GatePolicy
from fsdtool.network.activations import Activation
from fsdtool.network.tape import Tape

NOTHING = 1e-12  # a variance or spread below it counts as zero


@dataclass(frozen=True)
class Ranked:
    """piece (n, U), as floats; ordered: the signals sorted over the samples (U, n); counts (J - 1, U): how many samples
    are on piece j + 1 or above."""

    piece: Tensor
    ordered: Tensor
    counts: Tensor


class Coupled(GatePolicy):
    """Gates in the order of the signal."""

    name = "coupled"
    tape = Tape

    def draw_pieces(
        self, s: Tensor, probabilities: Tensor, breaks: Sequence[float], generator: torch.Generator
    ) -> tuple[Tensor, Sequence[Tensor]]:
        return rank(s, probabilities, generator).piece, ()

    def draw_slopes(
        self, activation: Activation, s: Tensor, moments: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Those at s, brought to the recorded moments; nothing is drawn.

        m is shifted and scaled; of c the part along m, and the rest of it, are shifted and scaled each.
        """
        m, c = activation.gate(s)
        m_mean, m_square, c_mean, mc, c_square = moments
        m = _standardize(m, m_mean, m_square)
        variance, covariance = (m_square - m_mean * m_mean).clamp(min=0), mc - m_mean * c_mean
        along = _quotient(covariance, variance) * (m - m_mean)
        centred, found = c - c.mean(0), m - m.mean(0)
        rest = centred - _quotient((centred * found).mean(0), found.square().mean(0)) * found
        left = (c_square - c_mean * c_mean - _quotient(covariance, variance) * covariance).clamp(min=0)
        return m, c_mean + along + _standardize(rest, torch.zeros_like(left), left)


def rank(s: Tensor, probabilities: Tensor, generator: torch.Generator) -> Ranked:
    """Each piece for its fraction of the samples, in the order of the signals s (n, U); probabilities (J - 1, U).

    Fractions of a sample are rounded up or down at random, which keeps the probabilities unbiased.
    """
    n = s.shape[0]
    above = probabilities.flip(0).cumsum(0).flip(0).clamp(0, 1)  # P(piece >= j + 1): (J - 1, U)
    rounding = torch.rand(s.shape[1], generator=generator, device=s.device)
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
        piece[:, tied] = _untie(s[:, tied], [t[tied] for t in thresholds], counts[:, tied], generator)
    return Ranked(piece, ordered, counts)


def _untie(s: Tensor, thresholds: list[Tensor], counts: Tensor, generator: torch.Generator) -> Tensor:
    """Pieces (n, U) where samples equal the threshold: which of those it takes is drawn once for all pieces."""
    draw = torch.rand(s.shape, generator=generator, device=s.device)
    piece = torch.zeros_like(s)
    for threshold, count in zip(thresholds, counts, strict=True):
        key = torch.where(s == threshold, draw, torch.where(s > threshold, 2.0, -1.0))
        piece += (key >= _threshold(_sort_samples(key), count)).to(s.dtype)
    return piece


def _threshold(ordered: Tensor, count: Tensor) -> Tensor:
    """The count-th largest (U,) of the sorted samples (U, n); infinity for a count of zero."""
    n = ordered.shape[1]
    largest = ordered.gather(1, (n - count).clamp(max=n - 1)[:, None])[:, 0]
    return torch.where(count > 0, largest, torch.inf)


def _sort_samples(s: Tensor) -> Tensor:
    """s (n, U) sorted over the samples: (U, n).  numpy's vectorized sort is the faster one on the CPU."""
    if s.device.type == "cpu":
        return torch.from_numpy(np.sort(s.T.contiguous().numpy(), axis=1))
    return s.T.contiguous().sort(1).values


def _quotient(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and zero where b is nothing to speak of."""
    return torch.where(b > NOTHING, a / b.clamp(min=NOTHING), torch.zeros_like(a))


def _standardize(value: Tensor, mean: Tensor, second: Tensor) -> Tensor:
    """value (n, U) shifted and scaled to this mean (U,) and second moment (U,)."""
    found, spread = value.mean(0), value.std(0, unbiased=False)
    target = (second - mean * mean).clamp(min=0).sqrt()
    scale = torch.where(spread > 0, target / spread.clamp(min=NOTHING), torch.zeros_like(spread))
    return mean + (value - found) * scale
