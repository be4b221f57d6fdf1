"""Curvature: products, the Lanczos process, quadrature with intervals, row norms and the exact Gauss-Newton spectrum."""

from prunelimit.curvature.ggn import GGNSpectrum, ggn_eigenvalues
from prunelimit.curvature.lanczos import LanczosRun, Tridiagonal, lanczos
from prunelimit.curvature.operator import GGNOperator, HessianOperator
from prunelimit.curvature.quadrature import Spectrum, gauss_rule, radau_rule
from prunelimit.curvature.reduce import reduce_mlp
from prunelimit.curvature.rows import RowNorms, row_norms
from prunelimit.curvature.slq import spectrum

__all__ = [
    "GGNOperator",
    "GGNSpectrum",
    "HessianOperator",
    "LanczosRun",
    "RowNorms",
    "Spectrum",
    "Tridiagonal",
    "gauss_rule",
    "ggn_eigenvalues",
    "lanczos",
    "radau_rule",
    "reduce_mlp",
    "row_norms",
    "spectrum",
]
