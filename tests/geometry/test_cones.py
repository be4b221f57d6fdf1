"""Projections: nearest points against brute force, and what Moreau's theorem says about every closed convex cone."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

from prunelimit import PruneLimitError
from prunelimit.geometry import (
    CircularCone,
    Cone,
    EllipsoidCone,
    L1DescentCone,
    Orthant,
    Subspace,
    random_direction,
    seen_from,
)


def any_cone(kind: str, total: int, rng: np.random.Generator) -> Cone:
    """A random cone of a kind, edge cases included."""
    if kind == "subspace":
        return Subspace.random(int(rng.integers(0, total + 1)), total, rng)
    if kind == "orthant":
        return Orthant(total)
    if kind == "circular":
        angle = float(rng.choice([0.0, 0.2, 1.0, math.pi / 2]))
        return CircularCone(total, angle, random_direction(total, rng))
    if kind == "l1":
        return L1DescentCone(
            rng.permutation(np.arange(total) < rng.integers(1, total + 1)) * rng.standard_normal(total)
        )
    axes = 10 ** rng.uniform(-3, 0, total)
    direction = str(rng.choice(["random", "isotropic", "flattest", "stiffest"]))
    offset = seen_from(axes, 1.0, direction, rng)
    # From just outside the ellipsoid, where the cone is nearly a half-space, to far away.
    return EllipsoidCone(axes, offset / np.linalg.norm(offset / axes) * (1 + 10 ** rng.uniform(-4, 2)))


KINDS = ("subspace", "orthant", "circular", "l1", "ellipsoid")


@pytest.mark.parametrize("kind", KINDS)
@given(total=st.integers(2, 12), seed=st.integers(0, 2**32 - 1))
def test_moreau(kind: str, total: int, seed: int) -> None:
    """Nearest points of a closed convex cone C: y in C, x - y in the polar, the two perpendicular."""
    rng = np.random.default_rng(seed)
    cone, points = any_cone(kind, total, rng), rng.standard_normal((20, total))
    near = cone.project(points)
    norms = np.linalg.norm(points, axis=1)
    np.testing.assert_allclose(cone.project(near), near, atol=1e-9)  # idempotent
    np.testing.assert_allclose(cone.project(7.5 * points), 7.5 * near, atol=1e-8)  # positively homogeneous
    assert np.all(np.abs(((points - near) * near).sum(axis=1)) < 1e-9 * norms**2)
    others = cone.project(rng.standard_normal((40, total)))
    assert ((points - near) @ others.T).max() <= 1e-9 * norms.max() * np.linalg.norm(others, axis=1).max()
    np.testing.assert_allclose(cone.polar().project(points), points - near)
    assert cone.contains(near, 1e-8).all()
    rest = points - near
    assert cone.polar().contains(rest[np.linalg.norm(rest, axis=1) > 1e-6], 1e-6).all()
    assert cone.polar().polar() is cone


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**32 - 1))
def test_projection_is_non_expansive(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    cone, points = any_cone(kind, 6, rng), rng.standard_normal((20, 6))
    moved = points + rng.choice([1e-7, 1e-3, 1.0]) * rng.standard_normal((20, 6))
    before, after = (
        np.linalg.norm(points - moved, axis=1),
        np.linalg.norm(cone.project(points) - cone.project(moved), axis=1),
    )
    assert np.all(after <= before * (1 + 1e-6) + 1e-14)


def brute_force(cone: Cone, point: np.ndarray) -> float:
    """Least distance to the cone by a general solver that knows nothing but its definition."""
    total = cone.ambient
    if isinstance(cone, EllipsoidCone):  # y = t (c + r v) with |v| <= 1: variables t and w = t v
        r, c = cone.half_axes, cone.center_offset
        constraint = {"type": "ineq", "fun": lambda v: v[0] ** 2 - v[1:] @ v[1:]}
        make, size = (lambda v: v[0] * c + r * v[1:]), total + 1
        start = np.r_[1.0, np.zeros(total)]
        bounds = [(0, None)] + [(None, None)] * total
    else:  # y = p - n with the descent condition on the magnitudes off the support
        s, on = cone.signs, cone.support
        constraint = {
            "type": "ineq",
            "fun": lambda v: -(s * (v[:total] - v[total:]))[on].sum() - (v[:total] + v[total:])[~on].sum(),
        }
        make, size = (lambda v: v[:total] - v[total:]), 2 * total
        start, bounds = np.zeros(size), [(0, None)] * size
    rng, best = np.random.default_rng(0), math.inf
    for attempt in range(6):  # it gets stuck at times, so the best of some starts counts
        found = optimize.minimize(
            lambda v: ((make(v) - point) ** 2).sum(),
            start + (attempt > 0) * np.abs(rng.standard_normal(size)),
            method="SLSQP",
            bounds=bounds,
            constraints=[constraint],
            options={"maxiter": 1000, "ftol": 1e-15},
        )
        if constraint["fun"](found.x) > -1e-9:
            best = min(best, math.sqrt(found.fun))
    return best


@pytest.mark.parametrize("kind", ["ellipsoid", "l1"])
@pytest.mark.parametrize("seed", range(12))
def test_no_solver_finds_a_nearer_point(kind: str, seed: int) -> None:
    rng = np.random.default_rng([seed, 5])
    total = 2 + seed % 4
    if kind == "l1":
        cone: Cone = any_cone(kind, total, rng)
    else:
        axes = 10 ** rng.uniform(-1, 0, total)
        cone = EllipsoidCone(axes, seen_from(axes, 1.2, ["random", "flattest", "stiffest"][seed % 3], rng))
    point = rng.standard_normal(total)
    ours = float(np.linalg.norm(point - cone.project(point)))
    assert ours == pytest.approx(brute_force(cone, point), abs=2e-5)


def test_a_ball_is_seen_as_a_circular_cone() -> None:
    rng = np.random.default_rng(0)
    offset = rng.standard_normal(7)
    radius = 0.6 * np.linalg.norm(offset)
    points = rng.standard_normal((200, 7))
    ball = EllipsoidCone(np.full(7, radius), offset)
    circular = CircularCone(7, math.asin(0.6), offset)
    np.testing.assert_allclose(ball.project(points), circular.project(points), atol=1e-12)
    assert ball.statistical_dimension() == pytest.approx(circular.statistical_dimension())


def test_rays_to_points_of_the_ellipsoid_are_inside_and_others_are_not() -> None:
    rng = np.random.default_rng(1)
    axes = np.geomspace(0.05, 0.8, 9)
    cone = EllipsoidCone(axes, seen_from(axes, 1.0, "random", rng))
    unit = rng.standard_normal((300, 9))
    unit /= np.linalg.norm(unit, axis=1)[:, None]
    surface = cone.center_offset + axes * unit
    assert cone.contains(rng.uniform(0.1, 3, (300, 1)) * surface).all()
    assert not cone.contains(-surface).any()


def test_tangents_of_an_ellipse_touch_it() -> None:
    cone = EllipsoidCone([0.9, 0.3], [1.1, 0.8])
    for ray in cone.edges():
        # |t ray - c|^2 in units of the half-axes has its least value at exactly one.
        scaled, center = ray / cone.half_axes, cone.center_offset / cone.half_axes
        assert center @ center - (scaled @ center) ** 2 / (scaled @ scaled) == pytest.approx(1)
        assert ray @ cone.center_offset > 0


def test_a_single_vector_keeps_its_shape_and_batches_agree() -> None:
    axes = np.geomspace(0.1, 1, 5)
    cone = EllipsoidCone(axes, seen_from(axes, 1.5))
    points = np.random.default_rng(0).standard_normal((6, 5))
    assert cone.project(points[0]).shape == (5,)
    assert isinstance(cone.contains(points[0]), bool)
    np.testing.assert_array_equal(np.stack([cone.project(p) for p in points]), cone.project(points))


@pytest.mark.parametrize("spread", [1e-6, 1e6])
def test_half_axes_over_twelve_decades(spread: float) -> None:
    """Condition numbers at which a dense eigendecomposition has no digits left for the small half-axes."""
    axes = np.geomspace(spread, 1, 25)
    offset = seen_from(axes, 1.0, "random", 3)
    offset *= 1.5 / np.linalg.norm(offset / axes)
    cone = EllipsoidCone(axes, offset)
    points = np.random.default_rng(0).standard_normal((200, 25)) * np.where(np.arange(25) % 2, 1, 1e-3)
    near = cone.project(points)
    rest = points - near
    # In the cone, in the polar (whose support function is explicit), and perpendicular.
    scaled, along = near / axes, offset / axes
    moved = np.linalg.norm(near, axis=1) > 0
    assert np.all(
        (scaled @ along)[moved] / np.linalg.norm(scaled[moved], axis=1) >= math.sqrt(along @ along - 1) * (1 - 1e-9)
    )
    assert (rest @ offset + np.linalg.norm(rest * axes, axis=1)).max() < 1e-9 * np.linalg.norm(points) * axes.max()
    assert np.abs((rest * near).sum(axis=1)).max() < 1e-9


@pytest.mark.parametrize(
    ("call", "pattern"),
    [
        (lambda: Subspace([[1.0], [1.0]]), "orthonormal columns"),
        (lambda: Subspace(np.eye(2, 3)), "^basis of shape"),
        (lambda: Orthant(0), "^dimension=0"),
        (lambda: CircularCone(3, 2.0), "^angle=2.0"),
        (lambda: CircularCone(3, 1.0, [0, 0, 0]), "^axis"),
        (lambda: L1DescentCone([0.0, 0.0]), "^point=0"),
        (lambda: EllipsoidCone([1, 2], [0.1, 0.1]), "^offset puts the point inside"),
        (lambda: EllipsoidCone([1, 0], [3, 3]), "^half_axes must all be positive"),
        (lambda: EllipsoidCone([1, 2], [3, 3, 3]), "^offset of shape"),
        (lambda: EllipsoidCone([1, 2, 3], [9, 9, 9]).edges(), r"^edges\(\)"),
        (lambda: Orthant(3).project([1.0, 2.0]), "^points of shape"),
        (lambda: seen_from([1, 2], 1.0, "flat"), "Did you mean 'flattest'"),
        (lambda: seen_from([1, 2], -1.0), "^distance=-1.0"),
    ],
)
def test_bad_input(call, pattern: str) -> None:
    with pytest.raises(PruneLimitError, match=pattern):
        call()
