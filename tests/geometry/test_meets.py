"""Does a cone meet a subspace? Constructed answers, a second solver, exact probabilities, and the kinematic formula."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunelimit import PruneLimitError
from prunelimit.geometry import (
    CircularCone,
    Cone,
    EllipsoidCone,
    L1DescentCone,
    Orthant,
    Subspace,
    first_meeting,
    kinematic_bound,
    meeting_probability,
    meets,
    random_rotation,
    random_subspace,
    seen_from,
    statistical_dimension,
    transition_window,
)
from prunelimit.limit import kinematic_margin


def cones(total: int, rng: np.random.Generator) -> dict:
    axes = np.geomspace(0.05, 0.9, total)
    return {
        "subspace": Subspace.random(total // 3, total, rng),
        "orthant": Orthant(total),
        "circular": CircularCone(total, 0.7, rng.standard_normal(total)),
        "ellipsoid": EllipsoidCone(axes, seen_from(axes, 1.0, "random", rng)),
        "l1": L1DescentCone((np.arange(total) < 1 + total // 5) * rng.standard_normal(total)),
    }


KINDS = ("subspace", "orthant", "circular", "ellipsoid", "l1")


@pytest.mark.parametrize("kind", KINDS)
@given(total=st.integers(3, 12), seed=st.integers(0, 2**32 - 1))
def test_a_subspace_through_a_point_of_the_cone_meets_it(kind: str, total: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    cone = cones(total, rng)[kind]
    point = cone.project(rng.standard_normal(total))
    if np.linalg.norm(point) < 1e-6:
        return
    inner = point if kind in ("subspace", "orthant") else 0.999 * point  # on the boundary one may round either way
    if kind == "ellipsoid":
        inner = point / np.linalg.norm(point) + 1e-6 * cone.center_offset
    if kind == "circular":
        inner = point / np.linalg.norm(point) + 1e-6 * cone.axis
    basis = np.linalg.qr(np.column_stack([inner, rng.standard_normal((total, int(rng.integers(0, total - 1))))]))[0]
    assert meets(cone, basis)


@pytest.mark.parametrize("kind", KINDS)
@given(total=st.integers(3, 12), seed=st.integers(0, 2**32 - 1))
def test_a_subspace_in_the_polar_of_an_inner_vector_misses(kind: str, total: int, seed: int) -> None:
    """If some vector v has a positive inner product with all of the cone, the hyperplane across v misses it."""
    rng = np.random.default_rng(seed)
    cone = cones(total, rng)[kind]
    if kind == "subspace":  # it holds lines; its complement misses it
        assert not meets(cone, np.linalg.svd(cone.basis)[0][:, cone.dimension :])
        return
    if kind == "l1":  # so does this one; the coordinates off the support miss it
        assert not meets(cone, np.eye(total)[:, ~cone.support])
        return
    inside = {
        "orthant": lambda: np.ones(total),
        "circular": lambda: cone.axis,
        "ellipsoid": lambda: cone.center_offset,
    }[kind]()
    if kind == "ellipsoid":
        inside = inside / cone.half_axes**2  # the plane that is parallel to the tangent plane at the near end
    basis = np.linalg.svd(inside[:, None])[0][:, 1:]
    assert not meets(cone, basis)


@given(total=st.integers(2, 14), seed=st.integers(0, 2**32 - 1))
def test_two_solvers_agree(total: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    basis = random_subspace(int(rng.integers(1, total + 1)), total, rng)
    l1 = L1DescentCone((np.arange(total) < rng.integers(1, total + 1)) * rng.standard_normal(total))
    for cone in (Orthant(total), l1):
        assert meets(cone, basis) == meets(cone, basis, solver="highs")


@given(seed=st.integers(0, 2**32 - 1))
def test_the_ellipsoid_is_met_where_minimising_the_quadratic_gets_below_its_level(seed: int) -> None:
    rng = np.random.default_rng(seed)
    total, kept = 10, int(rng.integers(1, 10))
    axes = np.geomspace(0.05, 0.9, total)
    offset = seen_from(axes, 1.0, "random", rng)
    basis = random_subspace(kept, total, rng)
    metric = np.diag(axes**-2.0)
    step = np.linalg.solve(basis.T @ metric @ basis, basis.T @ metric @ offset)
    left = basis @ step - offset
    assert meets(EllipsoidCone(axes, offset), basis) == (left @ metric @ left <= 1)


@pytest.mark.parametrize("kind", KINDS)
def test_first_meeting_is_where_meets_turns(kind: str) -> None:
    rng = np.random.default_rng(2)
    for _ in range(4):
        cone, rotation = cones(12, rng)[kind], random_rotation(12, rng)
        first = first_meeting(cone, rotation)
        assert first is not None
        answers = [meets(cone, rotation[:, :m]) for m in range(13)]
        assert answers == [m >= first for m in range(13)]
        assert first_meeting(cone, rotation[:, : first - 1]) is None


def test_a_line_of_the_descent_cone_counts() -> None:
    """Moving weight between two entries of the support leaves the l1 norm as it is."""
    cone = L1DescentCone([1.0, -2.0, 0.0])
    assert meets(cone, np.array([[1.0], [1.0], [0.0]]) / math.sqrt(2))
    assert not meets(cone, np.array([[0.0], [0.0], [1.0]]))


EXACT = {
    "orthant": Orthant(11),
    "circular": CircularCone(11, 0.8),
    "ball": EllipsoidCone(np.full(11, 0.5), 0.2 * np.ones(11)),
    "subspace": Subspace.random(4, 11, 0),
}


@pytest.mark.parametrize("name", EXACT)
def test_exact_probabilities(name: str) -> None:
    cone, rng, count = EXACT[name], np.random.default_rng(3), 600
    firsts = np.array([first_meeting(cone, random_rotation(11, rng)) for _ in range(count)])
    for m in range(12):
        truth = meeting_probability(cone, m)
        slack = 4 * math.sqrt(truth * (1 - truth) / count) + 1e-12
        assert abs((firsts <= m).mean() - truth) < slack, m


def test_known_probabilities() -> None:
    assert meeting_probability(Orthant(3), 1) == pytest.approx(2 * 2**-3)  # a line: two of eight octants
    assert meeting_probability(Orthant(3), 2) == pytest.approx(6 / 8)  # a plane misses one pair of opposite octants
    assert meeting_probability(Orthant(7), 7) == 1
    assert meeting_probability(L1DescentCone([1.0, 0.0]), 1) is None


@pytest.mark.parametrize("total", [10, 100, 1000])
@pytest.mark.parametrize("cone", [Orthant, lambda total: CircularCone(total, 0.6)])
def test_the_kinematic_bound_holds_for_exact_probabilities(total: int, cone) -> None:
    made = cone(total)
    dimension = made.statistical_dimension()
    for m in range(0, total + 1, max(1, total // 50)):
        low, high = kinematic_bound(m + dimension, total)
        assert low <= meeting_probability(made, m) + 1e-12
        assert high >= meeting_probability(made, m) - 1e-12


@given(total=st.integers(1, 10_000), eta=st.floats(1e-6, 0.99))
def test_window_and_bound_are_the_same_statement(total: int, eta: float) -> None:
    window = transition_window(total, eta)
    assert kinematic_bound(total + window, total)[0] == pytest.approx(1 - eta)
    assert kinematic_bound(total - window, total)[1] == pytest.approx(eta)
    assert window / total == pytest.approx(kinematic_margin(total, eta))


def test_meeting_turns_where_the_statistical_dimension_says() -> None:
    rng = np.random.default_rng(4)
    axes = np.geomspace(0.02, 1, 120)
    cone = EllipsoidCone(axes, seen_from(axes, 1.0, "random", rng))
    firsts = [first_meeting(cone, random_rotation(120, rng)) for _ in range(60)]
    assert np.median(firsts) == pytest.approx(120 - statistical_dimension(cone).value, abs=3)


class Nameless(Cone):
    ambient = 3

    def _project(self, points):
        return points


@pytest.mark.parametrize(
    ("call", "pattern"),
    [
        (lambda: meets(Nameless(), np.eye(3)[:, :1]), "^cone=Nameless has no intersection test"),
        (lambda: meets(Orthant(3), np.eye(2)), "^basis of shape"),
        (lambda: meets(Orthant(2), [[1.0], [1.0]]), "^basis must have orthonormal"),
        (lambda: meets(Orthant(2), np.eye(2), solver="simplex"), "^solver='simplex'"),
        (lambda: transition_window(10, 1.5), "^eta=1.5"),
        (lambda: meeting_probability(Orthant(3), 4), "^dimension=4"),
    ],
)
def test_bad_input(call, pattern: str) -> None:
    with pytest.raises(PruneLimitError, match=pattern):
        call()
