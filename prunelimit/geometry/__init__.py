"""Convex geometry: cones and their statistical dimension, Gaussian width, the kinematic formula, random subspaces."""

from prunelimit.geometry.cones import CircularCone, Cone, L1DescentCone, Orthant, PolarCone, Subspace
from prunelimit.geometry.ellipsoid import (
    EllipsoidCone,
    confocal_dimension,
    confocal_distance,
    ellipsoid_dimension,
    seen_from,
)
from prunelimit.geometry.intersection import first_meeting, meets
from prunelimit.geometry.kinematic import kinematic_bound, meeting_probability, transition_window
from prunelimit.geometry.sampling import random_direction, random_rotation, random_subspace
from prunelimit.geometry.width import (
    Estimate,
    gaussian_width_ellipsoid,
    projected_squares,
    projected_width,
    statistical_dimension,
)

__all__ = [
    "CircularCone",
    "Cone",
    "EllipsoidCone",
    "Estimate",
    "L1DescentCone",
    "Orthant",
    "PolarCone",
    "Subspace",
    "confocal_dimension",
    "confocal_distance",
    "ellipsoid_dimension",
    "first_meeting",
    "gaussian_width_ellipsoid",
    "kinematic_bound",
    "meeting_probability",
    "meets",
    "projected_squares",
    "projected_width",
    "random_direction",
    "random_rotation",
    "random_subspace",
    "seen_from",
    "statistical_dimension",
    "transition_window",
]
