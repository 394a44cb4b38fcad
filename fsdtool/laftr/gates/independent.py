"""Independent gates: draws of the recorded law, of each unit and sample for itself (Dhawan et al., ICML 2023).

This is the stochastic model of the closed form.  It breaks the correlation between neighbouring gates, and between a
gate and its own signal.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fsdtool.laftr.gates.policy import GatePolicy
from fsdtool.network.activations import Activation
from fsdtool.network.tape import Tape


class Independent(GatePolicy):
    """Gates that do not look at the signal."""

    name = "independent"
    tape = Tape
    has_closed_form = True

    def draw_pieces(
        self, s: Tensor, probabilities: Tensor, breaks: Sequence[float], generator: torch.Generator
    ) -> tuple[Tensor, Sequence[Tensor]]:
        uniform = torch.rand(s.shape, generator=generator, device=s.device)
        above = probabilities.flip(0).cumsum(0)  # P(piece >= J - 1), ..., P(piece >= 1)
        return sum((uniform < fraction).long() for fraction in above), ()

    def draw_slopes(
        self, activation: Activation, s: Tensor, moments: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Normal m and c with the recorded first and second moments."""
        m, m2, c, mc, c2 = moments
        u, v = (torch.randn(s.shape, generator=generator, device=s.device) for _ in range(2))
        sd = (m2 - m * m).clamp(min=0).sqrt()
        along = torch.where(sd > 0, (mc - m * c) / sd.clamp(min=1e-12), torch.zeros_like(sd))
        across = (c2 - c * c - along * along).clamp(min=0).sqrt()
        return m + sd * u, c + along * u + across * v
