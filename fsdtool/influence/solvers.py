"""How the queries' gradients are solved with the curvature: the names of the solvers, without torch.

kronecker  layer by layer, with the Kronecker curvature
cg         with the whole matrix, the layers' cross terms included, by conjugate gradients
pbo        layer by layer; then the examples listed are measured by the proximal Bregman response
"""

from __future__ import annotations

KRONECKER, CG, PBO = "kronecker", "cg", "pbo"
SOLVERS = (KRONECKER, CG, PBO)
