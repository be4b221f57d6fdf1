"""Curvature: products, the Lanczos process, quadrature with intervals, row norms and the exact Gauss-Newton spectrum."""

from prunelimit.curvature.lanczos import LanczosRun, Tridiagonal, lanczos
from prunelimit.curvature.operator import HessianOperator
from prunelimit.curvature.quadrature import Spectrum, gauss_rule, radau_rule, spectrum

__all__ = ["HessianOperator", "LanczosRun", "Spectrum", "Tridiagonal", "gauss_rule", "lanczos", "radau_rule", "spectrum"]
