"""The loss landscape between and around networks: mode connectivity, similarity, sharpness, and the three regimes."""

from prunelimit.landscape.children import Pair, measure_pair, prune_parent, regime_parameters
from prunelimit.landscape.connectivity import (
    Connectivity,
    bezier_connectivity,
    bezier_middle,
    bezier_point,
    interpolate,
    linear_mode_connectivity,
    linear_path,
    reestimate_statistics,
)
from prunelimit.landscape.regimes import Thresholds, classify_regime, median_cka, sensitivity
from prunelimit.landscape.sharpness import Eigenvalue, Sharpness, hessian_trace, measure_sharpness, top_eigenvalue
from prunelimit.landscape.similarity import linear_cka, output_similarity, representations, unbiased_cka

__all__ = [
    "Connectivity",
    "Eigenvalue",
    "Pair",
    "Sharpness",
    "Thresholds",
    "bezier_connectivity",
    "bezier_middle",
    "bezier_point",
    "classify_regime",
    "hessian_trace",
    "interpolate",
    "linear_cka",
    "linear_mode_connectivity",
    "linear_path",
    "measure_pair",
    "measure_sharpness",
    "median_cka",
    "output_similarity",
    "prune_parent",
    "reestimate_statistics",
    "regime_parameters",
    "representations",
    "sensitivity",
    "top_eigenvalue",
    "unbiased_cka",
]
