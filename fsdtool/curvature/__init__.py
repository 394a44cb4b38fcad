"""The Gauss-Newton matrix of the function space distance: by Kronecker eigenbases with corrected eigenvalues for each
weight (EKFAC), or whole, in products with vectors and solves by conjugate gradients.
"""

from __future__ import annotations

from fsdtool.util.lazy import public

__getattr__, __all__ = public(
    __name__, BlockCurvature="ekfac", GaussNewton="gauss_newton", ConjugateGradients="gauss_newton"
)
