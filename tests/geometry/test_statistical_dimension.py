"""Statistical dimension: closed forms, Monte Carlo within its error, and the ellipsoid's formula against the truth."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate

from prunelimit import PruneLimitError
from prunelimit.geometry import (
    CircularCone,
    EllipsoidCone,
    L1DescentCone,
    Orthant,
    Subspace,
    confocal_dimension,
    confocal_distance,
    ellipsoid_dimension,
    projected_squares,
    projected_width,
    seen_from,
    statistical_dimension,
)

TOTAL = 60
EXACT = {
    "subspace": (Subspace.random(17, TOTAL, 0), 17),
    "orthant": (Orthant(TOTAL), TOTAL / 2),
    "ray": (CircularCone(TOTAL, 0.0), 0.5),
    "half-space": (CircularCone(TOTAL, math.pi / 2), TOTAL - 0.5),
    "half-space, l1": (L1DescentCone(np.ones(TOTAL)), TOTAL - 0.5),
    "polar of the orthant": (Orthant(TOTAL).polar(), TOTAL / 2),
    "polar of a subspace": (Subspace.random(17, TOTAL, 0).polar(), TOTAL - 17),
}


@pytest.mark.parametrize("name", EXACT)
def test_closed_forms(name: str) -> None:
    cone, truth = EXACT[name]
    assert cone.statistical_dimension() == pytest.approx(truth, rel=1e-11)
    found = statistical_dimension(cone, samples=3000, seed=1)
    assert found.exact == pytest.approx(truth, rel=1e-11)
    assert abs(found.value - truth) < 3 * found.error + 1e-9


@pytest.mark.parametrize("angle", [0.1, 0.5, 1.0, 1.4])
@pytest.mark.parametrize("total", [2, 3, 50, 5000])
def test_circular_cones(angle: float, total: int) -> None:
    cone = CircularCone(total, angle)
    exact = cone.statistical_dimension()
    assert exact == pytest.approx(total * math.sin(angle) ** 2, abs=1)  # D sin^2 a + O(1)
    assert cone.polar().statistical_dimension() == pytest.approx(
        CircularCone(total, math.pi / 2 - angle).statistical_dimension()
    )
    if total <= 50:
        found = statistical_dimension(cone, samples=4000, seed=2)
        assert abs(found.value - exact) < 3 * found.error


def test_plane_sectors() -> None:
    """In the plane a cone of opening phi has statistical dimension 1/2 + phi / pi."""
    cone = EllipsoidCone([0.9, 0.3], [1.1, 0.8])
    opening = math.acos(cone.edges()[0] @ cone.edges()[1])
    found = statistical_dimension(cone, samples=40_000, seed=3)
    assert abs(found.value - (0.5 + opening / math.pi)) < 3 * found.error
    assert CircularCone(2, 0.4).statistical_dimension() == pytest.approx(0.5 + 0.8 / math.pi)


def test_the_error_is_the_standard_error() -> None:
    cone = Orthant(20)
    runs = [statistical_dimension(cone, samples=200, seed=s) for s in range(300)]
    spread = np.std([r.value for r in runs])
    assert spread == pytest.approx(np.mean([r.error for r in runs]), rel=0.15)


@pytest.mark.parametrize(
    "cone", [Orthant(30), CircularCone(30, 0.7), L1DescentCone(np.arange(30) < 5), Subspace.random(9, 30, 0)]
)
def test_leaving_out_the_length_keeps_the_mean_and_lowers_the_variance_by_what_is_promised(cone) -> None:
    plain, better = (projected_squares(cone, 20_000, 4, radial=flag) for flag in (True, False))
    assert abs(plain.mean() - better.mean()) < 3 * (plain - better).std() / math.sqrt(20_000)
    promised = 2 * 30 * ((better / 30) ** 2).mean()
    assert plain.var() - better.var() == pytest.approx(promised, rel=0.1)
    control = np.cov(plain, np.random.default_rng(4).standard_normal((20_000, 30)) ** 2 @ np.ones(30))
    assert better.var() < control[0, 0] - control[0, 1] ** 2 / control[1, 1] + 0.05 * plain.var()


def test_batches_do_not_change_the_draws(monkeypatch) -> None:
    whole = projected_squares(Orthant(10), 100, 0)
    monkeypatch.setattr("prunelimit.geometry.width.BATCH", 70)
    np.testing.assert_allclose(projected_squares(Orthant(10), 100, 0), whole)


@pytest.mark.parametrize(("total", "nonzero"), [(60, 3), (60, 20), (200, 10), (60, 59)])
def test_descent_cones_lie_between_their_bounds(total: int, nonzero: int) -> None:
    cone = L1DescentCone(np.arange(total) < nonzero)
    low, high = cone.dimension_bounds()
    found = statistical_dimension(cone, samples=3000, seed=5)
    assert low - 3 * found.error < found.value < high + 3 * found.error
    assert high - low <= 2 * math.sqrt(total / nonzero) + 1e-9
    # The upper bound is the least value of a function of one number: by a grid, with the mean by quadrature.
    taus = np.linspace(0, 4, 401)
    mean = [
        2 * integrate.quad(lambda x, t=t: (x - t) ** 2 * math.exp(-(x**2) / 2) / math.sqrt(2 * math.pi), t, 40)[0]
        for t in taus
    ]
    assert high == pytest.approx(np.min(nonzero * (1 + taus**2) + (total - nonzero) * np.array(mean)), rel=1e-3)


def spectra(total: int) -> dict[str, np.ndarray]:
    return {
        "ball": np.full(total, 0.7),
        "wide": np.geomspace(1e-2, 1, total),
        "few flat": np.where(np.arange(total) < total // 10, 1.0, 0.05),
    }


@pytest.mark.parametrize("direction", ["random", "isotropic", "flattest", "stiffest"])
@pytest.mark.parametrize("name", ["ball", "wide", "few flat"])
@pytest.mark.parametrize("distance", [1.05, 1.5, 4.0])
def test_ellipsoid_cones(direction: str, name: str, distance: float) -> None:
    axes = spectra(80)[name]
    cone = EllipsoidCone(axes, seen_from(axes, distance, direction, 7))
    found = statistical_dimension(cone, samples=2000, seed=6)
    low, high = cone.dimension_bounds()
    assert low - 3 * found.error < found.value < high + 3 * found.error
    # The formula never claims more than two dimensions too many; the confocal one is right to one.
    formula = ellipsoid_dimension(axes, distance)
    assert found.value > formula - 2 - 3 * found.error
    assert found.value == pytest.approx(confocal_dimension(axes, cone.center_offset), abs=0.7 + 3 * found.error)
    if found.exact is not None:
        assert name == "ball"
        assert abs(found.value - found.exact) < 3 * found.error


def test_by_how_much_the_formula_is_off() -> None:
    """Random directions: little, if the cone is small. The flattest one, seen from near: most of the cone is missed."""
    axes = spectra(200)["wide"]
    missed = {}
    for direction in ("random", "flattest", "stiffest"):
        cone = EllipsoidCone(axes, seen_from(axes, 1.05, direction, 7))
        found = statistical_dimension(cone, samples=1000, seed=8)
        missed[direction] = (found.value - ellipsoid_dimension(axes, 1.05)) / found.value
    assert missed["flattest"] > 0.6
    assert abs(missed["random"]) < 0.15
    assert abs(missed["stiffest"]) < 0.15


@given(total=st.integers(2, 10), seed=st.integers(0, 2**32 - 1), excess=st.floats(1e-3, 1e3))
def test_confocal_quantities_against_all_eigenvalues(total: int, seed: int, excess: float) -> None:
    rng = np.random.default_rng(seed)
    axes, offset = 10 ** rng.uniform(-1, 0, total), rng.standard_normal(total)
    offset *= (1 + excess) / np.linalg.norm(offset / axes)
    values = np.linalg.eigvalsh(np.diag(axes**2) - np.outer(offset, offset))
    assert values[0] < 0 < values[1]
    confocal = confocal_distance(axes, offset)
    assert confocal**2 == pytest.approx(-values[0], rel=1e-6)
    assert confocal < np.linalg.norm(offset)
    truth = (values[1:] / (values[1:] - values[0])).sum() + 0.5
    assert confocal_dimension(axes, offset) == pytest.approx(truth, rel=1e-6)
    distance = float(np.linalg.norm(offset))
    assert confocal_dimension(axes, offset) >= ellipsoid_dimension(axes, distance) - 0.5 - 1e-9
    assert confocal_distance(3 * axes, 3 * offset) == pytest.approx(3 * confocal)


def test_confocal_distance_of_an_eigen_direction_and_of_a_ball() -> None:
    axes = np.array([0.3, 0.8, 0.5])
    for j, r in enumerate(axes):
        assert confocal_distance(axes, 1.3 * np.eye(3)[j]) == pytest.approx(math.sqrt(1.3**2 - r**2))
    assert confocal_distance([0.6] * 3, [0.0, 0.6, 0.8]) == pytest.approx(0.8)


def test_the_formula_is_the_effective_dimension_in_other_words() -> None:
    from prunelimit.limit import effective_dimension

    eigenvalues, epsilon, distance = np.geomspace(1e-4, 10, 30), 0.03, 0.7
    axes = np.sqrt(2 * epsilon / eigenvalues)
    stiff = effective_dimension(eigenvalues, 2 * epsilon / distance**2)
    assert ellipsoid_dimension(axes, distance) == pytest.approx(30 - stiff)
    np.testing.assert_allclose(ellipsoid_dimension(axes, [distance, 0.0]), [30 - stiff, 30])
    assert ellipsoid_dimension([np.inf, 1.0], 1.0) == 1.5
    assert projected_width(axes, distance) ** 2 < ellipsoid_dimension(axes, distance)


@pytest.mark.parametrize(
    ("call", "pattern"),
    [
        (lambda: statistical_dimension(Orthant(3), samples=1), "^samples=1"),
        (lambda: ellipsoid_dimension([1.0, -1.0], 1.0), "^half_axes"),
        (lambda: ellipsoid_dimension([1.0], -1.0), "^distance=-1.0"),
    ],
)
def test_bad_input(call, pattern: str) -> None:
    with pytest.raises(PruneLimitError, match=pattern):
        call()
