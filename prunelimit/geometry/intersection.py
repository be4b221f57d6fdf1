"""Does a cone meet a subspace outside the origin? In closed form where there is one, otherwise by a small convex program."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import optimize

from prunelimit.errors import PruneLimitError, unknown_name
from prunelimit.geometry.checks import orthonormal
from prunelimit.geometry.cones import CircularCone, Cone, L1DescentCone, Orthant, Subspace
from prunelimit.geometry.ellipsoid import EllipsoidCone

#: Largest residual that counts as zero. A random subspace passes a cone at a distance that is far larger.
TOLERANCE = 1e-9


def _rays_and_lines(cone: Orthant | L1DescentCone) -> tuple[np.ndarray, np.ndarray]:
    """Generators of a polyhedral cone: ``(D, g)`` rays that no line of it holds, and an orthonormal basis of its lines."""
    if isinstance(cone, Orthant):
        return np.eye(cone.ambient), np.zeros((cone.ambient, 0))
    inward = -cone.signs[:, None] / cone.nonzero  # the norm falls at rate one
    off = np.eye(cone.ambient)[:, ~cone.support]
    rays = np.hstack([inward + off, inward - off]) if off.size else inward
    full = np.linalg.qr(np.hstack([cone.signs[:, None], np.eye(cone.ambient)[:, cone.support]]))[0]
    return rays, full[:, 1 : cone.nonzero]


def _meets_polyhedral(cone: Orthant | L1DescentCone, basis: np.ndarray, solver: str) -> bool:
    """Look for weights of the rays, not negative and of sum one, that end in the span of basis and lines."""
    rays, lines = _rays_and_lines(cone)
    joint = np.hstack([basis, lines])
    if joint.shape[1] > cone.ambient:
        return True
    factor, triangle = np.linalg.qr(joint, mode="complete")
    # Columns are dependent if and only if the triangle is singular: then the subspace meets the lines themselves.
    if joint.shape[1] == cone.ambient or np.abs(np.diagonal(triangle)).min() < TOLERANCE:
        return True
    matrix = np.vstack([factor[:, joint.shape[1] :].T @ rays, np.ones(rays.shape[1])])
    target = np.zeros(len(matrix))
    target[-1] = 1.0
    if solver == "nnls":
        return bool(optimize.nnls(matrix, target, maxiter=100 * matrix.shape[1])[1] < TOLERANCE)
    found = optimize.linprog(np.zeros(matrix.shape[1]), A_eq=matrix, b_eq=target, bounds=(0, None), method="highs")
    if found.status not in (0, 2):
        raise PruneLimitError(f"solver='highs' gave up ({found.message}): try solver='nnls'.")
    return bool(found.status == 0)


def meets(cone: Cone, basis: Any, solver: str = "nnls") -> bool:
    r"""Say whether a cone and a subspace share more than the origin.

    Subspace: by the rank of both bases together. Circular cone: by the angle between axis and subspace. Ellipsoid cone: the
    least value over the subspace of the quadratic form whose sublevel set is the ellipsoid, a least-squares problem.
    Orthant and descent cone of the l1 norm: a convex combination of generators that lies in the subspace.

    Args:
        cone: The cone.
        basis: ``(D, k)`` orthonormal basis of the subspace; k may be zero.
        solver: For the orthant and the descent cone: ``"nnls"`` (non-negative least squares, an active-set method) or
            ``"highs"`` (the linear program by HiGHS, some ten times slower).

    Returns:
        Whether they meet.

    Raises:
        PruneLimitError: If there is no test for this kind of cone, the solver is unknown or gives up.

    Examples:
        >>> from prunelimit.geometry import Orthant
        >>> meets(Orthant(2), [[0.6], [0.8]]), meets(Orthant(2), [[0.6], [-0.8]])
        (True, False)
    """
    if solver not in ("nnls", "highs"):
        raise unknown_name("solver", solver, ("nnls", "highs"))
    basis = orthonormal("basis", basis, cone.ambient)
    if basis.shape[1] == 0:
        return False
    if isinstance(cone, Subspace):
        joint = np.hstack([cone.basis, basis])
        return bool(np.linalg.matrix_rank(joint, tol=TOLERANCE) < joint.shape[1])
    if isinstance(cone, (CircularCone, EllipsoidCone)):
        return first_meeting(cone, basis) is not None
    if isinstance(cone, (Orthant, L1DescentCone)):
        return _meets_polyhedral(cone, basis, solver)
    raise PruneLimitError(
        f"cone={type(cone).__name__} has no intersection test: use a subspace, orthant, circular, ellipsoid or l1 cone."
    )


def first_meeting(cone: Cone, basis: Any) -> int | None:
    """Find how many leading columns of a basis it takes until their span meets the cone.

    For a random rotation every leading part spans a uniformly random subspace, and each contains those before it. So one
    rotation answers for all dimensions at once, and the distribution function of the answer is the probability of meeting.

    Args:
        cone: The cone.
        basis: ``(D, k)`` with orthonormal columns.

    Returns:
        The least number of columns, or ``None`` if even all of them miss.
    """
    basis = orthonormal("basis", basis, cone.ambient)
    if isinstance(cone, CircularCone):
        # The largest squared cosine of an angle between the axis and a vector of the span, which holds both signs of it.
        reached = np.cumsum((basis.T @ cone.axis) ** 2) >= math.cos(cone.angle) ** 2 - TOLERANCE
    elif isinstance(cone, EllipsoidCone):
        # In units of the half-axes the ellipsoid is a unit ball: how near does p + span come to its centre?
        scaled, center = basis / cone.half_axes[:, None], cone.center_offset / cone.half_axes
        gained = np.cumsum((np.linalg.qr(scaled)[0].T @ center) ** 2)
        reached = gained >= (center @ center - 1) * (1 - TOLERANCE)
    else:
        low, high = 0, basis.shape[1] + 1  # misses with low columns; meets with high, or there are not so many
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if meets(cone, basis[:, :middle]) else (middle, high)
        return high if high <= basis.shape[1] else None
    return int(reached.argmax()) + 1 if reached.any() else None
