"""How far to trust each layer on labels that no layer has learned: by how well it foretells them.

On the summarized data the outputs may have memorised the labels, and layers are weighed by how they agree
(fsdtool.verdict).  New labels no layer has seen, so that they are themselves the measure: the units u_l >= 0 and the
share rho of wrong labels, which fall evenly on the other classes, are those under which the labels are likeliest,

    sum_i log sum_t softmax_t(sum_l u_l E_l(t)) M[t, y_i],      M = 1 - rho for t = y_i, else rho / (classes - 1).

So the outputs count by their worth out of sample; a layer that adds nothing to them has no weight (stacking, Wolpert
1992).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fsdtool.agreement import margins_of

SAMPLE = 16384
STEPS = 100
FIRST = 0.1  # unit of a layer at the start, in spreads of its margins; that of the outputs is 1
FIRST_RATE = 0.05
LEAST_WEIGHT = 1e-3


def stacked(evidence: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors (L,) float32 for evidence (N, L, T), relative to the given label in column 0, and weights in sum 1.

    The outputs are the last layer.
    """
    sample = evidence[:: -(-len(evidence) // SAMPLE)]
    spread = np.maximum(margins_of(sample).std(0), 1e-6)
    scaled = torch.from_numpy(sample.astype(np.float32) / spread[:, None]).double()
    start = torch.full((len(spread) + 1,), FIRST, dtype=torch.float64)
    start[-2] = max(float(spread[-1]), FIRST)
    start[-1] = FIRST_RATE / (1 - FIRST_RATE)
    logs = start.log().requires_grad_()
    optimizer = torch.optim.LBFGS([logs], max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -_likelihood(scaled, logs[:-1].exp(), torch.sigmoid(logs[-1]), classes)
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    units = logs[:-1].detach().exp().numpy()
    units[units < LEAST_WEIGHT * units.sum()] = 0.0
    return (units / spread).astype(np.float32), (units / units.sum()).astype(np.float32)


def _likelihood(evidence: Tensor, units: Tensor, rate: Tensor, classes: int) -> Tensor:
    """Mean log-likelihood of the labels in column 0 of evidence (n, L, T)."""
    p = torch.softmax(torch.einsum("nlt,l->nt", evidence, units), 1)[:, 0]
    return torch.log(p * (1 - rate) + (1 - p) * rate / max(classes - 1, 1)).mean()
