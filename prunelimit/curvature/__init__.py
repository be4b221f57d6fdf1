"""Curvature: Hessian products, the Lanczos process and quadrature with intervals."""

from prunelimit.curvature.lanczos import Tridiagonal, lanczos
from prunelimit.curvature.operator import HessianOperator
from prunelimit.curvature.quadrature import Spectrum, gauss_rule, radau_rule, spectrum

__all__ = ["HessianOperator", "Spectrum", "Tridiagonal", "gauss_rule", "lanczos", "radau_rule", "spectrum"]
