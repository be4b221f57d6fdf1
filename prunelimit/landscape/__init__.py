"""The loss landscape between and around networks: mode connectivity, similarity, sharpness, and the three regimes."""

from prunelimit.landscape.advice import (
    RULES,
    Choice,
    Direction,
    Walk,
    choose_model,
    follow_advice,
    raise_or_lower,
    tune_rho,
)
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
from prunelimit.landscape.parents import Measurement, Parent, TrainedParent
from prunelimit.landscape.regimes import Thresholds, classify_regime, median_cka, sensitivity
from prunelimit.landscape.sharpness import Eigenvalue, Sharpness, hessian_trace, measure_sharpness, top_eigenvalue
from prunelimit.landscape.similarity import linear_cka, output_similarity, representations, unbiased_cka

__all__ = [
    "RULES",
    "Choice",
    "Connectivity",
    "Direction",
    "Eigenvalue",
    "Measurement",
    "Pair",
    "Parent",
    "Sharpness",
    "Thresholds",
    "TrainedParent",
    "Walk",
    "bezier_connectivity",
    "bezier_middle",
    "bezier_point",
    "choose_model",
    "classify_regime",
    "follow_advice",
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
    "raise_or_lower",
    "reestimate_statistics",
    "regime_parameters",
    "representations",
    "sensitivity",
    "top_eigenvalue",
    "tune_rho",
    "unbiased_cka",
]
