"""Where a curvature comes from: the names of the two sources, without torch.

simulated  gradients of pseudo-samples of the summary's statistics
measured   gradients of the training data
"""

from __future__ import annotations

SIMULATED, MEASURED = "simulated", "measured"
SOURCES = (SIMULATED, MEASURED)
